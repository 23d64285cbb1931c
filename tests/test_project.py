"The house keeps its rules: parts in order, modules in step, one thing a line, imports light."
import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
CHAPTERS = {p.stem[3:]: int(p.stem[:2]) for p in NOTEBOOKS if p.stem[:2].isdigit()}
TOOLS = sorted([*(ROOT/'tests').rglob('*.py'), *(ROOT/'docs').glob('*.py'), ROOT/'setup.py'])
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def cells(path: Path, kind: str = 'code') -> list[str]:
    "The cells of a notebook, of a kind."
    content = json.loads(path.read_text(encoding='utf-8'))['cells']
    return [''.join(cell['source']) for cell in content if cell['cell_type'] == kind]


def chapter(name: str) -> Path:
    return ROOT/'nbs'/f'{CHAPTERS[name]:02}_{name}.ipynb'


def imports(code: str) -> set[str]:
    "Modules of the package that Python code imports, by any way of importing."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level == 1 or module.split('.')[0] == 'wsss_nb':
                inner = module.removeprefix('wsss_nb').strip('.')
                names = {alias.name for alias in node.names}
                found |= {inner.split('.')[0]} if inner else names
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            found |= {name.split('.')[1] for name in names if name.startswith('wsss_nb.')}
    return found


@pytest.mark.parametrize('name', CHAPTERS)
def test_a_chapter_imports_only_earlier_chapters(name):
    used = imports((ROOT/'wsss_nb'/f'{name}.py').read_text(encoding='utf-8'))
    for code in cells(chapter(name)):
        used |= imports(code)
    for other in used - {name}:
        assert CHAPTERS[other] < CHAPTERS[name], f'{name} imports {other}'


def test_every_module_comes_out_of_a_notebook():
    modules = {p.stem for p in (ROOT/'wsss_nb').glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(CHAPTERS)


def test_no_room_is_too_large():
    long = {}
    for path in (ROOT/'wsss_nb').glob('*.py'):
        lines = len(path.read_text(encoding='utf-8').splitlines())
        if lines > 500 and path.stem != '_modidx':
            long[path.stem] = lines
    assert long == {}


def method_names() -> set[str]:
    "Names of all methods and of their classes."
    from wsss_nb.systems import OURS
    return {method.__name__ for method in OURS}


@pytest.mark.parametrize('name', [n for n, number in CHAPTERS.items() if 40 <= number < 70])
def test_no_room_of_a_run_knows_a_method_by_name(name):
    tree = ast.parse((ROOT/'wsss_nb'/f'{name}.py').read_text(encoding='utf-8'))
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= imported_names(tree)
    assert used & method_names() == set()


def imported_names(tree: ast.AST) -> set[str]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    for node in ast.walk(tree):
        for field in ('body', 'orelse', 'finalbody'):
            body = getattr(node, field, [])
            if isinstance(body, list):
                yield from [part for part in body if isinstance(part, ast.stmt)]


def is_ellipsis(statement: ast.stmt) -> bool:
    value = getattr(statement, 'value', None)
    return isinstance(value, ast.Constant) and value.value is ...


def crowded_lines(tree: ast.AST) -> Iterator[tuple[int, str]]:
    "Lines with more than one statement, or with a body on the line of its header."
    seen = set()
    for statement in statements(tree):
        if statement.lineno in seen:
            yield statement.lineno, 'two statements'
        seen.add(statement.lineno)
        body = getattr(statement, 'body', None)
        if isinstance(body, list) and body[0].lineno == statement.lineno:
            if not is_ellipsis(body[0]):
                yield statement.lineno, 'a body on the line of its header'


def is_swap(node: ast.Assign) -> bool:
    targets = {ast.unparse(part) for part in node.targets[0].elts}
    return targets == {ast.unparse(part) for part in node.value.elts}


def dense_expressions(tree: ast.AST) -> Iterator[tuple[int, str]]:
    "Nested comprehensions, `a, b = x, y`, and conditions by multiplication."
    for node in ast.walk(tree):
        if isinstance(node, COMPREHENSIONS):
            inner = [part for part in ast.walk(node) if isinstance(part, COMPREHENSIONS)]
            if len(inner) > 1 or len(node.generators) > 1:
                yield node.lineno, 'a nested comprehension'
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            if isinstance(node.targets[0], ast.Tuple) and not is_swap(node):
                yield node.lineno, 'a, b = x, y'
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            if isinstance(node.left, ast.Compare) or isinstance(node.right, ast.Compare):
                yield node.lineno, 'a condition by multiplication'


def faults(code: str) -> list[tuple[int, str]]:
    "What is wrong with the lines of some code: (line, what)."
    found = []
    lines = code.splitlines()
    for number, line in enumerate(lines, 1):
        if len(line) > 100 and '://' not in line:
            found.append((number, f'{len(line)} characters'))
    plain = ['' if line.lstrip().startswith(('%', '!')) else line for line in lines]
    tree = ast.parse('\n'.join(plain))
    return found + [*crowded_lines(tree), *dense_expressions(tree)]


def test_the_rules_of_lines_find_what_they_are_for():
    dense = """if x: y = 1
a, b = 1, 2
c = [d for e in f for d in e]
g = 's' * (h > 1)
i = 1; j = 2"""
    assert {number for number, _ in faults(dense)} == {1, 2, 3, 4, 5}
    assert faults('def f():\n    ...\na, b = b, a\n') == []
    assert faults('x = 1' + ' ' * 100) == [(1, '105 characters')]


@pytest.mark.parametrize('path', [*NOTEBOOKS, *TOOLS], ids=lambda p: p.stem)
def test_one_thing_a_line(path):
    codes = cells(path) if path.suffix == '.ipynb' else [path.read_text(encoding='utf-8')]
    found = []
    for number, code in enumerate(codes):
        found += [(number, *fault) for fault in faults(code)]
    assert found == []


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_prose_of_at_most_100_characters_a_line(path):
    for text in cells(path, 'markdown'):
        for line in text.splitlines():
            is_table = line.startswith('|')
            assert len(line) <= 100 or is_table or '://' in line or '](' in line, line


def test_at_most_one_exported_cell_in_ten_is_long():
    exported = []
    for path in NOTEBOOKS:
        exported += [code for code in cells(path) if code.startswith('#| export')]
    long = [code for code in exported if len(code.splitlines()) > 25]
    assert len(long) <= len(exported) / 10


def test_modules_and_notebooks_are_in_step_and_clean(tmp_path):
    hidden = shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints')
    for name in ('nbs', 'wsss_nb'):
        shutil.copytree(ROOT/name, tmp_path/name, ignore=hidden)
    for name in ('settings.ini', 'pyproject.toml', 'setup.py', 'README.md'):
        shutil.copy(ROOT/name, tmp_path/name)
    before = contents(tmp_path)
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp_path, check=True,
                       capture_output=True)
    after = contents(tmp_path)
    changed = {p for p in before.keys() | after.keys() if before.get(p) != after.get(p)}
    assert changed == set()


def contents(root: Path) -> dict[str, bytes]:
    "The files of notebooks and modules."
    files = [*(root/'nbs').iterdir(), *(root/'wsss_nb').iterdir()]
    return {path.name: path.read_bytes() for path in files if path.is_file()}


HEAVY = ('IPython', 'ipykernel', 'jupyter_core', 'jupyterlab', 'ipywidgets', 'matplotlib',
         'nbdev', 'scipy', 'timm', 'torchvision', 'triton')


def loaded(code: str, folder: Path) -> set[str]:
    "Packages that are loaded after some code ran in a process of its own."
    code += '; import sys; print(*{name.split(".")[0] for name in sys.modules})'
    done = subprocess.run([sys.executable, '-c', code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


IMPORT_EACH = """
import importlib, os, sys
import torch
for name in sys.argv[1:]:
    if os.fork() == 0:   # in a process of its own, which knows PyTorch only
        importlib.import_module(f'wsss_nb.{name}')
        print(name, *{module.split('.')[0] for module in sys.modules}, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope='module')
def loaded_by(tmp_path_factory) -> dict[str, set[str]]:
    "Packages that are loaded when a chapter is imported, by chapter; without those that failed."
    command = [sys.executable, '-c', IMPORT_EACH, *CHAPTERS]
    elsewhere = tmp_path_factory.mktemp('elsewhere')
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    print(done.stderr)
    found = {}
    for line in done.stdout.splitlines():
        name, *packages = line.split()
        found[name] = set(packages)
    return found


@pytest.mark.parametrize('name', CHAPTERS)
def test_importing_a_chapter_is_light_and_works_from_elsewhere(name, loaded_by):
    assert name in loaded_by, 'it cannot be imported: see the captured output'
    assert loaded_by[name] & set(HEAVY) == set()


def test_help_and_a_new_folder_need_no_torch(tmp_path):
    for words in (['--help'], ['new', 'mine']):
        code = f'from wsss_nb.cli import main; main({words})'
        assert 'torch' not in loaded(code, tmp_path), words
    assert (tmp_path/'mine'/'tags.csv').exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_installs_the_package_in_colab_and_nowhere_else(path):
    first = cells(path)[0]
    calls = []

    class Shell:
        def run_line_magic(self, *words):
            calls.append(words)

    exec(first, {'get_ipython': Shell})
    assert calls == []
    sys.modules['google.colab'] = None
    try:
        exec(first, {'get_ipython': Shell})
    finally:
        del sys.modules['google.colab']
    assert calls == [('pip', 'install -q git+https://github.com/wsss-nb/wsss_nb')]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_show_no_error_and_no_path_of_a_machine(path):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    assert 'widgets' not in notebook['metadata']     # progress bars of whoever ran it
    shown = []
    for cell in notebook['cells']:
        for output in cell.get('outputs', []):
            assert output['output_type'] != 'error'
            data = output.get('data', output)
            shown.append({kind: data[kind] for kind in data if kind != 'image/png'})
    words = json.dumps(shown)
    for trace in ('/home/', '/root/', '/work/', '/Users/', 'site-packages', '/tmp/'):
        assert trace not in words, trace


def test_no_photos_are_committed():
    git = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode:
        pytest.skip('not a git checkout')
    endings = ('.jpg', '.jpeg', '.npz', '.safetensors', '.pth')
    assert [name for name in git.stdout.split() if name.lower().endswith(endings)] == []

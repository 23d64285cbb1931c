"The house keeps its rules: chapters in order, modules and notebooks in step, imports light, nothing committed that must not be."
import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT/'nbs').glob('*.ipynb'))
CHAPTERS = {p.stem[3:]: int(p.stem[:2]) for p in NOTEBOOKS if p.stem[:2].isdigit()}


def imports(code: str) -> set[str]:
    "Modules of the package that Python code imports, by any way of importing."
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.level == 1 or (node.module or '').split('.')[0] == 'wsss_nb'):
            module = (node.module or '').removeprefix('wsss_nb').strip('.')
            found |= {module.split('.')[0]} if module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            found |= {a.name.split('.')[1] for a in node.names if a.name.startswith('wsss_nb.')}
    return found


@pytest.mark.parametrize('name', CHAPTERS)
def test_a_chapter_imports_only_earlier_chapters(name):
    cells = json.loads((ROOT/'nbs'/f'{CHAPTERS[name]:02}_{name}.ipynb').read_text(encoding='utf-8'))['cells']
    code = [''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code']
    for other in imports((ROOT/'wsss_nb'/f'{name}.py').read_text(encoding='utf-8')) | set().union(*map(imports, code)):
        assert CHAPTERS[other] < CHAPTERS[name] or other == name, f'{name} imports {other}'


def test_every_module_comes_out_of_a_notebook():
    modules = {p.stem for p in (ROOT/'wsss_nb').glob('*.py')} - {'__init__', '_modidx'}
    assert modules == set(CHAPTERS)


def test_modules_and_notebooks_are_in_step_and_clean(tmp_path):
    for name in ('nbs', 'wsss_nb'): shutil.copytree(ROOT/name, tmp_path/name, ignore=shutil.ignore_patterns('__pycache__', '.ipynb_checkpoints'))
    for name in ('settings.ini', 'pyproject.toml', 'setup.py', 'README.md'): shutil.copy(ROOT/name, tmp_path/name)
    before = {p.relative_to(tmp_path): p.read_bytes() for folder in ('nbs', 'wsss_nb') for p in (tmp_path/folder).iterdir() if p.is_file()}
    for command in ('nbdev_export', 'nbdev_clean'):
        subprocess.run([Path(sys.executable).with_name(command)], cwd=tmp_path, check=True, capture_output=True)
    after = {p.relative_to(tmp_path): p.read_bytes() for folder in ('nbs', 'wsss_nb') for p in (tmp_path/folder).iterdir() if p.is_file()}
    assert {str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)} == set()


@pytest.mark.parametrize('name', CHAPTERS)
def test_importing_a_chapter_is_light_and_works_from_elsewhere(name, tmp_path):
    code = (f'import sys, wsss_nb.{name}; heavy = {{m.split(".")[0] for m in sys.modules}} & {{"IPython", "ipykernel", "jupyter_core", "jupyterlab", '
            '"ipywidgets", "matplotlib", "nbdev", "scipy"}; sys.exit(" ".join(sorted(heavy)) or 0)')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_installs_the_package_in_colab_and_nowhere_else(path):
    code = [''.join(cell['source']) for cell in json.loads(path.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']
    calls = []
    class Shell:
        def run_line_magic(self, *words): calls.append(words)
    exec(code[0], {'get_ipython': Shell})
    assert calls == []
    sys.modules['google.colab'] = None
    try: exec(code[0], {'get_ipython': Shell})
    finally: del sys.modules['google.colab']
    assert calls == [('pip', 'install -q git+https://github.com/wsss-nb/wsss_nb')]


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_outputs_show_no_error_and_no_path_of_a_machine(path):
    notebook = json.loads(path.read_text(encoding='utf-8'))
    assert 'widgets' not in notebook['metadata']     # progress bars of whoever ran it
    outputs = [output for cell in notebook['cells'] for output in cell.get('outputs', [])]
    assert not [o for o in outputs if o['output_type'] == 'error']
    words = json.dumps([{k: v for k, v in o.get('data', o).items() if k != 'image/png'} for o in outputs])
    for trace in ('/home/', '/root/', '/work/', '/Users/', 'site-packages', '/tmp/'): assert trace not in words, trace


def test_no_photos_are_committed():
    git = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True)
    if git.returncode: pytest.skip('not a git checkout')
    assert not [name for name in git.stdout.split() if name.lower().endswith(('.jpg', '.jpeg', '.npz', '.safetensors', '.pth'))]

"Make Sphinx's sources of the notebooks, the modules and the pages beside this file: `python docs/prepare.py FOLDER`."
import ast
import io
import json
import re
import shutil
import sys
import tokenize
from pathlib import Path

from execnb.nbio import dict2nb
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, hide_line, rm_header_dash, strip_ansi, strip_hidden_metadata

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = {int(path.stem[:2]): path.stem for path in sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))}   # number -> '15_codebook'
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


class Module:
    "What a module exports, read from its text: nothing is imported."
    def __init__(self, name: str):
        self.name, self.source = name, (ROOT/'wsss_nb'/f'{name}.py').read_text(encoding='utf-8')
        tree = ast.parse(self.source)
        self.doc = ast.get_docstring(tree) or ''
        self.exported = next(ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
        self.definitions = {}   # name -> where it is defined
        for node in tree.body:
            if isinstance(node, DEFINITIONS): self.definitions[node.name] = node
            if isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                self.definitions |= {name.id: node for target in targets for name in getattr(target, 'elts', [target]) if isinstance(name, ast.Name)}
        self.imported = {alias.asname or alias.name: (node.module, alias.name) for node in tree.body
                         if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module for alias in node.names}
        tokens = tokenize.generate_tokens(io.StringIO(self.source).readline)
        self.comments = {token.start[0]: token.string.lstrip('# ') for token in tokens if token.type == tokenize.COMMENT}

    def comment(self, node: ast.AST) -> str:
        "The comment behind the last line of a parameter, a field or a definition's head; '' if there is none."
        return self.comments.get(node.end_lineno, '')

    def members(self, definition: ast.ClassDef) -> list[ast.FunctionDef]:
        "The methods of a class that a person may call."
        return [node for node in definition.body if isinstance(node, ast.FunctionDef) and (node.name[0] != '_' or node.name != '__init__' and ast.get_docstring(node))]


MODULES = {name[3:]: Module(name[3:]) for name in CHAPTERS.values()}
KNOWN = {}   # every dotted name that has a place on an API page -> its full name; a bare name that several modules have is not in it
for module in MODULES.values():
    for name in module.exported:
        node = module.definitions[name]
        members = [f'{name}.{member.name}' for member in module.members(node)] if isinstance(node, ast.ClassDef) else []
        for dotted in (name, *members):
            full = f'wsss_nb.{module.name}.{dotted}'
            KNOWN |= {full: full, f'{module.name}.{dotted}': full}
            KNOWN[dotted] = None if dotted in KNOWN else full


def place_of(
    name: str,           # as written in backticks
    module: str | None,  # of the page
) -> str | None:         # the full name; None for what is no exported name
    "What a name in backticks means on a page: the module's own, what it imports, or a name that only one chapter has. An ordinary word is meant as a name in its own chapter only."
    name = name.removesuffix('()')
    own = MODULES.get(module)
    first, _, rest = name.partition('.')
    if own and f'wsss_nb.{module}.{name}' in KNOWN: return f'wsss_nb.{module}.{name}'
    if not re.search('[A-Z_.]', name): return None
    if own and first in own.imported: return KNOWN.get('.'.join(filter(None, ('wsss_nb', *own.imported[first], rest))))
    return KNOWN.get(name)


PROTECTED = re.compile(r'(^ *```.*?^ *```|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|`+[^`]+`+|<[^>\n]+>)', re.S | re.M)
MENTION = re.compile(r'\b([Cc]hapters?) (\d+(?:(?:, and |, | to | and )\d+)*)')


def link_chapters(
    mention: re.Match,  # of MENTION
    folder: str = '',   # where the chapters are, seen from the page
) -> str:
    "'chapter 20' and 'chapters 12 to 13' with links."
    link = lambda text, number: f'[{text}]({folder}{CHAPTERS[int(number)]}.ipynb)' if int(number) in CHAPTERS else text
    word, numbers = mention.groups()
    return link(mention[0], numbers) if numbers.isdigit() else f'{word} ' + re.sub(r'\d+', lambda number: link(number[0], number[0]), numbers)


def link(
    text: str,                  # Markdown
    module: str | None = None,  # of the page
    folder: str = '',           # where the chapters are, seen from the page
    escape: bool = False,       # the text comes from code, where *, _ and the like mean themselves
) -> str:
    "Markdown in which names in backticks lead to their API page, and mentions of chapters to the chapter."
    pieces = []
    for i, piece in enumerate(PROTECTED.split(text) if not escape else re.split(r'(`[^`]+`)', text)):
        if i % 2 == 0:
            if escape: piece = re.sub(r'([\\*_<>\[\]{}$|#~])', r'\\\1', piece)
            piece = MENTION.sub(lambda mention: link_chapters(mention, folder), piece)
        elif re.fullmatch(r'`[\w.]+(\(\))?`', piece) and (full := place_of(piece.strip('`'), module)):
            piece = f'{{py:obj}}`{piece.strip("`")} <{full}>`'
        pieces.append(piece)
    return ''.join(pieces)


def unfold(text: str) -> str:
    "Folded answers whose text is Markdown, too: blank lines around it."
    return re.sub(r'^( *)<details><summary>(.*?)</summary>\s*(.*?)\s*</details>', r'\1<details><summary>\2</summary>\n\n\1\3\n\n\1</details>\n', text, flags=re.S | re.M)


def is_imports(source: str) -> bool:
    "Whether a cell holds nothing but imports."
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def mark_exported(cell): cell.metadata['exported'] = 'export' in cell.directives_
def drop_hidden(cell):
    if cell.directives_.keys() & {'hide', 'default_exp'}: del cell['source']


def as_table(output: dict) -> dict:
    "A printed Markdown table as a table, anything else as it is."
    text = ''.join(output.get('text', ''))
    if not text or not all(line.startswith('| ') for line in text.splitlines()): return output
    return {'output_type': 'display_data', 'data': {'text/markdown': text}, 'metadata': {}}


def prepare_chapter(
    path: Path,           # a notebook
    number: int | None,   # of the chapter; None for the front page
) -> dict:                # the notebook for Sphinx
    "A chapter with its stored outputs and the source of what it exports, names and chapters linked."
    raw, module = json.loads(path.read_text(encoding='utf-8')), None if number is None else path.stem[3:]
    notebook = dict2nb(raw)
    NBProcessor(nb=notebook, procs=[mark_exported, drop_hidden, strip_ansi, hide_line, rm_header_dash, clean_magics, strip_hidden_metadata]).process()
    cells = []
    for cell in notebook.cells:
        if not cell.get('source'): continue
        if cell.cell_type == 'markdown':
            text = unfold(link(cell.source, module))
            cells.append({'cell_type': 'markdown', 'metadata': {}, 'source': re.sub(r'\A# ', f'# {number}. ', text) if number is not None else text})
            continue
        source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M).strip()
        names = [node.name for node in ast.parse(source).body if isinstance(node, DEFINITIONS)] if cell.metadata.get('exported') else []
        if names: cells.append({'cell_type': 'markdown', 'metadata': {}, 'source': ''.join(f'<span id="def-{name}"></span>' for name in names)})
        cells.append({'cell_type': 'code', 'metadata': {'tags': ['hide-input'] if is_imports(source) else []}, 'source': source, 'execution_count': None,
                      'outputs': [as_table(output) for output in json.loads(json.dumps(cell.get('outputs', [])))]})
    return {'cells': cells, 'metadata': raw['metadata'], 'nbformat': 4, 'nbformat_minor': 4}


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    "The parameters of a function, without self."
    a = node.args
    return [argument for argument in (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg) if argument and argument.arg not in ('self', 'cls')]


def head(node: ast.FunctionDef, name: str) -> str:
    "A function as Sphinx's signature, without self."
    node = ast.parse(ast.unparse(node)).body[0]
    node.args.args = [argument for argument in node.args.args if argument.arg not in ('self', 'cls')]
    return f'{name}({ast.unparse(node.args)})' + (f' -> {ast.unparse(node.returns)}' if node.returns else '')


def fields_of(node: ast.ClassDef) -> list[ast.AnnAssign]:
    "The fields of a named tuple or a dataclass."
    return [field for field in node.body if isinstance(field, ast.AnnAssign)]


def describe(module: Module, node: ast.AST, listed: list[tuple[str, ast.AST]], returns: str = '') -> str:
    "Docstring and a list of parameters or fields with their comments."
    text = lambda words: link(re.sub(r'\s+', ' ', words), module.name, '../', escape=True)
    paragraphs = [text(paragraph) for paragraph in (ast.get_docstring(node) or '').split('\n\n')]
    rows = [f':param {name}: {text(module.comment(item))}' for name, item in listed if module.comment(item)]
    rows += [f':returns: {text(returns)}'] if returns else []
    return '\n\n'.join(paragraphs) + '\n\n' + '\n'.join(rows) + '\n'


def describe_function(module: Module, node: ast.FunctionDef, name: str, kind: str, fence: str) -> str:
    "A function, a method or a property."
    decorators = {ast.unparse(decorator).split('.')[-1] for decorator in node.decorator_list}
    if decorators & {'property', 'cached_property'}:
        return f'{fence}{{py:property}} {name}\n' + (f':type: {json.dumps(ast.unparse(node.returns))}\n' if node.returns else '') + f'\n{describe(module, node, [])}{fence}\n'
    options = ''.join(f':{option}:\n' for option in ('staticmethod', 'classmethod') if option in decorators)
    line = node.returns.end_lineno if node.returns else node.lineno   # of the head's end: what is behind it describes what comes back
    last = max([argument.end_lineno for argument in arguments(node)], default=0)
    returns = module.comments.get(line, '') if line > last else ''
    return f'{fence}{{py:{kind}}} {head(node, name)}\n{options}\n{describe(module, node, [(a.arg, a) for a in arguments(node)], returns)}{fence}\n'


def describe_class(module: Module, node: ast.ClassDef) -> str:
    "A class with its fields or the parameters of its construction, and its methods."
    made = next((member for member in node.body if isinstance(member, ast.FunctionDef) and member.name == '__init__'), None)
    if made: signature, listed = head(made, node.name).removesuffix(' -> None'), [(a.arg, a) for a in arguments(made)]
    else:
        fields = fields_of(node)
        write = lambda f: ast.unparse(f).replace('\n', ' ')
        signature, listed = node.name + (f'({", ".join(map(write, fields))})' if fields else ''), [(f.target.id, f) for f in fields]
    members = [describe_function(module, member, member.name, 'method', '````') for member in module.members(node)]
    return f'`````{{py:class}} {signature}\n\n{describe(module, node, listed)}\n' + '\n'.join(members) + '`````\n'


def describe_constant(module: Module, node: ast.Assign | ast.AnnAssign, name: str) -> str:
    "A constant with its value and the comment behind it."
    value = ast.unparse(node.value)
    comment = link(module.comment(node), module.name, '../', escape=True)
    shown = json.dumps(value if len(value) < 120 else value[:100] + ' ...', ensure_ascii=False)   # options are YAML
    return f'````{{py:data}} {name}\n:value: {shown}\n\n{comment}\n````\n'


def prepare_api(module: Module, chapter: str) -> str:
    "The API page of a module: every exported name in the order of the chapter."
    parts = [f'# wsss_nb.{module.name}\n\n```{{py:module}} wsss_nb.{module.name}\n```\n\n{link(module.doc, module.name, "../", escape=True)}\n\n'
             f'Explained, tested and shown in [chapter {int(chapter[:2])}](../{chapter}.ipynb).\n']
    for name, node in sorted(((name, module.definitions[name]) for name in module.exported), key=lambda pair: pair[1].lineno):
        if isinstance(node, (ast.Assign, ast.AnnAssign)): parts.append(describe_constant(module, node, name)); continue
        text = describe_class(module, node) if isinstance(node, ast.ClassDef) else describe_function(module, node, name, 'function', '`````')
        parts.append(text.removesuffix('`````\n') + f'\n<a class="in-chapter" href="../{chapter}.html#def-{name}">in chapter {int(chapter[:2])}</a>\n`````\n')
    return '\n'.join(parts)


def contents(caption: str, entries: list[str]) -> dict:
    "A table of contents for the sidebar."
    return {'cell_type': 'markdown', 'metadata': {}, 'source': f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n' + '\n'.join(entries) + '\n```'}


def prepare(
    folder: str | Path,  # gets the sources; what was in it is deleted
) -> None:
    "Everything that Sphinx reads."
    folder, here = Path(folder), Path(__file__).parent
    shutil.rmtree(folder, ignore_errors=True)
    (folder/'api').mkdir(parents=True)
    shutil.copy(here/'conf.py', folder)
    shutil.copytree(here/'_static', folder/'_static')
    for path in (*here.glob('*.md'), ROOT/'CHANGELOG.md'):
        (folder/path.name).write_text(link(path.read_text(encoding='utf-8').replace('../nbs/', '')), encoding='utf-8')
    for number, name in CHAPTERS.items():
        chapter = prepare_chapter(ROOT/'nbs'/f'{name}.ipynb', number)
        (folder/f'{name}.ipynb').write_text(json.dumps(chapter), encoding='utf-8')
        (folder/'api'/f'{name[3:]}.md').write_text(prepare_api(MODULES[name[3:]], name), encoding='utf-8')
    front = prepare_chapter(ROOT/'nbs'/'index.ipynb', None)
    front['cells'] += [contents('Guides', ['photos_to_masks', 'reading', 'glossary']), contents('Chapters', list(CHAPTERS.values())),
                       contents('Reference', [*(f'{name[3:]} <api/{name[3:]}>' for name in CHAPTERS.values()), 'CHANGELOG'])]
    (folder/'index.ipynb').write_text(json.dumps(front), encoding='utf-8')


if __name__ == '__main__': prepare(sys.argv[1])

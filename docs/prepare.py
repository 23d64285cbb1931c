"""Make Sphinx's sources of the notebooks, the modules and the pages beside this file.

Run it as `python docs/prepare.py FOLDER`."""
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
from nbdev.processors import (clean_magics, hide_line, rm_header_dash, strip_ansi,
                              strip_hidden_metadata)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NOTEBOOKS = sorted((ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
CHAPTERS = {int(path.stem[:2]): path.stem for path in NOTEBOOKS}   # number -> '15_codebook'
# tens of a chapter's number -> the part that it is in
PARTS = {
    0: 'Photos',
    1: 'Networks',
    2: 'From maps to masks',
    3: 'Segmenting',
    4: 'A run',
    5: 'Looking',
    6: 'Handing out',
    7: 'Systems',
    8: 'More systems',
    9: 'The command',
}
SYSTEMS = 7   # tens of the systems, whose part begins with chapters 68 and 69
# guides in order; others follow
GUIDES = ('photos_to_masks', 'add_a_system', 'backbones', 'results', 'reading', 'glossary')
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
CONSTANTS = (ast.Assign, ast.AnnAssign)


def decorators(node: ast.FunctionDef) -> set[str]:
    "The last names of a function's decorators; 'as_prop' for a patched property."
    found = set()
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            found |= {keyword.arg for keyword in decorator.keywords}
            decorator = decorator.func
        found.add(ast.unparse(decorator).split('.')[-1])
    return found


def patched_class(node: ast.AST) -> str | None:
    "The class that a function is added to by fastcore's `@patch`; None for any other definition."
    if not isinstance(node, ast.FunctionDef) or 'patch' not in decorators(node):
        return None
    return ast.unparse(node.args.args[0].annotation)


def place_in_chapter(node: ast.AST) -> str:
    "What a definition's place in its chapter is called: its name, or that of class and method."
    owner = patched_class(node)
    return f'{owner}.{node.name}' if owner else node.name


def assigned(node: ast.Assign | ast.AnnAssign) -> list[str]:
    "The names that an assignment defines."
    if isinstance(node, ast.AnnAssign):
        targets = [node.target]
    else:
        targets = node.targets
    names = []
    for target in targets:
        for part in getattr(target, 'elts', [target]):
            if isinstance(part, ast.Name):
                names.append(part.id)
    return names


class Module:
    "What a module exports, read from its text: nothing is imported."
    def __init__(self, name: str):
        self.name = name
        self.source = (ROOT/'wsss_nb'/f'{name}.py').read_text(encoding='utf-8')
        tree = ast.parse(self.source)
        self.doc = ast.get_docstring(tree) or ''
        self.definitions = {}   # name -> where it is defined
        self.patches = {}       # name of a class -> methods that are added to it
        for node in tree.body:
            owner = patched_class(node)
            if owner:
                self.patches.setdefault(owner, []).append(node)
            elif isinstance(node, DEFINITIONS):
                self.definitions[node.name] = node
            elif isinstance(node, CONSTANTS):
                self.definitions |= dict.fromkeys(assigned(node), node)
        self.exported = ast.literal_eval(self.definitions['__all__'].value)
        self.imported = self.imports(tree)
        self.comments = {}      # line -> comment on it
        for token in tokenize.generate_tokens(io.StringIO(self.source).readline):
            if token.type == tokenize.COMMENT:
                self.comments[token.start[0]] = token.string.lstrip('# ')

    def imports(self, tree: ast.Module) -> dict[str, tuple[str, str]]:
        "What is imported from other chapters: name here -> module, and name there."
        names = {}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module:
                for alias in node.names:
                    names[alias.asname or alias.name] = (node.module, alias.name)
        return names

    def comment(self, node: ast.AST) -> str:
        "The comment behind the last line of a parameter, a field or a constant; '' for none."
        return self.comments.get(node.end_lineno, '')

    def members(self, definition: ast.AST) -> list[ast.FunctionDef]:
        "The methods of a class that a person may call; none of a function."
        if not isinstance(definition, ast.ClassDef):
            return []
        methods = [node for node in definition.body if isinstance(node, ast.FunctionDef)]
        methods += self.patches.get(definition.name, [])
        return [method for method in methods if is_public(method)]


def is_public(method: ast.FunctionDef) -> bool:
    "Whether a method has no underscore, or is an operator that says what it does."
    if not method.name.startswith('_'):
        return True
    is_operator = method.name.startswith('__') and method.name != '__init__'
    return is_operator and ast.get_docstring(method) is not None


MODULES = {name[3:]: Module(name[3:]) for name in CHAPTERS.values()}


def known_names() -> dict[str, str | None]:
    "Every dotted name with a place on an API page -> its full name; None where several have it."
    known = {}
    for module in MODULES.values():
        for name in module.exported:
            methods = [method.name for method in module.members(module.definitions[name])]
            for dotted in (name, *(f'{name}.{method}' for method in methods)):
                full = f'wsss_nb.{module.name}.{dotted}'
                known |= {full: full, f'{module.name}.{dotted}': full}
                known[dotted] = None if dotted in known else full
    return known


KNOWN = known_names()


def place_of(
    name: str,           # as written in backticks
    module: str | None,  # of the page
) -> str | None:         # the full name; None for what is no exported name
    """What a name in backticks means on a page.

    It is the module's own, what it imports, or a name that only one chapter has. An ordinary word
    is meant as a name in its own chapter only."""
    name = name.removesuffix('()')
    own = MODULES.get(module)
    if own and f'wsss_nb.{module}.{name}' in KNOWN:
        return f'wsss_nb.{module}.{name}'
    if not re.search('[A-Z_.]', name):
        return None
    first, *rest = name.split('.')
    if own and first in own.imported:
        return KNOWN.get('.'.join(('wsss_nb', *own.imported[first], *rest)))
    return KNOWN.get(name)


PROTECTED = re.compile('(' + '|'.join([   # what gets no links, or is a name in backticks
    r'^ *```.*?^ *```',             # code block
    r'\$\$.*?\$\$',                 # formula
    r'\$(?:[^$\n]|\n(?!\n))+\$',    # formula in a line
    r'!?\[[^\]]*\]\([^)]*\)',       # link, picture
    r'`+[^`]+`+',                   # code in a line
    r'<[^>\n]+>',                   # tag
]) + ')', re.S | re.M)
MENTION = re.compile(r'\b([Cc]hapters?)(\s+)(\d+(?:(?:,\s+(?:and\s+)?|\s+to\s+|\s+and\s+)\d+)*)')
NAME = re.compile(r'`[\w.]+(\(\))?`')


def link_chapters(
    mention: re.Match,  # of MENTION
    folder: str = '',   # where the chapters are, seen from the page
) -> str:
    "'chapter 20' and 'chapters 12 to 13' with links."
    def linked(text: str, number: str) -> str:
        if int(number) not in CHAPTERS:
            return text
        return f'[{text}]({folder}{CHAPTERS[int(number)]}.ipynb)'

    word, space, numbers = mention.groups()
    if numbers.isdigit():
        return linked(mention[0], numbers)
    return word + space + re.sub(r'\d+', lambda number: linked(number[0], number[0]), numbers)


def link(
    text: str,                  # Markdown
    module: str | None = None,  # of the page
    folder: str = '',           # where the chapters are, seen from the page
    escape: bool = False,       # the text comes from code, where *, _ and the like mean themselves
) -> str:
    """Markdown with links.

    Names in backticks lead to their API page, mentions of chapters to the chapter."""
    pieces = re.split(r'(`[^`]+`)', text) if escape else PROTECTED.split(text)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            if escape:
                piece = re.sub(r'([\\*_<>\[\]{}$|#~])', r'\\\1', piece)
            pieces[i] = MENTION.sub(lambda mention: link_chapters(mention, folder), piece)
        elif NAME.fullmatch(piece):
            name = piece.strip('`')
            full = place_of(name, module)
            if full:
                pieces[i] = f'{{py:obj}}`{name} <{full}>`'
    return ''.join(pieces)


FOLDED = re.compile(
    r'^( *)<details><summary>(.*?)</summary>\s*(.*?)\s*</details>', re.S | re.M)


def unfold(text: str) -> str:
    "Folded answers whose text is Markdown, too: blank lines around it."
    return FOLDED.sub(r'\1<details><summary>\2</summary>\n\n\1\3\n\n\1</details>\n', text)


def is_imports(source: str) -> bool:
    "Whether a cell holds nothing but imports."
    body = ast.parse(source).body
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)


def mark_exported(cell) -> None:
    "Remember that a cell is part of the module: its directives are dropped later."
    cell.metadata['exported'] = 'export' in cell.directives_


def drop_hidden(cell) -> None:
    "Leave out what no reader needs."
    if cell.directives_.keys() & {'hide', 'default_exp'}:
        del cell['source']


PROCESSORS = [mark_exported, drop_hidden, strip_ansi, hide_line, rm_header_dash, clean_magics,
              strip_hidden_metadata]


def as_table(output: dict) -> dict:
    "A printed Markdown table as a table, anything else as it is."
    text = ''.join(output.get('text', ''))
    if not text or not all(line.startswith('| ') for line in text.splitlines()):
        return output
    return {'output_type': 'display_data', 'data': {'text/markdown': text}, 'metadata': {}}


def markdown_cell(text: str) -> dict:
    "A cell of a notebook with Markdown in it."
    return {'cell_type': 'markdown', 'metadata': {}, 'source': text}


def code_cell(source: str, outputs: list[dict]) -> dict:
    "A cell of a notebook with code in it; one of imports is folded."
    tags = ['hide-input'] if is_imports(source) else []
    return {'cell_type': 'code', 'metadata': {'tags': tags}, 'source': source,
            'execution_count': None, 'outputs': [as_table(output) for output in outputs]}


def prepare_chapter(
    path: Path,           # a notebook
    number: int | None,   # of the chapter; None for the front page
) -> dict:                # the notebook for Sphinx
    """A chapter with its stored outputs and the source of what it exports.

    Names and chapters are linked, and every definition has a place that others can link to."""
    raw = json.loads(path.read_text(encoding='utf-8'))
    module = None if number is None else path.stem[3:]
    notebook = dict2nb(raw)
    NBProcessor(nb=notebook, procs=PROCESSORS).process()
    cells = []
    for cell in notebook.cells:
        if not cell.get('source'):
            continue
        if cell.cell_type == 'markdown':
            text = unfold(link(cell.source, module))
            if number is not None:
                text = re.sub(r'\A# ', f'# {number}. ', text)
            cells.append(markdown_cell(text))
            continue
        source = re.sub(r'^#\|.*\n', '', cell.source, flags=re.M).strip()
        if cell.metadata.get('exported'):
            defined = [node for node in ast.parse(source).body if isinstance(node, DEFINITIONS)]
            if defined:
                spans = [f'<span id="def-{place_in_chapter(node)}"></span>' for node in defined]
                cells.append(markdown_cell(''.join(spans)))
        cells.append(code_cell(source, json.loads(json.dumps(cell.get('outputs', [])))))
    return {'cells': cells, 'metadata': raw['metadata'], 'nbformat': 4, 'nbformat_minor': 4}


def arguments(node: ast.FunctionDef) -> list[ast.arg]:
    "The parameters of a function, without self."
    a = node.args
    every = (*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg)
    return [argument for argument in every if argument and argument.arg not in ('self', 'cls')]


class Types(ast.NodeTransformer):
    "Types as a reader wants them, so that Sphinx finds what is meant."
    def __init__(self, module: Module):
        self.module = module

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        "`Annotated[T, ...]` becomes T: the rest is for tools."
        if ast.unparse(node.value).split('.')[-1] == 'Annotated':
            return self.visit(node.slice.elts[0])
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        "What comes from another chapter gets its full name."
        if node.id not in self.module.imported:
            return node
        full = '.'.join(('wsss_nb', *self.module.imported[node.id]))
        return ast.parse(full, mode='eval').body


def written(module: Module, annotation: ast.AST) -> str:
    "A type as one line of code."
    return ast.unparse(Types(module).visit(ast.parse(ast.unparse(annotation), mode='eval')))


def head(module: Module, node: ast.FunctionDef, name: str) -> str:
    "A function as Sphinx's signature, without self."
    copy = ast.parse(ast.unparse(node)).body[0]
    copy.args.args = [a for a in copy.args.args if a.arg not in ('self', 'cls')]
    for argument in arguments(copy):
        if argument.annotation:
            argument.annotation = Types(module).visit(argument.annotation)
    returns = f' -> {written(module, copy.returns)}' if copy.returns else ''
    return f'{name}({ast.unparse(copy.args)}){returns}'


def fields_of(node: ast.ClassDef) -> list[ast.AnnAssign]:
    "The fields of a named tuple or a dataclass, without what belongs to the class as a whole."
    fields = [field for field in node.body if isinstance(field, ast.AnnAssign)]
    return [field for field in fields if 'ClassVar' not in ast.unparse(field.annotation)]


def written_field(module: Module, field: ast.AnnAssign) -> str:
    "A field as a parameter of the construction."
    value = f' = {ast.unparse(field.value)}' if field.value else ''
    return f'{field.target.id}: {written(module, field.annotation)}{value}'


def describe(
    module: Module,
    node: ast.AST,                        # with a docstring
    listed: list[tuple[str, ast.AST]],    # parameters or fields
    returns: str = '',                    # what comes back
) -> str:
    "Docstring and a list of parameters or fields with their comments."
    def text(words: str) -> str:
        return link(re.sub(r'\s+', ' ', words), module.name, '../', escape=True)

    paragraphs = [text(paragraph) for paragraph in (ast.get_docstring(node) or '').split('\n\n')]
    rows = []
    for name, item in listed:
        if module.comment(item):
            rows.append(f':param {name}: {text(module.comment(item))}')
    if returns:
        rows.append(f':returns: {text(returns)}')
    return '\n\n'.join(paragraphs) + '\n\n' + '\n'.join(rows) + '\n'


def describe_property(module: Module, node: ast.FunctionDef, fence: str) -> str:
    "A property, with its type."
    kind = f':type: {json.dumps(written(module, node.returns))}\n' if node.returns else ''
    return f'{fence}{{py:property}} {node.name}\n{kind}\n{describe(module, node, [])}{fence}\n'


def describe_function(
    module: Module,
    node: ast.FunctionDef,
    kind: str,    # 'function' or 'method'
    fence: str,   # backticks
) -> str:
    "A function, a method or a property."
    of_node = decorators(node)
    if of_node & {'property', 'cached_property', 'as_prop'}:
        return describe_property(module, node, fence)
    options = [f':{option}:\n' for option in ('staticmethod', 'classmethod') if option in of_node]
    # the head's last line: the comment behind it describes what comes back
    line = node.returns.end_lineno if node.returns else node.lineno
    last = max([argument.end_lineno for argument in arguments(node)], default=0)
    returns = module.comments.get(line, '') if line > last else ''
    listed = [(argument.arg, argument) for argument in arguments(node)]
    about = describe(module, node, listed, returns)
    first = f'{fence}{{py:{kind}}} {head(module, node, node.name)}\n'
    return first + ''.join(options) + f'\n{about}{fence}\n'


def describe_class(module: Module, node: ast.ClassDef, chapter: str) -> str:
    "A class with its fields or the parameters of its construction, and its methods."
    methods = [method for method in node.body if isinstance(method, ast.FunctionDef)]
    made = [method for method in methods if method.name == '__init__']
    if made:
        signature = head(module, made[0], node.name).removesuffix(' -> None')
        listed = [(argument.arg, argument) for argument in arguments(made[0])]
    else:
        fields = fields_of(node)
        signature = node.name
        if fields:
            signature += f'({", ".join(written_field(module, field) for field in fields)})'
        listed = [(field.target.id, field) for field in fields]
    members = []
    for member in module.members(node):
        text = describe_function(module, member, 'method', '````')
        if patched_class(member):
            text = with_link(text, '````', chapter, place_in_chapter(member))
        members.append(text)
    about = describe(module, node, listed)
    return f'`````{{py:class}} {signature}\n\n{about}\n' + '\n'.join(members) + '`````\n'


def describe_constant(module: Module, node: ast.Assign | ast.AnnAssign, name: str) -> str:
    "A constant with its value and the comment behind it."
    value = ast.unparse(node.value)
    if len(value) >= 120:
        value = value[:100] + ' ...'
    shown = json.dumps(value, ensure_ascii=False)   # options are YAML
    comment = link(module.comment(node), module.name, '../', escape=True)
    return f'````{{py:data}} {name}\n:value: {shown}\n\n{comment}\n````\n'


def with_link(
    text: str,      # a fenced definition
    fence: str,     # backticks that it ends with
    chapter: str,   # '15_codebook'
    place: str,     # in the chapter
) -> str:
    "A definition with a link to where the chapter makes it."
    to_chapter = (f'<a class="in-chapter" href="../{chapter}.html#def-{place}">'
                  f'in chapter {int(chapter[:2])}</a>')
    return text.removesuffix(f'{fence}\n') + f'\n{to_chapter}\n{fence}\n'


def prepare_api(module: Module, chapter: str) -> str:
    "The API page of a module: every exported name in the order of the chapter."
    name = f'wsss_nb.{module.name}'
    doc = link(module.doc, module.name, '../', escape=True)
    to_chapter = f'[chapter {int(chapter[:2])}](../{chapter}.ipynb)'
    parts = [f'# {name}\n\n```{{py:module}} {name}\n```\n\n{doc}\n\n'
             f'Explained, tested and shown in {to_chapter}.\n']
    exported = {name: module.definitions[name] for name in module.exported}
    for name, node in sorted(exported.items(), key=lambda pair: pair[1].lineno):
        if isinstance(node, CONSTANTS):
            parts.append(describe_constant(module, node, name))
            continue
        if isinstance(node, ast.ClassDef):
            text = describe_class(module, node, chapter)
        else:
            text = describe_function(module, node, 'function', '`````')
        parts.append(with_link(text, '`````', chapter, name))
    return '\n'.join(parts)


def contents(caption: str, entries: list[str]) -> dict:
    "A table of contents for the sidebar."
    listed = '\n'.join(entries)
    return markdown_cell(f'```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```')


def tens_of(number: int) -> int:
    "The part of a chapter."
    return SYSTEMS if number in (68, 69) else number // 10


def all_contents(
    guides: list[str],  # names of the pages beside this file
) -> list[dict]:
    "Guides, chapters by part, and reference. A part without a chapter isn't shown."
    first = [guide for guide in GUIDES if guide in guides]
    tables = [contents('Guides', first + sorted(set(guides) - set(first)))]
    for tens, part in PARTS.items():
        chapters = [name for number, name in CHAPTERS.items() if tens_of(number) == tens]
        if chapters:
            tables.append(contents(part, chapters))
    pages = [f'{name[3:]} <api/{name[3:]}>' for name in CHAPTERS.values()]
    return tables + [contents('Reference', [*pages, 'CHANGELOG'])]


def prepare(
    folder: str | Path,  # gets the sources; what was in it is deleted
) -> None:
    "Everything that Sphinx reads."
    folder = Path(folder)
    shutil.rmtree(folder, ignore_errors=True)
    (folder/'api').mkdir(parents=True)
    shutil.copy(HERE/'conf.py', folder)
    shutil.copytree(HERE/'_static', folder/'_static')
    guides = sorted(HERE.glob('*.md'))
    for path in (*guides, ROOT/'CHANGELOG.md'):
        text = path.read_text(encoding='utf-8').replace('../nbs/', '')
        (folder/path.name).write_text(link(text), encoding='utf-8')
    for number, name in CHAPTERS.items():
        chapter = prepare_chapter(ROOT/'nbs'/f'{name}.ipynb', number)
        (folder/f'{name}.ipynb').write_text(json.dumps(chapter), encoding='utf-8')
        page = prepare_api(MODULES[name[3:]], name)
        (folder/'api'/f'{name[3:]}.md').write_text(page, encoding='utf-8')
    front = prepare_chapter(ROOT/'nbs'/'index.ipynb', None)
    front['cells'] += all_contents([path.stem for path in guides])
    (folder/'index.ipynb').write_text(json.dumps(front), encoding='utf-8')


if __name__ == '__main__':
    prepare(sys.argv[1])

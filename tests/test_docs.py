"""The site that `make docs` builds.

No warning, no dead link, nothing from another host; chapters by part; every exported name is
described, and everything is found by the search."""
import ast
import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))
GUIDES = sorted(path.stem for path in (ROOT/'docs').glob('*.md'))
NEEDED = ('sphinx', 'myst_nb', 'furo', 'sphinx-mathjax-offline')
lacking = [name for name in NEEDED if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f'{", ".join(lacking)} not installed')
ONLY_POINTED_AT = {'next', 'prev', 'search', 'index', 'author', 'copyright'}


class Page(HTMLParser):
    "What a page links to, loads, and can be linked to by."
    def __init__(self, text: str):
        super().__init__()
        self.links = []
        self.loads = []
        self.ids = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get('id'):
            self.ids.append(attributes['id'])
        if tag in ('a', 'area') and attributes.get('href'):
            self.links.append(attributes['href'])
        if tag == 'link':
            relations = set(attributes.get('rel', '').split())
            places = self.links if ONLY_POINTED_AT & relations else self.loads
            places.append(attributes.get('href', ''))
        for name in ('src', 'poster', 'data'):
            if attributes.get(name):
                self.loads.append(attributes[name])
        for place in (attributes.get('srcset') or '').split(','):
            self.loads += place.split()[:1]
        self.loads += re.findall(r'url\(["\']?([^)"\']+)', attributes.get('style') or '')


@pytest.fixture(scope='session')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('docs')
    prepare = [sys.executable, ROOT/'docs'/'prepare.py', folder/'sources']
    subprocess.run(prepare, check=True, cwd=folder)
    build = [sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html',
             '-d', folder/'trees', folder/'sources', folder/'html']   # -W: a warning is an error
    done = subprocess.run(build, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder/'html'


@pytest.fixture(scope='session')
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}


def test_every_chapter_guide_and_module_has_a_page(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    others = ('index', 'CHANGELOG', 'search')
    assert names >= {f'{name}.html' for name in (*CHAPTERS, *GUIDES, *others)}
    assert names >= {f'api/{name[3:]}.html' for name in CHAPTERS}


def test_the_contents_group_chapters_by_part(site):
    front = (site/'index.html').read_text(encoding='utf-8')
    sidebar = re.search(r'<div class="sidebar-tree">(.*?)</div>', front, re.S)[1]
    parts = {}
    for part in sidebar.split('<p class="caption"')[1:]:
        caption = re.search(r'<span class="caption-text">(.*?)</span>', part)[1]
        parts[caption] = re.findall(r'href="(\d\d_\w+)\.html"', part)
    assert {'Photos', 'Networks', 'From maps to masks', 'Segmenting', 'A run', 'Looking',
            'The command'} <= parts.keys()
    assert list(parts)[0] == 'Guides'
    assert list(parts)[-1] == 'Reference'
    in_parts = [chapters for chapters in parts.values() if chapters]
    assert sum(in_parts, []) == CHAPTERS   # each once, in order
    assert set(parts) - {'Guides', 'Reference'} == {name for name in parts if parts[name]}
    for chapters in in_parts:
        tens = {'7' if name[:2] in ('68', '69') else name[0] for name in chapters}
        assert len(tens) == 1   # the number says the part; 68 and 69 open that of the systems
    assert '21_metrics' in parts['From maps to masks']


def test_every_link_leads_somewhere(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            where = urlsplit(link)
            if where.scheme or where.netloc:
                continue
            target = (path.parent/unquote(where.path)).resolve() if where.path else path
            if not target.is_file() or link.endswith(('.ipynb', '.md')):
                dead.append((path.name, link))
                continue
            if where.fragment and target.suffix == '.html' and path.name != 'search.html':
                there = pages[site/target.relative_to(site.resolve())]
                if unquote(where.fragment) not in there.ids:
                    dead.append((path.name, link))
    assert not dead


def test_ids_are_unique(pages):
    for path, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), path.name


def test_names_and_chapters_in_the_text_are_links(site, pages):
    links = set(pages[site/'21_metrics.html'].links)
    own = 'api/metrics.html#wsss_nb.metrics.ConfusionMatrix'
    of_another_chapter = 'api/cam.html#wsss_nb.cam.CAM.to_labels'
    assert {own, of_another_chapter} <= links
    for path, page in pages.items():   # nbdev's own links lead to another site
        own = [link for link in page.links if link.startswith('https://wsss-nb.github.io')]
        assert not own, path.name
    front = (site/'index.html').read_text(encoding='utf-8')
    assert 'href="15_codebook.html"' in front
    assert 'href="api/codebook.html#wsss_nb.codebook.encode_words"' in front


def test_a_chapter_is_linked_where_a_line_breaks():
    sys.path.insert(0, str(ROOT/'docs'))
    try:
        import prepare
    finally:
        sys.path.remove(str(ROOT/'docs'))
    assert prepare.link('see chapter\n20') == 'see [chapter\n20](20_cam.ipynb)'
    assert prepare.link('chapters 20,\n21 and 23') == (
        'chapters [20](20_cam.ipynb),\n[21](21_metrics.ipynb) and [23](23_crf.ipynb)')
    without_links = '`chapter 20`, $chapter\n20$ of chapter 99'
    assert prepare.link(without_links) == without_links


def test_nothing_comes_from_another_host(site, pages):
    for path, page in pages.items():
        strangers = [place for place in page.loads if re.match(r'(?!data:)((\w+:)?//|\w+:)', place)]
        assert not strangers, path.name
        text = path.read_text(encoding='utf-8')
        assert not re.search(r'@import|fetch\(["\']http', text), path.name
    for path in site.rglob('*.css'):
        style = path.read_text(encoding='utf-8', errors='replace')
        assert not re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', style), path.name
    chapter = (site/'15_codebook.html').read_text(encoding='utf-8')
    assert re.search('<script [^>]*src="_static/tex-svg-full.js', chapter)
    assert (site/'_static'/'tex-svg-full.js').is_file()


class Search:
    "The index that the site's search reads."
    def __init__(self, site: Path):
        from sphinx.search.en import SearchEnglish
        text = (site/'searchindex.js').read_text(encoding='utf-8')
        self.index = json.loads(text.removeprefix('Search.setIndex(').removesuffix(')'))
        self.stem = SearchEnglish({}).stem

    def pages_with(self, word: str) -> set[str]:
        "The pages that hold a word."
        found = set()
        for kind in ('terms', 'titleterms'):
            numbers = self.index[kind].get(self.stem(word), [])
            numbers = numbers if isinstance(numbers, list) else [numbers]
            found |= {self.index['docnames'][number] for number in numbers}
        return found

    def objects(self) -> set[str]:
        "The names that have a place on an API page."
        found = set()
        for entries in self.index['objects'].values():
            found |= {entry[4] for entry in entries}
        return found


def test_the_search_finds_the_words_of_the_field_and_every_exported_name(site):
    search = Search(site)
    for word in ('codebook', 'hspp', 'affinity', 'miou', 'pseudo', 'labelme', 'background'):
        assert search.pages_with(word), word
    assert '15_codebook' in search.pages_with('perplexity')
    assert 'glossary' in search.pages_with('irnet')
    assert 'photos_to_masks' in search.pages_with('labelme')
    for chapter in CHAPTERS:
        assert search.objects() >= set(exported(module_tree(chapter))), chapter


def module_tree(chapter: str) -> ast.Module:
    "The module of a chapter, parsed."
    return ast.parse((ROOT/'wsss_nb'/f'{chapter[3:]}.py').read_text(encoding='utf-8'))


def exported(tree: ast.Module) -> list[str]:
    "What a module says that it exports."
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '__all__':
            return ast.literal_eval(node.value)
    raise AssertionError('no __all__')


def letters(html: str) -> str:
    "Letters and figures of a text, without tags."
    return re.sub(r'\W', '', unescape(re.sub(r'<[^<>]+>', '', html)))


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_every_exported_name_has_its_signature_and_what_it_means(site, chapter):
    module = chapter[3:]
    tree = module_tree(chapter)
    page = (site/'api'/f'{module}.html').read_text(encoding='utf-8')
    starts = rf'<dt class="sig sig-object py" id="wsss_nb\.{module}\.(\w+)">'
    pieces = re.split(starts, page.split('</article>')[0])
    parts = dict(zip(pieces[1::2], pieces[2::2]))
    assert parts.keys() == set(exported(tree))
    definitions = [node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    nodes = {node.name: node for node in definitions if not is_patch(node)}
    for name, part in parts.items():
        if name not in nodes:
            assert '=' in part, f'{name} without its value'
            continue
        head, body = (letters(piece) for piece in part.split('</dt>', 1))
        if isinstance(nodes[name], ast.FunctionDef):
            for argument in nodes[name].args.args:
                assert argument.arg in head, f'{name}: {argument.arg}'
        words = re.sub(r'\W', '', ast.get_docstring(nodes[name]) or '')
        assert words[:40] in body, name


def is_patch(node: ast.AST) -> bool:
    "Whether a definition is a method that is added to its class."
    decorators = [ast.unparse(decorator) for decorator in getattr(node, 'decorator_list', [])]
    return any(re.match(r'patch\b', decorator) for decorator in decorators)


def test_methods_that_are_added_to_a_class_stand_with_it(site, pages):
    ids = pages[site/'api'/'metrics.html'].ids
    for method in ('ConfusionMatrix.update', 'BackgroundSweep.update', 'BackgroundSweep.best'):
        assert f'wsss_nb.metrics.{method}' in ids
        assert f'def-{method}' in pages[site/'21_metrics.html'].ids


@pytest.mark.parametrize('chapter', CHAPTERS)
def test_a_chapter_says_in_one_line_what_a_reader_will_be_able_to_do(chapter):
    cells = json.loads((ROOT/'nbs'/f'{chapter}.ipynb').read_text(encoding='utf-8'))['cells']
    title, line = re.fullmatch(r'# (.+)\n\n> (.+)', ''.join(cells[0]['source'])).groups()
    assert ast.get_docstring(module_tree(chapter)) == line   # nbdev takes one line
    assert line.endswith('.')


def test_formulas_pictures_and_answers_are_there(site):
    words = (site/'15_codebook.html').read_text(encoding='utf-8')
    assert 'class="math notranslate nohighlight"' in words
    assert 'src="_images/' in words
    answer = re.search(r'<details><summary>Answer</summary>(.*?)</details>', words, re.S)[1]
    assert '<p>' in answer
    assert '1/k everywhere' in answer
    without_code = re.sub(r'<(script|pre|code).*?</\1>|\$HOME', '', words, flags=re.S)
    assert '$' not in without_code     # no formula is left as it was written


TOO_WIDE = """() => [...document.querySelectorAll('article pre, .cell_output, .table-wrapper')]
    .filter(part => part.scrollWidth > part.clientWidth + 1)
    .map(part => part.innerText.slice(0, 200))"""


def test_code_outputs_and_tables_fit_into_a_page_without_scrolling(site):
    chromium = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser'))), None)
    if chromium is None or find_spec('playwright') is None:
        pytest.skip('no chromium here: apt-get install chromium')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        flags = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage']
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        # without scripts: formulas stay as they are, and pages are there at once
        page = browser.new_page(viewport={'width': 1280, 'height': 900}, java_script_enabled=False)
        wide = {}
        for name in (*CHAPTERS, *GUIDES, 'index'):
            page.goto((site/f'{name}.html').as_uri(), wait_until='load')
            found = page.evaluate(TOO_WIDE)
            if found:
                wide[name] = found
        browser.close()
    assert wide == {}

"The site that `make docs` builds: no warning, no dead link, nothing from another host, every exported name described, everything found by the search."
import ast
import json
import re
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]
lacking = [name for name in ('sphinx', 'myst_nb', 'furo', 'sphinx-mathjax-offline') if find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(lacking), reason=f'{", ".join(lacking)} not installed')
CHAPTERS = sorted(path.stem for path in (ROOT/'nbs').glob('[0-9][0-9]_*.ipynb'))


class Page(HTMLParser):
    "What a page links to, loads, and can be linked to by."
    def __init__(self, text: str):
        super().__init__()
        self.links, self.loads, self.ids = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get('id'): self.ids.append(attributes['id'])
        if tag in ('a', 'area') and attributes.get('href'): self.links.append(attributes['href'])
        if tag == 'link' and not {'next', 'prev', 'search', 'index', 'author', 'copyright'} & set(attributes.get('rel', '').split()): self.loads.append(attributes.get('href', ''))
        elif tag == 'link': self.links.append(attributes['href'])
        self.loads += [attributes[name] for name in ('src', 'poster', 'data') if attributes.get(name)]
        self.loads += [place.split()[0] for place in (attributes.get('srcset') or '').split(',') if place.strip()]
        self.loads += re.findall(r'url\(["\']?([^)"\']+)', attributes.get('style') or '')


@pytest.fixture(scope='session')
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('docs')
    subprocess.run([sys.executable, ROOT/'docs'/'prepare.py', folder/'sources'], check=True, cwd=folder)
    done = subprocess.run([sys.executable, '-m', 'sphinx', '-q', '-W', '--keep-going', '-b', 'html', '-d', folder/'trees', folder/'sources', folder/'html'], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr     # -W: a warning is an error
    return folder/'html'


@pytest.fixture(scope='session')
def pages(site) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding='utf-8')) for path in site.rglob('*.html')}


def test_every_chapter_guide_and_module_has_a_page(site, pages):
    names = {path.relative_to(site).as_posix() for path in pages}
    assert names >= {f'{name}.html' for name in (*CHAPTERS, 'index', 'photos_to_masks', 'reading', 'glossary', 'CHANGELOG', 'search')} | {f'api/{name[3:]}.html' for name in CHAPTERS}


def test_every_link_leads_somewhere(site, pages):
    dead = []
    for path, page in pages.items():
        for link in page.links + page.loads:
            where = urlsplit(link)
            if where.scheme or where.netloc: continue
            target = (path.parent/unquote(where.path)).resolve() if where.path else path
            if not target.is_file(): dead.append((path.name, link))
            elif where.fragment and target.suffix == '.html' and path.name != 'search.html' and unquote(where.fragment) not in pages[site/target.relative_to(site.resolve())].ids:
                dead.append((path.name, link))
    assert not dead
    assert not [(path.name, link) for path, page in pages.items() for link in page.links if link.endswith(('.ipynb', '.md'))]


def test_ids_are_unique(pages):
    assert not [(path.name, id) for path, page in pages.items() for id in set(page.ids) if page.ids.count(id) > 1]


def test_names_and_chapters_in_the_text_are_links(site, pages):
    assert {'api/voc.html#wsss_nb.voc.palette', 'api/voc.html#wsss_nb.voc.VOCFolder'} <= set(pages[site/'02_voc.html'].links)
    for path, page in pages.items(): assert not [link for link in page.links if link.startswith('https://wsss-nb.github.io')], path.name   # nbdev's own, of another site
    front = (site/'index.html').read_text(encoding='utf-8')
    assert 'href="15_codebook.html"' in front and 'href="api/codebook.html#wsss_nb.codebook.encode_words"' in front


def test_nothing_comes_from_another_host(site, pages):
    assert not [(path.name, place) for path, page in pages.items() for place in page.loads if re.match(r'(?!data:)(\w+:)?//|(?!data:)\w+:', place)]
    for path in site.rglob('*.css'):
        assert not re.findall(r'(?:url\(|@import)\s*["\']?(?:https?:)?//', path.read_text(encoding='utf-8', errors='replace')), path.name
    for path in pages: assert not re.search(r'@import|fetch\(["\']http', path.read_text(encoding='utf-8')), path.name
    assert re.search('<script [^>]*src="_static/tex-svg-full.js', (site/'15_codebook.html').read_text(encoding='utf-8')) and (site/'_static'/'tex-svg-full.js').is_file()


def search_index(site: Path) -> dict:
    return json.loads((site/'searchindex.js').read_text(encoding='utf-8').removeprefix('Search.setIndex(').removesuffix(')'))


def test_the_search_finds_the_words_of_the_field_and_every_exported_name(site):
    from sphinx.search.en import SearchEnglish
    index, stem = search_index(site), SearchEnglish({}).stem

    def pages_with(word: str) -> set[str]:
        found = [where for kind in ('terms', 'titleterms') for where in [index[kind].get(stem(word), [])]]
        return {index['docnames'][number] for where in found for number in (where if isinstance(where, list) else [where])}

    for word in ('codebook', 'hspp', 'affinity', 'miou', 'pseudo', 'labelme', 'background', 'irnet', 'perplexity'): assert pages_with(word), word
    assert '15_codebook' in pages_with('perplexity') and 'glossary' in pages_with('irnet') and 'photos_to_masks' in pages_with('labelme')
    objects = {entry[4] for entries in index['objects'].values() for entry in entries}
    assert objects >= {name for _, name in exported()}


def exported() -> list[tuple[str, str]]:
    "Every exported name with its module."
    names = []
    for chapter in CHAPTERS:
        tree = ast.parse((ROOT/'wsss_nb'/f'{chapter[3:]}.py').read_text(encoding='utf-8'))
        listed = next(node.value for node in tree.body if isinstance(node, ast.Assign) and node.targets[0].id == '__all__')
        names += [(chapter[3:], name) for name in ast.literal_eval(listed)]
    return names


def test_every_exported_name_has_its_signature_and_what_it_means(site):
    for chapter in CHAPTERS:
        module, names = chapter[3:], [name for module, name in exported() if module == chapter[3:]]
        page, tree = (site/'api'/f'{module}.html').read_text(encoding='utf-8'), ast.parse((ROOT/'wsss_nb'/f'{module}.py').read_text(encoding='utf-8'))
        parts = dict(re.findall(rf'<dt class="sig sig-object py" id="wsss_nb\.{module}\.(\w+)">(.*?)(?=<dt class="sig sig-object py" id="wsss_nb\.{module}\.\w+">|</article>)', page, re.S))
        assert parts.keys() == set(names), module
        nodes = {node.name: node for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
        for name in names:
            head, body = (letters(part) for part in parts[name].split('</dt>', 1))
            if name not in nodes: assert '=' in parts[name], f'{module}.{name} without its value'; continue
            for argument in getattr(getattr(nodes[name], 'args', None), 'args', []): assert argument.arg in head, f'{module}.{name}: {argument.arg}'
            words = re.sub(r'\W', '', ast.get_docstring(nodes[name]) or '')
            assert words[:40] in body, f'{module}.{name}'


def letters(html: str) -> str:
    "Letters and figures of a text, without tags."
    return re.sub(r'\W', '', unescape(re.sub(r'<[^<>]+>', '', html)))


def test_formulas_pictures_and_answers_are_there(site):
    words = (site/'15_codebook.html').read_text(encoding='utf-8')
    assert 'class="math notranslate nohighlight"' in words and '<img alt="_images/' in words or 'src="_images/' in words
    answer = re.search(r'<details><summary>Answer</summary>(.*?)</details>', words, re.S)[1]
    assert '<p>' in answer and '1/k everywhere' in answer
    assert '$' not in re.sub(r'<(script|pre|code).*?</\1>|\$HOME', '', words, flags=re.S)     # no formula is left as it was written

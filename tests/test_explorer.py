"The explorer in a real browser, as a page of its own and in JupyterLab: what is shown there is what the chapter's logic says, to the byte."
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsss_nb import explorer
from wsss_nb.cli import main
from wsss_nb.explorer import Explorer, View, page_notebook, photo_words, to_png
from wsss_nb.pipeline import Config, run
from wsss_nb.shapes import make_shapes

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync',
         '--disable-dev-shm-usage', '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
PATIENCE = 45_000   # milliseconds that a step may take on a busy machine


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> Path:
    here = tmp_path_factory.mktemp('explorer')
    make_shapes(here/'shapes', train=8, val=2, size=64)
    run(Config(data=here/'shapes', out=here/'run', epochs=3, segmenter_epochs=1, batch_size=4, segmenter_batch_size=4, scales=(1.,), predict_scales=(1.,),
               num_words=64, frozen_stages=4, background=.3, workers=0))
    return here/'run'


@pytest.fixture(scope='session')
def browser():
    "A headless chromium, or a reason to skip."
    lacking = [name for name in ('playwright', 'voila', 'jupyterlab', 'ipyevents') if importlib.util.find_spec(name) is None]
    if lacking: pytest.skip(f"{' and '.join(lacking)} not installed: pip install -e '.[dev]'")
    if BROWSER is None: pytest.skip('no chromium here: apt-get install chromium')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield chromium
        chromium.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextmanager
def server(command: list[str], log: Path, **options):
    "A process that is ended in the end, whatever happens."
    with log.open('wb') as file: process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, stdin=subprocess.DEVNULL, **options)
    try: yield process
    finally:
        process.send_signal(signal.SIGINT)      # Ctrl-C
        try: process.wait(timeout=30)
        except subprocess.TimeoutExpired: process.kill()


def until(log: Path, pattern: str, process: subprocess.Popen) -> None:
    "Wait until a server has said something."
    for _ in range(PATIENCE // 100):
        if re.search(pattern, log.read_text(errors='replace')): return
        assert process.poll() is None, log.read_text(errors='replace')
        time.sleep(.1)
    raise AssertionError(log.read_text(errors='replace'))


def shows(page, name: str, panel: explorer.Panel) -> None:
    "Wait until a panel of the page has the sentence and the very bytes of the logic's."
    from playwright.sync_api import expect
    cell = page.locator(f'.wsss-run-0 .wsss-{name}').first
    expect(cell).to_contain_text(panel.title, timeout=PATIENCE)
    expect(cell).to_contain_text(panel.note, timeout=PATIENCE)
    page.wait_for_function('''async ([name, expected]) => {
        const picture = await (await fetch(document.querySelector(`.wsss-run-0 .wsss-${name} img`).src)).arrayBuffer();
        const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', picture));
        return Array.from(hash, byte => byte.toString(16).padStart(2, '0')).join('') === expected; }''',
        arg=[name, hashlib.sha256(to_png(panel.picture)).hexdigest()], timeout=PATIENCE)


def look_around(page, root: Path) -> None:
    "Move the slider, click places: the page shows what the logic says."
    from playwright.sync_api import expect
    logic, text = Explorer(root), lambda name: page.locator(f'.wsss-run-0 .wsss-{name}').first
    for _ in logic.measure(): pass
    names, background = logic.photos('train'), logic.run.background
    at = lambda name, moves: View(('train', name), round(background + .01 * moves, 2))
    differ = lambda one, other: not set(logic.panel('mask', one).note.split('; ')) & set(logic.panel('mask', other).note.split('; '))    # mIoU of the photo and of all
    name, moves = next((name, moves) for name in names[1:] for moves in (5, -5, 10, -10, 20, -20) if differ(at(name, 0), at(name, moves)))
    view, moved = at(name, 0), at(name, moves)
    expect(text('mask')).to_contain_text('all 8 photos', timeout=PATIENCE)      # everything is measured
    page.locator('.wsss-thumb').nth(names.index(name)).click()
    expect(text('photo')).to_contain_text(name, timeout=PATIENCE)
    shows(page, 'mask', logic.panel('mask', view))
    handle = page.locator('.wsss-run-0 .noUi-handle').first
    handle.focus()
    for _ in range(abs(moves)): handle.press('ArrowRight' if moves > 0 else 'ArrowLeft')
    shows(page, 'mask', logic.panel('mask', moved))
    shows(page, 'refined', logic.panel('refined', moved))
    assert to_png(logic.panel('mask', view).picture) != to_png(logic.panel('mask', moved).picture)

    expect(text('word')).to_contain_text('Click a place')
    for _ in logic.look_for_words(1): pass
    words = photo_words(logic._search, logic, view.photo).words
    seen = {int(word): ((int(x) + .5) / words.shape[1], (int(y) + .5) / words.shape[0]) for y, row in enumerate(words) for x, word in enumerate(row)}
    assert len(seen) > 1
    for word, (x, y) in list(seen.items())[:2]:       # two places, two words
        box = page.locator('.wsss-run-0 .wsss-photo img').bounding_box()
        page.locator('.wsss-run-0 .wsss-photo img').click(position={'x': x * box['width'], 'y': y * box['height']})
        expect(text('word')).to_contain_text(re.compile(rf'Word {word}(?!\d).*in 8 photos', re.S), timeout=PATIENCE)


def test_a_page_of_its_own(browser, finished, tmp_path):
    port, log = free_port(), tmp_path/'log'
    with server([sys.executable, '-c', 'from wsss_nb.cli import main; main()', 'explore', finished, '--port', port], log) as process:
        until(log, f'http://127.0.0.1:{port}/ shows', process)
        page = browser.new_page(viewport={'width': 1400, 'height': 900})
        page.goto(f'http://127.0.0.1:{port}/', wait_until='commit')
        look_around(page, finished)
        page.close()


def test_in_jupyterlab(browser, finished, tmp_path):
    port, log, folders = free_port(), tmp_path/'log', {f'JUPYTER_{name}_DIR': str(tmp_path/name) for name in ('CONFIG', 'DATA', 'RUNTIME')}
    (tmp_path/'work').mkdir(); (tmp_path/'CONFIG'/'labconfig').mkdir(parents=True)
    (tmp_path/'work'/'look.ipynb').write_text(json.dumps(page_notebook(finished)))
    (tmp_path/'CONFIG'/'labconfig'/'page_config.json').write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')   # it asks for news
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', '--ip=127.0.0.1', f'--port={port}', '--expose-app-in-browser', '--IdentityProvider.token=',
               f'--ServerApp.root_dir={tmp_path/"work"}']
    with server(command, log, env=os.environ | folders) as process:
        until(log, rf'http://127.0.0.1:{port}/lab', process)
        page = browser.new_page(viewport={'width': 1400, 'height': 900})
        page.goto(f'http://127.0.0.1:{port}/lab/tree/look.ipynb?reset', wait_until='commit')
        page.wait_for_function('() => window.jupyterapp?.shell?.currentWidget?.sessionContext', timeout=PATIENCE)
        page.evaluate('''async () => {
            const app = window.jupyterapp; await app.restored;
            const widget = app.shell.currentWidget; await widget.context.ready; await widget.sessionContext.ready; await widget.sessionContext.session.kernel.info;
            await app.commands.execute('notebook:run-all-cells'); }''')
        look_around(page, finished)
        page.close()


def test_what_a_person_can_mend(finished, tmp_path, capsys, monkeypatch):
    def refused(*words) -> str:
        with pytest.raises(SystemExit) as leaving: main([str(word) for word in ('explore', *words)])
        assert leaving.value.code == 2
        return capsys.readouterr().err
    assert 'config.json: there is no such file' in refused(tmp_path)
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0)); taken.listen()
        assert 'name another one with --port' in refused(finished, '--port', taken.getsockname()[1])
    shutil.copytree(finished, tmp_path/'moved')
    config = json.loads((tmp_path/'moved'/'config.json').read_text())
    (tmp_path/'moved'/'config.json').write_text(json.dumps(config | {'data': str(tmp_path/'gone')}))
    assert f'{tmp_path/"gone"}: there is no such folder' in refused(tmp_path/'moved')
    monkeypatch.setattr(explorer.importlib.util, 'find_spec', lambda name: None)
    assert 'the page needs voila and ipywidgets and ipyevents: pip install voila ipywidgets ipyevents' in refused(finished)

"""The explorer: what it says of odd runs; and in a real browser, as a page of its own and in
JupyterLab, what is shown there is what the chapters' logic says, to the byte."""
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
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wsss_nb import explorer_page
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.cli import main
from wsss_nb.explorer import Explorer
from wsss_nb.explorer_page import check_port, explore, explorers_of, page_notebook, serve
from wsss_nb.explorer_panels import PANELS, Panel, View, to_png
from wsss_nb.files import InputError
from wsss_nb.methods import System
from wsss_nb.pipeline import run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import DenseCRF, TrueMasks
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords

NAMES = ('chromium', 'chromium-browser', 'google-chrome')
BROWSERS = [path for path in map(shutil.which, NAMES) if path is not None]
FLAGS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-sync',
         '--disable-background-networking', '--disable-component-update', '--disable-dev-shm-usage',
         '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1']
PATIENCE = 45_000   # milliseconds that a step may take on a busy machine

FROZEN = BackboneSettings(frozen_stages=4)
SYSTEM = System(
    'these tests', VisualWords(FROZEN, TrainingSettings(3, 4), num_words=64),
    MultiScale(scales=(1.,), background=.3), DenseCRF(), DeepLab(training=TrainingSettings(1, 4)),
    PredictionSettings(scales=(1.,)))


@pytest.fixture(scope='session')
def finished(tmp_path_factory) -> Run:
    here = tmp_path_factory.mktemp('explorer')
    make_shapes(here/'shapes', train=8, val=2, size=64)
    config = Config(here/'shapes', here/'run', SYSTEM, workers=0)
    run(config)
    return Run(config)


@pytest.fixture
def bare(finished, tmp_path) -> Run:
    "The finished run, without words, after its CAMs and what came after them were lost."
    shutil.copytree(finished.root, tmp_path/'bare')
    for folder in ('cams', 'pseudo', 'masks', 'predictions'):
        for path in (tmp_path/'bare'/folder).iterdir():
            path.unlink()
    return Run(replace(finished.config, out=tmp_path/'bare'))


def first_view(this: Run, split: str | None = None) -> View:
    "A view of the first photo of a list."
    split = this.train_split if split is None else split
    return View((split, this.splits[split].ids[0]), this.background)


def test_what_is_not_there_is_a_sentence_with_its_command(bare):
    explorer = Explorer(bare)
    view = first_view(bare)
    commands = {'cam': 'cams', 'mask': 'cams', 'refined': 'cams', 'curve': 'cams',
                'pseudo': 'refine', 'prediction': 'predict'}
    for name, command in commands.items():
        panel = explorer.panel(name, view)
        assert panel.picture is None and f'`wsss_nb {command} {bare.root}`' in panel.note
    assert len(explorer.missing()) == 4
    assert list(explorer.measure())[-1] == (10, 10)
    assert explorer.curve is None and not any(explorer.miou.values())


def test_a_run_of_one_file_says_so_in_good_english(bare, finished):
    name = bare.photos.ids[0]
    shutil.copy(finished.root/'cams'/f'{name}.npz', bare.root/'cams')
    (said, *_) = Explorer(bare).missing()
    assert said.startswith('1 of 8 photos has a CAM so far; ')


def test_a_supervised_run_shows_what_it_has(finished, tmp_path):
    system = replace(SYSTEM, classifier=None, cams=None, refiner=TrueMasks())
    config = replace(finished.config, out=tmp_path/'run', system=system)
    run(config)
    this = Run(config)
    explorer = Explorer(this)
    assert explorer.missing() == []
    view = first_view(this)
    assert explorer.panel('cam', view).note == 'this run makes no CAM'
    assert 'this run trains no classifier' in explorer.word(view).note
    assert explorer.panel('pseudo', view).note == 'mIoU 100.0'
    list(explorer.measure())
    assert set(explorer.miou['pseudo'].values()) == {1.} and not explorer.miou['cam']
    assert list(explorer.orders('train')) == [
        'name', 'best mask, worst first', 'best mask, best first',
        'prediction, worst first', 'prediction, best first',
        'pseudo mask, worst first', 'pseudo mask, best first']


def test_a_photo_that_nobody_drew_a_mask_for(finished):
    explorer = Explorer(finished)
    view = first_view(finished)
    unmasked = replace(explorer.open(view.photo), truth=None)
    notes = {name: draw(explorer, unmasked, view).note for name, (draw, _) in PANELS.items()}
    assert notes['truth'] == notes['curve'] == 'this photo has no mask'
    assert notes['pseudo'] == notes['prediction'] == notes['mask'] == ''


def test_a_map_that_was_cut_off_becomes_a_sentence(bare, finished):
    name = bare.photos.ids[0]
    whole = (finished.root/'cams'/f'{name}.npz').read_bytes()
    (bare.root/'cams'/f'{name}.npz').write_bytes(whole[:99])
    panel = Explorer(bare).panel('mask', first_view(bare))
    assert panel.picture is None and 'is no whole map' in panel.note


def test_a_photo_that_was_exchanged_becomes_a_sentence(bare, finished, tmp_path):
    shutil.copytree(finished.config.data, tmp_path/'data')
    config = replace(bare.config, data=tmp_path/'data')
    name = bare.photos.ids[0]
    shutil.copy(finished.root/'cams'/f'{name}.npz', bare.root/'cams')
    shutil.copy(finished.root/'pseudo'/f'{name}.png', bare.root/'pseudo')
    this = Run(config)
    Image.new('RGB', (30, 20)).save(this.photos.path(0))
    mask = tmp_path/'data'/'SegmentationClass'/f'{name}.png'
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(mask)
    explorer = Explorer(this)
    for panel in ('cam', 'pseudo'):
        assert 'the photo is 30 x 20 pixels' in explorer.panel(panel, first_view(this)).note
    with pytest.raises(InputError, match='the photo is 30 x 20 pixels'):
        list(explorer.measure())


def test_words_of_a_run_without_a_classifier_are_refused(finished, tmp_path):
    this = start_run(replace(finished.config, out=tmp_path/'begun'))
    explorer = Explorer(this)
    assert 'wsss_nb classify' in explorer.word(first_view(this)).note
    with pytest.raises(InputError, match='this is not there yet'):
        next(explorer.look_for_words())


def test_words_of_a_run_that_has_none_are_refused(finished, tmp_path):
    system = replace(SYSTEM, classifier=replace(SYSTEM.classifier, words=None))
    config = replace(finished.config, out=tmp_path/'run', system=system)
    run(config, until='classify')
    explorer = Explorer(Run(config))
    assert explorer.word(first_view(explorer.run)).note == 'This run has no visual words'
    with pytest.raises(InputError, match='this run has no visual words'):
        next(explorer.look_for_words())


def test_two_runs_have_classes_and_photos_in_common(finished, tmp_path):
    data = tmp_path/'others'
    make_shapes(data, train=2, val=1, size=64, seed=9)
    fewer = start_run(replace(finished.config, data=data, out=tmp_path/'fewer'))
    assert len(explorers_of(fewer, finished)) == 2
    with pytest.raises(InputError, match='Name two runs on the same photos'):
        explorers_of(finished, fewer)
    (data/'classes.txt').write_text('\n'.join(reversed(finished.classes)))
    turned = start_run(replace(finished.config, data=data, out=tmp_path/'turned'))
    with pytest.raises(InputError, match='Name two runs with the same classes'):
        explore(finished, turned)


def test_a_port_that_cannot_be_had(finished):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        with pytest.raises(InputError, match='cannot be had .*name another one with --port'):
            check_port(taken.getsockname()[1])
    if importlib.util.find_spec('voila') is None:
        pytest.skip('voila is not installed')
    with pytest.raises(InputError, match='a port is a number from 1 to 65535, not 70000'):
        serve(finished, None, 70000)


def test_what_is_not_installed_is_named(finished, monkeypatch):
    monkeypatch.setattr(explorer_page.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='pip install voila ipywidgets ipyevents'):
        serve(finished)
    with pytest.raises(InputError, match='the explorer needs ipywidgets and ipyevents'):
        explore(finished)


def test_what_a_person_can_mend(finished, tmp_path, capsys):
    def refused(*words) -> str:
        with pytest.raises(SystemExit) as leaving:
            main([str(word) for word in ('explore', *words)])
        assert leaving.value.code == 2
        return capsys.readouterr().err
    assert 'config.json: there is no such file' in refused(tmp_path)
    assert 'config.json: there is no such file' in refused(finished.root, tmp_path/'nowhere')
    shutil.copytree(finished.root, tmp_path/'moved')
    path = tmp_path/'moved'/'config.json'
    written = json.loads(path.read_text())
    path.write_text(json.dumps(written | {'data': str(tmp_path/'gone')}))
    assert f'{tmp_path/"gone"}: the photos of this run are no' in refused(tmp_path/'moved')


# In a browser


@pytest.fixture(scope='module')   # workers of later tests would hold its pipes open
def browser():
    "A headless chromium, or a reason to skip."
    names = ('playwright', 'voila', 'jupyterlab', 'ipyevents')
    lacking = [name for name in names if importlib.util.find_spec(name) is None]
    if lacking:
        pytest.skip(f"{' and '.join(lacking)} not installed: pip install -e '.[dev]'")
    if not BROWSERS:
        pytest.skip('no chromium here: apt-get install chromium')
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=BROWSERS[0], args=FLAGS)
        yield chromium
        chromium.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


@contextmanager
def server(command: list, log: Path, **options):
    "A process that is ended in the end, whatever happens."
    with log.open('wb') as file:
        process = subprocess.Popen([str(word) for word in command], stdout=file, stderr=file,
                                   stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)      # Ctrl-C
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()


def until(log: Path, pattern: str, process: subprocess.Popen) -> None:
    "Wait until a server has said something."
    for _ in range(PATIENCE // 100):
        said = log.read_text(errors='replace')
        if re.search(pattern, said):
            return
        assert process.poll() is None, said
        time.sleep(.1)
    raise AssertionError(said)


IS_SHOWN = '''async ([name, expected]) => {
    const image = document.querySelector(`.wsss-run-0 .wsss-${name} img`);
    const picture = await (await fetch(image.src)).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', picture));
    const hex = Array.from(hash, byte => byte.toString(16).padStart(2, '0')).join('');
    return hex === expected; }'''


def shows(page, name: str, panel: Panel) -> None:
    "Wait until a panel of the page has the sentence and the very bytes of the logic's."
    from playwright.sync_api import expect
    cell = page.locator(f'.wsss-run-0 .wsss-{name}').first
    expect(cell).to_contain_text(panel.title, timeout=PATIENCE)
    expect(cell).to_contain_text(panel.note, timeout=PATIENCE)
    expected = hashlib.sha256(to_png(panel.picture)).hexdigest()
    page.wait_for_function(IS_SHOWN, arg=[name, expected], timeout=PATIENCE)


def notes(logic: Explorer, view: View) -> set[str]:
    "The mIoU of the photo and of all, as the panel of the mask says them."
    return set(logic.panel('mask', view).note.split('; '))


def telling_move(logic: Explorer, names: list[str]) -> tuple[View, View, int]:
    "A photo, before and after so many moves of the slider that change the mIoU of it and of all."
    for name in names[1:]:
        view = View(('train', name), logic.run.background)
        for moves in (5, -5, 10, -10, 20, -20):
            moved = replace(view, background=round(view.background + .01 * moves, 2))
            if not notes(logic, view) & notes(logic, moved):
                return view, moved, moves
    raise AssertionError('no move changes anything')


def places_of_words(logic: Explorer, view: View) -> dict[int, tuple[float, float]]:
    "A place of each word of a photo, 0..1 of width and height."
    for _ in logic.look_for_words(1):
        pass
    words = logic.photo_words(view.photo).words
    height, width = words.shape
    seen = {}
    for y in range(height):
        for x in range(width):
            seen[int(words[y, x])] = ((x + .5) / width, (y + .5) / height)
    return seen


def look_around(page, this: Run) -> None:
    "Move the slider, click places: the page shows what the logic says."
    from playwright.sync_api import expect
    logic = Explorer(this)

    def text(name: str):
        return page.locator(f'.wsss-run-0 .wsss-{name}').first

    for _ in logic.measure():
        pass
    names = logic.photos('train')
    view, moved, moves = telling_move(logic, names)
    name = view.photo[1]
    expect(text('mask')).to_contain_text('all 8 photos', timeout=PATIENCE)   # all are measured
    page.locator('.wsss-thumb').nth(names.index(name)).click()
    expect(text('photo')).to_contain_text(name, timeout=PATIENCE)
    shows(page, 'mask', logic.panel('mask', view))
    before = to_png(logic.panel('mask', view).picture)
    handle = page.locator('.wsss-run-0 .noUi-handle').first
    handle.focus()
    for _ in range(abs(moves)):
        handle.press('ArrowRight' if moves > 0 else 'ArrowLeft')
    shows(page, 'mask', logic.panel('mask', moved))
    shows(page, 'refined', logic.panel('refined', moved))
    assert to_png(logic.panel('mask', moved).picture) != before

    expect(text('word')).to_contain_text('Click a place')
    seen = places_of_words(logic, view)
    assert len(seen) > 1
    photo = page.locator('.wsss-run-0 .wsss-photo img')
    for word in list(seen)[:2]:       # two places, two words
        box = photo.bounding_box()
        x, y = seen[word]
        photo.click(position={'x': x * box['width'], 'y': y * box['height']})
        said = re.compile(rf'Word {word}(?!\d).*in 8 photos', re.S)
        expect(text('word')).to_contain_text(said, timeout=PATIENCE)


def test_a_page_of_its_own(browser, finished, tmp_path):
    port = free_port()
    log = tmp_path/'log'
    command = [sys.executable, '-c', 'from wsss_nb.cli import main; main()', 'explore',
               finished.root, '--port', port]
    with server(command, log) as process:
        until(log, f'http://127.0.0.1:{port}/ shows', process)
        page = browser.new_page(viewport={'width': 1400, 'height': 900})
        asked = []
        page.on('request', lambda request: asked.append(request.url))
        page.goto(f'http://127.0.0.1:{port}/', wait_until='commit')
        look_around(page, finished)
        page.close()
    own = (f'http://127.0.0.1:{port}/', f'ws://127.0.0.1:{port}/', 'data:', 'blob:')
    assert [url for url in asked if not url.startswith(own)] == []
    assert len(asked) > 5


LAB_IS_THERE = '() => window.jupyterapp?.shell?.currentWidget?.sessionContext'
RUN_ALL = '''async () => {
    const app = window.jupyterapp;
    await app.restored;
    const widget = app.shell.currentWidget;
    await widget.context.ready;
    await widget.sessionContext.ready;
    await widget.sessionContext.session.kernel.info;
    await app.commands.execute('notebook:run-all-cells'); }'''


def test_in_jupyterlab(browser, finished, tmp_path):
    port = free_port()
    log = tmp_path/'log'
    names = ('CONFIG', 'DATA', 'RUNTIME')
    folders = {f'JUPYTER_{name}_DIR': str(tmp_path/name) for name in names}
    (tmp_path/'work').mkdir()
    (tmp_path/'CONFIG'/'labconfig').mkdir(parents=True)
    (tmp_path/'work'/'look.ipynb').write_text(json.dumps(page_notebook(finished.root)))
    silent = {'disabledExtensions': {'@jupyterlab/apputils-extension:announcements': True}}
    (tmp_path/'CONFIG'/'labconfig'/'page_config.json').write_text(json.dumps(silent))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root',
               '--ip=127.0.0.1', f'--port={port}', '--expose-app-in-browser',
               '--IdentityProvider.token=', f'--ServerApp.root_dir={tmp_path/"work"}']
    with server(command, log, env=os.environ | folders) as process:
        until(log, rf'http://127.0.0.1:{port}/lab', process)
        page = browser.new_page(viewport={'width': 1400, 'height': 900})
        page.goto(f'http://127.0.0.1:{port}/lab/tree/look.ipynb?reset', wait_until='commit')
        page.wait_for_function(LAB_IS_THERE, timeout=PATIENCE)
        page.evaluate(RUN_ALL)
        look_around(page, finished)
        page.close()

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
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import parse_qs, urlencode

import numpy as np
import pytest
from PIL import Image

from wsss_nb import explorer_page
from wsss_nb.affinity import Affinity
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM, MultiScale
from wsss_nb.cli import main
from wsss_nb.explorer import (Explorer, View, explorers_of, list_differences, picture_size,
                              read_link, write_link)
from wsss_nb.explorer_page import Page, check_port, explore, page_notebook, serve
from wsss_nb.explorer_panels import PANELS, Panel, draw_sheet, paint, to_png
from wsss_nb.files import InputError
from wsss_nb.methods import System
from wsss_nb.pipeline import branch, run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import DenseCRF, TrueMasks
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import SYSTEMS, open_run
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


@pytest.fixture(scope='session')
def walking(finished) -> Run:
    "The maps of the finished run after a walk; it ends with the pseudo masks."
    root = finished.root.with_name('walking')
    branch(finished, root, Affinity(training=TrainingSettings(1, 4)), until='refine', workers=0)
    return open_run(root)


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
    assert explorer.curves == {} and not any(explorer.miou.values())


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
    assert explorer.described().endswith('it makes pseudo masks, predictions and best masks')
    assert Page([explorer]).panels == ['photo', 'truth', 'pseudo', 'best', 'prediction']
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
    said = 'list train: 2 in both; 2 different photos of the same name'
    assert list_differences(*explorers_of(fewer, finished))[0] == said
    (data/'classes.txt').write_text('\n'.join(reversed(finished.classes)))
    turned = start_run(replace(finished.config, data=data, out=tmp_path/'turned'))
    with pytest.raises(InputError, match='Name two runs with the same classes'):
        explore(finished, turned)
    names = {'train_00000': 'a', 'train_00001': 'b', 'val_00000': 'c'}
    for path in [*data.rglob('*.*')]:
        if path.stem in names:
            path.rename(path.with_stem(names[path.stem]))
    for path in data.rglob('*.txt'):
        path.write_text(''.join(f'{names.get(line, line)}\n' for line in path.read_text().split()))
    (data/'classes.txt').write_text('\n'.join(finished.classes))
    strange = start_run(replace(finished.config, data=data, out=tmp_path/'strange'))
    with pytest.raises(InputError, match='Name two runs on the same photos'):
        explorers_of(finished, strange)


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


# Links, lists and maps, without a browser


def link_to(this: Run, name: str, **changes) -> str:
    "A link to a photo, with some of its parts exchanged; None takes a part away."
    explorer = Explorer(this)
    link = write_link([explorer], [View((this.train_split, name), .3)])
    parts = {key: value for key, (value,) in parse_qs(link).items()} | changes
    return urlencode({key: value for key, value in parts.items() if value is not None})


@pytest.mark.parametrize('changes, said', [
    ({'run': 'other'}, 'this link is of the run other; here is run'),
    ({'list': 'test'}, "this link names the list 'test', which is not here"),
    ({'photo': '../x'}, "this link names the photo '../x', which is not here"),
    ({'maps': 'walked'}, "this link names the maps 'walked', which is not here"),
    ({'maps': None}, 'this link lacks the maps, or the background score, of a run'),
    ({'background': 'nan'}, "this link has 'nan' where a number from 0 to 1 belongs"),
    ({'background': '-0.1'}, "this link has '-0.1' where a number from 0 to 1 belongs"),
    ({'panel': 'all'}, "this link names the panel 'all', which is not here"),
    ({'class': '<b>'}, "this link names the class '<b>', which is not here"),
    ({'place': '0.5'}, "this link has '' where a number from 0 to 1 belongs"),
    ({'iterations': '1e9'}, "this link has '1e9' where a number from 0 to 20 belongs")])
def test_a_link_to_what_is_not_here_says_so(finished, changes, said):
    name = finished.photos.ids[0]
    explorers = [Explorer(finished)]
    assert read_link(link_to(finished, name), explorers, PANELS).views[0].photo[1] == name
    with pytest.raises(InputError) as refused:
        read_link(link_to(finished, name, **changes), explorers, PANELS)
    assert str(refused.value) == said


@pytest.mark.parametrize('name', SYSTEMS)
def test_any_system_says_in_a_sentence_which_maps_it_has(finished, tmp_path, name):
    config = replace(finished.config, out=tmp_path/'run', system=SYSTEMS[name])
    explorer = Explorer(Run(config))
    said = explorer.described()
    assert '\n' not in said and not said.endswith('.')
    has_maps = 'cams' in explorer.run.stages
    assert (explorer.maps != []) == has_maps == said.startswith(('The background', 'One network'))
    walks = explorer.run.system.refiner.walked_background is not None
    assert ('walked' in explorer.maps) == walks == ('walked maps' in said)
    assert ('mask' in explorer.panels()) == has_maps
    assert {'photo', 'truth', 'prediction'} <= set(explorer.panels())


def test_walked_maps_that_are_lost_become_a_sentence(walking, tmp_path):
    shutil.copytree(walking.root, tmp_path/'bare')
    for path in (tmp_path/'bare'/'refiner'/'cams').iterdir():
        path.unlink()
    explorer = Explorer(Run(replace(walking.config, out=tmp_path/'bare')))
    view = replace(first_view(explorer.run), maps='walked')
    assert f'`wsss_nb refine {explorer.run.root}`' in explorer.panel('mask', view).note
    assert explorer.panel('mask', replace(view, maps='cam')).picture is not None
    (said, *_) = explorer.missing()
    assert said.startswith('none of 8 photos have a walked map so far; ')


def test_the_walked_mask_is_that_of_the_stored_map(walking):
    explorer = Explorer(walking)
    view = replace(first_view(walking), maps='walked', background=.4, strength=1.)
    cam = CAM.load(walking.root/'refiner'/'cams'/f'{view.photo[1]}.npz', len(walking.classes))
    expected = paint(cam.to_labels(.4), explorer.open(view.photo).small, walking.classes)
    assert np.array_equal(explorer.panel('mask', view).picture, expected)
    raw = explorer.panel('mask', replace(view, maps='cam')).picture
    assert not np.array_equal(raw, expected)


def test_two_runs_whose_lists_differ(finished, tmp_path):
    data = tmp_path/'fewer'
    shutil.copytree(finished.config.data, data)
    lists = data/'ImageSets'/'Segmentation'
    names = (lists/'train.txt').read_text().split()
    (lists/'train.txt').write_text('\n'.join([*names[2:], 'val_00001']))
    (lists/'val.txt').write_text('val_00000\n')
    other = start_run(replace(finished.config, data=data, out=tmp_path/'other'))
    explorers = explorers_of(finished, other)
    assert list_differences(*explorers) == ['list train: 6 in both; 2 only in run']
    assert explorers[1].where(('val', 'val_00001')) == 'train'      # it is there, and so shown
    page = Page(explorers)
    right = page.columns[1]
    assert right.absent.value == f'<b>This run has no photo {names[0]}</b>'
    assert right.grid.layout.display == 'none'
    page.photo.value = names[2]
    assert right.grid.layout.display is None and right.absent.layout.display == 'none'
    assert names[2] in right.cells['photo'].text.value


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


IS_SHOWN = '''async ([run, name, expected]) => {
    const image = document.querySelector(`.wsss-run-${run} .wsss-${name} img`);
    const picture = await (await fetch(image.src)).arrayBuffer();
    const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', picture));
    const hex = Array.from(hash, byte => byte.toString(16).padStart(2, '0')).join('');
    return hex === expected; }'''


def shows(page, name: str, panel: Panel, run: int = 0) -> None:
    "Wait until a panel of the page has the sentence and the very bytes of the logic's."
    from playwright.sync_api import expect
    cell = page.locator(f'.wsss-run-{run} .wsss-{name}').first
    expect(cell).to_contain_text(panel.title, timeout=PATIENCE)
    expect(cell).to_contain_text(panel.note, timeout=PATIENCE)
    expected = hashlib.sha256(to_png(panel.picture)).hexdigest()
    page.wait_for_function(IS_SHOWN, arg=[run, name, expected], timeout=PATIENCE)


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


@contextmanager
def explored(log: Path, *roots: Path):
    "The address of a page that shows some runs, while it is there."
    port = free_port()
    command = [sys.executable, '-c', 'from wsss_nb.cli import main; main()', 'explore', *roots,
               '--port', port]
    with server(command, log) as process:
        until(log, f'http://127.0.0.1:{port}/ shows', process)
        yield f'http://127.0.0.1:{port}/'


@contextmanager
def visited(browser, address: str):
    "A page, which asks for nothing from elsewhere."
    asked = []
    page = browser.new_page(viewport={'width': 1280, 'height': 900})
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address, wait_until='commit')
    yield page
    page.close()
    host = address.split('/')[2]
    own = (f'http://{host}/', f'ws://{host}/', 'data:', 'blob:')
    assert [url for url in asked if not url.startswith(own)] == []
    assert len(asked) > 5


def test_a_page_of_its_own(browser, finished, tmp_path):
    with explored(tmp_path/'log', finished.root) as address:
        with visited(browser, address) as page:
            look_around(page, finished)


@pytest.fixture(scope='module')
def of_two(browser, finished, walking, tmp_path_factory):
    "The address of a page that shows two runs side by side."
    with explored(tmp_path_factory.mktemp('of_two')/'log', finished.root, walking.root) as address:
        yield address


def text_of(page, name: str, run: int = 0):
    return page.locator(f'.wsss-run-{run} .wsss-{name}').first


def wait_for_both(page, name: str, said: str) -> None:
    "Wait until a panel of both runs says something."
    from playwright.sync_api import expect
    for run in (0, 1):
        expect(text_of(page, name, run)).to_contain_text(said, timeout=PATIENCE)


def test_keys_do_what_buttons_do(browser, of_two, finished):
    from playwright.sync_api import expect
    names = Explorer(finished).photos('train')
    with visited(browser, of_two) as page:
        press = page.keyboard.press
        wait_for_both(page, 'mask', 'all 8 photos')
        for key, place in (('n', 1), ('ArrowRight', 2), ('ArrowLeft', 1), ('p', 0), ('p', -1)):
            press(key)
            wait_for_both(page, 'photo', names[place])
        press('-')
        press('-')
        wait_for_both(page, 'mask', f'Mask at {finished.background - .02:.2f}')
        press('=')
        wait_for_both(page, 'mask', f'Mask at {finished.background - .01:.2f}')
        press('o')
        wait_for_both(page, 'mask', f'Mask at {finished.background:.2f}')
        press('2')
        expect(text_of(page, 'mask')).to_be_hidden(timeout=PATIENCE)
        expect(text_of(page, 'cam', 1)).to_be_visible()
        press('0')
        expect(text_of(page, 'mask')).to_be_visible(timeout=PATIENCE)
        page.locator('.wsss-thumb').nth(3).focus()
        press('Enter')
        wait_for_both(page, 'photo', names[3])
        press('?')
        expect(page.locator('.wsss details')).to_have_attribute('open', '')


def test_keys_are_letters_where_one_types(browser, of_two, finished):
    from playwright.sync_api import expect
    names = Explorer(finished).photos('train')
    with visited(browser, of_two) as page:
        expect(text_of(page, 'photo')).to_contain_text(names[0], timeout=PATIENCE)
        page.locator('.wsss-run-0 .widget-readout').first.click()
        page.keyboard.press('p')
        page.locator('.wsss select').first.focus()
        page.keyboard.press('p')
        page.locator('.wsss-run-0 .noUi-handle').first.focus()
        page.keyboard.press('Control+p')
        page.keyboard.press('n')             # a slider is no field
        wait_for_both(page, 'photo', names[1])
        page.keyboard.press('ArrowRight')    # but arrows move it
        one_more = f'Mask at {finished.background + .01:.2f}'
        expect(text_of(page, 'mask')).to_contain_text(one_more, timeout=PATIENCE)
        expect(text_of(page, 'photo')).to_contain_text(names[1])


DESCRIBED = '''() => {
    const images = [...document.querySelectorAll('.wsss img')];
    const handles = [...document.querySelectorAll('.wsss .noUi-handle')];
    return {unnamed: images.filter(image => !image.hasAttribute('alt')).length,
            sliders: [...new Set(handles.map(handle => handle.ariaLabel))]}; }'''
OUTLINE = 'getComputedStyle(document.activeElement).outlineStyle'


def test_what_one_cannot_see_is_said(browser, of_two, finished):
    from playwright.sync_api import expect
    with visited(browser, of_two) as page:
        wait_for_both(page, 'mask', 'all 8 photos')
        mask = page.locator('.wsss-run-0 .wsss-mask img')
        said = f'Mask at {finished.background:.2f}'
        expect(mask).to_have_attribute('alt', re.compile(re.escape(said)), timeout=PATIENCE)
        described = page.evaluate(DESCRIBED)
        assert described['unnamed'] == 0
        assert {'background', 'colours', 'iterations'} <= set(described['sliders'])
        assert None not in described['sliders'] and '' not in described['sliders']
        for place in ('.wsss select', '.wsss button', '.wsss-thumb', '.wsss .noUi-handle'):
            page.keyboard.press('Tab')     # from here on, focus is that of a keyboard
            page.locator(place).first.focus()
            assert page.evaluate(OUTLINE) == 'solid', place


def settle(left: Explorer, right: Explorer) -> None:
    for explorer in (left, right):
        for _ in explorer.measure():
            pass


def test_a_link_shows_the_same_and_back_goes_back(browser, of_two, finished, walking):
    left = Explorer(finished)
    right = Explorer(walking)
    settle(left, right)
    photo = ('train', left.photos('train')[2])
    with visited(browser, of_two) as page:
        wait_for_both(page, 'mask', 'all 8 photos')
        page.keyboard.press('n')
        page.keyboard.press('n')
        wait_for_both(page, 'photo', photo[1])
        page.locator('.wsss-run-1 select').first.select_option('walked maps')
        for _ in range(3):
            page.keyboard.press('+')
        views = [View(photo, finished.background + .03),
                 View(photo, walking.walked_background + .03, 'walked')]
        views = [replace(view, background=round(view.background, 2)) for view in views]
        shows(page, 'mask', left.panel('mask', views[0]))
        shows(page, 'mask', right.panel('mask', views[1]), run=1)
        shows(page, 'cam', right.panel('cam', views[1]), run=1)
        link = write_link([left, right], views)
        page.wait_for_url(f'{of_two}#{link}', timeout=PATIENCE)
        page.keyboard.press('n')
        wait_for_both(page, 'photo', left.photos('train')[3])
        page.wait_for_url(re.compile(left.photos('train')[3]), timeout=PATIENCE)   # noted by now
        page.keyboard.press('3')
        page.wait_for_url(re.compile('panel=mask'), timeout=PATIENCE)
        page.go_back()
        page.go_back()
        wait_for_both(page, 'photo', photo[1])
        assert page.url == f'{of_two}#{link}'
        page.go_forward()
        wait_for_both(page, 'photo', left.photos('train')[3])
    with visited(browser, f'{of_two}#{link}') as page:
        shows(page, 'mask', right.panel('mask', views[1]), run=1)
        shows(page, 'mask', left.panel('mask', views[0]))
    with visited(browser, f'{of_two}#{link.replace(photo[1], "nowhere")}') as page:
        page.wait_for_selector("text=this link names the photo 'nowhere'", timeout=PATIENCE)
        page.wait_for_url(re.compile(left.photos('train')[0]), timeout=PATIENCE)


def test_what_is_seen_can_be_saved(browser, of_two, finished, walking):
    left = Explorer(finished)
    right = Explorer(walking)
    settle(left, right)
    photo = ('train', left.photos('train')[0])
    score = round(finished.background + .01, 2)
    with visited(browser, of_two) as page:
        wait_for_both(page, 'mask', 'all 8 photos')
        page.get_by_text('one background for both').click()
        page.keyboard.press('+')        # one slider, one step
        wait_for_both(page, 'mask', f'Mask at {score:.2f}')
        page.keyboard.press('3')
        page.wait_for_url(re.compile('panel=mask'), timeout=PATIENCE)
        saved = []
        for _ in range(2):              # the same picture again is a file again
            with page.expect_download(timeout=PATIENCE) as download:
                page.keyboard.press('s')
            saved.append(download.value)
        for file in saved:
            assert file.suggested_filename == f'{photo[1]}-run-walking.png'
        view = View(photo, score)
        sheet = draw_sheet([explorer.caption(view) for explorer in (left, right)],
                           [[explorer.panel('mask', view)] for explorer in (left, right)],
                           picture_size((4, 3)), 2)
        assert saved[1].path().read_bytes() == to_png(sheet)
    caption = left.caption(view)[-1]
    assert f'background {score:.2f}' in caption and 'all 8 photos' in caption


TOO_WIDE = '''() => [...document.querySelectorAll('.wsss *')].filter(part =>
    part.checkVisibility() && part.getBoundingClientRect().right > innerWidth + 1
).map(part => part.className)'''
FAINT = '''() => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
    const light = colour => colour.slice(0, 3).map(value => value / 255).map(value =>
        value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4
    ).reduce((sum, value, at) => sum + value * [.2126, .7152, .0722][at], 0);
    const behind = part => {
        const found = part === null ? [255, 255, 255, 1]
            : numbers(getComputedStyle(part).backgroundColor);
        return part === null || (found[3] ?? 1) > .5 ? found : behind(part.parentElement); };
    const opacity = part => part === null ? 1
        : getComputedStyle(part).opacity * opacity(part.parentElement);
    const faint = [];
    for (const part of document.querySelectorAll('.wsss *')) {
        const own = [...part.childNodes].filter(node => node.nodeType === Node.TEXT_NODE);
        const text = own.map(node => node.textContent).join('').trim();
        if (text === '' || part.matches('style, option') || !part.checkVisibility()) continue;
        const ground = behind(part);
        const share = opacity(part);
        const ink = numbers(getComputedStyle(part).color).map(
            (value, at) => share * value + (1 - share) * ground[at]);
        const both = [light(ink), light(ground)].sort((one, other) => other - one);
        const contrast = (both[0] + .05) / (both[1] + .05);
        if (contrast < 4.5) faint.push(`${text}: ${contrast.toFixed(2)}`);
    }
    return faint; }'''


def none_left(page, script: str) -> None:
    "A list that a page gives is empty, once it has come to rest."
    from playwright.sync_api import TimeoutError
    with suppress(TimeoutError):
        page.wait_for_function(f'() => ({script})().length === 0', timeout=5_000)
    assert page.evaluate(script) == []


def test_light_and_dark_wide_and_narrow(browser, of_two):
    with visited(browser, of_two) as page:
        wait_for_both(page, 'mask', 'all 8 photos')
        grounds = set()
        for scheme in ('light', 'dark'):
            page.emulate_media(color_scheme=scheme)
            for width in (1280, 390):
                page.set_viewport_size({'width': width, 'height': 900})
                page.wait_for_function(f'innerWidth == {width}', timeout=PATIENCE)
                none_left(page, TOO_WIDE)
                none_left(page, FAINT)
                assert page.evaluate('document.documentElement.scrollWidth') == width
            grounds.add(page.evaluate('getComputedStyle(document.body).backgroundColor'))
        assert len(grounds) == 2


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
    from playwright.sync_api import expect
    port = free_port()
    log = tmp_path/'log'
    names = ('CONFIG', 'DATA', 'RUNTIME')
    folders = {f'JUPYTER_{name}_DIR': str(tmp_path/name) for name in names}
    (tmp_path/'work').mkdir()
    (tmp_path/'CONFIG'/'labconfig').mkdir(parents=True)
    notebook = json.dumps(page_notebook(finished.root)).replace(', alone=True', '')
    (tmp_path/'work'/'look.ipynb').write_text(notebook)
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
        page.locator('.wsss-thumb').first.focus()
        for key, place in (('Enter', 0), ('n', 1)):
            page.keyboard.press(key)
            name = finished.photos.ids[place]
            expect(page.locator('.wsss-photo')).to_contain_text(name, timeout=PATIENCE)
        assert 'photo=' not in page.url      # that address is not ours
        page.close()

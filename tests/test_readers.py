"Files of a run that were damaged: each is refused in a sentence that says how to make it again."
import configparser
import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies
from safetensors.torch import load_file, save_file
from soak.mutations import (Kind, begin_training, damaged, mutate, network, outcome, small_run,
                            training)

from wsss_nb.cam import CAM, StoredMaps
from wsss_nb.files import InputError, made_again, read_json, reading
from wsss_nb.photos import read_mask
from wsss_nb.pipeline import PseudoMasks
from wsss_nb.published import read_weights
from wsss_nb.readers import Form, Log, read_arrays, read_steps, write_arrays
from wsss_nb.refiners import NoRefiner
from wsss_nb.shapes import make_shapes
from wsss_nb.tables import read_rows
from wsss_nb.terms import read_plan
from wsss_nb.training import load_model
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Work

GIVEN = Path(__file__).parents[2]/'shared'/'cases'/'damaged'


@pytest.mark.filterwarnings('ignore')
def test_no_mutation_of_a_file_ends_in_a_traceback_or_hangs():
    found, failures = mutate(300)
    assert failures == []
    assert sum(found.values()) == 300
    refused = {name for name, what in found if what == 'refused'}
    assert refused == {name for name, _ in found}    # of every kind, some were


@pytest.fixture(scope='module')
def kinds(tmp_path_factory) -> list[Kind]:
    "A file of each kind, with what reads it."
    root = tmp_path_factory.mktemp('kinds')/'run'
    root.mkdir()
    return small_run(root)


def read_with(kind: Kind, content: bytes) -> None:
    "Read other content in place of a file's own."
    whole = kind.path.read_bytes()
    kind.path.write_bytes(content)
    what, said = outcome(kind)
    kind.path.write_bytes(whole)
    assert what in ('read', 'refused'), said


BRIEFLY = settings(max_examples=100, deadline=None, derandomize=True, database=None,
                   suppress_health_check=list(HealthCheck))


@pytest.mark.filterwarnings('ignore')
@BRIEFLY
@given(place=strategies.integers(0, 99), draw=strategies.randoms(use_true_random=False))
def test_hypothesis_finds_no_damage_that_ends_in_a_traceback(kinds, place, draw):
    kind = kinds[place % len(kinds)]
    _, content = damaged(draw, kind, kinds)
    read_with(kind, content)


@pytest.mark.filterwarnings('ignore')
@BRIEFLY
@given(place=strategies.integers(0, 99), content=strategies.binary(max_size=200))
def test_hypothesis_finds_no_bytes_that_end_in_a_traceback(kinds, place, content):
    read_with(kinds[place % len(kinds)], content)


JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats()
    | strategies.text(max_size=5),
    lambda inner: strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.text(max_size=5), inner, max_size=3))


@pytest.mark.filterwarnings('ignore')
@BRIEFLY
@given(place=strategies.integers(0, 99), content=JSON)
def test_hypothesis_finds_no_json_that_ends_in_a_traceback(kinds, place, content):
    of_json = [kind for kind in kinds if kind.path.suffix == '.json']
    read_with(of_json[place % len(of_json)], json.dumps(content).encode())


def test_the_mutations_would_find_a_traceback_and_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr('soak.mutations.SECONDS', .1)

    def refuses(path):
        raise InputError('no')

    def hangs(path):
        while True:
            with reading(path, 'file', 'wait'):
                time.sleep(.01)

    kind = Kind(tmp_path/'a', lambda path: {}['b'])
    assert outcome(kind)[0] == 'traceback'
    assert outcome(kind._replace(read=refuses))[1].startswith('tells too little')
    assert outcome(kind._replace(read=hangs))[0] == 'hang'


@pytest.mark.parametrize('name', [
    'cam_1.npz', 'cam_2.npz', 'cam_3.npz', *[f'weights_{i}.pth' for i in range(1, 7)]])
def test_given_files_are_refused(name):
    if not (GIVEN/name).is_file():
        pytest.skip(f'there is no {GIVEN/name}')
    read = CAM.load if name.endswith('.npz') else read_weights
    with pytest.raises(InputError, match=f'{name}: .*again|{name}: .*Give a whole'):
        read(GIVEN/name)


@pytest.fixture
def run(tmp_path) -> Path:
    small_run(tmp_path/'run')
    return tmp_path/'run'


@pytest.mark.parametrize('name, remedy', [
    ('cams/a.npz', 'Remove RUN/cams/a.npz, then make it again with `wsss_nb cams RUN`'),
    ('cams/b.npz', 'Make it with `wsss_nb cams RUN`'),
    ('classifier/model.safetensors',
     'Remove RUN/classifier/model.safetensors, then make it again with `wsss_nb classify RUN`'),
    ('segmenter/model.safetensors', 'Make it with `wsss_nb segment RUN`'),
    ('predictions/c/d.png', 'Make it with `wsss_nb predict RUN`'),
    ('refiner/things/a.npz', 'Remove RUN/refiner/*/a.* and RUN/pseudo/a.*, then make it again '
                             'with `wsss_nb refine RUN`'),
    ('config.json', 'otherwise')])
def test_the_remedy_names_the_stage_that_makes_the_file_again(name, remedy, run):
    assert made_again(run/name, 'otherwise').replace(str(run), 'RUN') == remedy


@pytest.mark.parametrize('arrays, said', [
    (dict(maps=np.zeros((2, 3, 4))), 'float64 of 2 x 3 x 4, not uint8 of any x any x any'),
    (dict(maps=np.zeros((3, 4), np.uint8)), 'uint8 of 3 x 4, not'),
    (dict(maps=np.zeros((3, 3, 4), np.uint8)), '3 maps of 2 classes'),
    (dict(maps=np.zeros((2, 30, 4), np.uint8)), 'maps of 30 x 4 cells for a photo of 10 x 14'),
    (dict(classes=np.array([0, 3], np.uint8)), 'class 3, and there are 3'),
    (dict(classes=np.array([2, 2], np.uint8)), 'its classes are not in order'),
    (dict(size=np.array([0, 14], np.int32)), 'for a photo of 0 x 14'),
    (dict(size=np.array([[10, 14]], np.int32)), 'int32 of 1 x 2'),
    (dict(classes=np.array(['a', 'b'])), '<U1 of 2'),
    (dict(classes=np.array([None, None])), 'object of 2')])
def test_a_cam_that_is_whole_but_impossible_is_refused(arrays, said, run):
    good = dict(classes=np.array([0, 2], np.uint8), maps=np.zeros((2, 3, 4), np.uint8),
                size=np.array([10, 14], np.int32))
    write_arrays(run/'cams'/'a.npz', **good | arrays)
    with pytest.raises(InputError) as found:
        CAM.load(run/'cams'/'a.npz', 3)
    assert said in str(found.value) and '`wsss_nb cams' in str(found.value)


def test_a_header_that_claims_too_much_takes_no_memory(tmp_path):
    write_arrays(tmp_path/'a.npz', maps=np.zeros(2, np.uint8))
    with pytest.raises(InputError, match='2 numbers, and 3 are announced|not'):
        read_arrays(tmp_path/'a.npz', 'map', '', {'maps': Form(np.uint8, (3,))})


def test_a_map_whose_values_are_no_numbers_is_not_written(tmp_path):
    for value in (math.nan, math.inf, 1.5, -1.):
        cam = CAM(np.array([0]), np.full((1, 2, 3), value, np.float32), (8, 12))
        with pytest.raises(InputError, match='a map with values from .* lower learning rate'):
            cam.save(tmp_path/'a.npz')
    assert list(tmp_path.iterdir()) == []


def test_maps_of_another_photo_are_refused(tmp_path):
    photos = VOCFolder(make_shapes(tmp_path/'shapes', train=2, val=1, size=64), 'train')
    (tmp_path/'run'/'cams').mkdir(parents=True)
    (tmp_path/'run'/'config.json').touch()
    maps = StoredMaps(tmp_path/'run'/'cams', photos.ids, 8)
    cam = CAM(np.array([0]), np.ones((1, 16, 16), np.float32), (60, 64))
    cam.save(maps.path(0))
    make = PseudoMasks(NoRefiner(), Work(photos, tmp_path), maps, .5, tmp_path)
    with pytest.raises(InputError, match='another photo, of 64 x 60 pixels. Remove .*nb cams'):
        make(0)


def test_a_pseudo_mask_of_another_size_names_the_stage(run):
    with pytest.raises(InputError, match='its photo 5 x 4. Remove .* with `wsss_nb refine'):
        read_mask(run/'pseudo'/'a.png', 3, (5, 4))
    (run/'pseudo'/'a.png').write_bytes(b'')
    with pytest.raises(InputError, match='with `wsss_nb refine'):
        read_mask(run/'pseudo'/'a.png')


@pytest.mark.parametrize('change, said', [
    (lambda t: t * math.nan, 'no numbers .* in 1 tensors, the first of them 0.bias'),
    (lambda t: t.double() * 1e300, 'no numbers'),
    (lambda t: t.to(torch.int64), 'of another type: 0.bias torch.int64'),
    (lambda t: t[:2], 'of another shape')])
def test_weights_of_a_run_that_cannot_be_are_refused(change, said, run):
    path = run/'classifier'/'model.safetensors'
    state = load_file(path)
    state['0.bias'] = change(state['0.bias'] + 1)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    with pytest.raises(InputError, match=said) as found:
        load_model(network(), path.parent)
    assert f'then make it again with `wsss_nb classify {run}`' in str(found.value)


@pytest.mark.parametrize('tensor', [
    torch.eye(2).to_sparse(), torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device='meta')])
def test_tensors_of_another_kind_are_no_weights(tensor, tmp_path):
    torch.save({'weight': tensor}, tmp_path/'a.pth')
    with pytest.raises(InputError, match='holds no table of tensors|no whole file'):
        read_weights(tmp_path/'a.pth')


def change_optimiser(folder: Path, change) -> None:
    state = torch.load(folder/'optimizer.bin', weights_only=True)
    change(state)
    torch.save(state, folder/'optimizer.bin')


def faster(state: dict) -> None:
    state['param_groups'][0]['first_rate'] = 7.


def misshapen(state: dict) -> None:
    state['state'][0]['momentum_buffer'] = torch.zeros(9)


def no_numbers(state: dict) -> None:
    state['state'][0]['momentum_buffer'] *= math.nan


@pytest.mark.parametrize('change, said', [
    (faster, 'another learning rate'), (misshapen, 'another shape'), (no_numbers, 'no numbers')])
def test_a_checkpoint_with_another_optimiser_is_refused(change, said, tmp_path):
    begin_training(tmp_path/'a')
    assert training(tmp_path/'a').first == 1
    change_optimiser(tmp_path/'a'/'checkpoint-000001', change)
    with pytest.raises(InputError, match=f'{said}.*remove it to begin again'):
        training(tmp_path/'a')


def test_random_numbers_that_are_not_put_back_are_told(tmp_path):
    for name in ('gone', 'cut', 'flipped'):
        begin_training(tmp_path/name)
        path = tmp_path/name/'checkpoint-000001'/'random_states_0.pkl'
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        if name == 'gone':
            path.unlink()
        else:
            path.write_bytes(content[:1000] if name == 'cut' else content)
        with pytest.raises(InputError, match='this is no whole checkpoint|there is no such'):
            training(tmp_path/name)


@pytest.mark.parametrize('text, said', [
    ('', 'no whole log'),
    ('step,epoch,rate,total\n10,1,.1', 'row 2 has 3 cells'),
    ('step,epoch,rate\n', 'its columns are step, epoch, rate'),
    ('step,epoch,rate,total\n10,1,.1,2\n10,1,.1,2\n', 'step 10 comes after step 10'),
    ('step,epoch,rate,total\n10,1,.1,nan\n', "'nan' is no number"),
    ('step,epoch,rate,total\nx,1,.1,2\n', 'invalid literal'),
    ('step,epoch,rate,total,total\n10,1,.1,2,3\n', 'its columns are')])
def test_a_broken_log_is_refused(text, said, run):
    path = run/'classifier'/'log.csv'
    path.write_text(text)
    with pytest.raises(InputError, match=f'{said}.*Remove it: what is lost are the curves'):
        read_steps(path)
    with pytest.raises(InputError):
        Log(path, 20)


@pytest.mark.parametrize('before, after, said', [
    ('40.5', '400', 'CAM train is 400 percent'), ('40.5', 'x', 'could not convert'),
    ('seed', 'weed', 'its columns are'), (',2,', ',2.5,', 'invalid literal'),
    ('"--a, b"', '"--a', 'expected after')])
def test_a_broken_table_is_refused(before, after, said, run):
    path = run/'table_a.csv'
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    with pytest.raises(InputError, match=f'{said}.*the next command measures again'):
        read_rows(path, names=('system', 'seed'))


@pytest.mark.parametrize('content', [
    '[]', 'null', '{"terms": {}}', '{"terms": {}, "paces": {"a": {"epochs": NaN}}}', '[' * 99999])
def test_a_broken_plan_is_refused(content, tmp_path):
    (tmp_path/'plan.json').write_text(content)
    with pytest.raises(InputError, match='this is no whole plan .*Put it back from a copy'):
        read_plan(tmp_path/'plan.json')


def test_json_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path/'a.json').write_text('[' * 99999)
    with pytest.raises(InputError, match='the file cannot be read'):
        read_json(tmp_path/'a.json')


def test_torch_is_one_that_runs_no_code_on_loading():
    settings = configparser.ConfigParser()
    settings.read(Path(__file__).parents[1]/'settings.ini')
    asked = settings['DEFAULT']['requirements'].split()
    assert [part for part in asked if part.startswith('torch>')] == ['torch>=2.6']

"Comparisons: cut off and gone on with, budgets, rates, photos held out, and what is refused."
import json
import os
import shutil
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from wsss_nb import comparison as chapter
from wsss_nb.affinity import Affinity
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import MultiScale
from wsss_nb.cli import main
from wsss_nb.comparison import (MEASURED, TABLE_A, Comparison, measure_val, settled,
                                settings_of_run, table_a)
from wsss_nb.crf import refine_labels
from wsss_nb.datasets import Some, held_out, open_photos
from wsss_nb.files import LOCK, InputError, read_json
from wsss_nb.lock import lock
from wsss_nb.metrics import ConfusionMatrix
from wsss_nb.measuring import known
from wsss_nb.methods import System
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.pipeline import do_stage, link, measure_new_masks, refine_new, run
from wsss_nb.refiners import DenseCRF, NoRefiner, TrueMasks
from wsss_nb.run import HELD_OUT, Config, Run, RunSettings, read_config, start_run
from wsss_nb.segmentation import DeepLab, LearnsMasks
from wsss_nb.shapes import make_shapes
from wsss_nb.tables import read_rows
from wsss_nb.terms import Pace, Terms, agreed, at_rate, gain_by_rate, time_training, with_given
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords
from wsss_nb.whole_systems import table_c

SMALL = 'timm/mobilenetv3_small_050'
RANDOM = BackboneSettings(SMALL, 'none', 16, False, 0, 'frozen')
SHORT = TrainingSettings(epochs=1, batch_size=4, crop=32)
PLAIN = VisualWords(RANDOM, SHORT, pooling='gap', words=None)
BASELINE = System('these tests', PLAIN, MultiScale(scales=(1.,)), NoRefiner(), DeepLab(RANDOM))
WORDS = replace(BASELINE, classifier=VisualWords(RANDOM, SHORT, num_words=8))


@dataclass(frozen=True)
class Fragile(VisualWords):
    "A method of another package, whose loss runs away at a rate above 0.005."
    name = 'fragile'

    def loss(self, network, batch, at):
        terms = super().loss(network, batch, at)
        factor = float('nan') if self.training.optimiser.learning_rate > .005 else 1.
        return {name: factor * term for name, term in terms.items()}


@dataclass(frozen=True)
class Blind(VisualWords):
    "A method of another package, which learns nothing of where its tags are."
    name = 'blind'

    def begin_as(self, network, work):
        torch.nn.init.zeros_(network.classifier.weight)

    def loss(self, network, batch, at):
        return {name: 0. * term for name, term in super().loss(network, batch, at).items()}


@dataclass(frozen=True)
class Rounds(VisualWords):
    "A method of another package, which trains twice."
    name = 'rounds'

    def train(self, work):
        super().train(replace(work, folder=work.folder/'round-0'))
        return super().train(work)


@dataclass(frozen=True)
class Silent(VisualWords):
    "A method that trains in a way of its own."
    name = 'silent'

    def train(self, work):
        return self.network(len(work.photos.classes), first=True)


@pytest.fixture(scope='module')
def made(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=10, val=4, size=48)


@pytest.fixture
def shapes(made, tmp_path) -> Path:
    return shutil.copytree(made, tmp_path/'shapes')


def compared(shapes: Path, out: Path, systems: dict[str, System] | None = None,
             terms: Terms = Terms(), **settings) -> Comparison:
    systems = {'baseline': BASELINE, 'words': WORDS} if systems is None else systems
    return Comparison(RunSettings(shapes, out, workers=0, **settings), systems, terms,
                      {'none': NoRefiner, 'crf': DenseCRF})


def results(out: Path) -> list[dict]:
    "The rows of a table, without the time that they took."
    rows = read_rows(out/'table_a.csv')
    for row in rows:
        del row['minutes'], row['minutes of training']
    return rows


def test_a_comparison_that_is_cut_off_goes_on_and_says_the_same(
        shapes, tmp_path, monkeypatch, capsys):
    whole = compared(shapes, tmp_path/'whole')
    text = table_a(whole, seeds=(0, 1))
    assert text.count('words') >= 2 and '± ' in text and 'gain over baseline' in text
    cut = compared(shapes, tmp_path/'cut')
    with monkeypatch.context() as patch:
        def interrupted(this):
            if this.root.name == 'words-0':
                raise KeyboardInterrupt
            return measure_val(this)
        patch.setattr(chapter, 'TABLE_A', TABLE_A._replace(measure=interrupted))
        with pytest.raises(KeyboardInterrupt):
            table_a(cut, seeds=(0, 1))
    assert [row['run'] for row in results(tmp_path/'cut')] == ['baseline-0']
    network = tmp_path/'cut'/'words-0'/'classifier'/'model.safetensors'
    before = network.stat().st_mtime_ns
    table_a(cut, seeds=(0, 1))
    assert network.stat().st_mtime_ns == before
    assert results(tmp_path/'cut') == results(tmp_path/'whole')
    assert (tmp_path/'cut'/'table_a.png').stat().st_size > 1000
    assert (tmp_path/'cut'/'table_a_masks.png').stat().st_size > 1000
    # a run of which a part was thrown away since: its row stays, and the picture is of the other
    shutil.rmtree(tmp_path/'cut'/'words-0'/'pseudo')
    capsys.readouterr()
    assert 'words' in table_a(cut, seeds=(0, 1))
    assert 'words is not in the picture: ' in capsys.readouterr().out
    # a later command: another system, another seed; nothing is lost or measured again
    monkeypatch.setattr(chapter, 'TABLE_A', TABLE_A._replace(measure=None))
    table_a(cut, seeds=(0,))
    monkeypatch.undo()
    table_a(compared(shapes, tmp_path/'cut', {'rounds': replace(BASELINE, classifier=Rounds(
        RANDOM, SHORT, pooling='gap', words=None))}), seeds=(2,))
    found = [row['run'] for row in results(tmp_path/'cut')]
    assert found == ['baseline-0', 'words-0', 'baseline-1', 'words-1', 'rounds-2']


def test_other_terms_and_other_folders_are_refused(shapes, tmp_path):
    out = tmp_path/'out'
    agreed(Terms(epochs=1.), RunSettings(shapes, out))
    agreed(Terms(epochs=1.), RunSettings(shapes, out))
    with pytest.raises(InputError, match='other terms:\n  epochs: 1.0 there, 2.0 asked for'):
        agreed(Terms(epochs=2.), RunSettings(shapes, out))
    with pytest.raises(InputError, match='longest: 1024 there, 512 asked for'):
        agreed(Terms(epochs=1.), RunSettings(shapes, out, longest=512))
    with pytest.raises(InputError, match='there is something else here'):
        agreed(Terms(epochs=1.), RunSettings(shapes, shapes))


def test_terms_that_no_system_can_meet_are_refused_before_anything_is_made(shapes, tmp_path):
    def refused(match, seeds=(0,), **given):
        with pytest.raises(InputError, match=match):
            table_a(compared(shapes, tmp_path/'out', **given), seeds)
        assert not (tmp_path/'out').exists()
    refused('a table needs a seed', seeds=())
    refused('budget sets the epochs: give one', terms=Terms(epochs=1., budget=1.))
    refused('budget must be more than 0, not -1', terms=Terms(budget=-1.))
    refused('rates must be numbers above 0', terms=Terms(rates=(.1, 0.)))
    refused('rates_hold_out must be 2 or more', terms=Terms(rates_hold_out=1))
    refused("no refiner is called 'irm'; there are none, crf", terms=Terms(refiner='irm'))
    refused('crop must be more than 0, not 0', terms=Terms(crop=0))
    refused('training.optimiser.learning_rate must be', systems={'base': at_rate(BASELINE, -1.)})
    refused('backbone.name must be one of', terms=Terms(backbone='resnet17'))
    refused('hold_out is for the trials', terms=Terms(rates=(.1,)), hold_out=5)
    masks = System('all masks', None, None, TrueMasks(), DeepLab(RANDOM))
    refused(r"masks: this system has no stage 'cams', so table \(a\)", systems={'masks': masks})
    with pytest.raises(InputError, match="crf has no setting 'scales', so it cannot be shared"):
        with_given(DenseCRF(), scales=(1.,))
    for mask in (shapes/'SegmentationClass').iterdir():
        mask.unlink()
    refused('not every training photo has a mask')


def test_a_budget_is_shared_out_once(shapes, tmp_path, monkeypatch):
    # a clock on which everything takes a second: 2 steps an epoch, and one second besides
    ticking = SimpleNamespace(perf_counter=count().__next__)
    monkeypatch.setattr('wsss_nb.terms.time', ticking)
    rounds = replace(BASELINE, classifier=Rounds(RANDOM, SHORT, pooling='gap', words=None))
    systems = {'baseline': BASELINE, 'rounds': rounds}
    terms = Terms(budget=.2)
    first, _ = settled(compared(shapes, tmp_path/'out', systems, terms), (0,))
    paces = read_json(tmp_path/'out'/'plan.json')['paces']
    assert paces == {
        'baseline': {'epochs': 5.5, 'seconds an epoch': 2., 'seconds besides': 1.},
        'rounds': {'epochs': 2.75, 'seconds an epoch': 4., 'seconds besides': 1.}}
    for name, system in first.items():
        assert system.classifier.training.epochs == paces[name]['epochs']
    assert [path.name for path in (tmp_path/'out').iterdir()] == ['plan.json']
    plan = read_json(tmp_path/'out'/'plan.json')     # as a slower machine had left it
    plan['paces']['baseline']['epochs'] = 1.
    plan['paces']['rounds']['epochs'] = .5
    (tmp_path/'out'/'plan.json').write_text(json.dumps(plan))
    text = table_a(compared(shapes, tmp_path/'out', systems, terms), (0,))
    assert [row['epochs'] for row in read_rows(tmp_path/'out'/'table_a.csv')] == [1., .5]
    assert 'gain over baseline' in text
    logs = sorted(path.parent.name for path in (tmp_path/'out'/'rounds-0').rglob('log.csv'))
    assert logs == ['classifier', 'round-0']


def test_a_budget_that_is_too_small_and_steps_that_nobody_tells_of(shapes, tmp_path):
    with pytest.raises(InputError, match='baseline: a budget of 1e-05 minutes is too small'):
        settled(compared(shapes, tmp_path/'out', terms=Terms(budget=1e-5)), (0,))
    silent = replace(BASELINE, classifier=Silent(RANDOM, SHORT))
    with pytest.raises(InputError, match='silent: this method tells of no steps'):
        time_training(Config(shapes, tmp_path/'timed', silent, workers=0))
    assert Pace(2., 30.).epochs(1.) == 15 and Pace(2., 90.).epochs(1.) < 0


def test_rates_are_chosen_on_photos_held_out_and_val_is_not_opened(shapes, tmp_path):
    for name in (shapes/'ImageSets'/'Segmentation'/'val.txt').read_text().split():
        (shapes/'JPEGImages'/f'{name}.jpg').unlink()
        (shapes/'SegmentationClass'/f'{name}.png').unlink()
    fragile = replace(BASELINE, classifier=Fragile(RANDOM, SHORT, pooling='gap', words=None))
    terms = Terms(rates=(.01, .003, .001), rates_hold_out=3, rates_seed=7)
    told = compared(shapes, tmp_path/'out', {'baseline': BASELINE, 'fragile': fragile}, terms)
    systems, trials = settled(told, (0,))
    rows = read_rows(tmp_path/'out'/'rates.csv')
    assert [row['rate'] for row in rows] == [.01, .003, .001] * 2
    assert {row['seed'] for row in rows} == {7}
    assert [row['CAM held out'] is None for row in rows] == [False] * 3 + [True] + [False] * 2
    assert trials == rows
    for name, system in systems.items():
        own = [row for row in rows if row['system'] == name and row['CAM held out'] is not None]
        best = max(own, key=lambda row: row['CAM held out'])
        assert system.classifier.training.optimiser.learning_rate == best['rate']
    lines = gain_by_rate(rows, 'baseline')
    assert [line['learning rate'] for line in lines] == ['0.001', '0.003', '0.01', 'own best']
    assert lines[2]['fragile'] == lines[2]['fragile, gain'] == '-'
    assert (tmp_path/'out'/'rates'/'baseline-0.003'/'classifier'/'model.safetensors').exists()
    before = (tmp_path/'out'/'rates.csv').stat().st_mtime_ns
    assert settled(told, (0,))[0] == systems                 # nothing is tried again
    assert (tmp_path/'out'/'rates.csv').stat().st_mtime_ns == before
    with pytest.raises(InputError, match='fragile learns nothing at any of these rates'):
        settled(compared(shapes, tmp_path/'all', {'fragile': fragile}, Terms(rates=(.01,))), (0,))


def test_a_system_that_learns_nothing_gets_no_row_and_the_others_do(shapes, tmp_path, capsys):
    blind = replace(BASELINE, classifier=Blind(RANDOM, SHORT, pooling='gap', words=None))
    systems = {'baseline': BASELINE, 'blind': blind, 'words': WORDS}
    table_a(compared(shapes, tmp_path/'out', systems), (0,))
    assert [row['system'] for row in results(tmp_path/'out')] == ['baseline', 'words']
    assert 'blind, seed 0, gets no row: ' in capsys.readouterr().out
    with pytest.raises(InputError, match='none of these systems has learned anything'):
        table_a(compared(shapes, tmp_path/'alone', {'blind': blind}), (0,))
    told = compared(shapes, tmp_path/'tried', {'blind': blind}, Terms(rates=(.01,)))
    with pytest.raises(InputError, match='blind learns nothing at any of these rates'):
        settled(told, (0,))
    assert [row['CAM held out'] for row in read_rows(tmp_path/'tried'/'rates.csv')] == [None]


@pytest.mark.parametrize('every', [2, 3, 10])
def test_photos_held_out_are_not_learned_from(shapes, tmp_path, every):
    config = Config(shapes, tmp_path/'run', BASELINE, workers=0, hold_out=every)
    this = Run(config)
    whole = open_photos(shapes, 'train')
    others = this.splits[HELD_OUT]
    assert set(this.photos.ids) & set(others.ids) == set()
    assert sorted([*this.photos.ids, *others.ids]) == sorted(whole.ids)
    assert others.ids == whole.ids[every - 1::every]
    if every != 3:
        return
    run(config, until='cams')
    assert {path.stem for path in (tmp_path/'run'/'cams').iterdir()} == set(this.photos.ids)
    written = read_json(tmp_path/'run'/'config.json')
    assert written['hold_out'] == 3 and written['photos'] == {'train': 7, 'held-out': 3}
    methods = {m.role: {m.name: type(m)} for m in config.system.parts().values()}
    again = Run(read_config(tmp_path/'run', methods))
    assert again.config.hold_out == 3 and again.splits[HELD_OUT].ids == others.ids
    with pytest.raises(InputError, match='hold_out: 3 there, None asked for'):
        run(replace(config, hold_out=None), until='cams')
    del written['hold_out']     # of a run from before there was this setting
    (tmp_path/'run'/'config.json').write_text(json.dumps(written))
    assert read_config(tmp_path/'run', methods).hold_out is None


def test_what_cannot_be_held_out(shapes, tmp_path):
    with pytest.raises(InputError, match='hold_out must be 2 or more, not 1'):
        Config(shapes, tmp_path/'run', BASELINE, hold_out=1)
    with pytest.raises(InputError, match='hold_out stands in place of val: give it, or val'):
        Config(shapes, tmp_path/'run', BASELINE, hold_out=5, val='val')
    with pytest.raises(InputError, match="the list 'train' has but 10 photos. Give a --hold-out"):
        run(Config(shapes, tmp_path/'run', BASELINE, hold_out=11))
    assert not (tmp_path/'run').exists()


def test_some_photos_have_a_truth_if_each_of_them_has(shapes):
    whole = open_photos(shapes, 'train')
    (shapes/'SegmentationClass'/f'{whole.ids[1]}.png').unlink()
    whole = open_photos(shapes, 'train')
    learned, others = [Some(whole, places) for places in held_out(len(whole), 2)]
    assert (whole.has_truth, learned.has_truth, others.has_truth) == (False, True, False)


def files(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob('*')}


@pytest.mark.parametrize('use_truth', [False, True])
def test_label_maps_of_val_are_refined_by_the_crf(shapes, tmp_path, use_truth):
    system = replace(BASELINE, refiner=DenseCRF(use_truth))
    config = Config(shapes, tmp_path/'run', system, workers=0)
    run(config, until='refine')
    this = Run(config)
    photos = this.splits['val']
    matrix = ConfusionMatrix(len(this.classes) + 1)
    maker = this.cam_maker(photos)
    for i in range(len(photos)):
        cam = maker(i)
        cam = type(cam)(cam.classes, (cam.maps * 255).round() / 255, cam.size)   # as stored
        labels = refine_labels(photos.image(i), cam.to_labels(this.background))
        truth = photos.truth(i)
        matrix.update(known(labels, truth), truth)
    before = files(tmp_path)
    found = measure_new_masks(this, photos)
    assert found['pseudo']['miou'] == pytest.approx(matrix.miou(), abs=1e-3)
    assert found['pseudo']['background'] == this.background == found['cam']['background']
    assert files(tmp_path) == before


def test_label_maps_of_val_are_refined_by_a_walk_as_it_stands(shapes, tmp_path):
    walking = Affinity(RANDOM, replace(SHORT, crop=96), betas=(8.,))
    config = Config(shapes, tmp_path/'run', replace(BASELINE, refiner=walking), workers=0)
    metrics = run(config, until='refine')
    this = Run(config)
    before = files(tmp_path)
    found = measure_new_masks(this, this.splits['val'])
    assert found['pseudo']['background'] == metrics['walked']['train']['background']
    # asked for its own photos as others, it makes the same masks to the last bit
    shutil.copytree(this.root/'cams', tmp_path/'scratch'/'cams')
    masks = refine_new(this, this.photos, tmp_path/'scratch')
    for name in this.photos.ids:
        own = (this.root/'pseudo'/f'{name}.png').read_bytes()
        assert (masks/f'{name}.png').read_bytes() == own
    shutil.rmtree(tmp_path/'scratch')
    assert {p: t for p, t in files(tmp_path).items() if p != tmp_path} == {
        p: t for p, t in before.items() if p != tmp_path}


def test_the_command_and_its_rows_that_say_how_to_have_them_again(shapes, tmp_path, capsys):
    out = tmp_path/'table'
    asked = ['--epochs', '1', '--batch-size', '4', '--crop', '32', '--backbone', SMALL,
             '--weights', 'none', '--dilate', 'False', '--scales', '1', '--refiner', 'none',
             '--rates', '0.003', '0.02', '--workers', '0']
    main(['table', 'a', '--data', str(shapes), '--out', str(out), '--systems', 'words', 'irn',
          '--seeds', '3', *asked])
    said = capsys.readouterr().out
    assert '2 of 2: irn, seed 3' in said and 'gain over words' in said
    assert 'published, CAM train' in said and '52.9' in said and '48.3' in said
    assert (out/'table_a.md').read_text() in said + '\n'
    rows = read_rows(out/'table_a.csv')
    for row in rows:
        assert all(row[column] is not None for column in MEASURED)
        assert row['parameters'] >= row['learning'] > 1e5
        assert row['rates'].count(': ') == 2 and row['rate'] in (.003, .02)
        before = files(out/row['run']/'cams')
        main(['run', '--data', str(shapes), '--out', str(out/row['run']), '--workers', '0',
              '--system', row['system'], '--seed', '3', '--until', 'refine',
              *row['settings'].split()])      # refused, if its settings were others
        assert files(out/row['run']/'cams') == before
    assert {row['settings'].split()[-1] for row in rows} == {'refiner:none'}


def test_whole_systems_share_what_they_have_in_common_and_go_on_with_table_a(shapes, tmp_path):
    crf = replace(BASELINE, refiner=DenseCRF())
    masks = System('all masks', None, None, TrueMasks(), DeepLab(RANDOM))
    told = compared(shapes, tmp_path/'out', {'baseline': BASELINE, 'crf': crf, 'masks': masks},
                    Terms(epochs=1., rates=(.01,), segmenter_epochs=1., segmenter_crop=32))
    table_a(replace(told, systems={'baseline': BASELINE}), seeds=(0,))
    network = tmp_path/'out'/'baseline-0'/'classifier'/'model.safetensors'
    before = network.stat().st_mtime_ns
    text = table_c(told, seeds=(0,))
    assert network.stat().st_mtime_ns == before
    assert network.samefile(tmp_path/'out'/'crf-0'/'classifier'/'model.safetensors')
    rows = {row['system']: row for row in read_rows(tmp_path/'out'/'table_c.csv')}
    assert list(rows) == ['baseline', 'crf', 'masks']
    for name, row in rows.items():
        metrics = read_json(tmp_path/'out'/f'{name}-0'/'metrics.json')
        assert row['segmentation val'] == 100 * metrics['without CRF']['val']['miou']
        assert row['segmentation + CRF val'] == 100 * metrics['with CRF']['val']['miou']
    assert rows['baseline']['CAM train'] == rows['crf']['CAM train']
    assert rows['masks']['CAM train'] is None and rows['masks']['refined train'] == 100
    assert [row['rate'] for row in read_rows(tmp_path/'out'/'rates.csv')] == [.01, .01]
    assert 'segmentation + CRF val' in text and 'WideResNet38' in text
    written = {name: (tmp_path/'out'/name).stat().st_mtime_ns for name in ('crf-0', 'masks-0')}
    assert table_c(told, seeds=(0,)) == text          # nothing is done again
    assert written == {name: (tmp_path/'out'/name).stat().st_mtime_ns for name in written}


def test_a_system_alike_that_was_cut_off_while_taking_over_goes_on(shapes, tmp_path, monkeypatch):
    crf = replace(BASELINE, refiner=DenseCRF())
    told = compared(shapes, tmp_path/'out', {'baseline': BASELINE, 'crf': crf})
    with monkeypatch.context() as patch:
        linked = []
        def interrupted(source, to):
            linked.append(to)
            if len(linked) > 3:
                raise KeyboardInterrupt
            return link(source, to)
        patch.setattr('wsss_nb.pipeline.link', interrupted)
        with pytest.raises(KeyboardInterrupt):
            table_a(told, seeds=(0,))
    table_a(told, seeds=(0,))
    network = tmp_path/'out'/'baseline-0'/'classifier'/'model.safetensors'
    assert network.samefile(tmp_path/'out'/'crf-0'/'classifier'/'model.safetensors')
    rows = results(tmp_path/'out')
    assert rows[0]['CAM val'] == rows[1]['CAM val']


def test_table_c_needs_photos_to_measure_on(shapes, tmp_path):
    (shapes/'ImageSets'/'Segmentation'/'val.txt').unlink()
    with pytest.raises(InputError, match='there is no list val with a mask for each'):
        table_c(compared(shapes, tmp_path/'out'), seeds=(0,))
    assert not (tmp_path/'out').exists()


def test_settings_are_said_as_the_command_line_takes_them(shapes, tmp_path):
    config = Config(shapes, tmp_path, replace(BASELINE, refiner=DenseCRF(use_truth=True)),
                    train='train', longest=300, precision='bf16', seed=4)
    assert settings_of_run(config, BASELINE) == (
        '--train train --longest 300 --precision bf16 refiner:crf --refiner.use-truth True')


def test_rows_of_other_masks_than_there_are_now_do_not_stand_in_one_table(shapes, tmp_path):
    told = compared(shapes, tmp_path/'out', {'baseline': BASELINE})
    table_a(told, seeds=(0,))
    before = results(tmp_path/'out')[0]['CAM train']
    for path in (shapes/'SegmentationClass').glob('*.png'):
        mask = read_mask(path)
        mask[:24] = 0
        write_mask(path, mask)
    with pytest.raises(InputError, match='another mask'):
        table_a(told, seeds=(0, 1))
    with pytest.raises(InputError, match='another mask'):   # the row that isn't asked for stays
        table_a(told, seeds=(1,))
    config = told.config(BASELINE, 'baseline-0', seed=0)
    do_stage(start_run(config, accept_changes=True), 'classify')
    table_a(told, seeds=(0,))
    assert results(tmp_path/'out')[0]['CAM train'] != before     # measured anew


@pytest.mark.parametrize('name', 'abc')
def test_two_tables_in_one_folder_are_refused(shapes, tmp_path, capsys, name):
    out = tmp_path/'out'
    out.mkdir()
    file = lock(out/LOCK)
    with pytest.raises(SystemExit):
        main(['table', name, '--data', str(shapes), '--out', str(out)])
    os.close(file)
    assert 'another run is at work in this folder' in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == [LOCK]


def test_a_row_that_another_version_decided_otherwise_is_not_kept(shapes, tmp_path, monkeypatch):
    baseline = replace(BASELINE, segmenter=DeepLab(RANDOM))
    told = compared(shapes, tmp_path/'out', {'baseline': baseline})
    with monkeypatch.context() as patch:
        patch.setattr(LearnsMasks, 'own_crop', lambda self, lead: 96)
        table_a(told, (0,))
    with pytest.raises(InputError, match='training.crop: 96 there, 64 asked for'):
        table_a(told, (0, 1))


def test_what_is_lacking_is_told_before_anything_is_made(shapes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pydensecrf', None)
    crf = {'baseline': BASELINE, 'crf': replace(BASELINE, refiner=DenseCRF())}
    for table, systems in ((table_c, {'baseline': BASELINE}), (table_a, crf)):
        with pytest.raises(InputError, match='needs the CRF'):
            table(compared(shapes, tmp_path/'out', systems), (0,))
    with pytest.raises(InputError, match='there is no such file'):
        table_a(compared(shapes, tmp_path/'out', terms=Terms(weights='typo.pth')), (0,))
    assert not (tmp_path/'out').exists()

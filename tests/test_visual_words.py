"The diary of words: cut off and gone on with, memory banks, and that it changes nothing."
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from wsss_nb import visual_words as chapter
from wsss_nb.backbones import BackboneSettings
from wsss_nb.datasets import open_photos
from wsss_nb.files import InputError
from wsss_nb.readers import rows_of
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings
from wsss_nb.visual_words import VisualWords
from wsss_nb.work import Lead, Work

RANDOM = BackboneSettings('timm/mobilenetv3_small_050', 'none', 16, False, 0, 'frozen')
METHOD = VisualWords(RANDOM, TrainingSettings(epochs=3, batch_size=4, crop=32), num_words=8)


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')/'shapes'
    return open_photos(make_shapes(folder, train=8, val=2, size=48), 'train')


@pytest.fixture(autouse=True)
def every_second_step(monkeypatch):
    monkeypatch.setattr(chapter, 'DIARY_STEPS', 2)


def trained(photos, folder: Path, method: VisualWords = METHOD, **machine) -> torch.nn.Module:
    work = Work(photos, folder, Machine(workers=0, **machine))
    return method.following(Lead(side=64, crop=32)).train(work)


def test_a_diary_has_a_line_every_so_many_steps_and_one_for_the_last(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(chapter, 'DIARY_STEPS', 4)
    network = trained(photos, tmp_path/'words')
    rows = rows_of(tmp_path/'words'/'words.csv', ('step', 'used', 'perplexity', 'strongest'))
    assert [row['step'] for row in rows] == ['4', '6']
    for row in rows:
        assert 1 <= float(row['perplexity']) <= int(row['used']) <= 8
        assert 1 / 8 <= float(row['strongest']) <= 1
        assert 0 < float(row['degrees']) < 90
    length = network.codebook.norm(dim=1).mean().item()
    assert float(rows[-1]['length']) == pytest.approx(length, rel=1e-3)


def test_a_training_that_was_cut_off_has_the_diary_of_one_that_was_not(photos, tmp_path):
    trained(photos, tmp_path/'whole')

    def press(at):
        if at.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(photos, tmp_path/'cut', step_done=press)
    trained(photos, tmp_path/'cut')
    diaries = [(tmp_path/name/'words.csv').read_text() for name in ('whole', 'cut')]
    assert diaries[0] == diaries[1]


def test_lines_of_steps_that_were_lost_are_dropped(photos, tmp_path):
    (tmp_path/'words').mkdir()
    (tmp_path/'words'/'words.csv').write_text('step,used\n1,3\n4,5\n')
    trained(photos, tmp_path/'words')
    rows = rows_of(tmp_path/'words'/'words.csv', ('step',))
    assert [row['step'] for row in rows] == ['1', '2', '4', '6']
    assert rows[2]['perplexity']   # written anew


def test_a_damaged_diary_is_named_and_the_training_goes_on_without_it(photos, tmp_path):
    (tmp_path/'words').mkdir()
    (tmp_path/'words'/'words.csv').write_text('step,used\nfirst,3\n')
    with pytest.raises(InputError, match='words.csv: .*begins a new one'):
        trained(photos, tmp_path/'words')
    (tmp_path/'words'/'words.csv').unlink()
    trained(photos, tmp_path/'words')
    assert len(rows_of(tmp_path/'words'/'words.csv', ('step',))) == 3


def test_a_memory_bank_has_no_first_words_and_the_baseline_no_diary(photos, tmp_path):
    trained(photos, tmp_path/'memory', replace(METHOD, words='memory'))
    assert 'degrees' not in rows_of(tmp_path/'memory'/'words.csv', ('length',))[-1]
    trained(photos, tmp_path/'baseline', replace(METHOD, words=None))
    assert not (tmp_path/'baseline'/'words.csv').exists()


@pytest.mark.parametrize('norm', ['frozen', 'learned'])
def test_a_diary_changes_nothing_that_is_learned(norm, photos, tmp_path, monkeypatch):
    method = replace(METHOD, backbone=replace(RANDOM, batch_norm=norm))
    often = trained(photos, tmp_path/'often', method)
    monkeypatch.setattr(VisualWords, 'told', lambda self, network, work: work.machine.step_done)
    never = trained(photos, tmp_path/'never', method)
    assert not (tmp_path/'never'/'words.csv').exists()
    for name, value in often.state_dict().items():
        assert torch.equal(value, never.state_dict()[name]), name

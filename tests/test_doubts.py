"Numbers that are wrong although nothing failed: each is said at once, and stands in the report."
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from untrained import untrained_run

from wsss_nb.backbones import Backbone
from wsss_nb.cam import CAM, StoredMaps
from wsss_nb.classifier import WordClassifier
from wsss_nb.doubts import Useless, doubt_maps, doubt_predictions, doubt_pseudo_masks
from wsss_nb.files import InputError
from wsss_nb.loaders import Batch
from wsss_nb.photos import write_mask
from wsss_nb.pipeline import do_stage
from wsss_nb.readers import Diverged
from wsss_nb.report import noticed
from wsss_nb.run import Run
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings, latest_checkpoint, save_model, train
from wsss_nb.visual_words import VisualWords
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Work

ALONE = Machine(workers=0)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=4, val=2, size=64)


def maps_with(folder: Path, empty: int, count: int = 20) -> StoredMaps:
    "Maps, some of them zero."
    for i in range(count):
        values = np.full((1, 2, 3), .0 if i < empty else .5, np.float32)
        CAM(np.array([2]), values, (8, 12)).save(folder/f'{i}.npz')
    return StoredMaps(folder, [str(i) for i in range(count)])


@pytest.mark.parametrize('empty', [0, 2, 3, 19, 20])
def test_maps_that_are_zero_are_counted(empty, tmp_path):
    maps = maps_with(tmp_path, empty)
    if empty == 20:
        with pytest.raises(Useless, match='every map is zero everywhere.*train it longer'):
            doubt_maps(maps)
    elif empty < 3:
        assert doubt_maps(maps) == []
    else:
        said, = doubt_maps(maps)
        assert said.startswith(f'of 20 photos that were looked at, {empty} have maps that are zero')


def masks_with(folder: Path, *contents: list[int]) -> list[str]:
    "Masks of two pixels; their ids."
    for i, content in enumerate(contents):
        write_mask(folder/f'{i}.png', np.array([content], np.uint8))
    return [str(i) for i in range(len(contents))]


@pytest.mark.parametrize('contents, said', [
    ([[0, 1], [0, 0]], None), ([[0, 0]], '1 have no pixel of any class: a segmenter learns'),
    ([[0, 1], [0, 0], [0, 255]], '2 have no pixel of any class: .* Try a lower background'),
    ([[1, 2], [1, 1], [0, 1]], '2 have no pixel of background. Try more background')])
def test_pseudo_masks_that_teach_little_are_told(contents, said, tmp_path):
    found = doubt_pseudo_masks(tmp_path, masks_with(tmp_path, *contents))
    assert found == [] if said is None else re.search(said, found[0])


def test_pseudo_masks_of_which_no_pixel_is_known_are_refused(tmp_path):
    ids = masks_with(tmp_path, [255, 255], [255, 255])
    with pytest.raises(Useless, match='there is nothing to learn from. Try another background'):
        doubt_pseudo_masks(tmp_path, ids)


@pytest.mark.parametrize('content, name', [([0, 0], 'background'), ([2, 2], 'dog')])
def test_a_segmenter_that_predicts_one_label_is_told(content, name, tmp_path):
    ids = masks_with(tmp_path, content, content, [0, 2])
    found = doubt_predictions(tmp_path, ids[:2], ['cat', 'dog'])
    assert len(found) == 1 and f'hold nothing but {name}' in found[0]
    assert doubt_predictions(tmp_path, ids, ['cat', 'dog']) == []


def word_network() -> WordClassifier:
    "A classifier whose features are positive."
    torch.manual_seed(0)
    stages = [torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU())]
    return WordClassifier(Backbone(stages, [8], [2], (.5,) * 3, (.5,) * 3), 3, num_words=4).eval()


def test_a_codebook_that_collapsed_is_told(data, tmp_path):
    work = Work(VOCFolder(data, 'train'), tmp_path, ALONE)
    network = word_network()
    method = VisualWords(num_words=4)
    network.codebook.data = torch.eye(4, 8)
    assert method.doubts(work, network) == []
    network.codebook.data[0] = 1.
    network.codebook.data[1:] = -1.
    said, = method.doubts(work, network)
    assert 'all places of 4 photos are given to one visual word of 4' in said
    assert '--classifier.words memory' in said
    assert VisualWords(words=None).doubts(work, network) == []


def noticed_in(run: Run, stage: str) -> list[str]:
    return json.loads((run.root/'metrics.json').read_text())['noticed'][stage]['said']


def test_a_stage_whose_maps_are_zero_stops_the_run_and_the_report_says_so(data, tmp_path, capsys):
    run = untrained_run(tmp_path/'run', data)
    network = run.network('classifier')
    torch.nn.init.constant_(network.classifier.weight, -1.)    # no map is above 0
    save_model(network, run.root/'classifier')
    with pytest.raises(Useless, match='every map is zero everywhere'):
        do_stage(Run(run.config), 'cams')
    assert 'every map is zero everywhere' in capsys.readouterr().err
    assert 'zero everywhere' in noticed_in(run, 'cams')[0]
    assert '<h2>Noticed</h2><ul><li>cams: ' in noticed(Run(run.config))
    with pytest.raises(Useless):    # the same command again says the same again
        do_stage(Run(run.config), 'cams')
    for path in (run.root/'cams').glob('*.npz'):
        path.unlink()
    torch.nn.init.constant_(network.classifier.weight, 1.)
    save_model(network, run.root/'classifier')
    again = Run(run.config)
    do_stage(again, 'cams')
    assert noticed_in(again, 'cams') == [] and noticed(again) == ''


def test_predictions_of_one_label_are_said_and_the_run_goes_on(data, tmp_path, capsys):
    run = untrained_run(tmp_path/'run', data)
    network = run.network('segmenter')
    for branch in network.aspp.branches:
        torch.nn.init.zeros_(branch.weight)
    for i, name in enumerate(run.photos.ids):   # which best masks are made with
        write_mask(run.root/'pseudo'/f'{name}.png', np.zeros_like(run.photos.truth(i)))
    do_stage(run, 'predict')
    assert 'hold nothing but background' in capsys.readouterr().err
    assert len(noticed_in(run, 'predict')) == 2     # of train and of val


class Ones(torch.utils.data.Dataset):
    "Questions for a network of one number."
    def __len__(self):
        return 8

    def __getitem__(self, place):
        return Batch(torch.ones(1), {'y': torch.ones(1)})


def train_with(loss, folder: Path) -> None:
    settings = TrainingSettings(epochs=8, batch_size=4)
    train(torch.nn.Linear(1, 1), Ones(), loss, folder, settings, ALONE, checkpoint_steps=3,
          log_steps=1)


def test_a_loss_that_runs_away_is_stopped(tmp_path):
    def runs_away(model, batch, at):
        return {'total': 0 * model(batch.images).sum() + (4000. if at.step > 5 else .7)}

    for _ in range(2):    # and the same command again stops as well
        with pytest.raises(Diverged, match='step 8 of 16 has run away: it is 4e.03, and was 0.7'):
            train_with(runs_away, tmp_path/'a')
    assert latest_checkpoint(tmp_path/'a')[0] == 6


def test_a_loss_that_has_a_single_peak_goes_on(tmp_path):
    def peaks(model, batch, at):
        return {'total': 0 * model(batch.images).sum() + (4000. if at.step == 5 else .7)}

    train_with(peaks, tmp_path/'a')


@pytest.mark.parametrize('step', [4, 15])
def test_weights_that_become_no_numbers_are_never_written(step, tmp_path):
    def breaks(model, batch, at):
        total = 0 * model(batch.images).sum() + 1
        if at.step == step:
            model.weight.data.fill_(float('nan'))
        return {'total': total.nan_to_num() if at.step >= step else total}

    with pytest.raises(Diverged, match='weights have become no numbers, in .*weight.*a tenth'):
        train_with(breaks, tmp_path/'a')
    assert latest_checkpoint(tmp_path/'a')[0] == step // 3 * 3
    assert not (tmp_path/'a'/'model.safetensors').exists()


def test_a_segmenter_with_a_value_that_is_no_number_predicts_nothing(data, tmp_path):
    run = untrained_run(tmp_path/'run', data)
    path = run.root/'segmenter'/'model.safetensors'
    network = run.system.segmenter.network(len(run.classes))
    network.aspp.branches[0].weight.data[0] = float('nan')
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    with pytest.raises(InputError, match='weights that are no numbers .*with `wsss_nb segment'):
        do_stage(Run(run.config), 'predict')
    assert list((run.root/'predictions').iterdir()) == []

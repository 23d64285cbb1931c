"Measuring: what must be there, and figures against a second way to count."
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import with_masks

from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM, MultiScale
from wsss_nb.visual_words import VisualWords
from wsss_nb.files import InputError
from wsss_nb.measuring import (cams_and_truths, evaluate_elsewhere, full_size, measure_cams,
                               measure_masks, measure_new_cams, measure_storage, require_files,
                               score_photos, score_tags, sweep_run, thresholds_with, truth_of)
from wsss_nb.methods import System
from wsss_nb.metrics import BackgroundSweep, ConfusionMatrix
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.prediction import PredictionSettings, predict_labels
from wsss_nb.refiners import DenseCRF, TrueMasks
from wsss_nb.run import Config, Run, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.sheets import draw_contact, draw_examples
from wsss_nb.training import save_model
from wsss_nb.voc import VOCFolder
from wsss_nb.work import quick

RANDOM = BackboneSettings('resnet18', 'none', 16, True, 0, 'frozen')
SYSTEM = System('these tests', VisualWords(RANDOM, num_words=8), MultiScale(scales=(1., .5)),
                DenseCRF(), DeepLab(RANDOM), PredictionSettings(scales=(1.,)))


@pytest.fixture
def run(tmp_path) -> Run:
    "A run whose maps and masks are the truth, and whose networks are random."
    make_shapes(tmp_path/'shapes', train=4, val=2, size=48)
    made = start_run(Config(tmp_path/'shapes', tmp_path/'run', SYSTEM, workers=0))
    for i, name in enumerate(made.photos.ids):
        truth = made.photos.truth(i)
        classes = made.photos.tags(i).nonzero().flatten().numpy()
        maps = np.stack([truth == c + 1 for c in classes]).astype(np.float32)
        CAM(classes, maps, truth.shape).save(made.root/'cams'/f'{name}.npz')
        write_mask(made.root/'pseudo'/f'{name}.png', np.where(truth == 255, 0, truth))
    classes = len(made.classes)
    save_model(made.system.classifier.network(classes), made.root/'classifier')
    save_model(made.system.segmenter.network(classes), made.root/'segmenter')
    return made


def without_truths(run: Run) -> Run:
    "The same run after somebody has taken the masks away."
    for mask in (Path(run.config.data)/'SegmentationClass').iterdir():
        mask.unlink()
    return Run(run.config)


def test_maps_and_masks_that_are_the_truth_are_right(run):
    assert measure_cams(run.photos, run.cams.__getitem__, .5)['miou'] == 1
    assert measure_masks(run.photos, run.root/'pseudo')['miou'] == 1
    assert all(score[2:] == (1, 1) for score in score_tags(run))
    assert [miou for miou, _ in score_photos(run, 'train', 'pseudo')] == [1] * 4


def test_a_background_between_two_steps_is_measured_at_just_that_score(run):
    def faint(i: int) -> CAM:
        cam = run.cams[i]
        return CAM(cam.classes, cam.maps * np.float32(.505), cam.size)
    assert measure_cams(run.photos, faint, .5049)['miou'] == 1
    above = measure_cams(run.photos, faint, .5051)
    assert above['miou'] < .5 and above['best_miou'] == 1


@pytest.mark.parametrize('measure', [sweep_run, score_tags, measure_storage,
                                     lambda run: next(cams_and_truths(run, 'tests')),
                                     lambda run: score_photos(run, 'train', 'pseudo')])
def test_without_truths_nothing_is_measured(run, measure):
    with pytest.raises(InputError, match='not every photo has a mask'):
        measure(without_truths(run))


@pytest.mark.parametrize('measure', [sweep_run, score_tags, measure_storage])
def test_a_map_that_is_not_there_is_named_with_the_command_that_makes_it(run, measure):
    lost = run.root/'cams'/f'{run.photos.ids[2]}.npz'
    lost.unlink()
    with pytest.raises(InputError, match='this is not there yet.*wsss_nb cams') as refused:
        measure(run)
    assert str(lost) in str(refused.value)


def test_a_mask_that_is_not_there_is_named_with_the_command_that_makes_it(run):
    with pytest.raises(InputError, match='predictions.*not there yet.*wsss_nb predict'):
        score_photos(run, 'val')
    (run.root/'pseudo'/f'{run.photos.ids[0]}.png').unlink()
    with pytest.raises(InputError, match='the file is missing'):
        measure_masks(run.photos, run.root/'pseudo')


def test_a_photo_that_was_exchanged_is_named(run):
    path = run.photos.path(1)
    mask = Path(run.config.data)/'SegmentationClass'/f'{run.photos.ids[1]}.png'
    Image.new('RGB', (30, 20)).save(path)
    write_mask(mask, np.zeros((20, 30), np.uint8))
    again = Run(run.config)
    for measure in (sweep_run, lambda run: measure_masks(run.photos, run.root/'pseudo')):
        with pytest.raises(InputError, match='the photo is 30 x 20 pixels, and was') as refused:
            measure(again)
        assert str(path) in str(refused.value)


def test_a_photo_without_a_truth_is_refused(run):
    again = without_truths(run)
    with pytest.raises(InputError, match='this photo has no mask'):
        truth_of(again.photos, 0, (48, 48))


def test_a_run_without_maps_says_so(run, tmp_path):
    supervised = replace(SYSTEM, classifier=None, cams=None, refiner=TrueMasks())
    other = start_run(replace(run.config, out=tmp_path/'other', system=supervised))
    for measure in (sweep_run, score_tags, measure_storage):
        with pytest.raises(InputError, match="this run has no stage 'cams', which makes cams"):
            measure(other)
    require_files(other, 'pseudo', [])
    segmenter = other.system.segmenter.network(len(other.classes))
    save_model(segmenter, other.root/'segmenter')
    assert evaluate_elsewhere(other, run.splits['val'], 'val').keys() == {'segmentation'}


def test_elsewhere_the_same_masks_and_maps_are_counted_as_one_by_one(run):
    photos = run.splits['val']
    run.record(cam={'train': {'background': .3}})
    before = (run.root/'metrics.json').read_bytes()
    settings = PredictionSettings(scales=(1., .5), mirror=True)
    found = evaluate_elsewhere(run, photos, 'val', settings)

    matrix = ConfusionMatrix(len(run.classes) + 1)
    segmenter = quick(run.network('segmenter'), run.machine.precision)
    for i in range(len(photos)):
        labels = predict_labels(segmenter, photos.image(i), settings)
        matrix.update(labels, photos.truth(i))
    assert found['segmentation']['val'] == matrix.report(run.classes)
    maker = run.cam_maker(photos)
    assert found['cam']['val'] == measure_cams(photos, maker, .3)
    assert measure_new_cams(run, photos) == found['cam']['val']
    assert (run.root/'metrics.json').read_bytes() == before


def test_elsewhere_only_photos_of_the_same_classes_with_truths(run, tmp_path):
    make_shapes(tmp_path/'elsewhere', train=2, val=2, size=48, seed=9)
    names = tmp_path/'elsewhere'/'classes.txt'
    names.write_text('\n'.join(reversed(run.classes)))
    others = VOCFolder(tmp_path/'elsewhere', 'val')
    with pytest.raises(InputError, match='same classes in the same order'):
        evaluate_elsewhere(run, others, 'val')
    again = without_truths(run)
    with pytest.raises(InputError, match='Name a list of photos with masks'):
        evaluate_elsewhere(again, again.splits['val'], 'val')


def test_elsewhere_a_run_must_be_finished_before_anything_is_measured(run, monkeypatch):
    (run.root/'segmenter'/'model.safetensors').unlink()
    monkeypatch.setattr('wsss_nb.measuring.measure_new_cams', lambda *_: pytest.fail('measured'))
    with pytest.raises(InputError, match='not there yet.*wsss_nb segment'):
        evaluate_elsewhere(run, run.splits['val'], 'val')


def test_elsewhere_an_impossible_scale_is_refused(run):
    with pytest.raises(InputError, match='scales must be numbers'):
        evaluate_elsewhere(run, run.splits['val'], 'val', PredictionSettings(scales=(9.,)))


def test_stored_maps_are_compared_with_whole_ones(run):
    maker = run.cam_maker()
    for i, name in enumerate(run.photos.ids):
        maker(i).save(run.root/'cams'/f'{name}.npz')
    found = measure_storage(run, photos=3)
    assert found['images'] == 3
    pixels = []
    for i in (0, 1, 3):
        cam = run.cams[i]
        pixels.append(len(cam.classes) * cam.size[0] * cam.size[1] + cam.maps.size)
    assert found['published']['bytes'] == 4 * sum(pixels) / 3
    assert full_size(maker)(0).maps.shape[1:] == run.cams[0].size


@dataclass(frozen=True)
class Flat(MultiScale):
    "Maps of one size only: 1 everywhere."
    def maker(self, work, network):
        maker = super().maker(work, network)
        return maker._replace(answer=lambda network, views: None)


def test_maps_of_one_size_cannot_be_compared(run):
    system = replace(run.config.system, cams=Flat())
    with pytest.raises(InputError, match='maps of one size only'):
        measure_storage(Run(replace(run.config, system=system)))


def test_sheets_show_what_a_run_has(run, tmp_path):
    assert draw_contact(run) == []     # no masks yet
    with pytest.raises(InputError, match='masks.*not there yet'):
        draw_examples(run)
    for photos in run.splits.values():
        for i, name in enumerate(photos.ids):
            size = photos.image(i).size[::-1]
            for folder in ('masks', 'predictions'):
                write_mask(run.root/folder/f'{name}.png', np.zeros(size, np.uint8))
    with Image.open(draw_examples(run, photos=2, side=50)) as sheet:
        assert sheet.width == 6 * 58
    pages = draw_contact(run, photos=5, columns=2, rows=2, side=50)
    assert [path.name for path in pages] == ['contact-1.png', 'contact-2.png']
    (page,) = draw_contact(run, 'pseudo')
    assert page.name == 'contact-pseudo.png'


def test_a_sheet_has_no_column_for_a_stage_that_a_run_lacks(run, tmp_path):
    supervised = replace(SYSTEM, classifier=None, cams=None, refiner=TrueMasks())
    other = start_run(replace(run.config, out=tmp_path/'other', system=supervised))
    for name in other.photos.ids:
        mask = (run.root/'pseudo'/f'{name}.png').read_bytes()
        for folder in ('pseudo', 'masks', 'predictions'):
            (other.root/folder/f'{name}.png').write_bytes(mask)
    with Image.open(draw_examples(other, photos=2, side=50)) as sheet:
        assert sheet.width == 5 * 58     # photo, pseudo mask, best mask, prediction, truth
    again = without_truths(other)
    with Image.open(draw_examples(again, photos=2, side=50)) as sheet:
        assert sheet.width == 4 * 58


def test_a_mask_of_another_size_is_not_drawn(run):
    name = run.photos.ids[0]
    write_mask(run.root/'pseudo'/f'{name}.png', np.zeros((7, 9), np.uint8))
    with pytest.raises(InputError, match='the mask is 9 x 7, its photo'):
        draw_contact(run, 'pseudo')
    assert json.loads((run.root/'config.json').read_text())['photos'] == {'train': 4, 'val': 2}
    assert not list((run.root/'figures').iterdir())


@pytest.mark.parametrize('background', [*np.arange(.05, 1, .05).tolist(), .1 + .2, .6, .333])
def test_any_background_can_be_measured_also_one_that_is_a_hundredth_but_for_its_last_digits(
        background):
    thresholds = thresholds_with(background)
    sweep = BackgroundSweep(3, thresholds)
    sweep.update([0], np.full((1, 1, 2), .5), np.array([[0, 1]]))
    assert background in thresholds and sweep.confusion(background).images == 1


def test_a_photo_of_which_nothing_counts_stands_last(tmp_path):
    run = with_masks(tmp_path)
    ids = run.photos.ids
    truth = Path(run.config.data)/'SegmentationClass'/f'{ids[1]}.png'
    write_mask(truth, np.full_like(read_mask(truth), 255))
    worst = run.root/'pseudo'/f'{ids[2]}.png'
    write_mask(worst, np.zeros_like(read_mask(worst)))
    scored = score_photos(run, 'train', 'pseudo')
    assert scored[0][1] == 2 and scored[-1][1] == 1

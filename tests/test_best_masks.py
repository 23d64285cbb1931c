"The best masks of a run keep to tags, and true masks stay as they are."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsss_nb.backbones import BackboneSettings
from wsss_nb.best_masks import allowed_labels
from wsss_nb.cam import MultiScale
from wsss_nb.measuring import evaluate_elsewhere, likely_in
from wsss_nb.methods import System
from wsss_nb.photos import read_mask
from wsss_nb.pipeline import run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import NoRefiner, TrueMasks
from wsss_nb.run import Config, Run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.training import TrainingSettings
from wsss_nb.visual_words import VisualWords

SHORT = TrainingSettings(epochs=1, batch_size=4)
RANDOM = BackboneSettings('resnet18', 'none', 16, False, 0, 'learned')
SYSTEM = System('these tests', VisualWords(RANDOM, SHORT, num_words=8), MultiScale(scales=(1.,)),
                NoRefiner(), DeepLab(training=SHORT), PredictionSettings(scales=(1.,)))


def begun(root: Path, **parts) -> Run:
    "A run that is short, and done."
    make_shapes(root/'shapes', train=5, val=2, size=48)
    config = Config(root/'shapes', root/'run', system=replace(SYSTEM, **parts), workers=0)
    run(config)
    return Run(config)


def test_best_masks_of_all_photos_keep_to_their_tags(tmp_path):
    this = begun(tmp_path, refiner=NoRefiner())
    for split, photos in this.splits.items():
        assert this.metrics['masks'][split]['images'] == len(photos)
        for i, name in enumerate(photos.ids):
            labels = read_mask(this.root/'masks'/f'{name}.png')
            assert labels.shape == photos.image(i).size[::-1]
            assert set(np.unique(labels)) <= set(allowed_labels(photos, i))


def test_predictions_keep_to_what_the_classifier_finds_likely(tmp_path):
    one = PredictionSettings(scales=(1.,), likely=.999)
    this = begun(tmp_path, prediction=one)
    for split, photos in this.splits.items():
        paths = {name: photos.path(i) for i, name in enumerate(photos.ids)}
        likely = likely_in(this, paths, one, 0)
        for name in photos.ids:
            assert len(likely[name]) == 2
            labels = read_mask(this.root/'predictions'/f'{name}.png')
            assert set(np.unique(labels)) <= set(likely[name])
    elsewhere = evaluate_elsewhere(this, this.splits['val'], 'val')
    assert elsewhere['segmentation'] == {'val': this.metrics['segmentation']['val']}


@pytest.mark.parametrize('refiner', (TrueMasks(), NoRefiner(use_truth=True)))
def test_photos_with_a_true_mask_keep_it(refiner, tmp_path):
    parts = {'refiner': refiner}
    if isinstance(refiner, TrueMasks):
        parts |= {'classifier': None, 'cams': None, 'segmenter': DeepLab(RANDOM, SHORT)}
    this = begun(tmp_path, **parts)
    for i, name in enumerate(this.photos.ids):
        assert np.array_equal(read_mask(this.root/'masks'/f'{name}.png'), this.photos.truth(i))


def test_a_mask_that_is_missing_is_made_again_and_no_other(tmp_path):
    this = begun(tmp_path, refiner=NoRefiner())
    lost = this.root/'masks'/f'{this.photos.ids[1]}.png'
    before = {path: path.read_bytes() for path in (this.root/'masks').glob('*.png')}
    times = {path: path.stat().st_mtime_ns for path in before}
    lost.unlink()
    run(this.config)
    (this.root/'figures'/'examples.png').unlink()    # the run isn't finished any more
    run(this.config)
    assert lost.read_bytes() == before[lost]
    changed = [path for path in before if path.stat().st_mtime_ns != times[path]]
    assert changed == [lost]

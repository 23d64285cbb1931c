"AffinityNet: what doesn't fit is refused."
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.affinity import Walked, affinity_labels, affinity_loss
from wsss_nb.cam import CAM

PHOTO = Image.new('RGB', (192, 128))
MAPS = CAM(np.array([0]), np.full((1, 32, 48), .5, np.float32), (128, 192))


@pytest.mark.parametrize('powers', [(24, 4), (4, 4), (0, 4), (4,)])
def test_powers_must_rise(powers):
    said = f'the powers must be two that rise from above 0, not {powers}'
    with pytest.raises(ValueError) as told:
        affinity_labels(MAPS, PHOTO, powers)
    assert str(told.value) == said


def test_an_image_must_have_the_size_of_the_labels():
    said = r'must be uint8 \(64, 96, 3\) to fit the labels, not uint8 \(128, 192, 3\)'
    with pytest.raises(ValueError, match=said):
        affinity_labels(MAPS, PHOTO, size=(64, 96))


def test_labels_must_fit_the_features():
    features = torch.randn(2, 6, 6, 11)
    labels = torch.zeros(2, 6, 10, dtype=torch.long)
    with pytest.raises(ValueError) as told:
        affinity_loss(features, labels)
    said = 'features (2, 6, 6, 11) want labels (2, 6, 11), not (2, 6, 10)'
    assert str(told.value) == said


def test_a_map_must_hold_pairs():
    labels = torch.zeros(2, 4, 11, dtype=torch.long)
    said = 'a map of 4 x 11 is too small for pairs within a radius of 5'
    with pytest.raises(ValueError, match=said):
        affinity_loss(torch.randn(2, 6, 4, 11), labels)


def test_a_map_has_a_class():
    walked = Walked(torch.rand(1, 8, 9), torch.rand(3, 8, 9))
    with pytest.raises(ValueError, match='3 maps want as many classes, not 1'):
        walked.to_cam(np.array([2]), 0, (65, 97))

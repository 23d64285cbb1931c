"PAMR: what it keeps, and what is refused."
import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.cam import CAM
from wsss_nb.pamr import PAMR, pamr, pamr_weights, shifts, snap
from wsss_nb.settings import all_faults


@pytest.mark.parametrize('settings, said', [
    ({'rounds': 0}, 'rounds must be more than 0, not 0'),
    ({'stride': 0}, 'stride must be more than 0, not 0'),
    ({'dilations': ()}, 'dilations must be numbers over 0, not ()'),
    ({'dilations': (1, 0)}, 'dilations must be numbers over 0, not (1, 0)'),
])
def test_what_cannot_work_is_said(settings, said):
    assert all_faults(PAMR(**settings)) == [said]


def test_neighbours_are_ordered_by_dilation_and_without_the_middle():
    found = shifts((1, 12))
    assert len(found) == 16 and (0, 0) not in found
    assert found[:4] == [(-1, -1), (-1, 0), (-1, 1), (0, -1)]
    assert found[8:11] == [(-12, -12), (-12, 0), (-12, 12)]


@pytest.mark.parametrize('size', [(1, 1), (1, 40), (7, 3)])
def test_any_size_will_do(size):
    image = torch.rand(1, 3, *size)
    maps = torch.rand(1, 2, *size).softmax(1)
    refined = pamr(image, maps)
    assert refined.shape == maps.shape
    torch.testing.assert_close(refined.sum(1), torch.ones(1, *size))


def test_inputs_stay_and_no_gradient_comes_out():
    image = torch.rand(2, 3, 12, 16)
    maps = torch.rand(2, 3, 6, 8, requires_grad=True)
    before = [image.clone(), maps.detach().clone()]
    refined = pamr(image, maps)
    assert refined.shape == (2, 3, 6, 8) and not refined.requires_grad
    assert torch.equal(image, before[0]) and torch.equal(maps.detach(), before[1])


def test_half_precision_in_is_whole_precision_within():
    image = torch.rand(1, 3, 12, 16)
    maps = torch.rand(1, 2, 12, 16).bfloat16()
    with torch.autocast('cpu', torch.bfloat16):
        refined = pamr(image, maps)
    assert refined.dtype == torch.float32
    torch.testing.assert_close(refined, pamr(image, maps.float()))


def test_a_flat_image_gives_plain_means():
    weights = pamr_weights(torch.full((1, 3, 9, 9), .3), (1, 2))
    torch.testing.assert_close(weights, torch.full((1, 16, 9, 9), 1 / 16))


def test_a_cam_keeps_classes_size_and_heights():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (41, 63, 3), np.uint8))
    cam = CAM(np.array([3, 7]), np.random.default_rng(1).random((2, 11, 16), np.float32), (82, 126))
    snapped = snap(image, cam)
    assert snapped.classes.tolist() == [3, 7] and snapped.size == (82, 126)
    assert snapped.maps.shape == (2, 21, 32)
    assert (snapped.maps.max((1, 2)) <= cam.maps.max((1, 2)) + 1e-5).all()
    labels = PAMR().labels(None, 0, image, cam, .5)
    assert labels.shape == (41, 63) and labels.dtype == np.uint8
    assert set(np.unique(labels)) <= {0, 4, 8}


def test_a_background_above_everything_leaves_nothing():
    image = Image.new('RGB', (32, 24))
    cam = CAM(np.array([0]), np.full((1, 6, 8), .4, np.float32), (24, 32))
    assert not PAMR().labels(None, 0, image, cam, .5).any()
    assert PAMR().labels(None, 0, image, cam, .3).all()

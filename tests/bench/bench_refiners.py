"""From maps to masks: the walk, the dense CRF, PAMR, and the first two of them on several photos.

A stage is a function that gives a `Stage`: both ways, how to compare what they give, and the bar.
To add a row, add such a function to the list of its file, and the published way to published.py."""
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paired import Stage, cores
from published import crf_of_labels, dense_walk
from published import pamr as published_pamr

from wsss_nb.crf import refine_labels
from wsss_nb.irn import propagate
from wsss_nb.pamr import pamr
from wsss_nb.refiners import TOLERANCE
from wsss_nb.work import in_workers

CLASSES = 3


def smooth(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    "Random maps with blobs in them, 0..1."
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, shape[0], 5, 7, generator=generator)
    return F.interpolate(coarse, shape[1:], mode='bicubic', align_corners=False)[0].clamp(0, 1)


def a_photo(height: int, width: int, seed: int) -> np.ndarray:
    "Smooth colours with noise, uint8 (H, W, 3)."
    generator = torch.Generator().manual_seed(seed)
    noise = .1 * torch.randn(3, height, width, generator=generator)
    colours = (smooth((3, height, width), seed) + noise).clamp(0, 1)
    return (colours.permute(1, 2, 0) * 255).byte().numpy()


def maps_of(height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    "CAMs (K, h, w) and a boundary map (h, w), at stride 4."
    size = ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
    boundary = smooth((1, *size), seed + 100)[0] ** 3
    return smooth((CLASSES, *size), seed), boundary


def labels_of(walked: torch.Tensor) -> np.ndarray:
    "Labels of walked maps, with the published score of the background."
    scores = F.pad(walked / walked.max(), (0, 0, 0, 0, 1, 0), value=.25)
    return scores.argmax(0).numpy()


def equal_labels(ours: torch.Tensor, published: torch.Tensor) -> float:
    "The share of cells that get the same label."
    return float((labels_of(ours) == labels_of(published)).mean())


def equal_values(ours: np.ndarray, published: np.ndarray) -> float:
    "The share of values that are the same."
    return float((np.asarray(ours) == np.asarray(published)).mean())


def largest_difference(ours: torch.Tensor, published: torch.Tensor) -> float:
    "As a share of the largest value."
    return float((ours - published).abs().max() / published.abs().max())


def walk_stage(height: int, width: int, rounds: int) -> Stage:
    "One photo, from boundary map to walked maps."
    cam, boundary = maps_of(height, width, 0)
    return Stage(
        f'walk, photo of {width} x {height}',
        ours=partial(propagate, cam, boundary, tolerance=TOLERANCE),
        published=partial(dense_walk, cam, boundary),
        agreement=equal_labels, agreed_on='equal labels, share', rounds=rounds)


def walk(small: bool) -> Stage:
    "At half of the usual size, where the dense matrix can be borne."
    if small:
        return walk_stage(64, 80, 2)
    return walk_stage(188, 250, 3)


def walk_at_full_size(small: bool) -> Stage:
    "At the usual size of VOC's photos: minutes for the dense matrix."
    if small:
        return walk_stage(80, 96, 1)
    return walk_stage(375, 500, 1)


def crf(small: bool) -> Stage:
    "One photo; the library is the same, so it is the care around it that costs."
    size = (60, 80) if small else (375, 500)
    image = a_photo(*size, 1)
    occurring, labels = np.unique(labels_of(smooth((CLASSES, *size), 2)), return_inverse=True)
    labels = labels.reshape(size)
    return Stage(
        f'CRF of labels, photo of {size[1]} x {size[0]}',
        ours=partial(refine_labels, image, labels),
        published=partial(crf_of_labels, image, labels, len(occurring)),
        agreement=equal_values, agreed_on='equal labels, share', rounds=2 if small else 5)


def pamr_of_maps(small: bool) -> Stage:
    "Two photos with a map for each of VOC's labels, as in a training step."
    size = (24, 32) if small else (94, 125)
    generator = torch.Generator().manual_seed(3)
    image = torch.rand(2, 3, *size, generator=generator)
    maps = torch.rand(2, 21, *size, generator=generator)
    return Stage(
        f'PAMR, 2 x 21 maps of {size[1]} x {size[0]}',
        ours=partial(pamr, image, maps), published=partial(published_pamr, image, maps),
        agreement=largest_difference, agreed_on='largest difference',
        rounds=2 if small else 5)


class WalkAndCrf:
    "A pseudo mask of a photo that is made up; calling it with a number makes it."
    def __init__(self, height: int, width: int):
        self.height = height
        self.width = width

    def __call__(self, seed: int) -> np.ndarray:
        cam, boundary = maps_of(self.height, self.width, seed)
        walked = propagate(cam, boundary, tolerance=TOLERANCE)[None]
        full = F.interpolate(walked, (self.height, self.width), mode='bilinear')[0]
        return refine_labels(a_photo(self.height, self.width, seed), labels_of(full))


def by_photos(small: bool) -> Stage:
    "The walk and the CRF of several photos: a worker for each core, and all in one process."
    height, width = (60, 80) if small else (240, 320)   # as photos of voc-mini
    make = WalkAndCrf(height, width)
    photos = range(4 if small else 40)

    def masks(workers: int) -> np.ndarray:
        return np.stack([np.asarray(mask) for mask in in_workers(make, photos, workers, None)])

    return Stage(
        f'walk and CRF of {len(photos)} photos of {width} x {height}, against one process',
        ours=partial(masks, cores()), published=partial(masks, 0),
        agreement=equal_values, agreed_on='equal labels, share', bar=1.8,
        rounds=1 if small else 3)


@pytest.mark.parametrize('build', [walk, crf, pamr_of_maps, by_photos])
def test_stage(build, compare, small):
    row = compare(build(small))
    assert row.agreement < .001 if 'difference' in row.agreed_on else row.agreement > .99


def test_walk_at_full_size(compare, small, whole):
    if not (small or whole):
        pytest.skip('takes minutes: --whole')
    assert compare(walk_at_full_size(small)).agreement > .99

"What chapter 23 refuses, and how it says so."
import numpy as np
import pytest

from wsss_nb.crf import refine_labels, refine_probabilities

PHOTO = np.random.default_rng(0).integers(0, 256, (36, 48, 3)).astype(np.uint8)
LABELS = (np.indices((36, 48))[1] > 20).astype(np.uint8)
PROBABILITIES = np.stack([1. - LABELS, 1. * LABELS])


@pytest.mark.parametrize('photo, labels, message', [
    (PHOTO[:30], LABELS,
     r'the image must be uint8 \(36, 48, 3\) to fit the labels, not uint8 \(30, 48, 3\)'),
    (PHOTO / 255, LABELS,
     r'the image must be uint8 \(36, 48, 3\) to fit the labels, not float64 \(36, 48, 3\)'),
    (PHOTO, LABELS[None], r'labels must be integers \(H, W\), not uint8 \(1, 36, 48\)'),
    (PHOTO, LABELS[:0], r'labels must be integers \(H, W\), not uint8 \(0, 48\)'),
    (PHOTO, LABELS * 300., r'labels must be integers \(H, W\), not float64 \(36, 48\)'),
    (PHOTO, LABELS.astype(int) * 300, r'labels must lie in 0\.\.255, not 0\.\.300')])
def test_label_maps_that_do_not_fit_are_refused(photo, labels, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        refine_labels(photo, labels)


@pytest.mark.parametrize('options, message', [
    ({'confidence': 1}, 'the confidence must lie between 0 and 1, not 1'),
    ({'confidence': 0}, 'the confidence must lie between 0 and 1, not 0'),
    ({'colour_sigma': 0}, 'each sigma must be above 0'),
    ({'gaussian_sigma': -1}, 'each sigma must be above 0'),
    ({'bilateral_sigma': np.nan}, 'each sigma must be above 0')])
def test_constants_that_mean_nothing_are_refused(options, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        refine_labels(PHOTO, LABELS, **options)


@pytest.mark.parametrize('photo, probabilities, message', [
    (PHOTO, LABELS, r'probabilities must be \(L, H, W\), not \(36, 48\)'),
    (PHOTO, PROBABILITIES * np.nan, 'the probabilities hold nan or infinity'),
    (PHOTO.transpose(1, 0, 2), PROBABILITIES,
     r'the image must be uint8 \(36, 48, 3\) to fit the labels, not uint8 \(48, 36, 3\)')])
def test_probabilities_that_do_not_fit_are_refused(photo, probabilities, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        refine_probabilities(photo, probabilities)

"""The same numbers as the published implementations.

The arrays are not part of the repository. They lie in `shared/reference` beside it, and the tests are skipped where they don't."""
from pathlib import Path

import numpy as np
import pytest
import torch

from wsss_nb.classifier import Logits
from wsss_nb.codebook import encode_words, update_memory
from wsss_nb.irn import boundary_displacement_loss, propagate
from wsss_nb.losses import decov, entropy, word_loss
from wsss_nb.pooling import hspp
from wsss_nb.random_walk import boundary_transition, directions, feature_transition, walk

REFERENCE = Path(__file__).parents[2] / 'shared' / 'reference'
pytestmark = pytest.mark.skipif(not REFERENCE.is_dir(), reason='the reference arrays are not here: they belong in shared/reference, beside the repository')


def load(name: str) -> dict[str, torch.Tensor]:
    "The arrays of a reference file as tensors."
    with np.load(REFERENCE / f'{name}.npz', allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    "Same shape, same values within `atol`."
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, check_dtype=False)


def test_hspp():
    r = load('hspp')
    assert_close(hspp(r['features'], gamma=r['gamma'].item(), levels=r['levels'].tolist()), r['pooled'])
    assert_close(hspp(r['features']), r['pooled'])


def test_codebook():
    r = load('codebook')
    words = encode_words(r['features'], r['codebook'])
    assert_close(words.probabilities, r['probabilities'])
    assert_close(words.histogram, r['histogram'])
    assert_close(words.labels, r['word_labels'], atol=0)


def test_losses():
    r = load('losses')
    loss = word_loss(Logits(r['image_logits'], r['word_logits'], r['word_to_image_logits'], r['word_labels']), r['image_labels'])
    assert_close(loss.image, r['loss_image'])
    assert_close(loss.word, r['loss_word'])
    assert_close(loss.word_to_image, r['loss_word_to_image'])
    assert_close(loss.total, r['total'])


def test_memory_bank():
    r = load('memory_bank')
    assert_close(update_memory(r['codebook'], r['features'], r['momentum'].item()), r['updated'])
    assert_close(update_memory(r['codebook'], r['features']), r['updated'])


def test_word_regularisers():
    r = load('vwl_regularisers')
    assert_close(decov(r['codebook']), r['decov'])
    assert_close(entropy(r['word_logits']), r['entropy'])


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    "Same shape, every value within a relative 1e-4."
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0, check_dtype=False)


def test_boundary_walk():
    r = load('irn_random_walk')
    settings = dict(radius=r['radius'].item(), beta=r['beta'].item())
    assert_near(propagate(r['cam'], r['edge'], steps=r['steps'].item(), **settings), r['walked'])
    assert_near(propagate(r['cam'], r['edge']), r['walked'])
    # the published way: the whole matrix, squared eight times
    transition = boundary_transition(r['edge'].double(), **settings)
    matrix = torch.linalg.matrix_power(transition.to_dense(), r['steps'].item())
    assert_near(((r['cam'] * (1 - r['edge'])).double().flatten(1) @ matrix).reshape(r['walked'].shape), r['walked'])
    torch.testing.assert_close(transition.to_dense().sum(0), torch.ones(transition.shape[0], dtype=torch.double))


def test_feature_walk():
    r = load('psa_random_walk')
    transition = feature_transition(r['features'], radius=r['radius'].item(), beta=r['beta'].item())
    assert_near(walk(r['cam'], transition, steps=r['steps'].item()), r['walked'])


def test_irn_losses():
    r = load('irn_losses')
    assert {tuple(o) for o in r['offsets'].tolist()} == set(directions(r['radius'].item()))
    loss = boundary_displacement_loss(r['edge'], r['displacement'], r['labels'], radius=r['radius'].item())
    for name in loss._fields: assert_near(getattr(loss, name), r[name if name == 'total' else f'loss_{name}'])

"""The same numbers as the published implementations.

The arrays are not part of the repository. They lie in the folder that the environment variable
WSSS_REFERENCE names, or in `../shared/reference` beside the repository. A test whose file is not
there is skipped. Sizes and settings are read from the arrays."""
import inspect
import os
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

BESIDE = Path(__file__).parents[2] / 'shared' / 'reference'
REFERENCE = Path(os.environ.get('WSSS_REFERENCE', BESIDE))


def load(name: str) -> dict[str, torch.Tensor]:
    "The arrays of a reference file as tensors. Skips the test if there is no such file."
    path = REFERENCE / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'{path} is not here; WSSS_REFERENCE names the folder of the arrays')
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    "Same shape, same values within `atol`."
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, check_dtype=False)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    "Same shape, every value within a relative 1e-4."
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize('function, published', [
    (hspp, {'gamma': 2., 'levels': (1, 2, 4)}),
    (encode_words, {'temperature': 1.}),
    (update_memory, {'momentum': .01}),
    (boundary_transition, {'radius': 5, 'beta': 10}),
    (feature_transition, {'radius': 5, 'beta': 8}),
    (walk, {'steps': 256}),
    (propagate, {'radius': 5, 'beta': 10, 'steps': 256}),
])
def test_what_is_not_said_is_as_published(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


def test_hspp():
    r = load('hspp')
    pooled = hspp(r['features'], gamma=r['gamma'].item(), levels=r['levels'].tolist())
    assert_close(pooled, r['pooled'])


def test_codebook():
    r = load('codebook')
    words = encode_words(r['features'], r['codebook'])
    assert_close(words.probabilities, r['probabilities'])
    assert_close(words.histogram, r['histogram'])
    assert_close(words.labels, r['word_labels'], atol=0)


def test_losses():
    r = load('losses')
    logits = Logits(r['image_logits'], r['word_logits'], r['word_to_image_logits'],
                    r['word_labels'])
    loss = word_loss(logits, r['image_labels'])
    assert_close(loss.image, r['loss_image'])
    assert_close(loss.word, r['loss_word'])
    assert_close(loss.word_to_image, r['loss_word_to_image'])
    assert_close(loss.total, r['total'])


def test_memory_bank():
    r = load('memory_bank')
    updated = update_memory(r['codebook'], r['features'], r['momentum'].item())
    assert_close(updated, r['updated'])


def test_word_regularisers():
    r = load('vwl_regularisers')
    assert_close(decov(r['codebook']), r['decov'])
    assert_close(entropy(r['word_logits']), r['entropy'])


def test_boundary_walk():
    r = load('irn_random_walk')
    settings = dict(radius=r['radius'].item(), beta=r['beta'].item())
    steps = r['steps'].item()
    assert_near(propagate(r['cam'], r['edge'], steps=steps, **settings), r['walked'])

    # the published way: the whole matrix, squared eight times
    transition = boundary_transition(r['edge'].double(), **settings).to_dense()
    matrix = torch.linalg.matrix_power(transition, steps)
    start = (r['cam'] * (1 - r['edge'])).double().flatten(1)
    assert_near((start @ matrix).reshape(r['walked'].shape), r['walked'])
    ones = torch.ones(len(transition), dtype=torch.double)
    torch.testing.assert_close(transition.sum(0), ones)


def test_feature_walk():
    r = load('psa_random_walk')
    radius = r['radius'].item()
    transition = feature_transition(r['features'], radius=radius, beta=r['beta'].item())
    assert_near(walk(r['cam'], transition, steps=r['steps'].item()), r['walked'])


def test_irn_losses():
    r = load('irn_losses')
    radius = r['radius'].item()
    assert {tuple(offset) for offset in r['offsets'].tolist()} == set(directions(radius))
    loss = boundary_displacement_loss(r['edge'], r['displacement'], r['labels'], radius=radius)
    for name, value in loss._asdict().items():
        assert_near(value, r[name if name == 'total' else f'loss_{name}'])

"What chapter 25 refuses, and how it says so."
import math

import pytest
import torch

from wsss_nb.files import InputError
from wsss_nb.random_walk import (Transition, boundary_affinity, boundary_transition, directions,
                                 feature_affinity, feature_transition, walk)


def test_a_radius_must_leave_pairs():
    message = '^a radius of 1 leaves no pair of pixels: give 2 or more$'
    with pytest.raises(InputError, match=message):
        directions(1)


@pytest.mark.parametrize('affinity, maps', [
    (boundary_affinity, torch.rand(9, 8)), (feature_affinity, torch.rand(3, 9, 8)),
    (boundary_affinity, torch.rand(4, 20)), (feature_affinity, torch.rand(3, 4, 20))])
def test_a_map_must_hold_a_pixel_with_all_its_partners(affinity, maps):
    height, width = maps.shape[-2:]
    message = (f'^a map of {height} x {width} is too small for pairs within a radius of 5: '
               '5 x 9 is the least$')
    with pytest.raises(ValueError, match=message):
        affinity(maps)


@pytest.mark.parametrize('boundary, message', [
    (torch.rand(1, 9, 8), r'a boundary map is \(h, w\), not \(1, 9, 8\)'),
    (torch.rand(0, 8), r'a boundary map is \(h, w\), not \(0, 8\)'),
    (torch.full((9, 8), 2.), r'a boundary map lies in 0\.\.1, not 2\.\.2: take the sigmoid first'),
    (torch.full((9, 8), -.5),
     r'a boundary map lies in 0\.\.1, not -0\.5\.\.-0\.5: take the sigmoid first'),
    (torch.full((9, 8), math.nan),
     r'a boundary map lies in 0\.\.1, not nan\.\.nan: take the sigmoid first')])
def test_what_is_no_boundary_map_is_refused(boundary, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        boundary_transition(boundary)


@pytest.mark.parametrize('features, message', [
    (torch.rand(9, 8), r'features are \(C, h, w\), not \(9, 8\)'),
    (torch.rand(0, 9, 8), r'features are \(C, h, w\), not \(0, 9, 8\)'),
    (torch.full((2, 9, 8), math.nan), 'the features hold nan or infinity'),
    (torch.full((2, 9, 8), math.inf), 'the features hold nan or infinity')])
def test_what_are_no_features_is_refused(features, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        feature_transition(features)


def test_maps_must_fit_the_transition():
    transition = boundary_transition(torch.rand(9, 8))
    message = r'^the maps must be \(K, 9, 8\) to fit the transition, not \(3, 8, 9\)$'
    with pytest.raises(ValueError, match=message):
        walk(torch.rand(3, 8, 9), transition)
    message = r'^the maps must be \(K, 9, 8\) to fit the transition, not \(9, 8\)$'
    with pytest.raises(ValueError, match=message):
        walk(torch.rand(9, 8), transition)


@pytest.mark.parametrize('steps, tolerance', [(-1, 0.), (256, -.1)])
def test_nobody_walks_backwards(steps, tolerance):
    message = f'^steps and tolerance must be 0 or more, not {steps} and {tolerance}$'
    with pytest.raises(ValueError, match=message):
        walk(torch.rand(3, 9, 8), boundary_transition(torch.rand(9, 8)), steps, tolerance)


def test_each_direction_has_its_weights():
    message = r'^1 directions want as many maps of weights, not \(3, 9, 8\)$'
    with pytest.raises(ValueError, match=message):
        Transition(torch.rand(3, 9, 8), ((0, 1),))

"Costs of methods that chapter 44 hasn't got: of one network for all, and whose loss changes."
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import nn

from wsss_nb.costs import expected_costs, parameters, training_cost, trainings
from wsss_nb.loaders import Batch
from wsss_nb.methods import System
from wsss_nb.prediction import PredictionSettings
from wsss_nb.refiners import NoRefiner
from wsss_nb.systems import SYSTEMS
from wsss_nb.training import TrainingSettings
from wsss_nb.work import Trained


@dataclass(frozen=True)
class Late(Trained):
    "A convolution whose loss looks at its photos in the last epoch only."
    name: ClassVar[str] = 'late'
    role: ClassVar[str] = 'classifier'
    training: TrainingSettings = TrainingSettings(epochs=3, batch_size=10, crop=8)

    def network(self, classes, first=False):
        return nn.Conv2d(3, classes, 3, padding=1)

    def example(self, classes):
        return Batch(torch.zeros(2, 3, 8, 8), {'tags': torch.zeros(2, classes)})

    def loss(self, network, batch, at):
        if at.epoch < 2:
            return {'total': network.weight.sum()}
        return {'total': network(batch.images).sum()}


@dataclass(frozen=True)
class AtOnce(Late):
    "A segmenter that is the classifier."
    name: ClassVar[str] = 'at once'
    role: ClassVar[str] = 'segmenter'
    reads: ClassVar[tuple[str, ...]] = ('classifier',)


IN_ONE = System('nobody', Late(), None, NoRefiner(), AtOnce(), PredictionSettings(scales=(1., .5)))


def test_a_loss_is_counted_as_in_the_last_step():
    cost = training_cost(Late(), classes=4, photos=100)
    assert cost.hours == pytest.approx(300 * 2 * 2 * 3 * 4 * 9 * 64 / 1e13 / 3600)


def test_parts_are_rounded_up():
    whole = training_cost(Late(), 4, 100).gigabytes
    settings = TrainingSettings(epochs=3, batch_size=10, crop=8, accumulate=3)
    in_parts = training_cost(Late(training=settings), 4, 100).gigabytes
    assert whole - in_parts == pytest.approx(6 * 3 * 8 * 8 * 4 / 1e9)   # 4 photos at a time


def test_a_system_in_one_network_learns_once_and_predicts():
    costs = expected_costs(IN_ONE, classes=4, photos=100, others=50, size=(16, 24))
    assert list(costs) == ['classify', 'predict']
    once = 2 * 3 * 4 * 9 * 16 * 24
    assert costs['predict'].hours == pytest.approx(150 * once * 1.25 / 1e13 / 3600)


def test_mirror_images_cost_as_much_again():
    mirrored = replace(IN_ONE, prediction=replace(IN_ONE.prediction, mirror=True))
    cost = expected_costs(IN_ONE)['predict']
    twice = expected_costs(mirrored)['predict']
    assert twice.hours == pytest.approx(2 * cost.hours)
    assert twice.gigabytes == cost.gigabytes


@dataclass(frozen=True)
class After(Late):
    "A segmenter that learns from masks."
    role: ClassVar[str] = 'segmenter'
    reads: ClassVar[tuple[str, ...]] = ('pseudo',)


@dataclass(frozen=True)
class Twice(NoRefiner):
    "A refiner that trains a network of its own."
    helper: Late = Late()   # what it trains


def test_what_a_method_trains_besides_is_counted():
    refined = replace(IN_ONE, refiner=Twice(), segmenter=After())
    costs = expected_costs(refined, classes=4, photos=100, others=50, size=(16, 24))
    assert costs['refine'] == costs['segment'] == training_cost(Late(), 4, 100)
    assert [type(part) for part in trainings(Twice())] == [Late]
    assert trainings(None) == [] and trainings(Late()) == [Late()]


@pytest.mark.parametrize('system, stage, learning', [
    ('sc-cam-voc', 'classifier', 105_103_360),
    ('seam-voc', 'classifier', 104_489_536),
    ('psa-voc', 'refiner', 105_615_360),
    ('bes-voc', 'classifier', 22_063_104 + 40_960),
])
def test_as_many_parameters_learn_as_published(system, stage, learning):
    method = getattr(SYSTEMS[system].following(448), stage)
    assert parameters(method, 20)['learning'] == learning

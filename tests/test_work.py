"Looking at photos: the rest is done in workers, in order, and what ends one is told."
import os
import signal
from functools import partial

import pytest
import torch
from torch import nn

from wsss_nb.backbones import Backbone, create_backbone
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.files import InputError
from wsss_nb.random_walk import Flow, boundary_transition, walk
from wsss_nb.work import (Maker, Packed, has_bfloat16, in_workers, is_packing_faster, looking,
                          one_thread, packed, quick)

UNREADABLE = 5


def view(place):
    if place == UNREADABLE:
        raise InputError('photo 5: it is broken')
    return torch.tensor([float(place)])


def ask(network, seen):
    return network(seen).numpy()


def rest(answer, refused=None):
    if refused is not None and answer[0] == refused:
        raise InputError(f'answer {refused:g}: no room for it')
    return float(answer[0]) + 100


def killed(answer):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def maker() -> Maker:
    network = nn.Linear(1, 1, bias=False)
    nn.init.constant_(network.weight, 2)
    return Maker(network, view, ask, rest)


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_the_rest_is_done_in_order_whatever_the_number_of_workers(maker, workers):
    places = [4, 2, 0, 3]
    found = list(looking(maker, places, workers, None))
    assert found == [(place, 2 * place + 100) for place in places]
    assert maker(3) == 106


@pytest.mark.parametrize(('groups', 'is_off'), [(4, True), (2, False), (1, False)])
def test_a_depthwise_network_that_looks_needs_no_plan_for_each_size(maker, groups, is_off):
    before = torch.backends.cudnn.enabled
    asked = maker._replace(network=nn.Conv2d(4, 4, 3, groups=groups),
                           answer=lambda network, views: torch.backends.cudnn.enabled)
    assert asked.ask(None) == (before and not is_off)
    assert torch.backends.cudnn.enabled == before


@pytest.mark.parametrize('workers', [0, 1, 2])
def test_an_error_comes_behind_all_that_was_made_before(maker, workers):
    done = []
    with pytest.raises(InputError, match='photo 5: it is broken'):
        for place, _ in looking(maker, range(9), workers, None):
            done.append(place)
    assert done == [0, 1, 2, 3, 4]


@pytest.mark.parametrize('workers', [0, 2])
def test_an_error_of_the_rest_is_raised_in_its_turn(maker, workers):
    maker = maker._replace(rest=partial(rest, refused=4.))
    done = []
    with pytest.raises(InputError, match='answer 4: no room for it'):
        for place, _ in looking(maker, range(4), workers, None):
            done.append(place)
    assert done == [0, 1]


def test_a_worker_that_was_killed_is_told(maker):
    with pytest.raises(InputError, match='ended by the system.*--workers'):
        list(looking(maker._replace(rest=killed), range(4), 2, None))


def test_no_more_workers_than_items():
    found = set(in_workers(lambda item: os.getpid(), range(2), 8, None))
    assert len(found) == 2


def test_a_walk_runs_on_one_thread_and_leaves_the_others_alone(monkeypatch):
    seen = set()
    step = Flow.__call__
    def noted(flow):
        seen.add(torch.get_num_threads())
        return step(flow)
    monkeypatch.setattr(Flow, '__call__', noted)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        maps = torch.rand(2, 20, 30)
        walk(maps, boundary_transition(torch.rand(20, 30)), 3)
        assert seen == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(ValueError, match='the maps must be'):
            walk(maps[0], boundary_transition(torch.rand(20, 30)), 3)
        assert torch.get_num_threads() == 2
        with one_thread():
            with one_thread():
                pass
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize('name', ('vit_tiny_patch16_224', 'swin_tiny_patch4_window7_224'))
def test_a_transformer_looks_in_two_bytes_as_in_four(name):
    torch.manual_seed(0)
    backbone = create_backbone(f'timm/{name}', None, 16).eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        wanted = backbone(images)
        found = quick(backbone, 'bf16')(images)
    assert found.dtype == torch.float32
    assert 0 < (found - wanted).norm() < .03 * wanted.norm()


@pytest.mark.parametrize(('name', 'is_known'), [
    ('resnet18', True), ('vgg16', True), ('timm/vgg11', True), ('efficientnet_lite0', False),
    ('timm/resnet26d', None), ('timm/convnext_atto', None), ('timm/vit_small_patch14_dinov2', None),
])
def test_a_network_is_packed_where_that_says_the_same(name, is_known, monkeypatch):
    if not (is_packing_faster() and has_bfloat16(torch.device('cpu'))):
        pytest.skip('this processor has no bfloat16 that oneDNN computes with')
    torch.manual_seed(0)
    network = DeepLabV2(create_backbone(name, None), 3).eval()
    looker = quick(network, 'bf16')
    if is_known is not None:
        assert isinstance(looker.backbone, Packed) == is_known
    monkeypatch.setattr('wsss_nb.work.is_packing_faster', lambda: False)
    plain = quick(network, 'bf16')
    assert not isinstance(plain.backbone, Packed)
    images = torch.randn(2, 3, 67, 90)
    with torch.inference_mode():
        for ours, maps in zip(looker.backbone.stage_features(images),
                              plain.backbone.stage_features(images)):
            assert (ours.shape, ours.dtype) == (maps.shape, torch.float32)
            assert (ours - maps).norm() <= .05 * maps.norm()
        assert looker(images).shape == plain(images).shape


def test_what_a_norm_does_besides_is_not_lost_in_packing():
    torch.manual_seed(0)
    bent = nn.BatchNorm2d(4)
    bent.forward = lambda maps: nn.BatchNorm2d.forward(bent, maps).relu()
    stage = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), bent).eval()
    backbone = Backbone([stage], [4], [2], (.5,) * 3, (.5,) * 3).eval().to(torch.bfloat16)
    assert packed(backbone) is None

"IRNet: what doesn't fit is refused; mean displacement and things are as whole as the network."
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM
from wsss_nb.files import InputError
from wsss_nb.irn import (IRN, boundary_displacement_loss, irn_labels, propagate,
                         set_mean_displacement, things_path)
from wsss_nb.photos import write_mask
from wsss_nb.refiners import Walking
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings
from wsss_nb.work import Lead, Work
from wsss_nb.voc import VOCFolder


def test_scores_must_fall():
    maps = CAM(np.array([6]), np.full((1, 1, 10), .5, np.float32), (4, 40))
    with pytest.raises(ValueError) as told:
        irn_labels(maps, Image.new('RGB', (40, 4)), .05, .3)
    said = 'the scores must be 0 <= background <= foreground < 1, not 0.3 and 0.05'
    assert str(told.value) == said


@pytest.mark.parametrize('foreground, background', [(.3, -.1), (1., .3)])
def test_scores_lie_between_0_and_1(foreground, background):
    maps = CAM(np.array([6]), np.full((1, 1, 10), .5, np.float32), (4, 40))
    with pytest.raises(ValueError, match='the scores must be 0 <= background <= foreground < 1'):
        irn_labels(maps, Image.new('RGB', (40, 4)), foreground, background)


def test_a_map_must_hold_pairs():
    said = 'a map of 8 x 30 is too small for pairs within a radius of 10: 10 x 19 is the least'
    with pytest.raises(ValueError, match=said):
        boundary_displacement_loss(torch.rand(1, 8, 30), torch.rand(1, 2, 8, 30),
                                   torch.zeros(1, 8, 30))


def test_a_boundary_is_no_logit():
    with pytest.raises(ValueError, match='take the sigmoid first'):
        propagate(torch.rand(1, 8, 9), torch.rand(8, 9) + 1)


@pytest.mark.parametrize('shape', [(1, 1, 9), (1, 6, 8), (2, 9, 6)])
def test_maps_and_boundary_are_of_one_shape(shape):
    with pytest.raises(ValueError):
        propagate(torch.rand(shape), torch.rand(6, 9))


@pytest.fixture(scope='module')
def work(tmp_path_factory) -> Work:
    here = tmp_path_factory.mktemp('irn')
    photos = VOCFolder(make_shapes(here/'shapes', train=4, val=1, size=64), 'train')
    cams = []
    for i in range(len(photos)):
        truth = photos.truth(i)
        classes = photos.tags(i).nonzero().flatten().numpy()
        maps = np.stack([(truth == c + 1)[::4, ::4] for c in classes]).astype(np.float32)
        cams.append(CAM(classes, maps, truth.shape))
    return Work(photos, here/'refiner', Machine(workers=0), cams=cams)


@pytest.fixture(scope='module')
def method() -> IRN:
    training = TrainingSettings(epochs=1, batch_size=2)
    given = IRN(backbone=BackboneSettings('resnet18', 'none'), training=training, betas=(10.,))
    return given.following(Lead(side=64, crop=64))


def test_a_mean_displacement_that_was_cut_off_is_set_again(method, work):
    network = Walking.train(method, work)                 # and then the power failed
    before = load_file(work.folder/'model.safetensors')
    assert not before['mean_displacement'].any()
    network = method.train(work)
    after = load_file(work.folder/'model.safetensors')
    assert after['mean_displacement'].any()
    assert torch.equal(after['mean_displacement'], network.mean_displacement.cpu())
    others = before.keys() - {'mean_displacement'}
    assert all(torch.equal(before[name], after[name]) for name in others)
    time = (work.folder/'model.safetensors').stat().st_mtime_ns
    method.train(work)
    assert (work.folder/'model.safetensors').stat().st_mtime_ns == time


def test_things_are_written_and_told_if_absent_or_broken(method, work):
    path = things_path(work, 2)
    with pytest.raises(InputError, match='there is no such map of things'):
        method.things(work, 2)
    maker = method.maker(work)
    assert not path.exists()        # choosing the walk writes none
    walked = maker(2)
    things = method.things(work, 2)
    assert things.dtype == np.uint16
    assert things.shape == walked.maps.shape[1:]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match='make all three again with `wsss_nb refine`'):
        method.things(work, 2)


def test_instances_are_those_of_the_pseudo_masks(method, work, tmp_path):
    maker = method.maker(work)
    (work.folder/'cams').mkdir()
    for i, name in enumerate(work.photos.ids):
        maker(i).save(work.folder/'cams'/f'{name}.npz')
        truth = work.photos.truth(i)
        write_mask(tmp_path/f'{name}.png', np.where(truth == 255, 0, truth))
    method.finish(work, tmp_path)
    path = work.folder/'instances.json'
    written = json.loads(path.read_text())
    assert len(written['images']) == 4
    assert [c['name'] for c in written['categories']] == list(work.photos.classes)
    for annotation in written['annotations']:
        assert sum(annotation['segmentation']['counts'][1::2]) == annotation['area'] >= 50
        assert work.photos.tags(annotation['image_id'] - 1)[annotation['category_id'] - 1] == 1
    time = path.stat().st_mtime_ns
    method.finish(work, tmp_path)
    assert path.stat().st_mtime_ns == time
    for i, name in enumerate(work.photos.ids):   # masks are made again, as other ones
        write_mask(tmp_path/f'{name}.png', np.zeros_like(work.photos.truth(i)))
    method.prepare(work)
    method.finish(work, tmp_path)
    assert json.loads(path.read_text())['annotations'] == []


class OnMPS:
    "Arrows on a device that has no float64."
    def __init__(self, arrows: torch.Tensor):
        self.arrows = arrows

    def __getitem__(self, place):
        return self.arrows[place]

    def cpu(self) -> torch.Tensor:
        return self.arrows

    def double(self):
        raise TypeError('MPS has no float64')


def test_the_mean_of_arrows_is_taken_where_there_is_float64():
    model = SimpleNamespace(mean_displacement=torch.zeros(2))
    set_mean_displacement(model, [OnMPS(torch.ones(2, 3, 4)), OnMPS(torch.ones(2, 3, 4))])
    assert model.mean_displacement.tolist() == [1, 1]

"Refiners: what cannot work or is missing is told; walking goes on where it was."
import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from wsss_nb.affinity import Affinity
from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM, StoredMaps
from wsss_nb.files import InputError
from wsss_nb.irn import IRN
from wsss_nb.loaders import on_grid
from wsss_nb.photos import read_mask
from wsss_nb.refiners import (DenseCRF, NoRefiner, SureLabels, TrueMasks, Walking, missing,
                              sure_scores, write_labels)
from wsss_nb.settings import check_settings
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings
from wsss_nb.work import Lead, Work, looking
from wsss_nb.voc import VOCFolder

SMALL = TrainingSettings(epochs=1, batch_size=2)
RANDOM = BackboneSettings('resnet18', 'none')


class Net(nn.Module):
    "Logit of a thing at stride 4."
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.last = nn.Conv2d(backbone.stage_channels[1], 1, 1)

    def forward(self, images):
        return self.last(self.backbone.stage_features(images)[1])[:, 0]


@dataclass(frozen=True)
class Things(Walking):
    "A walk that multiplies maps with the chance of a thing."
    name = 'things'
    title = 'Net'
    walked_background = .3

    def sure_labels(self, work, i, image, scores):
        return work.cams[i].to_labels(scores[0], image.size[::-1])

    def network(self, classes, first=False):
        return Net(self.backbone.create(first))

    def loss(self, network, batch, at):
        logits = network(batch.images)
        mask = on_grid(batch.targets['mask'], logits.shape[-2:])
        bce = nn.functional.binary_cross_entropy_with_logits
        return {'total': bce(logits, (mask > 0).float())}

    def walk_settings(self):
        return [{'beta': beta} for beta in self.betas]

    def look(self, network, seen):
        return (network(seen.pixels[None])[0].sigmoid(),)

    def spread(self, cam, said, settings):
        chance, = said
        maps = torch.from_numpy(cam.resize(tuple(chance.shape)))
        found = [(maps * chance ** setting['beta']).numpy() for setting in settings]
        return [CAM(cam.classes, m, cam.size) for m in found]


class Unmasked(VOCFolder):
    "The same photos, whose masks nobody has drawn."
    has_truth = False

    def truth(self, i):
        return None


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> VOCFolder:
    root = make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=6, val=1, size=64)
    return VOCFolder(root, 'train')


@pytest.fixture(scope='module')
def cams(photos, tmp_path_factory) -> StoredMaps:
    "Maps that are 1 in the upper half of each thing, and 0.2 in the lower one."
    folder = tmp_path_factory.mktemp('cams')
    for i, name in enumerate(photos.ids):
        truth = photos.truth(i)
        classes = np.setdiff1d(truth, (0, 255)).astype(int) - 1
        maps = []
        for c in classes:
            inside = truth == c + 1
            rows = np.nonzero(inside.any(1))[0]
            bright = np.where(np.arange(len(truth)) < rows.mean(), 1, .2)[:, None]
            maps.append((inside * bright)[::4, ::4])
        CAM(classes, np.array(maps, np.float32), truth.shape).save(folder/f'{name}.npz')
    return StoredMaps(folder, photos.ids)


def decided(method: Walking) -> Walking:
    return method.following(Lead(side=64, crop=64))


def work_in(folder: Path, photos: VOCFolder, cams, **options) -> Work:
    return Work(photos, folder, Machine(workers=0), cams=cams, **options)


WRONG = {
    'scores the other way round': (Affinity(scores=(.1, .3)), 'scores must be two numbers between'),
    'a score of 0': (IRN(scores=(.3, 0.)), r'not \(0.3, 0.0\)'),
    'a score of 1': (IRN(scores=(1., .3)), 'the first not below the second'),
    'the same score twice': (Affinity(scores=(.3, .3)), 'scores must be two different numbers'),
    'no beta': (IRN(betas=()), r'betas must be numbers over 0, not \(\)'),
    'a beta of 0': (Affinity(betas=(10., 0.)), 'betas must be numbers over 0'),
    'a beta without bound': (Affinity(betas=(float('inf'),)), 'betas must be numbers over 0'),
    'small crops': (IRN(training=TrainingSettings(crop=64)), 'training.crop must be at least 96'),
    'no epochs': (IRN(training=TrainingSettings(epochs=0)), 'training.epochs must be more than 0'),
    'no crop': (IRN(training=TrainingSettings(crop=0)), 'training.crop must be more than 0'),
    'a backbone': (Affinity(backbone=BackboneSettings('nonesuch')), 'backbone.name'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_cannot_work_is_told(wrong):
    settings, said = WRONG[wrong]
    with pytest.raises(InputError, match=said):
        check_settings(settings)


def test_settings_follow_the_first_network():
    method = IRN().following(Lead(side=320, crop=192, backbone=RANDOM.following(
        BackboneSettings('x', 'none', 8, False, 2, 'frozen'))))
    assert method.training.crop == 192
    assert method.backbone == BackboneSettings('resnet18', 'none', 8, False, 2, 'frozen')
    assert Affinity().following(Lead(side=64, crop=64)).training.crop == 96
    assert DenseCRF().following(Lead(side=64, crop=64)) == DenseCRF()
    given = IRN(training=TrainingSettings(crop=128)).following(Lead(side=64, crop=64))
    assert given.training.crop == 128


def test_true_masks_are_asked_for(photos, tmp_path):
    unmasked = Unmasked(photos.root, 'train')
    work = work_in(tmp_path, unmasked, None)
    with pytest.raises(InputError, match='train_00000.*this photo has no mask. Draw one'):
        TrueMasks().labels(work, 0, unmasked.image(0), None, 0.)
    assert TrueMasks().maker(work) is None
    assert TrueMasks.reads == ()


def test_labels_get_the_photos_size(photos, tmp_path):
    work = work_in(tmp_path, photos, None, longest=32)
    seen = []

    def make(image: Image.Image) -> np.ndarray:
        seen.append(max(image.size))
        return np.full(image.size[::-1], 3, np.uint8)

    write_labels(work, 0, make, tmp_path)
    labels = read_mask(tmp_path/f'{photos.ids[0]}.png')
    assert seen == [32]
    assert labels.shape == photos.image(0).size[::-1]
    assert (labels == 3).all()
    assert missing(photos, tmp_path, '.png') == [1, 2, 3, 4, 5]
    assert DenseCRF().things(work, 0) is None


def test_walking_goes_on_where_it_was(photos, cams, tmp_path):
    method = decided(Things(RANDOM, SMALL))
    whole = work_in(tmp_path/'whole', photos, cams)
    cut = work_in(tmp_path/'cut', photos, cams)
    method.write_sure_labels(cut)
    labels = sorted((tmp_path/'cut'/'labels').iterdir())
    kept = labels[0].stat().st_mtime_ns
    labels[2].unlink()
    walked = [made for _, made in looking(method.maker(whole), range(6), 0, 'whole')]
    again = [made for _, made in looking(method.maker(cut), range(6), 0, 'cut')]
    assert labels[0].stat().st_mtime_ns == kept
    for path in labels:
        assert path.read_bytes() == (tmp_path/'whole'/'labels'/path.name).read_bytes()
    weights = [load_file(tmp_path/name/'model.safetensors') for name in ('whole', 'cut')]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert all(np.array_equal(a.maps, b.maps) for a, b in zip(walked, again))
    assert (tmp_path/'whole'/'walk.json').read_bytes() == (tmp_path/'cut'/'walk.json').read_bytes()


@pytest.mark.parametrize('kind', [Things, Affinity, IRN])
def test_workers_change_nothing(kind, photos, cams, tmp_path):
    method = decided(kind(backbone=RANDOM, training=SMALL, betas=(10.,)))
    walked = {}
    for workers in (0, 2):
        work = work_in(tmp_path/str(workers), photos, cams)
        work = replace(work, machine=Machine(workers=workers))
        made = looking(method.maker(work), range(6), workers, 'walks')
        walked[workers] = [cam.maps for _, cam in made]
    assert all(np.array_equal(a, b) for a, b in zip(walked[0], walked[2]))
    chosen = [(tmp_path/workers/'walk.json').read_bytes() for workers in ('0', '2')]
    assert chosen[0] == chosen[1]


def test_without_masks_the_first_setting_is_taken(photos, cams, tmp_path):
    method = decided(Things(RANDOM, SMALL, betas=(7., 3.)))
    method.maker(work_in(tmp_path, Unmasked(photos.root, 'train'), cams, background=.15))
    chosen = json.loads((tmp_path/'walk.json').read_text())
    assert chosen == {'scores': [.3, .05], 'setting': {'beta': 7.}}


def test_given_scores_are_used(photos, cams, tmp_path):
    method = decided(Things(RANDOM, SMALL, scores=(.5, .1)))
    work = work_in(tmp_path, photos, cams)
    assert method.used_scores(work) == (.5, .1)
    assert decided(Things()).used_scores(work) == sure_scores(work.background)
    method.write_sure_labels(work)
    expected = cams[1].to_labels(.5, photos.image(1).size[::-1])
    assert np.array_equal(read_mask(tmp_path/'labels'/f'{photos.ids[1]}.png'), expected)


def test_a_cam_that_is_not_there_is_told(photos, tmp_path):
    nothing = StoredMaps(tmp_path/'cams', photos.ids)
    with pytest.raises(InputError, match=f'{photos.ids[0]}.npz'):
        decided(Things(RANDOM, SMALL)).maker(work_in(tmp_path/'refiner', photos, nothing))
    assert not (tmp_path/'refiner'/'model.safetensors').exists()


@pytest.mark.parametrize('method', [DenseCRF(), NoRefiner(), TrueMasks(), Affinity(), IRN()])
def test_refiners_can_be_pickled(method, photos, cams, tmp_path):
    assert pickle.loads(pickle.dumps(method)) == method
    if isinstance(method, Walking):
        write = SureLabels(method, work_in(tmp_path, photos, cams), (.5, .1))
        (tmp_path/'labels').mkdir()
        pickle.loads(pickle.dumps(write))(2)
        assert [p.stem for p in (tmp_path/'labels').iterdir()] == [photos.ids[2]]


@pytest.mark.parametrize('kind', [Affinity, IRN])
def test_a_walk_of_the_published_kind(kind, photos, cams, tmp_path):
    method = decided(kind(backbone=RANDOM, training=SMALL, betas=(10.,)))
    work = work_in(tmp_path, photos, cams)
    maker = method.maker(work)
    tried = json.loads((tmp_path/'walk.json').read_text())['tried']
    assert len(tried) == len(method.walk_settings())
    walked = maker(3)
    assert walked.maps.min() >= 0
    assert walked.maps.max() <= 1
    assert np.array_equal(walked.classes, cams[3].classes)
    labels = method.labels(work, 3, photos.image(3), walked, .3)
    assert labels.shape == photos.image(3).size[::-1]
    assert set(np.unique(labels)) <= {0, *(walked.classes + 1)}

    untagged = CAM(np.zeros(0, int), np.zeros((0, 16, 16), np.float32), walked.size)
    nothing = maker.see(maker.views(3)._replace(cam=untagged))
    assert not method.labels(work, 3, photos.image(3), nothing, .3).any()

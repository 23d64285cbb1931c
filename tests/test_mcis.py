"MCIS: pairs that nothing parts, trainings that go on or are shared, and what can't work."
import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wsss_nb import work as works
from wsss_nb.backbones import BackboneSettings, create_backbone
from wsss_nb.cam import MultiScale
from wsss_nb.classifier import WordClassifier
from wsss_nb.files import InputError
from wsss_nb.loaders import Place
from wsss_nb.mcis import (CoattentionClassifier, PairedCrops, are_alone, coattention_loss,
                          drawn_partner, first_stages, matched, tags_of)
from wsss_nb.mcis_system import MCIS_VOC, CoAttention, PartnerMaps, PartnerReader, Squash
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, Optimiser, TrainingSettings, train
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

ALONE = Machine(workers=0)
ON_CPU = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('mcis')/'shapes', train=13, val=6, size=64)


def small(**settings) -> CoAttention:
    "Two steps an epoch of three pairs, in a network of random weights."
    slow = Optimiser(.001)   # or small differences grow with every step
    training = TrainingSettings(epochs=2, batch_size=6, crop=48, optimiser=slow)
    value = CoAttention(BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen'), training,
                        width=8, convolutions=1)
    return replace(value, **settings).following(Lead(64, 64))


def test_a_shorter_backbone_has_the_stages_that_are_asked_for():
    backbone = create_backbone('resnet18', frozen_stages=2)
    short = first_stages(backbone, 3)
    assert (short.channels, short.output_stride, short.frozen_stages) == (128, 8, 2)
    assert first_stages(backbone, None) is backbone
    with pytest.raises(InputError, match='this backbone has 5 stages, not 6'):
        first_stages(backbone, 6)


def test_fixed_norms_stay_fixed_in_a_shorter_backbone():
    backbone = create_backbone('resnet18', frozen_stages=1, batch_norm='fixed')
    short = first_stages(backbone, 5)
    norms = [layer for layer in short.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert norms and not any(norm.weight.requires_grad for norm in norms)
    assert any(weight.requires_grad for weight in short.parameters())


class EarlyRandom(random.Random):
    "As of Python 3.11.0, where an empty sequence is looked for by its truth."

    def choice(self, seq):
        if not seq:
            raise IndexError('Cannot choose from an empty sequence')
        return seq[self._randbelow(len(seq))]


def test_partners_are_drawn_by_every_python():
    tags = np.array([[1, 0], [1, 1], [0, 1], [1, 0], [0, 0]])
    for seed in range(8):
        assert matched(tags, True, EarlyRandom(seed)) == matched(tags, True, random.Random(seed))
        for i in range(5):
            drawn = drawn_partner(tags, i, EarlyRandom(seed))
            assert drawn == drawn_partner(tags, i, random.Random(seed))


def test_the_published_network_has_the_published_size():
    decided = MCIS_VOC.following(512).classifier
    with torch.device('meta'):
        network = decided.network(20)
        assert network(torch.zeros(1, 3, 256, 256)).features.shape == (1, 512, 32, 32)
    assert sum(weights.numel() for weights in network.parameters()) == 22_077_268


@pytest.mark.parametrize('shared', [True, False])
def test_matching_is_as_large_as_it_promises(shared):
    for seed in range(20):
        generator = random.Random(seed)
        drawn = np.random.default_rng(seed).random((31, 5))
        tags = (drawn < .3).astype(float)
        pairs = matched(tags, shared, generator)
        counts = Counter(sum(pairs, ()))
        assert len(pairs) == 16 and set(counts) == set(range(31))
        assert sorted(counts.values())[-1] == 2
        good = [((tags[a] * tags[b]).any() == shared) and a != b for a, b in pairs]
        assert good == sorted(good, reverse=True)
        left = set(sum(pairs[sum(good):], ()))
        for a in left:
            assert not any((tags[a] * tags[b]).any() == shared for b in left - {a})


def test_who_is_alone_follows_from_the_tags():
    first = torch.tensor([[1., 0, 1], [1, 0, 0], [0, 0, 0]])
    second = torch.tensor([[0., 0, 1], [0, 1, 0], [0, 0, 0]])
    assert are_alone(first, second, 'batch').tolist() == [False, True, True]
    assert are_alone(first, second, 'pairs').tolist() == [False, True, True]
    assert are_alone(first, second, 'other').tolist() == [True, False, False]
    assert are_alone(first, second, 'self').tolist() == [True, True, True]


def test_a_photo_that_is_alone_sees_itself_only():
    torch.manual_seed(0)
    network = CoattentionClassifier(create_backbone('resnet18'), 8, width=8, convolutions=1).eval()
    a, b = torch.randn(2, 1, 8, 3, 4)
    alone = torch.ones(1, dtype=torch.bool)
    apart = network.pair_logits(a, b, alone)
    for n, x in enumerate((a, b)):
        for logits, wanted in zip(apart, network.pair_logits(x, x)):
            assert torch.allclose(logits[n], wanted[n], atol=1e-6)


def test_pairs_are_the_same_in_any_order(shapes):
    photos = VOCFolder(shapes, 'train')
    places = [Place(n % 2, n // 2) for n in range(14)]
    one = PairedCrops(photos, None, 3, 'batch')
    other = PairedCrops(photos, None, 3, 'batch')
    wanted = {place: one.pair(place) for place in sorted(places)}
    assert {place: other.pair(place) for place in places} == wanted
    assert len(one) == 7


@pytest.mark.parametrize('partners', ['batch', 'pairs'])
def test_a_training_that_was_cut_off_ends_the_same(partners, shapes, tmp_path, monkeypatch):
    photos = VOCFolder(shapes, 'train')
    method = small(partners=partners, changes=('mirror',))
    whole = Work(photos, tmp_path/'whole', ALONE, 5)
    monkeypatch.setattr(works, 'train', partial(train, checkpoint_steps=1))
    method.train(whole)
    cut = replace(whole, folder=tmp_path/'cut')
    with monkeypatch.context() as patched:
        patched.setattr(CoAttention, 'loss', failing_at(2))
        with pytest.raises(RuntimeError, match='power'):
            method.train(cut)
    method.train(cut)
    first = load_file(whole.folder/'model.safetensors')
    second = load_file(cut.folder/'model.safetensors')
    assert all(torch.equal(first[name], second[name]) for name in first)


def failing_at(step: int):
    "The loss of the method, until a step at which the power is cut."
    plain = CoAttention.loss

    def loss(self, network, batch, at):
        if at.step == step:
            raise RuntimeError('power')
        return plain(self, network, batch, at)

    return loss


def weights_after(method: CoAttention, photos: VOCFolder, folder: Path) -> dict:
    method.train(Work(photos, folder, ALONE, 5))
    return load_file(folder/'model.safetensors')


@pytest.mark.parametrize('partners', ['batch', 'self', 'other'])
def test_parts_take_the_step_of_the_whole(partners, shapes, tmp_path):
    photos = VOCFolder(shapes, 'train')
    method = small(partners=partners, rest_from=0., changes=('small',))
    whole = weights_after(method, photos, tmp_path/'whole')
    parts = replace(method, training=replace(method.training, accumulate=3))
    found = weights_after(parts, photos, tmp_path/'parts')
    for name, tensor in whole.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5)


SCRIPT = '''
import sys
from pathlib import Path
from wsss_nb.backbones import BackboneSettings
from wsss_nb.mcis_system import CoAttention
from wsss_nb.training import Machine, Optimiser, TrainingSettings, process
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

print(f'one of {process().num_processes} processes', flush=True)
photos = VOCFolder(sys.argv[1], 'train')
method = CoAttention(BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen'),
                     TrainingSettings(2, 8, crop=48, optimiser=Optimiser(.001)), width=8,
                     convolutions=1, changes=('mirror',))
method.following(Lead(64, 64)).train(Work(photos, Path(sys.argv[2]), Machine(workers=0)))
'''


def test_two_processes_end_where_one_does(shapes, tmp_path):
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    found = {}
    for processes in (1, 2):
        folder = tmp_path/f'with{processes}'
        launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
                  '--nproc_per_node', str(processes)]
        done = subprocess.run([*launch, str(script), str(shapes), str(folder)], env=ON_CPU,
                              capture_output=True, text=True, timeout=300)
        assert f'of {processes} processes' in done.stdout, done.stderr[-2000:]
        assert done.returncode == 0, done.stderr[-2000:]
        found[processes] = load_file(folder/'model.safetensors')
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('settings, said', [
    (dict(partners='all'), 'partners must be batch, pairs, self or other, not all'),
    (dict(likeness='sum'), 'likeness must be product or cosine, not sum'),
    (dict(changes=('mirror', 'huge')), "changes must be some of mirror, small, large, not "
                                       "('mirror', 'huge')"),
    (dict(temperature=0.), 'temperature must be more than 0, not 0.0'),
    (dict(kernel=2), 'kernel must be odd, not 2'),
    (dict(convolutions=-1), 'convolutions must be 0 or more, not -1'),
    (dict(long_side=(10, 20)), 'long_side must be two numbers of pixels'),
])
def test_settings_that_cannot_work(settings, said):
    assert [fault for fault in all_faults(replace(CoAttention(), **settings)) if said in fault]


def test_a_batch_is_made_of_pairs():
    odd = TrainingSettings(batch_size=15)
    [fault] = all_faults(CoAttention(training=odd))
    assert fault == ('training.batch_size must be even with partners batch, not 15: its photos '
                     'are in pairs')
    assert all_faults(CoAttention(training=odd, partners='pairs')) == []


@pytest.mark.parametrize('settings, said', [
    (dict(partners='all'), 'partners must be tag, self or other, not all'),
    (dict(count=0), 'count must be more than 0, not 0'),
    (dict(scale=-1.), 'scale must be more than 0, not -1.0'),
    (dict(changes=('tiny',)), 'changes must be some of mirror, small, large'),
    (dict(background=1.), 'background must be from 0 to below 1, not 1.0'),
])
def test_settings_of_maps_that_cannot_work(settings, said):
    assert [fault for fault in all_faults(PartnerMaps(**settings)) if said in fault]


def test_maps_with_partners_want_a_network_with_coattention(shapes, tmp_path):
    other = WordClassifier(create_backbone('resnet18'), 8, words=None)
    work = Work(VOCFolder(shapes, 'train'), tmp_path)
    with pytest.raises(InputError, match='choose classifier:mcis, or cams:multiscale'):
        PartnerMaps().maker(work, other)


class Reordered:
    "The same photos in another order."
    def __init__(self, photos: VOCFolder):
        self.photos = photos
        self.ids = photos.ids[::-1]
        self.classes = photos.classes

    def __len__(self) -> int:
        return len(self.photos)

    def tags(self, i: int) -> torch.Tensor:
        return self.photos.tags(len(self) - 1 - i)

    def image(self, i: int):
        return self.photos.image(len(self) - 1 - i)


def reader_of(photos, method: PartnerMaps = PartnerMaps()) -> PartnerReader:
    return PartnerReader(method, photos, tags_of(photos), 7, 64, (.5,) * 3, (.25,) * 3)


def test_partners_depend_on_the_photo_and_not_on_its_place(shapes):
    photos = VOCFolder(shapes, 'train')
    one = reader_of(photos)
    other = reader_of(Reordered(photos))
    last = len(photos) - 1
    for i in range(len(photos)):
        for tag in np.flatnonzero(one.tags[i]):
            here = [photos.ids[j] for j in one.partners_of(i, tag)]
            there = [other.photos.ids[j] for j in other.partners_of(last - i, tag)]
            assert here == there and len(here) == 3
            assert all(one.tags[photos.ids.index(name), tag] for name in here)


def test_controls_of_the_maps(shapes):
    photos = VOCFolder(shapes, 'train')
    itself = reader_of(photos, PartnerMaps('self'))
    apart = reader_of(photos, PartnerMaps('other', count=5))
    for i in range(len(photos)):
        assert itself.partners_of(i, 0) == [i] * 3
        for j in apart.partners_of(i, 0):
            assert j == i or not (apart.tags[i] * apart.tags[j]).any()


def test_maps_in_workers_on_other_photos_and_without_tags(shapes, tmp_path):
    torch.manual_seed(0)
    network = CoattentionClassifier(create_backbone('resnet18'), 8)
    photos = VOCFolder(shapes, 'val')
    work = Work(photos, tmp_path, longest=64)
    for method in (PartnerMaps(changes=('mirror', 'small', 'large')),
                   PartnerMaps(changes=(), squash=48), PartnerMaps(changes=('large',), scale=.5)):
        maker = method.maker(work, network)
        for i in range(2):
            cam = maker(i)
            height, width = photos.image(i).size[::-1]
            assert cam.maps.shape[1:] == ((height + 3) // 4, (width + 3) // 4)
            assert cam.classes.tolist() == np.flatnonzero(photos.tags(i)).tolist()
            assert 0 <= cam.maps.min() and cam.maps.max() <= 1
    blank = Untagged(photos)
    cam = PartnerMaps().maker(replace(work, photos=blank), network)(0)
    assert len(cam.classes) == len(cam.maps) == 0
    plain = MultiScale(scales=(1.,)).maker(work, network)(0)
    assert plain.maps.shape[1:] == cam.maps.shape[1:]


class Untagged(Reordered):
    "Photos that nobody has tagged."
    def tags(self, i: int) -> torch.Tensor:
        return torch.zeros(len(self.classes))

    def image(self, i: int):
        return self.photos.image(i)


def test_squashed_photos_are_squares_that_can_be_made_again(shapes):
    photos = VOCFolder(shapes, 'train')
    squash = Squash(40, (.5,) * 3, (.25,) * 3)
    state = torch.get_rng_state()
    crops = [squash(photos.image(0), {}, random.Random(seed))[0] for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert crops[0].shape == (3, 40, 40)
    assert torch.equal(crops[0], crops[1]) and not torch.equal(crops[0], crops[2])
    method = small(squash=True, partners='pairs')
    network = method.network(8)
    batch = method.crops(Work(photos, shapes), network)[Place(0, 1)]
    assert batch.images.shape == batch.targets['partner'].shape == (3, 48, 48)


def test_the_loss_in_bfloat16_is_near_that_in_float32(shapes):
    torch.manual_seed(0)
    method = small(likeness='product')
    network = method.network(8)
    example = method.example(8)
    images = torch.randn(2, 3, 48, 48)
    targets = example.targets | {'partner': images.flip(0), 'tags': torch.eye(8)[:2]}
    batch = example._replace(images=images, targets=targets)
    full = coattention_loss(network, batch)['total']
    with torch.autocast('cpu', torch.bfloat16):
        half = coattention_loss(network, batch)['total']
    assert half.dtype == torch.float32
    assert torch.allclose(full, half, rtol=.05)

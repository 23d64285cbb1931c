"SEAM: what can't work is refused, and a training that is cut off or cut up takes the same steps."
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from wsss_nb.backbones import BackboneSettings, create_backbone
from wsss_nb.cam import create_views
from wsss_nb.classifier import WordClassifier
from wsss_nb.deeplab_v1 import DeepLabV1, WideDeepLab
from wsss_nb.files import InputError
from wsss_nb.loaders import Batch, Place
from wsss_nb.onnx import TagsAndMaps, write_onnx
from wsss_nb.seam import (BLOCK, SEAM, SEAM_VOC, JitteredCrops, RefinedMaps, Seam, SeamClassifier,
                          correlate, quiet_loss, refined_cam, seam_loss, tagged)
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.training import At, Machine, Optimiser, TrainingSettings, parts_of, train
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

SMALL = Seam(BackboneSettings('resnet18', 'none', 16, True, 3, 'frozen'),
             TrainingSettings(epochs=3, batch_size=4, crop=64, optimiser=Optimiser(.001)),
             widths=(4, 5, 6), warm_up=.5)


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> VOCFolder:
    return VOCFolder(make_shapes(tmp_path_factory.mktemp('seam')/'shapes', 8, 0, 64), 'train')


def batch_of(count: int, side: int = 64) -> Batch:
    torch.manual_seed(1)
    tags = torch.zeros(count, 8)
    for n in range(count):
        tags[n, :1 + n % 3] = 1
    return Batch(torch.randn(count, 3, side, side), {'tags': tags})


@pytest.mark.parametrize('method, said', [
    (Seam(copy=0), 'copy must be more than 0, not 0'),
    (Seam(copy=1.5), 'copy must be at most 1, not 1.5'),
    (Seam(er=-1), 'er must be 0 or more, not -1'),
    (Seam(ecr=float('nan')), 'ecr must be 0 or more, not nan'),
    (Seam(warm_up=2), 'warm_up must be at most 1, not 2'),
    (Seam(hard=0), 'hard must be more than 0, not 0'),
    (Seam(dropout=-.1), 'dropout must be from 0 to below 1, not -0.1'),
    (Seam(dropout=1.), 'dropout must be from 0 to below 1, not 1.0'),
    (Seam(widths=(4, 0, 4)), 'widths must be three numbers over 0, not (4, 0, 4)'),
    (Seam(long_side=(64, 32)), 'long_side must be two numbers of pixels, 32 or more, the first not '
                               'above the second; not (64, 32)'),
    (Seam(training=TrainingSettings(epochs=0)), 'training.epochs must be more than 0, not 0'),
    (RefinedMaps(maps='both'), 'maps must be refined or raw, not both'),
    (RefinedMaps(merge='mean'), 'merge must be maximum or sum, not mean'),
    (RefinedMaps(scales=()), 'scales must be numbers from 0.0625 to 4, not ()'),
    (DeepLabV1(memory=0), 'memory must be more than 0, not 0'),
    (DeepLabV1(memory=2), 'memory must be at most 1, not 2'),
])
def test_what_cannot_work_is_said(method, said):
    assert all_faults(method) == [said]


def test_raw_maps_are_of_this_classifier(photos):
    plain = WordClassifier(create_backbone('resnet18'), 8, pooling='gap', words=None)
    work = Work(photos, Path('.'))
    with pytest.raises(InputError, match='cams.maps: this classifier has no raw maps'):
        RefinedMaps(maps='raw').maker(work, plain)
    cam = RefinedMaps(scales=(1.,)).maker(work, plain)(0)      # its own, stretched
    assert cam.maps.min() >= 0 and cam.maps.max() <= 1


@pytest.mark.parametrize('pcm', [True, False])
def test_maps_of_photos_of_any_size(photos, pcm):
    torch.manual_seed(0)
    network = SMALL.network(8) if pcm else replace(SMALL, pcm=False).network(8)
    for kind in ('refined', 'raw'):
        maker = RefinedMaps(scales=(.5, 1.), maps=kind).maker(Work(photos, Path('.')), network)
        cam = maker(3)
        assert cam.maps.shape[1:] == tuple((n - 1) // 4 + 1 for n in cam.size)
        assert cam.maps.dtype == np.float32 and 0 <= cam.maps.min() <= cam.maps.max() <= 1
    one = Image.new('RGB', (1, 1))
    views = create_views(one, torch.ones(8), (1.,), 64, (.5,) * 3, (.5,) * 3)
    with torch.inference_mode():
        assert refined_cam(network.eval(), views).maps.shape == (8, 1, 1)


def test_without_pcm_both_kinds_of_maps_are_raw():
    torch.manual_seed(0)
    network = replace(SMALL, pcm=False).network(8).eval()
    assert not any('mix' in name or 'reduce' in name for name in network.state_dict())
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(network.class_maps(images), network.raw_maps(images))
        assert network(images).refined is None


def test_a_network_in_one_stage_describes_places_by_colour():
    network = SeamClassifier(WholeStage(), 2, (4, 5, 6))
    assert network.mix.in_channels == 3 and not len(network.reduce)
    assert network(torch.randn(1, 3, 16, 24)).refined.shape == (1, 3, 8, 12)


class WholeStage(torch.nn.Module):
    "A backbone that can't be cut."
    channels = 7
    stage_channels = (7,)

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 7, 2, 2)

    def stage_features(self, images):
        return [self.layer(images)]


def test_photos_without_tags_and_the_smallest_maps():
    maps = [torch.randn(2, 4, 1, 1, requires_grad=True) for _ in range(4)]
    loss = seam_loss(*maps, torch.zeros(2, 3), ((1, 1), (1, 1)))
    assert loss.er == loss.minimum == 0 and loss.total.isfinite()
    loss.total.backward()
    assert all(m.grad is None or m.grad.isfinite().all() for m in maps)
    assert quiet_loss(torch.tensor([[[[.5]]]])) == .5
    classes, counts = tagged(torch.zeros(2, 3))
    assert classes.shape == (2, 1) and not counts.any()


def test_features_of_zeros_are_like_nothing():
    features = torch.zeros(1, 4, 3, 3, requires_grad=True)
    refined = correlate(torch.rand(1, 2, 3, 3), features)
    assert not refined.any()
    refined.sum().backward()
    assert features.grad.isfinite().all()


def test_blocks_of_columns_are_few_in_training():
    assert BLOCK >= 56 ** 4      # crops of 448 pixels at stride 8: all of them at once


@pytest.mark.parametrize('parts', [2, 3, 4])
def test_parts_of_a_batch_take_the_step_of_the_whole(parts):
    torch.manual_seed(0)
    network = SMALL.network(8).train()
    batch = batch_of(5)
    at = At(step=9, steps=10, steps_per_epoch=5)
    whole = SMALL.loss(network, batch, at)
    whole['total'].backward()
    gradients = {name: p.grad.clone() for name, p in network.named_parameters()
                 if p.grad is not None}
    network.zero_grad()
    for part in parts_of(batch, parts):
        share = len(part.images) / len(batch.images)
        (share * SMALL.loss(network, part, at)['total']).backward()
    for name, p in network.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-5)


def test_equivariance_counts_after_the_warm_up():
    torch.manual_seed(0)
    network = SMALL.network(8)
    batch = batch_of(2)
    for step, counts in ((0, False), (4, False), (5, True), (9, True)):
        terms = SMALL.loss(network, batch, At(step, 10, 5))
        rest = terms['tags'] + terms['minimum'] + terms['ecr']
        assert ((terms['total'] - rest).abs() > 1e-6).item() == counts
    without = replace(SMALL, er=0.).loss(network, batch, At(9, 10, 5))
    torch.testing.assert_close(without['total'], rest)


@pytest.mark.parametrize('autocast', [False, True])
def test_bfloat16_agrees(autocast):
    torch.manual_seed(0)
    network = SMALL.network(8).eval()
    batch = batch_of(2)
    at = At(9, 10, 5)
    whole = SMALL.loss(network, batch, at)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        half = SMALL.loss(network, batch, at)
    assert half['total'].dtype == torch.float32
    torch.testing.assert_close(half['total'], whole['total'], rtol=.1, atol=.1)


class CutOff(Exception):
    "The machine goes down."


def stopping_at(step: int, network, batch, at):
    if at.step == step:
        raise CutOff
    return SMALL.loss(network, batch, at)


@pytest.mark.parametrize('step', [2, 4])   # within the warm-up, and behind it
def test_a_training_that_was_cut_off_ends_in_the_same_weights(photos, tmp_path, step):
    method = replace(SMALL, dropout=.5).following(Lead(64, 64))
    work = Work(photos, tmp_path/'whole', Machine(workers=0), seed=3)
    whole = method.train(work)
    torch.manual_seed(3)
    network = method.network(8, first=True)
    stopped = partial(stopping_at, step)
    with pytest.raises(CutOff):
        train(network, method.crops(work, network), stopped, tmp_path/'cut', method.training,
              Machine(workers=0), 3, checkpoint_steps=1)
    assert list((tmp_path/'cut').glob('checkpoint-*'))
    again = method.train(replace(work, folder=tmp_path/'cut'))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert load_file(tmp_path/'cut'/'model.safetensors').keys() == whole.state_dict().keys()


SCRIPT = """
import pickle
import sys
from wsss_nb.training import process

print(f'one of {process().num_processes} processes', flush=True)
with open(sys.argv[1], 'rb') as file:
    method, work = pickle.load(file)
method.train(work)
"""


@pytest.mark.parametrize('pcm', [True, False])
def test_two_processes_end_where_one_does(photos, tmp_path, pcm):
    method = replace(SMALL, pcm=pcm).following(Lead(64, 64))
    work = Work(photos, tmp_path/'one', Machine(workers=0))
    one = method.train(work).state_dict()
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    (tmp_path/'work.pkl').write_bytes(pickle.dumps((method, replace(work, folder=tmp_path/'two'))))
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node',
              '2', str(script), str(tmp_path/'work.pkl')]
    on_cpu = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=on_cpu)
    assert done.returncode == 0 and 'of 2 processes' in done.stdout, done.stderr[-2000:]
    for name, tensor in load_file(tmp_path/'two'/'model.safetensors').items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-3, atol=1e-5)


def test_colours_change_from_crop_to_crop_and_can_be_repeated(photos, tmp_path):
    method = replace(SMALL, jitter=True).following(Lead(64, 64))
    crops = method.crops(Work(photos, tmp_path, seed=5), method.network(8))
    assert isinstance(crops, JitteredCrops)
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    first = crops[Place(0, 2)]
    assert torch.rand(1) == drawn            # the numbers of the training are left alone
    assert torch.equal(crops[Place(0, 2)].images, first.images)
    assert not torch.equal(crops[Place(1, 2)].images, first.images)
    assert first.targets['tags'].shape == (8,)


def test_the_classifier_goes_out_as_onnx(tmp_path):
    pytest.importorskip('onnxruntime')
    torch.manual_seed(0)
    outputs = ('class_maps', 'tags')
    difference = write_onnx(TagsAndMaps(SMALL.network(3)), tmp_path/'seam.onnx', outputs, 16)
    assert difference < 1e-3


def test_the_segmenter_learns_with_parts_and_answers_one_photo():
    method = DeepLabV1(BackboneSettings('resnet18', 'none', 16, True, 0, 'learned'))
    network = method.following(Lead(64, 64)).network(3)
    assert isinstance(network, WideDeepLab)
    mask = torch.randint(4, (4, 64, 64))
    images = torch.randn(4, 3, 64, 64)
    for part in parts_of(Batch(images, {'mask': mask}), 2):
        assert method.loss(network.train(), part, At(0, 1, 1))['total'].isfinite()
    with torch.no_grad():
        assert network.eval()(images[:1, :, :33, :50]).shape == (1, 4, 3, 4)


def test_systems_are_whole():
    assert SEAM.following(160).classifier.training.crop == 128    # 5/8 of 160, a multiple of 32
    assert SEAM.following(160).classifier.copy == .7
    decided = SEAM_VOC.following(512)
    assert decided.classifier.copy == .3
    assert decided.refiner.steps == 64 and decided.refiner.alphas == (6.,)
    assert decided.refiner.training.crop == 448 and decided.classifier.long_side == (448, 768)

"1Stage: what is refused, what stays and what learns, and a training that was cut off."
import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from wsss_nb.backbones import Backbone, BackboneSettings, create_backbone
from wsss_nb.cam import MultiScale
from wsss_nb.classifier import WordClassifier
from wsss_nb.files import InputError
from wsss_nb.loaders import Batch
from wsss_nb.one_stage import (FixedStatistics, GlobalCue, OneStageNetwork, PlainNorm,
                               balanced_loss, mask_scores, pseudo_labels, refined_masks)
from wsss_nb.one_stage_system import (ONE_STAGE, ONE_STAGE_DEEPLAB, ONE_STAGE_VOC, DecoderSettings,
                                      MaskCRF, OneStage, OneStageMasks, OneStageSegmenter,
                                      as_masks, mean_masks, to_cam)
from wsss_nb.methods import stages_of
from wsss_nb.prediction import PredictionSettings, predict_labels, window_logits
from wsss_nb.run import Config
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.terms import time_training
from wsss_nb.training import At, Machine, Optimiser, TrainingSettings
from wsss_nb.visual_words import VisualWords
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

RESNET = BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen')
NARROW = DecoderSettings(16, (3, 6, 9), .3, 3.)
LEARNING = TrainingSettings(epochs=2, batch_size=4, crop=64, optimiser=Optimiser(.001))
SMALL = OneStage(RESNET, LEARNING, NARROW, pixels_from=1.)


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> VOCFolder:
    root = make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=8, val=2, size=96)
    return VOCFolder(root, 'train')


@pytest.fixture(scope='module')
def network() -> OneStageNetwork:
    torch.manual_seed(0)
    return SMALL.network(8).eval()


@pytest.mark.parametrize('method, said', [
    (OneStage(rounds=-1), 'rounds must be 0 or more, not -1'),
    (OneStage(pixels_from=-1), 'pixels_from must be 0 or more, not -1'),
    (OneStage(long_side=(64, 48)), 'long_side must be two numbers of pixels, 32 or more, the first '
     'not above the second; not (64, 48)'),
    (OneStageMasks(power=0), 'power must be more than 0, not 0'),
    (OneStageMasks(background=1.), 'background must be from 0 to below 1, not 1.0'),
    (OneStageSegmenter(threshold=1.), 'threshold must be from 0 to below 1, not 1.0'),
    (OneStageSegmenter(power=0), 'power must be more than 0, not 0'),
    (DecoderSettings(width=20), 'width must be a multiple of 16, not 20'),
    (DecoderSettings(gate=1.), 'gate must be from 0 to below 1, not 1.0'),
    (DecoderSettings(dilations=(1, 2, 0)),
     'dilations must be three numbers over 0, not (1, 2, 0)'),
])
def test_what_cannot_work_is_said(method, said):
    assert said in all_faults(method)


def test_the_decoder_is_named_in_what_is_said():
    method = OneStage(decoder=DecoderSettings(gate=2.))
    assert all_faults(method) == ['decoder.gate must be from 0 to below 1, not 2.0']


def test_the_segmenter_needs_its_classifier():
    with pytest.raises(InputError, match='segmenter one-stage is the network of classifier one-st'):
        replace(ONE_STAGE, classifier=VisualWords()).following(64)


def test_the_segmenter_has_the_decoder_of_the_classifier():
    wide = replace(ONE_STAGE, classifier=replace(SMALL, decoder=DecoderSettings(width=64)))
    decided = wide.following(64)
    assert decided.classifier.decoder == DecoderSettings(64, (3, 6, 9), .3, 3.)
    assert decided.segmenter.decoder == decided.classifier.decoder
    assert decided.segmenter.backbone == decided.classifier.backbone
    assert decided.following(512) == decided


def test_a_backbone_must_have_features_of_stride_4():
    stages = [torch.nn.Conv2d(3, 8, 3, 8, 1), torch.nn.Conv2d(8, 8, 3, 1, 1)]
    backbone = Backbone(stages, [8, 8], [8, 8], (.5,) * 3, (.5,) * 3)
    with pytest.raises(InputError, match='a stride of 4 pixels, and this backbone has 8, 8'):
        OneStageNetwork(backbone, 3)


def test_stages():
    in_one = ('classify', 'cams', 'refine', 'predict', 'evaluate')
    assert stages_of(ONE_STAGE) == stages_of(ONE_STAGE_VOC) == in_one
    assert 'segment' in stages_of(ONE_STAGE_DEEPLAB)


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize('name, stride, whole, plain', [
    ('wideresnet38', 8, 137_973_172, 105_152_832),
    ('resnet101', 16, 60_198_068, 42_541_120),
    ('resnet50', 16, 41_205_940, 23_548_992),
    ('vgg16', 8, 30_579_636, 20_504_384),
])
def test_as_many_parameters_as_published(name, stride, whole, plain):
    with torch.device('meta'):
        backbone = create_backbone(name, output_stride=stride)
        assert parameters(OneStageNetwork(backbone, 20)) == whole
        assert parameters(WordClassifier(backbone, 20, pooling='gap', words=None)) == plain
        assert parameters(GlobalCue(256, 256)) == 263_680


@pytest.mark.parametrize('name, width', [('efficientnet_lite0', 48), ('resnet18', 64)])
def test_the_width_follows_the_backbone(name, width):
    with torch.device('meta'):
        network = OneStageNetwork(create_backbone(name, output_stride=16), 3)
    assert network.merge[0].out_channels == width
    assert network.skip[0].out_channels == 3 * width // 16


def test_what_a_step_moves(photos, network):
    learning = SMALL.network(8)
    learning.load_state_dict(network.state_dict())
    batch = SMALL.example(8)
    batch.targets['tags'][:, 2] = 1
    learning.train()
    before = {name: tensor.clone() for name, tensor in learning.state_dict().items()}
    optimiser = torch.optim.SGD(learning.parameters(), .1)
    images = torch.randn(batch.images.shape)
    SMALL.loss(learning, Batch(images, batch.targets), At(0, 4, 2))['total'].backward()
    optimiser.step()
    moved = {name for name, tensor in learning.state_dict().items()
             if not torch.equal(tensor, before[name])}
    names = [name for name in before if name.endswith(('running_mean', 'running_var'))]
    assert not any(name in moved for name in names if name.startswith(('backbone', 'aspp')))
    assert all(name in moved for name in names if not name.startswith(('backbone', 'aspp')))
    weights = [name for name, _ in learning.named_parameters() if name.startswith('aspp')]
    assert all(name in moved for name in weights)


def test_norms():
    assert not FixedStatistics(4).train().training
    plain = PlainNorm(4).train()
    assert list(plain.parameters()) == []
    assert set(plain.state_dict()) == {'running_mean', 'running_var', 'num_batches_tracked'}
    normalised = plain(5 + 3 * torch.randn(4, 4, 16, 16))
    torch.testing.assert_close(normalised.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalised.var((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_pixels_count_from_their_epoch_on():
    torch.manual_seed(0)
    network = SMALL.network(8).train()
    batch = Batch(torch.randn(2, 3, 64, 64), {'tags': torch.eye(8)[:2]})
    terms = [SMALL.loss(network, batch, At(step, 8, 4)) for step in (3, 4)]
    assert set(terms[0]) == set(terms[1])
    assert terms[0]['pixels'] == terms[0]['passed'] == 0
    assert 0 <= terms[1]['passed'] <= 1


def test_masks_without_tags_are_never_filtered():
    masks = torch.rand(2, 4, 8, 8).softmax(1)
    tags = torch.tensor([[1., 0, 0], [0, 0, 1]])
    refined = refined_masks(masks, torch.rand(2, 3, 16, 16), tags)
    assert refined.shape == (2, 4, 16, 16)
    assert not refined[0, 2:].any() and not refined[1, 1:3].any()
    assert refined[0, :2].all() and refined[1, 3].all()


def test_a_photo_without_tags_has_a_background():
    masks = mask_scores(torch.randn(1, 2, 6, 6)).masks
    labels = pseudo_labels(masks, torch.zeros(1, 2))
    assert set(labels.unique().tolist()) <= {0, 255}
    assert balanced_loss(torch.randn(1, 3, 6, 6), labels, torch.zeros(1, 2)).isfinite().all()
    unknown = torch.full((1, 6, 6), 255)
    assert balanced_loss(torch.randn(1, 3, 6, 6), unknown, torch.zeros(1, 2)).tolist() == [0]


@pytest.mark.parametrize('rounds', [0, 2])
def test_half_precision(rounds):
    torch.manual_seed(0)
    method = replace(SMALL, rounds=rounds)
    network = method.network(8).train()
    batch = Batch(torch.randn(2, 3, 64, 64), {'tags': torch.eye(8)[:2]})
    with torch.autocast('cpu', torch.bfloat16):
        terms = method.loss(network, batch, At(4, 8, 4))
    assert terms['total'].isfinite() and terms['total'].dtype == torch.float32
    terms['total'].backward()


def cut_off(at: At, step: int) -> None:
    "Press Ctrl-C after a step."
    if at.step == step:
        os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize('accumulate', [1, 2])
def test_a_training_goes_on_to_the_last_bit(photos, tmp_path, accumulate):
    method = replace(SMALL, training=replace(LEARNING, accumulate=accumulate))
    method = method.following(Lead(64, 64))
    whole = Work(photos, tmp_path/'whole', Machine(workers=0))
    method.train(whole)
    parts = replace(whole, folder=tmp_path/'parts',
                    machine=Machine(workers=0, step_done=partial(cut_off, step=2)))
    with pytest.raises(KeyboardInterrupt):
        method.train(parts)
    assert list(parts.folder.glob('checkpoint-*'))
    method.train(replace(parts, machine=Machine(workers=0)))
    found = [load_file(work.folder/'model.safetensors') for work in (whole, parts)]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


SCRIPT = '''
import sys
import torch
from pathlib import Path
from dataclasses import replace
from wsss_nb.backbones import BackboneSettings
from wsss_nb.one_stage_system import DecoderSettings, OneStage
from wsss_nb.training import Machine, Optimiser, TrainingSettings, process
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

data, out = map(Path, sys.argv[1:])
method = OneStage(BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen'),
                  TrainingSettings(2, 4, 64, optimiser=Optimiser(.001)),
                  DecoderSettings(16), pixels_from=1.).following(Lead(64, 64))
network = method.train(Work(VOCFolder(data, 'train'), out/'run', Machine(workers=0)))
torch.save(network.state_dict(), out/str(process().process_index))
'''


def test_two_processes_learn_one_network(photos, tmp_path):
    script = tmp_path/'train.py'
    script.write_text(SCRIPT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [*launch, '--nproc_per_node', '2', str(script), str(photos.root), str(tmp_path)]
    on_cpu = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=on_cpu)
    assert done.returncode == 0, done.stderr[-2000:]
    states = [torch.load(tmp_path/str(n)) for n in (0, 1)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert len((tmp_path/'run'/'log.csv').read_text().splitlines()) == 2


def test_maps_of_a_photo(photos, network):
    method = OneStageMasks(scales=(1., .5), power=3.)
    maker = method.maker(Work(photos, photos.root), network)
    cam = maker(0)
    tags = photos.tags(0).nonzero().flatten()
    assert cam.classes.tolist() == tags.tolist()
    assert 0 <= cam.maps.min() and cam.maps.max() <= 1
    views = maker.views(0)
    with torch.inference_mode():
        masks = mean_masks(network, views)
    published = torch.cat([masks[:1] ** 3, masks[1:]]).argmax(0)
    wanted = np.append(0, tags + 1)[published]
    assert np.array_equal(cam.to_labels(.5, cam.maps.shape[1:]), wanted)
    # the maps are a CAM for whoever wants one, too
    usual = MultiScale((1.,)).maker(Work(photos, photos.root), network)(0)
    assert usual.maps.shape == cam.maps.shape


def test_maps_are_masks_again():
    masks = torch.rand(4, 5, 6).softmax(0)
    cam = to_cam(masks, torch.arange(3), (5, 6))
    assert np.allclose(as_masks(cam.maps, .5), masks, atol=1e-6)
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 24, 3), np.uint8))
    labels = MaskCRF().labels(None, 0, photo, cam, .5)
    assert labels.shape == (20, 24) and labels.dtype == np.uint8
    untagged = to_cam(masks[:1], torch.zeros(0).long(), (5, 6))
    assert not MaskCRF().labels(None, 0, photo, untagged, .5).any()


def test_predictions_of_large_photos_come_in_windows(network):
    segmenter = OneStageSegmenter(scales=(1.,)).following(
        Lead(64, 64, SMALL.backbone, SMALL))
    predictor = segmenter.network(8).eval()
    predictor.load_state_dict(network.state_dict())
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 150, 3), np.uint8))
    with torch.inference_mode():
        assert window_logits(predictor, photo).shape == (9, 18, 38)
        assert window_logits(predictor, photo, window=96).shape == (9, 18, 38)
    labels = predict_labels(predictor, photo, PredictionSettings((1.,), window=96))
    assert labels.shape == (70, 150)
    crf = predict_labels(predictor, photo, PredictionSettings((1.,), crf=True))
    assert crf.shape == (70, 150)


def test_the_segmenter_takes_over_the_trained_network(photos, network, tmp_path):
    segmenter = OneStageSegmenter().following(Lead(64, 64, SMALL.backbone, SMALL))
    taken = segmenter.train(Work(photos, tmp_path, network=network))
    images = torch.randn(1, 3, 40, 56)
    predictor = segmenter.network(8).eval()
    predictor.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(taken(images).cpu(), predictor(images))


def test_a_budget_is_timed_with_the_pixels(photos, tmp_path, monkeypatch):
    counted = []
    loss = OneStage.loss

    def noted(self, network, batch, at):
        counted.append(at.epoch >= self.pixels_from)
        return loss(self, network, batch, at)
    monkeypatch.setattr(OneStage, 'loss', noted)
    system = replace(ONE_STAGE, classifier=SMALL)
    time_training(Config(photos.root, tmp_path/'run', system, workers=0))
    assert counted and all(counted)

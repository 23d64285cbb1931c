"Every network of the tables, at its published size, takes steps in float32 and in bfloat16."
import gc
from typing import Callable, NamedTuple

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from wsss_nb.affinity import AffinityNet, affinity_training_loss
from wsss_nb.backbones import create_backbone
from wsss_nb.classifier import WordClassifier, tag_loss
from wsss_nb.deeplab import DeepLabLargeFOV, DeepLabV2
from wsss_nb.irn import IRNet, irn_training_loss
from wsss_nb.loaders import Batch
from wsss_nb.segmentation import segmentation_loss
from wsss_nb.training import OPTIMISERS, Machine, TrainingSettings, train

NEW_LAYERS = ('classifier.', 'aspp.', 'scores.', 'mix.')


def tags_loss(network, batch, at):
    return tag_loss(network, batch)


def sure_loss(network, batch, at):
    return affinity_training_loss(network, batch)


def edges_loss(network, batch, at):
    return irn_training_loss(network, batch)


def one_scale(network, batch, at):
    return segmentation_loss(network, batch)


def three_scales(network, batch, at):
    return segmentation_loss(network, batch, (1, .75, .5), stride=None)


def words(backbone, **options):
    return WordClassifier(backbone, 20, **options)


def plain(backbone):
    return WordClassifier(backbone, 20, pooling='gap', words=None)


def deeplab(backbone):
    return DeepLabV2(backbone, 21)


def dilated(name, frozen_stages=0, **options):
    return create_backbone(name, output_stride=8, dilate=True, frozen_stages=frozen_stages,
                           **options)


class Case(NamedTuple):
    "A network of the tables, and how it is trained here."
    build: Callable[[], nn.Module]
    loss: Callable
    side: int             # pixels of a crop
    target: str           # 'tags' or 'mask'
    answer: tuple         # shape in evaluation mode
    parts: int = 1        # that a batch is cut into


NETWORKS = {
    'classifier of IJCAI, ResNet-50': Case(
        lambda: words(create_backbone('resnet50', frozen_stages=3)), tags_loss, 64, 'tags',
        (1, 20)),
    'classifier of IJCV, ResNet-101': Case(
        lambda: words(create_backbone('resnet101', frozen_stages=3)), tags_loss, 64, 'tags',
        (1, 20)),
    'classifier with a memory bank': Case(
        lambda: words(create_backbone('resnet50'), words='memory'), tags_loss, 64, 'tags',
        (1, 20)),
    'classifier of AffinityNet, WideResNet38': Case(
        lambda: plain(dilated('wideresnet38', 4)), tags_loss, 48, 'tags', (1, 20)),
    'classifier, VGG16': Case(
        lambda: plain(dilated('vgg16', 2)), tags_loss, 48, 'tags', (1, 20)),
    'AffinityNet, WideResNet38': Case(
        lambda: AffinityNet(dilated('wideresnet38', 4)), sure_loss, 80, 'mask', (1, 448, 10, 10)),
    'AffinityNet, VGG16': Case(
        lambda: AffinityNet(dilated('vgg16', 2)), sure_loss, 80, 'mask', (1, 448, 10, 10)),
    'IRNet, ResNet-50': Case(
        lambda: IRNet(create_backbone('resnet50')), edges_loss, 96, 'mask', (1, 24, 24)),
    'DeepLabv2, ResNet-101': Case(
        lambda: deeplab(dilated('resnet101')), three_scales, 65, 'mask', (1, 21, 9, 9), parts=2),
    "DeepLabv2, Caffe's ResNet-101": Case(
        lambda: deeplab(dilated('resnet101_caffe')), three_scales, 65, 'mask', (1, 21, 9, 9)),
    'DeepLab-LargeFOV, VGG16': Case(
        lambda: DeepLabLargeFOV(21), three_scales, 65, 'mask', (1, 21, 9, 9)),
    'DeepLabv2, WideResNet38': Case(
        lambda: deeplab(dilated('wideresnet38', 4)), one_scale, 33, 'mask', (1, 21, 5, 5)),
    'the small network': Case(
        lambda: deeplab(create_backbone('efficientnet_lite0', dilate=True)), one_scale, 64, 'mask',
        (1, 21, 4, 4)),
    'the small network, whose batch norm learns': Case(
        lambda: deeplab(create_backbone('efficientnet_lite0', dilate=True, batch_norm='learned')),
        one_scale, 64, 'mask', (1, 21, 4, 4)),
}


class Crops(Dataset):
    "Two random crops."
    def __init__(self, side, target):
        self.side = side
        self.target = target

    def __len__(self):
        return 2

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place.index)
        image = torch.randn(3, self.side, self.side, generator=generator)
        if self.target == 'tags':
            return Batch(image, {'tags': torch.eye(20)[place.index]})
        mask = torch.zeros(self.side, self.side, dtype=torch.long)
        mask[:, self.side // 2:] = 3
        mask[0] = 255
        return Batch(image, {'mask': mask})


def calm(network):
    """Small steps in each block: untrained, and with batch norm at rest, a deep network's features
    would grow without bound."""
    for name, layer in network.named_modules():
        if name.endswith('bn3'):
            nn.init.constant_(layer.weight, .1)


def small_parameters(network):
    "Copies of the parameters that don't take much memory, by name."
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()
            if parameter.numel() < 2e5}


@pytest.fixture(params=['no', 'bf16'])
def precision(request):
    return request.param


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_trains_and_answers(name, precision, tmp_path, monkeypatch):
    case = NETWORKS[name]
    torch.manual_seed(0)
    network = case.build()
    calm(network)
    before = small_parameters(network)
    # 0.4 GB for the largest; saving has tests of its own
    monkeypatch.setattr('wsss_nb.training.save_model', lambda network, folder: None)
    settings = TrainingSettings(epochs=1, batch_size=2, optimiser=OPTIMISERS['deeplab'],
                                accumulate=case.parts)
    network = train(network, Crops(case.side, case.target), case.loss, tmp_path, settings,
                    Machine(precision, workers=0), log_steps=1)
    after = dict(network.named_parameters())
    changed = {name for name, values in before.items() if not torch.equal(after[name], values)}
    assert changed and all(after[name].requires_grad for name in changed)
    assert all(name in changed for name in before if name.startswith(NEW_LAYERS))
    for parameter in network.parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
    assert 'nan' not in (tmp_path/'log.csv').read_text()
    with torch.inference_mode():
        said = network(torch.randn(1, 3, case.side, case.side))
        said = getattr(said, 'image', getattr(said, 'boundary', said))
    assert said.shape == case.answer and said.isfinite().all()
    del network, before, after
    gc.collect()

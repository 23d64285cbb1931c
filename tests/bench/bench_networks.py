"""What a network does: pooling, words, a training step, maps, predictions.

A stage is a function that gives a `Stage`, see bench_refiners.py. Networks have random weights, so
their maps are noise, and labels that agree there agree the more where maps say something."""
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from paired import MEMORY_TABLE, Stage, memory_row, write_rows
from PIL import Image
from published import cams, hspp as published_hspp, logits, words as published_words

from wsss_nb.backbones import create_backbone
from wsss_nb.cam import cam_of_views, create_views
from wsss_nb.classifier import WordClassifier
from wsss_nb.codebook import encode_words
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.pooling import hspp
from wsss_nb.prediction import PredictionSettings, finish_labels, logits_of, scaled
from wsss_nb.settings import device
from wsss_nb.work import quick, usual_precision

CAM_SCALES = (1., .5, 1.5, 2.)
LAYOUTS = {'plain': torch.contiguous_format, 'channels last': torch.channels_last}


def a_photo(height: int, width: int) -> Image.Image:
    "Smooth colours with noise."
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 6, 8, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode='bicubic', align_corners=False)[0]
    noise = .05 * torch.randn(3, height, width, generator=generator)
    pixels = ((smooth + noise).clamp(0, 1) * 255).byte().permute(1, 2, 0)
    return Image.fromarray(pixels.numpy())


def features_of(small: bool, layout: str) -> torch.Tensor:
    "As of ResNet-50 for four crops of 512 pixels."
    torch.manual_seed(0)
    size = (2, 32, 8, 8) if small else (4, 2048, 32, 32)
    return torch.randn(size).relu().contiguous(memory_format=LAYOUTS[layout])


def largest_difference(ours, published) -> float:
    "Of the first tensors, as a share of the largest value."
    return float((ours[0] - published[0]).abs().max() / published[0].abs().max())


def both_ways(pooling, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    "The pooled features, and their gradient."
    given = features.detach().requires_grad_()
    pooled = pooling(given)
    pooled.sum().backward()
    return pooled.detach(), given.grad


def pooling(small: bool, layout: str) -> Stage:
    "HSPP, forward and backward."
    features = features_of(small, layout)
    return Stage(
        f'HSPP, forward and backward, {layout}', partial(both_ways, hspp, features),
        partial(both_ways, published_hspp, features), largest_difference, 'largest difference',
        bar=1.5, rounds=2 if small else 9)


def taught(encode, features: torch.Tensor, codebook: torch.Tensor) -> list[torch.Tensor]:
    "Probabilities of words, and the gradient of the codebook."
    given = codebook.detach().requires_grad_()
    probabilities, histogram, _ = encode(features, given)
    histogram.square().sum().backward()
    return [probabilities.detach(), given.grad]


def words(small: bool, layout: str) -> Stage:
    "Words, forward and backward."
    features = features_of(small, layout)
    codebook = torch.randn(16 if small else 256, features.shape[1])
    return Stage(
        f'words, forward and backward, {layout}', partial(taught, encode_words, features, codebook),
        partial(taught, published_words, features, codebook), largest_difference,
        'largest difference', rounds=2 if small else 9)


def head(encode, pool, features: torch.Tensor, codebook: torch.Tensor) -> list[torch.Tensor]:
    "All that the method adds to a backbone, forward and backward."
    given = features.detach().requires_grad_()
    words_given = codebook.detach().requires_grad_()
    pooled = pool(given)
    _, histogram, _ = encode(given, words_given)
    (pooled.sum() + histogram.square().sum()).backward()
    return [pooled.detach(), given.grad, words_given.grad]


def words_and_pooling(small: bool, layout: str) -> Stage:
    "Words and HSPP, forward and backward."
    features = features_of(small, layout)
    codebook = torch.randn(16 if small else 256, features.shape[1])
    return Stage(
        f'words and HSPP, {layout}', partial(head, encode_words, hspp, features, codebook),
        partial(head, published_words, published_hspp, features, codebook), largest_difference,
        'largest difference', bar=1.5, rounds=2 if small else 9)


def classifier(small: bool) -> WordClassifier:
    torch.manual_seed(0)
    name = 'resnet18' if small else 'resnet50'
    return WordClassifier(create_backbone(name, None, 16, True, 3), 20).eval()


def equal_labels(ours, published: torch.Tensor) -> float:
    "The share of cells with the same label, at a background of 0.25."
    scores = F.pad(published, (0, 0, 0, 0, 1, 0), value=.25)
    labels = torch.tensor([0, *(ours.classes + 1)])[scores.argmax(0)].numpy()
    return float((ours.to_labels(.25, labels.shape) == labels).mean())


@torch.inference_mode()
def maps(small: bool) -> Stage:
    "The maps of a photo, which has been decoded and resized, with three tags."
    network = classifier(small)
    backbone = network.backbone
    photo = a_photo(60, 80) if small else a_photo(375, 500)
    tags = torch.zeros(20)
    tags[[2, 7, 14]] = 1
    views = create_views(photo, tags, CAM_SCALES, 1024, backbone.mean, backbone.std)
    looker = quick(network, usual_precision(backbone, device()))
    no_gradient = torch.inference_mode()
    return Stage(
        f'CAMs of a photo of {photo.width} x {photo.height}',
        ours=no_gradient(partial(cam_of_views, looker, views)),
        published=no_gradient(partial(cams, network, views.images, views.size, tags)),
        agreement=equal_labels, agreed_on='equal labels, share', bar=2.8, rounds=2 if small else 5)


def a_step(network: torch.nn.Module, images: torch.Tensor, precision: str) -> torch.Tensor:
    "The gradients of one step, and its loss."
    is_mixed = precision == 'bf16'
    with torch.autocast(device().type, torch.bfloat16, enabled=is_mixed):
        answers = network(images)
        loss = sum(answer.float().square().mean() for answer in answers[:3])
    loss.backward()
    network.zero_grad()
    return loss.detach()[None]


class PublishedClassifier(torch.nn.Module):
    "The same network, with the published pooling and words."
    def __init__(self, network: WordClassifier):
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        network = self.network
        features = network.backbone(images)
        _, histogram, _ = published_words(features, network.codebook)
        return [network.classifier(published_hspp(features)),
                network.word_classifier(features.mean((2, 3))), network.word_to_image(histogram)]


def training(small: bool) -> Stage:
    "A training step, in the precision that a run takes here, and in float32 as published."
    network = classifier(small).train()
    other = PublishedClassifier(classifier(small)).train()
    images = torch.randn(4, 3, *([64, 64] if small else [256, 256]))
    precision = usual_precision(network.backbone, device())
    return Stage(
        'training step, 4 x 256 x 256', partial(a_step, network, images, precision),
        partial(a_step, other, images, 'no'), largest_difference, 'largest difference', bar=2.,
        rounds=2 if small else 5)


def equal_pixels(ours: np.ndarray, published: torch.Tensor) -> float:
    return float((ours == published.numpy()).mean())


@torch.inference_mode()
def prediction(small: bool) -> Stage:
    "Three scales of a photo, which has been decoded, to its labels."
    torch.manual_seed(0)
    network = DeepLabV2(create_backbone('resnet18' if small else 'resnet50', None, 8, True), 21)
    for branch in network.eval().aspp.branches:
        torch.nn.init.normal_(branch.weight, std=.01)
    photo = a_photo(60, 80) if small else a_photo(375, 500)
    settings = PredictionSettings()
    backbone = network.backbone
    views = scaled(photo, settings)
    no_tags = torch.zeros(1)
    images = [create_views(view, no_tags, (1.,), 1024, backbone.mean, backbone.std).images[0][:1]
              for view in views]
    looker = quick(network, usual_precision(backbone, device()))

    @torch.inference_mode()
    def ours() -> np.ndarray:
        return finish_labels(logits_of(settings, looker, views), photo, settings)

    return Stage(
        f'prediction, photo of {photo.width} x {photo.height}', ours=ours,
        published=torch.inference_mode()(partial(logits, network, images, photo.size[::-1])),
        agreement=equal_pixels, agreed_on='equal labels, share', bar=2., rounds=2 if small else 5)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('build', [pooling, words, words_and_pooling])
def test_head(build, layout, compare, small):
    assert compare(build(small, layout)).agreement < 1e-4


@pytest.mark.parametrize('build', [maps, prediction])
def test_looking(build, compare, small):
    assert compare(build(small)).agreement > .9


def test_training(compare, small):
    assert compare(training(small)).agreement < .05


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('build', [pooling, words, words_and_pooling])
def test_memory(build, layout, small):
    row = memory_row(build(small, layout), bar=.5)
    print(f'{row.stage}: {row.ours / 1e6:.1f} and {row.published / 1e6:.1f} MB, {row.share:.2f}')
    if not small:
        write_rows(MEMORY_TABLE, [row])

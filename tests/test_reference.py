"""The same numbers as the published implementations.

The arrays are not part of the repository. They lie in the folder that the environment variable
WSSS_REFERENCE names, or in `../shared/reference` beside the repository. A test whose file is not
there is skipped. Sizes and settings are read from the arrays."""
import inspect
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.affinity import PSA_CRF, AffinityNet
from wsss_nb.bes import CutBranch, border_labels, border_loss, border_map
from wsss_nb.cam import (CAM, Views, cam_of_views, merge_mirrored, resize_maps, strided_size,
                         sum_of_views)
from wsss_nb.backbones import Backbone
from wsss_nb.classifier import Logits, WordClassifier
from wsss_nb.codebook import encode_words, update_memory
from wsss_nb.crf import refine_probabilities
from wsss_nb.deeplab_v1 import WideHead, mean_labels
from wsss_nb.dynamic_ssdd import (StepCRF, batch_difference_loss, crf_advice, crf_probabilities,
                                  dynamic_difference_loss, dynamic_segmentation_loss, integrate,
                                  sharpened, summed_probabilities, tagged_prediction,
                                  tagged_probabilities)
from wsss_nb.irn import boundary_displacement_loss, irn_labels, propagate, walked_cam
from wsss_nb.kmeans import kmeans, lloyd
from wsss_nb.loaders import Batch
from wsss_nb.losses import decov, entropy, word_loss
from wsss_nb.mcis import CoattentionClassifier, affinity, coattend, contrast, pair_terms, self_terms
from wsss_nb.mcis_system import merge_maps, resized
from wsss_nb.metrics import ConfusionMatrix
from wsss_nb.pictures import heat, overlay_map
from wsss_nb.one_stage import (GlobalCue, OneStageLogits, OneStageNetwork, balanced_loss, enlarge,
                               focal_penalty, mask_scores, one_stage_loss, own_labels,
                               pseudo_labels, refined_masks, stochastic_gate, with_background)
from wsss_nb.one_stage_system import to_cam
from wsss_nb.pamr import DILATIONS, colour_deviation, pamr, pamr_weights
from wsss_nb.pooling import attention, gap, hspp
from wsss_nb.random_walk import boundary_transition, directions, feature_transition, walk
from wsss_nb.saliency import saliency_labels
from wsss_nb.sc_cam import (SubClassifier, SubLogits, cluster_classes, sub_labels_of, sub_loss,
                            sub_shares, tag_overlap, tags_of_sub)
from wsss_nb.ssdd import (DifferenceNet, FixedNorm, SegmentationHead, difference_loss, find_flags,
                          image_losses, merge, merge_weight)
from wsss_nb.seam import (SeamClassifier, aligned, compete, correlate, ecr_loss, pooled_scores,
                          quiet_loss, ranged, seam_loss, seam_training_loss, stretched,
                          walked_labels, winners)

BESIDE = Path(__file__).parents[2] / 'shared' / 'reference'
REFERENCE = Path(os.environ.get('WSSS_REFERENCE', BESIDE))


def load(name: str) -> dict[str, torch.Tensor]:
    "The arrays of a reference file as tensors. Skips the test if there is no such file."
    path = REFERENCE / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'{path} is not here; WSSS_REFERENCE names the folder of the arrays')
    with np.load(path, allow_pickle=False) as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    "Same shape, same values within `atol`."
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, check_dtype=False)


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    "Same shape, every value within a relative 1e-4."
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize('function, published', [
    (hspp, {'gamma': 2., 'levels': (1, 2, 4)}),
    (encode_words, {'temperature': 1.}),
    (update_memory, {'momentum': .01}),
    (boundary_transition, {'radius': 5, 'beta': 10}),
    (feature_transition, {'radius': 5, 'beta': 8}),
    (walk, {'steps': 256}),
    (propagate, {'radius': 5, 'beta': 10, 'steps': 256}),
])
def test_what_is_not_said_is_as_published(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


def test_hspp():
    r = load('hspp')
    pooled = hspp(r['features'], gamma=r['gamma'].item(), levels=r['levels'].tolist())
    assert_close(pooled, r['pooled'])


def test_codebook():
    r = load('codebook')
    words = encode_words(r['features'], r['codebook'])
    assert_close(words.probabilities, r['probabilities'])
    assert_close(words.histogram, r['histogram'])
    assert_close(words.labels, r['word_labels'], atol=0)


def test_losses():
    r = load('losses')
    logits = Logits(r['image_logits'], r['word_logits'], r['word_to_image_logits'],
                    r['word_labels'])
    loss = word_loss(logits, r['image_labels'])
    assert_close(loss.image, r['loss_image'])
    assert_close(loss.word, r['loss_word'])
    assert_close(loss.word_to_image, r['loss_word_to_image'])
    assert_close(loss.total, r['total'])


def test_memory_bank():
    r = load('memory_bank')
    updated = update_memory(r['codebook'], r['features'], r['momentum'].item())
    assert_close(updated, r['updated'])


def test_word_regularisers():
    r = load('vwl_regularisers')
    assert_close(decov(r['codebook']), r['decov'])
    assert_close(entropy(r['word_logits']), r['entropy'])


def test_boundary_walk():
    r = load('irn_random_walk')
    settings = dict(radius=r['radius'].item(), beta=r['beta'].item())
    steps = r['steps'].item()
    assert_near(propagate(r['cam'], r['edge'], steps=steps, **settings), r['walked'])

    # the published way: the whole matrix, squared eight times
    transition = boundary_transition(r['edge'].double(), **settings).to_dense()
    matrix = torch.linalg.matrix_power(transition, steps)
    start = (r['cam'] * (1 - r['edge'])).double().flatten(1)
    assert_near((start @ matrix).reshape(r['walked'].shape), r['walked'])
    ones = torch.ones(len(transition), dtype=torch.double)
    torch.testing.assert_close(transition.sum(0), ones)


def test_feature_walk():
    r = load('psa_random_walk')
    radius = r['radius'].item()
    transition = feature_transition(r['features'], radius=radius, beta=r['beta'].item())
    assert_near(walk(r['cam'], transition, steps=r['steps'].item()), r['walked'])


def test_irn_losses():
    r = load('irn_losses')
    radius = r['radius'].item()
    assert {tuple(offset) for offset in r['offsets'].tolist()} == set(directions(radius))
    loss = boundary_displacement_loss(r['edge'], r['displacement'], r['labels'], radius=radius)
    for name, value in loss._asdict().items():
        assert_near(value, r[name if name == 'total' else f'loss_{name}'])


# SC-CAM, chapters 08 and 70


def assert_alike(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    "Same shape, same values, relative to the largest absolute value expected."
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol, check_dtype=False)


@pytest.mark.parametrize('function, published', [
    (sub_loss, {'weight': 5.}),
    (tags_of_sub, {'threshold': .05}),
    (kmeans, {'restarts': 10, 'spherical': False}),
    (lloyd, {'most_rounds': 300, 'tolerance': 1e-4, 'spherical': False}),
    (SubClassifier, {'sub_categories': 10, 'dropout': .5}),
])
def test_what_is_not_said_is_as_published_by_sc_cam(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


class Seen(torch.nn.Module):
    "A backbone whose features are the images."
    def __init__(self, channels: int):
        super().__init__()
        self.channels = channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def test_sc_cam_classifier():
    r = load('rivals/sc_cam_classifier')
    classes = r['labels'].shape[1]
    k = r['sub_labels'].shape[1] // classes
    network = SubClassifier(Seen(r['features'].shape[1]), classes, k).eval()
    parent = network.classifier.weight
    sub = network.sub_classifier.weight
    parent.data = r['weight_parent'][:, :, 0, 0]
    sub.data = r['weight_sub'][:, :, 0, 0]
    features = r['features'].requires_grad_()
    logits = network(features)
    assert_alike(logits.image, r['logits'])
    assert_alike(logits.sub, r['sub_logits'])
    assert_alike(features.mean((2, 3)), r['pooled'])
    loss = sub_loss(logits, r['labels'], r['sub_labels'])
    assert_alike(loss.image, r['loss_parent'])
    assert_alike(loss.sub, r['loss_sub'])
    assert_alike(loss.total, r['loss_total'])
    loss.total.backward()
    assert_alike(features.grad, r['grad_features'])
    assert_alike(parent.grad[:, :, None, None], r['grad_weight_parent'])
    assert_alike(sub.grad[:, :, None, None], r['grad_weight_sub'])
    with torch.no_grad():
        assert_alike(network.class_maps(features), r['cam_parent'])
        assert_alike(network.sub_class_maps(features).flatten(1, 2), r['cam_sub'])


def test_sc_cam_lloyd():
    r = load('rivals/sc_cam_lloyd')
    found = lloyd(r['points'], r['start'])
    assert_close(found.assignment, r['assignment'], atol=0)
    assert_alike(found.centres, r['centres'])
    assert_alike(torch.tensor(found.inertia), r['inertia'])
    assert found.rounds == r['iterations']


def groups(sub_labels: torch.Tensor) -> set[frozenset]:
    "Which photos are together in some sub-category of a class, (N, k)."
    found = {frozenset(own.nonzero().flatten().tolist()) for own in sub_labels.T}
    return found - {frozenset()}


def test_sc_cam_subclasses():
    r = load('rivals/sc_cam_subclasses')
    k = r['k'].item()
    named = {}
    for own in r['labels'].T:
        named |= dict.fromkeys(own.nonzero().flatten().tolist())
    assert list(named) == r['order'].tolist()

    clusters = cluster_classes(r['features'], r['labels'], k)
    sub_labels = sub_labels_of(clusters, k)[r['order']]
    assert sub_labels.dtype == r['sub_labels'].dtype
    ours = sub_labels.unflatten(1, (-1, k))
    theirs = r['sub_labels'].unflatten(1, (-1, k))
    for c, expected in enumerate(r['inertia']):
        assert groups(ours[:, c]) == groups(theirs[:, c])
        found = kmeans(r['features'][r['labels'][:, c] > 0], k)
        assert_alike(torch.tensor(found.inertia), expected, 1e-4)
        nearest = torch.cdist(found.centres, r['centres'][c].double()).argmin(1)
        assert sorted(nearest.tolist()) == list(range(k))
        assert_alike(found.centres, r['centres'][c][nearest], 1e-4)


def views_of(r: dict[str, torch.Tensor], name: str) -> list[torch.Tensor]:
    "For each scale, the maps of the photo and of its mirror image: (2, K, h, w)."
    count = len([key for key in r if key.removeprefix(name).isdigit()])
    pairs = range(0, count, 2)
    return [torch.stack([r[f'{name}{i}'], r[f'{name}{i + 1}']]) for i in pairs]


class Told(torch.nn.Module):
    "A network whose maps of some classes are the images."
    def __init__(self, classes: torch.Tensor):
        super().__init__()
        self.classes = classes
        self.anything = torch.nn.Parameter(torch.zeros(()))

    def class_maps(self, images: torch.Tensor) -> torch.Tensor:
        maps = images.new_zeros(2, int(self.classes.max()) + 1, *images.shape[2:])
        maps[:, self.classes] = images
        return maps


def test_sc_cam_inference():
    r = load('rivals/sc_cam_inference')
    size = tuple(r['size'].tolist())
    views = Views(views_of(r, 'view_'), r['classes'], size)
    with torch.no_grad():
        cam = cam_of_views(Told(r['classes']), views, stride=1, merge='sum')
    assert_alike(torch.from_numpy(cam.maps), r['maps'])
    labels = cam.to_labels(.15)
    assert np.array_equal(labels, r['prediction'].numpy())

    sums = sum_of_views(views_of(r, 'view_sub_'), size, 'sum').unflatten(0, (-1, r['k'].item()))
    shares = sub_shares(sums)
    assert_alike(shares.amax(1), r['sub_maps_max'])
    assert_alike(shares[:, 0], r['sub_maps_first'])
    sub_cam = CAM(cam.classes, shares.amax(1).numpy(), size)
    assert np.array_equal(sub_cam.to_labels(.15), r['prediction_sub'].numpy())

    matrix = ConfusionMatrix(len(r['class_iou']))
    matrix.update(labels, r['truth'].numpy())
    iou = torch.from_numpy(np.nan_to_num(matrix.iou(), nan=-1))
    assert_alike(iou, r['class_iou'])
    is_there = matrix.matrix.sum(1) > 0
    assert_alike(iou[is_there].mean(), r['mean_iou'])

    # what is drawn stays as it is
    photo = Image.new('RGB', size[::-1])
    before = cam.maps.copy()
    for values in cam.maps:
        heat(values)
        overlay_map(photo, values)
    assert np.array_equal(cam.maps, before)
    assert not np.allclose(cam.maps, r['saved_by_the_published_script'].numpy())


def test_sc_cam_tags():
    r = load('rivals/sc_cam_tags')
    k = r['sub_probabilities'].shape[1] // r['labels'].shape[1]
    named = tags_of_sub(r['sub_probabilities'], k)
    assert_close(named, r['predicted'] > 0, atol=0)
    assert_close(tag_overlap(named, r['labels']).round(decimals=4), r['accuracy'], atol=1e-6)


def test_sc_cam_crf():
    r = load('rivals/sc_cam_crf')
    strongest = r['maps'].amax(0, keepdim=True)
    for name in [key for key in r if key.startswith('crf_alpha_')]:
        alpha = int(name.rpartition('_')[2])
        scores = torch.cat([(1 - strongest) ** alpha, r['maps']])
        snapped = refine_probabilities(
            r['image'].numpy(), scores.numpy(), gaussian_sigma=3, gaussian_compatibility=3,
            bilateral_sigma=80, colour_sigma=13, bilateral_compatibility=10)
        assert_alike(torch.from_numpy(snapped), r[name], 1e-3)


# 1Stage (chapters 28, 75 and 77)
def assert_equals(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    "Same shape, same values up to a share of the largest one."
    largest = expected.abs().max().clamp(min=1e-12).item()
    assert_close(actual, expected, atol=tolerance * largest)


def state_of(r: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    "The tensors of a published network, with the beginnings of their names replaced by ours."
    found = {}
    for name, tensor in r.items():
        own = name.removeprefix('state__')
        theirs = [start for start in names if own.startswith(start)]
        if own != name and theirs:
            start = max(theirs, key=len)
            found[names[start] + own.removeprefix(start)] = tensor
    return found


def load_published(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    "Load all of a network but counters of batches, which the arrays lack."
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith('num_batches_tracked') for name in missing)


CUE = {'fc_deep.': 'cue.', 'fc_skip.': 'fine.', 'fc_cls.': 'last.'}


def test_one_stage_scores():
    r = load('rivals/one_stage_scores')
    found = mask_scores(r['logits'], r['p'].item())
    for name, value in zip(('masks', 'ngwp', 'focal', 'scores'), found):
        assert_equals(value, r[name])
    areas = found.masks[:, 1:].mean((2, 3))
    assert_equals(focal_penalty(areas, r['p'].item(), r['lam'].item()), r['focal'])


def test_one_stage_pamr():
    r = load('rivals/one_stage_pamr')
    dilations = r['dilations'].tolist()
    assert dilations == list(DILATIONS)
    assert_equals(colour_deviation(r['image'], dilations), r['std'])
    height, width = r['weights_crop'].shape[2:]
    weights = pamr_weights(r['image'], dilations)[..., :height, :width]
    assert_equals(weights, r['weights_crop'])
    for rounds in (1, 10):
        refined = pamr(r['image'], r['masks'], dilations, rounds)
        assert_equals(refined, r[f'refined_{rounds}'])
    near = pamr(r['image'], r['masks'], dilations[:1], 10)
    assert_equals(near, r['refined_10_dilation_1'])
    assert_equals(pamr(r['image'], r['masks_small'], dilations), r['refined_small'])


def published_pseudo(labels: torch.Tensor, count: int) -> torch.Tensor:
    "Labels (B, H, W) as (B, L, H, W) of 0 and 1."
    return torch.nn.functional.one_hot(labels, 256)[..., :count].movedim(-1, 1)


def test_one_stage_pseudo_labels():
    r = load('rivals/one_stage_pseudo')
    shares = [r[name].item() for name in ('top', 'top_background', 'low')]
    labels = pseudo_labels(r['masks'], r['labels'], *shares)
    assert torch.equal(labels, pseudo_labels(r['masks'], r['labels']))
    found = published_pseudo(labels, r['masks'].shape[1])
    assert (found == r['pseudo']).float().mean() > .999


def test_one_stage_pixel_loss():
    r = load('rivals/one_stage_mask_loss')
    logits = r['logits'].requires_grad_()
    known = r['pseudo'].sum(1) > 0
    labels = torch.where(known, r['pseudo'].argmax(1), 255)
    loss = balanced_loss(logits, labels, r['labels'])
    assert_equals(loss, r['loss'])
    loss.sum().backward()
    assert_equals(logits.grad, r['grad_of_sum'])


def test_one_stage_step():
    r = load('rivals/one_stage_step')
    logits = r['logits'].requires_grad_()
    tags = r['labels']
    scored = mask_scores(logits)
    assert_equals(scored.scores, r['scores'])
    tagged = (scored.masks[:, 1:].mean((2, 3)) * tags).sum(1) / tags.sum(1)
    assert_equals(tagged, r['foreground'])
    size = r['image'].shape[2:]
    kept = r['kept_channels']
    plain = refined_masks(scored.masks, r['image'], tags, rounds=0)
    refined = refined_masks(scored.masks, r['image'], tags)
    assert_equals(plain[:, kept], r['cam'])
    assert_equals(refined[:, kept], r['refined'])
    assert refined.sum() - refined[:, kept].sum() < 1e-3 * refined.sum()
    labels = pseudo_labels(refined, tags)
    assert labels.shape[1:] == size
    assert (labels == r['pseudo_labels']).float().mean() > .999
    assert_equals(balanced_loss(with_background(logits), labels, tags), r['loss_mask'])
    said = OneStageLogits(scored.scores, logits, scored.masks)
    terms = one_stage_loss(said, r['image'], tags)
    assert_equals(terms['tags'], r['loss_class'])
    assert_equals(terms['total'], r['total'])
    terms['total'].backward()
    assert_equals(logits.grad, r['grad_logits'])


def test_one_stage_gate():
    r = load('rivals/one_stage_gate')
    pair = (r['deep'], r['shallow'], r['psi'].item())
    assert_equals(stochastic_gate(*pair, r['keep']), r['train'])
    assert_equals(stochastic_gate(*pair), r['test'])


def test_one_stage_cue():
    r = load('rivals/one_stage_gci')
    cue = GlobalCue(r['shallow'].shape[1], r['deep'].shape[1])
    load_published(cue, state_of(r, CUE))
    assert_equals(cue.eval()(r['shallow'], r['deep']), r['test'])
    assert_equals(cue.train()(r['shallow'], r['deep']), r['train'])


def test_one_stage_decoder():
    r = load('rivals/one_stage_decoder')
    names = {'shallow_mask.' + theirs: 'cue.' + ours for theirs, ours in CUE.items()}
    for number in range(4):
        names[f'aspp.aspp{number + 1}.atrous_conv'] = f'aspp.views.{number}.0'
        names[f'aspp.aspp{number + 1}.bn'] = f'aspp.views.{number}.1'
    names |= {'aspp.global_avg_pool.1': 'aspp.whole.0', 'aspp.global_avg_pool.2': 'aspp.whole.1',
              'aspp.conv1': 'aspp.mix.0', 'aspp.bn1': 'aspp.mix.1', 'fc8_skip': 'skip',
              'fc8_x': 'merge', 'last_conv.0': 'last.0.0', 'last_conv.1': 'last.0.1',
              'last_conv.4': 'last.2.0', 'last_conv.5': 'last.2.1', 'last_conv.8': 'last.4'}
    channels = [r['shallow'].shape[1], r['deep'].shape[1]]
    stages = [torch.nn.Identity(), torch.nn.Identity()]
    backbone = Backbone(stages, channels, [4, 8], (0.,) * 3, (1.,) * 3)
    network = OneStageNetwork(backbone, r['logits'].shape[1], len(r['aspp'][0]))
    load_published(network, state_of(r, names))
    network.eval()
    assert_equals(network.aspp(r['deep']), r['aspp'])
    logits = network.decode(r['deep'], r['shallow'])
    assert_equals(logits, r['logits'])
    assert_equals(mask_scores(logits).scores, r['scores'])


def test_one_stage_baseline():
    r = load('rivals/one_stage_baseline')
    weight = r['weight']
    assert_equals(gap(r['features']) @ weight.T, r['scores'])
    maps = torch.nn.functional.conv2d(r['features'], weight[:, :, None, None])
    maps = enlarge(maps, r['size'].tolist()).relu()
    maps = maps / (maps.amax((2, 3), keepdim=True) + 1e-5)
    background = torch.full_like(maps[:, :1], r['background'].item())
    count = r['masks'].shape[1]
    assert_equals(torch.cat([background, maps], 1)[:, :count], r['masks'])


def test_one_stage_views():
    r = load('rivals/one_stage_merge')
    seen = []
    for views, pads in zip(r['masks'].split(2), r['pads'].long().split(2)):
        cut = [masks[:, top:top + height, left:left + width]
               for masks, (top, left, height, width) in zip(views, pads.tolist())]
        seen.append(torch.stack(cut))
    size = r['size'].tolist()
    merged = sum_of_views(seen, size, 'sum') / len(r['masks'])
    allowed = own_labels(r['labels'][None])[0]
    power = r['bg_power'].item()
    assert_equals(merged[0] ** power, r['merged'][0])
    assert_equals(merged[1:] * allowed[1:, None, None], r['merged'][1:])
    chosen = allowed.nonzero().flatten()
    cam = to_cam(merged[chosen], chosen[1:] - 1, tuple(size), power)
    assert (cam.to_labels(.5) == r['prediction'].numpy()).mean() > .999


# SEAM (chapters 33 and 71)


class Stages(torch.nn.Module):
    "A backbone whose stages were computed before, by the size of the image."
    def __init__(self, stages: dict[tuple[int, int], list[torch.Tensor]]):
        super().__init__()
        self.stages = stages
        first = next(iter(stages.values()))
        self.stage_channels = tuple(features.shape[1] for features in first)
        self.channels = self.stage_channels[-1]

    def stage_features(self, images: torch.Tensor) -> list[torch.Tensor]:
        return self.stages[tuple(images.shape[-2:])]


def size_of(images: torch.Tensor) -> tuple[int, int]:
    return tuple(images.shape[-2:])


def published_seam(r: dict[str, torch.Tensor], stages: dict) -> SeamClassifier:
    "The network with the weights of a file, without dropout."
    widths = [len(r[f'weight_{name}']) for name in ('f4', 'f5', 'f9')]
    network = SeamClassifier(Stages(stages), len(r['weight_cam']) - 1, widths)
    layers = (network.classifier, *network.reduce, network.mix)
    for layer, name in zip(layers, ('cam', 'f4', 'f5', 'f9')):
        layer.weight.data = r[f'weight_{name}']
    return network.eval()


@pytest.mark.parametrize('function, published', [
    (ecr_loss, {'hard': .2}),
    (seam_loss, {'weights': (1., 1.), 'hard': .2}),
    (seam_training_loss, {'copy': .3, 'weights': (1., 1.), 'hard': .2}),
    (SeamClassifier, {'widths': (64, 128, 192), 'dropout': .5}),
    (pooled_scores, {'power': 6, 'side': 8}),
    (WideHead, {'dilation': 12, 'width': 512}),
])
def test_what_is_not_said_is_as_published_by_seam(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


def test_seam_pcm():
    r = load('rivals/seam_pcm')
    weight = r['weight'].requires_grad_()
    features = r['features'].requires_grad_()
    refined = correlate(r['cam'], torch.nn.functional.conv2d(features, weight))
    assert_alike(refined, r['refined'])
    (refined * r['cotangent']).sum().backward()
    assert_alike(weight.grad, r['grad_weight'])
    assert_alike(features.grad, r['grad_features'])


def test_seam_forward():
    r = load('rivals/seam_forward')
    image = r['image']
    stages = [r['conv4'], r['conv5'], r['conv6']]
    network = published_seam(r, {size_of(image): stages})
    with torch.no_grad():
        maps = network(image)
        assert_alike(network.appearance(image, stages), r['pcm_input_features'])
    assert_alike(compete(maps.raw), r['pcm_input_cam'])
    assert_alike(maps.refined, r['pcm_output'])
    assert_alike(aligned(maps.raw, size_of(image)), r['cam'])
    assert_alike(aligned(maps.refined, size_of(image)), r['cam_refined'])
    assert_alike(maps.image, r['cam'][:, 1:].mean((2, 3)))
    assert torch.equal(network.class_maps(image), maps.refined[:, 1:])
    assert torch.equal(network.raw_maps(image), maps.raw[:, 1:].relu())


def test_seam_pieces():
    r = load('rivals/seam_pieces')
    assert_alike(ranged(r['map']), r['map_normalised'])
    assert_alike(quiet_loss(r['pool_input']), r['pool_loss'], 1e-6)
    assert torch.equal(winners(r['winner_input'][:, 1:])[:, 1:], r['winner_output'][:, 1:])


SEAM_MAPS = ('cam', 'cam_refined', 'cam_small', 'cam_refined_small')


def test_seam_losses():
    r = load('rivals/seam_losses')
    maps = [r[name].requires_grad_() for name in SEAM_MAPS]
    er = 20 / r['labels'].shape[1]      # the published weight is that of any number of classes
    loss = seam_loss(*maps, r['labels'], (size_of(maps[0]), size_of(maps[2])), (er, 1.))
    assert_alike(loss.tags, r['loss_tags'].mean())
    assert_alike(loss.minimum, r['loss_min'].mean())
    assert_alike(loss.er, r['loss_er'])
    assert_alike(loss.ecr, r['loss_ecr'].sum())
    assert_alike(loss.total, r['total'])
    loss.total.backward()
    for name, tensor in zip(SEAM_MAPS, maps):
        assert_alike(tensor.grad, r[f'grad_{name}'])


def test_seam_step():
    r = load('rivals/seam_step')
    image = r['image']
    last = [r[f'features_conv6{view}'].requires_grad_() for view in ('', '_small')]
    small = tuple(int(.3 * side) for side in size_of(image))
    stages = {}
    for size, view, features in zip((size_of(image), small), ('', '_small'), last):
        stages[size] = [r[f'features_conv4{view}'], r[f'features_conv5{view}'], features]
    network = published_seam(r, stages)
    er = 20 / r['labels'].shape[1]
    terms = seam_training_loss(network, Batch(image, {'tags': r['labels']}), weights=(er, 1.))
    tags, tags_small, least, least_small, er, ecr, ecr_small, total = r['losses']
    assert_alike(terms['tags'], (tags + tags_small) / 2)
    assert_alike(terms['minimum'], (least + least_small) / 2)
    assert_alike(terms['er'], er)
    assert_alike(terms['ecr'], ecr + ecr_small)
    assert_alike(terms['total'], total)
    terms['total'].backward()
    layers = (network.classifier, *network.reduce, network.mix)
    for layer, name in zip(layers, ('cam', 'f4', 'f5', 'f9')):
        assert_alike(layer.weight.grad, r[f'grad_weight_{name}'])
    assert not network.classifier.weight.grad[0].any()
    for features, view in zip(last, ('', '_small')):
        assert_alike(features.grad, r[f'grad_conv6{view}'])


def test_seam_inference():
    r = load('rivals/seam_inference')
    names = sorted((name for name in r if name.startswith('view_')), key=lambda n: int(n[5:]))
    pairs = zip(names[::2], names[1::2])
    views = [torch.stack([r[one], r[other]])[:, 1:] for one, other in pairs]
    summed = sum_of_views(views, tuple(r['size'].tolist()), 'sum')
    assert_alike(summed.relu(), r['summed'])
    assert_alike(stretched(summed), r['maps'])


@pytest.mark.parametrize('power', [4, 24])
def test_seam_crf(power):
    r = load('rivals/seam_crf')
    maps = r['maps'].numpy()
    scores = np.concatenate([(1 - maps.max(0, keepdims=True)) ** power, maps])
    refined = refine_probabilities(r['image'].numpy(), scores, gaussian_sigma=3,
                                   bilateral_compatibility=10, **PSA_CRF)
    assert_alike(torch.from_numpy(refined), r[f'crf_alpha_{power}'], 1e-3)


def test_seam_walk():
    r = load('rivals/seam_walk')
    scores = pooled_scores(r['maps'].float())
    assert_alike(scores, r['pooled'])
    padded = (8 * scores.shape[1], 8 * scores.shape[2])
    names = ('f4', 'f5', 'f6')
    stages = Stages({padded: [r['conv4'], r['conv5'], r['conv6']]})
    network = AffinityNet(stages, [len(r[f'weight_{name}']) for name in names])
    for layer, name in zip((*network.reduce, network.mix), (*names, 'f9')):
        layer.weight.data = r[f'weight_{name}']
    with torch.no_grad():
        features = network(torch.zeros(1, 3, *padded))[0]
    walked = walk(scores, feature_transition(features, radius=5, beta=8), steps=64)
    assert_alike(walked, r['walked'], 1e-4)
    labels = walked_labels(walked, tuple(r['size'].tolist()))
    differs = labels != r['prediction']
    enlarged = resize_maps(walked, padded).sort(0).values[:, :differs.shape[0], :differs.shape[1]]
    assert (enlarged[-1] - enlarged[-2])[differs].lt(1e-5 * walked.max()).all()    # but for ties


HEAD = {'conv_fov': 'wide', 'bn_fov': 'wide_norm', 'conv_fov2': 'narrow',
        'bn_fov2': 'narrow_norm', 'cls_conv': 'scores'}


def test_seam_deeplab():
    r = load('rivals/seam_deeplab')
    state = {}
    for name, tensor in r.items():
        if name.startswith('weight__'):
            layer, kind = name.removeprefix('weight__').split('__')
            state[f'{HEAD[layer]}.{kind}'] = tensor
    width, channels = state['wide.weight'].shape[:2]
    head = WideHead(channels, len(state['scores.bias']), width=width).eval()
    head.load_state_dict(state, strict=False)     # without counters of batches
    with torch.no_grad():
        logits = aligned(head(r['features']), tuple(r['size'].tolist()))
    assert_alike(logits[:, :, ::4, ::4], r['logits_sampled'])
    names = sorted((name for name in r if re.fullmatch(r'view_\d+', name)),
                   key=lambda name: int(name[5:]))
    pairs = zip(names[::2], names[1::2])
    views = [torch.stack([r[one], r[other]]) for one, other in pairs]
    labels = mean_labels(views, tuple(r['view_size'].tolist()))
    assert torch.equal(labels, r['prediction'].long())


# SSDD (chapters 74, 76 and 79)

DIFFERENCE_NET = {
    'conv1ab.conv1': 'photo.0', 'conv1ab.bn1': 'photo.1', 'conv1c.conv1': 'mask.0',
    'conv1c.bn1': 'mask.1', 'conv1abc.conv1': 'both.path.0', 'conv1abc.bn1': 'both.path.1',
    'conv1abc.conv2': 'both.path.3', 'conv1abc.bn2': 'both.path.4',
    'conv1abc.conv3': 'both.path.6', 'conv1abc.bn3': 'both.path.7',
    'conv1abc.downsample': 'both.shortcut.0', 'conv1abc.bnd': 'both.shortcut.1',
    'pred_abc': 'last'}


def difference_net(r: dict[str, torch.Tensor], head: str, net: str) -> DifferenceNet:
    "A published network; batch norms that the arrays don't have are as they begin."
    names = {f'{head}.{theirs}': ours for theirs, ours in DIFFERENCE_NET.items()}
    names |= {f'{net}.{theirs}': ours for theirs, ours in DIFFERENCE_NET.items()}
    state = state_of(r, names)
    width, channels = state['photo.0.weight'].shape[:2]
    network = DifferenceNet(channels - r['shallow'].shape[1], r['shallow'].shape[1],
                            state['mask.0.weight'].shape[1], width)
    left = network.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    layers = dict(network.named_modules())
    missed = {layers[name.rpartition('.')[0]] for name in left.missing_keys}
    assert all(isinstance(layer, FixedNorm) for layer in missed)
    return network


def test_ssdd_flags():
    r = load('rivals/ssdd_flags')
    flags = find_flags(r['knowledge'].long(), r['advice'].long(), r['labels'],
                       r['threshold'].item())
    assert_close(flags.float(), r['flags'], atol=0)


@pytest.mark.parametrize('name, bias, beta', [('bias04', .4, 0.), ('bias01_bg01', .1, .1)])
def test_ssdd_integrate(name, bias, beta):
    r = load('rivals/ssdd_integrate')
    knowledge, advice = [r[map].long() for map in ('knowledge', 'advice')]
    chances = [r[f'diff_logits_{map}'][:, 0].sigmoid() for map in ('knowledge', 'advice')]
    weight = merge_weight(chances, knowledge, advice, r['flags'] > 0, bias, beta)
    assert_equals(weight, r[f'weight_{name}'])
    assert torch.equal(merge(knowledge, advice, weight), r[f'merged_{name}'].long())


def test_ssdd_difference_loss():
    r = load('rivals/ssdd_dd_loss')
    logits = r['diff_logits'].requires_grad_()
    loss = difference_loss(logits[:, 0], r['difference'], r['flags'] > 0)
    loss.backward()
    assert_equals(image_losses(logits[:, 0], r['difference']), r['per_image'])
    assert_equals(batch_difference_loss(logits[:, 0], r['difference']), r['whole_batch'])
    assert_equals(loss, r['loss'], 2e-5)
    assert_equals(logits.grad, r['grad'], 2e-5)


def test_ssdd_networks():
    r = load('rivals/ssdd_networks')
    network = difference_net(r, 'head', 'dd').train()
    assert_equals(network.see(r['deep'], r['shallow']), r['head'])
    masks = [r['knowledge'].long(), r['advice'].long()]
    foreseen = network(r['deep'], r['shallow'], masks)
    for d, name in zip(foreseen, ('knowledge', 'advice')):
        assert_equals(d[:, None], r[f'diff_logits_{name}'])


def test_ssdd_segmentation_head():
    r = load('rivals/ssdd_segmentation_head')
    state = state_of(r, {'seg1.conv1': 'first', 'seg1.bn1': 'norm', 'seg2': 'last'})
    width, channels = state['first.weight'].shape[:2]
    network = SegmentationHead(channels, len(state['last.weight']), width, dilation=12)
    load_published(network, state)
    scores = network.train()(r['features']).on(r['segmentation'].shape[-2:])
    assert_equals(scores.logits[:, :r['segmentation'].shape[1]], r['segmentation'])
    assert_equals(scores.middle[:len(r['middle'])], r['middle'])


def test_ssdd_tagged_prediction():
    r = load('rivals/ssdd_tagged_prediction')
    assert_equals(tagged_probabilities(r['logits'], r['labels']), r['probabilities'])
    assert torch.equal(tagged_prediction(r['logits'], r['labels']), r['prediction'].long())


def test_ssdd_crf_advice():
    r = load('rivals/ssdd_crf_advice')
    crf = StepCRF(iterations=r['iterations'].item())
    found = crf_probabilities(r['image'], r['logits'], r['labels'], crf)
    assert_close(found[:, r['channels']], r['crf'], atol=1e-4)
    assert torch.equal(crf_advice(r['image'], r['logits'], r['labels'], crf), r['advice'].long())
    assert torch.equal(tagged_prediction(r['logits'], r['labels']), r['knowledge'].long())


def test_ssdd_dynamic_step():
    r = load('rivals/ssdd_dynamic_step')
    maps = {'knowledge': r['main_prediction'].long(), 'advice': r['advice'].long(),
            'seed': r['seed'].long(), 'prediction': r['sub_prediction'].long()}
    nets = [difference_net(r, f'dd_head{n}', f'dd{n}') for n in (0, 1)]
    middles = (r['main_deep'], r['sub_deep'])
    step = integrate(nets, middles, r['shallow'], maps, r['labels'])
    for merged, order, names in ((step.first, 'first', ('knowledge', 'advice')),
                                 (step.second, 'second', ('seed', 'merged'))):
        for d, name in zip(merged.logits, names):
            assert_equals(d[:, None], r[f'{order}_{name}'])
        assert_close(merged.flags.float(), r[f'{order}_flags'], atol=0)
    assert torch.equal(step.first.labels, r['first_merged'].long())
    assert torch.equal(step.second.labels, r['merged'].long())
    assert_equals(dynamic_difference_loss(step)[None], r['loss_dd'])


def test_ssdd_dynamic_loss():
    r = load('rivals/ssdd_dynamic_loss')
    main = r['main_logits'].requires_grad_()
    loss = dynamic_segmentation_loss(main, r['sub_logits'], r['seed'].long(), r['merged'].long())
    loss.backward()
    assert_equals(loss, r['loss_segmentation'])
    assert_equals(main.grad[:1], r['grad_main'])


def test_ssdd_test():
    r = load('rivals/ssdd_test')
    network = torch.nn.Conv2d(3, len(r['bias']), 3, padding=1)
    network.load_state_dict({'weight': r['weight'], 'bias': r['bias']})
    with torch.no_grad():
        summed = summed_probabilities(network, r['image'])
        found = sharpened(summed, tuple(r['size'].tolist()))
    assert_equals(summed, r['summed'])
    assert_equals(found[:len(r['probabilities'])], r['probabilities'])
    assert torch.equal(found.argmax(0), r['prediction'].long())


# MCIS (chapters 29, 72 and 78)


@pytest.mark.parametrize('function, published', [
    (affinity, {'likeness': 'product'}),
    (pair_terms, {'weights': (1., 1.)}),
    (saliency_labels, {'least': .3, 'rival': .99, 'sure': .95, 'salient': 32, 'share': .01}),
])
def test_what_is_not_said_is_as_published_by_mcis(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


def test_mcis_coattention():
    r = load('rivals/mcis_coattention')
    first = r['features_1'].requires_grad_()
    second = r['features_2'].requires_grad_()
    alike = affinity(first, second, r['affinity_weight'])
    assert_alike(alike, r['affinity'])
    for n, x, rebuilt in zip((1, 2), (first, second), coattend(first, second, alike)):
        assert_alike(rebuilt, r[f'attended_{n}'])
        gate, rest = contrast(x, rebuilt, r['gate_weight'])
        assert_alike(gate, r[f'gate_{n}'])
        assert_alike(rest, r[f'rest_{n}'])

    # the same by the network, with its heads and gradients
    channels = first.shape[1]
    classes = len(r['class_weight'])
    network = CoattentionClassifier(Seen(channels), classes, convolutions=0, likeness='product')
    network.load_state_dict({
        'classifier.weight': r['class_weight'][:, :, None, None],
        'classifier.bias': r['class_bias'], 'affinity.weight': r['affinity_weight'],
        'common.weight': r['co_weight'][:, :, None, None],
        'gate.weight': r['gate_weight'][:, :, None, None]})
    found = {}
    for n, x, partner in ((1, first, second), (2, second, first)):
        rebuilt = network.rebuilt(x, partner, second=n == 2)
        found[f'map_{n}'] = network.classifier(x)
        found[f'co_map_{n}'] = network.common(rebuilt)
        found[f'rest_map_{n}'] = network.common(network.rest(x, rebuilt))
    for name, maps in found.items():
        assert_alike(maps, r[name])
    assert_alike(network.class_maps(first), r['map_1'].relu())
    logits = torch.cat([network(first).image, network(second).image])
    co_logits = torch.cat(network.pair_logits(first, second))
    assert_alike(logits, r['logits'])
    assert_alike(co_logits, r['co_logits'])
    total = (r['upstream'] * logits).sum() + (r['co_upstream'] * co_logits).sum()
    gradients = torch.autograd.grad(total, (first, second))
    assert_alike(gradients[0], r['gradient_1'])
    assert_alike(gradients[1], r['gradient_2'])


def test_mcis_losses():
    r = load('rivals/mcis_losses')
    first = r['labels_1']
    second = r['labels_2']
    shared = first * second
    assert_close(shared, r['shared'], atol=0)
    assert_close(first - shared, r['rest_1'], atol=0)
    assert_close(second - shared, r['rest_2'], atol=0)
    common, rest = r['co_logits_pair'].chunk(2)
    tags = torch.cat([first, second])
    terms = pair_terms(r['logits_pair'], common, rest, tags, torch.cat([shared, shared]))
    for name, change in (('flip', 'mirror'), ('small', 'small'), ('large', 'large')):
        common = r[f'co_logits_{name}'][:2 * len(first)]
        found = self_terms(change, r[f'logits_{name}'], common, first)
        terms[name] = found[change]
        terms[f'{name}_shared'] = found[f'{change}_shared']
    for name, term in terms.items():
        assert_alike(term, r[name])
    assert_alike(sum(terms.values()), r['total_later'])
    early = [term for name, term in terms.items() if 'rest' not in name]
    assert_alike(sum(early), r['total_first'])


def test_mcis_localisation():
    r = load('rivals/mcis_localisation')
    grid = r['own'].shape[-2:]
    small = resized(r['small'], grid)
    large = resized(r['large'], grid)
    assert_alike(small, r['small_resized'])
    assert_alike(large, r['large_resized'])
    mirrored = r['flipped'].flip(-1)
    maps = [r['own'], mirrored, small, large, r['partners'].mean(1)]
    kept, merged = merge_maps(torch.stack(maps, 1))
    assert_close(kept.int(), r['kept'], atol=0)
    attention = merged.to(torch.uint8)
    assert_close(attention.int(), r['attention'].int(), atol=1)
    full = resized(r['attention'].float(), r['size'].tolist()).round().clamp(0, 255)
    assert_close(full, r['attention_full'], atol=1)


def test_mcis_pseudo_labels():
    r = {name: array.numpy() for name, array in load('rivals/mcis_pseudo_labels').items()}
    nothing = np.zeros_like(r['saliency_hard'])
    saliencies = {'hard': r['saliency_hard'], 'soft': r['saliency_soft'],
                  'no_saliency': nothing, 'all_salient': nothing + 255}
    for name, saliency in saliencies.items():
        labels = saliency_labels(r['tags'], r['attention'], saliency)
        assert np.array_equal(labels, r[f'labels_{name}']), name


# BES (chapters 14 and 73)
BES_CODES = {0: 0, 50: 1, 150: 2, 100: 3, 200: 255, 255: 255}   # published -> `Border`


def own_codes(published: torch.Tensor) -> torch.Tensor:
    "Published codes of border labels as those of `Border`."
    found = torch.full_like(published, 255)
    for code, own in BES_CODES.items():
        found[published == code] = own
    return found


@pytest.mark.parametrize('function, published', [
    (attention, {'sharpness': 1e-3}),
    (border_labels, {'window': 13, 'scale': .3, 'difference': .1, 'seams': True}),
])
def test_what_is_not_said_is_as_published_by_bes(function, published):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in published} == published


@pytest.mark.parametrize('kind', ['published', 'sharp'])
def test_bes_attention_pooling(kind):
    r = load('rivals/bes_attention_pooling')
    features = r['features'].requires_grad_()
    found = attention(features, r[f'k_{kind}'].item())
    logits = found @ r['weight'].T
    assert_alike(found, r[f'pooled_{kind}'])
    assert_alike(logits, r[f'logits_{kind}'])
    (r['upstream'] * logits).sum().backward()
    assert_alike(features.grad, r[f'gradient_{kind}'])


def test_bes_maps_of_a_photo_and_its_mirror_image():
    r = load('rivals/bes_attention_pooling')
    classes, channels = r['weight'].shape
    backbone = Backbone([torch.nn.Identity()], [channels], [1], (0.,), (1.,))
    model = WordClassifier(backbone, classes, pooling='attention', words=None)
    model.classifier.weight.data = r['weight']
    assert_alike(merge_mirrored(*model.class_maps(r['pair']), 'sum'), r['pair_maps'])


def test_bes_multiscale_cam():
    r = load('rivals/bes_multiscale_cam')
    height, width = r['size'].tolist()
    pairs = [r[name] for name in sorted(r) if name.startswith('output_')]
    answers = [torch.stack([pair, pair * 0]) for pair in pairs]   # the pairs are added up already
    strided = sum_of_views(answers, strided_size(height, width), 'sum')[r['tags']]
    assert_alike(strided / (strided.amax((1, 2), keepdim=True) + 1e-5), r['strided'])
    multiple = (16 * -(-height // 16), 16 * -(-width // 16))
    full = sum_of_views(answers, multiple, 'sum')[r['tags'], :height, :width]
    assert_alike(full / (full.amax((1, 2), keepdim=True) + 1e-5), r['full'])

    class Answers(torch.nn.Linear):
        "Says of images, which are numbers of scales here, what was said of them."
        def class_maps(self, images):
            return answers[int(images)]

    views = Views([torch.tensor(n) for n in range(len(answers))], r['tags'], (height, width))
    with torch.no_grad():
        cam = cam_of_views(Answers(1, 1), views, merge='sum')
    assert_alike(torch.from_numpy(cam.maps), r['strided'])


def test_bes_border_labels(monkeypatch):
    r = load('rivals/bes_boundary_labels')
    monkeypatch.setattr('wsss_nb.irn.refine_labels', lambda image, labels: labels)
    height, width = r['sure'].shape
    cam = CAM(r['classes'].numpy(), r['cams'].numpy(), (height, width))
    photo = Image.new('RGB', (width, height))
    sure = irn_labels(cam, photo, r['foreground'].item(), r['background'].item())
    assert np.array_equal(sure, r['sure'])
    thresholds = r['theta_scale'].item(), r['theta_diff'].item()
    for name, window in (('labels', r['window'].item()), ('labels_window7', 7)):
        found = torch.from_numpy(border_labels(sure, window, *thresholds))
        assert (found != own_codes(r[name])).sum() <= 4, name


def test_bes_border_branch():
    r = load('rivals/bes_boundary_branch')
    count = sum(name.startswith('stage_') for name in r)
    numbers = range(1, count + 1)
    stages = [r[f'stage_{n}'] for n in numbers]
    branch = CutBranch([stage.shape[1] for stage in stages], (4, 4, 8, 16, 16))
    state = {'last.weight': r[f'weight_{count + 1}'][..., None, None],
             'last.bias': r[f'bias_{count + 1}']}
    for n in numbers:
        state[f'stages.{n - 1}.0.weight'] = r[f'weight_{n}'][..., None, None]
        state[f'stages.{n - 1}.1.weight'] = r[f'scale_{n}']
        state[f'stages.{n - 1}.1.bias'] = r[f'shift_{n}']
    branch.load_state_dict(state)
    with torch.no_grad():
        logits = branch(stages, tuple(stages[1].shape[-2:]))
    assert_alike(logits, r['logits'])
    assert_alike(logits.sigmoid(), r['boundary'])

    class Photo(torch.nn.Linear):
        "Says what the branch said of both items, a photo and its mirror image."
        def forward(self, images):
            return logits[:, 0]

    found = border_map(Photo(1, 1), torch.zeros(3, 4, 4))
    assert_alike(found[None], r['flip_averaged'])


def test_bes_border_loss():
    r = load('rivals/bes_boundary_loss')
    boundary = r['boundary'].requires_grad_()
    loss = border_loss(boundary, own_codes(r['labels']))
    for name, value in (('background', loss.background), ('foreground', loss.thing),
                        ('inside', (loss.background + loss.thing) / 2),
                        ('border', loss.border), ('total', loss.total)):
        assert_alike(value, r[name])
    loss.total.backward()
    assert_alike(boundary.grad, r['gradient'])


def test_bes_walk():
    r = load('rivals/bes_walk')
    settings = {name: r[name].item() for name in ('radius', 'beta', 'steps')}
    walked = propagate(r['cam'], r['boundary'], **settings)
    assert_alike(walked, r['walked'], 1e-4)
    height, width = r['size'].tolist()
    enlarged = [4 * n for n in walked.shape[1:]]
    full = resize_maps(walked, enlarged)[:, :height, :width]
    classes = np.arange(len(full))
    cam = walked_cam(CAM(classes, full.numpy(), (height, width)), full)
    assert_alike(torch.from_numpy(cam.maps), r['scores'], 1e-4)
    labels = torch.from_numpy(cam.to_labels(r['background'].item()))
    top, second = torch.cat([r['scores'], r['background'].expand(1, height, width)]).topk(2, 0)[0]
    clear = top - second > 1e-3
    assert torch.equal(labels[clear], r['labels'][clear])

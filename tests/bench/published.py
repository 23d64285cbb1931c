"""How published code does it, stated plainly. Shapes: B photos, K maps, h x w cells.

Sources: IRNet (CVPR 2019) for the walk and the CRF of labels, 1-Stage (CVPR 2020) for PAMR."""
from itertools import product

import numpy as np
import pydensecrf.densecrf as dcrf
import torch
import torch.nn.functional as F
from pydensecrf.utils import unary_from_labels


def directions(radius: int) -> list[tuple[int, int]]:
    "(dy, dx) of each pair nearer than the radius, in half of the directions."
    right = [(0, dx) for dx in range(1, radius)]
    below = product(range(1, radius), range(1 - radius, radius))
    return right + [(dy, dx) for dy, dx in below if dy * dy + dx * dx < radius * radius]


def on_the_way(dy: int, dx: int) -> list[tuple[int, int]]:
    "The cells between a start and the cell at (dy, dx), both of them, too."
    box = product(range(dy + 1), range(min(dx, 0), max(dx, 0) + 1))
    return [(y, x) for y, x in box if (dy * x - dx * y) ** 2 < dy * dy + dx * dx]


def dense_walk(
    cam: torch.Tensor,        # (K, h, w)
    boundary: torch.Tensor,   # (h, w), 0..1
    radius: int = 5,
    beta: int = 10,
    squarings: int = 8,       # 2 ^ 8 = 256 steps
) -> torch.Tensor:            # (K, h, w)
    "The dense (hw, hw) matrix of all affinities, squared eight times."
    height, width = boundary.shape
    reach = radius - 1
    padded = F.pad(boundary[None], (reach, reach, 0, reach), value=1.)[0]
    places = torch.arange(height * width).view(height, width)
    padded_places = F.pad(places[None], (reach, reach, 0, reach), value=-1)[0]
    matrix = torch.eye(height * width)
    for dy, dx in directions(radius):
        seen = []
        for y, x in on_the_way(dy, dx):
            seen.append(padded[y:height + y, reach + x:width + reach + x])
        affinity = (1 - torch.stack(seen).amax(0)).flatten()
        ends = padded_places[dy:height + dy, reach + dx:width + reach + dx].flatten()
        inside = ends >= 0
        starts = places.flatten()[inside]
        matrix[starts, ends[inside]] = affinity[inside]
        matrix[ends[inside], starts] = affinity[inside]
    matrix = matrix ** beta
    matrix = matrix / matrix.sum(0, keepdim=True)
    for _ in range(squarings):
        matrix = matrix @ matrix
    scores = cam * (1 - boundary)
    return (scores.flatten(1) @ matrix).view(cam.shape)


def crf_of_labels(
    image: np.ndarray,    # uint8 (H, W, 3)
    labels: np.ndarray,   # (H, W), 0 to count - 1
    count: int,           # of labels
) -> np.ndarray:          # (H, W)
    "The dense CRF of a label map, 10 rounds."
    height, width = labels.shape
    field = dcrf.DenseCRF2D(width, height, count)
    field.setUnaryEnergy(unary_from_labels(labels, count, gt_prob=.7, zero_unsure=False))
    field.addPairwiseGaussian(sxy=3, compat=3)
    field.addPairwiseBilateral(sxy=50, srgb=5, rgbim=np.ascontiguousarray(image), compat=10)
    chances = np.array(field.inference(10)).reshape(count, height, width)
    return chances.argmax(0)


def neighbours(
    maps: torch.Tensor,   # (B, K, h, w)
    dilation: int,
    kernel: torch.Tensor,  # (n, 1, 3, 3)
) -> torch.Tensor:        # (B, K, n, h, w)
    "A 3 x 3 convolution of each map alone, with the border repeated."
    batch, count, height, width = maps.shape
    flat = maps.reshape(batch * count, 1, height, width)
    flat = F.pad(flat, [dilation] * 4, mode='replicate')
    found = F.conv2d(flat, kernel, dilation=dilation)
    return found.view(batch, count, -1, height, width)


def kernels() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    "Neighbour less centre, (8, 1, 3, 3); all nine, (9, 1, 3, 3); the eight neighbours."
    nine = torch.eye(9).view(9, 1, 3, 3)
    eight = torch.cat([nine[:4], nine[5:]])
    centre = nine[4:5].expand(8, 1, 3, 3)
    return centre - eight, nine, eight


def all_dilations(maps: torch.Tensor, dilations: tuple[int, ...],
                  kernel: torch.Tensor) -> torch.Tensor:
    "(B, K, n * dilations, h, w)."
    return torch.cat([neighbours(maps, dilation, kernel) for dilation in dilations], 2)


def pamr(
    image: torch.Tensor,   # (B, 3, H, W), 0..1
    maps: torch.Tensor,    # (B, K, h, w)
    dilations: tuple[int, ...] = (1, 2, 4, 8, 12, 24),
    rounds: int = 10,
) -> torch.Tensor:         # (B, K, h, w)
    "Pixel-adaptive mask refinement: all neighbours of all maps at once, in every round."
    difference, nine, eight = kernels()
    image = F.interpolate(image, maps.shape[-2:], mode='bilinear', align_corners=True)
    deviation = all_dilations(image, dilations, nine).std(2, keepdim=True)
    apart = all_dilations(image, dilations, difference)
    alike = (-apart.abs() / (1e-8 + .1 * deviation)).mean(1, keepdim=True)
    weights = alike.softmax(2)
    for _ in range(rounds):
        maps = (all_dilations(maps, dilations, eight) * weights).sum(2)
    return maps


def hspp(
    features: torch.Tensor,   # (B, d, h, w)
    gamma: float = 2.,
) -> torch.Tensor:            # (B, d)
    "Adaptive pooling, once for each grid and once for the mean."
    maxima = 0.
    for r in (1, 2, 4):
        maxima = maxima + F.adaptive_max_pool2d(features, r).mean((2, 3))
    return (maxima + gamma * F.adaptive_avg_pool2d(features, 1).flatten(1)) / (gamma + 3)


def words(
    features: torch.Tensor,   # (B, d, h, w)
    codebook: torch.Tensor,   # (k, d)
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:   # probabilities, histogram, labels
    "Unit features, unit words, all products, softmax, the best of each place."
    unit_features = F.normalize(features.detach(), dim=1)
    unit_words = F.normalize(codebook, dim=1)
    similarity = torch.einsum('bdhw,kd->bkhw', unit_features, unit_words)
    probabilities = similarity.softmax(1)
    best = probabilities.argmax(1).flatten(1)
    labels = torch.zeros(similarity.shape[:2]).scatter_(1, best, 1.)
    return probabilities, probabilities.sum((2, 3)), labels


def cams(
    network: torch.nn.Module,   # with `.class_maps`
    views: list[torch.Tensor],  # of each scale (2, 3, h, w): photo and mirror image
    size: tuple[int, int],      # (height, width) of the photo
    tags: torch.Tensor,         # (C,), 0 or 1
) -> torch.Tensor:              # (K, h / 4, w / 4), 0..1
    "Maps of all classes at every scale, at stride 4 and at full size, then those of the tags."
    strided = [(side - 1) // 4 + 1 for side in size]
    small = 0.
    large = 0.
    for images in views:
        straight, mirrored = network.class_maps(images)
        maps = torch.maximum(straight, mirrored.flip(-1))[None]
        small = small + F.interpolate(maps, strided, mode='bilinear', align_corners=False)[0]
        large = large + F.interpolate(maps, size, mode='bilinear', align_corners=False)[0]
    found = []
    for maps in (small, large):
        kept = maps[tags.bool()]
        found.append(kept / (kept.amax((1, 2), keepdim=True) + 1e-5))
    return found[0]


def logits(
    network: torch.nn.Module,    # images -> (B, L, h, w)
    views: list[torch.Tensor],   # of each scale (1, 3, h, w)
    size: tuple[int, int],       # (height, width) of the photo
) -> torch.Tensor:               # (H, W), labels
    "The largest over scales of the logits at full size."
    found = []
    for images in views:
        maps = network(images)
        found.append(F.interpolate(maps, size, mode='bilinear', align_corners=False)[0])
    return torch.stack(found).amax(0).argmax(0)

"BES: what cannot work is told; training goes on where it was, and counts over the whole batch."
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from wsss_nb.backbones import BackboneSettings
from wsss_nb.bes import (BES, BES_SMALL, BES_VOC, Border, BorderCrops, border_labels, border_loss,
                         border_map, border_training_loss, sobel_map)
from wsss_nb.cam import CAM
from wsss_nb.crf import refine_labels
from wsss_nb.files import InputError
from wsss_nb.irn import irn_labels
from wsss_nb.loaders import Augmentation, Batch, Place
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.pipeline import run
from wsss_nb.run import Config
from wsss_nb.settings import check_settings
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

RANDOM = BackboneSettings('resnet18', 'none')
ON_CPU = os.environ | {'CUDA_VISIBLE_DEVICES': '', 'ACCELERATE_USE_CPU': 'true',
                       'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('bes')/'shapes', train=6, val=1, size=64)


@pytest.fixture(scope='module')
def photos(shapes) -> VOCFolder:
    return VOCFolder(shapes, 'train')


@pytest.fixture(scope='module')
def cams(photos) -> list[CAM]:
    "Maps of 1 in the things, at stride 4."
    found = []
    for i in range(len(photos)):
        truth = photos.truth(i)
        classes = photos.tags(i).nonzero().flatten().numpy()
        maps = np.stack([(truth == c + 1)[::4, ::4] for c in classes]).astype(np.float32)
        found.append(CAM(classes, maps, truth.shape))
    return found


def decided(**settings) -> BES:
    training = TrainingSettings(epochs=2, batch_size=2)
    method = BES(backbone=RANDOM, training=training, betas=(5.,), **settings)
    return method.following(Lead(side=64, crop=96))


def work_in(folder: Path, photos: VOCFolder, cams: list[CAM], **options) -> Work:
    return Work(photos, folder, Machine(workers=0, **options), cams=cams)


WRONG = {
    'an even window': (dict(window=12), 'window must be an odd number of pixels, 3 or .*, not 12'),
    'a window of one': (dict(window=1), 'window must be .* not 1'),
    'no share': (dict(scale=0.), 'scale must be more than 0 and less than 0.5, not 0.0'),
    'half a window': (dict(scale=.5), 'scale must be more than 0 and less than 0.5, not 0.5'),
    'no difference': (dict(difference=0.), 'difference must be more than 0 and less than 0.5'),
    'a difference that is no number': (dict(difference=float('nan')), 'difference must be .* nan'),
    'other cells': (dict(cells='all'), 'cells must be middle or any, not all'),
    'other borders': (dict(borders='canny'), 'borders must be learned, inverse or sobel, not'),
    'no beta': (dict(betas=()), 'betas must be numbers over 0'),
    'scores the other way round': (dict(scores=(.07, .3)), 'scores must be two numbers between'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_what_cannot_work_is_told(wrong):
    settings, said = WRONG[wrong]
    with pytest.raises(InputError, match=said):
        check_settings(BES(**settings))


def test_labels_must_fit_the_map():
    with pytest.raises(ValueError, match=r'the labels must be \(2, 4, 5\) .*, not \(2, 5, 4\)'):
        border_loss(torch.rand(2, 4, 5), torch.zeros(2, 5, 4))


def test_the_window_follows_the_photos():
    assert BES().following(Lead(side=512, crop=512)).window == 13
    assert BES(window=9).following(Lead(side=512, crop=512)).window == 9
    assert BES_VOC.following(side=160).refiner.window == 13


def test_thresholds_are_settings():
    sure = np.array([[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]])     # 0.3 and 0.7 in a window of 19
    assert border_labels(sure, 19, .2, .5)[0, -1] == Border.RIM
    assert border_labels(sure, 19, .3, .2)[0, -1] == Border.BACKGROUND
    assert border_labels(sure, 19, .3, .201)[0, -1] == 255
    two = np.array([[1, 255, 2]])
    assert border_labels(two, 3)[0, 1] == Border.SEAM
    assert border_labels(two, 3, seams=False)[0, 1] == 255


def test_crops_hold_border_labels_whatever_the_number_of_classes(photos, tmp_path):
    augmentation = Augmentation(32, (.5,) * 3, (.5,) * 3, factor=(1, 1))
    one = VOCFolder(photos.root, 'train')
    one.classes = one.classes[:1]
    size = one.image(0).size[::-1]
    write_mask(tmp_path/f'{one.ids[0]}.png', np.full(size, Border.SEAM, np.uint8))
    batch = BorderCrops(one, tmp_path, augmentation)[Place(0, 0)]
    assert set(batch.targets['mask'].unique().tolist()) <= {3, 255}
    write_mask(tmp_path/f'{one.ids[0]}.png', np.full(size, 4, np.uint8))
    with pytest.raises(InputError, match=one.ids[0]):
        BorderCrops(one, tmp_path, augmentation)[Place(0, 0)]


def test_training_goes_on_where_it_was_cut_off(photos, cams, tmp_path):
    method = decided()
    whole = work_in(tmp_path/'whole', photos, cams)
    method.maker(whole)

    def stop(at):
        if at.step == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        method.maker(work_in(tmp_path/'cut', photos, cams, step_done=stop))
    labels = sorted((tmp_path/'cut'/'labels').iterdir())
    labels[1].unlink()                          # a power failure could leave labels out, too
    method.maker(work_in(tmp_path/'cut', photos, cams))
    for path in labels:
        assert path.read_bytes() == (tmp_path/'whole'/'labels'/path.name).read_bytes()
    weights = [load_file(tmp_path/name/'model.safetensors') for name in ('whole', 'cut')]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    for name in ('walk.json', 'log.csv'):
        assert (tmp_path/'whole'/name).read_bytes() == (tmp_path/'cut'/name).read_bytes()


def test_parts_of_a_batch_learn_what_the_batch_learns(photos, cams, tmp_path):
    weights = []
    for parts in (1, 2):
        method = decided()
        method = replace(method, training=replace(method.training, accumulate=parts))
        method.train(work_in(tmp_path/str(parts), photos, cams))
        weights.append(load_file(tmp_path/str(parts)/'model.safetensors'))
    for name in weights[0]:
        torch.testing.assert_close(weights[0][name], weights[1][name], rtol=1e-4, atol=1e-5)


HALVES = '''
import sys
import torch
from wsss_nb.bes import border_loss
from wsss_nb.training import process
rank = process().process_index
assert process().num_processes == 2
torch.manual_seed(0)
chance = torch.rand(4, 6, 9)
labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (4, 6, 9))]
own = chance[2 * rank:2 * rank + 2].requires_grad_()
here = labels[2 * rank:2 * rank + 2]
for part in (0, 1):
    one = slice(part, part + 1)
    (border_loss(own[one], here[one], here).total / 2).backward()
torch.save(own.grad, f'{sys.argv[1]}/{rank}')
torch.distributed.destroy_process_group()
'''


def test_two_processes_count_over_the_batch_of_both(tmp_path):
    script = tmp_path/'halves.py'
    script.write_text(HALVES)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [*launch, '--nproc_per_node', '2', str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ON_CPU)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(0)
    chance = torch.rand(4, 6, 9).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 255])[torch.randint(0, 5, (4, 6, 9))]
    border_loss(chance, labels).total.backward()
    halves = torch.cat([torch.load(tmp_path/'0'), torch.load(tmp_path/'1')])
    torch.testing.assert_close(halves / 2, chance.grad)     # gradients are averaged


@pytest.mark.parametrize('cells', ['any', 'middle'])
def test_a_loss_in_half_precision(cells):
    network = decided().network(3).train()
    batch = Batch(torch.randn(2, 3, 98, 98), {'mask': torch.randint(0, 4, (2, 98, 98))})
    with torch.autocast('cpu', torch.bfloat16):
        terms = border_training_loss(network, batch, cells)
    assert all(term.dtype == torch.float32 and term.isfinite() for term in terms.values())
    terms['total'].backward()
    assert all(p.grad.isfinite().all() for p in network.boundary.parameters())


def test_edges_of_the_photo_need_no_training(photos, cams, tmp_path):
    method = decided(borders='sobel')
    maker = method.maker(work_in(tmp_path, photos, cams))
    assert not (tmp_path/'model.safetensors').exists() and not (tmp_path/'labels').exists()
    seen = maker.views(2)
    walked = maker.see(seen)
    chosen = json.loads((tmp_path/'walk.json').read_text())['setting']
    assert np.array_equal(walked.maps, method.walks(maker.network, seen, [chosen])[0].maps)
    assert sobel_map(seen.pixels).shape == walked.maps.shape[1:]


def test_labels_and_their_crf_are_those_of_the_publication(photos, cams, tmp_path):
    method = decided(scores=(.6, .2), window=5, cells='middle')
    work = work_in(tmp_path, photos, cams)
    image = photos.image(1)
    sure = irn_labels(cams[1], image, .6, .2)
    expected = border_labels(sure, 5)
    assert np.array_equal(method.sure_labels(work, 1, image, method.used_scores(work)), expected)
    method.write_sure_labels(work)
    assert np.array_equal(read_mask(tmp_path/'labels'/f'{photos.ids[1]}.png'), expected)
    plain = replace(method, crf=False).labels(work, 1, image, cams[1], .4)
    assert np.array_equal(plain, cams[1].to_labels(.4))
    snapped = method.labels(work, 1, image, cams[1], .4)
    assert np.array_equal(snapped, refine_labels(image, plain, bilateral_sigma=20))


def test_a_map_of_one_photo_needs_no_batch():
    network = decided().network(3).eval()
    pixels = torch.randn(3, 50, 71)
    with torch.inference_mode():
        found = border_map(network, pixels)
        turned = border_map(network, pixels.flip(-1))
    assert found.shape == (13, 18)
    torch.testing.assert_close(turned, found.flip(-1))


def test_the_system_makes_pseudo_masks(shapes, tmp_path):
    short = TrainingSettings(epochs=1, batch_size=4)
    system = replace(
        BES_SMALL, classifier=replace(BES_SMALL.classifier, backbone=replace(
            RANDOM, output_stride=16, dilate=False, frozen_stages=3, batch_norm='frozen'),
            training=short),
        cams=replace(BES_SMALL.cams, scales=(1.,)),
        refiner=replace(BES_SMALL.refiner, training=short, betas=(5.,)))
    metrics = run(Config(shapes, tmp_path/'run', system, workers=0), until='refine')
    assert {'cam', 'walked', 'pseudo'} <= metrics.keys()
    assert len(list((tmp_path/'run'/'pseudo').glob('*.png'))) == 6

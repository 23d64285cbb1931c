"Loading photos: what is refused, and errors that are raised in workers."
import random

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.files import InputError
from wsss_nb.loaders import (Augmentation, StepSampler, TaggedCrops, create_loader, jittered,
                             raised)
from wsss_nb.voc import VOCFolder

COLOURS = ((.5,) * 3, (.5,) * 3)


@pytest.mark.parametrize('ranges', [{}, {'long_side': (8, 9), 'factor': (1., 2.)}])
def test_an_augmentation_draws_one_of_two(ranges):
    with pytest.raises(InputError, match='draws either the long side or a factor'):
        Augmentation(64, *COLOURS, **ranges)


def test_a_crop_has_pixels():
    with pytest.raises(InputError, match='a crop of 0 pixels is none'):
        Augmentation(0, *COLOURS, factor=(1., 1.))


@pytest.mark.parametrize('target', [
    np.zeros((6, 4), np.uint8),        # turned
    np.zeros((2, 3), np.float32),      # of half the size
    np.zeros((1, 4, 6), np.uint8),     # several label maps
    np.zeros((1, 1, 4, 6), np.float32),
])
def test_a_target_that_is_no_map_of_the_photo_is_named(target):
    augmentation = Augmentation(4, *COLOURS, factor=(1., 1.))
    with pytest.raises(InputError, match="target 'mask', .* is no map of the photo's height"):
        augmentation(Image.new('RGB', (6, 4)), {'mask': target}, random.Random(0))


@pytest.mark.parametrize('kind', [bool, np.uint8, np.int16, np.int64])
def test_label_maps_of_any_integers_are_warped_alike(kind):
    augmentation = Augmentation(40, *COLOURS, factor=(.5, 1.5))
    values = np.random.default_rng(0).integers(0, 2, (30, 50))
    photo = Image.new('RGB', (50, 30))
    _, wanted = augmentation(photo, {'mask': values}, random.Random(1))
    _, found = augmentation(photo, {'mask': values.astype(kind)}, random.Random(1))
    assert torch.equal(found['mask'], wanted['mask']) and found['mask'].dtype == torch.int64


@pytest.mark.parametrize('workers', [0, 2])
def test_a_photo_that_is_cut_off_is_named_whichever_process_reads_it(workers, tmp_path):
    (tmp_path/'images').mkdir()
    generator = np.random.default_rng(0)
    for i in range(6):
        pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path/'images'/f'photo{i}.png')
    (tmp_path/'tags.csv').write_text('file,tags\n' + ''.join(f'photo{i}.png,a\n' for i in range(6)))
    crops = TaggedCrops(VOCFolder(tmp_path, 'train'), Augmentation(8, *COLOURS, factor=(1., 1.)))
    broken = tmp_path/'images'/'photo3.png'
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(InputError, match='photo3.png') as found:
        list(raised(create_loader(crops, StepSampler(6, 6, 1), workers)))
    assert 'Traceback' not in str(found.value)


def test_a_jittered_photo_leaves_the_random_numbers_of_gpus_alone(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, 'manual_seed_all', seeds.append)
    before = torch.get_rng_state()
    image = Image.effect_noise((8, 8), 90).convert('RGB')
    one, two = [np.asarray(jittered(image, random.Random(0))) for _ in range(2)]
    assert not seeds and torch.equal(before, torch.get_rng_state())
    assert (one == two).all()

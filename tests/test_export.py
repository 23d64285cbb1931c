"Masks for annotation tools: things and regions, and what is refused before anything is written."
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image
from untrained import untrained_run

from wsss_nb.export import FORMS, cut_open, export, outlines, regions
from wsss_nb.files import InputError, read_json
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.refiners import Refiner
from wsss_nb.run import Run
from wsss_nb.shapes import make_shapes
from wsss_nb.work import Work


@dataclass(frozen=True)
class Halves(Refiner):
    "Knows two things in each photo: what is to the left, and what is to the right."
    name: ClassVar[str] = 'halves'

    def things(self, work: Work, i: int) -> np.ndarray:
        return np.array([[1, 2]])


def with_masks(root: Path, **options) -> Run:
    "A run whose masks of all kinds are the truth."
    run = untrained_run(root/'run', make_shapes(root/'shapes', train=3, val=2, size=48), **options)
    for photos in run.splits.values():
        for i, name in enumerate(photos.ids):
            for folder in ('masks', 'predictions'):
                write_mask(run.root/folder/f'{name}.png', photos.truth(i))
            if photos is run.photos:
                write_mask(run.root/'pseudo'/f'{name}.png', photos.truth(i))
    return run


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Run:
    return with_masks(tmp_path_factory.mktemp('run'))


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('masks, count', (('masks', 5), ('predictions', 5), ('pseudo', 3)))
def test_predictions_are_of_all_photos_and_pseudo_masks_of_those_to_learn_from(
        form, masks, count, run, tmp_path):
    (tmp_path/'out').mkdir()                       # an empty folder is as good as none
    assert export(run, form, tmp_path/'out', masks) == count
    assert [path.name for path in tmp_path.iterdir()] == ['out']
    names = {path.name for path in (tmp_path/'out').rglob('*')}
    if form == 'coco':
        assert names == {'annotations.json'}
        assert len(read_json(tmp_path/'out'/'annotations.json')['images']) == count
    elif form == 'png':
        assert len(names) == count + 2             # masks/ and classes.txt
    else:
        assert len(names) == count


def test_regions_where_the_refiner_knows_no_things(run, tmp_path):
    export(run, 'coco', tmp_path/'out', 'pseudo')
    found = read_json(tmp_path/'out'/'annotations.json')['annotations']
    wanted = [regions(run.photos.truth(i)).max() for i in range(len(run.photos))]
    assert len(found) == sum(wanted) > 0


def test_things_where_the_refiner_knows_them_but_of_its_own_masks_only(tmp_path):
    run = with_masks(tmp_path, refiner=Halves())
    export(run, 'coco', tmp_path/'pseudo', 'pseudo')
    export(run, 'coco', tmp_path/'predictions')
    for annotation in read_json(tmp_path/'pseudo'/'annotations.json')['annotations']:
        left, _, width, _ = annotation['bbox']
        size = run.photos.truth(annotation['image_id'] - 1).shape
        middle = size[1] / 2
        assert left + width <= middle + 1 or left >= middle - 1
    all_photos = read_json(tmp_path/'predictions'/'annotations.json')['annotations']
    wanted = 0
    for photos in run.splits.values():
        for i in range(len(photos)):
            wanted += regions(photos.truth(i)).max()
    assert len(all_photos) == wanted


def test_what_is_refused_leaves_nothing_behind(run, tmp_path):
    (tmp_path/'used').mkdir()
    (tmp_path/'used'/'file').write_text('mine')
    with pytest.raises(InputError, match='used: there is something here already'):
        export(run, 'png', tmp_path/'used')
    with pytest.raises(InputError, match='there is something here already'):
        export(run, 'png', tmp_path/'used'/'file')
    assert [path.name for path in tmp_path.rglob('*')] == ['used', 'file']


def test_a_mask_that_is_missing_or_broken_is_told(tmp_path):
    run = with_masks(tmp_path)
    name = run.photos.ids[1]
    path = run.root/'pseudo'/f'{name}.png'
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match=f'pseudo/{name}.png.*wsss_nb refine'):
        export(run, 'png', tmp_path/'out', 'pseudo')
    path.write_bytes(before[:60])
    for form in FORMS:
        with pytest.raises(InputError, match=f'{name}.png'):
            export(run, form, tmp_path/'out', 'pseudo')
    assert not (tmp_path/'out').exists()
    path.write_bytes(before)
    assert export(run, 'png', tmp_path/'out', 'pseudo') == 3      # what was left is cleared away
    assert np.array_equal(read_mask(tmp_path/'out'/'masks'/f'{name}.png'), run.photos.truth(1))


def test_small_regions_are_no_polygons_and_that_is_said(tmp_path, capsys):
    run = with_masks(tmp_path)
    name = run.photos.ids[1]
    speckled = np.zeros_like(run.photos.truth(1))
    speckled[2:6, 2:6] = 1
    speckled[20:24, 20:24] = 1
    write_mask(run.root/'pseudo'/f'{name}.png', speckled)
    share = 20 / speckled.size
    assert export(run, 'labelme', tmp_path/'some', 'pseudo', share) == 3
    said = capsys.readouterr().out
    assert f'1 photos have no polygon: {name}\n' in said
    assert re.search(r'^\d regions of less than .* percent .* left out', said)
    assert read_json(tmp_path/'some'/f'{name}.json')['shapes'] == []
    export(run, 'labelme', tmp_path/'all', 'pseudo', 0.)
    assert 'left out' not in capsys.readouterr().out
    assert len(read_json(tmp_path/'all'/f'{name}.json')['shapes']) == 2


def test_cutouts_are_the_photos_where_their_masks_are_not_background(run, tmp_path):
    export(run, 'cutout', tmp_path/'out')
    for photos in run.splits.values():
        for i, name in enumerate(photos.ids):
            with Image.open(tmp_path/'out'/f'{name}.png') as cut:
                pixels = np.asarray(cut)
            truth = photos.truth(i)
            seen = (truth > 0) & (truth != 255)
            assert seen.any() and (pixels[..., 3] == 255 * seen).all()
            assert (pixels[seen][:, :3] == np.asarray(photos.image(i))[seen]).all()
            assert not pixels[~seen].any()


def test_a_smallest_region_is_for_polygons_and_a_share(run, tmp_path):
    with pytest.raises(InputError, match='--smallest is for polygons .* coco keeps every pixel'):
        export(run, 'coco', tmp_path/'out', smallest=.1)
    with pytest.raises(InputError, match='a share of the photo, .* not 30'):
        export(run, 'labelme', tmp_path/'out', smallest=30)
    assert not (tmp_path/'out').exists()


def test_an_unfinished_run_names_the_stage_to_begin_with(tmp_path):
    run = untrained_run(tmp_path/'run', make_shapes(tmp_path/'shapes', train=3, val=2, size=48))
    with pytest.raises(InputError, match=f'Go on with `wsss_nb cams {run.root}`, or give the'):
        export(run, 'png', tmp_path/'out')     # its networks are there, and nothing else
    run.record(stages={'classify': {'start': 'this morning'}})
    with pytest.raises(InputError, match=f'Go on with `wsss_nb classify {run.root}`'):
        export(run, 'png', tmp_path/'out')


def test_a_region_with_two_holes_is_one_ring():
    region = np.ones((9, 15), bool)
    region[3:5, 3:5] = False
    region[4:6, 10:12] = False
    (rings,) = outlines(region)
    assert len(rings) == 3
    ring = cut_open(rings)
    assert len(ring) == sum(map(len, rings)) + 4     # two points are passed twice for each hole


def test_polygons_find_their_photos_through_a_link(run, tmp_path):
    (tmp_path/'disk'/'deep').mkdir(parents=True)
    (tmp_path/'link').symlink_to(tmp_path/'disk'/'deep')
    export(run, 'labelme', tmp_path/'link'/'out')
    for path in (tmp_path/'link'/'out').glob('*.json'):
        assert (path.parent/read_json(path)['imagePath']).exists()

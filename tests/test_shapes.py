"What chapter 4 refuses, and that a data set is whole or absent."
import json

import numpy as np
import pytest

from wsss_nb.files import InputError
from wsss_nb.photos import write_mask
from wsss_nb.shapes import make_shapes, scene_of, shapes_parts


@pytest.fixture
def small(tmp_path):
    return make_shapes(tmp_path/'small', train=5, val=1, size=64)


def test_another_data_set_is_not_replaced(small):
    before = (small/'shapes.json').read_bytes()
    with pytest.raises(InputError, match='small: holds Shapes made with .*, not with .*remove it'):
        make_shapes(small, train=6, val=1, size=64)
    assert (small/'shapes.json').read_bytes() == before


def test_other_files_are_not_replaced(tmp_path):
    (tmp_path/'full').mkdir()
    (tmp_path/'full'/'note.txt').write_text('mine')
    (tmp_path/'file').write_text('mine')
    for name in ('full', 'file'):
        with pytest.raises(InputError, match=f'{name}: is not an empty folder. Give another one'):
            make_shapes(tmp_path/name, train=1, val=0, size=32)
    assert (tmp_path/'full'/'note.txt').read_text() == 'mine'


@pytest.mark.parametrize('wrong', [{'train': 0}, {'val': -1}, {'size': 15}, {'size': 10 ** 9},
                                   {'train': 10 ** 9}])
def test_numbers_that_make_no_data_set(tmp_path, wrong):
    with pytest.raises(InputError, match='at least 1 photo to train on|100,000 photos at most'):
        make_shapes(tmp_path/'none', **wrong)
    assert not (tmp_path/'none').exists()


def test_an_empty_folder_is_no_obstacle_and_what_we_did_not_make_stays(tmp_path, monkeypatch):
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty.unfinished').mkdir()
    (tmp_path/'empty.unfinished'/'half').write_text('mine')
    root = make_shapes(tmp_path/'empty', train=1, val=0, size=32)
    assert json.loads((root/'shapes.json').read_text())['train'] == 1
    assert (tmp_path/'empty.unfinished'/'half').read_text() == 'mine'
    assert {path.name for path in tmp_path.iterdir()} == {'empty', 'empty.unfinished'}
    assert [path.name for path in (root/'ImageSets'/'Segmentation').iterdir()] == ['train.txt']
    (tmp_path/'here').mkdir()
    monkeypatch.chdir(tmp_path/'here')
    make_shapes('.', train=1, val=0, size=32)
    assert (tmp_path/'here'/'shapes.json').is_file()


def test_photos_that_are_no_shapes_have_no_parts(small):
    with pytest.raises(InputError, match='shapes.json: there is no such file.*are no Shapes'):
        shapes_parts(small.parent, 'train_00003')


def test_a_mask_that_its_name_does_not_draw(small):
    write_mask(small/'SegmentationClass'/'train_00004.png', scene_of('train_00003', 64, 0).mask)
    with pytest.raises(InputError, match='train_00004.png: is not the mask that this name'):
        shapes_parts(small, 'train_00004')


def test_no_photo_is_in_both_splits_and_every_seed_draws_others():
    drawn = [scene_of(*of).photo for of in (('train_00000', 64, 0), ('val_00000', 64, 0),
                                            ('train_00000', 64, 1))]
    assert not np.array_equal(drawn[0], drawn[1])
    assert not np.array_equal(drawn[0], drawn[2])

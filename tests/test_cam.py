"What class activation maps (chapter 20) and their method refuse."
import numpy as np
import pytest
import torch

from wsss_nb.cam import CAM, MultiScale, StoredMaps, merge_mirrored
from wsss_nb.files import InputError
from wsss_nb.settings import all_faults


def example() -> CAM:
    return CAM(np.array([2]), np.array([[[0., .2, 1.]]], np.float32), (4, 12))


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    example().save(tmp_path/'whole.npz')
    (tmp_path/'cut.npz').write_bytes((tmp_path/'whole.npz').read_bytes()[:60])
    with pytest.raises(InputError, match=r'cut\.npz: this is no whole map \(.*Without this file'):
        CAM.load(tmp_path/'cut.npz')


@pytest.mark.parametrize('content', [b'', b'not a map at all'])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path/'other.npz').write_bytes(content)
    with pytest.raises(InputError, match=r'other\.npz: this is no whole map'):
        CAM.load(tmp_path/'other.npz')


def test_arrays_of_another_kind_are_refused(tmp_path):
    np.savez(tmp_path/'other.npz', weights=np.zeros(3))
    with pytest.raises(InputError, match=r'other\.npz: this is no whole map .*classes'):
        CAM.load(tmp_path/'other.npz')


def test_a_map_that_is_not_there_is_named(tmp_path):
    example().save(tmp_path/'first.npz')
    maps = StoredMaps(tmp_path, ('first', 'second'))
    assert maps[0].classes.tolist() == [2]
    with pytest.raises(InputError, match=r'second\.npz: there is no such map\. Without this file'):
        maps[1]


def test_a_cut_off_save_leaves_nothing(tmp_path):
    broken = CAM(np.array([2]), np.array([[[0., .2, 1.]]], np.float32), ('tall', 'wide'))
    with pytest.raises(ValueError):
        broken.save(tmp_path/'one.npz')
    assert list(tmp_path.iterdir()) == []


def test_a_merge_that_there_is_not_is_refused():
    maps = torch.zeros(1, 2, 2)
    with pytest.raises(InputError, match="merge can be maximum or sum, not 'mean'"):
        merge_mirrored(maps, maps, 'mean')


@pytest.mark.parametrize('settings, name', [
    (dict(scales=()), 'scales'),
    (dict(scales=(1., 0.)), 'scales'),
    (dict(scales=(8.,)), 'scales'),
    (dict(background=-1.), 'background'),
    (dict(background=1.), 'background'),
    (dict(background=float('nan')), 'background'),
    (dict(merge='mean'), 'merge'),
])
def test_settings_that_cannot_work_are_refused(settings, name):
    found = all_faults(MultiScale(**settings))
    assert len(found) == 1 and found[0].startswith(f'{name} must be ')


@pytest.mark.parametrize('settings', [
    dict(), dict(scales=(.5,)), dict(background=0.), dict(background=.14), dict(merge='sum')])
def test_settings_that_work_have_no_faults(settings):
    assert all_faults(MultiScale(**settings)) == []


def test_values_just_outside_of_the_range_are_cut_off_and_do_not_wrap_around(tmp_path):
    maps = np.array([[[-.005, 0., .5, 1.005]]], np.float32)
    CAM(np.array([2]), maps, (4, 16)).save(tmp_path/'a.npz')
    again = CAM.load(tmp_path/'a.npz').maps[0, 0].tolist()
    assert again == pytest.approx([0, 0, .5, 1], abs=1 / 500)

"The edges of chapter 22: figures that go wrong, texts without room."
import numpy as np
import pytest
from PIL import Image, ImageFont

from wsss_nb import pictures


def test_a_figure_is_whole_or_absent(tmp_path):
    with pytest.raises(ValueError, match='same first dimension'):
        with pictures.drawing(tmp_path/'broken.png') as axes:
            axes[0, 0].plot([1, 2], [1, 2, 3])
    assert list(tmp_path.iterdir()) == []


def test_the_old_figure_stays_if_the_new_one_goes_wrong(tmp_path):
    path = tmp_path/'line.png'
    with pictures.drawing(path):
        pass
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        with pictures.drawing(path, dark=True):
            raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_dark_figure_is_dark_and_the_next_one_is_not(tmp_path):
    for dark, corner in ((True, (13, 17, 23)), (False, (255, 255, 255))):
        with pictures.drawing(tmp_path/'line.png', dark=dark):
            pass
        assert Image.open(tmp_path/'line.png').getpixel((0, 0))[:3] == corner


def test_an_overlay_wants_a_label_map():
    photo = Image.new('RGB', (4, 3))
    with pytest.raises(TypeError, match='a label map is uint8, not int64'):
        pictures.overlay(photo, np.zeros((3, 4), np.int64))
    with pytest.raises(ValueError, match='broadcast'):
        pictures.overlay(photo, np.zeros((4, 3), np.uint8))


def test_an_overlay_leaves_photo_and_labels_as_they_are():
    photo = Image.new('RGB', (4, 3), (9, 9, 9))
    labels = np.array([[0, 1, 255, 2]] * 3, np.uint8)
    before = labels.copy()
    pictures.overlay(photo, labels, 1.)
    assert np.array_equal(labels, before)
    assert photo.getpixel((1, 1)) == (9, 9, 9)


def test_a_map_outside_of_its_range_counts_as_its_ends():
    photo = Image.new('RGB', (2, 1), (100, 100, 100))
    outside = pictures.overlay_map(photo, np.array([[-3., 7.]]))
    assert np.array_equal(outside, pictures.overlay_map(photo, np.array([[0., 1.]])))


def test_a_large_photo_is_made_smaller_with_its_labels():
    labels = np.zeros((60, 300), np.uint8)
    labels[:, 150:] = 1
    sheet = pictures.draw_overlay(Image.new('RGB', (300, 60)), labels, ['cat'], longest=100)
    assert sheet.size == (100, 20 + 22)
    assert sheet.getpixel((49, 10)) == (0, 0, 0)
    assert sheet.getpixel((50, 10)) == (128, 0, 0)


def test_text_without_room_is_three_dots():
    font = ImageFont.load_default(11)
    assert pictures.shortened('a long name', font, 1) == '...'
    assert pictures.shortened('', font, 0) == ''


def test_a_page_without_pictures_is_its_legend():
    legend = pictures.draw_legend({1: 'cat'}, 96, 'nothing yet')
    assert pictures.contact_page(legend, [], 2, 40).size == (96, legend.height)

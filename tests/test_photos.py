"What the page of `photos` does not show: odd images, broken files, what is refused."
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from wsss_nb.checks import tag_notes
from wsss_nb.files import InputError
from wsss_nb.photos import (
    Annotation, at_most, check_classes, check_tags, colour, evenly, image_size, median_long_side,
    palette, read_classes, read_image, read_mask, read_tag_table, write_mask)


def turned(orientation):
    "EXIF that says how to turn a photo."
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


# Photos

@pytest.mark.parametrize('mode, value, suffix, expected', [
    ('L', 200, 'jpg', (200, 200, 200)),
    ('CMYK', (0, 255, 255, 0), 'jpg', (254, 0, 0)),
    ('1', 1, 'png', (255, 255, 255)),
    ('LA', (0, 0), 'png', (255, 255, 255)),
    ('LA', (0, 128), 'png', (127, 127, 127)),
    ('RGBA', (255, 0, 0, 0), 'png', (255, 255, 255)),
    ('RGBA', (255, 0, 0, 255), 'png', (255, 0, 0)),
    ('I;16', 32896, 'png', (128, 128, 128)),
    ('I;16', 257, 'tif', (1, 1, 1)),
    ('P', 0, 'png', (0, 0, 0))])
def test_image_modes(tmp_path, mode, value, suffix, expected):
    path = tmp_path/f'photo.{suffix}'
    Image.new(mode, (9, 4), value).save(path)
    image = read_image(path)
    assert image.mode == 'RGB'
    assert image.size == image_size(path) == (9, 4)
    difference = np.abs(np.array(image.getpixel((4, 2))) - expected).max()
    assert difference <= (2 if suffix == 'jpg' else 0)


def test_palette_with_transparency(tmp_path):
    image = Image.new('P', (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path/'one.png', transparency=1)
    image.save(tmp_path/'bytes.png', transparency=bytes([255, 0]))
    for name in ('one.png', 'bytes.png'):
        pixels = np.asarray(read_image(tmp_path/name))
        assert pixels.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[:2, :3] = 255  # the upper left quarter is white
    lying = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1)}[orientation]
    image = Image.fromarray(np.ascontiguousarray(lying))
    image.save(tmp_path/'photo.png', exif=turned(orientation))
    assert np.array_equal(np.asarray(read_image(tmp_path/'photo.png')), upright)


@pytest.mark.parametrize('suffix', ['jpg', 'png', 'tif', 'webp', 'bmp', 'gif', 'ppm'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_image_size_is_that_of_the_upright_photo(tmp_path, suffix, orientation):
    path = tmp_path/f'photo.{suffix}'
    Image.new('RGB', (6, 4)).save(path, exif=turned(orientation))
    assert image_size(path) == read_image(path).size


def test_image_size_of_a_png_with_exif_behind_the_pixels(tmp_path):
    path = tmp_path/'photo.png'
    Image.new('RGB', (6, 4)).save(path, exif=turned(6))
    content = path.read_bytes()
    start = content.index(b'eXIf') - 4
    end = start + 12 + int.from_bytes(content[start:start + 4], 'big')
    rest = content[:start] + content[end:]
    place = rest.index(b'IEND') - 4
    path.write_bytes(rest[:place] + content[start:end] + rest[place:])
    assert image_size(path) == read_image(path).size == (4, 6)


def test_image_size_reads_the_header_only(tmp_path):
    path = tmp_path/'photo.jpg'
    Image.effect_noise((60, 40), 60).save(path)
    path.write_bytes(path.read_bytes()[:700])
    assert image_size(path) == (60, 40)
    with pytest.raises(InputError, match='photo.jpg: the image cannot be decoded'):
        read_image(path)


def test_image_size_refuses_what_is_no_photo(tmp_path):
    (tmp_path/'empty.jpg').touch()
    (tmp_path/'text.jpg').write_text('<html>404</html>')
    with pytest.raises(InputError, match='empty.jpg: the file is empty'):
        image_size(tmp_path/'empty.jpg')
    with pytest.raises(InputError, match='text.jpg: this is not an image of the kind JPEG or PNG'):
        image_size(tmp_path/'text.jpg')
    with pytest.raises(InputError, match='nowhere.jpg: the file is missing'):
        image_size(tmp_path/'nowhere.jpg')


@pytest.mark.parametrize('size', [(1, 1), (10_000, 1), (1, 10_000), (10_000, 9_000)])
def test_sizes(tmp_path, size):
    Image.new('L', size).save(tmp_path/'photo.png')  # the last is over PIL's first limit
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_image(tmp_path/'photo.png').size == size


@pytest.mark.parametrize('read', [read_image, image_size])
def test_bomb(tmp_path, monkeypatch, read):
    Image.new('L', (100, 100)).save(tmp_path/'photo.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4_999)
    words = 'photo.png: the image has more than 9,998 pixels. Scale it down'
    with pytest.raises(InputError, match=words):
        read(tmp_path/'photo.png')


def test_broken_images(tmp_path):
    Image.effect_noise((60, 40), 60).save(tmp_path/'whole.jpg')
    Image.effect_noise((60, 40), 60).save(tmp_path/'whole.png')
    jpg = (tmp_path/'whole.jpg').read_bytes()
    png = (tmp_path/'whole.png').read_bytes()
    files = {
        'cut.jpg': jpg[:len(jpg)//2],
        'cut.png': png[:len(png)//2],
        'head.jpg': jpg[:40],
        'text.jpg': b'<html>404</html>',
        'zeros.png': bytes(1000),
        'bad.png': png[:80] + b'\0'*40 + png[120:]}
    for name, content in files.items():
        (tmp_path/name).write_bytes(content)
        with pytest.raises(InputError, match=re.escape(str(tmp_path/name))):
            read_image(tmp_path/name)


def test_images_that_are_none(tmp_path):
    (tmp_path/'empty.jpg').touch()
    Image.new('F', (3, 2)).save(tmp_path/'float.tif')
    Image.fromarray(np.array([[70_000]], np.int32)).save(tmp_path/'deep.tif')
    refusals = {
        'empty.jpg': 'empty.jpg: the file is empty. Copy it again',
        'nowhere.jpg': 'nowhere.jpg: the file is missing',
        '': 'this is not a file',
        'float.tif': 'floating-point',
        'deep.tif': 'not 16-bit'}
    for name, words in refusals.items():
        with pytest.raises(InputError, match=words):
            read_image(tmp_path/name)


def test_a_photo_that_was_cut_off(tmp_path):
    path = tmp_path/'photo.jpg'
    Image.effect_noise((64, 44), 60).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    words = r'photo.jpg: the image cannot be decoded \(.*Copy it again from where it came'
    with pytest.raises(InputError, match=words):
        read_image(path)


@pytest.mark.parametrize('name', ['whole.jpg', 'whole.png'])
def test_a_photo_cut_anywhere_is_read_or_refused(tmp_path, name):
    options = {'exif': Image.Exif()} if name.endswith('jpg') else {}
    Image.effect_noise((30, 20), 60).save(tmp_path/name, **options)
    content = (tmp_path/name).read_bytes()
    path = tmp_path/'damaged'
    for position in np.random.default_rng(0).integers(1, len(content), 60):
        spoilt = bytearray(content)
        spoilt[position] ^= 0xff
        for damaged in (content[:position], bytes(spoilt)):
            path.write_bytes(damaged)
            for read in (read_image, image_size):
                try:
                    read(path)
                except InputError as error:
                    assert 'damaged' in str(error)


# Masks

@pytest.mark.parametrize('mode, value', [('L', 3), ('P', 3), ('1', 1)])
def test_mask_kinds(tmp_path, mode, value):
    image = Image.new(mode, (5, 3), value)
    if mode == 'P':
        image.putpalette(palette()[:4].tobytes())  # four colours: two bits a pixel
    image.save(tmp_path/'mask.png')
    labels = read_mask(tmp_path/'mask.png', 3, (5, 3))
    assert labels.shape == (3, 5)
    assert labels.dtype == np.uint8
    assert (labels == value).all()
    assert labels.flags.writeable


def test_images_that_are_no_masks(tmp_path):
    path = tmp_path/'mask.png'
    words = 'mask.png: a mask holds class indices.*palette or 8-bit grey PNG'
    for mode in ('RGB', 'RGBA', 'LA', 'I;16'):
        Image.new(mode, (5, 3)).save(path)
        with pytest.raises(InputError, match=words):
            read_mask(path)
    for format in ('JPEG', 'GIF', 'WEBP'):
        Image.new('L', (5, 3)).save(path, format)
        with pytest.raises(InputError, match='not an image of the kind PNG'):
            read_mask(path)
    Image.new('F', (5, 3)).save(path, 'TIFF')
    with pytest.raises(InputError, match='mask.png'):
        read_mask(path)


def test_mask_indices(tmp_path):
    path = tmp_path/'mask.png'
    write_mask(path, np.array([[0, 20, 255]], np.uint8))
    assert read_mask(path, 20).tolist() == [[0, 20, 255]]
    with pytest.raises(InputError, match='mask.png: .* indices 20, and there are 0..19 and 255'):
        read_mask(path, 19)
    write_mask(path, np.arange(256, dtype=np.uint8)[None])
    with pytest.raises(InputError, match='the indices 254,'):
        read_mask(path, 253)
    with pytest.raises(InputError, match='the indices 6, 7, 8, 9, 10, and there are 0..5 and 255'):
        read_mask(path, 5)
    assert read_mask(path, 254).shape == (1, 256)


def test_mask_of_another_size(tmp_path):
    write_mask(tmp_path/'mask.png', np.zeros((44, 64), np.uint8))
    words = 'mask.png: the mask is 64 x 44, its photo 44 x 64. Make the mask from this very photo'
    with pytest.raises(InputError, match=words):
        read_mask(tmp_path/'mask.png', size=(44, 64))


def test_written_masks_are_the_same_bytes(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (13, 29)).astype(np.uint8)
    write_mask(tmp_path/'a.png', labels)
    write_mask(tmp_path/'b.png', np.asfortranarray(labels))
    assert (tmp_path/'a.png').read_bytes() == (tmp_path/'b.png').read_bytes()
    assert np.array_equal(read_mask(tmp_path/'b.png'), labels)
    for wrong in (labels.astype(int), labels[None], labels > 3):
        with pytest.raises(TypeError, match='label map is uint8'):
            write_mask(tmp_path/'c.png', wrong)
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'b.png']


def test_colour_refuses_other_numbers():
    for labels in (np.array([[-1]]), np.array([[0.]]), np.array([[True]])):
        with pytest.raises(TypeError, match='a label map is uint8'):
            colour(labels)


# Sizes and places

def test_at_most_leaves_a_small_photo_alone():
    photo = Image.effect_noise((30, 20), 60)
    assert at_most(photo, 30) is photo
    assert at_most(photo, 15).size == (15, 10)
    assert at_most(Image.new('RGB', (3, 10_000)), 10).size == (1, 10)


def test_evenly():
    assert evenly(5, 1) == [0]
    assert evenly(1, 5) == [0]
    assert evenly(5, 5) == [0, 1, 2, 3, 4]


class Files:
    "Photos of which only the files matter."
    def __init__(self, *paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def path(self, i):
        return self.paths[i]


def test_median_long_side(tmp_path):
    for name, size in (('a', (8, 4)), ('b', (4, 10)), ('c', (90, 3))):
        Image.new('RGB', size).save(tmp_path/f'{name}.jpg')
    photos = Files(*[tmp_path/f'{name}.jpg' for name in 'abc'])
    assert median_long_side(photos) == 10
    assert median_long_side(photos, 2) == 49      # of the first and the last
    (tmp_path/'b.jpg').write_bytes(b'no photo')
    with pytest.raises(InputError, match='b.jpg: this is not an image'):
        median_long_side(photos)


# Tags

@pytest.mark.parametrize('classes, words', [
    ((), 'classes.txt: there are no classes'),
    (('ear', 'ear'), "'ear' is there more than once"),
    (('background', 'ear'), 'it is index 0 by itself'),
    (tuple(map(str, range(255))), '255 classes, and a mask has room for 254')])
def test_wrong_classes(classes, words):
    with pytest.raises(InputError, match=words):
        check_classes(Path('classes.txt'), classes)


def test_254_classes_are_enough():
    classes = tuple(map(str, range(254)))
    assert check_classes(Path('classes.txt'), classes) == classes


def test_tags_that_are_no_class():
    annotation = Annotation(Path('x.xml'), 'x', ('bus', 'shep', 'qqq'))
    near, far = check_tags([annotation], ('bus', 'sheep'))
    assert near.problem == "the tag 'shep' of 'x' is not in the class list"
    assert near.remedy.startswith("Is it 'sheep'? Correct the tag, or write classes.txt")
    assert far.remedy.startswith('Correct the tag')


def test_a_table_that_is_none(tmp_path):
    faults = []
    assert read_tag_table(tmp_path/'tags.csv', faults) == []
    fault, = faults
    assert fault.problem == 'there is no table of tags'
    assert fault.remedy == f'`wsss_nb new {tmp_path}` writes one that lists the photos'


def tagged(**photos):
    "Rows of a table: tags, with blanks between, of each photo."
    table = Path('tags.csv')
    return [Annotation(table, name, tuple(tags.split())) for name, tags in photos.items()]


def test_notes_on_tags_that_few_photos_have():
    assert list(tag_notes([])) == []
    assert list(tag_notes(tagged(a='cat', b='dog'), few=1)) == [
        "only one photo has the tag 'cat', 'a'; tag more, or take it out",
        "only one photo has the tag 'dog', 'b'; tag more, or take it out"]


def test_notes_on_tags_that_look_alike():
    rows = tagged(a='dog cat', b='dog', c='dgo', d='cat', e='Dog', f='Dog')
    assert list(tag_notes(rows)) == [
        "the tag 'dog' (2, such as 'a') looks like 'Dog' (2); if it is the same, write it alike",
        "the tag 'dgo' (1, such as 'c') looks like 'Dog' (2); if it is the same, write it alike",
        "few photos of a class: 'Dog' 2, 'cat' 2; each should have 10 or more"]
    rows = tagged(a='dog', b='dog', c='cat', d='cat', e='car', f='car')
    assert list(tag_notes(rows, few=2)) == []   # cat and car differ, and both are common


def test_notes_on_a_tag_that_every_photo_has():
    rows = tagged(a='dog', b='dog', c='dog cat', d='dog cat')
    assert list(tag_notes(rows, few=2)) == [
        "every photo has the tag 'dog', so nothing shows what is no 'dog'; add photos without it"]


# Masks of other kinds

def test_masks_without_loss_in_other_formats(tmp_path):
    labels = np.array([[0, 1, 2], [3, 254, 255]], np.uint8)
    image = Image.fromarray(labels)
    for name, options in (('a.bmp', {}), ('a.tif', {}), ('b.tif', {'compression': 'tiff_lzw'})):
        image.save(tmp_path/name, **options)
    for name, dtype in (('a.npy', np.uint8), ('b.npy', np.int64), ('c.npy', '>u2')):
        np.save(tmp_path/name, labels.astype(dtype))
    np.save(tmp_path/'d.npy', np.asfortranarray(labels))
    for path in sorted(tmp_path.iterdir()):
        found = read_mask(path, size=(3, 2))
        assert found.dtype == np.uint8 and found.flags.writeable and found.shape == (2, 3)
        assert np.array_equal(found, labels), path.name
    np.save(tmp_path/'e.npy', labels > 1)
    assert read_mask(tmp_path/'e.npy').tolist() == [[0, 0, 1], [1, 1, 1]]


@pytest.mark.parametrize('array, words', [
    (np.zeros((2, 3)), r'this is float64 \(2, 3\)'),
    (np.zeros((2, 3, 3), np.uint8), r'this is uint8 \(2, 3, 3\)'),
    (np.array([[-1, 2]]), 'the mask holds numbers from -1 to 2. Write 0..254, and 255 for what is'),
    (np.array([[0, 256]]), 'from 0 to 256'),
    (np.array([['cat']]), 'a mask is an array'),
    (np.array([[None]], object), 'the array cannot be read')])
def test_arrays_that_are_no_masks(tmp_path, array, words):
    np.save(tmp_path/'mask.npy', array)
    with pytest.raises(InputError, match=f'mask.npy: .*{words}'):
        read_mask(tmp_path/'mask.npy')


@pytest.mark.parametrize('content, words', [
    (b'', 'the file is empty'),
    (b'no array', 'the array cannot be read'),
    (b'\x93NUMPY\x01\x00\x76\x00{', 'the array cannot be read'),
    (b'PK\x03\x04', 'the array cannot be read')])
def test_broken_arrays(tmp_path, content, words):
    (tmp_path/'mask.npy').write_bytes(content)
    with pytest.raises(InputError, match=f'mask.npy: {words}'):
        read_mask(tmp_path/'mask.npy')


def test_an_array_that_claims_to_be_larger_than_its_file(tmp_path):
    np.save(tmp_path/'mask.npy', np.zeros((2, 3), np.uint8))
    content = (tmp_path/'mask.npy').read_bytes()
    (tmp_path/'mask.npy').write_bytes(content.replace(b'(2, 3), }      ', b'(900000,900000)}'))
    with pytest.raises(InputError, match='mask.npy: the array cannot be read'):
        read_mask(tmp_path/'mask.npy')
    np.savez(tmp_path/'many.npz', a=np.zeros((2, 3), np.uint8))
    (tmp_path/'many.npz').rename(tmp_path/'mask.npy')
    with pytest.raises(InputError, match='mask.npy: the array cannot be read'):
        read_mask(tmp_path/'mask.npy')


def test_an_array_changed_anywhere_is_read_or_refused(tmp_path):
    np.save(tmp_path/'whole.npy', np.zeros((5, 7), np.uint8))
    content = (tmp_path/'whole.npy').read_bytes()
    path = tmp_path/'damaged.npy'
    for position in np.random.default_rng(0).integers(0, len(content), 80):
        spoilt = bytearray(content)
        spoilt[position] ^= 0x55
        for damaged in (content[:position], bytes(spoilt)):
            path.write_bytes(damaged)
            try:
                assert read_mask(path).dtype == np.uint8
            except InputError as error:
                assert 'damaged' in str(error)


def test_images_that_hide_what_is_wrong(tmp_path):
    image = Image.effect_noise((16, 16), 60)
    image.save(tmp_path/'lossy.tif', compression='jpeg')
    image.save(tmp_path/'pages.tif', save_all=True, append_images=[image])
    for name, words in (('lossy', 'it is compressed with loss'), ('pages', 'it holds 2 images')):
        with pytest.raises(InputError, match=f'{name}.tif: {words}'):
            read_mask(tmp_path/f'{name}.tif')


@pytest.mark.parametrize('orientation', range(1, 9))
def test_a_mask_that_exif_turns_is_upright_as_its_photo(tmp_path, orientation):
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(labels).save(tmp_path/'mask.png', exif=turned(orientation))
    Image.fromarray(labels).save(tmp_path/'photo.png', exif=turned(orientation))
    assert np.array_equal(read_mask(tmp_path/'mask.png'),
                          np.asarray(read_image(tmp_path/'photo.png'))[..., 0])


@pytest.mark.parametrize('orientation, named', [(1, False), (3, False), (6, True), (8, True)])
def test_exif_is_named_where_it_is_the_reason(tmp_path, orientation, named):
    photo = tmp_path/'photo.jpg'
    Image.new('RGB', (6, 4)).save(photo, exif=turned(orientation))
    width, height = image_size(photo)
    write_mask(tmp_path/'mask.png', np.zeros((width, height), np.uint8))
    with pytest.raises(InputError, match='mask.png: the mask is') as caught:
        read_mask(tmp_path/'mask.png', size=(width, height), photo=photo)
    assert ('EXIF' in str(caught.value)) == named


# HEIC

def test_heic_needs_pillow_heif(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)   # as if it were not installed
    (tmp_path/'a.jpg').write_bytes(b'\0\0\0\x18ftypheic' + bytes(90))
    for read in (read_image, image_size):
        with pytest.raises(InputError, match=r"a.jpg: this is a HEIC .*pip install 'wsss_nb\[heic"):
            read(tmp_path/'a.jpg')


def test_heic(tmp_path):
    heif = pytest.importorskip('pillow_heif')
    heif.register_heif_opener()
    Image.new('RGB', (64, 48), 'red').save(tmp_path/'a.heic')
    assert read_image(tmp_path/'a.heic').size == image_size(tmp_path/'a.heic') == (64, 48)
    (tmp_path/'b.heic').write_bytes((tmp_path/'a.heic').read_bytes()[:200])
    with pytest.raises(InputError, match='b.heic'):
        read_image(tmp_path/'b.heic')


def test_a_png_with_a_long_text(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text('history', 'x' * 3_000_000, zip=True)
    Image.new('RGB', (6, 4)).save(tmp_path/'a.png', pnginfo=text)
    assert read_image(tmp_path/'a.png').size == (6, 4)
    for i in range(30):
        text.add_text(f'history {i}', 'x' * 3_000_000, zip=True)   # together a bomb
    Image.new('RGB', (6, 4)).save(tmp_path/'a.png', pnginfo=text)
    with pytest.raises(InputError, match='a.png: the image cannot be decoded'):
        read_image(tmp_path/'a.png')


# Lists of classes

@pytest.mark.parametrize('text, classes', [
    ('_background_\ncat\ndog', ('cat', 'dog')),
    ('__ignore__\n_background_\ncat', ('cat',)),
    ('Background\ncat', ('cat',)),
    ('cat\n\n dog \n', ('cat', 'dog'))])
def test_lists_of_classes(tmp_path, text, classes):
    (tmp_path/'classes.txt').write_text(text)
    assert read_classes(tmp_path/'classes.txt') == classes


@pytest.mark.parametrize('text, words', [
    ('cat\n_background_', "'_background_' is not a class"),
    ('_background_', 'there are no classes'),
    ('background\nbackground\ncat', "'background' is not a class")])
def test_lists_of_classes_that_would_shift_numbers(tmp_path, text, words):
    (tmp_path/'classes.txt').write_text(text)
    with pytest.raises(InputError, match=words):
        read_classes(tmp_path/'classes.txt')


# Tables

@pytest.mark.parametrize('text', [
    'file;tags\na.jpg;dog;cat\n', 'file;tags;\na.jpg;"dog;cat";\n', 'FILE\tTAGS\na.jpg\tdog;cat',
    '"file";"tags"\r\n"a.jpg";"dog;cat"', 'file,tags;\na.jpg,;dog;cat', 'file,tags\na.jpg,dog;cat',
    'file,tags;;\n"a.jpg,dog";cat;\n', 'file\ttags\t\na.jpg\tdog\tcat\n\n'])
@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'latin-1'])
def test_tables_as_spreadsheets_write_them(tmp_path, text, encoding):
    path = tmp_path/'tags.csv'
    path.write_bytes(text.replace('dog', 'b\u00e4r').encode(encoding))
    faults = []
    row, = read_tag_table(path, faults)
    assert (row.name, row.tags, faults) == ('a.jpg', ('b\u00e4r', 'cat'), [])

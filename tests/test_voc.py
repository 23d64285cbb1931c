"""What the notebook of `voc` cannot test on its page: odd files, broken files, downloads."""
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb import voc
from wsss_nb.files import InputError, read_list, whole_file
from wsss_nb.photos import read_image, read_mask, write_mask
from wsss_nb.voc import VOCFolder, check, summarise


def refused(action, *words):
    "Run `action`; it must raise an InputError that contains all `words`. The error is returned."
    with pytest.raises(InputError) as caught: action()
    for word in words: assert word in str(caught.value), f'{word!r} is not in {caught.value}'
    return caught.value


def xml(*names):
    return '<annotation>' + ''.join(f'<object><name>{name}</name></object>' for name in names) + '</annotation>'


@pytest.fixture
def root(tmp_path):
    "A VOC folder with three photos of 7 x 5, two in train and one in val."
    root = tmp_path/'VOC2012'
    for name in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets/Segmentation'): (root/name).mkdir(parents=True)
    for id, tag in (('a', 'cat'), ('b', 'dog'), ('c', 'cow')):
        Image.new('RGB', (7, 5), 'red').save(root/'JPEGImages'/f'{id}.jpg')
        (root/'Annotations'/f'{id}.xml').write_text(xml(tag))
        write_mask(root/'SegmentationClass'/f'{id}.png', np.full((5, 7), voc.VOC_CLASSES.index(tag) + 1, np.uint8))
    (root/'ImageSets/Segmentation/train.txt').write_text('a\nb\n')
    (root/'ImageSets/Segmentation/val.txt').write_text('c\n')
    return root


@pytest.fixture
def own(tmp_path):
    "Own photos: ear.png and stem.JPG of 7 x 5."
    root = tmp_path/'own'
    (root/'images').mkdir(parents=True)
    Image.new('RGB', (7, 5), 'gold').save(root/'images/ear.png')
    Image.new('RGB', (7, 5), 'green').save(root/'images/stem.JPG')
    (root/'tags.csv').write_text('file,tags\near.png,ear;stem\nstem.JPG,stem\n')
    return root


# Photos

@pytest.mark.parametrize('mode, value, suffix, expected', [
    ('L', 200, 'jpg', (200,)*3), ('CMYK', (0, 255, 255, 0), 'jpg', (254, 0, 0)), ('1', 1, 'png', (255,)*3), ('LA', (0, 0), 'png', (255,)*3),
    ('LA', (0, 128), 'png', (127,)*3), ('RGBA', (255, 0, 0, 0), 'png', (255,)*3), ('RGBA', (255, 0, 0, 255), 'png', (255, 0, 0)),
    ('I;16', 32896, 'png', (128,)*3), ('I;16', 257, 'tif', (1,)*3), ('P', 0, 'png', (0,)*3)])
def test_image_modes(tmp_path, mode, value, suffix, expected):
    path = tmp_path/f'photo.{suffix}'
    Image.new(mode, (9, 4), value).save(path)
    image = read_image(path)
    assert image.mode == 'RGB' and image.size == (9, 4)
    assert np.abs(np.array(image.getpixel((4, 2))) - expected).max() <= (2 if suffix == 'jpg' else 0)


def test_palette_with_transparency(tmp_path):
    image = Image.new('P', (2, 1), 0)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path/'one.png', transparency=1)
    image.save(tmp_path/'bytes.png', transparency=bytes([255, 0]))
    for name in ('one.png', 'bytes.png'):
        assert np.asarray(read_image(tmp_path/name)).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[:2, :3] = 255  # the upper left quarter is white
    turned = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1), 6: np.rot90(upright),
              7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(turned)).save(tmp_path/'photo.png', exif=exif)
    assert np.array_equal(np.asarray(read_image(tmp_path/'photo.png')), upright)


@pytest.mark.parametrize('size', [(1, 1), (10_000, 1), (1, 10_000), (10_000, 9_000)])
def test_sizes(tmp_path, size):
    Image.new('L', size).save(tmp_path/'photo.png')  # the last has more pixels than PIL's first limit
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert read_image(tmp_path/'photo.png').size == size


def test_bomb(tmp_path, monkeypatch):
    Image.new('L', (100, 100)).save(tmp_path/'photo.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 4_999)
    refused(lambda: read_image(tmp_path/'photo.png'), 'photo.png', 'more than 9,998 pixels', 'Scale it down')


def test_broken_images(tmp_path):
    Image.effect_noise((60, 40), 60).save(tmp_path/'whole.jpg')
    Image.effect_noise((60, 40), 60).save(tmp_path/'whole.png')
    jpg, png = (tmp_path/'whole.jpg').read_bytes(), (tmp_path/'whole.png').read_bytes()
    files = {'cut.jpg': jpg[:len(jpg)//2], 'cut.png': png[:len(png)//2], 'head.jpg': jpg[:40], 'text.jpg': b'<html>404</html>', 'zeros.png': bytes(1000),
             'bad.png': png[:80] + b'\0'*40 + png[120:]}
    for name, content in files.items():
        (tmp_path/name).write_bytes(content)
        refused(lambda: read_image(tmp_path/name), str(tmp_path/name))
    (tmp_path/'empty.jpg').touch()
    refused(lambda: read_image(tmp_path/'empty.jpg'), 'empty.jpg: the file is empty', 'Copy it again')
    refused(lambda: read_image(tmp_path/'nowhere.jpg'), 'nowhere.jpg: the file is missing')
    refused(lambda: read_image(tmp_path), 'this is not a file')
    Image.new('F', (3, 2)).save(tmp_path/'float.tif')
    refused(lambda: read_image(tmp_path/'float.tif'), 'floating-point')
    Image.fromarray(np.array([[70_000]], np.int32)).save(tmp_path/'deep.tif')
    refused(lambda: read_image(tmp_path/'deep.tif'), 'not 16-bit')


def test_a_photo_cut_anywhere_is_read_or_refused(tmp_path):
    Image.effect_noise((30, 20), 60).save(tmp_path/'whole.jpg', exif=Image.Exif())
    Image.effect_noise((30, 20), 60).save(tmp_path/'whole.png')
    rng = np.random.default_rng(0)
    for name in ('whole.jpg', 'whole.png'):
        content = (tmp_path/name).read_bytes()
        for position in rng.integers(1, len(content), 60):
            spoilt = bytearray(content)
            spoilt[position] ^= 0xff
            for damaged in (content[:position], bytes(spoilt)):
                (tmp_path/'damaged').write_bytes(damaged)
                try: assert read_image(tmp_path/'damaged').mode == 'RGB'
                except InputError as error: assert 'damaged' in str(error)


# Masks

def test_mask_kinds(tmp_path):
    path = tmp_path/'mask.png'
    for mode, value in (('L', 3), ('P', 3), ('1', 1)):
        image = Image.new(mode, (5, 3), value)
        if mode == 'P': image.putpalette(voc.palette()[:4].tobytes())  # four colours: two bits a pixel
        image.save(path)
        labels = read_mask(path, 3, (5, 3))
        assert labels.shape == (3, 5) and labels.dtype == np.uint8 and (labels == value).all() and labels.flags.writeable
    for mode in ('RGB', 'RGBA', 'LA', 'I;16'):
        Image.new(mode, (5, 3)).save(path)
        refused(lambda: read_mask(path), 'mask.png: a mask holds class indices', 'palette or 8-bit grey PNG')
    for format in ('JPEG', 'TIFF', 'GIF'):
        Image.new('L', (5, 3)).save(path, format)
        refused(lambda: read_mask(path), 'not an image of the kind PNG')
    Image.new('F', (5, 3)).save(path, 'TIFF')
    refused(lambda: read_mask(path), 'mask.png')


def test_mask_indices(tmp_path):
    path = tmp_path/'mask.png'
    write_mask(path, np.array([[0, 20, 255]], np.uint8))
    assert read_mask(path, 20).tolist() == [[0, 20, 255]]
    refused(lambda: read_mask(path, 19), 'the indices 20, and there are 0..19 and 255')
    write_mask(path, np.arange(256, dtype=np.uint8)[None])
    refused(lambda: read_mask(path, 253), 'the indices 254,')
    assert read_mask(path, 254).shape == (1, 256)


def test_written_masks_are_the_same_bytes(tmp_path):
    labels = np.random.default_rng(0).integers(0, 256, (13, 29)).astype(np.uint8)
    write_mask(tmp_path/'a.png', labels)
    write_mask(tmp_path/'b.png', np.asfortranarray(labels))
    assert (tmp_path/'a.png').read_bytes() == (tmp_path/'b.png').read_bytes()
    assert np.array_equal(read_mask(tmp_path/'b.png'), labels)
    for wrong in (labels.astype(int), labels[None], labels > 3):
        with pytest.raises(TypeError, match='label map is uint8'): write_mask(tmp_path/'c.png', wrong)
    assert sorted(os.listdir(tmp_path)) == ['a.png', 'b.png']


# Files

def test_whole_file_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        with whole_file(tmp_path/'missing'/'x.png') as aside: aside.write_text('x')
    assert caught.value.filename == str(tmp_path/'missing'/'x.png')
    with pytest.raises(OSError) as caught:
        with whole_file(tmp_path/'x.png'): raise OSError(28, 'No space left on device')
    assert caught.value.errno == 28 and str(tmp_path/'x.png') in str(caught.value)
    with pytest.raises(ZeroDivisionError):
        with whole_file(tmp_path/'x.png') as aside:
            aside.write_text('x')
            1/0
    assert os.listdir(tmp_path) == []
    with whole_file(tmp_path/('x'*250 + '.png')) as aside:
        assert aside.parent == tmp_path and aside.suffix == '.png'
        aside.write_text('x')
    assert os.listdir(tmp_path) == ['x'*250 + '.png']


def test_read_list(tmp_path):
    path = tmp_path/'list.txt'
    for content in (b'a\nb b\n', b'\xef\xbb\xbfa\r\nb b\r\n', b'\n\n  a  \n\t\nb b', b'a\rb b\r'):
        path.write_bytes(content)
        assert read_list(path) == ['a', 'b b']
    path.write_bytes('a\n'.encode('utf-16'))
    refused(lambda: read_list(path), 'list.txt: the text is not in UTF-8. Save it as UTF-8')
    refused(lambda: read_list(tmp_path/'nowhere.txt'), 'nowhere.txt')
    refused(lambda: read_list(tmp_path), 'cannot be read')


def test_errors_travel_between_processes():
    error = InputError(voc.Fault('a.jpg', 'broken', 'Mend it'))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is InputError and str(again) == 'a.jpg: broken. Mend it.'


def test_error_in_a_loader_process(root):
    (root/'JPEGImages/b.jpg').write_bytes(b'')
    loader = torch.utils.data.DataLoader(VOCFolder(root, 'train'), batch_size=None, num_workers=1)
    refused(lambda: list(loader), 'b.jpg: the file is empty')


# The VOC folder

def test_voc_folder(root):
    data = VOCFolder(root, 'train')
    assert data.ids == ['a', 'b'] and data.classes == voc.VOC_CLASSES and data.has_masks and data.split == 'train' and data.root == root
    assert data.image_path(1) == root/'JPEGImages/b.jpg' and data.mask_path(1) == root/'SegmentationClass/b.png'
    assert data.labels(0).dtype == torch.float32 and data.labels(0).nonzero().tolist() == [[7]]
    assert [sample.id for sample in data] == ['a', 'b'] and data[-1].id == 'b'
    with pytest.raises(IndexError): data[2]
    assert (data[1].mask == 12).all()
    assert check(root, progress=False) == []


def test_folder_around_the_voc_folder(root, tmp_path):
    outer = tmp_path/'data'
    (outer/'VOCdevkit').mkdir(parents=True)
    root.rename(outer/'VOCdevkit'/'VOC2012')
    for folder in (outer, outer/'VOCdevkit', str(outer/'VOCdevkit/VOC2012')):
        assert VOCFolder(folder, 'val').root == outer/'VOCdevkit'/'VOC2012'
        assert VOCFolder.splits(folder) == ['train', 'val']


def test_own_masks_of_voc_win(root):
    write_mask(root/'SegmentationClassAug/a.png', np.zeros((5, 7), np.uint8))
    (root/'SegmentationClass/b.png').rename(root/'SegmentationClassAug/b.png')
    data = VOCFolder(root, 'train')
    assert [data.mask_path(i).parent.name for i in (0, 1)] == ['SegmentationClass', 'SegmentationClassAug'] and data.has_masks
    (root/'SegmentationClassAug/b.png').unlink()
    assert VOCFolder(root, 'train').mask_path(1) is None and not VOCFolder(root, 'train').has_masks and VOCFolder(root, 'train')[1].mask is None


def test_image_endings(root):
    (root/'JPEGImages/a.jpg').rename(root/'JPEGImages/a.JPEG')
    Image.new('RGB', (7, 5)).save(root/'JPEGImages/b.PNG')
    (root/'JPEGImages/._a.jpg').write_bytes(b'left by a Mac')
    refused(lambda: VOCFolder(root, 'train'), "'b.PNG' has the same name but for the ending", 'Rename one')
    (root/'JPEGImages/b.jpg').unlink()
    assert VOCFolder(root, 'train')[1].image.size == (7, 5)


@pytest.mark.parametrize('content, words', [
    ('a  1\nb -1\n', ["train.txt: 'a  1' is not one name", 'ImageSets/Segmentation']), ('/JPEGImages/a.jpg /SegmentationClass/a.png', ['no list for segmentation']),
    ('a\n../b\n', ["'../b' leads out of"]), ('/etc/passwd', ['leads out of']), ('x/a', ['leads out of']), ('x\\a', ['leads out of']), ('..', ['leads out of']),
    ('C:a', ['leads out of']), ('a\nb\na\n', ["train.txt: 'a' is there more than once. Keep one"]), ('a\na.jpg', ["'a.jpg' is there more than once"]),
    ('a\nz', ["train.txt: 'z' is not in the folder JPEGImages. Put the photo there"]), ('a.png', ["which has 'a.jpg'"]), ('', ["train.txt: the split 'train' is empty"]),
    ('\n \r\n', ['is empty'])])
def test_wrong_lists(root, content, words):
    (root/'ImageSets/Segmentation/train.txt').write_text(content)
    error = refused(lambda: VOCFolder(root, 'train'), *words)
    assert list(error.args) == check(root, progress=False)  # one truth
    assert len(VOCFolder(root, 'val')) == 1  # the other split is not concerned


def test_missing_things(root, tmp_path):
    refused(lambda: VOCFolder(root, 'test'), 'test.txt: there is no split', "'train', 'val'")
    refused(lambda: VOCFolder(root, '../train'), 'there is no split')
    refused(lambda: VOCFolder(tmp_path/'nowhere', 'train'), 'nowhere: there is no such folder')
    refused(lambda: VOCFolder(root/'Annotations', 'train'), 'there is no data set here', 'tags.csv')
    refused(lambda: VOCFolder(root/'JPEGImages/a.jpg', 'train'), 'there is no such folder')
    for split in ('train', 'val'): (root/f'ImageSets/Segmentation/{split}.txt').unlink()
    refused(lambda: VOCFolder(root, 'train'), 'none at all')
    fault, = check(root, progress=False)
    assert fault.problem == 'there are no lists'
    fault, = check(tmp_path/'nowhere', progress=False)
    assert fault.problem == 'there is no such folder'


@pytest.mark.parametrize('content, words', [
    (xml(), ["a.xml: 'a' has no tags"]), (xml('cat')[:30], ['a.xml: the XML is broken']), ('', ['the XML is broken']), (None, ['a.xml: the annotation cannot be read']),
    (xml('cat', 'kat'), ["the tag 'kat' of 'a' is not in the class list. Is it 'cat'?", 'write classes.txt']),
    ('<annotation><object><part><name>cat</name></part></object></annotation>', ['has no tags']), ('<?xml version="1.0" encoding="nonsense"?><a/>', ['broken'])])
def test_wrong_annotations(root, content, words):
    path = root/'Annotations/a.xml'
    path.unlink()
    if content is not None: path.write_text(content)
    error = refused(lambda: VOCFolder(root, 'train'), *words)
    assert list(error.args) == check(root, progress=False)
    assert len(VOCFolder(root, 'val')) == 1


def test_all_is_said_at_once(root):
    (root/'ImageSets/Segmentation/train.txt').write_text('a\nb\n' + '\n'.join(f'z{i}' for i in range(20)))
    (root/'Annotations/a.xml').write_text(xml('kat'))
    error = refused(lambda: VOCFolder(root, 'train'), "'z0'", '... and 11 more. `wsss_nb check` lists them all.')
    assert len(error.args) == 21 and len(str(error).splitlines()) == 11


def test_classes_come_from_the_data(root):
    for id, tag in (('a', 'zebra'), ('b', 'ant'), ('c', 'moth')): (root/f'Annotations/{id}.xml').write_text(xml(tag))
    assert VOCFolder(root, 'train').classes == VOCFolder(root, 'val').classes == ('ant', 'moth', 'zebra')
    (root/'Annotations/c.xml').write_text('broken')  # it may have held a class, so that nobody knows the index of zebra
    refused(lambda: VOCFolder(root, 'train'), 'c.xml: the XML is broken')
    (root/'classes.txt').write_text('zebra\r\nant\r\n')
    assert VOCFolder(root, 'train').classes == ('zebra', 'ant')
    assert VOCFolder(root, 'train').labels(0).tolist() == [1, 0]
    (root/'classes.txt').write_text('zebra\n')
    refused(lambda: VOCFolder(root, 'train'), "b.xml: the tag 'ant'")
    for content, words in (('', 'no classes'), ('ant\nant', 'more than once'), ('background\nant\nzebra', 'index 0'), ('\n'.join(map(str, range(255))), '255 classes')):
        (root/'classes.txt').write_text(content)
        refused(lambda: VOCFolder(root, 'train'), 'classes.txt', words)


def test_many_annotations_are_fast(root):
    body = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    text = '<annotation>' + f'<object><name>zebra</name><pose>Left</pose>{body}<part><name>head</name>{body}</part></object>'*3 + '</annotation>'
    for id in 'abc': (root/f'Annotations/{id}.xml').write_text(text)
    for i in range(3_000): (root/f'Annotations/{i}.xml').write_text(text)
    start = time.process_time()   # of this process: others may be busy
    assert VOCFolder(root, 'train').classes == ('zebra',)
    assert time.process_time() - start < 3  # 17,000 in a few seconds


@pytest.mark.parametrize('size, labels, words', [((7, 5), np.full((5, 6), 8, np.uint8), 'c.png: the mask is 6 x 5, its photo 7 x 5'),
                                                 ((7, 5), np.full((5, 7), 21, np.uint8), 'the indices 21, and there are 0..20 and 255')])
def test_wrong_masks(root, size, labels, words):
    write_mask(root/'SegmentationClass/c.png', labels)
    data = VOCFolder(root, 'val')
    error = refused(lambda: data[0], words)
    assert check(root, progress=False) == list(error.args)


def test_mask_of_a_turned_photo(root):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new('RGB', (5, 7)).save(root/'JPEGImages/c.jpg', exif=exif)
    assert VOCFolder(root, 'val')[0].image.size == (7, 5)  # and the mask of 7 x 5 fits


def test_check_opens_listed_photos_only(root):
    (root/'JPEGImages/stranger.jpg').write_bytes(b'no photo')
    (root/'SegmentationClass/nobody.png').write_bytes(b'no mask')
    assert check(root, progress=False) == []
    notes = summarise(root).notes
    assert notes == ("photos in no split: 1, such as 'stranger'", "masks without a photo: 1, such as 'nobody'")
    (root/'ImageSets/Segmentation/odd.txt').write_text('stranger')
    assert [fault.path.name for fault in check(root, progress=False)] == ['stranger.xml', 'stranger.jpg']


def test_summary(root):
    summary = summarise(root)
    assert summary.splits == {'train': (2, 2), 'val': (1, 1)} and (summary.images, summary.masks) == (3, 3) and summary.notes == ()
    assert 'split train: 2 photos, 2 with a mask' in str(summary) and '20 classes: aeroplane,' in str(summary)
    (root/'ImageSets/Segmentation/trainval.txt').write_text('a\nb\nc')
    assert summarise(root).notes == ()  # trainval holds val by its nature
    (root/'ImageSets/Segmentation/train_aug.txt').write_text('a\nc')
    assert summarise(root).notes == ("photos in both train_aug and val: 1, such as 'c'",)


# Own photos

def test_own_photos(own):
    data = VOCFolder(own, 'train')
    assert data.ids == ['ear', 'stem'] and data.classes == ('ear', 'stem') and data.labels(0).tolist() == [1, 1] and data.labels(1).tolist() == [0, 1]
    assert data[1].image.size == (7, 5) and data[1].mask is None and not data.has_masks and check(own, progress=False) == []
    assert str(summarise(own)).splitlines()[1:] == [
        '2 photos, 0 masks', '2 classes: ear, stem', 'split train: 2 photos, 0 with a mask', "note: every photo has the tag 'stem', so nothing shows what is no 'stem'; add photos without it",
        "note: only one photo has the tag 'ear', 'ear.png'; tag more, or take it out", "note: few photos of a class: 'stem' 2; each should have 10 or more"]
    refused(lambda: VOCFolder(own, 'val'), "val.txt: there is no split 'val', but 'train'")


def test_own_lists(own):
    (own/'train.txt').write_text('stem.JPG\n')
    (own/'val.txt').write_text('ear')
    assert VOCFolder.splits(own) == ['train', 'val'] and VOCFolder(own, 'train').ids == ['stem'] and VOCFolder(own, 'val').ids == ['ear']
    assert VOCFolder(own, 'train').classes == ('ear', 'stem')
    (own/'train.txt').unlink()
    refused(lambda: VOCFolder(own, 'train'), "there is no split 'train', but 'val'")


def test_own_masks(own):
    (own/'masks').mkdir()
    write_mask(own/'masks/ear.png', np.full((5, 7), 2, np.uint8))
    data = VOCFolder(own, 'train')
    assert data.classes == ('ear', 'stem') and (data[0].mask == 2).all() and data[1].mask is None and not data.has_masks
    (own/'tags.csv').write_text('file,tags\near.png,dog\nstem.JPG,cat\n')
    assert VOCFolder(own, 'train').classes == voc.VOC_CLASSES
    (own/'classes.txt').write_text('dog\ncat\n')
    assert VOCFolder(own, 'train').classes == ('dog', 'cat')


def test_own_odd_tables(own):
    for content in ('\ufefffile,tags\r\near.png,ear;stem\r\nstem.JPG,stem\r\n', 'File , Tags\n\n"ear.png"," ear ; stem;"\nstem,stem\n', 'file,tags,,\near.png,ear;stem,,\nstem.JPG,stem,,\n',
                    'file,tags\rear.png,ear;stem\rstem.JPG,stem\r'):
        (own/'tags.csv').write_bytes(content.encode())
        data = VOCFolder(own, 'train')
        assert data.ids == ['ear', 'stem'] and data.classes == ('ear', 'stem') and data.labels(0).tolist() == [1, 1], content


@pytest.mark.parametrize('content, words', [
    ('file;tags\near.png;ear', "the first line is 'file;tags'"), ('ear.png,ear', 'the first line is'), ('', 'the first line is'), ('file,tags\n', "the split 'train' is empty"),
    ('file,tags\near.png,\nstem.JPG,stem', "'ear.png' has no tags"), ('file,tags\near.png, ; \n', 'has no tags'), ('file,tags\near.png,ear,stem', 'is not a file and its tags'),
    ('file,tags\n,ear', 'is not a file and its tags'), ('file,tags\near.png,ear\near.png,stem', "'ear.png' is there more than once"), ('file,tags\near,ear\near.png,stem', 'more than once'),
    ('file,tags\near.jpg,ear', "'ear.jpg' is not in the folder images, which has 'ear.png'"), ('file,tags\n../ear.png,ear', 'leads out of the folder images'),
    ('file,tags\near.png,"ear', 'the table is broken'), ('file,tags\near.png,background', "'background' is not a class"),
    ('file,tags\near.png,' + ';'.join(f'tag{i}' for i in range(300)), '300 classes, and a mask has room for 254')])
def test_own_wrong_tables(own, content, words):
    (own/'tags.csv').write_text(content)
    error = refused(lambda: VOCFolder(own, 'train'), 'tags.csv', words)
    assert list(error.args) == check(own, progress=False)


def test_own_faults_that_lists_bring(own):
    (own/'tags.csv').write_text('file,tags\near.png,ear\nghost.png,ear\near.png,stem\n')
    (own/'train.txt').write_text('ear\n')
    (own/'val.txt').write_text('stem\n')
    refused(lambda: VOCFolder(own, 'train'), "'ear.png' is there more than once")
    refused(lambda: VOCFolder(own, 'val'), "tags.csv: 'stem' has no row")
    assert [fault.problem for fault in check(own, progress=False)] == ["'ghost.png' is not in the folder images", "'ear.png' is there more than once", "'stem' has no row"]


def test_own_latin1_and_missing_table(own):
    (own/'tags.csv').write_bytes('file,tags\near.png,blé\n'.encode('latin-1'))
    refused(lambda: VOCFolder(own, 'train'), 'tags.csv: the text is not in UTF-8. Save it as UTF-8')
    (own/'tags.csv').unlink()
    error = refused(lambda: VOCFolder(own, 'train'), 'tags.csv: there is no table of tags. `wsss_nb new')
    assert len(error.args) == 1 and check(own, progress=False) == list(error.args)


def test_names_with_accents_and_two_of_a_kind(own):
    Image.new('RGB', (7, 5)).save(own/'images/cafe\u0301 1.jpg')  # as a Mac stores it
    (own/'tags.csv').write_text('file,tags\ncaf\u00e9 1.jpg,ear\n', encoding='utf-8')
    assert VOCFolder(own, 'train').ids == ['caf\u00e9 1'] and VOCFolder(own, 'train')[0].image.size == (7, 5)
    Image.new('RGB', (7, 5)).save(own/'images/ear.jpg')
    (own/'tags.csv').write_text('file,tags\near.jpg,ear\n')
    refused(lambda: VOCFolder(own, 'train'), "'ear.jpg' has the same name but for the ending")


def test_check_is_deterministic_and_finds_all(own):
    (own/'images/ear.png').write_bytes(b'x')
    (own/'images/stem.JPG').write_bytes(b'')
    (own/'classes.txt').write_text('ear\n')
    problems = [fault.problem for fault in check(own, progress=False)]
    assert len(problems) == 4 and 'the file is empty' in problems[3] and 'not an image' in problems[2]
    assert check(own, progress=False) == check(own)


# Downloads

def archive(path, files):
    "Write a tar archive of `files` (name -> bytes); its md5."
    with tarfile.open(path, 'w:gz' if path.suffix == '.tgz' else 'w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    from torchvision.datasets.utils import calculate_md5
    return calculate_md5(path)


def png(labels):
    buffer = io.BytesIO()
    image = Image.fromarray(labels)
    image.putpalette(voc.palette().tobytes())
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def mat(labels):
    from scipy.io import savemat
    buffer = io.BytesIO()
    savemat(buffer, {'GTcls': {'Segmentation': labels, 'Boundaries': np.zeros(1)}})
    return buffer.getvalue()


@pytest.fixture
def server(tmp_path, monkeypatch):
    "The address of a web server for `tmp_path`: torchvision wants the length of a download, which a file:// address does not tell."
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(SimpleHTTPRequestHandler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def archives(tmp_path, server, monkeypatch):
    "Tiny archives of VOC (train a, b; val v) and SBD (train b, c; val v, d) in place of the real ones."
    from torchvision.datasets import SBDataset, voc as source
    jpg = io.BytesIO()
    Image.new('RGB', (7, 5)).save(jpg, 'JPEG')
    base, sbd = 'VOCdevkit/VOC2012', 'benchmark_RELEASE/dataset'
    files = {f'{base}/JPEGImages/{id}.jpg': jpg.getvalue() for id in 'abcdv'} | {f'{base}/Annotations/{id}.xml': xml('cat').encode() for id in 'abcdv'}
    files |= {f'{base}/SegmentationClass/{id}.png': png(np.full((5, 7), 8, np.uint8)) for id in 'abv'}
    files |= {f'{base}/ImageSets/Segmentation/train.txt': b'a\nb\n', f'{base}/ImageSets/Segmentation/val.txt': b'v\n'}
    md5 = archive(tmp_path/'voc.tar', files)
    monkeypatch.setitem(source.DATASET_YEAR_DICT, '2012', source.DATASET_YEAR_DICT['2012'] | {'url': f'{server}/voc.tar', 'md5': md5})
    files = {f'{sbd}/{folder}/{id}.{ending}': content for id in 'bcvd' for folder, ending, content in
             (('cls', 'mat', mat(np.full((5, 7), 3, np.uint8))), ('img', 'jpg', jpg.getvalue()), ('inst', 'mat', b'x'))}
    files |= {f'{sbd}/train.txt': b'b\nc\n', f'{sbd}/val.txt': b'v\nd\n'}
    monkeypatch.setattr(SBDataset, 'md5', archive(tmp_path/'sbd.tgz', files))
    monkeypatch.setattr(SBDataset, 'url', f'{server}/sbd.tgz')
    monkeypatch.setattr(voc, 'LIST_SIZES', {'train': 2, 'val': 1, 'train_aug': 4})
    return tmp_path


def test_download(archives, capsys):
    root = archives/'data'
    folder = voc.download_voc2012(root)
    assert folder == root/'VOCdevkit'/'VOC2012' and 'is complete. ' in capsys.readouterr().out
    data = VOCFolder(root, 'train_aug')
    assert data.ids == ['a', 'b', 'c', 'd'] and data.has_masks and data.classes == voc.VOC_CLASSES
    assert [sample.mask.max() for sample in data] == [8, 8, 3, 3]
    assert [data.mask_path(i).parent.name for i in range(4)] == ['SegmentationClass']*2 + ['SegmentationClassAug']*2
    assert {path.stem: int(read_mask(path).max()) for path in (folder/'SegmentationClassAug').iterdir()} == {'a': 8, 'b': 8, 'c': 3, 'd': 3, 'v': 8}
    assert check(root, progress=False) == []

    before = {path: path.stat().st_mtime_ns for path in root.rglob('*')}
    for again in (root, root/'VOCdevkit', folder):
        assert voc.download_voc2012(again) == folder
        assert 'is complete: nothing to do' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob('*')}


def test_download_goes_on(archives, monkeypatch):
    root = archives/'data'
    (root/'downloads/voc').mkdir(parents=True)
    (root/'downloads/voc/VOCtrainval_11-May-2012.tar').write_bytes((archives/'voc.tar').read_bytes()[:1000])  # the first download was cut off
    (root/'downloads/sbd/cls').mkdir(parents=True)  # and torchvision while it moved folders
    (root/'downloads/sbd/benchmark_RELEASE/dataset/img').mkdir(parents=True)
    write, written = voc.write_aug_mask, []
    def interrupted(folder, sbd, id):
        if len(written) == 3: raise KeyboardInterrupt
        write(folder, sbd, id)
        written.append(id)
    monkeypatch.setattr(voc, 'write_aug_mask', interrupted)
    with pytest.raises(KeyboardInterrupt): voc.download_voc2012(root)
    masks = root/'VOCdevkit/VOC2012/SegmentationClassAug'
    assert sorted(path.stem for path in masks.iterdir()) == ['a', 'b', 'c'] and VOCFolder.splits(root) == ['train', 'val']
    before = {path: path.stat().st_mtime_ns for path in masks.iterdir()}

    monkeypatch.setattr(voc, 'write_aug_mask', write)
    (archives/'voc.tar').unlink()  # nothing is fetched again
    (archives/'sbd.tgz').unlink()
    voc.download_voc2012(root)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()) and len(list(masks.iterdir())) == 5


def test_download_into_a_voc_folder(archives):
    voc.download_voc2012(archives/'data')
    there = archives/'data/VOCdevkit/VOC2012'
    (there/'ImageSets/Segmentation/train_aug.txt').unlink()
    (archives/'voc.tar').unlink()  # VOC is there, SBD is missing
    assert voc.download_voc2012(there) == there and len(VOCFolder(there, 'train_aug')) == 4


def test_download_fails_with_words(archives, server, own, monkeypatch):
    from torchvision.datasets import SBDataset
    refused(lambda: voc.download_voc2012(own), 'your own photos are here')
    with monkeypatch.context() as patch:
        patch.setattr(SBDataset, 'url', f'{server}/nowhere.tgz')
        refused(lambda: voc.download_voc2012(archives/'data'), 'benchmark.tgz: the download failed', 'Run the same command again', 'nowhere.tgz yourself')
    with monkeypatch.context() as patch:
        patch.setattr(SBDataset, 'md5', '0'*32)
        refused(lambda: voc.download_voc2012(archives/'data'), 'benchmark.tgz: the download failed')
    with monkeypatch.context() as patch:
        patch.setitem(voc.LIST_SIZES, 'train_aug', 10_582)
        refused(lambda: voc.download_voc2012(archives/'data'), 'train_aug.txt: 4 ids, and VOC 2012 has 10,582', 'away')
    assert not (archives/'data/VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt').exists()
    path = archives/'data/downloads/sbd/cls/d.mat'
    content = path.read_bytes()
    path.write_bytes(content[:50])
    refused(lambda: voc.download_voc2012(archives/'data'), 'd.mat: the mask cannot be read', 'val.txt')
    (archives/'data/downloads/sbd/val.txt').unlink()  # what the message says to do
    voc.download_voc2012(archives/'data')
    assert len(VOCFolder(archives/'data', 'train_aug')) == 4


def test_train_aug_has_10582_ids():
    ids = [f'{number:06}' for number in np.random.default_rng(0).permutation(12_031)]
    ours, theirs = ids[:2_913], ids[-11_355:]
    assert len(set(ours) & set(theirs)) == 2_237
    for seed in range(3):  # however SBD's lists cut across VOC's
        mixed = list(np.random.default_rng(seed).permutation(theirs))
        found = voc.train_aug_ids(ours[:1_464], ours[1_464:], mixed[:8_498], mixed[8_498:])
        assert len(found) == 10_582 == voc.LIST_SIZES['train_aug'] and found == sorted(found) and not set(found) & set(ours[1_464:])


def test_import_stays_light():
    code = "import sys, wsss_nb.voc; print(*[name for name in ('torchvision', 'scipy', 'matplotlib', 'IPython', 'nbdev') if name in sys.modules])"
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout.strip() == ''

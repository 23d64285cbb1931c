"What the page of `voc` does not show: odd folders, what is refused, and in which words."
import pickle
import re
import subprocess
import sys
import time
import unicodedata

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb.checks import check, new_folder, summarise
from wsss_nb.files import InputError
from wsss_nb.photos import read_tag_table, write_mask
from wsss_nb.voc import VOC_CLASSES, VOCFolder, find_layout, read_annotations, stray_line


def xml(*names):
    "An annotation of VOC's with these objects."
    objects = [f'<object><name>{name}</name></object>' for name in names]
    return f'<annotation>{"".join(objects)}</annotation>'


def refused(folder, split, words):
    "Open a split; that must raise an InputError with these words. The faults are returned."
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        VOCFolder(folder, split)
    return list(caught.value.args)


@pytest.fixture
def root(tmp_path):
    "A VOC folder with three photos of 7 x 5, two in train and one in val."
    root = tmp_path/'VOC2012'
    for name in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationClassAug',
                 'ImageSets/Segmentation'):
        (root/name).mkdir(parents=True)
    for id, tag in (('a', 'cat'), ('b', 'dog'), ('c', 'cow')):
        Image.new('RGB', (7, 5), 'red').save(root/'JPEGImages'/f'{id}.jpg')
        (root/'Annotations'/f'{id}.xml').write_text(xml(tag))
        labels = np.full((5, 7), VOC_CLASSES.index(tag) + 1, np.uint8)
        write_mask(root/'SegmentationClass'/f'{id}.png', labels)
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


# The VOC folder

def test_voc_folder(root):
    data = VOCFolder(root, 'train')
    assert data.ids == ['a', 'b']
    assert data.classes == VOC_CLASSES
    assert data.has_truth
    assert data.split == 'train'
    assert data.root == root
    assert data.path(1) == root/'JPEGImages/b.jpg'
    assert data.image(1).mode == 'RGB'
    assert data.tags(0).dtype == torch.float32
    assert data.tags(0).nonzero().tolist() == [[7]]
    assert [sample.id for sample in data] == ['a', 'b']
    assert data[-1].id == 'b'
    with pytest.raises(IndexError):
        data[2]
    assert (data[1].mask == 12).all()
    assert (data.truth(1) == 12).all()
    assert check(root, progress=False) == []


def test_tags_and_path_do_not_open_the_photo(root):
    (root/'JPEGImages/a.jpg').write_bytes(b'no photo')
    data = VOCFolder(root, 'train')
    assert data.tags(0).sum() == 1
    assert data.path(0).name == 'a.jpg'
    with pytest.raises(InputError, match='a.jpg: this is not an image of the kind JPEG'):
        data.image(0)
    with pytest.raises(InputError, match='a.jpg: this is not an image of the kind JPEG'):
        data.truth(0)


def test_photos_travel_between_processes(root):
    data = VOCFolder(root, 'train')
    copy = pickle.loads(pickle.dumps(data))
    assert copy.ids == data.ids and copy.classes == data.classes
    assert np.array_equal(copy.truth(1), data.truth(1))


def test_error_in_a_loader_process(root):
    (root/'JPEGImages/b.jpg').write_bytes(b'')
    data = VOCFolder(root, 'train')
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=1)
    with pytest.raises(InputError, match='b.jpg: the file is empty'):
        list(loader)


def test_folder_around_the_voc_folder(root, tmp_path):
    outer = tmp_path/'data'
    (outer/'VOCdevkit').mkdir(parents=True)
    root.rename(outer/'VOCdevkit'/'VOC2012')
    for folder in (outer, outer/'VOCdevkit', str(outer/'VOCdevkit/VOC2012')):
        assert VOCFolder(folder, 'val').root == outer/'VOCdevkit'/'VOC2012'
        assert VOCFolder.splits(folder) == ['train', 'val']


def test_own_masks_of_voc_win(root):
    write_mask(root/'SegmentationClassAug/a.png', np.zeros((5, 7), np.uint8))
    mask = root/'SegmentationClassAug/b.png'
    (root/'SegmentationClass/b.png').rename(mask)
    data = VOCFolder(root, 'train')
    assert (data.truth(0) == 8).all()   # and not 0, as SBD says
    assert (data.truth(1) == 12).all()
    assert data.has_truth
    mask.unlink()
    data = VOCFolder(root, 'train')
    assert data.truth(1) is None
    assert data[1].mask is None
    assert not data.has_truth


def test_image_endings(root):
    (root/'JPEGImages/a.jpg').rename(root/'JPEGImages/a.JPEG')
    Image.new('RGB', (7, 5)).save(root/'JPEGImages/b.PNG')
    (root/'JPEGImages/._a.jpg').write_bytes(b'left by a Mac')
    fault, = refused(root, 'train', "'b.PNG' has the same name but for the ending")
    assert fault.path.name == 'b.jpg'
    assert fault.remedy == 'Rename one of them'
    (root/'JPEGImages/b.jpg').unlink()
    assert VOCFolder(root, 'train')[1].image.size == (7, 5)


# Lists

@pytest.mark.parametrize('content, words', [
    ('a  1\nb -1\n', "train.txt: 'a  1' is not one name"),
    ('a  1\nb -1\n', 'Use a list of ImageSets/Segmentation, with one id a line'),
    ('/JPEGImages/a.jpg /SegmentationClass/a.png', 'no list for segmentation'),
    ('a\n../b\n', "'../b' leads out of"),
    ('/etc/passwd', 'leads out of'),
    ('x/a', 'leads out of'),
    ('x\\a', 'leads out of'),
    ('..', 'leads out of'),
    ('C:a', 'leads out of'),
    ('a\nb\na\n', "train.txt: 'a' is there more than once. Keep one"),
    ('a\na.jpg', "'a.jpg' is there more than once"),
    ('a\nz', "train.txt: 'z' is not in the folder JPEGImages. Put the photo there"),
    ('a.png', "which has 'a.jpg'"),
    ('', "train.txt: the split 'train' is empty"),
    ('\n \r\n', 'is empty')])
def test_wrong_lists(root, content, words):
    (root/'ImageSets/Segmentation/train.txt').write_text(content)
    faults = refused(root, 'train', words)
    assert faults == check(root, progress=False)  # one truth
    assert len(VOCFolder(root, 'val')) == 1  # the other split is not concerned


@pytest.mark.parametrize('line, words', [
    ('a  1', 'no list for segmentation'),
    ('../a', 'leads out of the folder JPEGImages'),
    (r'C:\a', 'leads out of'),
    ('z', 'is not in the folder'),
    ('a.png', "which has 'a.jpg'")])
def test_stray_lines(root, line, words):
    path = root/'ImageSets/Segmentation/train.txt'
    fault = stray_line(find_layout(root), path, line)
    assert fault.path == path
    assert words in fault.problem


def test_missing_things(root, tmp_path):
    words = "test.txt: there is no split 'test', but 'train', 'val'. Name one of them"
    refused(root, 'test', words)
    refused(root, '../train', 'there is no split')
    refused(tmp_path/'nowhere', 'train', 'nowhere: there is no such folder')
    refused(root/'JPEGImages/a.jpg', 'train', 'there is no such folder')
    fault, = refused(root/'Annotations', 'train', 'there is no data set here')
    assert 'tags.csv' in fault.remedy
    fault, = check(tmp_path/'nowhere', progress=False)
    assert fault.problem == 'there is no such folder'


def test_no_lists_at_all(root):
    for split in ('train', 'val'):
        (root/f'ImageSets/Segmentation/{split}.txt').unlink()
    refused(root, 'train', 'none at all')
    fault, = check(root, progress=False)
    assert fault.problem == 'there are no lists'


# Annotations and classes

@pytest.mark.parametrize('content, words', [
    (xml(), "a.xml: 'a' has no tags"),
    (xml('cat')[:30], 'a.xml: the XML is broken'),
    ('', 'the XML is broken'),
    (None, 'a.xml: the annotation cannot be read'),
    (xml('cat', 'kat'), "the tag 'kat' of 'a' is not in the class list. Is it 'cat'?"),
    (xml('cat', 'kat'), 'write classes.txt'),
    ('<annotation><object><part><name>cat</name></part></object></annotation>', 'has no tags'),
    ('<?xml version="1.0" encoding="nonsense"?><a/>', 'broken')])
def test_wrong_annotations(root, content, words):
    path = root/'Annotations/a.xml'
    path.unlink()
    if content is not None:
        path.write_text(content)
    faults = refused(root, 'train', words)
    assert faults == check(root, progress=False)
    assert len(VOCFolder(root, 'val')) == 1


def test_an_annotation_that_is_missing_is_a_fault_and_the_others_are_read(root):
    faults = []
    found = read_annotations(find_layout(root), ['a', 'z'], faults)
    assert found['a'].tags == ('cat',)
    fault, = faults
    assert fault.path.name == 'z.xml'
    assert 'the annotation cannot be read (No such file' in fault.problem


def test_all_is_said_at_once(root):
    names = ['a', 'b'] + [f'z{i}' for i in range(20)]
    (root/'ImageSets/Segmentation/train.txt').write_text('\n'.join(names))
    (root/'Annotations/a.xml').write_text(xml('kat'))
    with pytest.raises(InputError, match="'z0'") as caught:
        VOCFolder(root, 'train')
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == '... and 11 more. `wsss_nb check` lists them all.'
    assert len(caught.value.args) == 21


def test_faults_of_lists_and_of_tags_come_together(root):
    (root/'Annotations/b.xml').write_text(xml('dogg'))
    (root/'ImageSets/Segmentation/train.txt').write_text('a\nb\na\n')
    line, tag = refused(root, 'train', "'a' is there more than once")
    assert line.path.name == 'train.txt'
    assert "Is it 'dog'?" in tag.remedy


def test_classes_come_from_the_data(root):
    for id, tag in (('a', 'zebra'), ('b', 'ant'), ('c', 'moth')):
        (root/f'Annotations/{id}.xml').write_text(xml(tag))
    assert VOCFolder(root, 'train').classes == ('ant', 'moth', 'zebra')
    assert VOCFolder(root, 'val').classes == ('ant', 'moth', 'zebra')
    (root/'Annotations/c.xml').write_text('broken')  # it may have held a class before zebra
    refused(root, 'train', 'c.xml: the XML is broken')
    (root/'classes.txt').write_text('zebra\r\nant\r\n')
    assert VOCFolder(root, 'train').classes == ('zebra', 'ant')
    assert VOCFolder(root, 'train').tags(0).tolist() == [1, 0]
    (root/'classes.txt').write_text('zebra\n')
    refused(root, 'train', "b.xml: the tag 'ant'")


@pytest.mark.parametrize('content, words', [
    ('', 'no classes'),
    ('ant\nant', 'more than once'),
    ('ant\nbackground\nzebra', 'index 0'),
    ('ant\n_background_\nzebra', "'_background_' is not a class: it is index 0"),
    ('\n'.join(map(str, range(255))), '255 classes')])
def test_wrong_class_lists(root, content, words):
    (root/'classes.txt').write_text(content)
    with pytest.raises(InputError, match=f'classes.txt: .*{words}'):
        VOCFolder(root, 'train')


def test_xml_of_200_000_levels(root):
    (root/'Annotations/a.xml').write_text('<a>' * 200_000 + '</a>' * 200_000)
    refused(root, 'train', "a.xml: 'a' has no tags")


def test_many_annotations_are_fast(root):
    box = '<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>'
    part = f'<part><name>head</name>{box}</part>'
    animal = f'<object><name>zebra</name><pose>Left</pose>{box}{part}</object>'
    text = f'<annotation>{animal * 3}</annotation>'
    for name in ('a', 'b', 'c', *range(3_000)):
        (root/f'Annotations/{name}.xml').write_text(text)
    start = time.process_time()   # of this process: others may be busy
    assert VOCFolder(root, 'train').classes == ('zebra',)
    assert time.process_time() - start < 3  # 17,000 in a few seconds


# Masks

@pytest.mark.parametrize('labels, words', [
    (np.full((5, 6), 8, np.uint8), 'c.png: the mask is 6 x 5, its photo 7 x 5'),
    (np.full((5, 7), 21, np.uint8), 'the indices 21, and there are 0..20 and 255')])
def test_wrong_masks(root, labels, words):
    write_mask(root/'SegmentationClass/c.png', labels)
    data = VOCFolder(root, 'val')
    for read in (data.truth, data.__getitem__):
        with pytest.raises(InputError, match=words) as caught:
            read(0)
        assert check(root, progress=False) == list(caught.value.args)


def test_mask_of_a_turned_photo(root):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new('RGB', (5, 7)).save(root/'JPEGImages/c.jpg', exif=exif)
    data = VOCFolder(root, 'val')
    assert data[0].image.size == (7, 5)  # and the mask of 7 x 5 fits
    assert data.truth(0).shape == (5, 7)


# Check and summary

def test_check_opens_listed_photos_only(root):
    (root/'JPEGImages/stranger.jpg').write_bytes(b'no photo')
    (root/'SegmentationClass/nobody.png').write_bytes(b'no mask')
    assert check(root, progress=False) == []
    assert summarise(root).notes == (
        "photos in no split: 1, such as 'stranger'",
        "masks without a photo: 1, such as 'nobody'")
    (root/'ImageSets/Segmentation/odd.txt').write_text('stranger')
    names = [fault.path.name for fault in check(root, progress=False)]
    assert names == ['stranger.xml', 'stranger.jpg']


def test_summary(root):
    summary = summarise(root)
    assert summary.splits == {'train': (2, 2), 'val': (1, 1)}
    assert (summary.images, summary.masks) == (3, 3)
    assert summary.notes == ()
    assert 'split train: 2 photos, 2 with a mask' in str(summary)
    assert '20 classes: aeroplane,' in str(summary)
    (root/'ImageSets/Segmentation/trainval.txt').write_text('a\nb\nc')
    assert summarise(root).notes == ()  # trainval holds val by its nature
    (root/'ImageSets/Segmentation/train_aug.txt').write_text('a\nc')
    assert summarise(root).notes == ("photos in both train_aug and val: 1, such as 'c'",)


# Own photos

def test_own_photos(own):
    data = VOCFolder(own, 'train')
    assert data.ids == ['ear', 'stem']
    assert data.classes == ('ear', 'stem')
    assert data.tags(0).tolist() == [1, 1]
    assert data.tags(1).tolist() == [0, 1]
    assert data[1].image.size == (7, 5)
    assert data[1].mask is None
    assert not data.has_truth
    assert check(own, progress=False) == []
    assert str(summarise(own)).splitlines()[1:] == [
        '2 photos, 0 masks',
        '2 classes: ear, stem',
        'split train: 2 photos, 0 with a mask',
        "note: every photo has the tag 'stem', so nothing shows what is no 'stem'; "
        'add photos without it',
        "note: only one photo has the tag 'ear', 'ear.png'; tag more, or take it out",
        "note: few photos of a class: 'stem' 2; each should have 10 or more"]
    refused(own, 'val', "val.txt: there is no split 'val', but 'train'")


def test_own_lists(own):
    (own/'train.txt').write_text('stem.JPG\n')
    (own/'val.txt').write_text('ear')
    assert VOCFolder.splits(own) == ['train', 'val']
    assert VOCFolder(own, 'train').ids == ['stem']
    assert VOCFolder(own, 'val').ids == ['ear']
    assert VOCFolder(own, 'train').classes == ('ear', 'stem')
    (own/'train.txt').unlink()
    refused(own, 'train', "there is no split 'train', but 'val'")


def test_own_masks(own):
    (own/'masks').mkdir()
    write_mask(own/'masks/ear.png', np.full((5, 7), 2, np.uint8))
    words = 'masks: no list says which class a number in these masks is. Put the classes.txt there'
    faults = refused(own, 'train', words)
    assert faults == check(own, progress=False)
    (own/'masks/classes.txt').write_text('ear\nstem\n')
    data = VOCFolder(own, 'train')
    assert data.classes == ('ear', 'stem')
    assert (data[0].mask == 2).all()
    assert data[1].mask is None
    assert not data.has_truth
    (own/'classes.txt').write_text('stem\near\n')
    refused(own, 'train', 'masks/classes.txt: these classes are others than those of')
    (own/'masks/classes.txt').unlink()
    assert VOCFolder(own, 'train').classes == ('stem', 'ear')


def test_own_masks_with_the_numbers_of_voc_and_others(own):
    (own/'masks').mkdir()
    (own/'tags.csv').write_text('file,tags\near.png,dog\nstem.JPG,cat\n')
    write_mask(own/'masks/ear.png', np.full((5, 7), 2, np.uint8))
    refused(own, 'train', 'no list says which class a number in these masks is')
    write_mask(own/'masks/ear.png', np.full((5, 7), 12, np.uint8))
    assert VOCFolder(own, 'train').classes == VOC_CLASSES
    (own/'classes.txt').write_text('dog\ncat\n')
    assert VOCFolder(own, 'train').classes == ('dog', 'cat')


@pytest.mark.parametrize('content', [
    '\ufefffile,tags\r\near.png,ear;stem\r\nstem.JPG,stem\r\n',
    'File , Tags\n\n"ear.png"," ear ; stem;"\nstem,stem\n',
    'file,tags,,\near.png,ear;stem,,\nstem.JPG,stem,,\n',
    'file,tags\rear.png,ear;stem\rstem.JPG,stem\r'])
def test_own_odd_tables(own, content):
    (own/'tags.csv').write_bytes(content.encode())
    data = VOCFolder(own, 'train')
    assert data.ids == ['ear', 'stem']
    assert data.classes == ('ear', 'stem')
    assert data.tags(0).tolist() == [1, 1]


MANY = ';'.join([f'tag{i}' for i in range(300)])


@pytest.mark.parametrize('content, words', [
    ('datei;tags\near.png;ear', "the first line is 'datei;tags'"),
    ('ear.png,ear', 'the first line is'),
    ('', 'the first line is'),
    ('file,tags\n', "the split 'train' is empty"),
    ('file,tags\near.png,\nstem.JPG,stem', "'ear.png' has no tags"),
    ('file,tags\near.png, ; \n', 'has no tags'),
    ('file,tags\near.png,ear,stem', 'is not a file and its tags'),
    ('file,tags\n,ear', 'is not a file and its tags'),
    ('file,tags\near.png,ear\near.png,stem', "'ear.png' is there more than once"),
    ('file,tags\near,ear\near.png,stem', 'more than once'),
    ('file,tags\near.jpg,ear', "'ear.jpg' is not in the folder images, which has 'ear.png'"),
    ('file,tags\n../ear.png,ear', 'leads out of the folder images'),
    ('file,tags\near.png,"ear', 'the table is broken'),
    ('file,tags\near.png,background', "'background' is not a class"),
    (f'file,tags\near.png,{MANY}', '300 classes, and a mask has room for 254')])
def test_own_wrong_tables(own, content, words):
    (own/'tags.csv').write_text(content)
    faults = refused(own, 'train', words)
    assert 'tags.csv' in [fault.path.name for fault in faults]
    assert faults == check(own, progress=False)


def test_own_faults_that_lists_bring(own):
    (own/'tags.csv').write_text('file,tags\near.png,ear\nghost.png,ear\near.png,stem\n')
    (own/'train.txt').write_text('ear\n')
    (own/'val.txt').write_text('stem\n')
    refused(own, 'train', "'ear.png' is there more than once")
    refused(own, 'val', "tags.csv: 'stem' has no row")
    assert [fault.problem for fault in check(own, progress=False)] == [
        "'ghost.png' is not in the folder images",
        "'ear.png' is there more than once",
        "'stem' has no row"]


def test_own_latin1_and_missing_table(own):
    (own/'tags.csv').write_bytes('file,tags\near.png,bl\u00e9\n'.encode('latin-1'))
    assert VOCFolder(own, 'train').classes == ('bl\u00e9',)
    (own/'tags.csv').write_bytes('file,tags\near.png,bl\u00e9'.encode() + b' \xe9\n')
    refused(own, 'train', 'tags.csv: the text is not in UTF-8. Save it as UTF-8')
    (own/'tags.csv').unlink()
    faults = refused(own, 'train', 'tags.csv: there is no table of tags. `wsss_nb new')
    assert len(faults) == 1
    assert check(own, progress=False) == faults


def test_names_with_accents_and_two_of_a_kind(own):
    Image.new('RGB', (7, 5)).save(own/'images/cafe\u0301 1.jpg')  # as a Mac stores it
    (own/'tags.csv').write_text('file,tags\ncaf\u00e9 1.jpg,ear\n', encoding='utf-8')
    assert VOCFolder(own, 'train').ids == ['caf\u00e9 1']
    assert VOCFolder(own, 'train')[0].image.size == (7, 5)
    Image.new('RGB', (7, 5)).save(own/'images/ear.jpg')
    (own/'tags.csv').write_text('file,tags\near.jpg,ear\n')
    refused(own, 'train', "'ear.jpg' has the same name but for the ending")


def test_check_is_deterministic_and_finds_all(own):
    (own/'images/ear.png').write_bytes(b'x')
    (own/'images/stem.JPG').write_bytes(b'')
    (own/'classes.txt').write_text('ear\n')
    problems = [fault.problem for fault in check(own, progress=False)]
    assert len(problems) == 4
    assert 'not an image' in problems[2]
    assert 'the file is empty' in problems[3]
    assert check(own, progress=False) == check(own)


# A new folder

def test_new_folder(tmp_path):
    mine = tmp_path/'mine'
    assert new_folder(mine) == 0
    assert (mine/'images').is_dir()
    assert (mine/'tags.csv').read_bytes() == b'\xef\xbb\xbffile,tags\r\n'
    for name in ('b.jpg', 'a, with a comma.png', 'no photo.txt'):
        Image.new('RGB', (8, 8)).save(mine/'images'/name, 'PNG')
    assert new_folder(mine) == 2   # nobody has written in the table yet
    text = (mine/'tags.csv').read_text('utf-8-sig')
    assert text.splitlines() == ['file,tags', '"a, with a comma.png",', 'b.jpg,']
    assert [row.tags for row in read_tag_table(mine/'tags.csv', [])] == [(), ()]


def test_new_folder_leaves_alone_what_somebody_has_made(root, own):
    words = 'tags.csv: this table is there already, and stays as it is.*says which photos it lacks'
    for content in ('file,tags\near.png,ear\n', 'my own notes\n'):
        (own/'tags.csv').write_text(content)
        with pytest.raises(InputError, match=words):
            new_folder(own)
        assert (own/'tags.csv').read_text() == content
    with pytest.raises(InputError, match='VOC2012: this is a VOC folder. Name another folder'):
        new_folder(root)
    assert not (root/'tags.csv').exists()


def test_notes_on_a_table_that_somebody_fills(tmp_path):
    mine = tmp_path/'mine'
    new_folder(mine)
    for name in 'abcd':
        Image.new('RGB', (8, 8)).save(mine/'images'/f'{name}.jpg')
    (mine/'tags.csv').write_text('file,tags\na.jpg,\nb.jpg,dog\nc.jpg,dogs\n')
    assert summarise(mine).notes == (
        "photos without a line in tags.csv, so left out: 1, such as 'd'",
        "only one photo has the tag 'dog', 'b.jpg'; tag more, or take it out",
        "the tag 'dogs' (1, such as 'c.jpg') looks like 'dog' (1); "
        'if it is the same, write it alike')
    fault, = check(mine, progress=False)
    assert fault.problem == "'a.jpg' has no tags"


def test_import_stays_light():
    heavy = ('torchvision', 'scipy', 'matplotlib', 'IPython', 'nbdev')
    code = ('import sys, wsss_nb.voc\n'
            f'print(*[name for name in {heavy} if name in sys.modules])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ''


# Other layouts

def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (7, 5), 'red').save(path)


def annotated(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(xml(*names))


@pytest.mark.parametrize('photos, annotations', [
    ('.', '.'), ('images', 'images'), ('images', 'annotations'), ('images', 'Annotations'),
    ('images', '.')])
def test_xml_beside_photos_without_splits(tmp_path, photos, annotations):
    for id, tag in (('a', 'ant'), ('b', 'moth')):
        photo(tmp_path/photos/f'{id}.jpg')
        annotated(tmp_path/annotations/f'{id}.xml', tag)
    data = VOCFolder(tmp_path, 'train')
    assert data.ids == ['a', 'b'] and data.classes == ('ant', 'moth')
    assert data.tags(1).tolist() == [0, 1]
    assert check(tmp_path, progress=False) == []
    assert VOCFolder.splits(tmp_path) == ['train']
    (tmp_path/'train.txt').write_text('a')   # a list decides
    (tmp_path/'val.txt').write_text('b.jpg')
    assert VOCFolder(tmp_path, 'val').ids == ['b']


@pytest.mark.parametrize('folders', [
    ('train', 'valid'), ('Train', 'Validation'), ('train/images', 'val/images'),
    ('images/train', 'images/val')])
def test_xml_beside_photos_in_splits(tmp_path, folders):
    for folder, id, tag in zip(folders, 'ab', ('ant', 'moth')):
        photo(tmp_path/folder/f'{id}.jpg')
        annotated(tmp_path/folder/f'{id}.xml', tag)
    assert VOCFolder.splits(tmp_path) == ['train', 'val']
    assert VOCFolder(tmp_path, 'train').ids == ['a']
    assert VOCFolder(tmp_path, 'val').classes == ('ant', 'moth')
    assert str(summarise(tmp_path)).splitlines()[0].endswith('photos with XML beside them')
    photo(tmp_path/folders[0]/'b.jpg')
    refused(tmp_path, 'val', 'b.jpg has the same name. Rename one of them')   # and one leaks


def test_xml_beside_photos_that_is_wrong(tmp_path):
    for id in 'abc':
        photo(tmp_path/'train'/f'{id}.jpg')
        annotated(tmp_path/'train'/f'{id}.xml', 'ant')
    (tmp_path/'train'/'a.xml').write_text('<annotation>')
    (tmp_path/'train'/'b.xml').unlink()
    annotated(tmp_path/'train'/'c.xml')
    broken, absent, empty = refused(tmp_path, 'train', 'a.xml: the XML is broken')
    assert 'b.xml: the annotation cannot be read' in str(absent)
    assert "'c' has no tags" in str(empty)
    assert check(tmp_path, progress=False) == [broken, absent, empty]


def test_xml_beside_photos_with_masks(tmp_path):
    for id, tag in (('a', 'ant'), ('b', 'moth')):
        photo(tmp_path/f'{id}.jpg')
        annotated(tmp_path/f'{id}.xml', tag)
    (tmp_path/'masks').mkdir()
    write_mask(tmp_path/'masks'/'a.png', np.full((5, 7), 1, np.uint8))
    refused(tmp_path, 'train', 'no list says which class a number in these masks is')
    (tmp_path/'masks'/'classes.txt').write_text('ant\nmoth\n')
    assert (VOCFolder(tmp_path, 'train').truth(0) == 1).all()


def test_folders_of_classes_in_splits(tmp_path):
    for split in ('train', 'val'):
        for tag in ('ant', 'moth'):
            photo(tmp_path/split/tag/'1.jpg')
    data = VOCFolder(tmp_path, 'val')
    assert data.ids == ['val_ant_1', 'val_moth_1'] and data.classes == ('ant', 'moth')
    assert check(tmp_path, progress=False) == []
    assert str(summarise(tmp_path)).splitlines()[0].endswith('in a folder for each class')


def test_folders_of_classes_with_lists_and_masks(tmp_path):
    for tag in ('ant', 'moth'):
        for name in ('1.jpg', '2.jpg'):
            photo(tmp_path/'images'/tag/name)
        (tmp_path/'masks'/tag).mkdir(parents=True)
        number = 2 if tag == 'moth' else 1
        write_mask(tmp_path/'masks'/tag/'1.png', np.full((5, 7), number, np.uint8))
    (tmp_path/'classes.txt').write_text('ant\nmoth\n')
    (tmp_path/'train.txt').write_text('ant/1.jpg\nmoth_2\nant/2\n')
    data = VOCFolder(tmp_path, 'train')
    assert data.ids == ['ant_1', 'moth_2', 'ant_2']
    assert (data.truth(0) == 1).all() and data.truth(1) is None
    assert check(tmp_path, progress=False) == []
    (tmp_path/'train.txt').write_text('ant/1.jpg\nant_1\n')
    refused(tmp_path, 'train', "'ant_1' is there more than once")


def test_a_table_decides_over_folders(tmp_path):
    photo(tmp_path/'images'/'a.jpg')
    photo(tmp_path/'images'/'old'/'b.jpg')
    (tmp_path/'tags.csv').write_text('file,tags\na.jpg,ant\n')
    assert VOCFolder(tmp_path, 'train').classes == ('ant',)
    assert "not read in images, folders: 1, such as 'old'" in summarise(tmp_path).notes


@pytest.mark.parametrize('files, words', [
    (('train/_annotations.coco.json',), '_annotations.coco.json is a COCO file, name that; else'),
    (('data.yaml', 'train/labels/a.txt'), "YOLO's layout: export the data as Pascal VOC or COCO"),
    (('a.txt',), 'Name a VOC folder, or put photos in images/')])
def test_folders_of_other_tools(tmp_path, files, words):
    for name in files:
        (tmp_path/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/name).write_text('[]')
    refused(tmp_path, 'train', words)


def test_masks_that_lost_their_numbers(root, own):
    (own/'masks').mkdir()
    Image.new('L', (7, 5)).save(own/'masks'/'ear.jpg')
    faults = refused(own, 'train', 'ear.jpg: this format changes the numbers in a mask')
    assert faults == check(own, progress=False)
    (root/'SegmentationClass'/'a.png').unlink()
    Image.new('L', (7, 5)).save(root/'SegmentationClass'/'a.webp')
    refused(root, 'train', 'a.webp: this format changes the numbers in a mask')


def test_photos_with_blanks_around_their_names(own):
    (own/'images'/'ear.png').rename(own/'images'/' ear .png')
    (own/'tags.csv').write_text('file,tags\n" ear .png",ear\nstem.JPG,stem\n')
    assert VOCFolder(own, 'train').ids == ['ear', 'stem']
    (own/'train.txt').write_text('ear\n')
    assert VOCFolder(own, 'train').path(0).name == ' ear .png'
    photo(own/'images'/'ear.png')
    refused(own, 'train', 'ear .png has the same name. Rename one of them')


def test_tags_and_classes_have_one_form(own):
    (own/'tags.csv').write_text('file,tags\near.png,cafe\u0301\nstem.JPG,caf\u00e9\n', 'utf-8')
    (own/'classes.txt').write_text('cafe\u0301\n', 'utf-8')
    assert VOCFolder(own, 'train').classes == ('caf\u00e9',)
    assert VOCFolder(own, 'train').tags(0).tolist() == VOCFolder(own, 'train').tags(1).tolist()


def test_masks_in_folders_with_accents_as_a_mac_stores_them(tmp_path):
    for name in (unicodedata.normalize('NFD', 'café'), 'dog'):
        for folder in ('images', 'masks'):
            (tmp_path/folder/name).mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path/'images'/name/'0.jpg')
        write_mask(tmp_path/'masks'/name/'0.png', np.zeros((8, 8), np.uint8))
    (tmp_path/'classes.txt').write_text('café\ndog\n')
    assert VOCFolder(tmp_path, 'train').has_truth

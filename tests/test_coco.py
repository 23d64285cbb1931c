"COCO files (chapters 3, 6 and 7): what is refused and how, all faults at once, there and back."
import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from untrained import untrained_run

from wsss_nb import coco, coco_photos
from wsss_nb.coco import coco_annotations, decompress, run_lengths, write_coco
from wsss_nb.coco_photos import CocoPhotos
from wsss_nb.datasets import (check_photos, examine_photos, open_photos, splits_of,
                              summarise_photos)
from wsss_nb.files import InputError
from wsss_nb.fingerprints import fingerprints_of
from wsss_nb.shapes import make_shapes
from wsss_nb.voc import VOCFolder

SIZE = (12, 9)   # (width, height) of every photo here
CAT = [1, 1, 6, 1, 6, 6, 1, 6]
DOG = [4, 3, 11, 3, 11, 8, 4, 8]


def compressed(mask):
    "Run lengths as pycocotools writes them."
    runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': list(mask.shape), 'counts': runs['counts'].decode()}


def rectangle(left, top, right, bottom):
    "A mask of a rectangle."
    mask = np.zeros(SIZE[::-1], bool)
    mask[top:bottom, left:right] = True
    return mask


def good() -> dict:
    "A file without a fault: photo a has a cat and a dog, photo b a dog, photo c nothing."
    images = []
    for number, name in ((10, 'a.png'), (11, 'b.png'), (12, 'c.png')):
        images.append({'id': number, 'file_name': name, 'width': SIZE[0], 'height': SIZE[1]})
    return {
        'images': images,
        'categories': [{'id': 9, 'name': 'dog'}, {'id': 4, 'name': 'cat'}],
        'annotations': [
            {'id': 1, 'image_id': 10, 'category_id': 4, 'segmentation': [list(CAT)]},
            {'id': 2, 'image_id': 10, 'category_id': 9, 'segmentation': [list(DOG)]},
            {'id': 3, 'image_id': 11, 'category_id': 9, 'segmentation': run_lengths(
                rectangle(2, 2, 7, 5))},
        ],
    }


@pytest.fixture
def images(tmp_path) -> Path:
    "The photos a, b and c."
    folder = tmp_path/'images'
    folder.mkdir()
    for name in 'abc':
        Image.new('RGB', SIZE, 'green').save(folder/f'{name}.png')
    return folder


@pytest.fixture
def write(tmp_path, images):
    "Writes a file beside the folder of photos."
    def write(content, name='instances.json'):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path/name).write_text(text)
        return tmp_path/name
    return write


@pytest.fixture
def path(write):
    "A file without a fault."
    return write(good())


def problems(path, images=None):
    "The problems that a check finds."
    return [fault.problem for fault in check_photos(path, images, progress=False)]


# What is read

def test_tags_classes_and_truth(path, images):
    photos = CocoPhotos(path, images)
    assert (photos.ids, photos.classes) == (['a', 'b', 'c'], ('cat', 'dog'))
    assert [photos.tags(i).tolist() for i in range(3)] == [[1, 1], [0, 1], [0, 0]]
    assert photos.has_truth
    expected = np.zeros(SIZE[::-1], np.uint8)
    expected[3:8, 4:11] = 2
    expected[1:6, 1:6] = 1   # the cat is smaller, so it is in front
    assert np.array_equal(photos.truth(0), expected)
    assert np.array_equal(photos.truth(1), 2 * rectangle(2, 2, 7, 5))
    assert photos.truth(2).dtype == np.uint8 and not photos.truth(2).any()
    assert problems(path) == []


@pytest.mark.parametrize('form', [run_lengths, compressed])
@pytest.mark.parametrize('crowd', [0, 1])
def test_run_lengths_of_both_forms_and_crowds(write, images, form, crowd):
    content = good()
    mask = rectangle(0, 0, 5, 9) | rectangle(9, 4, 12, 5)
    content['annotations'][2] |= {'segmentation': form(mask), 'iscrowd': crowd}
    photos = CocoPhotos(write(content), images)
    assert np.array_equal(photos.truth(1), (255 if crowd else 2) * mask)
    assert photos.tags(1).tolist() == [0, 1]   # that there is a crowd of dogs is sure


def test_a_region_of_several_polygons_is_one_mask(write, images):
    content = good()
    one = [0, 0, 4, 0, 4, 4, 0, 4]
    other = [8, 4, 12, 4, 12, 9, 8, 9]
    content['annotations'][2]['segmentation'] = [one, other]
    truth = CocoPhotos(write(content), images).truth(1)
    assert np.array_equal(truth > 0, rectangle(0, 0, 4, 4) | rectangle(8, 4, 12, 9))


def test_of_equally_large_regions_the_later_is_in_front(write, images):
    content = good()
    for first, label in ((0, 2), (1, 1)):
        for place, annotation in enumerate(content['annotations'][:2]):
            annotation['segmentation'] = run_lengths(rectangle(0, 0, 3, 3))
            annotation['category_id'] = (4, 9)[(place + first) % 2]
        truth = CocoPhotos(write(content), images).truth(0)
        assert truth[0, 0] == label


def test_boxes_have_tags_and_no_truth(write, images):
    content = good()
    for annotation in content['annotations']:
        del annotation['segmentation']
    path = write(content)
    photos = CocoPhotos(path, images)
    assert photos.tags(0).tolist() == [1, 1]
    assert not photos.has_truth
    assert [photos.truth(i) for i in range(3)] == [None] * 3
    assert photos[0].mask is None
    assert problems(path) == []


def test_a_photo_with_one_box_has_no_truth_and_others_have(write, images):
    content = good()
    content['annotations'][0]['segmentation'] = []
    photos = CocoPhotos(write(content), images)
    assert not photos.has_truth
    assert photos.truth(0) is None
    assert photos.truth(1) is not None and photos.truth(2) is not None


def test_photos_are_pickled_and_read_alike(path, images):
    photos = CocoPhotos(path, images)
    again = pickle.loads(pickle.dumps(photos))
    for before, after in zip(photos, again):
        assert before.id == after.id
        assert np.array_equal(before.image, after.image)
        assert np.array_equal(before.labels, after.labels)
        assert np.array_equal(before.mask, after.mask)


def test_names_with_folders_and_ids_that_are_words(write, images):
    (images/'street').mkdir()
    os.rename(images/'a.png', images/'street'/'a.png')
    content = good()
    content['images'][0] |= {'file_name': 'street/a.png', 'id': 'first'}
    for annotation in content['annotations'][:2]:
        annotation['image_id'] = 'first'
    photos = CocoPhotos(write(content), images)
    assert photos.ids[0] == 'street_a'
    assert photos.path(0) == images/'street'/'a.png'
    assert photos.tags(0).tolist() == [1, 1]


def test_a_file_that_states_no_sizes(write, images):
    content = good()
    for image in content['images']:
        del image['width'], image['height']
    path = write(content)
    assert CocoPhotos(path, images).truth(0).shape == SIZE[::-1]
    assert problems(path) == []


def test_opening_draws_nothing_and_opens_no_photo(path, images, monkeypatch):
    def never(*args, **options):
        raise AssertionError('this was to wait')
    for name in ('merge', 'frPyObjects', 'decode', 'area'):
        monkeypatch.setattr(coco_mask, name, never)
    monkeypatch.setattr(Image, 'open', never)
    photos = CocoPhotos(path, images)
    assert photos.tags(0).tolist() == [1, 1] and photos.has_truth


# Masks of segments and of categories

def panoptic(write, images, **changes) -> Path:
    "The good file's truth as segments; `changes` are of the first photo's annotation."
    photos = CocoPhotos(write(good()), images)
    folder = images.parent/'panoptic_train'
    folder.mkdir(exist_ok=True)
    annotations = []
    for place, number in enumerate((10, 11, 12)):
        ids = np.array([0, 70_000, 299])[photos.truth(place)]
        colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1)
        Image.fromarray(colours.astype(np.uint8)).save(folder/f'{photos.ids[place]}.png')
        segments = [{'id': 70_000, 'category_id': 4}] if place == 0 else []
        segments += [{'id': 299, 'category_id': 9}] if place < 2 else []
        annotations.append({'image_id': number, 'file_name': f'{photos.ids[place]}.png',
                            'segments_info': segments})
    annotations[0] |= changes
    return write(good() | {'annotations': annotations}, 'panoptic_train.json')


def test_segments_give_the_same_truth(write, images):
    path = panoptic(write, images)
    photos = CocoPhotos(path, images)
    drawn = CocoPhotos(write(good()), images)
    assert photos.has_truth
    for i in range(3):
        assert np.array_equal(photos.truth(i), drawn.truth(i))
        assert np.array_equal(photos.tags(i), drawn.tags(i))
    assert problems(path) == []


def test_where_stuff_is_labelled_too_nothing_means_unknown(write, images):
    content = json.loads(panoptic(write, images).read_text())
    content['categories'][0]['isthing'] = 0
    photos = CocoPhotos(write(content, 'panoptic_train.json'), images)
    drawn = CocoPhotos(write(good()), images).truth(0)
    assert np.array_equal(photos.truth(0), np.where(drawn == 0, 255, drawn))


def test_segments_that_are_wrong(write, images):
    path = panoptic(write, images, segments_info=[{'id': 299, 'category_id': 9}])
    with pytest.raises(InputError, match='a.png: the mask holds 70000, which the file does not'):
        CocoPhotos(path, images).truth(0)
    assert problems(path) == ['the mask holds 70000, which the file does not name']
    Image.new('P', SIZE).save(images.parent/'panoptic_train'/'b.png')
    Image.new('RGB', (3, 3)).save(images.parent/'panoptic_train'/'c.png')
    assert problems(path)[1:] == ['segments are written as colours, and this image is P',
                                  'the mask is 3 x 3, its photo 12 x 9']
    os.remove(images.parent/'panoptic_train'/'c.png')
    with pytest.raises(InputError, match="'c.png' are not in the folder .*panoptic_train"):
        CocoPhotos(path, images)
    path = panoptic(write, images, segments_info=[{'id': 299, 'category_id': 5}])
    with pytest.raises(InputError, match='annotation 299 is of the category 5, which is unknown'):
        CocoPhotos(path, images)
    path = panoptic(write, images, image_id=99)
    with pytest.raises(InputError, match='has no segments of a known image'):
        CocoPhotos(path, images)


def test_maps_of_categories(write, images):
    drawn = CocoPhotos(write(good()), images)
    folder = images.parent/'stuff_pixelmaps'
    folder.mkdir()
    for i, name in enumerate('ab'):
        values = np.array([0, 4, 9], np.uint8)[drawn.truth(i)]
        values[0, 0] = 255
        Image.fromarray(values).save(folder/f'{name}.png')
    path = write(good(), 'stuff.json')
    photos = CocoPhotos(path, images)
    expected = drawn.truth(0)
    expected[0, 0] = 255
    assert np.array_equal(photos.truth(0), expected)
    assert not photos.has_truth and photos.truth(2) is None    # c has no map
    Image.fromarray(np.full(SIZE[::-1], 5, np.uint8)).save(folder/'c.png')
    assert problems(path) == ['the mask holds 5, which the file does not name']


@pytest.mark.parametrize('values, often', [
    (np.array([0, 9, 4], np.uint8), True), (np.array([0, 255, 255], np.uint8), True),
    (np.array([0, 4, 9], np.uint8), False)])
def test_maps_of_categories_that_contradict_the_annotations(write, images, values, often):
    drawn = CocoPhotos(write(good()), images)
    folder = images.parent/'stuff_pixelmaps'
    folder.mkdir()
    for i, name in enumerate('ab'):
        Image.fromarray(values[drawn.truth(i)]).save(folder/f'{name}.png')
    content = good()
    content['annotations'] = content['annotations'][1:]   # both photos are tagged dog only
    found = examine_photos(write(content, 'stuff.json'), images, progress=False)
    said = [fault.problem for fault in found.faults]
    assert any('2 photos with a mask' in problem for problem in said) == often
    if not often:   # the cat of photo a
        note, = found.notes
        assert note.startswith('in 1 of 2 photos with a mask, the mask has a class that is not ta')


def test_a_val_to_measure_on_needs_all_masks(mscoco):
    val = mscoco/'annotations'/'instances_val2014.json'
    content = json.loads(val.read_text())
    del content['annotations'][0]['segmentation']   # a box
    val.write_text(json.dumps(content))
    said, = problems(mscoco/'annotations'/'instances_train2014.json')
    assert re.match(r"1 of 3 photos have no mask, such as '\w+', so nothing can be measured", said)


def test_categories_have_one_form(write, images):
    content = good()
    content['categories'][0]['name'] = ' cafe\u0301 '
    assert CocoPhotos(write(content), images).classes == ('cat', 'caf\u00e9')


# What is refused at once

@pytest.mark.parametrize('text, words', [
    ('{"images": [', 'the JSON is broken .*line 1'),
    ('', 'the JSON is broken'),
    ('[]', 'this is no data set of COCO, but only a list'),
    ('{}', 'there is no list of images'),
    ('{"images": [{}], "categories": [{}]}', 'there is no list of annotations'),
    ('{"images": [], "categories": [{}], "annotations": []}', 'there are no images'),
    ('{"images": [{}], "categories": [], "annotations": []}', 'there are no categories'),
    ('{"images": [7], "categories": [{}], "annotations": []}', 'there is no list of images'),
])
def test_files_that_are_none(write, images, text, words):
    path = write(text)
    with pytest.raises(InputError, match=f'instances.json: .*{words}'):
        CocoPhotos(path, images)
    assert len(problems(path)) == 1


def test_a_file_that_is_not_text(tmp_path, images):
    (tmp_path/'instances.json').write_bytes(b'\xff\xfe{')
    with pytest.raises(InputError, match='the text is not in UTF-8'):
        CocoPhotos(tmp_path/'instances.json', images)


@pytest.mark.parametrize('categories, words', [
    ([{'id': 1, 'name': 'background'}], "'background' is not a class"),
    ([{'id': n, 'name': f'c{n}'} for n in range(255)], 'there are 255 classes.* room for 254'),
    ([{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'cat'}], "the class 'cat' is there more than"),
    ([{'id': 1, 'name': 'cat'}, {'id': 1, 'name': 'dog'}], 'two categories have the id 1'),
    ([{'id': 1, 'name': 'cat'}, {'id': '2', 'name': 'dog'}], 'no id that is a whole number'),
    ([{'id': 1, 'name': 'cat'}, {'id': 2}], 'or no name'),
])
def test_categories_that_are_wrong(write, images, categories, words):
    path = write(good() | {'categories': categories, 'annotations': []})
    with pytest.raises(InputError, match=words):
        CocoPhotos(path, images)
    assert problems(path)


@pytest.mark.parametrize('change, words', [
    ({'file_name': 'd.png'}, "'d.png' is not in the folder .*images. .*put the photo there"),
    ({'file_name': '../a.png'}, 'leads out of the folder'),
    ({'file_name': '/etc/a.png'}, 'leads out of the folder'),
    ({'file_name': ''}, 'is empty'),
    ({'file_name': None}, 'has no id, or no file_name'),
    ({'id': None}, 'has no id, or no file_name'),
    ({'id': 11}, 'two images have the id 11'),
    ({'file_name': 'b.png'}, "two images have the name 'b', but for the ending"),
    ({'width': 0}, 'has the size 0 x 9'),
    ({'height': None}, 'has the size 12 x None'),
])
def test_images_that_are_wrong(write, images, change, words):
    content = good()
    content['images'][0] |= change
    path = write(content)
    with pytest.raises(InputError, match=words):
        CocoPhotos(path, images)
    assert problems(path)


@pytest.mark.parametrize('change, words', [
    ({'image_id': 99}, 'annotation 1 is of the image 99, which is unknown'),
    ({'category_id': 5}, 'annotation 1 is of the category 5, which is unknown'),
    ({'image_id': None}, 'has no image_id, or no category_id'),
    ({'category_id': 'cat'}, 'has no image_id, or no category_id'),
])
def test_annotations_that_are_wrong(write, images, change, words):
    content = good()
    content['annotations'][0] |= change
    path = write(content)
    with pytest.raises(InputError, match=words):
        CocoPhotos(path, images)
    assert len(problems(path)) == 1


# What shows when it is drawn, or checked

def polygon(*corners):
    "One polygon."
    return [list(corners)]


@pytest.mark.parametrize('segmentation, words', [
    (polygon(1, 1, 5, 5), 'a polygon has 2 points, and needs 3'),
    (polygon(1, 1, 5, 5, 3), 'a polygon is no list of x, y'),
    (polygon('a', 1, 5, 5, 3, 3), 'a polygon is no list of x, y'),
    ([[[1, 1], [5, 1], [5, 5]]], 'a polygon is no list of x, y'),
    ([1, 1, 5, 1, 5, 5], 'a polygon is no list of x, y'),
    (polygon(1, 1, 15, 1, 5, 5), 'a corner at x 15, y 1, outside of the photo of 12 x 9'),
    (polygon(1, 1, 5, -3, 5, 5), 'a corner at x 5, y -3, outside'),
    (polygon(1, 1, 1e12, 1, 5, 5), r'a corner at x 1e\+12, y 1, outside'),
    (polygon(1, 1, float('nan'), 1, 5, 5), 'corners that are no numbers'),
    (polygon(1, 1, float('inf'), 1, 5, 5), 'corners that are no numbers'),
    ({'size': [9, 12], 'counts': [3, 4]}, 'are for 7 pixels, and the photo has 108'),
    ({'size': [9, 12], 'counts': [3, 400]}, 'are for 403 pixels'),
    ({'size': [9, 12], 'counts': [110, -2]}, 'are broken .a length of -2'),
    ({'size': [9, 12], 'counts': ['a']}, 'no list of whole numbers'),
    ({'size': [9, 12], 'counts': None}, 'no list of whole numbers'),
    ({'size': [9, 12], 'counts': ''}, 'are for 0 pixels'),
    ({'size': [9, 12], 'counts': 'X'}, 'are broken .the text is cut off'),
    ({'size': [9, 12], 'counts': '\x7f'}, 'are broken .the character'),
    ({'size': [12, 9], 'counts': [108]}, r'size \[12, 9\], and the photo has \[9, 12\]'),
    ({'counts': [108]}, 'of the size None'),
    ('a cat', 'neither polygons nor run lengths'),
    (7, 'neither polygons nor run lengths'),
])
def test_regions_that_cannot_be_drawn(write, images, segmentation, words):
    content = good()
    content['annotations'][0]['segmentation'] = segmentation
    path = write(content)
    photos = CocoPhotos(path, images)
    assert photos.tags(0).tolist() == [1, 1]
    for read in (photos.truth, photos.__getitem__):
        with pytest.raises(InputError, match=f"annotation 1 of 'a.png': .*{words}.*Correct the"):
            read(0)
    assert photos.truth(1) is not None
    assert len(problems(path)) == 1


def test_a_corner_may_lie_two_pixels_outside(write, images):
    content = good()
    content['annotations'][2]['segmentation'] = [[-2, -2, 14, -2, 14, 11, -2, 11]]
    path = write(content)
    assert (CocoPhotos(path, images).truth(1) == 2).all()
    assert problems(path) == []


def test_every_fault_is_listed_with_its_file_and_a_remedy(write, images):
    content = good()
    content['annotations'][0]['segmentation'] = [[1, 1, 5, 5]]
    content['annotations'][1]['segmentation'] = [[1, 1, 99, 5, 5, 5]]
    content['annotations'].append({'id': 4, 'image_id': 10, 'category_id': 77})
    content['images'].append({'id': 13, 'file_name': 'd.png', 'width': 12, 'height': 9})
    path = write(content)
    photo = images/'b.png'
    photo.write_bytes(photo.read_bytes()[:40])
    Image.new('RGB', (5, 5)).save(images/'c.png')
    faults = check_photos(path, images, progress=False)
    assert [(fault.path.name, fault.problem.split(',')[0]) for fault in faults] == [
        ('instances.json', f"'d.png' is not in the folder {images}"),
        ('instances.json', 'annotation 4 is of the category 77'),
        ('instances.json', "annotation 1 of 'a.png': a polygon has 2 points"),
        ('instances.json', "annotation 2 of 'a.png': a polygon has a corner at x 99"),
        ('b.png', faults[4].problem),
        ('c.png', 'the photo is 5 x 5'),
    ]
    assert 'decoded' in faults[4].problem or 'not an image' in faults[4].problem
    assert all(fault.remedy for fault in faults)


def test_a_photo_of_another_size(path, images):
    Image.new('RGB', (24, 18)).save(images/'a.png')
    words = 'the photo is 24 x 18, and instances.json has it as 12 x 9. Put the photo there'
    photos = CocoPhotos(path, images)
    for read in (photos.truth, photos.__getitem__):
        with pytest.raises(InputError, match=words):
            read(0)
    assert photos.image(0).size == (24, 18)


def test_a_photo_that_lies_on_its_side(path, images):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', SIZE).save(images/'a.png', exif=exif)
    with pytest.raises(InputError, match='9 x 12, and .* 12 x 9.* a note in it .EXIF. may have'):
        CocoPhotos(path, images).truth(0)


def test_a_folder_of_photos_that_is_not_there(path, tmp_path):
    with pytest.raises(InputError, match='nowhere: there is no such folder. Name the folder'):
        CocoPhotos(path, tmp_path/'nowhere')


# Where things are

@pytest.fixture
def mscoco(tmp_path, images) -> Path:
    "Annotations and photos in the folders that COCO has; each split has all photos."
    root = tmp_path/'coco'
    (root/'annotations').mkdir(parents=True)
    for split in ('train2014', 'val2014'):
        (root/split).mkdir()
        for name in 'abc':
            (root/split/f'{split}_{name}.png').write_bytes((images/f'{name}.png').read_bytes())
        content = good()
        for image in content['images']:
            image['file_name'] = f'{split}_{image["file_name"]}'
        (root/'annotations'/f'instances_{split}.json').write_text(json.dumps(content))
    return root


def test_the_folders_of_coco(mscoco):
    data = mscoco/'annotations'/'instances_train2014.json'
    for given in (None, mscoco/'train2014', str(mscoco/'train2014')):
        assert splits_of(data, given) == ['train', 'val']
        assert open_photos(data, 'train', given).path(0) == mscoco/'train2014'/'train2014_a.png'
        assert open_photos(data, 'val', given).path(0) == mscoco/'val2014'/'val2014_a.png'
        assert check_photos(data, given, progress=False) == []
    alone = mscoco/'annotations'/'instances_val2014.json'
    assert splits_of(alone) == ['train']
    assert open_photos(alone, 'train').ids[0] == 'val2014_a'


def test_both_splits_in_one_folder(mscoco):
    os.rename(mscoco/'train2014', mscoco/'images')
    for photo in (mscoco/'val2014').iterdir():
        os.rename(photo, mscoco/'images'/photo.name)
    (mscoco/'val2014').rmdir()
    data = mscoco/'annotations'/'instances_train2014.json'
    assert open_photos(data, 'val').path(0).parent == mscoco/'images'
    assert open_photos(data, 'val', mscoco/'images').ids[0] == 'val2014_a'


def test_photos_beside_the_file(write, images, monkeypatch):
    for name in 'abc':
        os.rename(images/f'{name}.png', images.parent/f'{name}.png')
    images.rmdir()
    path = write(good())
    assert len(open_photos(path, 'train')) == 3
    monkeypatch.chdir(path.parent)
    assert len(open_photos(path.name, 'train')) == 3


def test_photos_that_are_nowhere(write, images):
    os.rename(images, images.parent/'elsewhere')
    path = write(good(), 'my_train.json')
    words = r'no folder of photos is beside this file or one folder up \(train, images/train, im'
    with pytest.raises(InputError, match=f'{words}ages.*Name the folder of the photos .--images'):
        open_photos(path, 'train')
    with pytest.raises(InputError, match=words):
        summarise_photos(path)
    assert len(check_photos(path, progress=False)) == 1
    assert len(open_photos(path, 'train', images.parent/'elsewhere')) == 3


def test_splits_files_and_folders_that_are_not_there(path, images, tmp_path):
    with pytest.raises(InputError, match="there is no split 'val', but 'train'. Name one of them"):
        open_photos(path, 'val')
    assert problems(tmp_path/'absent.json') == ['there is no such file']
    for call in (splits_of, summarise_photos):
        with pytest.raises(InputError, match='absent.json: there is no such file. Name a COCO'):
            call(tmp_path/'absent.json')
    (tmp_path/'tags.txt').write_text('a cat')
    with pytest.raises(InputError, match='tags.txt: this is neither a folder nor a COCO file'):
        open_photos(tmp_path/'tags.txt', 'train')
    with pytest.raises(InputError, match='absent: there is no such folder'):
        open_photos(tmp_path/'absent', 'train')
    with pytest.raises(InputError, match='--images is for COCO files. Leave --images out'):
        open_photos(tmp_path, 'train', images)


def test_other_classes_in_val_would_mean_other_things(mscoco):
    data = mscoco/'annotations'/'instances_train2014.json'
    val = mscoco/'annotations'/'instances_val2014.json'
    content = json.loads(val.read_text())
    content['categories'].append({'id': 1, 'name': 'bird'})
    val.write_text(json.dumps(content))
    words = "its categories are not those of instances_train2014.json, such as 'bird'"
    with pytest.raises(InputError, match=f'instances_val2014.json: {words}. Give both files the'):
        open_photos(data, 'val')
    assert problems(data) == [words]
    content['categories'] = [{'id': 9, 'name': 'cat'}, {'id': 4, 'name': 'dog'}][::-1]
    val.write_text(json.dumps(content))
    with pytest.raises(InputError, match='their order is another one'):
        open_photos(data, 'val')
    assert open_photos(data, 'train').classes == ('cat', 'dog')


def test_other_ids_in_val_mean_nothing(mscoco):
    val = mscoco/'annotations'/'instances_val2014.json'
    text = val.read_text().replace('"id": 9,', '"id": 90,')
    val.write_text(text.replace('"category_id": 9', '"category_id": 90'))
    photos = open_photos(mscoco/'annotations'/'instances_train2014.json', 'val')
    assert photos.tags(1).tolist() == [0, 1]


def test_a_folder_goes_to_chapter_2(tmp_path):
    root = make_shapes(tmp_path/'shapes', train=3, val=1, size=48)
    assert isinstance(open_photos(root, 'val'), VOCFolder)
    assert splits_of(root) == ['train', 'val']
    assert check_photos(root, progress=False) == []
    assert summarise_photos(root).images == 4


# A summary

def test_a_summary_counts_and_notes(write, images):
    content = good()
    content['categories'].append({'id': 30, 'name': 'bird'})
    summary = summarise_photos(write(content))
    assert summary.classes == ('cat', 'dog', 'bird')
    assert summary.splits == {'train': (3, 3, 3)}
    text = str(summary)
    for words in ('a COCO file (instances)', '3 photos, 3 with a mask, 3 annotations',
                  "no photo of a class: 'bird'", 'photos without an annotation: 1',
                  "only one photo has the tag 'cat', 'a'"):
        assert words in text


def test_a_summary_of_two_splits_names_shared_photos(write, images):
    write(good(), 'pets_val.json')
    summary = summarise_photos(write(good(), 'pets_train.json'))
    assert list(summary.splits) == ['train', 'val']
    assert "photos in both train and val: 3, such as 'a'" in summary.notes


# There and back

def test_written_masks_are_read_as_they_were(tmp_path):
    root = make_shapes(tmp_path/'shapes', train=12, val=1, size=72)
    folder = VOCFolder(root, 'train')
    annotations = []
    for i in range(len(folder)):
        halves = np.repeat([[1, 2]], 2, 0)   # every class of a photo in two things
        annotations += coco_annotations(i + 1, folder.truth(i), halves)
    names = [folder.path(i).name for i in range(len(folder))]
    sizes = [folder.truth(i).shape for i in range(len(folder))]
    write_coco(tmp_path/'all.json', names, sizes, folder.classes, annotations)
    photos = CocoPhotos(tmp_path/'all.json', root/'JPEGImages')
    assert photos.ids == folder.ids
    assert photos.classes == folder.classes
    for i in range(len(folder)):
        truth = folder.truth(i)
        assert np.array_equal(photos.truth(i), np.where(truth == 255, 0, truth))
        assert np.array_equal(photos.tags(i), folder.tags(i))
    assert check_photos(tmp_path/'all.json', root/'JPEGImages', progress=False) == []


def test_pycocotools_reads_what_is_written(tmp_path, capsys):
    from pycocotools.coco import COCO
    labels = np.zeros((7, 5), np.uint8)
    labels[2:6, 1:4] = 3
    write_coco(tmp_path/'a.json', ['a.jpg'], [labels.shape], ['x', 'y', 'z'],
               coco_annotations(1, labels, np.zeros((1, 1), int)))
    read = COCO(tmp_path/'a.json')
    annotation, = read.loadAnns(read.getAnnIds())
    assert annotation['bbox'] == [1, 2, 3, 4]
    assert read.loadCats(annotation['category_id'])[0]['name'] == 'z'
    assert np.array_equal(read.annToMask(annotation) * 3, labels)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(ValueError, match='shorter'):
        write_coco(tmp_path/'a.json', ['a.jpg', 'b.jpg'], [(2, 2)], ['x'], [])
    with pytest.raises(TypeError, match='not JSON serializable'):
        write_coco(tmp_path/'a.json', ['a.jpg'], [(2, 2)], ['x'], [{'area': np.float32(1)}])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('seed', range(8))
def test_compressed_run_lengths_are_what_pycocotools_means(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((50 * (seed + 1), 37)) < seed / 7
    counts = run_lengths(mask)['counts']
    assert decompress(compressed(mask)['counts']) == counts
    runs = coco_mask.frPyObjects({'size': list(mask.shape), 'counts': counts}, *mask.shape)
    assert decompress(runs['counts'].decode()) == counts


def test_the_limits_of_a_label_map(write, images):
    categories = [{'id': n, 'name': f'c{n}'} for n in range(254)]
    annotation = {'id': 1, 'image_id': 10, 'category_id': 253, 'segmentation': [CAT]}
    path = write(good() | {'categories': categories, 'annotations': [annotation]})
    truth = CocoPhotos(path, images).truth(0)
    assert np.unique(truth).tolist() == [0, 254]
    assert coco_photos.CocoPhotos is CocoPhotos and coco.OUTSIDE == 2


def two_files(root: Path, segmentation: list) -> Path:
    "Files of train and val, whose photos have one name and lie in two folders."
    for split, shade in (('train', 90), ('val', 200)):
        (root/split).mkdir()
        Image.new('RGB', (48, 48), (shade,) * 3).save(root/split/'1.jpg')
        thing = {'id': 1, 'image_id': 1, 'category_id': 1, 'iscrowd': 0,
                 'segmentation': segmentation}
        content = {'images': [{'id': 1, 'file_name': '1.jpg', 'width': 48, 'height': 48}],
                   'annotations': [thing], 'categories': [{'id': 1, 'name': 'a'}]}
        (root/f'instances_{split}.json').write_text(json.dumps(content))
    return root/'instances_train.json'


def test_two_photos_of_one_name_in_two_lists_are_told(tmp_path):
    data = two_files(tmp_path, [[0, 0, 24, 0, 24, 48]])
    found = check_photos(data, progress=False)
    assert 'another photo' in ' '.join(fault.problem for fault in found)
    with pytest.raises(InputError, match='1.jpg, and is another photo'):
        untrained_run(tmp_path/'run', data)
    shutil.copy(tmp_path/'train'/'1.jpg', tmp_path/'val'/'1.jpg')    # the same one may be in both
    assert untrained_run(tmp_path/'run', data).splits['val'].ids == ['1']


@pytest.mark.parametrize('segmentation', [
    [{'size': [48, 48], 'counts': [0, 1152, 1152]}], [[0, 0, 24, 0, 24, 48], 'x']])
def test_a_segmentation_that_is_none_is_a_sentence_and_no_traceback(segmentation, tmp_path):
    data = two_files(tmp_path, segmentation)
    shutil.copy(tmp_path/'train'/'1.jpg', tmp_path/'val'/'1.jpg')
    photos = CocoPhotos(data, tmp_path/'train')
    assert len(fingerprints_of(photos)) == 1
    with pytest.raises(InputError):
        photos.truth(0)

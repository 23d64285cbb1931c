"""Folders as people have them, each of a kind that was once misread.

Those of ../shared/cases are read where that folder is there; small ones of the same kind, made
here, are always read."""
import csv
import io
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin, features

from wsss_nb.checks import examine, new_folder, summarise
from wsss_nb.datasets import describe_photos
from wsss_nb.files import InputError
from wsss_nb.photos import image_size, read_image, read_mask, write_mask
from wsss_nb.voc import VOC_CLASSES, VOCFolder

GIVEN = Path(__file__).parents[2]/'shared'/'cases'
MADE: dict[str, Callable[[Path], None]] = {}   # case -> makes a folder of its kind


def made(function: Callable[[Path], None]) -> Callable[[Path], None]:
    "Note a function under the case that its name says."
    MADE[function.__name__] = function
    return function


def drawing(tag: str) -> Image.Image:
    "A photo of 24 x 16 pixels, of a dog or a cat."
    photo = Image.new('RGB', (24, 16), 'olive')
    photo.paste('sienna' if tag == 'dog' else 'black', (6, 4, 18, 12))
    return photo


def labels(index: int) -> np.ndarray:
    "The mask of such a photo."
    mask = np.zeros((16, 24), np.uint8)
    mask[4:12, 6:18] = index
    return mask


def own_photos(root: Path, count: int = 6, suffix: str = '.png') -> dict[str, str]:
    "Write dogs and cats in turn, with their table: id -> tag."
    (root/'images').mkdir(parents=True)
    tags = {f'p{i}': ('dog', 'cat')[i % 2] for i in range(count)}
    for id, tag in tags.items():
        drawing(tag).save(root/'images'/f'{id}{suffix}')
    write_table(root, {f'{id}{suffix}': tag for id, tag in tags.items()})
    return tags


def write_table(root: Path, tags: dict[str, str]) -> None:
    text = io.StringIO(newline='')
    csv.writer(text).writerows([('file', 'tags'), *tags.items()])
    (root/'tags.csv').write_bytes(text.getvalue().encode('utf-8-sig'))


def write_masks(root: Path, tags: dict[str, str], numbers: dict[str, int]) -> None:
    (root/'masks').mkdir()
    for id, tag in tags.items():
        write_mask(root/'masks'/f'{id}.png', labels(numbers[tag]))


def write_xml(path: Path, tag: str, space: str = '') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'<annotation{space}><object><name>{tag}</name></object></annotation>')


def voc_folder(root: Path, tags: dict[str, str], suffix: str = '.xml', space: str = '') -> None:
    "Write photos in VOC's layout."
    lists = root/'ImageSets'/'Segmentation'
    for folder in (root/'JPEGImages', lists):
        folder.mkdir(parents=True)
    for id, tag in tags.items():
        drawing(tag).save(root/'JPEGImages'/f'{id}.png')
        write_xml(root/'Annotations'/f'{id}{suffix}', tag, space)
    (lists/'train.txt').write_text('\n'.join(tags))


def both(name: str):
    "Run a test on the folder made here, and on the one that is given."
    def decorate(test):
        return pytest.mark.parametrize('case', [(name, 'made'), (name, 'given')],
                                       indirect=True, ids='-'.join)(test)
    return decorate


@pytest.fixture
def case(request, tmp_path) -> Path:
    name, source = request.param
    if source == 'given':
        if not (GIVEN/name).is_dir():
            pytest.skip(f'there is no {GIVEN/name}')
        return GIVEN/name
    MADE[name](tmp_path/name)
    return tmp_path/name


def said(root: Path) -> str:
    "What `wsss_nb check` prints."
    lines, faults = describe_photos(root)
    return '\n'.join([*lines, *map(str, faults)])


@made
def B01(root):
    tags = own_photos(root)
    write_masks(root, tags, {'cat': 1, 'dog': 2})


@both('B01')
def test_masks_of_an_earlier_run_are_not_taken_for_voc(case, tmp_path):
    with pytest.raises(InputError, match='masks: no list says which class a number .* is'):
        VOCFolder(case, 'train')
    assert 'no list says' in said(case)


def test_masks_of_an_earlier_run_mean_the_same_with_their_list(tmp_path):
    B01(tmp_path/'mine')
    (tmp_path/'mine'/'masks'/'classes.txt').write_text('cat\ndog\n')   # as `export` writes it
    photos = VOCFolder(tmp_path/'mine', 'train')
    assert photos.classes == ('cat', 'dog')
    assert examine(tmp_path/'mine', progress=False).faults == []
    for photo in photos:
        assert set(np.unique(photo.mask)) == {0, int(photo.labels.argmax()) + 1}


@made
def B02(root):
    tags = own_photos(root)
    write_masks(root, tags, {'cat': 255, 'dog': 255})
    (root/'classes.txt').write_text('dog\ncat')


@both('B02')
def test_masks_of_0_and_255(case):
    fault, = examine(case, progress=False).faults
    assert 'the mask has none of the tagged classes, such as' in fault.problem
    assert 'its mask holds 0, 255' in fault.problem
    assert '1 dog, 2 cat' in fault.remedy


@made
def B04(root):
    tags = own_photos(root)
    write_masks(root, tags, {'cat': 1, 'dog': 2})
    (root/'classes.txt').write_text('_background_\ncat\ndog\n')


@both('B04')
def test_a_list_of_labelme_begins_with_background(case):
    assert VOCFolder(case, 'train').classes == ('cat', 'dog')
    assert examine(case, progress=False).faults == []
    assert "classes.txt: '_background_' is no class" in said(case)


@made
def B05(root):
    own_photos(root)
    (root/'README.roboflow.txt').write_text('pets\n====\nThe data set has 6 images.\n')


@both('B05')
def test_a_readme_is_no_split(case):
    assert VOCFolder.splits(case) == ['train']
    assert len(VOCFolder(case, 'train')) == 6
    assert "not read, .txt: 1, such as 'README.roboflow.txt'" in said(case)
    with pytest.raises(InputError, match="no split 'README.roboflow', but 'train'; no line of thi"):
        VOCFolder(case, 'README.roboflow')


@made
def B06(root):
    for i in range(6):
        tag = ('dog', 'cat')[i % 2]
        (root/'images'/tag).mkdir(parents=True, exist_ok=True)
        drawing(tag).save(root/'images'/tag/f'{i}.png')
    (root/'tags.csv').write_text('file,tags\n')


@both('B06')
def test_a_folder_for_each_class(case):
    photos = VOCFolder(case, 'train')
    assert photos.classes == ('cat', 'dog') and len(photos) == 6
    for i, id in enumerate(photos.ids):
        assert photos.path(i).parent.name == photos.classes[int(photos.tags(i).argmax())]
        assert id == f'{photos.path(i).parent.name}_{photos.path(i).stem}'
    assert examine(case, progress=False).faults == []
    with pytest.raises(InputError, match='have their tags already, from XML or from folders'):
        new_folder(case)


@made
def B08(root):
    own_photos(root, 1)
    drawing('dog').save(root/'images'/' q.png')
    write_table(root, {' q.png': 'dog', 'p0.png': 'cat'})


@both('B08')
def test_a_name_with_a_blank_in_front(case):
    assert len(VOCFolder(case, 'train')) == 2
    assert examine(case, progress=False).faults == []


@made
def B10(root):
    voc_folder(root, {f'p{i}': ('dog', 'cat')[i % 2] for i in range(6)}, suffix='.XML')


@made
def B16(root):
    tags = {f'p{i}': ('dog', 'cat')[i % 2] for i in range(6)}
    voc_folder(root, tags, space=' xmlns="http://example.org/voc"')


@pytest.mark.parametrize('case', [
    ('B10', 'made'), ('B10', 'given'), ('B16', 'made'), ('B16', 'given')],
    indirect=True, ids='-'.join)
def test_xml_in_capitals_or_with_a_namespace(case):
    photos = VOCFolder(case, 'train')
    assert photos.classes == VOC_CLASSES and len(photos) == 6
    assert photos.tags(0).nonzero().tolist() == [[VOC_CLASSES.index('dog')]]
    assert examine(case, progress=False).faults == []


@made
def B12(root):
    tags = own_photos(root, 12)
    cells = ('dog, person', 'dog,cat', 'cat')
    write_table(root, {f'{id}.png': cells[i % 3] for i, id in enumerate(tags)})


@both('B12')
def test_tags_with_a_comma_are_noted(case):
    text = said(case)
    for tag in ('dog, person', 'dog,cat'):
        assert f"the tag '{tag}' (4, such as" in text
    assert "write ';' between them" in text


@made
def B13(root):
    own_photos(root, 2)
    for i, suffix in enumerate(('.webp', '.tif', '.bmp', '.gif')):
        drawing('cat').save(root/'images'/f'q{i}{suffix}')
    heic = b'\0\0\0\x18ftypheic\0\0\0\0mif1heic'
    (root/'images'/'phone.HEIC').write_bytes(heic.ljust(99, b'\0'))


@both('B13')
def test_photos_of_other_formats(case, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pillow_heif', None)   # as if it were not installed
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    summary = summarise(case)
    photos = [path for path in (case/'images').iterdir()]
    assert summary.images == len(photos) - 1   # all but the GIF
    text = str(summary)
    assert 'not read in images, .gif: 1' in text
    assert "HEIC photos: 1, such as 'phone.HEIC'; pillow-heif, which reads them, is not" in text
    for path in photos:
        if path.suffix == '.HEIC':
            with pytest.raises(InputError, match='HEIC photo, and pillow-heif.*pip install'):
                read_image(path)
        else:
            assert read_image(path).size == image_size(path)


@made
def B14(root):
    for i, split in enumerate(('train', 'train', 'valid', 'test')):
        tag = ('dog', 'cat')[i % 2]
        write_xml(root/split/f'img_{i}.xml', tag)
        drawing(tag).save(root/split/f'img_{i}.png')
    (root/'train'/'_classes.csv').write_text('0, dog')


@both('B14')
def test_photos_and_xml_side_by_side(case):
    photos = VOCFolder(case, 'train')
    inside = [path for path in (case/'train').iterdir() if path.suffix == '.xml']
    assert len(photos) == len(inside)
    assert all(photos.tags(i).sum() == 1 for i in range(len(photos)))
    assert 'dog' in photos.classes and len(photos.classes) <= 2
    assert examine(case, progress=False).faults == []


def test_photos_and_xml_side_by_side_with_other_splits(tmp_path):
    B14(tmp_path)
    assert VOCFolder.splits(tmp_path) == ['train', 'val', 'test']
    assert VOCFolder(tmp_path, 'val').ids == ['img_2']
    assert VOCFolder(tmp_path, 'test').classes == ('cat', 'dog')
    assert "not read in train, .csv: 1, such as '_classes.csv'" in said(tmp_path)


@made
def B15(root):
    voc_folder(root, {f'p{i}': ('helmet', 'Helmet', 'vest')[i % 3] for i in range(12)})


@both('B15')
def test_notes_on_tags_in_xml(case):
    text = said(case)
    assert "looks like 'Helmet'" in text or "looks like 'helmet'" in text
    assert 'few photos of a class' in text


@made
def B17(root):
    own_photos(root, 3, '.jpg')
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    good = exif.tobytes()
    for i, broken in enumerate((good, good + b'\0\0rest', good[:-4] + b'\xff\xff\xff\xff')):
        drawing('dog').save(root/'images'/f'p{i}.jpg', exif=broken)


@both('B17')
def test_broken_exif_still_turns_the_photo(case):
    for path in sorted((case/'images').iterdir()):
        with Image.open(path) as image:
            assert read_image(path).size == image_size(path) == image.size[::-1]
    assert examine(case, progress=False).faults == []


@made
def M02(root):
    own_photos(root, 4)
    text = 'file,tags;\r\np0.png,;dog\r\np1.png,;cat\r\n"p2.png,dog;cat"\r\np3.png,;dog\r\n'
    (root/'tags.csv').write_bytes(text.encode('utf-16'))


@both('M02')
def test_tables_of_a_german_excel(case):
    photos = VOCFolder(case, 'train')
    assert photos.classes == ('cat', 'dog')
    assert [photos.tags(i).tolist() for i in range(4)] == [[0, 1], [1, 0], [1, 1], [0, 1]]


@made
def M04(root):
    own_photos(root, 0)
    photo = drawing('dog')
    more = {'save_all': True, 'append_images': [drawing('cat')]}
    photo.save(root/'images'/'p0.jpg', 'MPO', **more)
    photo.convert('CMYK').save(root/'images'/'p1.jpg', progressive=True)
    text = PngImagePlugin.PngInfo()
    text.add_text('history', 'x' * 3_000_000, zip=True)
    photo.save(root/'images'/'p2.png', pnginfo=text)
    photo.save(root/'images'/'p3.jpg', 'WEBP', **more)
    photo.save(root/'images'/'p4.jpg', 'GIF', **more)
    tags = {f'p{i}.jpg': ('dog', 'cat')[i % 2] for i in (0, 1, 3, 4)}
    if features.check('avif'):
        photo.save(root/'images'/'p5.jpg', 'AVIF')
        tags['p5.jpg'] = 'dog'
    write_table(root, tags | {'p2.png': 'dog'})


@both('M04')
def test_odd_photos_under_usual_names(case):
    photos = VOCFolder(case, 'train')
    for i in range(len(photos)):
        assert photos.image(i).size == image_size(photos.path(i))
    assert examine(case, progress=False).faults == []


@made
def M10(root):
    tags = own_photos(root, 2, '.jpg')
    write_masks(root, tags, {'cat': 1, 'dog': 2})
    (root/'classes.txt').write_text('cat\ndog')
    for id, orientation in (('p0', 3), ('p1', 6)):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        drawing(tags[id]).save(root/'images'/f'{id}.jpg', exif=exif)


@both('M10')
def test_masks_of_photos_that_exif_turns(case):
    found = examine(case, progress=False)
    turned = [fault for fault in found.faults if 'EXIF' in fault.problem]
    assert turned and len(turned) == len(found.faults)
    assert 'the mask fits the photo as it lay before' in turned[0].problem
    assert turned[0].remedy.startswith('Turn the mask')
    assert any('EXIF' in note and 'upright' in note for note in found.notes)   # half a turn


@made
def M14(root):
    tags = own_photos(root, 4)
    (root/'classes.txt').write_text('cat\ndog')
    (root/'masks').mkdir()
    np.save(root/'masks'/'p0.npy', labels(2).astype(np.int64))
    Image.fromarray(labels(1)).save(root/'masks'/'p1.jpg')
    write_mask(root/'masks'/'p2_mask.png', labels(2))
    Image.fromarray(labels(1)).save(root/'masks'/'p3.bmp')
    assert tags['p3'] == 'cat'


@both('M14')
def test_masks_of_other_formats(case):
    found = examine(case, progress=False)
    fault, = found.faults
    assert fault.path.name == 'p1.jpg'
    assert 'changes the numbers in a mask' in fault.problem
    assert "such as 'p2_mask'; the mask of 'p2' must have its name" in said(case)
    for name in ('p0.npy', 'p3.bmp'):
        mask = read_mask(case/'masks'/name, 2)
        assert mask.dtype == np.uint8 and mask.any()


@made
def M12(root):
    own_photos(root, 4)


@both('M12')
def test_photos_without_masks(case):
    assert not VOCFolder(case, 'train').has_truth
    assert examine(case, progress=False).faults == []

"Photos from anywhere: which are meant, what is refused before anything is written, going on."
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import untrained_run

from wsss_nb.files import InputError, read_json
from wsss_nb.new_photos import find_photos, photo_sizes, predict_photos, said_of_masks
from wsss_nb.photos import read_image, read_mask, write_mask
from wsss_nb.prediction import PredictionSettings, predict_labels
from wsss_nb.run import Run
from wsss_nb.shapes import make_shapes
from wsss_nb.work import quick

ONCE = PredictionSettings(scales=(1.,))


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Run:
    root = tmp_path_factory.mktemp('run')
    return untrained_run(root/'run', make_shapes(root/'shapes', train=2, val=1, size=48))


@pytest.fixture
def folder(tmp_path) -> Path:
    "A folder of two photos, one of them turned, and of what is no photo."
    folder = tmp_path/'photos'
    (folder/'inside').mkdir(parents=True)
    pixels = np.random.default_rng(1).integers(0, 255, (6, 10, 3), np.uint8)
    image = Image.fromarray(pixels).resize((100, 60))
    turned = Image.Exif()
    turned[0x0112] = 6
    image.save(folder/'turned.jpg', exif=turned)
    image.convert('RGBA').save(folder/'Käfer 1.PNG')
    image.save(folder/'.hidden.jpg')
    image.save(folder/'inside'/'deeper.jpg')
    (folder/'notes.txt').write_text('no photo')
    return folder


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def test_the_photos_of_a_folder_and_single_ones_each_once(folder):
    found = find_photos([folder, folder/'turned.jpg', folder/'inside'/'deeper.jpg'])
    assert list(found) == ['Käfer 1', 'turned', 'deeper']
    assert photo_sizes(found) == {'Käfer 1': (100, 60), 'turned': (60, 100), 'deeper': (100, 60)}


def test_all_that_is_missing_empty_or_named_alike_is_told_at_once(folder, tmp_path):
    (tmp_path/'empty').mkdir()
    shutil.copy(folder/'turned.jpg', tmp_path/'turned.png')
    with pytest.raises(InputError) as told:
        find_photos([folder, tmp_path/'nowhere', tmp_path/'empty', tmp_path/'turned.png'])
    said = str(told.value)
    assert 'nowhere: there is no such photo or folder' in said
    assert 'empty: there are no photos in this folder' in said
    assert 'turned.png: its mask would have the same name as that of' in said
    assert 'Rename one of them' in said and len(told.value.args) == 3


def test_every_photo_gets_its_mask_at_its_own_upright_size(run, folder, tmp_path):
    photos = find_photos([folder])
    sizes = predict_photos(run, photos, tmp_path/'out', coco=True, workers=1)
    for name, photo in photos.items():
        labels = read_mask(tmp_path/'out'/'masks'/f'{name}.png', len(run.classes), sizes[name])
        network = quick(run.network('segmenter'), run.machine.precision)
        assert np.array_equal(labels, predict_labels(network, read_image(photo), ONCE))
        with Image.open(tmp_path/'out'/'overlays'/f'{name}.jpg') as overlay:
            assert overlay.width == sizes[name][0] and overlay.height >= sizes[name][1]
    asked = read_json(tmp_path/'out'/'predictions.json')
    assert list(asked['photos']) == list(photos) and asked['classes'] == list(run.classes)


def test_without_overlays_there_are_none(run, folder, tmp_path):
    predict_photos(run, find_photos([folder]), tmp_path/'out', overlays=False, workers=0)
    assert not list((tmp_path/'out'/'overlays').iterdir())
    assert len(list((tmp_path/'out'/'masks').iterdir())) == 2
    assert not (tmp_path/'out'/'coco.json').exists()


def test_regions_are_what_pycocotools_reads(run, folder, tmp_path):
    from pycocotools.coco import COCO
    predict_photos(run, find_photos([folder]), tmp_path/'out', coco=True, workers=0)
    regions = COCO(tmp_path/'out'/'coco.json')
    categories = regions.loadCats(regions.getCatIds())
    assert [category['name'] for category in categories] == list(run.classes)
    assert regions.anns
    for image in regions.imgs.values():
        name = Path(image['file_name']).stem
        labels = read_mask(tmp_path/'out'/'masks'/f'{name}.png')
        drawn = np.zeros_like(labels)
        for region in regions.imgToAnns[image['id']]:
            drawn[regions.annToMask(region) > 0] = region['category_id']
        assert np.array_equal(drawn, labels)


def test_it_goes_on_and_refuses_another_way_into_the_same_folder(run, folder, tmp_path):
    photos = find_photos([folder])
    predict_photos(run, photos, tmp_path/'out', workers=0)
    before = contents(tmp_path/'out')
    predict_photos(run, photos, tmp_path/'out', workers=0)
    for words in (dict(prediction=PredictionSettings(mirror=True)),
                  dict(photos={'turned': photos['turned']})):
        given = dict(photos=photos, prediction=None) | words
        with pytest.raises(InputError, match='are not those asked for'):
            predict_photos(run, out=tmp_path/'out', workers=0, **given)
    assert contents(tmp_path/'out') == before


def test_a_segmenter_that_was_trained_anew_is_another_one(run, folder, tmp_path):
    photos = find_photos([folder])
    predict_photos(run, photos, tmp_path/'out', workers=0)
    data = Path(run.config.data)
    other = untrained_run(tmp_path/'other', data, 'efficientnet_lite0')
    with pytest.raises(InputError, match='run, segmenter are not those asked for'):
        predict_photos(other, photos, tmp_path/'out', workers=0)


def test_what_is_wrong_is_told_before_anything_is_written(run, folder, tmp_path):
    out = tmp_path/'out'
    photos = find_photos([folder])
    (folder/'cut.jpg').write_bytes((folder/'turned.jpg').read_bytes()[:300])
    (folder/'text.png').write_text('text')
    with pytest.raises(InputError, match='(?s)cut.jpg.*text.png'):
        predict_photos(run, find_photos([folder]), out, workers=0)
    with pytest.raises(InputError, match='there is something else here'):
        predict_photos(run, photos, folder, workers=0)
    large = tmp_path/'large.png'
    Image.new('RGB', (2000, 1500)).save(large)
    crf = PredictionSettings(crf=True, longest=4000)
    with pytest.raises(InputError, match='large.png: a dense CRF.*smaller size .--longest'):
        predict_photos(run, find_photos([large]), out, crf, workers=0)
    assert not out.exists()


def test_a_run_without_a_segmenter_is_told(run, folder, tmp_path):
    untrained_run(tmp_path/'run', Path(run.config.data))
    (tmp_path/'run'/'segmenter'/'model.safetensors').unlink()
    fresh = Run(replace(run.config, out=tmp_path/'run'))
    said = 'segmenter/model.safetensors: .* not there yet.*`wsss_nb run`'
    with pytest.raises(InputError, match=said):
        predict_photos(fresh, find_photos([folder]), tmp_path/'out', workers=0)
    assert not (tmp_path/'out').exists()


WRONG = {
    'file,tags\nturned.jpg,cross\n': 'no line for Käfer 1.PNG.*without tags, if none',
    'file,tags\nturned.jpg,cros\nKäfer 1.PNG,\n': "'cros' of 'turned.jpg' is not in the class list",
    'file,tags\nturned.jpg,cross\nturned,ring\nKäfer 1.PNG,\n': "'turned' is there twice",
    'name,labels\nturned.jpg,cross\n': 'file,tags',
}


@pytest.mark.parametrize('table', WRONG)
def test_a_table_of_tags_that_is_wrong_is_told_before_anything_is_written(
        table, run, folder, tmp_path):
    (tmp_path/'known.csv').write_text(table)
    found = find_photos([folder])
    with pytest.raises(InputError, match=f'known.csv: .*{WRONG[table]}'):
        predict_photos(run, found, tmp_path/'out', ONCE, workers=0, tags=tmp_path/'known.csv')
    assert not (tmp_path/'out').exists()


def test_masks_with_other_tags_are_other_masks(run, folder, tmp_path):
    found = find_photos([folder])
    table = tmp_path/'known.csv'
    table.write_text('file,tags\nturned,ring;cross\nKäfer 1.PNG,\n')
    predict_photos(run, found, tmp_path/'out', ONCE, workers=0, tags=table)
    places = {run.classes.index(name) + 1 for name in ('ring', 'cross')}
    assert set(np.unique(read_mask(tmp_path/'out'/'masks'/'turned.png'))) <= {0, *places}
    assert not read_mask(tmp_path/'out'/'masks'/'Käfer 1.png').any()
    with pytest.raises(InputError, match='photos are not those asked for'):
        predict_photos(run, found, tmp_path/'out', ONCE, workers=0)


def test_masks_keep_to_what_the_classifier_finds_likely(run, folder, tmp_path):
    found = find_photos([folder])
    free = ONCE
    predict_photos(run, found, tmp_path/'free', free, workers=0)
    strict = replace(ONCE, likely=.99)    # an untrained classifier is sure of nothing
    predict_photos(run, found, tmp_path/'out', strict, workers=1)
    record = read_json(tmp_path/'out'/'predictions.json')
    for name, photo in record['photos'].items():
        assert len(photo['labels']) == 2 and photo['labels'][0] == 0
        labels = read_mask(tmp_path/'out'/'masks'/f'{name}.png')
        assert set(np.unique(labels)) <= set(photo['labels'])
    assert 'labels' not in read_json(tmp_path/'free'/'predictions.json')['photos']['turned']


def test_masks_of_nothing_but_background_are_named(tmp_path):
    names = list('abcdefgh')
    (tmp_path/'masks').mkdir()
    for name in names:
        write_mask(tmp_path/'masks'/f'{name}.png', np.full((4, 6), name == 'c', np.uint8))
    said = said_of_masks(Path('my_run'), tmp_path, names, False, False)
    first, last = said.splitlines()
    assert first.endswith('masks of 8 photos, the photos under them in overlays')
    assert last.startswith('7 of 8 masks show nothing but background: a, b, d, e, f, and 2 more. ')
    assert 'wsss_nb contact my_run --from pseudo' in last and '--likely' not in last
    held_back = said_of_masks(Path('my_run'), tmp_path, names, True, True)
    assert 'try it without --tags and --likely' in held_back and 'coco.json' in held_back
    assert 'background' not in said_of_masks(Path('my_run'), tmp_path, ['c'], False, False)


def test_a_photo_that_was_replaced_is_another_one(run, folder, tmp_path):
    photos = find_photos([folder])
    predict_photos(run, photos, tmp_path/'out', workers=0)
    path = next(path for path in photos.values() if path.suffix.lower() == '.png')
    Image.new('RGB', Image.open(path).size, 'purple').save(path)
    with pytest.raises(InputError, match='photos are not those asked for'):
        predict_photos(run, photos, tmp_path/'out', workers=0)

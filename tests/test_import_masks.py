"Masks that come back from an annotation tool: as they went, checked first, measuring, teaching."
import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_export import with_masks
from untrained import untrained_run

from wsss_nb.best_masks import finish_of
from wsss_nb.cli import main
from wsss_nb.corrections import CORRECTED, teaching_masks
from wsss_nb.export import SMALLEST, export
from wsss_nb.files import InputError, read_json, write_json
from wsss_nb.import_masks import import_masks
from wsss_nb.photos import colour, palette, read_mask, write_mask
from wsss_nb.pipeline import finished_files, train_network
from wsss_nb.run import Run, start_run


@pytest.fixture
def run(tmp_path) -> Run:
    return with_masks(tmp_path)


def sent(run: Run, form: str) -> Path:
    "What was exported."
    folder = run.root.parent/form
    export(run, form, folder)
    return folder


def corrected(run: Run) -> dict[str, np.ndarray]:
    return {path.stem: read_mask(path) for path in (run.root/CORRECTED).glob('*.png')}


def truths(run: Run) -> dict[str, np.ndarray]:
    found = {}
    for photos in run.splits.values():
        for i, name in enumerate(photos.ids):
            found[name] = photos.truth(i)
    return found


@pytest.mark.parametrize('form', ('png', 'coco', 'labelme'))
def test_what_nobody_has_changed_does_not_count(run, form):
    found = import_masks(run, sent(run, form))
    assert len(found.untouched) == 5 and not found.new and not (run.root/CORRECTED).exists()


@pytest.mark.parametrize('smallest, is_dropped', (
    (0., False), (.01, False), (.2, False), (0., True), (SMALLEST, True)))
def test_polygons_without_small_regions_are_known_again(run, smallest, is_dropped):
    folder = run.root.parent/'polygons'
    export(run, 'labelme', folder, smallest=smallest)
    if is_dropped:                       # by a tool that keeps only what it knows
        for path in folder.glob('*.json'):
            content = json.loads(path.read_text())
            assert content.pop('smallest') == smallest
            path.write_text(json.dumps(content))
    assert len(import_masks(run, folder).untouched) == 5


@pytest.mark.parametrize('form', ('png', 'coco', 'labelme'))
def test_masks_come_back_as_they_went(run, form):
    "To the pixel as PNG and run lengths; as polygons, 1 pixel in 100 may differ."
    found = import_masks(run, sent(run, form), all=True)
    assert len(found.new) == 5 and found.teaching == list(run.photos.ids)
    for name, labels in corrected(run).items():
        wanted = truths(run)[name]
        if form != 'png':
            wanted = np.where(wanted == 255, 0, wanted)
        assert (labels != wanted).mean() <= (.01 if form == 'labelme' else 0)


def test_cvat_in_its_three_ways(run):
    folder = sent(run, 'png')
    coco = sent(run, 'coco')/'annotations.json'
    names = run.classes
    lines = ['# label:color_rgb:parts:actions', 'background:0,0,0::', 'ignore:224,224,192::']
    for number, name in enumerate(names, 1):
        lines.append(f"{name}:{','.join(map(str, palette()[number]))}::")
    cvat = run.root.parent/'cvat'
    (cvat/'SegmentationClass').mkdir(parents=True)
    (cvat/'labelmap.txt').write_text('\n'.join(lines))
    for path in (folder/'masks').glob('*.png'):
        Image.fromarray(colour(read_mask(path))).save(cvat/'SegmentationClass'/path.name)
    import_masks(run, cvat, all=True)
    assert all((labels == truths(run)[name]).all() for name, labels in corrected(run).items())
    shutil.rmtree(run.root/CORRECTED)

    name = run.photos.ids[0]
    height, width = truths(run)[name].shape
    xml = run.root.parent/'annotations.xml'
    xml.write_text(
        f'<annotations><version>1.1</version><image id="0" name="{name}.jpg" width="{width}" '
        f'height="{height}"><polygon label="{names[1]}" points="2,3;9,3;9,8;2,8" z_order="0"/>'
        f'<mask label="{names[0]}" rle="0,4" left="4" top="5" width="2" height="2" z_order="1"/>'
        '</image></annotations>')
    assert import_masks(run, xml).new == [name]
    wanted = np.zeros((height, width), np.uint8)
    wanted[3:9, 2:10] = 2
    wanted[5:7, 4:6] = 1
    assert (corrected(run)[name] == wanted).all()
    shutil.rmtree(run.root/CORRECTED)

    inside = run.root.parent/'coco1'/'annotations'      # as CVAT's COCO 1.0 has it
    inside.mkdir(parents=True)
    shutil.copy(coco, inside/'instances_default.json')
    assert len(import_masks(run, inside.parent, all=True).new) == 5


def test_shapes_of_labelme(run):
    folder = sent(run, 'labelme')
    name = run.photos.ids[0]
    content = read_json(folder/f'{name}.json')
    pixels = io.BytesIO()
    Image.fromarray(np.array([[True, False], [True, True]])).save(pixels, 'PNG')
    first, second = run.classes[:2]
    content['shapes'] = [
        {'label': first, 'shape_type': 'rectangle', 'points': [[1, 1], [6, 5]]},
        {'label': second, 'shape_type': 'circle', 'points': [[20, 20], [20, 24]]},
        {'label': '__ignore__', 'shape_type': 'mask', 'points': [[2, 2], [4, 4]],
         'mask': base64.b64encode(pixels.getvalue()).decode()}]
    write_json(folder/f'{name}.json', content)
    assert import_masks(run, folder).new == [name]
    labels = corrected(run)[name]
    assert (labels[1:6, 1:7] == 1).sum() == 27 and labels[2:4, 2:4].tolist() == [[255, 1],
                                                                               [255, 255]]
    assert abs((labels == 2).sum() - np.pi * 4.5 ** 2) < 8


def changed(folder: Path, name: str, **entries) -> None:
    "Change what a LabelMe file says."
    path = folder/f'{name}.json'
    write_json(path, read_json(path) | entries)


def shape(**entries) -> dict:
    return {'label': 'ring', 'shape_type': 'polygon', 'points': [[0, 0], [5, 0], [5, 5]]} | entries


@pytest.mark.parametrize('entries, said', [
    ({'imagePath': 'elsewhere.jpg'}, "no photo of this run is called 'elsewhere.jpg'"),
    ({'imageWidth': 7}, 'it is of a photo of 7 x'),
    ({'shapes': [shape(label='dog')]}, "'dog' is no class of this run; they are ring"),
    ({'shapes': [shape(points=[[0, 0], [5, 900], [5, 5]])]}, 'outside of the photo'),
    ({'shapes': [shape(points=[[0, 0], [5, 5]])]}, 'a polygon has 2 points, and needs 3'),
    ({'shapes': [shape(points=[[0, 0], ['x', 5], [1, 1]])]}, 'corners that are no numbers'),
    ({'shapes': [shape(shape_type='line')]}, "a shape 'line' with 3 points encloses no region"),
    ({'shapes': [shape(shape_type='mask', mask='%%')]}, 'is broken'),
    ({'shapes': [{}]}, 'is broken'),
])
def test_what_is_wrong_is_told_before_anything_is_written(run, entries, said):
    folder = sent(run, 'labelme')
    changed(folder, run.photos.ids[2], shapes=[shape()])    # one that would be fine
    changed(folder, run.photos.ids[0], **entries)
    before = sorted(run.root.rglob('*'))
    with pytest.raises(InputError) as refused:
        import_masks(run, folder)
    assert said in str(refused.value)
    assert sorted(run.root.rglob('*')) == before


def test_two_masks_of_one_photo(run):
    folder = sent(run, 'labelme')
    name = run.photos.ids[0]
    shutil.copy(folder/f'{name}.json', folder/'again.json')
    with pytest.raises(InputError, match=f"'{name}' has a second mask, beside"):
        import_masks(run, folder)


def test_all_that_is_wrong_is_told_at_once(run):
    folder = sent(run, 'labelme')
    for name in run.photos.ids:
        changed(folder, name, shapes=[shape(label='dog')])
    with pytest.raises(InputError) as refused:
        import_masks(run, folder)
    assert len(refused.value.args) == 3


def test_files_that_are_none_of_a_tool(run, tmp_path):
    def refused(path: Path, said: str) -> None:
        with pytest.raises(InputError, match=said):
            import_masks(run, path)
    refused(tmp_path/'nowhere', 'there is no such file or folder')
    (tmp_path/'masks.zip').touch()
    refused(tmp_path/'masks.zip', 'an archive has to be unpacked')
    (tmp_path/'empty').mkdir()
    refused(tmp_path/'empty', 'there are no masks here')
    (tmp_path/'broken.json').write_text('{')
    refused(tmp_path/'broken.json', 'the JSON is broken')
    (tmp_path/'other.xml').write_text('<svg/>')
    refused(tmp_path/'other.xml', 'this is no XML of "CVAT for images"')
    folder = sent(run, 'png')
    (folder/'extra.xml').touch()
    refused(folder, 'masks of several kinds here: XML and PNG')
    (folder/'extra.xml').unlink()
    for path in folder.rglob('classes.txt'):
        path.unlink()
    refused(folder, 'nothing says whose numbers the masks hold')
    (folder/'labelmap.txt').write_text('ring:1,2::')
    refused(folder, 'the colour|names no colour')


def one_corrected(run: Run) -> Path:
    "A folder of PNGs in which one mask was corrected: nothing is on the photo."
    folder = sent(run, 'png')
    path = folder/'masks'/f'{run.photos.ids[1]}.png'
    write_mask(path, np.zeros_like(read_mask(path)))
    return folder


def test_they_teach_in_the_place_of_pseudo_masks(run):
    name = run.photos.ids[1]
    (run.root/'segmenter'/'model.safetensors').write_bytes(b'taught by drafts')
    assert teaching_masks(run.root, run.photos.ids) == run.root/'pseudo'
    before = (run.root/'pseudo'/f'{name}.png').read_bytes()
    found = import_masks(run, one_corrected(run))
    assert found.new == found.teaching == [name]
    assert not run.has('segmenter/model.safetensors')
    assert list((run.root/'predictions').iterdir()) == []
    taught = teaching_masks(run.root, run.photos.ids)
    assert taught == run.root/'segmenter'/'masks' and len(list(taught.iterdir())) == 3
    assert not read_mask(taught/f'{name}.png').any()
    assert (run.root/'pseudo'/f'{name}.png').read_bytes() == before


class Seen(Exception):
    "A segmenter was asked to learn."


def test_the_segmenter_is_given_them(run, monkeypatch):
    def train(self, work):
        raise Seen(work.masks)
    monkeypatch.setattr(type(run.system.segmenter), 'train', train)
    with pytest.raises(Seen, match='pseudo$'):
        train_network(run, 'segmenter')
    import_masks(run, one_corrected(run))
    with pytest.raises(Seen, match='segmenter/masks$'):
        train_network(run, 'segmenter')


def test_best_masks_of_corrected_photos_are_the_corrected_ones(run):
    import_masks(run, one_corrected(run))
    name = run.photos.ids[1]
    finish = finish_of(run, run.train_split, [1])
    assert name in finish.true
    assert not read_mask(finish.pseudo/f'{name}.png').any()


def test_a_branch_takes_them_over(run):
    import_masks(run, one_corrected(run))
    names = [path.name for path in finished_files(run) if path.parent.name == CORRECTED]
    assert names == [f'{run.photos.ids[1]}.png']


def test_they_measure_the_corrected_photos_only(run):
    found = import_masks(run, one_corrected(run))
    entry = Run(run.config).metrics[CORRECTED]['round 1']
    assert entry['photos'] == found.new and entry['pseudo'] == found.measured['pseudo']
    assert entry['pseudo']['images'] == entry['predictions']['images'] == 1
    truth = truths(run)[found.new[0]]
    background = (truth == 0).sum() / (truth != 255).sum()
    assert entry['pseudo']['iou']['background'] == pytest.approx(background, abs=.1)


def test_nothing_that_is_there_is_replaced_unasked(run):
    folder = one_corrected(run)
    name = run.photos.ids[1]
    import_masks(run, folder)
    assert import_masks(run, folder).new == []      # although the predictions are taken away
    export(run, 'labelme', run.root.parent/'round 2', 'pseudo')
    assert import_masks(run, run.root.parent/'round 2').new == []
    write_mask(folder/'masks'/f'{name}.png', np.ones_like(truths(run)[name]))
    with pytest.raises(InputError, match='another corrected mask already'):
        import_masks(run, folder)
    assert not corrected(run)[name].any()
    assert import_masks(run, folder, replace=True).new == [name]
    assert corrected(run)[name].all() and 'round 2' in run.metrics[CORRECTED]


def test_what_is_corrected_goes_out_again_as_it_is(run):
    import_masks(run, one_corrected(run))
    write_mask(run.root/'masks'/f'{run.photos.ids[0]}.png', truths(run)[run.photos.ids[0]])
    for photos in run.splits.values():
        for i, name in enumerate(photos.ids):
            write_mask(run.root/'masks'/f'{name}.png', photos.truth(i))
    export(run, 'png', run.root.parent/'again')
    assert not read_mask(run.root.parent/'again'/'masks'/f'{run.photos.ids[1]}.png').any()


def test_the_command(run, capsys):
    folder = one_corrected(run)
    main(['import-masks', str(run.root), str(folder)])
    said = capsys.readouterr().out
    assert 'corrected: 1 mask\n' in said and '4 masks are as they went out' in said
    assert 'on their 1 photo only: mIoU' in said
    with pytest.raises(SystemExit):
        main(['import-masks', str(run.root), str(folder/'nowhere')])
    assert 'there is no such file or folder' in capsys.readouterr().err


def test_pycocotools_reads_what_comes_back(run):
    from pycocotools.coco import COCO
    path = sent(run, 'coco')/'annotations.json'
    read = COCO(str(path))
    content = json.loads(path.read_text())
    for entry in content['annotations']:            # compressed, as pycocotools and CVAT write it
        runs = read.annToRLE(entry)
        entry['segmentation'] = {'size': runs['size'], 'counts': runs['counts'].decode()}
    path.write_text(json.dumps(content))
    assert len(import_masks(run, path).untouched) == 5


@pytest.fixture
def in_folders(tmp_path) -> Run:
    "A run of photos in a folder for each class, whose files are named alike."
    for number, name in enumerate(('cat', 'dog')):
        folder = tmp_path/'data'/'images'/name
        folder.mkdir(parents=True)
        for n in (1, 2):
            Image.new('RGB', (40, 40), (90 * number, 50 * n, 0)).save(folder/f'IMG_{n}.jpg')
    run = untrained_run(tmp_path/'run', tmp_path/'data')
    for name in run.photos.ids:
        mask = np.zeros((40, 40), np.uint8)
        mask[5:20, 5:20] = 1 + name.startswith('dog')
        for folder in ('masks', 'predictions', 'pseudo'):
            write_mask(run.root/folder/f'{name}.png', mask)
    return run


@pytest.mark.parametrize('form', ['png', 'coco', 'labelme'])
def test_photos_of_one_name_in_two_folders_come_back_as_they_went(form, in_folders):
    assert len(import_masks(in_folders, sent(in_folders, form)).untouched) == 4


def test_a_corrected_mask_stays_with_the_photo_of_its_folder(in_folders):
    folder = sent(in_folders, 'labelme')
    for path in folder.glob('*.json'):
        if path.stem != 'cat_IMG_1':
            path.unlink()
    content = read_json(folder/'cat_IMG_1.json')
    content['shapes'][0]['points'] = [[1, 1], [30, 1], [30, 30], [1, 30]]
    for known_as in ('cat_IMG_1.jpg', '../images/cat/IMG_1.jpg', r'C:\photos\cat\IMG_1.jpg'):
        write_json(folder/'cat_IMG_1.json', content | {'imagePath': known_as})
        shutil.rmtree(in_folders.root/CORRECTED, ignore_errors=True)
        in_folders.metrics.pop(CORRECTED, None)
        assert import_masks(in_folders, folder).new == ['cat_IMG_1']


def test_a_list_of_classes_that_begins_with_the_background(in_folders):
    folder = sent(in_folders, 'png')
    (folder/'masks'/'classes.txt').write_text('_background_\ncat\ndog\n')
    found = import_masks(in_folders, folder)
    assert not found.new and len(found.untouched) == 4


def test_corrected_masks_are_not_taken_for_those_of_other_classes_or_photos(in_folders):
    folder = sent(in_folders, 'png')
    mask = read_mask(folder/'masks'/'cat_IMG_1.png')
    mask[30:] = 1
    write_mask(folder/'masks'/'cat_IMG_1.png', mask)
    assert import_masks(in_folders, folder).new == ['cat_IMG_1']
    images = Path(in_folders.config.data)/'images'
    kept = (images/'cat'/'IMG_1.jpg').read_bytes()
    Image.new('RGB', (40, 40), 'purple').save(images/'cat'/'IMG_1.jpg')
    with pytest.raises(InputError, match='corrected/cat_IMG_1.png: a person has corrected'):
        start_run(in_folders.config, accept_changes=True)
    (images/'cat'/'IMG_1.jpg').write_bytes(kept)
    (images/'bird').mkdir()
    Image.new('RGB', (40, 40), 'blue').save(images/'bird'/'IMG_1.jpg')
    with pytest.raises(InputError, match='corrected/cat_IMG_1.png: a person has corrected'):
        start_run(in_folders.config, accept_changes=True)
    assert (in_folders.root/CORRECTED/'cat_IMG_1.png').exists()

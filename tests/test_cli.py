"The command as a stranger uses it: whole runs, Ctrl-C, odd photos, and every mistake that ends in one message and exit code 2."
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from wsss_nb.cli import main
from wsss_nb.shapes import make_shapes
from wsss_nb.photos import write_mask
from wsss_nb.voc import VOCFolder

SMALL = ('--epochs', 2, '--batch-size', 4, '--segmenter-batch-size', 4, '--segmenter-epochs', 2, '--num-words', 16, '--scales', 1, '--predict-scales', 1, '--workers', 1)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=10, val=4, size=64)


@pytest.fixture(scope='session')
def finished(shapes, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('runs')/'finished'
    main(arguments('run', '--data', shapes, '--out', root, *SMALL))
    return root


def arguments(*words) -> list[str]: return [str(word) for word in words]


@pytest.fixture
def command(capsys):
    "Call the command in this process: exit code, and all that it printed."
    def call(*words):
        capsys.readouterr()
        try: main(arguments(*words)); code = 0
        except SystemExit as leaving: code = leaving.code
        shown = capsys.readouterr()
        return code, shown.out + shown.err
    return call


def files(root: Path) -> dict[Path, bytes]: return {p: p.read_bytes() for p in root.rglob('*') if p.is_file()}


def refused(result, *said):
    code, shown = result
    assert code == 2, shown
    assert 'Traceback' not in shown
    for words in said: assert words in shown


def test_a_finished_run_holds_what_the_design_says_and_is_left_alone(command, finished, shapes):
    metrics = json.loads((finished/'metrics.json').read_text())
    for kind, split, images in (('cam', 'train', 10), ('pseudo', 'train', 10), ('segmentation', 'val', 4), ('segmentation', 'train', 10)):
        assert 0 <= metrics[kind][split]['miou'] <= 1 and metrics[kind][split]['images'] == images
        assert list(metrics[kind][split]['iou'])[:2] == ['background', 'ring']
    assert metrics['pseudo']['train']['background'] == metrics['cam']['train']['background']
    assert len(list((finished/'cams').glob('*.npz'))) == len(list((finished/'pseudo').glob('*.png'))) == 10
    assert len(list((finished/'predictions').glob('*.png'))) == 14 and (finished/'figures'/'examples.png').stat().st_size > 1000
    before = files(finished)
    code, shown = command('run', '--data', shapes, '--out', finished, *SMALL)
    assert code == 0 and 'nothing to do' in shown and files(finished) == before


def labelme_mask(content: dict, classes: list[str]) -> np.ndarray:
    "What LabelMe makes of its file: each polygon filled, its outline included."
    picture = Image.new('L', (content['imageWidth'], content['imageHeight']))
    for shape in content['shapes']:
        points = [tuple(point) for point in shape['points']]
        assert shape['shape_type'] == 'polygon' and len(points) > 2
        ImageDraw.Draw(picture).polygon(points, fill=classes.index(shape['label']) + 1, outline=classes.index(shape['label']) + 1)
    return np.asarray(picture)


def test_masks_for_annotation_tools_are_the_masks_of_the_run(command, finished, shapes, tmp_path, monkeypatch):
    root = tmp_path/'run'
    shutil.copytree(finished, root)
    truth = VOCFolder(shapes, 'train')
    for i, name in enumerate(truth.ids): write_mask(root/'pseudo'/f'{name}.png', truth[i].mask)   # with holes and 255, which a run as small as this one may not have
    monkeypatch.chdir(tmp_path)
    for form in ('png', 'labelme'): assert command('export', root, '--format', form, '--out', f'deep/{form}', '--from', 'pseudo')[0] == 0
    classes = json.loads((root/'config.json').read_text())['classes']
    assert (tmp_path/'deep'/'png'/'classes.txt').read_text().split() == classes
    for i, name in enumerate(truth.ids):
        assert (tmp_path/'deep'/'png'/'masks'/f'{name}.png').read_bytes() == (root/'pseudo'/f'{name}.png').read_bytes()
        content = json.loads((tmp_path/'deep'/'labelme'/f'{name}.json').read_text())
        assert (tmp_path/'deep'/'labelme'/content['imagePath']).samefile(truth.image_path(i)) and content['imageData'] is None
        known = truth[i].mask != 255
        assert (labelme_mask(content, classes) == truth[i].mask)[known].mean() > .995
    before = files(tmp_path/'deep')
    refused(command('export', root, '--format', 'png', '--out', 'deep/png'), 'something here already')
    (root/'predictions'/f'{truth.ids[0]}.png').unlink()
    refused(command('export', root, '--format', 'png', '--out', 'other'), f'{truth.ids[0]}.png', 'wsss_nb predict')
    assert files(tmp_path/'deep') == before and not (tmp_path/'other').exists()


def test_the_coco_file_loads_in_pycocotools_and_gives_back_the_masks(command, finished, shapes, tmp_path):
    pycocotools = pytest.importorskip('pycocotools.coco', reason='pycocotools is not installed')
    root, truth = tmp_path/'run', VOCFolder(shapes, 'train')
    shutil.copytree(finished, root)
    for i, name in enumerate(truth.ids): write_mask(root/'pseudo'/f'{name}.png', truth[i].mask)
    assert command('export', root, '--format', 'coco', '--out', tmp_path/'coco', '--from', 'pseudo')[0] == 0
    coco = pycocotools.COCO(tmp_path/'coco'/'annotations.json')
    assert [c['name'] for c in coco.loadCats(coco.getCatIds())] == list(truth.classes)
    photos = {photo['file_name']: photo for photo in coco.loadImgs(coco.getImgIds())}
    several = 0
    for i, name in enumerate(truth.ids):
        photo, again = photos[truth.image_path(i).name], np.zeros_like(truth[i].mask)
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=photo['id']))
        for annotation in annotations:
            region = coco.annToMask(annotation).astype(bool)
            assert region.sum() == annotation['area'] and not again[region].any()
            again[region] = annotation['category_id']
        assert (again == np.where(truth[i].mask == 255, 0, truth[i].mask)).all()
        several += len(annotations) > 1
    assert several     # an annotation is a region, not a photo


def test_from_photos_to_a_contact_sheet(command, shapes, tmp_path):
    root = tmp_path/'mine'
    (root/'images').mkdir(parents=True)
    folder = VOCFolder(shapes, 'train')
    for i in range(6): shutil.copy(folder.image_path(i), root/'images')
    code, shown = command('new', root)
    assert code == 0 and 'lists 6 photos' in shown
    refused(command('check', root), 'has no tags', '6 faults')
    lines = ['file,tags'] + [f"{folder.image_path(i).name},{';'.join(folder.classes[c] for c in folder.labels(i).nonzero())}" for i in range(6)]
    (root/'tags.csv').write_text('\n'.join(lines))
    refused(command('new', root), 'stays as it is')
    assert (root/'tags.csv').read_text() == '\n'.join(lines)
    assert command('check', root)[0] == 0
    code, shown = command('run', '--data', root, '--out', tmp_path/'run', *SMALL)
    assert code == 0 and 'contact.png' in shown, shown
    with Image.open(tmp_path/'run'/'figures'/'contact.png') as sheet: assert sheet.width == 5 * 198 and sheet.height > 2 * 100
    assert command('contact', tmp_path/'run', '--from', 'pseudo', '--photos', 3)[0] == 0 and (tmp_path/'run'/'figures'/'contact-pseudo.png').exists()


def test_another_configuration_is_refused_with_what_differs(command, finished, shapes):
    before = files(finished)
    refused(command('run', '--data', shapes, '--out', finished, *SMALL, '--pooling', 'gap', '--seed', 5),
            "pooling: 'hspp' there, 'gap' asked for", 'seed: 0 there, 5 asked for', 'another folder')
    assert files(finished) == before


def test_evaluate_elsewhere_leaves_the_run_alone(command, finished, tmp_path):
    make_shapes(tmp_path/'other', train=3, val=3, size=64, seed=4)
    before = files(finished)
    code, shown = command('evaluate', finished, '--data', tmp_path/'other', '--split', 'val', '--out', tmp_path/'other.json')
    assert code == 0 and 'CAM' in shown and 'segmentation' in shown and files(finished) == before
    there = json.loads((tmp_path/'other.json').read_text())
    assert there['cam']['val']['images'] == 3 and there['cam']['val']['best_miou'] >= there['cam']['val']['miou']
    refused(command('evaluate', finished, '--data', tmp_path/'other', '--out', tmp_path/'other.json'), 'is there already')
    refused(command('evaluate', finished, '--data', tmp_path/'other', '--split', 'test'), "no split 'test'")


def test_stages_one_by_one_are_the_same_as_all_at_once(command, finished, shapes, tmp_path):
    root = tmp_path/'run'
    assert command('run', '--data', shapes, '--out', root, *SMALL, '--until', 'classify')[0] == 0
    assert not list((root/'cams').iterdir())
    refused(command('refine', root), 'wsss_nb cams')
    refused(command('predict', root), 'wsss_nb segment')
    for stage in ('cams', 'refine', 'segment', 'predict', 'evaluate'): assert command(stage, root)[0] == 0
    ours, theirs = (json.loads((r/'metrics.json').read_text()) for r in (root, finished))
    assert {k: v for k, v in ours.items() if k != 'seconds'} == {k: v for k, v in theirs.items() if k != 'seconds'}


def start(*words, **options) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', 'from wsss_nb.cli import main; main()', *arguments(*words)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, **options)


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes_with_the_same_numbers(finished, shapes, tmp_path):
    words = ('run', '--data', shapes, '--out', tmp_path/'run', *SMALL)
    process = start(*words)
    for _ in range(1200):
        if (tmp_path/'run'/'classifier'/'log.csv').exists(): break
        time.sleep(.02)
    os.killpg(process.pid, signal.SIGINT)   # as a terminal does it: to the workers, too
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and 'the same command goes on' in shown and 'Traceback' not in shown, shown
    assert not (tmp_path/'run'/'figures'/'examples.png').exists()
    process = start(*words)
    assert process.wait(timeout=300) == 0, process.stdout.read()
    ours, theirs = (json.loads((r/'metrics.json').read_text()) for r in (tmp_path/'run', finished))
    for kind in ('cam', 'pseudo', 'segmentation'): assert ours[kind] == theirs[kind]


def test_a_disk_that_takes_no_more_is_one_message_and_loses_nothing(shapes, tmp_path):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))   # as a full disk: writes fail from here on
    process = start('run', '--data', shapes, '--out', tmp_path/'run', *SMALL, preexec_fn=limit)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and 'Traceback' not in shown and 'model.safetensors' in shown, shown
    assert not list((tmp_path/'run').rglob('*.safetensors'))
    assert start('run', '--data', shapes, '--out', tmp_path/'run', *SMALL).wait(timeout=300) == 0


def test_users_mistakes(command, finished, shapes, tmp_path):
    (tmp_path/'file').write_text('')
    (tmp_path/'empty').mkdir()
    torch.save({'layer.weight': torch.zeros(3)}, tmp_path/'other.pth')
    run = ('run', '--data', shapes, '--out', tmp_path/'run', *SMALL)
    refused(command('run', '--data', tmp_path/'nowhere', '--out', tmp_path/'run'), 'nowhere')
    refused(command('run', '--data', tmp_path/'empty', '--out', tmp_path/'run'), 'no data set here')
    refused(command('run', '--data', shapes, '--out', tmp_path/'file'/'run', *SMALL), 'file')
    refused(command('run', '--data', shapes, '--out', shapes, *SMALL), 'something else here')
    refused(command(*run, '--train', 'trian'), "no split 'trian'")
    refused(command(*run, '--backbone', 'resnet7'), 'resnet7')
    refused(command(*run, '--weights', 'missing.pth'), 'missing.pth')
    refused(command(*run[:3], '--out', tmp_path/'weights', *SMALL, '--weights', tmp_path/'other.pth'), 'other.pth: weights of another network')
    refused(command(*run[:3], '--out', tmp_path/'nan', *SMALL, '--learning-rate', '1e18'), 'is no number', 'tenth of the learning rate')
    refused(command('cams', tmp_path/'empty'), 'config.json')
    refused(command('compare', tmp_path/'empty'), 'config.json')
    refused(command('evaluate', finished, '--data', tmp_path/'nowhere'), 'nowhere')
    refused(command('frobnicate'))
    refused(command('run', '--data', shapes))


def test_check_lists_every_fault_and_run_refuses_before_it_makes_anything(command, tmp_path):
    root = make_shapes(tmp_path/'shapes', train=6, val=2, size=64)
    (root/'Annotations'/'train_00000.xml').write_text('<annotation><object>')
    name = root/'Annotations'/'train_00001.xml'; name.write_text(name.read_text().replace('<name>', '<name>un'))
    photo = root/'JPEGImages'/'train_00002.jpg'; photo.write_bytes(photo.read_bytes()[:700])
    write_mask(root/'SegmentationClass'/'train_00003.png', np.full((3, 3), 1, np.uint8))
    Image.open(root/'SegmentationClass'/'train_00004.png').convert('RGB').save(root/'SegmentationClass'/'train_00004.png')
    listed = root/'ImageSets'/'Segmentation'/'train.txt'; listed.write_text(listed.read_text() + '../secret\nmissing\ntrain_00005\n')
    code, shown = command('check', root)
    assert code == 2 and 'Traceback' not in shown
    for words in ('train_00000.xml', 'train_00001.xml', 'train_00002.jpg', 'train_00003.png', 'train_00004.png', '../secret', "'missing'", "'train_00005' is there more than once"):
        assert words in shown, words
    refused(command('run', '--data', root, '--out', tmp_path/'run', *SMALL), 'train_00000.xml')
    assert not (tmp_path/'run').exists()


def test_a_photo_that_is_cut_off_is_named_by_the_process_that_meets_it(command, tmp_path):
    root = make_shapes(tmp_path/'shapes', train=6, val=1, size=64)
    photo = root/'JPEGImages'/'train_00002.jpg'
    whole = photo.read_bytes(); photo.write_bytes(whole[:len(whole) // 2])
    run = ('run', '--data', root, '--out', tmp_path/'run', *SMALL)
    refused(command(*run), 'train_00002.jpg')
    photo.write_bytes(whole)
    assert command(*run)[0] == 0
    maps = tmp_path/'run'/'cams'/'train_00001.npz'; maps.write_bytes(maps.read_bytes()[:50])
    (tmp_path/'run'/'pseudo'/'train_00001.png').unlink()
    refused(command('refine', tmp_path/'run'), 'train_00001.npz', 'is no whole map')


def test_a_finished_run_needs_its_own_photos_no_more(command, tmp_path):
    for name, seed in (('own', 0), ('other', 1)): make_shapes(tmp_path/name, train=4, val=2, size=64, seed=seed)
    assert command('run', '--data', tmp_path/'own', '--out', tmp_path/'run', *SMALL)[0] == 0
    (tmp_path/'own').rename(tmp_path/'gone')
    for words in (('evaluate', tmp_path/'run', '--data', tmp_path/'other'), ('compare', tmp_path/'run')): assert command(*words)[0] == 0, words
    refused(command('cams', tmp_path/'run'), 'own')


def test_settings_that_failed_at_once_can_be_corrected_in_place(command, shapes, tmp_path):
    run = ('run', '--data', shapes, '--out', tmp_path/'run', *SMALL, '--until', 'classify')
    refused(command(*run, '--frozen-stages', 9), 'has 5 stages')
    assert command(*run)[0] == 0
    refused(command(*run, '--frozen-stages', 2), 'frozen_stages: 3 there, 2 asked for')


def test_ones_own_photos_in_every_odd_form_get_masks_of_their_own_size(command, tmp_path):
    root, generator = tmp_path/'mine', np.random.default_rng(0)
    (root/'images').mkdir(parents=True)
    colours = Image.fromarray(generator.integers(0, 255, (40, 60, 3), np.uint8))
    photos = {'cmyk.jpg': colours.convert('CMYK'), 'grey.png': colours.convert('L'), 'alpha.png': colours.convert('RGBA'), 'dot.png': Image.new('RGB', (1, 1)),
              'deep.png': Image.fromarray(generator.integers(0, 65535, (40, 60), np.uint16)), 'wide.png': Image.new('RGB', (10_000, 12), 'red')}
    for name, photo in photos.items(): photo.save(root/'images'/name)
    turned = Image.Exif(); turned[0x0112] = 6
    colours.save(root/'images'/'turned.jpg', exif=turned)
    names = [*photos, 'turned.jpg']
    (root/'tags.csv').write_bytes(('file,tags\r\n' + ''.join(f'{n},{"cat;dog" if i % 2 else "cat"}\r\n' for i, n in enumerate(names))).encode())
    code, shown = command('check', root)
    assert code == 0, shown
    small = [word for word in SMALL]; small[small.index('--batch-size') + 1] = 16   # more than there are photos
    code, shown = command('run', '--data', root, '--out', tmp_path/'run', *small, '--crop', 64, '--longest', 256)
    assert code == 0, shown
    for name in names:
        with Image.open(root/'images'/name) as photo, Image.open(tmp_path/'run'/'predictions'/f'{name[:-4]}.png') as mask:
            assert mask.size == (photo.size[::-1] if name == 'turned.jpg' else photo.size), name
    assert json.loads((tmp_path/'run'/'metrics.json').read_text()).keys() == {'seconds'}   # without masks, nothing is measured
    for refine, background in (('irn', .25), ('affinity', .5)):                            # and the published settings are taken
        code, shown = command('branch', tmp_path/'run', tmp_path/refine, '--refine', refine, '--until', 'refine')
        assert code == 0, shown
        metrics = json.loads((tmp_path/refine/'metrics.json').read_text())
        assert metrics.keys() == {'seconds', 'refiner'} and metrics['refiner']['beta'] == 10
        for name in names:
            with Image.open(tmp_path/'run'/'pseudo'/f'{name[:-4]}.png') as before, Image.open(tmp_path/refine/'pseudo'/f'{name[:-4]}.png') as mask:
                assert mask.size == before.size, name


def test_a_refiner_that_was_interrupted_makes_the_same_masks(finished, tmp_path):
    words = {out: ('branch', finished, tmp_path/out, '--refine', 'irn', '--until', 'refine') for out in ('cut', 'whole')}
    process = start(*words['cut'])
    for _ in range(1200):
        if list((tmp_path/'cut'/'refiner').glob('labels/*.png')): break
        time.sleep(.02)      # and at once: on a fast machine the rest takes seconds
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130 and 'the same command goes on' in shown and 'Traceback' not in shown, shown
    assert not list((tmp_path/'cut'/'pseudo').iterdir())
    for out in words: assert start(*words[out]).wait(timeout=300) == 0
    cut, whole = (files(tmp_path/out/'pseudo') for out in words)
    assert len(whole) == 10 and {p.name: c for p, c in cut.items()} == {p.name: c for p, c in whole.items()}
    assert (tmp_path/'cut'/'instances.json').read_bytes() == (tmp_path/'whole'/'instances.json').read_bytes()


PRESS = """import os, signal
presses = [signal.SIGINT]
os.register_at_fork(after_in_parent=lambda: presses and signal.raise_signal(presses.pop()))
from wsss_nb.cli import main; main()
"""


def test_ctrl_c_while_a_worker_is_made_is_not_lost(finished, tmp_path):
    done = subprocess.run([sys.executable, '-c', PRESS, *arguments('branch', finished, tmp_path/'cut', '--refine', 'irn', '--until', 'refine')],
                          text=True, capture_output=True, timeout=120)
    assert done.returncode == 130 and 'the same command goes on' in done.stderr and 'Traceback' not in done.stderr, done.stderr
    assert not (tmp_path/'cut'/'refiner'/'model.safetensors').exists()


def test_tables_and_figures_in_processes_of_their_own(finished, shapes, tmp_path):
    words = [word for word in SMALL]; words[words.index('--epochs') + 1] = 1
    process = start('table', 'b', '--data', shapes, '--out', tmp_path/'table', *words, '--seeds', 0, '--variants', 'baseline', 'VWL-M')
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and '2 of 2: VWL-M, seed 0' in shown, shown
    with Image.open(tmp_path/'table'/'table_b.png') as plot: assert plot.width > 300
    assert (tmp_path/'table'/'table_b.md').read_text().strip() in shown
    shutil.copytree(finished, tmp_path/'run')
    process = start('figures', tmp_path/'run', '--photos', 6)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and 'not drawn' not in shown, shown
    for name in ('segmentations', 'hardest', 'background', 'faults', 'pooling', 'words', 'curves'):
        with Image.open(tmp_path/'run'/'figures'/f'{name}.png') as figure: assert figure.width > 300
    process = start('report', tmp_path/'run')
    shown, _ = process.communicate(timeout=300)
    page = (tmp_path/'run'/'report.html').read_text()
    assert process.returncode == 0 and str(tmp_path/'run'/'report.html') in shown and page.count('data:image/png') == 7 and str(shapes) not in page, shown

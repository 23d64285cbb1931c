"""The command as a stranger uses it: whole runs, Ctrl-C, odd photos, and every mistake that ends in
one message and exit code 2."""
import json
import os
import re
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
from pycocotools.coco import COCO

from wsss_nb import commands
from wsss_nb.cli import COMMANDS, main, overview
from wsss_nb.photos import write_mask
from wsss_nb.shapes import make_shapes
from wsss_nb.voc import VOCFolder

ROOT = Path(__file__).parents[1]
SMALL = ('--classifier.epochs', 2, '--classifier.batch-size', 4, '--classifier.num-words', 16,
         '--cams.scales', 1, '--segmenter.batch-size', 4, '--segmenter.epochs', 2,
         '--prediction.scales', 1, '--workers', 1)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=10, val=4, size=64)


@pytest.fixture(scope='session')
def finished(shapes, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('runs')/'finished'
    main(arguments('run', '--data', shapes, '--out', root, *SMALL))
    return root


def arguments(*words) -> list[str]:
    return [str(word) for word in words]


@pytest.fixture
def command(capsys):
    "Call the command in this process: exit code, and all that it printed."
    def call(*words):
        capsys.readouterr()
        code = 0
        try:
            main(arguments(*words))
        except SystemExit as leaving:
            code = leaving.code
        shown = capsys.readouterr()
        return code, shown.out + shown.err
    return call


def files(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob('*') if path.is_file()}


def refused(result, *said):
    code, shown = result
    assert code == 2, shown
    assert 'Traceback' not in shown
    for words in said:
        assert words in shown, (words, shown)


def metrics_of(root: Path) -> dict:
    return json.loads((root/'metrics.json').read_text())


def changed(words: tuple, name: str, value) -> list:
    "The options with another value of one."
    found = list(words)
    found[found.index(name) + 1] = value
    return found


def test_the_overview_names_every_command_and_each_has_help(command):
    code, shown = command('--help')
    assert code == 0 and shown.strip() == overview().strip()
    for name in COMMANDS:
        code, shown = command(name, '--help')
        assert code == 0 and f'usage: wsss_nb {name}' in shown, name
    refused(command('chek', 'photos'), "there is no command 'chek'", "did you mean 'check'?")


def without_help(shown: str) -> list[str]:
    "The arguments and options of a help text of which it says nothing."
    entries = []
    for line in shown.splitlines():
        if re.match(r' {1,2}(-|[A-Z[])[^-]|  --[a-z]', line):
            entries.append(line)
        elif line.startswith('     ') and entries:
            entries[-1] += line
    assert entries, shown
    names = r'\(default:.*|\(required\)|\{[^}]*\}|--[\w.-]+'
    return [entry for entry in entries if not re.search('[a-z]{3}', re.sub(names, '', entry))]


LONGER = [('table', letter) for letter in 'abc'] + [('branch', 'run', 'new', 'refiner:irn')]


@pytest.mark.parametrize('words', [*((name,) for name in COMMANDS), *LONGER], ids=' '.join)
def test_every_option_of_every_command_is_explained(command, words):
    code, shown = command(*words, '--help')
    assert code == 0 and without_help(shown) == []


def test_options_are_explained_by_the_comments_behind_them(command, monkeypatch):
    assert 'last stage to do' in command('run', '--help')[1]
    monkeypatch.setattr('wsss_nb.cli.with_help', lambda function: function)
    monkeypatch.setattr(commands.contact, '__doc__', 'Draw.')
    lacking = without_help(command('contact', '--help')[1])
    assert any('--photos' in entry for entry in lacking)


def test_the_list_of_commands_waits_for_nothing():
    code = ('import sys; from wsss_nb.cli import main; main(["--help"]); '
            'print({"torch", "tyro", "fastcore"} & set(sys.modules))')
    shown = subprocess.run([sys.executable, '-c', code], check=True, text=True,
                           capture_output=True).stdout
    assert shown.splitlines()[-1] == 'set()'


def test_help_of_a_run_shows_the_numbers_of_its_system(command):
    _, words = command('run', '--help')
    _, published = command('run', '--system', 'irn-voc', '--help')
    assert '--classifier.epochs' in words and 'default: None' in words
    assert 'resnet50' in published and 'refiner:irn' in published


def test_a_finished_run_holds_what_the_design_says_and_is_left_alone(command, finished, shapes):
    metrics = metrics_of(finished)
    measured = (('cam', 'train', 10), ('pseudo', 'train', 10), ('segmentation', 'val', 4),
                ('segmentation', 'train', 10))
    for kind, split, images in measured:
        found = metrics[kind][split]
        assert 0 <= found['miou'] <= 1 and found['images'] == images
        assert list(found['iou'])[:2] == ['background', 'ring']
    assert metrics['pseudo']['train']['background'] == metrics['cam']['train']['background']
    assert len(list((finished/'cams').glob('*.npz'))) == 10
    assert len(list((finished/'pseudo').glob('*.png'))) == 10
    assert len(list((finished/'predictions').glob('*.png'))) == 14
    assert (finished/'figures'/'examples.png').stat().st_size > 1000
    before = files(finished)
    code, shown = command('run', '--data', shapes, '--out', finished, *SMALL)
    assert code == 0 and 'nothing to do' in shown and files(finished) == before


def labelme_mask(content: dict, classes: list[str]) -> np.ndarray:
    "What LabelMe makes of its file: each polygon filled, its outline included."
    picture = Image.new('L', (content['imageWidth'], content['imageHeight']))
    pen = ImageDraw.Draw(picture)
    for shape in content['shapes']:
        points = [tuple(point) for point in shape['points']]
        assert shape['shape_type'] == 'polygon' and len(points) > 2
        label = classes.index(shape['label']) + 1
        pen.polygon(points, fill=label, outline=label)
    return np.asarray(picture)


def with_true_pseudo_masks(finished: Path, shapes: Path, root: Path) -> VOCFolder:
    "A copy of a run with masks that have holes and 255, which a run as small may not have."
    shutil.copytree(finished, root)
    photos = VOCFolder(shapes, 'train')
    for i, name in enumerate(photos.ids):
        write_mask(root/'pseudo'/f'{name}.png', photos.truth(i))
    return photos


def test_masks_for_annotation_tools_are_the_masks_of_the_run(
        command, finished, shapes, tmp_path, monkeypatch):
    root = tmp_path/'run'
    photos = with_true_pseudo_masks(finished, shapes, root)
    monkeypatch.chdir(tmp_path)
    for form in ('png', 'labelme'):
        words = ('export', root, '--format', form, '--out', f'deep/{form}', '--from', 'pseudo')
        assert command(*words)[0] == 0
    classes = json.loads((root/'config.json').read_text())['classes']
    deep = tmp_path/'deep'
    assert (deep/'png'/'classes.txt').read_text().split() == classes
    for i, name in enumerate(photos.ids):
        copied = deep/'png'/'masks'/f'{name}.png'
        assert copied.read_bytes() == (root/'pseudo'/f'{name}.png').read_bytes()
        content = json.loads((deep/'labelme'/f'{name}.json').read_text())
        assert (deep/'labelme'/content['imagePath']).samefile(photos.path(i))
        assert content['imageData'] is None
        truth = photos.truth(i)
        known = truth != 255
        assert (labelme_mask(content, classes) == truth)[known].mean() > .995
    before = files(deep)
    refused(command('export', root, '--format', 'png', '--out', 'deep/png'),
            'something here already')
    (root/'masks'/f'{photos.ids[0]}.png').unlink()
    refused(command('export', root, '--format', 'png', '--out', 'other'),
            f'{photos.ids[0]}.png', 'wsss_nb predict')
    assert files(deep) == before and not (tmp_path/'other').exists()


def test_the_coco_file_loads_in_pycocotools_and_gives_back_the_masks(
        command, finished, shapes, tmp_path):
    root = tmp_path/'run'
    photos = with_true_pseudo_masks(finished, shapes, root)
    out = tmp_path/'coco'
    words = ('export', root, '--format', 'coco', '--out', out, '--from', 'pseudo')
    assert command(*words)[0] == 0
    coco = COCO(out/'annotations.json')
    names = [category['name'] for category in coco.loadCats(coco.getCatIds())]
    assert names == list(photos.classes)
    found = {photo['file_name']: photo for photo in coco.loadImgs(coco.getImgIds())}
    several = 0
    for i in range(len(photos)):
        truth = photos.truth(i)
        again = np.zeros_like(truth)
        photo = found[photos.path(i).name]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=photo['id']))
        for annotation in annotations:
            region = coco.annToMask(annotation).astype(bool)
            assert region.sum() == annotation['area'] and not again[region].any()
            again[region] = annotation['category_id']
        assert (again == np.where(truth == 255, 0, truth)).all()
        several += len(annotations) > 1
    assert several     # an annotation is a region, not a photo
    assert command('check', out/'annotations.json', '--images', shapes/'JPEGImages')[0] == 0


def test_a_coco_file_is_trained_on(command, finished, shapes, tmp_path):
    root = tmp_path/'run'
    with_true_pseudo_masks(finished, shapes, root)
    out = tmp_path/'coco'
    words = ('export', root, '--format', 'coco', '--out', out, '--from', 'pseudo')
    assert command(*words)[0] == 0
    code, shown = command('run', '--data', out/'annotations.json', '--images',
                          shapes/'JPEGImages', '--out', tmp_path/'own', *SMALL,
                          '--until', 'refine')
    assert code == 0, shown
    assert metrics_of(tmp_path/'own')['pseudo']['train']['images'] == 10


def test_from_photos_to_a_contact_sheet(command, shapes, tmp_path):
    root = tmp_path/'mine'
    (root/'images').mkdir(parents=True)
    photos = VOCFolder(shapes, 'train')
    for i in range(6):
        shutil.copy(photos.path(i), root/'images')
    code, shown = command('new', root)
    assert code == 0 and 'lists 6 photos' in shown
    refused(command('check', root), 'has no tags', '6 faults')
    lines = ['file,tags']
    for i in range(6):
        tags = [photos.classes[c] for c in photos.tags(i).nonzero()]
        lines.append(f"{photos.path(i).name},{';'.join(tags)}")
    (root/'tags.csv').write_text('\n'.join(lines))
    refused(command('new', root), 'stays as it is')
    assert (root/'tags.csv').read_text() == '\n'.join(lines)
    assert command('check', root)[0] == 0
    run = tmp_path/'run'
    code, shown = command('run', '--data', root, '--out', run, *SMALL)
    assert code == 0 and 'contact.png' in shown, shown
    with Image.open(run/'figures'/'contact.png') as sheet:
        assert sheet.width > 5 * 190 and sheet.height > 2 * 100
    assert command('contact', run, '--from', 'pseudo', '--photos', 3)[0] == 0
    assert (run/'figures'/'contact-pseudo.png').exists()


def test_another_configuration_is_refused_with_what_differs(command, finished, shapes):
    before = files(finished)
    words = ('run', '--data', shapes, '--out', finished, *SMALL)
    refused(command(*words, '--classifier.pooling', 'gap', '--seed', 5),
            "system.classifier.pooling: 'hspp' there, 'gap' asked for",
            'seed: 0 there, 5 asked for', 'another folder')
    refused(command(*words, 'refiner:none'), "system.refiner: 'crf' there, 'none' asked for")
    assert files(finished) == before


def test_evaluate_elsewhere_leaves_the_run_alone(command, finished, tmp_path):
    other = make_shapes(tmp_path/'other', train=3, val=3, size=64, seed=4)
    before = files(finished)
    out = tmp_path/'other.json'
    code, shown = command('evaluate', finished, '--data', other, '--split', 'val', '--out', out)
    assert code == 0 and 'CAM' in shown and 'segmentation' in shown
    assert files(finished) == before
    cam = json.loads(out.read_text())['cam']['val']
    assert cam['images'] == 3 and cam['best_miou'] >= cam['miou']
    refused(command('evaluate', finished, '--data', other, '--out', out), 'is there already')
    for unused in (('--crf', 'True'), ('--out', tmp_path/'m.json'), ('--split', 'train')):
        refused(command('evaluate', finished, *unused), '--data OTHER')
    refused(command('evaluate', finished, '--data', other, '--split', 'test'), "no split 'test'")
    refused(command('evaluate', finished, '--data', other, '--out', tmp_path/'no'/'o.json'),
            'its folder is not there')


def test_stages_one_by_one_are_the_same_as_all_at_once(command, finished, shapes, tmp_path):
    root = tmp_path/'run'
    words = ('run', '--data', shapes, '--out', root, *SMALL, '--until', 'classify')
    assert command(*words)[0] == 0
    assert not list((root/'cams').iterdir())
    refused(command('refine', root), 'wsss_nb cams')
    refused(command('predict', root), 'wsss_nb cams')
    for stage in ('cams', 'refine', 'segment', 'predict', 'evaluate'):
        assert command(stage, root)[0] == 0
    ours = metrics_of(root)
    theirs = metrics_of(finished)
    for kind in ('cam', 'pseudo', 'segmentation'):
        assert ours[kind] == theirs[kind]


def start(*words, **options) -> subprocess.Popen:
    code = 'from wsss_nb.cli import main; main()'
    return subprocess.Popen([sys.executable, '-c', code, *arguments(*words)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True, **options)


def interrupted(process: subprocess.Popen, is_time) -> str:
    "Press Ctrl-C, as a terminal does it (to the workers, too), when it is time; what was printed."
    for _ in range(3000):
        if is_time():
            break
        time.sleep(.02)
    os.killpg(process.pid, signal.SIGINT)
    shown, _ = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    assert 'interrupted; what is made by now stays' in shown and 'Traceback' not in shown, shown
    return shown


def test_ctrl_c_leaves_a_run_that_the_same_command_finishes_with_the_same_numbers(
        finished, shapes, tmp_path):
    root = tmp_path/'run'
    words = ('run', '--data', shapes, '--out', root, *SMALL)
    interrupted(start(*words), (root/'classifier'/'log.csv').exists)
    assert not (root/'figures'/'examples.png').exists()
    process = start(*words)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    ours = metrics_of(root)
    theirs = metrics_of(finished)
    for kind in ('cam', 'pseudo', 'segmentation'):
        assert ours[kind] == theirs[kind]


def test_ctrl_c_at_any_moment_of_the_start_is_no_traceback(shapes, tmp_path):
    for wait in (.6, 1.2, 2.):
        process = start('run', '--data', shapes, '--out', tmp_path/'early', *SMALL)
        time.sleep(wait)
        interrupted(process, lambda: True)


def test_a_disk_that_takes_no_more_is_one_message_and_loses_nothing(shapes, tmp_path):
    def limit():   # as a full disk: writes fail from here on
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    words = ('run', '--data', shapes, '--out', tmp_path/'run', *SMALL)
    process = start(*words, preexec_fn=limit)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 2, shown
    assert 'Traceback' not in shown and 'model.safetensors' in shown, shown
    assert not list((tmp_path/'run').rglob('*.safetensors'))
    process = start(*words)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown


def test_users_mistakes(command, finished, shapes, tmp_path):
    (tmp_path/'file').write_text('')
    empty = tmp_path/'empty'
    empty.mkdir()
    torch.save({'layer.weight': torch.zeros(3)}, tmp_path/'other.pth')
    out = tmp_path/'run'
    run = ('run', '--data', shapes, '--out', out, *SMALL)
    refused(command('run', '--data', tmp_path/'nowhere', '--out', out), 'nowhere')
    refused(command('run', '--data', empty, '--out', out), 'no data set here')
    refused(command('run', '--data', shapes, '--out', tmp_path/'file'/'run', *SMALL), 'file')
    refused(command('run', '--data', shapes, '--out', shapes, *SMALL), 'something else here')
    refused(command(*run, '--train', 'trian'), "no split 'trian'")
    refused(command(*run, '--classifier.backbone.name', 'resnet7'), 'resnet7')
    weights = '--classifier.backbone.weights'
    refused(command(*run, weights, 'missing.pth'), 'missing.pth')
    refused(command('run', '--data', shapes, '--out', tmp_path/'weights', *SMALL, weights,
                    tmp_path/'other.pth'), 'other.pth: weights of another network')
    refused(command('run', '--data', shapes, '--out', tmp_path/'nan', *SMALL,
                    '--classifier.learning-rate', '1e18'),
            'is no number', 'tenth of the learning rate')
    refused(command('cams', empty), 'config.json')
    refused(command('compare', empty), 'config.json')
    refused(command('evaluate', finished, '--data', tmp_path/'nowhere'), 'nowhere')
    refused(command('frobnicate'), 'frobnicate')
    refused(command('run', '--data', shapes))
    assert not out.exists()


def test_a_run_of_another_version_is_refused_in_one_sentence(command, tmp_path):
    (tmp_path/'old').mkdir()
    old = {'data': 'photos', 'classes': ['cat'], 'photos': {'train': 3}, 'pooling': 'gap'}
    (tmp_path/'old'/'config.json').write_text(json.dumps(old))
    refused(command('compare', tmp_path/'old'), 'made by another version of wsss_nb')


def test_check_lists_every_fault_and_run_refuses_before_it_makes_anything(command, tmp_path):
    root = make_shapes(tmp_path/'shapes', train=6, val=2, size=64)
    annotations = root/'Annotations'
    masks = root/'SegmentationClass'
    (annotations/'train_00000.xml').write_text('<annotation><object>')
    name = annotations/'train_00001.xml'
    name.write_text(name.read_text().replace('<name>', '<name>un'))
    photo = root/'JPEGImages'/'train_00002.jpg'
    photo.write_bytes(photo.read_bytes()[:700])
    write_mask(masks/'train_00003.png', np.full((3, 3), 1, np.uint8))
    coloured = masks/'train_00004.png'
    Image.open(coloured).convert('RGB').save(coloured)
    listed = root/'ImageSets'/'Segmentation'/'train.txt'
    listed.write_text(listed.read_text() + '../secret\nmissing\ntrain_00005\n')
    refused(command('check', root), 'train_00000.xml', 'train_00001.xml', 'train_00002.jpg',
            'train_00003.png', 'train_00004.png', '../secret', "'missing'",
            "'train_00005' is there more than once")
    refused(command('run', '--data', root, '--out', tmp_path/'run', *SMALL), 'train_00000.xml')
    assert not (tmp_path/'run').exists()


def test_a_photo_that_is_cut_off_is_named_by_the_process_that_meets_it(command, tmp_path):
    root = make_shapes(tmp_path/'shapes', train=6, val=1, size=64)
    photo = root/'JPEGImages'/'train_00002.jpg'
    whole = photo.read_bytes()
    photo.write_bytes(whole[:len(whole) // 2])
    run = ('run', '--data', root, '--out', tmp_path/'run', *SMALL)
    refused(command(*run), 'train_00002.jpg')
    photo.write_bytes(whole)
    assert command(*run)[0] == 0
    maps = tmp_path/'run'/'cams'/'train_00001.npz'
    maps.write_bytes(maps.read_bytes()[:50])
    (tmp_path/'run'/'pseudo'/'train_00001.png').unlink()
    refused(command('refine', tmp_path/'run'), 'train_00001.npz', 'is no whole map')


def test_a_finished_run_needs_its_own_photos_no_more(command, tmp_path):
    for name, seed in (('own', 0), ('other', 1)):
        make_shapes(tmp_path/name, train=4, val=2, size=64, seed=seed)
    run = tmp_path/'run'
    assert command('run', '--data', tmp_path/'own', '--out', run, *SMALL)[0] == 0
    (tmp_path/'own').rename(tmp_path/'gone')
    for words in (('evaluate', run, '--data', tmp_path/'other'), ('compare', run)):
        assert command(*words)[0] == 0, words
    refused(command('cams', run), 'own')


def test_settings_that_failed_at_once_can_be_corrected_in_place(command, shapes, tmp_path):
    run = ('run', '--data', shapes, '--out', tmp_path/'run', *SMALL, '--until', 'classify')
    frozen = '--classifier.backbone.frozen-stages'
    refused(command(*run, frozen, 9), 'has 5 stages')
    assert command(*run)[0] == 0
    refused(command(*run, frozen, 2), 'frozen_stages: 3 there, 2 asked for')


def odd_photos(root: Path) -> list[str]:
    "Photos of every odd kind, with tags; their names."
    generator = np.random.default_rng(0)
    (root/'images').mkdir(parents=True)
    colours = Image.fromarray(generator.integers(0, 255, (40, 60, 3), np.uint8))
    deep = Image.fromarray(generator.integers(0, 65535, (40, 60), np.uint16))
    photos = {'cmyk.jpg': colours.convert('CMYK'), 'grey.png': colours.convert('L'),
              'alpha.png': colours.convert('RGBA'), 'dot.png': Image.new('RGB', (1, 1)),
              'deep.png': deep, 'wide.png': Image.new('RGB', (10_000, 12), 'red')}
    for name, photo in photos.items():
        photo.save(root/'images'/name)
    turned = Image.Exif()
    turned[0x0112] = 6
    colours.save(root/'images'/'turned.jpg', exif=turned)
    names = [*photos, 'turned.jpg']
    lines = ['file,tags']
    for i, name in enumerate(names):
        lines.append(f"{name},{'cat;dog' if i % 2 else 'cat'}")
    (root/'tags.csv').write_bytes('\r\n'.join([*lines, '']).encode())
    return names


def test_ones_own_photos_in_every_odd_form_get_masks_of_their_own_size(command, tmp_path):
    root = tmp_path/'mine'
    names = odd_photos(root)
    code, shown = command('check', root)
    assert code == 0, shown
    small = changed(SMALL, '--classifier.batch-size', 16)   # more than there are photos
    run = tmp_path/'run'
    code, shown = command('run', '--data', root, '--out', run, *small,
                          '--classifier.crop', 64, '--longest', 256, '--prediction.longest', 256)
    assert code == 0, shown
    for name in names:
        with Image.open(root/'images'/name) as photo:
            size = photo.size[::-1] if name == 'turned.jpg' else photo.size
        with Image.open(run/'predictions'/f'{name[:-4]}.png') as mask:
            assert mask.size == size, name
    assert not {'cam', 'pseudo', 'segmentation'} & metrics_of(run).keys()   # nothing to measure on
    for refiner in ('irn', 'affinity'):            # and the published settings are taken
        code, shown = command('branch', run, tmp_path/refiner, '--until', 'refine',
                              f'refiner:{refiner}')
        assert code == 0, shown
        assert not {'cam', 'pseudo'} & metrics_of(tmp_path/refiner).keys()
        chosen = json.loads((tmp_path/refiner/'refiner'/'walk.json').read_text())
        assert chosen['setting']['beta'] == 10
        for name in names:
            with Image.open(run/'pseudo'/f'{name[:-4]}.png') as before:
                size = before.size
            with Image.open(tmp_path/refiner/'pseudo'/f'{name[:-4]}.png') as mask:
                assert mask.size == size, name


def test_a_refiner_that_was_interrupted_makes_the_same_masks(finished, tmp_path):
    def words(out):
        return ('branch', finished, tmp_path/out, '--until', 'refine', 'refiner:irn')

    labels = tmp_path/'cut'/'refiner'/'labels'
    # at once: on a fast machine the rest takes seconds
    interrupted(start(*words('cut')), lambda: list(labels.glob('*.png')))
    assert not list((tmp_path/'cut'/'pseudo').iterdir())
    for out in ('cut', 'whole'):
        process = start(*words(out))
        shown, _ = process.communicate(timeout=300)
        assert process.returncode == 0, shown
    cut = {path.name: content for path, content in files(tmp_path/'cut'/'pseudo').items()}
    whole = {path.name: content for path, content in files(tmp_path/'whole'/'pseudo').items()}
    assert len(whole) == 10 and cut == whole
    instances = Path('refiner')/'instances.json'
    assert (tmp_path/'cut'/instances).read_bytes() == (tmp_path/'whole'/instances).read_bytes()


PRESS = """import os, signal
presses = [signal.SIGINT]
os.register_at_fork(after_in_parent=lambda: presses and signal.raise_signal(presses.pop()))
from wsss_nb.cli import main; main()
"""


def test_ctrl_c_while_a_worker_is_made_is_not_lost(finished, tmp_path):
    words = arguments('branch', finished, tmp_path/'cut', '--until', 'refine', 'refiner:irn')
    done = subprocess.run([sys.executable, '-c', PRESS, *words], text=True, capture_output=True,
                          timeout=120)
    assert done.returncode == 130, done.stderr
    assert 'the same command goes on' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path/'cut'/'refiner'/'model.safetensors').exists()


def test_tables_and_figures_in_processes_of_their_own(finished, shapes, tmp_path):
    short = changed(SMALL, '--classifier.epochs', 1)
    process = start('table', 'b', '--data', shapes, '--out', tmp_path/'table', *short,
                    '--seeds', 0, '--variants', 'baseline', 'VWL-M')
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and '2 of 2: VWL-M, seed 0' in shown, shown
    with Image.open(tmp_path/'table'/'table_b.png') as plot:
        assert plot.width > 300
    assert (tmp_path/'table'/'table_b.md').read_text().strip() in shown
    root = tmp_path/'run'
    shutil.copytree(finished, root)
    process = start('figures', root, '--photos', 6)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and 'not drawn' not in shown, shown
    drawn = ('segmentations', 'hardest', 'background', 'faults', 'pooling', 'words', 'curves')
    for name in drawn:
        with Image.open(root/'figures'/f'{name}.png') as figure:
            assert figure.width > 300
    process = start('report', root)
    shown, _ = process.communicate(timeout=300)
    page = (root/'report.html').read_text()
    assert process.returncode == 0 and str(root/'report.html') in shown, shown
    assert page.count('data:image/png') == len(drawn) and str(shapes) not in page


def test_a_reader_that_has_left_is_no_error():
    command = [sys.executable, '-c', 'from wsss_nb.cli import main; main(["--help"])']
    left = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    left.stdout.close()
    assert left.stderr.read() == ''
    assert left.wait() == 141


def made(*words) -> str:
    "What make prints in the repository."
    return subprocess.run(['make', '--no-print-directory', *words], cwd=ROOT, check=True, text=True,
                          capture_output=True).stdout


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
def test_make_lists_its_targets_and_says_what_to_type_after_the_installation():
    makefile = (ROOT/'Makefile').read_text()
    targets = next(line for line in makefile.splitlines() if line.startswith('.PHONY:')).split()[1:]
    listed = [line.split(None, 2) for line in made('help').splitlines()]
    assert sorted(line[1] for line in listed) == sorted(targets)
    assert all(len(line) == 3 for line in listed)
    last = made('install', '-o', '.venv/installed').splitlines()
    assert len(last) == 2 and '. .venv/bin/activate' in last[0] and 'wsss_nb --help' in last[1]


@pytest.mark.parametrize('page', ('README.md', 'docs/photos_to_masks.md'))
def test_who_has_photos_is_told_how_to_install_before_the_first_command(page):
    text = (ROOT/page).read_text()
    first = text.index('wsss_nb check my_photos')
    steps = ('git clone', 'make install', '. .venv/bin/activate', 'wsss_nb --help')
    places = [text.find(step, text.find('git clone')) for step in steps]
    assert -1 not in places and places == sorted(places) and places[-1] < first

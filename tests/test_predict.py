"Prediction as a stranger uses it: large photos in little memory, several processes, photos from anywhere, VOC's test server, ONNX."
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb import pipeline, segmentation
from wsss_nb.backbones import create_backbone
from wsss_nb.cli import main
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.segmentation import SERVER_FOLDER, PredictionSettings, check_server_file, predict_labels, window_logits, write_masks, write_server_file
from wsss_nb.shapes import make_shapes
from wsss_nb.training import save_model
from wsss_nb.files import InputError
from wsss_nb.photos import read_image, read_mask, write_mask
from wsss_nb.voc import VOC_CLASSES


def untrained(root: Path, data: Path, backbone: str = 'efficientnet_lite0') -> Path:
    "A run folder whose networks are as random as they began. What they say doesn't matter here."
    run = pipeline.open_run(pipeline.Config(data=data, out=root, backbone=backbone, weights='none', num_words=16, predict_scales=(1., .5), workers=0))
    torch.manual_seed(0)
    for name, build in (('classifier', pipeline.build_classifier), ('segmenter', pipeline.build_segmenter)):
        model = build(run)
        if name == 'segmenter':
            for branch in model.aspp.branches: torch.nn.init.normal_(branch.weight, std=1.)   # so that several labels are seen
        save_model(model, root/name)
    return root


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path: return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=4, val=2, size=64)


@pytest.fixture(scope='module')
def run(shapes, tmp_path_factory) -> Path: return untrained(tmp_path_factory.mktemp('runs')/'run', shapes)


@pytest.fixture(scope='module')
def voc(tmp_path_factory) -> Path:
    "An untrained run with VOC's classes; its data has two photos in the list 'mini'."
    root = tmp_path_factory.mktemp('voc')
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Segmentation'): (root/'data'/name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i, size in enumerate(((40, 60), (60, 45), (50, 50))):
        Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(root/'data'/'JPEGImages'/f'{i}.jpg')
    (root/'data'/'Annotations'/'0.xml').write_text('<annotation><object><name>cat</name></object></annotation>')
    for name, ids in (('train', '0\n'), ('mini', '1\n2\n')): (root/'data'/'ImageSets'/'Segmentation'/f'{name}.txt').write_text(ids)
    return untrained(root/'run', root/'data')


@pytest.fixture
def command(capsys):
    "Call the command in this process: exit code, and all that it printed."
    def call(*words):
        capsys.readouterr()
        try: main([str(word) for word in words]); code = 0
        except SystemExit as leaving: code = leaving.code
        shown = capsys.readouterr()
        return code, shown.out + shown.err
    return call


def refused(result, *said):
    code, shown = result
    assert code == 2 and 'Traceback' not in shown, shown
    for words in said: assert words in shown, shown


LARGE = '''
import resource, sys
import numpy as np, torch
from PIL import Image
from wsss_nb.backbones import create_backbone
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.segmentation import predict_labels
from wsss_nb.voc import InputError
torch.manual_seed(0)
model = DeepLabV2(create_backbone('efficientnet_lite0', None, 16, True), 21)
photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)).resize((6000, 4000))
labels = predict_labels(model, photo, (.25, .5), longest=6000)
assert labels.shape == (4000, 6000) and len(np.unique(labels)) > 5
labels = predict_labels(model, photo, (.5,), crf=True, longest=480)
assert labels.shape == (4000, 6000)
try: predict_labels(model, photo, (.01,), crf=True, longest=6000)
except InputError as error: assert '6,000 x 4,000' in str(error) and 'smaller size with --longest' in str(error)
else: assert False
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024))
'''


def test_a_photo_of_24_megapixels_takes_less_than_4_gigabytes():
    done = subprocess.run([sys.executable, '-c', LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 72e6 < int(done.stdout) < 4e9      # the photo itself has 72 MB


def test_windows_of_a_real_network_leave_no_seams():
    torch.manual_seed(0)
    model = DeepLabV2(create_backbone('efficientnet_lite0', 'imagenet', 16), 3, rates=(1,)).eval()
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)).resize((768, 512))
    with torch.inference_mode(): whole, parts = (window_logits(model, photo, window=window) for window in (768, 384))
    assert whole.shape == parts.shape == (3, 32, 48)
    noise = (parts - whole).std() / whole.std()
    assert 0 < noise < .3       # windows see another padding: on this network that is a fifth of what the photo does
    steps = lambda logits: (logits[:, :, 1:] - logits[:, :, :-1]).abs().mean((0, 1))
    assert (steps(parts) / steps(whole)).max() < 1.5      # between no two columns is there a step that the photo doesn't have


SPAWNED = '''
import sys, torch
from pathlib import Path
from wsss_nb import pipeline
from wsss_nb.segmentation import PredictionSettings, write_masks
from wsss_nb.training import load_model
if __name__ == '__main__':
    torch.multiprocessing.set_start_method('spawn')
    run = pipeline.Run(pipeline.read_config(sys.argv[1]))
    write_masks(load_model(pipeline.build_segmenter(run), run.root/'segmenter'), {p.stem: p for p in map(Path, sys.argv[3:])}, sys.argv[2], PredictionSettings((1.,), crf=True), workers=2)
'''


def segmenter(run: Path): return pipeline.load_model(pipeline.build_segmenter(pipeline.Run(pipeline.read_config(run))), run/'segmenter')


def test_masks_are_the_same_from_any_number_of_processes_forked_or_spawned(run, shapes, tmp_path):
    photos = {p.stem: p for p in sorted((shapes/'JPEGImages').iterdir())}
    for name in ('none', 'two', 'spawned'): (tmp_path/name).mkdir()
    for name, workers in (('none', 0), ('two', 2)): write_masks(segmenter(run), photos, tmp_path/name, PredictionSettings((1.,), crf=True), workers)
    (tmp_path/'spawned.py').write_text(SPAWNED)
    subprocess.run([sys.executable, tmp_path/'spawned.py', run, tmp_path/'spawned', *photos.values()], check=True)
    wanted = {p.name: p.read_bytes() for p in (tmp_path/'none').iterdir()}
    assert len(wanted) == len(photos) == 6
    for name in ('two', 'spawned'): assert {p.name: p.read_bytes() for p in (tmp_path/name).iterdir()} == wanted, name


def test_what_goes_wrong_in_another_process_arrives_as_one_sentence(run, shapes, tmp_path, monkeypatch):
    photos = {p.stem: p for p in sorted((shapes/'JPEGImages').iterdir())}
    with pytest.raises(OSError, match='nowhere'): write_masks(segmenter(run), photos, tmp_path/'nowhere', PredictionSettings((1.,)), 1)
    def wrong(path): raise InputError(f'{path}: gone meanwhile')
    def killed(path): os.kill(os.getpid(), signal.SIGKILL)
    ours = os.getpid()
    for broken, said in ((wrong, 'gone meanwhile'), (killed, 'ended by the system.*--workers')):
        monkeypatch.setattr(segmentation, 'read_image', lambda path: read_image(path) if os.getpid() == ours else broken(path))
        with pytest.raises(InputError, match=said): write_masks(segmenter(run), photos, tmp_path, PredictionSettings((1.,)), 1)
    assert not list(tmp_path.iterdir())


def test_the_stage_with_a_crf_in_other_processes(run, shapes, tmp_path, command):
    shutil.copytree(run, tmp_path/'run')
    config = pipeline.read_json(tmp_path/'run'/'config.json')
    pipeline.write_json(tmp_path/'run'/'config.json', config | {'predict_crf': True, 'predict_mirror': True})
    code, shown = command('predict', tmp_path/'run')
    assert code == 0 and len(list((tmp_path/'run'/'predictions').iterdir())) == 6, shown
    name = 'val_00000'
    labels = predict_labels(segmenter(run), read_image(shapes/'JPEGImages'/f'{name}.jpg'), (1., .5), mirror=True, crf=True)
    assert np.array_equal(read_mask(tmp_path/'run'/'predictions'/f'{name}.png'), labels)


def test_photos_from_anywhere_get_masks_overlays_and_regions_that_pycocotools_reads(command, run, shapes, tmp_path):
    (tmp_path/'photos').mkdir()
    colours = Image.fromarray(np.random.default_rng(1).integers(0, 255, (12, 20, 3), np.uint8)).resize((100, 60))
    turned = Image.Exif(); turned[0x0112] = 6
    colours.save(tmp_path/'photos'/'turned.jpg', exif=turned)
    colours.convert('RGBA').save(tmp_path/'photos'/'Käfer 1.PNG')
    words = ('predict', run, tmp_path/'photos', shapes/'JPEGImages'/'val_00000.jpg', '--out', tmp_path/'out', '--coco', 'True', '--workers', 1)
    code, shown = command(*words)
    assert code == 0 and '3 masks' in shown, shown
    sizes = {'turned': (60, 100), 'Käfer 1': (100, 60), 'val_00000': read_image(shapes/'JPEGImages'/'val_00000.jpg').size}
    for name, size in sizes.items():
        with Image.open(tmp_path/'out'/'masks'/f'{name}.png') as mask, Image.open(tmp_path/'out'/'overlays'/f'{name}.jpg') as overlay:
            assert mask.mode == 'P' and mask.size == size and overlay.width == size[0] and overlay.height >= size[1], name
    from pycocotools.coco import COCO
    regions = COCO(tmp_path/'out'/'coco.json')
    assert [c['name'] for c in regions.loadCats(regions.getCatIds())] == list(pipeline.Run(pipeline.read_config(run)).classes)
    assert {i['file_name'] for i in regions.imgs.values()} == {'turned.jpg', 'Käfer 1.PNG', 'val_00000.jpg'} and regions.anns
    for image in regions.imgs.values():
        labels = read_mask(tmp_path/'out'/'masks'/f"{Path(image['file_name']).stem}.png")
        drawn = np.zeros_like(labels)
        for region in regions.imgToAnns[image['id']]: drawn[regions.annToMask(region) > 0] = region['category_id']
        assert np.array_equal(drawn, labels)
    before = {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()}
    assert command(*words)[0] == 0                                                            # nothing is left to do
    refused(command(*words, '--mirror', 'True'), 'predictions.json', 'settings are not those asked for')
    refused(command(*words[:3], '--out', tmp_path/'out'), 'photos are not those asked for')
    assert {p: p.read_bytes() for p in (tmp_path/'out').rglob('*') if p.is_file()} == before


def test_what_is_wrong_with_photos_is_said_before_anything_is_written(command, run, shapes, tmp_path):
    photo = shapes/'JPEGImages'/'val_00000.jpg'
    (tmp_path/'cut.jpg').write_bytes(photo.read_bytes()[:300]); (tmp_path/'text.png').write_text('text')
    shutil.copy(photo, tmp_path/'val_00000.jpeg'); Image.new('RGB', (2000, 1500)).save(tmp_path/'large.png')
    out = ('--out', tmp_path/'out')
    refused(command('predict', run, photo, tmp_path/'cut.jpg', tmp_path/'text.png', *out), 'cut.jpg', 'text.png')
    refused(command('predict', run, photo, tmp_path/'gone.jpg', tmp_path/'val_00000.jpeg', *out), 'gone.jpg: there is no such photo', 'Rename one of them')
    refused(command('predict', run, photo, tmp_path/'large.png', *out, '--crf', 'True', '--longest', 4000), 'large.png: a dense CRF', 'smaller size with --longest')
    refused(command('predict', run, photo, *out, '--longest', 0), '--longest must be above 0')
    refused(command('predict', run, photo, '--out', tmp_path), 'there is something else here')
    refused(command('predict', run, photo), '--out DIR')
    shutil.copytree(run, tmp_path/'run'); (tmp_path/'run'/'segmenter'/'model.safetensors').unlink()
    refused(command('predict', tmp_path/'run', photo, *out), 'segmenter/model.safetensors', 'wsss_nb segment')
    assert not (tmp_path/'out').exists()


def test_submit_writes_a_file_that_the_server_takes(command, voc, tmp_path):
    code, shown = command('submit', voc, '--out', tmp_path/'mini.tar', '--split', 'mini', '--workers', 0)
    assert code == 0 and "2 photos of the split 'mini', verified" in shown, shown
    with tarfile.open(tmp_path/'mini.tar') as tar: assert tar.getnames() == [f'results/VOC2012/Segmentation/comp6_test_cls/{i}.png' for i in (1, 2)]
    refused(command('submit', voc, '--out', tmp_path/'mini.tar', '--split', 'mini'), 'there is a file already')
    refused(command('submit', voc, '--out', tmp_path/'test.tar'), "there is no split 'test'")
    listed = voc.parent/'data'/'ImageSets'/'Segmentation'/'test.txt'
    listed.write_text('1\n2\n'); refused(command('submit', voc, '--out', tmp_path/'test.tar'), "'test' has 2 photos, and that of VOC 2012 has 1,456"); listed.unlink()
    (voc.parent/'data'/'ImageSets'/'Segmentation'/'short.txt').write_text('1\n7\n')
    refused(command('submit', voc, '--out', tmp_path/'short.tar', '--split', 'short'), '7')
    assert [p.name for p in tmp_path.iterdir()] == ['mini.tar']


def png(labels: np.ndarray, mode: str = 'P', colours: bool = True) -> bytes:
    image, content = Image.fromarray(labels), io.BytesIO()
    if mode == 'P': image.putpalette(segmentation.palette().tobytes() if colours else bytes(range(256)) * 3)
    (image if mode == 'P' else image.convert(mode)).save(content, 'PNG')
    return content.getvalue()


GOOD = {f'{SERVER_FOLDER}/{i:04d}.png': png(np.array([[0, 1, 20]], np.uint8)) for i in range(1456)}
ONE = f'{SERVER_FOLDER}/0007.png'
DAMAGE = {
    'is missing': ({ONE: None}, '1 of 9 masks are missing, such as ' + ONE),
    'belongs to no photo': ({f'{SERVER_FOLDER}/more.png': GOOD[ONE]}, 'more.png belongs to no photo of the list'),
    'in another folder': ({ONE: None, 'comp6_test_cls/0007.png': GOOD[ONE]}, 'comp6_test_cls/0007.png belongs to no photo'),
    'of another size': ({ONE: png(np.zeros((3, 1), np.uint8))}, ONE + ' is 1 x 3, and its photo 3 x 1'),
    'in grey': ({ONE: png(np.zeros((1, 3), np.uint8), 'L')}, ONE + ' is no palette PNG: its mode is L'),
    'in colour': ({ONE: png(np.zeros((1, 3), np.uint8), 'RGB')}, ONE + ' is no palette PNG: its mode is RGB'),
    'in other colours': ({ONE: png(np.zeros((1, 3), np.uint8), colours=False)}, ONE + " has another palette than VOC's"),
    'with a class too many': ({ONE: png(np.array([[0, 1, 21]], np.uint8))}, ONE + ' holds the index 21, and the last class is 20'),
    'with unknown pixels': ({ONE: png(np.array([[0, 1, 255]], np.uint8))}, ONE + ' holds the index 255'),
    'cut off': ({ONE: GOOD[ONE][:-20]}, ONE + ' is cut off'),
    'cut in two': ({ONE: GOOD[ONE][:len(GOOD[ONE]) // 2]}, ONE + ' cannot be read as a PNG'),
    'no picture': ({ONE: b'text'}, ONE + ' cannot be read as a PNG'),
}
SIZES = {Path(name).stem: (3, 1) for name in GOOD}


def write_tar(path: Path, files: dict[str, bytes | None], twice: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name in [*files, *twice]:
            if files[name] is None: continue
            member = tarfile.TarInfo(name); member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_server_file_is_told(damage, tmp_path):
    changes, said = DAMAGE[damage]
    few = dict(list(GOOD.items())[:9])
    found = check_server_file(write_tar(tmp_path/'damaged.tar', few | changes), dict(list(SIZES.items())[:9]))
    assert said in '\n'.join(map(str, found)) and all('damaged.tar' in str(fault) for fault in found)


def test_a_whole_server_file_has_no_faults_and_other_damage_is_told(tmp_path):
    whole = write_tar(tmp_path/'whole.tar', GOOD)
    assert check_server_file(whole, SIZES) == []
    assert 'is there twice' in str(check_server_file(write_tar(tmp_path/'twice.tar', {ONE: GOOD[ONE]}, (ONE,)), {'0007': (3, 1)})[0])
    (tmp_path/'half.tar').write_bytes(whole.read_bytes()[:700_000])
    assert any('masks are missing' in str(fault) for fault in check_server_file(tmp_path/'half.tar', SIZES))
    (tmp_path/'text.tar').write_text('text' * 1000)
    assert 'this is no whole tar file' in str(check_server_file(tmp_path/'text.tar', SIZES)[0])
    assert 'this is no whole tar file' in str(check_server_file(tmp_path/'gone.tar', SIZES)[0])
    (tmp_path/'masks').mkdir(); write_mask(tmp_path/'masks'/'0.png', np.array([[0, 1, 21]], np.uint8))
    with pytest.raises(InputError, match='new.tar: .*holds the index 21'): write_server_file(tmp_path/'masks', {'0': (3, 1)}, tmp_path/'new.tar')
    assert not (tmp_path/'new.tar').exists()


def test_both_networks_go_out_as_onnx_for_images_of_any_number_and_size(command, run, shapes, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    resnet = untrained(tmp_path/'resnet', shapes, 'resnet18')
    for name, root, outputs in (('segmenter', run, ['logits']), ('classifier', resnet, ['class_maps', 'tags'])):
        code, shown = command('onnx', root, '--network', name, '--out', tmp_path/f'{name}.onnx')
        assert code == 0 and 'differ by' in shown, shown
        card = json.loads((tmp_path/f'{name}.json').read_text())
        assert card['classes'][0] == 'ring' and card['size_multiple'] == 16 and list(card['outputs']) == outputs and len(card['mean']) == len(card['std']) == 3
        session = onnxruntime.InferenceSession(tmp_path/f'{name}.onnx', providers=['CPUExecutionProvider'])
        assert [output.name for output in session.get_outputs()] == outputs
        answers = session.run(None, {'images': np.zeros((3, 3, 80, 48), np.float32)})
        assert [a.shape for a in answers] == ([(3, 9, 5, 3)] if name == 'segmenter' else [(3, 8, 5, 3), (3, 8)])
        refused(command('onnx', root, '--network', name, '--out', tmp_path/f'{name}.onnx'), 'there is a file already')


def test_without_its_packages_onnx_says_what_to_install(command, run, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation.importlib.util, 'find_spec', lambda name: None if name.startswith('onnx') else True)
    refused(command('onnx', run, '--network', 'segmenter', '--out', tmp_path/'x.onnx'), 'onnx, onnxscript, onnxruntime', "pip install 'wsss_nb[onnx]'")
    assert not list(tmp_path.iterdir())

"Prediction: large photos in little memory, several processes, what goes wrong in them."
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsss_nb import prediction
from wsss_nb.backbones import create_backbone
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.files import InputError
from wsss_nb.photos import read_image, read_mask
from wsss_nb.prediction import (PredictionSettings, check_crf, predict_labels, window_logits,
                                write_masks)
from wsss_nb.settings import check_settings
from wsss_nb.training import save_model

ONCE = PredictionSettings(scales=(1.,), crf=True)


def untrained(labels: int = 3) -> DeepLabV2:
    "A network as random as it began, which sees several labels."
    torch.manual_seed(0)
    network = DeepLabV2(create_backbone('efficientnet_lite0', None, 16, True), labels)
    for branch in network.aspp.branches:
        torch.nn.init.normal_(branch.weight, std=1.)
    return network.eval()


@pytest.fixture(scope='module')
def network() -> DeepLabV2:
    return untrained()


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp('photos')
    generator = np.random.default_rng(0)
    found = {}
    for name, size in zip('abcdef', ((40, 60), (60, 40), (50, 50), (33, 70), (64, 64), (20, 90))):
        pixels = generator.integers(0, 255, (5, 5, 3), np.uint8)
        found[name] = folder/f'{name}.png'
        Image.fromarray(pixels).resize(size).save(found[name])
    return found


LARGE = '''
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from wsss_nb.backbones import create_backbone
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.photos import read_mask
from wsss_nb.prediction import PredictionSettings, predict_labels, write_masks

def most_bytes(who):
    status = Path('/proc/self/status')
    if who == resource.RUSAGE_SELF and status.exists():   # getrusage counts who started it, too
        found = [line.split() for line in status.read_text().splitlines() if 'VmHWM' in line]
        return int(found[0][1]) * 1024
    return resource.getrusage(who).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)

torch.manual_seed(0)
model = DeepLabV2(create_backbone('efficientnet_lite0', None, 16, True), 21)
pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
photo = Image.fromarray(pixels).resize((6000, 4000))
labels = predict_labels(model, photo, PredictionSettings((.25, .5), longest=6000))
assert labels.shape == (4000, 6000) and len(np.unique(labels)) > 5
labels = predict_labels(model, photo, PredictionSettings((.5,), crf=True, longest=480))
assert labels.shape == (4000, 6000)
print(most_bytes(resource.RUSAGE_SELF))

with tempfile.TemporaryDirectory() as folder:
    photo.save(folder + '/large.jpg')
    write_masks(model, {'large': Path(folder + '/large.jpg')}, folder,
                PredictionSettings((.25,), longest=6000), workers=1, overlays=Path(folder),
                classes=[str(i) for i in range(1, 21)])
    assert read_mask(folder + '/large.png').shape == (4000, 6000)
print(most_bytes(resource.RUSAGE_SELF))
print(most_bytes(resource.RUSAGE_CHILDREN))
'''


def test_a_photo_of_24_megapixels_takes_less_than_4_gigabytes():
    done = subprocess.run([sys.executable, '-c', LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for most in done.stdout.split():
        assert 72e6 < int(most) < 4e9      # the photo itself has 72 MB


def test_windows_of_a_real_network_leave_no_seams():
    torch.manual_seed(0)
    backbone = create_backbone('efficientnet_lite0', 'imagenet', 16)
    model = DeepLabV2(backbone, 3, rates=(1,)).eval()
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8)
    photo = Image.fromarray(pixels).resize((768, 512))
    with torch.inference_mode():
        whole = window_logits(model, photo, window=768)
        parts = window_logits(model, photo, window=384)
    assert whole.shape == parts.shape == (3, 32, 48)
    noise = (parts - whole).std() / whole.std()
    assert 0 < noise < .3     # windows see another padding: here a fifth of what the photo does

    def steps(logits):
        return (logits[:, :, 1:] - logits[:, :, :-1]).abs().mean((0, 1))
    # between no two columns is there a step that the photo doesn't have
    assert (steps(parts) / steps(whole)).max() < 1.5


SPAWNED = '''
import sys
from pathlib import Path

import torch
from wsss_nb.backbones import create_backbone
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.prediction import PredictionSettings, write_masks
from wsss_nb.training import load_model

if __name__ == '__main__':
    torch.multiprocessing.set_start_method('spawn')
    model = DeepLabV2(create_backbone('efficientnet_lite0', None, 16, True), 3)
    photos = {path.stem: path for path in map(Path, sys.argv[3:])}
    write_masks(load_model(model, sys.argv[1]), photos, sys.argv[2],
                PredictionSettings(scales=(1.,), crf=True), workers=1)
'''


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_masks_are_the_same_from_any_number_of_processes_forked_or_spawned(
        network, photos, tmp_path):
    for name in ('none', 'two', 'spawned'):
        (tmp_path/name).mkdir()
    for name, workers in (('none', 0), ('two', 2)):
        write_masks(network, photos, tmp_path/name, ONCE, workers)
    save_model(network, tmp_path)
    script = tmp_path/'spawned.py'
    script.write_text(SPAWNED)
    words = [sys.executable, script, tmp_path, tmp_path/'spawned', *photos.values()]
    subprocess.run(words, check=True)
    wanted = contents(tmp_path/'none')
    assert len(wanted) == 6
    assert contents(tmp_path/'two') == wanted
    assert contents(tmp_path/'spawned') == wanted
    alone = predict_labels(network, read_image(photos['d']), ONCE)
    assert np.array_equal(read_mask(tmp_path/'two'/'d.png'), alone)


def gone(*arguments):
    raise InputError('gone meanwhile')


def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('broken', ('read_image', 'finish_labels'))   # in a reader, in a writer
@pytest.mark.parametrize('happens, said', ((gone, 'gone meanwhile'),
                                           (killed, 'ended by the system.*--workers')))
def test_what_goes_wrong_in_another_process_arrives_as_one_sentence(
        broken, happens, said, network, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, broken, happens)
    with pytest.raises(InputError, match=said):
        write_masks(network, {'a': photos['a']}, tmp_path, PredictionSettings((1.,)), 1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_told(network, photos, tmp_path):
    with pytest.raises(OSError, match='nowhere'):
        write_masks(network, photos, tmp_path/'nowhere', PredictionSettings((1.,)), 1)


@pytest.mark.parametrize('workers', (0, 1))
def test_a_photo_that_is_missing_is_told_and_masks_written_by_then_stay(
        workers, network, photos, tmp_path):
    named = {'a': photos['a'], 'absent': tmp_path/'absent.jpg'}
    with pytest.raises(InputError, match='absent.jpg: the file is missing'):
        write_masks(network, named, tmp_path, PredictionSettings((1.,)), workers)
    assert {path.name for path in tmp_path.iterdir()} <= {'a.png'}


def test_a_photo_that_is_too_large_for_a_crf_is_told_with_a_size_that_does():
    check_crf((6000, 4000), 21, 1024)
    check_crf((1024, 1024), 21, 1024)
    with pytest.raises(InputError, match='IMG_1.jpg: .*6,000 x 4,000.*--longest 1388 of'):
        check_crf((6000, 4000), 21, 6000, 'IMG_1.jpg')
    check_crf((6000, 4000), 21, 1388)


def test_a_crf_that_is_too_large_is_refused_before_it_is_begun(network, tmp_path):
    photo = tmp_path/'large.png'
    Image.new('RGB', (4000, 2000)).save(photo)
    settings = PredictionSettings((.05,), crf=True, longest=4000)
    with pytest.raises(InputError, match='smaller size .--longest'):
        predict_labels(network, read_image(photo), settings)
    with pytest.raises(InputError, match='large.png: a dense CRF'):
        write_masks(network, {'large': photo}, tmp_path, settings, 0)
    assert [path.name for path in tmp_path.iterdir()] == ['large.png']


def test_settings_that_cannot_work_are_told():
    wrong = PredictionSettings(scales=(0.,), longest=0, window=-1)
    with pytest.raises(InputError) as told:
        check_settings(wrong)
    assert [said.split()[0] for said in told.value.args] == ['scales', 'longest', 'window']

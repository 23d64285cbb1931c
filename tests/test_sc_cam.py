"SC-CAM: settings and files that can't work are refused; any round goes on to the last bit."
import csv
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import wsss_nb.sc_cam as sc_cam
from wsss_nb.backbones import BackboneSettings
from wsss_nb.costs import parameters
from wsss_nb.files import InputError
from wsss_nb.sc_cam import (SC_CAM, SC_CAM_VOC, SubCategories, cluster_classes, draw_sub_categories,
                            read_array, too_few, write_array)
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.training import Machine, TrainingSettings
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

ALONE = Machine(workers=0)
METHOD = SubCategories(
    BackboneSettings('resnet18', 'none', 32, False, 0, 'frozen'),
    TrainingSettings(epochs=2, batch_size=4), sub_categories=2, weight=1., rounds=2,
    restarts=2).following(Lead(side=64, crop=64))


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> VOCFolder:
    return VOCFolder(make_shapes(tmp_path_factory.mktemp('sc')/'shapes', 12, 1, 64), 'train')


@pytest.fixture(scope='module')
def done(photos, tmp_path_factory) -> Path:
    "The folder of a classifier that was trained without a break."
    folder = tmp_path_factory.mktemp('done')/'classifier'
    METHOD.train(Work(photos, folder, ALONE))
    return folder


def files_of(folder: Path) -> dict[str, dict]:
    "All that a classifier's folder holds, by its path there."
    found = {}
    for path in folder.rglob('*.safetensors'):
        found[str(path.relative_to(folder))] = load_file(path)
    for path in folder.rglob('*.npz'):
        dtype = np.int64 if path.stem == 'sub_labels' else np.float32
        found[str(path.relative_to(folder))] = {'array': read_array(path, 12, dtype)}
    return found


def same(one: dict[str, dict], other: dict[str, dict]) -> bool:
    "Whether all tensors of two folders are the same to the last bit."
    if one.keys() != other.keys():
        return False
    for path, tensors in one.items():
        if not all(torch.equal(tensors[name], other[path][name]) for name in tensors):
            return False
    return True


@pytest.mark.parametrize('change, said', [
    (dict(sub_categories=0), 'sub_categories must be more than 0, not 0'),
    (dict(rounds=0), 'rounds must be more than 0, not 0'),
    (dict(restarts=-1), 'restarts must be more than 0, not -1'),
    (dict(weight=-1.), 'weight must be 0 or more, not -1.0'),
    (dict(dropout=1.), 'dropout must be from 0 to below 1, not 1.0'),
    (dict(clustering='round'), 'clustering must be plain or spherical, not round'),
    (dict(labels='none'), 'labels must be clusters or random, not none'),
    (dict(long_side=(9, 8)), 'long_side must be two numbers of pixels'),
])
def test_settings_that_cannot_work_are_named(change, said):
    found = all_faults(replace(METHOD, **change))
    assert len(found) == 1 and found[0].startswith(said)


def test_each_round_has_its_files_and_the_last_one_is_the_classifier(done):
    found = files_of(done)
    names = ['features.npz', 'model.safetensors', 'sub_labels.npz']
    expected = ['model.safetensors', 'round-0/model.safetensors']
    for number in (1, 2):
        expected += [f'round-{number}/{name}' for name in names]
    assert sorted(found) == expected
    last = found['round-2/model.safetensors']
    assert all(torch.equal(tensor, last[name]) for name, tensor in
               found['model.safetensors'].items())
    with (done/'log.csv').open() as file:
        row = list(csv.DictReader(file))[-1]
    assert {'image', 'sub', 'total', 'sub_tags'} <= row.keys() and row['step'] == '6'
    assert not list(done.rglob('checkpoint-*'))


class PowerCut(Exception):
    pass


@pytest.mark.parametrize('number, what', [
    (1, 'features'), (1, 'clusters'), (1, 'step'), (2, 'features'), (2, 'step'), (2, 'model')])
def test_a_run_that_was_cut_off_goes_on_to_the_last_bit(
        number, what, photos, done, tmp_path, monkeypatch):
    work = Work(photos, tmp_path/'classifier', ALONE)
    calls = []

    def cut(function, at):
        def wrapped(*arguments, **named):
            calls.append(what)
            if len(calls) == at:
                raise PowerCut
            return function(*arguments, **named)
        return wrapped

    with monkeypatch.context() as patched:
        if what == 'features':
            patched.setattr(sc_cam, 'pooled_features', cut(sc_cam.pooled_features, number))
        elif what == 'clusters':
            patched.setattr(sc_cam, 'cluster_classes', cut(sc_cam.cluster_classes, number))
        elif what == 'step':   # of the six that a round has
            patched.setattr(SubCategories, 'loss', cut(SubCategories.loss, 6 * number - 2))
        else:
            patched.setattr(sc_cam, 'save_model', cut(sc_cam.save_model, 1))
        with pytest.raises(PowerCut):
            METHOD.train(work)
    assert not (work.folder/'model.safetensors').exists()
    METHOD.train(work)
    assert same(files_of(work.folder), files_of(done))


def test_ctrl_c_leaves_a_checkpoint_and_the_same_command_ends_where_one_does(
        photos, done, tmp_path, monkeypatch):
    work = Work(photos, tmp_path/'classifier', ALONE)
    steps = []
    loss = SubCategories.loss

    def pressed(self, network, batch, at):
        steps.append(at.step)
        if len(steps) == 9:
            signal.raise_signal(signal.SIGINT)
        return loss(self, network, batch, at)

    with monkeypatch.context() as patched:
        patched.setattr(SubCategories, 'loss', pressed)
        with pytest.raises(KeyboardInterrupt):
            METHOD.train(work)
    assert [p.name for p in (work.folder/'round-2').glob('checkpoint-*')] == ['checkpoint-000003']
    METHOD.train(work)
    assert same(files_of(work.folder), files_of(done))
    time = (work.folder/'model.safetensors').stat().st_mtime_ns
    METHOD.train(work)
    assert (work.folder/'model.safetensors').stat().st_mtime_ns == time


def test_without_weight_all_rounds_are_one(photos, tmp_path):
    method = replace(METHOD, weight=0.)
    method.train(Work(photos, tmp_path/'classifier', ALONE))
    found = files_of(tmp_path/'classifier')
    one, two = [found[f'round-{n}/model.safetensors'] for n in (1, 2)]
    parents = [name for name in one if not name.startswith('sub_classifier')]
    assert all(torch.equal(one[name], two[name]) for name in parents)


def test_random_sub_labels_have_the_same_sizes(photos, done, tmp_path):
    method = replace(METHOD, labels='random', rounds=1)
    method.train(Work(photos, tmp_path/'classifier', ALONE))
    found = read_array(done/'round-1'/'sub_labels.npz', 12, np.int64)
    dealt = read_array(tmp_path/'classifier'/'round-1'/'sub_labels.npz', 12, np.int64)
    assert torch.equal(found.sort(0).values, dealt.sort(0).values)
    assert torch.equal(found < 0, dealt < 0) and not torch.equal(found, dealt)


def test_spherical_clusters_are_those_of_directions(photos, done):
    features = read_array(done/'round-1'/'features.npz', 12)
    lengths = torch.linspace(.1, 10, 12)[:, None]
    work = Work(photos, done, ALONE)
    spherical = replace(METHOD, clustering='spherical')
    one, other = [spherical.clusters(work, f) for f in (features, features * lengths)]
    assert torch.equal(one, other)
    assert not torch.equal(METHOD.clusters(work, features * lengths), one)


def test_a_class_with_too_few_photos_has_fewer_kinds_and_it_is_said(photos, tmp_path, capsys):
    tags = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0]])
    clusters = cluster_classes(torch.eye(3), tags, 3)
    assert sorted(clusters[:, 0].tolist()) == [0, 1, 2]
    assert clusters[:, 1].tolist() == [0, -1, -1]
    assert too_few(clusters, ('cat', 'dog', 'owl'), 3) == [
        'dog gets 1 of 3 sub-categories (photos with this tag: 1)']
    short = replace(METHOD.training, epochs=.4)
    many = replace(METHOD, sub_categories=10, rounds=1, training=short)
    many.train(Work(photos, tmp_path/'classifier', ALONE))
    assert 'of 10 sub-categories (photos with this tag: ' in capsys.readouterr().out


def test_arrays_that_are_broken_or_of_other_photos_are_refused(tmp_path):
    path = tmp_path/'features.npz'
    with pytest.raises(InputError, match='there is no such array'):
        read_array(path, 3)
    write_array(path, torch.zeros(3, 2))
    with pytest.raises(InputError, match='3 x 2, not float32 of 4 x any.. Without this file'):
        read_array(path, 4)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match='is no whole array'):
        read_array(path, 3)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(InputError, match='is no whole array'):
        read_array(path, 3)


def test_the_sheet_has_a_row_for_each_kind(photos, done):
    clusters = read_array(done/'round-1'/'sub_labels.npz', 12, np.int64)
    c = (clusters >= 0).sum(0).argmax().item()
    sheet = draw_sub_categories(photos, done/'round-1', c, count=2, side=50)
    rows = clusters[:, c].max().item() + 1
    assert sheet.width == 2 * 58 and sheet.height > rows * 34


def test_the_network_fits_any_backbone():
    for name in ('efficientnet_lite0', 'vgg16', 'timm/vgg11'):
        settings = BackboneSettings(name, 'none', 16, False, 0, 'frozen')
        network = replace(METHOD, backbone=settings).network(3).eval()
        images = torch.zeros(2, 3, 48, 64)
        with torch.no_grad():
            assert network(images).sub.shape == (2, 6)
            maps = network.class_maps(images)
            assert network.sub_class_maps(images).shape == (2, 3, 2, *maps.shape[2:])
            assert maps.shape == (2, 3, 3, 4)


def test_parts_of_a_batch_and_half_precision_take_the_same_step():
    method = replace(METHOD, dropout=0.)
    torch.manual_seed(0)
    network = method.network(3).eval()
    batch = method.example(3)
    batch.targets['sub_labels'][0, 4] = 1
    images = torch.randn(2, 3, 64, 64)
    found = []
    for precision, parts in ((None, [slice(0, 2)]), (None, [slice(0, 1), slice(1, 2)]),
                             (torch.bfloat16, [slice(0, 2)])):
        network.zero_grad()
        for part in parts:
            targets = {name: target[part] for name, target in batch.targets.items()}
            with torch.autocast('cpu', torch.bfloat16, enabled=precision is not None):
                terms = method.loss(network, batch._replace(images=images[part], targets=targets),
                                    None)
            (terms['total'] / len(parts)).backward()
        found.append(network.sub_classifier.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[0], found[2], rtol=.1, atol=.05)


def test_what_is_published_is_in_the_published_system():
    classifier = SC_CAM_VOC.following(side=512).classifier
    assert (classifier.sub_categories, classifier.weight) == (10, 5.)
    assert (classifier.rounds, classifier.restarts, classifier.dropout) == (3, 10, .5)
    assert (classifier.long_side, classifier.training.crop) == ((256, 512), 224)
    assert (SC_CAM_VOC.cams.merge, SC_CAM_VOC.cams.background) == ('sum', .15)
    assert SC_CAM.classifier == SubCategories()
    assert parameters(classifier, 20) == {'parameters': 105_972_032, 'learning': 105_103_360}


SCRIPT = '''
import sys
from pathlib import Path
from test_sc_cam import ALONE, METHOD
from wsss_nb.training import process
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Work
print(f'one of {process().num_processes} processes', flush=True)
METHOD.train(Work(VOCFolder(sys.argv[1], 'train'), Path(sys.argv[2]), ALONE))
'''


def test_two_processes_share_the_photos(photos, done, tmp_path):
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
               '--nproc_per_node', '2', script, photos.root, tmp_path/'classifier']
    environment = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1',
                                'PYTHONPATH': here}
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True,
                           timeout=300, env=environment)
    assert ended.returncode == 0 and 'one of 2 processes' in ended.stdout, ended.stderr[-2000:]
    found = files_of(tmp_path/'classifier')
    alone = files_of(done)
    assert found.keys() == alone.keys()
    ours = found['round-1/features.npz']['array']
    theirs = alone['round-1/features.npz']['array']
    # a place where rounding turns a ReLU is as far off on another processor, in one process, too
    assert (ours - theirs).norm() < 2e-3 * theirs.norm()
    for tensor in found['model.safetensors'].values():
        assert tensor.isfinite().all()

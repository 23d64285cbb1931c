"The contract: what every method and every system must do, ours and those of other packages."
import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM
from wsss_nb.loaders import Batch
from wsss_nb.methods import System, stages_of
from wsss_nb.photos import read_mask
from wsss_nb.pipeline import run
from wsss_nb.run import Config, Run
from wsss_nb.settings import all_faults, from_json, to_json
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import SYSTEMS, known_methods
from wsss_nb.training import At, TrainingSettings

PLUGIN = Path(__file__).parent/'plugin'
METHODS = sum((list(named.values()) for named in known_methods().values()), [])
TRAINED = [method for method in METHODS if hasattr(method, 'training')]


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=8, val=2, size=96)


def names(methods: list[type]) -> list[str]:
    return [f'{method.role}-{method.name}' for method in methods]


def settings_classes(kind: type) -> list[type]:
    "A settings class and those of its parts."
    value = kind()
    found = [kind]
    for part in fields(value):
        inner = getattr(value, part.name)
        if is_dataclass(inner):
            found += settings_classes(type(inner))
    return found


@pytest.mark.parametrize('method', METHODS, ids=names(METHODS))
def test_a_method_is_a_value(method):
    value = method()
    assert pickle.loads(pickle.dumps(value)) == value
    assert from_json(method, json.loads(json.dumps(to_json(value))), {
        method.role: {method.name: method}}, method.role) == value
    assert all_faults(value) == []
    assert hash(value) == hash(method())
    assert value.name and value.role in ('classifier', 'cams', 'refiner', 'segmenter')


def has_help(source: list[str], place: int) -> bool:
    "Whether a field's line, or the one above it, is a comment for the help."
    above = source[place - 1].strip()
    return '  # ' in source[place] or above.startswith('# ')


@pytest.mark.parametrize('method', METHODS, ids=names(METHODS))
def test_every_setting_has_a_line_of_help(method):
    for kind in settings_classes(method):
        for own in filter(is_dataclass, kind.__mro__):
            source = inspect.getsource(own).splitlines()
            for name, annotation in own.__annotations__.items():
                is_setting = 'ClassVar' not in str(annotation)
                has_parts = 'Settings' in str(annotation) or 'Optimiser' in str(annotation)
                if not is_setting or has_parts:
                    continue
                places = [i for i, line in enumerate(source) if line.startswith(f'    {name}:')]
                assert has_help(source, places[0]), f'{own.__name__}.{name}'


@pytest.mark.parametrize('name', SYSTEMS)
def test_a_system_survives_json_and_pickling_and_builds_without_memory(name):
    system = SYSTEMS[name]
    assert pickle.loads(pickle.dumps(system)) == system
    written = json.loads(json.dumps(to_json(system)))
    assert from_json(System, written, known_methods()) == system
    assert system.source
    decided = system.following(side=512)
    assert decided.following(side=64) == decided
    with torch.device('meta'):
        for role, method in decided.parts().items():
            if hasattr(method, 'training'):
                network = method.network(20)
                assert all(p.device.type == 'meta' for p in network.parameters()), role


def small(method: type):
    "A method with a small network and few steps."
    settings = dict(backbone=BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen'),
                    training=replace(method().training, epochs=1, batch_size=4, crop=96))
    value = method()
    if value.backbone.name is not None:   # a method of one network only
        settings.pop('backbone')
        settings['backbone'] = replace(value.backbone, weights='none', frozen_stages=0)
    return replace(value, **settings)


@pytest.mark.parametrize('method', TRAINED, ids=names(TRAINED))
def test_a_method_takes_two_steps(method):
    torch.manual_seed(0)
    value = small(method)
    network = value.network(3).train()
    example = value.example(3)
    assert isinstance(example, Batch) and example.images.shape == (2, 3, 96, 96)
    learning = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(learning, lr=1e-3)
    before = [p.detach().clone() for p in learning]
    for step in range(2):
        images = torch.randn(example.images.shape, generator=torch.Generator().manual_seed(step))
        terms = value.loss(network, Batch(images, example.targets), At(step, 2, 1))
        assert torch.isfinite(terms['total'])
        optimiser.zero_grad()
        if terms['total'].requires_grad:
            terms['total'].backward()
        optimiser.step()
    assert any(not torch.equal(p, b) for p, b in zip(learning, before))


def shortened(method):
    "A method that does everything it does, but briefly."
    found = {}
    if hasattr(method, 'training'):
        found['training'] = replace(method.training, epochs=1, batch_size=4)
    for name, value in {'scales': (1.,), 'rounds': 1}.items():
        if hasattr(method, name):
            found[name] = value
    return replace(method, **found)


IN_SMALL = [name for name, system in SYSTEMS.items() if 'in small' in system.source]


@pytest.mark.parametrize('name', IN_SMALL)
def test_a_whole_system_in_small(name, shapes, tmp_path):
    parts = {role: shortened(part) for role, part in SYSTEMS[name].parts().items()}
    system = replace(SYSTEMS[name], **parts)
    config = Config(shapes, tmp_path/name, system, workers=0)
    metrics = run(config)
    this = Run(config)
    assert set(this.stages) == set(metrics['seconds']) == set(stages_of(system))
    assert this.network('segmenter')
    if 'cams' in this.stages:
        assert this.network('classifier')
        assert load_file(this.root/'classifier'/'model.safetensors')
        assert isinstance(this.cams[0], CAM)
    labels = read_mask(this.root/'pseudo'/f'{this.photos.ids[0]}.png')
    assert labels.shape == this.photos.truth(0).shape
    assert len(list((this.root/'predictions').glob('*.png'))) == 10


def in_packages(tmp_path: Path, plugin: str) -> dict[str, str]:
    "Install a package of these tests into a folder of its own; the environment that knows it."
    packages = tmp_path/'packages'
    copied = tmp_path/plugin
    shutil.copytree(PLUGIN.parent/plugin, copied)
    subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps',
                    '--no-build-isolation', '--target', packages, copied], check=True)
    return os.environ | {'PYTHONPATH': str(packages)}


def command(*words, **options) -> subprocess.CompletedProcess:
    "The command in a process of its own."
    start = [sys.executable, '-c', 'from wsss_nb.cli import main; main()']
    return subprocess.run([*start, *map(str, words)], capture_output=True, text=True, **options)


def test_a_method_of_another_package_runs_without_a_change_in_ours(shapes, tmp_path):
    known = in_packages(tmp_path, 'plugin')
    done = command('run', '--data', shapes, '--out', tmp_path/'run', '--classifier.epochs', '1',
                   '--classifier.batch-size', '4', '--cams.scales', '1', '--until', 'refine',
                   '--workers', '1', 'refiner:flood', '--refiner.rounds', '3', env=known)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path/'run'/'config.json').read_text())
    assert written['system']['refiner']['method'] == 'flood'
    assert written['system']['refiner']['rounds'] == 3
    assert len(list((tmp_path/'run'/'pseudo').glob('*.png'))) == 8
    # without the package, the run is not opened, and the reason is said
    done = command('compare', tmp_path/'run')
    assert done.returncode == 2 and "no refiner is called 'flood' here" in done.stderr


def test_a_pooling_and_a_system_of_another_package(shapes, tmp_path):
    known = in_packages(tmp_path, 'plugin_pooling')
    done = command('run', '--system', 'lse', '--data', shapes, '--out', tmp_path/'run',
                   '--classifier.epochs', 1, '--classifier.batch-size', 4, '--cams.scales', 1,
                   '--until', 'cams', '--workers', 0, env=known)
    assert done.returncode == 0, done.stderr[-3000:]
    written = json.loads((tmp_path/'run'/'config.json').read_text())
    assert written['system']['classifier']['pooling'] == 'lse'
    assert written['system']['source'].startswith('Pinheiro')
    done = command('compare', tmp_path/'run', env=known)
    assert done.returncode == 0, done.stderr
    done = command('cams', tmp_path/'run')     # without the package
    assert done.returncode == 2 and 'lse' in done.stderr and 'another package' in done.stderr
    assert 'Traceback' not in done.stderr


def broken_package(folder: Path, group: str, code: str) -> dict[str, str]:
    "A package with an entry point to `thing`, as pip would have put it; and the environment."
    (folder/'odd-1.0.dist-info').mkdir(parents=True)
    (folder/'odd.py').write_text(code)
    (folder/'odd-1.0.dist-info'/'METADATA').write_text('Name: odd\nVersion: 1.0\n')
    entry = f'[wsss_nb.{group}]\nmedian = odd:thing\n'
    (folder/'odd-1.0.dist-info'/'entry_points.txt').write_text(entry)
    return os.environ | {'PYTHONPATH': str(folder)}


SLIP = '''
from wsss_nb.visual_words import VisualWords
class thing(VisualWords):
    name = 'thing'
    pooling = 'gap'
'''


@pytest.mark.parametrize('group, code, said', [
    ('methods', 'def thing(): pass', 'this is no method'),
    ('methods', SLIP, "pooling has no annotation, so it stays 'hspp'"),
    ('methods', 'import nowhere', 'cannot be imported (No module named'),
    ('systems', 'thing = 3', 'this is no `System`'),
])
def test_what_another_package_gets_wrong_is_a_sentence(group, code, said, tmp_path):
    done = command('branch', env=broken_package(tmp_path/'odd', group, code))
    assert done.returncode == 2 and said in done.stderr and 'odd:thing' in done.stderr
    assert 'Traceback' not in done.stderr


def test_the_pooling_of_the_guide_is_the_one_that_is_tested():
    source = (PLUGIN.parent/'plugin_pooling'/'wsss_lse.py').read_text()
    guide = PLUGIN.parents[1]/'docs'/'add_a_system.md'
    assert f'```python\n{source}```' in guide.read_text()


def test_the_plugin_is_short_and_is_the_one_that_the_guide_prints():
    source = (PLUGIN/'wsss_flood.py').read_text()
    assert len(source.splitlines()) <= 60
    guide = PLUGIN.parents[1]/'docs'/'add_a_system.md'
    assert f'```python\n{source}```' in guide.read_text()


def test_psa_learns_as_published():
    psa = SYSTEMS['psa-voc']
    others = SYSTEMS['ssdd-voc'].classifier, SYSTEMS['sc-cam-voc'].refiner
    for method in (psa.classifier, psa.refiner, *others):
        rates = method.training.optimiser
        assert (rates.learning_rate, rates.new_layers) == (.1, 10.)
    assert psa.classifier.long_side == (256, 512)
    assert SYSTEMS['seam-voc'].refiner.training.optimiser.learning_rate == .01
    for name in ('psa-voc', 'ssdd-voc', 'sc-cam-voc', 'seam-voc'):
        assert SYSTEMS[name].following(512).refiner.factor == (1., 1.)

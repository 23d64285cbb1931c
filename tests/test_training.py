"Two processes take the same steps as one. A notebook can't start processes that share a training."
import csv
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from untrained import Noise

from wsss_nb.backbones import Backbone
from wsss_nb.classifier import WordClassifier
from wsss_nb.codebook import draw_memory, update_memory
from wsss_nb.files import InputError
from wsss_nb.loaders import Batch
from wsss_nb.losses import word_loss
from wsss_nb.shapes import make_shapes
from wsss_nb.training import (At, Machine, Optimiser, TrainingSettings, check_losses,
                              latest_checkpoint, progress, train)
from wsss_nb.work import in_workers

ALONE = Machine(workers=0)

SCRIPT = '''
import sys
import torch
from wsss_nb.loaders import Batch
from wsss_nb.training import Machine, TrainingSettings, process, train

class Numbers(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, place):
        x = torch.randn(5, generator=torch.Generator().manual_seed(place.index))
        return Batch(x, {'y': x.sum()[None].sin()})

def loss(model, batch, at):
    seen_twice = model(batch.images) + model(batch.images / 2)   # at two scales
    return {'total': ((seen_twice - batch.targets['y']) ** 2).mean()}

print(f'one of {process().num_processes} processes', flush=True)
torch.manual_seed(0)
layers = torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8).eval(), torch.nn.Tanh()
model = torch.nn.Sequential(*layers, torch.nn.Linear(8, 1))
model.train = lambda mode=True: model   # batch norm stays frozen, as in a backbone
settings = TrainingSettings(epochs=4, batch_size=int(sys.argv[2]))
train(model, Numbers(), loss, sys.argv[1], settings, Machine(workers=0), checkpoint_steps=5)
'''

ON_CPU = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}


def train_with(
    processes: int, folder: Path, batch_size: int = 6
) -> subprocess.CompletedProcess:
    script = folder.with_suffix('.py')
    script.write_text(SCRIPT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
    command = [*launch, str(processes), str(script), str(folder), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ON_CPU)
    assert f'of {processes} processes' in done.stdout, done.stderr[-2000:]
    return done


def test_two_processes_end_where_one_does(tmp_path):
    found = {}
    for processes in (1, 2):
        folder = tmp_path/f'with{processes}'
        done = train_with(processes, folder)
        assert done.returncode == 0, done.stderr[-2000:]
        found[processes] = load_file(folder/'model.safetensors')
    for name, tensor in found[1].items():
        torch.testing.assert_close(found[2][name], tensor, rtol=1e-4, atol=1e-5)
    logs = [(tmp_path/f'with{n}'/'log.csv').read_text().count('\n') for n in (1, 2)]
    assert logs[0] == logs[1]


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(tmp_path):
    done = train_with(2, tmp_path/'odd', batch_size=5)
    assert done.returncode != 0
    assert 'cannot be shared out evenly between 2 processes' in done.stderr


@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_precision_is_a_setting_and_not_a_code_path(precision, tmp_path):
    torch.manual_seed(0)
    stages = [torch.nn.Conv2d(3, 8, 3, 2, 1)]
    backbone = Backbone(stages, [8], [2], (.5,) * 3, (.5,) * 3)
    model = WordClassifier(backbone, 3, num_words=4)

    def loss(model, batch, at):
        return word_loss(model(batch.images), batch.targets['tags'])._asdict()

    settings = TrainingSettings(epochs=2, batch_size=4)
    train(model, Noise(), loss, tmp_path/precision, settings, Machine(precision, 0))
    weights = load_file(tmp_path/precision/'model.safetensors')
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in weights.values())


def test_a_loss_that_is_no_number_is_refused_and_the_last_checkpoint_stays(tmp_path):
    with pytest.raises(InputError, match=r'step 5 of 10 is no number \(total nan, image 2\)'):
        nan = torch.tensor(float('nan'))
        check_losses([(At(4, 10, 5), {'total': nan, 'image': torch.tensor(2.)})], tmp_path)

    def bursts(model, batch, at):
        total = model(batch.images.mean((2, 3))).square().mean()
        return {'total': total * (float('nan') if at.step == 2 else 1.)}

    settings = TrainingSettings(epochs=4, batch_size=4)
    with pytest.raises(InputError, match='the loss of step 3 of 8 is no number'):
        train(torch.nn.Linear(3, 1), Noise(), bursts, tmp_path/'bursts', settings, ALONE,
              checkpoint_steps=2)
    assert latest_checkpoint(tmp_path/'bursts')[0] == 2


def test_settings_of_a_training_are_checked():
    assert TrainingSettings(epochs=0).faults() == ['epochs must be more than 0, not 0']
    assert TrainingSettings(epochs=float('inf')).faults()
    assert Optimiser(-1.).faults() == ['learning_rate must be more than 0, not -1.0']
    assert Machine('fp8').faults() == ['precision must be no, bf16 or fp16, not fp8']
    assert replace(Machine(), workers=-1).faults() == ['workers must be 0 or more, not -1']


def test_a_bar_begins_what_it_shows_once():
    begun = []

    class Photos:
        def __len__(self):
            return 2

        def __iter__(self):
            begun.append(1)
            return iter('ab')

    bar = progress(Photos(), 'photos')
    assert bar.total == 2
    assert list(bar) == ['a', 'b'] and begun == [1]
    assert list(in_workers(str, iter([1, 2]), 1, 'items made on the way', 2)) == ['1', '2']


def refuse(item):
    raise InputError(f'{item} is refused')


@pytest.mark.parametrize('first', (str, refuse))   # the second: while the other still gives items
@pytest.mark.parametrize('last', (refuse, lambda item: os.kill(os.getpid(), signal.SIGKILL)))
def test_workers_end_with_the_loop_even_while_its_error_is_held(first, last):
    items = in_workers(first, range(40), 1, None)
    with pytest.raises(InputError) as held:
        list(in_workers(last, items, 2, None, 40))
    assert held.value.args
    assert not multiprocessing.active_children()


def test_workers_end_with_whoever_stops_asking():
    roots = in_workers(str, range(40), 2, None)
    assert next(roots) == '0'
    assert multiprocessing.active_children()
    roots.close()
    assert not multiprocessing.active_children()


MEMORY = '''
import sys
import torch
from wsss_nb.codebook import draw_memory, update_memory
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
torch.manual_seed(0)
codebook = torch.randn(5, 4)
features = torch.randn(2, 4, 3, 6)
torch.manual_seed(rank)
own = features[rank:rank + 1]
drawn = draw_memory(own, 7)
torch.save((update_memory(codebook, own, .3), drawn), f'{sys.argv[1]}/{rank}')
torch.distributed.destroy_process_group()
'''


def test_two_processes_share_one_memory_bank(tmp_path):
    script = tmp_path/'memory.py'
    script.write_text(MEMORY)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    command = [*launch, '--nproc_per_node', '2', str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ON_CPU)
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(0)
    codebook = torch.randn(5, 4)
    features = torch.randn(2, 4, 3, 6)
    first, drawn = torch.load(tmp_path/'0')
    second, drawn_too = torch.load(tmp_path/'1')
    assert torch.equal(first, second)
    assert torch.equal(drawn, drawn_too)
    assert draw_memory(features, 7).shape == drawn.shape
    # as one process that has all the photos
    torch.testing.assert_close(first, update_memory(codebook, features, .3))


PIPELINE = '''
import sys
from dataclasses import replace
from pathlib import Path
from wsss_nb.backbones import BackboneSettings
from wsss_nb.irn import IRN
from wsss_nb.pipeline import branch, do_stage, run
from wsss_nb.prediction import PredictionSettings
from wsss_nb.run import Config, Run, start_run
from wsss_nb.systems import WORDS
from wsss_nb.training import process

stage, data, out = sys.argv[1:]
parts = process().num_processes
print(f'one of {parts} processes', flush=True)
backbone = BackboneSettings('resnet18', 'none', 16, True, 3)

def short(method, **settings):
    training = replace(method.training, batch_size=4, epochs=6, accumulate=parts)
    return replace(method, training=training, **settings)

system = replace(
    WORDS, classifier=short(WORDS.classifier, backbone=backbone, num_words=16),
    cams=replace(WORDS.cams, scales=(1.,)), segmenter=short(WORDS.segmenter, scales=(1., .5)),
    prediction=PredictionSettings(scales=(1.,)))
config = Config(Path(data), Path(out), system, precision='no', workers=0)
if stage == 'run':
    run(config)
elif stage == 'predict':
    do_stage(start_run(config), 'predict')
else:
    refiner = short(IRN())
    branch(Run(config), f'{out}-irn', refiner, until='refine', workers=0)
'''


def losses(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row['total']) for row in csv.DictReader(file)]


LAUNCH = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu',
          '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no',
          '--dynamo_backend', 'no', '--num_cpu_threads_per_process', '1',
          '--main_process_port', '0']


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_whole_pipeline_on_two_processes(tmp_path):
    """Two processes that cut their photos into two parts learn what one process learns, and every
    photo is made and measured once."""
    data = make_shapes(tmp_path/'shapes', train=8, val=5, size=64)
    script = tmp_path/'pipeline.py'
    script.write_text(PIPELINE)

    def start(stage, processes):
        command = [sys.executable] if processes == 1 else LAUNCH
        words = [str(script), stage, str(data), str(tmp_path/f'with{processes}')]
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=600,
                              env=ON_CPU)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f'one of {processes} processes' in done.stdout

    one = tmp_path/'with1'
    two = tmp_path/'with2'
    for processes in (1, 2):
        start('run', processes)
    for folder in ('classifier', 'segmenter'):
        curve = losses(one/folder/'log.csv')
        assert curve and losses(two/folder/'log.csv') == pytest.approx(curve, rel=1e-3)
    # of the same maps: a rounded pixel more or less is another label to learn
    for path in (one/'cams').iterdir():
        shutil.copy(path, two/'cams')
    for processes in (1, 2):
        start('branch', processes)
    # |D_i - D_j| pulls with full force on either side of 0, so a rounding at 0 grows; on equal
    # weights the losses agree (chapter 27)
    curves = [losses(tmp_path/f'with{n}-irn'/'refiner'/'log.csv') for n in (1, 2)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-2)
    first = json.loads((one/'metrics.json').read_text())
    second = json.loads((two/'metrics.json').read_text())
    measured = (('cam', 'train', 8), ('pseudo', 'train', 8), ('segmentation', 'train', 8),
                ('segmentation', 'val', 5))
    for kind, split, images in measured:
        assert first[kind][split]['images'] == second[kind][split]['images'] == images
        miou = first[kind][split]['miou']
        assert second[kind][split]['miou'] == pytest.approx(miou, abs=.005)
    for folder in ('cams', 'pseudo', 'predictions'):
        assert names(two/folder) == names(one/folder)
    assert not [path for path in tmp_path.rglob('*') if 'unfinished' in path.name]
    # what only one of them has lost
    lost = [two/'predictions'/'train_00001.png', two/'masks'/'train_00001.png']
    walked = [tmp_path/'with2-irn'/'refiner'/'cams'/'train_00001.npz',
              tmp_path/'with2-irn'/'pseudo'/'train_00001.png']
    for path in lost + walked:
        path.unlink()
    start('predict', 2)
    start('branch', 2)
    assert all(path.exists() for path in lost + walked)


DROPOUT = '''
import sys
import torch
from wsss_nb.loaders import Batch
from wsss_nb.training import Machine, TrainingSettings, process, train

class Ones(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, place):
        return Batch(torch.ones(64), {})

class Dropping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 1)
        self.seen = []

    def forward(self, images):
        left = torch.nn.functional.dropout(images)
        self.seen.append(left)
        return self.layer(left)

def loss(model, batch, at):
    return {'total': (model(batch.images) ** 2).mean()}

torch.manual_seed(0)
model = Dropping()
seen = model.seen
settings = TrainingSettings(epochs=1, batch_size=4)
train(model, Ones(), loss, sys.argv[1], settings, Machine('no', workers=0))
torch.save(seen[0], f'{sys.argv[1]}/{process().process_index} of {process().num_processes}')
'''


def test_two_processes_drop_channels_of_their_own(tmp_path):
    script = tmp_path/'dropout.py'
    script.write_text(DROPOUT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
    seen = {}
    for processes in (1, 2):
        folder = tmp_path/f'with{processes}'
        done = subprocess.run([*launch, str(processes), str(script), str(folder)], env=ON_CPU,
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        for path in folder.glob('? of ?'):
            seen[path.name] = torch.load(path)
    assert not torch.equal(seen['0 of 2'], seen['1 of 2'])
    assert torch.equal(seen['0 of 2'], seen['0 of 1'][:2])

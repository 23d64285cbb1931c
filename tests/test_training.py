"Two processes take the same steps as one. A notebook can't start processes that share a training."
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = '''
import sys, torch
from wsss_nb.loaders import Batch
from wsss_nb.training import TrainingSettings, process, train

class Numbers(torch.utils.data.Dataset):
    def __len__(self): return 24
    def __getitem__(self, place):
        x = torch.randn(5, generator=torch.Generator().manual_seed(place.index))
        return Batch(x, x.sum()[None].sin())

print(f'one of {process().num_processes} processes', flush=True)
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.BatchNorm1d(8).eval(), torch.nn.Tanh(), torch.nn.Linear(8, 1))
model.train = lambda mode=True: model   # batch norm stays frozen, as in a backbone
loss = lambda model, batch: {'total': ((model(batch.images) + model(batch.images / 2) - batch.targets) ** 2).mean()}   # seen at two scales
train(model, Numbers(), loss, sys.argv[1], TrainingSettings(epochs=4, batch_size=int(sys.argv[2]), workers=0, checkpoint_steps=5))
'''


def train_with(processes: int, folder: Path, batch_size: int = 6) -> subprocess.CompletedProcess:
    script = folder.with_suffix('.py')
    script.write_text(SCRIPT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(processes)]
    done = subprocess.run([*launch, str(script), str(folder), str(batch_size)], capture_output=True, text=True, timeout=300,
                          env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'})
    assert f'of {processes} processes' in done.stdout, done.stderr[-2000:]
    return done


def test_two_processes_end_where_one_does(tmp_path):
    for processes in (1, 2):
        done = train_with(processes, tmp_path/f'with{processes}')
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path/f'with{n}'/'model.safetensors') for n in (1, 2))
    for name in one: torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5)
    assert (tmp_path/'with2'/'log.csv').read_text().count('\n') == (tmp_path/'with1'/'log.csv').read_text().count('\n')


def test_a_batch_that_cannot_be_shared_out_evenly_is_refused(tmp_path):
    done = train_with(2, tmp_path/'odd', batch_size=5)
    assert done.returncode != 0 and 'cannot be shared out evenly between 2 processes' in done.stderr


@pytest.mark.parametrize('precision', ['no', 'bf16'])
def test_precision_is_a_setting_and_not_a_code_path(precision, tmp_path):
    from wsss_nb.backbones import Backbone
    from wsss_nb.classifier import WordClassifier
    from wsss_nb.loaders import Batch
    from wsss_nb.losses import word_loss
    from wsss_nb.training import TrainingSettings, train

    class Photos(torch.utils.data.Dataset):
        def __len__(self): return 8
        def __getitem__(self, place): return Batch(torch.randn(3, 16, 24, generator=torch.Generator().manual_seed(place.index)), torch.eye(3)[place.index % 3])

    torch.manual_seed(0)
    backbone = Backbone([torch.nn.Conv2d(3, 8, 3, 2, 1)], [8], [2], (.5,) * 3, (.5,) * 3)
    model = WordClassifier(backbone, 3, num_words=4)
    loss = lambda model, batch: word_loss(model(batch.images), batch.targets)._asdict()
    train(model, Photos(), loss, tmp_path/precision, TrainingSettings(epochs=2, batch_size=4, workers=0, precision=precision))
    weights = load_file(tmp_path/precision/'model.safetensors')
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in weights.values())


def test_two_processes_share_one_memory_bank(tmp_path):
    from wsss_nb.codebook import update_memory
    script = tmp_path/'memory.py'
    script.write_text(f'''
import torch
from wsss_nb.codebook import draw_memory, update_memory
torch.distributed.init_process_group('gloo')
rank = torch.distributed.get_rank()
torch.manual_seed(0)
codebook, features = torch.randn(5, 4), torch.randn(2, 4, 3, 6)
torch.manual_seed(rank)
drawn = draw_memory(features[rank:rank + 1], 7)
torch.save((update_memory(codebook, features[rank:rank + 1], .3), drawn), r'{tmp_path}/' + str(rank))
torch.distributed.destroy_process_group()
''')
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', str(script)]
    done = subprocess.run(launch, capture_output=True, text=True, timeout=300, env=os.environ | {'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    torch.manual_seed(0)
    codebook, features = torch.randn(5, 4), torch.randn(2, 4, 3, 6)
    (first, drawn), (second, drawn_too) = (torch.load(tmp_path/str(rank)) for rank in (0, 1))
    assert torch.equal(first, second) and torch.equal(drawn, drawn_too)
    torch.testing.assert_close(first, update_memory(codebook, features, .3))   # as one process that has all the photos


PIPELINE = '''
import sys
from pathlib import Path
from wsss_nb.pipeline import Config, branch, run
from wsss_nb.training import process

stage, data, out = sys.argv[1], *map(Path, sys.argv[2:])
print(f'one of {process().num_processes} processes', flush=True)
if stage == 'run': run(Config(data=data, out=out, backbone='resnet18', weights='none', batch_size=4, epochs=6, segmenter_batch_size=4, segmenter_epochs=6, num_words=16, scales=(1.,),
    predict_scales=(1.,), segmenter_scales=(1., .5), refiner_batch_size=4, refiner_epochs=6, workers=0, refiner_crop=96, accumulate=process().num_processes,
    segmenter_accumulate=process().num_processes, refiner_accumulate=process().num_processes))
else: branch(out, out.with_name(out.name + '-irn'), 'irn', until='refine', workers=0)
'''


def losses(path: Path) -> list[float]:
    with path.open() as file: return [float(row['total']) for row in csv.DictReader(file)]


def test_the_whole_pipeline_on_two_processes(tmp_path):
    "Two processes that cut their photos into two parts learn what one process learns, and every photo is made and measured once."
    from wsss_nb.shapes import make_shapes
    data, script = make_shapes(tmp_path/'shapes', train=8, val=5, size=64), tmp_path/'pipeline.py'
    script.write_text(PIPELINE)
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--multi_gpu', '--num_processes', '2', '--num_machines', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no',
              '--num_cpu_threads_per_process', '1', '--main_process_port', '0']
    def start(stage, processes):
        command = [sys.executable] if processes == 1 else launch
        done = subprocess.run([*command, str(script), stage, str(data), str(tmp_path/f'with{processes}')], capture_output=True, text=True, timeout=600,
                              env=os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'})
        assert done.returncode == 0 and f'one of {processes} processes' in done.stdout, done.stderr[-3000:]
    one, two = (tmp_path/f'with{n}' for n in (1, 2))
    for processes in (1, 2): start('run', processes)
    for folder in ('classifier', 'segmenter'):
        curve = losses(one/folder/'log.csv')
        assert curve and losses(two/folder/'log.csv') == pytest.approx(curve, rel=1e-3)
    for path in (one/'cams').iterdir(): shutil.copy(path, two/'cams')      # of the same maps: a rounded pixel more or less is another label to learn
    for processes in (1, 2): start('branch', processes)
    # |D_i - D_j| pulls with full force on either side of 0, so a rounding at 0 grows; on equal weights the losses agree (chapter 27)
    assert losses(tmp_path/'with2-irn'/'refiner'/'log.csv') == pytest.approx(losses(tmp_path/'with1-irn'/'refiner'/'log.csv'), rel=1e-2)
    first, second = (json.loads((root/'metrics.json').read_text()) for root in (one, two))
    for kind, split, images in (('cam', 'train', 8), ('pseudo', 'train', 8), ('segmentation', 'train', 8), ('segmentation', 'val', 5)):
        assert first[kind][split]['images'] == second[kind][split]['images'] == images
        assert second[kind][split]['miou'] == pytest.approx(first[kind][split]['miou'], abs=.005)
    for folder, suffix in (('cams', '.npz'), ('pseudo', '.png'), ('predictions', '.png')):
        assert {p.name for p in (two/folder).iterdir()} == {p.name for p in (one/folder).iterdir()}
    assert not [p for p in tmp_path.rglob('*') if 'unfinished' in p.name]

"SSDD: what is refused, sizes, stages that are cut off, parts of a batch, whole runs."
import os
import pickle
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from untrained import untrained_run

from wsss_nb.backbones import BackboneSettings
from wsss_nb.cam import CAM
from wsss_nb.dynamic_ssdd import SSDD, SSDD_VOC, DynamicSSDD
from wsss_nb.files import InputError, read_json
from wsss_nb.loaders import Batch
from wsss_nb.photos import read_mask
from wsss_nb.pipeline import do_stage, measure_new_masks
from wsss_nb.prediction import predict_labels
from wsss_nb.run import Run, start_run
from wsss_nb.settings import all_faults
from wsss_nb.shapes import make_shapes
from wsss_nb.ssdd import find_flags, reflected
from wsss_nb.static_ssdd import BothMasks, Detection, StaticSSDD, read_both
from wsss_nb.training import At, Machine, TrainingSettings, process
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work

RANDOM = BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen')
SHORT = TrainingSettings(epochs=2, batch_size=4, crop=64)
DETECTION = Detection(RANDOM, SHORT, middle=8, width=8)
STATIC = StaticSSDD(RANDOM, replace(SHORT, crop=96), knowledge='cam', detection=DETECTION)
DYNAMIC = DynamicSSDD(RANDOM, SHORT, middle=8, width=8)


@pytest.fixture(scope='session')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=8, val=2, size=64)


@pytest.fixture
def photos(shapes) -> VOCFolder:
    return VOCFolder(shapes, 'train')


def cams_of(photos: VOCFolder) -> list[CAM]:
    "The truth as CAMs, on a grid that is too coarse for it."
    found = []
    for i in range(len(photos)):
        truth = photos.truth(i)
        classes = np.setdiff1d(truth, (0, 255)).astype(int) - 1
        coarse = truth[::8, ::8]
        maps = np.stack([coarse == c + 1 for c in classes]).astype(np.float32)
        found.append(CAM(classes, maps, truth.shape))
    return found


@pytest.mark.parametrize('wrong, said', [
    (replace(STATIC, reach=0.), 'reach must be more than 0, not 0.0'),
    (replace(STATIC, bias=float('nan')), 'bias must be a number, not nan'),
    (replace(STATIC, knowledge='crf'), 'knowledge must be walk or cam, not crf'),
    (replace(STATIC, betas=()), r'betas must be numbers over 0, not \(\)'),
    (replace(DETECTION, threshold=-1.), 'threshold must be 0 or more, not -1.0'),
    (replace(DETECTION, factor=(2., 1.)), r'factor must begin with the smaller number'),
    (replace(DETECTION, factor=(0., 1.)), 'factor must be numbers from 0.0625 to 4'),
    (replace(DYNAMIC, iterations=0), 'iterations must be more than 0, not 0'),
    (replace(DYNAMIC, training=replace(SHORT, accumulate=2)),
     'training.accumulate must be 1, not 2: which photos of a step have flags'),
])
def test_what_cannot_work_is_told(wrong, said):
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(*all_faults(wrong))
    assert len(all_faults(wrong)) == 1


def test_the_parts_follow_the_first_network():
    decided = StaticSSDD().following(Lead(side=160, crop=160))
    assert decided.detection.training.crop == decided.training.crop == 160
    assert decided.detection.backbone.name == 'efficientnet_lite0'
    assert decided.following(Lead(side=64, crop=64)) == decided


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_networks_have_the_published_sizes():
    system = SSDD_VOC.following(512)
    with torch.device('meta'):
        static = system.refiner.detection.network(20)
        dynamic = system.segmenter.network(20)
    assert count(static.backbone) == 105_070_912
    assert count(static.head) == 18_972_693
    assert count(static.difference) == 1_475_072 + 925_696
    assert count(static.difference.photo) == 1_475_072
    assert count(static.backbone) + count(static.head) == 124_043_605
    nets = count(dynamic.first) + count(dynamic.second)
    assert nets == 4_801_536
    assert count(dynamic) - nets == 143_016_298
    assert count(dynamic.backbone) + count(dynamic.main) == 124_043_605


@pytest.mark.parametrize('length', range(1, 8))
@pytest.mark.parametrize('reach', range(0, 20, 3))
def test_rows_are_mirrored_as_numpy_does(length, reach):
    wanted = np.pad(np.arange(length), reach, mode='reflect')
    assert reflected(length, reach, 'cpu').tolist() == wanted.tolist()


def test_flags_count_what_is_outside_for_nothing():
    knowledge = torch.tensor([[[1, 1, 255, 255]]])
    advice = torch.tensor([[[1, 0, 255, 255]]])
    tags = torch.ones(1, 1)
    assert not find_flags(knowledge, advice, tags).any()
    assert find_flags(knowledge, advice, tags, .51).tolist() == [[False, True]]
    nowhere = torch.tensor([[1., 1]])
    assert find_flags(knowledge, advice, nowhere).tolist() == [[False, False, True]]
    assert not find_flags(knowledge, advice, nowhere, absent_tags=False).any()


def stop_at(step: int) -> Machine:
    "A machine on which somebody presses Ctrl-C at a step."
    def press(at: At) -> None:
        if at.step == step:
            signal.raise_signal(signal.SIGINT)
    return Machine(workers=0, step_done=press)


def contents(folder: Path) -> dict[str, bytes]:
    "The files of a folder that don't hold times."
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_the_static_stage_goes_on_where_it_was_cut_off(photos, tmp_path):
    work = Work(photos, tmp_path/'whole', Machine(workers=0), cams=cams_of(photos))
    STATIC.prepare(work)
    cut = replace(work, folder=tmp_path/'cut', machine=stop_at(1))
    with pytest.raises(KeyboardInterrupt):
        STATIC.prepare(cut)
    assert (tmp_path/'cut'/'detection'/'checkpoint-000002').is_dir()
    assert not any((tmp_path/'cut'/'differences').iterdir())
    (tmp_path/'cut'/'advice'/f'{photos.ids[2]}.png').unlink()
    STATIC.prepare(replace(cut, machine=Machine(workers=2)))
    whole = contents(tmp_path/'whole')
    assert len([name for name in whole if name.startswith('differences')]) == len(photos)
    assert contents(tmp_path/'cut') == whole


def test_the_dynamic_stage_goes_on_where_it_was_cut_off(photos, tmp_path):
    masks = photos.root/'SegmentationClass'
    work = Work(photos, tmp_path/'whole', Machine(workers=0), masks=masks)
    DYNAMIC.train(work)
    cut = replace(work, folder=tmp_path/'cut', machine=stop_at(2))
    with pytest.raises(KeyboardInterrupt):
        DYNAMIC.train(cut)
    assert (tmp_path/'cut'/'checkpoint-000003').is_dir()
    network = DYNAMIC.train(replace(cut, machine=Machine(workers=2)))
    weights = [load_file(tmp_path/name/'model.safetensors') for name in ('whole', 'cut')]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    labels = predict_labels(network, photos.image(0).resize((33, 21)))
    assert labels.shape == (21, 33) and labels.max() <= len(photos.classes)


def batch_of_four(method: Detection | DynamicSSDD) -> Batch:
    "Random photos and label maps; a class is wiped out in two of them."
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 4, (3, 4, 64, 64), generator=generator)
    masks[1, 1:3][masks[1, 1:3] == 2] = 0
    targets = dict(zip(('knowledge', 'advice', 'mask'), masks))
    names = method.example(3).targets
    targets = {name: targets[name] for name in names if name in targets}
    tags = (torch.rand(4, 3, generator=generator) < .6).float()
    images = torch.randn(4, 3, 64, 64, generator=generator)
    return Batch(images, targets | {'tags': tags})


def gradients(method: Detection | DynamicSSDD, batch: Batch) -> dict[str, torch.Tensor]:
    "Of a network that is the same in every process, for a batch or a share of it."
    torch.manual_seed(0)
    network = method.network(3).train()
    shared = network
    if process().num_processes > 1:
        shared = torch.nn.parallel.DistributedDataParallel(network, broadcast_buffers=False)
    method.loss(shared, batch, At(0, 1, 1))['total'].backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


def take_share(rank: int, folder: Path, port: int) -> None:
    "One of two processes that share a batch."
    torch.set_num_threads(1)
    names = {'RANK': rank, 'LOCAL_RANK': rank, 'WORLD_SIZE': 2, 'MASTER_PORT': port,
             'MASTER_ADDR': '127.0.0.1', 'ACCELERATE_USE_CPU': 'true'}
    os.environ.update({name: str(value) for name, value in names.items()})
    assert process().num_processes == 2
    for method in (DETECTION, SURE):
        images, targets = batch_of_four(method)
        own = slice(2 * rank, 2 * rank + 2)
        share = Batch(images[own], {name: target[own] for name, target in targets.items()})
        torch.save(gradients(method, share), folder/f'{method.title} {rank}.pt')
    torch.distributed.destroy_process_group()


SURE = replace(DYNAMIC, threshold=.05)   # with random weights a class is soon wiped out


def test_two_processes_take_the_step_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(take_share, (tmp_path, port), nprocs=2)
    for method in (DETECTION, SURE):
        wanted = gradients(method, batch_of_four(method))
        for rank in range(2):
            found = torch.load(tmp_path/f'{method.title} {rank}.pt')
            assert found.keys() == wanted.keys()
            for name, gradient in wanted.items():
                torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize('method', [DETECTION, DYNAMIC])
def test_bfloat16_gives_numbers(method):
    network = method.network(3).train()
    example = method.example(3)
    images = torch.randn(example.images.shape, generator=torch.Generator().manual_seed(0))
    targets = example.targets | {'tags': torch.ones(2, 3)}
    with torch.autocast('cpu', torch.bfloat16):
        terms = method.loss(network, Batch(images, targets), At(0, 1, 1))
    terms['total'].backward()
    assert all(term.isfinite() for term in terms.values())


def test_a_label_map_that_is_not_there_is_told(photos, tmp_path):
    with pytest.raises(InputError, match=f'knowledge.{photos.ids[1]}.png'):
        read_both(photos, tmp_path, 1)
    write = pickle.loads(pickle.dumps(BothMasks(STATIC, Work(photos, tmp_path))))
    assert write.method == STATIC


@pytest.mark.parametrize('knowledge', ['walk', 'cam'])
def test_a_run_refines_with_it_and_goes_on(knowledge, shapes, tmp_path):
    method = StaticSSDD(RANDOM, replace(SHORT, crop=96), betas=(10.,), alphas=(4.,), steps=8,
                        knowledge=knowledge, detection=DETECTION)
    this = untrained_run(tmp_path/'run', shapes, refiner=method)
    do_stage(this, 'cams')
    do_stage(this, 'refine')
    assert ('walked' in this.metrics) == (knowledge == 'walk')
    shares = read_json(this.root/'refiner'/'choice.json')
    assert shares['photos'] == len(this.photos)
    assert shares['merged'] == pytest.approx(this.metrics['pseudo']['train']['miou'])
    before = contents(this.root/'pseudo')
    lost = this.root/'pseudo'/f'{this.photos.ids[3]}.png'
    lost.unlink()
    do_stage(Run(this.config), 'refine')
    assert contents(this.root/'pseudo') == before
    for i, name in enumerate(this.photos.ids):
        mask = read_mask(this.root/'pseudo'/f'{name}.png')
        both = read_both(this.photos, this.root/'refiner', i)
        assert ((mask == both['knowledge']) | (mask == both['advice'])).all()
    again = measure_new_masks(this, this.photos)
    assert again['pseudo']['miou'] == pytest.approx(shares['merged'], abs=.02)


def test_without_masks_only_shares_are_told(photos, tmp_path):
    class Unmasked(VOCFolder):
        has_truth = False

        def truth(self, i):
            return None

    bare = Unmasked(photos.root, 'train')
    work = Work(bare, tmp_path/'refiner', Machine(workers=0), cams=cams_of(photos))
    STATIC.prepare(work)
    STATIC.finish(work, tmp_path/'pseudo')
    shares = read_json(tmp_path/'refiner'/'choice.json')
    assert shares['merged'] is None and 0 <= shares['taken'] <= 1


def test_the_systems_decide_everything():
    for system in (SSDD, SSDD_VOC):
        decided = system.following(320)
        assert all_faults(decided) == []
        assert decided.following(64) == decided
        assert decided.refiner.detection.training.crop is not None


SCRIPT = '''
import sys
from pathlib import Path
from untrained import untrained_run
from wsss_nb.backbones import BackboneSettings
from wsss_nb.pipeline import do_stage, measure_new_masks
from wsss_nb.static_ssdd import Detection, StaticSSDD
from wsss_nb.training import TrainingSettings, process

small = BackboneSettings('resnet18', 'none', 16, False, 0, 'frozen')
short = TrainingSettings(epochs=1, batch_size=4, crop=96)
detection = Detection(small, short, middle=8, width=8)
method = StaticSSDD(small, short, knowledge='cam', detection=detection)
this = untrained_run(Path(sys.argv[1]), Path(sys.argv[2]), refiner=method)
process().wait_for_everyone()
do_stage(this, 'cams')
do_stage(this, 'refine')
print(measure_new_masks(this, this.splits['val'])['pseudo']['images'], 'measured', flush=True)
'''


def test_two_processes_refine_other_photos(shapes, tmp_path):
    script = tmp_path/'script.py'
    script.write_text(SCRIPT)
    launch = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node']
    environment = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1',
                                'PYTHONPATH': str(Path(__file__).parent)}
    done = subprocess.run([*launch, '2', str(script), str(tmp_path/'run'), str(shapes)],
                          capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('measured') == 2

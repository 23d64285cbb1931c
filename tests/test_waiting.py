"Training and looking don't wait for a GPU: what would wait is counted, on a CPU."
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_methods import TRAINED, names, small
from waiting import Waits

from wsss_nb.backbones import create_backbone
from wsss_nb.cam import cam_of_views, create_views
from wsss_nb.classifier import WordClassifier
from wsss_nb.deeplab import DeepLabV2
from wsss_nb.loaders import Batch, StepSampler, create_loader
from wsss_nb.prediction import PredictionSettings, logits_of, scaled
from wsss_nb.training import At, Machine, Training, TrainingSettings, create_accelerator, train
from wsss_nb.visual_words import VisualWords

# What still waits in a step, and why
KNOWN = {
    'classifier-seam': {'seam.tagged: _local_scalar_dense': 2},
    'classifier-one-stage': {'one_stage.refined_masks: index': 1},
}
ON_CPU = 'segmenter-ssdd'   # its training steps hold a dense CRF, which only a CPU computes


@pytest.mark.parametrize(('call', 'name'), [
    (lambda x: x.sum().item(), '_local_scalar_dense'),
    (lambda x: float(x.sum()), '_local_scalar_dense'),
    (lambda x: x.any() and 1, '_local_scalar_dense'),
    (lambda x: x.nonzero(), 'nonzero'),
    (lambda x: x[x > 0], 'index'),
    (lambda x: torch.where(x > 0), 'nonzero'),
    (lambda x: x.index_put_((x > 0,), x.new_zeros(())), 'index_put_'),
    (lambda x: torch.equal(x, x), 'equal'),
    (lambda x: x.long().unique(), '_unique2'),
    (lambda x: x.tolist(), 'tolist'),
    (lambda x: x.cpu(), 'cpu'),
    (lambda x: x.numpy(), 'numpy'),
    (lambda x: x.to('cpu'), 'to'),
    (lambda x: x.to(device=x.device), 'to'),
    (lambda x: torch.tensor([1., 2.], device='cpu'), 'tensor'),
    (lambda x: x.new_tensor([1., 2.]), 'new_tensor'),
])
def test_what_waits_is_told(call, name):
    with Waits() as waits:
        call(torch.ones(3))
    assert {where.split(': ')[1] for where in waits.calls} == {name}


def test_what_does_not_wait_is_not():
    x = torch.ones(3)
    with Waits() as waits:
        x.to('cpu', non_blocking=True)
        x.half().to(x)
        x[torch.zeros(2, dtype=torch.long)] = 0.
        torch.where(x > 0, x, 0.).masked_fill(x > 1, 3.)
        x.new_full((2,), 4.)
        torch.tensor([1., 2.]).to(x, non_blocking=True)
        x.detach().requires_grad_()
    assert waits.calls == Counter()


@pytest.mark.parametrize('method', TRAINED, ids=names(TRAINED))
def test_the_loss_of_a_method_does_not_wait(method):
    name = f'{method.role}-{method.name}'
    torch.manual_seed(0)
    value = small(method)
    network = value.network(3).train()
    example = value.example(3)
    batch = Batch(torch.randn(example.images.shape), example.targets)
    value.loss(network, batch, At(0, 99, 1))
    with Waits() as waits:
        terms = value.loss(network, batch, At(98, 99, 1))   # late, when all terms count
        if terms['total'].requires_grad:
            terms['total'].backward()
    if name == ON_CPU:
        assert all(where.startswith('dynamic_ssdd.') for where in waits.calls)
    else:
        assert waits.calls == KNOWN.get(name, {})


class Examples(torch.utils.data.Dataset):
    "Noise with the targets that a method's example has."
    def __init__(self, example: Batch):
        self.targets = {name: target[0] for name, target in example.targets.items()}
        self.shape = example.images.shape[1:]

    def __len__(self):
        return 8

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place.index)
        return Batch(torch.randn(self.shape, generator=generator), self.targets)


def steps_of(method, settings: TrainingSettings, folder, monkeypatch, **options) -> list[Counter]:
    "What waits in each step of a training, and in each line of its log behind them."
    found = []
    def counted(function):
        def count(*arguments):
            with Waits() as waits:
                result = function(*arguments)
            found.append((function.__name__, waits.calls))
            return result
        return count
    monkeypatch.setattr(Training, 'step', counted(Training.step))
    monkeypatch.setattr(Training, 'note', counted(Training.note))
    network = method.network(3)
    train(network, Examples(method.example(3)), method.loss, folder, settings, Machine(workers=0),
          rates=method.rates(), **options)
    return found


SEGMENTER = next(method for method in TRAINED if method.name == 'deeplabv2')


@pytest.mark.parametrize('method', [VisualWords, SEGMENTER], ids=['classifier', 'segmenter'])
@pytest.mark.parametrize('accumulate', [1, 2])
def test_steps_without_a_line_of_the_log_do_not_wait(method, accumulate, tmp_path, monkeypatch):
    value = small(method)
    settings = replace(value.training, epochs=3, accumulate=accumulate)
    found = steps_of(value, settings, tmp_path, monkeypatch, log_steps=3)
    assert [name for name, _ in found] == ['step'] * 3 + ['note'] + ['step'] * 3 + ['note']
    assert all(calls == Counter() for name, calls in found if name == 'step')
    # a line looks at the losses of its steps at once, and at each term
    lines = [calls for name, calls in found if name == 'note']
    assert lines[0]['training.check_losses: tolist'] == 1
    assert set(lines[0]) == {'training.check_losses: tolist', 'training.note: _local_scalar_dense'}


@pytest.mark.parametrize('words', ['learned', 'memory', None])
@pytest.mark.parametrize('pooling', ['hspp', 'gap', 'gmp', 'attention'])
def test_a_classifier_does_not_wait_but_for_its_first_memory(pooling, words):
    torch.manual_seed(0)
    network = WordClassifier(create_backbone('resnet18', None, 16), 3, 8, pooling, words).train()
    waited = []
    for _ in range(3):
        with Waits() as waits:
            answers = network(torch.randn(2, 3, 64, 64))
            sum(answer.sum() for answer in answers if answer is not None).backward()
        waited.append(waits.calls)
    first = {'classifier.encode: _local_scalar_dense': 1, 'codebook.draw_memory: to': 1}
    assert waited == [first if words == 'memory' else {}, {}, {}]


@torch.inference_mode()
def test_the_maps_of_a_photo_wait_once():
    torch.manual_seed(0)
    network = WordClassifier(create_backbone('resnet18', None, 16), 3, 8).eval()
    photo = Image.new('RGB', (64, 48), 'red')
    backbone = network.backbone
    views = create_views(photo, torch.tensor([1., 0., 1.]), (1., .5, 1.5), 1024, backbone.mean,
                         backbone.std)
    with Waits() as waits:
        cam_of_views(network, views)
    fetched = {'cam.sum_of_views: cpu': 1}
    already_there = {'cam.cam_of_views: numpy': 2}   # classes, and the maps once they are fetched
    assert waits.calls == fetched | already_there


@torch.inference_mode()
def test_the_logits_of_a_photo_are_fetched_once_all_scales_are_asked_for():
    torch.manual_seed(0)
    network = DeepLabV2(create_backbone('resnet18', None, 16), 4).eval()
    settings = PredictionSettings(window=64)
    views = scaled(Image.new('RGB', (96, 80), 'red'), settings)   # several windows
    with Waits() as waits:
        logits_of(settings, network, views)
    windows = 1 + 2 + 4   # at the three scales; each is normalised before it is sent
    assert waits.calls == {'loaders.normalise: new_tensor': 2 * windows,
                           'prediction.logits_of: cpu': 3, 'prediction.logits_of: numpy': 3}


def test_batches_are_pinned_where_there_is_a_gpu_and_sent_without_waiting(monkeypatch):
    assert create_accelerator().dataloader_config.non_blocking
    dataset = Examples(Batch(torch.zeros(2, 3, 8, 8), {}))
    for is_there in (False, True):
        monkeypatch.setattr(torch.cuda, 'is_available', lambda there=is_there: there)
        assert create_loader(dataset, StepSampler(8, 4, 2), 0).pin_memory == is_there

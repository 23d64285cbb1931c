"Compiled training takes the steps of plain training; without a compiler it is refused."
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from untrained import Noise

from wsss_nb.backbones import Backbone
from wsss_nb.classifier import WordClassifier, tag_loss
from wsss_nb.files import InputError
from wsss_nb.stages import compiled, has_compiler
from wsss_nb.training import Machine, TrainingSettings, train

PLAIN = Machine(workers=0)


def tiny() -> WordClassifier:
    "With one stage, of a convolution, a batch norm and a ReLU."
    torch.manual_seed(0)
    stage = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
    backbone = Backbone([stage], [4], [2], (.5,) * 3, (.5,) * 3)
    return WordClassifier(backbone, 3, num_words=4)


def loss(model, batch, at):
    return tag_loss(model, batch)


@pytest.mark.skipif(not has_compiler(), reason='torch.compile needs a C++ compiler: install g++')
def test_compiled_steps_are_those_of_plain_training(tmp_path):
    settings = TrainingSettings(epochs=2, batch_size=4)
    calls = []
    torch._dynamo.reset()
    for name, machine in (('plain', PLAIN), ('compiled', replace(PLAIN, compiles=True))):
        model = tiny()
        first = model.backbone.stages[0][0]
        first.register_forward_hook(lambda *_: calls.append(torch.compiler.is_compiling()))
        trained = train(model, Noise(), loss, tmp_path/name, settings, machine)
        assert trained.backbone.stages[0]._compiled_call_impl is None
    assert calls[:4] == [False] * 4 and True in calls[4:]
    found = load_file(tmp_path/'compiled'/'model.safetensors')
    wanted = load_file(tmp_path/'plain'/'model.safetensors')
    assert found.keys() == wanted.keys()
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, rtol=1e-4, atol=1e-5)
    begun = dict(tiny().named_parameters())
    assert not torch.equal(wanted['classifier.weight'], begun['classifier.weight'])


def test_without_a_compiler_it_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    assert not has_compiler()
    settings = TrainingSettings(epochs=1, batch_size=4)
    with pytest.raises(InputError, match='--compile needs a C.. compiler.*leave out --compile'):
        train(tiny(), Noise(), loss, tmp_path, settings, replace(PLAIN, compiles=True))
    with compiled(tiny(), False):
        pass

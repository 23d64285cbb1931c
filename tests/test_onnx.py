"ONNX: both networks of a run, images of any number and size, and what is refused."
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from untrained import untrained_run

from wsss_nb import onnx
from wsss_nb.files import InputError, read_json
from wsss_nb.onnx import export_onnx, largest_difference, write_onnx
from wsss_nb.run import Run
from wsss_nb.shapes import make_shapes


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=2, val=0, size=48)


@pytest.fixture(scope='module')
def run(data, tmp_path_factory) -> Run:
    return untrained_run(tmp_path_factory.mktemp('runs')/'run', data)


ANSWERS = {
    'segmenter': ('efficientnet_lite0', ['logits'], [(3, 9, 5, 3)]),
    'classifier': ('resnet18', ['class_maps', 'tags'], [(3, 8, 5, 3), (3, 8)]),
}


@pytest.mark.parametrize('role', ANSWERS)
def test_a_network_goes_out_for_images_of_any_number_and_size(role, data, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    backbone, outputs, shapes = ANSWERS[role]
    run = untrained_run(tmp_path/'run', data, backbone)
    before = next(run.network(role).parameters()).device
    path = tmp_path/'network.onnx'
    assert export_onnx(run, role, path) < 1e-3
    assert next(run.network(role).parameters()).device == before
    card = read_json(tmp_path/'network.json')
    assert card['classes'][0] == 'ring' and card['size_multiple'] == 16
    assert list(card['outputs']) == outputs and len(card['mean']) == len(card['std']) == 3
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == outputs
    answers = session.run(None, {'images': np.zeros((3, 3, 80, 48), np.float32)})
    assert [answer.shape for answer in answers] == shapes
    with pytest.raises(InputError, match='network.onnx: there is a file already'):
        export_onnx(run, role, path)


def test_tags_and_maps_are_those_of_the_classifier(run):
    network = run.network('classifier').cpu()
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        maps, tags = onnx.TagsAndMaps(network)(images)
        assert torch.equal(maps, network.class_maps(images))
        assert torch.equal(tags, network(images).image)


def test_names_that_cannot_be_written_are_told(run, tmp_path):
    pytest.importorskip('onnxruntime')
    with pytest.raises(InputError, match='Let it end in .onnx'):
        export_onnx(run, 'segmenter', tmp_path/'segmenter.bin')
    (tmp_path/'model.json').write_text('{}')
    with pytest.raises(InputError, match='model.json: there is a file already'):
        export_onnx(run, 'segmenter', tmp_path/'model.onnx')
    with pytest.raises(InputError, match='its folder is not there'):
        export_onnx(run, 'segmenter', tmp_path/'no'/'segmenter.onnx')
    assert [path.name for path in tmp_path.iterdir()] == ['model.json']


def test_a_network_that_is_not_there_is_told(data, tmp_path):
    pytest.importorskip('onnxruntime')
    run = untrained_run(tmp_path/'run', data)
    (tmp_path/'run'/'segmenter'/'model.safetensors').unlink()
    said = 'segmenter/model.safetensors: .* not there yet.*`wsss_nb run`'
    with pytest.raises(InputError, match=said):
        export_onnx(Run(replace(run.config)), 'segmenter', tmp_path/'x.onnx')


def test_a_file_whose_answers_differ_is_not_written(tmp_path):
    pytest.importorskip('onnxruntime')
    network = torch.nn.Conv2d(3, 2, 3, padding=1)
    with pytest.raises(InputError, match='exact.onnx: the answers of the ONNX file differ'):
        write_onnx(network, tmp_path/'exact.onnx', ['logits'], 4, tolerance=0)
    assert not list(tmp_path.iterdir())
    assert write_onnx(network, tmp_path/'near.onnx', ['logits'], 4) < 1e-3
    network.bias.data += torch.nan
    assert largest_difference(tmp_path/'near.onnx', network, 4) == float('inf')


def test_without_its_packages_it_says_what_to_install(run, tmp_path, monkeypatch):
    def found(name):
        return None if name.startswith('onnx') else True
    monkeypatch.setattr(onnx.importlib.util, 'find_spec', found)
    with pytest.raises(InputError, match=r"onnx, onnxscript, onnxruntime.*wsss_nb\[onnx\]"):
        export_onnx(run, 'segmenter', tmp_path/'x.onnx')
    assert not list(tmp_path.iterdir())

"Networks of a run as ONNX: for images of any number and size, or not at all."
import json

import numpy as np
import pytest
import torch
from untrained import untrained_run

from wsss_nb import onnx
from wsss_nb.files import InputError
from wsss_nb.onnx import export_onnx, write_onnx
from wsss_nb.shapes import make_shapes


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=4, val=2, size=64)


ANSWERS = {'segmenter': {'logits': (3, 9, 5, 3)},
           'classifier': {'class_maps': (3, 8, 5, 3), 'tags': (3, 8)}}


@pytest.mark.parametrize('role, backbone', [('segmenter', 'efficientnet_lite0'),
                                            ('classifier', 'resnet18')])
def test_a_network_goes_out_for_images_of_any_number_and_size(role, backbone, shapes, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    run = untrained_run(tmp_path/'run', shapes, backbone)
    path = tmp_path/f'{role}.onnx'
    assert export_onnx(run, role, path) < 1e-3
    card = json.loads(path.with_suffix('.json').read_text())
    outputs = ANSWERS[role]
    assert card['classes'][0] == 'ring' and card['size_multiple'] == 16
    assert list(card['outputs']) == list(outputs)
    assert len(card['mean']) == len(card['std']) == 3
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    assert [output.name for output in session.get_outputs()] == list(outputs)
    answers = session.run(None, {'images': np.zeros((3, 3, 80, 48), np.float32)})
    assert [answer.shape for answer in answers] == list(outputs.values())
    with pytest.raises(InputError, match='there is a file already'):
        export_onnx(run, role, path)


def test_what_cannot_be_written_is_told(shapes, tmp_path):
    pytest.importorskip('onnxruntime')
    run = untrained_run(tmp_path/'run', shapes)
    with pytest.raises(InputError, match='Let it end in .onnx'):
        export_onnx(run, 'segmenter', tmp_path/'segmenter.bin')
    with pytest.raises(InputError, match='its folder is not there'):
        export_onnx(run, 'segmenter', tmp_path/'no'/'segmenter.onnx')
    layer = torch.nn.Conv2d(3, 2, 1)
    with pytest.raises(InputError, match='exact.onnx: the answers of the ONNX file differ'):
        write_onnx(layer, tmp_path/'exact.onnx', ['logits'], 4, tolerance=0)
    assert not (tmp_path/'exact.onnx').exists()


def test_without_its_packages_onnx_says_what_to_install(shapes, tmp_path, monkeypatch):
    run = untrained_run(tmp_path/'run', shapes)
    monkeypatch.setattr(onnx.importlib.util, 'find_spec', lambda name: None)
    said = r"onnx, onnxscript, onnxruntime; `pip install 'wsss_nb\[onnx\]'"
    with pytest.raises(InputError, match=said):
        export_onnx(run, 'segmenter', tmp_path/'x.onnx')
    assert not list(tmp_path.glob('*.onnx'))

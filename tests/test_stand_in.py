"Without a compiler: who asks for the CRF is told, who doesn't gets PAMR; a run stays as it was."
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from wsss_nb import crf, pamr, stand_in
from wsss_nb.cam import MultiScale
from wsss_nb.cli import main
from wsss_nb.crf import CRFAbsent, densecrf
from wsss_nb.dynamic_ssdd import DynamicSSDD
from wsss_nb.files import InputError
from wsss_nb.irn import IRN
from wsss_nb.methods import System
from wsss_nb.one_stage_system import MaskCRF
from wsss_nb.pamr import PAMR, snapping
from wsss_nb.prediction import PredictionSettings, check_crf
from wsss_nb.refiners import DenseCRF
from wsss_nb.run import Config, start_run
from wsss_nb.segmentation import DeepLab
from wsss_nb.shapes import make_shapes
from wsss_nb.systems import open_run
from wsss_nb.visual_words import VisualWords


@pytest.fixture
def no_compiler(monkeypatch):
    "A machine on which pydensecrf can't be imported."
    for name in ('pydensecrf', 'pydensecrf.densecrf', 'pydensecrf.utils'):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def data(tmp_path) -> Path:
    make_shapes(tmp_path/'shapes', train=4, val=2, size=64)
    return tmp_path/'shapes'


def config_with(data: Path, out: Path, **parts) -> Config:
    system = System('these tests', VisualWords(), MultiScale(), PAMR(), DeepLab())
    return Config(data, out, replace(system, **parts), workers=0)


def test_the_remedy_is_named(no_compiler):
    assert not crf.has_crf() and snapping() == PAMR()
    with pytest.raises(CRFAbsent, match='`make crf` builds it.*`refiner:pamr` needs neither'):
        densecrf()
    with pytest.raises(CRFAbsent, match='is not installed here'):
        check_crf((40, 30), 3, 1024)


@pytest.mark.parametrize('parts', [
    {'refiner': DenseCRF()}, {'refiner': IRN()}, {'refiner': MaskCRF()},
    {'segmenter': DynamicSSDD()}, {'prediction': PredictionSettings(crf=True)}])
def test_what_needs_it_is_refused_before_a_run_begins(no_compiler, data, tmp_path, parts):
    with pytest.raises(InputError, match='needs the CRF: .*; or (choose|leave)'):
        start_run(config_with(data, tmp_path/'run', **parts))
    assert not (tmp_path/'run'/'config.json').exists()


def test_the_choice_is_said_once_and_holds_elsewhere(data, tmp_path, capsys, monkeypatch):
    "A run that begins without the CRF goes on with PAMR where there is one."
    words = ['run', '--data', str(data), '--out', str(tmp_path/'run'), '--workers', '0',
             '--system', 'words']
    asked = config_with(data, tmp_path/'run')
    with monkeypatch.context() as context:
        context.setattr(stand_in, 'has_crf', lambda: False)
        context.setattr(pamr, 'has_crf', lambda: False)
        found = stand_in.begun(asked, words, {})
        start_run(found)
    assert 'So PAMR snaps the masks in its place' in capsys.readouterr().out
    assert open_run(tmp_path/'run').system.refiner == PAMR()
    if not crf.has_crf():
        pytest.skip(crf.ABSENT)
    here = replace(asked, system=replace(asked.system, refiner=DenseCRF()))
    methods = {'refiner': {'crf': DenseCRF, 'pamr': PAMR}, 'classifier': {'words': VisualWords},
               'cams': {'multiscale': MultiScale}, 'segmenter': {'deeplabv2': DeepLab}}
    assert stand_in.begun(here, words, methods) == asked
    assert stand_in.begun(here, [*words, 'refiner:crf'], methods) == here
    assert capsys.readouterr().out == ''


def test_a_named_refiner_is_not_exchanged(data, tmp_path, no_compiler, capsys):
    with pytest.raises(SystemExit) as leaving:
        main(['run', '--data', str(data), '--out', str(tmp_path/'run'), 'refiner:crf'])
    assert leaving.value.code == 2
    assert 'refiner:crf needs the CRF' in capsys.readouterr().err


def test_nothing_imports_it_before_it_is_asked_for():
    code = 'import sys, wsss_nb.crf, wsss_nb.refiners; print("pydensecrf" in sys.modules)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == 'False', done.stderr

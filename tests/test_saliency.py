"Saliency from outside: what is absent or doesn't fit is told before a mask is made."
import json
from pathlib import Path
from typing import Annotated, Union

import numpy as np
import pytest
import tyro
from PIL import Image

from wsss_nb.cam import CAM
from wsss_nb.files import InputError
from wsss_nb.refiners import DenseCRF
from wsss_nb.settings import absent_files
from wsss_nb.saliency import SaliencyLabels
from wsss_nb.settings import all_faults, from_json, to_json
from wsss_nb.shapes import make_shapes
from wsss_nb.voc import VOCFolder
from wsss_nb.work import Lead, Work


@pytest.fixture
def work(tmp_path) -> Work:
    photos = VOCFolder(make_shapes(tmp_path/'shapes', train=3, val=1, size=64), 'train')
    return Work(photos, tmp_path/'refiner')


@pytest.fixture
def folder(work, tmp_path) -> Path:
    made = tmp_path/'saliency'
    made.mkdir()
    for i, name in enumerate(work.photos.ids):
        salient = work.photos.truth(i) > 0
        Image.fromarray(salient.astype(np.uint8) * 255).save(made/f'{name}.png')
    return made


def cam_of(work: Work, i: int) -> CAM:
    truth = work.photos.truth(i)
    classes = work.photos.tags(i).nonzero().flatten().numpy()
    maps = np.stack([(truth == c + 1)[::4, ::4] for c in classes]).astype(np.float32)
    return CAM(classes, maps, truth.shape)


def test_a_folder_must_be_named_and_be_there(tmp_path, work):
    method = SaliencyLabels()
    assert all_faults(method) == []
    assert 'give it with --saliency dir' in absent_files(method)[0].lower()
    with pytest.raises(InputError, match='no folder of saliency maps is named'):
        method.prepare(work)
    [fault] = absent_files(SaliencyLabels(saliency=tmp_path/'none'))
    assert str(fault).startswith(f'{tmp_path/"none"}: there is no such folder')


def test_all_that_is_wrong_is_told_at_once(work, folder):
    ids = work.photos.ids
    (folder/f'{ids[0]}.png').unlink()
    Image.new('L', (12, 10)).save(folder/f'{ids[1]}.png')
    method = SaliencyLabels(saliency=folder)
    with pytest.raises(InputError) as told:
        method.prepare(work)
    lines = str(told.value).splitlines()
    width, height = work.photos.image(1).size
    assert len(lines) == 2
    assert lines[0].startswith(f'{folder/ids[0]}.png: this photo has no saliency map. Put it')
    assert f'the saliency map is 12 x 10, its photo {width} x {height}' in lines[1]
    for i in (0, 1):
        with pytest.raises(InputError, match='saliency map'):
            method.labels(work, i, work.photos.image(i), cam_of(work, i), .5)
    (folder/f'{ids[2]}.png').write_bytes(b'no image')
    with pytest.raises(InputError, match='this is not an image of the kind PNG'):
        method.labels(work, 2, work.photos.image(2), cam_of(work, 2), .5)


def test_maps_in_colours_are_read_as_grey(work, folder):
    method = SaliencyLabels(saliency=folder)
    grey = method.labels(work, 0, work.photos.image(0), cam_of(work, 0), .5)
    path = folder/f'{work.photos.ids[0]}.png'
    Image.open(path).convert('RGB').save(path)
    again = method.labels(work, 0, work.photos.image(0), cam_of(work, 0), .5)
    assert np.array_equal(grey, again)
    assert set(np.unique(grey)) > {0}


def test_the_folder_is_an_option_of_its_own(folder, monkeypatch):
    choices = Union[Annotated[DenseCRF, tyro.conf.subcommand('crf')],
                    Annotated[SaliencyLabels, tyro.conf.subcommand('saliency')]]

    def refine(refiner: choices) -> SaliencyLabels:
        return refiner

    style = (tyro.conf.FlagConversionOff, tyro.conf.CascadeSubcommandArgs)
    words = ['refiner:saliency', '--saliency', folder.name]
    chosen = tyro.cli(refine, args=words, config=style)
    assert chosen == SaliencyLabels(saliency=Path(folder.name))
    monkeypatch.chdir(folder.parent)
    decided = chosen.following(Lead(64, 64))
    assert decided.saliency == folder
    methods = {'refiner': {'saliency': SaliencyLabels}}
    written = json.loads(json.dumps(to_json(decided)))
    assert from_json(SaliencyLabels, written, methods, 'refiner') == decided

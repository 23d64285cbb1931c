"VOC's test server: a file is damaged in every way that one can think of, and each is told."
import io
import tarfile
from pathlib import Path
from typing import Mapping

import numpy as np
import pytest
import torch
from PIL import Image
from untrained import untrained_run

from wsss_nb.files import InputError
from wsss_nb.photos import palette, write_mask
from wsss_nb.run import Run
from wsss_nb.server import SERVER_FOLDER, check_server_file, submit, write_server_file
from wsss_nb.shapes import make_shapes
from wsss_nb.training import save_model


def png(labels: np.ndarray, mode: str = 'P', colours: bool = True) -> bytes:
    "A mask as a PNG of some mode, in VOC's colours or in others."
    image = Image.fromarray(labels)
    content = io.BytesIO()
    if mode == 'P':
        image.putpalette(palette().tobytes() if colours else bytes(range(256)) * 3)
    else:
        image = image.convert(mode)
    image.save(content, 'PNG')
    return content.getvalue()


ROW = np.array([[0, 1, 20]], np.uint8)
NOTHING = np.zeros((1, 3), np.uint8)
GOOD = {f'{SERVER_FOLDER}/{i:04d}.png': png(ROW) for i in range(1456)}
SIZES = {Path(name).stem: (3, 1) for name in GOOD}
FEW = dict(list(GOOD.items())[:9])
ONE = f'{SERVER_FOLDER}/0007.png'
DAMAGE = {
    'is missing': ({ONE: None}, '1 of 9 masks are missing, such as ' + ONE),
    'belongs to no photo': ({f'{SERVER_FOLDER}/more.png': GOOD[ONE]},
                            'more.png belongs to no photo of the list'),
    'in another folder': ({ONE: None, 'comp6_test_cls/0007.png': GOOD[ONE]},
                          'comp6_test_cls/0007.png belongs to no photo'),
    'of another size': ({ONE: png(NOTHING.T)}, ONE + ' is 1 x 3, and its photo 3 x 1'),
    'in grey': ({ONE: png(NOTHING, 'L')}, ONE + ' is no palette PNG: its mode is L'),
    'in colour': ({ONE: png(NOTHING, 'RGB')}, ONE + ' is no palette PNG: its mode is RGB'),
    'in other colours': ({ONE: png(NOTHING, colours=False)}, ONE + " has another palette than VOC"),
    'a class too many': ({ONE: png(ROW + 1)},
                         ONE + ' holds the index 21, and the last class is 20'),
    'with unknown pixels': ({ONE: png(ROW - 1)}, ONE + ' holds the index 255'),
    'cut off': ({ONE: GOOD[ONE][:-20]}, ONE + ' is cut off'),
    'cut in two': ({ONE: GOOD[ONE][:len(GOOD[ONE]) // 2]}, ONE + ' cannot be read as a PNG'),
    'no picture': ({ONE: b'text'}, ONE + ' cannot be read as a PNG'),
}


def write_tar(path: Path, files: Mapping[str, bytes | None], twice: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name in [*files, *twice]:
            if files[name] is None:
                continue
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
    return path


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_server_file_is_told(damage, tmp_path):
    changes, said = DAMAGE[damage]
    path = write_tar(tmp_path/'damaged.tar', FEW | changes)
    found = check_server_file(path, dict(list(SIZES.items())[:9]))
    assert said in '\n'.join(map(str, found))
    assert all('damaged.tar' in str(fault) for fault in found)


def test_a_whole_server_file_has_no_faults(tmp_path):
    whole = write_tar(tmp_path/'whole.tar', GOOD)
    assert check_server_file(whole, SIZES) == []
    (tmp_path/'half.tar').write_bytes(whole.read_bytes()[:700_000])
    found = check_server_file(tmp_path/'half.tar', SIZES)
    assert any('masks are missing' in str(fault) for fault in found)


def test_a_mask_that_is_there_twice_or_no_file_is_told(tmp_path):
    twice = write_tar(tmp_path/'twice.tar', {ONE: GOOD[ONE]}, (ONE,))
    assert 'is there twice' in str(check_server_file(twice, {'0007': (3, 1)})[0])
    with tarfile.open(tmp_path/'folder.tar', 'w') as tar:
        member = tarfile.TarInfo(ONE)
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
    found = check_server_file(tmp_path/'folder.tar', {'0007': (3, 1)})
    assert '0007.png is no file' in str(found[0])


def test_what_is_no_tar_file_is_told(tmp_path):
    (tmp_path/'text.tar').write_text('text' * 1000)
    for name in ('text.tar', 'gone.tar'):
        found = check_server_file(tmp_path/name, SIZES)
        assert 'this is no whole tar file' in str(found[0])


WRONG = {
    'missing': ({'good': (3, 1), 'absent': (3, 1)},
                '1 of 2 masks are missing, such as absent.png'),
    'turned': ({'good': (1, 3)}, 'new.tar: .*is 3 x 1, and its photo 1 x 3'),
    'unsure': ({'unsure': (3, 1)}, 'new.tar: .*unsure.png holds the index 255'),
}


@pytest.mark.parametrize('wrong', WRONG)
def test_masks_that_the_server_would_refuse_are_not_packed(wrong, tmp_path):
    sizes, said = WRONG[wrong]
    write_mask(tmp_path/'good.png', ROW)
    write_mask(tmp_path/'unsure.png', ROW - 1)
    with pytest.raises(InputError, match=said):
        write_server_file(tmp_path, sizes, tmp_path/'new.tar')
    assert {path.name for path in tmp_path.iterdir()} == {'good.png', 'unsure.png'}


def test_a_file_that_is_there_is_left_alone(tmp_path):
    write_mask(tmp_path/'good.png', ROW)
    (tmp_path/'old.tar').write_text('mine')
    with pytest.raises(InputError, match='old.tar: there is a file already'):
        write_server_file(tmp_path, {'good': (3, 1)}, tmp_path/'old.tar')
    assert (tmp_path/'old.tar').read_text() == 'mine'


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Run:
    "A run with VOC's classes; its data has two photos in the list 'mini'."
    root = tmp_path_factory.mktemp('voc')
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Segmentation'):
        (root/'data'/name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i, size in enumerate(((40, 60), (60, 45), (50, 50))):
        pixels = generator.integers(0, 255, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root/'data'/'JPEGImages'/f'{i}.jpg')
    cat = '<annotation><object><name>cat</name></object></annotation>'
    (root/'data'/'Annotations'/'0.xml').write_text(cat)
    lists = root/'data'/'ImageSets'/'Segmentation'
    (lists/'train.txt').write_text('0\n')
    (lists/'mini.txt').write_text('1\n2\n')
    (lists/'test.txt').write_text('1\n2\n')
    (lists/'short.txt').write_text('1\n7\n')
    return untrained_run(root/'run', root/'data')


def test_submit_writes_a_file_that_the_server_takes(run, tmp_path):
    assert submit(run, tmp_path/'mini.tar', split='mini', workers=0) == 2
    with tarfile.open(tmp_path/'mini.tar') as tar:
        assert tar.getnames() == [f'{SERVER_FOLDER}/{i}.png' for i in (1, 2)]
    assert check_server_file(tmp_path/'mini.tar', {'1': (45, 60), '2': (50, 50)}) == []
    with pytest.raises(InputError, match='mini.tar: there is a file already'):
        submit(run, tmp_path/'mini.tar', split='mini')


def test_lists_that_the_server_would_refuse_are_told_before_anything_is_predicted(run, tmp_path):
    for split, said in (('absent', "there is no split 'absent'"), ('short', '7'),
                        ('test', "'test' has 2 photos, and that of VOC 2012 has 1,456")):
        with pytest.raises(InputError, match=said):
            submit(run, tmp_path/'test.tar', split=split)
        assert not list((run.root/'submission').glob(f'{split}*'))
    with pytest.raises(InputError, match='there is no such folder'):
        submit(run, tmp_path/'test.tar', data=tmp_path/'gone')
    assert not list(tmp_path.iterdir())


def test_other_classes_than_the_servers_are_told(tmp_path):
    data = make_shapes(tmp_path/'shapes', train=1, val=0, size=64)
    other = untrained_run(tmp_path/'run', data)
    with pytest.raises(InputError, match="The server takes VOC's twenty"):
        submit(other, tmp_path/'test.tar')


def test_a_segmenter_that_was_trained_anew_is_submitted_anew(run, tmp_path):
    assert submit(run, tmp_path/'first.tar', split='mini', workers=0) == 2
    network = run.network('segmenter')
    with torch.no_grad():
        next(network.aspp.parameters()).add_(1)
    save_model(network, run.root/'segmenter')
    run.networks.clear()
    assert submit(run, tmp_path/'second.tar', split='mini', workers=0) == 2
    assert (tmp_path/'second.tar').read_bytes() != (tmp_path/'first.tar').read_bytes()

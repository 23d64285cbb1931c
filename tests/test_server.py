"A file for VOC's server: whole ones are taken, and whatever the server would refuse is told."
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from untrained import untrained_run

from wsss_nb.files import InputError
from wsss_nb.photos import palette, write_mask
from wsss_nb.server import SERVER_FOLDER, check_server_file, submit, write_server_file


def png(labels: list, mode: str = 'P', colours: bytes = palette().tobytes()) -> bytes:
    "A mask as the bytes of a PNG."
    image = Image.fromarray(np.array(labels, np.uint8))
    if mode == 'P':
        image.putpalette(colours)
    content = io.BytesIO()
    (image if mode == 'P' else image.convert(mode)).save(content, 'PNG')
    return content.getvalue()


NAMES = [f'{i:04d}' for i in range(1456)]
GOOD = {f'{SERVER_FOLDER}/{name}.png': png([[0, 1, 20]]) for name in NAMES}
SIZES = {name: (3, 1) for name in NAMES}
ONE = f'{SERVER_FOLDER}/0007.png'
GREYS = bytes(range(256)) * 3
DAMAGE = {
    'is missing': ({ONE: None}, f'1 of 9 masks are missing, such as {ONE}'),
    'belongs to no photo': (
        {f'{SERVER_FOLDER}/more.png': GOOD[ONE]}, 'more.png belongs to no photo of the list'),
    'in another folder': (
        {ONE: None, 'comp6_test_cls/0007.png': GOOD[ONE]},
        'comp6_test_cls/0007.png belongs to no photo'),
    'of another size': ({ONE: png([[0], [0], [0]])}, f'{ONE} is 1 x 3, and its photo 3 x 1'),
    'in grey': ({ONE: png([[0] * 3], 'L')}, f'{ONE} is no palette PNG: its mode is L'),
    'in colour': ({ONE: png([[0] * 3], 'RGB')}, f'{ONE} is no palette PNG: its mode is RGB'),
    'in other colours': (
        {ONE: png([[0] * 3], colours=GREYS)}, f"{ONE} has another palette than VOC's"),
    'with a class too many': (
        {ONE: png([[0, 1, 21]])}, f'{ONE} holds the index 21, and the last class is 20'),
    'with unknown pixels': ({ONE: png([[0, 1, 255]])}, f'{ONE} holds the index 255'),
    'cut off': ({ONE: GOOD[ONE][:-20]}, f'{ONE} is cut off'),
    'empty': ({ONE: b''}, f'{ONE} cannot be read as a PNG'),
}


def write_tar(path: Path, files: dict[str, bytes | None], twice: tuple[str, ...] = ()) -> Path:
    with tarfile.open(path, 'w') as tar:
        for name in [*files, *twice]:
            content = files[name]
            if content is None:
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_server_file_is_told(damage, tmp_path):
    changes, said = DAMAGE[damage]
    few = dict(list(GOOD.items())[:9])
    damaged = write_tar(tmp_path/'damaged.tar', few | changes)
    found = [str(fault) for fault in check_server_file(damaged, dict(list(SIZES.items())[:9]))]
    assert said in '\n'.join(found)
    assert all('damaged.tar' in fault for fault in found)


def test_a_whole_server_file_has_no_faults_and_other_damage_is_told(tmp_path):
    whole = write_tar(tmp_path/'whole.tar', GOOD)
    assert check_server_file(whole, SIZES) == []
    twice = write_tar(tmp_path/'twice.tar', {ONE: GOOD[ONE]}, (ONE,))
    assert 'is there twice' in str(check_server_file(twice, {'0007': (3, 1)})[0])
    (tmp_path/'half.tar').write_bytes(whole.read_bytes()[:700_000])
    found = [str(fault) for fault in check_server_file(tmp_path/'half.tar', SIZES)]
    assert any('masks are missing' in fault for fault in found)
    (tmp_path/'text.tar').write_text('text' * 1000)
    for name in ('text.tar', 'gone.tar'):
        found = check_server_file(tmp_path/name, SIZES)
        assert 'this is no whole tar file' in str(found[0])


def test_a_file_with_a_fault_is_not_written(tmp_path):
    masks = tmp_path/'masks'
    masks.mkdir()
    write_mask(masks/'0.png', np.array([[0, 1, 21]], np.uint8))
    new = tmp_path/'new.tar'
    with pytest.raises(InputError, match='new.tar: .*holds the index 21'):
        write_server_file(masks, {'0': (3, 1)}, new)
    with pytest.raises(InputError, match='1 of 2 masks are missing, such as 1.png'):
        write_server_file(masks, {'0': (3, 1), '1': (3, 1)}, new)
    assert not new.exists()
    new.write_text('')
    with pytest.raises(InputError, match='there is a file already'):
        write_server_file(masks, {'0': (3, 1)}, new)


@pytest.fixture(scope='module')
def voc(tmp_path_factory):
    "An untrained run with VOC's classes; its data has two photos in the list 'mini'."
    data = tmp_path_factory.mktemp('voc')/'data'
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Segmentation'):
        (data/name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for i, size in enumerate(((40, 60), (60, 45), (50, 50))):
        photo = Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8))
        photo.save(data/'JPEGImages'/f'{i}.jpg')
    tags = '<annotation><object><name>cat</name></object></annotation>'
    (data/'Annotations'/'0.xml').write_text(tags)
    for name, ids in (('train', '0\n'), ('mini', '1\n2\n')):
        (data/'ImageSets'/'Segmentation'/f'{name}.txt').write_text(ids)
    return untrained_run(data.parent/'run', data)


def test_submit_writes_a_file_that_the_server_takes(voc, tmp_path):
    mini = tmp_path/'mini.tar'
    assert submit(voc, mini, split='mini', workers=0) == 2
    with tarfile.open(mini) as tar:
        assert tar.getnames() == [f'{SERVER_FOLDER}/{i}.png' for i in (1, 2)]
    lists = Path(voc.config.data)/'ImageSets'/'Segmentation'
    with pytest.raises(InputError, match='there is a file already'):
        submit(voc, mini, split='mini')
    with pytest.raises(InputError, match="there is no split 'test'"):
        submit(voc, tmp_path/'test.tar')
    (lists/'test.txt').write_text('1\n2\n')
    with pytest.raises(InputError, match="'test' has 2 photos, and that of VOC 2012 has 1,456"):
        submit(voc, tmp_path/'test.tar')
    (lists/'test.txt').unlink()
    (lists/'short.txt').write_text('1\n7\n')
    with pytest.raises(InputError, match='7'):
        submit(voc, tmp_path/'short.tar', split='short')
    assert [path.name for path in tmp_path.iterdir()] == ['mini.tar']

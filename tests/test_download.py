"Downloads, from a server on this machine: whole, cut off, and failed."
import io
import shutil
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from wsss_nb import download
from wsss_nb.download import download_voc2012
from wsss_nb.checks import check
from wsss_nb.files import InputError
from wsss_nb.photos import palette, read_mask
from wsss_nb.voc import VOC_CLASSES, VOCFolder


def archive(path, files):
    "Write a tar archive of `files` (name -> bytes); its md5."
    from torchvision.datasets.utils import calculate_md5
    with tarfile.open(path, 'w:gz' if path.suffix == '.tgz' else 'w') as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return calculate_md5(path)


def jpg():
    "A photo of 7 x 5, as bytes."
    buffer = io.BytesIO()
    Image.new('RGB', (7, 5)).save(buffer, 'JPEG')
    return buffer.getvalue()


def png(labels):
    "A mask of VOC's, as bytes."
    buffer = io.BytesIO()
    image = Image.fromarray(labels)
    image.putpalette(palette().tobytes())
    image.save(buffer, 'PNG')
    return buffer.getvalue()


def mat(labels):
    "A mask of SBD's, as bytes."
    from scipy.io import savemat
    buffer = io.BytesIO()
    savemat(buffer, {'GTcls': {'Segmentation': labels, 'Boundaries': np.zeros(1)}})
    return buffer.getvalue()


def voc_files():
    "Photos a, b, c, d, v; train a, b; val v; masks of these three."
    base = 'VOCdevkit/VOC2012'
    mask = png(np.full((5, 7), 8, np.uint8))
    xml = b'<annotation><object><name>cat</name></object></annotation>'
    files = {f'{base}/JPEGImages/{id}.jpg': jpg() for id in 'abcdv'}
    files |= {f'{base}/Annotations/{id}.xml': xml for id in 'abcdv'}
    files |= {f'{base}/SegmentationClass/{id}.png': mask for id in 'abv'}
    files[f'{base}/ImageSets/Segmentation/train.txt'] = b'a\nb\n'
    files[f'{base}/ImageSets/Segmentation/val.txt'] = b'v\n'
    return files


def sbd_files():
    "Train b, c; val v, d."
    base = 'benchmark_RELEASE/dataset'
    mask = mat(np.full((5, 7), 3, np.uint8))
    files = {}
    for id in 'bcvd':
        files[f'{base}/cls/{id}.mat'] = mask
        files[f'{base}/img/{id}.jpg'] = jpg()
        files[f'{base}/inst/{id}.mat'] = b'x'
    files[f'{base}/train.txt'] = b'b\nc\n'
    files[f'{base}/val.txt'] = b'v\nd\n'
    return files


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a web server for `tmp_path`.

    torchvision wants the length of a download, which a file:// address does not tell."""
    monkeypatch.setenv('NO_PROXY', '*')
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=tmp_path)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


@pytest.fixture
def archives(tmp_path, server, monkeypatch):
    "Tiny archives of VOC and SBD in place of the real ones."
    from torchvision.datasets import SBDataset, voc as source
    there = {'url': f'{server}/voc.tar', 'md5': archive(tmp_path/'voc.tar', voc_files())}
    entry = source.DATASET_YEAR_DICT['2012'] | there
    monkeypatch.setitem(source.DATASET_YEAR_DICT, '2012', entry)
    monkeypatch.setattr(SBDataset, 'md5', archive(tmp_path/'sbd.tgz', sbd_files()))
    monkeypatch.setattr(SBDataset, 'url', f'{server}/sbd.tgz')
    monkeypatch.setattr(download, 'LIST_SIZES', {'train': 2, 'val': 1, 'train_aug': 4})
    return tmp_path


def times(folder):
    "When each file was written."
    return {path: path.stat().st_mtime_ns for path in folder.rglob('*')}


def test_download(archives, capsys):
    root = archives/'data'
    folder = download_voc2012(root)
    assert folder == root/'VOCdevkit'/'VOC2012'
    assert 'is complete. ' in capsys.readouterr().out
    data = VOCFolder(root, 'train_aug')
    assert data.ids == ['a', 'b', 'c', 'd']
    assert data.has_truth
    assert data.classes == VOC_CLASSES
    assert [sample.mask.max() for sample in data] == [8, 8, 3, 3]   # VOC's own masks win
    masks = {}
    for path in (folder/'SegmentationClassAug').iterdir():
        masks[path.stem] = int(read_mask(path).max())
    assert masks == {'a': 8, 'b': 8, 'c': 3, 'd': 3, 'v': 8}
    assert check(root, progress=False) == []

    before = times(root)
    for again in (root, root/'VOCdevkit', folder):
        assert download_voc2012(again) == folder
        assert 'is complete: nothing to do' in capsys.readouterr().out
    assert before == times(root)


def test_download_goes_on(archives, monkeypatch):
    root = archives/'data'
    half = (archives/'voc.tar').read_bytes()[:1000]   # the first download was cut off
    (root/'downloads/voc').mkdir(parents=True)
    (root/'downloads/voc/VOCtrainval_11-May-2012.tar').write_bytes(half)
    (root/'downloads/sbd/cls').mkdir(parents=True)  # and torchvision while it moved folders
    (root/'downloads/sbd/benchmark_RELEASE/dataset/img').mkdir(parents=True)
    write = download.write_aug_mask
    written = []

    def interrupted(folder, sbd, id):
        if len(written) == 3:
            raise KeyboardInterrupt
        write(folder, sbd, id)
        written.append(id)

    monkeypatch.setattr(download, 'write_aug_mask', interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_voc2012(root)
    masks = root/'VOCdevkit/VOC2012/SegmentationClassAug'
    assert sorted(path.stem for path in masks.iterdir()) == ['a', 'b', 'c']
    assert VOCFolder.splits(root) == ['train', 'val']
    before = times(masks)

    monkeypatch.setattr(download, 'write_aug_mask', write)
    (archives/'voc.tar').unlink()  # nothing is fetched again
    (archives/'sbd.tgz').unlink()
    download_voc2012(root)
    after = times(masks)
    assert len(after) == 5
    assert before.items() <= after.items()


def test_download_into_a_voc_folder(archives):
    download_voc2012(archives/'data')
    there = archives/'data/VOCdevkit/VOC2012'
    (there/'ImageSets/Segmentation/train_aug.txt').unlink()
    (archives/'voc.tar').unlink()  # VOC is there, SBD is missing
    assert download_voc2012(there) == there
    assert len(VOCFolder(there, 'train_aug')) == 4


def test_no_download_among_own_photos(tmp_path):
    (tmp_path/'tags.csv').touch()
    with pytest.raises(InputError, match='your own photos are here. Name another folder'):
        download_voc2012(tmp_path)


def test_download_fails_with_words(archives, server, monkeypatch):
    from torchvision.datasets import SBDataset
    root = archives/'data'
    with monkeypatch.context() as patch:
        patch.setattr(SBDataset, 'url', f'{server}/nowhere.tgz')
        words = ('benchmark.tgz: the download failed .*Run the same command again, '
                 'or fetch http.*nowhere.tgz yourself')
        with pytest.raises(InputError, match=words):
            download_voc2012(root)
    with monkeypatch.context() as patch:
        patch.setattr(SBDataset, 'md5', '0'*32)
        with pytest.raises(InputError, match='benchmark.tgz: the download failed'):
            download_voc2012(root)
    with monkeypatch.context() as patch:
        patch.setitem(download.LIST_SIZES, 'train_aug', 10_582)
        words = 'train_aug.txt: 4 ids, and VOC 2012 has 10,582. Move .* away'
        with pytest.raises(InputError, match=words):
            download_voc2012(root)
    assert not (root/'VOCdevkit/VOC2012/ImageSets/Segmentation/train_aug.txt').exists()


def test_a_broken_mask_of_sbd(archives):
    root = archives/'data'
    sbd = download.fetch_sbd(root/'downloads')
    content = (sbd/'cls/d.mat').read_bytes()
    (sbd/'cls/d.mat').write_bytes(content[:50])
    words = 'd.mat: the mask cannot be read .*Delete .*dataset and run'
    with pytest.raises(InputError, match=words):
        download_voc2012(root)
    shutil.rmtree(sbd)  # what the message says to do
    download_voc2012(root)
    assert len(VOCFolder(root, 'train_aug')) == 4


def link(name, to):
    "A link in an archive, and a file behind it."
    info = tarfile.TarInfo(name)
    info.type = tarfile.SYMTYPE
    info.linkname = to
    return info


def test_archives_that_lead_out_of_the_folder_are_refused(tmp_path):
    members = {'up': tarfile.TarInfo('../evil'), 'root': tarfile.TarInfo(f'{tmp_path}/evil'),
               'link': link('in', str(tmp_path)), 'device': tarfile.TarInfo('dev')}
    members['device'].type = tarfile.CHRTYPE
    for name, member in members.items():
        path = tmp_path/f'{name}.tar'
        with tarfile.open(path, 'w') as tar:
            tar.addfile(member)
        (tmp_path/'out').mkdir(exist_ok=True)
        with pytest.raises(InputError, match='is no file, or leads out of the folder'):
            download.unpack(path, 'in', tmp_path/'out'/'to')
        assert list((tmp_path/'out').iterdir()) == []
        assert not (tmp_path/'evil').exists()
    half = (tmp_path/'up.tar').read_bytes()[:100]
    (tmp_path/'half.tar').write_bytes(half)
    with pytest.raises(InputError, match='half.tar: cannot be unpacked'):
        download.unpack(tmp_path/'half.tar', 'in', tmp_path/'out'/'to')


def test_what_somebody_else_unpacked_stays(archives):
    mine = archives/'data'/'downloads'/'sbd'/'cls'
    mine.mkdir(parents=True)
    (mine/'own.mat').write_text('mine')
    download_voc2012(archives/'data')
    assert (mine/'own.mat').read_text() == 'mine'


def test_train_aug_has_10582_ids():
    ids = [f'{number:06}' for number in np.random.default_rng(0).permutation(12_031)]
    ours = ids[:2_913]
    theirs = ids[-11_355:]
    assert len(set(ours) & set(theirs)) == 2_237
    train = ours[:1_464]
    val = ours[1_464:]
    for seed in range(3):  # however SBD's lists cut across VOC's
        mixed = np.random.default_rng(seed).permutation(theirs).tolist()
        found = download.train_aug_ids(train, val, mixed[:8_498], mixed[8_498:])
        assert len(found) == 10_582 == download.LIST_SIZES['train_aug']
        assert found == sorted(found)
        assert not set(found) & set(val)

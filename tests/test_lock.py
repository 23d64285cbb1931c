"Two runs in one folder, what killed ones leave behind, and what isn't ours."
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wsss_nb import lock
from wsss_nb.cli import main
from wsss_nb.files import (LOCK, OURS, InputError, is_free, name_aside, tidy, whole_file,
                           whole_folder)
from wsss_nb.lock import alone_in
from wsss_nb.shapes import make_shapes

SMALL = ('--classifier.epochs', 20, '--classifier.batch-size', 4, '--classifier.num-words', 16,
         '--classifier.learning-rate', .0001, '--cams.scales', 1, '--segmenter.batch-size', 4,
         '--segmenter.epochs', 2, '--prediction.scales', 1, '--workers', 1)
START = 'from wsss_nb.cli import main; main()'
GONE = 99_999_999   # no process has this number


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=10, val=4, size=64)


def words(*given) -> list[str]:
    return [str(word) for word in given]


def start(*given) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, '-c', START, *words(*given)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def until(is_time) -> None:
    for _ in range(6000):
        if is_time():
            return
        time.sleep(.02)
    raise AssertionError('it never came to that')


def refused(capsys, *given) -> str:
    with pytest.raises(SystemExit) as leaving:
        main(words(*given))
    assert leaving.value.code == 2
    return capsys.readouterr().err


def ours(root: Path) -> list[Path]:
    "All that has a name which only we give."
    return [path for path in root.rglob('*') if path.name.startswith(OURS)]


def test_a_second_run_is_refused_at_once_and_a_killed_one_holds_nothing(
        capsys, shapes, tmp_path):
    root = tmp_path/'run'
    asked = ('run', '--data', shapes, '--out', root, *SMALL)
    first = start(*asked)
    until((root/'classifier'/'log.csv').exists)
    said = refused(capsys, *asked)
    assert f'another run is at work in this folder: process {first.pid} on' in said
    assert 'checkpoint' not in said
    assert 'another run is at work' in refused(capsys, 'classify', root)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert (root/LOCK).exists()
    (root/'classifier'/name_aside('.csv')).write_text('half')
    (root/'classifier'/f'.wsss_nb-{"0" * 8}-{GONE}-{"0" * 12}.csv').write_text('half')
    main(words(*asked, '--until', 'classify'))
    assert (root/'classifier'/'model.safetensors').exists()
    assert not ours(root) and not list(root.rglob('checkpoint*'))


def test_a_checkpoint_that_a_kill_left_beside_the_trained_model_goes(shapes, tmp_path):
    root = tmp_path/'run'
    asked = ('run', '--data', shapes, '--out', root, *SMALL, '--until', 'cams')
    main(words(*asked))
    (root/'classifier'/'checkpoint-000050').mkdir()
    (root/'classifier'/'checkpoint-000050'/'model.safetensors').write_text('')
    (root/'classifier'/'checkpoint of mine').mkdir()
    (root/'cams'/name_aside('.npz')).write_text('half')
    main(words('cams', root))
    there = {path.name for path in (root/'classifier').iterdir()}
    kept = {'log.csv', 'words.csv', 'model.json', 'model.safetensors'}
    assert there == kept | {'checkpoint of mine'}
    assert not ours(root)
    (root/'cams'/name_aside('.npz')).write_text('half, and being written')
    main(words('branch', root, tmp_path/'new', '--until', 'refine', 'refiner:none'))
    assert not ours(tmp_path/'new')
    assert len(list((tmp_path/'new'/'cams').iterdir())) == 10


def test_a_refused_run_leaves_no_folder(capsys, shapes, tmp_path):
    refused(capsys, 'run', '--data', shapes, '--out', tmp_path/'a'/'run', *SMALL,
            '--train', 'nowhere')
    assert not (tmp_path/'a'/'run').exists()


# The lock itself

def test_whatever_stands_in_the_lock_of_a_dead_process_does_not_hold(tmp_path):
    for said in ('', 'no json', '[]', '{"process": "x"}', json.dumps({'process': os.getppid()})):
        (tmp_path/LOCK).write_text(said)
        with alone_in(tmp_path):
            assert lock.holder_of(tmp_path/LOCK)['process'] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_where_no_open_file_can_be_deleted_the_lock_is_closed_first(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'fcntl', None)   # as on Windows
    closed = []
    close = os.close
    unlink = Path.unlink

    def closing(file):
        closed.append(file)
        close(file)

    def deleting(path, *options):
        if path.name == LOCK and not closed:
            raise PermissionError(path)
        unlink(path, *options)

    monkeypatch.setattr(os, 'close', closing)
    monkeypatch.setattr(Path, 'unlink', deleting)
    with alone_in(tmp_path):
        closed.clear()
    assert not (tmp_path/LOCK).exists()
    with alone_in(tmp_path):
        pass


@pytest.mark.parametrize('process, here, holds', [
    (os.getppid(), True, True), (GONE, True, False), (GONE, False, True)])
def test_where_the_disk_knows_no_locks_the_process_in_the_file_decides(
        process, here, holds, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, 'fcntl', None)
    where = lock.this_machine() if here else 'elsewhere'
    said = {'process': process, 'machine': 'tower', 'here': where}
    (tmp_path/LOCK).write_text(json.dumps(said))
    if not holds:
        with alone_in(tmp_path):
            pass
        return
    with pytest.raises(InputError, match=f'process {process} on tower.*delete .*{LOCK}'):
        with alone_in(tmp_path):
            pass
    assert (tmp_path/LOCK).exists()


def test_a_forked_process_does_not_hold_the_lock_of_its_parent(tmp_path):
    with alone_in(tmp_path):
        child = os.fork()
        if not child:
            os._exit(len(lock.HELD))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(lock.HELD) == 1


def test_a_link_to_the_folder_is_the_folder(tmp_path):
    (tmp_path/'run').mkdir()
    (tmp_path/'link').symlink_to(tmp_path/'run')
    with alone_in(tmp_path/'run'), alone_in(tmp_path/'link'):
        assert len(lock.HELD) == 1


# What isn't ours

def test_a_folder_is_whole_or_absent_and_nothing_else_is_touched(tmp_path):
    theirs = ('mine.unfinished', '.wsss_nb-backup', f'{OURS}{"g" * 8}-1-{"0" * 12}')
    for name in theirs:
        (tmp_path/name).mkdir()
        (tmp_path/name/'file').write_text('mine')
    with pytest.raises(ZeroDivisionError):
        with whole_folder(tmp_path/'mine') as aside:
            (aside/'half').write_text('')
            1/0
    assert {path.name for path in tmp_path.iterdir()} == set(theirs)
    with whole_folder(tmp_path/'mine') as aside:
        (aside/'a').write_text('')
        tidy(tmp_path)       # another command, meanwhile
        assert aside.exists()
    assert {path.name for path in tmp_path.iterdir()} == {'mine', *theirs}
    assert not is_free(tmp_path/'mine') and is_free(tmp_path/'other')


def test_what_a_killed_export_left_is_no_obstacle(tmp_path):
    left = tmp_path/'out'/name_aside().replace(f'-{os.getpid()}-', f'-{GONE}-')
    (left/'masks').mkdir(parents=True)
    assert is_free(tmp_path/'out')
    assert list((tmp_path/'out').iterdir()) == []


def test_export_into_the_folder_that_one_stands_in(shapes, tmp_path, monkeypatch):
    root = tmp_path/'run'
    main(words('run', '--data', shapes, '--out', root, *SMALL, '--until', 'refine'))
    (tmp_path/'out').mkdir()
    (tmp_path/'out.unfinished').mkdir()
    (tmp_path/'out.unfinished'/'years').write_text('of work')
    monkeypatch.chdir(tmp_path/'out')
    main(words('export', root, '--format', 'png', '--out', '.', '--from', 'pseudo'))
    assert len(list(Path('masks').glob('*.png'))) == 10     # the very folder, not another one
    assert (tmp_path/'out.unfinished'/'years').read_text() == 'of work'
    shutil.rmtree('masks')
    Path('classes.txt').unlink()
    assert list(Path('.').iterdir()) == []


# Several processes

LAUNCHED = '''
import sys
from wsss_nb.lock import HELD, alone_in
from wsss_nb.training import process
with alone_in(sys.argv[1]):
    process().wait_for_everyone()
    sys.stdout.write(f'holds {len(HELD)}\\n')   # in one piece, whatever the other writes
'''


def test_processes_of_one_launcher_share_the_lock(tmp_path):
    script = tmp_path/'script.py'
    script.write_text(LAUNCHED)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
               '--nproc_per_node', '2', str(script), str(tmp_path/'run')]
    alone = os.environ | {'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=alone)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(done.stdout.split()) == ['0', '1', 'holds', 'holds']


def test_what_others_are_writing_in_a_run_is_left_to_them(tmp_path):
    (tmp_path/'config.json').write_text('{}')
    with whole_folder(tmp_path/'export') as folder, whole_file(tmp_path/'masks.tar') as tar:
        tar.write_text('half an hour of work')
        code = 'import sys\nfrom wsss_nb.lock import alone_in\nwith alone_in(sys.argv[1]): pass'
        subprocess.run([sys.executable, '-c', code, tmp_path], check=True)
        assert tar.exists() and folder.exists()
    assert (tmp_path/'masks.tar').exists() and (tmp_path/'export').is_dir()

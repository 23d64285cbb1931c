"""What the system refuses is one sentence: memory, processes, disks, terminals, signals, launchers.

What can't be brought about here is tested with the words of PyTorch 2.14 and accelerate 1.15."""
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from wsss_nb.cli import told
from wsss_nb.files import InputError
from wsss_nb.readers import refusal_of
from wsss_nb.settings import FOREIGN, check_environment
from wsss_nb.shapes import make_shapes

SMALL = ('--classifier.epochs', 2, '--classifier.batch-size', 4, '--classifier.num-words', 16,
         '--cams.scales', 1, '--segmenter.batch-size', 4, '--segmenter.epochs', 2,
         '--prediction.scales', 1)
START = 'from wsss_nb.cli import main; main()'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'shapes', train=10, val=4, size=64)


def start(*given, before=(), **options) -> subprocess.Popen:
    words = [*before, sys.executable, '-c', START, *[str(word) for word in given]]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            errors='replace', start_new_session=True, **options)


def ended(process: subprocess.Popen, code: int, *said: str) -> str:
    "What a process printed that ends with this code, without a traceback."
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == code, shown
    assert 'Traceback' not in shown, shown
    for words in said:
        assert words in shown, (words, shown)
    return shown


# The words of PyTorch

SHARED = ('/dev/shm', '--workers 0', '--shm-size')
FULL_GPU = ("the GPU's memory is full", '--accumulate', 'crop')
KNOWN = {
    "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's "
    'workers are out of shared memory. Please try to raise your shared memory limit.': SHARED,
    'unable to write to file </torch_7_1_0>: No space left on device (28)': SHARED,
    'unable to allocate shared memory(shm) for file </torch_7_1_0>: No space left on device (28)':
        SHARED,
    'unable to mmap 64 bytes from file </torch_7_1_0>: Cannot allocate memory (12)': SHARED,
    'Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call '
    'last):\nRuntimeError: unable to open shared memory object </torch_7_1_0> in read-write mode: '
    'No space left on device (28)': SHARED,
    'CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.79 GiB of '
    'which 1.1 GiB is free.': FULL_GPU,
    'CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported': FULL_GPU,
    'CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`': FULL_GPU,
    'MPS backend out of memory (MPS allocated: 17 GB, other allocations: 1 GB)': FULL_GPU,
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    'you tried to allocate 274877906944 bytes. Error code 12 (Cannot allocate memory)':
        ('memory is short', '--workers', '--accumulate', 'crop', '--longest'),
    'DataLoader worker (pid 7) is killed by signal: Killed. ':
        ('ended by the system', '--workers', 'the same command goes on'),
    'DataLoader worker (pid(s) 7, 8) exited unexpectedly': ('ended by the system', '--workers'),
    'Too many open files. Communication with the workers is no longer possible.': ('ulimit -n',),
    "can't start new thread": ('no more processes', '--workers'),
    '[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file data/0: '
    'file write failed': ('the disk takes no more', 'make room'),
    'Error initializing torch.distributed using env:// rendezvous: environment variable '
    'MASTER_ADDR expected, but not set': ('a launcher, in part', 'unset RANK'),
    'Tried to launch on distributed with multinode, but `MASTER_ADDR` env was not set':
        ('a launcher, in part',),
    'Timed out after 601 seconds waiting for clients. 1/2 clients joined.':
        ('another process of this run is not there',),
    '[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.1]:1':
        ('another process of this run',),
}


@pytest.mark.parametrize('said', KNOWN, ids=lambda said: said[:40])
def test_what_pytorch_says_becomes_one_sentence(said):
    sentence = refusal_of(RuntimeError(said))
    assert '\n' not in sentence
    for words in KNOWN[said]:
        assert words in sentence
    assert told(RuntimeError(said)) == (2, f'wsss_nb: {sentence}')


def test_errors_by_their_type():
    assert 'make room' in refusal_of(SafetensorError('I/O error: No space left on device'))
    assert '--accumulate' in refusal_of(torch.OutOfMemoryError('CUDA out of memory. Tried'))
    assert 'memory is short' in refusal_of(MemoryError())
    numpy = MemoryError('Unable to allocate 3.2 GiB for an array with shape (9, 9)')
    assert '--longest' in refusal_of(numpy) and '3.2 GiB' in refusal_of(numpy)
    assert 'ulimit' in refusal_of(OSError(24, 'Too many open files', 'a.jpg'))
    assert 'no more processes' in refusal_of(BlockingIOError(11, 'Resource temporarily'))
    for number in (1, 13, 30):
        assert 'may write to' in refusal_of(OSError(number, 'no', 'run/a.npz'))


def test_an_error_of_the_program_stays_one():
    for error in (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), ValueError('x'),
                  KeyError('memory'), ZeroDivisionError()):
        assert refusal_of(error) is None and told(error) is None


def test_what_led_to_an_error_counts():
    try:
        try:
            raise RuntimeError(next(iter(KNOWN)))
        except RuntimeError as first:
            raise RuntimeError('DataLoader worker (pid(s) 7) exited unexpectedly') from first
    except RuntimeError as error:
        assert '--shm-size' in refusal_of(error)


# Brought about

def test_a_small_dev_shm(shapes, tmp_path):
    private = ['unshare', '--mount', '--map-root-user', 'sh', '-c',
               'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"']
    if not shutil.which('unshare') or subprocess.run([*private, 'true']).returncode:
        pytest.skip('no mount of our own here')
    out = tmp_path/'run'
    options = ('--data', shapes, '--out', out, *SMALL, '--classifier.crop', 320)
    ended(start('run', *options, '--workers', 1, before=private), 2, *SHARED)
    alone = ('--workers', 0, '--until', 'classify')
    ended(start('run', *options, *alone, before=private), 0)


TENSORS = '''
import torch
from wsss_nb.work import in_workers

def large(i):
    return torch.zeros(4_000_000)

if __name__ == '__main__':
    try:
        list(in_workers(large, range(4), 1, 'maps'))
    except Exception as error:
        print(type(error).__name__, error)
'''


def test_a_small_dev_shm_where_workers_send_tensors(tmp_path):
    private = ['unshare', '--mount', '--map-root-user', 'sh', '-c',
               'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"']
    if not shutil.which('unshare') or subprocess.run([*private, 'true']).returncode:
        pytest.skip('no mount of our own here')
    (tmp_path/'script.py').write_text(TENSORS)
    command = [*private, sys.executable, tmp_path/'script.py']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith('InputError') and '--shm-size' in done.stdout, done.stderr


def test_less_memory_than_a_step_needs(shapes, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (5 << 30, 5 << 30))

    process = start('run', '--data', shapes, '--out', tmp_path/'run', *SMALL, '--workers', 0,
                    '--classifier.crop', 6000, preexec_fn=limit)
    ended(process, 2, 'memory is short', '--accumulate', 'crop')


def children(process: subprocess.Popen) -> list[int]:
    "Processes that a process has made."
    found = subprocess.run(['ps', '-o', 'pid=', '--ppid', str(process.pid)],
                           capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def wait_for(something):
    for _ in range(6000):
        found = something()
        if found:
            return found
        time.sleep(.01)
    raise AssertionError('it never came to that')


def workers_of(process: subprocess.Popen, folder: Path, pattern: str):
    "The workers of a stage that has written its first file."
    wait_for(lambda: process.poll() is not None or list(folder.glob(pattern)))
    return wait_for(lambda: process.poll() is not None or children(process))


@pytest.fixture(scope='module')
def many(tmp_path_factory) -> Path:
    return make_shapes(tmp_path_factory.mktemp('data')/'many', train=32, val=2, size=96)


def test_a_worker_that_the_system_kills(many, tmp_path):
    out = tmp_path/'run'
    more = ('--classifier.epochs', 8, '--classifier.learning-rate', .0001, '--segmenter.epochs', 8,
            'refiner:none')
    asked = ('run', '--data', many, '--out', out, *SMALL[2:-4], *SMALL[-2:], '--workers', 1)
    stages = (('classifier', 'log.csv'), ('cams', '*.npz'), ('segmenter', 'log.csv'))
    for folder, pattern in stages:
        process = start(*asked, *more)
        found = workers_of(process, out/folder, pattern)
        for worker in found if process.poll() is None else ():
            os.kill(worker, signal.SIGKILL)
        ended(process, 2, 'ended by the system', 'the same command goes on')
    ended(start(*asked, '--until', 'segment', *more), 0)


def test_sigterm_writes_a_checkpoint_and_leaves_with_143(many, tmp_path):
    out = tmp_path/'run'
    asked = ('run', '--data', many, '--out', out, *SMALL[2:], '--workers', 2, '--until', 'cams',
             '--classifier.epochs', 60)
    log = out/'classifier'/'log.csv'

    def lines() -> int:
        return log.read_text().count('\n') if log.exists() else 0
    for everybody in (False, True):    # the process, or its workers, too, as a queue does it
        known = lines()
        before = set(out.rglob('checkpoint*'))
        process = start(*asked)
        wait_for(lambda: process.poll() is not None or children(process))
        wait_for(lambda: process.poll() is not None or lines() > known)   # it takes steps
        time.sleep(.5)
        (os.killpg if everybody else os.kill)(process.pid, signal.SIGTERM)
        ended(process, 143, 'SIGTERM', 'the same command goes on')
        checkpoint, = out.glob('classifier/checkpoint-*')
        assert checkpoint not in before
    assert {path.name for path in (out/'classifier').iterdir()} == {'log.csv', checkpoint.name}


@pytest.mark.parametrize('number, code', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_pytorch_is_imported(number, code, shapes, tmp_path):
    for wait in (.1, .3, .5, .8, 1.1):
        code_of = f'import wsss_nb.cli as c; print("ready", flush=True); {START}'
        words = [sys.executable, '-c', code_of, 'check', str(shapes)]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   text=True)
        assert process.stdout.readline() == 'ready\n'
        time.sleep(wait)
        process.send_signal(number)
        shown, _ = process.communicate(timeout=60)
        assert process.returncode in (0, code), shown
        assert 'Traceback' not in shown
        assert process.returncode == 0 or 'the same command goes on' in shown
    assert wait > 1


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_terminal_that_has_no_letters_for_a_name(encoding, tmp_path):
    root = make_shapes(tmp_path/'shapes', train=3, val=1, size=32)
    for path in (root/'Annotations').iterdir():
        path.write_text(path.read_text().replace('ring', 'łoś'))
    classes = (root/'classes.txt').read_text().replace('ring', 'łoś')
    (root/'classes.txt').write_text(classes, encoding='utf-8')
    spoken = os.environ | {'PYTHONIOENCODING': encoding, 'PYTHONUTF8': '0'}
    ended(start('check', root, env=spoken), 0, r'\u0142o\u015b', 'no faults')
    latin = os.fsencode(root/'JPEGImages')+b'/caf\xe9.jpg'
    Path(os.fsdecode(latin)).write_bytes(b'no photo')
    shown = ended(start('check', root, env=spoken), 0)
    assert 'UnicodeEncodeError' not in shown


def test_half_a_launcher(shapes, tmp_path):
    half = os.environ | {'RANK': '0', 'LOCAL_RANK': '0', 'WORLD_SIZE': '2',
                         'ACCELERATE_USE_CPU': 'true'}
    half.pop('MASTER_ADDR', None)
    process = start('run', '--data', shapes, '--out', tmp_path/'run', *SMALL, env=half)
    ended(process, 2, 'launcher')


# The environment

@pytest.mark.parametrize('name', FOREIGN)
def test_variables_that_would_change_results_are_refused_by_name(name):
    with pytest.raises(InputError, match=f'{name}=1, which would change .* `unset {name}`'):
        check_environment({name: '1'})
    for value in ('', 'false', 'no'):
        check_environment({name: value})
    check_environment({f'{name}_TOO': '1'})


def test_the_configuration_decides_against_the_environment(shapes, tmp_path):
    told_otherwise = {
        'ACCELERATE_GRADIENT_ACCUMULATION_STEPS': '4', 'ACCELERATE_MIXED_PRECISION': 'bf16',
        'ACCELERATE_DYNAMO_BACKEND': 'INDUCTOR', 'ACCELERATE_DYNAMO_MODE': 'max-autotune'}
    weights = []
    for number, extra in enumerate(({}, told_otherwise)):
        out = tmp_path/str(number)
        process = start('run', '--data', shapes, '--out', out, *SMALL, '--workers', 0, '--until',
                        'classify', env=os.environ | extra)
        ended(process, 0)
        weights.append((out/'classifier'/'model.safetensors').read_bytes())
    assert weights[0] == weights[1]
    extra = {'ACCELERATE_USE_FSDP': 'true'}
    process = start('run', '--data', shapes, '--out', tmp_path/'no', *SMALL,
                    env=os.environ | extra)
    ended(process, 2, 'ACCELERATE_USE_FSDP=true')
    assert not (tmp_path/'no').exists()

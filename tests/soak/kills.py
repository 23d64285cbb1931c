"""Kill runs at random moments, go on with them, and compare each with a run that was left alone.

    python tests/soak/kills.py --kills 30 --seed 0

Each system is run in one process and in two. A kill comes at a random moment of a stage, the stages
by turns; then the same command goes on. Every file has to be the same to the last bit, but for the
times that are written down, and nothing may be left over.
"""
import argparse
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Iterator

os.environ['OMP_NUM_THREADS'] = '1'    # before anything computes
os.environ['ACCELERATE_USE_CPU'] = 'true'

import torch  # noqa: F401, E402   children are forks of a process that has it already

from wsss_nb import commands  # noqa: F401, E402
from wsss_nb.cli import main  # noqa: E402
from wsss_nb.methods import STAGES, stages_of  # noqa: E402
from wsss_nb.shapes import make_shapes  # noqa: E402
from wsss_nb.systems import SYSTEMS  # noqa: E402

BACKBONE = ('--classifier.backbone.name', 'timm/mobilenetv3_small_050',
            '--classifier.backbone.weights', 'none', '--classifier.backbone.dilate', 'False',
            '--classifier.learning-rate', '0.0001')   # maps of noise, but not empty
SHORT = ('--classifier.epochs', '12', '--classifier.batch-size', '4', '--classifier.crop', '48',
         '--segmenter.epochs', '12', '--segmenter.batch-size', '4', '--segmenter.crop', '48',
         '--segmenter.backbone.weights', 'none', '--cams.scales', '1', '0.5',
         '--prediction.scales', '1')
RUNS = {
    'words': (),
    'irn': ('--refiner.backbone.weights', 'none', '--refiner.epochs', '6', '--refiner.crop', '96',
            '--refiner.batch-size', '4'),
    'sc-cam': ('--classifier.rounds', '2', '--classifier.sub-categories', '2'),
}
TIMES = ('seconds', 'start', 'end', 'revision')   # keys and columns that may differ


def command_of(system: str, data: Path, root: Path) -> list[str]:
    "What a person would type."
    return ['run', '--system', system, '--data', str(data), '--out', str(root), *BACKBONE, *SHORT,
            *RUNS[system]]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(('127.0.0.1', 0))
        return found.getsockname()[1]


def run_child(command: list[str], rank: int, processes: int, port: int, shown: Path) -> None:
    "Be one process of a command; never returns."
    os.setsid()
    out = os.open(shown, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    if processes > 1:
        os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(processes),
                       'LOCAL_WORLD_SIZE': str(processes), 'MASTER_ADDR': '127.0.0.1',
                       'MASTER_PORT': str(port)}
    code = 1
    try:
        main(command)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:   # a traceback is what we look for
        print(f'Traceback: {error!r}', flush=True)
    finally:
        sys.stdout.flush()
        os._exit(code)


def start(command: list[str], processes: int, shown: Path) -> list[int]:
    "Start a command; the numbers of its processes."
    port = free_port()
    found = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            run_child(command, rank, processes, port, shown)
        found.append(child)
    return found


def ended(children: list[int]) -> list[int]:
    "Wait for processes; how each ended."
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def finish(command: list[str], processes: int, shown: Path) -> None:
    "Do a command to its end."
    shown.unlink(missing_ok=True)
    codes = ended(start(command, processes, shown))
    if any(codes):
        raise SystemExit(f'{command}: ended with {codes}\n{shown.read_text()[-3000:]}')


def seconds_of(root: Path) -> dict[str, float]:
    "How long each stage of a run took, as far as it is."
    with suppress(OSError, ValueError):
        return json.loads((root/'metrics.json').read_text()).get('seconds', {})
    return {}


def kill_in(
    stage: str,
    moment: float,         # seconds after it began
    children: list[int],
    root: Path,
    before: str | None,    # the stage before it
    chosen: int,           # which of the processes is killed first
) -> bool:                 # whether it was killed, and hadn't come to its end
    "Kill a run in a stage."
    while before is not None and before not in seconds_of(root):
        if os.waitpid(children[0], os.WNOHANG)[0]:
            raise SystemExit(f'{root}: ended by itself in the stage {before}')
        time.sleep(.005)
    time.sleep(moment)
    is_early = 'evaluate' not in seconds_of(root)
    for child in [children[chosen], *children]:
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    ended(children)
    return is_early


def without_times(path: Path) -> bytes:
    "What a file of a run holds, but for times."
    content = path.read_bytes()
    if path.suffix == '.json':
        content = json.dumps(timeless(json.loads(content)), sort_keys=True).encode()
    if path.suffix == '.csv':
        rows = [timeless(row) for row in csv.DictReader(io.StringIO(content.decode()))]
        content = json.dumps(rows).encode()
    return content


def timeless(content):
    "The same without the keys of `TIMES`."
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in TIMES}
        return {key: timeless(value) for key, value in kept.items()}
    if isinstance(content, list):
        return [timeless(entry) for entry in content]
    return content


def files_of(root: Path) -> dict[str, str]:
    "The files of a run, with a hash of each."
    found = {}
    for path in sorted(root.rglob('*')):
        if path.is_file():
            name = str(path.relative_to(root))
            found[name] = hashlib.blake2b(without_times(path)).hexdigest()
    return found


def differing(root: Path, alone: dict[str, str]) -> list[str]:
    "Files that a run has in place of, or besides, those of a run that was left alone."
    found = files_of(root)
    names = sorted(found.keys() | alone.keys())
    return [name for name in names if found.get(name) != alone.get(name)]


def trials(kills: int, seed: int) -> Iterator[tuple[str, int, str, random.Random]]:
    "System, number of processes and stage of each kill, the systems and the stages by turns."
    generator = random.Random(seed)
    turn = 0
    for number in range(kills):
        for processes in (1, 2):
            system = list(RUNS)[number % len(RUNS)]
            stages = stages_of(SYSTEMS[system])
            yield system, processes, stages[turn // 2 // len(RUNS) % len(stages)], generator
            turn += 1


def soak(kills: int, seed: int, here: Path) -> int:   # kills that left a trace
    "Kill and go on, print what came of each, and count what differs."
    data = make_shapes(here/'shapes', train=24, val=6, size=64)
    shown = here/'shown.txt'   # what the commands print
    alone = {}
    failed = 0
    for number, (system, processes, stage, generator) in enumerate(trials(kills, seed), 1):
        key = (system, processes)
        if key not in alone:
            root = here/f'{system}-{processes}'/'run'   # pictures show the name of the folder
            finish(command_of(system, data, root), processes, shown)
            alone[key] = (files_of(root), seconds_of(root))
        files, seconds = alone[key]
        root = here/'killed'/'run'
        command = command_of(system, data, root)
        place = stages_of(SYSTEMS[system]).index(stage)
        before = None if place == 0 else stages_of(SYSTEMS[system])[place - 1]
        moment = generator.uniform(0, seconds[stage])
        children = start(command, processes, shown)
        chosen = generator.randrange(processes)
        is_early = kill_in(stage, moment, children, root, before, chosen)
        there = len(files_of(root))
        finish(command, processes, shown)
        found = differing(root, files)
        failed += bool(found)
        print(f'{number:3} {system:7} {processes} process(es), {moment:6.2f} s into {stage:9}'
              f'{"" if is_early else " (at its end)"}: {there} files, then '
              f'{", ".join(found[:5]) if found else "the same to the last bit"}', flush=True)
        shutil.rmtree(root.parent)
    return failed


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=30, help='in one process, and in two')
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        failed = soak(asked.kills, asked.seed, Path(folder))
    print(f'{2 * asked.kills - failed} of {2 * asked.kills} kills left no trace')
    sys.exit(failed > 0)

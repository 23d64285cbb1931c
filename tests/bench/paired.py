"""Time our way of doing a thing and the published one in turns, and keep the ratio in a table.

Both run in one process, a pair at a time: whatever else the machine does meets both."""
import csv
import os
import platform
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

DATA = Path(__file__).parents[2]/'data'
TABLE = DATA/'measured_speed.csv'
MEMORY_TABLE = DATA/'measured_memory.csv'
SPIN = 'while True:\n    pass'


@dataclass(frozen=True)
class Stage:
    "Something that is done in two ways: calling either does it once."
    name: str
    ours: Callable[[], Any]
    published: Callable[[], Any]
    agreement: Callable[[Any, Any], float]   # of what ours and what the published way gives
    agreed_on: str        # what that number is, such as 'equal labels, share'
    bar: float | None = None   # how many times as fast ours should be; None: no bar is set
    rounds: int = 5       # pairs that are timed, after one that isn't


@dataclass(frozen=True)
class Row:
    "What was measured of a stage. Times are medians, in seconds."
    stage: str
    machine: str     # 'quiet', or 'busy': with a process beside for each core
    ours: float
    published: float
    ratio: float     # published / ours, the median over pairs
    bar: float | None
    agreement: float
    agreed_on: str
    rounds: int
    threads: int
    cores: int
    torch: str
    processor: str


class Pairs(NamedTuple):
    "The times of both ways, pair by pair, seconds; and what they gave at last."
    ours: list[float]
    published: list[float]
    given: tuple[Any, Any]


def alternate(stage: Stage, benchmark: Callable) -> Pairs:
    "Time pairs with the fixture of pytest-benchmark: before each round of ours, the published way."
    published = []
    given = {}

    def before():
        begin = time.perf_counter()
        given['published'] = stage.published()
        published.append(time.perf_counter() - begin)

    given['ours'] = benchmark.pedantic(stage.ours, setup=before, rounds=stage.rounds,
                                       warmup_rounds=1)
    ours = list(benchmark.stats.stats.data)
    return Pairs(ours, published[-len(ours):], (given['ours'], given['published']))


def processor() -> str:
    "What the system calls the processor."
    path = Path('/proc/cpuinfo')
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    "How many cores this process may use."
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_of(stage: Stage, machine: str, pairs: Pairs) -> Row:
    "What the pairs say."
    ratios = [theirs / ours for ours, theirs in zip(pairs.ours, pairs.published)]
    return Row(stage.name, machine, median(pairs.ours), median(pairs.published), median(ratios),
               stage.bar, stage.agreement(*pairs.given), stage.agreed_on, len(ratios),
               torch.get_num_threads(), cores(), torch.__version__, processor())


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen]]:
    "Within the block, so many other processes want a core each, all the time."
    others = []
    try:
        for _ in range(count):
            others.append(subprocess.Popen([sys.executable, '-c', SPIN]))
        time.sleep(.5)   # until they have begun
        yield others
    finally:
        for other in others:
            other.kill()
            other.wait()


@dataclass(frozen=True)
class MemoryRow:
    "The most bytes that either way holds at a time, besides what it was given."
    stage: str
    machine: str       # 'any': these are counted, not measured
    ours: int
    published: int
    share: float       # ours / published
    bar: float | None  # what the share should be at most
    torch: str


def peak_bytes(function: Callable[[], Any]) -> int:
    "The most that PyTorch had allocated at a time in a call, besides what was there before."
    function()   # what is made once doesn't count
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        given = function()
    events = [event for event in profiled.profiler.kineto_results.events()
              if event.name() == '[memory]']
    held = 0
    largest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()   # less than 0 where something is given back
        largest = max(largest, held)
    del given   # what the call gives is held, too
    return largest


def memory_row(stage: Stage, bar: float | None) -> MemoryRow:
    "Counts both ways of a stage, on one thread: each has memory of its own."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ours = peak_bytes(stage.ours)
        published = peak_bytes(stage.published)
    finally:
        torch.set_num_threads(before)
    return MemoryRow(stage.name, 'any', ours, published, ours / published, bar, torch.__version__)


def write_rows(
    path: Path,
    rows: list[Row] | list[MemoryRow],   # each takes the place of one of the same stage and machine
) -> None:
    "Add rows to a table, those that are there in their places. Other processors' rows stay."
    def key(row: dict) -> tuple[str, str, str | None]:
        return row['stage'], row['machine'], row.get('processor')

    table = {}
    if path.exists():
        with path.open(newline='') as file:
            for old in csv.DictReader(file):
                table[key(old)] = old
    for row in rows:
        new = asdict(row)
        table[key(new)] = new
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0])])
        writer.writeheader()
        writer.writerows(table.values())


def as_table(rows: list[Row]) -> list[str]:
    "Lines to print."
    lines = [f'{"stage":<46}{"machine":<8}{"ours":>9}{"published":>11}{"ratio":>8}{"bar":>6}'
             f'{"agreement":>11}']
    for row in rows:
        bar = '' if row.bar is None else f'{row.bar:g}'
        lines.append(f'{row.stage:<46}{row.machine:<8}{row.ours:>8.3f}s{row.published:>10.3f}s'
                     f'{row.ratio:>8.2f}{bar:>6}{row.agreement:>11.5f}  {row.agreed_on}')
    return lines

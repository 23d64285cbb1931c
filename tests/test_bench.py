"The benchmarks: pairs, their rows, and that all of it runs."
import csv
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCH = Path(__file__).parent/'bench'


@pytest.fixture
def paired(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import paired
    return paired


class Clock:
    "A fixture of pytest-benchmark that notes nothing but times."
    def pedantic(self, function, setup, rounds, warmup_rounds):
        data = []
        for _ in range(warmup_rounds + rounds):
            setup()
            begin = time.perf_counter()
            result = function()
            data.append(time.perf_counter() - begin)
        self.stats = SimpleNamespace(stats=SimpleNamespace(data=data[warmup_rounds:]))
        return result


def test_pairs_alternate_and_the_first_is_not_counted(paired):
    calls = []

    def ours():
        calls.append('ours')
        return 3

    def published():
        calls.append('published')
        time.sleep(.02)
        return 4

    stage = paired.Stage('sleep', ours, published, lambda a, b: a / b, 'share', bar=2, rounds=3)
    pairs = paired.alternate(stage, Clock())
    assert calls == ['published', 'ours'] * 4
    assert len(pairs.ours) == len(pairs.published) == 3
    row = paired.row_of(stage, 'quiet', pairs)
    assert row.agreement == .75
    assert row.published >= .02 and row.ratio > 2
    assert 'sleep' in paired.as_table([row])[1]


def test_a_row_takes_the_place_of_the_one_before(paired, tmp_path):
    path = tmp_path/'speed.csv'
    row = paired.Row('a', 'quiet', 1., 2., 2., None, 1., 'share', 3, 1, 2, '2.6', 'one')
    paired.write_rows(path, [row, replace(row, machine='busy')])
    paired.write_rows(path, [replace(row, ours=.5)])
    paired.write_rows(path, [replace(row, ours=.7, processor='another')])
    with path.open() as file:
        rows = list(csv.DictReader(file))
    found = [(r['machine'], r['processor'], r['ours']) for r in rows]
    assert found == [('quiet', 'one', '0.5'), ('busy', 'one', '1.0'), ('quiet', 'another', '0.7')]


def test_busy_processes_end_with_the_block(paired):
    with pytest.raises(KeyError):
        with paired.busy(1) as others:
            assert others[0].poll() is None
            raise KeyError
    assert others[0].poll() is not None


def test_peak_bytes_are_those_at_a_time(paired):
    def in_turns():
        torch.zeros(1000)
        torch.zeros(500)

    def together():
        return [torch.zeros(1000), torch.zeros(500)]

    assert paired.peak_bytes(in_turns) == 4000
    assert paired.peak_bytes(together) == 6000


SHARES = {'pooling': .53, 'words': .4, 'words_and_pooling': .54}   # 1/2 is the least with HSPP


@pytest.mark.parametrize('name', SHARES)
@pytest.mark.parametrize('layout', ['plain', 'channels last'])
def test_words_and_hspp_take_about_half_the_memory_of_the_published_way(paired, name, layout):
    pytest.importorskip('pydensecrf')
    import bench_networks
    row = paired.memory_row(getattr(bench_networks, name)(False, layout), None)
    assert row.share < SHARES[name]


def test_a_benchmark_runs(tmp_path):
    pytest.importorskip('pytest_benchmark')
    table = tmp_path/'speed.csv'
    command = [sys.executable, '-m', 'pytest', '-p', 'no:cacheprovider', '--small', '-q',
               f'--speed-table={table}', '-k', 'quiet and walk] or busy and crf',
               str(BENCH/'bench_refiners.py')]
    # of several processes of pytest, none takes times
    alone = {name: value for name, value in os.environ.items() if 'XDIST' not in name}
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCH.parents[1], env=alone)
    assert done.returncode == 0, done.stdout
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert {row['machine'] for row in rows} == {'quiet', 'busy'}
    assert all(float(row['agreement']) >= .99 for row in rows if 'equal' in row['agreed_on'])


def test_what_a_gpu_waits_for_is_watched_and_a_machine_without_one_says_so(
        monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    import on_gpu
    from wsss_nb.shapes import make_shapes
    shapes = make_shapes(tmp_path/'shapes', 16, 4, size=64)
    monkeypatch.setattr(on_gpu, 'TIMED', range(0, 2))
    monkeypatch.setattr(on_gpu, 'WATCHED', range(1, 2))
    monkeypatch.setattr(on_gpu, 'SEEN', range(2, 3))
    monkeypatch.setattr(on_gpu, 'SIZES', ((64, 48), (48, 64)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    modes = []
    monkeypatch.setattr(torch.cuda, 'set_sync_debug_mode', modes.append)
    on_gpu.train('baseline', shapes, tmp_path/'out', 'no')
    assert modes == ['warn', 'default'] and not (tmp_path/'out'/'run').exists()
    on_gpu.look('baseline')
    said = capsys.readouterr().out
    assert 'baseline, no: ' in said and 'it waited at {}' in said
    assert said.count(' look: ') == 4
    monkeypatch.setattr(sys, 'argv', ['on_gpu.py', '--data', str(shapes), '--out', str(tmp_path)])
    with pytest.raises(SystemExit):
        on_gpu.main()
    assert 'there is no CUDA GPU here' in capsys.readouterr().err

"What all benchmarks share. `make bench` runs them; `--small` only shows whether they run."
from pathlib import Path
from typing import Callable

import pytest
from paired import TABLE, Row, Stage, alternate, as_table, busy, cores, row_of, write_rows

ROWS: list[Row] = []


def pytest_addoption(parser):
    group = parser.getgroup('bench')
    group.addoption('--small', action='store_true', help='small arrays and few rounds')
    group.addoption('--whole', action='store_true', help='also what takes minutes')
    group.addoption('--speed-table', type=Path, default=TABLE, help='CSV file that gets the rows')


@pytest.fixture
def small(request) -> bool:
    "Whether this is only to see that all of it runs."
    return request.config.getoption('--small')


@pytest.fixture
def whole(request) -> bool:
    "Whether what takes minutes is measured, too."
    return request.config.getoption('--whole')


@pytest.fixture(scope='session', params=['quiet', 'busy'])
def machine(request):
    "As it is; then with a process beside for each core."
    with busy(cores() if request.param == 'busy' else 0):
        yield request.param


@pytest.fixture
def compare(benchmark, machine, request) -> Callable[[Stage], Row]:
    "Times a stage in both ways, and writes the row at once: a run that is cut off loses none."
    def measured(stage: Stage) -> Row:
        row = row_of(stage, machine, alternate(stage, benchmark))
        benchmark.extra_info.update(ratio=row.ratio, agreement=row.agreement)
        ROWS.append(row)
        write_rows(request.config.getoption('--speed-table'), [row])
        return row
    return measured


def pytest_terminal_summary(terminalreporter, config):
    if not ROWS:
        return
    path = config.getoption('--speed-table')
    terminalreporter.section('ours and the published way')
    for line in as_table(ROWS):
        terminalreporter.write_line(line)
    terminalreporter.write_line(f'{path} has these rows')

"What all tests share."
import gc
import signal
import threading

import pytest

from wsss_nb.crf import ABSENT, has_crf


@pytest.fixture(autouse=True, scope='session')
def ctrl_c():
    """What a script starts in the background ignores Ctrl-C.

    So would every process that a test starts and then interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def no_workers_left():
    """Let the workers of a test end with it. A loader that was left by an error lives on until
    garbage is collected; a later fork would inherit its pipes, half closed."""
    yield
    feeders = [one for one in threading.enumerate() if one.name == 'QueueFeederThread']
    if feeders:
        gc.collect()
    for feeder in feeders:
        feeder.join(timeout=.2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Let a test that meets a machine without the dense CRF skip, and say so.

    Whether there is one is asked only then: where it is there, nothing skips."""
    if call.excinfo is not None and ABSENT in str(call.excinfo.value) and not has_crf():
        call.excinfo = pytest.ExceptionInfo.from_exception(skipping())
    return (yield)


def skipping() -> BaseException:
    "What `pytest.skip` raises."
    try:
        pytest.skip(ABSENT)
    except BaseException as skipped:
        return skipped

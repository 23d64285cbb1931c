"What all tests share."
import signal

import pytest


@pytest.fixture(autouse=True, scope='session')
def ctrl_c():
    """What a script starts in the background ignores Ctrl-C.

    So would every process that a test starts and then interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)

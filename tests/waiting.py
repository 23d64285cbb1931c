"""Calls that would let this program wait for a GPU, counted on a CPU.

Within the block `with Waits() as waits`, `waits.calls` counts, by the function that makes them, the
calls that bring numbers to the host, those of which only the numbers say how large a result is, and
copies to a device without `non_blocking`. On a CPU none of them waits, so they are told by name."""
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from wsss_nb import training

PACKAGE = Path(training.__file__).parent
COPIES = {'cpu', 'numpy', 'tolist', '__array__', 'new_tensor'}
SENDS = {'to', 'tensor', 'as_tensor'}   # with a device
ASKS_NUMBERS = {'_local_scalar_dense', 'nonzero', 'equal', 'masked_select', 'bincount', '_unique',
                '_unique2', 'unique_dim', 'unique_consecutive', 'repeat_interleave'}
BY_PLACE = {'index', 'index_put', 'index_put_', '_index_put_impl_'}


def caller() -> str:
    "The function of the package that is being computed, the innermost one."
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        is_named = not frame.f_code.co_name.startswith('<')   # no comprehension
        if path.parent == PACKAGE and is_named:
            return f'{path.stem}.{frame.f_code.co_name}'
        frame = frame.f_back
    return 'elsewhere'


def by_mask(name: str, arguments: tuple) -> bool:
    "Whether something is chosen with a mask: how much it is, only the numbers say."
    if name not in BY_PLACE:
        return False
    places = [place for place in arguments[1] if place is not None]
    return any(place.dtype in (torch.bool, torch.uint8) for place in places)


def is_sent(name: str, arguments: tuple, named: dict[str, Any]) -> bool:
    "Whether a device is named, and it isn't said that nobody waits."
    places = [*arguments[1:], *named.values()]
    has_device = any(isinstance(place, (torch.device, str)) for place in places)
    return name in SENDS and has_device and not named.get('non_blocking', False)


class Operations(TorchDispatchMode):
    "Counts the operations that ask for numbers, whoever calls them."
    def __init__(self, calls: Counter):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ASKS_NUMBERS or by_mask(name, args):
            self.calls[f'{caller()}: {name}'] += 1
        return function(*args, **(kwargs or {}))


class Waits(TorchFunctionMode):
    "Counts operations that ask for numbers, and copies, which a CPU leaves out."
    def __init__(self):
        super().__init__()
        self.calls = Counter()
        self.operations = Operations(self.calls)

    def __enter__(self) -> 'Waits':
        self.operations.__enter__()
        return super().__enter__()

    def __exit__(self, *error) -> None:
        super().__exit__(*error)
        self.operations.__exit__(*error)

    def __torch_function__(self, function: Callable, types, args=(), kwargs=None):
        named = kwargs or {}
        name = getattr(function, '__name__', '')
        if name in COPIES or is_sent(name, args, named):
            self.calls[f'{caller()}: {name}'] += 1
        return function(*args, **named)

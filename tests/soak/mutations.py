"""Damage the files of a run in many ways. A reader may read what is left, or refuse it in words.

python tests/soak/mutations.py --count 30000 [--seed 0]    says how many were read, refused, raised
something else, or took too long. The quick part of it is in tests/test_readers.py."""
import argparse
import csv
import faulthandler
import io
import json
import math
import os
import random
import signal
import sys
import tempfile
import traceback
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Iterator, NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save

from wsss_nb.cam import CAM
from wsss_nb.comparison import MEASURED, ROW, TRIAL
from wsss_nb.figures import read_log
from wsss_nb.files import InputError, write_json, write_rows
from wsss_nb.irn import IRN, things_path
from wsss_nb.loaders import Batch
from wsss_nb.new_photos import open_predictions
from wsss_nb.photos import read_mask, write_mask
from wsss_nb.published import load_weights, read_weights
from wsss_nb.readers import At, Log, write_arrays
from wsss_nb.report import noticed
from wsss_nb.run import Config, start_run
from wsss_nb.sc_cam import read_array, read_sub_labels, write_array
from wsss_nb.shapes import is_made, make_shapes
from wsss_nb.systems import SYSTEMS, open_run
from wsss_nb.tables import read_rows
from wsss_nb.terms import read_plan
from wsss_nb.training import (Training, TrainingSettings, create_accelerator, load_model,
                              save_checkpoint, save_model)

CLASSES = ('cat', 'cow', 'dog')
SECONDS = 5.   # that a reader may take


class Kind(NamedTuple):
    "A file of a run, and who reads it."
    path: Path
    read: Callable[[Path], Any]


class Photos(SimpleNamespace):
    "What readers ask of the photos of a run."
    def __len__(self) -> int:
        return len(self.ids)


class Numbers(torch.utils.data.Dataset):
    "What the small training of a checkpoint learns from."
    def __len__(self) -> int:
        return 8

    def __getitem__(self, place) -> Batch:
        return Batch(torch.ones(3), {'y': torch.ones(1)})


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1)]
    return torch.nn.Sequential(*layers)


def training(folder: Path) -> Training:
    "A training that begins, or that goes on from the checkpoint in its folder."
    torch.manual_seed(0)
    settings = TrainingSettings(epochs=2, batch_size=4)
    accelerator = create_accelerator('no')
    return Training(torch.nn.Linear(3, 1), Numbers(), folder, settings, accelerator, 0, 0, None)


def begin_training(folder: Path) -> None:
    "Take a step, and write a checkpoint."
    folder.mkdir()
    this = training(folder)

    def loss(model, batch, at):
        return {'total': (model(batch.images) - batch.targets['y']).square().mean()}

    this.step(loss, next(iter(this.loader)), At(0, 4, 2))
    save_checkpoint(this.accelerator, folder, 1)


def sound(cam: CAM) -> None:
    "What was read is a CAM, whatever has become of its numbers."
    assert len(cam.classes) == len(cam.maps) and (cam.classes < len(CLASSES)).all()
    assert cam.maps.min(initial=0) >= 0 and cam.maps.max(initial=0) <= 1
    cam.to_labels(.5, (6, 8))


def read_checkpoint(path: Path) -> None:
    this = training(path.parents[1])
    assert all(p.isfinite().all() for p in this.network.parameters())


def write_tables(root: Path) -> None:
    "A comparison's files."
    measured = {'CAM train': 40.5, 'CAM val': None, 'settings': '--a, b'}
    row = {name: 1 for name in (*ROW, *MEASURED)} | measured
    write_rows(root/'table_a.csv', [row, row | {'seed': 2, 'system': 'words'}])
    trial = {name: .5 for name in TRIAL} | {'seed': 0, 'system': 'words', 'CAM train': None}
    write_rows(root/'rates.csv', [trial, trial | {'rate': .1}])
    pace = {'epochs': 2.5, 'seconds an epoch': 10, 'seconds besides': .5}
    write_json(root/'plan.json', {'terms': {'budget': 3}, 'paces': {'words': pace}})


def begun_run(root: Path) -> list[Kind]:
    "Begin a run, with measurements that look as if they were real."
    data = make_shapes(root/'data', train=2, val=1, size=64)
    this = start_run(Config(data, root/'begun', SYSTEMS['words'], workers=0))
    score = {'miou': .5, 'iou': {'background': .9}, 'images': 2, 'background': .3}
    this.record(cam={'train': score}, seconds={'cams': 1.5}, noticed={'cams': {'said': ['no']}})

    def read(path: Path) -> list:
        again = open_run(path.parent)
        return [again.background, again.system, again.classes, noticed(again), again.stages]

    return [Kind(this.root/name, read) for name in ('config.json', 'metrics.json')]


def small_run(root: Path) -> list[Kind]:
    "Write a file of each kind as a run has them, with next to nothing in it."
    for folder in ('cams', 'refiner/things', 'classifier/round-1', 'pseudo', 'new', 'shapes'):
        (root/folder).mkdir(parents=True)
    (root/'config.json').write_text('{}')
    photos = Photos(ids=['a', 'b'], classes=CLASSES)
    work = SimpleNamespace(folder=root/'refiner', photos=photos)
    maps = np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    CAM(np.array([0, 2]), maps, (10, 14)).save(root/'cams'/'a.npz')
    write_arrays(things_path(work, 0), things=np.arange(12, dtype=np.uint16).reshape(3, 4))
    rounds = root/'classifier'/'round-1'
    write_array(rounds/'features.npz', torch.rand(2, 5))
    write_array(rounds/'sub_labels.npz', torch.tensor([[0, -1, 1], [-1, 1, 0]]))
    write_mask(root/'pseudo'/'a.png', np.arange(12, dtype=np.uint8).reshape(3, 4) % 4)
    save_model(network(), root/'classifier')
    torch.save({'state_dict': network().state_dict()}, root/'weights.pth')
    torch.save(network().state_dict(), root/'old.pth', _use_new_zipfile_serialization=False)
    begin_training(root/'segmenter')
    log = Log(root/'classifier'/'log.csv')
    for step in (10, 20, 30):
        log.write(At(step - 1, 100, 20), .01, {'total': 1 / step, 'entropy': math.nan})
    method = IRN()
    setting = method.walk_settings()[1]
    write_json(root/'refiner'/'walk.json', {'scores': [.3, .1], 'setting': setting, 'tried': []})
    asked = {'run': 'r', 'classes': list(CLASSES), 'settings': {'scales': [1.]}}
    open_predictions(root/'new', asked)
    recipe = dict(train=2, val=1, size=64, seed=0)
    write_json(root/'shapes'/'shapes.json', recipe)
    write_tables(root)
    step = root/'segmenter'/'checkpoint-000001'
    readers = {
        'cams/a.npz': lambda path: sound(CAM.load(path, len(CLASSES))),
        'refiner/things/a.npz': lambda path: method.things(work, 0) + 0,
        'refiner/walk.json': lambda path: method.chosen_walk(work, None),
        'classifier/round-1/features.npz': lambda path: read_array(path, 2).sum(),
        'classifier/round-1/sub_labels.npz': lambda path: read_sub_labels(path, photos, 2),
        'classifier/model.safetensors': lambda path: load_model(network(), path.parent),
        'weights.pth': lambda path: load_weights(network(), read_weights(path), path),
        'old.pth': lambda path: load_weights(network(), read_weights(path), path),
        'classifier/log.csv': lambda path: [read_log(path), Log(path, 20).totals],
        'pseudo/a.png': lambda path: read_mask(path, len(CLASSES), (4, 3)),
        'table_a.csv': lambda path: read_rows(path, names=(*ROW, *MEASURED)),
        'rates.csv': lambda path: read_rows(path, names=TRIAL),
        'plan.json': read_plan,
        'new/predictions.json': lambda path: open_predictions(root/'new', asked),
        'shapes/shapes.json': lambda path: is_made(root/'shapes', recipe),
    }
    kinds = [Kind(root/name, read) for name, read in readers.items()]
    for name in ('model.safetensors', 'optimizer.bin', 'random_states_0.pkl'):
        kinds.append(Kind(step/name, read_checkpoint))
    return kinds + begun_run(root)


def flipped(draw: random.Random, content: bytes) -> bytes:
    "Some bits are others."
    changed = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def cut(draw: random.Random, content: bytes) -> bytes:
    "The end is missing."
    return content[:draw.randrange(len(content))]


def overwritten(draw: random.Random, content: bytes) -> bytes:
    "A block holds zeros, or something else."
    start = draw.randrange(len(content))
    size = draw.choice((1, 4, 64, 512))
    block = draw.choice((bytes(size), b'\xff' * size, draw.randbytes(size)))
    return content[:start] + block + content[start + size:]


def moved(draw: random.Random, content: bytes) -> bytes:
    "A block is missing, or is there twice."
    first, last = sorted(draw.randrange(len(content) + 1) for _ in range(2))
    rest = content[last:] if draw.random() < .5 else content[first:]
    return content[:first if rest is not content[first:] else last] + rest


VALUES = (None, True, -1, 0, 255, 1e308, 10 ** 30, math.nan, math.inf, '', 'x', '0', [], {}, [[1]])


def other_json(draw: random.Random, content: bytes) -> bytes:
    "A value of a JSON file is another one, or gone."
    value = json.loads(content)
    if draw.random() < .1:
        return json.dumps(draw.choice(VALUES)).encode()
    inside = value
    while True:
        place = draw.choice(list(inside) if isinstance(inside, dict) else range(len(inside)))
        deeper = inside[place]
        if not isinstance(deeper, (dict, list)) or not deeper or draw.random() < .4:
            break
        inside = deeper
    if draw.random() < .3:
        del inside[place]
    else:
        inside[place] = draw.choice(VALUES)
    return json.dumps(value).encode()


def other_csv(draw: random.Random, content: bytes) -> bytes:
    "A cell of a table is another one, or a row or column is gone."
    rows = list(csv.reader(io.StringIO(content.decode())))
    what = draw.randrange(4)
    row = draw.choice(rows)
    if what == 0:
        rows.remove(row)
    elif what == 1:
        row.pop(draw.randrange(len(row)))
    else:
        row[draw.randrange(len(row))] = str(draw.choice((*VALUES, 'nan', '1e999', '"', '9' * 5000)))
    written = io.StringIO(newline='')
    csv.writer(written).writerows(rows)
    return written.getvalue().encode()


def other_arrays(draw: random.Random, content: bytes) -> bytes:
    "An array is of another type or shape, holds other numbers, or is gone."
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    name = draw.choice(list(arrays))
    array = arrays.pop(name)
    values = np.array(draw.choice((255, -1, 7, 100)))
    dtype = draw.choice(('u1', 'u2', 'i8', 'f4', 'f8', 'c8', 'b1', 'U3', 'O', 'M8[s]', '>i4'))
    changes = [lambda: array.astype(dtype), lambda: array[None], lambda: array[:0],
               lambda: array.ravel(), lambda: array - array + values.astype(array.dtype),
               lambda: array.astype(float) * draw.choice((math.nan, math.inf)),
               lambda: np.concatenate([array, array]), lambda: array.T, lambda: array[::-1]]
    what = draw.randrange(len(changes) + 1)
    if what < len(changes):
        arrays[name] = changes[what]()
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def changed_tensor(draw: random.Random, tensor: torch.Tensor) -> Any:
    dtype = draw.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.complex64))
    changes = [lambda: tensor.to(dtype), lambda: tensor[None], lambda: tensor.flatten()[:0],
               lambda: torch.cat([tensor.flatten(), tensor.flatten()]), lambda: tensor * math.nan,
               lambda: torch.full_like(tensor.double(), draw.choice((math.inf, 1e300, -1.))),
               lambda: tensor.to_sparse(), lambda: 'x', lambda: None, lambda: {'a': tensor}]
    return draw.choice(changes)()


def change_in(draw: random.Random, value: Any) -> None:
    "Change something in nested tables and lists."
    place = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    inner = value[place]
    if isinstance(inner, (dict, list)) and inner and draw.random() < .8:
        change_in(draw, inner)
    elif draw.random() < .2:
        del value[place]
    elif isinstance(inner, torch.Tensor):
        value[place] = changed_tensor(draw, inner)
    else:
        value[place] = draw.choice(VALUES)


def other_tensors(draw: random.Random, content: bytes) -> bytes:
    "A tensor of a file of PyTorch is another one, or gone."
    value = torch.load(io.BytesIO(content), weights_only=False)
    change_in(draw, value)
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def other_weights(draw: random.Random, content: bytes) -> bytes:
    "A tensor of a .safetensors file is another one, or gone."
    state = load(content)
    change_in(draw, state)
    plain = {name: tensor.to_dense().contiguous() for name, tensor in state.items()
             if isinstance(tensor, torch.Tensor)}
    return save(plain)


OTHER = {'.json': other_json, '.csv': other_csv, '.npz': other_arrays, '.pth': other_tensors,
         '.bin': other_tensors, '.pkl': other_tensors, '.safetensors': other_weights}


def damaged(draw: random.Random, kind: Kind, kinds: list[Kind]) -> tuple[str, bytes]:
    "What was done to the content of a file, and what it is now."
    content = kind.path.read_bytes()
    ways = [flipped, cut, overwritten, moved, 'swapped']
    ways += [OTHER.get(kind.path.suffix, flipped)] * 4
    way = draw.choice(ways)
    if way == 'swapped':
        other = draw.choice(kinds).path
        return f'content of {other.name}', other.read_bytes()
    return way.__name__, way(draw, content)


class Hung(BaseException):
    "A reader took too long. No reader catches it."


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    "Raise `Hung` in a block that takes longer."
    def ring(*_):
        raise Hung(f'more than {seconds} s')
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(kind: Kind) -> tuple[str, str]:
    "What came of reading a file: 'read', 'refused', 'traceback' or 'hang'; and what was said."
    try:
        with limited(SECONDS):
            kind.read(kind.path)
    except InputError as error:
        said = str(error)
        is_told = said.startswith(str(kind.path.parent)) and len(said.split('. ')) > 1
        return ('refused', said) if is_told else ('traceback', f'tells too little: {said}')
    except Hung as error:
        return 'hang', str(error)
    except Exception:
        return 'traceback', traceback.format_exc()
    return 'read', ''


class Failure(NamedTuple):
    number: int   # of the mutation
    file: str
    way: str
    said: str


def mutate(
    count: int,
    seed: int = 0,
) -> tuple[Counter, list[Failure]]:   # of (file, outcome); tracebacks and hangs
    "Damage `count` files, one after the other, and read each."
    found = Counter()
    failures = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)/'run'
        root.mkdir()
        kinds = small_run(root)
        for kind in kinds:
            assert outcome(kind)[0] == 'read', (kind.path, outcome(kind)[1])
        for number in range(count):
            draw = random.Random(f'{seed}-{number}')
            kind = kinds[number % len(kinds)]
            whole = kind.path.read_bytes()
            way, content = damaged(draw, kind, kinds)
            kind.path.write_bytes(content)
            what, said = outcome(kind)
            kind.path.write_bytes(whole)
            name = str(kind.path.relative_to(root))
            found[name, what] += 1
            if what in ('traceback', 'hang'):
                failures.append(Failure(number, name, way, said))
        for kind in kinds:
            assert outcome(kind)[0] == 'read', (kind.path, outcome(kind)[1])
    return found, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=30000)
    parser.add_argument('--seed', type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    faulthandler.enable()
    found, failures = mutate(asked.count, asked.seed)
    outcomes = ('read', 'refused', 'traceback', 'hang')
    for name in dict.fromkeys(name for name, _ in found):
        print(f'{name:40}', *[f'{found[name, what]:6} {what}' for what in outcomes])
    for failure in failures[:20]:
        print(f'\nmutation {failure.number} of {failure.file}, {failure.way}:\n{failure.said}')
    for what in outcomes:
        print(f'{what}: {sum(n for (_, one), n in found.items() if one == what):,}')
    sys.exit(1 if failures else 0)


if __name__ == '__main__':
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    main()

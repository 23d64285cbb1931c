"""Train 10,000 steps and look at 10,000 photos, and print whether memory and open files stay flat.

    python tests/soak/steady.py --count 10000
"""
import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from wsss_nb.loaders import Batch
from wsss_nb.training import Machine, TrainingSettings, train
from wsss_nb.work import Maker, in_workers, looking

EVERY = 100     # steps or photos between two looks


class Noise(torch.utils.data.Dataset):
    "Small images of noise, each with a number to foretell."
    def __len__(self):
        return 256

    def __getitem__(self, place):
        generator = torch.Generator().manual_seed(place.index)
        image = torch.randn(3, 24, 24, generator=generator)
        return Batch(image, {'y': image.mean()[None]})


def mean_error(model, batch, at):
    return {'total': (model(batch.images).mean((2, 3)) - batch.targets['y']).square().mean()}


class Watch:
    "Notes memory and open files of this process."
    def __init__(self):
        self.memory: list[float] = []   # MiB
        self.handles: list[int] = []
        self.seen = 0

    def __call__(self, *_) -> None:
        self.seen += 1
        if self.seen % EVERY == 0:
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            self.memory.append(pages * os.sysconf('SC_PAGE_SIZE') / 2 ** 20)
            self.handles.append(len(os.listdir('/proc/self/fd')))

    def report(self, what: str) -> bool:   # whether all is flat
        "Print the slopes of the second half."
        half = len(self.memory) // 2
        memory = np.array(self.memory[half:])
        x = EVERY * np.arange(len(memory)) / 1000
        (slope, _), spread = np.polyfit(x, memory, 1, cov=True)
        error = float(np.sqrt(spread[0, 0]))
        handles = sorted(set(self.handles[half:]))
        print(f'{what}: {memory[0]:.1f} to {memory[-1]:.1f} MiB, {slope:+.3f} ± {error:.3f} MiB '
              f'per 1,000; open files {handles[0]} to {handles[-1]}')
        # a leak of one tensor, or one string, a step would be more
        return slope < max(3 * error, .05) and handles[0] == handles[-1]


def steps(count: int, here: Path) -> bool:
    "Train so many steps."
    watch = Watch()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 1))
    settings = TrainingSettings(epochs=count * 4 / 256, batch_size=4)
    machine = Machine(workers=0, step_done=watch)
    train(model, Noise(), mean_error, here/'trained', settings, machine)
    return watch.report(f'{count:,} training steps')


def read_noise(i: int) -> torch.Tensor:
    "Stands for reading a photo, in a worker."
    return torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(i))


def write_noise(i: int) -> int:
    "Stands for making a mask, in a worker."
    return int(np.random.default_rng(i).integers(0, 255, (48, 48)).sum())


def photos(count: int, workers: int) -> bool:
    "Look at so many photos with a network, and work on as many in workers."
    network = torch.nn.Conv2d(3, 8, 3)
    maker = Maker(network, read_noise, lambda network, image: network(image).amax((2, 3)).numpy())
    is_flat = True
    kinds: dict[str, Callable] = {
        'looked at': lambda: looking(maker, range(count), workers, 'looking'),
        'worked on': lambda: in_workers(write_noise, range(count), workers, 'working')}
    for what, begun in kinds.items():
        watch = Watch()
        for found in begun():
            watch(found)
        is_flat &= watch.report(f'{count:,} photos {what}, {workers} workers')
    return is_flat


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--count', type=int, default=10_000, help='steps, and photos')
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checks = [steps(asked.count, Path(folder)), photos(asked.count, 0), photos(asked.count, 2)]
    sys.exit(not all(checks))

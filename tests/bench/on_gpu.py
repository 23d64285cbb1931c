"""How long a GPU stands still: a training step of each classifier, and photos of new sizes.

    python tests/bench/on_gpu.py --data VOC --out /tmp/on_gpu

For each classifier: the median time of a step, how long the GPU computes for it, and where the
program waited for the GPU, as PyTorch tells it. Then the first and the second look at photos of
some sizes, with the convolutions of cuDNN and with those that need no plan for a size. The table
is that of docs/speed.md."""
import argparse
import shutil
import time
import warnings
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from wsss_nb.run import Config, Run
from wsss_nb.systems import SYSTEMS
from wsss_nb.terms import Terms, on_terms
from wsss_nb.training import At, device
from wsss_nb.work import of_any_size, quick

TIMED = range(5, 20)       # steps that are timed
WATCHED = range(20, 36)    # in which calls that wait are told
SEEN = range(38, 48)       # in which the GPU is watched
SIZES = ((240, 320), (213, 320), (320, 240), (214, 320))   # of photos, pixels


class Watch:
    "Is told of each step of a training, and watches the GPU meanwhile."
    def __init__(self):
        self.moments = []    # when each step was done, seconds
        self.profile = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])

    def __call__(self, at: At) -> None:
        self.moments.append(time.perf_counter())
        if at.step == WATCHED.start:
            torch.cuda.set_sync_debug_mode('warn')
        if at.step == WATCHED.stop:
            torch.cuda.set_sync_debug_mode('default')
        if at.step == SEEN.start:
            self.profile.start()
        if at.step == SEEN.stop:
            torch.cuda.synchronize()
            self.profile.stop()

    @property
    def step(self) -> float:
        "The median time of a step, seconds."
        return float(np.median(np.diff(self.moments)[TIMED.start:TIMED.stop]))

    @property
    def busy(self) -> float:
        "How long the GPU computes for a step, seconds."
        events = self.profile.key_averages()
        return sum(event.self_device_time_total for event in events) / 1e6 / len(SEEN)


def waits(caught: list[warnings.WarningMessage]) -> Counter:
    "Where the program waited for the GPU, and how often."
    found = Counter()
    for warning in caught:
        if 'synchroniz' in str(warning.message):
            found[f'{Path(warning.filename).stem}:{warning.lineno}'] += 1
    return found


def train(name: str, data: Path, out: Path, precision: str) -> None:
    "Train the classifier of a system for some steps, and print what was seen."
    system = on_terms(SYSTEMS[name], Terms(epochs=1, crop=192), {})
    this = Run(Config(data, out/'run', system, precision=precision))
    method = this.system.classifier
    an_epoch = method.training.steps(len(this.photos))
    training = replace(method.training, epochs=(SEEN.stop + 2) / an_epoch)
    watch = Watch()
    work = this.work('classifier')
    shutil.rmtree(this.root, ignore_errors=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        replace(method, training=training).train(
            replace(work, machine=replace(work.machine, step_done=watch)))
    shutil.rmtree(this.root, ignore_errors=True)
    print(f'{name}, {precision}: {1e3 * watch.step:.1f} ms a step, the GPU computes '
          f'{1e3 * watch.busy:.1f}; in {len(WATCHED)} steps it waited at {dict(waits(caught))}')


def look(name: str) -> None:
    "Look at photos of some sizes, twice, in both ways, and print how long it took."
    method = SYSTEMS[name].following(max(SIZES[0])).classifier
    network = quick(method.network(20)).to(device())
    ways = {'cuDNN': nullcontext, 'no plans': partial(of_any_size, network)}
    for what, way in ways.items():
        for time_round in ('first', 'second'):
            taken = []
            for size in SIZES:
                begin = time.perf_counter()
                with torch.inference_mode(), way():
                    for scale in (1, 1.5):
                        side = [round(scale * pixels) for pixels in size]
                        network.class_maps(torch.rand(2, 3, *side, device=device())).sum().item()
                taken.append(time.perf_counter() - begin)
            print(f'{what}, {time_round} look: ' + ', '.join(f'{s:.3f} s' for s in taken))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    given = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, 'on_gpu.py: there is no CUDA GPU here, and nothing else is measured\n')
    print(torch.cuda.get_device_name(), torch.__version__)
    for name, precision in (('baseline', 'no'), ('words', 'no'), ('words', 'bf16'),
                            ('seam', 'no'), ('sc-cam', 'no'), ('mcis', 'no')):
        train(name, given.data, given.out, precision)
    look('baseline')


if __name__ == '__main__':
    main()

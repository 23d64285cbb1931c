"""What takes the time of a whole run: seconds by stage, and each function of ours over 3 %.

    python tests/bench/profile_run.py --data VOC --out /tmp/profile --photos 60 --workers 0
    python tests/bench/profile_run.py --data VOC --out /tmp/profile --photos 60 --workers 2

Without workers all is done in one process, so that every function is seen; with workers the times
of the stages are those that a user waits. Options behind `--` go to `wsss_nb run`."""
import argparse
import cProfile
import json
import os
import pstats
import shutil
import time
from pathlib import Path

from wsss_nb.cli import main as wsss_nb

LEAST = .03   # share of the whole time that is told
DEFAULTS = ['--system', 'words', '--classifier.epochs', '2', '--segmenter.epochs', '2',
            'refiner:irn', '--refiner.epochs', '2']


def shortened(data: Path, out: Path, photos: int) -> None:
    "A VOC folder with the first photos of another: two thirds to train on, one to measure on."
    lists = out/'ImageSets/Segmentation'
    lists.mkdir(parents=True, exist_ok=True)
    for name in ('JPEGImages', 'SegmentationClass', 'Annotations'):
        if (data/name).exists() and not (out/name).exists():
            (out/name).symlink_to((data/name).absolute())
    for name, count in (('train', 2 * photos // 3), ('val', photos // 3)):
        ids = (data/f'ImageSets/Segmentation/{name}.txt').read_text().split()
        (lists/f'{name}.txt').write_text('\n'.join(ids[:count]) + '\n')


def own(key: tuple[str, int, str]) -> bool:
    "Whether a function of a profile is one of ours, and no mere wrapper."
    return '/wsss_nb/' in key[0] and not key[2].startswith('<')


def functions(profile: cProfile.Profile) -> list[tuple[float, int, str]]:
    "Share of the time, number of calls and name of each function of ours, the costliest first."
    stats = pstats.Stats(profile)
    found = []
    for key, (_, calls, _, seconds, _) in stats.stats.items():
        share = seconds / stats.total_tt
        if own(key) and share >= LEAST:
            found.append((share, calls, f'{Path(key[0]).stem}.{key[2]}'))
    return sorted(found, reverse=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--photos', type=int, default=60)
    parser.add_argument('--workers', type=int, default=0)
    parser.add_argument('options', nargs='*', default=DEFAULTS)
    given = parser.parse_args()
    shortened(given.data, given.out/'data', given.photos)
    run = given.out/'run'
    shutil.rmtree(run, ignore_errors=True)
    words = ['run', '--data', str(given.out/'data'), '--out', str(run),
             '--workers', str(given.workers), *given.options]
    profile = cProfile.Profile()
    begin = time.perf_counter()
    before = os.times()
    profile.runcall(wsss_nb, words)
    seconds = time.perf_counter() - begin
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    print(f'\n{seconds:.1f} s, {used:.1f} s of processors, {given.workers} workers')
    for stage, taken in json.loads((run/'metrics.json').read_text())['seconds'].items():
        print(f'  {stage:<10}{taken:8.1f} s{taken / seconds:8.1%}')
    for share, calls, name in functions(profile):
        print(f'{share:8.1%}{calls:8}  {name}')


if __name__ == '__main__':
    main()

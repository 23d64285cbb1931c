"""What a notebook cell of 21_metrics can't show: memory over many images, and counts in several processes."""
import pickle
import tracemalloc

import numpy as np
import pytest

from wsss_nb.metrics import BackgroundSweep, ConfusionMatrix


@pytest.mark.parametrize('counter', [ConfusionMatrix(21), BackgroundSweep(21)], ids=lambda counter: type(counter).__name__)
def test_memory_does_not_grow(counter):
    random = np.random.default_rng(0)
    target, maps = random.integers(0, 21, (60, 80)).astype(np.uint8), random.random((2, 60, 80), np.float32)

    def count(images):
        for _ in range(images):
            counter.update(target, target) if isinstance(counter, ConfusionMatrix) else counter.update([3, 7], maps, target)

    tracemalloc.start()
    try:
        count(50)  # what is allocated once is allocated by now
        early = tracemalloc.get_traced_memory()[0]
        count(150)
        late = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert late - early < target.nbytes  # 150 more images, and not the bytes of one
    assert counter.images == 200


def test_counts_survive_another_process():
    confusion, sweep = ConfusionMatrix(3), BackgroundSweep(3, [0.2, 0.5])
    confusion.update([[0, 1, 2]], [[0, 2, 255]])
    sweep.update([1], np.full((1, 1, 3), 0.4, np.float32), [[0, 2, 255]])
    for counter, other in ((confusion, ConfusionMatrix(3)), (sweep, BackgroundSweep(3, [0.2, 0.5]))):
        other.merge(pickle.loads(pickle.dumps(counter)))
        assert other.images == 1
    assert np.array_equal(other.matrices(), sweep.matrices())


def test_counts_beyond_32_bits():
    confusion = ConfusionMatrix(2)
    confusion.matrix[0, 0] = 2**40
    confusion.update([[0, 1]], [[0, 1]])
    assert confusion.matrix.tolist() == [[2**40 + 1, 0], [0, 1]]

"""What chapter 21 has no room for: what is refused, memory, counts in several processes."""
import pickle
import tracemalloc

import numpy as np
import pytest

from wsss_nb.metrics import BackgroundSweep, ConfusionMatrix, label_array

TRUTH = np.array([[0, 0, 1, 1],
                  [0, 0, 1, 255],
                  [0, 2, 2, 2]], np.uint8)
PREDICTION = np.array([[0, 0, 1, 0],
                       [0, 1, 1, 1],
                       [0, 2, 2, 0]], np.uint8)


@pytest.mark.parametrize('labels, num_classes, name, ignore, message', [
    ([0, 255], 21, 'prediction', None, 'the prediction holds 255, but labels run from 0 to 20'),
    ([-1, 2], 3, 'target', 255, 'the target holds -1, but labels run from 0 to 2'),
    ([.9, .1], 2, 'prediction', None,
     'the prediction must hold integers, not float64: take the argmax first')])
def test_what_is_no_label_is_refused(labels, num_classes, name, ignore, message):
    with pytest.raises(ValueError, match=f'^{message}$'):
        label_array(labels, num_classes, name, ignore)


def test_what_is_refused_is_not_counted():
    confusion = ConfusionMatrix(3)
    confusion.update(PREDICTION, TRUTH)
    undecided = np.where(TRUTH == 255, TRUTH, PREDICTION)   # 255 even where the truth is 255
    with pytest.raises(ValueError, match='^the prediction holds 255, but labels run from 0 to 2$'):
        confusion.update(undecided, TRUTH)
    message = r'^the prediction has shape \(3, 3\), the target \(3, 4\)$'
    with pytest.raises(ValueError, match=message):
        confusion.update(PREDICTION[:, :3], TRUTH)
    assert confusion.matrix.sum() == 11
    assert confusion.images == 1


@pytest.mark.parametrize('counter', [ConfusionMatrix, BackgroundSweep])
@pytest.mark.parametrize('num_classes', [0, 256])
def test_labels_fit_into_a_byte_beside_255(counter, num_classes):
    with pytest.raises(ValueError, match=rf'^num_classes must lie in 1\.\.255, not {num_classes}$'):
        counter(num_classes)


def test_tables_of_other_classes_are_refused():
    with pytest.raises(ValueError, match='^5 classes cannot be merged into 3$'):
        ConfusionMatrix(3).merge(ConfusionMatrix(5))
    message = '^3 labels want 2 class names beside the background, not 3$'
    with pytest.raises(ValueError, match=message):
        ConfusionMatrix(3).report(['background', 'cat', 'dog'])


@pytest.mark.parametrize('thresholds', [[.2, .1], [.1, .1], []])
def test_thresholds_rise(thresholds):
    with pytest.raises(ValueError, match='^the thresholds must be at least one, and rise$'):
        BackgroundSweep(3, thresholds)


@pytest.mark.parametrize('classes, maps, message', [
    ([2], np.zeros((1, 1, 2)), 'the list of classes holds 2, but labels run from 0 to 1'),
    ([0], np.zeros((2, 1, 2)),
     r'the maps have shape \(2, 1, 2\); 1 classes and the target want \(1, 1, 2\)'),
    ([0], [[[.1, np.nan]]], 'the maps hold nan')])
def test_maps_that_do_not_fit_are_refused(classes, maps, message):
    sweep = BackgroundSweep(3, [0, .5, 1])
    with pytest.raises(ValueError, match=f'^{message}$'):
        sweep.update(classes, maps, [[0, 0]])
    assert sweep.images == 0
    assert not sweep.counts.any()


def test_a_background_value_must_have_been_swept():
    message = r'^the background value 0\.7 is none of the thresholds of this sweep$'
    with pytest.raises(ValueError, match=message):
        BackgroundSweep(3, [0, .5, 1]).confusion(.7)


def test_without_labels_no_background_value_is_best():
    message = '^no labelled pixel was counted, so no background value is best$'
    with pytest.raises(ValueError, match=message):
        BackgroundSweep(3).best()


@pytest.mark.parametrize('other', [BackgroundSweep(3), BackgroundSweep(4, [0, .5, 1])])
def test_other_sweeps_are_not_merged(other):
    message = '^sweeps with different classes or thresholds cannot be merged$'
    with pytest.raises(ValueError, match=message):
        BackgroundSweep(3, [0, .5, 1]).merge(other)


@pytest.mark.parametrize('counter', [ConfusionMatrix(21), BackgroundSweep(21)],
                         ids=lambda counter: type(counter).__name__)
def test_memory_does_not_grow(counter):
    random = np.random.default_rng(0)
    target = random.integers(0, 21, (60, 80)).astype(np.uint8)
    maps = random.random((2, 60, 80), np.float32)

    def count(images):
        for _ in range(images):
            if isinstance(counter, ConfusionMatrix):
                counter.update(target, target)
            else:
                counter.update([3, 7], maps, target)

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
    confusion = ConfusionMatrix(3)
    confusion.update([[0, 1, 2]], [[0, 2, 255]])
    copied = ConfusionMatrix(3)
    copied.merge(pickle.loads(pickle.dumps(confusion)))
    assert copied.images == 1
    assert np.array_equal(copied.matrix, confusion.matrix)


def test_sweeps_survive_another_process():
    sweep = BackgroundSweep(3, [.2, .5])
    sweep.update([1], np.full((1, 1, 3), .4, np.float32), [[0, 2, 255]])
    copied = BackgroundSweep(3, [.2, .5])
    copied.merge(pickle.loads(pickle.dumps(sweep)))
    assert copied.images == 1
    assert np.array_equal(copied.matrices(), sweep.matrices())


def test_counts_beyond_32_bits():
    confusion = ConfusionMatrix(2)
    confusion.matrix[0, 0] = 2**40
    confusion.update([[0, 1]], [[0, 1]])
    assert confusion.matrix.tolist() == [[2**40 + 1, 0], [0, 1]]

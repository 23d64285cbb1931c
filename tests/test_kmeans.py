"k-means: what has no clusters is refused; a cluster that lost its points gets one."
import pytest
import torch

from wsss_nb.kmeans import centres_of, kmeans, lloyd, nearest_centres


@pytest.mark.parametrize('points, count', [
    (torch.zeros(0, 3), 2),
    (torch.zeros(4, 3), 0),
    (torch.tensor([[0., 1.], [float('nan'), 1.]]), 2),
    (torch.tensor([[0., 1.], [float('inf'), 1.]]), 2),
])
def test_there_must_be_points_that_are_numbers(points, count):
    with pytest.raises(ValueError, match=f'{count} clusters of {len(points)} points: there must'):
        kmeans(points, count)


@pytest.mark.parametrize('spherical', [False, True])
def test_fewer_points_than_clusters_are_fewer_clusters(spherical):
    points = torch.tensor([[1., 0], [0, 1], [1, 0]])
    found = kmeans(points, 5, spherical=spherical)
    assert len(found.centres) == 2 and found.inertia == 0
    assert found.assignment[0] == found.assignment[2] != found.assignment[1]


def test_a_single_point_is_a_cluster():
    found = kmeans(torch.tensor([[3., 4.]]), 3)
    assert found.centres.tolist() == [[3, 4]] and found.assignment.tolist() == [0]


def test_centres_that_nobody_needs_stay_and_are_numbers():
    points = torch.tensor([[1., 1.], [1., 1.]])
    centres = torch.tensor([[1., 1.], [9., 9.], [8., 8.]])
    moved = centres_of(points, *reversed(nearest_centres(points, centres)), centres)
    assert moved.isfinite().all()
    found = lloyd(points, centres)
    assert found.inertia == 0 and found.centres.isfinite().all()


def test_two_empty_clusters_get_two_points():
    points = torch.tensor([[0.], [1.], [5.], [6.]])
    found = lloyd(points, torch.tensor([[0.], [100.], [200.]]))
    assert found.assignment.unique().tolist() == [0, 1, 2]
    assert found.inertia == pytest.approx(.5)


def test_large_numbers_do_not_hide_small_differences():
    points = torch.tensor([[0.], [1.], [2.], [103.], [104.]]) + 4096
    assert kmeans(points.float(), 2).inertia == pytest.approx(2.5)


def test_the_seed_is_all_that_is_drawn_from():
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    one = kmeans(points, 7, restarts=1, seed=5)
    torch.manual_seed(2)
    other = kmeans(points, 7, restarts=1, seed=5)
    assert torch.equal(one.assignment, other.assignment) and one.inertia == other.inertia

"""Dominance, tolerance and front quality, against definitions written the long way round."""

import math
from random import Random

import pytest

from bitnas.search import Objective, crowding_distance, dominates, hypervolume_2d, non_dominated

NOISY = (Objective("accuracy", maximize=True), Objective("latency_us", relative_tolerance=0.05))


def test_dominance():
    assert dominates((1, 1), (1, 2))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((0, 3), (1, 2))
    with pytest.raises(ValueError, match="wanted 2"):
        dominates((1, 2), (1, 2, 3))


def test_difference_inside_the_tolerance_removes_nobody():
    assert not dominates((-0.9, 100.0), (-0.9, 104.0), objectives=NOISY)
    assert dominates((-0.9, 100.0), (-0.9, 106.0), objectives=NOISY)
    assert non_dominated([(-0.9, 100.0), (-0.9, 104.0), (-0.9, 106.0)], objectives=NOISY) == [0, 1]


def test_tolerance_only_ever_enlarges_the_front_and_never_empties_it():
    rng = Random(0)
    objectives = [Objective(name, tolerance=0.3) for name in "abc"]
    for _ in range(200):
        vectors = [tuple(rng.random() for _ in range(3)) for _ in range(12)]
        strict, tolerant = set(non_dominated(vectors)), set(non_dominated(vectors, objectives=objectives))
        assert strict
        assert strict <= tolerant


def test_non_finite_vectors_never_belong():
    vectors = [(math.nan, math.nan), (1.0, math.inf), (-math.inf, 0.0), (2.0, 2.0)]
    assert non_dominated(vectors) == [3]
    assert non_dominated(vectors[:3]) == []


def test_equal_vectors_stay_together():
    assert non_dominated([(1, 2), (1, 2), (2, 2)]) == [0, 1]


def test_objective_turns_and_names():
    assert Objective("accuracy", maximize=True).loss({"accuracy": 0.5}) == -0.5
    with pytest.raises(KeyError, match="latency_us"):
        Objective("latency_us").loss({"accuracy": 0.5})
    with pytest.raises(ValueError, match="tolerance"):
        Objective("x", tolerance=-1)
    with pytest.raises(ValueError, match="relative_tolerance"):
        Objective("x", relative_tolerance=math.nan)


def test_crowding_distance_of_a_line():
    assert crowding_distance([(0, 4), (1, 3), (2, 2), (4, 0)]) == [math.inf, 1.0, 1.5, math.inf]
    assert crowding_distance([]) == []


def test_hypervolume_of_known_staircase():
    assert hypervolume_2d([(1, 3), (2, 2), (3, 1)], (4, 4)) == 6
    assert hypervolume_2d([(5, 5)], (4, 4)) == 0
    assert hypervolume_2d([(1, 3), (2, 3.5)], (4, 4)) == hypervolume_2d([(1, 3)], (4, 4))
    with pytest.raises(ValueError, match="reference"):
        hypervolume_2d([(1, 2, 3)], (4, 4, 4))

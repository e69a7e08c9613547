"""Figures of agreement against values worked out by hand, and scipy."""

import random

import pytest
from scipy.stats import spearmanr

from bitnas.cost.agreement import Check, compare, spearman


def test_spearman_is_scipys_with_and_without_ties():
    generator = random.Random(0)
    for size in (2, 5, 50):
        for values in (100, 4):
            a = [generator.randrange(values) for _ in range(size)]
            b = [x + generator.randrange(values) for x in a]
            if len(set(a)) > 1 and len(set(b)) > 1:
                assert spearman(a, b) == pytest.approx(spearmanr(a, b)[0])
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_errors():
    check = compare([(110, 100), (190, 200), (330, 300), (400, 400)], noise=0.01, date="today")
    assert check.spearman == 1.0
    assert check.median_error == pytest.approx(0.075)
    assert check.worst_error == check.error_95 == pytest.approx(0.1)
    assert check.bias == pytest.approx(0.05)
    assert check.scatter_error == pytest.approx(0.05 / 1.05)
    assert not check.good  # too few networks
    assert Check.from_dict(check.to_dict()) == check


@pytest.mark.parametrize(
    ("networks", "error", "swapped", "good"),
    [(50, 0.04, 0, True), (49, 0.04, 0, False), (50, 0.06, 0, False), (50, 0.0, 25, False)],
)
def test_the_goal(networks, error, swapped, good):
    measured = [100.0 + 10 * i for i in range(networks)]
    predicted = [m * (1 + error) for m in measured]
    predicted[:swapped] = predicted[:swapped][::-1]
    assert compare(list(zip(predicted, measured, strict=True))).good is good


@pytest.mark.parametrize("pairs", [[], [(1.0, 1.0)], [(1.0, 1.0), (float("nan"), 1.0)], [(1.0, 1.0), (1.0, 0.0)]])
def test_pairs_that_say_nothing(pairs):
    with pytest.raises(ValueError, match="wanted at least two"):
        compare(pairs)

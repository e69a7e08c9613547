"""What the ranking study may say: of ranks beside OPs, of two trainings, and of subnets spread over the space."""

import math
import random
import statistics

import pytest

from bitnas.methods import intervals
from bitnas.methods.nasbnn import ranking, studies
from bitnas.methods.nasbnn.description import DESCRIPTIONS
from bitnas.methods.nasbnn.space import SubnetSpace

TRENDS = {
    "line": lambda z: z,
    "plateau": lambda z: 2 * (1 - math.exp(-2 * z)),
    "knee": lambda z: 3 / (1 + math.exp(-3 * (z - 1.2))),
}
PLACES = [3 * index / 23 for index in range(24)]


def partial_tau(a, b, known):
    both, first, second = (intervals.kendall(x, y) for x, y in ((a, b), (a, known), (b, known)))
    return (both - first * second) / math.sqrt((1 - first**2) * (1 - second**2))


@pytest.mark.parametrize("trend", TRENDS.values(), ids=TRENDS)
@pytest.mark.parametrize("noise", [0.1, 0.3])
def test_noise_about_a_common_trend_is_no_knowledge_beside_it(trend, noise):
    """2.5 % are wanted of either sign; the noise of both is independent. Kendall's partial tau is far from 0 here."""
    rng, found, plain = random.Random(1), [], []
    for seed in range(200):
        a, b = ([trend(place) + rng.gauss(0, noise) for place in PLACES] for _ in range(2))
        found.append(intervals.kendall_beside(a, b, PLACES, repeats=200, seed=seed))
        plain.append(partial_tau(a, b, PLACES))
    assert sum(one.p <= 0.05 and one.tau > 0 for one in found) <= 14  # 99.9 % of binomial (200, 0.025) are within 13
    assert abs(statistics.fmean(one.tau for one in found)) < 0.06
    assert statistics.fmean(plain) > 0.1


def test_what_two_series_share_beside_a_trend_is_found():
    rng, found = random.Random(2), 0
    for seed in range(50):
        quality = [rng.gauss(0, 0.3) for _ in PLACES]
        a, b = ([z + q + rng.gauss(0, 0.1) for z, q in zip(PLACES, quality, strict=True)] for _ in range(2))
        one = intervals.kendall_beside(a, b, PLACES, repeats=200, seed=seed)
        found += one.p <= 0.05 and one.tau > 0
        assert one == intervals.kendall_beside(a, b, PLACES, repeats=200, seed=seed)
    assert found == 50
    opposite = intervals.kendall_beside(quality, [-q for q in quality], PLACES, repeats=200)
    assert opposite.tau == pytest.approx(-1)
    assert opposite.p < 0.01


def test_series_without_anything_left_have_no_rank():
    assert intervals.kendall_beside(PLACES[:9], PLACES[:9], PLACES[:9]) is None
    assert intervals.kendall_beside(PLACES, [1.0] * 24, PLACES) is None
    assert intervals.kendall_beside(PLACES, PLACES, [1.0] * 24) is None
    assert intervals.kendall_beside(PLACES, [random.Random(0).random() for _ in PLACES], PLACES) is None
    with pytest.raises(ValueError, match="got 24, 3 and 24 values"):
        intervals.kendall_beside(PLACES, PLACES[:3], PLACES)


def test_agreement_of_two_trainings_is_called_no_bound():
    """What has no noise agrees better with a noisy training than another noisy training does."""
    rng, rows = random.Random(0), []
    for _ in range(60):
        quality = rng.gauss(0, 1)
        runs = [quality + rng.gauss(0, 0.7) for _ in range(2)]
        alone = statistics.fmean(runs)
        rows.append(
            {"inherited": quality, "ops": rng.uniform(1, 2), "alone": alone, "alone_runs": runs,
             "inherited_val": quality, "alone_test": alone}
        )  # fmt: skip
    found = ranking.correlations(rows, resamples=50)
    assert found["inherited"]["mean"] > found["inherited_once"]["mean"] > found["repeats"]["mean"]
    said = ranking.verdicts(found)[-1]
    assert f"against their mean {found['inherited']['mean']:.2f}" in said
    assert "a reference and no bound" in said
    assert "expected" not in said


@pytest.mark.parametrize("name", sorted(DESCRIPTIONS))
def test_the_cheap_end_is_ranked_too(name):
    """Every step of log OPs has its subnet, also where hardly any subnet lies."""
    space = SubnetSpace(DESCRIPTIONS[name])
    ops = [float(space.cost(genome).ops) for genome in studies.spread(space, 24, seed=0)]
    step = (ops[-1] / ops[0]) ** (1 / 23)
    for number, each in enumerate(ops):
        assert each == pytest.approx(ops[0] * step**number, rel=0.02)
    assert step <= studies.largest_gap(ops) < 1.02 * step

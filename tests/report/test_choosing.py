"""Which networks operation counts choose wrongly."""

from __future__ import annotations

import itertools
import random

import pytest

from bitnas.report.choosing import choose, clearly_faster, misleading_pair
from bitnas.report.records import Candidate, latency_interval


def point(label: str, accuracy: float, ops: float, latency: float, noise: float = 0.01) -> Candidate:
    metrics = {"accuracy": accuracy, "ops": ops, "latency_us": latency}
    metrics |= {"latency_low_us": latency * (1 - noise), "latency_high_us": latency * (1 + noise)}
    return Candidate((1.0,), metrics, 0, key=label, label=label)


def names(choices):
    return [(choice.chosen.label, choice.better.label) for choice in choices]


def test_a_network_of_few_ops_that_is_slower_and_no_better_is_a_wrong_choice():
    few, fast = point("few", 0.90, 100, 180), point("fast", 0.90, 150, 100)
    found = choose([few, fast])
    assert [p.label for p in found.by_ops] == ["few"]
    assert [p.label for p in found.by_latency] == ["fast"]
    assert names(found.kept_wrongly) == [("few", "fast")]
    assert found.kept_wrongly[0].factor == pytest.approx(1.8)
    assert "few (90.0 %, 180 µs) takes 1.80 times as long as fast (90.0 %, 100 µs)" in found.sentence()


def test_the_same_pair_is_not_told_twice():
    assert choose([point("few", 0.90, 100, 180), point("fast", 0.90, 150, 100)]).passed_over == []


def test_a_network_of_the_latency_front_that_ops_pass_over():
    """`mid` loses in OPs to the more accurate `few`, and is clearly faster than it."""
    few, mid = point("few", 0.92, 100, 150), point("mid", 0.91, 120, 100)
    found = choose([few, mid])
    assert found.kept_wrongly == []
    assert names(found.passed_over) == [("few", "mid")]
    assert "mid (91.0 %, 100 µs) is missed; the next that OPs keep, few (92.0 %, 150 µs), takes 1.50 times" in (
        found.sentence()
    )


@pytest.mark.parametrize("noise", [0.3, 0.5])
def test_differences_within_the_noise_do_not_count(noise):
    found = choose([point("few", 0.90, 100, 150, noise), point("fast", 0.90, 150, 100, noise)])
    assert found.kept_wrongly == []
    assert found.passed_over == []
    assert "OPs choose nothing wrong here" in found.sentence()


def test_a_slower_network_that_is_more_accurate_is_not_wrong():
    found = choose([point("a", 0.95, 100, 200), point("b", 0.90, 90, 100)])
    assert found.kept_wrongly == []
    assert found.passed_over == []


def test_the_best_rival_is_the_fastest_and_the_worst_choice_comes_first():
    points = [point("p", 0.9, 100, 200), point("q", 0.9, 110, 150), point("r", 0.95, 130, 100)]
    points += [point("s", 0.97, 125, 120)]
    found = choose(points)
    assert names(found.kept_wrongly) == [("p", "r")]


def test_every_choice_called_wrong_is_beaten_and_every_other_one_is_not():
    """Against the definition, spelled out, on random networks."""
    generator = random.Random(5)
    for _ in range(50):
        points = [
            point(str(i), generator.choice((0.8, 0.9, 0.95)), generator.randint(1, 9), generator.randint(50, 90), 0.1)
            for i in range(8)
        ]
        found = choose(points)
        wrong = {choice.chosen.label for choice in found.kept_wrongly}
        for chosen in found.by_ops:
            beaten = any(
                rival.metrics["accuracy"] >= chosen.metrics["accuracy"]
                and rival.metrics["latency_us"] * 1.1 < chosen.metrics["latency_us"] * 0.9
                for rival in points
            )
            assert (chosen.label in wrong) == beaten
        for front, cost in ((found.by_ops, "ops"), (found.by_latency, "latency_us")):
            for member, other in itertools.product(front, points):
                better = other.metrics["accuracy"] >= member.metrics["accuracy"]
                assert not (better and other.metrics[cost] < member.metrics[cost])
        for choice in found.passed_over:
            assert choice.better not in found.by_ops
            assert choice.better in found.by_latency
            assert clearly_faster(choice.better, choice.chosen)


def test_nothing_to_choose_from():
    assert choose([]) is None
    assert choose([point("a", 0.9, 1, 1)]) is None
    assert choose([Candidate((1.0,), {"accuracy": 0.9, "ops": 3.0}, 0)] * 3) is None


def test_an_interval_falls_back_to_the_interquartile_range_and_never_vanishes():
    wide = Candidate((1.0,), {"latency_us": 100.0, "latency_iqr_us": 20.0}, 0)
    assert latency_interval(wide) == (90.0, 110.0)
    bare = Candidate((1.0,), {"latency_us": 100.0}, 0)
    assert latency_interval(bare) == (99.0, 101.0)
    odd = Candidate((1.0,), {"latency_us": 100.0, "latency_low_us": 120.0, "latency_high_us": 130.0}, 0)
    assert latency_interval(odd) == (99.0, 101.0)


def test_the_misleading_pair_needs_a_clear_difference_in_time():
    a, b = point("a", 0.9, 100, 130, 0.2), point("b", 0.9, 200, 110, 0.2)
    assert misleading_pair([a, b]) is None
    a, b = point("a", 0.9, 100, 130), point("b", 0.9, 200, 110)
    assert misleading_pair([a, b]).fewer is a

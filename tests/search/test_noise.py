"""What noise cannot tell apart is equal, in every strategy, and exact numbers are left alone."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnas.search import NSGA2, Evolution, Journal, Objective, SearchFailed, Stage, WidthSpace, run_search, settle
from bitnas.search.loop import Candidate, front_of

SPACE = WidthSpace((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 2)


def test_exact_values_are_left_as_they_are():
    assert settle([3.0, 1.0, 2.0, 1.0], [(v, v) for v in (3.0, 1.0, 2.0, 1.0)]) == [3.0, 1.0, 2.0, 1.0]


def test_chains_of_overlap_are_one_value_and_the_order_of_the_others_stays():
    values = [10.0, 10.4, 10.8, 12.0, 9.0, math.inf]
    intervals = [(9.7, 10.3), (10.2, 10.6), (10.6, 11.0), (11.9, 12.1), (8.9, 9.1), (math.inf, math.inf)]
    assert settle(values, intervals) == [10.4, 10.4, 10.4, 12.0, 9.0, math.inf]


def test_bad_intervals_are_refused():
    with pytest.raises(ValueError, match=r"got \(2.0, 3.0\), wanted one that holds the value 1.0"):
        settle([1.0], [(2.0, 3.0)])
    with pytest.raises(ValueError, match="got 0, wanted one for each of 1"):
        settle([1.0], [])


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 5), st.floats(0, 5)), max_size=30))
def test_overlapping_intervals_are_equal_and_no_order_is_turned_round(drawn):
    values = [value for value, _, _ in drawn]
    intervals = [(value - below, value + above) for value, below, above in drawn]
    settled = settle(values, intervals)
    for i in range(len(values)):
        for j in range(len(values)):
            if intervals[i][0] <= intervals[j][1] and intervals[j][0] <= intervals[i][1]:
                assert settled[i] == settled[j]
            elif values[i] < values[j]:
                assert settled[i] <= settled[j]


def test_evolution_breaks_ties_within_the_noise_by_the_exact_value():
    """The noisy loss prefers one code by less than its interval; the exact one prefers another."""
    strategy = Evolution(SPACE, population=2, seed=0, initial=[(1.0, 1.0), (2.0, 2.0)])
    strategy.ask()
    codes = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    rows = [(10.0, 5.0), (10.1, 4.0), (10.2, 3.0)]
    strategy.tell(codes, rows, [[(row[0] - 0.1, row[0] + 0.1), (row[1], row[1])] for row in rows])
    assert [one.genome for one in strategy._survivors] == [(3.0, 3.0), (2.0, 2.0)]
    plain = Evolution(SPACE, population=2, seed=0)
    plain.ask()
    plain.tell(codes, rows)
    assert [one.genome for one in plain._survivors] == [(1.0, 1.0), (2.0, 2.0)]


@pytest.mark.parametrize("kind", ["evolution", "nsga2"])
def test_noise_of_any_seed_leads_to_the_same_survivors(kind):
    """Latencies are read with errors that the intervals admit; whatever they are, the search goes the same way."""

    def asked(noise_seed):
        rng = Random(noise_seed)
        if kind == "evolution":
            strategy = Evolution(SPACE, population=6, seed=3)
        else:
            strategy = NSGA2(SPACE, objectives=2, population=6, seed=3)
        history = []
        for _ in range(4):
            genomes = strategy.ask()
            history.append(genomes)
            # True latencies are 10 apart; a reading is off by up to 1 and known to within 1.5.
            latencies = [10.0 * (g[0] + g[1]) for g in genomes]
            readings = [latency + rng.uniform(-1, 1) for latency in latencies]
            exact = [-g[0] for g in genomes]
            strategy.tell(
                genomes,
                list(zip(readings, exact, strict=True)),
                [[(r - 1.5, r + 1.5), (e, e)] for r, e in zip(readings, exact, strict=True)],
            )
        return history

    # A settled value is a reading, so crowding may differ between runs by what the readings do; ranks may not.
    if kind == "evolution":
        assert all(asked(seed) == asked(0) for seed in range(1, 6))
    else:
        assert all(asked(seed)[:2] == asked(0)[:2] for seed in range(1, 6))


def candidate(genome, **metrics):
    return Candidate(genome, str(genome), "ok", "", metrics, 0, 0.0)


def test_the_front_drops_what_is_faster_within_the_noise_only():
    objectives = [
        Objective("accuracy", maximize=True),
        Objective("latency_us", spread=("latency_low_us", "latency_high_us")),
    ]
    best = candidate((1.0,), accuracy=0.9, latency_us=100.0, latency_low_us=98.0, latency_high_us=102.0)
    lucky = candidate((2.0,), accuracy=0.8, latency_us=99.0, latency_low_us=97.0, latency_high_us=101.0)
    fast = candidate((3.0,), accuracy=0.7, latency_us=50.0, latency_low_us=49.0, latency_high_us=51.0)
    assert front_of([best, lucky, fast], objectives) == [best, fast]


def cost(genome):
    return {"latency_us": 100.0 * sum(genome), "latency_low_us": 99.0 * sum(genome)}


def worth(genome):
    return {"accuracy": genome[0] / 10}


def test_what_is_beyond_a_limit_is_not_trained_and_does_not_survive(tmp_path):
    trained = []
    with Journal(tmp_path / "j.sqlite", meta={}) as journal:
        result = run_search(
            Evolution(SPACE, population=6, seed=0),
            [Stage("latency", cost), Stage("train", worth)],
            [Objective("merit", maximize=True)],
            journal,
            generations=4,
            derive=lambda metrics: {"merit": 100 * metrics["accuracy"] - metrics["latency_us"] / 100},
            limit=lambda metrics: "too slow" if metrics["latency_low_us"] > 600 else None,
            on_progress=lambda e: trained.append(e["genome"]) if e.get("stage") == "train" else None,
        )
    rejected = [c for c in result.candidates if c.status == "rejected"]
    assert rejected
    assert all(sum(c.genome) * 99 > 600 and c.reason == "too slow" for c in rejected)
    assert not {c.genome for c in rejected} & set(trained)
    assert all(sum(c.genome) * 99 <= 600 for c in result.front)
    assert sum(line["rejected"] for line in result.history) == len(rejected)
    best = result.front[0]
    assert best.metrics["merit"] == 10 * best.genome[0] - sum(best.genome)


def test_a_limit_that_nothing_meets_is_said(tmp_path):
    with (
        Journal(tmp_path / "j.sqlite", meta={}) as journal,
        pytest.raises(SearchFailed, match="none of 12 candidates is within the limits.*: never"),
    ):
        run_search(
            Evolution(SPACE, population=6, seed=0),
            [Stage("latency", cost)],
            [Objective("latency_us")],
            journal,
            generations=2,
            limit=lambda metrics: "never",
        )


def test_the_result_so_far_is_given_after_each_generation(tmp_path):
    seen = []
    with Journal(tmp_path / "j.sqlite", meta={}) as journal:
        result = run_search(
            Evolution(SPACE, population=4, seed=0),
            [Stage("latency", cost)],
            [Objective("latency_us")],
            journal,
            generations=3,
            on_generation=seen.append,
        )
    assert [len(partial.candidates) for partial in seen] == [4, 8, 12]
    assert seen[-1] == result

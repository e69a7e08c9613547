"""What noise cannot tell apart is equal, in every strategy, and exact numbers are left alone."""

import math
from random import Random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bitnas.search import (
    Evolution,
    Journal,
    Objective,
    SearchFailed,
    Stage,
    WidthSpace,
    fronts,
    non_dominated,
    run_search,
)
from bitnas.search.journal import read_journal
from bitnas.search.loop import Candidate, front_of

SPACE = WidthSpace((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 2)


def around(values, share=0.01):
    return [[((1 - share) * v, (1 + share) * v)] for v in values]


def test_exact_values_are_sorted_as_ever():
    assert fronts([(3.0,), (1.0,), (2.0,), (1.0,), (math.inf,)]) == [[1, 3], [2], [0], [4]]
    assert non_dominated([(1.0, 2.0), (2.0, 1.0), (2.0, 2.0), (1.0, 2.0)]) == [0, 1, 3]


def test_what_overlaps_the_best_is_as_good_as_the_best_and_no_chain_goes_further():
    values = [10.0, 10.15, 10.3, 10.45, 12.0]
    assert fronts([(v,) for v in values], intervals=around(values)) == [[0, 1], [2, 3], [4]]


def test_a_dense_row_of_latencies_keeps_both_ends_of_its_front():
    """Each is dominated by the next, which it overlaps: the front keeps some all along the row."""
    latencies = [100.0 * 1.01**step for step in range(400)]
    vectors = [(-0.1 * step, latency) for step, latency in enumerate(latencies)]  # slower is more accurate
    known = [[(accuracy, accuracy), (0.99 * t, 1.01 * t)] for accuracy, t in vectors]
    front = non_dominated(vectors, intervals=known)
    assert front == [step for step in range(400) if (399 - step) % 3 == 0]  # 2 % apart and more


def test_faster_within_the_noise_does_not_save_what_is_less_accurate():
    vectors = [(-0.9, 100.0), (-0.8, 99.0), (-0.7, 50.0)]
    known = [[(a, a), (0.98 * t, 1.02 * t)] for a, t in vectors]
    assert non_dominated(vectors, intervals=known) == [0, 2]


def test_tolerances_and_intervals_go_together():
    objectives = [Objective("accuracy", maximize=True, tolerance=0.005), Objective("ops", relative_tolerance=0.1)]
    vectors = [(-0.90, 100.0), (-0.90, 105.0), (-0.90, 120.0), (-0.89, 100.0), (-0.897, 100.0)]
    assert non_dominated(vectors, objectives=objectives) == [0, 1, 4]


def test_bad_intervals_are_refused():
    with pytest.raises(ValueError, match=r"got \(2.0, 3.0\), wanted one that holds the value 1.0"):
        non_dominated([(1.0,)], intervals=[[(2.0, 3.0)]])


VECTORS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.floats(1, 2), st.floats(0, 0.2)), max_size=25)


@settings(deadline=None)
@given(VECTORS)
@example([(0, 0, 1.0, 0.0), (0, 0, 2.0, 0.125)])  # of a measured objective, one value happens to be exact
def test_the_front_is_what_the_definition_says(drawn):
    """Two exact objectives and a noisy one: no member beats another, and a member beats whoever is left out."""
    vectors = [(float(a), float(b), t) for a, b, t, _ in drawn]
    known = [[(float(a), float(a)), (float(b), float(b)), (t - half, t + half)] for a, b, t, half in drawn]

    def beats(i, j):
        nowhere_worse = all(known[i][k][0] <= known[j][k][1] for k in range(3))
        return nowhere_worse and any(known[i][k][1] < known[j][k][0] for k in range(3))

    everyone = range(len(vectors))
    front = non_dominated(vectors, intervals=known)
    assert not any(beats(i, j) for i in front for j in front)
    assert all(any(beats(i, j) for i in front) for j in everyone if j not in front)
    sorted_out = fronts(vectors, intervals=known)
    assert sorted(i for part in sorted_out for i in part) == list(everyone)
    assert sorted_out == [] or sorted_out[0] == front


def test_many_candidates_are_taken_in_parts_without_changing_the_front():
    rng = Random(1)
    vectors = [(rng.random(), rng.random(), 1 + rng.random()) for _ in range(1500)]
    known = [[(a, a), (b, b), (0.99 * t, 1.01 * t)] for a, b, t in vectors]
    assert non_dominated(vectors, intervals=known) == sorted(fronts(vectors, intervals=known)[0])


def test_evolution_breaks_ties_within_the_noise_by_the_exact_value():
    """The noisy loss prefers one code by less than its interval; the exact one prefers another."""
    strategy = Evolution(SPACE, population=2, seed=0, initial=[(1.0, 1.0), (2.0, 2.0)])
    strategy.ask()
    codes = [(1.0, 1.0), (2.0, 2.0), (3.0, 3.0)]
    rows = [(10.0, 5.0), (10.1, 4.0), (10.2, 3.0)]
    strategy.tell(codes, rows, [[(row[0] - 0.2, row[0] + 0.2), (row[1], row[1])] for row in rows])
    assert [one.genome for one in strategy._survivors] == [(3.0, 3.0), (2.0, 2.0)]
    plain = Evolution(SPACE, population=2, seed=0)
    plain.ask()
    plain.tell(codes, rows)
    assert [one.genome for one in plain._survivors] == [(1.0, 1.0), (2.0, 2.0)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 20)), max_size=30), st.randoms(use_true_random=False))
def test_no_reading_within_the_noise_changes_a_front(drawn, rng):
    """True latencies are 10 apart; a reading is off by up to 2 and known to within 2.5."""

    def sorted_out(error):
        readings = [10.0 * latency + rng.uniform(-error, error) for _, latency in drawn]
        known = [[(float(a), float(a)), (t - 2.5, t + 2.5)] for (a, _), t in zip(drawn, readings, strict=True)]
        return fronts([(float(a), t) for (a, _), t in zip(drawn, readings, strict=True)], intervals=known)

    assert sorted_out(2.0) == sorted_out(0.0)


def test_noise_of_any_seed_leads_evolution_the_same_way():
    def asked(noise_seed):
        rng, strategy, history = Random(noise_seed), Evolution(SPACE, population=6, seed=3), []
        for _ in range(4):
            genomes = strategy.ask()
            history.append(genomes)
            readings = [10.0 * (g[0] + g[1]) + rng.uniform(-1, 1) for g in genomes]
            rows = [(reading, -g[0]) for reading, g in zip(readings, genomes, strict=True)]
            strategy.tell(genomes, rows, [[(reading - 1.5, reading + 1.5), (e, e)] for reading, e in rows])
        return history

    assert all(asked(seed) == asked(0) for seed in range(1, 6))


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


def test_of_what_is_beyond_a_budget_the_fastest_is_named_with_the_way_out(tmp_path):
    with Journal(tmp_path / "j.sqlite", meta={}) as journal, pytest.raises(SearchFailed) as failed:
        run_search(
            Evolution(SPACE, population=6, seed=0),
            [Stage("latency", cost)],
            [Objective("latency_us")],
            journal,
            generations=2,
            limit=lambda metrics: f"its latency of {metrics['latency_us']:g} us is too long",
        )
    fastest = min(record.metrics["latency_us"] for record in read_journal(tmp_path / "j.sqlite")[1])
    assert f"the fastest: its latency of {fastest:g} us is too long" in str(failed.value)
    assert "(--latency-budget)" in str(failed.value)


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

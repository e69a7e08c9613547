"""What a search gained by generation, and what it lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from folders import add_summary, search_folder
from report_page import page

from bitnas.report import course
from bitnas.report.records import Candidate, Dropped, Run


def candidate(key: str, generation: int, accuracy: float, latency: float, **more: float) -> Candidate:
    metrics = {"accuracy": accuracy, "latency_us": latency, "flops": 10 * latency, **more}
    return Candidate((1.0,), metrics, generation, key)


def run(*candidates: Candidate, **fields) -> Run:
    return Run(folder=Path("run"), config={"objectives": ["accuracy", "latency"]}, candidates=[*candidates], **fields)


def test_the_gain_after_the_first_generation_at_equal_accuracy_and_in_all():
    found = run(
        candidate("a", 0, 0.90, 200), candidate("b", 0, 0.80, 100), candidate("c", 1, 0.91, 125),
        candidate("d", 2, 0.95, 300),
    )  # fmt: skip
    assert [[c.key for c in edge] for edge in course.edges(found, "latency_us")] == [
        ["b", "a"],
        ["b", "c"],
        ["b", "c", "d"],
    ]
    text = course.front_sentence(found, "latency_us")
    assert "Of the 3 networks on the line of the last generation 2 came after the first generation" in text
    assert "The 90.0 % that cost the first generation 200 µs cost 125 µs in the end: 1.60 times less." in text
    assert "rose by +5.0 points to 95.0 %, at 300 µs" in text
    assert "rose from 90.0 % in the first generation to 95.0 % in generation 3 (+5.0 points)." in course.best_sentence(
        found, "accuracy"
    )


def test_a_search_that_gained_nothing_is_told_so():
    found = run(candidate("a", 0, 0.90, 100), candidate("b", 1, 0.85, 150), candidate("c", 2, 0.90, 120))
    assert "the search gained nothing over its first guesses" in course.front_sentence(found, "latency_us")
    assert "the 2 after it found no better one" in course.best_sentence(found, "accuracy")


def test_a_gain_in_latency_within_the_noise_is_not_claimed():
    noisy = {"latency_low_us": 90.0, "latency_high_us": 210.0}
    found = run(candidate("a", 0, 0.90, 200, **noisy), candidate("b", 1, 0.90, 100, **noisy))
    assert "times less" not in course.front_sentence(found, "latency_us")


def test_the_recorded_fronts_count_where_there_are_any():
    found = run(candidate("a", 0, 0.90, 100), candidate("b", 0, 0.92, 90), fronts=[["a"], ["b", "gone"]])
    assert [[c.key for c in edge] for edge in course.edges(found, "latency_us")] == [["a"], ["b"]]


def test_the_best_stops_rising():
    found = run(candidate("a", 0, 0.8, 1), candidate("b", 1, 0.9, 1), candidate("c", 4, 0.85, 1))
    assert course.best_so_far(found, "accuracy") == [(0, 0.8), (1, 0.9), (2, 0.9), (3, 0.9), (4, 0.9)]
    assert "nothing after that was better (generation 5 was the last)" in course.best_sentence(found, "accuracy")


@pytest.mark.parametrize(
    ("objectives", "cost"),
    [(["accuracy", "latency"], "latency_us"), (["accuracy", "flops"], "flops"), (["fitness"], "latency_us")],
)
def test_the_cost_is_an_objective_of_the_run(objectives, cost):
    found = Run(folder=Path("run"), config={"objectives": objectives}, candidates=[candidate("a", 0, 0.9, 10)])
    assert course.cost_of(found) == cost


def test_nothing_measured_yet():
    assert course.cost_of(run()) is None
    assert course.best_sentence(run(), "accuracy") == ""
    assert course.front_sentence(run(), "latency_us") == ""


def test_failures_stand_together_whatever_the_numbers_in_their_reasons():
    reasons = ["timed out after 30.0 s", "timed out after 31.2 s", "worker died (SIGSEGV)\nlast words", ""]
    groups = course.group([Dropped((0.5,), reason, g) for reason, g in zip(reasons, (0, 2, 1, None), strict=True)])
    assert [(g.reason, len(g.members)) for g in groups] == [
        ("timed out after … s", 2),
        ("worker died (SIGSEGV)", 1),
        ("no reason was recorded", 1),
    ]
    assert [g.generations for g in groups] == ["1, 3", "2", ""]
    many = course.group([Dropped((), "x", g) for g in (0, 1, 2, 5, 7, 8)])
    assert many[0].generations == "1–3, 6, 8–9"


def test_failed_and_rejected_are_told_apart_on_the_page(tmp_path):
    folder = add_summary(search_folder(tmp_path / "run"), over=(1, 9, 10))
    text = page(folder).text
    assert "2 of 32 networks failed" in text
    assert "3 networks beyond a limit of the search were not trained further" in text
    assert "its latency of … us is over the budget of 90 us" in text
    assert "27 networks measured in 4 generations, 2 failures, 3 over the budget" in text


def test_a_search_without_a_failure_says_so(tmp_path):
    folder = search_folder(tmp_path / "run", generations=1)
    text = page(add_summary(folder, over=(1,))).text
    assert "1 of 8 networks failed" in text
    assert "None of" not in text

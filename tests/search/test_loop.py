"""The loop: each architecture measured once, failures kept out, and the same result after any number of kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from bitnas.search import (
    NSGA2,
    Evolution,
    Journal,
    JournalCorrupt,
    Objective,
    SearchFailed,
    Stage,
    WidthSpace,
    WorkerPool,
    run_search,
)
from tests.search import fake

ROOT = Path(__file__).parents[2]
ACCURACY, OPS = Objective("accuracy", maximize=True), Objective("ops")


def run_until(evaluations, delay, arguments):
    """Run the search and SIGKILL it `delay` seconds after that many new evaluations; False if it ended before."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.search.fake", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with process:
        for _ in range(evaluations):
            if not process.stdout.readline():
                assert process.wait() == 0
                return False
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        return process.wait() == -signal.SIGKILL


@pytest.mark.parametrize(("workers", "wanted"), [(0, 8), (2, 3)])
def test_killed_search_ends_as_the_uninterrupted_one(tmp_path, workers, wanted):
    whole, broken, log = tmp_path / "whole", tmp_path / "broken", tmp_path / "log"
    fake.search(whole)
    rng, kills = Random(7), 0
    arguments = (broken, workers, log)
    while kills < wanted and run_until(rng.randrange(1, 12), 0.02 * rng.random(), arguments):
        kills += 1
    assert kills == wanted
    assert not run_until(1000, 0, arguments)
    assert (broken / "front.json").read_bytes() == (whole / "front.json").read_bytes()
    measured = Counter(log.read_text().splitlines())
    # A kill between a measurement and its row costs that one measurement; nothing that was journalled is repeated.
    assert len(measured) == 60
    assert sum(measured.values()) <= 60 + kills


def test_resumed_search_measures_nothing_again(tmp_path):
    first = fake.search(tmp_path, log=str(tmp_path / "log"))
    lines = (tmp_path / "log").read_text()
    assert fake.search(tmp_path, log=str(tmp_path / "log")) == first
    assert (tmp_path / "log").read_text() == lines
    assert len(lines.splitlines()) == 60 == len(set(lines.splitlines()))


def test_workers_do_not_change_the_result(tmp_path):
    fake.search(tmp_path / "a")
    fake.search(tmp_path / "b", workers=2)
    assert (tmp_path / "a/front.json").read_bytes() == (tmp_path / "b/front.json").read_bytes()


def test_damaged_journal_stops_the_search(tmp_path):
    fake.search(tmp_path)
    data = bytearray((tmp_path / "journal.sqlite").read_bytes())
    at = data.index(b"accuracy")
    data[at] ^= 1
    (tmp_path / "journal.sqlite").write_bytes(data)
    with pytest.raises(JournalCorrupt, match=r"journal\.sqlite"):
        fake.search(tmp_path)


def test_failures_are_recorded_and_never_win(tmp_path):
    space = WidthSpace(tuple(float(i) for i in range(1, 13)), 1)
    with Journal(tmp_path / "j.sqlite", meta={}) as journal, WorkerPool(2, timeout=2.0) as pool:
        strategy = NSGA2(space, objectives=2, population=12, seed=0)
        result = run_search(strategy, [Stage("train", fake.unruly)], [ACCURACY, OPS], journal, generations=2, pool=pool)
        reasons = {
            candidate.genome[0]: candidate.reason for candidate in result.candidates if candidate.status == "failed"
        }
    assert set(reasons) == {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0}
    assert "SIGKILL" in reasons[1.0]
    assert "time limit" in reasons[2.0]
    assert "'accuracy' is not finite: nan" in reasons[5.0]
    assert "list" in reasons[6.0]
    assert [candidate.genome for candidate in result.front] == [(8.0,)]


def nan_latency(genome):
    return {"latency_us": float("nan") if genome[0] > 1 else 5.0}


def test_failed_stage_keeps_the_candidate_from_the_next_and_from_the_front(tmp_path):
    space = WidthSpace((0.5, 1.0, 2.0), 4)
    objectives = [ACCURACY, OPS, Objective("latency_us")]
    seen = []

    def progress(event):
        if event["event"] == "evaluated":
            seen.append((event["stage"], event["genome"]))

    stages = [Stage("first", nan_latency), Stage("second", fake.score)]
    with Journal(tmp_path / "j.sqlite", meta={}) as journal:
        strategy = NSGA2(space, objectives=3, population=10, seed=0)
        result = run_search(strategy, stages, objectives, journal, generations=3, on_progress=progress)
    assert result.front
    assert all(candidate.genome[0] <= 1 for candidate in result.front)
    assert any(genome[0] > 1 for stage, genome in seen if stage == "first")
    assert not any(genome[0] > 1 for stage, genome in seen if stage == "second")


def test_serial_stage_runs_here_after_the_parallel_one(tmp_path):
    order = []
    stages = [Stage("train", fake.score), Stage("latency", fake.timed, parallel=False)]
    with Journal(tmp_path / "j.sqlite", meta={}) as journal, WorkerPool(2) as pool:
        strategy = NSGA2(WidthSpace((1.0, 2.0, 3.0), 4), objectives=2, population=6, seed=0)
        run_search(
            strategy,
            stages,
            [ACCURACY, Objective("latency_us")],
            journal,
            generations=1,
            pool=pool,
            on_progress=lambda event: order.append(event.get("stage", event["event"])),
        )
    assert order == ["generation_start", *["train"] * 6, *["latency"] * 6, "generation_end"]


def test_codes_of_one_architecture_are_measured_once(tmp_path):
    space = WidthSpace((1.0, 2.0), 3)
    with Journal(tmp_path / "j.sqlite", meta={}) as journal:
        strategy = Evolution(space, population=8, seed=0)
        result = run_search(
            strategy,
            [Stage("t", fake.timed)],
            [Objective("latency_us")],
            journal,
            generations=1,
            key=lambda g: str(sum(g)),
        )
        assert len(result.candidates) == 8
        assert len(journal) == 4
        assert len({candidate.key for candidate in result.front}) == len(result.front)


def broken(genome):
    raise RuntimeError("no data")


def test_all_failed_is_said_and_not_searched_on(tmp_path):
    with Journal(tmp_path / "j.sqlite", meta={}) as journal:
        with pytest.raises(SearchFailed, match=r"all 6 candidates.*RuntimeError: no data"):
            run_search(Evolution(WidthSpace(), population=6), [Stage("t", broken)], [ACCURACY], journal, generations=3)
        assert len(journal) == 6


def test_history_and_front_agree(tmp_path):
    result = fake.search(tmp_path)
    assert [line["generation"] for line in result.history] == list(range(6))
    assert result.history[-1]["evaluated"] == len(result.candidates) == 60
    assert result.history[-1]["front"] == len(result.front)
    best = [line["best"]["accuracy"] for line in result.history]
    assert best == sorted(best)
    assert json.loads((tmp_path / "front.json").read_text())[0]["accuracy"] == best[-1]


def test_search_needs_no_torch_and_no_heavy_import():
    code = "import sys, bitnas.search\nprint([m for m in ('torch', 'pymoo', 'numpy') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_a_whole_search_never_imports_torch(tmp_path):
    code = "import sys\nfrom tests.search.fake import search\nsearch(sys.argv[1])\nprint('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "False"

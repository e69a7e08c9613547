"""What latency does in a search: as an objective, in the fitness, as a limit; measured or from a table; at the end."""

import dataclasses
import json
import math
import shutil

import pytest
import torch

import bitnas.methods.width as width
from bitnas.methods import candidates
from bitnas.methods.width import evaluate
from bitnas.methods.width import latency as tables
from bitnas.search import SearchFailed
from bitnas.search.journal import read_journal

TINY = width.preset(
    "digits",
    choices=(0.25, 0.5, 1.0),
    base_width=0.0625,
    population=4,
    generations=1,
    epochs=1,
    inherit=False,
    objectives=("accuracy", "latency"),
    latency_batch=1,
    workers=0,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A device table of the space of `TINY`, built for real, though in a hurry."""
    path = tmp_path_factory.mktemp("table") / "latency.sqlite"
    space = tables.LatencySpace(choices=TINY.choices, input_size=(1, 8, 8), base_width=TINY.base_width)
    tables.build(space, path, rounds=1, seconds=0.05)
    return path


def measured(genome, settings, reference_us=None):
    """Made-up but exact latencies."""
    return {"latency_us": 100 * sum(genome), "latency_low_us": 99 * sum(genome), "latency_high_us": 101 * sum(genome)}


def test_fitness_has_a_latency_term_only_if_asked():
    metrics = {"accuracy": 0.9, "flops": 2 * evaluate.unit_flops(TINY), "latency_us": 30.0}
    metrics |= {"latency_low_us": 28.0, "latency_high_us": 32.0}
    assert evaluate.derived(TINY, metrics, None) == {"fitness": pytest.approx(90 - 4 * 2)}
    config = dataclasses.replace(TINY, objectives=("fitness",), latency_weight=5.0)
    assert evaluate.derived(config, metrics, 20.0) == {
        "fitness": pytest.approx(90 - 8 - 5 * 1.5),
        "fitness_low": pytest.approx(90 - 8 - 5 * 1.6),
        "fitness_high": pytest.approx(90 - 8 - 5 * 1.4),
    }


def test_the_latency_term_takes_the_unwidened_network_as_its_unit(tmp_path):
    config = dataclasses.replace(TINY, objectives=("fitness",), latency_weight=50.0)
    result = width.search(config, tmp_path / "run")
    records = {(r.key, r.stage): r.metrics for r in read_journal(tmp_path / "run/journal.sqlite")[1]}
    unit = records[evaluate.architecture_key(config, (1.0,) * 6), "reference-latency"]["latency_us"]
    found = json.loads((tmp_path / "run/search.json").read_text())["candidates"]
    assert len(found) == 4
    for candidate in found:
        metrics = candidate["metrics"]
        expected = 100 * metrics["accuracy"] - 4 * metrics["flops"] / evaluate.unit_flops(config)
        expected -= 50 * records[candidate["key"], "latency"]["latency_us"] / unit
        assert metrics["fitness"] == pytest.approx(max(0.0, expected))
    assert result.front[0]["fitness"] == max(c["metrics"]["fitness"] for c in found)


def test_a_latency_budget_keeps_slow_candidates_untrained(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "time_candidate", measured)
    monkeypatch.setattr(evaluate, "time_alone", measured)
    monkeypatch.setattr(evaluate, "time_front", lambda genomes, s, reference_us: [measured(g, s) for g in genomes])
    config = dataclasses.replace(TINY, objectives=("accuracy",), latency_budget=200.0, generations=2)
    result = width.search(config, tmp_path / "run")
    records = read_journal(tmp_path / "run/journal.sqlite")[1]
    trained = {r.genome for r in records if r.stage == "train"}
    timed = {r.genome for r in records if r.stage == "latency"}
    assert trained == {genome for genome in timed if 99 * sum(genome) <= 200}
    assert trained < timed
    assert all(row["latency_us"] <= 200 / 0.99 for row in result.front)
    with pytest.raises(SearchFailed, match="none of 8 candidates is within the limits.*over the budget of 10 us"):
        width.search(dataclasses.replace(config, latency_budget=10.0), tmp_path / "none")


def test_the_front_is_measured_whole_at_the_end_and_keeps_what_selected_it(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate, "time_candidate", measured)
    monkeypatch.setattr(evaluate, "time_alone", measured)
    together = []

    def later(genomes, settings, reference_us):
        together.append(list(genomes))
        return [{name: 2 * value for name, value in measured(genome, settings).items()} for genome in genomes]

    monkeypatch.setattr(evaluate, "time_front", later)
    result = width.search(TINY, tmp_path / "run")
    assert len(together) == 1
    for row in result.front:
        assert row["searched_latency_us"] == pytest.approx(100 * sum(row["ratios"]))
        assert row["latency_us"] == pytest.approx(200 * sum(row["ratios"]))
    again = width.resume(tmp_path / "run")
    assert again == result
    assert len(together) == 1


def test_what_is_over_the_budget_in_the_end_makes_room(tmp_path, monkeypatch):
    """The most accurate network keeps another off the front, and then turns out to be too slow."""
    accuracy = {(1.0,) * 6: 0.9, (0.5,) * 6: 0.8, (0.25,) * 6: 0.7}

    def trained(genome, settings, run_dir):
        return {"accuracy": accuracy.get(tuple(genome), 0.1), "flops": 1.0, "ops": 1.0}

    def timed(genome, settings, reference_us=None):
        return {"latency_us": 100.0, "latency_low_us": 99.0, "latency_high_us": 101.0}

    def again(genomes, settings, reference_us):
        slow = [100.0 + 50.0 * (tuple(genome) == (1.0,) * 6) for genome in genomes]
        return [{"latency_us": us, "latency_low_us": 0.99 * us, "latency_high_us": 1.01 * us} for us in slow]

    monkeypatch.setattr(evaluate, "train_candidate", trained)
    monkeypatch.setattr(evaluate, "time_candidate", timed)
    monkeypatch.setattr(evaluate, "time_alone", timed)
    monkeypatch.setattr(evaluate, "time_front", again)
    config = dataclasses.replace(TINY, objectives=("accuracy",), latency_budget=110.0, start_uniform=True)
    front = width.search(config, tmp_path / "run").front
    assert [tuple(row["ratios"]) for row in front] == [(0.5,) * 6]


def test_a_network_that_cannot_be_timed_costs_the_others_nothing(tmp_path, monkeypatch):
    warnings = []

    def failing(genomes, settings, reference_us):
        raise RuntimeError("no clock")

    def alone(genome, settings, reference_us):
        if tuple(genome) == (0.25,) * 6:
            raise RuntimeError("no clock for this one")
        return measured(genome, settings)

    monkeypatch.setattr(evaluate, "time_front", failing)
    monkeypatch.setattr(evaluate, "time_candidate", alone)
    config = dataclasses.replace(TINY, objectives=("accuracy", "ops"))
    result = width.search(
        config, tmp_path / "run", on_progress=lambda e: warnings.append(e["message"]) if e["event"] == "warning" else 0
    )
    assert warnings == ["a network of the front was not timed: RuntimeError: no clock for this one"]
    timed = {tuple(row["ratios"]): row.get("latency_us") for row in result.front}
    assert timed.pop((0.25,) * 6) is None
    assert all(value is not None for value in timed.values())


def test_a_table_predicts_and_only_the_front_is_timed(tmp_path, table):
    warnings = []
    config = dataclasses.replace(TINY, latency_source="table", latency_table=str(table))
    result = width.search(
        config, tmp_path / "run", on_progress=lambda e: warnings.append(e["message"]) if e["event"] == "warning" else 0
    )
    assert warnings == ["the latency table was never checked; run `bitnas latency check`"]
    records = read_journal(tmp_path / "run/journal.sqlite")[1]
    assert {r.stage for r in records} == {"predicted-latency", "train", "front-latency", "reference-latency"}
    for row in result.front:
        assert 0.2 < row["searched_latency_us"] / row["latency_us"] < 5
    assert json.loads((tmp_path / "run/search.json").read_text())["latency"] == {"source": "table", "table_check": None}


def test_a_table_of_another_space_is_refused_by_name(tmp_path, table):
    config = dataclasses.replace(TINY, latency_source="table", latency_table=str(table), base_width=0.09)
    with pytest.raises(ValueError, match=r"latency\.sqlite was not built for .* base width 0.09, .*batch 1"):
        width.search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()  # a refused search takes no folder
    missing = dataclasses.replace(config, latency_table=str(tmp_path / "none.sqlite"))
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite: no such latency table"):
        width.search(missing, tmp_path / "other")


def test_a_run_keeps_the_table_it_began_with(tmp_path, table):
    own = tmp_path / "own.sqlite"
    shutil.copy(table, own)
    config = dataclasses.replace(TINY, latency_source="table", latency_table=str(own), objectives=("ops", "latency"))
    result = width.search(config, tmp_path / "run")
    own.unlink()
    assert width.resume(tmp_path / "run") == result


def test_more_threads_than_cpus_are_refused_before_anything_is_made(tmp_path):
    config = dataclasses.replace(TINY, latency_threads=10_000)
    with pytest.raises(ValueError, match="latency_threads: got 10000, wanted at most the"):
        width.search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_measured_latency_comes_with_an_interval_no_narrower_than_the_tolerance():
    reference_us = evaluate.time_alone((1.0,) * 6, TINY.to_dict())["latency_us"]
    found = evaluate.time_candidate((0.5,) * 6, TINY.to_dict(), reference_us)
    assert found["latency_low_us"] <= found["latency_us"] * (1 - TINY.latency_tolerance / 2)
    assert found["latency_high_us"] >= found["latency_us"] * (1 + TINY.latency_tolerance / 2)
    assert all(math.isfinite(value) for value in found.values())


def test_a_slower_machine_changes_no_latency(monkeypatch):
    """Everything takes three times as long as when the search began: the candidate's latency is what it was."""
    from bitnas.cost.timing import Timing

    def slow(networks, settings, seconds):
        times = [300.0 * sum(network.config.ratios) for network in networks]
        return [Timing(m, m - 3, m + 3, m - 3, m + 3, 20, False) for m in times]

    monkeypatch.setattr(candidates, "time_in_turns", slow)
    found = evaluate.time_candidate((0.5,) * 6, TINY.to_dict(), 600.0)
    assert found["latency_us"] == pytest.approx(300.0)
    assert found["latency_drift"] == pytest.approx(3.0)
    # 1 of 300 from the candidate, 1/600 of it from the reference; the tolerance of 2 % is wider.
    assert (found["latency_low_us"], found["latency_high_us"]) == (pytest.approx(297.0), pytest.approx(303.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("accuracy",), "budget": None}, "wanted a budget or latency_budget with accuracy alone"),
        ({"latency_weight": 1.0}, "latency_weight: got 1.0 with objectives"),
        ({"latency_budget": 0.0}, "latency_budget: got 0.0, wanted positive us per batch or None"),
        ({"latency_source": "guess"}, "latency_source: got 'guess', wanted one of measured, table"),
        ({"latency_table": "t.sqlite"}, "with latency_source 'measured', wanted 'table'"),
        ({"latency_source": "table", "objectives": ("accuracy", "ops")}, "no latency takes part in this search"),
        ({"memory_limit": 0.01}, "memory_limit: got 0.01 GiB, wanted at least 0.5"),
        ({"device": "tpu"}, "device: got 'tpu', wanted one of cpu, cuda"),
        ({"workers": "slurm"}, "workers: got 'slurm', wanted an integer, 'ray', 'HOST:PORT' or 'ray://HOST:PORT'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **settings)

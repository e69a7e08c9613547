"""The search by NAS-BNN on the real digits, small: one folder, every kind of stop, and the same result."""

import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bitnas.methods.nasbnn as nasbnn
from bitnas.cost import count
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.methods import width
from bitnas.methods.candidates import load_data
from bitnas.methods.nasbnn import evaluate
from bitnas.methods.nasbnn.training import FORMAT, load_supernet
from bitnas.methods.run_folder import read_front
from bitnas.models.nasbnn import NasBnn, SubnetConfig
from bitnas.search import JournalCorrupt, JournalLocked, SearchFailed
from bitnas.search.journal import read_journal

ROOT = Path(__file__).parents[2]
SPACE = {
    "name": "tiny",
    "input_size": [1, 8, 8],
    "num_classes": 10,
    "stem": [4, 8],
    "stem_stride": 2,
    "stages": [
        {"channels": [8, 16], "depths": [1, 2], "kernels": [3], "groups": [1], "groups_1x1": 1, "stride": 1},
        {"channels": [16, 24], "depths": [1, 2], "kernels": [3, 5], "groups": [1, 2], "groups_1x1": 1, "stride": 2},
    ],
}
TINY = nasbnn.preset(
    "digits",
    space=SPACE,
    supernet_epochs=1,
    population=8,
    generations=3,
    mutations=2,
    crossovers=2,
    ops_low=500.0,
    ops_high=2200.0,
    bucket=100.0,
    calibration_batches=1,
    calibration_size=128,
    train_fraction=0.3,
    val_fraction=0.1,
    latency_batch=1,
    workers=0,
)
EVALUATIONS = 8 + 2 * 4
SAME = ("subnet", "genome", "accuracy", "ops", "bops", "flops", "memory_bits", "params", "key", "generation")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    torch.set_num_threads(1)
    return nasbnn.search(TINY, folder)


def rows(folder):
    """The front without what a clock decides."""
    return [{name: row[name] for name in SAME} for row in json.loads((Path(folder) / "front.json").read_text())]


def evaluations(folder):
    """What the journal knows of accuracies, without the seconds they took."""
    records = read_journal(Path(folder) / "journal.sqlite")[1]
    return [
        (r.key, r.genome, r.status, r.reason, dict(r.metrics), r.generation) for r in records if r.stage == "inherit"
    ]


def begun(folder, source, *names):
    """A copy of a run's supernet and settings, without what was measured."""
    folder.mkdir()
    for name in ("config.json", "supernet.safetensors", *names):
        shutil.copy(source / name, folder / name)
    return folder


def with_accuracy(metrics):
    """An evaluation that does all but run the network: exact costs, and an accuracy made up from them."""

    def evaluated(genome, settings, run_dir):
        config = nasbnn.NasBnnSearchConfig.from_dict(settings)
        costs = evaluate.costs(evaluate.search_space(config, window=False), tuple(genome))
        return {"accuracy": metrics(genome, costs), **costs}

    return evaluated


def test_folder_holds_what_it_should(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {
        "config.json",
        "journal.sqlite",
        "supernet.safetensors",
        "supernet.csv",
        "front.json",
        "search.json",
    } <= names
    assert "supernet.ckpt.safetensors" not in names
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["method"] == "nasbnn"
    assert written["search"] == json.loads(json.dumps(TINY.to_dict()))
    assert {"bitnas", "torch", "python"} <= written["versions"].keys()
    assert written["machine"]


def test_front_rows_are_complete_and_consistent(finished):
    front = read_front(finished.folder)
    assert front == finished.front
    space = evaluate.search_space(TINY)
    for row in front:
        subnet = SubnetConfig.from_dict(row["subnet"])
        assert space.subnet(row["genome"]) == subnet
        assert row["key"] == subnet.key()
        counted = count(NasBnn(subnet), rule="nasbnn")
        for name in ("ops", "flops", "bops", "memory_bits", "params"):
            assert row[name] == getattr(counted, name), name
        assert TINY.ops_low <= row["ops"] <= TINY.ops_high
        assert 0 <= row["accuracy"] <= 1
        assert row["latency_us"] > 0
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert [r["accuracy"] for r in front] == sorted((r["accuracy"] for r in front), reverse=True)
    assert [r["ops"] for r in front] == sorted((r["ops"] for r in front), reverse=True)


def test_each_subnet_is_judged_once_the_ends_first(finished):
    found = evaluations(finished.folder)
    assert len(found) == len({key for key, *_ in found}) == EVALUATIONS
    space = evaluate.search_space(TINY, window=False)
    assert [genome for _, genome, *_ in found[:2]] == [space.smallest, space.biggest]
    outside = [space.cost(genome).ops for _, genome, *_ in found[2:]]
    assert all(TINY.ops_low <= ops <= TINY.ops_high for ops in outside)


def test_the_archive_is_the_best_of_each_bucket_and_the_front_its_best(finished):
    written = json.loads((finished.folder / "search.json").read_text())
    metrics = {c["key"]: c["metrics"] for c in written["candidates"]}
    for candidate in written["candidates"]:
        assert SubnetConfig.from_dict(candidate["subnet"]).key() == candidate["key"]
    best = {}
    for found in metrics.values():
        bucket = round(found["ops"] / TINY.bucket)
        best[bucket] = max(best.get(bucket, 0.0), found["accuracy"])
    archive = {kept["bucket"]: metrics[kept["key"]] for kept in written["archive"]}
    assert {bucket: found["accuracy"] for bucket, found in archive.items()} == best
    within = [found for found in archive.values() if TINY.ops_low <= found["ops"] <= TINY.ops_high]
    front = [
        found
        for found in within
        if not any(
            other["accuracy"] >= found["accuracy"] and other["ops"] <= found["ops"] and other != found
            for other in within
        )
    ]
    assert sorted((f["ops"], f["accuracy"]) for f in front) == sorted((r["ops"], r["accuracy"]) for r in finished.front)
    assert written["fronts"][-1] == [row["key"] for row in finished.front]


def test_an_accuracy_is_that_of_the_inherited_network(finished):
    """By another way than the search's: the subnet extracted, its statistics plain averages over the same images."""
    from bitnas import train

    row = finished.front[0]
    data, split = load_data("digits", 0), evaluate.split_data(TINY)
    network = load_supernet(finished.folder / "supernet.safetensors").extract(SubnetConfig.from_dict(row["subnet"]))
    before = {name: value.clone() for name, value in network.named_parameters()}
    seed = evaluate.derive_seed(0, "calibration", row["key"])
    drawn = torch.randperm(len(split.train), generator=torch.Generator().manual_seed(seed))[:128]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # one batch: its own statistics
    network.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        network(data.take(split.train[drawn]))
    assert train.evaluate(network.eval(), data.subset(split.val)) == row["accuracy"]
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())


def test_resuming_a_finished_search_changes_no_byte(finished):
    before = (finished.folder / "front.json").read_bytes()
    replayed = []
    result = nasbnn.resume(
        finished.folder, on_progress=lambda e: e["event"] == "evaluated" and replayed.append(e["replayed"])
    )
    assert replayed == [True] * EVALUATIONS
    assert result == finished
    assert (finished.folder / "front.json").read_bytes() == before


def test_workers_do_not_change_the_result(finished, tmp_path):
    folder = begun(tmp_path / "run", finished.folder)
    nasbnn.resume(folder, workers=1)
    assert rows(folder) == rows(finished.folder)
    assert sorted(evaluations(folder)) == sorted(evaluations(finished.folder))


class Stop(Exception):
    pass


def stop_after(number, name):
    seen = []

    def progress(event):
        seen.append(event["event"])
        if seen.count(name) == number:
            raise Stop

    return progress


@pytest.mark.parametrize(("number", "name"), [(1, "supernet_epoch"), (5, "evaluated")])
def test_stopped_anywhere_it_resumes_to_the_same_journal(finished, tmp_path, number, name):
    with pytest.raises(Stop):
        nasbnn.search(TINY, tmp_path / "run", on_progress=stop_after(number, name))
    nasbnn.resume(tmp_path / "run")
    assert evaluations(tmp_path / "run") == evaluations(finished.folder)
    assert rows(tmp_path / "run") == rows(finished.folder)
    ours, whole = ((f / "supernet.safetensors").read_bytes() for f in (tmp_path / "run", finished.folder))
    assert ours == whole


def test_more_generations_continue_the_same_search(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    fresh = []
    result = nasbnn.resume(
        tmp_path / "run",
        generations=4,
        on_progress=lambda e: e["event"] == "evaluated" and not e["replayed"] and fresh.append(e["genome"]),
    )
    assert len(fresh) == 4
    assert result.history[:3] == finished.history
    with pytest.raises(ValueError, match="generations: got 2, wanted at least the 4"):
        nasbnn.resume(tmp_path / "run", generations=2)


def test_a_given_supernet_is_copied_and_bound(finished, tmp_path):
    given = tmp_path / "mine.safetensors"
    shutil.copy(finished.folder / "supernet.safetensors", given)
    events = []
    result = nasbnn.search(TINY, tmp_path / "run", supernet=given, on_progress=lambda e: events.append(e["event"]))
    assert "supernet_start" not in events
    given.unlink()
    assert rows(tmp_path / "run") == rows(finished.folder)
    assert nasbnn.resume(tmp_path / "run") == result
    # Without its file it can be given again, but not be trained.
    (tmp_path / "run" / "supernet.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="this search was given a supernet. Start it again with the same one"):
        nasbnn.resume(tmp_path / "run")
    again = nasbnn.search(TINY, tmp_path / "run", supernet=finished.folder / "supernet.safetensors")
    assert again == result
    with pytest.raises(FileExistsError, match="supernet is .* there and None here"):
        nasbnn.search(TINY, tmp_path / "run")


def test_a_supernet_that_does_not_fit_is_refused_before_anything_is_made(finished, tmp_path):
    own = finished.folder / "supernet.safetensors"
    out = tmp_path / "run"
    wider = dataclasses.replace(TINY, space={**SPACE, "stem": [4, 8, 12]})
    with pytest.raises(ValueError, match="is a supernet of another space .*search in its space, or train another"):
        nasbnn.search(wider, out, supernet=own)
    plain = dataclasses.replace(TINY, strategies={"bi_teacher": False})
    with pytest.raises(ValueError, match="trained with strategies .*'bi_teacher': True.* give the search the same"):
        nasbnn.search(plain, out, supernet=own)
    with pytest.raises(ValueError, match="trained on other images than the train split of this search"):
        nasbnn.search(dataclasses.replace(TINY, seed=1), out, supernet=own)
    with pytest.raises(FileNotFoundError):
        nasbnn.search(TINY, out, supernet=tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    save_tensors(other, {"a": torch.zeros(2)}, {"format": "bitnas-parent-1"})
    with pytest.raises(CorruptFileError, match=r"other\.safetensors"):
        nasbnn.search(TINY, out, supernet=other)
    damaged = tmp_path / "damaged.safetensors"
    data = bytearray(own.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"damaged\.safetensors"):
        nasbnn.search(TINY, out, supernet=damaged)
    assert not out.exists()


def test_a_supernet_that_was_swapped_or_damaged_is_refused(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    path = tmp_path / "run" / "supernet.safetensors"
    tensors, facts = load_tensors(path, expected_format=FORMAT)
    name = next(name for name, value in tensors.items() if value.ndim == 4)
    save_tensors(path, {**tensors, name: tensors[name] + 1}, facts)
    with pytest.raises(CorruptFileError, match="is not the supernet that this search began with"):
        nasbnn.resume(tmp_path / "run")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"supernet\.safetensors: .*SHA-256"):
        nasbnn.resume(tmp_path / "run")


def test_damaged_files_are_refused_by_name(finished, tmp_path):
    for name, error in (("journal.sqlite", JournalCorrupt), ("config.json", CorruptFileError)):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(finished.folder, folder)
        data = bytearray((folder / name).read_bytes())
        at = data.index(b"accuracy")
        data[at : at + 4] = b"\xff\x00\xff\x00"
        (folder / name).write_bytes(data)
        with pytest.raises(error, match=name):
            nasbnn.resume(folder)


def test_other_settings_folders_and_methods_are_refused(finished, tmp_path):
    with pytest.raises(FileExistsError, match=r"bucket is 100.0 there and 200.0 here"):
        nasbnn.search(dataclasses.replace(TINY, bucket=200.0), finished.folder)
    with pytest.raises(ValueError, match="holds a search by method nasbnn, wanted width"):
        width.resume(finished.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        nasbnn.search(TINY, tmp_path)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        nasbnn.resume(tmp_path)


def test_a_second_search_on_the_folder_is_refused(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    caught = []

    def progress(event):
        if event["event"] == "generation_start" and not caught:
            with pytest.raises(JournalLocked, match="another process") as error:
                nasbnn.resume(tmp_path / "run")
            caught.append(error)

    nasbnn.resume(tmp_path / "run", on_progress=progress)
    assert caught


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ops_low": 1e5, "ops_high": 2e5}, r"no subnet of 0.1 to 0.2 M OPs was found; .* holds 0.000\d+ to 0.00\d+ M"),
        ({"recipe": "none"}, "recipe: got 'none', wanted one of"),
        ({"objectives": ("ops", "latency"), "latency_threads": 10_000}, "latency_threads: got 10000, wanted at most"),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_made(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        nasbnn.search(dataclasses.replace(TINY, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_space_follows_the_data(tmp_path):
    """A space written for other images: its choices hold for these."""
    other = dataclasses.replace(TINY, space={**SPACE, "input_size": [3, 32, 32], "num_classes": 7})
    found = evaluate.description(other)
    assert (found.input_size, found.num_classes) == ((1, 8, 8), 10)


def test_nsga2_with_measured_latency_and_a_budget(finished, tmp_path, monkeypatch):
    """Made-up but exact latencies and accuracies: what is too slow is not judged, and the front obeys the budget."""

    def latency(genome):
        us = 10 * sum(genome)
        return {"latency_us": us, "latency_low_us": 0.99 * us, "latency_high_us": 1.01 * us}

    budget = 10 * 90.0
    monkeypatch.setattr(evaluate, "time_candidate", lambda genome, settings, reference_us: latency(genome))
    monkeypatch.setattr(evaluate, "time_alone", lambda genome, settings: latency(genome))
    monkeypatch.setattr(evaluate, "time_front", lambda genomes, settings, reference_us: [latency(g) for g in genomes])
    monkeypatch.setattr(evaluate, "evaluate_candidate", with_accuracy(lambda genome, costs: 1 - 1 / costs["ops"]))
    config = dataclasses.replace(TINY, objectives=("accuracy", "latency"), latency_budget=budget)
    result = nasbnn.search(config, tmp_path / "run", supernet=finished.folder / "supernet.safetensors")
    records = read_journal(tmp_path / "run" / "journal.sqlite")[1]
    timed = {r.genome: r.metrics for r in records if r.stage == "latency"}
    judged = {r.genome for r in records if r.stage == "inherit"}
    assert judged == {genome for genome, found in timed.items() if found["latency_low_us"] <= budget}
    assert judged < timed.keys()
    assert len(result.history) == 3
    assert all(row["latency_low_us"] <= budget for row in result.front)
    space = evaluate.search_space(config)
    assert all(space.permits(tuple(row["genome"])) for row in result.front)
    written = json.loads((tmp_path / "run" / "search.json").read_text())
    assert written["latency"] == {"source": "measured", "table_check": None}
    assert written["archive"] == []
    with pytest.raises(SearchFailed, match="over the budget of 1 us"):
        nasbnn.search(
            dataclasses.replace(config, latency_budget=1.0),
            tmp_path / "none",
            supernet=finished.folder / "supernet.safetensors",
        )


def test_measured_latency_of_real_networks_takes_part(finished, tmp_path):
    config = dataclasses.replace(TINY, objectives=("accuracy", "latency"), population=4, generations=1)
    stages = []
    result = nasbnn.search(
        config,
        tmp_path / "run",
        supernet=finished.folder / "supernet.safetensors",
        on_progress=lambda event: stages.append(event["stage"]) if event["event"] == "evaluated" else None,
    )
    assert stages == ["latency"] * 4 + ["inherit"] * 4
    for row in result.front:
        assert 0.2 < row["searched_latency_us"] / row["latency_us"] < 5


def test_a_table_predicts_and_only_the_front_is_timed(finished, tmp_path):
    from bitnas.methods.nasbnn import latency

    config = dataclasses.replace(
        TINY, objectives=("accuracy", "latency"), latency_source="table", latency_table=str(tmp_path / "t.sqlite")
    )
    supernet = finished.folder / "supernet.safetensors"
    with pytest.raises(FileNotFoundError, match=r"t\.sqlite: no such latency table"):
        nasbnn.search(config, tmp_path / "run", supernet=supernet)
    latency.build(latency.LatencySpace(evaluate.description(TINY)), tmp_path / "t.sqlite", rounds=1, seconds=0.01)
    with pytest.raises(ValueError, match="was not built for this run's subnets .*and 1 threads"):
        nasbnn.search(dataclasses.replace(config, latency_batch=3), tmp_path / "run", supernet=supernet)
    assert not (tmp_path / "run").exists()
    warnings = []
    result = nasbnn.search(
        config,
        tmp_path / "run",
        supernet=supernet,
        on_progress=lambda e: warnings.append(e["message"]) if e["event"] == "warning" else None,
    )
    assert warnings == ["the latency table was never checked; run `bitnas latency check`"]
    records = read_journal(tmp_path / "run" / "journal.sqlite")[1]
    assert {r.stage for r in records} == {
        "supernet",
        "predicted-latency",
        "inherit",
        "front-latency",
        "reference-latency",
    }
    (tmp_path / "t.sqlite").unlink()
    assert nasbnn.resume(tmp_path / "run") == result


def test_a_window_of_few_subnets_is_searched_whole_with_a_warning(finished, tmp_path, monkeypatch):
    """Fewer subnets than a generation asks for: nothing is refused by the seed's luck, and nothing is silent."""
    monkeypatch.setattr(evaluate, "evaluate_candidate", with_accuracy(lambda genome, costs: 0.5))
    plain = evaluate.search_space(TINY, window=False)
    costs = sorted(float(plain.cost(genome).ops) for genome in plain.enumerate())
    events = []
    config = dataclasses.replace(TINY, ops_low=costs[0], ops_high=costs[3], objectives=("accuracy", "ops"))
    result = nasbnn.search(
        config,
        tmp_path / "run",
        supernet=finished.folder / "supernet.safetensors",
        on_progress=events.append,
    )
    inside = sum(costs[0] <= cost <= costs[3] for cost in costs)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert [line["asked"] for line in result.history] == [inside]
    assert warnings[0].startswith(f"generation 0 has {inside} subnets instead of 8: the search found no more")
    assert warnings[1].startswith("the search ended after 1 of 3 generations: it found no more subnets")


def test_a_failed_candidate_is_a_record_and_never_kept(finished, tmp_path, monkeypatch):
    seen = []

    def failing(genome, costs):
        seen.append(tuple(genome))
        if len(seen) == 3:
            return math.nan
        if len(seen) == 4:
            raise RuntimeError("no memory for this one")
        return 0.5

    monkeypatch.setattr(evaluate, "evaluate_candidate", with_accuracy(failing))
    folder = begun(tmp_path / "run", finished.folder)
    nasbnn.resume(folder)
    failed = {key: reason for key, _, status, reason, *_ in evaluations(folder) if status == "failed"}
    assert sorted(failed.values()) == ["RuntimeError: no memory for this one", "metric 'accuracy' is not finite: nan"]
    written = json.loads((folder / "search.json").read_text())
    assert not failed.keys() & {kept["key"] for kept in written["archive"]}
    assert {c["key"] for c in written["candidates"] if c["status"] == "failed"} == failed.keys()


def test_a_search_of_failures_only_says_why(finished, tmp_path, monkeypatch):
    def broken(genome, settings, run_dir):
        raise RuntimeError("no luck")

    monkeypatch.setattr(evaluate, "evaluate_candidate", broken)
    with pytest.raises(SearchFailed, match="all 8 candidates of the first generation failed; .*no luck"):
        nasbnn.resume(begun(tmp_path / "run", finished.folder))


SCRIPT = """
import dataclasses, sys
import torch
torch.set_num_threads(1)
import bitnas.methods.nasbnn as nasbnn
from tests.methods.test_nasbnn_search import TINY

def progress(event):
    print(event["event"], event.get("done", 0), flush=True)

if __name__ == "__main__":
    nasbnn.search(dataclasses.replace(TINY, workers=int(sys.argv[2])), sys.argv[1], on_progress=progress)
"""


def killed(tmp_path, moments, workers):
    """A search killed at each of these moments in turn, its folder."""
    script, folder = tmp_path / "script.py", tmp_path / "run"
    script.write_text(SCRIPT)
    for wanted in moments:
        process = subprocess.Popen(
            [sys.executable, str(script), str(folder), str(workers)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with process:
            found = any(line.startswith(wanted) for line in process.stdout)
            process.send_signal(signal.SIGKILL)
        assert found, wanted
    return folder


def test_kill_minus_nine(finished, tmp_path):
    folder = killed(tmp_path, ["evaluated 3"], 0)
    nasbnn.resume(folder)
    assert rows(folder) == rows(finished.folder)
    assert evaluations(folder) == evaluations(finished.folder)


@pytest.mark.slow
def test_kill_minus_nine_at_many_moments_with_workers(finished, tmp_path):
    moments = ["supernet_start", "supernet_epoch", "supernet_end", "evaluated 2", "generation_end", "evaluated 3"]
    folder = killed(tmp_path, [*moments, "front_timing"], 2)
    nasbnn.resume(folder)
    assert rows(folder) == rows(finished.folder)
    assert sorted(evaluations(folder)) == sorted(evaluations(finished.folder))

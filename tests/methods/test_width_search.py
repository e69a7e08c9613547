"""The width search on the real digits, small: one folder, every kind of stop, and the same result."""

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

import bitnas
import bitnas.methods.width as width
from bitnas import data
from bitnas.files import CorruptFileError, read_json_checked
from bitnas.methods.run_folder import read_front
from bitnas.methods.width import evaluate
from bitnas.search import JournalCorrupt, JournalLocked
from bitnas.search.journal import read_journal

ROOT = Path(__file__).parents[2]
TINY = width.preset(
    "digits",
    choices=(0.25, 0.5, 1.0),
    base_width=0.0625,
    population=4,
    generations=3,
    epochs=1,
    parent_epochs=2,
    objectives=("accuracy", "ops"),
    workers=0,
)
# The networks are so narrow that one channel more is many percent of FLOPs.
STUDY = {"picks": 1, "folds": 3, "epochs": 1, "flops_tolerance": 0.2}
SAME = ("ratios", "accuracy", "flops", "ops", "fitness", "key", "generation")


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
    return width.search(TINY, folder)


def rows(folder):
    """The front without what a clock decides."""
    return [{name: row[name] for name in SAME} for row in json.loads((Path(folder) / "front.json").read_text())]


def test_folder_holds_what_it_should(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"config.json", "journal.sqlite", "parent.safetensors", "front.json"} <= names
    assert "parent.ckpt.safetensors" not in names
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["search"] == json.loads(json.dumps(TINY.to_dict()))
    assert written["seed"] == 0
    assert {"bitnas", "torch", "python"} <= written["versions"].keys()
    assert written["machine"]
    assert written["command"]


def test_front_rows_are_complete_and_consistent(finished):
    front = read_front(finished.folder)
    assert front == finished.front
    for row in front:
        assert row["flops"] == evaluate.costs(TINY, evaluate.network_config(TINY, tuple(row["ratios"])))["flops"]
        assert row["widths"] == [
            max(1, int(int(b / 16) * r)) for b, r in zip((128, 128, 256, 256, 512, 512), row["ratios"], strict=True)
        ]
        assert 0 <= row["accuracy"] <= 1
        unit = evaluate.unit_flops(TINY)
        assert row["fitness"] == pytest.approx(
            max(0, 100 * row["accuracy"] - TINY.fitness_lambda * row["flops"] / unit)
        )
        assert row["latency_us"] > 0
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    accuracies = [row["accuracy"] for row in front]
    assert accuracies == sorted(accuracies, reverse=True)


def test_each_architecture_was_trained_once(finished):
    records = [record for record in read_journal(finished.folder / "journal.sqlite")[1] if record.stage == "train"]
    assert len(records) == len({record.key for record in records}) == 12


def test_first_generation_starts_from_uniform_networks(finished):
    records = read_journal(finished.folder / "journal.sqlite")[1]
    first = [record.genome for record in records if record.generation == 0 and record.stage == "train"]
    assert {(0.25,) * 6, (0.5,) * 6} <= set(first)


def test_resuming_a_finished_search_changes_no_byte(finished):
    before = (finished.folder / "front.json").read_bytes()
    replayed = []
    result = width.resume(
        finished.folder, on_progress=lambda e: e["event"] == "evaluated" and replayed.append(e["replayed"])
    )
    assert all(replayed)
    assert len(replayed) == 12
    assert result == finished
    assert (finished.folder / "front.json").read_bytes() == before


def test_workers_and_repetition_do_not_change_the_result(finished, tmp_path):
    width.search(dataclasses.replace(TINY, workers=2), tmp_path / "other")
    assert rows(tmp_path / "other") == rows(finished.folder)


class Stop(Exception):
    pass


def stop_after(count, name):
    seen = []

    def progress(event):
        seen.append(event["event"])
        if seen.count(name) == count:
            raise Stop

    return progress


@pytest.mark.parametrize(
    ("count", "name"), [(1, "parent_epoch"), (1, "parent_end"), (3, "evaluated"), (7, "evaluated")]
)
def test_stopped_anywhere_it_resumes_to_the_same_front(finished, tmp_path, count, name):
    with pytest.raises(Stop):
        width.search(TINY, tmp_path / "run", on_progress=stop_after(count, name))
    width.resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(finished.folder)


def test_more_generations_continue_the_same_search(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    fresh = []
    result = width.resume(
        tmp_path / "run",
        generations=4,
        on_progress=lambda e: e["event"] == "evaluated" and not e["replayed"] and fresh.append(e["genome"]),
    )
    assert len(fresh) == 4
    assert len(result.history) == 4
    assert result.history[:3] == finished.history
    with pytest.raises(ValueError, match="generations"):
        width.resume(tmp_path / "run", generations=2)


def test_other_settings_and_foreign_folders_are_refused(finished, tmp_path):
    with pytest.raises(FileExistsError, match=r"epochs is 1 there and 2 here"):
        width.search(dataclasses.replace(TINY, epochs=2), finished.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        width.search(TINY, tmp_path)
    with pytest.raises(FileExistsError, match="is a file"):
        width.search(TINY, tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        width.resume(tmp_path)


def test_damaged_files_are_refused_by_name(finished, tmp_path):
    for name, error in (
        ("journal.sqlite", JournalCorrupt),
        ("parent.safetensors", CorruptFileError),
        ("config.json", CorruptFileError),
    ):
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(finished.folder, folder)
        data = bytearray((folder / name).read_bytes())
        at = data.index(b"accuracy") if name == "journal.sqlite" else len(data) // 2
        data[at : at + 4] = b"\xff\x00\xff\x00"
        (folder / name).write_bytes(data)
        with pytest.raises(error, match=name):
            width.resume(folder)


def test_a_second_search_on_the_folder_is_refused(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    caught = []

    def progress(event):
        if event["event"] == "generation_start" and not caught:
            with pytest.raises(JournalLocked, match="another process") as error:
                width.resume(tmp_path / "run")
            caught.append(error)

    width.resume(tmp_path / "run", on_progress=progress)
    assert caught


def test_the_papers_search_ranks_by_fitness(tmp_path):
    config = dataclasses.replace(TINY, objectives=("fitness",), inherit=False, generations=2)
    result = width.search(config, tmp_path / "run")
    fitness = [row["fitness"] for row in result.front]
    assert fitness == sorted(fitness, reverse=True)
    assert not (tmp_path / "run" / "parent.safetensors").exists()
    assert fitness[0] == result.history[-1]["best"]["fitness"]


def test_latency_is_measured_when_it_is_an_objective(tmp_path):
    config = dataclasses.replace(TINY, objectives=("accuracy", "latency"), generations=1)
    stages = []
    width.search(
        config,
        tmp_path / "run",
        on_progress=lambda event: stages.append(event["stage"]) if event["event"] == "evaluated" else None,
    )
    assert stages == ["latency"] * 4 + ["train"] * 4


SCRIPT = """
import dataclasses, sys
import torch
torch.set_num_threads(1)
import bitnas.methods.width as width
from tests.methods.test_width_search import TINY

def progress(event):
    print(event["event"], event.get("done", 0), flush=True)

if __name__ == "__main__":
    width.search(dataclasses.replace(TINY, workers=2), sys.argv[1], on_progress=progress)
"""


@pytest.mark.slow
def test_kill_minus_nine_with_real_training(finished, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for wanted in ("parent_epoch", "evaluated 2", "generation_end", "evaluated 3"):
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        with process:
            for line in process.stdout:
                if line.startswith(wanted):
                    break
            process.send_signal(signal.SIGKILL)
    width.resume(tmp_path / "run")
    assert rows(tmp_path / "run") == rows(finished.folder)


def test_a_study_compares_fairly_and_resumes(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    with pytest.raises(Stop):
        width.study(folder, **STUDY, on_progress=stop_after(4, "study_training"))
    replays = []

    def progress(event):
        if event["event"] == "study_training":
            replays.append(event["replayed"])

    result = width.study(folder, **STUDY, on_progress=progress)
    assert sum(replays) == 4
    assert len(replays) == 2 * (3 + 1)
    assert read_json_checked(folder / "study.json") == result
    searched, uniform = result["networks"]
    assert (searched["kind"], uniform["kind"]) == ("searched", "uniform")
    assert searched["pair"] == uniform["pair"]
    for network in result["networks"]:
        assert len(network["accuracy_runs"]) == 3
        assert network["accuracy"] == pytest.approx(sum(network["accuracy_runs"]) / 3)
        assert 0 <= network["accuracy_low"] <= network["accuracy"] <= network["accuracy_high"] <= 1
        assert network["verified"]["ok"]
        assert network["unseen_images"] == 359
        assert network["latency_us"] > 0
        assert network["float_latency_us"] > 0
        assert [layer["name"] for layer in network["layers"]] == [
            "conv1",
            "conv2",
            "conv3",
            "conv4",
            "conv5",
            "conv6",
            "fc",
        ]
        assert [layer["binary"] for layer in network["layers"]] == [False, True, True, True, True, True, False]
        assert (folder / network["file"]).is_file()
        trained = bitnas.load_model(folder / "networks" / "float" / f"{network['label']}.safetensors")
        images = data.load("digits").take(torch.arange(8))
        assert bitnas.verify(trained, bitnas.load(folder / network["file"]), images).ok
        assert network["packed_bytes"] < (folder / network["file"]).stat().st_size
    (claim,) = result["claims"]
    assert claim["difference"] == pytest.approx(searched["accuracy"] - uniform["accuracy"])
    assert claim["low"] <= claim["difference"] <= claim["high"]
    assert abs(claim["flops_ratio"] - 1) <= 0.25
    assert claim["outcome"] in ("better", "worse", "undecided")
    # Once more, from the journal alone, also when the trained weights are gone.
    shutil.rmtree(folder / "networks")
    assert width.study(folder, **STUDY) == result


def test_a_study_needs_a_finished_search_and_good_arguments(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    with pytest.raises(ValueError, match="folds"):
        width.study(tmp_path / "run", folds=1)
    with pytest.raises(TypeError, match="picks"):
        width.study(tmp_path / "run", picks=1.5)
    (tmp_path / "run" / "front.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"front\.json"):
        width.study(tmp_path / "run")


def test_a_training_that_diverges_is_a_recorded_failure(finished, tmp_path, monkeypatch):
    from bitnas import train

    monkeypatch.setitem(
        train.RECIPES, "explodes", dataclasses.replace(train.RECIPES["digits"], lr=1e30, optimizer="sgd")
    )
    from bitnas.search import SearchFailed

    config = dataclasses.replace(TINY, recipe="explodes", inherit=False)
    with pytest.raises(SearchFailed, match=r"Diverged|NonFinite"):
        width.search(config, tmp_path / "run")
    records = read_journal(tmp_path / "run" / "journal.sqlite")[1]
    assert len(records) == 4
    assert all(record.status == "failed" and record.reason for record in records)


def test_settings_can_be_made_without_torch():
    code = "import sys\nfrom bitnas.methods.width import preset\npreset('digits')\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

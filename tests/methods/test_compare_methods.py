"""Finished searches of three methods against each other: retrained alike, timed in turns, judged on shared images."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest

from bitnas.files import read_json_checked
from bitnas.methods import compare_methods as module
from bitnas.methods import fronts
from bitnas.methods.bars.config import preset as bars_preset
from bitnas.methods.bars.search import search as search_bars
from bitnas.methods.compare_methods import compare
from bitnas.methods.nasbnn.config import preset as nasbnn_preset
from bitnas.methods.nasbnn.search import search as search_nasbnn
from bitnas.methods.width.config import preset as width_preset
from bitnas.methods.width.search import search as search_widths
from bitnas.search import Stage
from tests.methods.bars.test_study import TINY
from tests.methods.test_nasbnn_studies import QUICK

DATA = "digits:20"
SHARED = {"train_fraction": 0.6, "val_fraction": 0.2, "workers": 0, "timeout": None, "latency_batch": 1,
          "objectives": ("accuracy", "latency")}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A finished search of each method, of the same data and split."""
    folder = tmp_path_factory.mktemp("runs")
    few = {"choices": (0.5, 1.0), "base_width": 0.0625, "parent_epochs": 1, "epochs": 1}
    search_widths(width_preset(DATA, **SHARED, **few, population=2, generations=1), folder / "width")
    search_nasbnn(nasbnn_preset(DATA, **{**QUICK, **SHARED}, population=3, generations=1), folder / "nasbnn")
    controller = {"epochs": 1, "warmup_epochs": 0, "uniform_epochs": 0}
    settings = {**SHARED, "space": TINY, "controller": controller, "samples": 2, "train_epochs": 1}
    search_bars(bars_preset(DATA, **settings), folder / "bars")
    return folder


def test_three_methods_on_one_footing(runs, tmp_path, monkeypatch):
    folders = [runs / name for name in ("width", "nasbnn", "bars")]
    options = {"picks": 2, "epochs": 1, "rates": (0.01, 0.003)}
    found = compare(folders, tmp_path, **options)
    assert found == read_json_checked(tmp_path / "compare.json")
    assert [run["method"] for run in found["runs"]] == ["width", "nasbnn", "bars"]
    assert {row["method"] for row in found["rows"]} == {"width", "nasbnn", "bars"}
    for row in found["rows"]:
        assert row["verified"]["dots_equal"]
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["latency_us"] > 0
        assert row["test_images"] == 40
        assert row["lr"] in (0.01, 0.003)
        assert (tmp_path / row["file"]).exists()
        assert row["label"].startswith(row["method"])
    assert set(found["fronts"]) == set(found["areas"]) == {"width", "nasbnn", "bars"}
    assert len(found["comparisons"]) == 3
    assert all(one["low"] <= one["difference"] <= one["high"] for one in found["comparisons"])

    def refuse(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr("bitnas.train.fit", refuse)
    monkeypatch.setattr(module, "Stage", lambda name, *_, **kw: Stage(name, refuse, **kw))
    assert compare(folders, tmp_path, **options)["rows"] == found["rows"]


def test_without_training_the_runs_are_taken_at_their_word(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("bitnas.train.fit", None)
    found = compare([runs / "nasbnn", runs / "bars"], tmp_path, train=False)
    assert not found["trained"]
    assert all(row["accuracy"] == row["run_accuracy"] and "file" not in row for row in found["rows"])
    assert "low" not in found["comparisons"][0]
    assert "decides nothing" in found["verdicts"][0]
    assert any("do not compare exactly" in line for line in found["protocol"])


def test_runs_in_folders_of_one_name_are_not_pooled(runs, tmp_path):
    folders = [tmp_path / name / "cells" for name in ("one", "two")]
    for folder in folders:
        shutil.copytree(runs / "bars", folder)
    found = compare([*folders, runs / "width"], tmp_path / "out", train=False)
    names = ["bars one/cells", "bars two/cells", "width"]
    assert list(found["areas"]) == list(found["fronts"]) == names
    assert [(one["first"], one["second"]) for one in found["comparisons"]] == list(itertools.combinations(names, 2))
    assert found["comparisons"][0]["difference"] == 0  # the same networks, timed together
    assert "BARS one/cells against BARS two/cells" in found["verdicts"][0]
    for folder, name in zip(folders, names, strict=False):
        assert {row["name"] for row in found["rows"] if row["run"] == str(folder)} == {name}
    trained = compare(folders, tmp_path / "trained", picks=1, epochs=1, rates=(0.01,))
    files = [row["file"] for row in trained["rows"]]
    assert len(files) == len(set(files)) == 2
    assert all((tmp_path / "trained" / file).is_file() for file in files)


@pytest.mark.parametrize(
    ("folders", "wanted"),
    [
        ("a/x a/y", "bars x|bars y"),
        ("a/x b/x a/y", "bars a/x|bars b/x|bars a/y"),
        ("1/a/x 2/a/x", "bars 1/a/x|bars 2/a/x"),
        (". x", "bars here|bars x"),
    ],
)
def test_a_name_is_as_long_as_it_has_to_be(folders, wanted, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    runs = [module.Run(Path(folder), "bars", None, [], dict) for folder in folders.split()]
    assert module._names(runs) == wanted.split("|")
    alone = module.Run(Path("a/x"), "width", None, [], dict)
    assert module._names([alone, *runs]) == ["width", *wanted.split("|")]


def test_runs_that_do_not_go_together_are_refused(runs, tmp_path):
    other = tmp_path / "seed-1"
    settings = {**QUICK, **SHARED, "seed": 1}
    search_nasbnn(nasbnn_preset(DATA, **settings, population=2, generations=1), other)
    again = f"bitnas search --data {DATA} --seed 0 --split 0.6,0.2"
    with pytest.raises(ValueError, match=f"other test images than.*such as those of {again}$"):
        compare([runs / "nasbnn", other], tmp_path / "out")
    with pytest.raises(ValueError, match="wanted at least two folders"):
        compare([runs / "nasbnn"], tmp_path / "out")
    with pytest.raises(ValueError, match="a folder twice"):
        compare([runs / "nasbnn", runs / "." / "nasbnn"], tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        compare([runs / "nasbnn", tmp_path], tmp_path / "out")
    (other / "front.json").unlink()
    with pytest.raises(FileNotFoundError, match="has not finished"):
        compare([runs / "nasbnn", other], tmp_path / "out")
    for options, message in (
        ({"picks": 0}, "picks: got 0"),
        ({"recipe": "none"}, "recipe: got 'none'"),
        ({"rates": (0.1, 0.1)}, "rates: got"),
        ({"batch": 0}, "batch: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            compare([runs / "nasbnn", runs / "bars"], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def rows(name, accuracies, seed):
    """A made-up front: networks 50 us apart, of these accuracies on 400 images."""
    rng = random.Random(seed)
    found = []
    for number, accuracy in enumerate(accuracies, 1):
        right = [rng.random() < accuracy for _ in range(400)]
        found.append(
            {"name": name, "method": name, "label": f"{name} {number}", "latency_us": 50.0 * number, "right": right,
             "accuracy": sum(right) / 400, "search_accuracy": accuracy}
        )  # fmt: skip
    return found


def test_a_front_that_is_better_is_said_to_be_and_one_that_is_not_is_not():
    better, worse = rows("bars", (0.8, 0.9, 0.95), 0), rows("width", (0.5, 0.6, 0.7), 1)
    found = module._judged([*better, *worse], trained=True)
    assert found["areas"]["bars"] > found["areas"]["width"]
    assert found["verdicts"][0].startswith("BARS has the better front than Width evolution here")
    alike = module._judged([*rows("bars", (0.8, 0.9), 0), *rows("width", (0.8, 0.9), 1)], trained=True)
    assert "cannot be told apart" in alike["verdicts"][0]
    # A network that validation images do not put on the front is not on it, however test images see it.
    flattered = [dict(row) for row in better]
    flattered[1]["search_accuracy"] = 0.1
    assert module._judged([*flattered, *worse], trained=True)["fronts"]["bars"] == ["bars 1", "bars 3"]


def test_picks_are_those_of_the_edge_that_dominate_most():
    members = rows("bars", (0.5, 0.7, 0.6, 0.8, 0.95), 0)
    for row in members:
        row["accuracy"] = row["search_accuracy"]
    picked = module._picked(members, 2)
    assert [row["label"] for row in picked] == ["bars 1", "bars 2"]
    assert all(row["search_accuracy"] != 0.6 for row in module._picked(members, 9))
    edge = fronts.edge(members)
    corner = fronts.corner(edge)
    assert [row["latency_us"] for row in picked] == [row["latency_us"] for row in fronts.most(edge, 2, corner)]

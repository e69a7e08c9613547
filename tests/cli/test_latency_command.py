"""`bitnas latency` from the command line: build, check, show, and what they say when they cannot."""

import json
import random
import subprocess
import sys

import pytest

TINY = ["--input-size", "1,8,8", "--base-width", "0.05", "--choices", "0.5,1", "--seconds", "0.01"]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return str(tmp_path_factory.mktemp("latency") / "t.sqlite")


def test_build_check_and_show(run, table, tmp_path):
    code, out, err = run("latency", "build", *TINY, "--rounds", "1", "--table", table, "--json")
    built = json.loads(out)
    assert code == 0
    assert built["entries"] > 20
    assert built["networks"] == built["visited"] >= 4
    assert {"drift", "noisy", "seconds", "path"} <= built.keys()
    assert "timing calls: 4 of" in err

    code, out, err = run("latency", "check", *TINY, "--networks", "3", "--table", table, "--json", "--pairs",
                         str(tmp_path / "pairs.csv"))  # fmt: skip
    checked = json.loads(out)
    assert code == 1  # three networks are too few for the goal
    assert checked["good"] is False
    assert len(checked["pairs"]) == checked["networks"] == 3
    assert "measuring whole networks: 3 of 3" in err
    lines = (tmp_path / "pairs.csv").read_text().splitlines()
    assert lines[0] == "predicted_us,measured_us"
    assert float(lines[1].split(",")[0]) == pytest.approx(checked["pairs"][0][0], abs=1e-3)

    code, out, _ = run("latency", "show", "--table", table)
    assert code == 0
    assert "WARNING" in out
    assert "NOT MET" in out
    code, out, _ = run("latency", "show", "--table", table, "--json", "--entries")
    device = json.loads(out)["devices"][0]
    assert device["calls"] == len(device["entries"]) == built["entries"]
    assert device["spaces"][0]["check"]["spearman"] == checked["spearman"]
    assert {"latency_us", "median_us", "q1_us", "q3_us", "low_us", "high_us", "runs", "noisy"} <= device["entries"][
        0
    ].keys()
    code, out, _ = run("latency", "show", "--table", table, "--entries")
    assert "conv2d" in out


def test_a_data_set_gives_size_classes_and_preset(run, tmp_path):
    command = ["latency", "build", "--data", "digits", "--choices", "1", "--seconds", "0.01", "--rounds", "1"]
    code, out, _ = run(*command, "--table", str(tmp_path / "t.sqlite"), "--json")
    built = json.loads(out)
    assert code == 0
    assert built["space"]["input_size"] == [1, 8, 8]
    assert built["space"]["base_width"] == 0.25
    assert built["batch"] == 32


SPACE = {
    "name": "mine",
    "input_size": [3, 32, 32],
    "num_classes": 10,
    "stem": [8],
    "stem_stride": 1,
    "stages": [{"channels": [8, 16], "depths": [1, 2], "kernels": [3], "groups": [1, 2], "groups_1x1": 1, "stride": 2}],
}


def test_subnets_of_a_file(run, tmp_path):
    space, file = tmp_path / "mine.json", str(tmp_path / "t.sqlite")
    space.write_text(json.dumps(SPACE))
    options = ["--method", "nasbnn", "--space", str(space), "--data", "digits", "--seconds", "0.01", "--table", file]
    code, out, _ = run("latency", "build", *options, "--rounds", "1", "--json")
    built = json.loads(out)
    assert code == 0
    assert built["batch"] == 32
    assert built["space"]["method"] == "nasbnn"
    assert built["space"]["input_size"] == [1, 8, 8]
    assert built["networks"] == built["visited"] >= 4
    code, out, _ = run("latency", "check", *options, "--networks", "2", "--json")
    assert code == 1  # too few for the goal
    assert json.loads(out)["networks"] == 2
    code, out, _ = run("latency", "show", "--table", file, "--entries")
    assert code == 0
    assert "subnets of stages 8/16 1x8x8, 10 classes" in out
    assert "16→16 3x3 2 groups" in out


CELLS = {
    "name": "mine",
    "layout": "N",
    "operations": ["none", "binary_conv_1x1"],
    "widths": [1.0],
    "least_depth": None,
    "channels": 4,
}


def test_cells_of_a_file(run, tmp_path):
    space, file = tmp_path / "mine.json", str(tmp_path / "t.sqlite")
    space.write_text(json.dumps(CELLS))
    options = ["--method", "bars", "--space", str(space), "--data", "digits", "--batch", "2", "--seconds", "0.01"]
    options += ["--table", file]
    code, out, _ = run("latency", "build", *options, "--rounds", "1", "--json")
    built = json.loads(out)
    assert code == 0
    assert built["batch"] == 2
    assert built["space"]["method"] == "bars"
    assert built["space"]["input_size"] == [1, 8, 8]
    assert built["networks"] == built["visited"] >= 4
    code, out, _ = run("latency", "check", *options, "--networks", "2", "--json")
    assert code == 1  # too few for the goal
    assert json.loads(out)["networks"] == 2
    code, out, _ = run("latency", "show", "--table", file, "--entries")
    assert code == 0
    assert "cells N of none, binary_conv_1x1, 4 channels x 1" in out
    assert "join_nodes" in out


@pytest.mark.parametrize("method", ["nasbnn", "bars"])
def test_a_preset_gives_the_space(run, tmp_path, method):
    command = ["latency", "check", "--method", method, "--data", "digits", "--table", str(tmp_path / "t.sqlite")]
    code, _, err = run(*command)
    assert code == 2
    assert "no such latency table" in err
    code, _, err = run("latency", "check", "--method", method, "--table", str(tmp_path / "t.sqlite"))
    assert code == 2
    assert "--space: got none, wanted one of" in err
    assert "imagenet" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "--table", "nowhere/t.sqlite"], "bitnas latency build"),
        (["show", "--table", "nowhere/t.sqlite"], "no such latency table"),
        (["build", "--model", "lenet"], "lenet"),
        (["build", "--choices", "1,x"], "--choices must be numbers"),
        (["build", "--batch", "0"], "batch: got 0"),
        (["build", "--rounds", "0"], "rounds: got 0"),
        (["check", "--networks", "1"], "networks: got 1"),
        (["build", "--method", "darts"], "--method: got 'darts', wanted one of width, nasbnn, bars"),
        (["build", "--space", "small"], "--space: is an option of --method nasbnn and bars"),
        (["check", "--method", "bars", "--space", "small", "--model", "resnet18"], "--model: is an option of --method"),
        (
            ["build", "--method", "nasbnn", "--space", "small", "--choices", "1,2"],
            "--choices: is an option of --method",
        ),
        (["check", "--method", "nasbnn", "--space", "small", "--base-width", "1"], "--base-width: is an option of"),
        (["build", "--method", "nasbnn", "--space", "tiny"], "space: got 'tiny', wanted one of imagenet, cifar, small"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNAS_TABLE", str(tmp_path / "t.sqlite"))
    code, _, err = run("latency", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_damaged_table_is_refused(run, tmp_path):
    path = tmp_path / "t.sqlite"
    path.write_bytes(b"SQLite format 3\0" + bytes(5000))
    code, _, err = run("latency", "show", "--table", str(path))
    assert code == 2
    assert "damaged" in err


@pytest.mark.slow
def test_a_build_that_is_killed_again_and_again_ends_with_every_network_once(tmp_path):
    path, kills = tmp_path / "t.sqlite", 0
    command = [sys.executable, "-m", "bitnas", "latency", "build", *TINY, "--rounds", "3", "--table", str(path)]
    rng = random.Random(0)
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            assert process.wait(timeout=4 + 3 * rng.random()) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        assert kills < 100
    from bitnas.cost.device_table import DeviceTable, latency_key

    visits = DeviceTable.open(path).visits(latency_key())
    planned = [(v.round, tuple(v.network)) for v in visits if v.round < 3]
    assert len(planned) == len(set(planned)) >= 12

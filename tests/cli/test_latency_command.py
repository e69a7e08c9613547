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

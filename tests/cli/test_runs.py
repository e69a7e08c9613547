"""Commands that leave a run folder: search, resume, train; whole, stopped and gone on with."""

from __future__ import annotations

import json
import sys

import pytest

from bitnas.files import read_json_checked
from tests.interrupting import interrupted

TINY = ["--base-width", "0.05", "--epochs", "1", "--parent-epochs", "1", "--workers", "0", "--choices", "0.5,1,2"]


def test_a_search_a_second_call_and_more_generations(run, tmp_path):
    folder = tmp_path / "run"
    command = [
        "search",
        "--out",
        str(folder),
        "--population",
        "4",
        "--generations",
        "1",
        *TINY,
        "--no-inherit",
        "--json",
    ]
    code, out, err = run(*command, "--objectives", "accuracy,ops")
    first = json.loads(out)
    assert code == 0
    assert "generation 1/1" in err
    assert first["front"]
    assert first["front"] == read_json_checked(folder / "front.json")
    assert (folder / "report.html").is_file()

    code, out, err = run(*command, "--objectives", "accuracy,ops")
    assert json.loads(out) == first

    code, out, err = run("resume", str(folder), "--generations", "2")
    assert code == 0
    assert "generation 2/2" in err
    assert "FLOPs" in out

    code, out, err = run(*command, "--objectives", "accuracy,flops")
    assert code == 2
    assert "other settings" in err


def test_ctrl_c_ends_with_130_and_the_command_that_goes_on(run, tmp_path):
    folder = tmp_path / "a run"
    command = ["search", "--out", str(folder), "--population", "4", "--generations", "50", *TINY]
    code, out, err = interrupted([sys.executable, "-m", "bitnas", *command], "generation 1/")
    assert code == 130
    assert out == ""
    assert f"bitnas resume '{folder}'" in err
    assert "Traceback" not in err
    code, out, _ = run("report", str(folder))
    assert code == 0
    assert "report.html" in out
    assert json.loads((folder / "config.json").read_text())["command"].startswith("bitnas search --out")


def test_train_saves_both_networks_and_goes_on(run, monkeypatch, tmp_path):
    import torch

    import bitnas

    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # it would hold for the tests that follow
    command = [
        "train",
        "--out",
        str(tmp_path / "net"),
        "--base-width",
        "0.06",
        "--ratios",
        "1,1,1,1,0.5,0.5",
        "--threads",
        "1",
    ]
    code, out, err = run(*command, "--epochs", "2", "--json")
    found = json.loads(out)
    assert code == 0
    assert "epoch 2/2" in err
    assert found == json.loads((tmp_path / "net" / "train.json").read_text())
    assert found["verified"]["ok"]
    assert found["verified"]["dots"] == found["verified"]["dots_equal"] > 0
    assert 0 <= found["accuracy_low"] <= found["accuracy"] <= found["accuracy_high"] <= 1
    frozen = bitnas.load(tmp_path / "net" / "frozen.safetensors")
    assert frozen(torch.zeros(2, 1, 8, 8)).shape == (2, 10)

    code, out, err = run(*command, "--epochs", "2")
    assert code == 0
    assert "epoch 1/" not in err  # nothing was left to train
    assert "verified    yes" in out


def test_wilson_interval_against_published_values():
    from bitnas.cli.train import wilson_interval

    # Newcombe 1998, table I, method 3: 81 of 263, and 0 of 20.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="right"):
        wilson_interval(3, 2)

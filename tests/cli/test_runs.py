"""Commands that leave a run folder: search, resume, train; whole, stopped and gone on with."""

from __future__ import annotations

import json
import re
import sys

import pytest
import safetensors.torch
import torch

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


SUBNETS = ["--supernet-epochs", "1", "--population", "4", "--mutations", "2", "--crossovers", "1", "--workers", "0"]
SUBNETS += ["--ops-window", "500,2200", "--bucket", "200", "--calibration-batches", "1", "--calibration-size", "64"]


@pytest.fixture
def space(tmp_path):
    """A file of a space of a few hundred subnets."""
    stages = [
        {"channels": [8, 16], "depths": [1, 2], "kernels": [3], "groups": [1], "groups_1x1": 1, "stride": 1},
        {"channels": [16, 24], "depths": [1, 2], "kernels": [3, 5], "groups": [1, 2], "groups_1x1": 1, "stride": 2},
    ]
    path = tmp_path / "mine.json"
    head = {"name": "mine", "input_size": [1, 8, 8], "num_classes": 10, "stem": [4, 8], "stem_stride": 2}
    path.write_text(json.dumps({**head, "stages": stages}))
    return str(path)


def test_a_search_of_subnets_and_its_resumption(run, space, tmp_path):
    folder = tmp_path / "run"
    command = ["search", "--method", "nasbnn", "--out", str(folder), "--space", space, "--generations", "1", *SUBNETS]
    code, out, err = run(*command, "--json")
    first = json.loads(out)
    assert code == 0
    assert "supernet trained: biggest subnet" in err
    assert "generation 1/1: 4 evaluated" in err
    assert first["front"] == read_json_checked(folder / "front.json")
    assert all(500 <= row["ops"] <= 2200 and row["subnet"]["name"] == "nasbnn" for row in first["front"])
    assert (folder / "report.html").is_file()

    code, out, err = run("resume", str(folder), "--generations", "2")
    assert code == 0
    assert "generation 2/2: 7 evaluated" in err
    assert "channels" in out
    assert "report:" in out

    code, out, err = run(*command, "--no-bi-teacher")
    assert code == 2
    assert "holds a run with other settings: strategies" in err

    code, out, err = run("search", "--out", str(folder))
    assert code == 2
    assert "holds a search by method nasbnn, wanted width" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "nasbnn", "--epochs", "3"], "--epochs is an option of --method width and bars; .*--supernet-ep"),
        (["--method", "nasbnn", "--no-inherit"], "--no-inherit is an option of --method width"),
        (["--space", "small"], "--space is an option of --method nasbnn and bars; leave it out for width"),
        (["--no-bi-teacher"], "--no-bi-teacher is an option of --method nasbnn"),
        (["--method", "none"], "--method: got 'none', wanted one of width, nasbnn, bars"),
        (["--method", "nasbnn", "--ops-window", "1e6"], "--ops-window: got 1 numbers, wanted the least and the most"),
        (
            ["--method", "nasbnn", "--ops-window", "1e6,2e6"],
            r"\(--ops-window LOW,HIGH\): no subnet of 1 to 2 M OPs.* 0.002618 to 0.20",
        ),
        (["--method", "nasbnn", "--space", "no.json"], "No such file or directory: no.json"),
        (["--method", "nasbnn", "--supernet", "no.safetensors"], "No such file or directory: no.safetensors"),
        (["--method", "nasbnn", "--supernet", "."], r"--supernet: \. is a folder, wanted .* supernet\.safetensors"),
        (
            ["--method", "nasbnn", "--supernet", "x", "--supernet-epochs", "3"],
            "--supernet-epochs is of the training of",
        ),
        (["--method", "nasbnn", "--supernet", "x", "--recipe", "nasbnn-digits"], "--recipe is of the training of"),
        (["--method", "nasbnn", "--supernet", "x", "--no-bi-teacher"], "--no-bi-teacher is of the training of"),
        (["--method", "nasbnn", "--supernet", "x", "--consistency", "0.1"], "--consistency is of the training of"),
        (["--method", "nasbnn", "--objectives", "accuracy"], "wanted 'archive' alone, or two and more"),
    ],
)
def test_options_that_do_not_fit_are_named_and_nothing_is_made(run, tmp_path, options, message):
    code, out, err = run("search", "--out", str(tmp_path / "run"), *options)
    assert code == 2
    assert out == ""
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


def test_a_supernet_brings_its_strategies_and_they_need_not_be_said_again(run, space, tmp_path):
    first = ["search", "--method", "nasbnn", "--space", space, "--generations", "1", *SUBNETS]
    code, _, _ = run(*first, "--no-bi-teacher", "--consistency", "0.1", "--out", str(tmp_path / "first"))
    assert code == 0
    again = ["search", "--method", "nasbnn", "--space", space, "--generations", "1", *SUBNETS[2:]]
    file = str(tmp_path / "first" / "supernet.safetensors")
    code, _, err = run(*again, "--supernet", file, "--out", str(tmp_path / "again"))
    assert code == 0, err
    strategies = read_json_checked(tmp_path / "again/config.json")["search"]["strategies"]
    assert strategies["bi_teacher"] is False
    assert strategies["consistency"] == 0.1
    assert strategies["bi_transformation"] is True


def test_own_images_are_trained_on_and_searched_without_a_setting(run, tmp_path):
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (60, 3, 20, 20), generator=chance, dtype=torch.uint8)
    file = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": images, "labels": torch.arange(60) % 3}, file)
    code, out, err = run(
        "train", "--method", "nasbnn", "--data", str(file), "--epochs", "1", "--out", str(tmp_path / "t")
    )
    assert code == 0, err
    assert "supernet of space small" in err
    assert "recipe nasbnn-digits" in err
    command = ["search", "--method", "nasbnn", "--data", str(file), "--out", str(tmp_path / "s"), "--generations", "1"]
    code, out, err = run(*command, "--population", "4", "--supernet-epochs", "1", "--workers", "0", "--json")
    assert code == 0, err
    assert json.loads(out)["front"]


def test_progress_tells_a_total_from_what_a_generation_lost(capsys):
    from bitnas.cli.progress import ProgressView

    view = ProgressView()
    view({"event": "generation_start", "generation": 1, "generations": 2, "candidates": 8})
    event = {"event": "generation_end", "evaluated": 12, "asked": 8, "failed": 1, "rejected": 6, "front": 2}
    view(event)
    view({**event, "failed": 0, "rejected": 0})
    first, second = capsys.readouterr().err.splitlines()
    assert first == (
        "generation 2/2: 12 evaluated so far (of its own 8, 1 failed and 6 over the budget), 2 on the front"
    )
    assert second == "generation 2/2: 12 evaluated so far, 2 on the front"


def test_ctrl_c_while_the_supernet_trains(space, tmp_path):
    folder = tmp_path / "run"
    command = ["search", "--method", "nasbnn", "--out", str(folder), "--space", space, *SUBNETS]
    command[command.index("--supernet-epochs") + 1] = "9"
    code, out, err = interrupted([sys.executable, "-m", "bitnas", *command], "supernet, epoch")
    assert code == 130
    assert out == ""
    assert f"bitnas resume {folder}" in err
    assert "Traceback" not in err
    assert (folder / "supernet.ckpt.safetensors").is_file()

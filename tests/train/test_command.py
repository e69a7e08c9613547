"""`bitnas train`: its options reach the recipe, a folder stays one run's, and a stopped run goes on."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable

import pytest
import safetensors.torch
import torch

from bitnas import cli, freeze, load, load_model, verify
from bitnas.files import CorruptFileError
from bitnas.train import Epoch
from bitnas.train.folder import locked
from tests.interrupting import interrupted

TINY = ["train", "--base-width", "0.05", "--epochs", "1", "--device", "cpu"]


@pytest.fixture
def run(capsys) -> Callable[..., tuple[int, str, str]]:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*TINY, *map(str, arguments)])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def test_options_are_settings_of_the_recipe(run, tmp_path):
    options = {
        "batch_size": 100, "lr": 0.003, "optimizer": "sgd", "weight_decay": 0.001, "warmup_epochs": 0.5,
        "label_smoothing": 0.1, "clip_norm": 5.0, "ema": 0.5, "accumulate": 2, "keep": "best", "precision": "float32",
        "momentum": 0.8, "schedule": "constant", "gamma": 0.5, "shift": 1,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", value)]
    words += ["--flip", "--crop", "0.5,1"]
    code, out, err = run("--out", tmp_path, "--json", "--seed", 3, "--val-share", 0.2, *words)
    assert code == 0, err
    result = json.loads(out)
    settings = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert settings["recipe"] == result["recipe"]
    recorded = {name: settings["recipe"].get(name, "float32") for name in options}
    assert recorded == options
    assert (settings["recipe"]["flip"], settings["recipe"]["crop"]) == (True, [0.5, 1.0])
    assert result["parts"] == {"train": 1150, "val": 288, "test": 359}
    assert (result["val_share"], result["threads"]) == (0.2, torch.get_num_threads())
    assert result["classes"] == [str(digit) for digit in range(10)]
    assert result["preprocessing"] == {
        "input_size": [1, 8, 8], "view": None, "divided_by": 1, "mean": None, "std": None
    }  # fmt: skip
    said = err.splitlines()
    assert said[0].endswith(": 1,150 to train on, 288 to validate, 359 to test; 1x8x8 in 10 classes")
    assert said[1] == (
        "recipe digits: 1 epoch of 12 steps of up to 100 images, sgd 0.003, constant, warmup_epochs 0.5, ema 0.5, "
        "shift 1, flip, crop 0.5 to 1; 1 thread on cpu"
    )
    assert (settings["seed"], settings["processes"], settings["val_share"]) == (3, 1, 0.2)
    assert result["verified"]["ok"]
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0"]
    assert float(rows[0]["val_accuracy"]) == round(float(rows[0]["val_accuracy"]) * 288) / 288  # a fifth of 80 %
    assert "epoch 1/1  loss " in err


def test_a_folder_is_one_runs(run, tmp_path):
    assert run("--out", tmp_path)[0] == 0
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for other, message in (
        (["--lr", "0.5"], "recipe.lr 0.01 there, 0.5 here"),
        (["--seed", "1"], "seed 0 there, 1 here"),
        (["--scheme", "bireal"], "network.scheme 'dorefa' there, 'bireal' here"),
    ):
        code, out, err = run("--out", tmp_path, *other)
        assert code == 2
        assert out == ""
        assert f"belongs to a training with other settings: {message}" in err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    code, _, err = run("--out", tmp_path)
    assert code == 0
    assert "epoch 1/" not in err


def test_a_folder_in_use_is_refused(run, tmp_path):
    with locked(tmp_path):
        code, out, err = run("--out", tmp_path)
    assert code == 2
    assert out == ""
    assert "is in use by another process" in err
    assert not (tmp_path / "train.json").exists()


def test_a_published_code_by_name_without_validation(run, tmp_path):
    code, out, err = run("--out", tmp_path, "--model", "vgg_auto_a", "--val-share", "0", "--json")
    assert code == 0, err
    assert json.loads(out)["network"]["ratios"] == [0.5, 2, 1, 1, 1, 0.5]
    assert "validation" not in err
    assert "to validate" not in err
    # The float network comes back, and freezes to the network that is beside it.
    network, frozen = load_model(tmp_path / "model.safetensors"), load(tmp_path / "frozen.safetensors")
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not network.training
    assert verify(network, frozen, x).ok
    assert torch.equal(freeze(network)(x), frozen(x))
    with pytest.raises(CorruptFileError, match="it is a frozen network, which bitnas.load reads"):
        load_model(tmp_path / "frozen.safetensors")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptFileError, match="SHA-256"):
        load_model(path)


def test_a_recipe_is_changed_as_asked():
    from bitnas.cli.train import changed_recipe
    from bitnas.train import RECIPES

    base = RECIPES["shen2019-cifar10"]
    assert changed_recipe(base, {}) == base
    assert changed_recipe(base, {"epochs": 20}).milestones == (6, 12, 18)
    assert changed_recipe(base, {"epochs": 20, "milestones": (3,)}).milestones == (3,)
    assert changed_recipe(base, {"epochs": 1, "milestones": (3,)}).schedule == "steps"
    assert changed_recipe(base, {"schedule": "cosine"}).milestones == ()
    assert changed_recipe(RECIPES["digits"], {"milestones": (2, 5)}).schedule == "steps"
    assert changed_recipe(RECIPES["shen2019-imagenet"], {"crop": None, "flip": False}).augmentation.crop is None


def test_what_the_recipe_became_and_doubts_are_said(run, tmp_path):
    path = tmp_path / "own.safetensors"
    labels = torch.arange(60) % 2 + 1
    safetensors.torch.save_file({"images": torch.rand(60, 1, 8, 8), "labels": labels}, path)
    code, _, err = run("--out", tmp_path / "run", "--data", path, "--no-flip", "--shift", 0, "--ema", 0.9)
    assert code == 0, err
    assert "sgd 0.1, constant (for 60, 120, 180 of 200), ema 0.9; 1 thread on cpu\n" in err
    assert "note: no image has the label 0: labels that count from 1 make a class too many; subtract 1\n" in err
    assert "warning: ema 0.9 averages over about 10 steps, and the run has 1: it ends near the first weights" in err
    assert json.loads((tmp_path / "run" / "train.json").read_text())["notes"][0].startswith("no image has the label 0")


def test_too_few_images_are_refused_before_training(run, tmp_path):
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": torch.rand(2, 1, 8, 8), "labels": torch.arange(2)}, path)
    code, _, err = run("--out", tmp_path / "run", "--data", path)
    assert code == 2
    assert "own: a fifth of its images is the test part, got 2 images; give more" in err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "best"], "--recipe must be one of digits, digits-parent, shen2019-cifar10"),
        (["--val-share", "0.9999"], "none is left to train on; give more, or a --val-share below 0.9999"),
        (["--seed", "-1"], "seed must be at least 0 and below 2^63, got -1"),
        (["--warmup-epochs", "3"], "warmup_epochs must be at most epochs 1, got 3"),
        (["--crop", "half"], "--crop must be numbers with commas between them, got 'half'"),
        (["--crop", "0.5"], "crop must be two numbers (low, high) or None, got (0.5,)"),
        (["--milestones", "1.5"], "--milestones must be integers with commas between them"),
        (["--data", "cifar10", "--data-root", "nowhere"], "environment variable BITNAS_DATA, or as root= (--data-root"),
        (["--val-share", "1"], "--val-share must be at least 0 and below 1, got 1.0"),
        (["--precision", "bfloat16"], "precision 'bfloat16' needs a GPU"),
        (["--keep", "best", "--val-share", "0"], "keep 'best' needs validation images"),
        (["--device", "tpu"], "device must be one of 'auto', 'cpu', 'cuda', got 'tpu'"),
        (["--workers", "2"], "digits takes no workers"),
        (["--ema", "1"], "ema must be finite, at least 0 and below 1"),
    ],
)
def test_what_cannot_be_is_said(run, tmp_path, options, message):
    code, out, err = run("--out", tmp_path / "run", *options)
    assert code == 2
    assert out == ""
    assert message in err


def test_the_line_of_an_epoch():
    from bitnas.cli.train import epoch_line

    epoch = Epoch(epoch=1, loss=0.5, train_accuracy=0.75, val_accuracy=0.5, lr=0.1, seconds=200.0, data_seconds=4.0)
    line = "epoch 2/9  loss 0.5000  train 75.0 %  validation 50.0 %  3 min 20 s, 2 % of it waiting for images  "
    assert epoch_line(epoch, 9, 8000.0) == line + "2 h 13 min left"
    assert epoch_line(epoch, 2, 0.0) == line.replace("2/9", "2/2").rstrip()


@pytest.mark.slow
def test_ctrl_c_keeps_the_steps_and_says_how_to_go_on(run, tmp_path):
    words = ["--out", str(tmp_path / "a run"), "--epochs", "12"]
    code, _, err = interrupted([sys.executable, "-m", "bitnas", *TINY, *words], "epoch 2/")
    assert code == 130
    again = f"bitnas train --base-width 0.05 --epochs 1 --device cpu --out '{tmp_path}/a run'"
    assert f"stopped; finished steps are kept. To go on: {again}" in err
    assert "Traceback" not in err
    assert run(*words)[0] == 0
    rows = list(csv.DictReader((tmp_path / "a run" / "log.csv").read_text().splitlines()))
    assert [int(row["epoch"]) for row in rows] == list(range(12))

"""The test of the claim: what is compared with what, the interval over seeds, and going on after a stop."""

from __future__ import annotations

import json
import shutil
import statistics

import pytest
import torch

from bitnas.methods.width import claim as module
from bitnas.methods.width import evaluate
from bitnas.methods.width.claim import claim, covering_multiplier, overall, seed_interval
from bitnas.methods.width.config import preset

TINY = {"population": 2, "generations": 1, "epochs": 1, "workers": 0}
SHORT = {"settings": TINY, "finalists": 2, "folds": 2, "repeats": 2, "epochs": 1}


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    folder = tmp_path_factory.mktemp("claim")
    events = []
    return folder, claim(folder, seeds=2, **SHORT, on_progress=events.append), events


def test_each_seed_has_a_winner_a_partner_and_a_paired_difference(tried):
    folder, result, events = tried
    assert result == json.loads((folder / "claim.json").read_text())
    assert result["complete"]
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        searched, uniform = run["searched"], run["uniform"]
        assert len(set(searched["ratios"])) > 1
        assert len(set(uniform["ratios"])) == 1
        assert run["flops_ratio"] == searched["flops"] / uniform["flops"] <= 1.02
        assert len(searched["accuracy_runs"]) == len(uniform["accuracy_runs"]) == 2
        pairs = zip(searched["accuracy_runs"], uniform["accuracy_runs"], strict=True)
        assert run["differences"] == [a - b for a, b in pairs]
        assert run["difference"] == statistics.fmean(run["differences"])
        assert run["networks_tried"] == 2
        assert run["trainings"] == 2 + 2 * len(run["finalists"]) + 4
        best = max(run["finalists"], key=lambda finalist: finalist["runoff_accuracy"])
        assert best["ratios"] == searched["ratios"]
        assert run["test_images"] + run["train_images"] == 1797
    assert result["trainings"] == sum(run["trainings"] for run in result["runs"])
    assert result["overall"]["seeds"] == 2
    assert [event["difference"] for event in events if event["event"] == "claim_seed"] == [
        run["difference"] for run in result["runs"]
    ]


def test_a_second_call_trains_nothing(tried, monkeypatch):
    from bitnas import train

    folder, result, _ = tried
    monkeypatch.setattr(train, "fit", None)
    again = claim(folder, seeds=2, **SHORT)
    for run in (*again["runs"], *result["runs"]):
        run.pop("seconds")
    assert again == result


def test_no_test_image_is_seen_before_the_test(monkeypatch):
    """Runoff and search train and validate outside the test part, and the last training inside none of it."""
    from bitnas import train

    config = preset("digits", **{**module.SETTINGS["digits"], **TINY})
    source = evaluate.load_data("digits", config.seed)
    test_images = source.take(evaluate.split_data(config).test)
    seen = []

    def images(data):
        return {image.numpy().tobytes() for image in data.take(torch.arange(len(data)))}

    monkeypatch.setattr(train, "fit", lambda model, data, recipe, seed: seen.append(images(data)))
    monkeypatch.setattr(train, "evaluate", lambda model, data: seen.append(images(data)) or 0.5)
    forbidden = {image.numpy().tobytes() for image in test_images}
    for fold in range(4):
        module.train_runoff((1.0,) * 6, config.to_dict(), 4, 1, fold)
    assert not any(part & forbidden for part in seen)
    seen.clear()
    module.train_test((1.0,) * 6, config.to_dict(), 1, 0)
    known, tested = seen
    assert tested == forbidden
    assert not known & forbidden


def test_the_partner_is_the_narrowest_uniform_network_that_costs_enough():
    def steps(multiplier: float) -> float:
        return int(8 * multiplier) * 100.0

    for flops in (100.0, 350.0, 799.0, 800.0):
        found = covering_multiplier(flops, steps, low=0.25, high=1.0)
        assert steps(found) >= flops
        assert found == 0.25 or steps(found - 2e-4) < flops
    with pytest.raises(ValueError, match="801"):
        covering_multiplier(801.0, steps, low=0.25, high=1.0)


def test_the_interval_over_seeds():
    # t of 2 degrees of freedom at 97.5 %: 4.302653; standard deviation 0.01
    plain = seed_interval([0.01, 0.02, 0.03], 0.0)
    assert plain.mean == pytest.approx(0.02)
    assert plain.high - plain.mean == pytest.approx(4.302653 * 0.01 / 3**0.5, rel=1e-6)
    corrected = seed_interval([0.01, 0.02, 0.03], 0.25)
    assert corrected.mean - corrected.low == pytest.approx(4.302653 * 0.01 * (1 / 3 + 0.25) ** 0.5, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        seed_interval([0.1], 0.25)


def test_lost_seeds_count():
    runs = [
        {"difference": d, "flops_ratio": 1.0, "train_images": 4, "test_images": 1} for d in (0.03, -0.01, 0.02, -0.02)
    ]
    found = overall(runs)
    assert (found["won"], found["outcome"]) == (2, "undecided")
    assert "2 of 4" in found["verdict"]
    better = overall([{**run, "difference": 0.03 + 0.001 * i} for i, run in enumerate(runs)])
    assert (better["won"], better["outcome"]) == (4, "better")
    assert overall(runs[:1]) is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"seeds": 0}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"finalists": 0}, "finalists"),
        ({"folds": 1}, "folds"),
        ({"repeats": True}, "repeats"),
        ({"flops_tolerance": 1.0}, "flops_tolerance"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, options, name):
    with pytest.raises(ValueError, match=name):
        claim(tmp_path, **options)
    assert not list(tmp_path.iterdir())


def test_a_failed_training_is_told(tried, tmp_path, monkeypatch):
    from bitnas import train

    def diverge(*args, **kwargs):
        raise train.TrainingDiverged(0, 0, float("nan"))

    shutil.copytree(tried[0], tmp_path / "run")
    monkeypatch.setattr(train, "fit", diverge)
    with pytest.raises(RuntimeError, match="diverged"):
        claim(tmp_path / "run", seeds=1, **SHORT | {"epochs": 2})

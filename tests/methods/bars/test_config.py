"""Settings of a search by BARS: what is refused, what a preset says, and their way to a file and back."""

import json

import pytest
import safetensors.torch
import torch

from bitnas.methods.bars import PRESETS, BarsSearchConfig, preset
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.description import DESCRIPTIONS
from bitnas.train import RECIPES


def test_defaults_are_the_interim_configuration():
    """50 epochs of 256 images, halves of the training images, 8 samples, the likeliest widths and depths."""
    config = BarsSearchConfig()
    assert config.space == DESCRIPTIONS["cifar"].to_dict()
    assert config.controller == Controller().to_dict()
    assert (config.controller["epochs"], config.controller["batch_size"]) == (50, 256)
    assert (config.search_fraction, config.samples, config.sample_layout, config.train_epochs) == (0.5, 8, False, 0)
    assert config.generations == 1
    assert config.recipe in RECIPES


@pytest.mark.parametrize("data", list(PRESETS))
def test_presets_go_to_a_file_and_back(data):
    config = preset(data)
    assert BarsSearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.data == data
    assert config.recipe in RECIPES


def test_a_preset_is_known_by_the_stem_and_a_controller_changes_single_settings():
    config = preset("some/where/digits.safetensors:50", controller={"batch_size": 7}, samples=3)
    own = PRESETS["digits"]["controller"]
    assert config.controller == Controller.from_dict({**own, "batch_size": 7}).to_dict()
    assert (config.samples, config.space["name"]) == (3, "small")


@pytest.mark.parametrize(("side", "space"), [(20, "small"), (40, "cifar"), (65, "imagenet")])
def test_own_images_have_the_preset_of_their_size(tmp_path, side, space):
    images = torch.zeros(12, 3, side, side + 8, dtype=torch.uint8)
    file = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": images, "labels": torch.arange(12) % 3}, file)
    assert preset(str(file)).space["name"] == space
    with pytest.raises(ValueError, match="samples: got 0"):  # before anything is read
        preset(str(tmp_path / "none.safetensors"), samples=0)


def test_a_shorter_training_keeps_the_share_of_its_warm_up():
    assert preset("digits").controller["warmup_epochs"] == 4
    assert preset("digits", controller={"epochs": 10}).controller["warmup_epochs"] == 2
    assert preset("digits", controller={"epochs": 1}).controller["warmup_epochs"] == 0
    assert preset("digits", controller={"epochs": 10, "warmup_epochs": 9}).controller["warmup_epochs"] == 9


def test_the_space_is_kept_as_it_was_read(tmp_path):
    file = tmp_path / "space.json"
    file.write_text(json.dumps({"name": "mine", "layout": "NR"}))
    config = preset("digits", space=str(file))
    file.write_text("{}")
    assert config.space["layout"] == "NR"
    with pytest.raises(ValueError, match="space: unknown fields .*'depth'"):
        preset("digits", space={"name": "mine", "layout": "NR", "depth": 3})
    with pytest.raises(ValueError, match=r"space.json is not a search space: space: .* missing fields"):
        preset("digits", space=str(file))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"samples": 0}, ValueError, "samples: got 0, wanted at least 1"),
        ({"samples": 2.0}, TypeError, "samples: got 2.0, wanted an integer"),
        ({"train_epochs": -1}, ValueError, "train_epochs: got -1, wanted at least 0"),
        ({"search_fraction": 0.0}, ValueError, "search_fraction: got 0.0, wanted a finite number above 0"),
        ({"search_fraction": 1}, ValueError, "search_fraction: got 1, wanted less, so that images are left"),
        ({"sample_layout": 1}, TypeError, "sample_layout: got 1, wanted True or False"),
        ({"objectives": ("latency",)}, ValueError, "wanted 'accuracy' alone, or two and more"),
        ({"objectives": ("accuracy", "speed")}, ValueError, "objectives: got .*'speed'"),
        ({"objectives": "accuracy"}, TypeError, "objectives: got 'accuracy', wanted a tuple of names"),
        ({"calibration_batches": 101}, ValueError, "calibration_batches: got 101, wanted at most 100"),
        (
            {"objectives": ("accuracy", "ops"), "latency_source": "table"},
            ValueError,
            "latency_source: got 'table', but",
        ),
        ({"latency_table": "t.sqlite"}, ValueError, "latency_table: got 't.sqlite', but nothing reads it; .*--cost"),
        ({"train_fraction": 0.8}, ValueError, "train_fraction, val_fraction: got 0.8 and 0.2, wanted a sum below 1"),
        ({"workers": -1}, ValueError, "workers: got -1"),
        ({"controller": 3}, TypeError, "controller: got 3, wanted an object"),
        ({"controller": {"epochs": 0}}, ValueError, r"controller\.epochs: got 0, wanted at least 1"),
        ({"controller": {"epoch": 1}}, ValueError, r"controller: unknown settings \['epoch'\]"),
        ({"controller": {"prune": 2}}, ValueError, r"controller\.prune: got 2"),
        (
            {"controller": {"flops_budget": 4e5}},
            ValueError,
            r"controller\.flops_budget: got 400000 with controller\.cost 'none'.*wanted cost 'flops' or 'both'",
        ),
        (
            {"controller": Controller(latency_budget=300)},
            ValueError,
            r"controller\.latency_budget: got 300 with controller\.cost 'none'.*wanted cost 'latency' or 'both'",
        ),
        ({"controller": {"cost": "latency"}}, ValueError, r"controller\.latency_budget: got None, wanted microseconds"),
    ],
)
def test_what_is_wrong_is_named(settings, error, message):
    with pytest.raises(error, match=message):
        BarsSearchConfig(**settings)


def test_an_unknown_setting_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="population: no such setting; there are .*samples"):
        BarsSearchConfig.from_dict({"population": 3})


def test_identity_is_of_what_decides_the_result():
    config = preset("digits")
    assert preset("digits", workers=7).identity() == config.identity() == config.identity(generations=True)
    for settings in ({"seed": 1}, {"samples": 3}, {"controller": {"epochs": 3}}, {"train_epochs": 0}):
        assert preset("digits", **settings).identity() != config.identity()


def test_a_device_table_is_read_by_the_loss_or_by_the_search():
    assert not preset("digits").needs_table
    assert preset("digits", latency_source="table", latency_table="t").needs_table
    in_loss = preset("digits", controller={"cost": "both", "latency_budget": 100}, latency_table="t")
    assert in_loss.latency_in_loss
    assert in_loss.needs_table
    assert in_loss.latency_budget is None  # nothing is given up for its latency

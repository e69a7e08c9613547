"""Settings of the width search: the paper's defaults, the presets, and that every mistake is named."""

import dataclasses
import json

import pytest

from bitnas.methods.width.config import PRESETS, WidthSearchConfig, preset


def test_defaults_are_the_papers():
    config = WidthSearchConfig()
    assert (config.population, config.generations, config.epochs, config.fitness_lambda) == (32, 50, 10, 4.0)
    assert config.choices == (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
    assert config.single_objective
    assert config.inherit
    assert config.counting_rule == "shen2019"
    assert not config.start_uniform


def test_json_round_trip():
    config = preset("digits", objectives=("accuracy", "ops", "latency"), timeout=None)
    assert WidthSearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_are_valid_and_yield_to_what_is_given():
    for name in PRESETS:
        assert preset(name).data.partition(":")[0] == name
    assert preset("digits").base_width == 0.25
    assert preset("digits", base_width=0.5).base_width == 0.5
    assert preset("some/folder/cifar10.safetensors").fitness_lambda == 4.0
    assert preset("imagenet:100").data == "imagenet:100"
    assert preset("imagenet:100").model == "resnet18"
    assert preset("some/folder/imagenet").data == "some/folder/imagenet"
    assert preset("own.safetensors") == WidthSearchConfig(data="own.safetensors")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("population", 1),
        ("generations", 0),
        ("epochs", 0),
        ("seed", -1),
        ("workers", -1),
        ("fitness_lambda", -0.1),
        ("fitness_lambda", float("nan")),
        ("base_width", 0),
        ("train_fraction", 0.9),
        ("timeout", 0),
        ("budget", 0),
        ("choices", (1.0,)),
        ("choices", (1.0, 1.0)),
        ("choices", (1.0, -2.0)),
        ("objectives", ()),
        ("objectives", ("speed",)),
        ("objectives", ("accuracy",)),
        ("objectives", ("accuracy", "accuracy")),
        ("objectives", ("fitness", "latency")),
        ("latency_tolerance", float("inf")),
    ],
)
def test_bad_values_are_named(setting, value):
    with pytest.raises(ValueError, match=setting):
        WidthSearchConfig(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("population", 8.0),
        ("population", True),
        ("model", ""),
        ("inherit", 1),
        ("objectives", "fitness"),
        ("base_width", "1"),
        ("timeout", "5"),
        ("budget", "1"),
        ("rule", 3),
    ],
)
def test_wrong_types_are_named(setting, value):
    with pytest.raises(TypeError, match=setting):
        WidthSearchConfig(**{setting: value})


def test_unknown_setting_is_refused():
    with pytest.raises(ValueError, match="populaton: no such setting"):
        WidthSearchConfig.from_dict({"populaton": 8})


def test_identity_ignores_only_what_cannot_change_a_result():
    config = preset("digits")
    assert config.identity() == dataclasses.replace(config, workers=0).identity()
    assert config.identity() == dataclasses.replace(config, generations=7).identity()
    longer = dataclasses.replace(config, generations=7)
    assert config.identity(generations=True) != longer.identity(generations=True)
    for change in ({"seed": 1}, {"epochs": 1}, {"latency_batch": 2}, {"objectives": ("accuracy", "ops")}):
        assert config.identity() != dataclasses.replace(config, **change).identity()


def test_latency_carries_its_tolerance_into_the_front():
    config = preset("digits", objectives=("accuracy", "latency"))
    accuracy, latency = config.front_objectives()
    assert (accuracy.name, accuracy.maximize, accuracy.tolerance) == ("accuracy", True, 0.005)
    assert (latency.name, latency.maximize, latency.relative_tolerance) == ("latency_us", False, 0.02)
    assert [objective.name for objective in preset("digits").front_objectives()] == ["accuracy", "flops"]

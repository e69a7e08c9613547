"""Names, codes and configs: what can be asked for, what is refused, and what identifies a network."""

import json

import pytest
import torch
from torch import nn

from bitnas.files import CorruptFileError, save_tensors
from bitnas.models import (
    ModelConfig,
    create_model,
    create_model_from_config,
    list_models,
    load_model,
    make_config,
    num_ratios,
    register,
    register_code,
    registry,
    widths,
)


def test_list_models():
    assert {"vgg_small", "resnet18", "vgg_auto_a", "vgg_auto_b", "resnet18_auto_a", "resnet18_auto_b"} <= {
        *list_models()
    }
    assert list_models("vgg_auto*") == ["vgg_auto_a", "vgg_auto_b"]
    assert list_models("nothing*") == []


def test_num_ratios():
    assert [num_ratios(n) for n in ("vgg_small", "vgg_auto_b", "resnet18", "resnet18_auto_a")] == [6, 6, 12, 12]


def test_unknown_name_suggests_a_close_one():
    with pytest.raises(ValueError, match=r"got 'resnet81'.*vgg_small.*did you mean 'resnet18'"):
        create_model("resnet81")


@pytest.mark.parametrize(
    ("ratios", "error"),
    [
        ([1, 2, 3], ValueError),
        ([1] * 7, ValueError),
        ([], ValueError),
        ([1, 1, 1, 1, 1, 0], ValueError),
        ([1, 1, 1, 1, 1, -2], ValueError),
        ([1, 1, 1, 1, 1, float("nan")], ValueError),
        ([1, 1, 1, 1, 1, float("inf")], ValueError),
        ([1, 1, 1, 1, 1, True], TypeError),
        ("111111", TypeError),
        (0, ValueError),
    ],
)
def test_bad_ratios(ratios, error):
    with pytest.raises(error, match="ratios: got"):
        create_model("vgg_small", ratios=ratios)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes: got 0"),
        ({"num_classes": 2.5}, TypeError, "num_classes: got 2.5"),
        ({"input_size": (32, 32)}, ValueError, "input_size: got"),
        ({"input_size": (0, 32, 32)}, ValueError, "input_size: got 0"),
        ({"base_width": 0}, ValueError, "base_width: got 0"),
        ({"scheme": "float"}, ValueError, "scheme: got 'float'"),
        ({"stem": "cifar"}, ValueError, "stem: got 'cifar', but 'vgg_small' has no choice"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        create_model("vgg_small", **options)


def test_width_is_truncated_twice_and_never_zero():
    config = make_config("vgg_small", ratios=(0.3, 1, 1.5, 0.001, 4, 2), base_width=0.17)
    # int(128 * 0.17) = 21, int(256 * 0.17) = 43, int(512 * 0.17) = 87
    assert widths(config) == (6, 21, 64, 1, 348, 174)


def test_one_number_is_a_uniform_code():
    assert make_config("vgg_small", ratios=2).ratios == (2.0,) * 6
    assert make_config("resnet18").ratios == (1.0,) * 12


def test_a_code_is_a_second_name_of_its_network():
    a = make_config("vgg_auto_a")
    assert a == make_config("vgg_small", ratios=[0.5, 2, 1, 1, 1, 0.5])
    assert make_config("resnet18_auto_b", num_classes=10).ratios == (3, 4, 4, 3, 1, 4, 4, 4, 3, 3, 3, 3)
    with pytest.raises(ValueError, match=r"ratios: got .* 'vgg_auto_a' has its own"):
        create_model("vgg_auto_a", ratios=1)


def test_config_round_trip_and_key():
    config = make_config("resnet18", ratios=[1, 2, 3, 4] * 3, input_size=[3, 32, 32], num_classes=10, scheme="xnor")
    text = json.dumps(config.to_dict())
    again = ModelConfig.from_dict(json.loads(text))
    assert again == config
    assert again.key() == config.key()
    assert len(config.key()) == 64
    assert hash(again) == hash(config)


def test_key_is_stable_between_releases():
    """Journals and files name networks by this key, so it may not change."""
    assert make_config("vgg_small").key() == "3da45c8fc262483b042b0679d14008f1183e9625d5853121ac648bf5f524bdf5"
    assert "stem" not in make_config("vgg_small").to_dict()


def test_key_tells_networks_apart():
    base = {"ratios": (1,) * 6}
    variants = [
        base,
        {"ratios": (1, 1, 1, 1, 1, 2)},
        {**base, "num_classes": 9},
        {**base, "input_size": (1, 32, 32)},
        {**base, "base_width": 0.5},
        {**base, "scheme": "bireal"},
    ]
    keys = [make_config("vgg_small", **options).key() for options in variants]
    keys += [make_config("resnet18", stem=stem).key() for stem in ("imagenet", "cifar")]
    assert len(set(keys)) == len(keys)


def test_config_is_frozen_and_strict():
    config = make_config("vgg_small")
    with pytest.raises(AttributeError):
        config.name = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match=r"unknown fields \['depth'\]"):
        ModelConfig.from_dict({**config.to_dict(), "depth": 3})
    values = config.to_dict()
    del values["ratios"]
    with pytest.raises(ValueError, match=r"missing fields \['ratios'\]"):
        ModelConfig.from_dict(values)


def test_a_config_of_another_network_is_refused():
    wrong = ModelConfig(name="vgg_small", ratios=(1,) * 12, num_classes=10, input_size=(3, 32, 32))
    with pytest.raises(ValueError, match="got 12 numbers, wanted 6"):
        create_model_from_config(wrong)
    unknown = ModelConfig(name="alexnet", ratios=(1,), num_classes=10, input_size=(3, 32, 32))
    with pytest.raises(ValueError, match="name: got 'alexnet'"):
        create_model_from_config(unknown)


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_NETWORKS", dict(registry._NETWORKS))
    monkeypatch.setattr(registry, "_CODES", dict(registry._CODES))


@pytest.mark.usefixtures("clean_registry")
def test_a_user_registers_a_network_and_a_code():
    @register("two_layer", base_widths=(8,), num_classes=3, input_size=(1, 4, 4))
    class TwoLayer(nn.Module):
        def __init__(self, config, widths):
            super().__init__()
            self.config = config
            self.hidden = nn.Linear(16, widths[0])
            self.fc = nn.Linear(widths[0], config.num_classes)

        def forward(self, x):
            return self.fc(self.hidden(x.flatten(1)))

    register_code("two_layer_wide", network="two_layer", ratios=[2.5])
    model = create_model("two_layer_wide")
    assert model.hidden.out_features == 20
    assert model(torch.randn(2, 1, 4, 4)).shape == (2, 3)
    with pytest.raises(ValueError, match="'two_layer' is already registered"):
        register("two_layer", base_widths=(8,), num_classes=3, input_size=(1, 4, 4))


@pytest.mark.usefixtures("clean_registry")
def test_a_registered_network_must_keep_its_config():
    @register("forgetful", base_widths=(8,), num_classes=3, input_size=(1, 4, 4))
    class Forgetful(nn.Module):
        def __init__(self, config, widths):
            super().__init__()

    with pytest.raises(TypeError, match="Forgetful: a registered network must keep its config"):
        create_model("forgetful")


def test_load_model_reads_what_studies_wrote_before(tmp_path):
    """Their files had another format and the same contents."""
    network = create_model("vgg_small", base_width=0.05, input_size=(1, 8, 8)).eval()
    path = tmp_path / "old.safetensors"
    facts = {"format": "bitnas-trained-1", "network": network.config.to_dict(), "epochs": 3}
    save_tensors(path, network.state_dict(), facts)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load_model(path)(x), network(x))
    save_tensors(path, network.state_dict(), {**facts, "format": "bitnas-other-1"})
    with pytest.raises(CorruptFileError, match="its format is 'bitnas-other-1', expected 'bitnas-model-1'"):
        load_model(path)

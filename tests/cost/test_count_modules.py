"""Counting modules of any kind: what is counted, what is named as not counted, and what stays untouched."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import bitnas
from bitnas.cost import Count, count, rules, walk
from bitnas.nn import BinaryConv2d, BinaryLinear


def only(model, size, **options):
    """The single layer record of a model of one layer."""
    (layer,) = count(model, size, **options).layers
    return layer


def test_cost_of_names_needs_no_torch():
    script = (
        "import sys, bitnas.cost, bitnas.cost.rules, bitnas.cost.count\n"
        "assert callable(bitnas.cost.count)\n"
        "assert not {'torch', 'numpy'} & set(sys.modules), 'heavy import'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'price_of_fish'"):
        _ = bitnas.cost.price_of_fish
    assert {"count", "Count", "measure_latency", "Latency"} <= set(dir(bitnas.cost))


@pytest.mark.parametrize(
    ("layer", "size", "macs", "weights"),
    [
        (nn.Conv1d(4, 6, 5, padding=2), (4, 20), 20 * 6 * 4 * 5, 120),
        (nn.Conv2d(4, 6, (3, 5), stride=2, groups=2), (4, 9, 9), 4 * 3 * 6 * 2 * 15, 180),
        (nn.Conv3d(2, 3, 2, dilation=2), (2, 5, 5, 5), 27 * 3 * 2 * 8, 48),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (4, 5, 5), 25 * 4 * 3 * 9, 108),
        (nn.Linear(7, 5), (7,), 35, 35),
        (nn.Linear(7, 5), (3, 7), 105, 35),
        (BinaryConv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5), 25 * 6 * 2 * 9, 108),
        (BinaryLinear(70, 9), (70,), 630, 630),
    ],
)
def test_multiply_adds(layer, size, macs, weights):
    record = only(layer, size)
    assert (record.macs, record.weights) == (macs, weights)
    binary = isinstance(layer, (BinaryConv2d, BinaryLinear))
    assert (record.binary, record.weight_bits) == (binary, 1 if binary else 32)
    c = count(layer, size)
    assert (c.macs, c.bops) == ((0, macs) if binary else (macs, 0))
    assert c.params == sum(p.numel() for p in layer.parameters())
    biases = c.params - weights
    assert c.memory_bits == weights * record.weight_bits + 32 * biases


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.PReLU(4), nn.ReLU(), nn.InstanceNorm2d(4), nn.Softmax(1)]
)
def test_free_layers_keep_their_parameters(layer):
    c = count(layer, (4, 5, 5))
    assert (c.ops, c.uncounted) == (0, {})
    assert c.params == sum(p.numel() for p in layer.parameters())
    assert c.memory_bits == 32 * c.params


@pytest.mark.parametrize(
    ("layer", "reads"),
    [
        (nn.MaxPool2d(3, stride=2, padding=1), 2 * 16 * 9),
        (nn.AvgPool2d((2, 4)), 2 * 8 * 8),
        (nn.AdaptiveAvgPool2d(1), 2 * 64),
        (nn.AdaptiveAvgPool2d((3, 8)), 2 * 10 * 8),  # rows 0-2, 2-5, 5-7: 3 + 4 + 3
        (nn.AdaptiveMaxPool2d(2), 2 * 64),
    ],
)
def test_what_pooling_reads(layer, reads):
    assert only(layer, (2, 8, 8)).reads == reads


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent = nn.LSTM(8, 4)
        self.scale = nn.Parameter(torch.ones(8))
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        x = self.embed(x) * self.scale
        x, _ = self.attention(x, x, x)
        x, _ = self.recurrent(x)
        return x


def test_what_has_no_rule_is_named():
    model = Branches()
    c = count(model, (5, 6))
    assert set(c.uncounted) == {"", "attention", "attention.out_proj", "recurrent", "unused"}
    assert c.uncounted["recurrent"] == "LSTM: no rule"
    assert "never called" in c.uncounted["unused"]
    assert c.macs == 5 * 48
    assert c.params == sum(p.numel() for p in model.parameters())
    assert c.memory_bits == 32 * c.params
    assert "not counted: recurrent (LSTM: no rule)" in str(c)


class Bits(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("words", torch.zeros(4, dtype=torch.int64))

    def forward(self, x):
        return x


def test_a_foreign_module_with_buffers_is_named():
    assert count(nn.Sequential(nn.ReLU(), Bits()), (3,)).uncounted == {"1": "Bits: no rule"}


def test_shared_and_repeated_layers():
    shared = nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = shared.weight
    model = nn.Sequential(shared, shared, tied)
    c = count(model, (4,))
    assert c.macs == 3 * 16
    assert c.params == sum(p.numel() for p in model.parameters()) == 16 + 4 + 4
    assert len(c.layers) == 3


class ReadsItsWeights(nn.Module):
    """Cannot run without storage, as it looks at a value."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)) * float(self.conv.weight.sum())


def test_a_module_that_needs_values_runs_for_real():
    model = ReadsItsWeights().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert count(model, (3, 5, 5)).macs == 9 * 4 * 27
    assert model.training
    assert model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_module_is_left_as_it_was():
    model = bitnas.create_model("vgg_small", base_width=0.1)
    model.bn3.eval()
    pointers = {name: p.data_ptr() for name, p in model.named_parameters()}
    modes = {name: m.training for name, m in model.named_modules()}
    c = count(model)
    assert c.model == "VGGSmall"
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == pointers
    assert {name: m.training for name, m in model.named_modules()} == modes
    assert not any(module._forward_hooks for module in model.modules())


def test_a_built_network_counts_as_its_name_does():
    options = {"ratios": [0.5, 1, 1, 2, 1, 0.5], "base_width": 0.25, "input_size": (1, 8, 8)}
    built, named = (
        count(bitnas.create_model("vgg_small", **options), rule="shen2019"),
        count("vgg_small", rule="shen2019", **options),
    )
    assert built.layers == named.layers
    assert (built.flops, built.memory_bits, built.params) == (named.flops, named.memory_bits, named.params)
    assert built.input_size == (1, 8, 8)


def test_no_storage_is_allocated(monkeypatch):
    """The widest ResNet-18 would take 700 MB."""
    opened = walk.open_model("resnet18", None, {"ratios": 4})[0]
    assert all(tensor.is_meta for tensor in (*opened.parameters(), *opened.buffers()))
    real = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    copied = walk._without_storage(real)
    assert all(tensor.is_meta for tensor in (*copied.parameters(), *copied.buffers()))
    assert not any(tensor.is_meta for tensor in real.parameters())


def test_half_precision_and_eight_bit_layers():
    stem = nn.Conv2d(3, 4, 3, bias=False).to(torch.bfloat16)
    stem.weight_bits = 8
    assert only(stem, (3, 5, 5)).weight_bits == 8
    c = count(stem, (3, 5, 5), rule="nasbnn")
    assert c.flops == 9 * 4 * 27 // 8
    assert c.memory_bits == 8 * 108


def test_full_precision_and_bases_of_a_module():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), BinaryConv2d(4, 5, 3))
    plain = count(model, (3, 8, 8))
    full = count(model, (3, 8, 8), full_precision=True)
    assert (full.macs, full.bops) == (plain.macs + plain.bops, 0)
    assert full.memory_bits == 32 * full.params
    bases = count(model, (3, 8, 8), weight_bases=3, activation_bases=2)
    assert bases.bops == 6 * plain.bops
    assert bases.memory_bits == plain.memory_bits + 2 * 180
    assert not any(layer.binary for layer in full.layers)


def test_shen2019_refuses_a_foreign_module():
    for rule in ("shen2019", "shen2019-table1", "shen2019-table2"):
        with pytest.raises(ValueError, match=f"rule: '{rule}' counts only .*not one of bitnas.models.*'mac'"):
            count(nn.Linear(3, 4), (3,), rule=rule)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("vgg_small",), {"rule": "flops"}, ValueError, "rule: got 'flops', wanted one of 'mac'"),
        (("vgg_tiny",), {}, ValueError, "name: got 'vgg_tiny'"),
        ((nn.Linear(3, 4),), {}, ValueError, "input_size: got None"),
        ((nn.Linear(3, 4), (5,)), {}, ValueError, r"does not run on one input of size \(5,\)"),
        ((nn.Linear(3, 4), (0,)), {}, ValueError, "input_size: got 0"),
        ((nn.Linear(3, 4), (3,)), {"ratios": 2}, TypeError, "model_options: got ratios"),
        ((torch.ones(3), (3,)), {}, TypeError, "model: got Tensor"),
        (("vgg_small",), {"weight_bases": 0}, ValueError, "weight_bases: got 0"),
        (("vgg_small",), {"activation_bases": 1.5}, ValueError, "activation_bases: got 1.5"),
        (("vgg_small",), {"weight_bases": 2, "full_precision": True}, ValueError, "full_precision: "),
    ],
)
def test_bad_arguments(arguments, options, error, message):
    with pytest.raises(error, match=message):
        count(*arguments, **options)


def test_to_dict_is_json():
    c = bitnas.count("vgg_small", rule="shen2019", ratios=0.5)
    assert isinstance(c, Count)
    values = json.loads(json.dumps(c.to_dict()))
    assert values["flops"] == c.flops
    assert values["input_size"] == [3, 32, 32]
    assert values["rule"] == "shen2019-table1"
    assert values["layers"][0]["name"] == "conv1"
    assert values["layers"][0]["output_shape"] == [64, 32, 32]
    assert values["uncounted"] == {}


def test_the_table_can_be_read():
    lines = str(count("vgg_small")).splitlines()
    assert lines[0].split() == ["name", "kind", "output", "MACs", "bits/weight", "params", "memory", "bits"]
    (conv2,) = [line for line in lines if line.startswith("conv2 ")]
    assert conv2.split() == ["conv2", "conv", "128x32x32", "150,994,944", "1", "147,456", "147,456"]
    assert any("BOPs 603,979,776" in line for line in lines)


def test_rule_names():
    assert set(rules.RULE_NAMES) == {"mac", "shen2019", "shen2019-table1", "shen2019-table2", "nasbnn", "bars"}

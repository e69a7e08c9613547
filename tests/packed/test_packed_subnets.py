"""Subnets of NAS-BNN frozen: all integers equal on every instruction set, nothing but the kernels' own steps, files."""

import itertools
from collections import Counter

import pytest
import torch
from subnets import random_subnet, trained

import bitnas
from bitnas.methods.nasbnn.description import load
from bitnas.models.nasbnn import Block, SubnetConfig
from bitnas.packed import plan
from bitnas.packed.calls import call_signatures

PIXELS = (0.5, 0.5)


def batches(size, images, seed=0):
    generator = torch.Generator().manual_seed(seed)
    yield torch.randn(images, *size, generator=generator)
    yield torch.randint(0, 256, (images, *size), generator=generator).to(torch.uint8)


def check(config, images=2, seed=0):
    model = trained(config, seed)
    frozen = bitnas.freeze(model, pixels=PIXELS)
    for x in batches(config.input_size, images, seed):
        report = bitnas.verify(model, frozen, x)
        assert report.ok, report
        assert report.bits_equal >= 0.999 * report.bits
        assert len(report.layers) == 2 * len(config.blocks)
        assert len(report.stem) == 1
        assert report.stem[0].exact == (x.dtype == torch.uint8)
        if report.bits_equal == report.bits:
            assert report.max_logit_difference < 1e-2
    return model, frozen


def shapes(config):
    """What the network may consist of: no bias, no norm, no sum, no tiling is a step of its own."""
    found = Counter({"int8_conv2d": 1, "float_adaptive_avg_pool2d": 1, "flatten": 1, "float_linear": 1})
    found["conv2d_add"] = found["pack"] = 2 * len(config.blocks)
    found["float_prelu"] = 2 * len(config.blocks) + 1
    found["float_avg_pool2d"] = sum(block.stride == 2 for block in config.blocks)
    return found


def test_random_subnets():
    for seed in range(3):
        config = random_subnet(load("small"), seed)
        _, frozen = check(config, 2, seed)
        found = Counter(step.kind for step in frozen.steps)
        assert found == +shapes(config), config
        tiled = [step.arguments.get("residual_channels") for step in frozen.steps if step.kind == "conv2d_add"]
        widths = [config.stem, *(block.channels for block in config.blocks)]
        grown = [a if a < b else None for a, b in itertools.pairwise(widths)]
        assert tiled[1::2] == grown
        assert not any(tiled[::2])
        # Every PReLU and every packing runs in the call of the convolution before it.
        assert not any(call.covers[0] == "float_prelu" for call, _ in frozen._plan)
        assert sum(isinstance(call, plan._BinaryConv2d) for call, _ in frozen._plan) == 2 * len(config.blocks)


@pytest.mark.slow
@pytest.mark.parametrize("space", ["small", "cifar", "imagenet"])
def test_more_random_subnets(space):
    for seed in range(10, {"small": 40, "cifar": 20, "imagenet": 13}[space]):
        check(random_subnet(load(space), seed), 1, seed)


# Groups of 24, 48 and 96 channels, 5 x 5, odd sides under both strides, a width that divides neither the next nor 64.
ODD = SubnetConfig(
    24,
    (Block(48, 3), Block(96, 5, 2, stride=2), Block(100, 3, 4), Block(132, 5, 2, 4, stride=2), Block(132, 3, 2)),
    num_classes=7,
    input_size=(3, 13, 9),
    stem_stride=2,
)


def test_every_instruction_set_and_both_memories(isa, threads):
    model = trained(ODD)
    frozen = bitnas.freeze(model, pixels=PIXELS)
    lean = bitnas.freeze(model, pixels=PIXELS, memory="bits")
    for x in batches(ODD.input_size, 1):
        with threads():
            assert bitnas.verify(model, frozen, x).ok
            assert torch.equal(lean(x), frozen(x))
            values = frozen.values(x)
        for name, value in lean.values(x).items():
            assert torch.equal(value, values[name]), name


def test_bits_and_logits_are_the_same_on_every_instruction_set(isa):
    model = trained(ODD)
    before = bitnas.ops.cpu_isa()
    bitnas.ops.select_cpu_isa("scalar")
    wanted = [bitnas.freeze(model, pixels=PIXELS)(x) for x in batches(ODD.input_size, 2)]
    bitnas.ops.select_cpu_isa(before)
    frozen = bitnas.freeze(model, pixels=PIXELS)
    for x, expected in zip(batches(ODD.input_size, 2), wanted, strict=True):
        assert torch.equal(frozen(x), expected)


def test_a_file_and_what_was_frozen_from_it(tmp_path):
    model, frozen = check(ODD)
    bitnas.save(frozen, tmp_path / "net.safetensors")
    loaded = bitnas.load(tmp_path / "net.safetensors")
    assert loaded.steps == frozen.steps
    assert loaded.pixels == PIXELS
    assert loaded.config == ODD.to_dict()
    assert bitnas.create_model(loaded.config).config == ODD
    for x in batches(ODD.input_size, 2):
        assert torch.equal(loaded(x), frozen(x))
        assert bitnas.verify(model, loaded, x).ok
    other = trained(ODD, seed=1)
    assert not bitnas.verify(other, loaded, x).ok


def test_signatures_know_pixels_from_floats():
    frozen = bitnas.freeze(trained(ODD), pixels=PIXELS)
    signatures = call_signatures(frozen.steps, (1, *ODD.input_size))
    assert len(signatures) == len(frozen._plan) + 1
    assert call_signatures(frozen.steps, (1, *ODD.input_size), dtype=torch.uint8)[1:] == signatures[1:]
    assert call_signatures(frozen.steps, (1, *ODD.input_size), dtype=torch.uint8)[0] != signatures[0]


def test_a_wrong_bias_or_slope_is_found():
    model = trained(ODD)
    frozen = bitnas.freeze(model)
    x = next(batches(ODD.input_size, 2))
    for name in ("blocks.1.act1.after.bias", "blocks.2.bias1.bias", "blocks.0.act2.before.bias", "stem_act.after.bias"):
        tensor = model.get_parameter(name)
        with torch.no_grad():
            tensor.add_(0.5)
            assert not bitnas.verify(model, frozen, x).same_network, name
            tensor.sub_(0.5)
    assert bitnas.verify(model, frozen, x).max_logit_difference < 1e-2

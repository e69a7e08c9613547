"""Any subnet of NAS-BNN as a plain module: its counts are the paper's, its description survives a file, sides may be
odd, and what cannot be built is refused by name."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitnas
from bitnas.models.nasbnn import Block, NasBnn, SubnetConfig

# Channels / kernel / groups of every block, a stage after another; the first block of all stages but one strides.
ROWS = {
    "smallest": (24, "48/3/1 48/3/1 | 96/3/2 96/3/2 | 192/3/4 192/3/4 |" + "384/3/8 " * 8 + "| 768/3/16 768/3/16"),
    "biggest": (48, "96/3/1 " * 3 + "|" + "192/5/1 " * 3 + "|" + "384/5/2 " * 3 + "|" + "768/5/4 " * 9 + "|"
                + "1536/5/8 " * 3),
    "fork-1": (24, "48/3/1 48/3/1 64/3/1 | 96/3/2 192/5/2 | 256/5/4 384/5/4 | 384/5/8 384/3/8 384/3/8 512/5/4 768/5/8 "
               "768/5/4 768/3/4 768/5/4 | 1536/3/8 1536/3/16 1536/3/8"),
    "fork-2": (24, "96/3/1 96/3/1 | 96/5/2 128/3/1 | 192/3/4 256/3/4 384/5/4 | 512/3/8 512/3/4 768/3/8 768/3/4 768/3/8 "
               "768/3/8 768/5/8 768/5/4 768/3/8 | 1024/5/16 1536/5/16"),
    "fork-3": (32, "48/3/1 96/3/1 96/3/1 | 128/3/1 128/5/2 | 192/3/2 256/3/2 | 384/5/4 384/3/8 384/3/4 768/5/8 768/5/8 "
               "768/3/8 768/3/4 768/5/8 768/3/4 | 768/5/16 1536/3/16"),
}  # fmt: skip

# FLOPs, BOPs and OPs in millions, binary weights: Lin et al. 2024, by the formula of its public code.
COUNTS = {
    "smallest": (1.785064, 1215.212544, 20.772760, 3_862_080),
    "biggest": (3.569128, 21007.687680, 331.814248, 64_804_608),
    "fork-1": (2.553064, 5048.107008, 81.429736, 25_576_896),
    "fork-2": (2.553064, 5530.398720, 88.965544, 20_228_928),
    "fork-3": (2.891752, 5348.761600, 86.466152, 15_790_336),
}


def paper_subnet(name):
    stem, rows = ROWS[name]
    blocks = []
    for stage, row in enumerate(rows.split("|")):
        for i, block in enumerate(row.split()):
            channels, kernel, groups = map(int, block.split("/"))
            blocks.append(Block(channels, kernel, groups, stride=2 if stage and i == 0 else 1))
    return SubnetConfig(stem, tuple(blocks))


def small(**changes):
    blocks = (Block(16, 3), Block(24, 3, 2, stride=2), Block(40, 5, 4, 2, stride=2))
    return SubnetConfig(**{"stem": 8, "blocks": blocks, "num_classes": 10, "input_size": (1, 9, 7), **changes})


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_paper(name):
    flops, bops, ops, weights = COUNTS[name]
    with torch.device("meta"):
        model = NasBnn(paper_subnet(name))
    count = bitnas.count(model, (3, 224, 224), rule="nasbnn")
    assert count.ops == pytest.approx(ops * 1e6, abs=0.5)
    assert count.flops == pytest.approx(flops * 1e6, abs=0.5)
    assert count.bops == pytest.approx(bops * 1e6, abs=0.5)
    binary = [module for module in model.modules() if isinstance(module, bitnas.nn.BinaryConv2d)]
    assert sum(layer.weight.numel() for layer in binary) == weights


@pytest.mark.parametrize("size", [(1, 9, 7), (3, 8, 8), (2, 1, 1), (3, 33, 5)])
@pytest.mark.parametrize("training", [False, True])
def test_odd_sides_and_small_images(size, training):
    model = NasBnn(small(input_size=size, stem_stride=2)).train(training)
    x = torch.randn(3, *size)
    y = model(x)
    assert y.shape == (3, 10)
    assert y.isfinite().all()


def test_a_block_is_the_formula_of_the_paper():
    torch.manual_seed(0)
    model = NasBnn(small()).eval()
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.dim() == 1:
                    parameter.normal_()
        block = model.blocks[2]  # 24 to 40 channels, 5 x 5 of stride 2
        x = torch.randn(2, 24, 9, 7)

        def binary(conv, values):
            v = conv.weight.flatten(1)
            v = ((v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)).view_as(conv.weight)
            signs = torch.where(v >= 0, 1.0, -1.0) * v.abs().mean((1, 2, 3), keepdim=True)
            bits = torch.where(values >= 0, 1.0, -1.0)
            return F.conv2d(bits, signs, None, conv.stride, conv.padding, 1, conv.groups)

        def per_channel(vector):
            return vector.view(1, -1, 1, 1)

        def rprelu(act, values):
            y = values + per_channel(act.before.bias)
            return torch.where(y >= 0, y, per_channel(act.prelu.weight) * y) + per_channel(act.after.bias)

        pooled = F.avg_pool2d(F.pad(x, (0, 1, 0, 1), mode="replicate"), 2)
        pooled[:, :, -1, :] = F.avg_pool2d(F.pad(x[:, :, -1:], (0, 1, 0, 0), mode="replicate"), (1, 2))[:, :, 0]
        y = rprelu(block.act1, block.bn1(binary(block.conv1, x + per_channel(block.bias1.bias))) + pooled)
        tiled = y[:, torch.arange(40) % 24]
        wanted = rprelu(block.act2, block.bn2(binary(block.conv2, y + per_channel(block.bias2.bias))) + tiled)
        torch.testing.assert_close(block(x), wanted, rtol=1e-4, atol=1e-4)


def test_the_standardisation_may_be_left_out():
    assert {m.scheme for m in NasBnn(small()).modules() if hasattr(m, "scheme")} == {"nasbnn"}
    plain = NasBnn(small(weight_normalization=False))
    assert {m.scheme for m in plain.modules() if hasattr(m, "scheme")} == {"bireal"}


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = NasBnn(small()).train()
    model(torch.randn(8, 1, 9, 7)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    assert model.stem.step.grad.abs().sum() > 0


# ---- descriptions ---------------------------------------------------------------


def test_a_description_survives_json_and_a_file(tmp_path):
    config = small(weight_normalization=False, stem_stride=1)
    values = json.loads(json.dumps(config.to_dict()))
    assert SubnetConfig.from_dict(values) == config
    assert SubnetConfig.from_dict(values).key() == config.key()
    assert config.key() != small().key()
    path = tmp_path / "network.json"
    path.write_text(json.dumps(values))
    for described in (values, path, str(path)):
        model = bitnas.create_model(described)
        assert isinstance(model, NasBnn)
        assert model.config == config
    path.write_text(json.dumps({**values, "stem": 0}))
    with pytest.raises(ValueError, match=r"network\.json.*stem: got 0"):
        bitnas.create_model(path)
    with pytest.raises(ValueError, match="num_classes: got 3, but an architecture says everything"):
        bitnas.create_model(values, num_classes=3)


BAD = {
    "stem": ({"stem": 0}, ValueError, "stem: got 0"),
    "type of stem": ({"stem": 8.0}, TypeError, r"stem: got 8\.0"),
    "stride of the stem": ({"stem_stride": 3}, ValueError, "stem_stride: got 3"),
    "no blocks": ({"blocks": ()}, ValueError, "at least one block"),
    "blocks in words": ({"blocks": "48/3/1"}, ValueError, "blocks: got '48/3/1'"),
    "a block that is no object": ({"blocks": [3]}, TypeError, r"blocks\[0\]: got 3"),
    "an even kernel": (
        {"blocks": [{"channels": 8, "kernel": 3}, {"channels": 8, "kernel": 4}]},
        ValueError,
        r"blocks\[1\].kernel: got 4, wanted an odd number",
    ),
    "channels in words": ({"blocks": [{"channels": "8", "kernel": 3}]}, TypeError, r"blocks\[0\].channels: got '8'"),
    "unknown field of a block": (
        {"blocks": [{"channels": 8, "kernel": 3, "width": 1}]},
        ValueError,
        r"blocks\[0\].*width",
    ),
    "fewer channels": ({"blocks": (Block(16, 3), Block(8, 3))}, ValueError, r"blocks\[1\].channels: got 8 after 16"),
    "groups": ({"blocks": (Block(16, 3, 3),)}, ValueError, r"blocks\[0\].groups: got 3"),
    "groups of the 1 x 1": ({"blocks": (Block(12, 3, 1, 8),)}, ValueError, "groups_1x1: got 8"),
    "classes": ({"num_classes": -1}, ValueError, "num_classes: got -1"),
    "size": ({"input_size": (3, 8)}, ValueError, "input_size: got"),
    "normalisation": ({"weight_normalization": 1}, TypeError, "weight_normalization: got 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_descriptions(name):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((8, 4), "kernel: got 4"), ((8, 3, 1, 1, 3), "stride: got 3"), ((0, 3), "channels: got 0")],
)
def test_bad_blocks(arguments, message):
    with pytest.raises(ValueError, match=message):
        Block(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("stem"), r"missing fields \['stem'\]"),
        (lambda v: v.update(depth=3), r"unknown fields \['depth'\]"),
        (lambda v: v.update(name="resnet"), "name: got 'resnet'"),
    ],
)
def test_bad_mappings(change, message):
    values = small().to_dict()
    change(values)
    with pytest.raises(ValueError, match=message):
        SubnetConfig.from_dict(values)


def test_a_network_is_reproducible_and_holds_no_dead_parameters():
    def make():
        torch.manual_seed(3)
        return NasBnn(small())

    a, b = make().state_dict(), make().state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(isinstance(module, nn.Conv2d) and module.bias is not None for module in make().modules())

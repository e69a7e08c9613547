"""Biases per channel in a frozen network: whatever they wait for, values are the trained ones, and no step adds them
where a threshold, an affine map or the classifier can."""

import random

import pytest
import torch
import torch.nn.functional as F
from modules import User, conv, images
from torch import nn

import bitnas
from bitnas.nn import BinaryLinear, ChannelBias, RPReLU, TileChannels
from bitnas.packed import plan


def randomise(model, seed=0):
    """Ordinary values for everything: batch norms, biases and slopes as training leaves them."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, scale=1.0, mean=0.0):
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale + mean)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                normal(module.weight, 0.4, 0.8)
                normal(module.bias, 0.3)
                normal(module.running_mean, 0.5)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            elif isinstance(module, ChannelBias):
                normal(module.bias, 0.5)
            elif isinstance(module, nn.PReLU):
                normal(module.weight, 0.3, 0.2)
            elif getattr(module, "weight", None) is not None:
                normal(module.weight, 0.5)
    return model


def kinds(frozen):
    return [step.kind for step in frozen.steps]


def check(model, x, seed=0):
    """Freezes and compares; bits must all be the trained ones, so that the outputs are too."""
    model = randomise(model, seed).eval()
    frozen = bitnas.freeze(model)
    report = bitnas.verify(model, frozen, x)
    assert report.ok
    assert report.bits_equal == report.bits
    with torch.no_grad():
        torch.testing.assert_close(frozen(x), model(x), rtol=1e-4, atol=1e-4)
    return frozen


def block(cin=12, cout=12, stride=1, kernel=3, groups=1):
    """The block of ReActNet and NAS-BNN, one half of it."""

    def forward(m, x):
        return m.act(m.bn(m.conv(m.bias(x))) + m.tile(m.pool(x)))

    pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False) if stride == 2 else nn.Identity()
    layer = conv(cin, cout, kernel, padding=kernel // 2, stride=stride, groups=groups, scheme="nasbnn")
    tile = TileChannels(cin, cout) if cout > cin else nn.Identity()
    layers = {"bn": nn.BatchNorm2d(cout), "pool": pool, "tile": tile, "act": RPReLU(cout)}
    return User(forward, bias=ChannelBias(cin), conv=layer, **layers)


def first(cout=12):
    return nn.Conv2d(3, cout, 3, padding=1), nn.BatchNorm2d(cout), RPReLU(cout)


def head(features, *, bias=True):
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 5, bias=bias)


# Name: layers, and how often kinds of steps may stand there.
FOLDED = {
    "before a sign": (lambda: (conv(), nn.BatchNorm2d(8), ChannelBias(8), conv(8, 4)), {"pack": 1, "affine": 0}),
    "several": (lambda: (conv(), ChannelBias(8), ChannelBias(8), conv(8, 4)), {"pack": 1, "affine": 0}),
    "before {0, 1}": (
        lambda: (conv(), nn.BatchNorm2d(8), ChannelBias(8), conv(8, 4, scheme="dorefa")), {"pack": 1, "affine": 0},
    ),
    "of an output": (lambda: (conv(), nn.BatchNorm2d(8), ChannelBias(8)), {"affine": 0}),
    "behind pooled integers": (
        lambda: (conv(), nn.MaxPool2d(2), nn.BatchNorm2d(8), ChannelBias(8), conv(8, 4)),
        {"affine": 0, "float_max_pool2d": 0},
    ),
    "around a prelu": (lambda: (*first(), conv(12, 5)), {"affine": 0}),
    "of a block": (lambda: (*first(), block(), *head(12)), {"affine": 0, "float_batch_norm2d": 0}),
    "of blocks that tile and stride": (
        lambda: (*first(), block(12, 30), block(30, 30, 2), block(30, 70), block(70, 70, 2, 5, 2), *head(70)),
        {"affine": 0, "tile_channels": 0, "float_avg_pool2d": 2},
    ),
    "before a classifier without one": (lambda: (*first(), *head(12, bias=False)), {"affine": 0}),
    "behind linear layers": (
        lambda: (*first(), *head(12), ChannelBias(5), nn.Linear(5, 7), nn.BatchNorm1d(7), ChannelBias(7)),
        {"affine": 0, "float_batch_norm1d": 0},
    ),
    "of binary rows": (
        lambda: (conv(), *head(8)[:2], BinaryLinear(8, 6), nn.BatchNorm1d(6), ChannelBias(6), BinaryLinear(6, 3)),
        {"affine": 0},
    ),
    "through max-pools": (lambda: (*first(), nn.MaxPool2d(3, 2, 1), ChannelBias(12), conv(12, 4)), {"affine": 0}),
    "before a norm and a sign": (
        lambda: (*first(), nn.BatchNorm2d(12), conv(12, 4)), {"affine": 0, "float_batch_norm2d": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FOLDED)
def test_no_step_adds_a_bias(name, seed):
    make, wanted = FOLDED[name]
    frozen = check(nn.Sequential(*make()), images(3, 3, 9, 8, seed=seed), seed)
    assert {kind: kinds(frozen).count(kind) for kind in wanted} == wanted


# Where somebody needs the sum itself, one step makes it.
ADDED = {
    "relu": lambda: (*first(), nn.ReLU()),
    "another prelu": lambda: (*first(), nn.PReLU(12)),
    "the output": lambda: first(),
    "padding counted": lambda: (*first(), nn.AvgPool2d(3, 2, padding=1), conv(12, 4)),
    "a divisor": lambda: (*first(), nn.AvgPool2d(2, divisor_override=3), conv(12, 4)),
    "a float convolution": lambda: (*first(), nn.Conv2d(12, 4, 3, padding=1)),
    "the input": lambda: (ChannelBias(3), conv()),
    "one number for all": lambda: (*first()[:2], nn.ReLU(), ChannelBias(1), conv(12, 4)),
    "more channels than the value": lambda: (nn.Conv2d(3, 1, 1), nn.ReLU(), ChannelBias(6), conv(6, 4)),
    "flattened pixels": lambda: (*first(4), nn.Flatten(), nn.Linear(4 * 72, 3)),
}


@pytest.mark.parametrize("name", ADDED)
def test_a_step_adds_a_bias_where_its_reader_cannot(name):
    frozen = check(nn.Sequential(*ADDED[name]()), images(3, 3, 9, 8))
    assert kinds(frozen).count("affine") == 1


def test_one_value_with_two_thresholds_and_a_float_reader():
    def forward(m, x):
        y = m.first(x)
        return m.a(m.bias_a(y)) + m.b(m.bias_b(y)) + (m.c(y) + y)

    layers = {"a": conv(12, 12), "b": conv(12, 12), "c": conv(12, 12)}
    biases = {"bias_a": ChannelBias(12), "bias_b": ChannelBias(12)}
    frozen = check(User(forward, first=nn.Sequential(*first()), **layers, **biases), images())
    assert kinds(frozen).count("pack") == 3
    assert "affine" not in kinds(frozen)


@pytest.mark.parametrize("name", ["mean", "keepdim", "adaptive", "view"])
def test_ways_to_say_global_average_pooling(name):
    pools = {
        "mean": lambda y: y.mean((2, 3)),
        "keepdim": lambda y: torch.flatten(y.mean([-2, -1], keepdim=True), 1),
        "adaptive": lambda y: F.adaptive_avg_pool2d(y, 1).flatten(1),
        "view": lambda y: F.adaptive_avg_pool2d(y, (1, 1)).view(y.size(0), -1),
    }
    model = User(lambda m, x: m.fc(pools[name](m.first(x))), first=nn.Sequential(*first()), fc=nn.Linear(12, 4))
    assert "affine" not in kinds(check(model, images()))


def test_a_mean_over_other_dimensions_is_no_pool():
    model = User(lambda m, x: m.fc(m.first(x).mean((1, 2))), first=nn.Sequential(*first()), fc=nn.Linear(8, 4))
    assert kinds(check(model, images(2, 3, 9, 8))).count("affine") == 1


def test_a_residual_that_broadcasts_keeps_its_bias():
    def forward(m, x):
        y = m.first(x)
        return m.act(m.b(m.bias(y)) + y.mean((2, 3), keepdim=True))

    layers = {"bias": ChannelBias(12), "b": conv(12, 12), "act": RPReLU(12)}
    frozen = check(User(forward, first=nn.Sequential(*first()), **layers), images())
    assert kinds(frozen).count("affine") == 1  # the output's


def test_rows_added_to_an_image_are_not_taken_for_its_channels():
    def forward(m, x):
        y = m.first(x)
        return m.b(y) + y.mean((2, 3))  # [N, 12] along the width

    model = User(forward, first=nn.Sequential(*first()), b=conv(12, 12))
    frozen = check(model, images(12, 3, 12, 12))
    assert kinds(frozen).count("affine") == 1


def test_the_whole_block_is_two_calls():
    frozen = check(nn.Sequential(*first(), block(), block(), *head(12)), images())
    calls = [call for call, _ in frozen._plan]
    assert [call.covers[-1] for call in calls[:3] if isinstance(call, plan._BinaryConv2d | plan._Stem)] == [
        calls[0].pack, *calls[1].packs, calls[2].prelu,
    ]  # fmt: skip
    assert sum(isinstance(call, plan._BinaryConv2d) for call in calls) == 2
    assert calls[0].prelu is not None  # the stem's, in the stem's own call


KINDS = ("bias", "norm", "rprelu", "block", "block", "tile", "pool", "max", "relu", "binary")


class Little(nn.Module):
    """Layers in a chain that a seed draws, some with shortcuts."""

    def __init__(self, seed):
        super().__init__()
        draw = random.Random(seed)
        channels = draw.choice((6, 12))
        layers = [nn.Conv2d(3, channels, 3, padding=1)]
        for _ in range(draw.randint(3, 8)):
            kind = draw.choice(KINDS)
            if kind == "block":
                out = channels * draw.choice((1, 1, 2))
                layers.append(block(channels, out, draw.choice((1, 2)), draw.choice((1, 3, 5)), draw.choice((1, 2))))
                channels = out
            elif kind == "tile":
                layers.append(TileChannels(channels, channels + 5 - channels % 2))
                channels += 5 - channels % 2
            elif kind == "binary":
                layers.append(conv(channels, channels, scheme=draw.choice(("xnor", "dorefa"))))
            elif kind == "pool":
                pads = draw.random() < 0.5
                layers.append(nn.AvgPool2d(3, 1, 1, count_include_pad=pads))
            else:
                makes = {"bias": ChannelBias, "norm": nn.BatchNorm2d, "rprelu": RPReLU}
                makes |= {"max": lambda _: nn.MaxPool2d(3, 1, 1), "relu": lambda _: nn.ReLU()}
                layers.append(makes[kind](channels))
            if channels % 2:
                layers.append(TileChannels(channels, channels + 1))
                channels += 1
        self.layers = nn.Sequential(*layers, *head(channels))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_random_little_modules(first_seed, tmp_path):
    compared = 0
    for seed in range(first_seed, first_seed + 20):
        model, x = randomise(Little(seed), seed).eval(), images(2, 3, 11, 8, seed=seed)
        frozen = bitnas.freeze(model)
        report = bitnas.verify(model, frozen, x)
        assert report.ok, seed
        assert report.bits_equal >= 0.999 * report.bits, seed
        if report.bits_equal == report.bits:
            compared += 1
            with torch.no_grad():
                torch.testing.assert_close(frozen(x), model(x), rtol=1e-3, atol=1e-3, msg=lambda m, s=seed: f"{s}: {m}")
    assert compared >= 18
    bitnas.save(frozen, tmp_path / "net.safetensors")
    assert torch.equal(bitnas.load(tmp_path / "net.safetensors")(x), frozen(x))

"""The parts a study's claims rest on: partners of equal cost, intervals, picks, and the float twin."""

import math
import statistics
from collections import OrderedDict

import pytest
import torch
from torch import nn

from bitnas.methods.width import compare, evaluate, preset
from bitnas.methods.width.partner import uniform_multiplier
from bitnas.methods.width.study import choose
from bitnas.methods.width.timing import float_twin, time_pair
from bitnas.models import create_model

DIGITS = preset("digits")


def flops(ratios):
    return evaluate.costs(DIGITS, evaluate.network_config(DIGITS, ratios))["flops"]


@pytest.mark.parametrize("target", [9.9, 10.0, 137.2, 1000.0])
def test_multiplier_is_the_nearest_step(target):
    def cost(multiplier):
        return math.floor(multiplier * 10) ** 2 + 1

    best = min((cost(k / 1000) for k in range(16, 16_000)), key=lambda c: abs(c - target))
    assert cost(uniform_multiplier(target, cost, low=0.016, high=16)) == best


def test_multiplier_out_of_reach_is_refused():
    with pytest.raises(ValueError, match="flops"):
        uniform_multiplier(1e9, lambda m: m, low=1, high=2)


@pytest.mark.parametrize("code", [(0.5, 1, 1, 0.5, 0.25, 0.5), (2, 1, 0.5, 0.5, 4, 0.25), (1, 2, 3, 1, 1, 0.5)])
def test_partners_of_digits_networks_cost_the_same_within_two_percent(code):
    target = flops(code)
    multiplier = uniform_multiplier(target, flops, low=min(code), high=max(code))
    assert abs(flops(multiplier) / target - 1) <= 0.02


def test_interval_is_the_corrected_t_interval():
    values = [0.90, 0.92, 0.91, 0.95, 0.93]
    interval = compare.fold_interval(values)
    half = 2.776445 * math.sqrt(statistics.variance(values) * (1 / 5 + 1 / 4))
    assert interval.mean == pytest.approx(statistics.fmean(values))
    assert interval.high - interval.mean == pytest.approx(half, rel=1e-6)
    assert interval.mean - interval.low == pytest.approx(half, rel=1e-6)
    with pytest.raises(ValueError, match="values"):
        compare.fold_interval([0.5])


def test_interval_rarely_calls_equals_different():
    """Under no difference the uncorrected interval errs in 5 % of independent folds; the corrected one in fewer."""
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 5, generator=generator).tolist()
    wrong = sum(compare.outcome(compare.fold_interval(row)) != "undecided" for row in draws)
    assert 0 < wrong < 0.04 * len(draws)


@pytest.mark.parametrize(
    ("interval", "words", "outcome"),
    [
        ((0.006, 0.001, 0.011), "searched is better by 0.60 points [+0.10, +1.10] at 0.99x the FLOPs", "better"),
        ((-0.006, -0.011, -0.001), "searched is worse by 0.60 points [-1.10, -0.10] at 0.99x the FLOPs", "worse"),
        (
            (0.006, -0.001, 0.013),
            "no difference can be told: +0.60 points [-0.10, +1.30] at 0.99x the FLOPs",
            "undecided",
        ),
        ((0.0, 0.0, 0.0), "no difference can be told: +0.00 points [+0.00, +0.00] at 0.99x the FLOPs", "undecided"),
    ],
)
def test_the_verdict_follows_the_interval(interval, words, outcome):
    difference = compare.Interval(*interval)
    assert compare.sentence(difference, 0.99) == words
    assert compare.outcome(difference) == outcome


def row(ratios, accuracy):
    return {"ratios": list(ratios), "accuracy": accuracy, "flops": flops(ratios)}


def test_picks_are_winners_under_different_penalties_and_never_uniform():
    narrow, middle, wide = (0.5, 1, 1, 0.5, 0.25, 0.5), (1, 1, 2, 1, 1, 1), (2, 2, 2, 3, 1, 1)
    dominated = (2, 2, 2, 2, 2, 3)
    front = [row(narrow, 0.95), row(middle, 0.97), row(wide, 0.985), row(dominated, 0.96), row((1,) * 6, 0.99)]
    contenders = choose(front, DIGITS, picks=3, tolerance=0.02)
    assert [c.kind for c in contenders] == ["searched", "uniform"] * 3
    assert {c.ratios for c in contenders[::2]} == {narrow, middle, wide}
    assert [c.pair for c in contenders] == list("AABBCC")
    for searched, uniform in zip(contenders[::2], contenders[1::2], strict=True):
        assert len(set(uniform.ratios)) == 1
        assert abs(uniform.flops / searched.flops - 1) <= 0.02
        assert uniform.flops == flops(uniform.ratios)
    # With more picks asked for than winners, the others follow; uniform codes never do.
    more = choose(front, DIGITS, picks=9, tolerance=0.02)
    assert {c.ratios for c in more[::2]} == {narrow, middle, wide, dominated}
    assert choose(front[-1:], DIGITS, picks=3, tolerance=0.02) == []


def model():
    torch.manual_seed(0)
    return create_model("vgg_small", ratios=1.0, num_classes=10, input_size=(1, 8, 8), base_width=0.125).eval()


def test_float_twin_has_the_same_shapes_and_no_binary_layer():
    trained = model()
    twin = float_twin(trained)
    x = torch.rand(2, 1, 8, 8)
    assert twin(x).shape == trained(x).shape
    assert not any("Binary" in type(module).__name__ for module in twin.modules())
    weights = [[p.shape for p in net.parameters() if p.dim() > 1] for net in (twin, trained)]
    assert weights[0] == weights[1]


def test_float_twin_fuses_without_changing_what_it_computes():
    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4), relu=nn.ReLU())).eval()
    nn.init.normal_(net.bn.weight)
    net.bn.running_mean.normal_()
    x = torch.rand(2, 3, 8, 8)
    twin = float_twin(net)
    assert isinstance(twin.bn, nn.Identity)
    assert torch.allclose(twin(x), net(x), atol=1e-6)


def test_every_layer_is_timed_in_both():
    from bitnas.packed import freeze

    trained = model()
    layers = ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc"]
    timed = time_pair(trained, freeze(trained), torch.rand(4, 1, 8, 8), layers, seconds=0.05)
    for name in layers:
        assert timed[f"layer.{name}.packed_us"] > 0
        assert timed[f"layer.{name}.float_us"] > 0
    for name in ("latency_us", "float_latency_us", "latency_runs"):
        assert timed[name] > 0
    # The parts are the whole, but for what every call costs; a loose bound, as neighbours disturb short timings.
    parts = sum(timed[f"layer.{name}.float_us"] for name in layers)
    assert 0.3 < parts / timed["float_latency_us"] < 3

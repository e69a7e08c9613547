"""The 8-bit convolution: values against the formula written a second way, its gradients by autograd, its first step."""

import math

import pytest
import torch
from torch.nn import functional as F

from bitnas.nn import LSQConv2d
from bitnas.nn.quantized import first_step, integers, lsq_conv2d


def layer(*, scale=1.0, seed=0, **options):
    torch.manual_seed(seed)
    made = LSQConv2d(3, 5, 3, stride=2, padding=1, **options).double()
    with torch.no_grad():
        made.weight.copy_(torch.randn(made.weight.shape) * scale)
        made.step.copy_(torch.rand(5) * 0.02 + 0.005)
    return made


def round_through(x):
    """round, with the gradient of the identity."""
    return x + (x.round() - x).detach()


def quantised_by_autograd(w, step):
    """step * clamp(round(w / step)), rounding straight through, the gradient of the step times 1 / sqrt(n * 127)."""
    gradient_scale = 1 / math.sqrt(w[0].numel() * 127)
    step = (step * gradient_scale + (step - step * gradient_scale).detach()).view(-1, 1, 1, 1)
    return step * round_through((w / step).clamp(-128, 127))


@pytest.mark.parametrize("scale", [0.3, 3.0], ids=["inside", "clamped"])
def test_gradients_are_those_of_the_formula(scale):
    made, x = layer(scale=scale), torch.randn(2, 3, 8, 7, dtype=torch.float64, requires_grad=True)
    w, step = made.weight.detach().clone().requires_grad_(), made.step.detach().clone().requires_grad_()
    clamped = ((w / step.view(-1, 1, 1, 1)).abs() > 128).any()
    assert bool(clamped) == (scale > 1)
    y = made.train()(x)
    wanted = F.conv2d(x, quantised_by_autograd(w, step), None, 2, 1)
    torch.testing.assert_close(y, wanted)
    upstream = torch.randn_like(y)
    mine = torch.autograd.grad(y, (x, made.weight, made.step), upstream)
    for gradient, expected in zip(mine, torch.autograd.grad(wanted, (x, w, step), upstream), strict=True):
        torch.testing.assert_close(gradient, expected)
        assert expected.abs().sum() > 0


def test_a_step_that_learning_moved_below_zero_acts_as_its_magnitude():
    made, x = layer(), torch.randn(1, 3, 6, 6, dtype=torch.float64)
    y = made(x)
    y.sum().backward()
    gradient = made.step.grad.clone()
    with torch.no_grad():
        made.step.neg_()
    made.zero_grad()
    mirrored = made(x)
    mirrored.sum().backward()
    assert torch.equal(mirrored, y)
    assert torch.equal(made.step.grad, -gradient)
    assert (made.positive_step() > 0).all()
    with torch.no_grad():
        made.step.zero_()
    assert made(x).isfinite().all()


def test_evaluation_is_training_with_the_step_after_the_integers():
    made, x = layer(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    weight = made.integer_weight()
    assert weight.dtype == torch.int8
    assert torch.equal(weight.double(), (made.weight / made.step.view(-1, 1, 1, 1)).round().clamp(-128, 127))
    wanted = F.conv2d(x, weight.double(), None, 2, 1) * made.step.view(-1, 1, 1)
    assert torch.equal(made.eval()(x), wanted)
    torch.testing.assert_close(made.train()(x), wanted)


def test_integers_reach_both_ends_and_round_half_to_even():
    w = torch.tensor([[-1000.0, -128.5, -2.5, -0.5, 0.5, 1.5, 127.4, 1000.0]]).view(1, -1, 1, 1)
    assert integers(w, torch.ones(1)).flatten().tolist() == [-128, -128, -2, 0, 0, 2, 127, 127]


def test_the_first_step_spans_three_deviations():
    w = torch.randn(4, 3, 3, 3, dtype=torch.float64) * torch.tensor([0.1, 1, 5, 2]).view(-1, 1, 1, 1) + 0.2
    rows = w.flatten(1)
    mean, deviation = rows.mean(1), rows.std(1)
    wanted = torch.stack([(mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()]).amax(0) / 128
    torch.testing.assert_close(first_step(w), wanted)
    torch.testing.assert_close(first_step(torch.full((2, 1, 1, 1), 0.5)), torch.full((2,), 0.5 / 128))
    made = LSQConv2d(3, 8, 3)
    torch.testing.assert_close(made.step.detach(), first_step(made.weight.detach()))


def test_groups_and_dilation_and_a_weight_from_elsewhere():
    made = LSQConv2d(4, 6, 3, padding=2, dilation=2, groups=2)
    x = torch.randn(1, 4, 7, 7)
    options = {"stride": 1, "padding": 2, "dilation": 2, "groups": 2}
    wanted = F.conv2d(x, integers(made.weight, made.step) * made.step.view(-1, 1, 1, 1), None, **options)
    for training in (True, False):
        y = lsq_conv2d(x, made.weight, made.step, training=training, **options)
        torch.testing.assert_close(y, wanted)
        assert torch.equal(y, made.train(training)(x))
    assert made.bias is None

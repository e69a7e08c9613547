"""The factor of a cost is 1 below its budget and (F / B) ** b above, with the gradient of that."""

import pytest
import torch

from bitnas.methods.bars.regulariser import factor


def value_and_gradient(cost, budget, **exponents):
    x = torch.tensor(cost, dtype=torch.float64, requires_grad=True)
    y = factor(x, budget, **exponents)
    (gradient,) = torch.autograd.grad(y, x)
    return y.item(), gradient.item()


@pytest.mark.parametrize("cost", [0.0, 1.0, 99.0, 100.0])
def test_free_up_to_the_budget(cost):
    assert value_and_gradient(cost, 100.0) == (1.0, 0.0)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("cost", [100.5, 250.0, 3.7539e8])
def test_a_power_of_the_ratio_above(cost, exponent):
    y, gradient = value_and_gradient(cost, 100.0, above=exponent)
    assert y == pytest.approx((cost / 100) ** exponent, rel=1e-14)
    assert gradient == pytest.approx(exponent * (cost / 100) ** (exponent - 1) / 100, rel=1e-14)


def test_below_has_an_exponent_of_its_own():
    y, gradient = value_and_gradient(25.0, 100.0, below=0.5, above=7.0)
    assert (y, gradient) == pytest.approx((0.5, 0.01), rel=1e-14)
    assert value_and_gradient(200.0, 100.0, below=0.5, above=0.0) == (1.0, 0.0)


def test_nan_stays_nan():
    assert factor(torch.tensor(float("nan")), 1.0).isnan()


@pytest.mark.parametrize(
    ("budget", "exponents", "message"),
    [
        (0.0, {}, "budget: got 0.0, wanted a finite number above 0"),
        (float("nan"), {}, "budget: got nan"),
        (1.0, {"below": -1.0}, "below: got -1.0, wanted a finite exponent"),
        (1.0, {"above": float("inf")}, "above: got inf"),
    ],
)
def test_what_makes_no_sense_is_refused(budget, exponents, message):
    with pytest.raises(ValueError, match=message):
        factor(torch.tensor(1.0), budget, **exponents)

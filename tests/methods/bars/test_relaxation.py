"""Relaxed choices: their distributions, straight-through exactness, temperatures, and what is pruned."""

import pytest
import torch

from bitnas.methods.bars.relaxation import KINDS, relax

LOGITS = torch.tensor([1.0, 0.0, -1.0, 0.5])


def drawn(kind, count=40000, **settings):
    generator = torch.Generator().manual_seed(0)
    return relax(LOGITS.expand(count, -1), kind, generator=generator, **settings)


def test_softmax_is_softmax():
    assert torch.equal(relax(LOGITS, "softmax"), LOGITS.softmax(-1))
    assert torch.equal(relax(LOGITS, "softmax", temperature=0.25), (4 * LOGITS).softmax(-1))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_the_largest_gumbel_weight_is_a_draw_from_softmax(temperature):
    weights = drawn("gumbel", temperature=temperature)
    assert torch.allclose(weights.sum(-1), torch.ones(()))
    shares = torch.bincount(weights.argmax(-1), minlength=4) / len(weights)
    assert torch.allclose(shares, LOGITS.softmax(-1), atol=0.01)  # 0.01 is four standard deviations


@pytest.mark.parametrize("temperature", [0.3, 1.0, 5.0])
def test_bernoulli_weights_are_each_on_with_their_own_probability(temperature):
    on = (drawn("bernoulli", temperature=temperature) > 0.5).float()
    assert torch.allclose(on.mean(0), LOGITS.sigmoid(), atol=0.01)
    assert torch.allclose(on.T.cov(), torch.diag(on.var(0)), atol=0.01)  # independent


@pytest.mark.parametrize("kind", KINDS)
def test_low_temperatures_are_near_zero_and_one(kind):
    def distance(temperature):
        weights = drawn(kind, 2000, temperature=temperature)
        return (weights * (1 - weights)).mean()

    assert distance(0.05) < 0.05 < distance(1.0) < distance(10.0)


@pytest.mark.parametrize("kind", KINDS)
def test_hard_is_exact_forward_and_soft_backward(kind):
    def grad(hard):
        logits = LOGITS.expand(100, -1).clone().requires_grad_()
        weights = relax(logits, kind, hard=hard, temperature=0.7, generator=torch.Generator().manual_seed(3))
        (weights * torch.arange(1.0, 401.0).view(100, 4)).sum().backward()
        return weights.detach(), logits.grad

    (soft, by_soft), (hard, by_hard) = grad(False), grad(True)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(by_soft, by_hard)
    assert by_hard.abs().min() > 0
    if kind == "bernoulli":
        assert torch.equal(hard, (soft > 0.5).float())
    else:
        assert torch.equal(hard.sum(-1), torch.ones(100))
        assert torch.equal(hard.argmax(-1), soft.argmax(-1))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pruned_is_exactly_zero_and_without_a_gradient(kind, hard):
    alive = torch.tensor([True, False, True, False])
    logits = LOGITS.expand(500, -1).clone().requires_grad_()
    weights = relax(logits, kind, hard=hard, alive=alive.expand(500, -1), generator=torch.Generator().manual_seed(1))
    assert not weights[:, ~alive].any()
    weights.square().sum().backward() if not hard else (weights * torch.tensor([1.0, 2, 3, 4])).sum().backward()
    assert not logits.grad[:, ~alive].any()
    assert logits.grad[:, alive].abs().sum() > 0
    if kind != "bernoulli":
        assert torch.allclose(weights.sum(-1), torch.ones(()))
    if kind == "softmax" and not hard:
        assert torch.allclose(weights[0, alive], LOGITS[alive].softmax(-1))


def test_the_generator_decides_the_draw_and_shapes_are_kept():
    logits = torch.zeros(2, 10, 3, dtype=torch.float64)
    for kind in ("gumbel", "bernoulli"):
        first = relax(logits, kind, generator=torch.Generator().manual_seed(5))
        assert torch.equal(first, relax(logits, kind, generator=torch.Generator().manual_seed(5)))
        assert not torch.equal(first, relax(logits, kind, generator=torch.Generator().manual_seed(6)))
        assert (first.shape, first.dtype) == (logits.shape, logits.dtype)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "argmax"}, "kind: got 'argmax', wanted one of 'softmax', 'gumbel', 'bernoulli'"),
        ({"temperature": 0.0}, "temperature: got 0.0"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"alive": torch.zeros(4, dtype=torch.bool)}, "alive: got a row of choices that are all out"),
    ],
)
def test_what_cannot_be_relaxed_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        relax(LOGITS, **{"kind": "softmax", **settings})

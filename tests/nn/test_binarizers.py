"""Binarizers: values at the ties, and gradients against formulas written a second way."""

import pytest
import torch
from torch import nn

from bitnas.nn import (
    SCHEMES,
    BiRealActivation,
    BiRealWeight,
    DoReFaActivation,
    DoReFaWeight,
    NasBnnWeight,
    XnorActivation,
    XnorWeight,
    get_scheme,
    sign,
)

INF, NAN = float("inf"), float("nan")


def gradient_of(module: nn.Module, x: torch.Tensor, upstream: torch.Tensor) -> torch.Tensor:
    x = x.clone().requires_grad_()
    module(x).backward(upstream)
    assert x.grad is not None
    return x.grad


def test_sign_has_no_zero():
    x = torch.tensor([0.0, -0.0, 1e-30, -1e-30, INF, -INF, NAN])
    assert sign(x).tolist() == [1, 1, 1, -1, 1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_keep_shape_and_dtype(dtype):
    x = torch.randn(2, 3, 4, dtype=dtype)
    for scheme in SCHEMES.values():
        q, b = scheme.activation()(x), scheme.weight()(x)
        assert q.shape == b.shape == x.shape
        assert q.dtype == b.dtype == dtype


def test_unit_activation_at_the_ties():
    above = torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()
    x = torch.tensor([0.5, above, 0.0, -0.0, 1.0, -3.0, 7.0, INF, -INF, NAN])
    assert DoReFaActivation()(x).tolist() == [0, 1, 0, 0, 1, 0, 1, 1, 0, 0]


def test_unit_activation_is_torch_rounding_of_the_clip():
    x = torch.linspace(-2, 3, 1001)
    assert torch.equal(DoReFaActivation()(x), x.clip(0, 1).round())


@pytest.mark.parametrize("binarizer", [XnorActivation(), BiRealActivation()])
def test_sign_activation_at_the_ties(binarizer):
    assert binarizer(torch.tensor([0.0, -0.0, NAN, -2.0])).tolist() == [1, 1, -1, -1]


def test_encodings():
    assert {name: scheme.activation.encoding for name, scheme in SCHEMES.items()} == {
        "dorefa": "unit",
        "xnor": "sign",
        "bireal": "sign",
        "nasbnn": "sign",
        "bars": "sign",
    }


def test_activation_gradients_by_hand():
    x = torch.tensor([-1.5, -1.0, -0.25, 0.0, 0.5, 0.75, 1.0, 1.5, NAN])
    g = torch.full_like(x, 3.0)
    assert gradient_of(DoReFaActivation(), x, g).tolist() == [0, 0, 0, 3, 3, 3, 3, 0, 0]
    assert gradient_of(XnorActivation(), x, g).tolist() == [0, 3, 3, 3, 3, 3, 3, 0, 0]
    assert gradient_of(BiRealActivation(), x, g).tolist() == [0, 0, 4.5, 6, 3, 1.5, 0, 0, 0]


@pytest.mark.parametrize("binarizer", [DoReFaActivation(), XnorActivation(), BiRealActivation()])
def test_zero_gradient_wins_over_an_infinite_upstream(binarizer):
    assert gradient_of(binarizer, torch.tensor([5.0]), torch.tensor([INF])).item() == 0


def approx_sign(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x < 0, 2 * x + x * x, 2 * x - x * x).where(x.abs() < 1, x.sign())


@pytest.mark.parametrize(
    ("binarizer", "smooth"),
    [
        (DoReFaActivation(), lambda x: x.clip(0, 1)),
        (XnorActivation(), lambda x: x.clip(-1, 1)),
        (BiRealActivation(), approx_sign),
    ],
)
def test_activation_gradients_are_those_of_their_smooth_stand_in(binarizer, smooth):
    x = torch.linspace(-1.93, 1.97, 400, dtype=torch.float64)
    g = torch.randn_like(x)
    h = 1e-6
    slope = (smooth(x + h) - smooth(x - h)) / (2 * h)
    torch.testing.assert_close(gradient_of(binarizer, x, g), g * slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (7, 6), (1, 1, 1, 1)])
def test_weight_values_and_scales(shape):
    w = torch.randn(shape)
    layer = DoReFaWeight()
    assert layer.scale(w).shape == ()
    torch.testing.assert_close(layer(w), w.abs().mean() * sign(w))
    for layer in (XnorWeight(), BiRealWeight()):
        assert layer.scale(w).shape == (shape[0],)
        expected = torch.stack([row.abs().mean() * sign(row) for row in w])
        torch.testing.assert_close(layer(w), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_zero_weight_is_positive(scheme):
    w = torch.tensor([[0.0, -0.0, -2.0, 2.0]])
    layer = SCHEMES[scheme].weight()
    # Standardised, the same row has mean 0 and deviation sqrt(8 / 3): its mean magnitude is no longer 1. Nor is it
    # where 2 is clamped to 1.
    scale = {"nasbnn": 1 / (8 / 3) ** 0.5, "bars": 0.5}.get(scheme, 1)
    torch.testing.assert_close(layer(w), scale * torch.tensor([[1.0, 1.0, -1.0, 1.0]]))


def standardised(w: torch.Tensor) -> torch.Tensor:
    rows = w.flatten(1)
    deviation = ((rows - rows.mean(1, keepdim=True)) ** 2).sum(1, keepdim=True).div(rows.shape[1] - 1).sqrt()
    return ((rows - rows.mean(1, keepdim=True)) / deviation).view(w.shape)


@pytest.mark.parametrize("shape", [(5, 3, 2, 4), (7, 6)])
def test_standardised_weight_values_and_scale(shape):
    w = 3 + torch.randn(shape, dtype=torch.float64)  # far from 0: all signs come from the standardisation
    layer, v = NasBnnWeight(), standardised(w)
    torch.testing.assert_close(layer.latent(w), v)
    torch.testing.assert_close(layer.scale(w), v.abs().flatten(1).mean(1))
    torch.testing.assert_close(layer(w), layer.scale(w).view(-1, *[1] * (w.dim() - 1)) * sign(v))
    assert (layer(w) < 0).any()


def test_standardised_weights_of_one_layout_have_one_rounding():
    w = torch.randn(6, 5, 3, 3) + 1
    layer = NasBnnWeight()
    assert torch.equal(layer.latent(w.contiguous(memory_format=torch.channels_last)), layer.latent(w))


def test_a_channel_of_equal_weights_standardises_to_zero():
    layer = NasBnnWeight()
    for w in (torch.full((2, 3), 0.7), torch.full((2, 1), -1.5)):
        assert layer.latent(w).tolist() == torch.zeros_like(w).tolist()
        assert layer(w).tolist() == torch.zeros_like(w).tolist()
        assert sign(layer.latent(w)).tolist() == torch.ones_like(w).tolist()


def test_the_gradient_of_a_channel_of_equal_weights_is_of_ordinary_size():
    layer, g = NasBnnWeight(), torch.randn(3, 72)
    w = torch.stack([torch.full((72,), 0.1), 0.1 + 1e-8 * torch.randn(72), torch.randn(72)])
    gradient = gradient_of(layer, w, g)
    assert gradient.abs().max() < 20
    assert torch.equal(gradient[2:], gradient_of(layer, w[2:], g[2:]))
    torch.testing.assert_close(gradient[0], g[0] - g[0].mean())
    assert layer.latent(torch.full((1, 4), torch.nan)).isnan().all()


def straight_through_sign(w: torch.Tensor) -> torch.Tensor:
    clipped = w.clip(-1, 1)
    return clipped + (sign(w) - clipped).detach()


def weight_gradient_by_autograd(scheme: str, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    w = w.clone().requires_grad_()
    scale = w.abs().mean(dim=(1, 2, 3), keepdim=True)
    if scheme in ("dorefa", "bars"):
        b = w + (w.abs().mean() * sign(w) - w).detach()
    elif scheme == "xnor":
        b = scale * straight_through_sign(w)
    elif scheme == "nasbnn":
        v = standardised(w)
        clipped, scale = v.clip(-1, 1), v.abs().mean(dim=(1, 2, 3), keepdim=True).detach()
        b = clipped + (scale * sign(v) - clipped).detach()
    else:
        clipped = w.clip(-1, 1)
        b = clipped + (scale * sign(w) - clipped).detach()
    b.backward(g)
    assert w.grad is not None
    return w.grad


@pytest.mark.parametrize("scheme", SCHEMES)
def test_weight_gradients_against_autograd_of_the_formula(scheme):
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    assert (w.abs() > 1).any()
    g = torch.randn_like(w)
    torch.testing.assert_close(
        gradient_of(get_scheme(scheme).weight(), w, g), weight_gradient_by_autograd(scheme, w, g)
    )


def test_xnor_weight_gradient_by_hand():
    w, g = torch.tensor([[0.5, -0.25, 1.5, -0.75]]), torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    # mean|w| = 0.75; sum_j g_j sign(w_j) / 4 = (1 - 2 + 3 - 4) / 4 = -0.5
    assert gradient_of(XnorWeight(), w, g).tolist() == [[0.75 - 0.5, 1.5 + 0.5, 0 - 0.5, 3 + 0.5]]


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(ValueError, match=r"scheme: got 'ternary'.*'dorefa', 'xnor', 'bireal'"):
        get_scheme("ternary")

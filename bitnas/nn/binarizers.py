"""Binarizers with their pseudo-gradients written out.

The derivative of a step is zero almost everywhere, so every scheme replaces it by a rule of its own. Each rule is one
`torch.autograd.Function` here, so that the formula of the paper can be read beside the code that computes it.
"""

import math
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

Encoding = Literal["sign", "unit"]

_NO_DEVIATION = 1e-5
_WIDE = 1.3


def sign(x: Tensor) -> Tensor:
    """+1 where x >= 0 (so also at 0 and -0.0), -1 elsewhere (so also at NaN). Shape and dtype of `x`.

    `torch.sign` gives 0 at 0, which one bit cannot hold.
    """
    return (x >= 0).to(x.dtype).mul_(2).sub_(1)


class _UnitStep(torch.autograd.Function):
    """round(clip(x, 0, 1)), gradient of the clip."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return (x > 0.5).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x >= 0) & (x <= 1), grads[0], 0.0)


class _ClippedSign(torch.autograd.Function):
    """sign(x), gradient of clip(x, -1, 1)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() <= 1, grads[0], 0.0)


class _ApproxSign(torch.autograd.Function):
    """sign(x), gradient of the piecewise quadratic approximation."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope = 2 - 2 * x.abs()
        return torch.where(slope > 0, grads[0] * slope, 0.0)


class _WideClippedSign(torch.autograd.Function):
    """sign(x), gradient of clip(x, -1.3, 1.3)."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return sign(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where(x.abs() < _WIDE, grads[0], 0.0)


class _LayerScaledSign(torch.autograd.Function):
    """mean|w| * sign(w), identity gradient."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return sign(w) * w.abs().mean()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _XnorScaledSign(torch.autograd.Function):
    """mean|w_c| * sign(w), gradient through the sign and through the mean."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return sign(w) * _as_column(_channel_scale(w), w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        grad, signs = grads[0], sign(w)
        through_sign = torch.where(w.abs() <= 1, grad * _as_column(_channel_scale(w), w), 0.0)
        through_mean = signs * _as_column((grad * signs).flatten(1).mean(1), w)
        return through_sign + through_mean


class _ClippedScaledSign(torch.autograd.Function):
    """mean|w_c| * sign(w), gradient of clip(w, -1, 1)."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return sign(w) * _as_column(_channel_scale(w), w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return torch.where(w.abs() <= 1, grads[0], 0.0)


def _channel_scale(w: Tensor) -> Tensor:
    return w.abs().flatten(1).mean(1)


def _as_column(per_channel: Tensor, w: Tensor) -> Tensor:
    """`[Cout]` shaped to broadcast against `w` of `[Cout, ...]`."""
    return per_channel.view(-1, *[1] * (w.dim() - 1))


class ActivationBinarizer(nn.Module):
    """Maps a float tensor of any shape to two values, with the same shape and dtype.

    `encoding` says which two: `"sign"` gives +1 where x >= 0 and -1 elsewhere, `"unit"` gives 1 where x > 0.5 and 0
    elsewhere. NaN fails both comparisons, so it becomes the value of bit 0; non-finite values have to be caught at the
    loss, not here.
    """

    encoding: ClassVar[Encoding]

    def extra_repr(self) -> str:
        return f"encoding={self.encoding!r}"


class DoReFaActivation(ActivationBinarizer):
    """q(x) = round(clip(x, 0, 1)) in {0, 1}; dL/dx = dL/dq where 0 <= x <= 1, else 0.

    Rounding is half to even, so the bit is exactly x > 0.5. Zhou et al. 2016 (DoReFa-Net), section 2.4, with one bit;
    used by Shen et al. 2019.
    """

    encoding: ClassVar[Encoding] = "unit"

    def forward(self, x: Tensor) -> Tensor:
        return _UnitStep.apply(x)


class XnorActivation(ActivationBinarizer):
    """q(x) = sign(x); dL/dx = dL/dq where |x| <= 1, else 0.

    Rastegari et al. 2016 (XNOR-Net), without the spatial scale K, as in the authors' published code; the
    gradient is the straight-through estimator of Courbariaux et al. 2016.
    """

    encoding: ClassVar[Encoding] = "sign"

    def forward(self, x: Tensor) -> Tensor:
        return _ClippedSign.apply(x)


class BarsActivation(ActivationBinarizer):
    """q(x) = sign(x); dL/dx = dL/dq where |x| < 1.3, else 0.

    Zhao et al. 2020 (BARS), as in the authors' public code.
    """

    encoding: ClassVar[Encoding] = "sign"

    def forward(self, x: Tensor) -> Tensor:
        return _WideClippedSign.apply(x)


class BiRealActivation(ActivationBinarizer):
    """q(x) = sign(x); dL/dx = dL/dq * (2 - 2|x|) where |x| < 1, else 0.

    Liu et al. 2018 (Bi-Real Net), ApproxSign: the derivative of x^2 + 2x below zero and 2x - x^2 above.
    """

    encoding: ClassVar[Encoding] = "sign"

    def forward(self, x: Tensor) -> Tensor:
        return _ApproxSign.apply(x)


class WeightBinarizer(nn.Module):
    """Maps a weight `[Cout, ...]` to scale(w) * sign(latent(w)), with the same shape and dtype; sign(0) is +1."""

    def latent(self, w: Tensor) -> Tensor:
        """The full-precision weight whose signs are taken: `w` itself, unless the scheme normalises it first."""
        return w

    def scale(self, w: Tensor) -> Tensor:
        """The factor of the signs, never negative: `[]` for one per layer, `[Cout]` for one per output channel."""
        raise NotImplementedError


class DoReFaWeight(WeightBinarizer):
    """b = E|w| * sign(w) with one E|w| for the whole layer; dL/dw = dL/db.

    Zhou et al. 2016 (DoReFa-Net), section 2.3; Shen et al. 2019. The gradient is not clipped.
    """

    def scale(self, w: Tensor) -> Tensor:
        return w.abs().mean()

    def forward(self, w: Tensor) -> Tensor:
        return _LayerScaledSign.apply(w)


class BarsWeight(DoReFaWeight):
    """b = E|w| * sign(w) with one E|w| for the whole layer, of weights that are clamped to [-1, 1] in place first;
    dL/dw = dL/db.

    Zhao et al. 2020 (BARS), as in the authors' public code.
    """

    def scale(self, w: Tensor) -> Tensor:
        return super().scale(w.clamp(-1, 1))  # the last step of a training is not clamped any more

    def forward(self, w: Tensor) -> Tensor:
        w.detach().clamp_(-1, 1)
        return super().forward(w)


class XnorWeight(WeightBinarizer):
    """b = a * sign(w) with a = mean|w| per output channel, and its gradient by the chain rule through both factors:

        dL/dw_i = a * 1[|w_i| <= 1] * dL/db_i  +  sign(w_i) / n * sum_j dL/db_j * sign(w_j)

    over the n weights of the channel. Rastegari et al. 2016 (XNOR-Net), section 3.1, for the scale; the sum over j is
    the corrected form of the authors' published code (the paper prints only the term j = i), without the constant
    factor of that code.
    """

    def scale(self, w: Tensor) -> Tensor:
        return _channel_scale(w)

    def forward(self, w: Tensor) -> Tensor:
        return _XnorScaledSign.apply(w)


class BiRealWeight(WeightBinarizer):
    """b = a * sign(w) with a = mean|w| per output channel, held constant; dL/dw = dL/db where |w| <= 1, else 0.

    Liu et al. 2018 (Bi-Real Net), as in the authors' published code: the paper's formula carries one more
    factor a, which that code leaves out.
    """

    def scale(self, w: Tensor) -> Tensor:
        return _channel_scale(w)

    def forward(self, w: Tensor) -> Tensor:
        return _ClippedScaledSign.apply(w)


class NasBnnWeight(BiRealWeight):
    """b = a * sign(v) with v = (w - mean(w)) / std(w) and a = mean|v|, both per output channel, a held constant;
    dL/dv = dL/db where |v| <= 1, else 0, and on to w through the standardisation.

    Lin et al. 2024 (NAS-BNN), "Weight Normalization"; the standard deviation is the unbiased one. Where it is at most
    1e-5, as in a channel whose weights are all equal, v = w - mean(w): what rounding left is not made large, and
    neither is the gradient.
    """

    def latent(self, w: Tensor) -> Tensor:
        # One layout, so that one rounding: whose sign a weight near the mean gets must not depend on strides.
        rows = w.contiguous().flatten(1)
        deviation, mean = torch.std_mean(rows, 1, unbiased=rows.shape[1] > 1, keepdim=True)
        return ((rows - mean) / deviation.masked_fill(deviation <= _NO_DEVIATION, 1.0)).view(w.shape)

    def scale(self, w: Tensor) -> Tensor:
        return super().scale(self.latent(w))

    def forward(self, w: Tensor) -> Tensor:
        return super().forward(self.latent(w))


class Scheme(NamedTuple):
    """The two binarizer classes that a paper uses together."""

    activation: type[ActivationBinarizer]
    weight: type[WeightBinarizer]


SCHEMES: dict[str, Scheme] = {
    "dorefa": Scheme(DoReFaActivation, DoReFaWeight),
    "xnor": Scheme(XnorActivation, XnorWeight),
    "bireal": Scheme(BiRealActivation, BiRealWeight),
    "nasbnn": Scheme(BiRealActivation, NasBnnWeight),
    "bars": Scheme(BarsActivation, BarsWeight),
}


def get_scheme(name: str) -> Scheme:
    """The scheme called `name`. Raises ValueError with the known names."""
    if name not in SCHEMES:
        raise ValueError(f"scheme: got {name!r}, wanted one of {', '.join(map(repr, SCHEMES))}")
    return SCHEMES[name]


def init_weight_(w: Tensor) -> None:
    """Uniform with variance 1 / fan-in, bounded by 1: beyond it a clipped gradient would be zero from the start."""
    fan_in = math.prod(w.shape[1:])
    bound = min(1.0, math.sqrt(3 / fan_in))
    nn.init.uniform_(w, -bound, bound)

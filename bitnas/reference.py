"""The operators in plain torch: slow, short, right. Tests compare every kernel with these, by equality.

Sources: XNOR-popcount products, Rastegari et al. 2016 (XNOR-Net), section 3; {0,1} activations, Zhou et al. 2016
(DoReFa-Net), equation 4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def binarize(x: Tensor, activations: str = "sign") -> Tensor:
    """Floats to the values bits stand for, float64: ±1 (x >= 0 is +1) or {0, 1} (x > 0.5 is 1). NaN gives bit 0."""
    if activations == "sign":
        return torch.where(x >= 0, 1.0, -1.0).double()
    return (x > 0.5).double()


def pack(x: Tensor, threshold: float | Tensor = 0.0, direction: Tensor | None = None) -> Tensor:
    """``[N, C, H, W]`` or ``[M, K]`` floats to int64 words, channels last: bit = direction * x >= threshold."""
    rows = x.movedim(1, -1).float()
    bits = (rows if direction is None else rows * direction) >= threshold
    bits = F.pad(bits, (0, -bits.shape[-1] % 64)).unflatten(-1, (-1, 64)).long()
    return (bits << torch.arange(64, device=bits.device)).sum(-1)


def unpack(packed: Tensor, channels: int, activations: str = "sign") -> Tensor:
    """Words ``[..., words]`` to float32 values ``[..., channels]``."""
    bits = (packed.unsqueeze(-1) >> torch.arange(64, device=packed.device) & 1).flatten(-2)[..., :channels].float()
    return bits * 2 - 1 if activations == "sign" else bits


def conv2d(x: Tensor, weight: Tensor, activations: str = "sign", **geometry) -> Tensor:
    """int32 dot products of float activations and weights, both binarized, padded with exact zeros."""
    return F.conv2d(binarize(x, activations), binarize(weight), **geometry).int()


def linear(x: Tensor, weight: Tensor, activations: str = "sign") -> Tensor:
    """int32 dot products of float rows ``[M, K]`` and weights ``[N, K]``, both binarized."""
    return F.linear(binarize(x, activations), binarize(weight)).int()


def affine(dot: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """float32 ``scale * dot + bias`` per output channel (dimension 1), two roundings."""
    shape = (1, -1, *[1] * (dot.dim() - 2))
    return dot.float() * scale.view(shape) + bias.view(shape)


def float_epilogue(
    dot: Tensor,
    scale: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    slope: Tensor | None = None,
    dtype: torch.dtype | None = None,
    relu: bool = False,
) -> Tensor:
    """``affine``, then ReLU, then + residual (channels that are fewer repeat), then PReLU, each in float32; rounded to
    ``dtype`` at the end."""
    y = affine(dot, scale, bias)
    if relu:
        y = torch.where(y > 0, y, 0.0)
    if residual is not None:
        y = y + residual.float()[:, torch.arange(y.shape[1], device=y.device) % residual.shape[1]]
    if slope is not None:
        y = torch.where(y >= 0, y, y * slope.view(1, -1, *[1] * (dot.dim() - 2)))
    return y.to(dtype or torch.float32)


def threshold_bits(dot: Tensor, threshold: Tensor, flip: Tensor | None = None) -> Tensor:
    """Packed (dot >= threshold) XOR flip; ``flip`` bool ``[N]``."""
    ones = dot.movedim(1, -1) >= threshold
    if flip is not None:
        ones = ones ^ flip
    return pack(ones.movedim(-1, 1).float(), 0.5)

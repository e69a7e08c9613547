"""Batch norm folded into scales, biases and thresholds.

The frozen network is defined, so that it can be exact: the integer dot, then y = s * dot + t with s and t computed in
float64 and stored in float32, two float32 roundings. A threshold here gives the bit of that definition for every
value the layer can produce: y is monotone in the dot, rounding included, so the first value with a one is found by
bisection on the definition itself rather than by a division that could be off by one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from bitnas.ops import THRESHOLDS


@dataclass(frozen=True)
class ChannelAffine:
    """y = scale * x + bias per channel, float32 ``[C]``."""

    scale: Tensor
    bias: Tensor


def fold_affine(
    scale: Tensor,
    bias: Tensor | None,
    norm: nn.modules.batchnorm._BatchNorm | None,
    name: str,
    offset: Tensor | None = None,
) -> ChannelAffine:
    """scale * x + bias followed by an evaluated batch norm, then + offset, as one affine map.

    Args:
        scale: ``[C]``; bias and offset: ``[C]`` or None for zero; norm: None for none.
        name: the layer's, for the error.

    Raises:
        ValueError: a term is not finite, or the norm has no running statistics.
    """
    s = scale.detach().double().cpu()
    t = torch.zeros_like(s) if bias is None else bias.detach().double().cpu()
    if norm is not None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError(f"{name}: a batch norm without running statistics cannot be frozen")
        gain = (norm.running_var.double().cpu() + norm.eps).rsqrt()
        if norm.weight is not None:
            gain = gain * norm.weight.detach().double().cpu()
        s, t = s * gain, (t - norm.running_mean.double().cpu()) * gain
        if norm.bias is not None:
            t = t + norm.bias.detach().double().cpu()
    if offset is not None:
        t = t + offset
    affine = ChannelAffine(s.float(), t.float())
    if not (affine.scale.isfinite().all() and affine.bias.isfinite().all()):
        raise ValueError(f"{name}: weights or batch-norm statistics are not finite; the network cannot be frozen")
    return affine


def _first_true(predicate: Callable[[np.ndarray], np.ndarray], low: int, high: int, channels: int) -> np.ndarray:
    """Per channel the smallest int in [low, high] for which a rising predicate holds; high + 1 where none does."""
    below = np.full(channels, low, dtype=np.int64)
    above = np.full(channels, high + 1, dtype=np.int64)
    while (below < above).any():
        middle = (below + above) // 2  # floor: for equal ends stays put
        holds = predicate(np.minimum(middle, high)) & (middle <= high)
        open_ = below < above
        above = np.where(open_ & holds, middle, above)
        below = np.where(open_ & ~holds, middle + 1, below)
    return above


def _ones(values: np.ndarray, affine: ChannelAffine, activations: str) -> np.ndarray:
    """The bit of the definition for float32 values, one per channel."""
    with np.errstate(over="ignore", invalid="ignore"):
        y = affine.scale.numpy() * values.astype(np.float32) + affine.bias.numpy()
    return y >= np.float32(THRESHOLDS[activations])


def integer_threshold(
    affine: ChannelAffine, activations: str, largest: int, after: ChannelAffine | None = None
) -> tuple[Tensor, Tensor]:
    """The threshold on dots in [-largest, largest] that stands for the affine map and the binarizer behind it.

    With ``after``, a ReLU and that affine map lie between the two: all of it stays monotone in the dot.

    Returns:
        int32 ``[C]`` threshold and bool ``[C]`` flip: bit = (dot >= threshold) != flip.
    """
    channels = affine.scale.numel()
    falling = affine.scale.numpy() < 0
    if after is not None:
        falling = falling ^ (after.scale.numpy() < 0)

    def ones(dots: np.ndarray) -> np.ndarray:
        if after is None:
            return _ones(dots, affine, activations)
        with np.errstate(over="ignore", invalid="ignore"):
            y = affine.scale.numpy() * dots.astype(np.float32) + affine.bias.numpy()
        return _ones(np.maximum(y, np.float32(0)), after, activations)

    threshold = _first_true(lambda dots: ones(dots) != falling, -largest, largest, channels)
    return torch.from_numpy(threshold).int(), torch.from_numpy(falling)


def float_threshold(affine: ChannelAffine, activations: str) -> tuple[Tensor, Tensor]:
    """The same for finite float32 inputs, and infinite ones where the scale is not zero: direction * x >= threshold.

    Returns:
        float32 ``[C]`` threshold and direction (+1 or -1). The threshold of a channel that never gives a one is inf.
    """
    channels = affine.scale.numel()
    direction = np.where(affine.scale.numpy() < 0, np.float32(-1), np.float32(1))
    top = _ordered(np.array([np.inf], dtype=np.float32))[0]
    first = _first_true(
        lambda keys: _ones(direction * _from_ordered(keys), affine, activations), -int(top), int(top), channels
    )
    threshold = _from_ordered(np.minimum(first, top))
    return torch.from_numpy(threshold), torch.from_numpy(direction)


def _ordered(values: np.ndarray) -> np.ndarray:
    """float32 to ints in the same order, 0.0 at 0."""
    bits = values.view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


def _from_ordered(keys: np.ndarray) -> np.ndarray:
    bits = np.where(keys >= 0, keys, -keys | 0x80000000).astype(np.uint32)
    return bits.view(np.float32)

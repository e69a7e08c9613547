"""What a user calls: pack, unpack, linear, conv2d on floats; and the packed operators that frozen networks run on.

Bit 1 means +1. Packed tensors are int64 words, least significant bit first, channels last, tail bits zero; they look
the same on every device and instruction set.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from bitnas import _library as _library  # loads the operators
from bitnas._library import (
    cpu_isa,
    cpu_isas,
    cpu_kernels,
    cuda_kernels,
    select_cpu_isa,
    select_cpu_kernel,
    select_cuda_kernel,
    words_for,
)

__all__ = [
    "conv2d",
    "cpu_isa",
    "cpu_isas",
    "cpu_kernels",
    "cuda_kernels",
    "linear",
    "pack",
    "pack_weight",
    "select_cpu_isa",
    "select_cpu_kernel",
    "select_cuda_kernel",
    "unpack",
    "words_for",
]

Activations = Literal["sign", "unit"]

# x >= threshold is the bit; x > 0.5 is x >= the next float32 after 0.5 (exact for bfloat16 and float16 too).
THRESHOLDS = {"sign": 0.0, "unit": torch.nextafter(torch.tensor(0.5), torch.tensor(1.0)).item()}

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_pack = torch.ops.bitnas.pack.default
_unpack = torch.ops.bitnas.unpack.default
_conv2d_int32 = torch.ops.bitnas.conv2d_int32.default
_linear_int32 = torch.ops.bitnas.linear_int32.default


def _check_activations(activations: str) -> None:
    if activations not in THRESHOLDS:
        raise ValueError(f"activations must be 'sign' (±1) or 'unit' ({{0, 1}}), got {activations!r}")


def _check_floats(name: str, x: Tensor, rank: int | tuple[int, ...]) -> None:
    ranks = (rank,) if isinstance(rank, int) else rank
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(x).__name__}")
    if x.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"{name} must be float32, bfloat16 or float16, got {x.dtype}")
    if x.dim() not in ranks:
        wanted = " or ".join(map(str, ranks))
        raise ValueError(f"{name} must have {wanted} dimensions, got {x.dim()} (shape {tuple(x.shape)})")
    if x.shape[1] == 0:
        raise ValueError(f"{name} has zero channels (shape {tuple(x.shape)}); it must have at least one")


def _check_device(x: Tensor, weight: Tensor) -> None:
    if x.device != weight.device:
        raise ValueError(f"weight must be on the device of x: weight is on {weight.device}, x on {x.device}")


def _pair(name: str, value: int | tuple[int, int], minimum: int) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) else tuple(value)
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if min(pair) < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    return pair


def _dense(x: Tensor) -> Tensor:
    """A layout the kernels read: as it is where it is contiguous or channels last."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.contiguous()


def pack(x: Tensor, *, activations: Activations = "sign") -> Tensor:
    """Packs floats into bits.

    Args:
        x: float32, bfloat16 or float16, ``[N, C, H, W]`` (any strides; contiguous and channels_last are read in place)
            or ``[M, K]``.
        activations: ``"sign"``: x >= 0 is 1 (so -0.0 is). ``"unit"``: x > 0.5 is 1. NaN is 0 under both.

    Returns:
        int64 ``[N, H, W, ceil(C / 64)]`` or ``[M, ceil(K / 64)]``.

    Raises:
        TypeError: another dtype. ValueError: another rank, zero channels, an unknown encoding.
    """
    _check_activations(activations)
    _check_floats("x", x, (2, 4))
    return _pack(_dense(x), THRESHOLDS[activations])


def unpack(packed: Tensor, channels: int, *, activations: Activations = "sign") -> Tensor:
    """Bits back to float32: ``[N, H, W, words]`` to ``[N, channels, H, W]`` (channels_last), rows to rows.

    Raises:
        TypeError: not int64. ValueError: ``channels`` does not fill the words.
    """
    _check_activations(activations)
    if not isinstance(packed, Tensor) or packed.dtype != torch.int64:
        raise TypeError(f"packed must be an int64 Tensor, got {getattr(packed, 'dtype', type(packed).__name__)}")
    if packed.dim() not in (2, 4):
        raise ValueError(f"packed must have 2 or 4 dimensions, got {packed.dim()}")
    if channels < 1 or words_for(channels) != packed.shape[-1]:
        raise ValueError(f"channels={channels} does not fill the {packed.shape[-1]} words per pixel of packed")
    values = _unpack(packed.contiguous(), channels, activations == "unit")
    return values.movedim(-1, 1) if packed.dim() == 4 else values


def pack_weight(weight: Tensor) -> Tensor:
    """Packs weights by sign (>= 0 is +1): ``[N, C, kh, kw]`` to int64 ``[N, kh, kw, words]``, rows to rows."""
    _check_floats("weight", weight, (2, 4))
    return _pack(_dense(weight), 0.0)


def conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activations: Activations = "sign",
) -> Tensor:
    """Exact binary 2-D convolution of float tensors, packed inside. Padding is exact zero, as torch pads.

    Packs both operands and re-lays the weight in every call: for repeated use freeze a network (:func:`bitnas.freeze`).

    Args:
        x: ``[N, C, H, W]`` float32, bfloat16 or float16; N may be 0.
        weight: ``[out, C / groups, kh, kw]``, binarized by sign (>= 0 is +1).
        activations: ``"sign"`` or ``"unit"``, as in :func:`pack`.

    Returns:
        int32 ``[N, out, H', W']`` in channels_last.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it wanted.
    """
    _check_activations(activations)
    _check_floats("x", x, 4)
    _check_floats("weight", weight, 4)
    _check_device(x, weight)
    (sh, sw), (ph, pw), (dh, dw) = (
        _pair("stride", stride, 1),
        _pair("padding", padding, 0),
        _pair("dilation", dilation, 1),
    )
    channels, out_channels, kernel = x.shape[1], weight.shape[0], weight.shape[2:]
    if not isinstance(groups, int) or groups < 1 or channels % groups or out_channels % groups or out_channels == 0:
        raise ValueError(f"groups={groups!r} must divide the {channels} input and {out_channels} output channels")
    if weight.shape[1] != channels // groups:
        raise ValueError(
            f"weight has {weight.shape[1]} input channels per group; x has {channels} channels in {groups} groups, "
            f"so it must have {channels // groups}"
        )
    if 0 in kernel:
        raise ValueError(f"weight has an empty kernel (shape {tuple(weight.shape)})")
    extent = (dh * (kernel[0] - 1) + 1, dw * (kernel[1] - 1) + 1)
    padded = (x.shape[2] + 2 * ph, x.shape[3] + 2 * pw)
    if extent[0] > padded[0] or extent[1] > padded[1]:
        raise ValueError(
            f"weight's kernel covers {extent[0]}x{extent[1]} pixels (dilated), more than the padded image's "
            f"{padded[0]}x{padded[1]}"
        )
    packed, unit = pack(x, activations=activations), activations == "unit"
    return _conv2d_int32(packed, pack_weight(weight), None, channels, sh, sw, ph, pw, dh, dw, groups, unit)


def linear(x: Tensor, weight: Tensor, *, activations: Activations = "sign") -> Tensor:
    """Exact binary matrix product ``x @ weight.T`` of float tensors, packed inside.

    Args:
        x: ``[..., K]`` float32, bfloat16 or float16, at least one leading dimension.
        weight: ``[N, K]``, binarized by sign (>= 0 is +1).
        activations: ``"sign"`` or ``"unit"``, as in :func:`pack`.

    Returns:
        int32 ``[..., N]``.

    Raises:
        TypeError, ValueError: naming the argument, what it got and what it wanted.
    """
    _check_activations(activations)
    _check_floats("weight", weight, 2)
    if isinstance(x, Tensor) and x.dim() > 2:
        if x.shape[-1] == 0:
            raise ValueError(f"x has zero channels (shape {tuple(x.shape)}); it must have at least one")
        rows = linear(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), weight, activations=activations)
        return rows.view(*x.shape[:-1], weight.shape[0])
    _check_floats("x", x, 2)
    _check_device(x, weight)
    if weight.shape[1] != x.shape[1]:
        raise ValueError(f"weight has {weight.shape[1]} input features, x has {x.shape[1]}; they must be equal")
    if weight.shape[0] == 0:
        raise ValueError(f"weight has zero output features (shape {tuple(weight.shape)})")
    return _linear_int32(pack(x, activations=activations), pack_weight(weight), None, x.shape[1], activations == "unit")

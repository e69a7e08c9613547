"""The frozen form of a convolution with 8-bit weights, as the first layer of a network has them.

Its weights are integers; the learned step and the batch norm behind it are one affine map of the dot products. What it
reads may be floats, or pixels: bytes that stand for (x / 255 - mean) / std. Those are read as the integers
v = 2 * x - 510 * mean, of which each pixel is v / (510 * std): dot products are exact then, and the zeros that pad an
image are the zeros that the trained layer padded with.
"""

import math
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas.nn import LSQConv2d
from bitnas.packed import fold
from bitnas.packed.layers import PackedLayer

_float_conv2d = torch.ops.bitnas.float_conv2d.default
_NO_POOL = (1, 1, 1, 1, 0, 0)

# Sums of float32 hold integers up to this one exactly.
_EXACT = 1 << 24

# Image channels, and then some: with more of them a general matrix product does as well.
STEM_CHANNELS = 16


def check_pixels(pixels: Any) -> tuple[float, float]:
    """(mean, standard deviation) as floats.

    Raises ValueError for other than two finite numbers, the second positive, or if 510 * mean is no integer.
    """
    try:
        mean, std = (float(number) for number in pixels)
    except (TypeError, ValueError) as error:
        raise ValueError(f"pixels: got {pixels!r}, wanted (mean, standard deviation)") from error
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise ValueError(f"pixels: got {pixels!r}, wanted finite numbers, the standard deviation above 0")
    if abs(510 * mean - round(510 * mean)) > 1e-9:
        raise ValueError(
            f"pixels: got a mean of {mean}, wanted one of which 510 times is an integer (0 or 0.5, say), so that "
            "pixels are integers exactly; train with such a mean, or leave pixels out and give the network floats"
        )
    return mean, std


def dense(x: Tensor) -> Tensor:
    """Images in one of the two layouts that kernels read."""
    return x if x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


class Int8Conv2d(PackedLayer):
    """Convolution with int8 weights ``[out, in / groups, kh, kw]``; y = scale * dot + bias per channel, float32, two
    roundings.

    Reads float32 ``[N, in, H, W]``, or with ``pixels`` (mean, standard deviation) also uint8 ones: then the dot is the
    exact integer of v (above) and ``pixel_scale``, scale / (510 * std) computed in float64, stands for ``scale``. Of
    floats the dot is rounded: a sum of fused multiply-adds in one order on every CPU where channels are few, groups 1
    and nothing dilated, torch's elsewhere. Gives float32 ``[N, out, H', W']``, in channels_last on a CPU.
    """

    weight: Tensor
    scale: Tensor
    bias: Tensor
    pixel_scale: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        pixels: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        pixels = None if pixels is None else check_pixels(pixels)
        self.spec = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": tuple(kernel_size),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
            "pixels": pixels,
        }
        self.pixels = pixels
        self.out_channels = out_channels
        self.stride, self.padding = tuple(stride), tuple(padding)
        self.is_stem = groups == 1 and tuple(dilation) == (1, 1) and in_channels <= STEM_CHANNELS
        shape = (out_channels, in_channels // groups, *kernel_size)
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(out_channels))
        self.register_buffer("bias", torch.zeros(out_channels))
        if pixels is not None:
            self.register_buffer("pixel_scale", torch.ones(out_channels))
        self._by_taps: Tensor | None = None

    @classmethod
    def folded(
        cls,
        layer: LSQConv2d,
        norm: nn.Module | None,
        offset: Tensor | None,
        pixels: tuple[float, float] | None,
        name: str,
    ) -> "Int8Conv2d":
        """A trained layer with the batch norm and the bias (float64 ``[out]``) behind it.

        Raises ValueError naming the layer: padding in words, terms that are not finite, or ``pixels`` with weights
        whose dot products could pass 2**24.
        """
        if isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            raise ValueError(f"{name}: padding {layer.padding!r}, {layer.padding_mode} cannot be frozen; give numbers")
        frozen = cls(
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            kernel_size=cast(Any, layer.kernel_size),
            stride=cast(Any, layer.stride),
            padding=cast(Any, layer.padding),
            dilation=cast(Any, layer.dilation),
            groups=layer.groups,
            pixels=pixels,
        )
        frozen.weight = layer.integer_weight()
        step = layer.positive_step().detach().double()
        affine = fold.fold_affine(step, None, cast(Any, norm), name, offset)
        frozen.scale, frozen.bias = affine.scale, affine.bias
        if pixels is not None:
            largest = frozen.largest_dot()
            if largest >= _EXACT:
                raise ValueError(
                    f"{name}: dot products with pixels reach {largest}, wanted less than 2**24, so that float32 holds "
                    "them exactly; leave pixels out and give the network floats"
                )
            frozen.pixel_scale = fold.fold_affine(step / (510 * pixels[1]), None, cast(Any, norm), name).scale
        return frozen

    def largest_dot(self) -> int:
        """What no dot product with pixels exceeds in magnitude."""
        assert self.pixels is not None
        shift = self._shift
        largest = max(abs(shift), abs(510 - shift))
        return int(self.weight.long().abs().flatten(1).sum(1).max()) * largest

    @property
    def _shift(self) -> int:
        assert self.pixels is not None
        return round(510 * self.pixels[0])

    def prepare(self) -> Self:
        keeps = self.memory == "fast" and self.is_stem and self.weight.device.type == "cpu"
        self._by_taps = self._taps() if keeps else None
        return self

    def prepared_bytes(self) -> int:
        return 0 if self._by_taps is None else self._by_taps.nbytes

    def _taps(self) -> Tensor:
        return self.weight.permute(2, 3, 1, 0).float().contiguous()

    def read(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The values that are multiplied, float32, and the scale of their dot products."""
        if x.dtype != torch.uint8:
            return x, self.scale
        return x.to(torch.float32).mul_(2).sub_(self._shift), self.pixel_scale

    def operands(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of the operator that convolves few channels on a CPU: values, weights, bias, scale."""
        values, scale = self.read(x)
        return dense(values), self._taps() if self._by_taps is None else self._by_taps, self.bias, scale

    def dots(self, x: Tensor) -> Tensor:
        """The dot products, float32; of uint8 exact integers."""
        values, _ = self.read(x)
        if self.is_stem and values.device.type == "cpu":
            weight = self._taps() if self._by_taps is None else self._by_taps
            return _float_conv2d(dense(values), weight, None, *self.stride, *self.padding, False, *_NO_POOL)
        spec = self.spec
        # In double precision no algorithm, tensor cores' and Winograd's included, rounds an integer.
        kind = torch.float64 if x.dtype == torch.uint8 else torch.float32
        weight = self.weight.to(kind)
        return F.conv2d(
            values.to(kind), weight, None, self.stride, self.padding, spec["dilation"], spec["groups"]
        ).float()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.pixel_scale if x.dtype == torch.uint8 else self.scale
        return self.dots(x) * scale.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

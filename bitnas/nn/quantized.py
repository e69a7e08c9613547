"""A convolution whose weights are integers of 8 bits times a learned step per output channel (LSQ).

Where one bit would lose the image, the first layer keeps eight: an eighth of the multiply-adds by the paper's count,
and integers that a frozen network can compute with.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LOWEST, HIGHEST = -128, 127
WEIGHT_BITS = 8


class LSQConv2d(nn.Conv2d):
    """`torch.nn.Conv2d` without bias whose weight is `step * clamp(round(weight / step), -128, 127)`.

    Input float `[N, in_channels, H, W]`, output float `[N, out_channels, H', W']`; arguments as in `nn.Conv2d`. `step`
    is a parameter `[out_channels]`, first max(|mean - 3 sigma|, |mean + 3 sigma|) / 128 of the channel's weights. Its
    gradient is that of Esser et al. 2020 (LSQ), equation 3, times 1 / sqrt(n * 127) for a channel of n weights
    (section 2.2); weights get the straight-through gradient inside the range. As the stem of Lin et al. 2024 (NAS-BNN).

    In evaluation mode the convolution runs on the integers and the step follows.
    """

    weight_bits = WEIGHT_BITS

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=False)
        self.step = nn.Parameter(first_step(self.weight.detach()))

    def integer_weight(self) -> Tensor:
        """The quantised weight, int8, shape of `weight`, detached."""
        return integers(self.weight.detach(), self.step.detach()).to(torch.int8)

    def positive_step(self) -> Tensor:
        """The step that divides and multiplies, `[out_channels]`: learning may have moved the parameter to 0."""
        return _positive(self.step)

    def forward(self, x: Tensor) -> Tensor:
        return lsq_conv2d(
            x,
            self.weight,
            self.step,
            training=self.training,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )


def first_step(weight: Tensor) -> Tensor:
    """Where the step starts: three standard deviations of a channel's weights fill the range."""
    rows = weight.flatten(1)
    mean, deviation = rows.mean(1), rows.std(1, unbiased=rows.shape[1] > 1)
    return torch.maximum((mean - 3 * deviation).abs(), (mean + 3 * deviation).abs()) / -LOWEST


def integers(weight: Tensor, step: Tensor) -> Tensor:
    """clamp(round(weight / step), -128, 127), float, shape of `weight`; no gradient passes."""
    return (weight / _columns(_positive(step), weight)).round().clamp(LOWEST, HIGHEST)


def lsq_conv2d(
    x: Tensor,
    weight: Tensor,
    step: Tensor,
    *,
    training: bool,
    stride: int | tuple[int, ...] = 1,
    padding: str | int | tuple[int, ...] = 0,
    dilation: int | tuple[int, ...] = 1,
    groups: int = 1,
) -> Tensor:
    """What `LSQConv2d` computes, of any weight `[Cout, ...]` and step `[Cout]`."""
    if training:
        return F.conv2d(x, _Quantise.apply(weight, step), None, stride, padding, dilation, groups)
    dot = F.conv2d(x, integers(weight.detach(), step.detach()), None, stride, padding, dilation, groups)
    return dot * _positive(step.detach()).view(-1, 1, 1)


def _positive(step: Tensor) -> Tensor:
    return step.abs().clamp_min(torch.finfo(step.dtype).eps)


def _columns(per_channel: Tensor, w: Tensor) -> Tensor:
    return per_channel.view(-1, *[1] * (w.dim() - 1))


class _Quantise(torch.autograd.Function):
    """step * clamp(round(w / step)), with the gradients of LSQ."""

    @staticmethod
    def forward(w: Tensor, step: Tensor) -> Tensor:
        return integers(w, step) * _columns(_positive(step), w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        grad, (w, step) = grads[0], ctx.saved_tensors
        ratio = w / _columns(_positive(step), w)
        inside = (ratio >= LOWEST) & (ratio <= HIGHEST)
        slope = torch.where(inside, ratio.round() - ratio, ratio.clamp(LOWEST, HIGHEST))
        scale = 1 / math.sqrt(w[0].numel() * HIGHEST)
        of_step = (grad * slope).flatten(1).sum(1) * torch.where(step < 0, -scale, scale)
        return torch.where(inside, grad, 0.0), of_step

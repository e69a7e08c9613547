"""Binary operations of which only the first channels are kept, wholly or in part: what makes a width differentiable.

A masked channel must be nothing, but sign(0) is +1. So the mask of a convolution's input multiplies what is behind the
sign; it does so in the kernel, which is the same and smaller. The scale is the mean over the weights that are kept, and
so with masks of 0 and 1 an operation is the one that was cut out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from bitnas.models.operations import BinaryOperation, Operation
from bitnas.nn import BinaryConv2d
from bitnas.nn.binarizers import BarsWeight, sign
from bitnas.nn.layers import binary_weight

_PER_LAYER, _PER_CHANNEL, _PER_CHANNEL_CORRECTED = "layer", "channel", "channel, with the gradient of the mean"
_RULES = {
    "bars": _PER_LAYER,
    "dorefa": _PER_LAYER,
    "bireal": _PER_CHANNEL,
    "xnor": _PER_CHANNEL_CORRECTED,
}
SCHEMES = tuple(_RULES)
"""The schemes that can be masked. That of NAS-BNN standardises weights by all of their channel, kept or not."""


@dataclass(frozen=True)
class Kept:
    """What is kept of a group of channels: the first `channels`, each as much as `mask` `[channels]` says."""

    channels: int
    mask: Tensor | None = None

    def rows(self, groups: int = 1) -> Tensor | None:
        """The mask of so many groups that stand one behind the other, `[groups * channels]`."""
        return self.mask if groups == 1 or self.mask is None else self.mask.repeat(groups)


class _MaskedWeight(torch.autograd.Function):
    """s * sign(w) * m with m the mask of the input channels and s the mean of |w| weighted by the masks.

    `w` `[layers, Cout, Cin, kh, kw]`: several layers of one shape, each with a scale or scales of its own. By `w` the
    gradient is the scheme's, of the kept weights; by the masks it is exact, through the scale too.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, of_input: Tensor | None, of_output: Tensor | None, rule: str) -> Tensor:
        sizes, magnitudes = w.abs(), None
        inside = None if rule == _PER_LAYER else sizes <= 1
        ctx.taps, ctx.rule = w[0, 0, 0].numel(), rule
        signs = sign(w)
        if of_input is None and of_output is None:
            scale = _means(sizes, rule)
            kernel = signs * scale.view(len(w), -1, 1, 1, 1)
        else:
            of_input = w.new_ones(w.shape[2]) if of_input is None else of_input
            of_output = w.new_ones(w.shape[1]) if of_output is None else of_output
            magnitudes = sizes.sum((3, 4))
            scale = _weighted_means(magnitudes, of_input, of_output, ctx.taps, rule)
            kernel = signs * _kernel(scale.unsqueeze(2) * of_input)
        # Not w itself: the next pass may clamp it in place.
        ctx.save_for_backward(signs, scale, magnitudes, of_input, of_output, inside)
        return kernel

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        grad, rule, taps = grads[0], ctx.rule, ctx.taps
        signs, scale, magnitudes, of_input, of_output, inside = ctx.saved_tensors
        corrected = rule == _PER_CHANNEL_CORRECTED
        input_asked, output_asked = ctx.needs_input_grad[1:3]  # not a mask that was None: it may have no gradient
        if of_input is None and corrected:
            of_input = signs.new_ones(signs.shape[2])
        by_w = by_input = by_output = None
        if corrected or input_asked or output_asked:
            inputs = of_input.sum()
            signed = (grad * signs).sum((3, 4))  # [layers, Cout, Cin]
            by_scale = signed @ of_input  # [layers, Cout]
        if ctx.needs_input_grad[0]:
            by_w = grad if of_input is None else grad * _kernel(of_input)
            if corrected:
                by_w = by_w * _kernel(scale.unsqueeze(2))
            if inside is not None:
                by_w = torch.where(inside, by_w, 0.0)
            if corrected:
                by_w += signs * _kernel((by_scale / (taps * inputs)).unsqueeze(2) * of_input)
        if rule == _PER_LAYER and (input_asked or output_asked):
            outputs, total = of_output.sum(), by_scale.sum(1, keepdim=True)  # [layers, 1]
            whole, drawn = taps * inputs * outputs, (total * scale).sum()
            weighed = (total.unsqueeze(2) * magnitudes).sum(0)
            if input_asked:
                by_input = (scale * signed.sum(1)).sum(0) + of_output @ weighed / whole - drawn / inputs
            if output_asked:
                by_output = weighed @ of_input / whole - drawn / outputs
        elif input_asked:
            by_input = (scale.unsqueeze(2) * signed).sum((0, 1))
            by_input += (by_scale.unsqueeze(2) * magnitudes).sum((0, 1)) / (taps * inputs)
            by_input -= (by_scale * scale).sum() / inputs
        return by_w, by_input, by_output, None


def _kernel(per_channel: Tensor) -> Tensor:
    """`[..., C]` shaped to broadcast against a weight whose third dimension C is."""
    return per_channel[..., None, None]


def _means(magnitudes: Tensor, rule: str) -> Tensor:
    """Of |w| `[layers, Cout, Cin, kh, kw]`: `[layers, 1]` where a layer has one scale, else `[layers, Cout]`."""
    return magnitudes.mean((1, 2, 3, 4)).unsqueeze(1) if rule == _PER_LAYER else magnitudes.mean((2, 3, 4))


def _weighted_means(magnitudes: Tensor, of_input: Tensor, of_output: Tensor, taps: int, rule: str) -> Tensor:
    """`_means` of |w| weighted by the masks; `magnitudes` `[layers, Cout, Cin]` is the sum over the kernel's taps."""
    rows = magnitudes @ of_input / (taps * of_input.sum())
    return (rows @ of_output / of_output.sum()).unsqueeze(1) if rule == _PER_LAYER else rows


class Fan(nn.Module):
    """Binary operations of one kind from one node to `count` others, side by side: a batch norm of all their inputs and
    the groups of one convolution. Each is a `BinaryOperation`; together they take half the time."""

    def __init__(self, count: int, cin: int, cout: int, operation: Operation, stride: int, scheme: str) -> None:
        super().__init__()
        self.count = count
        self.bn = nn.BatchNorm2d(count * cin)
        padding = operation.dilation * (operation.kernel // 2)
        self.conv = BinaryConv2d(
            count * cin, count * cout, operation.kernel, stride, padding, operation.dilation, groups=count,
            scheme=scheme,
        )  # fmt: skip

    def forward(self, x: Tensor, chosen: Sequence[int], source: Kept, target: Kept) -> Tensor:
        """The outputs of the `chosen` operations (ascending), one behind the other.

        Float `[N, source.channels, H, W]` to `[N, len(chosen) * target.channels, H', W']`, not multiplied by the mask
        of the target, which only weighs the scale.
        """
        picked = None if len(chosen) == self.count else list(chosen)
        x = torch.cat([x] * len(chosen), 1) if len(chosen) > 1 else x
        y = batch_norm(x, self.bn, source.channels, self.count, picked)
        return _convolutions(self.conv, y, self.count, picked, source, target)


def preprocessed(operation: BinaryOperation, x: Tensor, source: Kept, target: Kept, groups: int) -> Tensor:
    """`BinaryOperation.forward` of `groups` groups of channels that are kept in part.

    Float `[N, groups * source.channels, H, W]` to `[N, target.channels, H', W']`, not multiplied by the target's mask.
    """
    y = batch_norm(x, operation.bn, source.channels, groups)
    return _convolutions(operation.conv, y, 1, None, source, target, groups)


def cut_weight(weight: Tensor, out: int, inp: int, groups: int = 1) -> Tensor:
    """The first `out` output channels of `[Cout, Cin, ...]`, and the first `inp` of each of `groups` groups of input
    channels. A view where it can be one."""
    if weight.shape[0] != out:
        weight = weight[:out]
    if weight.shape[1] == inp * groups:
        return weight
    if groups == 1:
        return weight[:, :inp]
    return weight.unflatten(1, (groups, -1))[:, :, :inp].flatten(1, 2)


def batch_norm(
    x: Tensor, layer: nn.BatchNorm2d, channels: int, groups: int = 1, picked: list[int] | None = None
) -> Tensor:
    """`nn.BatchNorm2d.forward` on the first `channels` of each of its `groups` groups, or of those `picked`.

    Running statistics move for those channels alone.
    """
    if picked is None and layer.num_features == channels * groups:
        return layer(x)
    mean, variance, batches = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert variance is not None
    assert batches is not None
    assert layer.momentum is not None

    def kept(vector: Tensor) -> Tensor:
        rows = vector.view(groups, -1)
        return (rows if picked is None else rows[picked])[:, :channels].flatten().contiguous()

    means, variances = kept(mean), kept(variance)
    weight, bias = kept(layer.weight), kept(layer.bias)
    y = F.batch_norm(x, means, variances, weight, bias, layer.training, layer.momentum, layer.eps)
    if layer.training:
        batches.add_(1)
        if groups > 1:  # else they are views
            rows = slice(None) if picked is None else picked
            for whole, moved in ((mean, means), (variance, variances)):
                whole.view(groups, -1)[rows, :channels] = moved.view(-1, channels)
    return y


def _convolutions(
    layer: BinaryConv2d,
    x: Tensor,
    count: int,
    picked: list[int] | None,
    source: Kept,
    target: Kept,
    groups: int = 1,
) -> Tensor:
    """Sign, convolution and ReLU of `count` layers that are the groups of one, or of those that are picked.

    `groups`: how many groups of `source.channels` enter each.
    """
    bits = layer.input_binarizer(x)
    if layer.training and isinstance(layer.weight_binarizer, BarsWeight):
        layer.weight.detach().clamp_(-1, 1)
    weight = layer.weight if picked is None else layer.weight.unflatten(0, (count, -1))[picked].flatten(0, 1)
    number = count if picked is None else len(picked)
    if weight.shape[0] != number * target.channels:
        weight = weight.unflatten(0, (number, -1))[:, : target.channels].flatten(0, 1)
    weight = cut_weight(weight, weight.shape[0], source.channels, groups)
    layers = weight.unflatten(0, (number, -1))
    rule = _RULES[layer.scheme]
    of_input, of_output = source.rows(groups), target.mask
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if layer.training:
        kernel = _MaskedWeight.apply(layers, of_input, of_output, rule).flatten(0, 1)
        return F.conv2d(bits, kernel, None, stride, padding, dilation, number).relu_()
    # As a plain layer: integers, where the masks are 0 and 1, and the scale in float64 behind them.
    kernel = binary_weight(weight, layer.weight_binarizer)
    latent = layers.detach().double()
    if isinstance(layer.weight_binarizer, BarsWeight):
        latent = latent.clamp(-1, 1)
    if of_input is None and of_output is None:
        scale = _means(latent.abs(), rule)
    else:
        of_input = weight.new_ones(weight.shape[1]) if of_input is None else of_input
        of_output = weight.new_ones(target.channels) if of_output is None else of_output
        kernel = kernel * _kernel(of_input)
        taps = latent[0, 0, 0].numel()
        scale = _weighted_means(latent.abs().sum((3, 4)), of_input.double(), of_output.double(), taps, rule)
    dot = F.conv2d(bits, kernel, None, stride, padding, dilation, number)
    scale = scale.expand(number, target.channels).flatten().to(dot.dtype)
    return (dot * scale.view(-1, 1, 1)).relu_()


class _Mix(torch.autograd.Function):
    """`mix` for tensors of one shape. Weights are read on the host too, so that a term is one pass over memory."""

    @staticmethod
    def forward(
        ctx: Any, weights: Tensor, mask: Tensor | None, positions: list[int], values: list[float], *terms: Tensor
    ) -> Tensor:
        total = terms[0] * values[0]
        for value, term in zip(values[1:], terms[1:], strict=True):
            if value:
                total.add_(term, alpha=value)
        by_weights = ctx.needs_input_grad[0]
        by_mask = mask is not None and ctx.needs_input_grad[1]
        ctx.save_for_backward(weights, mask, total if by_mask else None, *(terms if by_weights else ()))
        ctx.positions, ctx.values = positions, values
        return total if mask is None else total * mask.view(-1, 1, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weights, mask, total, *terms = ctx.saved_tensors
        by_mask = None if total is None else (grad * total).sum((0, 2, 3))
        if mask is not None:
            grad = grad * mask.view(-1, 1, 1)
        by_weights = None
        if terms:
            found = torch.stack([(grad * term).sum() for term in terms])
            by_weights = torch.zeros_like(weights)
            by_weights.view(-1)[ctx.positions] = found
        by_terms = [
            grad * value if needed else None for value, needed in zip(ctx.values, ctx.needs_input_grad[4:], strict=True)
        ]
        return by_weights, by_mask, None, None, *by_terms


def mix(terms: list[Tensor], weights: Tensor, positions: list[int], values: list[float], mask: Tensor | None) -> Tensor:
    """`mask * (values[0] * terms[0] + ...)`, added in this order.

    Args:
        terms: each `[N, C, H, W]`. weights: any shape; `values[k]` is its element at `positions[k]` if it were flat,
            on the host, and there the gradient goes. mask: `[C]` or None.
    """
    if not weights.requires_grad and mask is None and all(value == 1 for value in values):
        return terms[0] if len(terms) == 1 else _sum(terms)
    return _Mix.apply(weights, mask, positions, values, *terms)


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0] + terms[1]
    for term in terms[2:]:
        total = total + term
    return total

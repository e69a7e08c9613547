"""Slices of the largest tensors, as a subnet uses them, with gradients that go straight into `.grad`.

Autograd's own slices would each give back a gradient as large as the whole tensor, mostly zeros, and add four of them
in a step. Here one node per pass adds what it gets to the part of `.grad` that it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Cut(NamedTuple):
    """A slice of a larger tensor: `shape` of it, of weights `[out, in / groups, k, k]` that of the subnet's layer.

    Prefixes in the first two dimensions, the centre in the others. With groups, output chunk i takes input slice
    i mod r of the whole, r = how many slices of its width fit into the whole's (Lin et al. 2024, as in its public
    code).
    """

    shape: tuple[int, ...]
    groups: int = 1

    def windows(self, whole: Tensor) -> list[Tensor]:
        """Views of `whole`, of two dimensions or more, that hold the slice, one after the other in its first one."""
        if whole.shape == self.shape:
            return [whole]
        for dim, size in enumerate(self.shape[2:], 2):
            whole = whole.narrow(dim, (whole.shape[dim] - size) // 2, size)
        out, width = self.shape[:2]
        if self.groups == 1:
            return [whole[:out, :width]]
        slices, rows = min(whole.shape[1] // width, self.groups), out // self.groups
        first, second, *rest = whole.stride()
        # Chunks 0 to r - 1 lie on a diagonal, and so do the next r of them.
        return [
            whole.as_strided(
                (min(slices, self.groups - chunk), rows, width, *self.shape[2:]),
                (rows * first + width * second, first, second, *rest),
                whole.storage_offset() + chunk * rows * first,
            )
            for chunk in range(0, self.groups, slices)
        ]

    def of(self, whole: Tensor) -> Tensor:
        """The slice: contiguous if it has more than one dimension. It may share memory with `whole`."""
        if len(self.shape) == 1:
            return whole.narrow(0, 0, self.shape[0])
        windows = self.windows(whole)
        if len(windows) > 1:
            return torch.cat(windows).view(self.shape)
        # By way of one dimension: `contiguous` leaves the strides of dimensions of size 1 as they are, and by these
        # oneDNN chooses how to add up.
        return windows[0].reshape(-1).contiguous().view(self.shape)

    def add(self, grad: Tensor, whole: Tensor) -> None:
        """Add the gradient of the slice to the gradient of the whole, in place."""
        if len(self.shape) == 1:
            whole.narrow(0, 0, self.shape[0]).add_(grad)
            return
        windows = self.windows(whole)
        if len(windows) == 1:
            windows[0].add_(grad.reshape(windows[0].shape))
            return
        pieces = grad.reshape(self.groups, self.shape[0] // self.groups, *self.shape[1:])
        for window, piece in zip(windows, pieces.split([len(window) for window in windows]), strict=True):
            window.add_(piece)


Cuts = Mapping[Tensor, Cut]


def cut_all(cuts: Cuts) -> dict[Tensor, Tensor]:
    """The slices of many parameters, by parameter. A backward pass adds their gradients to the parameters' `.grad`.

    `torch.autograd.grad` with respect to the parameters finds nothing: gradients are only ever added up.
    """
    parameters = list(cuts)
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
        return dict(zip(parameters, _Slices.apply(tuple(cuts.values()), *parameters), strict=True))
    return {parameter: cut.of(parameter.detach()) for parameter, cut in cuts.items()}


class _Slices(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cuts: tuple[Cut, ...], *parameters: nn.Parameter) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.cuts, ctx.parameters = cuts, parameters
        return tuple(cut.of(parameter.detach()) for cut, parameter in zip(cuts, parameters, strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, ...]:
        for cut, parameter, grad in zip(ctx.cuts, ctx.parameters, grads, strict=True):
            if grad is not None and parameter.requires_grad:
                _accumulate(cut, parameter, grad)
        return (None,) * (1 + len(grads))


def _accumulate(cut: Cut, parameter: nn.Parameter, grad: Tensor) -> None:
    if parameter.grad is not None:
        cut.add(grad, parameter.grad)
    elif grad.shape != parameter.shape:
        parameter.grad = torch.zeros_like(parameter)
        cut.add(grad, parameter.grad)
    elif grad.dim() > 1 and grad.stride() == parameter.stride():
        parameter.grad = grad  # of a weight nobody else has it
    else:  # fused optimizers walk parameter and gradient in the order of memory
        parameter.grad = torch.empty_like(parameter).copy_(grad)


def transform_sizes(kernels: tuple[int, ...]) -> tuple[int, ...]:
    """Sides of the kernels that have a matrix, largest first; a kernel of one tap has none."""
    return tuple(kernel for kernel in sorted(kernels, reverse=True) if kernel > 1)


def transformed(weight: Tensor, kernel: int, matrices: Mapping[int, Tensor]) -> Tensor:
    """A kernel in the binary domain, `[out, in, kernel, kernel]`, of the float one.

    `weight` is as large as `kernel` where that is the largest; else as the largest but one. From there each smaller
    kernel is made of the centre of the one before, by its own matrix `[k * k, k * k]` (Lin et al. 2024,
    Bi-Transformation; the chain is that of the paper's two kernels gone on with).
    """
    for side in sorted(matrices, reverse=True):
        if kernel <= side <= weight.shape[-1]:
            weight = centre(weight, side)
            rows = F.linear(weight.reshape(-1, side * side), matrices[side])
            weight = rows.view(*weight.shape[:2], side, side)
    return centre(weight, kernel)


def centre(weight: Tensor, kernel: int) -> Tensor:
    """The middle `kernel` x `kernel` taps of `[out, in, k, k]`."""
    margin = (weight.shape[-1] - kernel) // 2
    return weight[..., margin : margin + kernel, margin : margin + kernel] if margin else weight

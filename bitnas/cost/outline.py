"""Outlines: the steps of frozen networks without their weights, with the numbers that follow the widths left open.

A wide network takes seconds to make and to freeze, and a search asks for the latency of thousands. What its steps are
does not depend on weights, and every number in them is a constant or follows one width. So the steps of two narrow
networks, whose widths are in different proportions, say for every number which it is.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from typing import Any

import torch

from bitnas.packed import PackedNetwork
from bitnas.packed.layers import Memory, PackedConv2d, PackedLinear
from bitnas.packed.steps import Step, build_layer


@dataclasses.dataclass(frozen=True)
class _Multiple:
    """Stands for one of the widths, times a constant."""

    position: int
    factor: Fraction


class UnexplainedNumber(ValueError):
    """A number that is neither a constant nor a multiple of one width."""


def unify(first: Sequence[Step], second: Sequence[Step], narrow: Sequence[int], wide: Sequence[int]) -> list[Step]:
    """The steps of two networks, of the widths `narrow` and `wide`, as one outline.

    Raises:
        UnexplainedNumber: they are not the same steps, or a number in them does not follow from one width.
    """
    if [(s.name, s.kind, s.inputs, s.source) for s in first] != [(s.name, s.kind, s.inputs, s.source) for s in second]:
        raise UnexplainedNumber(f"networks of widths {list(narrow)} and {list(wide)} are not frozen to the same steps")
    return [
        dataclasses.replace(a, arguments=unify_values(a.arguments, b.arguments, narrow, wide))
        for a, b in zip(first, second, strict=True)
    ]


def unify_values(a: Any, b: Any, narrow: Sequence[int], wide: Sequence[int]) -> Any:
    """Two values of JSON, from networks of the widths `narrow` and `wide`, as one with open numbers.

    Raises:
        UnexplainedNumber: they differ in more than numbers, or a number does not follow from one width.
    """
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {name: unify_values(a[name], b[name], narrow, wide) for name in a}
    if isinstance(a, list | tuple) and type(a) is type(b) and len(a) == len(b):
        return type(a)(unify_values(x, y, narrow, wide) for x, y in zip(a, b, strict=True))
    if a == b:
        return a
    if type(a) is int and type(b) is int:
        for position, (p, q) in enumerate(zip(narrow, wide, strict=True)):
            if a * q == b * p:
                return _Multiple(position, Fraction(a, p))
    raise UnexplainedNumber(f"{a!r} at widths {list(narrow)} and {b!r} at widths {list(wide)} follow from no one width")


def fill(outline: Iterable[Step], widths: Sequence[int]) -> tuple[Step, ...]:
    """The steps of the network of these widths."""
    return tuple(dataclasses.replace(step, arguments=fill_values(step.arguments, widths)) for step in outline)


def fill_values(item: Any, widths: Sequence[int]) -> Any:
    """A value of :func:`unify_values` with its numbers at these widths."""
    if isinstance(item, _Multiple):
        return int(item.factor * widths[item.position])
    if isinstance(item, dict):
        return {name: fill_values(value, widths) for name, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(fill_values(value, widths) for value in item)
    return item


def without_chance(make: Callable[[], PackedNetwork]) -> tuple[Step, ...]:
    """The steps of a network that is made here and thrown away; torch's own generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().steps


def random_network(
    steps: Sequence[Step], config: dict[str, Any] | None, generator: torch.Generator, memory: Memory = "fast"
) -> PackedNetwork:
    """A frozen network of these steps with random bits, made at once. It is as fast as a trained one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        layers = {step.name: layer for step in steps if (layer := build_layer(step)) is not None}
        for layer in layers.values():
            for name, tensor in layer.named_buffers():
                if name == "weight" and isinstance(layer, PackedConv2d | PackedLinear):
                    tensor.copy_(torch.randint(-(2**63), 2**63 - 1, tensor.shape, dtype=torch.int64))
                    groups = layer.spec.get("groups", 1)
                    channels = layer.spec.get("in_channels", layer.spec.get("in_features")) // groups
                    if channels % 64:
                        tensor[..., -1] &= (1 << channels % 64) - 1
                elif name == "threshold" and tensor.dtype == torch.int32:
                    tensor.copy_(torch.randint(-8, 9, tensor.shape))
                elif tensor.dtype == torch.int8:
                    tensor.random_(-128, 128)
        return PackedNetwork(steps, layers, config, memory)

"""The steps of a frozen network of any width code, without its weights.

A wide network takes seconds to make and to freeze, and a search asks for the latency of thousands. What its steps are
does not depend on weights, and their sizes follow the widths: every number in them is a constant or a multiple of one
width. So two narrow networks, whose widths are different primes, are frozen once for each kind of network, and their
steps say for every number which it is. A third one, all of one width, must come out as predicted; where it does not,
the structure depends on the widths and each network is frozen itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from bitnas.models import ModelConfig
    from bitnas.packed import PackedNetwork
    from bitnas.packed.layers import Memory
    from bitnas.packed.steps import Step

_CHECK_WIDTH = 4  # no prime, and no width of the two templates


@dataclasses.dataclass(frozen=True)
class _Multiple:
    """Stands for a width of the code, times a constant."""

    position: int
    factor: int


@functools.lru_cache(maxsize=4096)
def steps(network: ModelConfig) -> tuple[Step, ...]:
    """What `bitnas.freeze` makes of the network that the config describes, as steps."""
    from bitnas.models import widths

    template = _template(dataclasses.replace(network, ratios=(1.0,) * len(network.ratios), base_width=1.0))
    return _fill(template, widths(network)) if template is not None else _frozen(network).steps


@functools.lru_cache(maxsize=4096)
def signatures(network: ModelConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Signatures of the calls of the frozen network on a batch, and of the pass around them (`packed.calls`)."""
    from bitnas.packed.calls import call_signatures

    return tuple(call_signatures(steps(network), (batch, *network.input_size), memory))


def random_network(network: ModelConfig, generator: torch.Generator, memory: Memory = "fast") -> PackedNetwork:
    """A frozen network of these widths with random bits, made at once. It is as fast as a trained one."""
    import torch

    from bitnas.packed import PackedNetwork
    from bitnas.packed.layers import PackedConv2d, PackedLinear
    from bitnas.packed.steps import build_layer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
        made = steps(network)
        layers = {step.name: layer for step in made if (layer := build_layer(step)) is not None}
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
        return PackedNetwork(made, layers, network.to_dict(), memory)


@functools.lru_cache(maxsize=64)
def _template(network: ModelConfig) -> tuple[Step, ...] | None:
    """Steps with `_Multiple` in place of the numbers that follow the widths; None if that cannot be told."""
    length = len(network.ratios)
    primes = _primes(2 * length)
    narrow, wide = primes[::2], primes[1::2]
    first, second = (_frozen(_with_widths(network, widths)).steps for widths in (narrow, wide))
    if [(s.name, s.kind, s.inputs) for s in first] != [(s.name, s.kind, s.inputs) for s in second]:
        return None
    try:
        template = tuple(
            dataclasses.replace(a, arguments=_unify(a.arguments, b.arguments, narrow, wide))
            for a, b in zip(first, second, strict=True)
        )
    except _Unexplained:
        return None
    same = (_CHECK_WIDTH,) * length
    return template if _fill(template, same) == _frozen(_with_widths(network, same)).steps else None


class _Unexplained(Exception):
    """A number that is neither a constant nor a multiple of one width."""


def _unify(a: Any, b: Any, narrow: Sequence[int], wide: Sequence[int]) -> Any:
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {name: _unify(a[name], b[name], narrow, wide) for name in a}
    if isinstance(a, tuple) and isinstance(b, tuple) and len(a) == len(b):
        return tuple(_unify(x, y, narrow, wide) for x, y in zip(a, b, strict=True))
    if a == b:
        return a
    if type(a) is int and type(b) is int:
        for position, (p, q) in enumerate(zip(narrow, wide, strict=True)):
            if a % p == 0 and b % q == 0 and a // p == b // q:
                return _Multiple(position, a // p)
    raise _Unexplained


def _fill(template: Sequence[Step], widths: Sequence[int]) -> tuple[Step, ...]:
    def value(item: Any) -> Any:
        if isinstance(item, _Multiple):
            return item.factor * widths[item.position]
        if isinstance(item, tuple):
            return tuple(map(value, item))
        return item

    return tuple(
        dataclasses.replace(step, arguments={name: value(item) for name, item in step.arguments.items()})
        for step in template
    )


def _frozen(network: ModelConfig) -> PackedNetwork:
    import torch

    from bitnas.models import create_model_from_config
    from bitnas.packed import freeze

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return freeze(create_model_from_config(network).eval())


def _with_widths(network: ModelConfig, wanted: Sequence[int]) -> ModelConfig:
    from bitnas.models import widths

    # A ratio in the middle of those that are truncated to the width.
    ratios = tuple((width + 0.5) / base for width, base in zip(wanted, widths(network), strict=True))
    made = dataclasses.replace(network, ratios=ratios)
    assert widths(made) == tuple(wanted)
    return made


def _primes(count: int) -> list[int]:
    found: list[int] = []
    number = 5  # 2 and 3 are what strides and kernels are
    while len(found) < count:
        if all(number % prime for prime in (2, 3, *found)):
            found.append(number)
        number += 1
    return found

"""The steps of a frozen network of any width code, without its weights.

Two narrow networks, whose widths are different primes, are frozen once for each kind of network (`cost.outline`). A
third one, all of one width, must come out as predicted; where it does not, the structure depends on the widths and each
network is frozen itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from bitnas.models import ModelConfig
    from bitnas.packed import PackedNetwork
    from bitnas.packed.layers import Memory
    from bitnas.packed.steps import Step

_CHECK_WIDTH = 4  # no prime, and no width of the two templates


@functools.lru_cache(maxsize=4096)
def steps(network: ModelConfig) -> tuple[Step, ...]:
    """What `bitnas.freeze` makes of the network that the config describes, as steps."""
    from bitnas.cost.outline import fill
    from bitnas.models import widths

    template = _template(dataclasses.replace(network, ratios=(1.0,) * len(network.ratios), base_width=1.0))
    return fill(template, widths(network)) if template is not None else _frozen(network)


@functools.lru_cache(maxsize=4096)
def signatures(network: ModelConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Signatures of the calls of the frozen network on a batch, and of the pass around them (`packed.calls`)."""
    from bitnas.packed.calls import call_signatures

    return tuple(call_signatures(steps(network), (batch, *network.input_size), memory))


def random_network(network: ModelConfig, generator: torch.Generator, memory: Memory = "fast") -> PackedNetwork:
    """A frozen network of these widths with random bits, made at once. It is as fast as a trained one."""
    from bitnas.cost import outline

    return outline.random_network(steps(network), network.to_dict(), generator, memory)


@functools.lru_cache(maxsize=64)
def _template(network: ModelConfig) -> tuple[Step, ...] | None:
    """An outline of networks of this kind; None if it cannot be told."""
    from bitnas.cost.outline import UnexplainedNumber, fill, unify

    length = len(network.ratios)
    primes = _primes(2 * length)
    narrow, wide = primes[::2], primes[1::2]
    first, second = (_frozen(_with_widths(network, widths)) for widths in (narrow, wide))
    try:
        template = tuple(unify(first, second, narrow, wide))
    except UnexplainedNumber:
        return None
    same = (_CHECK_WIDTH,) * length
    return template if fill(template, same) == _frozen(_with_widths(network, same)) else None


def _frozen(network: ModelConfig) -> tuple[Step, ...]:
    from bitnas.cost.outline import without_chance
    from bitnas.models import create_model_from_config
    from bitnas.packed import freeze

    return without_chance(lambda: freeze(create_model_from_config(network).eval()))


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

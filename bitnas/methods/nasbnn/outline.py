"""The steps and the calls of any frozen subnet, without its weights.

A big subnet takes seconds to make and to freeze. But freezing makes the same steps of a block wherever it stands, first
and last ones apart, and the numbers in them follow from the channels that enter and leave it (`cost.outline`). So small
twins are frozen, each kind of block once, cut into their blocks, and the parts put together again; the signatures of
the calls are kept for each part. That the sum is what freezing the whole gives is what tests and `latency check` find.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch

from bitnas.cost import outline
from bitnas.models.nasbnn import Block, NasBnn, SubnetConfig
from bitnas.packed import freeze
from bitnas.packed.calls import call_signatures, canonical
from bitnas.packed.plan import make_plan
from bitnas.packed.steps import Step, build_layer

if TYPE_CHECKING:
    from bitnas.packed import PackedNetwork
    from bitnas.packed.layers import Memory

# Widths of the two twins, in units of what their groups divide: no two of the numbers of a twin are in the same
# proportion in the other.
_NARROW, _WIDE = 5, 11

_BLOCK = re.compile(r"blocks([_.])(\d+)(?=\1)")
_HEAD = ("pool", "flatten", "fc")  # what the modules and functions behind the blocks are called

# Parts of a network: the stem, its blocks by their indices, and what follows them.
_STEM, _END = -1, sys.maxsize


class Site(NamedTuple):
    """A block, and what its calls depend on: channels that enter it, whether it stands behind the stem, at the end."""

    cin: int
    block: Block
    first: bool
    last: bool


class Template(NamedTuple):
    """Steps of one part of a twin, with open numbers; `block`: the index of it, or of the last one, in the twin."""

    steps: tuple[Step, ...]
    block: int


def sites(subnet: SubnetConfig) -> Iterator[Site]:
    """The blocks in order."""
    cin, last = subnet.stem, len(subnet.blocks) - 1
    for number, block in enumerate(subnet.blocks):
        yield Site(cin, block, number == 0, number == last)
        cin = block.channels


def out_size(size: tuple[int, int], stride: int) -> tuple[int, int]:
    """Height and width of what a padded convolution of an odd kernel makes."""
    return -(-size[0] // stride), -(-size[1] // stride)


# ---- steps ----------------------------------------------------------------------------------


def steps(subnet: SubnetConfig) -> tuple[Step, ...]:
    """What `bitnas.freeze` makes of the subnet, as steps."""
    found = [*outline.fill(_stem(subnet.input_size[0], subnet.stem_stride).steps, (subnet.stem,))]
    for number, site in enumerate(sites(subnet)):
        cin, cout, block = site.cin, site.block.channels, site.block
        own = _block(cout // cin, cout % cin == 0, block.stride, site.first, site.last)
        found += _moved(outline.fill(own.steps, _numbers(cin, block)), number - own.block)
    head = _head(subnet.num_classes)
    found += _moved(outline.fill(head.steps, (subnet.blocks[-1].channels,)), len(subnet.blocks) - 1 - head.block)
    return tuple(found)


def random_network(subnet: SubnetConfig, generator: torch.Generator, memory: Memory = "fast") -> PackedNetwork:
    """The frozen subnet with random bits, made at once. It is as fast as a trained one."""
    return outline.random_network(steps(subnet), subnet.to_dict(), generator, memory)


@functools.cache
def _stem(channels: int, stride: int) -> Template:
    def twin(width: int) -> SubnetConfig:
        return SubnetConfig(width, (_plain(width),), 2, (channels, 8, 8), stride)

    return _template(twin(_NARROW), twin(_WIDE), _STEM, (_NARROW,), (_WIDE,))


@functools.cache
def _head(classes: int) -> Template:
    def twin(width: int) -> SubnetConfig:
        return SubnetConfig(width, (_plain(width),), classes, (3, 8, 8))

    return _template(twin(_NARROW), twin(_WIDE), _END, (_NARROW,), (_WIDE,))


@functools.cache
def _block(times: int, exactly: bool, stride: int, first: bool, last: bool) -> Template:
    """Of blocks that make `times` as many channels as enter them, or somewhat more if not `exactly`."""
    own = 0 if first else 1

    def twin(cin: int, more: int, kernel: int, groups: int, groups_1x1: int) -> tuple[SubnetConfig, tuple[int, ...]]:
        unit = math.lcm(groups, groups_1x1)
        cin, cout = cin * unit, (times * cin + (0 if exactly else more)) * unit
        block = Block(cout, kernel, groups, groups_1x1, stride)
        around = [] if first else [_plain(cin)], [] if last else [_plain(cout)]
        return SubnetConfig(cin, (*around[0], block, *around[1]), 2, (3, 32, 32)), _numbers(cin, block)

    (narrow, small), (wide, large) = twin(_NARROW, 2, 3, 2, 3), twin(_WIDE, 5, 5, 3, 2)
    return _template(narrow, wide, own, small, large)


def _numbers(cin: int, block: Block) -> tuple[int, ...]:
    """What the numbers in a block's steps follow from."""
    return cin, block.channels, block.kernel, block.kernel // 2, block.groups, block.groups_1x1


def _plain(channels: int) -> Block:
    """What stands around the block that a twin is for: cheap to make, and of no influence on it."""
    return Block(channels, 1)


def _template(
    narrow: SubnetConfig, wide: SubnetConfig, part: int, small: tuple[int, ...], large: tuple[int, ...]
) -> Template:
    first, second = ([step for step, own in _parts(_frozen(twin)) if own == part] for twin in (narrow, wide))
    block = len(narrow.blocks) - 1 if part == _END else part
    return Template(tuple(outline.unify(first, second, small, large)), block)


def _frozen(subnet: SubnetConfig) -> tuple[Step, ...]:
    return outline.without_chance(lambda: freeze(NasBnn(subnet).eval()))


def _parts(network: tuple[Step, ...]) -> Iterator[tuple[Step, int]]:
    """Each step with the part that it belongs to.

    A step that is called for no module belongs to the part of the step before it.
    """
    part = _STEM
    for step in network:
        own = part
        if found := _BLOCK.match(step.name):
            own = int(found[2])
        elif step.name.startswith(_HEAD):
            own = _END
        if own < part:
            raise RuntimeError(f"step {step.name} of part {own} comes after steps of part {part}; wanted them in order")
        part = own
        yield step, part


def _moved(network: tuple[Step, ...], by: int) -> Iterator[Step]:
    """The steps with every block's number raised."""

    def name(text: str) -> str:
        return _BLOCK.sub(lambda found: f"blocks{found[1]}{int(found[2]) + by}", text)

    for step in network:
        source = None if step.source is None else name(step.source)
        yield dataclasses.replace(step, name=name(step.name), inputs=tuple(map(name, step.inputs)), source=source)


# ---- signatures -------------------------------------------------------------------------------


class Place(NamedTuple):
    """What a part's calls are known by: the stem with its stride, or a block, or the classes; and the size of images
    that enter it."""

    part: Site | tuple[str, int, int]
    size: tuple[int, ...]


def places(subnet: SubnetConfig) -> Iterator[Place]:
    """The parts of a subnet in order: stem, blocks, head."""
    yield stem_place(subnet.stem, subnet.stem_stride, subnet.input_size)
    size = out_size(subnet.input_size[1:], subnet.stem_stride)
    for site in sites(subnet):
        yield Place(site, size)
        size = out_size(size, site.block.stride)
    yield head_place(subnet.blocks[-1].channels, subnet.num_classes, size)


def stem_place(channels: int, stride: int, input_size: tuple[int, ...]) -> Place:
    """Of a stem that makes so many channels of images `(C, H, W)`."""
    return Place(("stem", channels, stride), input_size)


def head_place(channels: int, classes: int, size: tuple[int, int]) -> Place:
    """Of a classifier behind a last block of so many channels."""
    return Place(("head", channels, classes), size)


Calls = dict[Place, tuple[str, ...]]
"""Signatures of the calls of each part."""

_KNOWN: dict[tuple[int, Memory], Calls] = {}


def signatures(subnet: SubnetConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Of the calls of the frozen subnet on a batch, in order, and last of the pass around them (`packed.calls`)."""
    known = known_calls(batch, memory)
    found = [known.get(place) for place in places(subnet)]
    if None in found:
        return learn(subnet, batch, memory)
    calls = [signature for part in found for signature in part or ()]
    return (*calls, pass_call(len(calls)))


def pass_call(calls: int) -> str:
    """The signature of what a pass of so many calls costs beside them."""
    return canonical({"does": "pass", "calls": calls})


def known_calls(batch: int = 1, memory: Memory = "fast") -> Calls:
    """What this process knows so far; a place is the same in every subnet."""
    return _KNOWN.setdefault((batch, memory), {})


def learn(subnet: SubnetConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """The signatures of a whole subnet from its steps, and `known_calls` with those of all its places."""
    made = steps(subnet)
    parts = {step.name: own for step, own in _parts(made)}
    with torch.device("meta"):
        layers = {step.name: layer for step in made if (layer := build_layer(step)) is not None}
    found = tuple(call_signatures(made, (batch, *subnet.input_size), memory))
    calls: dict[int, list[str]] = {}
    for (call, _), signature in zip(make_plan(made, layers), found[:-1], strict=True):
        calls.setdefault(parts[call.step], []).append(signature)
    order = [_STEM, *range(len(subnet.blocks)), _END]
    known = known_calls(batch, memory)
    for place, part in zip(places(subnet), order, strict=True):
        known[place] = tuple(calls.get(part, ()))
    return found

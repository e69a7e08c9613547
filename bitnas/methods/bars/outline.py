"""The calls of any frozen network of BARS, without its weights.

Freezing a network takes a quarter of a second, and a price list asks for the calls of thousands of cells. But a part of
a cell becomes the same calls wherever it stands (`structure`), and the numbers in them follow from a few: channels,
sizes of maps, the batch. So small twins of cells that have each way of each part are frozen once, and the calls of
their parts kept with those numbers open. That the sum is what freezing the whole gives is what tests find.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from bitnas.cost import outline
from bitnas.methods.bars.cost import Size, halved, sites
from bitnas.methods.bars.structure import Joined, Skips, Way, ways
from bitnas.models.bars import EDGES, NODES, Bars, BarsConfig, Cell, canonical, live_nodes
from bitnas.models.operations import NONE, SKIP
from bitnas.packed import calls as packed_calls
from bitnas.packed import freeze
from bitnas.packed.calls import call_signatures
from bitnas.packed.int8 import STEM_CHANNELS
from bitnas.packed.plan import Call, make_plan
from bitnas.packed.steps import Step, build_layer

if TYPE_CHECKING:
    from bitnas.packed import PackedNetwork
    from bitnas.packed.layers import Memory

NO_NODES = (NONE,) * len(EDGES)
"""A cell that is its shortcut alone."""

# What stands around the cell that a twin is for: cheap to make, with one node.
_PLAIN = (SKIP, *NO_NODES[1:])

_CELL = re.compile(r"cells_(\d+)_")
_EDGE = re.compile(r"edges_(\d)_(\d)_")
_HEAD = ("pool", "flatten", "fc")  # what the modules and functions behind the cells are called
_FIRST_PACK = "cells_0_preprocess_bn_pack"  # a call of the stem's, where its last convolution does not pack

# A pair of twins: no two of their numbers are in the same proportion. Channels of the outer cells are none of them, so
# that calls which follow those are noticed.
_BATCH = (5, 6)
_MAPS = ((11, 15), (19, 23))
_ENTERING = {True: (3, 4), False: (17, 70)}  # `Style.few` or not
_CHANNELS = {1: (43, 67), 2: (43, 131)}  # by stride
_BEYOND = (5, 7)


class Style(NamedTuple):
    """What decides the calls of a cell's parts besides their ways.

    Attributes:
        packs: whether the next cell begins with a binary convolution, for which the join packs.
        few: whether so few channels enter that a float convolution of them is done as a stem's.
    """

    stride: int
    preprocess: str
    scheme: str
    packs: bool
    few: bool


class Numbers(NamedTuple):
    """What the numbers in a cell's calls follow from: batch, height and width before and behind, channels of a group
    that enters, of the input node, of a node; and the words of 64 bits that hold the bits of those."""

    batch: int
    height: int
    width: int
    out_height: int
    out_width: int
    cin: int
    inner: int
    channels: int
    cin_words: int
    inner_words: int
    words: int

    @classmethod
    def of(cls, cell: Cell, cin: int, size: Size, batch: int) -> Numbers:
        """Those of a cell that `cin` channels in each group, of maps of `size`, enter."""
        out = halved(size) if cell.stride == 2 else size
        words = (-(-n // 64) for n in (NODES * cin, cell.inner, cell.channels))
        return cls(batch, *size, *out, cin, cell.inner, cell.channels, *words)


class Piece(NamedTuple):
    """A part of a cell and the way it is called; of an edge, its operation and whether it leaves the input node."""

    style: Style
    way: Way
    operation: str | None = None
    from_input: bool = False


Calls = tuple[Any, ...]
"""Signatures with open numbers, as JSON values (`cost.outline.unify_values`)."""


def styles(network: BarsConfig) -> Iterator[Style]:
    """Of the cells in order."""
    nodes = [has_nodes(cell.edges) for cell in network.cells]
    for number, (cell, cin) in enumerate(zip(network.cells, network.entering, strict=True)):
        packs = network.preprocess == "binary" and number + 1 < len(nodes) and nodes[number + 1]
        yield Style(cell.stride, network.preprocess, network.scheme, packs, is_few(cin, network.preprocess))


def is_few(cin: int, preprocess: str) -> bool:
    """`Style.few` of a cell that four groups of `cin` channels enter."""
    return preprocess == "float" and NODES * cin <= STEM_CHANNELS


def has_nodes(edges: Sequence[str]) -> bool:
    """Whether the input of a cell reaches any of its nodes."""
    return any(live_nodes(edges)[1:])


@functools.lru_cache(maxsize=65536)
def pieces(edges: tuple[str, ...], style: Style) -> tuple[Piece, ...]:
    """The parts of a cell."""
    found = ways(edges, style.stride)
    return tuple(piece(part, way, style, edges[part] if isinstance(part, int) else None) for part, way in found.items())


def piece(part: str | int, way: Way, style: Style, operation: str | None = None) -> Piece:
    """Of a part as `structure` has it; what its calls do not depend on is as in every other."""
    if not isinstance(way, Joined):
        style = style._replace(packs=False)
    if part != "first":
        style = style._replace(few=False)
    return Piece(style, way, operation, isinstance(part, int) and EDGES[part][0] == 0)


# ---- what the parts become -------------------------------------------------------------------

_KNOWN: dict[Memory, dict[Piece, Calls]] = {}


def part_calls(wanted: Piece, example: Sequence[str], memory: Memory = "fast") -> Calls:
    """The calls of a part. `example`: operations of a cell that has it."""
    known = _KNOWN.setdefault(memory, {})
    if wanted not in known:
        for found, own in _learn(canonical(example), wanted.style, memory).items():
            if known.setdefault(found, own) != own:
                raise RuntimeError(f"{found} became the calls {known[found]}, and then {own}; wanted the same")
    return known[wanted]


def fill(calls: Calls, numbers: Numbers) -> Iterator[str]:
    """The signatures of the calls of a part of a cell of these numbers."""
    for call in calls:
        yield packed_calls.canonical(outline.fill_values(call, numbers))


def _learn(edges: Sequence[str], style: Style, memory: Memory) -> dict[Piece, Calls]:
    """The calls of all parts of a cell, from two twins."""
    (one, first), (two, second) = (_twin(edges, style, n, memory) for n in range(2))
    names = {part: [name for name, _ in own] for part, own in first.items()}
    if names != {part: [name for name, _ in own] for part, own in second.items()}:
        raise RuntimeError(f"twins of the cell {edges} {style} do not become the same calls")
    found: dict[Piece, Calls] = {}
    for part, way in ways(edges, style.stride).items():
        made, other = ([json.loads(call) for _, call in twin.pop(part, ())] for twin in (first, second))
        key = piece(part, way, style, edges[part] if isinstance(part, int) else None)
        own = tuple(outline.unify_values(made, other, one, two))
        if found.setdefault(key, own) != own:
            raise RuntimeError(f"in the cell {edges} two parts {key} do not become the same calls")
    if first:
        raise RuntimeError(f"calls of the cell {edges} belong to parts that it has not: {first}")
    return found


_Parts = dict[str | int, list[tuple[str, str]]]
"""The calls of each part: the first step and the signature."""


def _twin(edges: Sequence[str], style: Style, n: int, memory: Memory) -> tuple[Numbers, _Parts]:
    cin, channels = _ENTERING[style.few][n], _CHANNELS[style.stride][n]
    cells = [Cell(_PLAIN, cin), Cell(tuple(edges), channels, style.stride)]
    if style.packs:
        cells.append(Cell(_PLAIN, _BEYOND[n]))
    network = BarsConfig(
        STEM_CHANNELS, _BEYOND[n], tuple(cells), style.preprocess, 2, (3, *_MAPS[n]), scheme=style.scheme
    )
    cell, entering, size = list(sites(network))[1]
    made = [line for line in _walk(network, _BATCH[n], memory) if line.cell == 1]
    return Numbers.of(cell, entering, size, _BATCH[n]), _by_part(edges, style.stride, made)


def _by_part(edges: Sequence[str], stride: int, lines: Sequence[_Line]) -> _Parts:
    """A packing that is a call of its own belongs to the part whose value it reads.

    Additions come in the order of the nodes, and each node has as many as its way says.
    """
    found = ways(edges, stride)
    sums = [part for part, way in found.items() if isinstance(way, Skips) for _ in range(way.additions)]
    parts: _Parts = {}
    maker: dict[str, str | int] = {}
    for _, call, signature in lines:
        name, own = _CELL.sub("", call.step), None
        if name.startswith("add"):
            own = sums.pop(0)
        elif edge := _EDGE.match(name):
            own = EDGES.index((int(edge[1]), int(edge[2])))
            own = maker[call.inputs[0]] if name.endswith("_pack") else own
        else:
            own = {"preprocess": "first", "halved": "halved", "join": "join", "shortcut": "join"}[name.split("_")[0]]
        maker.update(dict.fromkeys(call.covers, own))
        parts.setdefault(own, []).append((_EDGE.sub("", name.rstrip("0123456789_")), signature))
    return parts


# ---- networks -------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def steps(network: BarsConfig) -> tuple[Step, ...]:
    """What `bitnas.freeze` makes of the network: it is made and frozen here, in a quarter of a second."""
    return outline.without_chance(lambda: freeze(Bars(network).eval()))


def random_network(network: BarsConfig, generator: torch.Generator, memory: Memory = "fast") -> PackedNetwork:
    """The frozen network with random bits. It is as fast as a trained one."""
    return outline.random_network(steps(network), network.to_dict(), generator, memory)


@functools.lru_cache(maxsize=1024)
def signatures(network: BarsConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Of the calls of the frozen network on a batch, in order, and last of the pass around them (`packed.calls`)."""
    return tuple(call_signatures(steps(network), (batch, *network.input_size), memory))


def calls(network: BarsConfig, batch: int = 1, memory: Memory = "fast") -> list[str]:
    """The same in another order, from the parts of cells: at once where those are known."""
    found = [*stem_calls(network, batch, memory), *head_calls(network, batch, memory)]
    for style, (cell, cin, size) in zip(styles(network), sites(network), strict=True):
        numbers = Numbers.of(cell, cin, size, batch)
        for part in pieces(cell.edges, style):
            found += fill(part_calls(part, cell.edges, memory), numbers)
    return [*found, pass_call(len(found))]


def length(network: BarsConfig, batch: int = 1, memory: Memory = "fast") -> int:
    """How many calls there are, without that of the pass."""
    count = len(stem_calls(network, batch, memory)) + len(head_calls(network, batch, memory))
    for style, cell in zip(styles(network), network.cells, strict=True):
        count += sum(len(part_calls(part, cell.edges, memory)) for part in pieces(cell.edges, style))
    return count


def pass_call(count: int) -> str:
    """The signature of what a pass of so many calls costs beside them."""
    return packed_calls.canonical({"does": "pass", "calls": count})


def stem_calls(network: BarsConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Of the stem in front of the network's first cell, and packing for that where it is a call of its own."""
    nodes = _PLAIN if has_nodes(network.cells[0].edges) else NO_NODES
    twin = dataclasses.replace(network, cells=(Cell(nodes, 1), Cell(_PLAIN, 1)), num_classes=2, auxiliary=None)
    return _ends(twin, batch, memory)[0]


def head_calls(network: BarsConfig, batch: int = 1, memory: Memory = "fast") -> tuple[str, ...]:
    """Of what follows the network's last cell."""
    cell, _, size = list(sites(network))[-1]
    size = halved(size) if cell.stride == 2 else size
    cells = (Cell(NO_NODES, 1), Cell(NO_NODES, cell.channels))
    twin = BarsConfig(1, 1, cells, network.preprocess, network.num_classes, (1, *size), scheme=network.scheme)
    return _ends(twin, batch, memory)[1]


@functools.lru_cache(maxsize=1024)
def _ends(network: BarsConfig, batch: int, memory: Memory) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The calls of the stem and of the head."""
    lines = list(_walk(network, batch, memory))
    first, last = (tuple(line.signature for line in lines if line.cell == own) for own in (_STEM, _END))
    return first, last


# ---- freezing -------------------------------------------------------------------------------

_STEM, _END = -1, 10**6


class _Line(NamedTuple):
    cell: int
    call: Call
    signature: str


def _walk(network: BarsConfig, batch: int, memory: Memory) -> Iterator[_Line]:
    """The calls of a network, each with its cell, or the stem or the head."""
    made = steps(network)
    with torch.device("meta"):
        layers = {step.name: layer for step in made if (layer := build_layer(step)) is not None}
    found = call_signatures(made, (batch, *network.input_size), memory)
    part = _STEM
    for (call, _), signature in zip(make_plan(made, layers), found[:-1], strict=True):
        own = part
        if call.step != _FIRST_PACK and (inside := _CELL.match(call.step)):
            own = int(inside[1])
        elif call.step.startswith(_HEAD):
            own = _END
        if own < part:
            raise RuntimeError(f"call {call.step} of part {own} comes after calls of part {part}; wanted them in order")
        part = own
        yield _Line(part, call, signature)

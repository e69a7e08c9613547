"""What decides the calls of a cell: its structure, and how likely each of the ways is that a part of it can be called.

For calls it matters of an edge whether nothing, a skip or a convolution is on it, and of what kind that convolution is
matters for its own call alone. That leaves 3**10 structures. In each a part (the first convolution, an edge, a sum of
skips, the join) is called in one of a few ways, by what it is the first or last term of and by how many convolutions
read its value. Here all structures are looked at once; the way of a part then depends on the edges into each node by
little, so structures that it cannot tell apart are merged node by node, and what is left is a sum over some thousand
products of four probabilities: exact, and a millisecond.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bitnas.models.bars import EDGES, NODES
from bitnas.models.operations import NONE, SKIP

_NOTHING, _SKIP, _CONVOLUTION = range(3)
_READERS = 11  # 0 to 10 convolutions read a value

INTO = tuple(tuple(e for e, (_, target) in enumerate(EDGES) if target == node) for node in range(1, NODES + 1))
"""The edges into nodes 1 to 4."""


@dataclass(frozen=True)
class First:
    """The convolution at the start: how many convolutions read its value, and whether a skip does."""

    readers: int
    skipped: bool


@dataclass(frozen=True)
class Halved:
    """The pooled value that skips of a reduction share: how many convolutions read it itself."""

    readers: int


@dataclass(frozen=True)
class Skips:
    """The sum of the skips into a node: additions, and how many convolutions read it where no convolution follows."""

    additions: int
    readers: int


@dataclass(frozen=True)
class Term:
    """A convolution on an edge: whether its node begins with it, and for the last one how many read the node."""

    first: bool
    readers: int


@dataclass(frozen=True)
class Joined:
    """The join: how many nodes are live."""

    live: int


Way = First | Halved | Skips | Term | Joined


def roles(operations: Sequence[str]) -> tuple[int, ...]:
    """Which of nothing, skip and convolution there are among the operations."""
    kinds = {_role(name) for name in operations}
    return tuple(role for role in range(3) if role in kinds)


def _role(operation: str) -> int:
    return {NONE: _NOTHING, SKIP: _SKIP}.get(operation, _CONVOLUTION)


def ways(edges: Sequence[str], stride: int) -> dict[str | int, Way]:
    """How each part of one cell is called: `"first"`, `"halved"`, `"skips 2"` of a node, `"join"`, and edges."""
    codes = torch.tensor([[_role(name) for name in edges]])
    found = _all_ways(codes, stride)
    return {part: _decode(part, int(code)) for part, code in found.items() if code >= 0}


def _all_ways(codes: Tensor, stride: int) -> dict[str | int, Tensor]:
    """Of many structures `[n, 10]`, the way of each part as a number, -1 where it is not there."""
    n = len(codes)
    live = [torch.ones(n, dtype=torch.bool)]
    skip, convolution = {}, {}
    for into in INTO:
        for e in into:
            reached = live[EDGES[e][0]]
            skip[e], convolution[e] = reached & (codes[:, e] == _SKIP), reached & (codes[:, e] == _CONVOLUTION)
        live.append(torch.stack([skip[e] | convolution[e] for e in into]).any(0))
    # Which value a node is: its own, or where it is one skip alone that of its source; NODES + 1 is the pooled one.
    value = [torch.zeros(n, dtype=torch.long)]
    skips, convolutions = [torch.zeros(n, dtype=torch.long)], [torch.zeros(n, dtype=torch.long)]
    for node, into in enumerate(INTO, 1):
        skips.append(torch.stack([skip[e] for e in into]).long().sum(0))
        convolutions.append(torch.stack([convolution[e] for e in into]).long().sum(0))
        alone = (skips[node] == 1) & (convolutions[node] == 0)
        own = torch.full((n,), node)
        for e in into:
            source = EDGES[e][0]
            root = torch.full((n,), NODES + 1) if source == 0 and stride == 2 else value[source]
            own = torch.where(alone & skip[e], root, own)
        value.append(own)

    def readers(which: int) -> Tensor:
        return torch.stack([(value[EDGES[e][0]] == which) & convolution[e] for e in range(len(EDGES))]).long().sum(0)

    from_first = torch.stack([skip[e] for e, (source, _) in enumerate(EDGES) if source == 0]).any(0)
    nodes = torch.stack(live[1:]).long().sum(0)
    parts: dict[str | int, Tensor] = {
        "first": torch.where(nodes > 0, readers(0) * 2 + from_first, -1),
        "join": nodes,
    }
    if stride == 2:
        parts["halved"] = torch.where(from_first, readers(NODES + 1), -1)
    for node, into in enumerate(INTO, 1):
        read = readers(node)
        if node > 1:
            last = torch.where(convolutions[node] == 0, read, 0)
            parts[f"skips {node}"] = torch.where(skips[node] > 1, (skips[node] - 1) * _READERS + last, -1)
        for position, e in enumerate(into):
            among = torch.stack([convolution[other] for other in into])
            begins = (skips[node] == 0) & ~among[:position].any(0)
            ends = ~among[position + 1 :].any(0)
            code = begins * _READERS + torch.where(ends, read, 0)
            parts[e] = torch.where(convolution[e], code, -1)
    return parts


def _decode(part: str | int, code: int) -> Way:
    if part == "first":
        return First(code // 2, bool(code % 2))
    if part == "halved":
        return Halved(code)
    if part == "join":
        return Joined(code)
    if isinstance(part, int):
        return Term(bool(code // _READERS), code % _READERS)
    return Skips(code // _READERS, code % _READERS)


class Structures:
    """All structures of cells of some roles and a stride, and the probabilities of the ways of their parts.

    Attributes:
        ways: each part with each way it can be called, in the order of `probabilities`.
        examples: for each, a structure that has it: few different ones in all, and for the join of few calls.
    """

    def __init__(self, roles: tuple[int, ...], stride: int) -> None:
        self.roles = roles
        codes = torch.tensor(list(itertools.product(roles, repeat=len(EDGES))))
        found = _all_ways(codes, stride)
        self.ways: list[tuple[str | int, Way]] = []
        numbered: list[Tensor] = []
        self._classes: list[Tensor] = []
        terms: list[Tensor] = []
        outcomes: list[Tensor] = []
        offset = 0
        for part, code in found.items():
            values = [int(value) for value in code.unique() if value >= 0]
            numbers = torch.full((int(code.max()) + 2,), -1)
            for value in values:
                numbers[value] = len(self.ways)
                self.ways.append((part, _decode(part, value)))
            # -1 indexes the last number, which is -1.
            numbered.append(numbers[code])
            merged, classes = self._merged(numbers[code].reshape([len(roles) ** n for n in range(1, NODES + 1)]))
            where = (merged >= 0).nonzero()
            outcomes.append(merged[tuple(where.T)])
            starts = []
            for node, of_pattern in enumerate(classes, 1):
                table = torch.zeros(self._width, int(of_pattern.max()) + 1, dtype=torch.float64)
                begin = self._start(node, part)
                table[range(begin, begin + len(of_pattern)), of_pattern] = 1
                self._classes.append(table)
                starts.append(offset)
                offset += table.shape[1]
            terms.append(where + torch.tensor(starts))
        self._merge = torch.cat(self._classes, 1)
        del self._classes
        self._terms = torch.cat(terms).T.contiguous()
        self._outcomes = torch.cat(outcomes)
        self.examples = self._examples(codes, torch.stack(numbered, 1))

    def _examples(self, codes: Tensor, numbered: Tensor) -> list[tuple[int, ...]]:
        """`numbered`: of each structure the numbers of its ways, -1 for parts that it has not."""
        # What is called alike on any edge, into any node, needs one example.
        kinds: dict[tuple[Way, bool], int] = {}
        of_way = []
        for part, way in self.ways:
            from_input = isinstance(part, int) and EDGES[part][0] == 0
            of_way.append(kinds.setdefault((way, from_input), len(kinds)))
        parts = (numbered >= 0).sum(1)
        found: dict[int, Tensor] = {}
        for number, (part, _) in enumerate(self.ways):
            if part == "join":
                has = (numbered == number).any(1)
                found[of_way[number]] = codes[torch.where(has, parts, len(EDGES) ** 2).argmin()]
        held = torch.tensor([*of_way, len(kinds)])[numbered]
        left = torch.ones(len(kinds) + 1, dtype=torch.bool)
        left[[*found, len(kinds)]] = False
        while left.any():
            best = left[held].sum(1).argmax()
            for kind in held[best].unique().tolist():
                if left[kind]:
                    found[kind] = codes[best]
                    left[kind] = False
        return [tuple(found[kind].tolist()) for kind in of_way]

    # Patterns of the edges into each node, then for each edge those of its node given that a convolution is on it.

    @functools.cached_property
    def _tables(self) -> list[tuple[int, int | None]]:
        plain: list[tuple[int, int | None]] = [(node, None) for node in range(1, NODES + 1)]
        return plain + [(target, e) for e, (_, target) in enumerate(EDGES)]

    @property
    def _width(self) -> int:
        return sum(len(self.roles) ** node for node, _ in self._tables)

    def _start(self, node: int, part: str | int) -> int:
        wanted = (node, part if isinstance(part, int) and EDGES[part][1] == node else None)
        before = self._tables[: self._tables.index(wanted)]
        return sum(len(self.roles) ** n for n, _ in before)

    def _merged(self, outcomes: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The same table with equal slices of each axis as one, and which one each slice became."""
        classes = []
        for axis in range(NODES):
            slices = outcomes.movedim(axis, 0)
            _, of_pattern = slices.reshape(len(slices), -1).unique(dim=0, return_inverse=True)
            first = torch.stack([(of_pattern == c).nonzero()[0, 0] for c in range(int(of_pattern.max()) + 1)])
            outcomes = slices[first].movedim(0, axis)
            classes.append(of_pattern)
        return outcomes, classes

    def probabilities(self, edges: Tensor, operations: Sequence[str]) -> Tensor:
        """`[groups, ways]` in float64: how likely each way is. Of an edge: given that a convolution is on it.

        Args:
            edges: `[groups, 10, operations]` in float64: those of the operations.
        """
        members = torch.tensor([[_role(name) == role for role in self.roles] for name in operations])
        chances = edges @ members.double()
        sure = torch.tensor([float(role == _CONVOLUTION) for role in self.roles], dtype=torch.float64)
        patterns = []
        for node, given in self._tables:
            made = edges.new_ones(len(edges), 1)
            for e in INTO[node - 1]:
                factor = sure.expand(len(edges), -1) if e == given else chances[:, e]
                made = (made.unsqueeze(2) * factor.unsqueeze(1)).flatten(1)
            patterns.append(made)
        # Ways and terms first, groups of cells side by side: so that looking up is copying rows.
        classes = (torch.cat(patterns, 1) @ self._merge).T.contiguous()
        one, two, three, four = (classes.index_select(0, column) for column in self._terms)
        total = edges.new_zeros(len(self.ways), len(edges))
        return total.index_add(0, self._outcomes, one * two * three * four).T


@functools.cache
def structures(roles: tuple[int, ...], stride: int) -> Structures:
    """Made once."""
    return Structures(roles, stride)

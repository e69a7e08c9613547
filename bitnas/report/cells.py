"""What pictures need to know of BARS (Zhao et al. 2020): how a space is laid out, and what an architecture keeps of it.

A report reads JSON and no torch, so the few rules of `bitnas.methods.bars.description` that a drawing needs stand here
once more; a test holds the two together.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from ..files import CorruptFileError
from .records import number

NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES + 1) for source in range(target))
NONE, SKIP = "none", "skip"
_MOST = 1000  # cells, groups or channels in thousands: more than that is damage
_CONVOLUTION = re.compile(r"(?:binary_)?(dil_)?conv_(\d+)x\2")


@dataclass(frozen=True)
class Space:
    """Layout and choices of a search space, as `config.json` holds them."""

    name: str
    layout: str
    topology: tuple[int, ...]
    operations: tuple[str, ...]
    widths: tuple[float, ...]
    by_stage: bool
    least_depth: int | None
    preprocess: str

    @property
    def topologies(self) -> int:
        """How many groups of cells share their operations."""
        return max(self.topology) + 1

    @property
    def stage_of(self) -> tuple[int, ...]:
        """The stage of each cell: a reduction cell begins one."""
        return tuple(accumulate(int(kind == "R") for kind in self.layout))

    @property
    def width_of(self) -> tuple[int, ...]:
        """The width group of each cell; the last one before a reduction has that of the stage behind it."""
        if not self.by_stage:
            return tuple(range(len(self.layout)))
        stages, groups = self.stage_of, dict[int, int]()
        before = [kind == "N" and self.layout[n + 1 : n + 2] == "R" for n, kind in enumerate(self.layout)]
        return tuple(groups.setdefault(stages[n] + last, len(groups)) for n, last in enumerate(before))

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """For each stage its normal cells, by their place in the layout."""
        of = self.stage_of
        return tuple(
            tuple(n for n, kind in enumerate(self.layout) if of[n] == stage and kind == "N")
            for stage in range(self.layout.count("R") + 1)
        )

    @property
    def depth_choices(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, how many of its normal cells may be kept."""
        sizes = [len(cells) for cells in self.stages]
        return tuple(tuple(range(size if self.least_depth is None else min(self.least_depth, size), size + 1))
                     for size in sizes)  # fmt: skip

    def places(self, group: int) -> list[int]:
        """The cells of a topology group, by their place in the layout."""
        return [n for n, own in enumerate(self.topology) if own == group]

    def kind_of(self, group: int) -> str:
        """What the cells of a topology group are."""
        kinds = {self.layout[n] for n in self.places(group)}
        return "normal" if kinds == {"N"} else "reduction" if kinds == {"R"} else "normal and reduction"

    def cells_of(self, group: int) -> str:
        """ "normal, cell 3" or "reduction, cells 3 and 6", counted from 1."""
        found, kind = self.places(group), self.kind_of(group)
        words = [str(n + 1) for n in found]
        listed = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
        return f"{kind}, cell{'s' if len(found) > 1 else ''} {listed}"

    def sharing(self, group: int) -> str:
        """ "cell 1" or "cells 2 to 4": those of a width group, counted from 1."""
        found = [n + 1 for n, own in enumerate(self.width_of) if own == group]
        return f"cell {found[0]}" if len(found) == 1 else f"cells {found[0]} to {found[-1]}"

    def kept(self, depths: Sequence[int]) -> list[int]:
        """The cells that so many of each stage leave, by their place in the layout."""
        own = {n for cells, depth in zip(self.stages, depths, strict=True) for n in cells[:depth]}
        return [n for n, kind in enumerate(self.layout) if kind == "R" or n in own]


def read_space(path: Path, config: Mapping[str, Any]) -> Space:
    """The space of a search by BARS. Raises CorruptFileError for a configuration without one."""
    search = config.get("search")
    found = search.get("space") if isinstance(search, dict) else None
    if not isinstance(found, dict):
        raise CorruptFileError(path, "search.space: expected the description of a space")
    layout, operations, topology = found.get("layout"), found.get("operations"), found.get("topology")
    good = isinstance(layout, str) and 0 < len(layout) <= _MOST and not set(layout) - {"N", "R"}
    good &= isinstance(operations, list) and bool(operations) and all(isinstance(name, str) for name in operations)
    if not good or not isinstance(layout, str) or not isinstance(operations, list):
        raise CorruptFileError(path, "search.space: expected a layout of N and R, and a list of operations")
    if not isinstance(topology, list) or not all(map(is_count, topology)) or len(topology) != len(layout):
        raise CorruptFileError(path, "search.space.topology: expected a group for each cell of the layout")
    if set(topology) != set(range(max(topology) + 1)):
        raise CorruptFileError(path, "search.space.topology: a group has no cell")
    widths = _shares(path, found.get("widths"), "search.space.widths")
    least = found.get("least_depth")
    if least is not None and not is_count(least):
        raise CorruptFileError(path, f"search.space.least_depth: got {str(least)[:60]!r}, expected a whole number")
    name = found.get("name")
    return Space(
        name if isinstance(name, str) else "",
        layout,
        tuple(topology),
        tuple(operations),
        widths,
        found.get("width_groups", "stage") == "stage",
        least,
        str(found.get("preprocess", "binary")),
    )


@dataclass(frozen=True)
class Architecture:
    """Operations of each topology group, share of each width group, normal cells kept of each stage."""

    cells: tuple[tuple[str, ...], ...]
    widths: tuple[float, ...]
    depths: tuple[int, ...]


def read_architecture(path: Path, values: Any, space: Space | None = None) -> Architecture:
    """A point of a space. Raises CorruptFileError for what is none, or none of `space`."""
    cells, depths = (values.get(name) if isinstance(values, dict) else None for name in ("cells", "depths"))
    good = isinstance(cells, list) and all(isinstance(cell, list) and len(cell) == len(EDGES) for cell in cells)
    good = good and all(isinstance(name, str) for cell in cells or () for name in cell)
    if not good or not isinstance(depths, list) or not all(map(is_count, depths)):
        raise CorruptFileError(path, f"architecture: got {str(values)[:60]!r}, expected cells of 10 operations, depths")
    shares = _shares(path, values.get("widths"), "architecture: widths")
    found = Architecture(tuple(map(tuple, cells or ())), shares, tuple(depths))
    if space is not None and not _fits(found, space):
        raise CorruptFileError(path, f"architecture: {str(values)[:60]!r} is not of the space in config.json")
    return found


def _fits(found: Architecture, space: Space) -> bool:
    sizes = [len(found.cells), len(found.widths), len(found.depths)]
    if sizes != [space.topologies, max(space.width_of) + 1, len(space.stages)]:
        return False
    known = all(name in space.operations for cell in found.cells for name in cell)
    known &= set(found.widths) <= set(space.widths)
    return known and all(d in choices for d, choices in zip(found.depths, space.depth_choices, strict=True))


def live_nodes(edges: Sequence[str]) -> tuple[bool, ...]:
    """For nodes 0 to 4 of a cell, whether anything of the cell's input reaches them."""
    live = [True, *[False] * NODES]
    for (source, target), operation in zip(EDGES, edges, strict=True):
        live[target] |= live[source] and operation != NONE
    return tuple(live)


def alive(edges: Sequence[str]) -> tuple[str, ...]:
    """The same cell with `none` on every edge out of a node that nothing reaches."""
    live = live_nodes(edges)
    return tuple(name if live[source] else NONE for (source, _), name in zip(EDGES, edges, strict=True))


def short_name(operation: str) -> str:
    """ "3×3" for `binary_conv_3x3`, "3×3 d" where it is dilated; other names as they are."""
    found = _CONVOLUTION.fullmatch(operation)
    return operation if found is None else f"{found[2]}×{found[2]}{' d' if found[1] else ''}"


def long_name(operation: str) -> str:
    """What a legend calls an operation."""
    found = _CONVOLUTION.fullmatch(operation)
    if found is None:
        return operation.replace("_", " ")
    return f"binary {'dilated ' if found[1] else ''}{found[2]}×{found[2]}"


def colour(operation: str, operations: Sequence[str]) -> str:
    """The CSS class of an operation: those that compute something have a colour each, in the order of the space."""
    if operation in (NONE, SKIP):
        return f"op-{operation}"
    computing = [name for name in operations if name not in (NONE, SKIP)]
    return f"op-{computing.index(operation) % COLOURS}" if operation in computing else "op-0"


COLOURS = 5  # of operations that compute something, in style.py


def is_count(value: Any) -> bool:
    """Whether it is a whole number that a description can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST


def _shares(path: Path, values: Any, name: str) -> tuple[float, ...]:
    found = [number({"": value}, "") for value in values] if isinstance(values, list) else []
    shares = tuple(value for value in found if value is not None and 0 < value <= _MOST)
    if not shares or len(shares) != len(found):
        raise CorruptFileError(path, f"{name}: got {str(values)[:60]!r}, expected a list of shares")
    return shares

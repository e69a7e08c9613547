"""Networks of the space of BARS (Zhao et al. 2020, arXiv 2011.10804): cells of binary operations, as plain modules.

A cell has an input node and four more, with an operation or none on each of the ten edges. Its four nodes, one behind
the other, and a shortcut without parameters that goes past every cell are its output: so full-precision features reach
the end although no convolution of a cell is in full precision.
"""

import functools
import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from bitnas.models.operations import NONE, OPERATIONS, SKIP, BinaryOperation, pool
from bitnas.models.registry import register_config
from bitnas.nn import FitChannels, JoinNodes, get_scheme
from bitnas.nn.arguments import integer

NAME = "bars"
NODES = 4
EDGES = tuple((source, target) for target in range(1, NODES + 1) for source in range(target))
"""`(source, target)` of the ten edges in the order of every list of operations: those into node 1, node 2, ..."""

PREPROCESS = ("binary", "float")
MOST_PARAMETERS = 10**9  # training holds 16 bytes for each


def live_nodes(edges: Sequence[str]) -> tuple[bool, ...]:
    """Of the operations of the ten edges: for nodes 0 to 4, whether anything of the cell's input reaches them."""
    live = [True, *[False] * NODES]
    for (source, target), operation in zip(EDGES, edges, strict=True):
        live[target] |= live[source] and operation != NONE
    return tuple(live)


def canonical(edges: Sequence[str]) -> tuple[str, ...]:
    """The same cell with `none` on every edge that leaves a node which nothing reaches."""
    live = live_nodes(edges)
    return tuple(operation if live[source] else NONE for (source, _), operation in zip(EDGES, edges, strict=True))


@dataclass(frozen=True)
class Cell:
    """One cell: an operation for each of `EDGES`, `channels` of each node, stride 1 or (a reduction cell) 2."""

    edges: tuple[str, ...]
    channels: int
    stride: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.edges, str) or not isinstance(self.edges, Sequence) or len(self.edges) != len(EDGES):
            raise ValueError(f"edges: got {self.edges!r}, wanted {len(EDGES)} operations")
        object.__setattr__(self, "edges", tuple(self.edges))
        for operation in self.edges:
            if operation not in OPERATIONS:
                raise ValueError(f"edges: got {operation!r}, wanted one of {', '.join(OPERATIONS)}")
        live = live_nodes(self.edges)
        for (source, target), operation in zip(EDGES, self.edges, strict=True):
            if operation != NONE and not live[source]:
                raise ValueError(
                    f"edges: got {operation!r} from node {source} to {target}, but nothing reaches node {source}; "
                    f"wanted {NONE!r} (bitnas.models.bars.canonical)"
                )
        integer("channels", self.channels)
        if self.stride not in (1, 2):
            raise ValueError(f"stride: got {self.stride!r}, wanted 1 or 2")

    @property
    def inner(self) -> int:
        """Channels of the input node: a reduction cell doubles them on its way to the others."""
        return max(1, self.channels // self.stride)


@dataclass(frozen=True)
class BarsConfig:
    """Everything that decides the shape of a network; `key()` is its identity.

    Attributes:
        stem: channels of the first convolution, 3 x 3.
        width: channels of each of the four groups that the stem's 1 x 1 convolution makes.
        cells: in order.
        preprocess: `"binary"` or `"float"`: the 1 x 1 convolution at the start of each cell.
        stem_stride: 1; 2 strides the first convolution; 4 puts a max-pool of stride 2 behind it too.
        scheme: of the binary layers, one of `bitnas.nn.SCHEMES`.
        auxiliary: the cell (its index) whose output a second classifier reads while training, or None.

    Raises TypeError or ValueError naming the field.
    """

    stem: int
    width: int
    cells: tuple[Cell, ...]
    preprocess: str = "binary"
    num_classes: int = 10
    input_size: tuple[int, int, int] = (3, 32, 32)
    stem_stride: int = 1
    scheme: str = "bars"
    auxiliary: int | None = None

    def __post_init__(self) -> None:
        for name in ("stem", "width", "num_classes"):
            integer(name, getattr(self, name))
        if self.preprocess not in PREPROCESS:
            raise ValueError(f"preprocess: got {self.preprocess!r}, wanted {' or '.join(PREPROCESS)}")
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"stem_stride: got {self.stem_stride!r}, wanted 1, 2 or 4")
        get_scheme(self.scheme)
        if isinstance(self.input_size, str) or not isinstance(self.input_size, Sequence) or len(self.input_size) != 3:
            raise ValueError(f"input_size: got {self.input_size!r}, wanted (channels, height, width)")
        object.__setattr__(self, "input_size", tuple(integer("input_size", n) for n in self.input_size))
        if isinstance(self.cells, str) or not isinstance(self.cells, Sequence) or not self.cells:
            raise ValueError(f"cells: got {self.cells!r}, wanted at least one cell")
        object.__setattr__(self, "cells", tuple(_cell(n, cell) for n, cell in enumerate(self.cells)))
        if self.auxiliary is not None and (
            isinstance(self.auxiliary, bool)
            or not isinstance(self.auxiliary, int)
            or not 0 <= self.auxiliary < len(self.cells)
        ):
            raise ValueError(f"auxiliary: got {self.auxiliary!r}, wanted None or the index of a cell")
        self._check_parameters()

    def _check_parameters(self) -> None:
        """The weights of convolutions and classifiers, before any of them is made; the rest is small."""
        sizes = {"input_size": self.input_size[0], "stem": self.stem, "width": self.width}
        sizes |= {"num_classes": self.num_classes}
        sizes |= {f"cells[{n}].channels": cell.channels for n, cell in enumerate(self.cells)}
        parameters: list[tuple[int, str, str]] = [
            (9 * self.input_size[0] * self.stem, "input_size", "stem"),
            (NODES * self.stem * self.width, "stem", "width"),
        ]
        before = "width"
        for number, (cin, cell) in enumerate(zip(self.entering, self.cells, strict=True)):
            own = f"cells[{number}].channels"
            if any(live_nodes(cell.edges)[1:]):
                parameters.append((NODES * cin * cell.inner, before, own))
            taps = sum(OPERATIONS[name].kernel ** 2 * (cell.inner if source == 0 else cell.channels)
                       for (source, _), name in zip(EDGES, cell.edges, strict=True))  # fmt: skip
            parameters.append((taps * cell.channels, own, own))
            if number == self.auxiliary:
                parameters.append((NODES * cell.channels * self.num_classes, own, "num_classes"))
            before = own
        parameters.append((NODES * self.cells[-1].channels * self.num_classes, before, "num_classes"))
        total = sum(count for count, *_ in parameters)
        if total > MOST_PARAMETERS:
            _, *between = max(parameters)
            field = max(between, key=lambda name: sizes[name])
            raise ValueError(
                f"{field}: got {sizes[field]}, with which the network has {total:.3g} weights; wanted at most "
                f"{MOST_PARAMETERS:.3g} in all"
            )

    @property
    def name(self) -> str:
        """What the network is called in files."""
        return NAME

    @property
    def entering(self) -> tuple[int, ...]:
        """Channels of each of the four groups that enter each cell."""
        return (self.width, *(cell.channels for cell in self.cells[:-1]))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of `from_dict`."""
        cells = [{**asdict(cell), "edges": list(cell.edges)} for cell in self.cells]
        return {"name": NAME, **asdict(self), "cells": cells, "input_size": list(self.input_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BarsConfig":
        """Raises ValueError for a missing or an unknown field, or another network."""
        values = dict(values)
        if (name := values.pop("name", NAME)) != NAME:
            raise ValueError(f"name: got {name!r}, wanted {NAME!r}")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        missing = sorted({"stem", "width", "cells"} - set(values))
        if unknown or missing:
            raise ValueError(f"architecture of {NAME}: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the same for the same network in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def _cell(number: int, value: Any) -> Cell:
    if isinstance(value, Cell):
        return value
    where = f"cells[{number}]"
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: got {value!r}, wanted an object of edges, channels, stride")
    unknown = sorted(set(value) - {field.name for field in fields(Cell)})
    missing = sorted({"edges", "channels"} - set(value))
    if unknown or missing:
        raise ValueError(f"{where}: {dict(value)} has unknown fields {unknown}, missing fields {missing}")
    try:
        return Cell(**value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.{error}") from error


def preprocess(kind: str, cin: int, cout: int, scheme: str) -> nn.Module:
    """The 1 x 1 convolution from a cell's input to its first node: binary like any other operation, or ReLU,
    convolution and batch norm in full precision."""
    if kind == "binary":
        return BinaryOperation(cin, cout, 1, scheme=scheme)
    return nn.Sequential(nn.ReLU(), nn.Conv2d(cin, cout, 1, bias=False), nn.BatchNorm2d(cout))


class BarsCell(nn.Module):
    """Float `[N, 4 * cin, H, W]` to float `[N, 4 * cell.channels, H / stride, W / stride]`.

    In the sum of a node the skips come first, then the convolutions, each in the order of the edges.
    """

    def __init__(self, cin: int, cell: Cell, kind: str, scheme: str) -> None:
        super().__init__()
        self.cell = cell
        live = live_nodes(cell.edges)
        self.shortcut = pool(cell.stride)
        self.join = JoinNodes(NODES * cin, cell.channels, live[1:], cell.stride)
        self.edges = nn.ModuleDict()
        if not any(live[1:]):
            return
        self.preprocess = preprocess(kind, NODES * cin, cell.inner, scheme)
        named = [(source, target, operation) for (source, target), operation in zip(EDGES, cell.edges, strict=True)]
        if cell.stride == 2 and any(source == 0 and operation == SKIP for source, _, operation in named):
            # One value, however many nodes skip to it.
            self.halved = nn.Sequential(pool(2), FitChannels(cell.inner, cell.channels, repeat=2))
        for source, target, operation in named:
            if operation not in (NONE, SKIP):
                stride = cell.stride if source == 0 else 1
                made = OPERATIONS[operation].make(
                    cell.inner if source == 0 else cell.channels, cell.channels, stride, scheme
                )
                self.edges[f"{source}_{target}"] = made

    def forward(self, x: Tensor) -> Tensor:
        nodes: dict[int, Tensor] = {}
        if hasattr(self, "preprocess"):
            nodes[0] = self.preprocess(x)
        skipped = {0: self.halved(nodes[0])} if hasattr(self, "halved") else {}
        for target in range(1, NODES + 1):
            into = [(s, op) for (s, t), op in zip(EDGES, self.cell.edges, strict=True) if t == target and op != NONE]
            terms = [skipped.get(source, nodes[source]) for source, operation in into if operation == SKIP]
            terms += [self.edges[f"{source}_{target}"](nodes[source]) for source, op in into if op != SKIP]
            if terms:
                nodes[target] = functools.reduce(operator.add, terms)
        return self.join(self.shortcut(x), *(nodes[n] for n in range(1, NODES + 1) if n in nodes))


class BarsStem(nn.Module):
    """Float `[N, C, H, W]` to float `[N, 4 * width, H / stride, W / stride]`: two convolutions in full precision."""

    def __init__(self, channels: int, stem: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, stem, 3, 1 if stride == 1 else 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, 1) if stride == 4 else nn.Identity()
        self.widen = nn.Conv2d(stem, NODES * width, 1, bias=False)
        self.widen_bn = nn.BatchNorm2d(NODES * width)

    def forward(self, x: Tensor) -> Tensor:
        return self.widen_bn(self.widen(self.pool(self.relu(self.bn(self.conv(x))))))


@register_config(NAME, BarsConfig)
class Bars(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`."""

    def __init__(self, config: BarsConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = BarsStem(config.input_size[0], config.stem, config.width, config.stem_stride)
        self.cells = nn.ModuleList(
            BarsCell(cin, cell, config.preprocess, config.scheme)
            for cin, cell in zip(config.entering, config.cells, strict=True)
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(NODES * config.cells[-1].channels, config.num_classes)
        if config.auxiliary is not None:
            self.auxiliary = nn.Linear(NODES * config.cells[config.auxiliary].channels, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for cell in self.cells:
            x = cell(x)
        return self.fc(torch.flatten(self.pool(x), 1))

    def both(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and those of the auxiliary classifier. Raises ValueError for a network without one."""
        if self.config.auxiliary is None:
            raise ValueError("auxiliary: this network has no second classifier; its config names no cell for one")
        x = self.stem(x)
        for number, cell in enumerate(self.cells):
            x = cell(x)
            if number == self.config.auxiliary:
                second = self.auxiliary(torch.flatten(self.pool(x), 1))
        return self.fc(torch.flatten(self.pool(x), 1)), second

"""What a search space of BARS is, as data that a user can edit in a file, and what a point of it is.

A layout is a row of cells, N normal and R reduction. Three things are searched: the operations of each group of cells,
the width of each group of widths, and how many cells of each stage are kept.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from bitnas.methods.space_files import checked_fields, load_space, sequence
from bitnas.models.bars import EDGES, BarsConfig, Cell, canonical
from bitnas.models.operations import NONE, OPERATIONS
from bitnas.nn.arguments import integer, positive_real
from bitnas.search.space import Genome

NORMAL, REDUCTION = "N", "R"
BY_STAGE, BY_CELL = "stage", "cell"


@dataclass(frozen=True)
class Architecture:
    """A point of a space.

    Attributes:
        cells: for each topology group, the operations of `models.bars.EDGES`.
        widths: for each width group, its share of the channels.
        depths: for each stage, how many of its normal cells are kept, from the first.
    """

    cells: tuple[tuple[str, ...], ...]
    widths: tuple[float, ...]
    depths: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Architecture:
        """The inverse of `to_dict`."""
        fields = checked_fields("architecture", cls, values)
        return cls(tuple(map(tuple, fields["cells"])), tuple(fields["widths"]), tuple(fields["depths"]))


@dataclass(frozen=True)
class Place:
    """A cell of the layout: its stage, stride, topology and width group, and `channels` of a node at full width."""

    stage: int
    stride: int
    topology: int
    width: int
    channels: int


@dataclass(frozen=True, kw_only=True)
class Description:
    """A space.

    Attributes:
        name: what it is called in reports.
        layout: of N and R. A stage is a run of N; an R doubles the channels and halves the sides.
        topology: for each cell, the group whose operations it has: 0, 1, ... None: a group for each N, one for all R.
        operations: the choices on an edge, of `models.operations.OPERATIONS`.
        widths: the choices of width, shares of the full one, among them 1.
        width_groups: `"stage"`, where the last normal cell before an R has the width of the R and of the stage behind
            it, so that the R can double; or `"cell"`.
        least_depth: of the normal cells of a stage, how many are kept at least; None: all, depth is not searched.
        channels: of a node in the first stage, and of the stem, at full width.
        preprocess, scheme, stem_stride: as in `models.bars.BarsConfig`.
        input_size: `(C, H, W)`. num_classes: outputs.

    Raises TypeError or ValueError naming the field.
    """

    name: str
    layout: str
    topology: tuple[int, ...] | None = None
    operations: tuple[str, ...] = ("none", "skip", "binary_conv_3x3")
    widths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    width_groups: str = BY_STAGE
    least_depth: int | None = 0
    channels: int = 16
    preprocess: str = "binary"
    scheme: str = "bars"
    stem_stride: int = 1
    input_size: tuple[int, int, int] = (3, 32, 32)
    num_classes: int = 10

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: got {self.name!r}, wanted a word")
        if not isinstance(self.layout, str) or not self.layout or set(self.layout) - {NORMAL, REDUCTION}:
            raise ValueError(f"layout: got {self.layout!r}, wanted a word of {NORMAL} and {REDUCTION}")
        self._check_topology()
        operations = tuple(sequence("operations", self.operations))
        if not operations or len(set(operations)) != len(operations) or set(operations) - set(OPERATIONS):
            raise ValueError(f"operations: got {self.operations!r}, wanted some of {', '.join(OPERATIONS)}, none twice")
        if operations == (NONE,):
            raise ValueError("operations: got 'none' alone, wanted one that computes something")
        object.__setattr__(self, "operations", operations)
        widths = tuple(sorted(positive_real("widths", share) for share in sequence("widths", self.widths)))
        if not widths or len(set(widths)) != len(widths) or widths[-1] != 1:
            raise ValueError(f"widths: got {self.widths!r}, wanted shares up to 1, 1 among them, none twice")
        object.__setattr__(self, "widths", widths)
        if self.width_groups not in (BY_STAGE, BY_CELL):
            raise ValueError(f"width_groups: got {self.width_groups!r}, wanted {BY_STAGE!r} or {BY_CELL!r}")
        if self.least_depth is not None:
            integer("least_depth", self.least_depth, 0)
            if self.least_depth == 0 and REDUCTION not in self.layout:
                raise ValueError("least_depth: got 0, wanted at least 1 for a layout without a reduction cell")
        integer("channels", self.channels)
        integer("num_classes", self.num_classes, 2)
        size = tuple(integer("input_size", n) for n in sequence("input_size", self.input_size))
        if len(size) != 3:
            raise ValueError(f"input_size: got {self.input_size!r}, wanted (channels, height, width)")
        object.__setattr__(self, "input_size", size)
        self.network(self.biggest)  # what a network refuses, a space refuses

    def _check_topology(self) -> None:
        if self.topology is None:
            numbers = itertools.count(1 if REDUCTION in self.layout else 0)
            object.__setattr__(self, "topology", tuple(0 if c == REDUCTION else next(numbers) for c in self.layout))
            return
        groups = tuple(integer("topology", group, 0) for group in sequence("topology", self.topology))
        object.__setattr__(self, "topology", groups)
        if len(groups) != len(self.layout):
            raise ValueError(f"topology: got {len(groups)} groups, wanted one for each of {len(self.layout)} cells")
        if set(groups) != set(range(max(groups) + 1)):
            raise ValueError(f"topology: got {list(groups)}, wanted groups 0 to {max(groups)}, each for some cell")

    # ---- the structure ------------------------------------------------------------------------

    @property
    def places(self) -> tuple[Place, ...]:
        """The cells in order."""
        assert self.topology is not None
        stages = list(itertools.accumulate((kind == REDUCTION for kind in self.layout), initial=0))[1:]
        found = []
        groups: dict[int, int] = {}
        for number, kind in enumerate(self.layout):
            key = number
            if self.width_groups == BY_STAGE:
                before_reduction = self.layout[number + 1 : number + 2] == REDUCTION and kind == NORMAL
                key = stages[number] + before_reduction
            width = groups.setdefault(key, len(groups))
            stride = 2 if kind == REDUCTION else 1
            found.append(
                Place(stages[number], stride, self.topology[number], width, self.channels * 2 ** stages[number])
            )
        return tuple(found)

    @property
    def topologies(self) -> int:
        """How many topology groups there are."""
        assert self.topology is not None
        return max(self.topology) + 1

    @property
    def width_count(self) -> int:
        """How many width groups there are."""
        return max(place.width for place in self.places) + 1

    @property
    def stages(self) -> tuple[tuple[int, ...], ...]:
        """For each stage the cells, by their place in the layout, that are normal: 0 R of them end a stage."""
        count = self.layout.count(REDUCTION) + 1
        return tuple(
            tuple(n for n, place in enumerate(self.places) if place.stage == stage and place.stride == 1)
            for stage in range(count)
        )

    @property
    def depth_choices(self) -> tuple[tuple[int, ...], ...]:
        """For each stage, how many of its normal cells may be kept."""
        found = []
        for cells in self.stages:
            least = len(cells) if self.least_depth is None else min(self.least_depth, len(cells))
            found.append(tuple(range(least, len(cells) + 1)))
        return tuple(found)

    @property
    def size(self) -> int:
        """How many points there are."""
        cells = len(self.operations) ** (len(EDGES) * self.topologies)
        return cells * len(self.widths) ** self.width_count * math.prod(map(len, self.depth_choices))

    @property
    def biggest(self) -> Architecture:
        """All cells, full width, on every edge the operation of most multiply-adds."""
        most = max(self.operations, key=lambda name: OPERATIONS[name].kernel)
        cells = ((most,) * len(EDGES),) * self.topologies
        return Architecture(cells, (1.0,) * self.width_count, tuple(max(c) for c in self.depth_choices))

    def for_data(self, input_size: Sequence[int], num_classes: int) -> Description:
        """The same choices for other images and classes."""
        return dataclasses.replace(self, input_size=tuple(input_size), num_classes=num_classes)  # type: ignore[arg-type]

    # ---- points -------------------------------------------------------------------------------

    def network(self, architecture: Architecture) -> BarsConfig:
        """The network of a point. Raises ValueError for one that is not of the space."""
        self.validate(architecture)
        places = self.places
        kept = {n for cells, depth in zip(self.stages, architecture.depths, strict=True) for n in cells[:depth]}
        cells = tuple(
            Cell(canonical(architecture.cells[p.topology]), cut(architecture.widths[p.width], p.channels), p.stride)
            for n, p in enumerate(places)
            if p.stride == 2 or n in kept
        )
        return BarsConfig(
            self.channels,
            cut(architecture.widths[places[0].width], self.channels),
            cells,
            self.preprocess,
            self.num_classes,
            self.input_size,
            self.stem_stride,
            self.scheme,
        )

    def validate(self, architecture: Architecture) -> None:
        """Raises ValueError naming what is not of the space."""
        cells, widths, depths = architecture.cells, architecture.widths, architecture.depths
        wanted = (self.topologies, self.width_count, len(self.stages))
        if (len(cells), len(widths), len(depths)) != wanted:
            raise ValueError(
                f"architecture: got {len(cells)} cells, {len(widths)} widths, {len(depths)} depths, wanted {wanted}"
            )
        for group, edges in enumerate(cells):
            if len(edges) != len(EDGES) or set(edges) - set(self.operations):
                raise ValueError(f"cells[{group}]: got {edges!r}, wanted {len(EDGES)} of {', '.join(self.operations)}")
        for group, share in enumerate(widths):
            if share not in self.widths:
                raise ValueError(f"widths[{group}]: got {share!r}, wanted one of {self.widths}")
        for stage, (depth, choices) in enumerate(zip(depths, self.depth_choices, strict=True)):
            if depth not in choices:
                raise ValueError(f"depths[{stage}]: got {depth!r}, wanted one of {choices}")

    def random(self, rng: Random) -> Architecture:
        """A point drawn uniformly."""
        cells = tuple(tuple(rng.choice(self.operations) for _ in EDGES) for _ in range(self.topologies))
        widths = tuple(rng.choice(self.widths) for _ in range(self.width_count))
        return Architecture(cells, widths, tuple(rng.choice(choices) for choices in self.depth_choices))

    def enumerate(self) -> Iterator[Architecture]:
        """Every point. Raises ValueError for a space of more than a million."""
        if self.size > 10**6:
            raise ValueError(f"{self.name}: it has {self.size} points, wanted at most a million to list")
        cell = list(itertools.product(self.operations, repeat=len(EDGES)))
        for cells in itertools.product(cell, repeat=self.topologies):
            for widths in itertools.product(self.widths, repeat=self.width_count):
                for depths in itertools.product(*self.depth_choices):
                    yield Architecture(cells, widths, depths)

    def genome(self, architecture: Architecture) -> Genome:
        """The point as numbers: indices of operations, edge by edge and group by group, of widths, then the depths."""
        self.validate(architecture)
        operations = [self.operations.index(name) for edges in architecture.cells for name in edges]
        widths = [self.widths.index(share) for share in architecture.widths]
        return tuple(map(float, (*operations, *widths, *architecture.depths)))

    def architecture(self, genome: Sequence[float]) -> Architecture:
        """The inverse of `genome`. Raises ValueError for numbers that stand for no point."""
        edges, widths = len(EDGES) * self.topologies, self.width_count
        if len(genome) != edges + widths + len(self.stages):
            raise ValueError(f"genome: got {len(genome)} numbers, wanted {edges + widths + len(self.stages)}")
        numbers = [int(number) for number in genome]
        if numbers != list(genome) or min(numbers) < 0:
            raise ValueError(f"genome: got {tuple(genome)}, wanted integers of at least 0")
        try:
            names = [self.operations[n] for n in numbers[:edges]]
            shares = tuple(self.widths[n] for n in numbers[edges : edges + widths])
        except IndexError as error:
            raise ValueError(f"genome: got {tuple(genome)}, which stands for no point of the space") from error
        cells = tuple(tuple(names[n : n + len(EDGES)]) for n in range(0, edges, len(EDGES)))
        found = Architecture(cells, shares, tuple(numbers[edges + widths :]))
        self.validate(found)
        return found

    # ---- files --------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as a space file holds them."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields, as a file may have them."""
        return cls(**checked_fields("space", cls, values))

    def key(self) -> str:
        """SHA-256 of the canonical JSON without the name: equal spaces have equal keys."""
        values = {name: value for name, value in self.to_dict().items() if name != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def cut(share: float, channels: int) -> int:
    """How many of the channels a width keeps: the first floor(share * channels), at least one."""
    return max(1, math.floor(share * channels))


def load(name: str | os.PathLike[str]) -> Description:
    """A space by its name in `DESCRIPTIONS`, or from a JSON file; raises as `load_space`."""
    return load_space(name, DESCRIPTIONS, Description.from_dict)


DESCRIPTIONS: dict[str, Description] = {
    # The authors' interim configuration for CIFAR-10 (public history, September 2020): its layout, groups, operations
    # and convolution before each cell. Channels are those of the example that the counter is known by.
    "cifar": Description(
        name="cifar",
        layout="NNRNNRNN",
        topology=(1, 2, 0, 3, 4, 0, 5, 6),
        operations=("skip", "binary_conv_3x3"),
        channels=16,
        preprocess="float",
    ),
    # The final configuration is lost: this is the same scheme with a stage more.
    "imagenet": Description(
        name="imagenet",
        layout="NNRNNRNNRNN",
        channels=32,
        stem_stride=4,
        input_size=(3, 224, 224),
        num_classes=1000,
    ),
    # For images of 8 x 8 to 28 x 28, on a processor, in minutes.
    "small": Description(
        name="small",
        layout="NNRNNRN",
        channels=8,
        input_size=(1, 8, 8),
    ),
}

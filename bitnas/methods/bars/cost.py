"""What a network of BARS costs, in closed form (Zhao et al. 2020): price lists are filled from it, cell by cell.

`bitnas.count` reads the same figures from the network itself, in seconds where this takes microseconds, and the tests
hold the two equal.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from bitnas.methods.bars.description import Architecture, Description
from bitnas.models.bars import EDGES, NODES, BarsConfig, Cell, live_nodes
from bitnas.models.operations import NONE, OPERATIONS, SKIP

Size = tuple[int, int]
"""Height and width."""


@dataclass(frozen=True)
class Cost:
    """Figures of one network or of a part of it, for one image.

    Attributes:
        macs: multiply-adds in full precision. bops: binary ones.
        binary_weights: weights of one bit. params: all trainable parameters.
    """

    macs: int = 0
    bops: int = 0
    binary_weights: int = 0
    params: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.macs + other.macs,
            self.bops + other.bops,
            self.binary_weights + other.binary_weights,
            self.params + other.params,
        )

    @property
    def ops(self) -> int | float:
        """MACs + BOPs / 64, as rule `mac`; an int unless it has a fractional part."""
        whole, rest = divmod(self.bops, 64)
        return self.macs + whole + rest / 64 if rest else self.macs + whole

    @property
    def operations(self) -> int:
        """Two for every multiply-add, float and binary alike: `ops` of rule `bars`."""
        return 2 * (self.macs + self.bops)

    @property
    def memory_bits(self) -> int:
        """Parameters as stored: one bit for a binary weight, 32 for the others."""
        return self.binary_weights + 32 * (self.params - self.binary_weights)


def costs(description: Description, architecture: Architecture) -> dict[str, int | float]:
    """`flops, bops, ops, memory_bits, params` of a point by rule `mac`, as rows of a search have them."""
    cost = network_cost(description.network(architecture))
    return {
        "flops": cost.macs,
        "bops": cost.bops,
        "ops": cost.ops,
        "memory_bits": cost.memory_bits,
        "params": cost.params,
    }


@functools.lru_cache(maxsize=4096)
def network_cost(network: BarsConfig) -> Cost:
    """The cost of a network, equal to `bitnas.count` of it; an auxiliary classifier, which only trains, is left out."""
    ends = stem_cost(network) + classifier_cost(network)
    return sum((cell_cost(cell, cin, size, network.preprocess) for cell, cin, size in sites(network)), ends)


def stem_size(size: Size, stride: int) -> Size:
    """Of what a stem of stride 1, 2 or 4 makes of an image."""
    return halved(halved(size)) if stride == 4 else halved(size) if stride == 2 else size


def halved(size: Size) -> Size:
    """Of what any layer of stride 2 makes: they all round up."""
    return -(-size[0] // 2), -(-size[1] // 2)


def entering_size(description: Description, cell: int) -> Size:
    """Of the maps that enter a cell of the layout, or leave the last one; depth changes neither."""
    size = stem_size(description.input_size[1:], description.stem_stride)
    for place in description.places[:cell]:
        size = halved(size) if place.stride == 2 else size
    return size


def sites(network: BarsConfig) -> Iterator[tuple[Cell, int, Size]]:
    """Each cell, with the channels of a group and the size of the maps that enter it."""
    size = stem_size(network.input_size[1:], network.stem_stride)
    for cell, cin in zip(network.cells, network.entering, strict=True):
        yield cell, cin, size
        size = halved(size) if cell.stride == 2 else size


def stem_cost(network: BarsConfig) -> Cost:
    """Of both convolutions in full precision and their batch norms."""
    inputs, *size = network.input_size
    height, width = size if network.stem_stride == 1 else halved((size[0], size[1]))
    first, out = 9 * inputs * network.stem, NODES * network.width
    rows, columns = stem_size((size[0], size[1]), network.stem_stride)
    widen = network.stem * out
    return Cost(first * height * width + widen * rows * columns, params=first + 2 * network.stem + widen + 2 * out)


def classifier_cost(network: BarsConfig) -> Cost:
    """Of the linear layer at the end; its bias is free, as in rules `mac` and `bars`."""
    weights = NODES * network.cells[-1].channels * network.num_classes
    return Cost(weights, params=weights + network.num_classes)


def cell_cost(cell: Cell, cin: int, size: Size, preprocess: str) -> Cost:
    """Of one cell that maps of `size`, in four groups of `cin` channels, enter."""
    if not any(live_nodes(cell.edges)[1:]):
        return Cost()
    found = preprocess_cost(cin, cell.inner, size, preprocess)
    for (source, _), operation in zip(EDGES, cell.edges, strict=True):
        found += edge_cost(operation, source, cell, size)
    return found


def preprocess_cost(cin: int, inner: int, size: Size, kind: str) -> Cost:
    """Of the 1 x 1 convolution at the start of a cell, and its batch norm."""
    weights = NODES * cin * inner
    macs = weights * size[0] * size[1]
    if kind == "binary":
        return Cost(0, macs, weights, weights + 2 * NODES * cin)
    return Cost(macs, 0, 0, weights + 2 * inner)


def edge_cost(operation: str, source: int, cell: Cell, size: Size) -> Cost:
    """Of an operation out of node `source`; `size` is that of the maps that enter the cell."""
    if operation in (NONE, SKIP):
        return Cost()
    height, width = halved(size) if cell.stride == 2 else size
    cin = cell.inner if source == 0 else cell.channels
    weights = OPERATIONS[operation].macs(cin, cell.channels, 1)
    return Cost(0, OPERATIONS[operation].macs(cin, cell.channels, height * width), weights, weights + 2 * cin)

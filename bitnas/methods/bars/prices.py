"""Price lists: what every network of a space costs, for one whose choices are made and for one whose are not yet.

The loss of a search has the expected cost in it, and a report the exact one; both come from one table of prices, so
that where the probabilities are one-hot they agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnas.methods.bars import cost
from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.description import Architecture, Description, cut
from bitnas.methods.bars.expected import Layout, double, live, needed
from bitnas.methods.bars.latency_prices import LatencyPrices
from bitnas.models.bars import EDGES, Cell
from bitnas.models.operations import NONE, OPERATIONS

__all__ = ["FlopPrices", "LatencyPrices"]


class FlopPrices:
    """Operations of the cells by rule `bars`: two for every multiply-add, float and binary alike.

    Stem and classifier are left out, as Zhao et al. 2020 (BARS) have it in the regulariser.
    """

    unit = "FLOPs"

    def __init__(self, description: Description) -> None:
        self.description = description
        self._layout = Layout(description)
        self._convolutions = [n for n, name in enumerate(description.operations) if OPERATIONS[name].kernel]
        self._sources = torch.tensor([source for source, _ in EDGES])
        self._preprocess, self._edges = self._tables()

    def _tables(self) -> tuple[Tensor, Tensor]:
        """`[entries, widths before, widths]` and `[entries, widths, edges, convolutions]`."""
        d, entries = self.description, self._layout.entries
        names = [d.operations[n] for n in self._convolutions]
        first = torch.zeros(len(entries), len(d.widths), len(d.widths), dtype=torch.float64)
        edges = torch.zeros(len(entries), len(d.widths), len(EDGES), len(names), dtype=torch.float64)
        for row, entry in enumerate(entries):
            if entry.cell is None:
                continue
            place = d.places[entry.cell]
            size = cost.entering_size(d, entry.cell)
            before = d.channels if entry.before is None else d.places[entry.before].channels
            for own, share in enumerate(d.widths):
                cell = Cell((NONE,) * len(EDGES), cut(share, place.channels), place.stride)
                for other, wide in enumerate(d.widths):
                    found = cost.preprocess_cost(cut(wide, before), cell.inner, size, d.preprocess)
                    first[row, other, own] = found.operations
                for edge, (source, _) in enumerate(EDGES):
                    for n, name in enumerate(names):
                        edges[row, own, edge, n] = cost.edge_cost(name, source, cell, size).operations
        return first, edges

    def expected(self, probabilities: Choices) -> Tensor:
        """The mean over networks drawn with these probabilities.

        Args:
            probabilities: each row sums to 1, such as softmax of the logits or `choices.one_hot`.

        Returns: a float64 scalar on the CPU, with a gradient to the probabilities.
        """
        p, d = double(probabilities), self.description
        chances = self._layout.chances(p)
        reached = live(p.edges, d.operations)
        used = p.edges[:, :, self._convolutions] * reached[:, self._sources].unsqueeze(-1)
        topologies = self._layout.topologies
        total = (chances * self._preprocess).sum((1, 2)) @ needed(p.edges, d.operations)[topologies]
        return total + torch.einsum("kb,kbeo,keo->", chances.sum(1), self._edges, used[topologies])

    def of(self, architecture: Architecture) -> float:
        """The operations of a point's cells. Raises ValueError for one that is not of the space."""
        network = self.description.network(architecture)
        return float(sum(cost.cell_cost(*site, network.preprocess).operations for site in cost.sites(network)))

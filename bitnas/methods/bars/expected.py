"""Expected cost of the networks of a space while every choice has a probability: exact, and differentiable.

Edges, widths and depths are chosen independently, so an expectation is a sum of prices, each times the probability of
what brings it: that a cell stands where it does behind the one before it (depths), that the two have these widths
(one probability where they share a group, a product where they do not), and that a cell holds some pattern of
operations. At one-hot probabilities it is the cost of that network.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.description import Description
from bitnas.models.bars import EDGES, NODES
from bitnas.models.operations import NONE

LIVE_SETS = tuple(itertools.product((False, True), repeat=NODES))
"""Which of nodes 1 to 4 are live; node 0 always is."""


class Entry(NamedTuple):
    """A cell behind another, by their places in the layout.

    Attributes:
        cell: None for the classifier. before: None for the stem.
        stage: whose depth decides that the two follow each other.
        depths: for which of its choices, as indices.
    """

    cell: int | None
    before: int | None
    stage: int
    depths: tuple[int, ...]


def entries(description: Description) -> tuple[Entry, ...]:
    """Every pair that can follow each other, from the stem to the classifier.

    A normal cell follows the one before it in its stage, the first of them what the stage begins with. A reduction, or
    the classifier, follows the last cell that is kept.
    """
    found = []
    reductions = [n for n, place in enumerate(description.places) if place.stride == 2]
    for stage, (cells, choices) in enumerate(zip(description.stages, description.depth_choices, strict=True)):
        chain = (reductions[stage - 1] if stage else None, *cells)
        for n, cell in enumerate(cells):
            if depths := tuple(i for i, depth in enumerate(choices) if depth > n):
                found.append(Entry(cell, chain[n], stage, depths))
        after = reductions[stage] if stage < len(reductions) else None
        found += [Entry(after, chain[depth], stage, (i,)) for i, depth in enumerate(choices)]
    return tuple(found)


def live_sets(edges: Tensor, operations: tuple[str, ...]) -> Tensor:
    """`[groups, 16]`: the probability of each of `LIVE_SETS`, from those of the operations `[groups, 10, operations]`.

    A node is live where an edge from a live node has an operation; given which nodes before it are live, the edges into
    it are independent of theirs.
    """
    if NONE not in operations:
        return edges.new_ones(len(edges), 1) * edges.new_tensor([float(all(nodes)) for nodes in LIVE_SETS])
    none = edges[:, :, operations.index(NONE)].unsqueeze(1)
    probability = edges.new_ones(len(edges), len(LIVE_SETS))
    for node in range(1, NODES + 1):
        into = [e for e, (_, target) in enumerate(EDGES) if target == node]
        live = torch.tensor([[True, *nodes][:node] for nodes in LIVE_SETS], device=edges.device)
        dead = torch.where(live, none[:, :, into], 1.0).prod(-1)
        wanted = torch.tensor([nodes[node - 1] for nodes in LIVE_SETS], device=edges.device)
        probability = probability * torch.where(wanted, 1 - dead, dead)
    return probability


def live(edges: Tensor, operations: tuple[str, ...]) -> Tensor:
    """`[groups, 5]`: the probability that each of nodes 0 to 4 is live."""
    members = torch.tensor([[True, *nodes] for nodes in LIVE_SETS], dtype=edges.dtype, device=edges.device)
    return live_sets(edges, operations) @ members


def needed(edges: Tensor, operations: tuple[str, ...]) -> Tensor:
    """`[groups]`: the probability that a cell has any live node: exactly if an edge out of its input has an
    operation."""
    if NONE not in operations:
        return edges.new_ones(len(edges))
    first = [e for e, (source, _) in enumerate(EDGES) if source == 0]
    return 1 - edges[:, first, operations.index(NONE)].prod(-1)


class Layout:
    """The probabilities of where cells stand and how wide they are; what it has to look up, it looks up once."""

    def __init__(self, description: Description) -> None:
        places = description.places
        self.entries = entries(description)
        # What has no place has the width of its neighbour: the stem that of the first cell, the classifier anything.
        before = [0 if e.before is None else e.before for e in self.entries]
        own = [b if e.cell is None else e.cell for e, b in zip(self.entries, before, strict=True)]
        self._before = torch.tensor([places[n].width for n in before])
        self._own = torch.tensor([places[n].width for n in own])
        self._same = (self._before == self._own)[:, None, None]
        self.topologies = torch.tensor([places[n].topology for n in own])
        counts = [len(choices) for choices in description.depth_choices]
        self._starts = [sum(counts[:stage]) for stage in range(len(counts) + 1)]
        self._depths = torch.stack([self.depths(entry.stage, entry.depths) for entry in self.entries])

    def depths(self, stage: int, choices: Iterable[int]) -> Tensor:
        """1 for these choices of a stage's depth, 0 for the rest; `[depth choices of all stages]`."""
        row = torch.zeros(self._starts[-1], dtype=torch.float64)
        row[[self._starts[stage] + index for index in choices]] = 1
        return row

    def meet(self, entry: int, before: float, own: float) -> bool:
        """Whether an entry can have these widths."""
        return before == own or not bool(self._same[entry])

    def chances(self, probabilities: Choices) -> Tensor:
        """`[entries, widths, widths]`: that an entry is part of the network, with this width before it and this one of
        its own. Float64 on the CPU, as the probabilities must be."""
        stands = self._depths @ torch.cat(probabilities.depths)
        return stands[:, None, None] * self.widths(probabilities)

    def widths(self, probabilities: Choices) -> Tensor:
        """The same for entries that are part of the network."""
        before, own = probabilities.widths[self._before], probabilities.widths[self._own]
        return torch.where(self._same, torch.diag_embed(own), before.unsqueeze(2) * own.unsqueeze(1))


def double(probabilities: Choices) -> Choices:
    """In float64 on the CPU: sums of FLOPs pass 2**24, and the tables are there."""
    return probabilities.map(lambda tensor: tensor.to("cpu", torch.float64))

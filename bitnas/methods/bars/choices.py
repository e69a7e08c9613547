"""What is chosen, as tensors: how much of each operation, width and depth; soft while a search runs, one-hot after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from bitnas.methods.bars.description import Architecture, Description


@dataclass(frozen=True)
class Choices:
    """Weights, probabilities or logits of every choice of a space; all of one dtype and device.

    Attributes:
        edges: `[topology groups, 10, operations]`, in the order of `models.bars.EDGES` and `Description.operations`.
        widths: `[width groups, widths]`, in the order of `Description.widths`.
        depths: for each stage `[depth choices]`, in the order of `Description.depth_choices`.
    """

    edges: Tensor
    widths: Tensor
    depths: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> Choices:
        """The function of every tensor; its last dimension is that of the choices."""
        return Choices(function(self.edges), function(self.widths), tuple(map(function, self.depths)))

    def tensors(self) -> list[Tensor]:
        """All of them: edges, widths, depths."""
        return [self.edges, self.widths, *self.depths]


def one_hot(description: Description, architecture: Architecture) -> Choices:
    """1.0 for what a point has, 0.0 for the rest; float32. Raises ValueError for one that is not of the space."""
    description.validate(architecture)

    def row(length: int, index: int) -> Tensor:
        return torch.eye(length)[index]

    names = description.operations
    edges = [[row(len(names), names.index(name)) for name in cell] for cell in architecture.cells]
    widths = [row(len(description.widths), description.widths.index(share)) for share in architecture.widths]
    depths = [
        row(len(choices), choices.index(depth))
        for choices, depth in zip(description.depth_choices, architecture.depths, strict=True)
    ]
    return Choices(torch.stack([torch.stack(cell) for cell in edges]), torch.stack(widths), tuple(depths))


def most_likely(description: Description, choices: Choices) -> Architecture:
    """The point of the largest weight everywhere; of equal ones the first."""
    return _architecture(description, choices.map(lambda tensor: tensor.argmax(-1)))


def draw(description: Description, probabilities: Choices, rng: Random) -> Architecture:
    """A point drawn by probabilities, every choice on its own."""

    def drawn(tensor: Tensor) -> Tensor:
        rows = tensor.detach().double().cpu().reshape(-1, tensor.shape[-1]).tolist()
        picked = [rng.choices(range(len(row)), row)[0] for row in rows]
        return torch.tensor(picked).reshape(tensor.shape[:-1])

    return _architecture(description, probabilities.map(drawn))


def _architecture(description: Description, indices: Choices) -> Architecture:
    cells = tuple(tuple(description.operations[n] for n in cell) for cell in indices.edges.tolist())
    widths = tuple(description.widths[n] for n in indices.widths.tolist())
    depths = tuple(c[int(n)] for c, n in zip(description.depth_choices, indices.depths, strict=True))
    return Architecture(cells, widths, depths)

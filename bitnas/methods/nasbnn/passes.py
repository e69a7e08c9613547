"""What a training step of a supernet computes: four passes, one after the other (Lin et al. 2024, Bi-Teacher)."""

from __future__ import annotations

import random
from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.methods.nasbnn.supernet import Supernet
from bitnas.train import Recipe

RANDOM_SUBNETS = 2


def sandwich(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, chance: random.Random
) -> Iterator[tuple[Tensor, Tensor]]:
    """Losses and logits of the biggest subnet, the smallest and two random ones; passes of `bitnas.train.fit`.

    The biggest learns the labels, with float weights and binary activations; the others, binary, learn its softmax
    (cross entropy, temperature 1, no label). Without `bi_teacher` the biggest is binary too. Raises TypeError for a
    model that is no `Supernet`.
    """
    if not isinstance(model, Supernet):
        raise TypeError(f"model: got a {type(model).__name__}, wanted a Supernet")
    logits = model(x, teacher=model.strategies.bi_teacher)
    target = logits.detach().softmax(1)
    yield F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing), logits
    for number in range(1 + RANDOM_SUBNETS):
        subnet = model.space.subnet(model.space.random(chance)) if number else model.smallest
        distances: list[Tensor] | None = [] if model.strategies.consistency else None
        logits = model(x, subnet, distances=distances)
        loss = F.cross_entropy(logits, target)
        if distances:
            loss = loss + model.strategies.consistency * sum(distances) / len(distances)
        yield loss, logits

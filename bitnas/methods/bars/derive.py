"""From probabilities to networks: the most likely one, and others drawn by them (Zhao et al. 2020, public code)."""

from __future__ import annotations

from random import Random

from bitnas.methods.bars.choices import Choices, draw, most_likely, one_hot
from bitnas.methods.bars.description import Architecture, Description

_DRAWS = 50  # for each network wanted; a supernet that has decided everything gives no other


def derive(
    description: Description, probabilities: Choices, samples: int, seed: int, *, layout: bool = False
) -> list[Architecture]:
    """Networks that the probabilities stand for, no two of them the same network.

    Args:
        description: the space.
        probabilities: of every choice, as `Supernet.probabilities` gives them.
        samples: how many are wanted, at least 1. Fewer are given where so many are not found.
        seed: decides the draws; more samples begin with the same ones.
        layout: whether widths and depths are drawn too, and not only the operations.

    Returns:
        First the most likely point, of equal ones the first. Then points drawn: on each edge the operation of the
        largest Gumbel-softmax sample, which is one drawn by its probability. Points whose networks have the same key,
        such as those that differ behind a dead node, count once.

    Raises ValueError for `samples` below 1.
    """
    if samples < 1:
        raise ValueError(f"samples: got {samples}, wanted at least 1")
    best = most_likely(description, probabilities)
    if not layout:
        fixed = one_hot(description, best)
        probabilities = Choices(probabilities.edges, fixed.widths, fixed.depths)
    found, seen = {description.network(best).key(): best}, {best}
    rng = Random(seed)
    for _ in range(_DRAWS * (samples - 1)):
        if len(found) == samples:
            break
        drawn = draw(description, probabilities, rng)
        if drawn not in seen:
            seen.add(drawn)
            found.setdefault(description.network(drawn).key(), drawn)
    return list(found.values())

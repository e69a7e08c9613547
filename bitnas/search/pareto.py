"""Dominance between measured candidates, and the quality of a front.

Vectors are to be minimised. A tolerance says how far apart two values must be before the difference counts: a
candidate is removed only by one that is nowhere worse as measured and somewhere better by more than the tolerance.
That relation is part of strict dominance, so it has no cycles and a front is never empty; allowing small losses as
well would lose both properties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Vector = Sequence[float]


@dataclass(frozen=True)
class Objective:
    """One number to optimise.

    Args:
        name: the metric it reads.
        maximize: True if more is better.
        tolerance: absolute difference that does not count, in the metric's unit.
        relative_tolerance: the same as a fraction of the larger magnitude; the larger of the two holds.
        spread: names of two metrics, the ends of the interval that the measured value is known to; None for an exact
            one.
    """

    name: str
    maximize: bool = False
    tolerance: float = 0.0
    relative_tolerance: float = 0.0
    spread: tuple[str, str] | None = None

    def __post_init__(self) -> None:
        for field in ("tolerance", "relative_tolerance"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field}: got {value!r}, wanted a finite number of at least 0")

    def loss(self, metrics: Mapping[str, float]) -> float:
        """The metric turned so that less is better; KeyError names a metric that was not measured."""
        if self.name not in metrics:
            raise KeyError(f"objective {self.name!r} was not measured; there are {sorted(metrics)}")
        return -metrics[self.name] if self.maximize else metrics[self.name]

    def interval(self, metrics: Mapping[str, float]) -> tuple[float, float]:
        """What the loss is known to: (low, high) around it, both the loss itself where the metric is exact."""
        loss = self.loss(metrics)
        if self.spread is None or not all(name in metrics for name in self.spread):
            return loss, loss
        low, high = (metrics[name] for name in self.spread)
        return (min(loss, -high), max(loss, -low)) if self.maximize else (min(loss, low), max(loss, high))

    def margin(self, a: float, b: float) -> float:
        """The difference between `a` and `b` that does not count."""
        return max(self.tolerance, self.relative_tolerance * max(abs(a), abs(b)))


def dominates(a: Vector, b: Vector, *, objectives: Sequence[Objective] | None = None) -> bool:
    """True if `a` is nowhere worse than `b` and somewhere better by more than the objective's margin.

    Without `objectives` every margin is 0: strict dominance.
    """
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} values, wanted {len(a)}")
    if not all(x <= y for x, y in zip(a, b, strict=True)):
        return False
    if objectives is None:
        return any(x < y for x, y in zip(a, b, strict=True))
    return any(y - x > objective.margin(x, y) for objective, x, y in zip(objectives, a, b, strict=True))


def non_dominated(vectors: Sequence[Vector], *, objectives: Sequence[Objective] | None = None) -> list[int]:
    """Indices of the vectors no other one dominates, in the order given; never one with a non-finite value."""
    finite = [index for index, vector in enumerate(vectors) if all(map(math.isfinite, vector))]
    members: list[int] = []
    # What dominates a vector comes before it in this order and, as dominance is transitive, so does a member that does.
    for index in sorted(finite, key=lambda index: tuple(vectors[index])):
        if not any(dominates(vectors[other], vectors[index], objectives=objectives) for other in members):
            members.append(index)
    return sorted(members)


def crowding_distance(vectors: Sequence[Vector]) -> list[float]:
    """Crowding distance (Deb et al. 2002, section III-B): side sum of the box between neighbours, inf at the ends."""
    distances = [0.0] * len(vectors)
    if not vectors:
        return distances
    for axis in range(len(vectors[0])):
        order = sorted(range(len(vectors)), key=lambda index: vectors[index][axis])
        low, high = vectors[order[0]][axis], vectors[order[-1]][axis]
        distances[order[0]] = distances[order[-1]] = math.inf
        if high == low:
            continue
        for before, index, after in zip(order, order[1:], order[2:], strict=False):
            distances[index] += (vectors[after][axis] - vectors[before][axis]) / (high - low)
    return distances


def hypervolume_2d(vectors: Sequence[Vector], reference: Vector) -> float:
    """Area dominated by the vectors and bounded by `reference`; only two objectives. Vectors beyond it add nothing."""
    if len(reference) != 2 or any(len(vector) != 2 for vector in vectors):
        raise ValueError(f"reference: got {len(reference)} values, wanted 2, and vectors of 2")
    area, ceiling = 0.0, reference[1]
    for x, y in sorted((v[0], v[1]) for v in vectors if v[0] < reference[0] and v[1] < reference[1]):
        if y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area

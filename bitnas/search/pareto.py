"""Dominance between measured candidates, and the quality of a front.

Vectors are to be minimised. A tolerance says how far apart two values must be before the difference counts, an interval
what a measured value is known to. One candidate dominates another if it is nowhere worse and somewhere better by more
than the tolerance; where values have intervals, "worse" and "better" mean that the intervals do not meet.

So what noise cannot tell apart decides nothing. But "cannot be told apart" is not transitive: in a dense row each is
dominated by its neighbour, who is a little slower within the noise and a little more accurate, and only the slowest
would be left. A front is therefore the kernel of this relation: no member dominates another, and whoever is left out is
dominated by a member, not merely by somebody who is left out as well. With exact values that is the Pareto front.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Vector = Sequence[float]
Interval = tuple[float, float]

_CHUNK = 512


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
    """True if `a` is nowhere worse than `b` and somewhere better by more than the objective's margin; exact values.

    Without `objectives` every margin is 0: strict dominance.
    """
    if len(a) != len(b):
        raise ValueError(f"b: got {len(b)} values, wanted {len(a)}")
    if not all(x <= y for x, y in zip(a, b, strict=True)):
        return False
    if objectives is None:
        return any(x < y for x, y in zip(a, b, strict=True))
    return any(y - x > objective.margin(x, y) for objective, x, y in zip(objectives, a, b, strict=True))


def non_dominated(
    vectors: Sequence[Vector],
    *,
    objectives: Sequence[Objective] | None = None,
    intervals: Sequence[Sequence[Interval]] | None = None,
) -> list[int]:
    """Indices of the front, in the order given: none dominates another, and they dominate all others between them.

    A vector with a non-finite value is never on it. With one measured objective among exact ones there is one such
    set; with several, where dominance may have cycles, the vectors that are less come first.

    Args:
        vectors: one value for each objective.
        objectives: whose tolerances count; None for none.
        intervals: (low, high) around each value; None for exact ones.

    Raises:
        ValueError: an interval does not hold its value.
    """
    finite = [index for index, vector in enumerate(vectors) if all(map(math.isfinite, vector))]
    members: list[int] = []
    # What is clearly dominated dominates nothing that its dominator does not: it need not be looked at again.
    for start in range(0, len(finite), _CHUNK):
        members += finite[start : start + _CHUNK]
        clearly = _Relation(vectors, members, objectives, intervals).clearly()
        members = [index for index, out in zip(members, clearly.any(0), strict=True) if not out]
    matrix = _Relation(vectors, members, objectives, intervals).dominates() if members else None
    return sorted(_kernel(members, matrix, vectors, intervals))


def fronts(
    vectors: Sequence[Vector],
    *,
    objectives: Sequence[Objective] | None = None,
    intervals: Sequence[Sequence[Interval]] | None = None,
) -> list[list[int]]:
    """All indices front by front: the front of all, that of the others, and so on.

    The non-dominated sorting of Deb et al. 2002, section III-A. Vectors with a non-finite value make the last front.
    """
    left = [index for index, vector in enumerate(vectors) if all(map(math.isfinite, vector))]
    rest = [index for index, vector in enumerate(vectors) if not all(map(math.isfinite, vector))]
    found: list[list[int]] = []
    matrix: Any = _Relation(vectors, left, objectives, intervals).dominates() if left else None
    while left:
        front = set(_kernel(left, matrix, vectors, intervals))
        kept = [position for position, index in enumerate(left) if index not in front]
        found.append([index for index in left if index in front])
        left, matrix = [left[position] for position in kept], matrix[kept][:, kept]
    return [*found, rest] if rest else found


def _kernel(
    indices: Sequence[int], matrix: Any, vectors: Sequence[Vector], intervals: Sequence[Sequence[Interval]] | None
) -> list[int]:
    """Of the vectors at `indices`, with `matrix[i, j]` saying whether one dominates another, those on the front."""

    axes = range(len(vectors[indices[0]]) if indices else 0)
    exact = [a for a in axes if intervals is None or all(intervals[i][a][0] == intervals[i][a][1] for i in indices)]

    def order(position: int) -> tuple[tuple[float, ...], Vector]:
        """Whoever dominates comes first: by the exact objectives, in which it is no worse, then by the others."""
        vector = vectors[indices[position]]
        return tuple(vector[axis] for axis in exact), tuple(vector)

    front: list[int] = []
    out = [False] * len(indices)
    for position in sorted(range(len(indices)), key=order):
        if not out[position]:
            front.append(indices[position])
            out = [a or bool(b) for a, b in zip(out, matrix[position], strict=True)]
    return front


class _Relation:
    """Dominance between some of the vectors, as matrices `[i, j]`: what i is to j."""

    def __init__(
        self,
        vectors: Sequence[Vector],
        indices: Sequence[int],
        objectives: Sequence[Objective] | None,
        intervals: Sequence[Sequence[Interval]] | None,
    ) -> None:
        import numpy as np

        values = np.array([vectors[index] for index in indices], dtype=float)
        low = high = values
        if intervals is not None:
            known = np.array([intervals[index] for index in indices], dtype=float).reshape(*values.shape, 2)
            low, high = known[..., 0], known[..., 1]
            if not ((low <= values) & (values <= high)).all():
                at = tuple(np.argwhere(~((low <= values) & (values <= high)))[0])
                raise ValueError(
                    f"intervals: got ({low[at]}, {high[at]}), wanted one that holds the value {values[at]}"
                )
        count = len(values)
        self._not_worse = np.ones((count, count), dtype=bool)
        self._nowhere_near = np.ones((count, count), dtype=bool)
        self._better = np.zeros((count, count), dtype=bool)
        for axis in range(values.shape[1] if count else 0):
            value, below, above = values[:, axis], low[:, axis], high[:, axis]
            margin = np.zeros((count, count))
            if objectives is not None:
                magnitude = np.maximum(np.abs(value)[:, None], np.abs(value)[None, :])
                margin = np.maximum(objectives[axis].tolerance, objectives[axis].relative_tolerance * magnitude)
            self._not_worse &= below[:, None] <= above[None, :]
            self._nowhere_near &= above[:, None] <= below[None, :]
            self._better |= (above[:, None] < below[None, :]) & (value[None, :] - value[:, None] > margin)

    def dominates(self) -> Any:
        """Nowhere worse, somewhere better."""
        return self._not_worse & self._better

    def clearly(self) -> Any:
        """As good or better everywhere, whatever the noise; somewhere better. Transitive."""
        return self._nowhere_near & self._better


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

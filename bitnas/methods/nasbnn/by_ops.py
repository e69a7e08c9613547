"""How many subnets of a space have how many OPs, and uniform draws among those within a window.

Uniform subnets crowd in the middle: in the paper's space fewer than one in ten thousand has less than 40 M OPs, twice
the smallest's. Drawing until one fits would not end there, so subnets are counted by OPs, from the last block back.
"""

from __future__ import annotations

import functools
import math
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnas.methods.nasbnn.description import Description

if TYPE_CHECKING:
    import numpy as np

_BINS = 1 << 14

Row = tuple[int, int, int]
"""channels, kernel, groups."""


class _Step(NamedTuple):
    """A choice: what was chosen, the channels and the state behind it, and its bins."""

    choice: Any
    channels: int
    state: tuple[int, int]
    bins: int


class OpsCounts:
    """Counts of the subnets of at most `limit` OPs by OPs, in bins.

    Each part of a subnet (stem, blocks, classifier) is rounded down to whole bins. So the counts are of rounded sums,
    and a window is widened by as many bins as there are parts: no subnet within it is missed, and each subnet is
    counted once. Who throws away what is exactly outside draws uniformly from the window.

    Args:
        description: the space.
        limit: OPs, positive.
        size: subnets of the space, which no count exceeds.
    """

    def __init__(self, description: Description, limit: float, size: int) -> None:
        import numpy as np

        self.description = description
        self.limit = limit
        self._unit = max(1, math.ceil(64 * limit / _BINS))  # of 1/64 OP, in which everything is whole
        self._length = math.floor(64 * limit) // self._unit + 1
        self._parts = sum(max(stage.depths) for stage in description.stages) + 2
        self._dtype: Any = np.int64 if size < 1 << 62 else object
        inputs, height, width = description.input_size
        height, width = (-(-side // description.stem_stride) for side in (height, width))
        self._stem_ops = {c: 64 * (9 * inputs * c * height * width // 8) for c in description.stem}
        self._areas: list[int] = []
        for stage in description.stages:
            height, width = -(-height // stage.stride), -(-width // stage.stride)
            self._areas.append(height * width)
        # (stage, rows of it to come), channels -> running sums of the ways of going on, by bins that they take.
        self._sums: dict[tuple[tuple[int, int], int], np.ndarray[Any, Any]] = {}
        self._known_rows: dict[Row, list[_Step]] = {}
        self._build()

    def count(self, low: float, high: float) -> int:
        """Subnets of the widened window: at least as many as have `low` to `high` OPs; 0 proves that none has."""
        first, last = self._window(low, high)
        return sum(self._ways(step, first, last) for step in self._stems())

    def draw(self, low: float, high: float, rng: Random) -> tuple[int, list[list[Row]]]:
        """Stem and rows of each stage of a subnet, all those of the widened window equally likely.

        Raises ValueError where there is none.
        """
        first, last = self._window(low, high)

        def choose(steps: list[_Step]) -> _Step:
            nonlocal first, last
            ways = [self._ways(step, first, last) for step in steps]
            at = rng.randrange(sum(ways))
            for step, weight in zip(steps, ways, strict=True):
                if at < weight:
                    first, last = first - step.bins, last - step.bins
                    return step
                at -= weight
            raise AssertionError("the counts do not add up")

        if not self.count(low, high):
            raise ValueError(f"low, high: no subnet has {low:g} to {high:g} OPs")
        stem = choose(self._stems())
        channels, stages = stem.channels, []
        for number in range(len(self._areas)):
            left = choose(self._depths(number, channels)).choice
            rows: list[Row] = []
            while left:
                row = choose(self._rows(number, left, channels))
                rows.append(row.choice)
                channels, left = row.channels, left - 1
            stages.append(rows)
        return stem.channels, stages

    def _window(self, low: float, high: float) -> tuple[int, int]:
        if low > self.limit:
            return 1, 0
        return math.floor(64 * low) // self._unit - self._parts, math.floor(64 * min(high, self.limit)) // self._unit

    def _ways(self, step: _Step, first: int, last: int) -> int:
        """Ways of going on behind a step that take `first` to `last` bins, its own among them."""
        first, last = max(first - step.bins, 0), min(last - step.bins, self._length - 1)
        if last < first:
            return 0
        sums = self._sums[step.state, step.channels]
        return int(sums[last + 1]) - int(sums[first])

    def _stems(self) -> list[_Step]:
        return [_Step(c, c, (0, -1), ops // self._unit) for c, ops in self._stem_ops.items()]

    def _depths(self, number: int, channels: int) -> list[_Step]:
        return [_Step(depth, channels, (number, depth), 0) for depth in self.description.stages[number].depths]

    def _rows(self, number: int, left: int, channels: int) -> list[_Step]:
        """Choices of a row after so many channels, with `left` rows of the stage to come, this one among them."""
        known = self._known_rows.get((number, left, channels))
        if known is not None:
            return known
        stage, area = self.description.stages[number], self._areas[number]
        behind = (number, left - 1) if left > 1 else (number + 1, -1)
        steps = [
            _Step(
                (out, kernel, groups), out, behind,
                (kernel**2 * (channels // groups) * channels + channels // stage.groups_1x1 * out) * area // self._unit,
            )
            for out in stage.channels if out >= channels for kernel in stage.kernels for groups in stage.groups
        ]  # fmt: skip
        self._known_rows[number, left, channels] = steps
        return steps

    def _build(self) -> None:
        import numpy as np

        stages = self.description.stages
        ways: dict[tuple[tuple[int, int], int], np.ndarray[Any, Any]] = {}

        def add(state: tuple[int, int], channels: int, steps: list[_Step]) -> None:
            total = np.zeros(self._length, self._dtype)
            for step in steps:
                if step.bins < self._length:
                    total[step.bins :] += ways[step.state, step.channels][: self._length - step.bins]
            ways[state, channels] = total

        for channels in stages[-1].channels:
            end = np.zeros(self._length, self._dtype)
            bins = 64 * self.description.num_classes * (channels + 1) // self._unit
            if bins < self._length:
                end[bins] = 1
            ways[(len(stages), -1), channels] = end
        for number in reversed(range(len(stages))):
            stage = stages[number]
            entering = stages[number - 1].channels if number else self.description.stem
            for left in range(1, max(stage.depths) + 1):
                for channels in sorted({*entering, *stage.channels}):
                    steps = self._rows(number, left, channels)
                    add((number, left), channels, steps)
            for channels in entering:
                add((number, -1), channels, self._depths(number, channels))
        self._sums = {
            state: np.concatenate([np.zeros(1, self._dtype), np.cumsum(each)]) for state, each in ways.items()
        }


@functools.lru_cache(maxsize=4)
def ops_counts(description: Description, limit: float, size: int) -> OpsCounts:
    """As `OpsCounts`, kept: a window is asked of again and again."""
    return OpsCounts(description, limit, size)

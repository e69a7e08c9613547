"""Measured values that their own noise cannot tell apart, made equal, so that chance decides no survivor.

A margin alone is not enough: "closer than the margin" is no equivalence, and a sort needs one. Values are therefore
taken together along chains of overlapping intervals, the smallest equivalence that holds whatever overlaps together:
two values with different results have intervals that do not meet.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

Interval = tuple[float, float]


def settle(values: Sequence[float], intervals: Sequence[Interval]) -> list[float]:
    """Each value replaced by the median of those it cannot be told from, the order of the others kept.

    Args:
        values: measured, or inf for what could not be; those stay.
        intervals: (low, high) around each value; (v, v) for one that is exact.

    Raises:
        ValueError: the lengths differ, or an interval does not hold its value.
    """
    if len(values) != len(intervals):
        raise ValueError(f"intervals: got {len(intervals)}, wanted one for each of {len(values)} values")
    for value, (low, high) in zip(values, intervals, strict=True):
        if math.isfinite(value) and not low <= value <= high:
            raise ValueError(f"intervals: got ({low}, {high}), wanted one that holds the value {value}")
    settled = list(values)
    order = sorted((i for i, value in enumerate(values) if math.isfinite(value)), key=lambda i: intervals[i][0])
    group: list[int] = []
    reach = -math.inf
    for index in [*order, None]:
        if group and (index is None or intervals[index][0] > reach):
            middle = statistics.median_low([values[member] for member in group])
            for member in group:
                settled[member] = middle
            group, reach = [], -math.inf
        if index is not None:
            group.append(index)
            reach = max(reach, intervals[index][1])
    return settled

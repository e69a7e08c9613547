"""What a difference in accuracy is worth: intervals over the folds of a cross-validation, and the sentence they allow.

The training sets of the folds overlap, so their results are not independent, and the plain t interval is too narrow.
The correction of Nadeau and Bengio (2003, section 3: variance times 1/n + test/train) widens it accordingly.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bitnas.methods.intervals import Interval, outcome


def fold_interval(values: Sequence[float], *, confidence: float = 0.95) -> Interval:
    """The mean over the k folds of one cross-validation, with the corrected t interval.

    Args:
        values: one result per fold, at least 2.
        confidence: in (0, 1).
    """
    if len(values) < 2:
        raise ValueError(f"values: got {len(values)}, wanted one per fold, at least 2")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: got {confidence}, wanted between 0 and 1")
    from scipy.special import stdtrit

    folds = len(values)
    mean, variance = statistics.fmean(values), statistics.variance(values)
    # Of k folds one tests and k - 1 train.
    half = float(stdtrit(folds - 1, (1 + confidence) / 2)) * math.sqrt(variance * (1 / folds + 1 / (folds - 1)))
    return Interval(mean, mean - half, mean + half)


def sentence(difference: Interval, flops_ratio: float) -> str:
    """The difference in accuracy (fractions) between a searched and a uniform network, in plain English."""
    interval = f"[{_points(difference.low)}, {_points(difference.high)}]"
    cost = f"at {flops_ratio:.2f}x the FLOPs"
    match outcome(difference):
        case "better":
            return f"searched is better by {abs(100 * difference.mean):.2f} points {interval} {cost}"
        case "worse":
            return f"searched is worse by {abs(100 * difference.mean):.2f} points {interval} {cost}"
    return f"no difference can be told: {_points(difference.mean)} points {interval} {cost}"


def _points(fraction: float) -> str:
    return f"{100 * fraction:+.2f}"

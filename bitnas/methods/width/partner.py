"""The uniform network of the same cost: what a searched one has to beat.

One real multiplier for every width, since the step between the choices of the search would leave a difference in cost
that could explain a difference in accuracy.
"""

from __future__ import annotations

from collections.abc import Callable


def uniform_multiplier(flops: float, cost: Callable[[float], float], *, low: float, high: float) -> float:
    """The multiplier whose network comes nearest to `flops`.

    Args:
        flops: the cost to meet.
        cost: FLOPs of the uniform network of a multiplier; must not decrease. It has steps: widths are whole numbers.
        low, high: where to look; the smallest and the largest ratio of the searched network enclose it.

    Raises:
        ValueError: `flops` lies outside the costs of `low` and `high`.
    """
    if not cost(low) <= flops <= cost(high):
        raise ValueError(f"flops: got {flops:g}, wanted between {cost(low):g} and {cost(high):g}")
    while high - low > 1e-4:  # no network has a width so large that this skips a step
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= flops else (low, middle)
    # A step lies between `low` and `high`; either side may be the nearer one.
    return min((low, high), key=lambda multiplier: abs(cost(multiplier) - flops))

"""What the studies of NAS-BNN may say from few measurements: proportions, ranks, and differences over seeds.

An interval always goes with a figure, because twenty subnets and three seeds decide less than their means suggest.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence

from bitnas.methods.width.compare import Interval

Z95 = 1.959963984540054  # standard normal quantile of 0.975


def wilson(correct: int, total: int) -> Interval:
    """A proportion with its 95 % score interval (Wilson 1927). Raises ValueError unless 0 <= correct <= total > 0."""
    if total < 1 or not 0 <= correct <= total:
        raise ValueError(f"correct, total: got {correct} of {total}, wanted 0 <= correct <= total and total at least 1")
    share = correct / total
    scale = 1 + Z95**2 / total
    middle = (share + Z95**2 / (2 * total)) / scale
    half = Z95 / scale * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    return Interval(share, max(0.0, middle - half), min(1.0, middle + half))


def paired(first: Sequence[bool], second: Sequence[bool]) -> Interval:
    """Accuracy of `first` minus that of `second` on the same images, 95 % (Agresti and Min 2005: half an image is added
    to each of the four cells, so that networks of few disagreements are not declared different).

    Raises ValueError for unequal or empty sequences.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"first, second: got {len(first)} and {len(second)} images, wanted as many in each, not none")
    total = len(first)
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    size, more, less = total + 2.0, gained + 0.5, lost + 0.5
    middle = (more - less) / size
    half = Z95 * math.sqrt(more + less - (more - less) ** 2 / size) / size
    return Interval((gained - lost) / total, max(-1.0, middle - half), min(1.0, middle + half))


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Kendall's tau-b, which counts ties as neither; None of fewer than two values or a constant series."""
    if len(a) != len(b):
        raise ValueError(f"a, b: got {len(a)} and {len(b)} values, wanted as many in each")
    import numpy as np

    order_a, order_b = (np.sign(np.subtract.outer(values, values)) for values in (a, b))
    untied = float((order_a**2).sum()) * float((order_b**2).sum())
    return float((order_a * order_b).sum()) / math.sqrt(untied) if untied else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None as `kendall`."""
    if len(a) != len(b):
        raise ValueError(f"a, b: got {len(a)} and {len(b)} values, wanted as many in each")
    if len(set(a)) < 2 or len(set(b)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(a, b).statistic)


def bootstrap(
    statistic: Callable[[Sequence[int]], float | None], count: int, *, repeats: int = 2000, seed: int = 0
) -> Interval | None:
    """A statistic of `count` items with the 95 % percentile interval over resampled items (Efron 1979).

    Args:
        statistic: of a sequence of item numbers, some of them repeated; None where it is not defined, which is left
            out.
        count: of items.
        repeats: resamplings.
        seed: of the resampling.

    Returns:
        None if the statistic of the items themselves, or of nearly all resamplings, is not defined.
    """
    whole = statistic(range(count))
    if whole is None:
        return None
    rng = random.Random(seed)
    found = [statistic([rng.randrange(count) for _ in range(count)]) for _ in range(repeats)]
    values = sorted(value for value in found if value is not None)
    if len(values) < 0.5 * repeats:
        return None
    return Interval(whole, _quantile(values, 0.025), _quantile(values, 0.975))


def over_seeds(values: Sequence[float], test_to_train: float) -> Interval | None:
    """Mean over seeds that each split the data anew, with the corrected 95 % t interval (`width.claim.seed_interval`);
    None of fewer than two."""
    from bitnas.methods.width.claim import seed_interval

    return seed_interval(values, test_to_train) if len(values) > 1 else None


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours of sorted values."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])

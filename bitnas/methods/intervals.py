"""What studies may say from few measurements: proportions, ranks, and differences over seeds.

An interval always goes with a figure, because twenty networks and three seeds decide less than their means suggest.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

_DEGREES = 6  # of a regression, at most
Z95 = 1.959963984540054  # standard normal quantile of 0.975
_ROUNDING = 1e-9  # of a mean: numbers that differ by less are equal
_LEVEL = 0.05  # share of families of verdicts that may hold a false one


@dataclass(frozen=True)
class Interval:
    """A mean and both ends of its interval."""

    mean: float
    low: float
    high: float


def outcome(difference: Interval) -> str:
    """ "better", "worse" or "undecided": whether the whole interval lies on one side of 0."""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "undecided"


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


class Beside(NamedTuple):
    """Kendall's tau of two series once a third is taken out of both, with its two-sided p-value."""

    tau: float
    p: float


def kendall_beside(
    a: Sequence[float], b: Sequence[float], known: Sequence[float], *, repeats: int = 2000, seed: int = 0
) -> Beside | None:
    """Does `a` rank `b` beside what `known` says of both? Both are taken as what a smooth regression on `known` leaves:
    a polynomial of the degree that predicts left-out items best, the higher of the two for both. p is the share of
    permutations of what is left of `a`, the regression taken out anew, that rank as well (Freedman and Lane 1983).

    Kendall's partial tau would not do: of independent noise about a common trend it is not 0.

    Returns:
        None of fewer than ten items, of a constant series, or where the regression explains all of one.
    """
    if not len(a) == len(b) == len(known):
        raise ValueError(f"a, b, known: got {len(a)}, {len(b)} and {len(known)} values, wanted as many in each")
    import numpy as np

    count, most = len(known), min(_DEGREES, len(set(known)) - 1)
    if count < 10 or most < 1 or len(set(a)) < 2 or len(set(b)) < 2:
        return None
    place = np.asarray(known, dtype=float)
    powers = np.polynomial.chebyshev.chebvander(2 * (place - place.min()) / np.ptp(place) - 1, most)
    bases = [np.linalg.qr(powers[:, : degree + 1])[0] for degree in range(1, most + 1)]
    series = [np.asarray(values, dtype=float) / np.ptp(values) for values in (a, b)]

    def left_out(basis: Any, values: Any) -> float:
        """Mean square error of each item's prediction by the others."""
        taken = np.maximum(1 - (basis**2).sum(1), 1e-9)
        return float((((values - basis @ (basis.T @ values)) / taken) ** 2).mean())

    basis = max((min(bases, key=lambda one: left_out(one, values)) for values in series), key=lambda one: one.shape[1])

    def rest(values: Any) -> Any:
        return values - basis @ (basis.T @ values)

    def order(values: Any) -> Any:
        return np.sign(np.subtract.outer(values, values).round(12))  # equal values stay equal

    first, second = (rest(values) for values in series)
    one, other = order(first), order(second)
    scale = math.sqrt(float((one**2).sum()) * float((other**2).sum()))
    if not scale:
        return None
    tau = float((one * other).sum()) / scale
    rng = np.random.default_rng(seed)
    shuffled = (order(rest(first[rng.permutation(count)])) for _ in range(repeats))
    as_well = sum(abs(float((each * other).sum())) >= abs(tau) * scale - 0.5 for each in shuffled)
    return Beside(tau, (as_well + 1) / (repeats + 1))


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


def seed_interval(values: Sequence[float], test_to_train: float, *, confidence: float = 0.95) -> Interval:
    """Mean of results over random splits of one data set with the corrected t interval: variance times
    1/n + test/train (Nadeau and Bengio 2003, section 3); a ratio of 0 gives the plain one.

    Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"values: got {len(values)}, wanted at least 2")
    from scipy.special import stdtrit

    count = len(values)
    mean, variance = statistics.fmean(values), statistics.variance(values)
    half = float(stdtrit(count - 1, (1 + confidence) / 2)) * math.sqrt(variance * (1 / count + test_to_train))
    return Interval(mean, mean - half, mean + half)


def over_seeds(values: Sequence[float], test_to_train: float) -> Interval | None:
    """Mean over seeds that each split the data anew, with the corrected 95 % t interval (`seed_interval`); None of
    fewer than two."""
    return seed_interval(values, test_to_train) if len(values) > 1 else None


def paired_runs(runs: Sequence[float], ratio: float) -> dict[str, Any]:
    """Differences over seeds: {"runs", "mean"}; of two or more also their 95 % interval ("low", "high") and the p of
    the same corrected t test, two-sided.

    Equal differences that are not 0 show no variance, and a t test would take two of them for certain. Of those p is
    that of the sign test, 2 ** (1 - runs), and the interval the one of a t test with this p.

    Args:
        runs: one for each seed.
        ratio: of images that judge to those that train.
    """
    found: dict[str, Any] = {"runs": list(runs), "mean": statistics.fmean(runs)}
    interval = over_seeds(runs, ratio)
    if interval is None:
        return found
    from scipy.special import stdtr, stdtrit

    mean, freedom = found["mean"], len(runs) - 1
    if statistics.stdev(runs) > _ROUNDING * abs(mean):
        error = math.sqrt(statistics.variance(runs) * (1 / len(runs) + ratio))
        p = 2 * float(stdtr(freedom, -abs(mean) / error))
        return {**found, "low": interval.low, "high": interval.high, "p": p}
    p = 2.0**-freedom if mean else 1.0
    half = abs(mean) * float(stdtrit(freedom, 0.975) / stdtrit(freedom, 1 - p / 2)) if mean else 0.0
    return {**found, "low": mean - half, "high": mean + half, "p": p}


def corrected(differences: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The differences that verdicts are given on, with the p that allows for their number (Holm 1979: at most 5 % of
    such families hold a false one), "p_holm", and the "outcome": "better", "worse" or "undecided". Those of one seed,
    which have no p, are left as they are.
    """
    found = [dict(one) for one in differences]
    tested = sorted((one for one in found if "p" in one), key=lambda one: one["p"])
    least = 0.0
    for rank, one in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * one["p"]))
        told = "better" if one["mean"] > 0 else "worse"
        one |= {"p_holm": least, "tested": len(tested), "outcome": told if least <= _LEVEL else "undecided"}
    return found


def said(difference: Mapping[str, Any], what: str) -> str:
    """The figures behind a verdict; `what` is the mean with its unit."""
    low, high = 100 * difference["low"], 100 * difference["high"]
    return (
        f"{what}, 95 % interval {low:+.1f} to {high:+.1f}, {len(difference['runs'])} seeds, "
        f"p {difference['p_holm']:.2g} among {difference['tested']} verdicts"
    )


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear between neighbours of sorted values."""
    place = share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])

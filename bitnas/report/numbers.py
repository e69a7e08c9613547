"""How the report writes numbers, and the one statistic it computes itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as percent: 0.9836 is "98.4 %"."""
    return MISSING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float) -> str:
    """A difference of two fractions in percentage points, signed: 0.006 is "+0.6"."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def duration(us: float | None) -> str:
    """Microseconds with three digits, in the unit that fits: 1234.5 is "1.23 ms"."""
    if us is None:
        return MISSING
    for factor, unit in ((1e6, "s"), (1e3, "ms")):
        if us >= factor:
            return f"{three_digits(us / factor)} {unit}"
    return f"{three_digits(us)} µs"


def duration_between(low: float, high: float) -> str:
    """Two durations in one unit: "1.20–1.31 ms"."""
    factor, unit = next(((f, u) for f, u in ((1e6, "s"), (1e3, "ms")) if high >= f), (1.0, "µs"))
    return f"{three_digits(low / factor)}–{three_digits(high / factor)} {unit}"


def count(value: float | None) -> str:
    """An operation count with three digits: 11313152 is "11.3 M"."""
    if value is None:
        return MISSING
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{three_digits(value / factor)} {unit}"
    return three_digits(value)


def size(bytes_: float | None) -> str:
    """A file size in KiB or MiB."""
    if bytes_ is None:
        return MISSING
    return f"{three_digits(bytes_ / 1024)} KiB" if bytes_ < 1024 * 1024 else f"{three_digits(bytes_ / 1024**2)} MiB"


def three_digits(value: float) -> str:
    """Three significant digits without an exponent: 0.0456, 1.23, 12.3, 123, 1234."""
    if value == 0 or not math.isfinite(value):
        return f"{value:.0f}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def plural(number: int, noun: str) -> str:
    """ "1 network", "3 networks"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation with mean ranks for ties; None for fewer than three points or a constant series."""
    if len(a) != len(b):
        raise ValueError(f"a and b must have equal length, got {len(a)} and {len(b)}")
    if len(a) < 3 or len(set(a)) == 1 or len(set(b)) == 1:
        return None
    x, y = _ranks(a), _ranks(b)
    mean = (len(a) + 1) / 2
    covariance = sum((i - mean) * (j - mean) for i, j in zip(x, y, strict=True))
    return covariance / math.sqrt(sum((i - mean) ** 2 for i in x) * sum((j - mean) ** 2 for j in y))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for position in range(start, end + 1):
            ranks[order[position]] = (start + end) / 2 + 1
        start = end + 1
    return ranks

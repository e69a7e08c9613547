"""How well predicted latencies agree with measured ones: in order, and in size."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# What a table is asked for, on held-out networks: at least so many, in this order, this close.
GOAL_NETWORKS = 50
GOAL_SPEARMAN = 0.98
GOAL_MEDIAN_ERROR = 0.05


@dataclass(frozen=True)
class Check:
    """Predictions of a table against measurements of whole networks that had no part in it.

    Errors are shares of the measured latency. ``bias`` is the median error with its sign: what a machine that has
    become slower or faster since shows first. ``scatter_error`` is the median error when the bias is taken out.
    ``noise``: the median difference between two measurements of the same network, below which no table can come.
    ``error_95``: nineteen in twenty errors are smaller. ``reference_drift``: how much slower one network, the same in
    the build and the check, has become between the two.
    """

    spearman: float
    median_error: float
    worst_error: float
    error_95: float
    bias: float
    scatter_error: float
    noise: float
    reference_drift: float
    networks: int
    date: str
    pairs: tuple[tuple[float, float], ...]

    @property
    def scatter_95(self) -> float:
        """Nineteen in twenty errors are smaller when the bias, which all networks share, is taken out."""
        errors = np.array([predicted / measured for predicted, measured in self.pairs]) / (1 + self.bias) - 1
        return float(np.quantile(np.abs(errors), 0.95, method="higher"))

    @property
    def good(self) -> bool:
        """Spearman of at least 0.98 and a median error of at most 5 % on at least 50 networks."""
        enough = self.networks >= GOAL_NETWORKS
        return enough and self.spearman >= GOAL_SPEARMAN and self.median_error <= GOAL_MEDIAN_ERROR

    def to_dict(self) -> dict[str, Any]:
        """JSON; ``pairs`` are (predicted, measured) in us."""
        return {**asdict(self), "pairs": [list(pair) for pair in self.pairs], "good": self.good}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Check":
        """The inverse of :meth:`to_dict`."""
        own = {name: value for name, value in values.items() if name != "good"}
        return cls(**{**own, "pairs": tuple((float(p), float(m)) for p, m in own["pairs"])})


def compare(
    pairs: Sequence[tuple[float, float]], *, noise: float = 0.0, reference_drift: float = 0.0, date: str = ""
) -> Check:
    """The figures of at least two (predicted, measured) pairs of positive latencies, in us."""
    if len(pairs) < 2 or not all(math.isfinite(p) and math.isfinite(m) and m > 0 for p, m in pairs):
        raise ValueError(f"pairs: got {len(pairs)}, wanted at least two, all finite and the measured ones positive")
    predicted, measured = np.array(pairs, dtype=np.float64).T
    errors = predicted / measured - 1
    bias = float(np.median(errors))
    return Check(
        spearman(predicted, measured),
        float(np.median(np.abs(errors))),
        float(np.max(np.abs(errors))),
        float(np.quantile(np.abs(errors), 0.95, method="higher")),
        bias,
        float(np.median(np.abs((1 + errors) / (1 + bias) - 1))),
        noise,
        reference_drift,
        len(pairs),
        date,
        tuple((float(p), float(m)) for p, m in pairs),
    )


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation, equal values sharing their mean rank; 0.0 where all values of either are equal."""
    x, y = _ranks(np.asarray(a)), _ranks(np.asarray(b))
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]

"""What the numbers of a run say, as plain sentences.

Every sentence is computed. Whether the searched widths win is decided by the interval of the difference, never by the
larger mean, and a run that shows no difference is told to have shown none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .numbers import count, duration, percent, plural, points
from .records import Network, Run, number

BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
_WIDE = 0.25  # an interquartile range above this share of its median


@dataclass(frozen=True)
class Comparison:
    """A searched network against the uniform one of equal cost; `gain`, `low` and `high` in fractions of accuracy."""

    searched: Network
    uniform: Network
    gain: float
    low: float | None
    high: float | None
    verdict: str

    def sentence(self) -> str:
        """Both accuracies, the difference and what it shows; then what the pair costs."""
        ending = {
            BETTER: "The searched widths win.",
            WORSE: "The uniform widths win.",
            UNDECIDED: "This run cannot tell them apart.",
        }[self.verdict]
        return (
            f"{self.searched.label} reaches {percent(self.searched.get('accuracy'))} and {self.uniform.label} "
            f"{percent(self.uniform.get('accuracy'))} at {count(self.searched.get('flops'))} and "
            f"{count(self.uniform.get('flops'))} FLOPs: {points(self.gain)} points{self.interval()}. "
            f"{ending}{self.time()}"
        )

    def interval(self) -> str:
        """ " (95 % interval -0.4 to +0.8)", or nothing where the study gives none."""
        if self.low is None or self.high is None:
            return ""
        return f" (95 % interval {points(self.low)} to {points(self.high)})"

    def time(self) -> str:
        """How the two compare in latency, or nothing where it was not measured."""
        a, b = self.searched.get("latency_us"), self.uniform.get("latency_us")
        if not a or not b:
            return ""
        noise = " (timing noisy)" if noisy(self.searched) or noisy(self.uniform) else ""
        return f" The searched network takes {duration(a)}, the uniform one {duration(b)}{noise}."


def noisy(network: Network) -> bool:
    """Whether a latency of the network, or of its float twin, is not settled: no factor can be told from it."""
    middle, spread = network.get("float_latency_us"), network.get("float_latency_iqr_us")
    wide = middle is not None and spread is not None and spread > _WIDE * middle
    return wide or network.values.get("latency_noisy") in (True, 1, 1.0)


def compare(run: Run) -> list[Comparison]:
    """Every pair of the study. The verdict is the study's own, or else whether the two intervals stand apart."""
    claims = {str(claim.get("pair", "")): claim for claim in run.claims}
    found = []
    for searched, uniform in run.pairs():
        a, b = searched.get("accuracy"), uniform.get("accuracy")
        if a is None or b is None:
            continue
        claim = claims.get(searched.pair, {})
        low, high = number(claim, "low"), number(claim, "high")
        difference = number(claim, "difference")
        gain = a - b if difference is None else difference
        found.append(Comparison(searched, uniform, gain, low, high, _verdict(claim, searched, uniform, low, high)))
    return found


def _verdict(
    claim: Mapping[str, Any], searched: Network, uniform: Network, low: float | None, high: float | None
) -> str:
    if claim.get("outcome") in (BETTER, WORSE, UNDECIDED):
        return str(claim["outcome"])
    if low is None or high is None:
        if searched.interval is None or uniform.interval is None:
            return UNDECIDED
        low, high = searched.interval[0] - uniform.interval[1], searched.interval[1] - uniform.interval[0]
    return BETTER if low > 0 else WORSE if high < 0 else UNDECIDED


def headline(run: Run) -> str:
    """The result of the whole run in one or two sentences."""
    if not run.networks:
        done = plural(len(run.candidates), "network")
        if not run.candidates:
            return "This run has not measured a network yet."
        return (
            f"The search has measured {done}; none has been retrained beside uniform widths yet, so there is no "
            "verdict."
        )
    comparisons = compare(run)
    if not comparisons:
        return "The study holds no searched network with a uniform one of equal cost beside it, so there is no verdict."
    return f"{_pair_by_pair(comparisons)}{_on_average(run)}"


def _on_average(run: Run) -> str:
    """The study's difference over all pairs together, where several were compared."""
    gain, low, high = (number(run.overall, name) for name in ("difference", "low", "high"))
    if gain is None or low is None or high is None or (run.overall.get("pairs") or 0) < 2:
        return ""
    interval = f"{points(gain)} points (95 % interval {points(low)} to {points(high)})"
    return f" Over all {run.overall['pairs']} pairs together the searched networks differ by {interval}."


def _pair_by_pair(comparisons: Sequence[Comparison]) -> str:
    wins = [c for c in comparisons if c.verdict == BETTER]
    losses = [c for c in comparisons if c.verdict == WORSE]
    if wins:
        best = max(wins, key=lambda c: c.gain)
        start = (
            f"Searched widths beat uniform widths of equal FLOPs in {len(wins)} of "
            f"{plural(len(comparisons), 'comparison')}"
            if len(comparisons) > 1
            else "Searched widths beat uniform widths of equal FLOPs"
        )
        rest = f" In {len(losses)} the uniform widths win." if losses else ""
        return f"{start}. {_at_best(best)}{rest}"
    best = max(comparisons, key=lambda c: c.gain)
    if len(losses) == len(comparisons):
        return (
            "The search did not beat uniform widths: at equal FLOPs the uniform networks win every comparison. "
            f"{_at_best(best)}"
        )
    return (
        "The search did not beat uniform widths of equal FLOPs: no difference in its favour is larger than its "
        f"interval. {_at_best(best)}"
    )


def _at_best(best: Comparison) -> str:
    return (
        f"The largest difference is {points(best.gain)} points{best.interval()}: "
        f"{percent(best.searched.get('accuracy'))} for "
        f"{best.searched.label} against {percent(best.uniform.get('accuracy'))} for {best.uniform.label}.{best.time()}"
    )


def not_compared(run: Run) -> list[str]:
    """The pairs of the study without a comparison, each with the study's own words."""
    return [
        f"{claim.get('searched')} and {claim.get('uniform')}: {claim.get('verdict')}."
        for claim in run.claims
        if claim.get("outcome") == "failed"
    ]


def featured(run: Run) -> Network | None:
    """The network whose layers are shown: the searched one of the largest gain, else any that has timed layers."""
    ranked = [c.searched for c in sorted(compare(run), key=lambda c: -c.gain)]
    return next((network for network in (*ranked, *run.networks) if network.layers), None)

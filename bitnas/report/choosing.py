"""Which networks operation counts alone would have chosen wrongly, and what that would have cost in time.

Two latencies differ only where their intervals do not meet; operation counts are exact. Accuracy is taken as measured,
so a network is called a wrong choice only where another one is at least as accurate *and* clearly faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import count, duration, percent, plural, spearman
from .records import Candidate, Network, Point, Run, latency_interval, name_of


@dataclass(frozen=True)
class Misleading:
    """Two networks of which the one with fewer OPs takes longer, by more than the noise of both measurements."""

    fewer: Point
    more: Point

    def sentence(self) -> str:
        """How much fewer OPs, and how much slower."""
        ops, latency = _ratio(self.fewer, self.more, "ops"), _ratio(self.fewer, self.more, "latency_us")
        return (
            f"One network has {percent(1 - ops, 0)} fewer OPs than another ({count(self.fewer.get('ops'))} against "
            f"{count(self.more.get('ops'))}) and yet takes {latency:.2f} times as long "
            f"({duration(self.fewer.get('latency_us'))} "
            f"against {duration(self.more.get('latency_us'))})."
        )


@dataclass(frozen=True)
class WrongChoice:
    """`chosen` is what accuracy and OPs keep, `better` what is clearly faster.

    Either `better` is no less accurate, so that `chosen` has no place on the front of latency; or (`passed_over`)
    `better` is on that front, missing from the one of OPs, and `chosen` is the cheapest there that is as accurate.
    """

    chosen: Point
    better: Point
    passed_over: bool

    @property
    def factor(self) -> float:
        """How many times as long the chosen network takes."""
        return _ratio(self.chosen, self.better, "latency_us")

    def cost(self) -> str:
        return f"takes {self.factor:.2f} times as long"

    def sentence(self) -> str:
        """Both networks by name, and what the choice costs."""
        chosen, better = _named(self.chosen), _named(self.better)
        if self.passed_over:
            return f"{better} is missed; the next that OPs keep, {chosen}, {self.cost()}."
        return f"{chosen} {self.cost()} as {better}, which is no less accurate."


@dataclass(frozen=True)
class Choosing:
    """Both fronts over the same networks and where they disagree, the worst first."""

    by_ops: list[Point]
    by_latency: list[Point]
    kept_wrongly: list[WrongChoice]
    passed_over: list[WrongChoice]

    def sentence(self) -> str:
        """How many choices were wrong, and the worst one."""
        start = (
            f"By accuracy and OPs one would keep {plural(len(self.by_ops), 'network')}, by accuracy and latency "
            f"{len(self.by_latency)}. "
        )
        wrong = [*self.kept_wrongly, *self.passed_over]
        if not wrong:
            return start + (
                "Beyond the noise of the measurements, OPs choose nothing wrong here: no network that they keep is "
                "clearly slower than one at least as accurate, and they miss none whose next better one is clearly "
                "slower."
            )
        parts = []
        if self.kept_wrongly:
            parts.append(
                f"{len(self.kept_wrongly)} of those that OPs keep {_is(self.kept_wrongly)} wrong: another network is "
                "no less accurate and clearly faster. "
            )
        if self.passed_over:
            parts.append(
                f"OPs miss {plural(len(self.passed_over), 'network')} of the latency front: the next better one that "
                "they keep is clearly slower. "
            )
        worst = max(self.kept_wrongly or self.passed_over, key=lambda choice: choice.factor)
        return f"{start}{''.join(parts)}The worst: {worst.sentence()}"


def choose(points: Sequence[Point]) -> Choosing | None:
    """Both fronts of networks with an accuracy, OPs and a latency; None of fewer than two."""
    known = [p for p in points if p.get("accuracy") is not None and _timed(p)]
    if len(known) < 2:
        return None
    by_ops, by_latency = _front(known, "ops"), _front(known, "latency_us")
    kept_wrongly, passed_over = [], []
    for chosen in by_ops:
        rivals = [p for p in known if _accuracy(p) >= _accuracy(chosen) and clearly_faster(p, chosen)]
        if rivals:
            better = min(rivals, key=lambda p: (p.get("latency_us") or 0.0, -_accuracy(p)))
            kept_wrongly.append(WrongChoice(chosen, better, passed_over=False))
    for better in by_latency:
        if not any(better is p for p in by_ops):
            chosen = min((p for p in by_ops if _accuracy(p) >= _accuracy(better)), key=lambda p: p.get("ops") or 0.0)
            known_already = any(c.chosen is chosen and c.better is better for c in kept_wrongly)
            if clearly_faster(better, chosen) and not known_already:
                passed_over.append(WrongChoice(chosen, better, passed_over=True))
    return Choosing(
        by_ops,
        by_latency,
        sorted(kept_wrongly, key=lambda choice: -choice.factor),
        sorted(passed_over, key=lambda choice: -choice.factor),
    )


def clearly_faster(a: Point, b: Point) -> bool:
    """Whether the whole interval of `a`'s latency lies below that of `b`'s."""
    return latency_interval(a)[1] < latency_interval(b)[0]


def measured_points(run: Run) -> list[Point]:
    """Networks with OPs and a latency, all timed in the same way: those of the search, or else those of the study.

    Of the front the search's own latency counts: what was timed later, in turns, does not compare with the others.
    """
    candidates: list[Candidate] = list(filter(_timed, run.candidates))
    networks: list[Network] = list(filter(_timed, run.networks))
    return [*candidates] if len(candidates) >= len(networks) else [*networks]


def rank_correlation(measured: Sequence[Point]) -> float | None:
    """Spearman's correlation of OPs and latency."""
    return spearman([p.get("ops") or 0.0 for p in measured], [p.get("latency_us") or 0.0 for p in measured])


def misleading_pair(measured: Sequence[Point]) -> Misleading | None:
    """The pair in which OPs mislead most, among pairs that differ clearly in both, by OPs saved times time lost."""
    import numpy as np  # a search of ten thousand networks has a hundred million pairs

    if not measured:
        return None
    ops = np.array([p.get("ops") or np.nan for p in measured])
    latency = np.array([p.get("latency_us") or np.nan for p in measured])
    low, high = np.array([latency_interval(p) for p in measured]).T
    best, worst = None, 0.0
    for index, fewer in enumerate(measured):
        saved, longer = ops / ops[index], latency[index] / latency
        clear = (saved > 1.02) & (longer > 1.02) & (high < low[index])
        lost = np.where(clear, (saved - 1) * (longer - 1), 0.0)
        most = int(lost.argmax())
        if lost[most] > worst:
            best, worst = Misleading(fewer, measured[most]), float(lost[most])
    return best


def _front(points: Sequence[Point], cost: str) -> list[Point]:
    """Not dominated by another one, as measured; of equals the first."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.get(cost) or 0.0, -_accuracy(p))):
        if not kept or _accuracy(point) > _accuracy(kept[-1]):
            kept.append(point)
    return kept


def _named(point: Point) -> str:
    return f"{name_of(point)} ({percent(point.get('accuracy'))}, {duration(point.get('latency_us'))})"


def _timed(point: Point) -> bool:
    return (point.get("ops") or 0) > 0 and (point.get("latency_us") or 0) > 0


def _accuracy(point: Point) -> float:
    return point.get("accuracy") or 0.0


def _ratio(a: Point, b: Point, name: str) -> float:
    return (a.get(name) or 0.0) / (b.get(name) or 1.0)


def _is(items: Sequence[object]) -> str:
    return "is" if len(items) == 1 else "are"

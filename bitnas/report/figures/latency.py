"""Figures about time: OPs against it, what choosing by OPs costs, and how far a latency can be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from .. import numbers
from ..agreement import BAND, Pair
from ..choosing import Choosing, Misleading
from ..html import WIDE
from ..records import SEARCHED, Network, Point, name_of
from ..svg import Canvas, Scale, span
from .common import (
    SHAPES,
    accuracy_scale,
    count_tick,
    duration_ticks,
    duration_unit,
    hover,
    layout,
    legend,
    percent_ticks,
)

FRONT = "front"  # kind of a network that stands for its place on the front


def operations(points: Sequence[Point], misleading: Misleading | None, width: int, word: str) -> str | None:
    """OPs against latency, with the pair joined in which fewer OPs take longest. `word` says how it was obtained."""
    if len(points) < 2:
        return None
    canvas = Canvas(width, 430 if width == WIDE else 380)
    kinds = {point.kind if isinstance(point, Network) else "candidate" for point in points}
    entries = [("dot", "candidate", "evaluated in the search")] if "candidate" in kinds else []
    entries += [("diamond", SEARCHED, "searched")] if SEARCHED in kinds else []
    entries += [("square", "uniform", "uniform")] if "uniform" in kinds else []
    entries += [("dot", "front", "front of the search")] if FRONT in kinds else []
    entries += [("cross", "slow", "fewer OPs, yet slower")] if misleading else []
    top = legend(canvas, entries, 16) + 46
    ops = [point.get("ops") or 0.0 for point in points]
    times = [point.get("latency_us") or 0.0 for point in points]
    x = span(ops, 58, width - 16, log=max(ops) > 4 * min(ops) > 0)
    y = span(times, canvas.height - 52, top, log=max(times) > 4 * min(times))
    canvas.axes(
        x,
        y,
        f"OPs{', log scale' if x.log else ''} →",
        f"↑ {word} latency, {duration_unit(y)}{', log scale' if y.log else ''}",
        count_tick,
        duration_ticks(y),
        x_ticks=6 if width == WIDE else 4,
    )
    for point in points:
        network = isinstance(point, Network)
        kind = point.kind if isinstance(point, Network) else "candidate"
        px, py = x(point.get("ops") or 0.0), y(point.get("latency_us") or 0.0)
        title = f"{hover(name_of(point), point)}, {numbers.count(point.get('ops'))} OPs"
        if network:
            canvas.mark(px, py, SHAPES.get(kind, "dot"), 6, kind, title)
        else:
            canvas.speck(px, py, 3.5, kind, title)
    if misleading:
        ends = [(x(p.get("ops") or 0.0), y(p.get("latency_us") or 0.0)) for p in (misleading.fewer, misleading.more)]
        canvas.path(ends, "misleading")
        canvas.mark(*ends[0], "cross", 7, "slow")
    return canvas.svg(f"Operations against {word} latency", layout(width))


def choices(points: Sequence[Point], choosing: Choosing | None, width: int, word: str) -> str | None:
    """Accuracy against latency with both fronts; each wrong choice by OPs is crossed and joined to the better one."""
    known = [p for p in points if p.get("accuracy") is not None]
    if choosing is None or len(known) < 2:
        return None
    canvas = Canvas(width, 440 if width == WIDE else 420)
    wrong = [*choosing.kept_wrongly, *choosing.passed_over]
    entries = [("dot", "candidate", "not chosen"), ("dot", "front", "chosen by latency")]
    entries += [("square", "byops", "chosen by OPs")]
    entries += [("cross", "slow", "chosen by OPs wrongly")] if choosing.kept_wrongly else []
    top = legend(canvas, entries, 16) + 46
    chosen = [*choosing.by_ops, *choosing.by_latency]
    # What nobody would choose may be cut off where it would flatten the rest.
    x, y = _plane(known, chosen, canvas, top, width)
    canvas.axes(
        x,
        y,
        f"{word} latency, {duration_unit(x)}{', log scale' if x.log else ''} →",
        "↑ accuracy",
        duration_ticks(x),
        percent_ticks(y),
        x_ticks=7 if width == WIDE else 4,
    )

    def at(point: Point) -> tuple[float, float]:
        return x(point.get("latency_us") or 0.0), y(point.get("accuracy") or 0.0)

    for point in known:
        if x.holds(point.get("latency_us") or 0.0) and y.holds(point.get("accuracy") or 0.0):
            canvas.speck(*at(point), 3, "candidate", hover(name_of(point), point))
    canvas.path([at(point) for point in choosing.by_latency], "frontline")
    for choice in wrong:
        canvas.path([at(choice.chosen), at(choice.better)], "misleading")
    for point in choosing.by_latency:
        canvas.mark(*at(point), "dot", 4.5, "front", hover(name_of(point), point))
        canvas.keep_off(*at(point), 5, 5)
    for point in choosing.by_ops:
        canvas.mark(*at(point), "square", 7, "byops", hover(name_of(point), point))
        canvas.keep_off(*at(point), 8, 8)
    for choice in choosing.kept_wrongly:
        canvas.mark(*at(choice.chosen), "cross", 6, "slow")
    for index, choice in enumerate(wrong, 1):
        px, py = at(choice.better if choice.passed_over else choice.chosen)
        canvas.label(px, py, str(index), "name slow", (x.start, top - 8, width, y.start))
    return canvas.svg("The fronts of OPs and of latency over accuracy", layout(width))


def _plane(
    known: Sequence[Point], chosen: Sequence[Point], canvas: Canvas, top: float, width: int
) -> tuple[Scale, Scale]:
    times = [p.get("latency_us") or 0.0 for p in chosen]
    accuracies = [p.get("accuracy") or 0.0 for p in chosen]
    reach = 1.15 * max(times)
    near = [p.get("latency_us") or 0.0 for p in known if (p.get("latency_us") or 0.0) <= reach]
    every = [*times, *near]
    x = span(every, 58, width - 12, log=max(every) > 4 * min(every))
    return x, accuracy_scale(accuracies, canvas.height - 52, top)


def agreement(pairs: Sequence[Pair], width: int, searched: str, measured: str) -> str | None:
    """(searched, measured) latencies on two log axes of equal length, with the diagonal and a band of 5 %."""
    if not pairs:
        return None
    side = 470 if width == WIDE else width
    canvas = Canvas(width, side + 40)
    entries = [("dot", "searched", "one network"), ("square", "band", f"within {BAND:.0%}")]
    top = legend(canvas, entries, 16) + 46
    values = [value for pair in pairs for value in pair]
    log = max(values) > 1.5 * min(values)
    bottom = canvas.height - 52
    right = min(58 + (bottom - top) * 1.2, width - 12)
    x = span(values, 58, right, log=log)
    y = Scale(x.low, x.high, bottom, top, log=x.log)
    low, high = x.low, x.high
    # The band, cut off at the edges of the plot.
    corners = [(low, low), (low, low * (1 + BAND)), (high / (1 + BAND), high), (high, high), (high, high * (1 - BAND)),
               (low / (1 - BAND), low)]  # fmt: skip
    if low / (1 - BAND) < high:
        canvas.polygon([(x(a), y(b)) for a, b in corners], "band")
    scale = ", log scale" if log else ""
    canvas.axes(
        x,
        y,
        f"{measured}, {duration_unit(x)}{scale} →",
        f"↑ {searched}, {duration_unit(y)}{scale}",
        duration_ticks(x),
        duration_ticks(y),
        x_ticks=5 if width == WIDE else 4,
    )
    canvas.line(x(low), y(low), x(high), y(high), "diagonal")
    for a, b in pairs:
        title = f"{searched} {numbers.duration(a)}, {measured} {numbers.duration(b)}"
        canvas.mark(x(b), y(a), "dot", 4, "searched pale", f"{title}: {100 * (a / b - 1):+.1f} %")
    return canvas.svg(f"{searched} against {measured}", layout(width))

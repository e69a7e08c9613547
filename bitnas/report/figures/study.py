"""Figures of the networks themselves: accuracy against time, pairs of equal cost, layers."""

from __future__ import annotations

from collections.abc import Sequence

from .. import numbers
from ..html import WIDE
from ..records import SEARCHED, Candidate, Network, Point, Run, number
from ..svg import Canvas, Scale, shorten, span, text_width
from .common import (
    SHAPES,
    accuracy_scale,
    duration_ticks,
    duration_unit,
    hover,
    layout,
    legend,
    named_marks,
    percent_ticks,
    upper_edge,
)


def accuracy_range(networks: Sequence[Network], candidates: Sequence[Point]) -> tuple[float, float]:
    """The accuracies figure 1 shows: candidates far below everything that matters would flatten it and are left out."""
    anchor = [value for network in networks for value in (*(network.interval or ()), network.get("accuracy")) if value]
    others = [value for value in (candidate.get("accuracy") for candidate in candidates) if value is not None]
    if not anchor:
        return min(others), max(others)
    room = max(max(anchor) - min(anchor), 0.02) * 3
    return min([*anchor, *(v for v in others if v >= min(anchor) - room)]), max([*anchor, *others])


def pareto(run: Run, width: int) -> str | None:
    """Accuracy against measured latency: candidates, front, and the retrained networks with error bars."""
    networks = [n for n in run.networks if n.get("accuracy") is not None and n.get("latency_us") is not None]
    candidates = [c for c in run.candidates if c.get("accuracy") is not None and c.get("latency_us") is not None]
    front = [n for n in run.front if n.get("accuracy") is not None and n.get("latency_us") is not None]
    if not networks and not candidates and not front:
        return None
    canvas = Canvas(width, 470 if width == WIDE else 430)
    entries = [("dot", "candidate", "evaluated in the search")] if candidates else []
    entries += [("dot", "front", "front of the search")] if front else []
    if networks:
        entries += [("diamond", "searched", "searched, retrained"), ("square", "uniform", "uniform, retrained")]
    top = legend(canvas, entries, 16) + 46
    everything: list[Point] = [*networks, *candidates, *front]
    latencies = [v for point in everything for v in _bar(point)]
    low, high = accuracy_range(networks, [*candidates, *front])
    x = span(latencies, 58, width - 12, log=max(latencies) > 4 * min(latencies))
    y = accuracy_scale([low, high], canvas.height - 52, top)
    canvas.axes(
        x,
        y,
        f"{'latency' if run.predicted else 'measured latency'}, {duration_unit(x)}{', log scale' if x.log else ''} →",
        "↑ accuracy",
        duration_ticks(x),
        percent_ticks(y),
        x_ticks=7 if width == WIDE else 4,
    )
    for candidate in candidates:
        accuracy, latency = candidate.get("accuracy") or 0.0, candidate.get("latency_us") or 0.0
        if y.holds(accuracy):
            canvas.speck(x(latency), y(accuracy), 3, "candidate", hover("candidate", candidate))
    inside = [n for n in front if y.holds(n.get("accuracy") or 0.0)]
    edge = upper_edge(inside, "latency_us")
    canvas.path([(x(n.get("latency_us") or 0.0), y(n.get("accuracy") or 0.0)) for n in edge], "frontline")
    for network in inside:
        px, py = x(network.get("latency_us") or 0.0), y(network.get("accuracy") or 0.0)
        canvas.mark(px, py, "dot", 4.5, "front", hover(network.label, network))
        canvas.keep_off(px, py, 5, 5)
    for network in networks:
        _error_bars(canvas, x, y, network)
    named_marks(canvas, x, y, networks, "latency_us", "accuracy", (x.start, top - 8, width, y.start))
    return canvas.svg("Accuracy against measured latency of every network of this run", layout(width))


def _bar(point: Point) -> list[float]:
    """Median and both ends of the bar that is as long as the interquartile range."""
    middle, spread = point.get("latency_us") or 0.0, point.get("latency_iqr_us") or 0.0
    if isinstance(point, Candidate) or middle - spread / 2 <= 0:
        return [middle]
    return [middle - spread / 2, middle, middle + spread / 2]


def _error_bars(canvas: Canvas, x: Scale, y: Scale, network: Network) -> None:
    px, py = x(network.get("latency_us") or 0.0), y(network.get("accuracy") or 0.0)
    css = f"bar {network.kind}"
    bar = _bar(network)
    if len(bar) == 3:
        canvas.line(x(bar[0]), py, x(bar[2]), py, css)
    if network.interval:
        low, high = (y(end) for end in network.interval)
        canvas.line(px, low, px, high, css)
        canvas.keep_off(px, (low + high) / 2, 4, abs(low - high) / 2 + 2, thin=True)
        for end in (low, high):
            canvas.line(px - 3, end, px + 3, end, css)


def paired(run: Run, width: int) -> str | None:
    """Each searched network above the uniform one of equal cost: accuracy and its interval."""
    pairs = [(s, u) for s, u in run.pairs() if s.get("accuracy") is not None and u.get("accuracy") is not None]
    if not pairs:
        return None
    row, narrow = 74, width != WIDE
    left = 12.0 if narrow else 190.0
    canvas = Canvas(width, 34 + row * len(pairs) + (24 * len(pairs) if narrow else 0) + 56)
    top = legend(canvas, [("diamond", SEARCHED, "searched"), ("square", "uniform", "uniform widths")], 16) + 16
    step = row + (24 if narrow else 0)
    bottom = top + step * len(pairs)
    values = [v for pair in pairs for n in pair for v in (n.get("accuracy") or 0.0, *(n.interval or ()))]
    x = accuracy_scale(values, left + 4, width - (24 if narrow else 76))
    text = percent_ticks(x)
    canvas.height = bottom + 46
    canvas.x_axis(x, bottom, top, "accuracy (bar: interval) →", text, 4 if narrow else 6)
    for index, (searched, uniform) in enumerate(pairs):
        y = top + index * step + (24 if narrow else 0)
        if index:
            canvas.line(0, top + index * step, width, top + index * step, "base")
        cost = f"{numbers.count(searched.get('flops'))} FLOPs"
        if narrow:
            canvas.text(2, y - 5, f"{searched.label} · {uniform.label} · {cost}", "name")
        else:
            canvas.text(2, y + 27, searched.label, "name searched")
            canvas.text(2, y + 45, uniform.label, "name uniform")
            canvas.text(2, y + 63, f"both near {cost}", "tick")
        spots = []
        for network, py in ((searched, y + 24), (uniform, y + 48)):
            px = x(network.get("accuracy") or 0.0)
            if network.interval:
                low, high = (x(end) for end in network.interval)
                canvas.line(low, py, high, py, f"bar {network.kind}")
            spots.append((network, px, py))
        canvas.line(spots[0][1], spots[0][2], spots[1][1], spots[1][2], "leader")
        for network, px, py in spots:
            canvas.mark(px, py, SHAPES[network.kind], 6.5, network.kind, hover(network.label, network))
        if not narrow:
            gain = (searched.get("accuracy") or 0.0) - (uniform.get("accuracy") or 0.0)
            canvas.text(width - 2, y + 36, numbers.points(gain), "name", "end")
            canvas.text(width - 2, y + 53, "points", "tick", "end")
    return canvas.svg("Accuracy of searched networks and of uniform widths at equal FLOPs", layout(width))


def layers(network: Network | None, width: int) -> str | None:
    """One row per layer of one network: float time and packed time, the layers where packed loses marked."""
    rows = [] if network is None else timed_layers(network)
    if network is None or not rows:
        return None
    narrow = width != WIDE
    names = [name if binary else f"{name} (float)" for name, *_, binary in rows]
    left = min(max(map(text_width, names)) + 16, 116.0 if narrow else 240.0)
    right = 106.0 if narrow else 130.0
    canvas = Canvas(width, 0)
    entries = [("dot", "float", "float32"), ("diamond", "packed", "packed"), ("diamond", "slow", "packed is slower")]
    top = legend(canvas, entries, 16) + 16
    bottom = top + 28 * len(rows)
    canvas.height = bottom + 46
    times = [time for _, packed, reference, _ in rows for time in (packed, reference)]
    x = span(times, left, width - right, log=max(times) > 5 * min(times))
    canvas.x_axis(
        x,
        bottom,
        top,
        f"time of the layer, {duration_unit(x)}{', log scale' if x.log else ''} →",
        duration_ticks(x),
        4 if narrow else 7,
    )
    for index, (name, (_, packed, reference, _)) in enumerate(zip(names, rows, strict=True)):
        y = top + 28 * index + 16
        slow = packed > reference
        canvas.text(left - 12, y + 4, shorten(name, left - 10), "tick", "end")
        canvas.line(x(packed), y, x(reference), y, "bar slow" if slow else "bar packed")
        title = f"{name}: float {numbers.duration(reference)}, packed {numbers.duration(packed)}"
        canvas.mark(x(reference), y, "dot", 5, "float", title)
        canvas.mark(x(packed), y, "diamond", 6, "slow" if slow else "packed", title)
        ratio = reference / packed
        words = f"{1 / ratio:.{2 if ratio > 0.9 else 1}f}× slower" if slow else f"{ratio:.1f}×"
        canvas.text(width - right + 14, y + 4, words, "name slow" if slow else "tick")
    return canvas.svg(f"Float and packed time of each layer of {network.label}", layout(width))


def timed_layers(network: Network) -> list[tuple[str, float, float, bool]]:
    """(name, packed µs, float µs, binary) of the layers that were timed both ways."""
    rows = []
    for layer in network.layers:
        packed, reference = number(layer, "packed_us"), number(layer, "float_us")
        if packed and reference and packed > 0 and reference > 0:
            rows.append((str(layer.get("name", "?")), packed, reference, bool(layer.get("binary"))))
    return rows

"""The pictures of the report. Each function takes the run and a width in pixels and gives one SVG element, or None if
the run has nothing to draw; the page asks for a wide and a narrow one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from . import numbers
from .findings import Misleading
from .load import SEARCHED, Candidate, Network, Point, Run, number
from .svg import Canvas, Scale, shorten, span, text_width

WIDE, NARROW = 828, 356
_SHAPE = {SEARCHED: "diamond", "uniform": "square"}


def _css(width: int) -> str:
    return "wide" if width == WIDE else "narrow"


def _duration_ticks(scale: Scale) -> Callable[[float], str]:
    """Tick labels of one axis in one unit, without trailing zeros."""
    factor = 1e3 if scale.high >= 2e3 else 1.0
    return lambda value: f"{value / factor:.10g}"


def _duration_unit(scale: Scale) -> str:
    return "ms" if scale.high >= 2e3 else "µs"


def _percent_ticks(scale: Scale) -> Callable[[float], str]:
    whole = all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in scale.ticks(5))
    return lambda value: f"{100 * value:.{0 if whole else 1}f} %"


def _accuracy_scale(values: Sequence[float], start: float, end: float) -> Scale:
    scale = span(values, start, end, pad=0.08)
    return Scale(scale.low, min(scale.high, 1.001) if scale.low < 1 else scale.high, start, end)


def _count_tick(value: float) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def _legend(canvas: Canvas, entries: Sequence[tuple[str, str, str]], y: float) -> float:
    """Shape, CSS class and words of each mark, wrapped over as many lines as it takes; gives the y of the last line."""
    x = 2.0
    for shape, css, words in entries:
        width = 20 + text_width(words) + 14
        if x > 2 and x + width > canvas.width:
            x, y = 2.0, y + 20
        canvas.mark(x + 7, y - 4, shape, 5, css)
        canvas.text(x + 18, y, words, "legend")
        x += width
    return y


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
    legend = [("dot", "candidate", "evaluated in the search")] if candidates else []
    legend += [("dot", "front", "front of the search")] if front else []
    if networks:
        legend += [("diamond", "searched", "searched, retrained"), ("square", "uniform", "uniform, retrained")]
    top = _legend(canvas, legend, 16) + 46
    everything: list[Point] = [*networks, *candidates, *front]
    latencies = [v for point in everything for v in _latency_bar(point)]
    low, high = accuracy_range(networks, [*candidates, *front])
    x = span(latencies, 58, width - 12, log=max(latencies) > 4 * min(latencies))
    y = _accuracy_scale([low, high], canvas.height - 52, top)
    canvas.axes(
        x,
        y,
        f"measured latency, {_duration_unit(x)}{', log scale' if x.log else ''} →",
        "↑ accuracy",
        _duration_ticks(x),
        _percent_ticks(y),
        x_ticks=7 if width == WIDE else 4,
    )
    for candidate in candidates:
        accuracy, latency = candidate.get("accuracy") or 0.0, candidate.get("latency_us") or 0.0
        if y.holds(accuracy):
            canvas.mark(x(latency), y(accuracy), "dot", 3, "candidate", _hover("candidate", candidate))
    inside = [n for n in _ordered(front) if y.holds(n.get("accuracy") or 0.0)]
    edge = _upper_edge(inside)
    canvas.path([(x(n.get("latency_us") or 0.0), y(n.get("accuracy") or 0.0)) for n in edge], "frontline")
    for network in inside:
        px, py = x(network.get("latency_us") or 0.0), y(network.get("accuracy") or 0.0)
        canvas.mark(px, py, "dot", 4.5, "front", _hover("front", network))
        canvas.keep_off(px, py, 5, 5)
    for network in networks:
        _error_bars(canvas, x, y, network)
    _named_marks(canvas, x, y, networks, "latency_us", "accuracy", (x.start, top - 8, width, y.start))
    return canvas.svg("Accuracy against measured latency of every network of this run", _css(width))


def _ordered(networks: Sequence[Network]) -> list[Network]:
    return sorted(networks, key=lambda network: network.get("latency_us") or 0.0)


def _upper_edge(networks: Sequence[Network]) -> list[Network]:
    """Of networks in the order of their latency, those more accurate than every faster one."""
    edge: list[Network] = []
    for network in networks:
        if not edge or (network.get("accuracy") or 0.0) > (edge[-1].get("accuracy") or 0.0):
            edge.append(network)
    return edge


def _latency_bar(point: Point) -> list[float]:
    """Median and both ends of the bar that is as long as the interquartile range."""
    middle, spread = point.get("latency_us") or 0.0, point.get("latency_iqr_us") or 0.0
    if isinstance(point, Candidate) or middle - spread / 2 <= 0:
        return [middle]
    return [middle - spread / 2, middle, middle + spread / 2]


def _error_bars(canvas: Canvas, x: Scale, y: Scale, network: Network) -> None:
    px, py = x(network.get("latency_us") or 0.0), y(network.get("accuracy") or 0.0)
    css = f"bar {network.kind}"
    bar = _latency_bar(network)
    if len(bar) == 3:
        canvas.line(x(bar[0]), py, x(bar[2]), py, css)
    if network.interval:
        low, high = (y(end) for end in network.interval)
        canvas.line(px, low, px, high, css)
        canvas.keep_off(px, (low + high) / 2, 4, abs(low - high) / 2 + 2, thin=True)
        for end in (low, high):
            canvas.line(px - 3, end, px + 3, end, css)


def _named_marks(
    canvas: Canvas,
    x: Scale,
    y: Scale,
    networks: Sequence[Network],
    x_name: str,
    y_name: str,
    bounds: tuple[float, float, float, float],
) -> None:
    """The retrained networks with their names beside them. All marks come first, so that no name covers one."""
    spots = [(n, x(n.get(x_name) or 0.0), y(n.get(y_name) or 0.0)) for n in networks]
    for network, px, py in spots:
        canvas.mark(px, py, _SHAPE.get(network.kind, "dot"), 6.5, network.kind, _hover(network.label, network))
        canvas.keep_off(px, py, 8, 8)
    for network, px, py in spots:
        canvas.label(px, py, network.label, f"name {network.kind}", bounds)


def _hover(name: str, point: Point) -> str:
    ratios = point.ratios if isinstance(point, Candidate) else point.values.get("ratios") or ()
    code = ", ".join(f"{ratio:g}" for ratio in ratios)
    return (
        f"{name}: {numbers.percent(point.get('accuracy'))}, {numbers.duration(point.get('latency_us'))}, "
        f"{numbers.count(point.get('flops'))} FLOPs, ratios {code}"
    )


def paired(run: Run, width: int) -> str | None:
    """Each searched network above the uniform one of equal cost: accuracy and its interval."""
    pairs = [(s, u) for s, u in run.pairs() if s.get("accuracy") is not None and u.get("accuracy") is not None]
    if not pairs:
        return None
    row, narrow = 74, width != WIDE
    left = 12.0 if narrow else 190.0
    canvas = Canvas(width, 34 + row * len(pairs) + (24 * len(pairs) if narrow else 0) + 56)
    top = _legend(canvas, [("diamond", SEARCHED, "searched"), ("square", "uniform", "uniform widths")], 16) + 16
    step = row + (24 if narrow else 0)
    bottom = top + step * len(pairs)
    values = [v for pair in pairs for n in pair for v in (n.get("accuracy") or 0.0, *(n.interval or ()))]
    x = _accuracy_scale(values, left + 4, width - (24 if narrow else 76))
    text = _percent_ticks(x)
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
            canvas.mark(px, py, _SHAPE[network.kind], 6.5, network.kind, _hover(network.label, network))
        if not narrow:
            gain = (searched.get("accuracy") or 0.0) - (uniform.get("accuracy") or 0.0)
            canvas.text(width - 2, y + 36, numbers.points(gain), "name", "end")
            canvas.text(width - 2, y + 53, "points", "tick", "end")
    return canvas.svg("Accuracy of searched networks and of uniform widths at equal FLOPs", _css(width))


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
    top = _legend(canvas, entries, 16) + 16
    bottom = top + 28 * len(rows)
    canvas.height = bottom + 46
    times = [time for _, packed, reference, _ in rows for time in (packed, reference)]
    x = span(times, left, width - right, log=max(times) > 5 * min(times))
    canvas.x_axis(
        x,
        bottom,
        top,
        f"time of the layer, {_duration_unit(x)}{', log scale' if x.log else ''} →",
        _duration_ticks(x),
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
        words = f"{1 / ratio:.1f}× slower" if slow else f"{ratio:.1f}×"
        canvas.text(width - right + 14, y + 4, words, "name slow" if slow else "tick")
    return canvas.svg(f"Float and packed time of each layer of {network.label}", _css(width))


def timed_layers(network: Network) -> list[tuple[str, float, float, bool]]:
    """(name, packed µs, float µs, binary) of the layers that were timed both ways."""
    rows = []
    for layer in network.layers:
        packed, reference = number(layer, "packed_us"), number(layer, "float_us")
        if packed and reference and packed > 0 and reference > 0:
            rows.append((str(layer.get("name", "?")), packed, reference, bool(layer.get("binary"))))
    return rows


def widths(run: Run, width: int) -> str | None:
    """Channels of every layer as bars, the searched network to the left and the uniform one to the right."""
    pairs = [(s, u) for s, u in run.pairs() if s.widths and len(s.widths) == len(u.widths)]
    if not pairs:
        return None
    across = min(len(pairs), 3) if width == WIDE else 1
    panel, bar = width / across, 20
    depth = max(len(searched.widths) for searched, _ in pairs)
    height = 46 + bar * depth + 22
    canvas = Canvas(width, height * math.ceil(len(pairs) / across))
    widest = max(width for pair in pairs for network in pair for width in network.widths)
    for index, (searched, uniform) in enumerate(pairs):
        left, top = (index % across) * panel, (index // across) * height
        axis = left + panel / 2
        reach = panel / 2 - 62
        canvas.text(axis - 20, top + 18, searched.label, "name searched", "end")
        canvas.text(axis + 20, top + 18, uniform.label, "name uniform")
        for row, (a, b) in enumerate(zip(searched.widths, uniform.widths, strict=True)):
            y = top + 30 + bar * row
            canvas.text(axis, y + 13, str(row + 1), "tick", "middle")
            one, two = a / widest * reach, b / widest * reach
            canvas.rect(axis - 14 - one, y, one, bar - 4, "fill searched", f"layer {row + 1}: {a} channels")
            canvas.rect(axis + 14, y, two, bar - 4, "fill uniform", f"layer {row + 1}: {b} channels")
            canvas.text(axis - 19 - one, y + 13, str(a), "tick", "end")
            canvas.text(axis + 19 + two, y + 13, str(b), "tick")
    return canvas.svg("Channels of each layer, searched beside uniform", _css(width))


def operations(points: Sequence[Point], misleading: Misleading | None, width: int) -> str | None:
    """OPs against measured latency, with the pair joined in which fewer OPs take longest."""
    if len(points) < 2:
        return None
    canvas = Canvas(width, 430 if width == WIDE else 380)
    kinds = {point.kind if isinstance(point, Network) else "candidate" for point in points}
    entries = [("dot", "candidate", "evaluated in the search")] if "candidate" in kinds else []
    entries += [("diamond", SEARCHED, "searched")] if SEARCHED in kinds else []
    entries += [("square", "uniform", "uniform")] if "uniform" in kinds else []
    entries += [("cross", "slow", "fewer OPs, yet slower")] if misleading else []
    top = _legend(canvas, entries, 16) + 46
    ops = [point.get("ops") or 0.0 for point in points]
    times = [point.get("latency_us") or 0.0 for point in points]
    x = span(ops, 58, width - 16, log=max(ops) > 4 * min(ops) > 0)
    y = span(times, canvas.height - 52, top, log=max(times) > 4 * min(times))
    canvas.axes(
        x,
        y,
        f"OPs{', log scale' if x.log else ''} →",
        f"↑ measured latency, {_duration_unit(y)}{', log scale' if y.log else ''}",
        _count_tick,
        _duration_ticks(y),
        x_ticks=6 if width == WIDE else 4,
    )
    for point in points:
        network = isinstance(point, Network)
        kind = point.kind if isinstance(point, Network) else "candidate"
        name = point.label if isinstance(point, Network) else "candidate"
        canvas.mark(
            x(point.get("ops") or 0.0),
            y(point.get("latency_us") or 0.0),
            _SHAPE.get(kind, "dot") if network else "dot",
            6 if network else 3.5,
            kind,
            f"{_hover(name, point)}, {numbers.count(point.get('ops'))} OPs",
        )
    if misleading:
        ends = [(x(p.get("ops") or 0.0), y(p.get("latency_us") or 0.0)) for p in (misleading.fewer, misleading.more)]
        canvas.path(ends, "misleading")
        canvas.mark(*ends[0], "cross", 7, "slow")
    return canvas.svg("Operations against measured latency", _css(width))


def history(run: Run, metric: str, width: int) -> str | None:
    """`metric` (accuracy or fitness) of each evaluation by generation, the best so far as a line, failures crossed."""
    seen = [(c.generation, c.get(metric)) for c in run.candidates if c.generation is not None]
    points = [(generation, value) for generation, value in seen if value is not None]
    if not points:
        return None
    canvas = Canvas(width, 330 if width == WIDE else 320)
    failures = [f.generation for f in run.failures if f.generation is not None]
    entries = [("dot", "candidate", "evaluated"), ("dot", "front", "best so far")]
    entries += [("cross", "slow", "failed")] if failures else []
    top = _legend(canvas, entries, 16) + 46
    last = max([generation for generation, _ in points] + failures)
    x = Scale(0.5, last + 1.5, 58, width - 12)
    scale = 0.01 if metric == "fitness" else 1.0  # fitness is in percentage points
    y = span([value * scale for _, value in points], canvas.height - (74 if failures else 52), top)
    for tick in y.ticks(5):
        canvas.line(x.start, y(tick), x.end, y(tick), "grid")
        words = _percent_ticks(y)(tick) if metric == "accuracy" else f"{tick * 100:.4g}"
        canvas.text(x.start - 7, y(tick) + 4, words, "tick", "end")
    canvas.text(2, top - 12, f"↑ {metric}", "axis")
    bottom = canvas.height - 52
    every = max(1, math.ceil((last + 1) / (16 if width == WIDE else 8)))
    for generation in range(0, last + 1, every):
        canvas.text(x(generation + 1), bottom + 18, str(generation + 1), "tick", "middle")
    canvas.line(x.start, bottom, x.end, bottom, "base")
    canvas.text(x.end, bottom + 37, "generation →", "axis", "end")
    for column in range(last + 1):
        values = [value * scale for generation, value in points if generation == column]
        for index, value in enumerate(values):
            canvas.mark(_spread(x, column, index, len(values)), y(value), "dot", 3, "candidate")
        failed = failures.count(column)
        for index in range(failed):
            canvas.mark(_spread(x, column, index, failed), bottom - 10, "cross", 4, "slow")
    best, steps = -math.inf, []
    for column in range(last + 1):
        best = max([best, *(value * scale for generation, value in points if generation == column)])
        if math.isfinite(best):
            steps.append((x(column + 1), y(best)))
    canvas.path(steps, "frontline")
    for px, py in steps:
        canvas.mark(px, py, "dot", 4.5, "front")
    return canvas.svg(f"{metric.capitalize()} of every evaluation by generation", _css(width))


def _spread(x: Scale, generation: int, index: int, count: int) -> float:
    """Neighbouring marks of one generation stand side by side, not on top of each other."""
    share = 0.0 if count == 1 else (index / (count - 1) - 0.5) * 0.5
    return x(generation + 1 + share)

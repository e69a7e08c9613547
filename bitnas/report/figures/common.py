"""What the figures share: scales, tick labels, legends and named marks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from .. import numbers
from ..html import WIDE
from ..records import SEARCHED, Candidate, Network, Point, code
from ..svg import Canvas, Scale, span, text_width

SHAPES = {SEARCHED: "diamond", "uniform": "square"}
COSTS = {
    "latency_us": "latency",
    "ops": "OPs",
    "flops": "FLOPs",
    "bops": "BOPs",
    "memory_bits": "memory in bits",
}
P = TypeVar("P", Network, Candidate)


def layout(width: int) -> str:
    return "wide" if width == WIDE else "narrow"


def duration_ticks(scale: Scale) -> Callable[[float], str]:
    """Tick labels of one axis in one unit, without trailing zeros."""
    factor = 1e3 if scale.high >= 2e3 else 1.0
    return lambda value: f"{value / factor:.10g}"


def duration_unit(scale: Scale) -> str:
    return "ms" if scale.high >= 2e3 else "µs"


def percent_ticks(scale: Scale) -> Callable[[float], str]:
    whole = all(abs(100 * tick - round(100 * tick)) < 1e-6 for tick in scale.ticks(5))
    return lambda value: f"{100 * value:.{0 if whole else 1}f} %"


def accuracy_scale(values: Sequence[float], start: float, end: float) -> Scale:
    scale = span(values, start, end, pad=0.08)
    return Scale(scale.low, min(scale.high, 1.001) if scale.low < 1 else scale.high, start, end)


def count_tick(value: float) -> str:
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.4g}{unit}"
    return f"{value:.4g}"


def legend(canvas: Canvas, entries: Sequence[tuple[str, str, str]], y: float) -> float:
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


def named_marks(
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
        canvas.mark(px, py, SHAPES.get(network.kind, "dot"), 6.5, network.kind, hover(network.label, network))
        canvas.keep_off(px, py, 8, 8)
    for network, px, py in spots:
        canvas.label(px, py, network.label, f"name {network.kind}", bounds)


def hover(name: str, point: Point) -> str:
    """What a mark says when pointed at."""
    if point.subnet is not None:
        what = f"{numbers.count(point.get('ops'))} OPs, blocks {code(point)}"
    elif point.architecture is not None:
        what = f"{numbers.count(point.get('ops'))} OPs, {code(point)}"
    else:
        what = f"{numbers.count(point.get('flops'))} FLOPs, ratios {code(point)}"
    return f"{name}: {numbers.percent(point.get('accuracy'))}, {numbers.duration(point.get('latency_us'))}, {what}"


def upper_edge(points: Sequence[P], cost: str) -> list[P]:
    """Those that are more accurate than every cheaper one, in the order of their cost."""
    edge: list[P] = []
    for point in sorted(points, key=lambda p: (p.get(cost) or 0.0, -(p.get("accuracy") or 0.0))):
        if not edge or (point.get("accuracy") or 0.0) > (edge[-1].get("accuracy") or 0.0):
            edge.append(point)
    return edge


def cost_axis(cost: str, scale: Scale, word: str = "measured latency") -> tuple[str, Callable[[float], str]]:
    """Name and tick labels of an axis of cost."""
    log = ", log scale" if scale.log else ""
    if cost == "latency_us":
        return f"{word}, {duration_unit(scale)}{log}", duration_ticks(scale)
    return f"{COSTS[cost]}{log}", count_tick

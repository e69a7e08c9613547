"""The fronts of several methods in one plane of accuracy and measured latency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import numbers
from ..html import WIDE
from ..records import Network, latency_interval, number
from ..svg import Canvas, span
from .common import accuracy_scale, duration_ticks, duration_unit, layout, legend, percent_ticks

# Method -> shape, colour and name.
METHODS = {
    "width": ("square", "uniform", "width evolution"),
    "nasbnn": ("diamond", "searched", "NAS-BNN"),
    "bars": ("dot", "op-1", "BARS"),
}
_OTHERS = (("square", "op-3"), ("diamond", "op-2"), ("dot", "float"))


def look(method: str, methods: Sequence[str]) -> tuple[str, str, str]:
    """Shape, colour and name of a method among those that are compared."""
    if method in METHODS:
        return METHODS[method]
    strangers = [name for name in methods if name not in METHODS]
    shape, css = _OTHERS[strangers.index(method) % len(_OTHERS)]
    return shape, css, method


def methods_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Methods of the rows, those of the project in its order, then others as they come."""
    found = list(dict.fromkeys(str(row["method"]) for row in rows))
    return [name for name in METHODS if name in found] + [name for name in found if name not in METHODS]


def plane(found: Mapping[str, Any], width: int) -> str | None:
    """Every network with both its intervals, and for each front a line through those that were chosen for it."""
    rows = [row for row in found["rows"] if (row.get("latency_us") or 0) > 0]
    if not rows:
        return None
    canvas = Canvas(width, 480 if width == WIDE else 430)
    methods = methods_of(rows)
    legend_entries = [look(method, methods) for method in methods]
    top = legend(canvas, [(shape, f"op {css}", words) for shape, css, words in legend_entries], 16) + 46
    ends = [end for row in rows for end in _latencies(row)]
    heights = [value for row in rows for value in _accuracies(row)]
    x = span(ends, 58, width - 16, log=max(ends) > 4 * min(ends))
    y = accuracy_scale(heights, canvas.height - 52, top)
    axis = f"measured latency, {duration_unit(x)}{', log scale' if x.log else ''} →"
    name = "↑ test accuracy" if found["trained"] else "↑ accuracy that its own run gives"
    canvas.axes(x, y, axis, name, duration_ticks(x), percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for labels in found["fronts"].values():
        chosen = sorted((row for row in rows if row["label"] in labels), key=lambda row: row["latency_us"])
        stairs: list[tuple[float, float]] = []
        for row in chosen:
            spot = x(row["latency_us"]), y(row["accuracy"])
            stairs += [(spot[0], stairs[-1][1]), spot] if stairs else [spot]
        if chosen:
            canvas.path(stairs, f"methodline {look(chosen[0]['method'], methods)[1]}")
    for row in rows:
        shape, css, _ = look(row["method"], methods)
        px, py = x(row["latency_us"]), y(row["accuracy"])
        left, right = (x(value) for value in _latencies(row))
        low, high = (y(value) for value in _accuracies(row))
        canvas.line(left, py, right, py, f"bar thin {css}")
        canvas.line(px, low, px, high, f"bar thin {css}")
        said = f"{row['label']}: {numbers.percent(row['accuracy'])}, {numbers.duration(row['latency_us'])}"
        canvas.mark(px, py, shape, 6, f"op {css}", said)
    return canvas.svg("Accuracy against measured latency, by method", layout(width))


def _latencies(row: Mapping[str, Any]) -> tuple[float, float]:
    return latency_interval(Network(row))


def _accuracies(row: Mapping[str, Any]) -> tuple[float, float]:
    low, high = number(row, "accuracy_low"), number(row, "accuracy_high")
    return (row["accuracy"] if low is None else low, row["accuracy"] if high is None else high)

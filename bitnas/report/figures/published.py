"""Printed accuracies against our latencies, uniform widths joined by a line."""

from __future__ import annotations

from collections.abc import Sequence

from ..html import WIDE
from ..records import Network
from ..svg import Canvas, span
from .common import accuracy_scale, duration_ticks, duration_unit, layout, legend, named_marks, percent_ticks


def accuracy_and_time(networks: Sequence[Network], width: int) -> str | None:
    """`networks` have an accuracy and a latency; those of equal multiplier are kind "uniform"."""
    if not networks:
        return None
    canvas = Canvas(width, 400 if width == WIDE else 390)
    entries = [("diamond", "searched", "searched widths"), ("square", "uniform", "uniform widths")]
    top = legend(canvas, entries, 16) + 46
    times = [n.get("latency_us") or 0.0 for n in networks]
    x = span(times, 58, width - 16, log=max(times) > 4 * min(times), pad=0.1)
    y = accuracy_scale([n.get("accuracy") or 0.0 for n in networks], canvas.height - 52, top)
    canvas.axes(
        x,
        y,
        f"measured latency, {duration_unit(x)}{', log scale' if x.log else ''} →",
        "↑ top-1 accuracy as printed",
        duration_ticks(x),
        percent_ticks(y),
        x_ticks=7 if width == WIDE else 4,
    )
    uniform = [(x(n.get("latency_us") or 0.0), y(n.get("accuracy") or 0.0)) for n in networks if n.kind == "uniform"]
    canvas.path(uniform, "uniformline")
    named_marks(canvas, x, y, networks, "latency_us", "accuracy", (x.start, top - 8, width, y.start))
    return canvas.svg("Printed accuracy against measured latency", layout(width))

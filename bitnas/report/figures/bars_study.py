"""Pictures of the studies of BARS: networks of each variant, differences over seeds, and how far searches collapsed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import numbers
from ..html import WIDE
from ..records import Network, latency_interval, number
from ..svg import Canvas, span, text_width
from .common import accuracy_scale, duration_ticks, duration_unit, layout, legend, percent_ticks
from .probabilities import Lines, lines

_LOOKS = (("diamond", "op-0"), ("square", "op-skip"), ("dot", "op-1"), ("diamond", "op-2"), ("square", "op-3"))
# What is compared -> axis, and whether a difference is a share of the second's.
AXES = {
    "accuracy": "points of accuracy →",
    "latency": "% of the latency →",
    "free": "points of the edges without a convolution →",
    "area": "% of the area, first − second →",
}


def plane(runs: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """Test accuracy against measured latency of every network, a shape and colour for each variant."""
    if not runs:
        return None
    names = list(dict.fromkeys(run["variant"] for run in runs))
    looks = {name: _LOOKS[index % len(_LOOKS)] for index, name in enumerate(names)}
    canvas = Canvas(width, 420 if width == WIDE else 400)
    top = legend(canvas, [(looks[name][0], f"op {looks[name][1]}", name) for name in names], 16) + 46
    ends = [end for run in runs for end in _latencies(run)]
    x = span(ends, 58, width - 16, log=max(ends) > 4 * min(ends))
    heights = [run[name] for run in runs for name in ("accuracy_low", "accuracy_high")]
    y = accuracy_scale(heights, canvas.height - 52, top)
    axis = f"measured latency, {duration_unit(x)}{', log scale' if x.log else ''} →"
    canvas.axes(x, y, axis, "↑ test accuracy", duration_ticks(x), percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for run in runs:
        shape, css = looks[run["variant"]]
        px, py = x(run["latency_us"]), y(run["accuracy"])
        left, right = (x(value) for value in _latencies(run))
        canvas.line(left, py, right, py, f"bar thin {css}")
        canvas.line(px, y(run["accuracy_low"]), px, y(run["accuracy_high"]), f"bar thin {css}")
        said = f"{run['label']}, seed {run['seed']}: {numbers.percent(run['accuracy'])}, "
        canvas.mark(px, py, shape, 5.5, f"op {css}", said + numbers.duration(run["latency_us"]))
    return canvas.svg("Test accuracy against measured latency of every network of the study", layout(width))


def _latencies(run: Mapping[str, Any]) -> tuple[float, float]:
    return latency_interval(Network(run))


def differences(
    comparisons: Sequence[Mapping[str, Any]], what: str, width: int, words: str = "mean of seeds, 95 % interval"
) -> str | None:
    """First minus second of each comparison: seeds as dots; mean and interval, which are what `words` say."""
    rows = [one for one in comparisons if one["what"] == what]
    if not rows:
        return None
    narrow = width != WIDE
    names = [f"{one['first']} − {one['second']}" for one in rows]
    widest = max(text_width(name, bold=True) for name in names) + 18
    narrow = narrow or widest > width / 2
    left, right = (14.0, 58.0) if narrow else (widest, 80.0)
    step = 52 if narrow else 36
    canvas = Canvas(width, 0)
    entries = [("dot", "candidate", "a seed")] if any(one["runs"] for one in rows) else []
    entries += [("diamond", "searched", words)]
    top = legend(canvas, entries, 16) + 14
    bottom = top + step * len(rows)
    canvas.height = bottom + 46
    values = [0.0, *(value for one in rows for value in one["runs"])]
    values += [value for one in rows for value in (number(one, "low"), number(one, "high")) if value is not None]
    x = span(values, left, width - right)
    canvas.x_axis(x, bottom, top, AXES[what], numbers.points, 4 if width != WIDE else 6)
    canvas.line(x(0), top, x(0), bottom, "zero")
    for index, one in enumerate(rows):
        y = top + step * index + (34 if narrow else 20)
        canvas.text(2 if narrow else left - 14, y - 14 if narrow else y + 4, names[index], "name",
                    "start" if narrow else "end")  # fmt: skip
        low, high = number(one, "low"), number(one, "high")
        if low is not None and high is not None:
            canvas.line(x(low), y, x(high), y, "bar searched")
        for value in one["runs"]:
            canvas.mark(x(value), y, "dot", 3.5, "candidate", numbers.points(value))
        canvas.mark(x(one["difference"]), y, "diamond", 6, "searched", one["verdict"])
        canvas.text(width - 2, y + 4, numbers.points(one["difference"]), "name", "end")
    return canvas.svg(f"Differences between variants, {AXES[what].removesuffix(' →')}", layout(width))


def collapse(runs: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """For each variant, the share of edges whose likeliest operation is the skip, and is none, over the epochs: a line
    a seed, all on one scale."""
    known = [run for run in runs if run.get("course")]
    if not known:
        return None

    def text(value: float) -> str:
        return f"{100 * value:.0f} %"

    last = max(len(run["course"]) for run in known)
    panels = []
    for name in dict.fromkeys(run["variant"] for run in known):
        series: list[tuple[str, str, list[tuple[float, float]]]] = []
        for member, css, words in (("course_none", "float", "none"), ("course", "op op-skip", "skip")):
            for place, run in enumerate(run for run in known if run["variant"] == name):
                points = [(float(epoch), share) for epoch, share in enumerate(run.get(member) or (), 1)]
                series.append((css, words if not place else "", points))
        panels.append(Lines(name, series, text, span=(0.0, 1.0)))
    return lines(panels, last, (), width)

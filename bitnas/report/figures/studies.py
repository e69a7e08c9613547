"""Pictures of the studies of NAS-BNN: ranks of subnets, what each strategy brings, three fronts in one plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import numbers
from ..html import WIDE
from ..records import number, subnet_code
from ..svg import Canvas, span, text_width
from .common import accuracy_scale, count_tick, duration_ticks, duration_unit, layout, legend, percent_ticks

# Method and training of a front -> shape and colour.
FRONTS = {
    ("searched", "inherited"): ("dot", "front"),
    ("searched", "fine-tuned"): ("diamond", "searched"),
    ("random", "inherited"): ("dot", "float"),
    ("random", "fine-tuned"): ("square", "rejected"),
    ("widths", "from scratch"): ("square", "uniform"),
}
_LINES = {"front": "frontline", "searched": "curve searched", "float": "floatline", "rejected": "curve float",
          "uniform": "curve uniform"}  # fmt: skip


def ranks(rows: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """Accuracy after training alone (mean, the runs as a bar) against inherited accuracy; larger dots cost more OPs."""
    if len(rows) < 2:
        return None
    canvas = Canvas(width, 470 if width == WIDE else 400)
    entries = [("dot", "searched", "a subnet; bar: its trainings alone"), ("diamond", "uniform", "smallest, biggest")]
    top = legend(canvas, entries, 16) + 46
    x = accuracy_scale([row["inherited"] for row in rows], 58, width - 16)
    y = accuracy_scale([v for row in rows for v in row["alone_runs"]], canvas.height - 52, top)
    canvas.axes(
        x, y, "inherited accuracy →", "↑ accuracy after training alone", percent_ticks(x), percent_ticks(y),
        x_ticks=7 if width == WIDE else 4,
    )  # fmt: skip
    most = max(row["ops"] for row in rows)
    for index, row in enumerate(rows):
        px, py = x(row["inherited"]), y(row["alone"])
        end = index in (0, len(rows) - 1)
        css = "uniform" if end else "searched"
        canvas.line(px, y(min(row["alone_runs"])), px, y(max(row["alone_runs"])), f"bar {css}")
        title = (
            f"{numbers.count(row['ops'])} OPs: inherited {numbers.percent(row['inherited'])}, alone "
            f"{numbers.percent(row['alone'])}, blocks {subnet_code(row['subnet'])}"
        )
        canvas.mark(px, py, "diamond" if end else "dot", 3.5 + 4 * (row["ops"] / most) ** 0.5, f"{css} pale", title)
    return canvas.svg("Accuracy after training alone against inherited accuracy", layout(width))


def against_ops(rows: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """Both accuracies of each subnet over its OPs."""
    if len(rows) < 2:
        return None
    canvas = Canvas(width, 380 if width == WIDE else 360)
    entries = [("diamond", "searched", "inherited"), ("square", "uniform", "trained alone")]
    top = legend(canvas, entries, 16) + 46
    ops = [row["ops"] for row in rows]
    x = span(ops, 58, width - 16, log=max(ops) > 4 * min(ops) > 0)
    y = accuracy_scale([v for row in rows for v in (row["inherited"], row["alone"])], canvas.height - 52, top)
    name = f"OPs{', log scale' if x.log else ''} →"
    canvas.axes(x, y, name, "↑ accuracy", count_tick, percent_ticks(y), x_ticks=6 if width == WIDE else 4)
    for row in rows:
        px = x(row["ops"])
        canvas.line(px, y(row["inherited"]), px, y(row["alone"]), "leader")
        canvas.mark(px, y(row["alone"]), "square", 4.5, "uniform", f"alone {numbers.percent(row['alone'])}")
        canvas.mark(
            px, y(row["inherited"]), "diamond", 5.5, "searched", f"inherited {numbers.percent(row['inherited'])}"
        )
    return canvas.svg("Inherited accuracy and accuracy after training alone over OPs", layout(width))


def strategies(found: Mapping[str, Any], width: int) -> str | None:
    """For each variant what leaving it out costs (mean of all subnets, paired over seeds): seeds as dots, mean and
    interval."""
    rows = [one for one in found["differences"] if one["group"] == "mean"]
    if not rows:
        return None
    narrow = width != WIDE
    left, right = (14.0, 58.0) if narrow else (210.0, 80.0)
    step = 52 if narrow else 38
    canvas = Canvas(width, 0)
    entries = [("dot", "candidate", "a seed"), ("diamond", "searched", "mean of seeds, 95 % interval")]
    top = legend(canvas, entries, 16) + 14
    bottom = top + step * len(rows)
    canvas.height = bottom + 46
    ends = [number(row, name) for row in rows for name in ("low", "high")]
    x = span([0.0, *(v for row in rows for v in row["runs"]), *(e for e in ends if e is not None)], left, width - right)
    canvas.x_axis(x, bottom, top, "points of accuracy that it brings →", numbers.points, 4 if narrow else 7)
    canvas.line(x(0), top, x(0), bottom, "zero")
    for index, row in enumerate(rows):
        y = top + step * index + (34 if narrow else 22)
        words = "all three" if row["variant"] == "none" else row["variant"].removeprefix("without ")
        if narrow:
            canvas.text(2, y - 14, words, "name")
        else:
            canvas.text(left - 14, y + 4, words, "name", "end")
        low, high = number(row, "low"), number(row, "high")
        if low is not None and high is not None:
            canvas.line(x(low), y, x(high), y, "bar searched")
        for value in row["runs"]:
            canvas.mark(x(value), y, "dot", 3.5, "candidate", f"{numbers.points(value)} points")
        canvas.mark(x(row["mean"]), y, "diamond", 6.5, "searched", f"mean {numbers.points(row['mean'])} points")
        canvas.text(width - 2, y + 4, numbers.points(row["mean"]), "name", "end")
    return canvas.svg("What each training strategy brings", layout(width))


def fronts(seeds: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """Test accuracy against latency of every network of the three fronts, one panel for each seed."""
    if not seeds:
        return None
    narrow = width != WIDE
    panel = 330.0 if narrow else 350.0
    every = [row for seed in seeds for row in seed["networks"]]
    kinds = [kind for kind in FRONTS if any((row["method"], row["training"]) == kind for row in every)]
    canvas = Canvas(width, 0)
    entries = [(*FRONTS[kind], ", ".join(kind)) for kind in kinds]
    start = legend(canvas, entries, 16) + 10
    canvas.height = start + panel * len(seeds)
    ends = [row[name] for row in every for name in ("latency_low_us", "latency_high_us")]
    lows = [row["accuracy"] for row in every]
    for index, seed in enumerate(seeds):
        top, bottom = start + panel * index + 58, start + panel * (index + 1) - 48
        canvas.text(2, top - 36, f"seed {seed['seed']}", "name")
        x = span(ends, 58, width - 16, log=max(ends) > 4 * min(ends))
        y = accuracy_scale(lows, bottom, top)
        axis = f"measured latency, {duration_unit(x)}{', log scale' if x.log else ''} →"
        canvas.axes(x, y, axis, "↑ test accuracy", duration_ticks(x), percent_ticks(y), x_ticks=4 if narrow else 7)
        for kind in kinds:
            shape, css = FRONTS[kind]
            own = sorted(
                (row for row in seed["networks"] if (row["method"], row["training"]) == kind),
                key=lambda row: row["latency_us"],
            )
            best: list[Mapping[str, Any]] = []
            for row in own:
                if not best or row["accuracy"] > best[-1]["accuracy"]:
                    best.append(row)
            canvas.path([(x(row["latency_us"]), y(row["accuracy"])) for row in best], _LINES[css])
            for row in own:
                px, py = x(row["latency_us"]), y(row["accuracy"])
                canvas.line(x(row["latency_low_us"]), py, x(row["latency_high_us"]), py, f"bar {css}")
                title = f"{row['name']}, {row['training']}: {numbers.percent(row['accuracy'])}, "
                canvas.mark(px, py, shape, 5, css, title + numbers.duration(row["latency_us"]))
    return canvas.svg("Fronts of searched subnets, random subnets and searched widths", layout(width))


def areas(comparisons: Sequence[Mapping[str, Any]], width: int) -> str | None:
    """Differences of the area under what fronts offer: seeds as dots, mean and interval."""
    if not comparisons:
        return None
    narrow = width != WIDE
    names = [f"{one['first'][1]} − {one['second'][0]}, {one['second'][1]}" for one in comparisons]
    left, right = (14.0, 58.0) if narrow else (max(text_width(name, bold=True) for name in names) + 18, 80.0)
    step = 52 if narrow else 38
    canvas = Canvas(width, 0)
    entries = [("dot", "candidate", "a seed"), ("diamond", "searched", "mean of seeds, 95 % interval")]
    top = legend(canvas, entries, 16) + 14
    bottom = top + step * len(comparisons)
    canvas.height = bottom + 46
    values = [0.0, *(v for one in comparisons for v in one["runs"])]
    values += [v for one in comparisons for v in (number(one, "low"), number(one, "high")) if v is not None]
    x = span(values, left, width - right)
    canvas.x_axis(x, bottom, top, "% of the area, searched subnets − other →", numbers.points, 4 if narrow else 6)
    canvas.line(x(0), top, x(0), bottom, "zero")
    for index, one in enumerate(comparisons):
        y = top + step * index + (34 if narrow else 22)
        if narrow:
            canvas.text(2, y - 14, names[index], "name")
        else:
            canvas.text(left - 14, y + 4, names[index], "name", "end")
        low, high = number(one, "low"), number(one, "high")
        if low is not None and high is not None:
            canvas.line(x(low), y, x(high), y, "bar searched")
        for value in one["runs"]:
            canvas.mark(x(value), y, "dot", 3.5, "candidate", f"{numbers.points(value)} %")
        canvas.mark(x(one["mean"]), y, "diamond", 6.5, "searched")
        canvas.text(width - 2, y + 4, numbers.points(one["mean"]), "name", "end")
    return canvas.svg("Differences of the area under what the fronts offer", layout(width))

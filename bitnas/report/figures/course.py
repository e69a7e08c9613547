"""The course of the search: every evaluation by generation, and how the front moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from ..course import best_so_far
from ..html import WIDE
from ..records import Candidate, Run
from ..svg import Canvas, Scale, span
from .common import accuracy_scale, cost_axis, hover, layout, legend, percent_ticks

_MOST_FRONTS = 6  # more lines than that cannot be told apart


def history(run: Run, metric: str, width: int) -> str | None:
    """`metric` (accuracy or fitness) of each evaluation by generation, the best so far as a line; what failed is
    crossed and what was beyond a limit is a square, both below."""
    seen = [(c.generation, c.get(metric)) for c in run.candidates if c.generation is not None]
    points = [(generation, value) for generation, value in seen if value is not None]
    if not points:
        return None
    lost = [
        (shape, css, [d.generation for d in dropped if d.generation is not None])
        for shape, css, dropped in (("cross", "slow", run.failures), ("square", "rejected", run.rejected))
    ]
    lost = [entry for entry in lost if entry[2]]
    canvas = Canvas(width, (330 if width == WIDE else 320) + 18 * len(lost))
    entries = [("dot", "candidate", "evaluated"), ("dot", "front", "best so far")]
    words = {"slow": "failed", "rejected": "over the budget"}
    top = legend(canvas, [*entries, *((shape, css, words[css]) for shape, css, _ in lost)], 16) + 46
    last = max([g for g, _ in points] + [g for _, _, generations in lost for g in generations])
    x = Scale(0.5, last + 1.5, 58, width - 12)
    scale = 0.01 if metric == "fitness" else 1.0  # fitness is in percentage points
    bottom = canvas.height - 52
    y = span([value * scale for _, value in points], bottom - 18 * len(lost), top)
    for tick in y.ticks(5):
        canvas.line(x.start, y(tick), x.end, y(tick), "grid")
        text = percent_ticks(y)(tick) if metric == "accuracy" else f"{tick * 100:.4g}"
        canvas.text(x.start - 7, y(tick) + 4, text, "tick", "end")
    canvas.text(2, top - 12, f"↑ {metric}", "axis")
    every = max(1, math.ceil((last + 1) / (16 if width == WIDE else 8)))
    for generation in range(0, last + 1, every):
        canvas.text(x(generation + 1), bottom + 18, str(generation + 1), "tick", "middle")
    canvas.line(x.start, bottom, x.end, bottom, "base")
    canvas.text(x.end, bottom + 37, "generation →", "axis", "end")
    for column in range(last + 1):
        values = [value * scale for generation, value in points if generation == column]
        for index, value in enumerate(values):
            canvas.speck(_spread(x, column, index, len(values)), y(value), 3, "candidate")
        for row, (shape, css, generations) in enumerate(lost):
            total = generations.count(column)
            for index in range(total):
                canvas.mark(_spread(x, column, index, total), bottom - 10 - 18 * row, shape, 4, css)
    steps = [(x(generation + 1), y(best * scale)) for generation, best in best_so_far(run, metric)]
    canvas.path(steps, "frontline")
    for px, py in steps:
        canvas.mark(px, py, "dot", 4.5, "front")
    return canvas.svg(f"{metric.capitalize()} of every evaluation by generation", layout(width))


def _spread(x: Scale, generation: int, index: int, count: int) -> float:
    """Neighbouring marks of one generation stand side by side, not on top of each other."""
    share = 0.0 if count == 1 else (index / (count - 1) - 0.5) * 0.5
    return x(generation + 1 + share)


def fronts(edges: Sequence[Sequence[Candidate]], cost: str, word: str, width: int) -> str | None:
    """The front after each generation, accuracy against one cost: early ones pale, the last one strong."""
    if not edges:
        return None
    shown = _chosen(len(edges))
    strength = {generation: index for index, generation in enumerate(reversed(shown))}
    canvas = Canvas(width, 430 if width == WIDE else 410)
    entries = [("dot", f"age{min(strength[g], 5)}", f"generation {g + 1}") for g in shown]
    top = legend(canvas, entries, 16) + 46
    every = [c for g in shown for c in edges[g]]
    costs = [c.get(cost) or 0.0 for c in every]
    x = span(costs, 58, width - 16, log=max(costs) > 4 * min(costs))
    y = accuracy_scale([c.get("accuracy") or 0.0 for c in every], canvas.height - 52, top)
    name, text = cost_axis(cost, x, word)
    canvas.axes(x, y, f"{name} →", "↑ accuracy", text, percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for generation in shown:
        css = f"age{min(strength[generation], 5)}"
        spots = [(x(c.get(cost) or 0.0), y(c.get("accuracy") or 0.0)) for c in edges[generation]]
        stairs = [spots[0]]
        for before, after in pairwise(spots):
            stairs += [(after[0], before[1]), after]  # what can be had for a cost: the best that is cheaper
        canvas.path([*stairs, (x.end, stairs[-1][1])], f"age {css}")
        for candidate, spot in zip(edges[generation], spots, strict=True):
            born = "" if candidate.generation is None else f"generation {candidate.generation + 1}"
            canvas.mark(*spot, "dot", 4, css, hover(born, candidate))
    return canvas.svg("The front after each generation", layout(width))


def _chosen(count: int) -> list[int]:
    """The first, the last, and some between."""
    if count <= _MOST_FRONTS:
        return list(range(count))
    return sorted({round(i * (count - 1) / (_MOST_FRONTS - 1)) for i in range(_MOST_FRONTS)})

"""Searched minus uniform accuracy, seed by seed, with what the seeds say together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import numbers
from ..html import WIDE
from ..records import number
from ..svg import Canvas, span
from .common import layout, legend


def differences(runs: Sequence[Mapping[str, Any]], overall: Mapping[str, Any], width: int) -> str | None:
    """One row per seed: each repetition a dot, their mean a diamond; below them the mean of all with its interval."""
    known = [run for run in runs if number(run, "difference") is not None]
    if not known:
        return None
    narrow = width != WIDE
    left, right = (66.0, 60.0) if narrow else (110.0, 90.0)
    low, high, mean = (number(overall, name) for name in ("low", "high", "difference"))
    together = low is not None and high is not None and mean is not None
    rows = len(known) + together
    canvas = Canvas(width, 0)
    entries = [("dot", "candidate", "one training of each"), ("diamond", "searched", "mean of a seed")]
    entries += [("square", "overall", "all seeds, 95 % interval")] if together else []
    top = legend(canvas, entries, 16) + 14
    bottom = top + 34 * rows
    canvas.height = bottom + 46
    values = [0.0, *(v for run in known for v in (number(run, "difference") or 0.0, *(run.get("differences") or ())))]
    values += [low, high] if low is not None and high is not None else []
    x = span(values, left, width - right, pad=0.08)
    name = (
        "← uniform better · points · searched better →"
        if narrow
        else "← uniform is better · points of accuracy · searched is better →"
    )
    canvas.x_axis(x, bottom, top, name, lambda value: numbers.points(value), 4 if narrow else 7)
    canvas.line(x(0), top, x(0), bottom, "zero")
    for index, run in enumerate(known):
        y, mine = top + 34 * index + 20, number(run, "difference") or 0.0
        canvas.text(2, y + 4, f"seed {run.get('seed')}", "tick")
        for value in run.get("differences") or ():
            canvas.mark(x(value), y, "dot", 3.5, "candidate", f"{numbers.points(value)} points")
        canvas.mark(x(mine), y, "diamond", 7, "searched", f"seed {run.get('seed')}: {numbers.points(mine)} points")
        canvas.text(width - 2, y + 4, numbers.points(mine), "name", "end")
    if low is not None and high is not None and mean is not None:
        y = top + 34 * len(known) + 20
        canvas.line(0, y - 20, width, y - 20, "base")
        canvas.text(2, y + 4, "together", "name")
        canvas.line(x(low), y, x(high), y, "bar overall")
        canvas.mark(x(mean), y, "square", 6, "overall")
        canvas.text(width - 2, y + 4, numbers.points(mean), "name", "end")
    return canvas.svg("Searched minus uniform accuracy of each seed", layout(width))

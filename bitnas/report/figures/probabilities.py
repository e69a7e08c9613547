"""How the choices of a search by BARS became firm: probabilities over epochs as stacked areas, the rest as lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..html import WIDE
from ..svg import Canvas, Scale, span, text_width
from .common import layout, legend

_MOST = 48  # epochs of a panel that are drawn: more cannot be told apart
Series = Sequence[tuple[float, float]]  # epoch from 1, value


@dataclass(frozen=True)
class Stack:
    """One panel: its title, for each epoch the probability of every choice, and a title for where there is no room."""

    title: str
    rows: Sequence[Sequence[float]]
    brief: str = ""


@dataclass(frozen=True)
class Lines:
    """One panel of lines: `(CSS class, words, points)` each, and a level that is drawn across, if there is one. `span`
    is what the axis shows, where panels are to share one."""

    title: str
    series: Sequence[tuple[str, str, Series]]
    text: Callable[[float], str]
    level: tuple[float, str] | None = None
    log: bool = False
    span: tuple[float, float] | None = None


def stacks(
    panels: Sequence[Stack],
    choices: Sequence[tuple[str, str]],
    epochs: Sequence[int],
    width: int,
    *,
    small: bool = False,
) -> str | None:
    """Panels side by side; `choices` are (CSS class, words), from the bottom up. `epochs` are those of the rows."""
    if not panels or not epochs:
        return None
    across = (5 if small else 3) if width == WIDE else (3 if small else 2)
    across = min(across, len(panels))
    room, tall = min(width / across, 276.0), 62.0 if small else 96.0
    step = tall + (42 if small else 56)
    canvas = Canvas(width, 0)
    start = legend(canvas, [("square", f"op {css}", words) for css, words in choices], 16) + 12
    for index, panel in enumerate(panels):
        left, top = (index % across) * room, start + (index // across) * step + 20
        x = Scale(epochs[0] - 0.5, epochs[-1] + 0.5, left + 4, left + room - 14)
        fits = not panel.brief or text_width(panel.title, bold=True) <= room - 12
        canvas.text(left + 4, top - 7, panel.title if fits else panel.brief, "tick" if small else "name")
        _stack(canvas, panel.rows, [css for css, _ in choices], epochs, x, top, tall)
        canvas.line(x.start, top + tall, x.end, top + tall, "base")
        if not small:
            canvas.text(x.start, top + tall + 16, f"{epochs[0]}", "tick")
            canvas.text(x.end, top + tall + 16, f"epoch {epochs[-1]}", "tick", "end")
    canvas.height = start + math.ceil(len(panels) / across) * step
    names = ", ".join(words for _, words in choices)
    return canvas.svg(f"Probabilities over epochs: {names}", layout(width))


def _stack(
    canvas: Canvas,
    rows: Sequence[Sequence[float]],
    classes: Sequence[str],
    epochs: Sequence[int],
    x: Scale,
    top: float,
    tall: float,
) -> None:
    drawn = thinned(len(rows))
    spots = [(x(epochs[n]), rows[n]) for n in drawn]
    # An epoch stands for the whole of its step, so that one alone is a bar.
    spots = [(x.start, spots[0][1]), *spots, (x.end, spots[-1][1])]
    below = [0.0] * len(spots)
    for place, css in enumerate(classes):
        above = [low + values[place] for low, (_, values) in zip(below, spots, strict=True)]
        if max(a - b for a, b in zip(above, below, strict=True)) > 0.002:
            upper = [(px, top + tall * (1 - value)) for (px, _), value in zip(spots, above, strict=True)]
            lower = [(px, top + tall * (1 - value)) for (px, _), value in zip(spots, below, strict=True)]
            canvas.polygon([*upper, *reversed(lower)], f"area {css}")
        below = above


def thinned(count: int) -> list[int]:
    """Which of so many epochs are drawn: all, or some from the first to the last."""
    if count <= _MOST:
        return list(range(count))
    return sorted({round(n * (count - 1) / (_MOST - 1)) for n in range(_MOST)})


def lines(panels: Sequence[Lines], last: int, phases: Sequence[tuple[float, str]], width: int) -> str | None:
    """Panels of figures over the epochs 1 to `last`; `phases` are epochs at which something ends, with what it is."""
    panels = [panel for panel in panels if any(points for _, _, points in panel.series)]
    if not panels or last < 2:
        return None
    across = 2 if width == WIDE and len(panels) > 1 else 1
    room, step = width / across, 208.0
    canvas = Canvas(width, math.ceil(len(panels) / across) * step)
    for index, panel in enumerate(panels):
        left, top = (index % across) * room, (index // across) * step + 42
        _lines(canvas, panel, last, phases, left, top, room)
    return canvas.svg("Figures of the search over epochs", layout(width))


def _lines(
    canvas: Canvas, panel: Lines, last: int, phases: Sequence[tuple[float, str]], left: float, top: float, room: float
) -> None:
    bottom = top + 118
    values = [value for _, _, points in panel.series for _, value in points]
    if panel.level is not None:
        values.append(panel.level[0])
    log = panel.log and min(values) > 0 and max(values) > 4 * min(values)
    x = Scale(1 - 0.04 * last, last * 1.04, left + 54, left + room - 16)
    y = Scale(*panel.span, bottom, top) if panel.span else span(values, bottom, top, log=log)
    canvas.text(left + 2, top - 27, f"{panel.title}{', log scale' if log else ''}", "name")
    for tick in y.ticks(4):
        canvas.line(x.start, y(tick), x.end, y(tick), "grid")
        canvas.text(x.start - 7, y(tick) + 4, panel.text(tick), "tick", "end")
    for tick in (tick for tick in x.ticks(5) if tick == round(tick) and tick >= 1):
        canvas.text(x(tick), bottom + 17, f"{tick:.0f}", "tick", "middle")
    canvas.line(x.start, bottom, x.end, bottom, "base")
    canvas.text(x.end, bottom + 33, "epoch →", "axis", "end")
    for epoch, _ in phases:
        if 1 <= epoch <= last:
            canvas.line(x(epoch), top, x(epoch), bottom, "phase")
    place = x.start
    named = [(css, words) for css, words, points in panel.series if points and words]
    if panel.level is not None:
        canvas.line(x.start, y(panel.level[0]), x.end, y(panel.level[0]), "budget")
        named.append(("slow", panel.level[1]))
    for css, words, points in panel.series:
        canvas.path([(x(epoch), y(value)) for epoch, value in points], f"curve {css}")
        if len(points) <= 30:
            for epoch, value in points:
                title = f"{words or panel.title}, epoch {epoch:.0f}: {panel.text(value)}"
                canvas.mark(x(epoch), y(value), "dot", 2.6, css, title)
    for css, words in named:
        canvas.mark(place + 6, top - 11, "square", 4, css)
        canvas.text(place + 14, top - 7, words, "tick")
        place += 30 + 7 * len(words)

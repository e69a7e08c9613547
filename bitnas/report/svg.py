"""A small kit for charts as plain SVG text.

Written by hand rather than drawn by a plotting library so that the page's style sheet colours every mark (light and
dark), text stays text, and one figure can be laid out again for a phone instead of being shrunk until nobody can read
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

FONT = 13.0  # px; the page shows a figure at its natural size, so this is what the reader sees
_GLYPH, _BOLD_GLYPH = 0.56, 0.63  # mean advance of a sans-serif letter, as a share of the font size
_LOG_STEPS = ((1, 2, 3, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))
_RINGS = (1.0, 2.0, 3.2, 4.6)  # how far from its mark a label may stand, in gaps
Box = tuple[float, float, float, float]  # left, top, right, bottom


def text_width(text: str, *, bold: bool = False) -> float:
    """Estimated width of `text` in pixels."""
    return len(text) * FONT * (_BOLD_GLYPH if bold else _GLYPH)


def shorten(text: str, width: float) -> str:
    """`text`, its start cut off where it is wider than `width` pixels: the end of a module's path names the layer."""
    room = max(int(width / (FONT * _GLYPH)), 2)
    return text if len(text) <= room else "…" + text[1 - room :]


@dataclass(frozen=True)
class Scale:
    """A map from data to pixels, linear or logarithmic. `low` and `high` land on `start` and `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low and high must be finite and low < high, got {self.low} and {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low must be positive on a log scale, got {self.low}")

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        if self.log:
            value = math.log(max(value, self.low * 1e-3))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside the axis."""
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """Round values inside the axis, about `count` of them."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in _LOG_STEPS:
                ticks = [step * 10.0**decade for decade in decades for step in steps]
                ticks = [tick for tick in ticks if self.holds(tick)]
                if 3 <= len(ticks) <= count + 1:
                    return ticks
            if len(ticks) > count:
                return ticks[:: math.ceil(len(ticks) / count)]
        raw = (self.high - self.low) / max(count, 1)
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [index * step for index in range(first, math.floor(self.high / step + 1e-9) + 1)]


def span(
    values: Sequence[float], start: float, end: float, *, log: bool = False, pad: float = 0.06, zero: bool = False
) -> Scale:
    """The scale that shows all of `values` with a margin of `pad` of the range at both ends (`zero`: from 0 on)."""
    low, high = min(values), max(values)
    if log:
        stretch = max((high / low) ** pad, 1.05)
        return Scale(low / stretch, high * stretch, start, end, log=True)
    if zero:
        return Scale(0.0, (high or 1.0) * (1 + pad), start, end)
    margin = (high - low) * pad or abs(high) * 0.05 or 1.0
    return Scale(low - margin, high + margin, start, end)


@dataclass
class Canvas:
    """A drawing of fixed pixel size. Marks carry CSS classes; the page's style sheet owns every colour."""

    width: float
    height: float
    parts: list[str] = field(default_factory=list)
    taken: list[Box] = field(default_factory=list)  # boxes labels must keep off
    thin: list[Box] = field(default_factory=list)  # boxes of lines: covered only if need be
    specks: set[tuple[str, int, int]] = field(default_factory=set)

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.parts.append(f'<line class="{css}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: Sequence[tuple[float, float]], css: str) -> None:
        if points:
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            self.parts.append(f'<polyline class="{css}" points="{corners}"/>')

    def polygon(self, points: Sequence[tuple[float, float]], css: str) -> None:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polygon class="{css}" points="{corners}"/>')

    def arrow(self, start: tuple[float, float], bend: tuple[float, float], end: tuple[float, float], css: str,
              title: str = "") -> None:  # fmt: skip
        """A line from `start` to `end`, pulled towards `bend` (the control point of a quadratic curve), with a head."""
        away = math.hypot(end[0] - bend[0], end[1] - bend[1]) or 1.0
        ux, uy = (end[0] - bend[0]) / away, (end[1] - bend[1]) / away
        neck = end[0] - 6 * ux, end[1] - 6 * uy
        corners = " ".join(f"{x:.1f} {y:.1f}" for x, y in (bend, neck))
        self.parts.append(
            f'<path class="edge {css}" d="M{start[0]:.1f} {start[1]:.1f}Q{corners}">{_title(title)}</path>'
        )
        self.polygon([end, (neck[0] - 4 * uy, neck[1] + 4 * ux), (neck[0] + 4 * uy, neck[1] - 4 * ux)], f"head {css}")

    def rect(self, x: float, y: float, width: float, height: float, css: str, title: str = "") -> None:
        self.parts.append(
            f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" rx="2">'
            f"{_title(title)}</rect>"
        )

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def mark(self, x: float, y: float, shape: str, size: float, css: str, title: str = "") -> None:
        """A `dot`, `square`, `diamond` or `cross` centred on (x, y), of half-width `size`. `title` shows on hover."""
        css = f"{css} cross" if shape == "cross" else css  # a cross is all outline
        self.parts.append(f'<path class="{css}" d="{_SHAPES[shape](x, y, size)}">{_title(title)}</path>')

    def speck(self, x: float, y: float, size: float, css: str, title: str = "") -> None:
        """A small dot, unless one of its class covers that place already: thousands of networks share few places."""
        place = (css, round(x / 2), round(y / 2))
        if place not in self.specks:
            self.specks.add(place)
            self.mark(x, y, "dot", size, css, title)

    def keep_off(self, x: float, y: float, half_width: float, half_height: float, *, thin: bool = False) -> None:
        """No label is to cover this box around (x, y); `thin`: if it can be helped."""
        boxes = self.thin if thin else self.taken
        boxes.append((x - half_width, y - half_height, x + half_width, y + half_height))

    def label(self, x: float, y: float, text: str, css: str, bounds: Box) -> None:
        """Write `text` beside the mark at (x, y) where it covers nothing, inside `bounds`; or not at all."""
        width, gap = text_width(text, bold=True), 10.0
        tries = [(ring, [*self.taken, *self.thin]) for ring in _RINGS] + [(ring, self.taken) for ring in _RINGS]
        for ring, boxes in tries:
            reach = gap * ring
            for dx, dy in ((1, -0.7), (-1, -0.7), (1, 0.9), (-1, 0.9), (1, 0), (-1, 0), (0, -1.2), (0, 1.5)):
                left = x + dx * reach - (width if dx < 0 else width / 2 if dx == 0 else 0)
                middle = y + dy * reach
                box = (left, middle - FONT * 0.55, left + width, middle + FONT * 0.55)
                inside = bounds[0] <= box[0] and bounds[1] <= box[1] and box[2] <= bounds[2] and box[3] <= bounds[3]
                if inside and not any(_overlap(box, other) for other in boxes):
                    if ring > 1:
                        self.line(x, y, min(max(x, box[0]), box[2]), middle, "leader")
                    self.text(left, middle + FONT * 0.35, text, css)
                    self.taken.append(box)
                    return

    def axes(
        self,
        x: Scale,
        y: Scale,
        x_label: str,
        y_label: str,
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
        *,
        x_ticks: int = 6,
    ) -> None:
        """Grid lines, tick labels and the names of both axes; the y name stands above its axis, not turned."""
        for tick in y.ticks(5):
            self.line(x.start, y(tick), x.end, y(tick), "grid")
            self.text(x.start - 7, y(tick) + 4, y_text(tick), "tick", "end")
        self.x_axis(x, y.start, y.end, x_label, x_text, x_ticks)
        self.text(2, min(y.start, y.end) - 12, y_label, "axis")

    def x_axis(
        self, x: Scale, bottom: float, top: float, name: str, text: Callable[[float], str], count: int = 6
    ) -> None:
        """The horizontal axis alone, its grid lines from `bottom` to `top`."""
        for tick in x.ticks(count):
            self.line(x(tick), bottom, x(tick), top, "grid")
            self.text(x(tick), bottom + 18, text(tick), "tick", "middle")
        self.line(x.start, bottom, x.end, bottom, "base")
        self.text(x.end, bottom + 37, name, "axis", "end")

    def svg(self, description: str, css: str) -> str:
        """The finished element. `description` is what a screen reader says."""
        return (
            f'<svg class="{css}" role="img" aria-label="{escape(description)}" width="{self.width:.0f}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.width:.0f} {self.height:.0f}">{"".join(self.parts)}</svg>'
        )


def _dot(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y:.1f}a{r:.1f} {r:.1f} 0 1 0 {2 * r:.1f} 0a{r:.1f} {r:.1f} 0 1 0 {-2 * r:.1f} 0z"


def _square(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y - r:.1f}h{2 * r:.1f}v{2 * r:.1f}h{-2 * r:.1f}z"


def _diamond(x: float, y: float, r: float) -> str:
    return f"M{x:.1f} {y - r:.1f}L{x + r:.1f} {y:.1f}L{x:.1f} {y + r:.1f}L{x - r:.1f} {y:.1f}z"


def _cross(x: float, y: float, r: float) -> str:
    return f"M{x - r:.1f} {y - r:.1f}l{2 * r:.1f} {2 * r:.1f}M{x - r:.1f} {y + r:.1f}l{2 * r:.1f} {-2 * r:.1f}"


_SHAPES = {"dot": _dot, "square": _square, "diamond": _diamond, "cross": _cross}


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


def _overlap(a: tuple[float, float, float, float], b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

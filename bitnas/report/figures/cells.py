"""Cells of BARS as graphs, and the row of cells that a network is.

Nodes stand in a row and what leads past one bends over it, higher the more it passes, so that ten edges with their
names never lie on each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..cells import EDGES, NODES, NONE, Architecture, Space, alive, colour, live_nodes, long_name, short_name
from ..html import WIDE
from ..svg import Canvas, text_width
from .common import layout, legend

_RADIUS = 12.0
_RISE = {2: 42.0, 3: 80.0, 4: 118.0}  # how high an edge past one, two or three nodes rises
_CHIP = 0.88  # size of an operation's name, as a share of the font


def graphs(space: Space, architecture: Architecture, width: int) -> str | None:
    """A picture for each topology group of which the network has a cell; None of a network without one."""
    kept = set(space.kept(architecture.depths))
    groups = [group for group in range(space.topologies) if kept & set(space.places(group))]
    if not groups:
        return None
    across = 2 if width == WIDE and len(groups) > 1 else 1
    room = min(width / across, 420.0)
    canvas = Canvas(width, 0)
    used = {name for group in groups for name in alive(architecture.cells[group])} - {NONE}
    entries = [("square", f"op {colour(name, space.operations)}", long_name(name))
               for name in space.operations if name in used]  # fmt: skip
    start = legend(canvas, entries, 16) + 18 if entries else 4.0
    for index, group in enumerate(groups):
        left, top = 2 + (index % across) * room, start + (index // across) * _HEIGHT
        title = f"Group {group} · {space.cells_of(group)}"
        _graph(canvas, left, top, room - 14, title, architecture.cells[group], space)
    canvas.height = start + math.ceil(len(groups) / across) * _HEIGHT
    return canvas.svg("Cells as graphs: nodes, and the operation on each edge", layout(width))


_HEIGHT = 268.0


def _graph(
    canvas: Canvas, left: float, top: float, room: float, title: str, edges: Sequence[str], space: Space
) -> None:
    live = live_nodes(edges)
    live = (any(live[1:]), *live[1:])  # what nobody reads is not computed
    y, port = top + 160, 34.0
    canvas.text(left + 2, top + 12, title, "name")
    first, last = left + port + 42, left + room - port - 6
    xs = [first + n * (last - first) / NODES for n in range(NODES + 1)]
    bus, below = y + 40, y + 74
    out = left + room - port
    for node in range(1, NODES + 1):
        if live[node]:
            canvas.path([(xs[node], y + _RADIUS), (xs[node], bus)], "leader")
    if any(live[1:]):
        begin = min(xs[node] for node in range(1, NODES + 1) if live[node])
        canvas.arrow((begin, bus), (begin, bus), (out, bus), "plain")
        canvas.arrow((left + port, y), (left + port, y), (xs[0] - _RADIUS, y), "plain", space.preprocess)
        canvas.text((left + port + xs[0] - _RADIUS) / 2, y - 7, "1×1", "tick", "middle")
    corner = (out + port / 2, below)
    canvas.path([(left + port / 2, y + 12), (left + port / 2, below), corner], "shortcutline")
    canvas.arrow(corner, corner, (corner[0], bus + 12), "shortcut", "cell shortcut")
    canvas.text(left + port / 2 + 10, below - 6, "shortcut", "tick")
    chips: list[tuple[float, float, str, str]] = []
    for (source, target), operation in zip(EDGES, alive(edges), strict=True):
        if operation != NONE:
            chips.append(_edge(canvas, xs, y, source, target, operation, space))
    for x, middle, words, css in chips:
        wide = text_width(words) * _CHIP + 6
        canvas.rect(x - wide / 2, middle - 8, wide, 16, "chip")
        canvas.text(x, middle + 4, words, f"chip op {css}", "middle")
    for node in range(NODES + 1):
        dead = "" if live[node] else " dead"
        said = f"node {node}{'' if live[node] else ': nothing reaches it'}"
        canvas.mark(xs[node], y, "dot", _RADIUS, f"node{dead}", said)
        canvas.text(xs[node], y + 4.5, str(node), f"name{dead}", "middle")
    for x, middle, words in ((left, y, "in"), (out, bus, "out")):
        canvas.rect(x, middle - 12, port, 24, "port")
        canvas.text(x + port / 2, middle + 4.5, words, "tick", "middle")


def _edge(
    canvas: Canvas, xs: Sequence[float], y: float, source: int, target: int, operation: str, space: Space
) -> tuple[float, float, str, str]:
    """Draws it; gives where its name goes, the name and its class."""
    css = colour(operation, space.operations)
    title = f"{source} → {target}: {long_name(operation)}"
    a, b, middle = xs[source], xs[target], (xs[source] + xs[target]) / 2
    if target - source == 1:
        canvas.arrow((a + _RADIUS, y), (middle, y), (b - _RADIUS, y), css, title)
        return middle, y + 15, short_name(operation), css
    rise = _RISE[target - source]
    bend = (middle, y - 2 * rise)
    reach = math.hypot(middle - a, 2 * rise)
    dx, dy = _RADIUS * (middle - a) / reach, _RADIUS * 2 * rise / reach
    canvas.arrow((a + dx, y - dy), bend, (b - dx, y - dy), css, title)
    return middle, y - rise - dy / 2, short_name(operation), css


def row(space: Space, architecture: Architecture, network: Mapping[str, Any], width: int) -> str:
    """The layout as a row of boxes, as high as a node has channels; dashed where the search left the cell out."""
    kept = space.kept(architecture.depths)
    channels = dict(zip(kept, (int(cell["channels"]) for cell in network["cells"]), strict=True))
    canvas = Canvas(width, 0)
    entries = [("square", "searched", "normal cell"), ("square", "uniform", "reduction cell")]
    entries += [("square", "rejected", "left out")] if len(kept) < len(space.layout) else []
    top = legend(canvas, entries, 16) + 34
    slot = (width - 4) / (len(space.layout) + 1)
    box, tall = min(slot * 0.72, 44.0), 84.0
    base = top + tall
    most = max([*channels.values(), int(network["width"])])
    small = slot < 34
    items = [("stem", int(network["width"]), "stem", "")]
    for n, kind in enumerate(space.layout):
        css = "left" if n not in channels else "searched" if kind == "N" else "uniform"
        items.append((kind, channels.get(n, 0), css, f"{space.topology[n]}"))
    for index, (word, count, css, group) in enumerate(items):
        x = 2 + (index + 0.5) * slot
        high = max(tall * count / most, 6.0) if css != "left" else 20.0
        said = f"cell {index}, group {group}" if group else "stem"
        said += ": left out" if css == "left" else f": 4 × {count} channels"
        canvas.rect(x - box / 2, base - high, box, high, css if css == "left" else f"fill {css}", said)
        if css != "left":
            canvas.text(x, base - high - 6, str(count), "tick", "middle")
        canvas.text(x, base + 17, word if not (small and word == "stem") else "in", "tick", "middle")
        if group:
            canvas.text(
                x, base + 34, group if small else f"group {group}" if slot > 60 else f"g {group}", "tick", "middle"
            )
    canvas.line(2, base, width - 2, base, "base")
    canvas.height = base + 44
    return canvas.svg("The network as a row of cells: channels of a node, and what was left out", layout(width))

"""The architecture as bars: channels of each layer, a searched network beside the uniform one of equal cost."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..html import WIDE
from ..records import Network
from ..svg import Canvas, shorten
from .common import layout


def widths(pairs: Sequence[tuple[Network, Network]], width: int) -> str | None:
    """Channels of every layer as bars, the searched network to the left and the uniform one to the right."""
    pairs = [(a, b) for a, b in pairs if a.widths and len(a.widths) == len(b.widths)]
    if not pairs:
        return None
    across = min(len(pairs), 3) if width == WIDE else 1
    panel, bar = width / across, 20
    depth = max(len(searched.widths) for searched, _ in pairs)
    height = 46 + bar * depth + 22
    canvas = Canvas(width, height * math.ceil(len(pairs) / across))
    widest = max(width for pair in pairs for network in pair for width in network.widths)
    for index, (searched, uniform) in enumerate(pairs):
        left, top = (index % across) * panel, (index // across) * height
        axis = left + panel / 2
        reach = panel / 2 - 62
        room = panel / 2 - 24
        canvas.text(axis - 20, top + 18, shorten(searched.label, room), "name searched", "end")
        canvas.text(axis + 20, top + 18, shorten(uniform.label, room), "name uniform")
        for row, (a, b) in enumerate(zip(searched.widths, uniform.widths, strict=True)):
            y = top + 30 + bar * row
            canvas.text(axis, y + 13, str(row + 1), "tick", "middle")
            one, two = a / widest * reach, b / widest * reach
            canvas.rect(axis - 14 - one, y, one, bar - 4, "fill searched", f"layer {row + 1}: {a} channels")
            canvas.rect(axis + 14, y, two, bar - 4, "fill uniform", f"layer {row + 1}: {b} channels")
            canvas.text(axis - 19 - one, y + 13, str(a), "tick", "end")
            canvas.text(axis + 19 + two, y + 13, str(b), "tick")
    return canvas.svg("Channels of each layer, searched beside uniform", layout(width))

"""Pictures of a search of NAS-BNN: the plane of accuracy and cost, buckets of OPs, training, and blocks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from .. import numbers
from ..findings import noisy
from ..html import WIDE
from ..records import Candidate, Network, Point, Run, latency_interval, name_of
from ..supernet_log import ACCURACY, LOSS
from ..svg import Canvas, Scale, shorten, span
from .common import accuracy_scale, cost_axis, count_tick, hover, layout, legend, percent_ticks, upper_edge

_PANELS = 6  # subnets that are drawn
# What a network of `study.json` is, as shape and colour.
TRAINED = {
    "inherited": ("square", "uniform"),
    "fine-tuned": ("diamond", "searched"),
    "searched": ("diamond", "searched"),
}


def plane(run: Run, cost: str, word: str, images: int | None, width: int) -> str | None:
    """Accuracy on the search's validation images against one cost: all candidates, the front with its intervals."""
    from ..subnets import binomial

    candidates = [c for c in run.candidates if c.get("accuracy") is not None and (c.get(cost) or 0) > 0]
    front = [n for n in run.front if n.get("accuracy") is not None and (n.get(cost) or 0) > 0]
    if not candidates and not front:
        return None
    canvas = Canvas(width, 430 if width == WIDE else 410)
    entries = [("dot", "candidate", "evaluated")] if candidates else []
    entries += [("dot", "front", "on the front")] if front else []
    top = legend(canvas, entries, 16) + 46
    bars = {id(n): binomial(n.get("accuracy"), images) for n in front}
    ends = {id(n): _ends(n) for n in front} if cost == "latency_us" else {}
    points: list[Point] = [*candidates, *front]
    costs = [*(p.get(cost) or 0.0 for p in points), *(end for pair in ends.values() for end in pair)]
    x = span(costs, 58, width - 16, log=max(costs) > 4 * min(costs) > 0)
    heights = [n.get("accuracy") or 0.0 for n in front] or [c.get("accuracy") or 0.0 for c in candidates]
    heights += [end for bar in bars.values() if bar for end in bar]
    floor = min(heights) - max(max(heights) - min(heights), 0.02)  # what is far below the front would flatten it
    shown = [c for c in candidates if (c.get("accuracy") or 0.0) >= floor]
    y = accuracy_scale([*heights, *(c.get("accuracy") or 0.0 for c in shown)], canvas.height - 52, top)
    name, text = cost_axis(cost, x, word)
    canvas.axes(x, y, f"{name} →", "↑ accuracy", text, percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for candidate in shown:
        spot = x(candidate.get(cost) or 0.0), y(candidate.get("accuracy") or 0.0)
        canvas.speck(*spot, 3, "candidate", hover("candidate", candidate))
    canvas.path(_stairs([(x(n.get(cost) or 0.0), y(n.get("accuracy") or 0.0)) for n in upper_edge(front, cost)]),
                "frontline")  # fmt: skip
    for network in front:
        px, py = x(network.get(cost) or 0.0), y(network.get("accuracy") or 0.0)
        if bar := bars[id(network)]:
            canvas.line(px, y(bar[0]), px, y(bar[1]), "bar front")
        if id(network) in ends:
            canvas.line(x(ends[id(network)][0]), py, x(ends[id(network)][1]), py, "bar front")
        canvas.mark(px, py, "dot", 4.5, "front", hover(name_of(network), network))
    return canvas.svg(f"Accuracy against {name} of every network of this search", layout(width))


def _stairs(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What can be had for a cost: the best that is cheaper."""
    points = list(spots[:1])
    for before, after in pairwise(spots):
        points += [(after[0], before[1]), after]
    return points


def buckets(best: Sequence[tuple[int, Candidate]], bucket: float, every: Sequence[Candidate], width: int) -> str | None:
    """The most accurate subnet of each bucket of OPs as a bar over the bucket, all evaluated ones as dots."""
    if not best:
        return None
    canvas = Canvas(width, 380 if width == WIDE else 360)
    top = legend(canvas, [("dot", "candidate", "evaluated"), ("square", "searched", "best of its bucket")], 16) + 46
    low, high = min(number for number, _ in best), max(number for number, _ in best)
    x = Scale((low - 1) * bucket, (high + 1) * bucket, 58, width - 16)
    tops = [c.get("accuracy") or 0.0 for _, c in best]
    floor = min(tops) - max(max(tops) - min(tops), 0.02)
    shown = [c for c in every if (c.get("accuracy") or 0.0) >= floor]
    y = accuracy_scale([*tops, *(c.get("accuracy") or 0.0 for c in shown)], canvas.height - 52, top)
    canvas.axes(x, y, "OPs →", "↑ accuracy", count_tick, percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for candidate in shown:
        spot = x(candidate.get("ops") or 0.0), y(candidate.get("accuracy") or 0.0)
        canvas.speck(*spot, 2.5, "candidate", hover("candidate", candidate))
    for number, candidate in best:
        left, right, py = x((number - 0.5) * bucket), x((number + 0.5) * bucket), y(candidate.get("accuracy") or 0.0)
        title = hover(f"bucket {number}", candidate)
        canvas.rect(left, py - 2, right - left - 1, 4, "fill searched", title)
    return canvas.svg("The most accurate subnet of each bucket of OPs", layout(width))


def curves(rows: Sequence[Mapping[str, float]], width: int) -> str | None:
    """Loss of the teacher and validation accuracy over the epochs of the supernet's training, one above the other; None
    of fewer than two epochs."""
    if len(rows) < 2:
        return None
    judged = [row for row in rows if ACCURACY in row]
    panel = 170
    canvas = Canvas(width, panel * (2 if judged else 1) + 40)
    last = max(row["epoch"] for row in rows) + 1
    first = min(row["epoch"] for row in rows) + 1
    margin = 0.04 * max(last - first, 1)
    x = Scale(first - margin, last + margin, 58, width - 14)

    def draw(name: str, known: Sequence[Mapping[str, float]], column: str, top: float, css: str) -> None:
        bottom = top + panel - 46
        values = [row[column] for row in known]
        y = accuracy_scale(values, bottom, top) if column == ACCURACY else span(values, bottom, top)
        text = percent_ticks(y) if column == ACCURACY else (lambda value: f"{value:.4g}")
        for tick in y.ticks(4):
            canvas.line(x.start, y(tick), x.end, y(tick), "grid")
            canvas.text(x.start - 7, y(tick) + 4, text(tick), "tick", "end")
        canvas.text(2, top - 12, f"↑ {name}", "axis")
        canvas.path([(x(row["epoch"] + 1), y(row[column])) for row in known], f"curve {css}")
        if len(known) <= 40:
            for row in known:
                canvas.mark(x(row["epoch"] + 1), y(row[column]), "dot", 3, css)

    draw("loss of the first pass", rows, LOSS, 30, "uniform")
    if judged:
        draw("validation accuracy of the biggest subnet", judged, ACCURACY, 30 + panel, "searched")
    bottom = 30 + panel * (2 if judged else 1) - 46
    canvas.x_axis(
        x,
        bottom,
        bottom,
        "epoch →",
        lambda value: f"{value:g}" if value == round(value) else "",
        8 if width == WIDE else 4,
    )
    return canvas.svg("Course of the supernet's training", layout(width))


def drawn(networks: Sequence[Network]) -> list[Network]:
    """Those whose blocks are drawn, in the order that their names count: of many, some from the first to the last."""
    known = [n for n in networks if n.subnet is not None]
    if len(known) <= _PANELS:
        return known
    return [known[round(i * (len(known) - 1) / (_PANELS - 1))] for i in range(_PANELS)]


def blocks(networks: Sequence[Network], width: int) -> str | None:
    """Each subnet as a column of bars, a block each: as long as its channels, orange where its kernel is above 3, cut
    into as many pieces as its first convolution has groups. Blocks of one resolution stand at one height."""
    known = [(network, _resolutions(network.subnet)) for network in networks if network.subnet is not None]
    if not known:
        return None
    across = min(len(known), 3) if width == WIDE else min(len(known), 2)
    panel, bar, gap = width / across, 17.0, 9.0
    depth = max(len(groups) for _, groups in known)
    rows = [max((len(groups[i]) for _, groups in known if i < len(groups)), default=0) for i in range(depth)]
    height = 50 + bar + gap + sum(rows) * bar + gap * depth + 16
    canvas = Canvas(width, 0)
    entries = [("square", "searched", "3 × 3"), ("square", "uniform", "5 × 5 or larger"), ("square", "stem", "stem")]
    start = legend(canvas, entries, 16) + 12
    canvas.height = start + height * math.ceil(len(known) / across)
    widest = max(block["channels"] for _, groups in known for group in groups for block in group)
    for index, (network, groups) in enumerate(known):
        left, y = 4 + (index % across) * panel, start + (index // across) * height + 20
        room = panel - 20
        canvas.text(left, y, shorten(network.label, room), "name")
        facts = f"{numbers.percent(network.get('accuracy'))} · {numbers.count(network.get('ops'))} OPs"
        canvas.text(left, y + 17, shorten(facts, room), "tick")
        y += 28
        reach = room - 66
        stem = (network.subnet or {})["stem"]
        canvas.rect(left, y, stem / widest * reach, bar - 4, "fill stem", f"stem: {stem} channels")
        canvas.text(left + stem / widest * reach + 6, y + 11, str(stem), "tick")
        y += bar + gap
        for place, group in enumerate(groups):
            for block in group:
                _block(canvas, left, y, block, block["channels"] / widest * reach, bar - 4)
                y += bar
            y += (rows[place] - len(group)) * bar + gap
    return canvas.svg("Blocks of the subnets: channels, kernels and groups", layout(width))


def _block(canvas: Canvas, left: float, y: float, block: Mapping[str, Any], length: float, height: float) -> None:
    groups, kernel = block.get("groups", 1), block["kernel"]
    css = "fill searched" if kernel <= 3 else "fill uniform"
    title = f"{block['channels']} channels, {kernel} × {kernel}, {numbers.plural(groups, 'group')}"
    pieces = min(groups, max(int(length / 4), 1))
    for piece in range(pieces):
        canvas.rect(left + piece * length / pieces, y, length / pieces - (1.5 if pieces > 1 else 0), height, css, title)
    canvas.text(left + length + 6, y + 11, f"{block['channels']}/{kernel}/{groups}", "tick")


def _resolutions(subnet: Mapping[str, Any] | None) -> list[list[Mapping[str, Any]]]:
    """The blocks in groups of one resolution."""
    groups: list[list[Mapping[str, Any]]] = []
    for block in (subnet or {})["blocks"]:
        if not groups or block.get("stride") == 2:
            groups.append([])
        groups[-1].append(block)
    return groups


def _ends(network: Network) -> tuple[float, float]:
    """What a latency is known to; a spread wider than the latency itself is cut off, as an axis has no place for it."""
    low, high = latency_interval(network)
    return max(low, (network.get("latency_us") or 0.0) / 4), high


def deployed(networks: Sequence[Network], width: int) -> str | None:
    """Test accuracy against measured latency of the deployed subnets; a line joins the two trainings of one subnet."""
    known = [n for n in networks if n.get("accuracy") is not None and (n.get("latency_us") or 0) > 0]
    if not known:
        return None
    canvas = Canvas(width, 400 if width == WIDE else 390)
    kinds = [kind for kind in TRAINED if any(n.kind == kind for n in known)]
    top = legend(canvas, [(*TRAINED[kind], kind) for kind in kinds], 16) + 46
    ends = [end for n in known for end in _ends(n)]
    x = span(ends, 58, width - 16, log=max(ends) > 4 * min(ends))
    y = accuracy_scale([v for n in known for v in (n.get("accuracy") or 0.0, *(n.interval or ()))],
                       canvas.height - 52, top)  # fmt: skip
    name, text = cost_axis("latency_us", x, "measured latency" + (" (timing noisy)" if any(map(noisy, known)) else ""))
    canvas.axes(x, y, f"{name} →", "↑ test accuracy", text, percent_ticks(y), x_ticks=7 if width == WIDE else 4)
    for pair in dict.fromkeys(n.pair for n in known):
        spots = [(x(n.get("latency_us") or 0.0), y(n.get("accuracy") or 0.0)) for n in known if n.pair == pair]
        canvas.path(spots, "leader")
    marks = []
    for network in known:
        shape, css = TRAINED.get(network.kind, ("dot", "overall"))
        px, py = x(network.get("latency_us") or 0.0), y(network.get("accuracy") or 0.0)
        low, high = (x(end) for end in _ends(network))
        canvas.line(low, py, high, py, f"bar {css}")
        if network.interval:
            canvas.line(px, y(network.interval[0]), px, y(network.interval[1]), f"bar {css}")
            canvas.keep_off(px, (y(network.interval[0]) + y(network.interval[1])) / 2, 4,
                            abs(y(network.interval[0]) - y(network.interval[1])) / 2, thin=True)  # fmt: skip
        marks.append((network, px, py, shape, css))
        canvas.keep_off(px, py, 8, 8)
    for network, px, py, shape, css in marks:
        canvas.mark(px, py, shape, 6.5, css, hover(network.label, network))
    for network, px, py, _, css in marks:
        canvas.label(px, py, network.label, f"name {css}", (x.start, top - 8, width, y.start))
    return canvas.svg("Test accuracy against measured latency of the deployed networks", layout(width))

"""Fronts of accuracy against latency, whoever found them: who is on the edge, which few stand for it, how much it
offers.

Rows are mappings with `accuracy` (a fraction) and `latency_us`; `search_accuracy` is that on validation images, where
`accuracy` is that on test images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])

ROOM = 1.05  # the reference point lies so far beyond the worst of all networks


def corner(networks: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The reference point of areas, us and error: `ROOM` times the worst of the networks."""
    error = min(1.0, ROOM * max(1 - row["accuracy"] for row in networks) or 1.0)
    return ROOM * max(row["latency_us"] for row in networks), error


def edge(front: Sequence[Row]) -> list[Row]:
    """Of a front those whom no faster one matches, from the fastest to the most accurate."""
    found: list[Row] = []
    for row in sorted(front, key=lambda row: (row["latency_us"], -row["accuracy"])):
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found


def most(edge: Sequence[Row], picks: int, corner: tuple[float, float]) -> list[Row]:
    """The `picks` networks of an edge that together dominate most of the area up to a corner, exactly.

    What one adds depends on the next faster one only, so the best of each size that end in a network follow from the
    best of one less. An edge that dominates another one therefore never has less of it, however few are picked.
    """
    if len(edge) <= picks:
        return list(edge)
    width = [corner[0] - row["latency_us"] for row in edge]
    error = [1 - row["accuracy"] for row in edge]
    best: list[tuple[float, tuple[int, ...]]] = [
        (width[last] * (corner[1] - error[last]), (last,)) for last in range(len(edge))
    ]
    for size in range(1, picks):
        best = [
            max(
                (area + width[last] * (error[chosen[-1]] - error[last]), (*chosen, last))
                for area, chosen in best
                if chosen[-1] < last
            )
            for last in range(size, len(edge))
        ]
    return [edge[place] for place in max(best)[1]]


def area(rows: Sequence[Mapping[str, Any]], reference: tuple[float, float]) -> float:
    """Under the step function of what a user gets: within each latency, the test accuracy of the network that is best
    on validation images. The best on test images would flatter a front for having many members."""
    ordered = sorted(rows, key=lambda row: (row["latency_us"], -row["search_accuracy"]))
    ends = [*(row["latency_us"] for row in ordered[1:]), reference[0]]
    total, chosen = 0.0, ordered[0]
    for row, end in zip(ordered, ends, strict=True):
        if row["search_accuracy"] > chosen["search_accuracy"]:
            chosen = row
        total += (end - row["latency_us"]) * (chosen["accuracy"] - 1 + reference[1])
    return total

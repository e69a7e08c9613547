"""What a search says of itself, epoch by epoch, in a file that a report reads."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from bitnas.files import CorruptFileError, read_json_checked, write_json_checked
from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.description import Description
from bitnas.models.operations import SKIP

Course = list[dict[str, Any]]
"""A record for each epoch, JSON values; "seconds" alone differs between two equal runs. Its members:

epoch: from 0. loss, accuracy: of the weights, means over their images. arch_loss, arch_accuracy: of the architecture on
its own images, cross entropy without factor and entropy; None in epochs that did not train it. arch_steps: how many.
expected: {"flops": FLOPs, "latency": us}, of those with a price list, at the epoch's end. factor: what the costs then
multiply the loss by. entropies: {"edges", "layout"}, means in nats. temperatures: {"edges", "layout"}. lr. hessian: the
largest eigenvalue, or None. alive: operations alive on the ten edges of each topology group. skips: `share_of_skips`.
probabilities: {"edges": [G][10][O], "widths": [W][R], "depths": [stages][choices]}, six decimals. stopped: "hessian" in
the last record of a search that this ended, else None. seconds.
"""

_FIX = "Delete the folder and search again"
_MEMBERS = ("epoch", "loss", "probabilities")


def save_course(course: Course, path: str | os.PathLike[str]) -> None:
    """Write it as JSON with a SHA-256 inside, atomically; its folder must exist."""
    write_json_checked(path, course)


def load_course(path: str | os.PathLike[str]) -> Course:
    """What `save_course` wrote. Raises FileNotFoundError, or CorruptFileError for one that is damaged or another."""
    value = read_json_checked(path, fix=_FIX)
    if not isinstance(value, list) or not all(isinstance(r, dict) and set(_MEMBERS) <= set(r) for r in value):
        raise CorruptFileError(path, f"is not the course of a search. {_FIX}")
    return value


def at_chance(course: Course, classes: int) -> str | None:
    """What is wrong with a supernet that has not learnt to tell the classes apart, or None.

    At chance is a training accuracy of at most 1.5 / classes, and of at most 0.05 above 1 / classes.
    """
    accuracy, chance = course[-1]["accuracy"], 1 / classes
    if accuracy > chance + min(0.5 * chance, 0.05):
        return None
    return (
        f"the supernet ended at chance: it classifies {100 * accuracy:.1f} % of its training images right, guessing "
        f"has {100 * chance:.1f} %, so its probabilities mean little; change lr (now {course[-1]['lr']:g}) or train "
        "longer"
    )


def rounded(probabilities: Choices) -> dict[str, Any]:
    """Probabilities as nested lists of six decimals."""

    def lists(value: Any) -> Any:
        return [lists(entry) for entry in value] if isinstance(value, list) else round(value, 6)

    found = probabilities.map(lambda tensor: tensor.detach().double().cpu())
    return {
        "edges": lists(found.edges.tolist()),
        "widths": lists(found.widths.tolist()),
        "depths": [lists(depths.tolist()) for depths in found.depths],
    }


def share_of_skips(description: Description, probabilities: Choices) -> float:
    """The share of edges, over all topology groups, whose likeliest operation is the skip: what collapse looks like.

    0 in a space without skips.
    """
    return share_of(SKIP, description.operations, probabilities.edges.detach().tolist())


def share_of(operation: str, names: Sequence[str], edges: Sequence[Sequence[Sequence[float]]]) -> float:
    """The share of edges `[groups][10][operations]` whose likeliest operation is this one; where several are equally
    likely, as before the first step, each has its part of the edge. 0 for an operation that is not among the names."""
    if operation not in names:
        return 0.0
    index, rows = names.index(operation), [row for group in edges for row in group]
    return sum((row[index] == max(row)) / row.count(max(row)) for row in rows) / len(rows)

"""The course of a search by BARS, epoch by epoch: its file, and what it says as sentences.

What is called undecided, and when skips are said to have taken over, is stated in the sentence itself, because both are
a line that the report draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import CorruptFileError, read_json_checked
from .cells import EDGES, NONE, SKIP, Space
from .numbers import count, duration, percent, three_digits
from .records import Run, number, setting

Record = Mapping[str, Any]
LEAD = 0.1  # of probability: a choice that leads the next by less is undecided
_TAKEN = 0.5  # share of edges that are skips, from which on they have taken over
_LISTED = 6
COSTS = {"flops": ("FLOPs", "flops_budget", count), "latency": ("latency", "latency_budget", duration)}
_EXACT = {"flops": "loss_flops"}  # what a derived network costs by the count of the loss
_FIX = "Delete it and supernet.safetensors, then `bitnas resume`: the same supernet is trained again"


def read_course(path: Path, space: Space) -> list[dict[str, Any]]:
    """The records of `course.json`; empty without the file. Raises CorruptFileError for another space's, or damage."""
    if not path.exists():
        return []
    found: Any = read_json_checked(path, fix=_FIX)
    if not isinstance(found, list):
        raise CorruptFileError(path, f"holds a {type(found).__name__}, expected a list. {_FIX}")
    for place, record in enumerate(found):
        shown = record.get("probabilities") if isinstance(record, dict) else None
        if not isinstance(shown, dict) or record.get("epoch") != place or not _of(shown, space):
            raise CorruptFileError(path, f"record {place}: expected epoch {place} of the space in config.json. {_FIX}")
    return found


def _of(shown: Mapping[str, Any], space: Space) -> bool:
    """Whether probabilities have the shape of a space."""
    edges, widths, depths = (shown.get(name) for name in ("edges", "widths", "depths"))
    if not isinstance(edges, list) or not isinstance(widths, list) or not isinstance(depths, list):
        return False
    if [len(edges), len(widths)] != [space.topologies, max(space.width_of) + 1]:
        return False
    rows = [(row, len(space.operations)) for cell in edges for row in cell]
    rows += [(row, len(space.widths)) for row in widths]
    if any(len(cell) != len(EDGES) for cell in edges) or len(depths) != len(space.stages):
        return False
    rows += [(row, len(choices)) for row, choices in zip(depths, space.depth_choices, strict=True)]
    return all(len(row) == length and all(0 <= p <= 1 for p in row) for row, length in rows)


def share(space: Space, record: Record, operation: str) -> float:
    """The share of edges whose likeliest operation is this one; of several that are equally likely each has a part."""
    place = space.operations.index(operation)
    rows = [row for cell in record["probabilities"]["edges"] for row in cell]
    return sum(row[place] == max(row) and 1 / row.count(max(row)) for row in rows) / len(rows)


def skips(space: Space, course: Sequence[Record]) -> list[tuple[float, float]]:
    """(epoch from 1, share of edges whose likeliest operation is the skip), in a space that has one."""
    return [(float(epoch), share(space, record, SKIP)) for epoch, record in enumerate(course, 1)]


def series(course: Sequence[Record], *names: str) -> list[tuple[float, float]]:
    """(epoch from 1, value) of a member, or of a member of a member, where it has a finite number."""
    found = []
    for epoch, record in enumerate(course, 1):
        for name in names[:-1]:
            record = record.get(name) or {}
        value = number(record, names[-1])
        if value is not None:
            found.append((float(epoch), value))
    return found


def budgets(run: Run) -> dict[str, float]:
    """The budget of each cost that is in the loss."""
    controller = setting(run.config, "controller")
    if not isinstance(controller, dict):
        return {}
    chosen = controller.get("cost")
    found = {name: number(controller, key) for name, (_, key, _) in COSTS.items() if chosen in (name, "both")}
    return {name: value for name, value in found.items() if value is not None}


def phases(run: Run) -> list[tuple[float, str]]:
    """Epochs (counted from 1) before which the architecture did not train, and why."""
    controller = setting(run.config, "controller")
    known = controller if isinstance(controller, dict) else {}
    found = [(number(known, f"{name}_epochs"), words) for name, words in (
        ("warmup", "warm-up: weights alone"), ("uniform", "every choice at its uniform weight"))]  # fmt: skip
    return [(epochs, words) for epochs, words in found if epochs]


def sentences(run: Run) -> list[str]:
    """What happened, in the order in which one asks."""
    if run.space is None or not run.course:
        return []
    parts = [_decided(run.space, run.course[-1]), _layout(run.space, run.course[-1]), _skips(run.space, run.course)]
    parts += [
        _chance(run),
        _nothing(run.space, run.course[-1]),
        *_budget(run),
        _pruned(run.space, run.course),
        _curvature(run.course),
    ]
    return [part for part in parts if part]


def _chance(run: Run) -> str:
    """Whether the supernet learnt nothing, where the number of classes is known."""
    accuracy = number(run.course[-1], "accuracy")
    made = run.front[0].values.get("network") if run.front else None
    classes = number(made, "num_classes") if isinstance(made, dict) else None
    if accuracy is None or not classes or accuracy > (1 + min(0.5, 0.05 * classes)) / classes:
        return ""
    return (
        f"The supernet ended at chance: it classifies {percent(accuracy)} of its training images right, guessing has "
        f"{percent(1 / classes)}. Its probabilities mean little; another learning rate or more epochs may help."
    )


def lead(probabilities: Sequence[float]) -> float:
    """By how much the likeliest leads the next; 1 where there is nothing to choose."""
    if len(probabilities) < 2:
        return 1.0
    first, second = sorted(probabilities, reverse=True)[:2]
    return first - second


def undecided(space: Space, record: Record) -> list[tuple[int, tuple[int, int]]]:
    """(topology group, edge) of every edge whose likeliest operation leads by less than `LEAD`."""
    cells = record["probabilities"]["edges"]
    return [(group, edge) for group, cell in enumerate(cells)
            for edge, row in zip(EDGES, cell, strict=True) if lead(row) < LEAD]  # fmt: skip


def _decided(space: Space, last: Record) -> str:
    total, open_ = space.topologies * len(EDGES), undecided(space, last)
    if len(space.operations) < 2:
        return ""
    if not open_:
        return f"All {total} edges are decided: the likeliest operation leads the next by at least {LEAD:g}."
    means = f"the likeliest operation leads the next by less than {LEAD:g}"
    if len(open_) == total:
        return f"None of the {total} edges was decided at the end: on each {means}."
    groups: dict[int, list[str]] = {}
    for group, (source, target) in open_[:_LISTED]:
        groups.setdefault(group, []).append(f"{source}→{target}")
    named = "; ".join(f"group {group}: {', '.join(edges)}" for group, edges in groups.items())
    more = f"; {len(open_) - _LISTED} more" if len(open_) > _LISTED else ""
    return (
        f"{len(open_)} of {total} edges {'was' if len(open_) == 1 else 'were'} still undecided at the end: there "
        f"{means} ({named}{more})."
    )


def _layout(space: Space, last: Record) -> str:
    shown = last["probabilities"]
    widths = [f"the width of {space.sharing(n)}" for n, row in enumerate(shown["widths"]) if lead(row) < LEAD]
    depths = [f"the depth of stage {n}" for n, row in enumerate(shown["depths"], 1) if lead(row) < LEAD]
    searched = sum(len(row) > 1 for row in (*shown["widths"], *shown["depths"]))
    if not searched:
        return ""
    if not widths and not depths:
        return "All widths and depths are decided."
    if len(widths) + len(depths) == searched:
        return "No width and no depth was decided at the end."
    return f"Of widths and depths still undecided: {', '.join([*widths, *depths])}."


def _skips(space: Space, course: Sequence[Record]) -> str:
    if SKIP not in space.operations or len(space.operations) < 2:
        return ""
    known = skips(space, course)
    chance, last = 1 / len(space.operations), known[-1][1]
    moved = f"from {percent(known[0][1], 0)} of the edges in the first epoch to {percent(last, 0)} in the last"
    if last >= _TAKEN and last > 1.5 * chance:
        return (
            f"Skips took over, {moved}; a choice by chance would be {percent(chance, 0)}. That is the collapse which "
            "the guards are there to prevent."
        )
    return f"Skips did not take over: they are the likeliest operation {moved} (by chance {percent(chance, 0)})."


def _nothing(space: Space, last: Record) -> str:
    if NONE not in space.operations:
        return ""
    return f"On {percent(share(space, last, NONE), 0)} of the edges none is the likeliest: they bring nothing."


def _budget(run: Run) -> list[str]:
    found = []
    for name, budget in budgets(run).items():
        words, _, write = COSTS[name]
        known = series(run.course, "expected", name)
        if not known:
            continue
        last = known[-1][1]
        text = f"The expected {words} ended at {write(last)}, {three_digits(last / budget)} times the budget of "
        text += f"{write(budget)}: the budget {'holds' if last <= budget else 'does not hold'}."
        if last > budget:
            inside = next((epoch for epoch, value in reversed(known) if value <= budget), None)
            text += " No epoch ended within it." if inside is None else f" Epoch {inside:.0f} was the last within it."
        else:
            over = next((epoch for epoch, value in reversed(known) if value > budget), None)
            text += " No epoch ended above it." if over is None else f" Epoch {over:.0f} was the last above it."
        found.append(text + _derived(run, name, budget))
    return found


def _derived(run: Run, name: str, budget: float) -> str:
    """How the networks that came out stand to the budget, by the count that the loss has."""
    exact = [value for c in run.candidates if (value := c.get(_EXACT.get(name, ""))) is not None]
    if not exact:
        return ""
    words, _, write = COSTS[name]
    inside = sum(value <= budget for value in exact)
    return (
        f" The derived networks have {write(min(exact))} to {write(max(exact))} {words} by the same count, {inside} of "
        f"{len(exact)} within the budget."
    )


def _pruned(space: Space, course: Sequence[Record]) -> str:
    alive = [sum(record.get("alive") or ()) for record in course]
    whole = space.topologies * len(EDGES) * len(space.operations)
    if not alive or not 0 < alive[-1] < whole:
        return ""
    first = next(epoch for epoch, left in enumerate(alive, 1) if left < whole)
    return f"{whole - alive[-1]} of {whole} operations were pruned, the first in epoch {first}."


def _curvature(course: Sequence[Record]) -> str:
    known = series(course, "hessian")
    if not known:
        return ""
    text = f"The largest eigenvalue of the Hessian was {three_digits(known[0][1])} in epoch {known[0][0]:.0f} and "
    text += f"{three_digits(known[-1][1])} in epoch {known[-1][0]:.0f}."
    if course[-1].get("stopped"):
        text += f" Its growth ended the search after epoch {len(course)}."
    return text


def mean_over_edges(course: Sequence[Record], group: int) -> list[list[float]]:
    """For each epoch, the mean probability of every operation over the edges of a topology group."""
    return [_mean(record["probabilities"]["edges"][group]) for record in course]


def _mean(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(values) / len(rows) for values in zip(*rows, strict=True)]

"""What the search gained from one generation to the next, and what it lost on the way."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .choosing import clearly_faster
from .numbers import count, duration, percent, plural, points
from .records import Candidate, Dropped, Run, setting

_COSTS = {"latency": "latency_us", "ops": "ops", "flops": "flops", "bops": "bops", "memory": "memory_bits"}
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)")
SHORT = 300  # characters of a reason that the table shows


@dataclass(frozen=True)
class Group:
    """Candidates that failed for the same reason, but for the numbers in it."""

    members: list[Dropped]

    @property
    def reason(self) -> str:
        """What all have in common; numbers that differ are left out."""
        parts = [_NUMBER.split(_first_line(member.reason)) for member in self.members]
        return "".join(found[0] if len(set(found)) == 1 else "…" for found in zip(*parts, strict=True))

    @property
    def generations(self) -> str:
        """ "1, 3–5", counted from 1."""
        found = sorted({m.generation + 1 for m in self.members if m.generation is not None})
        runs: list[list[int]] = []
        for generation in found:
            if runs and generation == runs[-1][1] + 1:
                runs[-1][1] = generation
            else:
                runs.append([generation, generation])
        return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in runs)


def group(dropped: Sequence[Dropped]) -> list[Group]:
    """By reason, most frequent first. Numbers in a reason do not make it another one; the first line counts."""
    found: dict[str, list[Dropped]] = {}
    for member in dropped:
        found.setdefault(_NUMBER.sub("#", _first_line(member.reason)), []).append(member)
    groups = [Group(members) for members in found.values()]
    return sorted(groups, key=lambda g: -len(g.members))


def _first_line(reason: str) -> str:
    line = next((line for line in reason.splitlines() if line.strip()), "no reason was recorded")
    return line if len(line) <= SHORT else line[:SHORT] + "…"


def metric_of(run: Run) -> str:
    """What the history shows: the fitness of a search on one number that has it, else accuracy."""
    objectives = setting(run.config, "objectives")
    return "fitness" if objectives == ["fitness"] and any(c.get("fitness") for c in run.candidates) else "accuracy"


def cost_of(run: Run) -> str | None:
    """The cost the front is drawn against: the run's own objective if it has one, latency before counts."""
    objectives = setting(run.config, "objectives")
    wanted = [_COSTS[name] for name in _COSTS if isinstance(objectives, list) and name in objectives]
    known = [c for c in run.candidates if c.get("accuracy") is not None]
    counts = ("ops", "flops") if run.derived else ("flops", "ops")
    for cost in (*wanted, "latency_us", *counts, "bops", "memory_bits"):
        if known and all((c.get(cost) or 0) > 0 for c in known):
            return cost
    return None


def edges(run: Run, cost: str) -> list[list[Candidate]]:
    """After each generation, the networks more accurate than every cheaper one: of the front that the search recorded,
    or of everything measured so far."""
    known = [c for c in run.candidates if c.get("accuracy") is not None and (c.get(cost) or 0) > 0]
    by_key = {c.key: c for c in known}
    if run.fronts:
        return [
            _edge([by_key[key] for key in front if key in by_key], cost)
            for front in run.fronts
            if any(key in by_key for key in front)
        ]
    born: dict[int, list[Candidate]] = {}
    for candidate in known:
        if candidate.generation is not None:
            born.setdefault(candidate.generation, []).append(candidate)
    found: list[list[Candidate]] = []
    for generation in range(max(born, default=-1) + 1):
        found.append(_edge([*(found[-1] if found else []), *born.get(generation, [])], cost))
    return [edge for edge in found if edge]


def _edge(members: Sequence[Candidate], cost: str) -> list[Candidate]:
    kept: list[Candidate] = []
    for point in sorted(members, key=lambda c: (c.get(cost) or 0.0, -(c.get("accuracy") or 0.0))):
        if not kept or (point.get("accuracy") or 0.0) > (kept[-1].get("accuracy") or 0.0):
            kept.append(point)
    return kept


def best_so_far(run: Run, metric: str) -> list[tuple[int, float]]:
    """(generation, best value up to it), from the first generation that has one."""
    born: dict[int, float] = {}
    for candidate in run.candidates:
        value = candidate.get(metric)
        if value is not None and candidate.generation is not None:
            born[candidate.generation] = max(value, born.get(candidate.generation, value))
    found: list[tuple[int, float]] = []
    for generation in range(max(born, default=-1) + 1):
        known = [value for value in (born.get(generation), found[-1][1] if found else None) if value is not None]
        if known:
            found.append((generation, max(known)))
    return found


def best_sentence(run: Run, metric: str) -> str:
    """How far the best value rose after the first generation, and when it stopped to."""
    steps = best_so_far(run, metric)
    if not steps:
        return ""
    first, last = steps[0][1], steps[-1][1]
    write = percent if metric == "accuracy" else (lambda value: f"{value:.2f}")
    if len(steps) == 1:
        return f"The best {metric} is {write(first)}; there is one generation so far."
    if last <= first:
        return (
            f"The best {metric}, {write(first)}, was found in the first generation; the {len(steps) - 1} after it "
            "found no better one."
        )
    when = next(generation for generation, value in steps if value == last) + 1
    gain = f"{points(last - first)} points" if metric == "accuracy" else f"+{last - first:.2f}"
    after = f"; nothing after that was better (generation {steps[-1][0] + 1} was the last)" if when < len(steps) else ""
    return (
        f"The best {metric} rose from {write(first)} in the first generation to {write(last)} in generation {when} "
        f"({gain}){after}."
    )


def front_sentence(run: Run, cost: str) -> str:
    """What the front gained after the first generation, at equal accuracy and in all."""
    found = edges(run, cost)
    if not found:
        return ""
    first, last = found[0], found[-1]
    if len(found) == 1:
        return f"One generation so far: {plural(len(first), 'network')} on its front."
    new = [c for c in last if all(c.key != old.key for old in first)]
    if not new:
        return (
            f"The front of the first generation stands: none of the {len(found) - 1} generations after it moved it, so "
            "the search gained nothing over its first guesses."
        )
    write = duration if cost == "latency_us" else count
    top = first[-1]
    accuracy, price = top.get("accuracy") or 0.0, top.get(cost) or 0.0
    parts = [
        f"Of the {plural(len(last), 'network')} on the line of the last generation {len(new)} came after the first "
        "generation."
    ]
    rival = next(c for c in last if (c.get("accuracy") or 0.0) >= accuracy)
    cheaper = clearly_faster(rival, top) if cost == "latency_us" else (rival.get(cost) or 0.0) < price
    if rival.key != top.key and cheaper:
        paid = rival.get(cost) or 1.0
        parts.append(
            f"The {percent(accuracy)} that cost the first generation {write(price)} cost {write(paid)} in the end: "
            f"{price / paid:.2f} times less."
        )
    elif rival.key == top.key:
        parts.append(
            f"The first generation's most accurate network ({percent(accuracy)}) has not been beaten at its cost."
        )
    best = last[-1].get("accuracy") or 0.0
    if best > accuracy:
        parts.append(
            f"The best accuracy rose by {points(best - accuracy)} points to {percent(best)}, at "
            f"{write(last[-1].get(cost) or 0.0)}."
        )
    return " ".join(parts)

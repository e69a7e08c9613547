"""How far the latencies of a run can be trusted: a table's predictions against measurements, and one measurement
against another of the same network.
"""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from .numbers import percent, plural, spearman
from .records import Point, Run, TableCheck, setting

Pair = tuple[float, float]
SHIFT = 0.02  # a share by which two timings of one network differ on a quiet machine
BAND = 0.05  # the share of its latency within which a prediction is called close
GOAL = "Spearman at least 0.98 and a median error of at most 5 % on at least 50 networks"
_OPTIONS = {
    "model": "--model",
    "data": "--data",
    "choices": "--choices",
    "base_width": "--base-width",
    "scheme": "--scheme",
    "latency_batch": "--batch",
    "latency_threads": "--threads",
    "latency_table": "--table",
}
_OF_WIDTHS = ("model", "choices", "base_width", "scheme")


@dataclass(frozen=True)
class Agreement:
    """Figures of (searched, measured) pairs; errors are shares of the measured latency. `bias` is the median error with
    its sign: a shift that all share. `scatter` and `worst_scatter` are what is left without it."""

    networks: int
    median: float
    worst: float
    bias: float
    scatter: float
    worst_scatter: float
    rank: float | None


def agree(pairs: Sequence[Pair]) -> Agreement | None:
    """Of positive latencies in us; None of no pair."""
    if not pairs:
        return None
    errors = [a / b - 1 for a, b in pairs]
    sizes = [abs(error) for error in errors]
    bias = statistics.median(errors)
    left = [abs((1 + error) / (1 + bias) - 1) for error in errors]
    rank = spearman([a for a, _ in pairs], [b for _, b in pairs])
    return Agreement(len(pairs), statistics.median(sizes), max(sizes), bias, statistics.median(left), max(left), rank)


def front_pairs(run: Run) -> list[Pair]:
    """(what the search selected by, measured at the end) of the networks of the front, in us."""
    pairs = [(n.get("searched_latency_us"), n.get("latency_us")) for n in run.front]
    return [(a, b) for a, b in pairs if a is not None and b is not None and a > 0 and b > 0]


def has_latency(run: Run) -> bool:
    points: list[Point] = [*run.candidates, *run.front, *run.networks]
    return any((point.get("latency_us") or 0) > 0 for point in points)


def goal_sentence(check: TableCheck) -> str:
    """Whether the table reached its goal, and what follows for the search."""
    if check.met:
        return (
            f"The goal ({GOAL}) was met: the table puts networks in the right order, and the search could select by it."
        )
    error = check.get("median_error")
    off = "" if error is None else f" Networks closer to each other than about {percent(2 * error, 0)} may be swapped."
    return (
        f"The goal ({GOAL}) was NOT met.{off} The front was measured whole at the end, so the latencies given for it "
        "hold; but the search may have thrown away networks that belong on it. Build and check the table again on an "
        "idle machine."
    )


def no_check_sentence(run: Run) -> str:
    """Why there is no check of a table to show, and how to get one; `check_commands` belong below it."""
    if run.predicted:
        return (
            "The latencies the search selected by are predictions of a device table that was never checked against "
            "whole networks, so nobody knows how true they are. To check it, and then `bitnas resume` and report again:"
        )
    return (
        "There is no device table in this run: every latency is one of a whole network, measured. To know how well a "
        "table would predict them:"
    )


def check_commands(run: Run) -> list[str]:
    """The commands that build a table for the networks of this run and check it."""
    options: list[str] = []
    if run.derived:
        space = setting(run.config, "space")
        options += ["--method", "nasbnn" if run.of_subnets else "bars"]
        options += ["--space", str(space.get("name"))] if isinstance(space, dict) else []
    for name, option in _OPTIONS.items():
        value = None if run.derived and name in _OF_WIDTHS else setting(run.config, name)
        if isinstance(value, list):
            value = ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
        if value is not None:
            options += [option, f"{value:g}" if isinstance(value, float) else str(value)]
    steps = ("check",) if run.predicted else ("build", "check")
    return [shlex.join(["bitnas", "latency", step, *options]) for step in steps]


def front_sentence(run: Run, found: Agreement) -> str:
    """What the second timing of the front's networks says of the first."""
    start = (
        "Predicted in the search and measured at the end, the latencies"
        if run.predicted
        else "Measured in the search, one by one, and again at the end, in turns, the latencies"
    )
    text = (
        f"{start} of {plural(found.networks, 'network')} on the front differ by {percent(found.median)} in the median, "
        f"{percent(found.worst)} at worst."
    )
    if abs(found.bias) >= SHIFT:
        why = (
            "the table is off by that, or the machine is not as fast as it was"
            if run.predicted
            else f"the machine was {'slower' if found.bias > 0 else 'faster'} then"
        )
        text += (
            f" Part of that is a shift they share: the search's are {percent(abs(found.bias))} "
            f"{'higher' if found.bias > 0 else 'lower'} in the median; {why}. Without it they differ by "
            f"{percent(found.scatter)} in the median, {percent(found.worst_scatter)} at worst."
        )
    if found.rank is not None:
        text += f" Spearman's rank correlation of the two is {found.rank:.2f}."
    return f"{text} Networks closer than {percent(found.worst_scatter)} should be read as equally fast."


def shift_sentence(run: Run) -> str:
    """A warning where latencies of the search and of the front do not compare, or nothing."""
    found = agree(front_pairs(run))
    if found is None or abs(found.bias) < SHIFT:
        return ""
    return (
        f"Compare dots with dots: the front was timed again at the end, and all of it came out about "
        f"{percent(abs(1 / (1 + found.bias) - 1), 0)} {'faster' if found.bias > 0 else 'slower'} than in the search."
    )

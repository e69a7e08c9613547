"""What each training strategy of NAS-BNN brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import numbers
from ..figures import studies as figures
from ..html import Section, bullets, details, figure, grid
from ..records import Run, number

_GROUPS = {"smallest": "smallest", "random": "random", "biggest": "biggest", "mean": "mean of all"}


def title(run: Run) -> str:
    return f"What the training strategies of NAS-BNN bring ({run.ablation.get('data')})"


def headline(run: Run) -> str:
    return " ".join(run.ablation["verdicts"])


def ablation(run: Run) -> Section:
    found = run.ablation
    seeds = numbers.plural(len(found["seeds"]), "seed")
    caption = (
        f"Accuracy of all strategies minus that without one, the mean over the same subnets, {seeds}. An interval that "
        "holds zero tells nothing apart; one that does not may still be chance among so many, which the verdicts allow "
        "for."
    )
    body = figure(lambda w: figures.strategies(found, w), caption)
    rows = [[(str(one["name"]), "text"), *(_cell(one, group, found) for group in _GROUPS)] for one in found["variants"]]
    body += grid(["trained with", *_GROUPS.values()], rows)
    body += bullets(found["verdicts"]) + details("How it was done", bullets(found["protocol"]))
    return "The three training strategies", body


def _cell(one: Mapping[str, Any], group: str, found: Mapping[str, Any]) -> tuple[str, ...]:
    """Mean accuracy with its spread, and the difference that leaving it out makes."""
    own = one["accuracy"][group]
    small = f"sd {100 * own['sd']:.1f}"
    for difference in found["differences"]:
        if difference["variant"] == one["name"] and difference["group"] == group:
            small += f"; {numbers.points(-difference['mean'])}"
            low, high = number(difference, "low"), number(difference, "high")
            if low is not None and high is not None:
                small += f" [{numbers.points(-high)}, {numbers.points(-low)}]"
    return numbers.percent(own["mean"]), "", small

"""The studies of BARS: what its cells, its guards, its cost in the loss and its two halves are worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import numbers
from ..figures import bars_study as figures
from ..html import Section, bullets, details, figure, grid
from ..records import number

_TITLES = {
    "cells": "Searched cells against random ones",
    "guards": "With and without each guard against collapse",
    "cost": "FLOPs or latency in the loss",
    "parts": "Cells alone, layout alone, and both",
}
_WHAT = {
    "accuracy": "test accuracy",
    "latency": "measured latency",
    "free": "the share of edges that end without a convolution",
    "area": "the area under accuracy against measured latency",
}
_TABLE = 12  # networks of a study that are listed unfolded
_COLLAPSED = 0.5
Study = Mapping[str, Any]


def title(found: Study) -> str:
    return f"BARS: {_lower(_title(found))} ({found.get('data')})"


def headline(found: Study) -> str:
    """What the study decides, and what it does not."""
    unfinished = "" if found.get("complete", True) else " The study is not finished."
    if found["study"] != "guards":
        return " ".join(found["verdicts"]) + unfinished
    said = [_told(found, what) for what in _WHAT]
    return " ".join(filter(None, [*said, _collapsed(found)])) + unfinished


def _told(found: Study, what: str) -> str:
    """Which of the comparisons of many a study decides, each with its difference alone."""
    rows = [one for one in found["comparisons"] if one["what"] == what]
    decided = [one for one in rows if one.get("outcome") in ("better", "worse")]
    if not rows:
        return ""
    if not decided:
        seeds = numbers.plural(len(found["seeds"]), "seed")
        return f"No difference in {_WHAT[what]} can be told with {seeds}."
    named = ", ".join(f"{one['second']} ({numbers.points(one['difference'])})" for one in decided)
    return (
        f"In {_WHAT[what]} {decided[0]['first']} differs from {len(decided)} of {len(rows)} others (its own minus "
        f"theirs, in points): {named}."
    )


def _collapsed(found: Study) -> str:
    """Which variants ended with more than half of their edges as skips or none."""
    shares: dict[str, list[float]] = {}
    for run in found["runs"]:
        shares.setdefault(run["variant"], []).append(run["skips"] + run["none"])
    lost = [f"{name} ({numbers.percent(sum(own) / len(own), 0)})" for name, own in shares.items()
            if sum(own) / len(own) > _COLLAPSED]  # fmt: skip
    if not lost:
        return "In no variant do more than half of the edges end without a convolution."
    return f"On average more than half of the edges end without a convolution in: {', '.join(lost)}."


def section(found: Study) -> Section:
    runs, study = found["runs"], found["study"]
    body = ""
    if study == "guards":
        caption = (
            "Share of all edges whose likeliest operation is the skip, and is none, while the search went on; a line a "
            "seed. What rises towards 100 % has collapsed: a network of it computes little."
        )
        body += figure(lambda w: figures.collapse(runs, w), caption)
    caption = "Each network trained from scratch, frozen and verified; bars are the 95 % interval of the accuracy and "
    caption += "what the latency is known to."
    if study != "guards":
        body += figure(lambda w: figures.plane(runs, w), caption, "No network has been measured yet.")
    for what, words in _WHAT.items():
        drawn = figure(
            lambda w, wanted=what: figures.differences(found["comparisons"], wanted, w),  # type: ignore[misc]
            f"Differences in {words}, paired by seed; an interval that holds zero tells nothing apart. The verdicts "
            "also allow for how many there are.",
        )
        body += f"<h3>Differences in {words}</h3>{drawn}" if drawn else ""
    body += bullets(found["verdicts"]) + _variants(found)
    table = _runs(found)
    body += table if len(runs) <= _TABLE else details("Every network", table)
    return _title(found), body + details("How it was done", bullets(found["protocol"]))


def _variants(found: Study) -> str:
    rows = [[(one["name"], ""), (one["says"], "text")] for one in found["variants"]]
    return details("The variants", grid(["variant", "what it is"], rows))


def _runs(found: Study) -> str:
    rows = []
    for run in found["runs"]:
        low, high, iqr = (number(run, name) for name in ("accuracy_low", "accuracy_high", "latency_iqr_us"))
        between = f"{100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
        noise = f"IQR {numbers.duration(iqr)}" if iqr is not None else ""
        noise += ", noisy" if run.get("latency_noisy") in (True, 1, 1.0) else ""
        verified = run.get("verified")
        ok = verified.get("ok") if isinstance(verified, dict) else verified
        rows.append(
            [
                (run["label"], "", f"seed {run['seed']}"),
                (numbers.percent(run["accuracy"]), "", between),
                (numbers.duration(number(run, "latency_us")), "", noise),
                (numbers.count(number(run, "operations")), ""),
                (numbers.percent(run["skips"], 0), "", f"none {numbers.percent(run['none'], 0)}"),
                ("yes" if ok is True else "no" if ok is False else numbers.MISSING, ""),
            ]
        )
    head = ["network", "test accuracy", "latency", "operations", "skips", "verified"]
    return grid(head, rows)


def _title(found: Study) -> str:
    return _TITLES[found["study"]]


def _lower(text: str) -> str:
    return text if text[:2].isupper() else text[0].lower() + text[1:]

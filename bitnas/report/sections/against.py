"""Searched subnets against random ones and against searched widths, under measured latency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import numbers
from ..figures import studies as figures
from ..html import Section, bullets, details, figure, grid
from ..records import Run, subnet_code


def title(run: Run) -> str:
    return f"Searched subnets against random ones and searched widths ({run.against.get('data')})"


def headline(run: Run) -> str:
    unfinished = "" if run.against.get("complete") else " The study is not finished."
    return " ".join(run.against["verdicts"]) + unfinished


def sections(run: Run) -> Iterator[Section]:
    found = run.against
    reference = found["reference"]
    caption = (
        "Networks of the three fronts on test images that nothing has seen before; bars are what the latency is known "
        "to. Lines join the networks that no faster one matches."
    )
    body = figure(lambda w: figures.fronts(found["seeds"], w), caption)
    yield "Three fronts under measured latency", body + _networks(found)
    caption = (
        "Area under what each front offers, as a share of the rectangle up to "
        f"{numbers.duration(reference['latency_us'])} and {numbers.percent(reference['accuracy'])} accuracy (the "
        "reference point, just beyond the worst network of all). To the right the searched subnets are better."
    )
    body = figure(lambda w: figures.areas(found["comparisons"], w), caption)
    yield "Which front is better?", body + bullets(found["verdicts"]) + _areas(found)


def _areas(found: Mapping[str, Any]) -> str:
    seeds = [seed["seed"] for seed in found["seeds"]]
    rows = [
        [(name, "text"), *((numbers.percent(value), "") for value in values)] for name, values in found["areas"].items()
    ]
    spent = [
        [
            (f"seed {seed['seed']}", ""),
            *((f"{seed['evaluated'][name]}", "", numbers.duration(1e6 * seed["seconds"][name]))
              for name in ("searched", "random", "widths")),
        ]
        for seed in found["seeds"]
    ]  # fmt: skip
    return (
        grid(["front", *(f"seed {seed}" for seed in seeds)], rows)
        + grid(["evaluations", "searched", "random", "widths"], spent)
        + details("How it was done", bullets(found["protocol"]))
    )


def _networks(found: Mapping[str, Any]) -> str:
    rows = []
    for seed in found["seeds"]:
        for row in sorted(seed["networks"], key=lambda row: (row["method"], row["training"], row["latency_us"])):
            what = subnet_code(row["subnet"]) if "subnet" in row else ", ".join(f"{ratio:g}" for ratio in row["ratios"])
            low, high = 100 * row["accuracy_low"], 100 * row["accuracy_high"]
            rows.append(
                [
                    (f"seed {seed['seed']}: {row['name']}", "", row["training"]),
                    (numbers.percent(row["accuracy"]), "", f"{low:.1f} to {high:.1f}"),
                    (numbers.duration(row["latency_us"]), "", "noisy" if row["latency_noisy"] else ""),
                    (numbers.count(row["ops"]), ""),
                    (what, "text"),
                ]
            )
    return details("Every network", grid(["network", "test accuracy", "latency", "OPs", "blocks or ratios"], rows))

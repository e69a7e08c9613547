"""Do inherited weights rank subnets as training them alone does?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import numbers
from ..figures import studies as figures
from ..html import Section, bullets, details, figure, grid
from ..records import Run, subnet_code

_NAMES = {
    "inherited": "inherited accuracy, with the mean of the trainings alone",
    "ops": "OPs alone, with the mean of the trainings alone",
    "beyond_ops": "inherited minus OPs",
    "beside_ops": "the same, both without what a smooth function of OPs explains",
    "inherited_once": "inherited accuracy, with one training alone",
    "repeats": "one training alone, with another: a reference, no bound",
    "disjoint": "inherited on validation images, alone on test images",
}


def title(run: Run) -> str:
    return f"Do a supernet's subnets rank like the same subnets trained alone? ({run.ranking.get('data')})"


def headline(run: Run) -> str:
    return " ".join(run.ranking["verdicts"])


def ranking(run: Run) -> Section:
    found = run.ranking
    rows = found["subnets"]
    tau = found["correlations"]["inherited"]
    caption = f"{len(rows)} subnets from the smallest to the biggest, judged on {found['images']} images that no "
    caption += "training saw; larger dots cost more OPs."
    caption += f" Kendall's tau is {_interval(tau)}." if tau else ""
    body = figure(lambda w: figures.ranks(rows, w), caption)
    body += _correlations(found["correlations"])
    caption = "The same subnets over their OPs. What rises with OPs could be ranked without any training."
    body += "<h3>Against OPs</h3>" + figure(lambda w: figures.against_ops(rows, w), caption)
    table = grid(
        ["subnet", "OPs", "inherited", "alone", "runs"],
        [
            [
                (subnet_code(row["subnet"]), "text"),
                (numbers.count(row["ops"]), ""),
                (numbers.percent(row["inherited"]), ""),
                (numbers.percent(row["alone"]), "", f"sd {100 * row['alone_sd']:.1f}"),
                (", ".join(numbers.percent(value) for value in row["alone_runs"]), ""),
            ]
            for row in rows
        ],
    )
    body += details("Every subnet", table) + details("How it was done", bullets(found["protocol"]))
    return "Inherited accuracy against training alone", body


def _correlations(found: Mapping[str, Any]) -> str:
    rows = []
    for name, words in _NAMES.items():
        one = found.get(name)
        if one:
            rho = one.get("spearman")
            # A permutation test has a p-value in place of an interval.
            interval = f"p {one['p']:.3f}" if "p" in one else f"{one['low']:+.2f} to {one['high']:+.2f}"
            rows.append(
                [(words, "text"), (f"{one['mean']:+.2f}", "", interval),
                 (numbers.MISSING if rho is None else f"{rho:+.2f}", "")]
            )  # fmt: skip
    return grid(["ranks", "Kendall's tau (95 % interval, or p)", "Spearman's rho"], rows)


def _interval(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.2f} (95 % interval {one['low']:.2f} to {one['high']:.2f})"

"""Several methods on one accuracy-against-measured-latency plot, retrained alike and timed in turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .. import numbers
from ..figures import bars_study as intervals
from ..figures import compare as figures
from ..html import Section, bullets, details, figure, grid, note
from ..records import Run, number


def title(run: Run) -> str:
    data = run.comparison.get("data")
    return f"Methods under measured latency{f' ({data})' if data else ''}"


def headline(run: Run) -> str:
    rows = run.comparison["rows"]
    methods = figures.methods_of(rows)
    best, fast = max(rows, key=lambda row: row["accuracy"]), min(rows, key=lambda row: row["latency_us"])
    said = f"{numbers.plural(len(rows), 'network')} of {numbers.plural(len(methods), 'method')}. The most accurate is "
    said += f"{best['label']}, {_figures(best)}; the fastest {fast['label']}, {_figures(fast)}."
    return " ".join([said, *run.comparison["verdicts"]])


def _figures(row: Mapping[str, Any]) -> str:
    return f"{numbers.percent(row['accuracy'])} in {numbers.duration(row['latency_us'])}"


def sections(run: Run) -> Iterator[Section]:
    found = run.comparison
    caption = (
        "Every network frozen and timed in turns with all others on this machine; bars are what a figure is known "
    )
    caption += (
        "to. A dashed line joins the networks that validation images choose for a front, so it may fall: on test "
    )
    caption += "images nothing is chosen." if found["trained"] else "to. A dashed line joins the networks of a front."
    if found["trained"]:
        caption += " All were trained from scratch on the same images by one recipe."
    body = figure(lambda w: figures.plane(found, w), caption, "No network has a measured latency.")
    if not found["trained"]:
        body += note(
            "Nothing was retrained: accuracies are what each run says of its networks on validation images, by its own "
            "method, and do not compare exactly."
        )
    yield "All methods in one plane", body + _table(found)
    reference = found["reference"]
    caption = "Area under what each front offers, as a share of the rectangle up to "
    caption += f"{numbers.duration(reference['latency_us'])} and down to {numbers.percent(reference['accuracy'])} "
    caption += "accuracy; to the right the first has the better front."
    rows = [{**one, "what": "area", "runs": []} for one in found["comparisons"]]
    body = figure(lambda w: intervals.differences(rows, "area", w, "95 % interval over test images"), caption)
    areas = grid(
        ["front", "area", "networks"],
        [
            [(name, ""), (numbers.percent(share), ""), (str(len(found["fronts"].get(name, ()))), "")]
            for name, share in found["areas"].items()
        ],
    )
    body += bullets(found["verdicts"]) + areas + details("How it was done", bullets(found["protocol"]))
    yield "Which front is better?", body


def _table(found: Mapping[str, Any]) -> str:
    methods, cells = figures.methods_of(found["rows"]), []
    chosen = {label for labels in found["fronts"].values() for label in labels}
    for row in sorted(found["rows"], key=lambda row: (methods.index(row["method"]), row["latency_us"])):
        low, high, iqr = (number(row, name) for name in ("accuracy_low", "accuracy_high", "latency_iqr_us"))
        between = f"{100 * low:.1f} to {100 * high:.1f}" if low is not None and high is not None else ""
        noise = f"IQR {numbers.duration(iqr)}" if iqr is not None else ""
        noise += ", noisy" if row.get("latency_noisy") in (True, 1, 1.0) else ""
        cells.append(
            [
                (row["label"], "", figures.look(row["method"], methods)[2]),
                (numbers.percent(row["accuracy"]), "", between),
                (numbers.duration(row["latency_us"]), "", noise),
                (numbers.count(number(row, "ops")), ""),
                (numbers.count(number(row, "flops")), ""),
                ("yes" if row["label"] in chosen else "no", ""),
            ]
        )
    accuracy = "test accuracy" if found["trained"] else "accuracy of its run"
    return grid(["network", accuracy, "latency", "OPs", "FLOPs", "on its front"], cells)

"""`bitnas reproduce shen2019`: the tables of Shen et al. 2019 as printed beside ours, and the test of its claim."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any


def run_tables(out: Path | None, as_json: bool, **options: Any) -> None:
    """Recompute the tables and print them; `options` are those of `bitnas.methods.width.reproduce.reproduce`."""
    from ..methods.width.reproduce import reproduce
    from .output import interruptible, print_json
    from .progress import ProgressView

    kept = f"finished rows are kept. To go on: {shlex.join(['bitnas', *sys.argv[1:]])}"
    with interruptible(kept if out is not None else "nothing is kept without --out"), ProgressView() as view:
        result = reproduce(out, **options, on_progress=view)
    if out is not None:
        from ..report import build

        build(out)
    if as_json:
        print_json(result)
        return
    _show(result, out)


def _show(result: dict[str, Any], out: Path | None) -> None:
    from ..methods.width.reproduce import COLUMNS, cells, title
    from .output import console, table

    screen = console()
    for found in result["tables"]:
        rows = cells(found)
        # A column without a single figure tells nothing. Costs and results apart, to fit a terminal.
        shown = [i for i in range(1, len(COLUMNS)) if any(row[i] != "–" for row in rows)]
        for part, about in ((slice(0, 6), "costs"), (slice(6, None), "accuracy in percent, and time on this machine")):
            columns = [0, *(i for i in shown if i in range(1, len(COLUMNS))[part])]
            if len(columns) > 1:
                names = [COLUMNS[i] for i in columns]
                figures = [[row[i] for i in columns] for row in rows]
                screen.print(table(names, figures, title=f"{title(found)}: {about}"))
    for finding in result["findings"]:
        screen.print(f"{finding['verdict']:>12}  {finding['statement']}", markup=False)
    counted = ", ".join(f"{number} {status}" for status, number in result["summary"].items())
    screen.print(f"\nprinted figures: {counted}")
    if out is not None:
        screen.print(f"wrote {out / 'reproduction.json'}, reproduction.md and a CSV file for each table", markup=False)
        screen.print(f"report: {out / 'report.html'}", markup=False)


def run_claim(out: Path, as_json: bool, **options: Any) -> None:
    """Search on a data set and let the winners meet uniform widths of their cost on unseen images."""
    from ..methods.width.claim import claim
    from ..report import build, numbers
    from .output import console, interruptible, print_json, table
    from .progress import ProgressView

    again = shlex.join(["bitnas", *sys.argv[1:]])
    with interruptible(f"finished trainings are kept. To go on: {again}"), ProgressView() as view:
        result = claim(out, **options, on_progress=view)
    build(out)
    if as_json:
        print_json(result)
        return
    rows = []
    for found in result["runs"]:
        for kind in ("searched", "uniform"):
            network = found[kind]
            rows.append(
                [
                    f"seed {found['seed']}: {kind}",
                    ",".join(f"{width}" for width in network["widths"]),
                    numbers.count(network["flops"]),
                    f"{numbers.percent(network['accuracy'])} (sd {100 * network['sd']:.1f})",
                    numbers.points(found["difference"]) if kind == "searched" else "",
                ]
            )
    screen = console()
    screen.print(table(["network", "widths", "FLOPs", "test accuracy", "difference"], rows))
    tried = sum(found["networks_tried"] for found in result["runs"])
    screen.print(f"{tried} networks searched, {result['trainings']} trainings", markup=False)
    if result["overall"] is not None:
        screen.print(result["overall"]["verdict"], markup=False)
    screen.print(f"wrote {out / 'claim.json'}; report: {out / 'report.html'}", markup=False)

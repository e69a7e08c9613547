"""`bitnas reproduce nasbnn | bars` without a study: what is known of a paper beside what bitnas computes."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any


def run_known(paper: str, out: Path | None, as_json: bool, **options: Any) -> None:
    """Compare and print; `options` are those of the `reproduce` of the paper's method."""
    from ..methods.known import brief, cells, columns, title
    from .output import console, interruptible, print_json, table
    from .progress import ProgressView

    if paper == "bars":
        from ..methods.bars.reproduce import reproduce
    else:
        from ..methods.nasbnn.reproduce import reproduce
    kept = f"finished rows are kept. To go on: {shlex.join(['bitnas', *sys.argv[1:]])}"
    with interruptible(kept if out is not None else "nothing is kept without --out"), ProgressView() as view:
        result = reproduce(out, **options, on_progress=view)
    if out is not None:
        from ..report import build

        build(out)
    if as_json:
        print_json(result)
        return
    screen = console()
    for found in result["tables"]:
        names, rows = brief(found) if found["timed"] else (columns(found), cells(found))
        # Costs and what is measured apart, to fit a terminal; a column without a single figure tells nothing.
        parts = [range(1, 5), range(5, len(names))] if found["timed"] else [range(1, len(names))]
        for part in parts:
            shown = [0, *(i for i in part if any(row[i] != "–" for row in rows))]
            screen.print(
                table([names[i] for i in shown], [[row[i] for i in shown] for row in rows], title=title(found))
            )
    screen.print("= equal to the known figure when rounded as that is", markup=False)
    used = {row["evidence"] for found in result["tables"] for row in found["rows"]}
    for name, meaning in result["evidence"].items():
        if name in used:
            screen.print(f"{name:>13}  {meaning}", markup=False)
    for finding in result["findings"]:
        screen.print(f"{finding['verdict']:>13}  {finding['statement']}", markup=False)
    counted = ", ".join(f"{number} {status}" for status, number in result["summary"].items())
    screen.print(f"\nknown figures: {counted}")
    if out is not None:
        screen.print(f"wrote {out / 'reproduction.json'}, reproduction.md and a CSV file for each table", markup=False)
        screen.print(f"report: {out / 'report.html'}", markup=False)

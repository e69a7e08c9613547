"""`bitnas reproduce bars --study ...`: what the parts of BARS are worth, on a data set."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def run_studies(out: Path, as_json: bool, studies: Sequence[str], **options: Any) -> None:
    """Make the studies in the folder `out`, print what they say, and write its report.

    Args:
        out: folder, made if missing; a study that was stopped there goes on.
        as_json: print the results as JSON: one object, or several by name.
        studies: names in `bitnas.methods.bars.study.STUDIES`.
        options: of `bitnas.methods.bars.study.study`.
    """
    from ..methods.bars.study import COST, STUDIES, study
    from ..report import build, numbers
    from .output import console, interruptible, print_json, table
    from .progress import ProgressView

    for name in studies:
        if name not in STUDIES:
            raise ValueError(f"--study: got {name!r}, wanted one of {', '.join(STUDIES)}")
    chosen = list(dict.fromkeys(studies))
    device_table = options.pop("table", None)
    if device_table is not None and COST not in chosen:
        raise ValueError("--latency-table says nothing about these studies; it is an option of --study cost")
    results: dict[str, dict[str, Any]] = {}
    again = shlex.join(["bitnas", *sys.argv[1:]])
    with interruptible(f"finished trainings are kept. To go on: {again}"), ProgressView() as view:

        def told(event: dict[str, Any]) -> None:
            if event["event"] != "study_plan":
                view(event)
                return
            view.say(
                f"{event['study']}: {event['searches']} searches and {event['trainings']} trainings at most, about "
                f"{event['seconds'] / 60:.0f} min with {event['workers']} at a time"
            )

        for name in chosen:
            own = {**options, "table": device_table} if name == COST else options
            results[name] = study(name, out, **own, on_progress=told)
    build(out)
    if as_json:
        print_json(results[chosen[0]] if len(chosen) == 1 else results)
        return
    screen = console()
    for name, result in results.items():
        rows = [
            [
                f"seed {row['seed']}: {row['label']}",
                numbers.percent(row["accuracy"]),
                numbers.count(row["loss_flops"]),
                f"{numbers.duration(row['latency_us'])} (IQR {numbers.duration(row['latency_iqr_us'])})",
                f"{100 * row['skips']:.0f} %",
                f"{100 * row['none']:.0f} %",
            ]
            for row in result["runs"]
        ]
        columns = ["network", "test accuracy", "FLOPs of its cells", "latency", "skips", "none"]
        screen.print(table(columns, rows, title=name))
        for verdict in result["verdicts"]:
            screen.print(verdict, markup=False)
        screen.print(f"\nwrote {out / f'{name}.json'}", markup=False)
    screen.print(f"report: {out / 'report.html'}", markup=False)

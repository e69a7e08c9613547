"""`bitnas compare`: the fronts of finished searches against each other, retrained alike and timed in turns."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished searches of the same data, at least two.")],
    out: Annotated[Path, typer.Option(help="Folder of the comparison, made if missing.")],
    train: Annotated[
        bool, typer.Option("--train/--no-train", help="Retrain every network from scratch, or take the runs' word.")
    ] = True,
    picks: Annotated[int, typer.Option(help="Networks of each front at most, spread over latency.")] = 6,
    recipe: Annotated[str | None, typer.Option(help="Of the retraining. [by the data set]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of each retraining. [by the data set]")] = None,
    rates: Annotated[
        str | None, typer.Option(help="Learning rates, the best on validation images counts: 0.01,0.003.")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Images per call that is timed. [the first run's]")] = None,
    threads: Annotated[int | None, typer.Option(help="Threads of the timing. [the first run's]")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes that train. [the first run's]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Put the fronts of width evolution, NAS-BNN and BARS on one accuracy-against-measured-latency footing.

    The same command goes on after a stop.
    """
    from ..methods.compare_methods import compare as compare_methods
    from ..report import build, numbers
    from .output import console, floats, interruptible, print_json, table
    from .progress import ProgressView

    again = shlex.join(["bitnas", *sys.argv[1:]])
    with interruptible(f"finished trainings are kept. To go on: {again}"), ProgressView() as view:
        result = compare_methods(
            runs,
            out,
            picks=picks,
            train=train,
            recipe=recipe,
            epochs=epochs,
            rates=floats("--rates", rates),
            batch=batch,
            threads=threads,
            workers=workers,
            on_progress=view,
        )
    build(out)
    if json:
        print_json(result)
        return
    rows = []
    for row in result["rows"]:
        accuracy = numbers.percent(row["accuracy"])
        if "accuracy_low" in row:
            accuracy += f" ({100 * row['accuracy_low']:.1f}–{100 * row['accuracy_high']:.1f})"
        latency = f"{numbers.duration(row['latency_us'])} (IQR {numbers.duration(row['latency_iqr_us'])})"
        rows.append([row["label"], accuracy, latency, numbers.count(row["bops"]), numbers.count(row["flops"])])
    screen = console()
    screen.print(table(["network", "accuracy", "latency", "BOPs", "FLOPs"], rows))
    for verdict in result["verdicts"]:
        screen.print(verdict, markup=False)
    screen.print(f"\nwrote {out / 'compare.json'}; report: {out / 'report.html'}", markup=False)

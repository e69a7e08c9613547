"""`bitnas reproduce`: a paper's tables as printed beside ours, and the test of its claim."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

PAPERS = ("shen2019",)


def _seeds(text: str) -> int | list[int]:
    """A number of seeds, or with commas the seeds themselves."""
    try:
        found = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"--seeds: got {text!r}, wanted a number such as 3, or seeds such as 3,4,5") from None
    return found if "," in text else found[0]


def reproduce(
    paper: Annotated[str, typer.Argument(help="Which paper: shen2019.")],
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, Markdown and CSV, made if missing.")] = None,
    table: Annotated[int | None, typer.Option(help="1 or 2. Default: both.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only the row of this key; may be repeated.")] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time the frozen networks and their float twins here.")
    ] = True,
    batch: Annotated[int, typer.Option(help="Images per call that is timed.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the timing.")] = 1,
    data: Annotated[
        str | None, typer.Option(help="Data set: reports our accuracy of the trained networks in the folder.")
    ] = None,
    retime: Annotated[bool, typer.Option("--retime", help="Time rows of the folder again that were noisy.")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="Train what is missing by the paper's recipe: hours to days, resumable.")
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="Of training, in place of the paper's.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Of --train, or of the claim's runoff and test.")] = None,
    base_width: Annotated[float, typer.Option(help="With --train or --claim: multiplies base widths.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --train: of training.")] = 0,
    claim: Annotated[
        bool,
        typer.Option("--claim", help="Instead of the tables: do searched widths beat uniform ones on --data? [digits]"),
    ] = False,
    seeds: Annotated[
        str, typer.Option(help="With --claim: how many searches, each with its own split, or which: 3,4,5.")
    ] = "3",
    budget: Annotated[
        float | None,
        typer.Option(help="With --claim: the most FLOPs of a network, in those of the un-widened one."),
    ] = None,
    repeats: Annotated[int, typer.Option(help="With --claim: trainings of each winner and each partner.")] = 8,
    population: Annotated[int | None, typer.Option(help="With --claim: of each search.")] = None,
    generations: Annotated[int | None, typer.Option(help="With --claim: of each search.")] = None,
    workers: Annotated[int | None, typer.Option(help="With --claim: processes that train.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recompute the tables of a paper, mark what is equal and what is not, and find their misprints.

    With --claim, search on a data set and let the winners meet uniform widths of their cost on unseen images.
    The same command goes on after a stop, if it has a folder.
    """
    from .output import interruptible, print_json
    from .progress import ProgressView

    if paper not in PAPERS:
        raise ValueError(f"paper: got {paper!r}, wanted one of {', '.join(PAPERS)}")
    if train and (data is None or out is None or table is None):
        raise ValueError("--train needs --data, --out and --table: networks are trained on that data set and kept")
    if claim:
        if out is None:
            raise ValueError("--claim needs --out, a folder for its searches")
        changed = {
            "workers": workers,
            "budget": budget,
            "population": population,
            "generations": generations,
            "recipe": recipe,
            "base_width": None if base_width == 1 else base_width,
        }
        settings = {name: value for name, value in changed.items() if value is not None}
        _claim(out, json, data=data or "digits", seeds=_seeds(seeds), repeats=repeats, epochs=epochs, settings=settings)
        return
    from ..methods.width.reproduce import reproduce as run

    kept = f"finished rows are kept. To go on: {shlex.join(['bitnas', *sys.argv[1:]])}"
    with interruptible(kept if out is not None else "nothing is kept without --out"), ProgressView() as view:
        result = run(
            out,
            tables=(1, 2) if table is None else (table,),
            rows=row or None,
            latency=latency,
            batch=batch,
            threads=threads,
            retime=retime,
            data=data,
            train=train,
            recipe=recipe,
            epochs=epochs,
            seed=seed,
            base_width=base_width,
            on_progress=view,
        )
    if out is not None:
        from ..report import build

        build(out)
    if json:
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


def _claim(out: Path, as_json: bool, **options: Any) -> None:
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

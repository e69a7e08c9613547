"""`bitnas search` and `bitnas resume`: the width search in a run folder, started and gone on with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..methods.width import SearchResult


def search(
    out: Annotated[Path, typer.Option(help="Run folder, made if missing.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="Network with a width code: vgg_small or resnet18. Default: that of the data set, or vgg_small."
        ),
    ] = None,
    data: Annotated[str, typer.Option(help="Data set: a name of `bitnas data list`, a folder or a file.")] = "digits",
    population: Annotated[int | None, typer.Option(help="Candidates per generation. [paper: 32]")] = None,
    generations: Annotated[int | None, typer.Option(help="How many generations. [paper: 50]")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs of a candidate.")] = None,
    parent_epochs: Annotated[int | None, typer.Option(help="Training epochs of the widest network.")] = None,
    seed: Annotated[int, typer.Option(help="Decides the split, the candidates and the strategy.")] = 0,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="fitness (the paper's); accuracy, within a budget; or two and more of accuracy, ops, flops, bops, "
            "memory, latency."
        ),
    ] = None,
    choices: Annotated[
        str | None, typer.Option(help="Ratios allowed for each width. [paper: 0.25,0.5,1,2,3,4]")
    ] = None,
    fitness_lambda: Annotated[
        float | None, typer.Option(help="Accuracy points one un-widened network of FLOPs must bring. [paper: 4]")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Largest FLOPs of a candidate, in those of the un-widened network.")
    ] = None,
    latency_weight: Annotated[
        float | None, typer.Option(help="Accuracy points one un-widened network of latency must bring. [paper: 0]")
    ] = None,
    latency_budget: Annotated[
        float | None, typer.Option(help="Largest latency of a candidate, in us per batch.")
    ] = None,
    latency_source: Annotated[
        str | None, typer.Option(help="measured: time each candidate whole; table: add up what `latency build` timed.")
    ] = None,
    latency_table: Annotated[Path | None, typer.Option(help="File of the table. Default: the user's own.")] = None,
    base_width: Annotated[float | None, typer.Option(help="Multiplies every base width.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training recipe of the candidates.")] = None,
    inherit: Annotated[
        bool, typer.Option("--inherit/--no-inherit", help="Start candidates from slices of the widest network.")
    ] = True,
    latency_batch: Annotated[int | None, typer.Option(help="Batch size that latency is measured with.")] = None,
    latency_threads: Annotated[int | None, typer.Option(help="Threads that latency is measured with.")] = None,
    device: Annotated[str | None, typer.Option(help="Where networks are trained: cpu or cuda.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes that train candidates; 0 trains in this one; ray or ray://HOST:PORT: a cluster."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a candidate is given up.")] = None,
    memory_limit: Annotated[float | None, typer.Option(help="GiB of memory that a worker may hold.")] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Then retrain the best beside uniform widths of equal cost.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the front (and the study) as JSON.")] = False,
) -> None:
    """Search widths and write DIR/front.json and DIR/report.html.

    Options left out take the preset of the data set where there is one, and the paper's values otherwise. Every
    evaluation is written down once: the same command, or `bitnas resume DIR`, goes on after a stop to the same
    result.
    """
    from ..methods import width
    from .output import floats, names

    given = {
        "model": model,
        "population": population,
        "generations": generations,
        "epochs": epochs,
        "parent_epochs": parent_epochs,
        "objectives": names(objectives),
        "choices": floats("--choices", choices),
        "fitness_lambda": fitness_lambda,
        "budget": budget,
        "latency_weight": latency_weight,
        "latency_budget": latency_budget,
        "latency_source": latency_source or (None if latency_table is None else "table"),
        "latency_table": None if latency_table is None else str(latency_table.absolute()),
        "base_width": base_width,
        "recipe": recipe,
        "device": device,
        "latency_batch": latency_batch,
        "latency_threads": latency_threads,
        "workers": _workers(workers),
        "timeout": timeout,
        "memory_limit": memory_limit,
    }
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    config = width.preset(data, seed=seed, inherit=inherit, **settings)
    run_to_report(lambda view: width.search(config, out, on_progress=view), out, study=study, json=json)


def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a search that was stopped, or is to be continued.")],
    generations: Annotated[int | None, typer.Option(help="How many in all, to go on beyond the first plan.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that train candidates, or ray or ray://HOST:PORT.")
    ] = None,
    study: Annotated[
        bool, typer.Option("--study", help="Then retrain the best beside uniform widths of equal cost.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the front (and the study) as JSON.")] = False,
) -> None:
    """Go on with the search in DIR. What was measured is read from its journal, never measured again."""
    from ..methods import width

    run_to_report(
        lambda view: width.resume(run_dir, generations=generations, workers=_workers(workers), on_progress=view),
        run_dir,
        study=study,
        json=json,
    )


def _workers(text: str | None) -> int | str | None:
    """A number of processes, or the name of a cluster, which the settings check."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def run_to_report(start: Any, out: Path, *, study: bool, json: bool) -> None:
    """Search, study if asked, report, print. `start` takes the progress view."""
    from ..methods import width
    from ..report import build, findings
    from ..report.load import load_run
    from .output import console, interruptible, networks_table, print_json
    from .progress import ProgressView

    again = f"bitnas resume {shlex.quote(str(out))}{' --study' if study else ''}"
    how = f"To go on: {again} (or, if it had not started yet, the same command again)"
    with interruptible(f"nothing measured is lost. {how}"), ProgressView() as view:
        result: SearchResult = start(view)
        if study:
            width.study(out, on_progress=view)
        path = build(out)
    run = load_run(out)
    if json:
        study_part = (
            {"study": {"networks": [n.values for n in run.networks], "claims": run.claims}} if run.networks else {}
        )
        print_json({"folder": str(out), "report": str(path), "front": result.front, **study_part})
    else:
        screen = console()
        screen.print(networks_table(run.networks or run.front))
        screen.print(findings.headline(run), markup=False)
        screen.print(f"report: {path}", markup=False)

"""`bitnas reproduce`: what a paper prints beside ours, and the tests of its claims, by one module for each paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PAPERS = ("shen2019", "nasbnn", "bars")


def _seeds(text: str) -> int | list[int]:
    """A number of seeds, or with commas the seeds themselves."""
    try:
        found = [int(part) for part in text.rstrip(",").split(",")]
    except ValueError:
        raise ValueError(f"--seeds: got {text!r}, wanted a number such as 3, or seeds such as 3,4,5") from None
    return found if "," in text else found[0]


def reproduce(
    paper: Annotated[str, typer.Argument(help="Which paper: shen2019, nasbnn or bars.")],
    out: Annotated[Path | None, typer.Option(help="Folder for JSON, Markdown and CSV, made if missing.")] = None,
    row: Annotated[list[str] | None, typer.Option(help="Only the row of this key; may be repeated.")] = None,
    latency: Annotated[
        bool, typer.Option("--latency/--no-latency", help="Time the frozen networks and their float twins here.")
    ] = True,
    batch: Annotated[int, typer.Option(help="Images per call that is timed.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads of the timing.")] = 1,
    retime: Annotated[bool, typer.Option("--retime", help="Time rows of the folder again that were noisy.")] = False,
    data: Annotated[
        str | None,
        typer.Option(help="Data set: of the trained networks in the folder, and of the claims and studies [digits]."),
    ] = None,
    table: Annotated[int | None, typer.Option(help="shen2019: 1 or 2. Default: both.")] = None,
    train: Annotated[
        bool,
        typer.Option("--train", help="shen2019: train what is missing by its recipe: hours to days, resumable."),
    ] = False,
    recipe: Annotated[str | None, typer.Option(help="shen2019: of training, in place of the paper's.")] = None,
    base_width: Annotated[float, typer.Option(help="With --train or --claim: multiplies base widths.")] = 1.0,
    seed: Annotated[int, typer.Option(help="With --train: of training.")] = 0,
    claim: Annotated[
        bool,
        typer.Option(
            "--claim", help="shen2019, instead of the tables: do searched widths beat uniform ones on --data?"
        ),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(help="With --claim: the most FLOPs of a network, in those of the un-widened one."),
    ] = None,
    population: Annotated[int | None, typer.Option(help="With --claim: of each search.")] = None,
    generations: Annotated[int | None, typer.Option(help="With --claim: of each search.")] = None,
    ranking: Annotated[
        bool, typer.Option("--ranking", help="nasbnn: do a supernet's subnets rank like the same trained alone?")
    ] = False,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="nasbnn: what each of the three training strategies is worth.")
    ] = False,
    against: Annotated[
        bool, typer.Option("--against", help="nasbnn: its front beside random search and the width search.")
    ] = False,
    study: Annotated[
        list[str] | None,
        typer.Option(help="bars: cells, guards, cost or parts, on --data with --seeds; may be repeated."),
    ] = None,
    search_epochs: Annotated[int | None, typer.Option(help="With --study: of each search. [the preset's]")] = None,
    latency_table: Annotated[
        Path | None, typer.Option(help="With --study cost: device table; without one it is built in the folder.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Of --train, of a claim's runoff and test, of the networks of --ranking, --against or --study."
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Of --claim, --ablation, --against or --study: how many, each with its own split, or which: 3,4,5. [3]"
        ),
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(help="Of --claim or --ranking: trainings of each network that is compared.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Of --claim or a study: processes that train.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Recompute what a paper prints, mark what is equal and what is not, and find its misprints.

    With --claim, --ranking, --ablation, --against or --study, train and search on a data set to test what a paper
    claims. The same command goes on after a stop, if it has a folder.
    """
    if paper not in PAPERS:
        raise ValueError(f"paper: got {paper!r}, wanted one of {', '.join(PAPERS)}")
    studies = {"ranking": ranking, "ablation": ablation, "against": against}
    common: dict[str, Any] = {"rows": row or None, "batch": batch, "threads": threads, "retime": retime}
    of_bars = {"study": study, "search_epochs": search_epochs, "latency_table": latency_table}
    of_widths = {"table": table, "train": train, "recipe": recipe, "claim": claim, "budget": budget, "seed": seed}
    of_widths |= {"population": population, "generations": generations, "base_width": base_width != 1}
    if paper == "bars":
        _refuse(paper, of_widths | studies | {"repeats": repeats})
        if study:
            from .reproduce_bars import run_studies as run_studies_of_bars

            if out is None:
                raise ValueError("--study needs --out, a folder for what it trains")
            settings: dict[str, Any] = {"data": data, "epochs": epochs, "search_epochs": search_epochs}
            settings |= {"workers": workers, "table": latency_table, "seeds": seeds and _seeds(seeds)}
            run_studies_of_bars(out, json, study, **{n: v for n, v in settings.items() if v is not None})
            return
        _refuse(paper, {"data": data, "epochs": epochs, "workers": workers, "seeds": seeds})
        _refuse(paper, {name: value for name, value in of_bars.items() if name != "study"})
        from .reproduce_known import run_known

        run_known(paper, out, json, latency=latency, **common)
        return
    _refuse(paper, of_bars)
    if paper == "nasbnn":
        _refuse(paper, of_widths)
        if any(studies.values()):
            from .reproduce_nasbnn import run_studies

            if out is None:
                raise ValueError("--ranking, --ablation and --against need --out, a folder for what they train")
            options: dict[str, Any] = {"data": data, "epochs": epochs, "repeats": repeats, "workers": workers}
            chosen = {name: value for name, value in options.items() if value is not None}
            chosen |= {} if seeds is None else {"seeds": _seeds(seeds)}
            run_studies(out, json, **studies, **chosen)
            return
        _refuse(paper, {"data": data, "epochs": epochs, "repeats": repeats, "workers": workers, "seeds": seeds})
        from .reproduce_known import run_known

        run_known(paper, out, json, latency=latency, **common)
        return
    _refuse(paper, studies)
    from . import reproduce_shen2019

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
        reproduce_shen2019.run_claim(
            out,
            json,
            data=data or "digits",
            seeds=_seeds(seeds or "3"),
            repeats=8 if repeats is None else repeats,
            epochs=epochs,
            settings=settings,
        )
        return
    if train and (data is None or out is None or table is None):
        raise ValueError("--train needs --data, --out and --table: networks are trained on that data set and kept")
    reproduce_shen2019.run_tables(
        out,
        json,
        tables=(1, 2) if table is None else (table,),
        latency=latency,
        data=data,
        train=train,
        recipe=recipe,
        epochs=epochs,
        seed=seed,
        base_width=base_width,
        **common,
    )


def _refuse(paper: str, options: dict[str, Any]) -> None:
    """An option that says nothing about a paper is a mistake, not something to leave unsaid."""
    for name, value in options.items():
        if value not in (None, False, 0, []):
            raise ValueError(f"--{name.replace('_', '-')} says nothing about {paper} here; see bitnas reproduce --help")

"""`bitnas search` and `bitnas resume`: a search in a run folder by one of the methods, started and gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..report.records import Run

# Options that only one method has, by what they set, and what the other method has in their place.
_WIDTH = {
    "model": "its networks are those of a space (--space)",
    "epochs": "its candidates are not trained; --supernet-epochs sets the supernet's",
    "parent_epochs": "it has no parent; --supernet-epochs sets the supernet's",
    "choices": "its choices are in a space (--space FILE.json)",
    "fitness_lambda": "it has no fitness; see --objectives",
    "budget": "its limit is --ops-window",
    "latency_weight": "it has no fitness; use --objectives accuracy,latency",
    "base_width": "its widths are in a space (--space FILE.json)",
    "inherit": "its candidates always take the supernet's weights",
}
_NASBNN = {
    "space": "its choices are --model and --choices",
    "supernet": "it trains a parent",
    "supernet_epochs": "it trains a parent; use --parent-epochs",
    "bi_teacher": "it has no supernet",
    "bi_transformation": "it has no supernet",
    "weight_normalization": "it has no supernet",
    "consistency": "it has no supernet",
    "mutations": "its generations are all of --population",
    "crossovers": "its generations are all of --population",
    "mutation_rate": "it mutates one ratio of each child on average",
    "ops_window": "its limit is --budget",
    "bucket": "it keeps no archive",
    "calibration_batches": "it trains its candidates",
    "calibration_size": "it trains its candidates",
}


def search(
    out: Annotated[Path, typer.Option(help="Run folder, made if missing.")],
    method: Annotated[
        str,
        typer.Option(
            help="width: widths of a network, each candidate trained (Shen et al. 2019). nasbnn: subnets of a binary "
            "supernet (Lin et al. 2024). Options that only one has name it first."
        ),
    ] = "width",
    data: Annotated[str, typer.Option(help="Data set: a name of `bitnas data list`, a folder or a file.")] = "digits",
    population: Annotated[
        int | None,
        typer.Option(help="Candidates per generation; for nasbnn of the first. [papers: 32; 512]"),
    ] = None,
    generations: Annotated[int | None, typer.Option(help="How many generations. [papers: 50; 21]")] = None,
    seed: Annotated[int, typer.Option(help="Decides the split, the candidates and the strategy.")] = 0,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="The paper's: fitness for width, archive for nasbnn. For width also accuracy, within a budget. For "
            "both two and more of accuracy, ops, flops, bops, memory, latency."
        ),
    ] = None,
    latency_budget: Annotated[
        float | None, typer.Option(help="Largest latency of a candidate, in us per batch.")
    ] = None,
    latency_source: Annotated[
        str | None, typer.Option(help="measured: time each candidate whole; table: add up what `latency build` timed.")
    ] = None,
    latency_table: Annotated[Path | None, typer.Option(help="File of the table. Default: the user's own.")] = None,
    latency_batch: Annotated[int | None, typer.Option(help="Batch size that latency is measured with.")] = None,
    latency_threads: Annotated[int | None, typer.Option(help="Threads that latency is measured with.")] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Training recipe of the candidates; for nasbnn of the supernet.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where networks are trained and judged: cpu or cuda.")] = None,
    workers: Annotated[
        str | None,
        typer.Option(help="Processes that judge candidates; 0: this one; ray or ray://HOST:PORT: a cluster."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds after which a candidate is given up.")] = None,
    memory_limit: Annotated[float | None, typer.Option(help="GiB of memory that a worker may hold.")] = None,
    study: Annotated[
        bool,
        typer.Option(
            "--study",
            help="Then, for width, retrain the best beside uniform widths of equal cost; for nasbnn, freeze subnets of "
            "the front with inherited and with fine-tuned weights.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the front (and the study) as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="width: network with a width code, vgg_small or resnet18. Default: that of the data set, or vgg_small."
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="width: training epochs of a candidate.")] = None,
    parent_epochs: Annotated[int | None, typer.Option(help="width: training epochs of the widest network.")] = None,
    choices: Annotated[
        str | None, typer.Option(help="width: ratios allowed for each width. [paper: 0.25,0.5,1,2,3,4]")
    ] = None,
    fitness_lambda: Annotated[
        float | None,
        typer.Option(help="width: accuracy points one un-widened network of FLOPs must bring. [paper: 4]"),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="width: largest FLOPs of a candidate, in those of the un-widened network.")
    ] = None,
    latency_weight: Annotated[
        float | None,
        typer.Option(help="width: accuracy points one un-widened network of latency must bring. [paper: 0]"),
    ] = None,
    base_width: Annotated[float | None, typer.Option(help="width: multiplies every base width.")] = None,
    inherit: Annotated[
        bool | None,
        typer.Option(
            "--inherit/--no-inherit", help="width: start candidates from slices of the widest network. [inherit]"
        ),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="nasbnn: imagenet, cifar, small, or a file.json. Default: by the data.")
    ] = None,
    supernet: Annotated[
        Path | None, typer.Option(help="nasbnn: file of a trained supernet of this space and data, not to train one.")
    ] = None,
    supernet_epochs: Annotated[int | None, typer.Option(help="nasbnn: training epochs of the supernet.")] = None,
    bi_teacher: Annotated[
        bool | None, typer.Option("--bi-teacher/--no-bi-teacher", help="nasbnn: a teacher with float weights. [on]")
    ] = None,
    bi_transformation: Annotated[
        bool | None,
        typer.Option("--bi-transformation/--no-bi-transformation", help="nasbnn: learned maps to binary weights. [on]"),
    ] = None,
    weight_normalization: Annotated[
        bool | None,
        typer.Option(
            "--weight-normalization/--no-weight-normalization", help="nasbnn: standardised binary weights. [on]"
        ),
    ] = None,
    consistency: Annotated[
        float | None, typer.Option(help="nasbnn: weight of the loss between binary and float weights. [paper: 0]")
    ] = None,
    mutations: Annotated[int | None, typer.Option(help="nasbnn: mutants per later generation. [paper: 128]")] = None,
    crossovers: Annotated[int | None, typer.Option(help="nasbnn: crossings per later generation. [paper: 128]")] = None,
    mutation_rate: Annotated[
        float | None, typer.Option(help="nasbnn: probability that a mutant's part is drawn anew. [paper: 0.2]")
    ] = None,
    ops_window: Annotated[
        str | None, typer.Option(help="nasbnn: least and most OPs of a candidate. [paper: 20e6,180e6]")
    ] = None,
    bucket: Annotated[float | None, typer.Option(help="nasbnn: OPs of one bucket of the archive. [paper: 2e6]")] = None,
    calibration_batches: Annotated[
        int | None, typer.Option(help="nasbnn: batches that batch norm is measured on. [paper: 10]")
    ] = None,
    calibration_size: Annotated[int | None, typer.Option(help="nasbnn: images in each. [paper: 2048]")] = None,
) -> None:
    """Search networks and write DIR/front.json and DIR/report.html.

    Options left out take the preset of the data set where there is one. Otherwise they are the paper's, and for
    nasbnn space, window and sizes follow from the images. Every evaluation is written down once: the same command, or
    `bitnas resume DIR`, goes on after a stop to the same result.
    """
    from .output import floats, names

    shared = {
        "population": population,
        "generations": generations,
        "objectives": names(objectives),
        "latency_budget": latency_budget,
        "latency_source": latency_source or (None if latency_table is None else "table"),
        "latency_table": None if latency_table is None else str(latency_table.absolute()),
        "latency_batch": latency_batch,
        "latency_threads": latency_threads,
        "recipe": recipe,
        "device": device,
        "workers": _workers(workers),
        "timeout": timeout,
        "memory_limit": memory_limit,
    }
    only_width = {
        "model": model,
        "epochs": epochs,
        "parent_epochs": parent_epochs,
        "choices": floats("--choices", choices),
        "fitness_lambda": fitness_lambda,
        "budget": budget,
        "latency_weight": latency_weight,
        "base_width": base_width,
        "inherit": inherit,
    }
    only_nasbnn = {
        "space": space,
        "supernet": supernet,
        "supernet_epochs": supernet_epochs,
        "bi_teacher": bi_teacher,
        "bi_transformation": bi_transformation,
        "weight_normalization": weight_normalization,
        "consistency": consistency,
        "mutations": mutations,
        "crossovers": crossovers,
        "mutation_rate": mutation_rate,
        "ops_window": floats("--ops-window", ops_window),
        "bucket": bucket,
        "calibration_batches": calibration_batches,
        "calibration_size": calibration_size,
    }
    if method == "width":
        _refuse(only_nasbnn, _NASBNN, "nasbnn", "width")
        _search_widths(data, {**shared, **only_width, "seed": seed}, out, study=study, json=json)
    elif method == "nasbnn":
        _refuse(only_width, _WIDTH, "width", "nasbnn")
        _search_subnets(data, {**shared, **only_nasbnn, "seed": seed}, out, study=study, json=json)
    else:
        raise ValueError(f"--method: got {method!r}, wanted width or nasbnn")


def resume(
    run_dir: Annotated[Path, typer.Argument(help="Folder of a search that was stopped, or is to be continued.")],
    generations: Annotated[int | None, typer.Option(help="How many in all, to go on beyond the first plan.")] = None,
    workers: Annotated[
        str | None, typer.Option(help="Processes that judge candidates, or ray or ray://HOST:PORT.")
    ] = None,
    study: Annotated[bool, typer.Option("--study", help="Then study the best; see `bitnas search`.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the front (and the study) as JSON.")] = False,
) -> None:
    """Go on with the search in DIR. What was measured is read from its journal, never measured again."""
    from ..methods.run_folder import read_method

    options: dict[str, Any] = {"generations": generations, "workers": _workers(workers)}
    method = read_method(run_dir)
    if method == "width":
        from ..methods import width

        run_to_report(
            lambda view: width.resume(run_dir, **options, on_progress=view),
            run_dir,
            study=width.study if study else None,
            json=json,
        )
    elif method == "nasbnn":
        from ..methods import nasbnn

        run_to_report(
            lambda view: nasbnn.resume(run_dir, **options, on_progress=view),
            run_dir,
            study=_deploy if study else None,
            json=json,
        )
    else:
        raise ValueError(f"{run_dir} holds a search by the method {method}, which this version of bitnas does not know")


def _refuse(given: Mapping[str, Any], instead: Mapping[str, str], owner: str, method: str) -> None:
    """Name an option of another method, and what this one has."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{_option(name, value)} is an option of --method {owner}; leave it out for {method}: {instead[name]}"
            )


def _option(name: str, value: Any) -> str:
    """An option as it was given."""
    return f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _workers(text: str | None) -> int | str | None:
    """A number of processes, or the name of a cluster, which the settings check."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _search_widths(data: str, values: dict[str, Any], out: Path, *, study: bool, json: bool) -> None:
    from ..methods import width

    config = width.preset(data, **_given(values))
    run_to_report(
        lambda view: width.search(config, out, on_progress=view), out, study=width.study if study else None, json=json
    )


def _search_subnets(data: str, values: dict[str, Any], out: Path, *, study: bool, json: bool) -> None:
    from ..methods import nasbnn
    from ..methods.nasbnn.config import STRATEGIES

    settings = _given(values)
    supernet, window = settings.pop("supernet", None), settings.pop("ops_window", None)
    if window is not None:
        if len(window) != 2:
            raise ValueError(f"--ops-window: got {len(window)} numbers, wanted the least and the most OPs: 20e6,180e6")
        settings |= {"ops_low": window[0], "ops_high": window[1]}
    if supernet is not None:
        settings["strategies"] = _strategies(supernet, settings)
    else:
        settings["strategies"] = {name: settings.pop(name) for name in STRATEGIES if name in settings}
    config = nasbnn.preset(data, **settings)
    run_to_report(
        lambda view: nasbnn.search(config, out, supernet=supernet, on_progress=view),
        out,
        study=_deploy if study else None,
        json=json,
    )


def _strategies(supernet: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a given supernet was trained with; an option of its training has come too late."""
    from ..methods.nasbnn.config import STRATEGIES

    for name in ("supernet_epochs", "recipe", *STRATEGIES):
        if name in settings:
            raise ValueError(
                f"{_option(name, settings[name])} is of the training of a supernet, and --supernet gives one that is "
                "trained; leave one of them out"
            )
    if supernet.is_dir():
        raise ValueError(
            f"--supernet: {supernet} is a folder, wanted a file such as {supernet / 'supernet.safetensors'}"
        )
    from ..methods.nasbnn.training import load_supernet

    return load_supernet(supernet).strategies.to_dict()


def _deploy(out: Path, *, on_progress: Any) -> None:
    from ..methods.nasbnn.deploy import deploy

    deploy(out, on_progress=on_progress)


def run_to_report(start: Any, out: Path, *, study: Any, json: bool) -> None:
    """Search, study if asked, report, print. `start` takes the progress view, `study` the folder and the view."""
    from ..report import build
    from ..report.load import load_run
    from .output import console, interruptible, print_json
    from .progress import ProgressView

    again = f"bitnas resume {shlex.quote(str(out))}{' --study' if study else ''}"
    how = f"To go on: {again} (or, if it had not started yet, the same command again)"
    with interruptible(f"nothing measured is lost. {how}"), ProgressView() as view:
        result = start(view)
        if study:
            study(out, on_progress=view)
        path = build(out)
    run = load_run(out)
    if json:
        study_part = (
            {"study": {"networks": [n.values for n in run.networks], "claims": run.claims}} if run.networks else {}
        )
        print_json({"folder": str(out), "report": str(path), "front": result.front, **study_part})
    else:
        screen = console()
        screen.print(_table(run))
        screen.print(_headline(run), markup=False)
        screen.print(f"report: {path}", markup=False)


def _table(run: Run) -> Any:
    from .output import networks_table, subnets_table

    shown = run.networks or run.front
    return subnets_table(shown) if run.config.get("method") == "nasbnn" else networks_table(shown)


def _headline(run: Run) -> str:
    from ..report import findings, subnets

    return subnets.headline(run) if run.config.get("method") == "nasbnn" else findings.headline(run)

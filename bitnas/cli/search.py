"""`bitnas search` and `bitnas resume`: a search in a run folder by one of the methods, started and gone on with."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..report.records import Run

METHODS = ("width", "nasbnn", "bars")

# For each method the options that it does not have, by what they set, and what it has in their place.
_NO_SUPERNET = {
    "supernet": "it trains a parent",
    "supernet_epochs": "it trains a parent; use --parent-epochs",
    "bi_teacher": "it has no supernet",
    "bi_transformation": "it has no supernet",
    "weight_normalization": "it has no supernet",
    "consistency": "it has no supernet",
}
_NO_GRADIENT = {
    "samples": "its candidates are those of --population and --generations",
    "sample_layout": "it draws nothing from a supernet",
    "train_epochs": "use --epochs",
    "controller": "it searches without a gradient",
    "cost": "its costs are --objectives",
    "flops_budget": "its limit is --budget",
}
_REFUSED: dict[str, dict[str, str]] = {
    "width": {
        **_NO_SUPERNET,
        **_NO_GRADIENT,
        "space": "its choices are --model and --choices",
        "mutations": "its generations are all of --population",
        "crossovers": "its generations are all of --population",
        "mutation_rate": "it mutates one ratio of each child on average",
        "ops_window": "its limit is --budget",
        "bucket": "it keeps no archive",
        "calibration_batches": "it trains its candidates",
        "calibration_size": "it trains its candidates",
    },
    "nasbnn": {
        **_NO_GRADIENT,
        "train_epochs": "its candidates are not trained",
        "flops_budget": "its limit is --ops-window",
        "model": "its networks are those of a space (--space)",
        "epochs": "its candidates are not trained; --supernet-epochs sets the supernet's",
        "parent_epochs": "it has no parent; --supernet-epochs sets the supernet's",
        "choices": "its choices are in a space (--space FILE.json)",
        "fitness_lambda": "it has no fitness; see --objectives",
        "budget": "its limit is --ops-window",
        "latency_weight": "it has no fitness; use --objectives accuracy,latency",
        "base_width": "its widths are in a space (--space FILE.json)",
        "inherit": "its candidates always take the supernet's weights",
    },
    "bars": {
        **_NO_SUPERNET,
        "supernet": "its supernet is the search",
        "supernet_epochs": "use --epochs",
        "population": "use --samples, the networks derived from the supernet",
        "generations": "it derives its networks at once; use --samples",
        "mutations": "it searches by gradient",
        "crossovers": "it searches by gradient",
        "mutation_rate": "it searches by gradient",
        "ops_window": "its budget is --flops-budget",
        "bucket": "it keeps no archive",
        "model": "its networks are those of a space (--space)",
        "parent_epochs": "it has no parent; --epochs sets the supernet's",
        "choices": "its choices are in a space (--space FILE.json)",
        "fitness_lambda": "it has no fitness; see --cost",
        "budget": "its budgets are --flops-budget and --latency-budget",
        "latency_weight": "use --cost latency with --latency-budget",
        "base_width": "its channels are in a space (--space FILE.json)",
        "inherit": "--train-epochs 0 judges with the supernet's weights",
    },
}


def search(
    out: Annotated[Path, typer.Option(help="Run folder, made if missing.")],
    method: Annotated[
        str,
        typer.Option(
            help="width: widths of a network, each candidate trained (Shen et al. 2019). nasbnn: subnets of a binary "
            "supernet (Lin et al. 2024). bars: cells, widths and depths by gradient (Zhao et al. 2020). Options that "
            "not all have name those that do."
        ),
    ] = "width",
    data: Annotated[str, typer.Option(help="Data set: a name of `bitnas data list`, a folder or a file.")] = "digits",
    population: Annotated[
        int | None,
        typer.Option(help="width, nasbnn: candidates per generation; for nasbnn of the first. [papers: 32; 512]"),
    ] = None,
    generations: Annotated[
        int | None, typer.Option(help="width, nasbnn: how many generations. [papers: 50; 21]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the split, the candidates and the strategy.")] = 0,
    split: Annotated[
        str | None,
        typer.Option(
            help="Shares of the images that train and that judge, 0.6,0.2; the rest is never seen. Searches that "
            "`bitnas compare` is to compare need one split."
        ),
    ] = None,
    objectives: Annotated[
        str | None,
        typer.Option(
            help="The paper's: fitness for width, archive for nasbnn. For width also accuracy, within a budget. For "
            "all two and more of accuracy, ops, flops, bops, memory, latency; for bars they decide the front."
        ),
    ] = None,
    latency_budget: Annotated[
        float | None,
        typer.Option(
            help="Largest latency of a candidate, in us per batch. bars: of the expected one in the loss (implies "
            "--cost latency)."
        ),
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
            "the front with inherited and with fine-tuned weights; for bars, retrain and freeze networks of the front.",
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the front (and the study) as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option(
            help="width: network with a width code, vgg_small or resnet18. Default: that of the data set, or vgg_small."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="width: training epochs of a candidate. bars: of the supernet. [bars paper: 50]")
    ] = None,
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
        str | None, typer.Option(help="nasbnn, bars: imagenet, cifar, small, or a file.json. Default: by the data.")
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
        int | None, typer.Option(help="nasbnn, bars: batches that batch norm is measured on. [paper: 10]")
    ] = None,
    calibration_size: Annotated[int | None, typer.Option(help="nasbnn, bars: images in each. [paper: 2048]")] = None,
    samples: Annotated[
        int | None, typer.Option(help="bars: networks derived from the supernet and judged. [paper: 8]")
    ] = None,
    sample_layout: Annotated[
        bool | None,
        typer.Option(
            "--sample-layout/--no-sample-layout",
            help="bars: draw widths and depths too, not the likeliest. [paper: no]",
        ),
    ] = None,
    train_epochs: Annotated[
        int | None,
        typer.Option(help="bars: epochs of training each derived network; 0 judges with the supernet's weights."),
    ] = None,
    cost: Annotated[
        str | None,
        typer.Option(
            help="bars: what the loss holds beside accuracy: none, flops, latency (of a table), or both. Default: that "
            "of the budgets that are given."
        ),
    ] = None,
    flops_budget: Annotated[
        float | None,
        typer.Option(help="bars: expected FLOPs from which the loss grows (implies --cost flops). [paper: 5e8]"),
    ] = None,
    controller: Annotated[
        Path | None,
        typer.Option(help="bars: file.json of settings of the training: optimizers, relaxations, guards, schedules."),
    ] = None,
) -> None:
    """Search networks and write DIR/front.json and DIR/report.html.

    Options left out take the preset of the data set where there is one. Otherwise they are the paper's, and for
    nasbnn space, window and sizes follow from the images. Every evaluation is written down once: the same command, or
    `bitnas resume DIR`, goes on after a stop to the same result.
    """
    from .output import floats, names

    if method not in METHODS:
        raise ValueError(f"--method: got {method!r}, wanted one of {', '.join(METHODS)}")
    given = _given(
        {
            "population": population,
            "generations": generations,
            "objectives": names(objectives),
            "latency_budget": latency_budget,
            "latency_source": latency_source,
            "latency_table": None if latency_table is None else str(latency_table.absolute()),
            "latency_batch": latency_batch,
            "latency_threads": latency_threads,
            "recipe": recipe,
            "device": device,
            "workers": _workers(workers),
            "timeout": timeout,
            "memory_limit": memory_limit,
            "model": model,
            "epochs": epochs,
            "parent_epochs": parent_epochs,
            "choices": floats("--choices", choices),
            "fitness_lambda": fitness_lambda,
            "budget": budget,
            "latency_weight": latency_weight,
            "base_width": base_width,
            "inherit": inherit,
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
            "samples": samples,
            "sample_layout": sample_layout,
            "train_epochs": train_epochs,
            "cost": cost,
            "flops_budget": flops_budget,
            "controller": controller,
        }
    )
    _refuse(given, method)
    start = {"width": _search_widths, "nasbnn": _search_subnets, "bars": _search_cells}[method]
    start(data, {**given, **_split(floats("--split", split)), "seed": seed}, out, study=study, json=json)


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
    go_on, examine = _of(
        method, f"{run_dir} holds a search by the method {method}, which this version of bitnas does not know"
    )
    run_to_report(
        lambda view: go_on(run_dir, **options, on_progress=view), run_dir, study=examine if study else None, json=json
    )


def _of(method: str, otherwise: str) -> tuple[Any, Any]:
    """What resumes a method's searches, and what studies their fronts. Raises ValueError(otherwise) for an unknown."""
    if method == "width":
        from ..methods import width

        return width.resume, width.study
    if method == "nasbnn":
        from ..methods import nasbnn
        from ..methods.nasbnn.deploy import deploy

        return nasbnn.resume, deploy
    if method == "bars":
        from ..methods import bars
        from ..methods.bars.deploy import deploy as deploy_cells

        return bars.resume, deploy_cells
    raise ValueError(otherwise)


def _refuse(given: Mapping[str, Any], method: str) -> None:
    """Name an option of other methods, and what this one has."""
    for name, value in given.items():
        if name in _REFUSED[method]:
            owners = " and ".join(other for other in METHODS if name not in _REFUSED[other])
            raise ValueError(
                f"{_option(name, value)} is an option of --method {owners}; leave it out for {method}: "
                f"{_REFUSED[method][name]}"
            )


def _option(name: str, value: Any) -> str:
    """An option as it was given."""
    return f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _workers(text: str | None) -> int | str | None:
    """A number of processes, or the name of a cluster, which the settings check."""
    return int(text) if text is not None and text.lstrip("-").isdigit() else text


def _split(shares: tuple[float, ...] | None) -> dict[str, float]:
    """What a split is in the settings of every method, which check the shares."""
    if shares is None:
        return {}
    if len(shares) != 2:
        raise ValueError(f"--split: got {len(shares)} numbers, wanted the shares that train and that judge: 0.6,0.2")
    return {"train_fraction": shares[0], "val_fraction": shares[1]}


def _reads_table(settings: dict[str, Any]) -> dict[str, Any]:
    """A table that is named is read."""
    return {"latency_source": "table", **settings} if "latency_table" in settings else settings


def _search_widths(data: str, values: dict[str, Any], out: Path, *, study: bool, json: bool) -> None:
    from ..methods import width

    config = width.preset(data, **_reads_table(values))
    run_to_report(
        lambda view: width.search(config, out, on_progress=view), out, study=width.study if study else None, json=json
    )


def _search_subnets(data: str, values: dict[str, Any], out: Path, *, study: bool, json: bool) -> None:
    from ..methods import nasbnn
    from ..methods.nasbnn.config import STRATEGIES
    from ..methods.nasbnn.deploy import deploy

    settings = _reads_table(values)
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
        study=deploy if study else None,
        json=json,
    )


def _search_cells(data: str, values: dict[str, Any], out: Path, *, study: bool, json: bool) -> None:
    from ..methods import bars
    from ..methods.bars.deploy import deploy

    settings = dict(values)
    controller = _controller(settings.pop("controller", None))
    controller |= _cost(values, controller)
    controller |= {name: settings.pop(name) for name in _OF_CONTROLLER if name in settings}
    # A table that is named is read: by the loss if a latency is in it, else by the search.
    if "latency_table" in settings and controller.get("cost") not in ("latency", "both"):
        settings = _reads_table(settings)
    config = bars.preset(data, **settings, controller=controller)
    run_to_report(
        lambda view: bars.search(config, out, on_progress=view), out, study=deploy if study else None, json=json
    )


_OF_CONTROLLER = ("epochs", "cost", "flops_budget", "latency_budget")


def _cost(given: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, str]:
    """The cost that budgets imply where neither an option nor the file says one. Raises ValueError for a budget among
    the options that is not of the cost."""
    budgets = [name for name in ("flops", "latency") if f"{name}_budget" in given]
    cost = given.get("cost", file.get("cost"))
    if cost is None:
        implied = [name for name in ("flops", "latency") if name in budgets or file.get(f"{name}_budget") is not None]
        return {"cost": "both" if len(implied) == 2 else implied[0]} if implied else {}
    where = f"--cost {cost}" if "cost" in given else f"cost {cost!r} in --controller"
    for name in budgets:
        if cost in ("none", "flops", "latency") and cost != name:
            raise ValueError(
                f"--{name}-budget: got {given[f'{name}_budget']:g} with {where}, which does not look at it; leave one "
                f"of them out, or use --cost {name if cost == 'none' else 'both'}"
            )
    return {}


def _controller(path: Path | None) -> dict[str, Any]:
    """The settings of a file, which single options go before."""
    import json

    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"got {type(found).__name__}, wanted an object")
    except ValueError as error:
        raise ValueError(f"--controller: {path} is not an object of settings: {error}") from error
    return found


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
    from .output import cells_table, networks_table, subnets_table

    tables = {"nasbnn": subnets_table, "bars": cells_table}
    return tables.get(run.config.get("method", ""), networks_table)(run.networks or run.front)


def _headline(run: Run) -> str:
    from ..report import findings, subnets
    from ..report.sections import bars

    own = {"nasbnn": subnets.headline, "bars": bars.headline}
    return own.get(run.config.get("method", ""), findings.headline)(run)

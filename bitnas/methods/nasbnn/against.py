"""The searched subnets against two others: as many random subnets of the same supernet, and a search of widths.

Nothing is taken from a table or another run: the networks of all three are timed frozen, in turns, in one process, and
judged on the same test images, which no training, search or choice has seen. Each seed has a split of its own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnas.methods import candidates, front_timing, fronts, run_folder, trials
from bitnas.methods.intervals import corrected, paired_runs, said, wilson
from bitnas.methods.nasbnn import deploy, evaluate, studies
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.config import preset as subnet_preset
from bitnas.methods.nasbnn.search import search as search_subnets
from bitnas.methods.nasbnn.search import stages, times_candidates, timing_of
from bitnas.methods.run_folder import Progress
from bitnas.methods.width import evaluate as width_evaluate
from bitnas.methods.width.config import WidthSearchConfig
from bitnas.methods.width.config import preset as width_preset
from bitnas.methods.width.search import search as search_widths
from bitnas.search import Journal, RandomSearch, Stage, WorkerPool, Workers, run_search
from bitnas.search.space import Genome

NAME = "against"
SEARCHED, RANDOM, WIDTHS = "searched", "random", "widths"
INHERITED, TUNED, SCRATCH = "inherited", "fine-tuned", "from scratch"
_SHARED = ("population", "generations", "latency_batch", "latency_threads", "train_fraction", "val_fraction")


def against(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    seeds: int | Sequence[int] = 3,
    population: int = 12,
    generations: int = 4,
    picks: int = 12,
    epochs: int | None = None,
    fine_tune_epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Search subnets (NSGA-II over accuracy, OPs and measured latency), draw as many at random, search widths with as
    many evaluations, deploy the fronts of all three and compare them; writes `against.json`.

    Goes on where it was stopped: every seed has a folder `seed-<n>` with the run folders of both searches.

    Args:
        out: folder, made if missing.
        data: a data set `bitnas.data.load` knows.
        seeds: how many, from 0, or which.
        population, generations: of both searches; the random one judges as many subnets as the searched one did.
        picks: networks of each front that are deployed at most. A front is judged by all whom no faster one matches; of
            more than `picks`, by those that dominate most on validation images.
        epochs: of training the widths from scratch; None for as many as the supernet and the fine-tuning have together.
        fine_tune_epochs: of the subnets; None for the recipe's.
        settings: of `NasBnnSearchConfig`, on top of the preset of the data set.
        workers: processes; None for the preset's.
        on_progress: called with the events of `search`, and {"event": "against_supernet" | "against_training" |
            "against_seed", "done", "total"}.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: a training failed.
        FileExistsError, JournalMismatch: the folder holds a study of other settings.
    """
    numbers = trials.numbered(seeds)
    if isinstance(picks, bool) or not isinstance(picks, int) or picks < 2:
        raise ValueError(f"picks: got {picks!r}, wanted an integer of at least 2")
    folder, notify, start = Path(out), on_progress or (lambda event: None), time.perf_counter()
    given: dict[str, Any] = {"objectives": ("accuracy", "ops", "latency")}
    given |= {"population": population, "generations": generations, **(settings or {})}
    execution: dict[str, Any] = {} if workers is None else {"workers": workers}
    configs = {seed: subnet_preset(data, **{**given, **execution, "seed": seed}) for seed in numbers}
    first = configs[numbers[0]]
    tuning = studies.fine_tuning(first, fine_tune_epochs)
    if tuning is None:
        raise ValueError("fine_tune_epochs: got 0, wanted at least 1")
    epochs = studies.recipe_of(first).epochs + tuning.epochs if epochs is None else epochs
    rules = {"picks": picks, "epochs": epochs, "fine_tune_epochs": tuning.epochs, **given}
    base = {**rules, "objectives": list(given["objectives"])}
    shared = subnet_preset(data, **{**given, "seed": 0})
    found: list[dict[str, Any]] = []
    with studies.opened(folder, NAME, shared, base, workers) as (journal, pool):
        paths = {seed: studies.supernet_path(folder, str(seed)) for seed in numbers}
        trials.measured(
            "against_supernet", [(f"{seed}/supernet", ()) for seed in numbers],
            Stage("supernet", studies.make_supernet), journal, pool, notify,
            [(configs[seed].to_dict(), str(paths[seed])) for seed in numbers],
        )  # fmt: skip
        for seed, config in configs.items():
            found.append(_seed(folder / f"seed-{seed}", config, paths[seed], rules, journal, pool, notify))
            notify({"event": "against_seed", "seed": seed, "done": len(found), "total": len(numbers)})
            result = {
                "complete": len(found) == len(numbers),
                "seeds": found,
                **compared(found),
                "protocol": _protocol(first, rules, tuning.lr),
                "settings": base,
                "seconds": time.perf_counter() - start,
            }
            written = studies.write(folder, NAME, first, result)
    return written


def _seed(
    folder: Path,
    config: NasBnnSearchConfig,
    supernet: Path,
    rules: Mapping[str, Any],
    journal: Journal,
    pool: Workers,
    notify: Progress,
) -> dict[str, Any]:
    """All networks of one seed, trained, judged and timed."""
    seconds: dict[str, float] = {}

    def timed(name: str, start: float) -> None:
        seconds[name] = time.perf_counter() - start

    folder.mkdir(parents=True, exist_ok=True)
    pool.stop()  # each search has workers of its own
    start = time.perf_counter()
    subnets = search_subnets(config, folder / "nasbnn", supernet=supernet, on_progress=notify)
    timed(SEARCHED, start)
    evaluated = sum(entry["asked"] for entry in subnets.history)
    start = time.perf_counter()
    drawn = _random_front(folder, subnets.config, evaluated, notify)
    timed(RANDOM, start)
    start = time.perf_counter()
    width_settings = {name: getattr(config, name) for name in _SHARED}
    widths_config = width_preset(
        config.data, **width_settings, objectives=("accuracy", "ops", "latency"), seed=config.seed,
        workers=config.workers,
    )  # fmt: skip
    widths = search_widths(widths_config, folder / "width", on_progress=notify)
    timed(WIDTHS, start)

    edges = {SEARCHED: fronts.edge(subnets.front), RANDOM: fronts.edge(drawn), WIDTHS: fronts.edge(widths.front)}
    corner = fronts.corner([row for edge in edges.values() for row in edge])
    picked = {name: fronts.most(edge, rules["picks"], corner) for name, edge in edges.items()}
    ratios = picked.pop(WIDTHS)
    rows = _trained(folder, subnets.config, widths_config, picked, ratios, rules, journal, pool, notify)
    networks = {
        row["name"]: row["subnet"]
        if "subnet" in row
        else width_evaluate.network_config(widths_config, tuple(row["ratios"])).to_dict()
        for row in rows
    }
    pool.stop()  # the machine to itself, for the timings
    names = list(networks)
    timing = Stage("against-latency", trials.time_networks, parallel=False)
    key = f"{config.seed}/{trials.digest(networks)}"
    times = trials.measured(
        "against_timing", [(key, ())], timing, journal, WorkerPool(0), notify,
        [([networks[name] for name in names], trials.timed_as(subnets.config))],
    )[key]  # fmt: skip
    for row in rows:
        row |= trials.timing_of(times, names.index(row["name"]))
    own = trials.parts(subnets.config)
    return {
        "seed": config.seed,
        "folder": folder.name,
        "evaluated": {SEARCHED: evaluated, RANDOM: evaluated, WIDTHS: sum(e["asked"] for e in widths.history)},
        "test_images": len(own.test),
        "train_images": len(own.train),
        "networks": rows,
        "seconds": seconds,
    }


def _random_front(folder: Path, config: NasBnnSearchConfig, count: int, notify: Progress) -> list[dict[str, Any]]:
    """The front of as many subnets as the search judged: the ends that it began with, the others random. They are
    measured, rejected and, on the front, timed again as its own are.
    """
    space = evaluate.search_space(config)
    ends = [genome for genome in dict.fromkeys((space.smallest, space.biggest)) if space.permits(genome)]
    meta = {"method": "nasbnn-random", "version": 2, "count": count, "config": config.identity()}

    def beyond(metrics: dict[str, float]) -> str | None:
        return candidates.beyond_latency(config, metrics)

    with (
        Journal(folder / "random.sqlite", meta=meta) as journal,
        run_folder.open_pool(config, folder) as pool,
        run_folder.open_measurer(config) as measurer,
    ):
        timing = timing_of(config)
        reference_us = timing.reference_us(journal, measurer) if times_candidates(config) else None
        seed = candidates.derive_seed(config.seed, "random")
        result = run_search(
            RandomSearch(space, population=count, seed=seed, initial=ends[:count]),
            stages(folder / "nasbnn", config, pool, reference_us),
            config.search_objectives(),
            journal,
            generations=1,
            pool=pool,
            measurer=measurer,
            key=lambda genome: space.subnet(genome).key(),
            limit=beyond,
            on_progress=notify,
        )
        pool.stop()  # the machine to itself, for the timings
        front = front_timing.timed_front(
            result.candidates, config.front_objectives(), timing, journal, measurer, notify, beyond=beyond,
            by_latency=config.needs_latency, budget=config.latency_budget,
        )  # fmt: skip
    return [
        {"genome": list(one.genome), "subnet": space.subnet(one.genome).to_dict(), **one.metrics, "key": one.key}
        for one in front
    ]


def _trained(
    folder: Path,
    config: NasBnnSearchConfig,
    widths: WidthSearchConfig,
    picked: Mapping[str, Sequence[Mapping[str, Any]]],
    ratios: Sequence[Mapping[str, Any]],
    rules: Mapping[str, Any],
    journal: Journal,
    pool: Workers,
    notify: Progress,
) -> list[dict[str, Any]]:
    """Every network of every front in every training, with its test accuracy."""
    recipe = studies.fine_tuning(config, rules["fine_tune_epochs"])
    assert recipe is not None
    rows: list[dict[str, Any]] = []
    tasks, arguments = {}, []
    trained = folder / "trained"
    trained.mkdir(exist_ok=True)
    for method, front in picked.items():
        for number, pick in enumerate(front):
            for kind in (INHERITED, TUNED):
                key = f"{config.seed}/{pick['key']}/{kind}"
                rows.append({"method": method, "training": kind, "name": f"{method} {number + 1}", "task": key, **pick})
                if key not in tasks:  # the search and the random one may have found the same subnet
                    tasks[key] = tuple(float(value) for value in pick["genome"])
                    arguments.append(
                        (config.to_dict(), str(folder / "nasbnn"), kind, recipe.to_dict(),
                         str(trained / f"{pick['key'][:16]}-{kind}.safetensors"))
                    )  # fmt: skip
    found = trials.measured(
        "against_training", list(tasks.items()), Stage("against-subnet", deploy.train_pick), journal, pool, notify,
        arguments,
    )  # fmt: skip
    width_tasks = {f"{config.seed}/{pick['key']}/{rules['epochs']}": pick for pick in ratios}
    rows += [
        {"method": WIDTHS, "training": SCRATCH, "name": f"{WIDTHS} {number + 1}", "task": key, **pick}
        for number, (key, pick) in enumerate(width_tasks.items())
    ]
    found |= trials.measured(
        "against_training", [(key, tuple(pick["ratios"])) for key, pick in width_tasks.items()],
        Stage("against-width", train_width), journal, pool, notify,
        [(widths.to_dict(), rules["epochs"])] * len(width_tasks),
    )  # fmt: skip
    kept = ("method", "training", "name", "genome", "subnet", "ratios", "widths", "key", "ops", "flops", "bops")
    result = []
    for row in rows:
        metrics = found[row["task"]]
        accuracy = wilson(int(metrics["correct"]), int(metrics["tested"]))
        result.append(
            {name: row[name] for name in kept if name in row}
            | {
                "accuracy": accuracy.mean,
                "accuracy_low": accuracy.low,
                "accuracy_high": accuracy.high,
                "search_accuracy": row["accuracy"],
            }
        )
    return result


@candidates.single_threaded
def train_width(ratios: Genome, settings: dict[str, Any], epochs: int) -> dict[str, float]:
    """Train a width network from scratch on all images outside the test part; correct, tested on that one."""
    import torch

    from bitnas import train

    config = WidthSearchConfig.from_dict(settings)
    data, split = width_evaluate.load_data(config.data, config.seed), width_evaluate.split_data(config)
    known = data.subset(torch.cat([split.train, split.val]).sort().values)
    network = width_evaluate.network_config(config, ratios)
    seed = candidates.derive_seed(config.seed, "against", network.key())
    model = width_evaluate.make_network(network, seed)
    train.fit(model, known, train.RECIPES[config.recipe].for_epochs(epochs), seed=seed)
    right = trials.predictions(model, data.subset(split.test))
    candidates.release_memory()
    return {"accuracy": sum(right) / len(right), "correct": float(sum(right)), "tested": float(len(right))}


def compared(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The area under what each front offers (`fronts.area`), by seed, and what the differences over seeds allow to say.

    The reference point is the same for all: `fronts.ROOM` times the longest latency and the largest error of any
    network. Areas are shares of the rectangle between it and no error in no time.

    Returns:
        {"reference": {"latency_us", "accuracy"}, "areas": {"searched, inherited": [one for each seed], ...},
        "comparisons": [{"first", "second", "runs", "mean", "low", "high", "p", "p_holm", "outcome", "verdict"}]}.
    """
    every = [row for seed in seeds for row in seed["networks"]]
    reference = fronts.corner(every)
    names = list(dict.fromkeys((row["method"], row["training"]) for row in every))

    def area(seed: Mapping[str, Any], name: tuple[str, str]) -> float:
        rows = [row for row in seed["networks"] if (row["method"], row["training"]) == name]
        return fronts.area(rows, reference) / (reference[0] * reference[1])

    areas = {name: [area(seed, name) for seed in seeds] for name in names}
    pairs = [((SEARCHED, kind), (RANDOM, kind)) for kind in (INHERITED, TUNED)]
    pairs += [((SEARCHED, kind), (WIDTHS, SCRATCH)) for kind in (INHERITED, TUNED)]
    ratio = statistics.fmean(seed["test_images"] / seed["train_images"] for seed in seeds)
    comparisons = corrected(
        [
            {
                "first": list(a),
                "second": list(b),
                **paired_runs([x - y for x, y in zip(areas[a], areas[b], strict=True)], ratio),
            }
            for a, b in pairs
            if a in areas and b in areas
        ]
    )
    comparisons = [{**one, "verdict": _verdict(one)} for one in comparisons]
    return {
        "reference": {"latency_us": reference[0], "accuracy": 1 - reference[1]},
        "areas": {", ".join(name): values for name, values in areas.items()},
        "comparisons": comparisons,
        "verdicts": [one["verdict"] for one in comparisons],
    }


def _verdict(comparison: Mapping[str, Any]) -> str:
    names = {SEARCHED: "searched subnets", RANDOM: "random subnets", WIDTHS: "searched widths"}
    one, other = (f"{names[method]} ({training})" for method, training in (comparison["first"], comparison["second"]))
    one = one[0].upper() + one[1:]
    mean = f"{100 * comparison['mean']:+.1f} % of the area"
    if "low" not in comparison:
        return f"{one} against {other}: {mean} with one seed, which decides nothing."
    text = said(comparison, mean)
    match comparison["outcome"]:
        case "better":
            return f"{one} have the better front than {other} ({text})."
        case "worse":
            return f"{one} have the worse front than {other} ({text})."
    return f"Between {one[0].lower() + one[1:]} and {other} no difference can be told ({text})."


def _protocol(config: NasBnnSearchConfig, rules: Mapping[str, Any], lr: float) -> list[str]:
    return [
        "each seed has a split of its own; its test part is used once, for the networks of the three fronts",
        f"searched: NSGA-II over accuracy, OPs and measured latency, {rules['population']} x {rules['generations']} "
        "subnets; random: as many subnets of the same supernet, drawn at random within the same window of OPs; widths: "
        "the search of Shen et al. 2019's space with as many evaluations, over the same objectives",
        "searched and random subnets begin with the smallest and the biggest one where these are within the window; "
        "the front of each is timed again, its members in turns, and what is then dominated leaves it",
        "of each front every network that no faster one matches on validation images; of more than "
        f"{rules['picks']} those {rules['picks']} that dominate most there",
        f"subnets: as inherited (the supernet: {studies.recipe_of(config).epochs} epochs on the train part), and "
        f"fine-tuned {rules['fine_tune_epochs']} epochs (lr {lr:g}) on all images outside the test part; widths: from "
        f"scratch, {rules['epochs']} epochs on all images outside the test part",
        f"latency: all networks of a seed frozen and timed in turns in one process, batch {config.latency_batch}, "
        f"{config.latency_threads} thread",
        "area: under the test accuracy of the network that validation images choose within each latency, between no "
        "error in no time and the reference point, as a share; interval: 95 %, "
        "t over the seeds of paired differences, corrected for shared images (Nadeau and Bengio 2003)",
        "verdicts: four, and their p is corrected for that (Holm 1979); the intervals, each 95 % by itself, are not",
    ]

"""The fronts of finished searches, whatever their methods, against each other: retrained alike, timed in turns.

What a search says of its networks depends on its method: inherited weights, a few epochs, another hour of the machine.
So nothing is taken from the runs but their networks, and how they ranked them. `compare.json`:

```
{"format": "bitnas-methods-compare-1", "runs": [{"run", "method", "seed", "front": how many}], "rows": [row, ...],
 "fronts": {name: [label, ...]}, "areas": {name: share}, "reference": {"latency_us", "accuracy"}, "comparisons": [...],
 "verdicts": [sentence, ...], "protocol": [...], "trained": bool, "settings", "seconds", and of what it ran on}
row: {"method", "run", "name": of its front in "fronts" and "areas", "label", "network", "key", "accuracy",
 "accuracy_low", "accuracy_high", "search_accuracy": by which its front ranks it (validation images), "run_accuracy":
 what its run said, "lr", "latency_us", "latency_low_us", "latency_high_us", "latency_iqr_us", "latency_noisy", "flops",
 "bops", "ops", "memory_bits", "params" (rule mac), "verified", "file"}; what only training gives is not there without
comparison: {"first", "second", "difference": of the areas, "low", "high", "outcome", "verdict"}
```
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods import candidates, fronts, run_folder, trials
from bitnas.methods.intervals import bootstrap, outcome
from bitnas.methods.run_folder import Progress
from bitnas.methods.settings import data_name
from bitnas.search import Journal, Stage, WorkerPool, Workers
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from torch import nn

    from bitnas.train import Recipe

METHOD, NAME = "methods", "compare"
# Of data sets, the recipe that networks are retrained by, and its epochs.
RECIPES_OF = {"digits": ("digits", 20), "cifar10": ("shen2019-cifar10-adam", 200)}
RATES = (1.0, 0.3)  # times the recipe's learning rate
WORDS = {"width": "Width evolution", "nasbnn": "NAS-BNN", "bars": "BARS"}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a comparison trains and measures with; the data and the split are those of the runs."""

    data: str
    seed: int
    train_fraction: float
    val_fraction: float
    workers: int | str
    latency_batch: int
    latency_threads: int
    latency_tolerance: float
    latency_budget: float | None = None
    generations: int = 1
    timeout: float | None = None
    memory_limit: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    def identity(self, *, generations: bool = False) -> str:
        """SHA-256 of what decides a result."""
        kept = {name: value for name, value in self.to_dict().items() if name != "workers"}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Run:
    """A finished search: its folder, its method, its settings, its front, and the network of a row of that."""

    folder: Path
    method: str
    config: Any
    front: list[dict[str, Any]]
    network: Callable[[Mapping[str, Any]], dict[str, Any]]


def read_run(folder: str | os.PathLike[str]) -> Run:
    """Raises FileNotFoundError for a folder that holds no finished search, ValueError for an unknown method."""
    path = Path(folder)
    method = run_folder.read_method(path)
    if method not in WORDS:
        raise ValueError(f"{path} holds a search by method {method!r}, wanted one of {', '.join(WORDS)}")
    network: Callable[[Mapping[str, Any]], dict[str, Any]]
    if method == "width":
        from bitnas.methods.width import evaluate
        from bitnas.methods.width.search import read_config as read_width

        config: Any = read_width(path)

        def network(row: Mapping[str, Any]) -> dict[str, Any]:
            return evaluate.network_config(config, tuple(row["ratios"])).to_dict()
    elif method == "nasbnn":
        from bitnas.methods.nasbnn.search import read_config as read_nasbnn

        config = read_nasbnn(path)

        def network(row: Mapping[str, Any]) -> dict[str, Any]:
            return dict(row["subnet"])
    else:
        from bitnas.methods.bars.search import read_config as read_bars

        config = read_bars(path)

        def network(row: Mapping[str, Any]) -> dict[str, Any]:
            return dict(row["network"])

    if not (path / run_folder.FRONT).is_file():
        raise FileNotFoundError(f"{path} holds no {run_folder.FRONT}: its search has not finished; resume it first")
    front = run_folder.read_front(path)
    if not front:
        raise ValueError(f"{path}: its front is empty, so it has nothing to compare")
    return Run(path, method, config, front, network)


def compare(
    runs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    picks: int = 6,
    train: bool = True,
    recipe: str | None = None,
    epochs: int | None = None,
    rates: Sequence[float] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Put the fronts of searches of the same data on one footing and write `compare.json`; goes on where it was
    stopped.

    Args:
        runs: folders of finished searches by width, nasbnn or bars; at least two. Their test parts must be the same
            images, or a network would be judged on images that its search has seen.
        out: folder, made if missing.
        picks: networks of each front at most. A front is judged by those whom no faster one matches; of more than
            `picks`, by those that dominate most on validation images.
        train: retrain every pick from scratch; else accuracies are what the runs said, each by its method.
        recipe: a name in `bitnas.train.RECIPES`; None for that of the data in `RECIPES_OF`.
        epochs: of each training; None for those in `RECIPES_OF`, or the recipe's.
        rates: learning rates, of which each network has the one that is best on validation images; None for `RATES`
            times the recipe's.
        batch, threads: of the latency; None for the first run's.
        workers: processes; None for the first run's.
        on_progress: called with {"event": "compare_timing" | "compare_training", "done", "total"}.

    Raises:
        FileNotFoundError: a folder holds no finished search. ValueError: an argument is out of range, or runs do not go
            together. RuntimeError: a training failed. JournalMismatch: the folder holds another comparison.
    """
    if isinstance(picks, bool) or not isinstance(picks, int) or picks < 1:
        raise ValueError(f"picks: got {picks!r}, wanted an integer of at least 1")
    folder, notify, start = Path(out), on_progress or (lambda event: None), time.perf_counter()
    found = [read_run(one) for one in runs]
    settings = _settings(found, batch, threads, workers)
    chosen = _recipe(settings, recipe, epochs) if train else None
    tried = _rates(chosen, rates) if chosen is not None else []
    with trials.opened(folder, METHOD, NAME, settings, {}, settings.workers) as (journal, pool):
        rows = _timed(found, settings, journal, notify)
        rows = _picked(rows, picks)
        if chosen is not None:
            _train(folder, rows, settings, chosen, tried, journal, pool, notify)
            pool.stop()
            for number, row in enumerate(rows, 1):
                row |= _finished(folder, number, row, settings)
    for row in rows:
        row |= _costs(row["network"])
    judged = _judged(rows, trained=train)
    return trials.write(
        folder,
        METHOD,
        NAME,
        {
            "runs": [
                {"run": str(run.folder), "method": run.method, "seed": run.config.seed, "front": len(run.front)}
                for run in found
            ],
            "rows": [{name: value for name, value in row.items() if name not in _INNER} for row in rows],
            **judged,
            "trained": train,
            "protocol": _protocol(found, settings, chosen, tried, picks),
            "settings": {"picks": picks, "recipe": chosen.to_dict() if chosen else None, "rates": tried},
            "seconds": time.perf_counter() - start,
        },
        data=settings.data,
    )


_INNER = ("right", "arguments", "place")  # of a row, what is for this file alone


def _settings(runs: Sequence[Run], batch: int | None, threads: int | None, workers: int | str | None) -> Settings:
    """Those of the first run; ValueError for runs that cannot be compared."""
    if len(runs) < 2:
        raise ValueError(f"runs: got {len(runs)}, wanted at least two folders")
    if len({run.folder.resolve() for run in runs}) != len(runs):
        raise ValueError("runs: got a folder twice")
    first = runs[0].config
    for name, value in (("batch", batch), ("threads", threads)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least 1")
    made = Settings(
        data=first.data,
        seed=first.seed,
        train_fraction=first.train_fraction,
        val_fraction=first.val_fraction,
        workers=first.workers if workers is None else workers,
        latency_batch=first.latency_batch if batch is None else batch,
        latency_threads=first.latency_threads if threads is None else threads,
        latency_tolerance=first.latency_tolerance,
    )
    images = _test_images(runs[0])
    for run in runs[1:]:
        if _test_images(run) != images:
            raise ValueError(
                f"runs: {run.folder} (data {run.config.data}, seed {run.config.seed}, train_fraction "
                f"{run.config.train_fraction:g}, val_fraction {run.config.val_fraction:g}) has other test images than "
                f"{runs[0].folder} (data {first.data}, seed {first.seed}, {first.train_fraction:g}, "
                f"{first.val_fraction:g}); wanted searches of one data set, seed and split, such as those of "
                f"bitnas search --data {shlex.quote(first.data)} --seed {first.seed} "
                f"--split {first.train_fraction},{first.val_fraction}"
            )
    run_folder.check_threads(made.latency_threads)
    return made


def _test_images(run: Run) -> str:
    """SHA-256 of the images that a run's search has not seen."""
    return trials.parts(run.config).test.fingerprint()


def _recipe(settings: Settings, name: str | None, epochs: int | None) -> Recipe:
    from bitnas.train import RECIPES

    known, own = RECIPES_OF.get(data_name(settings.data), (None, None))
    if name is None and known is None:
        raise ValueError(f"recipe: got None for data {settings.data!r}, wanted one of {', '.join(RECIPES)}")
    if name is not None and name not in RECIPES:
        raise ValueError(f"recipe: got {name!r}, wanted one of {', '.join(RECIPES)}")
    wanted = epochs if epochs is not None else own if name in (None, known) else None
    recipe = RECIPES[name or str(known)]
    return recipe if wanted is None else recipe.for_epochs(wanted)


def _rates(recipe: Recipe, rates: Sequence[float] | None) -> list[float]:
    found = [round(share * recipe.lr, 8) for share in RATES] if rates is None else list(rates)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"rates: got {rates!r}, wanted at least one learning rate, none twice")
    return [dataclasses.replace(recipe, lr=rate).lr for rate in found]


# ---- the work -------------------------------------------------------------------


def _timed(runs: Sequence[Run], settings: Settings, journal: Journal, notify: Progress) -> list[dict[str, Any]]:
    """Every network of every front, timed in turns with all others."""
    rows: list[dict[str, Any]] = []
    for run, name in zip(runs, _names(runs), strict=True):
        for row in run.front:
            network = run.network(row)
            rows.append(
                {"method": run.method, "run": str(run.folder), "name": name, "network": network,
                 "key": _key(network), "accuracy": float(row["accuracy"]), "run_accuracy": float(row["accuracy"]),
                 "search_accuracy": float(row["accuracy"])}
            )  # fmt: skip
    networks = {row["key"]: row["network"] for row in rows}
    order, timed_as = sorted(networks), trials.timed_as(settings)
    key = trials.digest([order, timed_as])
    times = trials.measured(
        "compare_timing", [(key, ())], Stage("latency", trials.time_networks, parallel=False), journal, WorkerPool(0),
        notify, [([networks[one] for one in order], timed_as)],
    )[key]  # fmt: skip
    for row in rows:
        row |= trials.timing_of(times, order.index(row["key"]))
    return rows


def _names(runs: Sequence[Run]) -> list[str]:
    """A name of its own for each run: the method; of several by one method also as much of the end of their folders'
    paths as tells these apart."""
    names = []
    for run in runs:
        paths = [one.folder.resolve().parts for one in runs if one.method == run.method]
        length = next(n for n in itertools.count(1) if len({path[-n:] for path in paths}) == len(paths))
        own = "/".join(run.folder.resolve().parts[-length:])
        names.append(run.method if len(paths) == 1 else f"{run.method} {own}")
    return names


def _key(network: Mapping[str, Any]) -> str:
    from bitnas.models.registry import config_from_dict

    return config_from_dict(network).key()


def _picked(rows: list[dict[str, Any]], picks: int) -> list[dict[str, Any]]:
    """Of each front those that are retrained, the fastest first."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    edges = {name: fronts.edge([row for row in rows if row["name"] == name]) for name in names}
    corner = fronts.corner([row for edge in edges.values() for row in edge])
    found: list[dict[str, Any]] = []
    for name, edge in edges.items():
        chosen = fronts.most(edge, picks, corner)
        found += [{**row, "label": f"{name} {number}"} for number, row in enumerate(chosen, 1)]
    return found


def _train(
    folder: Path,
    rows: list[dict[str, Any]],
    settings: Settings,
    recipe: Recipe,
    rates: Sequence[float],
    journal: Journal,
    pool: Workers,
    notify: Progress,
) -> None:
    """Every pick with every rate; rows get the training that is best on validation images."""
    (folder / "float").mkdir(exist_ok=True)
    arguments: dict[str, tuple[Any, ...]] = {}
    tasks: dict[tuple[str, float], str] = {}
    for row, rate in itertools.product(rows, rates):
        own = dataclasses.replace(recipe, lr=rate).to_dict()
        task = f"{row['key']}/{trials.digest(own)[:16]}"
        file = folder / "float" / f"{row['key'][:16]}-{trials.digest(own)[:8]}.safetensors"
        tasks[row["key"], rate] = task
        arguments[task] = (settings.to_dict(), row["network"], own, str(file))
    found = trials.measured(
        "compare_training", [(task, ()) for task in arguments], Stage("network", train_network), journal, pool, notify,
        list(arguments.values()),
    )  # fmt: skip
    for row in rows:
        best = max(rates, key=lambda rate: found[tasks[row["key"], rate]]["val_accuracy"])
        task = tasks[row["key"], best]
        row |= {"lr": best, "search_accuracy": found[task]["val_accuracy"], "arguments": arguments[task]}


@candidates.single_threaded
def train_network(
    genome: Genome, settings: dict[str, Any], network: dict[str, Any], recipe: dict[str, Any], path: str
) -> dict[str, float]:
    """Train a network from scratch on the train part and write it to `path`.

    Args:
        genome: of no meaning; tasks have one.
        settings: of `Settings`. network: its description. recipe: `Recipe.to_dict()`.

    Returns: val_accuracy, a fraction.
    """
    from bitnas import train
    from bitnas.models import save_model
    from bitnas.models.registry import config_from_dict

    own, described = trials.parts(Settings(**settings)), config_from_dict(network)
    seed = candidates.derive_seed(settings["seed"], NAME, described.key())
    model = trials.make_network(described, seed)
    train.fit(model, own.train, train.Recipe.from_dict(recipe), seed=seed)
    save_model(model, path, {"recipe": recipe})
    accuracy = train.evaluate(model, own.val)
    candidates.release_memory()
    return {"val_accuracy": accuracy}


def _load(arguments: tuple[Any, ...]) -> nn.Module:
    """What `train_network` wrote; trained again if it was lost, damaged, or is another one."""
    from bitnas.files import CorruptFileError
    from bitnas.models.saved import load_with_facts

    *_, network, recipe, path = arguments
    for attempt in range(2):
        try:
            model, facts = load_with_facts(path)
            if facts.get("network") != network or facts.get("recipe") != recipe:
                raise CorruptFileError(path, "holds another network than the comparison's, or one trained otherwise")
            return model
        except (FileNotFoundError, CorruptFileError):
            if attempt:
                raise
            train_network((), *arguments)
    raise AssertionError("unreachable")


def _finished(folder: Path, number: int, row: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """Freeze, verify, save and judge one network on the test part; the number keeps files of like names apart."""
    file = folder / "networks" / f"{number}-{row['label'].replace(' ', '-').replace('/', '-')}.safetensors"
    return trials.finished(_load(row["arguments"]), trials.parts(settings), file)


def _costs(network: Mapping[str, Any]) -> dict[str, float]:
    import torch

    from bitnas.cost import count
    from bitnas.models import create_model_from_config
    from bitnas.models.registry import config_from_dict

    with torch.device("meta"):
        model = create_model_from_config(config_from_dict(network))
    found = count(model, rule="mac")
    return {name: float(getattr(found, name)) for name in ("flops", "bops", "ops", "memory_bits", "params")}


# ---- what it says ---------------------------------------------------------------


def _judged(rows: Sequence[Mapping[str, Any]], *, trained: bool) -> dict[str, Any]:
    """The front of each run, the area under what it offers, and what the test images allow to say of differences."""
    names = list(dict.fromkeys(row["name"] for row in rows))
    own = {name: [row for row in rows if row["name"] == name] for name in names}
    reference = fronts.corner(rows)
    whole = reference[0] * reference[1]
    # Who is on a front is decided on validation images: the best on test images would flatter one of many members.
    edges = {
        name: [row["label"] for row in fronts.edge([{**row, "accuracy": row["search_accuracy"]} for row in members])]
        for name, members in own.items()
    }
    areas = {name: fronts.area(members, reference) / whole for name, members in own.items()}
    comparisons = []
    for first, second in itertools.combinations(names, 2):
        one: dict[str, Any] = {"first": first, "second": second, "difference": areas[first] - areas[second]}
        if trained:
            one |= _over_images(own[first], own[second], reference)
        comparisons.append({**one, "verdict": _verdict(one, rows)})
    return {
        "fronts": edges,
        "areas": areas,
        "reference": {"latency_us": reference[0], "accuracy": 1 - reference[1]},
        "comparisons": comparisons,
        "verdicts": [one["verdict"] for one in comparisons],
    }


def _over_images(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]], reference: tuple[float, float]
) -> dict[str, Any]:
    """The difference of two areas with its interval over test images, which both fronts share."""
    import numpy as np

    right = {id(row): np.asarray(row["right"], dtype=float) for row in (*first, *second)}

    def area(rows: Sequence[Mapping[str, Any]], images: Any) -> float:
        resampled = [{**row, "accuracy": float(right[id(row)][images].mean())} for row in rows]
        return fronts.area(resampled, reference) / (reference[0] * reference[1])

    def difference(chosen: Sequence[int]) -> float:
        images = np.asarray(chosen)
        return area(first, images) - area(second, images)

    found = bootstrap(difference, len(first[0]["right"]))
    assert found is not None
    return {"low": found.low, "high": found.high, "outcome": outcome(found)}


def _verdict(comparison: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    methods = {row["name"]: row["method"] for row in rows}

    def said(name: str) -> str:
        method = methods[name]
        return WORDS[method] + name.removeprefix(method)

    first, second = said(comparison["first"]), said(comparison["second"])
    mean = f"{100 * comparison['difference']:+.1f} % of the area"
    if "low" not in comparison:
        return f"{first} against {second}: {mean}, by what their own runs say, which decides nothing."
    text = f"{mean}, 95 % interval over test images {100 * comparison['low']:+.1f} to {100 * comparison['high']:+.1f}"
    match comparison["outcome"]:
        case "better":
            return f"{first} has the better front than {second} here ({text}; one search and one training of each)."
        case "worse":
            return f"{first} has the worse front than {second} here ({text}; one search and one training of each)."
    return f"The fronts of {first} and {second} cannot be told apart ({text})."


def _protocol(
    runs: Sequence[Run], settings: Settings, recipe: Recipe | None, rates: Sequence[float], picks: int
) -> list[str]:
    lines = [
        "of each front every network that no faster one matches on validation images, by what its run says and the "
        f"latency measured here; of more than {picks} those {picks} that dominate most",
        "latency: all networks of all fronts frozen and timed in turns in one process on this machine, batch "
        f"{settings.latency_batch}, {settings.latency_threads} thread",
        "FLOPs, BOPs and OPs: by rule mac, for all methods",
    ]
    if recipe is None:
        lines.append(
            "accuracy: what each run said of its network on validation images, by its own method: trained briefly, or "
            "with a supernet's weights; so these do not compare exactly, and no interval is given"
        )
    else:
        listed = ", ".join(f"{rate:g}" for rate in rates)
        lines += [
            f"every network from scratch on the same train images, {recipe.epochs} epochs of {recipe.optimizer}, batch "
            f"{recipe.batch_size}, {recipe.schedule}; with each learning rate of {listed}, of which the best on "
            "validation images counts",
            "accuracy: of the frozen network, verified against the trained one, on the test images that no search, "
            "training or choice has seen; interval: Wilson's, 95 %",
            "area: under the test accuracy of the network that validation images choose within each latency, as a "
            "share of the rectangle between no error in no time and the reference point; intervals: 95 %, percentiles "
            "of 2,000 resamplings of the test images; they do not know how another seed would have searched or trained",
        ]
    tried = ", ".join(f"{WORDS[run.method]} (seed {run.config.seed})" for run in runs)
    return [*lines, f"searches: {tried}; each with the settings of its own folder"]

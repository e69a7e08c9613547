"""Do searched widths beat uniform ones of the same FLOPs? The claim of Shen et al. 2019, tried over several seeds.

One training tells little: on a small data set, networks that are equally good differ by points from one training to the
next, and the best of a hundred looks better than it is. So each seed has a split, a search and networks of its own;
the search's best go through a runoff (longer trainings, every image outside the test part validating once); the winner
and its uniform partner are then trained from scratch alike, several times, and meet on images that nothing before has
seen. Every seed counts, the lost ones too.

`claim.json`:
```
{"format": "bitnas-claim-1", "complete": bool, "data", "seeds": [...], "settings": {...} of the searches,
 "protocol": {"finalists", "folds", "repeats", "epochs", "flops_tolerance", "text": [...]},
 "runs": [{"seed", "folder", "networks_tried", "trainings", "train_images", "test_images",
           "searched": network, "uniform": network, "flops_ratio",
           "differences": [...], "difference", "finalists": [{"ratios", "flops", "search_accuracy", "runoff_accuracy"}],
           "seconds"}],
 "trainings": number in all, "overall": {"seeds", "won", "difference", "low", "high", "sd", "plain_low", "plain_high",
           "flops_ratio", "outcome": "better" | "worse" | "undecided", "verdict"} or null}
network: {"ratios", "widths", "flops", "macs", "bops", "params", "memory_bits", "accuracy_runs", "accuracy", "sd"}
```
Accuracies and differences are fractions, on the test part; `difference` is searched minus uniform.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnas.files import write_json_atomic
from bitnas.methods.intervals import seed_interval
from bitnas.methods.run_folder import Progress, open_pool
from bitnas.methods.width import compare, evaluate
from bitnas.methods.width.config import WidthSearchConfig, preset
from bitnas.methods.width.search import open_journal, search
from bitnas.search import Record, Stage, run_tasks
from bitnas.search.space import Genome

CLAIM = "claim.json"
FORMAT = "bitnas-claim-1"

# What the claim is tried with, on top of the preset of the data set. On digits the preset's networks are close to the
# best that any width reaches; at a quarter of their width, capacity is what limits them. The paper's candidates on
# CIFAR-10 are trained from scratch.
SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "base_width": 0.0625,
        "budget": 1.0,
        "inherit": False,
        "start_uniform": False,  # of the choices, only three uniform networks and crossings of them fit the budget
        "population": 24,
        "generations": 4,
        "epochs": 10,
        "fitness_lambda": 0.0,
    },
    "cifar10": {"budget": 1.0, "inherit": False},
}
EPOCHS = {"digits": 20}  # of runoff and test; elsewhere the recipe's


def claim(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    seeds: int | Sequence[int] = 3,
    settings: Mapping[str, Any] | None = None,
    finalists: int = 5,
    folds: int = 4,
    repeats: int = 8,
    epochs: int | None = None,
    flops_tolerance: float = 0.02,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Search, runoff and test for each seed, and what the seeds say together; written to `claim.json` in `out`.

    Goes on where it was stopped: each seed has a run folder `seed-<n>` of its own, whose journal holds every training.

    Args:
        out: folder, made if missing.
        data: a data set `bitnas.data.load` knows.
        seeds: how many, from 0, or which.
        settings: of `WidthSearchConfig`, in place of `SETTINGS`.
        finalists: networks of each search that go through the runoff, its most accurate that a uniform network matches.
        folds: of the runoff's cross-validation, over all images outside the test part.
        repeats: trainings of the winner and of its partner.
        epochs: of each training in runoff and test.
        flops_tolerance: how much more than its partner a searched network may cost, as a fraction. The partner is the
            narrowest uniform network (of a real multiplier) within it; widths are whole, so it may cost more.
        on_progress: called with the events of `search`, and {"event": "claim_runoff" | "claim_test", "seed", "done",
            "total"} after each training, {"event": "claim_seed", "seed", "difference", "done", "total"} after each
            seed.

    Raises:
        ValueError: an argument is out of range, or a search found no network with a partner.
        RuntimeError: a training failed.
        And as `search`.
    """
    numbers = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    least = {"finalists": (finalists, 1), "folds": (folds, 2), "repeats": (repeats, 1), "seeds": (len(numbers), 1)}
    for name, (value, low) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least {low}")
    if len(set(numbers)) != len(numbers) or not 0 <= flops_tolerance < 1:
        raise ValueError(
            f"seeds, flops_tolerance: got {numbers} and {flops_tolerance}, wanted distinct seeds, a fraction"
        )
    from bitnas import train

    folder, notify = Path(out), on_progress or (lambda event: None)
    chosen = {**SETTINGS.get(Path(data).stem, {}), **(settings or {})}
    configs = {seed: preset(data, **{**chosen, "seed": seed}) for seed in numbers}
    if epochs is None:
        epochs = EPOCHS.get(Path(data).stem, train.RECIPES[configs[numbers[0]].recipe].epochs)
    rules = _Rules(finalists, folds, repeats, epochs, flops_tolerance)
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    for seed, config in configs.items():
        runs.append(_run(folder / f"seed-{seed}", config, rules, notify))
        result = {
            "format": FORMAT,
            "complete": len(runs) == len(configs),
            "data": data,
            "seeds": numbers,
            "settings": {k: v for k, v in config.to_dict().items() if k != "seed"},
            "protocol": {**dataclasses.asdict(rules), "text": _protocol(rules)},
            "runs": runs,
            "trainings": sum(run["trainings"] for run in runs),
            "overall": overall(runs),
        }
        write_json_atomic(folder / CLAIM, result)
        difference = runs[-1]["difference"]
        notify(
            {"event": "claim_seed", "seed": seed, "difference": difference, "done": len(runs), "total": len(configs)}
        )
    return result


@dataclasses.dataclass(frozen=True)
class _Rules:
    finalists: int
    folds: int
    repeats: int
    epochs: int
    flops_tolerance: float


def _protocol(rules: _Rules) -> list[str]:
    return [
        "each seed has a split of its own; its test part is used once, after winner and partner are settled",
        f"the {rules.finalists} most accurate of the search on its validation part go through a runoff: "
        f"{rules.folds} trainings each, a {rules.folds}-fold cross-validation outside the test part",
        "partner: the narrowest uniform network, of one real multiplier, that costs at least as much as the winner, "
        f"within {rules.flops_tolerance:.0%}",
        f"winner and partner: {rules.repeats} trainings from scratch each, same recipe, {rules.epochs} epochs and "
        "seeds of weights and batches, on all images outside the test part",
        "interval: 95 %, t over the seeds, corrected for images that their splits share (Nadeau and Bengio 2003)",
    ]


def _run(folder: Path, config: WidthSearchConfig, rules: _Rules, notify: Progress) -> dict[str, Any]:
    """One seed."""
    start = time.perf_counter()
    search(config, folder, on_progress=notify)
    with open_journal(folder, config) as journal, open_pool(config, folder) as pool:
        tried = {r.key: r for r in journal.records() if r.stage == "train" and r.ok}
        pairs = _pairs(list(tried.values()), config, rules)
        if not pairs:
            raise ValueError(f"{folder}: no network of the search has a uniform partner; give it more generations")
        settings = config.to_dict()

        def trained(name: str, codes: Sequence[Genome], runs: int, stage: Stage, *fixed: int) -> list[list[float]]:
            """Accuracies of each code in each run."""
            tasks = [
                (f"{evaluate.architecture_key(config, code)}/{name}/{'/'.join(map(str, (*fixed, run)))}", code)
                for code in codes
                for run in range(runs)
            ]
            arguments = [(settings, *fixed, run) for _ in codes for run in range(runs)]
            found: dict[str, float] = {}
            for record, _ in run_tasks(tasks, stage, journal, pool, task_arguments=arguments):
                found[record.key] = _accuracy(record)
                notify({"event": f"claim_{name}", "seed": config.seed, "done": len(found), "total": len(tasks)})
            return [[found[tasks[i * runs + run][0]] for run in range(runs)] for i in range(len(codes))]

        runoff = trained(
            "runoff", [code for code, _ in pairs], rules.folds, Stage("claim-runoff", train_runoff), rules.folds,
            rules.epochs,
        )  # fmt: skip
        means = [statistics.fmean(accuracies) for accuracies in runoff]
        best = max(range(len(pairs)), key=lambda i: (means[i], -_flops(config, pairs[i][0]), -i))
        tested = trained("test", pairs[best], rules.repeats, Stage("claim-test", train_test), rules.epochs)
    winner, partner = (_network(config, code, runs) for code, runs in zip(pairs[best], tested, strict=True))
    differences = [a - b for a, b in zip(*tested, strict=True)]
    known, test = _parts(config)
    by_genome = {record.genome: record for record in tried.values()}
    return {
        "seed": config.seed,
        "folder": folder.name,
        "networks_tried": len(tried),
        "trainings": len(tried) + sum(map(len, runoff)) + sum(map(len, tested)),
        "train_images": len(known),
        "test_images": len(test),
        "searched": winner,
        "uniform": partner,
        "flops_ratio": winner["flops"] / partner["flops"],
        "differences": differences,
        "difference": statistics.fmean(differences),
        "finalists": [
            {
                "ratios": list(code),
                "flops": _flops(config, code),
                "search_accuracy": by_genome[code].metrics["accuracy"],
                "runoff_accuracy": mean,
            }
            for (code, _), mean in zip(pairs, means, strict=True)
        ],
        "seconds": time.perf_counter() - start,
    }


def _pairs(records: Sequence[Record], config: WidthSearchConfig, rules: _Rules) -> list[tuple[Genome, Genome]]:
    """The finalists, best first, each with its uniform partner."""
    unit = evaluate.unit_flops(config)

    def fitness(record: Record) -> float:
        return 100 * record.metrics["accuracy"] - config.fitness_lambda * record.metrics["flops"] / unit

    ranked = sorted(records, key=lambda record: (-fitness(record), record.metrics["flops"], record.genome))
    pairs: list[tuple[Genome, Genome]] = []
    for record in ranked:
        if len(set(record.genome)) > 1 and len(pairs) < rules.finalists:
            multiplier = covering_multiplier(
                record.metrics["flops"] / (1 + rules.flops_tolerance),
                lambda m: _flops(config, m),
                low=min(record.genome),
                high=max(record.genome),
            )
            pairs.append((record.genome, (multiplier,) * len(record.genome)))
    return pairs


def covering_multiplier(flops: float, cost: Callable[[float], float], *, low: float, high: float) -> float:
    """The smallest multiplier, within 1e-4, whose uniform network costs at least `flops`.

    `cost` must not decrease; it has steps, since widths are whole numbers. Raises ValueError if `high` costs less.
    """
    if cost(high) < flops:
        raise ValueError(f"flops: got {flops:g}, wanted at most {cost(high):g}, the cost of {high:g}")
    if cost(low) >= flops:
        return low
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if cost(middle) >= flops else (middle, high)
    return high


def _flops(config: WidthSearchConfig, ratios: Genome | float) -> float:
    return evaluate.costs(config, evaluate.network_config(config, ratios))["flops"]


def _accuracy(record: Record) -> float:
    if not record.ok:
        raise RuntimeError(f"a training of the claim failed ({record.reason}); the journal keeps it, use a new folder")
    return record.metrics["accuracy"]


def _network(config: WidthSearchConfig, ratios: Genome, accuracies: Sequence[float]) -> dict[str, Any]:
    from bitnas.models import widths

    network = evaluate.network_config(config, ratios)
    return {
        "ratios": list(ratios),
        "widths": list(widths(network)),
        **evaluate.costs(config, network),
        "accuracy_runs": list(accuracies),
        "accuracy": statistics.fmean(accuracies),
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
    }


@evaluate.single_threaded
def train_runoff(ratios: Genome, settings: dict[str, Any], folds: int, epochs: int, fold: int) -> dict[str, float]:
    """Train from scratch on all folds but one of the images outside the test part; accuracy on that one."""
    config = WidthSearchConfig.from_dict(settings)
    known, _ = _parts(config)
    rest, held = known.folds(folds, config.seed)[fold]
    seed = evaluate.derive_seed(config.seed, "claim-runoff", fold)
    return {"accuracy": _fit_and_test(config, ratios, epochs, seed, known.subset(rest), known.subset(held))}


@evaluate.single_threaded
def train_test(ratios: Genome, settings: dict[str, Any], epochs: int, repeat: int) -> dict[str, float]:
    """Train from scratch on all images outside the test part; accuracy on the test part."""
    config = WidthSearchConfig.from_dict(settings)
    seed = evaluate.derive_seed(config.seed, "claim-test", repeat)
    return {"accuracy": _fit_and_test(config, ratios, epochs, seed, *_parts(config))}


def _parts(config: WidthSearchConfig) -> tuple[Any, Any]:
    """All images outside the test part, and the test part."""
    import torch

    dataset, split = evaluate.load_data(config.data, config.seed), evaluate.split_data(config)
    return dataset.subset(torch.cat([split.train, split.val]).sort().values), dataset.subset(split.test)


def _fit_and_test(config: WidthSearchConfig, ratios: Genome, epochs: int, seed: int, known: Any, test: Any) -> float:
    from bitnas import train

    model = evaluate.make_network(evaluate.network_config(config, ratios), seed)
    train.fit(model, known, train.RECIPES[config.recipe].for_epochs(epochs), seed=seed)
    accuracy = train.evaluate(model, test)
    del model
    evaluate.release_memory()
    return accuracy


def overall(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What the seeds say together; None of fewer than two. `plain_low`, `plain_high`: the interval of independent
    seeds, which theirs are not quite.
    """
    if len(runs) < 2:
        return None
    differences = [run["difference"] for run in runs]
    interval = seed_interval(differences, runs[0]["test_images"] / runs[0]["train_images"])
    plain = seed_interval(differences, 0.0)
    ratio = statistics.fmean(run["flops_ratio"] for run in runs)
    won = sum(difference > 0 for difference in differences)
    return {
        "seeds": len(runs),
        "won": won,
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "sd": statistics.stdev(differences),
        "plain_low": plain.low,
        "plain_high": plain.high,
        "flops_ratio": ratio,
        "outcome": compare.outcome(interval),
        "verdict": f"{compare.sentence(interval, ratio)}; it wins with {won} of {len(runs)} seeds",
    }

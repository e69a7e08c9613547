"""What the parts of BARS are worth: searches with some settings changed, their networks trained alike and measured.

Every variant is searched once for each seed, its most likely network trained from scratch, frozen, verified, and timed
in turns with all others of the study. Each seed has a split of its own; its test part is used once. Studies in one
folder share one journal, so a search that two of them have is made once.

```
<study>.json: {"format": "bitnas-bars-<study>-1", "study", "complete", "seeds", "variants": [{"name", "says",
 "settings"}], "runs": [run, ...], "comparisons": [comparison, ...], "verdicts": [sentence, ...], "protocol": [...],
 "estimate": {...}, "settings", "seconds", and of what it ran on}
run: {"variant", "seed", "label", "kind": "searched" | "random", "architecture", "network", "key", "accuracy" and its
 interval "accuracy_low", "accuracy_high" (Wilson, of the test images), "test_images", "flops", "bops", "ops", "params",
 "memory_bits" (rule mac), "operations" (rule bars), "loss_flops" (the same without stem and classifier), "latency_us",
 "latency_low_us", "latency_high_us", "latency_iqr_us", "latency_noisy", "skips", "none" (shares of the edges of the
 network's cells), "course": [share of skips among the likeliest operations, each epoch], "course_none": [of none],
 "hessian": [...], "expected", "epochs", "stopped", "verified", "file"}; "course" to "stopped" of searched ones alone,
 and of random ones "cost_ratio" (of "loss_flops", to the searched one) and "edges_differ" of how many "edges"
comparison: {"name", "what": "accuracy" | "latency" | "free" (edges without a convolution) | "area" (under accuracy
 against latency; has "reference"), "first", "second", "runs": [difference of each seed], "difference": mean, "low",
 "high", "p", "p_holm", "tested", "outcome", "flops_ratio" (of "loss_flops"; null where one is 0), "latency_ratio",
 "accuracy_difference", "same": whether both are the same networks, "images": [{"seed", "first", "second",
 "difference", "low", "high"}], "verdict"}; intervals and p of two seeds and more; ratios of all but areas
```
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods import candidates, run_folder, trials
from bitnas.methods.bars import comparisons, evaluate, study_tasks, variants
from bitnas.methods.bars.config import BarsSearchConfig, preset
from bitnas.methods.bars.course import share_of
from bitnas.methods.bars.description import Architecture
from bitnas.methods.bars.variants import RANDOM, SEARCHED, Budget, Variant
from bitnas.methods.run_folder import Progress
from bitnas.models.bars import canonical
from bitnas.models.operations import NONE, SKIP
from bitnas.search import Journal, Stage, WorkerPool, Workers

if TYPE_CHECKING:
    from bitnas.train import Recipe

CELLS, GUARDS, COST, PARTS = "cells", "guards", "cost", "parts"
STUDIES = (CELLS, GUARDS, COST, PARTS)
METHOD, JOURNAL = "bars", "studies"
TABLE_ROUNDS, TABLE_SECONDS = 1, 0.2  # of a device table that a study builds: prices of a loss, not a reference
BUDGETS = {variants.SMALL: 0.1, variants.LARGE: 0.35}  # quantiles of the FLOPs of random networks
BUDGET_NETWORKS, BUDGET_WITHIN = 600, 0.1
WITHIN = 0.05  # random cells cost as much as the searched ones within this share


@dataclass(frozen=True)
class _Plan:
    """A study: its settings, its variants, and how it trains."""

    name: str
    base: BarsSearchConfig
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...]
    randoms: int
    recipe: Recipe
    table: str | None
    share: float
    budgets: tuple[Budget, ...]

    def config(self, variant: Variant, seed: int) -> BarsSearchConfig:
        """The settings of one search."""
        settings: dict[str, Any] = {"seed": seed, "supernet_threads": 1}
        if variant.controller.get("cost", self.base.controller["cost"]) in ("latency", "both"):
            settings["latency_table"] = self.table
        return variant.config(self.base, **settings)


def study(
    name: str,
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    seeds: int | Sequence[int] = 3,
    epochs: int | None = None,
    search_epochs: int | None = None,
    randoms: int = 3,
    share: float = 0.05,
    settings: Mapping[str, Any] | None = None,
    table: str | os.PathLike[str] | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Make one study and write `<name>.json`; goes on where it was stopped, within a training too.

    Args:
        name: one of `STUDIES`. `"cells"`: searched cells against random ones of the same widths, depths and cost.
            `"guards"`: with and without each guard against collapse. `"cost"`: FLOPs against latency in the loss, at
            two budgets that match.
            `"parts"`: cells alone, layout alone, and both, at one budget of FLOPs.
        out: folder, made if missing; other studies of the same settings may be in it.
        data: a data set `bitnas.data.load` knows.
        seeds: how many, from 0, or which.
        epochs: of a network's training from scratch; None for the settings', or the recipe's.
        search_epochs: of each search; None for the settings'.
        randoms: of `"cells"`, random networks for each seed.
        share: of `"parts"`, how far the budget lies from the cheapest network to the biggest.
        settings: of `BarsSearchConfig`, on top of the preset of the data set.
        table: of `"cost"`, the device table; None builds one in the folder.
        workers: processes; None for the preset's.
        on_progress: called with {"event": "study_plan", "searches", "trainings", "seconds"} once, and
            {"event": "variant_search" | "variant_training" | "variant_timing" | "timing calls", "done", "total"}.

    Raises:
        ValueError: an argument is out of range. RuntimeError: a search or a training failed.
        JournalMismatch: the folder holds studies of other settings.
    """
    if name not in STUDIES:
        raise ValueError(f"study: got {name!r}, wanted one of {', '.join(STUDIES)}")
    for argument, value in (("epochs", epochs or 1), ("search_epochs", search_epochs or 1), ("randoms", randoms)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: got {value!r}, wanted an integer of at least 1")
    if not 0 < share <= 1:
        raise ValueError(f"share: got {share!r}, wanted a number above 0 and up to 1")
    numbers = trials.numbered(seeds)
    folder, notify, start = Path(out), on_progress or (lambda event: None), time.perf_counter()
    base = _base(data, settings, search_epochs)
    folder.mkdir(parents=True, exist_ok=True)
    with trials.opened(folder, METHOD, JOURNAL, base, {}, workers) as (journal, pool):
        own_table = _table(folder, base, table, notify) if name == COST else None
        budgets = _budgets(base, own_table) if name == COST else ()
        plan = _Plan(
            name, base, tuple(_variants(name, base, share, budgets)), tuple(numbers), randoms, _recipe(base, epochs),
            own_table, share, budgets,
        )  # fmt: skip
        estimate = _estimate(plan, pool)
        notify({"event": "study_plan", "study": name, **estimate})
        rows = _runs(folder, plan, journal, pool, notify)
    found = comparisons.compared(name, rows, [variant.name for variant in plan.variants])
    return trials.write(
        folder,
        METHOD,
        name,
        {
            "study": name,
            "complete": True,
            "seeds": numbers,
            "variants": [
                {"name": v.name, "says": v.says, "settings": {"controller": dict(v.controller), "space": dict(v.space)}}
                for v in plan.variants
            ],
            "runs": [{key: value for key, value in row.items() if key not in _INNER} for row in rows],
            "comparisons": found,
            "verdicts": [*comparisons.described(name, rows), *(one["verdict"] for one in found)],
            "protocol": _protocol(plan, rows),
            "estimate": estimate,
            "settings": {"epochs": plan.recipe.epochs, "randoms": randoms, "share": share},
            "seconds": time.perf_counter() - start,
        },
        data=base.data,
        space=base.space["name"],
        search=base.to_dict(),
    )


_INNER = ("right", "task", "train_images")  # of a row, what only the comparisons read


def _base(data: str, settings: Mapping[str, Any] | None, search_epochs: int | None) -> BarsSearchConfig:
    """The settings that all variants of all studies share; a data set's own size of images in the space."""
    base = preset(data, **{**(settings or {}), "seed": 0})
    if search_epochs is not None:
        base = dataclasses.replace(base, controller=variants.for_epochs(base.controller, search_epochs))
    return dataclasses.replace(base, space=evaluate.description(base).to_dict())


def _recipe(base: BarsSearchConfig, epochs: int | None) -> Recipe:
    from bitnas.train import RECIPES

    epochs = epochs or base.train_epochs or None
    recipe = RECIPES[base.recipe]
    return recipe if epochs is None else recipe.for_epochs(epochs)


def _variants(name: str, base: BarsSearchConfig, share: float, budgets: Sequence[Budget]) -> list[Variant]:
    if name == CELLS:
        return [Variant(SEARCHED, "the settings as they are")]
    if name == GUARDS:
        return variants.of_guards(base)
    if name == COST:
        return variants.of_cost(budgets)
    from bitnas.methods.bars.prices import FlopPrices
    from bitnas.methods.bars.training import least_cost

    space = evaluate.description(base)
    prices = FlopPrices(space)
    return variants.of_parts(base, variants.budget(space, prices, least_cost(space, prices), share))


def _budgets(base: BarsSearchConfig, table: str | None) -> tuple[Budget, ...]:
    """Of `"cost"`: FLOPs, and the latency of random networks of as many."""
    from bitnas.methods.bars.prices import FlopPrices, LatencyPrices

    space = evaluate.description(base)
    latency = LatencyPrices(space, table, batch=base.latency_batch, threads=base.latency_threads)
    seed = candidates.derive_seed("budgets")
    return tuple(
        variants.matched(
            space, FlopPrices(space), latency, shares=BUDGETS, count=BUDGET_NETWORKS, within=BUDGET_WITHIN, seed=seed
        )
    )


def _table(folder: Path, base: BarsSearchConfig, table: str | os.PathLike[str] | None, notify: Progress) -> str:
    """The folder's own device table: a copy of the given one, or built here; a build that was stopped goes on."""
    if table is not None:
        return run_folder.keep_table(folder, str(table))
    from bitnas.cost import table_space
    from bitnas.methods.bars import latency

    space = evaluate.description(base)
    path = folder / run_folder.LATENCY_TABLE
    where: dict[str, Any] = {"batch": base.latency_batch, "threads": base.latency_threads}
    done = folder / "latency.built"
    if not done.exists():
        table_space.build(
            latency.LatencySpace(space), path, rounds=TABLE_ROUNDS, seconds=TABLE_SECONDS, on_progress=notify, **where
        )
        done.touch()
    return str(path)


# ---- the work -------------------------------------------------------------------


def _runs(folder: Path, plan: _Plan, journal: Journal, pool: Workers, notify: Progress) -> list[dict[str, Any]]:
    """Every network of every variant and seed, with all figures."""
    rows = _searched(folder, plan, journal, pool, notify)
    if plan.name == CELLS:
        rows = [row for own in rows for row in (own, *_random_rows(plan, own))]
    recipe = plan.recipe.to_dict()
    arguments = {}
    for row in rows:
        seeded = dataclasses.replace(plan.base, seed=row["seed"]).to_dict()
        row["task"] = f"{row['seed']}/{row['key']}/{trials.digest(recipe)[:16]}"
        file = folder / "float" / f"{row['seed']}-{row['key'][:16]}-{trials.digest(recipe)[:8]}.safetensors"
        arguments[row["task"]] = (seeded, row["network"], recipe, str(file))
    # Seed by seed, as the searches were: a study that is stopped early has whole seeds.
    trials.measured(
        "variant_training", [(task, ()) for task in arguments], Stage("network", study_tasks.train_one), journal, pool,
        notify, list(arguments.values()),
    )  # fmt: skip
    pool.stop()  # the machine to itself, for the timings
    _time(plan, rows, journal, notify)
    for row in rows:
        row |= _finished(folder, plan, row, arguments[row["task"]])
    return rows


def _searched(folder: Path, plan: _Plan, journal: Journal, pool: Workers, notify: Progress) -> list[dict[str, Any]]:
    cells = [(seed, variant) for seed in plan.seeds for variant in plan.variants]
    arguments: dict[str, tuple[dict[str, Any], str]] = {}
    tasks: list[str] = []
    for seed, variant in cells:
        config = plan.config(variant, seed).to_dict()
        # Where the table lies and who trains is no part of a search.
        same = {key: value for key, value in config.items() if key not in ("latency_table", "workers", "timeout")}
        task = f"{seed}/{trials.digest(same)}"
        tasks.append(task)
        arguments[task] = (config, str(folder / "courses" / f"{seed}-{trials.digest(same)[:16]}.json"))
    found = trials.measured(
        "variant_search", [(task, ()) for task in arguments], Stage("search", study_tasks.search_one), journal, pool,
        notify, list(arguments.values()),
    )  # fmt: skip
    rows = []
    for (seed, variant), task in zip(cells, tasks, strict=True):
        settings, path = arguments[task]
        own = BarsSearchConfig.from_dict(settings)
        space = evaluate.description(own)
        architecture = space.architecture(study_tasks.genome_of(found[task]))
        course = study_tasks.course_of(settings, path)
        names = space.operations
        rows.append(
            {
                **_described(own, architecture),
                "variant": variant.name,
                "seed": seed,
                "label": variant.name,
                "kind": "searched",
                "course": [record["skips"] for record in course],
                "course_none": [share_of(NONE, names, record["probabilities"]["edges"]) for record in course],
                "hessian": [record["hessian"] for record in course],
                "expected": course[-1]["expected"],
                "epochs": len(course),
                "stopped": course[-1]["stopped"],
            }
        )
    return rows


def _random_rows(plan: _Plan, searched: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Networks with random cells beside a searched one."""
    from bitnas.methods.bars.prices import FlopPrices

    config = plan.config(plan.variants[0], searched["seed"])
    space = evaluate.description(config)
    seed = candidates.derive_seed(searched["seed"], "random cells")
    own = Architecture.from_dict(searched["architecture"])
    rows = []
    drawn = variants.equal_cost(space, own, FlopPrices(space), plan.randoms, seed, within=WITHIN)
    for number, architecture in enumerate(drawn, 1):
        found = _described(config, architecture)
        differ, edges = variants.differing(own, architecture)
        rows.append(
            {
                **found,
                "variant": RANDOM,
                "seed": searched["seed"],
                "label": f"{RANDOM} {number}",
                "kind": "random",
                "cost_ratio": found["loss_flops"] / searched["loss_flops"] if searched["loss_flops"] else None,
                "edges_differ": differ,
                "edges": edges,
            }
        )
    return rows


def _described(config: BarsSearchConfig, architecture: Architecture) -> dict[str, Any]:
    space = evaluate.description(config)
    network = space.network(architecture)
    edges = [operation for cell in architecture.cells for operation in canonical(cell)]
    return {
        "architecture": architecture.to_dict(),
        "network": network.to_dict(),
        "key": network.key(),
        **(found := evaluate.costs(space, architecture)),
        "operations": 2 * (found["flops"] + found["bops"]),
        "skips": edges.count(SKIP) / len(edges),
        "none": edges.count(NONE) / len(edges),
    }


def _time(plan: _Plan, rows: list[dict[str, Any]], journal: Journal, notify: Progress) -> None:
    """Latencies of all networks of the study, in turns: what disturbs one meets all alike."""
    networks = {row["key"]: row["network"] for row in rows}
    order = sorted(networks)
    timed_as = trials.timed_as(plan.base)
    key = trials.digest([order, timed_as])
    times = trials.measured(
        "variant_timing", [(key, ())], Stage("latency", trials.time_networks, parallel=False), journal, WorkerPool(0),
        notify, [([networks[one] for one in order], timed_as)],
    )[key]  # fmt: skip
    for row in rows:
        row |= trials.timing_of(times, order.index(row["key"]))


def _finished(folder: Path, plan: _Plan, row: Mapping[str, Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """Freeze, verify and save one network; which test images the frozen network has right."""
    own = trials.parts(BarsSearchConfig.from_dict(arguments[0]))
    file = folder / "networks" / f"{Path(arguments[-1]).stem}.safetensors"
    return {"train_images": len(own.known), **trials.finished(study_tasks.load_one(*arguments), own, file)}


# ---- what it takes, and how it was done -------------------------------------------


def _estimate(plan: _Plan, pool: Workers) -> dict[str, Any]:
    """How many searches and trainings there are at most, and about how many seconds they take: two steps of each are
    made here and timed. What the journal already has takes none of it."""
    import torch

    from bitnas import train
    from bitnas.methods.bars import training
    from bitnas.methods.bars.controller import Controller
    from bitnas.methods.bars.schedule import Schedule

    searches, networks = len(plan.seeds) * len(plan.variants), len(plan.seeds) * len(plan.variants)
    networks *= 1 + (plan.randoms if plan.name == CELLS else 0)
    config = plan.config(plan.variants[0], plan.seeds[0])
    controller = Controller.from_dict({**config.controller, "cost": "none"})
    weights, architecture = evaluate.halves(config)
    space, images = evaluate.description(config), 2 * controller.batch_size
    few = [source.subset(torch.arange(min(len(source), images))) for source in (weights, architecture)]
    one = dataclasses.replace(
        controller,
        epochs=1,
        warmup_epochs=0,
        uniform_epochs=0,
        hessian_every=0,
        hessian_stop=None,
        every=Schedule(start=1.0),
    )
    alone = candidates.single_threaded
    steps = max(1, round(len(few[0]) / controller.batch_size))
    each = _timed(lambda: alone(training.train)(space, one, *few, seed=0)) / steps
    epochs = statistics.fmean(v.controller.get("epochs", controller.epochs) for v in plan.variants)
    search = each * -(-len(weights) // controller.batch_size) * epochs
    recipe = plan.recipe
    known = trials.parts(config).known
    some = known.subset(torch.arange(min(len(known), 2 * recipe.batch_size)))
    # Half the channels: between the biggest network and what a search ends with.
    middle = dataclasses.replace(
        space.biggest, widths=(min(space.widths, key=lambda w: abs(w - 0.5)),) * space.width_count
    )
    model = trials.make_network(space.network(middle), 0)
    steps = max(1, round(len(some) / recipe.batch_size))
    each = _timed(lambda: alone(train.fit)(model, some, recipe.for_epochs(1), seed=0)) / steps
    training_seconds = each * -(-len(known) // recipe.batch_size) * recipe.epochs
    processes = max(1, getattr(pool, "workers", 1))
    return {
        "searches": searches,
        "trainings": networks,
        "search_seconds": search,
        "training_seconds": training_seconds,
        "workers": processes,
        "seconds": (searches * search + networks * training_seconds) / processes + networks * candidates.FRONT_SECONDS,
    }


def _timed(call: Callable[[], object]) -> float:
    """Seconds of the second of two calls: the first loads and allocates."""
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _protocol(plan: _Plan, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    base = plan.base
    least, most = min(row["latency_us"] for row in rows), max(row["latency_us"] for row in rows)
    lines = [
        "each seed has a split of its own, the same for all variants; its test part is used once, for the networks "
        "below",
        f"search: {base.controller['epochs']} epochs; weights and architecture on the two parts of the train images",
        f"network: the most likely one, from scratch, {plan.recipe.epochs} epochs of {plan.recipe.optimizer}, lr "
        f"{plan.recipe.lr:g}, on all images outside the test part; one training for each seed",
        "accuracy: of the frozen network, each verified against the trained one, on the test part",
        f"latency: all networks of the study frozen and timed in turns in one process, batch {base.latency_batch}, "
        f"{base.latency_threads} thread; {least:.0f} to {most:.0f} us",
        "cost: FLOPs by rule bars, two for a multiply-add, without stem and classifier",
        "interval: 95 %, t over the seeds of paired differences, corrected for images that their splits share (Nadeau "
        "and Bengio 2003); of one seed's images, Agresti and Min (2005)",
        "verdicts: their p is corrected for how many this study gives (Holm 1979), the intervals, each 95 % by itself, "
        "are not",
    ]
    if plan.name == CELLS:
        lines.append(
            f"random: up to {plan.randoms} for each seed with the widths and depths of the searched network and its "
            f"cost within {100 * WITHIN:.0f} %, from a walk in which all such cells are equally likely"
        )
        drawn = [row for row in rows if row["variant"] == RANDOM]
        ratios = [row["cost_ratio"] for row in drawn if row["cost_ratio"] is not None]
        if ratios:
            lines.append(
                f"the random ones have {statistics.fmean(ratios):.3f}x the cost of their searched one on average "
                f"({min(ratios):.3f} to {max(ratios):.3f}) and differ from it on "
                f"{statistics.fmean(row['edges_differ'] for row in drawn):.1f} of {drawn[0]['edges']} edges"
            )
    if plan.name == PARTS:
        lines.append(
            f"budget: {100 * plan.share:g} % of the FLOPs from the cheapest network of the space to the biggest"
        )
    if plan.name == COST:
        lines += [
            f"{own.name}: {own.flops:,.0f} FLOPs, below which {100 * BUDGETS[own.name]:g} % of {BUDGET_NETWORKS} "
            f"random networks of the space are; {own.latency:.0f} us, the mean by the device table of the "
            f"{own.networks} of them with these FLOPs within {100 * BUDGET_WITHIN:g} %"
            for own in plan.budgets
        ]
        lines.append(
            "area: under accuracy against measured latency, up to a corner that all share, in % of the rectangle; of "
            "the two networks of a kind the slower one counts wherever the latency allows it"
        )
    if plan.name == GUARDS:
        lines += _of_guards(base)
    return lines


def _of_guards(base: BarsSearchConfig) -> list[str]:
    from bitnas.methods.bars.controller import Controller

    lines = ["share of skips, of none: of the edges of all groups of cells, whatever the depths are"]
    if variants.mixed(Controller.from_dict(base.controller), base.space["operations"]):
        lines.append(
            "Bernoulli, each operation on or off by itself, is not among the variants: none is an operation of this "
            "space, and its logit would get no gradient from the loss; softmax stands in its place"
        )
    if left_out := variants.spared(base):
        lines.append(
            f"not added: {', '.join(left_out)}; another guard that has the weights ahead of the architecture is used"
        )
    return lines

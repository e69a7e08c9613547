"""A whole width search in one folder: parent, candidates, front; stopped and resumed at will.

The folder is the only state. Starting, resuming after a kill and continuing with more generations are the same call:
what is in the folder is used, what is missing is made, and the result is that of a run which was never stopped.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bitnas.methods import candidates, front_timing, run_folder
from bitnas.methods.run_folder import LATENCY_TABLE, Progress
from bitnas.methods.width import evaluate
from bitnas.methods.width.config import MEASURED, TABLE, WidthSearchConfig
from bitnas.search import NSGA2, Evolution, Journal, Stage, WidthSpace, WorkerPool, Workers, run_search
from bitnas.search.loop import Candidate, front_of
from bitnas.search.space import Genome

METHOD = "width"
PARENT, CHECKPOINT = "parent.safetensors", "parent.ckpt.safetensors"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, its settings, the rows of `front.json`, and one summary per generation."""

    folder: Path
    config: WidthSearchConfig
    front: list[dict[str, Any]]
    history: list[dict[str, Any]]


def search(
    config: WidthSearchConfig, out: str | os.PathLike[str], *, on_progress: Progress | None = None
) -> SearchResult:
    """Search for width codes and leave everything in the folder `out`; go on where an earlier call was stopped.

    Args:
        config: what to search, where, and how.
        out: the run folder, made if missing. One that holds a run must hold one of the same settings.
        on_progress: called with events, each a dict with "event":
            "search_start" (folder, population, generations, objectives);
            "parent_start" (epochs), "parent_epoch" (epoch, epochs, loss, accuracy, seconds), "parent_end" (accuracy);
            "generation_start", "evaluated", "generation_end", as `bitnas.search.run_search` describes them;
            "warning" (message);
            "front_timing" (networks): the front is now measured whole, its members in turns;
            "search_end" (evaluated, failed, rejected, front).

    Returns:
        The front, best first by the first objective (by fitness in the paper's search).

    Raises:
        FileExistsError: the folder holds something else, or a run with other settings.
        JournalLocked: another process is using the folder.
        JournalCorrupt, CorruptFileError: a file there is damaged.
        SearchFailed: no candidate of the first generation could be measured.
    """
    folder = Path(out)
    notify = on_progress or (lambda event: None)
    _check(folder, config)
    run_folder.claim(folder, config, METHOD, read_config, rule=config.counting_rule)
    with open_journal(folder, config) as journal:
        notify(
            {
                "event": "search_start",
                "folder": str(folder),
                "population": config.population,
                "generations": config.generations,
                "objectives": list(config.objectives),
            }
        )
        for note in candidates.load_data(config.data, config.seed).notes:
            notify({"event": "warning", "message": note})
        check = _table_check(folder, config, notify)
        with run_folder.open_pool(config, folder) as pool, run_folder.open_measurer(config) as measurer:
            if config.inherit:
                _train_parent(folder, config, notify)
            unit = _unit_latency(folder, config, journal, measurer) if config.needs_latency else None
            result = run_search(
                _strategy(config),
                _stages(folder, config, pool, unit),
                config.search_objectives(),
                journal,
                generations=config.generations,
                pool=pool,
                measurer=measurer,
                key=lambda genome: evaluate.architecture_key(config, genome),
                ties=config.ties(),
                derive=lambda metrics: evaluate.derived(config, metrics, unit if config.latency_weight else None),
                limit=lambda metrics: candidates.beyond_latency(config, metrics),
                on_generation=summary(folder, config, check).write,
                on_progress=notify,
            )
            pool.stop()  # the machine to itself, for the timings
            front = front_timing.timed_front(
                result.candidates,
                config.front_objectives(),
                _timing(config),
                journal,
                measurer,
                notify,
                beyond=lambda metrics: candidates.beyond_latency(config, metrics),
                by_latency=config.needs_latency,
                budget=config.latency_budget,
                derive=functools.partial(evaluate.derived, config) if config.latency_weight else None,
            )
        rows = _front_rows(front, config)
        run_folder.write_front(folder, rows)
    notify(run_folder.search_end(result, rows))
    return SearchResult(folder, config, rows, result.history)


def resume(
    out: str | os.PathLike[str],
    *,
    generations: int | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Go on with the search in a folder; a finished one is read from its journal and gives the same result again.

    Args:
        out: a run folder.
        generations: how many in all, to continue a search beyond what it was started with; not fewer than that.
        workers: processes, if others than it was started with.
        on_progress: see `search`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: `generations` is below what the run was started with.
        And as `search`.
    """
    folder = Path(out)
    config = read_config(folder)
    changed = run_folder.resumed(folder, config, generations, workers)
    if changed != config:
        with open_journal(folder, config):  # nobody else is using the folder
            run_folder.write_config(folder, changed, METHOD, rule=changed.counting_rule)
    return search(changed, folder, on_progress=on_progress)


def read_config(folder: Path) -> WidthSearchConfig:
    """The settings of a run folder; FileNotFoundError if there is none, CorruptFileError if they cannot be read."""
    return run_folder.read_settings(folder, METHOD, WidthSearchConfig.from_dict)


def open_journal(folder: Path, config: WidthSearchConfig) -> Journal:
    """The folder's journal, bound to these settings and this data; holds the folder's lock while open."""
    from bitnas import train

    return run_folder.open_journal(
        folder,
        config,
        METHOD,
        space={"choices": list(config.choices), "length": _space(config).length},
        recipes={name: train.RECIPES[name].to_dict() for name in (config.recipe, config.parent_recipe)},
    )


def _check(folder: Path, config: WidthSearchConfig) -> None:
    """Names and limits that only data, models and recipes can judge, before anything is written."""
    from bitnas import train

    for setting in ("recipe", "parent_recipe"):
        name = getattr(config, setting)
        if name not in train.RECIPES:
            raise ValueError(f"{setting}: got {name!r}, wanted one of {', '.join(train.RECIPES)}")
    run_folder.check_threads(config.latency_threads)  # the front is timed in any case
    if config.latency_source == TABLE and not (folder / LATENCY_TABLE).exists():
        evaluate.table_check(config, config.latency_table)
    cheapest = evaluate.costs(config, evaluate.network_config(config, min(config.choices)))["flops"]
    least = cheapest / evaluate.unit_flops(config)
    if config.budget is not None and config.budget < least:
        raise ValueError(f"budget: got {config.budget}, wanted at least {least:.4g}, what the narrowest network costs")


def _space(config: WidthSearchConfig) -> WidthSpace:
    from bitnas.models import num_ratios

    budget = config.budget
    if budget is None:
        return WidthSpace(config.choices, num_ratios(config.model))

    @functools.cache
    def within_budget(genome: Genome) -> bool:
        flops = evaluate.costs(config, evaluate.network_config(config, genome))["flops"]
        return flops <= budget * evaluate.unit_flops(config)

    return WidthSpace(config.choices, num_ratios(config.model), within_budget)


def _strategy(config: WidthSearchConfig) -> Evolution | NSGA2:
    space = _space(config)
    initial = _first_generation(config, space) if config.start_uniform else []
    if config.single_objective:
        return Evolution(space, population=config.population, seed=config.seed, initial=initial)
    return NSGA2(
        space, objectives=len(config.objectives), population=config.population, seed=config.seed, initial=initial
    )


def _first_generation(config: WidthSearchConfig, space: WidthSpace) -> list[Genome]:
    """Uniform networks and crossings of two of them; see `WidthSearchConfig.start_uniform`."""
    rng = Random(config.seed)
    uniform = [space.uniform(ratio) for ratio in config.choices[: max(2, config.population // 2)]]
    codes = dict.fromkeys(filter(space.permits, uniform))
    for _ in range(100 * config.population):  # enough to fill it, unless there are no more crossings
        if len(codes) == config.population:
            break
        mother, father = rng.sample(uniform, 2)
        child = space.crossover(mother, father, rng)
        if space.permits(child):
            codes.setdefault(child)
    return list(codes)


def _latency_stage(folder: Path, config: WidthSearchConfig, reference_us: float | None) -> Stage:
    table = str(folder / LATENCY_TABLE) if config.latency_source == TABLE else None
    return _timing(config).stage(reference_us, table)


def _stages(folder: Path, config: WidthSearchConfig, pool: Workers, unit: float | None) -> list[Stage]:
    """The latency first: what is beyond the budget need not be trained."""
    files = pool.share_files(folder, [PARENT] if config.inherit else [])
    train = Stage("train", evaluate.train_candidate, (config.to_dict(), files))
    return [_latency_stage(folder, config, unit), train] if config.needs_latency else [train]


def _unit_latency(folder: Path, config: WidthSearchConfig, journal: Journal, measurer: WorkerPool) -> float:
    """Us of the un-widened network, as this run's candidates get theirs: the unit of a latency term, and what timings
    are put in proportion to."""
    stage = None if config.latency_source == MEASURED else _latency_stage(folder, config, None)
    return _timing(config).reference_us(journal, measurer, stage)


def _timing(config: WidthSearchConfig) -> front_timing.Timing:
    reference = evaluate.reference(config)
    return front_timing.Timing(
        settings=config.to_dict(),
        one=evaluate.time_candidate,
        together=evaluate.time_front,
        alone=evaluate.time_alone,
        predict=evaluate.predict_candidate,
        reference=reference,
        reference_key=evaluate.architecture_key(config, reference),
        reference_name="the un-widened network",
    )


def _table_check(folder: Path, config: WidthSearchConfig, notify: Progress) -> dict[str, Any] | None:
    """How true the device table was found, if this run uses it."""
    if config.latency_source != TABLE:
        return None
    return run_folder.table_facts(
        folder, config.latency_table, lambda table: evaluate.table_check(config, table), notify
    )


def summary(folder: Path, config: WidthSearchConfig, check: dict[str, Any] | None) -> run_folder.Summary:
    """What keeps `search.json`, for `run_search`."""
    return run_folder.Summary(
        folder,
        lambda candidate: {"ratios": list(candidate.genome)},
        lambda found: front_of(found.candidates, config.front_objectives()),
        {"source": config.latency_source if config.needs_latency else None, "table_check": check},
    )


def _train_parent(folder: Path, config: WidthSearchConfig, notify: Progress) -> None:
    """Train the uniform network of the widest ratio on the train split, unless the folder has it."""
    from bitnas import train
    from bitnas.cost.latency import thread_count
    from bitnas.files import load_tensors, save_tensors

    path = folder / PARENT
    if path.exists():
        load_tensors(path, expected_format=evaluate.PARENT_FORMAT)  # a damaged one is refused before any work
        return
    dataset, split = evaluate.load_data(config.data, config.seed), evaluate.split_data(config)
    network = evaluate.network_config(config, max(config.choices))
    seed = evaluate.derive_seed(config.seed, "parent")
    model = evaluate.make_network(network, seed).to(evaluate.training_device(config, seed))
    recipe = train.RECIPES[config.parent_recipe].for_epochs(config.parent_epochs)
    validation = dataset.subset(split.val)
    notify({"event": "parent_start", "epochs": recipe.epochs})

    def on_epoch(epoch: train.Epoch) -> None:
        notify(
            {
                "event": "parent_epoch",
                "epoch": epoch.epoch,
                "epochs": recipe.epochs,
                "loss": epoch.loss,
                "accuracy": epoch.val_accuracy,
                "seconds": epoch.seconds,
            }
        )

    with thread_count(config.parent_threads):
        train.fit(
            model,
            dataset.subset(split.train),
            recipe,
            seed=seed,
            val=validation,
            checkpoint=folder / CHECKPOINT,
            on_epoch=on_epoch,
        )
        accuracy = train.evaluate(model, validation)
    save_tensors(
        path,
        model.state_dict(),
        {"format": evaluate.PARENT_FORMAT, "network": network.to_dict(), "accuracy": accuracy},
    )
    (folder / CHECKPOINT).unlink(missing_ok=True)
    del model
    evaluate.release_memory()
    notify({"event": "parent_end", "accuracy": accuracy})


def _front_rows(front: list[Candidate], config: WidthSearchConfig) -> list[dict[str, Any]]:
    from bitnas.models import widths

    if config.single_objective:
        best = config.objectives[0]
        front = sorted(front, key=lambda candidate: (-candidate.metrics[best], candidate.genome))
    return [
        {
            "ratios": list(candidate.genome),
            "widths": list(widths(evaluate.network_config(config, candidate.genome))),
            **candidate.metrics,
            "generation": candidate.generation,
            "key": candidate.key,
        }
        for candidate in front
    ]

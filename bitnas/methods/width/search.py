"""A whole width search in one folder: parent, candidates, front; stopped and resumed at will.

The folder is the only state. Starting, resuming after a kill and continuing with more generations are the same call:
what is in the folder is used, what is missing is made, and the result is that of a run which was never stopped.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bitnas.files import CorruptFileError, read_json_checked, write_json_checked
from bitnas.methods.width import evaluate
from bitnas.methods.width.config import MEASURED, TABLE, WidthSearchConfig
from bitnas.search import (
    NSGA2,
    Evolution,
    Failure,
    Journal,
    Record,
    SearchFailed,
    Stage,
    WidthSpace,
    WorkerPool,
    Workers,
    open_workers,
    run_search,
    run_tasks,
)
from bitnas.search.loop import Candidate, front_of
from bitnas.search.loop import SearchResult as Found
from bitnas.search.space import Genome

Progress = Callable[[dict[str, Any]], None]

CONFIG, JOURNAL, PARENT, CHECKPOINT, FRONT, SUMMARY = (
    "config.json",
    "journal.sqlite",
    "parent.safetensors",
    "parent.ckpt.safetensors",
    "front.json",
    "search.json",
)
FRONT_STAGE, WORKER_LOG, LATENCY_TABLE = "front-latency", "workers.log", "latency.sqlite"


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
    _claim(folder, config)
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
        for note in evaluate.load_data(config.data, config.seed).notes:
            notify({"event": "warning", "message": note})
        check = _table_check(folder, config, notify)
        with open_pool(config, folder) as pool, open_measurer(config) as measurer:
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
                limit=lambda metrics: evaluate.beyond_budget(config, metrics),
                on_generation=_Summary(folder, config, check).write,
                on_progress=notify,
            )
            pool.stop()  # the machine to itself, for the timings
            front = _timed_front(result.candidates, config, journal, measurer, notify)
        rows = _front_rows(front, config)
        _write_front(folder, rows)
    notify(
        {
            "event": "search_end",
            "evaluated": len(result.candidates),
            "failed": sum(candidate.status == "failed" for candidate in result.candidates),
            "rejected": sum(candidate.status == "rejected" for candidate in result.candidates),
            "front": len(rows),
        }
    )
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
    if generations is not None and generations < config.generations:
        raise ValueError(f"generations: got {generations}, wanted at least the {config.generations} of {folder}")
    changed = dataclasses.replace(
        config,
        generations=config.generations if generations is None else generations,
        workers=config.workers if workers is None else workers,
    )
    if changed != config:
        with open_journal(folder, config):  # nobody else is using the folder
            _write_config(folder, changed)
    return search(changed, folder, on_progress=on_progress)


def read_config(folder: Path) -> WidthSearchConfig:
    """The settings of a run folder; FileNotFoundError if there is none, CorruptFileError if they cannot be read."""
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {CONFIG}")
    settings = read_json_checked(
        path,
        fix="A run's settings are never edited: start another run with a new folder, or restore the file from a copy",
    )
    try:
        return WidthSearchConfig.from_dict(settings["search"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(path, f"does not hold the settings of a width search ({error})") from error


def open_journal(folder: Path, config: WidthSearchConfig) -> Journal:
    """The folder's journal, bound to these settings and this data; holds the folder's lock while open."""
    from bitnas import train
    from bitnas.cost import machine

    path = folder / JOURNAL
    if (folder / FRONT).exists() and (not path.exists() or path.stat().st_size == 0):
        raise CorruptFileError(path, "is empty or missing, though the search in this folder has finished; restore it")
    meta = {
        "method": "width",
        "version": 1,
        "seed": config.seed,
        "space": {"choices": list(config.choices), "length": _space(config).length},
        "data": evaluate.load_data(config.data, config.seed).fingerprint(),
        "recipes": {name: train.RECIPES[name].to_dict() for name in (config.recipe, config.parent_recipe)},
        # Latencies of another machine or kernel are not comparable with these.
        "machine": {name: machine.facts()[name] for name in ("cpu", "isa", "kernel_version", "torch")},
        "config": config.identity(),
    }
    return Journal(folder / JOURNAL, meta=meta)


def open_pool(config: WidthSearchConfig, folder: Path) -> Workers:
    """Workers for this run, on this machine or many, started on first use."""
    limit = None if config.memory_limit is None else int(config.memory_limit * 2**30)
    return open_workers(
        config.workers,
        timeout=config.timeout,
        memory_limit=limit,
        initializer=evaluate.start_worker,
        log=folder / WORKER_LOG,
    )


def open_measurer(config: WidthSearchConfig) -> WorkerPool:
    """The one process that latencies are measured in; this one for a run without workers. Always on this machine."""
    return WorkerPool(0 if config.workers == 0 else 1, timeout=config.timeout)


def _check(folder: Path, config: WidthSearchConfig) -> None:
    """Names and limits that only data, models and recipes can judge, before anything is written."""
    from bitnas import train

    for setting in ("recipe", "parent_recipe"):
        name = getattr(config, setting)
        if name not in train.RECIPES:
            raise ValueError(f"{setting}: got {name!r}, wanted one of {', '.join(train.RECIPES)}")
    cores = os.cpu_count() or 1
    if config.needs_latency and config.latency_threads > cores:
        raise ValueError(f"latency_threads: got {config.latency_threads}, wanted at most the {cores} CPUs there are")
    if config.latency_source == TABLE and not (folder / LATENCY_TABLE).exists():
        evaluate.table_check(config, config.latency_table)
    cheapest = evaluate.costs(config, evaluate.network_config(config, min(config.choices)))["flops"]
    least = cheapest / evaluate.unit_flops(config)
    if config.budget is not None and config.budget < least:
        raise ValueError(f"budget: got {config.budget}, wanted at least {least:.4g}, what the narrowest network costs")


def _write_front(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A study of an earlier front says nothing of this one; its trainings stay in the journal."""
    path, study = folder / FRONT, folder / "study.json"
    if study.exists() and not (path.exists() and read_front(folder) == json.loads(json.dumps(rows))):
        study.unlink()
    write_json_checked(path, rows)


def read_front(folder: Path) -> list[dict[str, Any]]:
    """The rows of `front.json`; FileNotFoundError without one, CorruptFileError if it was altered."""
    rows: list[dict[str, Any]] = read_json_checked(
        folder / FRONT,
        fix="Delete it and run `bitnas resume`: it is written again from the journal, nothing is measured",
    )
    return rows


def _claim(folder: Path, config: WidthSearchConfig) -> None:
    """Make the folder, or check that it is this run's."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, wanted a folder")
    if (folder / CONFIG).exists():
        existing = read_config(folder)
        if existing.identity(generations=True) != config.identity(generations=True):
            before, now = existing.to_dict(), config.to_dict()
            name = next(name for name in now if before[name] != now[name])
            raise FileExistsError(
                f"{folder} holds a run with other settings: {name} is {before[name]} there and {now[name]} here. "
                "Use another folder, or `resume` to go on with the run as it was."
            )
        return
    if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no {CONFIG}; use a new folder for a new run")
    folder.mkdir(parents=True, exist_ok=True)
    _write_config(folder, config)


def _write_config(folder: Path, config: WidthSearchConfig) -> None:
    write_json_checked(
        folder / CONFIG,
        {
            "method": "width",
            "search": config.to_dict(),
            "seed": config.seed,
            "rule": config.counting_rule,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": _versions(),
            "machine": _machine(),
        },
    )


def _versions() -> dict[str, str]:
    import platform

    import numpy
    import torch

    from bitnas import __version__

    return {
        "bitnas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _machine() -> dict[str, Any]:
    from bitnas.cost import machine

    return machine.facts()


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
    if config.latency_source == TABLE:
        table = str(folder / LATENCY_TABLE)
        return Stage("predicted-latency", evaluate.predict_candidate, (config.to_dict(), table), parallel=False)
    return Stage("latency", evaluate.time_candidate, (config.to_dict(), reference_us), parallel=False)


def _stages(folder: Path, config: WidthSearchConfig, pool: Workers, unit: float | None) -> list[Stage]:
    """The latency first: what is beyond the budget need not be trained."""
    files = pool.share_files(folder, [PARENT] if config.inherit else [])
    train = Stage("train", evaluate.train_candidate, (config.to_dict(), files))
    return [_latency_stage(folder, config, unit), train] if config.needs_latency else [train]


def _unit_latency(folder: Path, config: WidthSearchConfig, journal: Journal, measurer: WorkerPool) -> float:
    """Us of the un-widened network, as this run's candidates get theirs: the unit of a latency term, and what timings
    are put in proportion to."""
    if config.latency_source == MEASURED:
        return _reference_latency(config, journal, measurer)
    return _latency_of_reference(_latency_stage(folder, config, None), config, journal, measurer)


def _reference_latency(config: WidthSearchConfig, journal: Journal, measurer: WorkerPool) -> float:
    """Us that the un-widened network took when it was first asked for."""
    stage = Stage("reference-latency", evaluate.time_alone, (config.to_dict(),), parallel=False)
    return _latency_of_reference(stage, config, journal, measurer)


def _latency_of_reference(stage: Stage, config: WidthSearchConfig, journal: Journal, measurer: WorkerPool) -> float:
    genome = evaluate.reference(config)
    key = evaluate.architecture_key(config, genome)
    record, _ = next(run_tasks([(key, genome)], stage, journal, measurer))
    if not record.ok:
        raise SearchFailed(f"the un-widened network has no latency to compare with: {record.reason}")
    return record.metrics["latency_us"]


def _table_check(folder: Path, config: WidthSearchConfig, notify: Progress) -> dict[str, Any] | None:
    """How true the device table was found, if this run uses it; warns where that is not known or not good.

    The run keeps a copy of the table, so that building or checking it again changes nothing here.
    """
    if config.latency_source != TABLE:
        return None
    copy = folder / LATENCY_TABLE
    if not copy.exists():
        from bitnas.cost.device_table import copy_table

        copy_table(config.latency_table, copy)
    check = evaluate.table_check(config, str(copy))
    if check is None:
        notify({"event": "warning", "message": "the latency table was never checked; run `bitnas latency check`"})
        return None
    if not check.good:
        notify(
            {
                "event": "warning",
                "message": f"the latency table is off: Spearman {check.spearman:.3f}, median error "
                f"{check.median_error:.1%} over {check.networks} networks; build it again on an idle machine",
            }
        )
    return check.to_dict()


class _Summary:
    """Keeps `search.json`: what follows from the journal by this run's settings, so that a report need not run the
    search again."""

    def __init__(self, folder: Path, config: WidthSearchConfig, check: dict[str, Any] | None) -> None:
        self._path = folder / SUMMARY
        self._config, self._check = config, check
        self._fronts: list[list[str]] = []

    def write(self, result: Found) -> None:
        """After each generation."""
        self._fronts.append([c.key for c in front_of(result.candidates, self._config.front_objectives())])
        write_json_checked(
            self._path,
            {
                "history": result.history,
                "fronts": self._fronts,
                "candidates": [
                    {
                        "key": candidate.key,
                        "ratios": list(candidate.genome),
                        "status": candidate.status,
                        "reason": candidate.reason,
                        "generation": candidate.generation,
                        "metrics": candidate.metrics,
                    }
                    for candidate in result.candidates
                ],
                "latency": {
                    "source": self._config.latency_source if self._config.needs_latency else None,
                    "table_check": self._check,
                },
            },
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


def _timed_front(
    candidates: Sequence[Candidate], config: WidthSearchConfig, journal: Journal, measurer: WorkerPool, notify: Progress
) -> list[Candidate]:
    """The front with every member measured whole, in turns with the others.

    What turns out to be over the budget leaves the front to those that it kept off. What the search selected by stays
    beside the new latency and fitness as `searched_latency_us` and `searched_fitness`.
    """
    reference_us: float | None = None
    left = {candidate.key: candidate for candidate in reversed(candidates) if candidate.status == "ok"}
    while left:
        front = front_of(list(left.values()), config.front_objectives())
        fresh = [candidate for candidate in front if journal.get(candidate.key, FRONT_STAGE) is None]
        if reference_us is None:
            reference_us = _reference_latency(config, journal, measurer)
        if fresh:
            notify({"event": "front_timing", "networks": len(fresh)})
            for candidate, metrics in zip(fresh, _time_front(fresh, config, measurer, reference_us), strict=True):
                fields = {"key": candidate.key, "genome": candidate.genome, "stage": FRONT_STAGE}
                if isinstance(metrics, Failure):
                    notify({"event": "warning", "message": f"a network of the front was not timed: {metrics.reason}"})
                    journal.add(Record.failure(metrics.reason, generation=candidate.generation, **fields))
                else:
                    journal.add(Record.of(metrics, generation=candidate.generation, **fields))
        timed = [_with_final_latency(candidate, config, journal, reference_us) for candidate in front]
        over = [one.key for one in timed if evaluate.beyond_budget(config, one.metrics) is not None]
        if not over:
            return front_of(timed, config.front_objectives()) if config.needs_latency else timed
        for key in over:
            del left[key]
    raise SearchFailed(
        f"no network is within the latency budget of {config.latency_budget} us when it is measured whole; allow more"
    )


def _with_final_latency(
    candidate: Candidate, config: WidthSearchConfig, journal: Journal, reference_us: float
) -> Candidate:
    record = journal.get(candidate.key, FRONT_STAGE)
    assert record is not None
    if not record.ok:
        return candidate
    before = {
        f"searched_{name}": candidate.metrics[name]
        for name in ("latency_us", "fitness")
        if name in candidate.metrics and (name != "fitness" or config.latency_weight)
    }
    kept = {name: value for name, value in candidate.metrics.items() if not name.startswith("latency_")}
    metrics = {**kept, **record.metrics, **before}
    if config.latency_weight:
        metrics |= evaluate.derived(config, metrics, reference_us)
    return dataclasses.replace(candidate, metrics=metrics)


def _time_front(
    front: Sequence[Candidate], config: WidthSearchConfig, measurer: WorkerPool, reference_us: float
) -> list[dict[str, float] | Failure]:
    genomes, settings = [candidate.genome for candidate in front], config.to_dict()
    found = next(iter(measurer.run(evaluate.time_front, [(genomes, settings, reference_us)])))[1]
    if not isinstance(found, Failure):
        return found
    # One that crashes or hangs must not take the others' places: each alone.
    tasks = [(genome, settings, reference_us) for genome in genomes]
    alone = {index: result for index, result, _ in measurer.run(evaluate.time_candidate, tasks)}
    return [alone[index] for index in range(len(front))]


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

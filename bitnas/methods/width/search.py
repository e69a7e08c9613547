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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from bitnas.files import CorruptFileError, write_json_atomic
from bitnas.methods.width import evaluate
from bitnas.methods.width.config import WidthSearchConfig
from bitnas.search import NSGA2, Evolution, Journal, Stage, WidthSpace, WorkerPool, run_search, run_tasks
from bitnas.search.loop import Candidate, front_of
from bitnas.search.space import Genome

Progress = Callable[[dict[str, Any]], None]

CONFIG, JOURNAL, PARENT, CHECKPOINT, FRONT = (
    "config.json",
    "journal.sqlite",
    "parent.safetensors",
    "parent.ckpt.safetensors",
    "front.json",
)


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
            "front_timed" (genome, status, reason, replayed, done, total), where latency is no objective;
            "search_end" (evaluated, failed, front).

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
    _check(config)
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
        if config.inherit:
            _train_parent(folder, config, notify)
        with open_pool(config) as pool:
            result = run_search(
                _strategy(config),
                _stages(folder, config),
                config.search_objectives(),
                journal,
                generations=config.generations,
                pool=pool,
                key=lambda genome: evaluate.architecture_key(config, genome),
                on_progress=notify,
            )
        front = front_of(result.candidates, config.front_objectives())
        rows = _front_rows(_with_latency(front, config, journal, notify), config)
        _write_front(folder, rows)
    notify(
        {
            "event": "search_end",
            "evaluated": len(result.candidates),
            "failed": sum(candidate.status == "failed" for candidate in result.candidates),
            "front": len(rows),
        }
    )
    return SearchResult(folder, config, rows, result.history)


def resume(
    out: str | os.PathLike[str],
    *,
    generations: int | None = None,
    workers: int | None = None,
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
    try:
        return WidthSearchConfig.from_dict(json.loads(path.read_text(encoding="utf-8"))["search"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
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
        "machine": {name: machine.facts()[name] for name in ("cpu", "isa", "kernel_version")},
        "config": config.identity(),
    }
    return Journal(folder / JOURNAL, meta=meta)


def open_pool(config: WidthSearchConfig) -> WorkerPool:
    """Workers for this run, started on first use."""
    return WorkerPool(config.workers, timeout=config.timeout, initializer=evaluate.start_worker)


def _check(config: WidthSearchConfig) -> None:
    """Names and limits that only data, models and recipes can judge, before anything is written."""
    from bitnas import train

    for setting in ("recipe", "parent_recipe"):
        name = getattr(config, setting)
        if name not in train.RECIPES:
            raise ValueError(f"{setting}: got {name!r}, wanted one of {', '.join(train.RECIPES)}")
    cheapest = evaluate.costs(config, evaluate.network_config(config, min(config.choices)))["flops"]
    least = cheapest / evaluate.unit_flops(config)
    if config.budget is not None and config.budget < least:
        raise ValueError(f"budget: got {config.budget}, wanted at least {least:.4g}, what the narrowest network costs")


def _write_front(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A study of an earlier front says nothing of this one; its trainings stay in the journal."""
    path, study = folder / FRONT, folder / "study.json"
    text = json.dumps(rows)
    if study.exists() and not (path.exists() and json.dumps(json.loads(path.read_text(encoding="utf-8"))) == text):
        study.unlink()
    write_json_atomic(path, rows)


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
    write_json_atomic(
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
    if config.paper_mode:
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


def _latency_stage(config: WidthSearchConfig) -> Stage:
    return Stage("latency", evaluate.time_candidate, (config.to_dict(),), parallel=False)


def _stages(folder: Path, config: WidthSearchConfig) -> list[Stage]:
    stages = [Stage("train", evaluate.train_candidate, (config.to_dict(), str(folder)))]
    if "latency" in config.objectives:
        stages.append(_latency_stage(config))
    return stages


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
    model = evaluate.make_network(network, seed)
    recipe = dataclasses.replace(train.RECIPES[config.parent_recipe], epochs=config.parent_epochs)
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


def _with_latency(
    front: list[Candidate], config: WidthSearchConfig, journal: Journal, notify: Progress
) -> list[Candidate]:
    """The front with a latency on each member, where the search itself did not need one."""
    if "latency" in config.objectives:
        return front
    stage = _latency_stage(config)
    tasks = [(candidate.key, candidate.genome) for candidate in front]
    timed = {}
    for done, (record, replayed) in enumerate(run_tasks(tasks, stage, journal, WorkerPool(0)), 1):
        timed[record.key] = dict(record.metrics)
        notify(
            {
                "event": "front_timed",
                "genome": record.genome,
                "status": record.status,
                "reason": record.reason,
                "replayed": replayed,
                "done": done,
                "total": len(tasks),
            }
        )
    return [
        dataclasses.replace(candidate, metrics={**candidate.metrics, **timed[candidate.key]}) for candidate in front
    ]


def _front_rows(front: list[Candidate], config: WidthSearchConfig) -> list[dict[str, Any]]:
    from bitnas.models import widths

    if config.paper_mode:
        front = sorted(front, key=lambda candidate: (-candidate.metrics["fitness"], candidate.genome))
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

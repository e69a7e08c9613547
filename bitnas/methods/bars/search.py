"""A whole search by BARS in one folder: supernet, derived networks, front; stopped and resumed at will.

As with every method the folder is the only state, and starting and resuming after a kill are the same call. What is
judged follows from the supernet alone, and the journal knows that by the hash of its file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnas.files import CorruptFileError, read_json_checked, write_json_atomic
from bitnas.methods import candidates, front_timing, run_folder
from bitnas.methods.bars import evaluate
from bitnas.methods.bars.config import BarsSearchConfig
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.derive import derive
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.bars.evaluate import SUPERNET
from bitnas.methods.run_folder import LATENCY_TABLE, Progress
from bitnas.methods.settings import TABLE
from bitnas.models.operations import NONE
from bitnas.search import FixedList, Journal, Record, Stage, Workers, run_search
from bitnas.search.loop import Candidate, front_of

METHOD = "bars"
CHECKPOINT, COURSE, NETWORKS = "supernet.ckpt.safetensors", "course.json", "networks"
SUPERNET_STAGE = "supernet"
INHERIT_STAGE, TRAIN_STAGE = "inherit", "train"
_AGAIN = f"Delete it and {SUPERNET}, then `bitnas resume`: the same supernet is trained again"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, its settings, the rows of `front.json`, and one summary per generation."""

    folder: Path
    config: BarsSearchConfig
    front: list[dict[str, Any]]
    history: list[dict[str, Any]]


def search(
    config: BarsSearchConfig, out: str | os.PathLike[str], *, on_progress: Progress | None = None
) -> SearchResult:
    """Train a supernet and its architecture together, derive networks, judge them, and leave everything in the folder
    `out`; go on where an earlier call was stopped.

    Args:
        config: what to search, where, and how.
        out: the run folder, made if missing. One that holds a run must hold one of the same settings.
        on_progress: called with events, each a dict with "event":
            "derive_start" (folder, epochs, samples, objectives);
            "supernet_start" (epochs), "supernet_step" (epoch, step, steps), "architecture_epoch" (epochs, budgets, and
            the members of a record of the course), "architecture_end" (epochs, skips);
            "derived" (networks);
            "generation_start", "evaluated", "generation_end", as `bitnas.search.run_search` describes them;
            "warning" (message);
            "front_timing" (networks): the front is now measured whole, its members in turns;
            "search_end" (evaluated, failed, rejected, front).

    Returns:
        The front, best first by the first objective.

    Raises:
        FileExistsError: the folder holds something else, or a run with other settings.
        FileNotFoundError, ValueError: the loss or the settings ask for a device table that is not there or is of other
            networks; or a budget is below what every network of the space costs.
        NonFiniteError: a loss, a logit or an expected cost was not finite; the last checkpoint before it, if one was
            written, is kept, but the same settings diverge again.
        JournalLocked: another process is using the folder.
        JournalCorrupt, CorruptFileError: a file there is damaged.
        SearchFailed: no derived network could be measured.
    """
    folder = Path(out)
    notify = on_progress or (lambda event: None)
    _check(folder, config)
    run_folder.claim(folder, config, METHOD, read_config, rule="mac")
    with open_journal(folder, config) as journal:
        notify(
            {
                "event": "derive_start",
                "folder": str(folder),
                "epochs": config.controller["epochs"],
                "samples": config.samples,
                "objectives": list(config.objectives),
            }
        )
        for note in (*candidates.load_data(config.data, config.seed).notes, *evaluate.few_images(config)):
            notify({"event": "warning", "message": note})
        table = _table_facts(folder, config, notify)
        space = evaluate.description(config)
        if config.controller["micro"] == "bernoulli" and NONE in space.operations:
            message = (
                "micro is 'bernoulli' and 'none' is among the operations: its weight reaches no loss, so that only "
            )
            message += "the entropy moves its probability, often to the top; use micro 'gumbel' or 'softmax'"
            notify({"event": "warning", "message": message})
        _bind_supernet(folder, config, space, journal, notify)
        derived = _derive(folder, config, space, notify)
        with run_folder.open_pool(config, folder) as pool, run_folder.open_measurer(config) as measurer:
            timing = timing_of(config)
            measured = config.needs_latency and config.latency_source != TABLE
            reference_us = timing.reference_us(journal, measurer) if measured else None
            result = run_search(
                FixedList([space.genome(architecture) for architecture in derived]),
                stages(folder, config, pool, reference_us),
                config.front_objectives(),
                journal,
                generations=config.generations,
                pool=pool,
                measurer=measurer,
                key=lambda genome: space.network(space.architecture(genome)).key(),
                on_generation=run_folder.Summary(
                    folder,
                    lambda candidate: _described(space, candidate),
                    lambda found: front_of(found.candidates, config.front_objectives()),
                    {"source": config.latency_source if config.needs_latency else None, "table_check": table},
                    lambda found: {"likeliest": found.candidates[0].key},
                ).write,
                on_progress=notify,
            )
            pool.stop()  # the machine to itself, for the timings
            front = front_timing.timed_front(
                result.candidates,
                config.front_objectives(),
                timing,
                journal,
                measurer,
                notify,
                beyond=lambda metrics: None,
                by_latency=config.needs_latency,
                budget=None,
            )
        rows = [
            {
                **_described(space, candidate),
                **candidate.metrics,
                "likeliest": candidate.key == result.candidates[0].key,
                "generation": candidate.generation,
                "key": candidate.key,
                "file": f"{NETWORKS}/front-{number}.json",
            }
            for number, candidate in enumerate(front, 1)
        ]
        _write_networks(folder, rows)
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
        generations: None or 1: what is judged is derived from the supernet at once.
        workers: processes, if others than it was started with.
        on_progress: see `search`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: `generations` is above 1, or the run is another method's.
        And as `search`.
    """
    if generations not in (None, 1):
        raise ValueError(
            f"generations: got {generations}, but BARS derives its networks at once; for more of them start a search "
            "with more samples (--samples) in a new folder"
        )
    folder = Path(out)
    config = read_config(folder)
    changed = run_folder.resumed(folder, config, None, workers)
    if changed != config:
        with open_journal(folder, config):  # nobody else is using the folder
            run_folder.write_config(folder, changed, METHOD, rule="mac")
    return search(changed, folder, on_progress=on_progress)


def read_config(folder: Path) -> BarsSearchConfig:
    """The settings of a run folder; FileNotFoundError if there is none, CorruptFileError if they cannot be read."""
    return run_folder.read_settings(folder, METHOD, BarsSearchConfig.from_dict)


def open_journal(folder: Path, config: BarsSearchConfig) -> Journal:
    """The folder's journal, bound to these settings and this data; holds the folder's lock while open."""
    training = evaluate.recipe(config)
    return run_folder.open_journal(
        folder,
        config,
        METHOD,
        space=evaluate.description(config).to_dict(),
        controller=config.controller,
        recipe=None if training is None else training.to_dict(),
    )


def stages(folder: Path, config: BarsSearchConfig, pool: Workers, reference_us: float | None) -> list[Stage]:
    """What is measured of a derived network: its latency where that is an objective, and its accuracy."""
    table = str(folder / LATENCY_TABLE) if config.latency_source == TABLE else None
    latency = [timing_of(config).stage(reference_us, table)] if config.needs_latency else []
    name = TRAIN_STAGE if config.train_epochs else INHERIT_STAGE
    files = pool.share_files(folder, [] if config.train_epochs else [SUPERNET])
    return [*latency, Stage(name, evaluate.evaluate_candidate, (config.to_dict(), files))]


def timing_of(config: BarsSearchConfig) -> front_timing.Timing:
    """How networks are timed: beside the reference of the space's device table."""
    reference = evaluate.reference(config)
    return front_timing.Timing(
        settings=config.to_dict(),
        one=evaluate.time_candidate,
        together=evaluate.time_front,
        alone=evaluate.time_alone,
        predict=evaluate.predict_candidate,
        reference=reference,
        reference_key=evaluate.architecture_key(config, reference),
        reference_name="the reference network of the space",
    )


def _check(folder: Path, config: BarsSearchConfig) -> None:
    """What only data, space, recipes and the machine can judge, before anything is written."""
    from bitnas.train import RECIPES

    if config.recipe not in RECIPES:
        raise ValueError(f"recipe: got {config.recipe!r}, wanted one of {', '.join(RECIPES)}")
    candidates.pick_device(config.device, 0)
    run_folder.check_threads(config.latency_threads)  # the front is timed in any case
    evaluate.halves(config)
    table = config.latency_table
    if config.needs_table and not (folder / LATENCY_TABLE).exists():
        evaluate.table_check(config, table)
    elif config.needs_table:
        table = str(folder / LATENCY_TABLE)
    _check_budgets(config, table)


def _check_budgets(config: BarsSearchConfig, table: str | None) -> None:
    """Refuse a budget that no network of the space meets."""
    from bitnas.methods.bars.training import least_cost

    budgets = Controller.from_dict(config.controller).budgets
    lists = evaluate.prices(config, table) if budgets else {}
    for name, budget in budgets.items():
        least = least_cost(evaluate.description(config), lists[name])
        if budget < least:
            raise ValueError(
                f"controller.{name}_budget (--{name}-budget): got {budget:g} {lists[name].unit}, but the cheapest "
                f"network of space {config.space['name']} on {config.data} has {least:,.6g}; wanted at least that"
            )


def _table_facts(folder: Path, config: BarsSearchConfig, notify: Progress) -> dict[str, Any] | None:
    """How true the device table was found, if this run uses it."""
    if not config.needs_table:
        return None
    return run_folder.table_facts(
        folder, config.latency_table, lambda table: evaluate.table_check(config, table), notify
    )


def _bind_supernet(
    folder: Path, config: BarsSearchConfig, space: Description, journal: Journal, notify: Progress
) -> None:
    """Have the supernet and its course in the folder, and hold the journal to it."""
    path = folder / SUPERNET
    bound = [record.key for record in journal.records() if record.stage == SUPERNET_STAGE]
    if not path.exists():
        _train_supernet(folder, config, space, notify)
    found = evaluate.read_supernet(path)  # damage is refused before any work
    if found.description.key() != space.key():
        raise CorruptFileError(path, f"is a supernet of another space than this search. {_AGAIN}")
    try:
        read_json_checked(folder / COURSE, fix=_AGAIN)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder / COURSE} is missing. Delete {SUPERNET} too, then `bitnas resume`") from error
    digest = candidates.digest(path)
    if bound and digest != bound[0]:
        raise CorruptFileError(path, f"is not the supernet that this search derived from. {_AGAIN}")
    if not bound:
        journal.add(Record(key=digest, genome=(), stage=SUPERNET_STAGE))


def _train_supernet(folder: Path, config: BarsSearchConfig, space: Description, notify: Progress) -> None:
    """Train weights and architecture on the two halves of the train split; goes on from the folder's checkpoint."""
    from bitnas.cost.latency import thread_count
    from bitnas.methods.bars import training
    from bitnas.methods.bars.course import at_chance

    controller = Controller.from_dict(config.controller)
    weights, architecture = evaluate.halves(config)
    seed = candidates.derive_seed(config.seed, "supernet")
    notify({"event": "supernet_start", "epochs": controller.epochs})

    def on_epoch(record: dict[str, Any]) -> None:
        notify({**record, "event": "architecture_epoch", "epochs": controller.epochs, "budgets": controller.budgets})

    def on_step(epoch: int, step: int, steps: int) -> None:
        notify({"event": "supernet_step", "epoch": epoch, "epochs": controller.epochs, "step": step, "steps": steps})

    with thread_count(config.supernet_threads):
        supernet, course = training.train(
            space,
            controller,
            weights,
            architecture,
            seed=seed,
            prices=evaluate.prices(config, str(folder / LATENCY_TABLE) if config.needs_table else None),
            checkpoint=folder / CHECKPOINT,
            on_epoch=on_epoch,
            on_step=on_step,
            device=candidates.pick_device(config.device, seed),
        )
    training.save_course(course, folder / COURSE)
    # Nothing of when or where: a supernet that is trained again gives the same file.
    facts = {"images": weights.fingerprint(), "controller": config.controller}
    training.save_supernet(supernet, folder / SUPERNET, facts)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    del supernet
    candidates.release_memory()
    if (said := at_chance(course, space.num_classes)) is not None:
        notify({"event": "warning", "message": said})
    notify({"event": "architecture_end", "epochs": len(course), "skips": course[-1]["skips"]})


def _derive(folder: Path, config: BarsSearchConfig, space: Description, notify: Progress) -> list[Architecture]:
    """The networks that the run judges."""
    probabilities = evaluate.load_supernet(str(folder / SUPERNET)).probabilities().map(lambda p: p.detach())
    seed = candidates.derive_seed(config.seed, "derive")
    derived = derive(space, probabilities, config.samples, seed, layout=config.sample_layout)
    notify({"event": "derived", "networks": len(derived)})
    if len(derived) < config.samples:
        notify(
            {
                "event": "warning",
                "message": f"{len(derived)} different networks were derived instead of {config.samples}: the supernet "
                "has made up its mind",
            }
        )
    return derived


def _described(space: Description, candidate: Candidate) -> dict[str, Any]:
    architecture = space.architecture(candidate.genome)
    return {
        "genome": list(candidate.genome),
        "architecture": architecture.to_dict(),
        "network": space.network(architecture).to_dict(),
    }


def _write_networks(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The architecture of each member of the front, for `create_model`; those of an earlier front go."""
    (folder / NETWORKS).mkdir(exist_ok=True)
    kept = {row["file"] for row in rows}
    for old in (folder / NETWORKS).glob("front-*.json"):
        if f"{NETWORKS}/{old.name}" not in kept:
            old.unlink()
    for row in rows:
        write_json_atomic(folder / row["file"], row["network"])

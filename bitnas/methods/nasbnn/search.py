"""A whole search by NAS-BNN in one folder: supernet, subnets, front; stopped and resumed at will.

As with every method the folder is the only state, and starting, resuming after a kill and continuing with more
generations are the same call. The journal knows the supernet by the hash of its file: what was measured with one is
never mixed with what another would give.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError, load_tensors, write_bytes_atomic
from bitnas.methods import candidates, front_timing, run_folder
from bitnas.methods.nasbnn import evaluate
from bitnas.methods.nasbnn.config import MEASURED, TABLE, NasBnnSearchConfig
from bitnas.methods.nasbnn.evaluate import SUPERNET
from bitnas.methods.run_folder import LATENCY_TABLE, Progress
from bitnas.search import NSGA2, BucketArchive, Journal, Record, SearchFailed, Stage, Workers, run_search
from bitnas.search.loop import Candidate, front_of
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from bitnas.methods.nasbnn.space import SubnetSpace

METHOD = "nasbnn"
CHECKPOINT, LOG = "supernet.ckpt.safetensors", "supernet.csv"
SUPERNET_STAGE, EVALUATE_STAGE = "supernet", "inherit"


@dataclass(frozen=True)
class SearchResult:
    """A finished search: its folder, its settings, the rows of `front.json`, and one summary per generation."""

    folder: Path
    config: NasBnnSearchConfig
    front: list[dict[str, Any]]
    history: list[dict[str, Any]]


def search(
    config: NasBnnSearchConfig,
    out: str | os.PathLike[str],
    *,
    supernet: str | os.PathLike[str] | None = None,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Train a supernet, search its subnets, and leave everything in the folder `out`; go on where an earlier call was
    stopped.

    Args:
        config: what to search, where, and how.
        out: the run folder, made if missing. One that holds a run must hold one of the same settings.
        supernet: file of a trained supernet of the same space, strategies and train split, which is copied; None trains
            one in the folder.
        on_progress: called with events, each a dict with "event":
            "search_start" (folder, population, generations, objectives);
            "supernet_start" (epochs), "supernet_step" (epoch, step, steps), "supernet_epoch" (epoch, epochs, loss,
            accuracy, seconds), "supernet_end" (accuracy or None, given);
            "generation_start", "evaluated", "generation_end", as `bitnas.search.run_search` describes them;
            "warning" (message), also where a generation comes short because nothing more was found in the window;
            "front_timing" (networks): the front is now measured whole, its members in turns;
            "search_end" (evaluated, failed, rejected, front).

    Returns:
        The front, best first by the first objective: of the archive's members, or of all candidates with other
        objectives; only subnets within the window of OPs.

    Raises:
        FileExistsError: the folder holds something else, or a run with other settings or another supernet.
        ValueError: the supernet is of another space, other strategies or other images; or no subnet is within the
            window of OPs.
        JournalLocked: another process is using the folder.
        JournalCorrupt, CorruptFileError: a file there is damaged.
        SearchFailed: no candidate of the first generation could be measured.
    """
    folder = Path(out)
    notify = on_progress or (lambda event: None)
    if supernet is not None:
        config = dataclasses.replace(config, supernet=candidates.digest(Path(supernet)))
    _check(folder, config, supernet)
    run_folder.claim(folder, config, METHOD, read_config, rule="nasbnn")
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
        table = _table_check(folder, config, notify)
        space = evaluate.search_space(config)
        strategy = _strategy(config, space)
        with run_folder.open_pool(config, folder) as pool, run_folder.open_measurer(config) as measurer:
            _bind_supernet(folder, config, supernet, journal, notify)
            reference_us = timing_of(config).reference_us(journal, measurer) if times_candidates(config) else None

            def members(found: Sequence[Candidate]) -> list[Candidate]:
                return _members(found, strategy, space)

            result = run_search(
                strategy,
                stages(folder, config, pool, reference_us),
                config.search_objectives(),
                journal,
                generations=config.generations,
                pool=pool,
                measurer=measurer,
                key=lambda genome: space.subnet(genome).key(),
                limit=lambda metrics: candidates.beyond_latency(config, metrics),
                members=members,
                on_generation=run_folder.Summary(
                    folder,
                    lambda candidate: {
                        "genome": list(candidate.genome),
                        "subnet": space.subnet(candidate.genome).to_dict(),
                    },
                    lambda found: front_of(members(found.candidates), config.front_objectives()),
                    {"source": config.latency_source if config.needs_latency else None, "table_check": table},
                    lambda found: {"archive": _archive(strategy, found.candidates)},
                ).write,
                on_progress=_telling_of_few(config, notify),
            )
            if len(result.history) < config.generations:
                message = f"the search ended after {len(result.history)} of {config.generations} generations: it found "
                message += f"no more subnets {_window(config)} that it had not asked for"
                notify({"event": "warning", "message": message})
            pool.stop()  # the machine to itself, for the timings
            if not members(result.candidates):
                raise SearchFailed(f"no subnet {_window(config)} could be measured; see {folder / run_folder.SUMMARY}")
            front = front_timing.timed_front(
                members(result.candidates),
                config.front_objectives(),
                timing_of(config),
                journal,
                measurer,
                notify,
                beyond=lambda metrics: candidates.beyond_latency(config, metrics),
                by_latency=config.needs_latency,
                budget=config.latency_budget,
            )
        rows = [
            {
                "subnet": space.subnet(candidate.genome).to_dict(),
                "genome": list(candidate.genome),
                **candidate.metrics,
                "generation": candidate.generation,
                "key": candidate.key,
            }
            for candidate in front
        ]
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
        ValueError: `generations` is below what the run was started with, or the run is another method's.
        And as `search`.
    """
    folder = Path(out)
    config = read_config(folder)
    changed = run_folder.resumed(folder, config, generations, workers)
    if changed != config:
        with open_journal(folder, config):  # nobody else is using the folder
            run_folder.write_config(folder, changed, METHOD, rule="nasbnn")
    return search(changed, folder, on_progress=on_progress)


def read_config(folder: Path) -> NasBnnSearchConfig:
    """The settings of a run folder; FileNotFoundError if there is none, CorruptFileError if they cannot be read."""
    return run_folder.read_settings(folder, METHOD, NasBnnSearchConfig.from_dict)


def open_journal(folder: Path, config: NasBnnSearchConfig) -> Journal:
    """The folder's journal, bound to these settings and this data; holds the folder's lock while open."""
    return run_folder.open_journal(
        folder,
        config,
        METHOD,
        space=evaluate.description(config).to_dict(),
        strategies=config.strategies,
        recipe=None if config.supernet is not None else evaluate.supernet_recipe(config).to_dict(),
    )


def _check(folder: Path, config: NasBnnSearchConfig, supernet: str | os.PathLike[str] | None) -> None:
    """What only data, space, recipes and the machine can judge, before anything is written."""
    from bitnas.train import RECIPES

    if config.recipe not in RECIPES:
        raise ValueError(f"recipe: got {config.recipe!r}, wanted one of {', '.join(RECIPES)}")
    candidates.pick_device(config.device, 0)
    run_folder.check_threads(config.latency_threads)  # the front is timed in any case
    _check_window(config)
    if config.latency_source == TABLE and not (folder / LATENCY_TABLE).exists():
        evaluate.table_check(config, config.latency_table)
    if supernet is not None:
        _check_supernet(Path(supernet), config)


def _check_window(config: NasBnnSearchConfig) -> None:
    """Refuse a window of OPs without a subnet: a search there would judge the smallest and the biggest."""
    space = evaluate.search_space(config)
    try:
        space.random(Random(config.seed))
    except ValueError as error:
        least, most = (float(space.cost(genome).ops) / 1e6 for genome in (space.smallest, space.biggest))
        raise ValueError(
            f"ops_low, ops_high (--ops-window LOW,HIGH): no subnet {_window(config)} was found; space "
            f"{space.description.name} on {config.data} holds {least:.4g} to {most:.4g} M ({error})"
        ) from None


def _telling_of_few(config: NasBnnSearchConfig, notify: Progress) -> Progress:
    """Progress that also warns of a generation with fewer subnets than the settings ask for."""

    def told(event: dict[str, Any]) -> None:
        notify(event)
        if event["event"] != "generation_start":
            return
        later = config.by_archive and event["generation"] > 0
        wanted = config.mutations + config.crossovers if later else config.population
        if event["candidates"] < wanted:
            message = f"generation {event['generation']} has {event['candidates']} subnets instead of {wanted}: the "
            message += f"search found no more {_window(config)} that it had not asked for"
            notify({"event": "warning", "message": message})

    return told


def _window(config: NasBnnSearchConfig) -> str:
    return f"of {config.ops_low / 1e6:.4g} to {config.ops_high / 1e6:.4g} M OPs"


def _check_supernet(path: Path, config: NasBnnSearchConfig) -> None:
    """Refuse a file that is no supernet of this run."""
    from bitnas.methods.nasbnn import training

    found = training.load_supernet(path)
    wanted = evaluate.description(config)
    if found.description.key() != wanted.key():
        raise ValueError(
            f"{path} is a supernet of another space ({found.description.name}, input size "
            f"{list(found.description.input_size)}, {found.description.num_classes} classes) than this search "
            f"({wanted.name}, {list(wanted.input_size)}, {wanted.num_classes}); search in its space, or train another"
        )
    if found.strategies.to_dict() != config.strategies:
        raise ValueError(
            f"{path} is a supernet trained with strategies {found.strategies.to_dict()}, and this search is of "
            f"{config.strategies}; give the search the same"
        )
    known = load_tensors(path, expected_format=training.FORMAT)[1].get("images")
    if known != _train_part(config).fingerprint():
        raise ValueError(
            f"{path} was trained on other images than the train split of this search, so it may have seen those that "
            f"judge; train it with the same data, seed ({config.seed}) and shares ({config.train_fraction:g} and "
            f"{config.val_fraction:g})"
        )


def _train_part(config: NasBnnSearchConfig) -> Any:
    return candidates.load_data(config.data, config.seed).subset(evaluate.split_data(config).train)


def _bind_supernet(
    folder: Path,
    config: NasBnnSearchConfig,
    given: str | os.PathLike[str] | None,
    journal: Journal,
    notify: Progress,
) -> None:
    """Have the supernet in the folder, and hold the journal to it."""
    path = folder / SUPERNET
    bound = [record.key for record in journal.records() if record.stage == SUPERNET_STAGE]
    if not path.exists():
        if config.supernet is None:
            _train_supernet(folder, config, notify)
        elif given is None:
            raise FileNotFoundError(
                f"{path} is missing: this search was given a supernet. Start it again with the same one (--supernet)"
            )
        else:
            write_bytes_atomic(path, Path(given).read_bytes())
            notify({"event": "supernet_end", "accuracy": None, "given": True})
    digest = candidates.digest(path)
    if (bound and digest != bound[0]) or config.supernet not in (None, digest):
        _check_supernet(path, config)  # damage has a message of its own
        raise CorruptFileError(
            path,
            "is not the supernet that this search began with. Restore that file, or search in a new folder with this "
            "one (--supernet)",
        )
    if not bound:
        _check_supernet(path, config)
        journal.add(Record(key=digest, genome=(), stage=SUPERNET_STAGE))


def _train_supernet(folder: Path, config: NasBnnSearchConfig, notify: Progress) -> None:
    """Train it on the train split; goes on from the folder's checkpoint."""
    from bitnas.cost.latency import thread_count
    from bitnas.methods.nasbnn import training
    from bitnas.methods.nasbnn.supernet import Strategies

    recipe = evaluate.supernet_recipe(config)
    data = _train_part(config)
    validation = candidates.load_data(config.data, config.seed).subset(evaluate.split_data(config).val)
    seed = candidates.derive_seed(config.seed, "supernet")
    accuracy: list[float | None] = [None]
    notify({"event": "supernet_start", "epochs": recipe.epochs})

    def on_epoch(epoch: Any) -> None:
        accuracy[0] = epoch.val_accuracy
        notify(
            {
                "event": "supernet_epoch",
                "epoch": epoch.epoch,
                "epochs": recipe.epochs,
                "loss": epoch.loss,
                "accuracy": epoch.val_accuracy,
                "seconds": epoch.seconds,
            }
        )

    def on_step(epoch: int, step: int, steps: int) -> None:
        notify({"event": "supernet_step", "epoch": epoch, "epochs": recipe.epochs, "step": step, "steps": steps})

    with thread_count(config.supernet_threads):
        supernet = training.train_supernet(
            evaluate.description(config),
            Strategies.from_dict(config.strategies),
            data,
            recipe,
            seed=seed,
            val=validation,
            checkpoint=folder / CHECKPOINT,
            on_epoch=on_epoch,
            on_step=on_step,
            log=folder / LOG,
            device=candidates.pick_device(config.device, seed),
        )
    # Nothing of when or where: a supernet that is trained again gives the same file.
    training.save_supernet(supernet, folder / SUPERNET, {"images": data.fingerprint(), "recipe": recipe.to_dict()})
    (folder / CHECKPOINT).unlink(missing_ok=True)
    del supernet
    candidates.release_memory()
    notify({"event": "supernet_end", "accuracy": accuracy[0], "given": False})


def _strategy(config: NasBnnSearchConfig, space: SubnetSpace) -> BucketArchive | NSGA2:
    """The paper's begins with the smallest and the biggest subnet, whatever the window; NSGA-II, which would keep them
    for ever as the ends of its front, only where they are within."""
    ends = [space.smallest, space.biggest] if space.smallest != space.biggest else [space.smallest]
    if config.by_archive:
        return BucketArchive(
            space,
            population=config.population,
            mutations=config.mutations,
            crossovers=config.crossovers,
            bucket=config.bucket,
            mutation_rate=config.mutation_rate,
            seed=config.seed,
            initial=ends,
        )
    return NSGA2(
        space,
        objectives=len(config.objectives),
        population=config.population,
        seed=config.seed,
        initial=[genome for genome in ends if space.permits(genome)],
        mutation_rate=config.mutation_rate,
    )


def _members(found: Sequence[Candidate], strategy: BucketArchive | NSGA2, space: SubnetSpace) -> list[Candidate]:
    """Who may be on the front: what the archive keeps, or every candidate; only within the window."""
    kept: set[Genome] | None = None
    if isinstance(strategy, BucketArchive):
        kept = {one.genome for one in strategy.archive()}
    return [
        candidate
        for candidate in found
        if candidate.status == "ok" and (kept is None or candidate.genome in kept) and space.permits(candidate.genome)
    ]


def _archive(strategy: BucketArchive | NSGA2, found: Sequence[Candidate]) -> list[dict[str, Any]]:
    """The archive for `search.json`: which candidate each bucket keeps."""
    if not isinstance(strategy, BucketArchive):
        return []
    keys = {candidate.genome: candidate.key for candidate in found}
    return [{"bucket": kept.bucket, "key": keys[kept.genome]} for kept in strategy.archive()]


def times_candidates(config: NasBnnSearchConfig) -> bool:
    """Whether every candidate is timed, and not only the front."""
    return config.needs_latency and config.latency_source == MEASURED


def stages(folder: Path, config: NasBnnSearchConfig, pool: Workers, reference_us: float | None) -> list[Stage]:
    """The latency first: what is beyond the budget need not be judged."""
    table = str(folder / LATENCY_TABLE) if config.latency_source == TABLE else None
    latency = [timing_of(config).stage(reference_us, table)] if config.needs_latency else []
    files = pool.share_files(folder, [SUPERNET])
    return [*latency, Stage(EVALUATE_STAGE, evaluate.evaluate_candidate, (config.to_dict(), files))]


def timing_of(config: NasBnnSearchConfig) -> front_timing.Timing:
    """How subnets are timed: beside that of the middle choices."""
    reference = evaluate.reference(config)
    return front_timing.Timing(
        settings=config.to_dict(),
        one=evaluate.time_candidate,
        together=evaluate.time_front,
        alone=evaluate.time_alone,
        predict=evaluate.predict_candidate,
        reference=reference,
        reference_key=evaluate.architecture_key(config, reference),
        reference_name="the subnet of the middle choices",
    )


def _table_check(folder: Path, config: NasBnnSearchConfig, notify: Progress) -> dict[str, Any] | None:
    """How true the device table was found, if this run uses it."""
    if config.latency_source != TABLE:
        return None
    return run_folder.table_facts(
        folder, config.latency_table, lambda table: evaluate.table_check(config, table), notify
    )

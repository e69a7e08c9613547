"""The search itself: ask the strategy, measure what the journal does not know, tell, repeat.

There is no saved state beside the journal. A resumed search runs its strategy from the seed again; what was measured
is answered from the journal in milliseconds, and the result is that of a search that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bitnas.search.journal import Journal, Record
from bitnas.search.pareto import Objective, non_dominated
from bitnas.search.space import Genome, genome_key
from bitnas.search.workers import Failure, WorkerPool

Progress = Callable[[dict[str, Any]], None]


class SearchFailed(RuntimeError):
    """Nothing could be measured, so there is nothing to select from."""


class Strategy(Protocol):
    """What the loop needs of a strategy; see `Evolution` and `NSGA2`."""

    def ask(self) -> list[Genome]: ...

    def tell(self, genomes: Sequence[Genome], losses: Sequence[Sequence[float]]) -> None: ...


@dataclass(frozen=True)
class Stage:
    """One part of an evaluation.

    Args:
        name: what the journal calls it.
        evaluate: importable function of (genome, *arguments) that returns a flat dict of numbers.
        arguments: further arguments, the same for each genome.
        parallel: True runs it in the workers. False runs it here, one by one with the workers idle: a latency needs the
            machine to itself.
    """

    name: str
    evaluate: Callable[..., dict[str, float]]
    arguments: tuple[Any, ...] = ()
    parallel: bool = True


@dataclass(frozen=True)
class Candidate:
    """A genome with everything measured on it; `metrics` is empty if a stage failed."""

    genome: Genome
    key: str
    status: str
    reason: str
    metrics: dict[str, float]
    generation: int
    seconds: float


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    `candidates` is every architecture in the order of asking, `front` those no other one dominates, best first by the
    first objective, and `history` one summary per generation.
    """

    candidates: list[Candidate]
    front: list[Candidate]
    history: list[dict[str, Any]] = field(default_factory=list)


def run_tasks(
    tasks: Sequence[tuple[str, Genome]],
    stage: Stage,
    journal: Journal,
    pool: WorkerPool,
    *,
    generation: int = 0,
    task_arguments: Sequence[tuple[Any, ...]] | None = None,
) -> Iterator[tuple[Record, bool]]:
    """Yield (record, replayed) for each (key, genome): from the journal, else measured now and journalled.

    Args:
        tasks: the work, one key each.
        stage: how to do it.
        task_arguments: per task, what `stage.evaluate` receives after the genome instead of `stage.arguments`.
    """
    fresh: list[int] = []
    for index, (key, _) in enumerate(tasks):
        known = journal.get(key, stage.name)
        if known is None:
            fresh.append(index)
        else:
            yield known, True
    calls = [(tasks[i][1], *(task_arguments[i] if task_arguments else stage.arguments)) for i in fresh]
    runner = pool if stage.parallel else WorkerPool(0)
    for position, outcome, seconds in runner.run(stage.evaluate, calls):
        key, genome = tasks[fresh[position]]
        fields = {"key": key, "genome": genome, "seconds": seconds, "generation": generation, "stage": stage.name}
        if isinstance(outcome, Failure):
            record = Record.failure(outcome.reason, **fields)
        elif isinstance(outcome, dict):
            record = Record.of(outcome, **fields)
        else:
            record = Record.failure(f"returned {type(outcome).__name__}, not a dict of numbers", **fields)
        journal.add(record)
        yield record, False


def run_search(
    strategy: Strategy,
    stages: Sequence[Stage],
    objectives: Sequence[Objective],
    journal: Journal,
    *,
    generations: int,
    pool: WorkerPool | None = None,
    key: Callable[[Genome], str] = genome_key,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Search for `generations`, or until the space is exhausted.

    Args:
        strategy: a new one, seeded; it is told losses in the order of `objectives`.
        stages: run in turn for each generation; a candidate that fails one is not given to the next.
        objectives: what is optimised.
        journal: open, of this search.
        pool: where parallel stages run; default in this process.
        key: architecture hash of a genome.
        on_progress: receives events, each a dict with "event": "generation_start" (generation, generations,
            candidates), "evaluated" (generation, stage, key, genome, status, reason, metrics, seconds, replayed, done,
            total) and "generation_end" (a line of `history`).

    Raises:
        SearchFailed: every candidate of the first generation failed.
    """
    if generations < 1:
        raise ValueError(f"generations: got {generations}, wanted at least 1")
    if not stages or not objectives:
        raise ValueError("stages, objectives: wanted at least one of each")
    pool = pool or WorkerPool(0)
    notify = on_progress or (lambda event: None)
    candidates: list[Candidate] = []
    history: list[dict[str, Any]] = []
    for generation in range(generations):
        genomes = strategy.ask()
        if not genomes and generation == 0:
            raise SearchFailed("no code that was drawn is within the limits of the search; widen them")
        if not genomes:
            break
        notify(
            {
                "event": "generation_start",
                "generation": generation,
                "generations": generations,
                "candidates": len(genomes),
            }
        )
        measured = _measure(genomes, stages, journal, pool, key, generation, notify)
        strategy.tell(genomes, [_losses(candidate, objectives) for candidate in measured])
        candidates += measured
        if generation == 0 and all(candidate.status == "failed" for candidate in measured):
            raise SearchFailed(
                f"all {len(measured)} candidates of the first generation failed; the first: {measured[0].reason}"
            )
        history.append(_summary(generation, measured, candidates, objectives))
        notify(dict(event="generation_end", **history[-1]))
    return SearchResult(candidates, front_of(candidates, objectives), history)


def _measure(
    genomes: Sequence[Genome],
    stages: Sequence[Stage],
    journal: Journal,
    pool: WorkerPool,
    key: Callable[[Genome], str],
    generation: int,
    notify: Progress,
) -> list[Candidate]:
    """Run every stage over the generation; in the order of `genomes` whatever finished first."""
    keys = {genome: key(genome) for genome in genomes}
    # Two codes can give one architecture (widths are truncated to integers); it is measured once.
    owners = {keys[genome]: genome for genome in reversed(genomes)}
    gathered: dict[str, list[Record]] = {owner: [] for owner in keys.values()}
    for stage in stages:
        tasks = [(k, owners[k]) for k in gathered if all(record.ok for record in gathered[k])]
        start = time.perf_counter()
        records = run_tasks(tasks, stage, journal, pool, generation=generation)
        for done, (record, replayed) in enumerate(records, 1):
            gathered[record.key].append(record)
            notify(
                {
                    "event": "evaluated",
                    "generation": generation,
                    "stage": stage.name,
                    "key": record.key,
                    "genome": record.genome,
                    "status": record.status,
                    "reason": record.reason,
                    "metrics": dict(record.metrics),
                    "seconds": record.seconds,
                    "elapsed": time.perf_counter() - start,
                    "replayed": replayed,
                    "done": done,
                    "total": len(tasks),
                }
            )
    return [_candidate(genome, keys[genome], gathered[keys[genome]], generation) for genome in genomes]


def _candidate(genome: Genome, key: str, records: Sequence[Record], generation: int) -> Candidate:
    failed = next((record for record in records if not record.ok), None)
    metrics: dict[str, float] = {}
    if failed is None:
        for record in records:
            metrics.update(record.metrics)
    return Candidate(
        genome=genome,
        key=key,
        status="failed" if failed else "ok",
        reason=failed.reason if failed else "",
        metrics=metrics,
        generation=generation,
        seconds=sum(record.seconds for record in records),
    )


def _losses(candidate: Candidate, objectives: Sequence[Objective]) -> list[float]:
    if candidate.status == "failed":
        return [math.inf] * len(objectives)
    return [objective.loss(candidate.metrics) for objective in objectives]


def front_of(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Candidates no other one dominates, one per architecture, best first by the first objective; none that failed."""
    unique = list({candidate.key: candidate for candidate in reversed(candidates)}.values())
    losses = [_losses(candidate, objectives) for candidate in unique]
    members = non_dominated(losses, objectives=objectives)
    return [unique[index] for index in sorted(members, key=lambda index: (losses[index], unique[index].genome))]


def _summary(
    generation: int, measured: Sequence[Candidate], candidates: Sequence[Candidate], objectives: Sequence[Objective]
) -> dict[str, Any]:
    good = [candidate for candidate in candidates if candidate.status == "ok"]
    best = (
        {
            objective.name: min(good, key=lambda candidate: objective.loss(candidate.metrics)).metrics[objective.name]
            for objective in objectives
        }
        if good
        else {}
    )
    return {
        "generation": generation,
        "asked": len(measured),
        "failed": sum(candidate.status == "failed" for candidate in measured),
        "evaluated": len(candidates),
        "best": best,
        "front": len(front_of(candidates, objectives)),
    }

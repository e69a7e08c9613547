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
from bitnas.search.pareto import Interval, Objective, non_dominated
from bitnas.search.space import Genome, genome_key
from bitnas.search.workers import Failure, WorkerPool, Workers

Progress = Callable[[dict[str, Any]], None]
Derive = Callable[[dict[str, float]], dict[str, float]]
Limit = Callable[[dict[str, float]], str | None]


class SearchFailed(RuntimeError):
    """Nothing could be measured, so there is nothing to select from."""


class Strategy(Protocol):
    """What the loop needs of a strategy; see `Evolution` and `NSGA2`."""

    def ask(self) -> list[Genome]: ...

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None: ...


@dataclass(frozen=True)
class Stage:
    """One part of an evaluation.

    Args:
        name: what the journal calls it.
        evaluate: importable function of (genome, *arguments) that returns a flat dict of numbers.
        arguments: further arguments, the same for each genome.
        parallel: True runs it in the workers. False runs it in a process of its own, one by one with the workers idle:
            a latency needs the machine to itself.
    """

    name: str
    evaluate: Callable[..., dict[str, float]]
    arguments: tuple[Any, ...] = ()
    parallel: bool = True


@dataclass(frozen=True)
class Candidate:
    """A genome with everything measured on it.

    `status` is "ok", "failed" (`metrics` is then empty) or "rejected" (measured so far, and beyond a limit of the
    search). Only an "ok" one can survive. `reason` says why it is not ok.
    """

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
    pool: Workers,
    *,
    generation: int = 0,
    task_arguments: Sequence[tuple[Any, ...]] | None = None,
) -> Iterator[tuple[Record, bool]]:
    """Yield (record, replayed) for each (key, genome): from the journal, else measured now and journalled.

    Args:
        tasks: the work, one key each.
        stage: how to do it.
        pool: where to do it.
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
    for position, outcome, seconds in pool.run(stage.evaluate, calls):
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
    pool: Workers | None = None,
    measurer: Workers | None = None,
    key: Callable[[Genome], str] = genome_key,
    ties: Sequence[Objective] = (),
    derive: Derive | None = None,
    limit: Limit | None = None,
    members: Callable[[Sequence[Candidate]], Sequence[Candidate]] | None = None,
    on_generation: Callable[[SearchResult], None] | None = None,
    on_progress: Progress | None = None,
) -> SearchResult:
    """Search for `generations`, or until the space is exhausted.

    Args:
        strategy: a new one, seeded; it is told losses in the order of `objectives`, then of `ties`.
        stages: run in turn for each generation; a candidate that fails one is not given to the next.
        objectives: what is optimised.
        journal: open, of this search.
        pool: where parallel stages run; default in this process.
        measurer: where the others run, of one worker at most; default in this process.
        key: architecture hash of a genome.
        ties: what tells apart candidates that the objectives do not, for a strategy that takes it.
        derive: of the metrics of all stages, those that follow from them (a fitness, say). Not journalled.
        limit: of the metrics so far, the reason why a candidate is beyond a limit, or None. One that is gets no further
            stage and never survives.
        members: of all candidates so far, once the strategy has been told of them, those that may be on the front;
            default all.
        on_generation: receives the result so far after each generation.
        on_progress: receives events, each a dict with "event": "generation_start" (generation, generations,
            candidates), "evaluated" (generation, stage, key, genome, status, reason, metrics, seconds, replayed, done,
            total) and "generation_end" (a line of `history`).

    Raises:
        SearchFailed: every candidate of the first generation failed, or none of all is within the limits.
    """
    if generations < 1:
        raise ValueError(f"generations: got {generations}, wanted at least 1")
    if not stages or not objectives:
        raise ValueError("stages, objectives: wanted at least one of each")
    pool = pool or WorkerPool(0)
    notify = on_progress or (lambda event: None)
    eligible = members or (lambda found: found)
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
        evaluation = _Evaluation(stages, journal, pool, measurer or WorkerPool(0), key, derive, limit, notify)
        measured = evaluation.run(genomes, generation)
        told = [*objectives, *ties]
        strategy.tell(
            genomes,
            [_losses(candidate, told) for candidate in measured],
            [_intervals(candidate, told) for candidate in measured],
        )
        candidates += measured
        if generation == 0 and all(candidate.status == "failed" for candidate in measured):
            raise SearchFailed(
                f"all {len(measured)} candidates of the first generation failed; the first: {measured[0].reason}"
            )
        front = front_of(eligible(candidates), objectives)
        history.append(_summary(generation, measured, candidates, objectives, front))
        if on_generation is not None:
            on_generation(SearchResult(list(candidates), front, list(history)))
        notify(dict(event="generation_end", **history[-1]))
    if not any(candidate.status == "ok" for candidate in candidates):
        raise SearchFailed(_nothing_left(candidates))
    return SearchResult(candidates, front_of(eligible(candidates), objectives), history)


@dataclass(frozen=True)
class _Evaluation:
    """How one generation is measured."""

    stages: Sequence[Stage]
    journal: Journal
    pool: Workers
    measurer: Workers
    key: Callable[[Genome], str]
    derive: Derive | None
    limit: Limit | None
    notify: Progress

    def run(self, genomes: Sequence[Genome], generation: int) -> list[Candidate]:
        """Every stage over the generation; in the order of `genomes` whatever finished first."""
        keys = {genome: self.key(genome) for genome in genomes}
        # Two codes can give one architecture (widths are truncated to integers); it is measured once.
        owners = {keys[genome]: genome for genome in reversed(genomes)}
        gathered: dict[str, list[Record]] = {owner: [] for owner in keys.values()}
        for stage in self.stages:
            tasks = [(key, owners[key]) for key in gathered if self._goes_on(gathered[key])]
            pool = self.pool if stage.parallel else self.measurer
            start = time.perf_counter()
            records = run_tasks(tasks, stage, self.journal, pool, generation=generation)
            for done, (record, replayed) in enumerate(records, 1):
                gathered[record.key].append(record)
                self.notify(
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
        return [self._candidate(genome, keys[genome], gathered[keys[genome]], generation) for genome in genomes]

    def _goes_on(self, records: Sequence[Record]) -> bool:
        return all(record.ok for record in records) and self._beyond(_merged(records)) is None

    def _beyond(self, metrics: dict[str, float]) -> str | None:
        return None if self.limit is None or not metrics else self.limit(metrics)

    def _candidate(self, genome: Genome, key: str, records: Sequence[Record], generation: int) -> Candidate:
        failed = next((record for record in records if not record.ok), None)
        metrics = {} if failed else _merged(records)
        beyond = self._beyond(metrics)
        if metrics and beyond is None and self.derive is not None:
            metrics |= self.derive(metrics)
        return Candidate(
            genome=genome,
            key=key,
            status="failed" if failed else "rejected" if beyond else "ok",
            reason=failed.reason if failed else beyond or "",
            metrics=metrics,
            generation=generation,
            seconds=sum(record.seconds for record in records),
        )


def _merged(records: Sequence[Record]) -> dict[str, float]:
    return {name: value for record in records for name, value in record.metrics.items()}


def _nothing_left(candidates: Sequence[Candidate]) -> str:
    """Why there is no front, by the candidate that came nearest."""
    text = f"none of {len(candidates)} candidates is within the limits of the search"
    beyond = [candidate for candidate in candidates if candidate.status == "rejected"]
    if timed := [candidate for candidate in beyond if "latency_us" in candidate.metrics]:
        fastest = min(timed, key=lambda candidate: candidate.metrics["latency_us"])
        return f"{text}; the fastest: {fastest.reason}. Allow more with latency_budget (--latency-budget)"
    return f"{text}; one is not: {beyond[0].reason}" if beyond else f"{text}; the last: {candidates[-1].reason}"


def _losses(candidate: Candidate, objectives: Sequence[Objective]) -> list[float]:
    if candidate.status != "ok":
        return [math.inf] * len(objectives)
    return [objective.loss(candidate.metrics) for objective in objectives]


def _intervals(candidate: Candidate, objectives: Sequence[Objective]) -> list[Interval]:
    if candidate.status != "ok":
        return [(math.inf, math.inf)] * len(objectives)
    return [objective.interval(candidate.metrics) for objective in objectives]


def front_of(candidates: Sequence[Candidate], objectives: Sequence[Objective]) -> list[Candidate]:
    """Candidates no other one dominates, one per architecture, best first by the first objective; only those that are
    ok. What noise cannot tell apart dominates nothing (see `non_dominated`)."""
    unique = list({candidate.key: candidate for candidate in reversed(candidates)}.values())
    losses = [_losses(candidate, objectives) for candidate in unique]
    intervals = [_intervals(candidate, objectives) for candidate in unique]
    members = non_dominated(losses, objectives=objectives, intervals=intervals)
    return [unique[index] for index in sorted(members, key=lambda index: (losses[index], unique[index].genome))]


def _summary(
    generation: int,
    measured: Sequence[Candidate],
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    front: Sequence[Candidate],
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
        "rejected": sum(candidate.status == "rejected" for candidate in measured),
        "evaluated": len(candidates),
        "best": best,
        "front": len(front),
    }

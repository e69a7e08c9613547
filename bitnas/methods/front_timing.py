"""The front at the end of a search: every member measured whole, in turns with the others.

What the search selected by may be a prediction, or timings of different hours; what it reports is neither.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bitnas.search import Failure, Journal, Objective, Record, SearchFailed, Stage, WorkerPool, run_tasks
from bitnas.search.loop import Candidate, front_of
from bitnas.search.space import Genome

FRONT_STAGE, REFERENCE_STAGE = "front-latency", "reference-latency"


@dataclass(frozen=True)
class Timing:
    """How a method's networks are timed.

    Attributes:
        settings: of the run, as the functions below take them.
        one: latency of a genome, of (genome, settings, reference_us).
        together: latencies of several, of (genomes, settings, reference_us).
        alone: of the reference, of (genome, settings).
        predict: latency of a genome from a device table, of (genome, settings, table).
        reference: genome or other name of the network that others are put in proportion to.
        reference_key: its key in the journal.
        reference_name: what an error calls it.
    """

    settings: dict[str, Any]
    one: Callable[..., dict[str, float]]
    together: Callable[..., list[dict[str, float]]]
    alone: Callable[..., dict[str, float]]
    predict: Callable[..., dict[str, float]]
    reference: Genome
    reference_key: str
    reference_name: str

    def reference_us(self, journal: Journal, measurer: WorkerPool, stage: Stage | None = None) -> float:
        """Us that the reference took when it was first asked for; of another `stage`, as that has it."""
        stage = stage or Stage(REFERENCE_STAGE, self.alone, (self.settings,), parallel=False)
        record, _ = next(run_tasks([(self.reference_key, self.reference)], stage, journal, measurer))
        if not record.ok:
            raise SearchFailed(f"{self.reference_name} has no latency to compare with: {record.reason}")
        return record.metrics["latency_us"]

    def stage(self, reference_us: float | None, table: str | None) -> Stage:
        """The stage that gives a candidate its latency: predicted where there is a `table`, else in proportion to the
        `reference_us`. Neither runs in the workers: a timing has the machine to itself, a prediction takes no time."""
        if table is not None:
            return Stage("predicted-latency", self.predict, (self.settings, table), parallel=False)
        return Stage("latency", self.one, (self.settings, reference_us), parallel=False)


def timed_front(
    candidates: Sequence[Candidate],
    objectives: Sequence[Objective],
    timing: Timing,
    journal: Journal,
    measurer: WorkerPool,
    notify: Callable[[dict[str, Any]], None],
    *,
    beyond: Callable[[dict[str, float]], str | None],
    by_latency: bool,
    budget: float | None,
    derive: Callable[[dict[str, float], float], dict[str, float]] | None = None,
) -> list[Candidate]:
    """The front of `candidates`, its members with a latency that was measured whole.

    What turns out to be over the budget leaves the front to those that it kept off. What the search selected by stays
    beside the new latency (and what follows from it) as `searched_latency_us` and so on.

    Args:
        candidates: every one that may be on the front.
        objectives: of the front.
        timing: how they are timed.
        beyond: why metrics are over the latency budget, or None.
        by_latency: whether a latency decides the front, which the new ones then do.
        budget: us per batch, for the message if nothing is within it.
        derive: of metrics and the reference's us, what follows from the latency.

    Raises SearchFailed: no candidate is within the budget.
    """
    reference_us: float | None = None
    left = {candidate.key: candidate for candidate in reversed(candidates) if candidate.status == "ok"}
    while left:
        front = front_of(list(left.values()), objectives)
        fresh = [candidate for candidate in front if journal.get(candidate.key, FRONT_STAGE) is None]
        if reference_us is None:
            reference_us = timing.reference_us(journal, measurer)
        if fresh:
            notify({"event": "front_timing", "networks": len(fresh)})
            for candidate, metrics in zip(fresh, _time(fresh, timing, measurer, reference_us), strict=True):
                fields = {"key": candidate.key, "genome": candidate.genome, "stage": FRONT_STAGE}
                if isinstance(metrics, Failure):
                    notify({"event": "warning", "message": f"a network of the front was not timed: {metrics.reason}"})
                    journal.add(Record.failure(metrics.reason, generation=candidate.generation, **fields))
                else:
                    journal.add(Record.of(metrics, generation=candidate.generation, **fields))
        timed = [_with_final_latency(candidate, journal, reference_us, derive) for candidate in front]
        over = [one.key for one in timed if beyond(one.metrics) is not None]
        if not over:
            return front_of(timed, objectives) if by_latency else timed
        for key in over:
            del left[key]
    raise SearchFailed(f"no network is within the latency budget of {budget} us when it is measured whole; allow more")


def _with_final_latency(
    candidate: Candidate,
    journal: Journal,
    reference_us: float,
    derive: Callable[[dict[str, float], float], dict[str, float]] | None,
) -> Candidate:
    record = journal.get(candidate.key, FRONT_STAGE)
    assert record is not None
    if not record.ok:
        return candidate
    kept = {name: value for name, value in candidate.metrics.items() if not name.startswith("latency_")}
    follows = {} if derive is None else derive({**kept, **record.metrics}, reference_us)
    names = ["latency_us", *(name for name in follows if not name.endswith(("_low", "_high")))]
    before = {f"searched_{name}": candidate.metrics[name] for name in names if name in candidate.metrics}
    return dataclasses.replace(candidate, metrics={**kept, **record.metrics, **before, **follows})


def _time(
    front: Sequence[Candidate], timing: Timing, measurer: WorkerPool, reference_us: float
) -> list[dict[str, float] | Failure]:
    genomes = [candidate.genome for candidate in front]
    found = next(iter(measurer.run(timing.together, [(genomes, timing.settings, reference_us)])))[1]
    if not isinstance(found, Failure):
        return found
    # One that crashes or hangs must not take the others' places: each alone.
    tasks = [(genome, timing.settings, reference_us) for genome in genomes]
    alone = {index: result for index, result, _ in measurer.run(timing.one, tasks)}
    return [alone[index] for index in range(len(front))]

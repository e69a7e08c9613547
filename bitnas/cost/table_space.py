"""The device table of a space of networks: built from few of them, checked on others, asked for any.

What a space is comes from outside, by the small face of `TableSpace`: here nobody knows what its networks are made of.
Each round of a build visits a covering set anew, in other networks and another order: what a call takes beside
different neighbours, and a machine that drifts, then show as spread instead of error.
"""

import functools
import hashlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

import torch

from bitnas.cost.agreement import Check, compare
from bitnas.cost.call_times import time_calls
from bitnas.cost.device_table import (
    OUT_OF_STEP,
    DeviceTable,
    Key,
    Prediction,
    TableWriter,
    Visit,
    default_table,
    latency_key,
    now,
)
from bitnas.cost.exclusive import exclusive
from bitnas.cost.latency import measure_latency, thread_count
from bitnas.cost.timing import time_call, times_preempted
from bitnas.packed import PackedNetwork
from bitnas.packed.calls import call_signatures

Progress = Callable[[dict[str, Any]], None]

Code = tuple[float, ...]
"""A network of a space: numbers, so that a table can hold it as a JSON list."""

# A visit is made again where this share of the pass is in noisy calls, or the machine was out of step; at most this
# share of all visits.
_NOISY_SHARE, _AGAIN = 0.5, 0.5

# In a check, a network whose readings differ by more is measured again, up to so many times in all.
_DIFFER, _READINGS = 0.05, 5

_REFERENCE_SECONDS = 0.1

_DRAWS = 1000  # random networks looked at for each one of a check


class TableSpace(Protocol):
    """The networks that a table is for."""

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one input."""

    @property
    def reference(self) -> Code:
        """The network that is timed again and again to see a drift of the machine."""

    @property
    def size(self) -> int:
        """How many networks there are."""

    def to_dict(self) -> dict[str, Any]:
        """JSON, as tables hold it: equal for equal spaces."""

    def named(self, code: Code) -> str:
        """The network in a few words, for messages."""

    def random(self, rng: Random) -> Code:
        """A network, each time another one."""

    def covering(self, *, batch: int, rounds: int, seed: int) -> list[list[Code]]:
        """For each round, networks that together hold every call of the space; other ones in each round."""

    def signatures(self, code: Code, batch: int) -> Sequence[str]:
        """Of the calls of the frozen network, as `packed.calls.call_signatures` gives them, made without weights."""

    def random_network(self, code: Code, generator: torch.Generator) -> PackedNetwork:
        """The frozen network with random bits, made at once."""

    def frozen(self, code: Code) -> PackedNetwork:
        """The network made and frozen as a search does it."""


@dataclass(frozen=True)
class BuildReport:
    """What a build leaves behind.

    Attributes:
        entries: calls of the space that the table now knows.
        noisy: share of them of which no reading was steady.
        networks: visits in the table for this space; `visited`: those that this build made.
        drift: how far the reference network went from its median, as a share: nine tenths of its readings are closer.
        seconds: that this build took.
    """

    path: str
    entries: int
    noisy: float
    networks: int
    visited: int
    drift: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON."""
        return asdict(self)


def open_table(table: str | Path | None = None) -> DeviceTable:
    """The table, by default `default_table()`; read again only when the file has changed.

    Raises as `DeviceTable.open`.
    """
    path = default_table() if table is None else Path(table)
    log = path.with_name(path.name + "-wal")
    stamps = tuple((s.st_mtime_ns, s.st_size) for file in (path, log) if file.exists() for s in [file.stat()])
    return _opened(path, stamps)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, stamps: object) -> DeviceTable:
    return DeviceTable.open(path)


def holding(table: DeviceTable, key: Key, holds: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """The spaces of a table, as `TableSpace.to_dict` gives them, that `holds` takes."""
    return [space for space in _spaces(table, tuple(key.items())) if holds(space)]


@functools.lru_cache(maxsize=2)
def _spaces(table: DeviceTable, key: tuple[tuple[str, Any], ...]) -> list[dict[str, Any]]:
    """Reading them takes longer than a prediction does; a table that was opened does not change."""
    return table.spaces(dict(key))


def last_check(table: DeviceTable, key: Key, holds: Callable[[dict[str, Any]], bool]) -> Check | None:
    """The latest check of the table on a space that `holds` takes; None if there is none."""
    checks = [found for space in holding(table, key, holds) if (found := table.last_check(key, space)) is not None]
    return max(checks, key=lambda check: check.date, default=None)


def predict(
    table: DeviceTable, signatures: Sequence[str], key: Key, name: str, space: dict[str, Any] | None = None
) -> Prediction:
    """Latency of a network, in us per batch.

    Args:
        name: of the network, for the error. space: whose check counts, as in `DeviceTable.predict`.

    Raises:
        ValueError: the table lacks a call of this network on this device.
    """
    prediction = table.predict(signatures, key, space)
    if prediction.missing:
        raise ValueError(
            f"{table.path} lacks {len(prediction.missing)} calls of {name} at batch {key['batch']} and "
            f"{key['threads']} thread(s) on this device; run bitnas latency build for these networks"
        )
    return prediction


def build(
    space: TableSpace,
    table: str | Path | None = None,
    *,
    batch: int = 1,
    threads: int = 1,
    rounds: int = 3,
    seed: int = 0,
    seconds: float = 0.5,
    on_progress: Progress = lambda event: None,
) -> BuildReport:
    """Measures every call of a space and writes the table; one that was stopped goes on where it was.

    Args:
        table: the file; None for `cost.device_table.default_table()`.
        batch, threads: what latencies are for.
        rounds: how often every call is met, in other networks each time.
        seed: decides the networks.
        seconds: of timing for each network; a noisy one gets up to four times as much, and another visit in the end.
        on_progress: gets `{"event": "timing calls", "done", "total"}`.

    Raises:
        TableLocked: another process writes to the file. TableError, CorruptFileError: it cannot be written, is damaged.
        ValueError: a number below 1.
    """
    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, wanted at least 1")
    _check_seconds(seconds)
    begin = time.monotonic()
    key = latency_key(batch=batch, threads=threads)
    plan = [
        (i, code) for i, codes in enumerate(space.covering(batch=batch, rounds=rounds, seed=seed)) for code in codes
    ]
    with TableWriter(table) as writer, thread_count(threads):
        timer = Timer(space, batch, seconds)
        known = writer.table.visits(key, space.to_dict())
        done = {(visit.round, tuple(visit.network)) for visit in known}
        waiting = [item for item in plan if item not in done]
        visited, total = 0, len(plan)
        on_progress({"event": "timing calls", "done": total - len(waiting), "total": total})
        for number, code in waiting:
            writer.add_visit(key, timer.visit(code, number))
            visited += 1
            on_progress({"event": "timing calls", "done": total - len(waiting) + visited, "total": total})
        again = _again(writer.table.visits(key, space.to_dict()), rounds)
        for index, code in enumerate(again):
            on_progress({"event": "timing noisy networks again", "done": index, "total": len(again)})
            writer.add_visit(key, timer.visit(code, rounds))
            visited += 1
        return _report(space, writer, key, visited, time.monotonic() - begin)


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: got {seconds}, wanted a positive finite number")


def _again(visits: Sequence[Visit], rounds: int) -> list[Code]:
    """The networks to visit once more: those that noise or a machine out of step may have spoilt, worst first."""
    reference = statistics.median(visit.reference_us for visit in visits)
    last: dict[Code, Visit] = {tuple(visit.network): visit for visit in visits}
    spoilt = []
    for code, visit in last.items():
        away = abs(visit.reference_us / reference - 1)
        noisy = sum(r.us for r in visit.readings if r.noisy) / sum(r.us for r in visit.readings)
        if visit.round < rounds and (away > OUT_OF_STEP or noisy > _NOISY_SHARE):
            spoilt.append((max(away / OUT_OF_STEP, noisy / _NOISY_SHARE), code))
    made = sum(visit.round >= rounds for visit in visits)
    most = int(_AGAIN * (len(visits) - made)) - made
    return [code for _, code in sorted(spoilt, reverse=True)[: max(0, most)]]


class Timer:
    """Times networks of a space call by call, each beside the reference."""

    def __init__(self, space: TableSpace, batch: int, seconds: float) -> None:
        self.space = space
        self.batch = batch
        self.seconds = seconds
        self.generator = torch.Generator().manual_seed(0)
        self.x = torch.rand((batch, *space.input_size), generator=self.generator)
        self.reference = space.random_network(space.reference, self.generator)

    def reference_us(self) -> float:
        """What a pass of the reference network takes now."""
        with torch.inference_mode():
            options: dict[str, Any] = {
                "warmup": 0.02,
                "seconds": _REFERENCE_SECONDS,
                "min_runs": 5,
                "preempted": times_preempted,
            }
            return time_call(lambda: self.reference(self.x), **options).median_us

    def visit(self, code: Code, number: int) -> Visit:
        """The calls of one network, in round `number`."""
        frozen = self.space.random_network(code, self.generator)
        with exclusive():
            reference = self.reference_us()
            times = time_calls(frozen, self.x, seconds=self.seconds)
        return Visit(
            self.space.to_dict(),
            list(code),
            number,
            tuple(self.space.signatures(code, self.batch)),
            (*times.calls, times.rest),
            times.whole.us,
            reference,
            times.seconds,
            now(),
        )


def _report(space: TableSpace, writer: TableWriter, key: Key, visited: int, seconds: float) -> BuildReport:
    visits = writer.table.visits(key, space.to_dict())
    own = {signature for visit in visits for signature in visit.signatures}
    entries = [entry for signature, entry in writer.table.entries(key).items() if signature in own]
    noisy = sum(entry.noisy for entry in entries) / len(entries)
    drift = _drift([visit.reference_us for visit in visits])
    return BuildReport(str(writer.path), len(entries), noisy, len(visits), visited, drift, seconds)


def _drift(references: Sequence[float]) -> float:
    middle = statistics.median(references)
    away = sorted(abs(value / middle - 1) for value in references)
    return away[int(0.9 * (len(away) - 1))]


def check(
    space: TableSpace,
    table: str | Path | None = None,
    *,
    networks: int = 50,
    batch: int = 1,
    threads: int = 1,
    seed: int = 0,
    seconds: float = 0.5,
    on_progress: Progress = lambda event: None,
) -> Check:
    """Measures random networks that the table has not seen, whole, and compares; the result is kept in the table.

    Each one is made, frozen and measured as a search would do it, twice: all of them in one order, then in the other,
    so that the difference says how well a network can be measured at all. Where the two differ by more than 5 %, it is
    measured again, and the median counts. A check that was stopped goes on where it was.

    Args:
        networks: how many, at least 2. seed: decides which. Others as in :func:`build`.
        on_progress: gets `{"event": "measuring whole networks", "done", "total"}`.

    Raises:
        FileNotFoundError: there is no table. ValueError: it does not hold this space on this device; too few networks.
        RuntimeError: a network was frozen to other calls than its latency was predicted from.
    """
    if networks < 2:
        raise ValueError(f"networks: got {networks}, wanted at least 2")
    _check_seconds(seconds)
    key, about = latency_key(batch=batch, threads=threads), space.to_dict()
    opened = DeviceTable.open(table)
    codes = _held_out(space, opened, key, networks, seed)
    predicted = [_predicted(opened, space, code, key, batch) for code in codes]
    visits = opened.visits(key, about)
    # A check that was stopped is gone on with; one that has ended is made anew, for the machine may have changed.
    ended = opened.checks(key, about)
    name = hashlib.sha256(repr((codes, len(visits), seconds, ended)).encode()).hexdigest()[:16]
    found: dict[Code, list[dict[str, Any]]] = {code: [] for code in codes}
    with TableWriter(opened.path) as writer:
        for result in writer.table.held_out(key, name):
            found[tuple(result["network"])].append(result)
        timer = Timer(space, batch, seconds)

        def measure(wanted: int, chosen: Sequence[Code]) -> None:
            missing = [code for code in chosen if len(found[code]) < wanted]
            what = "measuring whole networks" if wanted == 1 else f"measuring whole networks, reading {wanted}"
            on_progress({"event": what, "done": len(chosen) - len(missing), "total": len(chosen)})
            for index, code in enumerate(missing):
                result = {"network": list(code), **_measured(timer, code, threads)}
                writer.add_held_out(key, about, name, result)
                found[code].append(result)
                on_progress({"event": what, "done": len(chosen) - len(missing) + index + 1, "total": len(chosen)})

        measure(1, codes)
        measure(2, codes[::-1])
        for wanted in range(3, _READINGS + 1):
            measure(wanted, [code for code in codes if _differ([r["latency_us"] for r in found[code]]) > _DIFFER])
        readings = [[result["latency_us"] for result in found[code]] for code in codes]
        references = [result["reference_us"] for results in found.values() for result in results]
        drift = statistics.median(references) / statistics.median(v.reference_us for v in visits) - 1
        outcome = compare(
            [(p, statistics.median(r)) for p, r in zip(predicted, readings, strict=True)],
            noise=statistics.median(_differ(r[:2]) for r in readings),
            reference_drift=drift,
            date=now(),
        )
        writer.add_check(key, about, outcome)
    return outcome


def _differ(readings: Sequence[float]) -> float:
    """How far apart the two middle ones of the readings are, as a share; 0.0 for an odd number that agrees."""
    ordered = sorted(readings)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return min(ordered[middle] - ordered[middle - 1], ordered[middle + 1] - ordered[middle]) / ordered[middle]
    return 2 * (ordered[middle] - ordered[middle - 1]) / (ordered[middle] + ordered[middle - 1])


def _held_out(space: TableSpace, table: DeviceTable, key: Key, networks: int, seed: int) -> list[Code]:
    seen = {tuple(visit.network) for visit in table.visits(key, space.to_dict())}
    rng, size = Random(f"held out {seed}"), space.size
    if size - len(seen) < networks:
        raise ValueError(f"networks: got {networks}, but only {size - len(seen)} of the space were not used to build")
    found: dict[Code, None] = {}
    for _ in range(_DRAWS * networks):
        if (code := space.random(rng)) not in seen:
            found[code] = None
        if len(found) == networks:
            return list(found)
    raise ValueError(f"networks: got {networks}, but no more than {len(found)} were found that were not used to build")


def _predicted(table: DeviceTable, space: TableSpace, code: Code, key: Key, batch: int) -> float:
    prediction = table.predict(space.signatures(code, batch), key)
    if prediction.missing:
        raise ValueError(
            f"{table.path} lacks {len(prediction.missing)} calls of {space.named(code)} on this device; run bitnas "
            "latency build with the same options first"
        )
    return prediction.latency_us


def _measured(timer: Timer, code: Code, threads: int) -> dict[str, Any]:
    space = timer.space
    with torch.random.fork_rng(devices=[]):
        frozen = space.frozen(code)
    if call_signatures(frozen.steps, (timer.batch, *space.input_size)) != list(space.signatures(code, timer.batch)):
        raise RuntimeError(f"{space.named(code)} was frozen to other calls than the table's prediction is made of")
    with exclusive():
        with thread_count(threads):
            reference = timer.reference_us()
        options: dict[str, Any] = {"batch": timer.batch, "threads": threads, "seconds": timer.seconds}
        latency = measure_latency(frozen, space.input_size, **options)
    return {"latency_us": latency.median_us, "reference_us": reference, "noisy": latency.noisy}

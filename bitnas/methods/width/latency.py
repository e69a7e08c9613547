"""The device table of a space of width codes: built from few networks, and checked on others.

A call depends on one or two widths of a code (what it reads and what it makes), so some forty networks hold every call
of a space of millions. Each round visits such a covering set anew, in other networks and another order: what a call
takes beside different neighbours, and a machine that drifts, then show as spread instead of error.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.methods.width import outline
from bitnas.search.space import DEFAULT_CHOICES, Genome, WidthSpace

if TYPE_CHECKING:
    from torch import Tensor

    from bitnas.cost.agreement import Check
    from bitnas.cost.device_table import DeviceTable, Key, Prediction, TableWriter, Visit
    from bitnas.models import ModelConfig
    from bitnas.packed import PackedNetwork

Progress = Callable[[dict[str, Any]], None]

# A visit is made again where this share of the pass is in noisy calls, or the machine was out of step; at most this
# share of all visits.
_NOISY_SHARE, _AGAIN = 0.5, 0.5

# In a check, a network whose readings differ by more is measured again, up to so many times in all.
_DIFFER, _READINGS = 0.05, 5

_SAME = ("base_width", "scheme")

_TRIES = 12  # codes tried for each one of a covering set
_REFERENCE_SECONDS = 0.1


@dataclass(frozen=True, kw_only=True)
class LatencySpace:
    """The networks that a table is for: every code of `choices`, with all else fixed. Fields as in `make_config`."""

    model: str = "vgg_small"
    choices: Genome = DEFAULT_CHOICES
    num_classes: int = 10
    input_size: tuple[int, int, int] = (3, 32, 32)
    base_width: float = 1.0
    scheme: str = "dorefa"

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", self.codes.choices)
        object.__setattr__(self, "input_size", tuple(self.input_size))
        self.network(self.reference)  # raises for what no network can be

    @property
    def codes(self) -> WidthSpace:
        """The width codes; ValueError for choices that make no space, or an unknown model."""
        from bitnas.models import num_ratios

        return WidthSpace(tuple(self.choices), num_ratios(self.model))

    @property
    def reference(self) -> Genome:
        """The code of the network that is timed again and again to see a drift of the machine: the middle choice."""
        return self.codes.uniform(self.choices[(len(self.choices) - 1) // 2])

    def network(self, ratios: Genome) -> ModelConfig:
        """The network that a code stands for."""
        from bitnas.models import make_config

        return make_config(
            self.model,
            ratios=ratios,
            num_classes=self.num_classes,
            input_size=self.input_size,
            base_width=self.base_width,
            scheme=self.scheme,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON, as tables hold it."""
        return asdict(self) | {"choices": list(self.choices), "input_size": list(self.input_size)}


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


def signatures(network: ModelConfig, batch: int = 1, memory: Any = "fast") -> list[str]:
    """What `DeviceTable.predict` takes: the calls of the frozen network, without making its weights. Cached."""
    return list(outline.signatures(network, batch, memory))


def predict(network: ModelConfig, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> Prediction:
    """Latency of a network from the device table, in us per batch.

    Args:
        table: the file; None for `cost.device_table.default_table()`. It is read again when it has changed.

    Raises:
        FileNotFoundError, CorruptFileError: there is no table, or it is damaged. ValueError: it lacks a call of this
        network on this device.
    """
    from bitnas.cost.device_table import latency_key

    opened = _open(table)
    prediction = opened.predict(signatures(network, batch), latency_key(batch=batch, threads=threads), _about(network))
    if prediction.missing:
        raise ValueError(
            f"{opened.path} lacks {len(prediction.missing)} calls of {network.name} with ratios "
            f"{list(network.ratios)} at batch {batch} and {threads} thread(s) on this device; run bitnas latency build "
            "for these networks"
        )
    return prediction


def built(
    network: ModelConfig,
    choices: Sequence[float],
    *,
    table: str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
) -> bool:
    """Whether the table was built for networks like this one, of these choices and perhaps more, on this device."""
    from bitnas.cost.device_table import latency_key

    key = latency_key(batch=batch, threads=threads)
    return _open(table).holds(key, {**_about(network), "choices": list(choices)})


def last_check(
    network: ModelConfig,
    choices: Sequence[float],
    *,
    table: str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
) -> Check | None:
    """The latest check of the table on networks like this one, of these choices and perhaps more; None if none."""
    from bitnas.cost.device_table import latency_key

    key = latency_key(batch=batch, threads=threads)
    return _open(table).last_check(key, {**_about(network), "choices": list(choices)})


def _about(network: ModelConfig) -> dict[str, Any]:
    """What a space says of its networks, but for the choices."""
    values = network.to_dict()
    return {"model": values["name"], **{name: values[name] for name in ("num_classes", "input_size", *_SAME)}}


def _open(table: str | Path | None) -> DeviceTable:
    from bitnas.cost.device_table import default_table

    path = default_table() if table is None else Path(table)
    log = path.with_name(path.name + "-wal")
    stamps = tuple((s.st_mtime_ns, s.st_size) for file in (path, log) if file.exists() for s in [file.stat()])
    return _opened(path, stamps)


@functools.lru_cache(maxsize=2)
def _opened(path: Path, stamps: object) -> DeviceTable:
    from bitnas.cost.device_table import DeviceTable

    return DeviceTable.open(path)


def covering(space: LatencySpace, *, batch: int = 1, rounds: int = 1, seed: int = 0) -> list[list[Genome]]:
    """For each round, codes that together hold every call of the space; other codes in each round.

    Raises:
        ValueError: the calls of the model are not the same ones for all codes, so that they cannot be told apart.
    """
    rng = Random(seed)
    groups = _dependencies(space, batch, rng)
    found = []
    for _ in range(rounds):
        codes = list(_cover(groups, space.codes, rng))
        rng.shuffle(codes)
        found.append(codes)
    return found


def _dependencies(space: LatencySpace, batch: int, rng: Random) -> list[tuple[int, ...]]:
    """The sets of positions that calls depend on, found by changing one ratio at a time; none within another."""
    codes = space.codes
    depends: list[set[int]] = []
    for base in (codes.uniform(codes.choices[0]), codes.uniform(codes.choices[-1]), codes.random(rng)):
        own = signatures(space.network(base), batch)
        depends = depends or [set() for _ in own]
        for position, choice in itertools.product(range(codes.length), codes.choices):
            changed = signatures(space.network((*base[:position], choice, *base[position + 1 :])), batch)
            if len(changed) != len(depends):
                raise ValueError(
                    f"model: got {space.model!r}, whose frozen network has {len(depends)} calls for one code and "
                    f"{len(changed)} for another; wanted one with the same calls for all codes"
                )
            for index, (a, b) in enumerate(zip(own, changed, strict=True)):
                if a != b:
                    depends[index].add(position)
    sets = {frozenset(positions) for positions in depends if positions}
    return sorted(tuple(sorted(s)) for s in sets if not any(s < other for other in sets))


def _cover(groups: Sequence[tuple[int, ...]], codes: WidthSpace, rng: Random) -> Iterator[Genome]:
    """Codes, each chosen greedily, until every group of positions has had every combination of choices."""
    left = {group: set(itertools.product(codes.choices, repeat=len(group))) for group in groups}

    def gain(code: Sequence[float | None], group: tuple[int, ...]) -> bool:
        return tuple(code[position] for position in group) in left[group]

    def completed(code: Sequence[float | None], position: int, value: float) -> int:
        changed = [*code[:position], value, *code[position + 1 :]]
        return sum(gain(changed, group) for group in groups if position in group)

    if not groups:  # a space of one network
        yield codes.uniform(codes.choices[0])
    while any(left.values()):
        best: tuple[int, Genome] | None = None
        for _ in range(_TRIES):
            code: list[float | None] = [None] * codes.length
            group = rng.choice([group for group, values in left.items() if values])
            for position, value in zip(group, rng.choice(sorted(left[group])), strict=True):
                code[position] = value
            free = [position for position in range(codes.length) if code[position] is None]
            # Outwards from what is fixed, so that each choice completes as many groups as it can.
            for position in sorted(free, key=lambda p: min(abs(p - q) for q in group)):
                options = list(codes.choices)
                rng.shuffle(options)
                code[position] = max(options, key=lambda value: completed(code, position, value))
            genome = tuple(value for value in code if value is not None)
            total = sum(gain(genome, g) for g in groups)
            if best is None or total > best[0]:
                best = total, genome
        assert best is not None
        for g in groups:
            left[g].discard(tuple(best[1][position] for position in g))
        yield best[1]


def build(
    space: LatencySpace,
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
    from bitnas.cost.device_table import TableWriter, latency_key
    from bitnas.cost.latency import thread_count

    if rounds < 1:
        raise ValueError(f"rounds: got {rounds}, wanted at least 1")
    _check_seconds(seconds)
    begin = time.monotonic()
    key = latency_key(batch=batch, threads=threads)
    plan = [
        (i, code) for i, codes in enumerate(covering(space, batch=batch, rounds=rounds, seed=seed)) for code in codes
    ]
    with TableWriter(table) as writer, thread_count(threads):
        timer = _Timer(space, batch, seconds)
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
        return _report(space, writer, key, batch, visited, time.monotonic() - begin)


def _check_seconds(seconds: float) -> None:
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds: got {seconds}, wanted a positive finite number")


def _again(visits: Sequence[Visit], rounds: int) -> list[Genome]:
    """The networks to visit once more: those that noise or a machine out of step may have spoilt, worst first."""
    from bitnas.cost.device_table import OUT_OF_STEP

    reference = statistics.median(visit.reference_us for visit in visits)
    last: dict[Genome, Visit] = {tuple(visit.network): visit for visit in visits}
    spoilt = []
    for code, visit in last.items():
        away = abs(visit.reference_us / reference - 1)
        noisy = sum(r.us for r in visit.readings if r.noisy) / sum(r.us for r in visit.readings)
        if visit.round < rounds and (away > OUT_OF_STEP or noisy > _NOISY_SHARE):
            spoilt.append((max(away / OUT_OF_STEP, noisy / _NOISY_SHARE), code))
    made = sum(visit.round >= rounds for visit in visits)
    most = int(_AGAIN * (len(visits) - made)) - made
    return [code for _, code in sorted(spoilt, reverse=True)[: max(0, most)]]


class _Timer:
    """Times networks of a space call by call, each beside the reference."""

    def __init__(self, space: LatencySpace, batch: int, seconds: float) -> None:
        import torch

        self.space = space
        self.batch = batch
        self.seconds = seconds
        self.generator = torch.Generator().manual_seed(0)
        self.x: Tensor = torch.rand((batch, *space.input_size), generator=self.generator)
        self.reference: PackedNetwork = outline.random_network(space.network(space.reference), self.generator)

    def reference_us(self) -> float:
        import torch

        from bitnas.cost.timing import time_call, times_preempted

        with torch.inference_mode():
            options: dict[str, Any] = {
                "warmup": 0.02,
                "seconds": _REFERENCE_SECONDS,
                "min_runs": 5,
                "preempted": times_preempted,
            }
            return time_call(lambda: self.reference(self.x), **options).median_us

    def visit(self, code: Genome, number: int) -> Visit:
        from bitnas.cost.call_times import time_calls
        from bitnas.cost.device_table import Visit, now
        from bitnas.cost.exclusive import exclusive

        network = self.space.network(code)
        frozen = outline.random_network(network, self.generator)
        with exclusive():
            reference = self.reference_us()
            times = time_calls(frozen, self.x, seconds=self.seconds)
        return Visit(
            self.space.to_dict(),
            list(code),
            number,
            tuple(signatures(network, self.batch)),
            (*times.calls, times.rest),
            times.whole.us,
            reference,
            times.seconds,
            now(),
        )


def _report(
    space: LatencySpace, writer: TableWriter, key: Key, batch: int, visited: int, seconds: float
) -> BuildReport:
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
    space: LatencySpace,
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
    """
    from bitnas.cost.agreement import compare
    from bitnas.cost.device_table import DeviceTable, TableWriter, latency_key, now

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
    found: dict[Genome, list[dict[str, Any]]] = {code: [] for code in codes}
    with TableWriter(opened.path) as writer:
        for result in writer.table.held_out(key, name):
            found[tuple(result["network"])].append(result)
        timer = _Timer(space, batch, seconds)

        def measure(wanted: int, chosen: Sequence[Genome]) -> None:
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


def _held_out(space: LatencySpace, table: DeviceTable, key: Key, networks: int, seed: int) -> list[Genome]:
    seen = {tuple(visit.network) for visit in table.visits(key, space.to_dict())}
    codes, rng = space.codes, Random(f"held out {seed}")
    if codes.size - len(seen) < networks:
        raise ValueError(f"networks: got {networks}, but only {codes.size - len(seen)} codes were not used to build")
    found: dict[Genome, None] = {}
    while len(found) < networks:
        code = codes.random(rng)
        if code not in seen:
            found[code] = None
    return list(found)


def _predicted(table: DeviceTable, space: LatencySpace, code: Genome, key: Key, batch: int) -> float:
    prediction = table.predict(signatures(space.network(code), batch), key)
    if prediction.missing:
        raise ValueError(
            f"{table.path} lacks {len(prediction.missing)} calls of {space.model} with ratios {list(code)} on this "
            "device; run bitnas latency build with the same options first"
        )
    return prediction.latency_us


def _measured(timer: _Timer, code: Genome, threads: int) -> dict[str, Any]:
    import torch

    from bitnas.cost.exclusive import exclusive
    from bitnas.cost.latency import measure_latency, thread_count
    from bitnas.models import create_model_from_config
    from bitnas.packed import freeze

    with torch.random.fork_rng(devices=[]):
        frozen = freeze(create_model_from_config(timer.space.network(code)).eval())
    with exclusive():
        with thread_count(threads):
            reference = timer.reference_us()
        options: dict[str, Any] = {"batch": timer.batch, "threads": threads, "seconds": timer.seconds}
        latency = measure_latency(frozen, timer.space.input_size, **options)
    return {"latency_us": latency.median_us, "reference_us": reference, "noisy": latency.noisy}

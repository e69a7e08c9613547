"""Timing on a CPU: with warm and with cold caches, on one thread and more, everything in turns.

Warm is a call right after the same call: the caches hold of its operands what fits them. Cold is what a layer meets
inside a network: the layers before it have filled the L1 and L2, so its operands come from the L3 or from memory, while
its code, and the interpreter's, have just run. Copies of the operands are therefore gone through in turns, as many as
exceed the L2 several times over. Sweeping the L2 between calls instead would evict code and interpreter too.
"""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bitnas.cost.timing import Call, Clock, Timing, contenders, host_stopwatch, rounds_for, time_interleaved

# Times the L2: caches that are no strict LRU keep some of what is only twice as large.
_COLD = 3

# An operand so small that it takes more copies is never out of the caches in a network either.
_MOST_COPIES = 512

# A warm sample is the median of so many calls, or of what fits this time, or this share of the slowest call's: beside
# what the others take of a round, that costs little.
_WARM_CALLS = 32
_WARM_SECONDS = 2e-3
_WARM_SHARE = 0.1

# A call this long reads an L2 full of operands in a small part of its time, so it needs no other before it to be warm.
_PRIME_SECONDS = 5e-3

# How long the threads of torch's pool keep spinning when there is nothing left to do.
_POOL_SLEEPS_SECONDS = 0.01

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


@dataclass(frozen=True)
class Way:
    """One way to compute something.

    Attributes:
        make: a call on operands of its own, new ones each time. It is called with torch's threads set, because
            libraries lay weights out for so many.
        reads: bytes of operands that a call reads.
        most_threads: left out where there are more.
    """

    make: Callable[[], Call]
    reads: int
    most_threads: int | None = None


@dataclass(frozen=True)
class Times:
    """``cold`` is None where the operands are too small to be anywhere but in the L1 and L2."""

    warm: Timing
    cold: Timing | None


@dataclass(frozen=True)
class _Run:
    """The calls of a sample: the same ones to time warm, copies to time cold. ``prime``: once more before, untimed."""

    calls: Sequence[Call]
    threads: int
    prime: bool

    def __call__(self) -> None:
        for call in self.calls:
            call()


def cache_bytes(level: int) -> int | None:
    """Size of this CPU's data cache of a level, of one core's where cores have their own; None where unknown."""
    for folder in sorted(_CACHES.glob("index*")):
        try:
            found = {name: (folder / name).read_text().strip() for name in ("level", "type", "size")}
        except OSError:
            continue
        if found["level"] == str(level) and found["type"] != "Instruction":
            return int(found["size"].removesuffix("K")) * 1024
    return None


def cold_copies(reads: int, threads: int) -> int | None:
    """How many copies of so many bytes are gone through for cold times: 1 where one alone evicts itself, None where
    they would be too many."""
    copies = math.ceil(_COLD * threads * (cache_bytes(2) or 1 << 20) / max(1, reads))
    return copies if copies <= _MOST_COPIES else None


def _stopwatch(clock: Clock) -> Callable[[Call, int], float]:
    inner = host_stopwatch(clock)

    def elapsed(run: Call, times: int) -> float:
        assert isinstance(run, _Run)
        before = torch.get_num_threads()
        if before != run.threads:
            torch.set_num_threads(run.threads)
            if run.threads < before:
                time.sleep(_POOL_SLEEPS_SECONDS)
        if run.prime:
            run()
        # The median of calls, each timed alone: all of them together take long enough to be interrupted.
        return times * statistics.median([inner(call, 1) for _ in range(times) for call in run.calls])

    return elapsed


def time_ways(
    ways: Mapping[str, Way],
    *,
    threads: Sequence[int] = (1,),
    seconds: float = 0.5,
    keep: Collection[str] = (),
    clock: Clock = time.perf_counter_ns,
) -> dict[int, dict[str, Times]]:
    """Times ways of computing the same, warm and cold, at every thread count, all of it in turns.

    Args:
        ways: named ``peer`` or ``peer/variant``. Those that fail on this machine or are much slower than another of
            their peer are left out (:func:`bitnas.cost.timing.contenders`).
        threads: torch's threads.
        seconds: spent on every thread count.
        keep: peers of which every way is timed, slow or not.

    Returns:
        by thread count and name.

    Raises:
        RuntimeError: a way of bitnas itself failed.
    """
    before = torch.get_num_threads()
    runs: dict[tuple[int, str, bool], _Run] = {}
    same: list[tuple[int, str]] = []  # cold as well as warm
    known: dict[tuple[int, str, bool], float] = {}
    try:
        for count in threads:
            torch.set_num_threads(count)
            makers = {name: way.make for name, way in ways.items() if count <= (way.most_threads or count)}
            found = contenders(makers, keep=keep)
            warm_seconds = max([_WARM_SECONDS, *(_WARM_SHARE * one for _, one in found.values())])
            for name, (call, one) in found.items():
                warm = [call] * max(1, min(_WARM_CALLS, int(warm_seconds / one)))
                runs[count, name, False] = _Run(warm, count, one < _PRIME_SECONDS)
                copies = cold_copies(ways[name].reads, count)
                if copies == 1:
                    same.append((count, name))
                elif copies is not None:
                    # Primed, so that all of it comes from the L3 where that holds it, whoever ran before.
                    runs[count, name, True] = _Run([ways[name].make() for _ in range(copies)], count, True)
                known |= {(count, name, cold): one for cold in (False, True)}
        total = seconds * len(threads)
        round_seconds = sum(known[key] * len(run.calls) * (1 + run.prime) for key, run in runs.items())
        timings = time_interleaved(
            runs,
            known=known,
            seconds=total,
            min_runs=rounds_for(total, round_seconds),
            clock=clock,
            stopwatch=_stopwatch(clock),
        )
    finally:
        torch.set_num_threads(before)
    timings |= {(count, name, True): timings[count, name, False] for count, name in same}
    return {
        count: {
            name: Times(timings[count, name, False], timings.get((count, name, True)))
            for name in ways
            if (count, name, False) in timings
        }
        for count in threads
    }

"""A timer that knows its own noise: warm-up by time, medians, and repeats until the median is known well enough."""

import math
import resource
import statistics
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

Name = TypeVar("Name", bound=Hashable)
Sample = TypeVar("Sample")
Call = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds
Stopwatch = Callable[[Call, int], float]  # makes a call so many times in a row: nanoseconds that they took

# A sample shorter than this is mostly the clock: short calls are timed several at a time.
_MIN_SAMPLE_NS = 100_000

# Of a peer's ways, those that take so many times as long as its fastest are not worth timing any further.
_SLOW = 2.0

# Samples during which the system took the CPU away are left out, if so many remain.
FEWEST_CLEAN = 5

# Where fewer do, timing goes on, for up to so many times as long.
_LONGER = 4.0

# Probing a way takes a call to get ready and three more, for one hiccup must not rule it out; or what fits this time.
_PROBES = 4
_PROBE_SECONDS = 0.1


@dataclass(frozen=True)
class Timing:
    """Microseconds per call. ``noisy``: the median's 95 % interval stayed wider than asked for."""

    median_us: float
    q1_us: float
    q3_us: float
    low_us: float
    high_us: float
    runs: int
    noisy: bool

    @property
    def iqr_us(self) -> float:
        return self.q3_us - self.q1_us

    def per(self, calls: int) -> "Timing":
        """Of one call, where a sample held this many."""
        times = {name: value / calls for name, value in asdict(self).items() if name.endswith("_us")}
        return replace(self, **times)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "iqr_us": self.iqr_us}


def _median_interval(ordered: list[float]) -> tuple[float, float]:
    """95 % interval of the median from order statistics (no assumption about the noise)."""
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    return ordered[max(0, int(n / 2 - reach))], ordered[min(n - 1, int(n / 2 + reach))]


def summarize(samples_us: list[float], tolerance: float) -> Timing:
    """Statistics of at least one sample; ``tolerance`` is the half-width of the interval, relative to the median."""
    ordered = sorted(samples_us)
    median = statistics.median(ordered)
    q1, _, q3 = statistics.quantiles(ordered, n=4) if len(ordered) > 1 else (median,) * 3
    low, high = _median_interval(ordered)
    return Timing(median, q1, q3, low, high, len(ordered), (high - low) / 2 > tolerance * median)


def times_preempted() -> int:
    """How often the system has taken the CPU away from this thread so far; 0 where it does not tell."""
    who = getattr(resource, "RUSAGE_THREAD", None)
    return 0 if who is None else resource.getrusage(who).ru_nivcsw


def undisturbed(samples: Sequence[Sample], disturbed: Sequence[bool]) -> list[Sample]:
    """The samples that were not disturbed; all of them where too few would be left to go by."""
    clean = [sample for sample, bad in zip(samples, disturbed, strict=True) if not bad]
    return clean if len(clean) >= FEWEST_CLEAN else list(samples)


def host_stopwatch(clock: Clock = time.perf_counter_ns) -> Stopwatch:
    """Times calls that are over when they return."""

    def elapsed(call: Call, times: int) -> float:
        begin = clock()
        for _ in range(times):
            call()
        return clock() - begin

    return elapsed


def contenders(
    makers: Mapping[str, Callable[[], Call]], *, keep: Collection[str] = (), wait: Call = lambda: None
) -> dict[str, tuple[Call, float]]:
    """Makes calls and leaves out the ways that fail on this machine, or are slower by far than others of their peer.

    Args:
        makers: what makes each call, named ``peer`` or ``peer/variant``.
        keep: peers whose slow ways stay.
        wait: returns when what was called has finished.

    Returns:
        the calls that are left, each with about how many seconds it takes.

    Raises:
        RuntimeError: a way of bitnas itself failed.
    """
    found: dict[str, tuple[Call, float]] = {}
    for name, make in makers.items():
        try:
            call = make()
            found[name] = call, _probe(call, wait)
        except RuntimeError:  # a type or engine that this processor has no instructions for
            if name.startswith("bitnas"):
                raise
    best: dict[str, float] = {}
    for name, (_, seconds) in found.items():
        peer = name.partition("/")[0]
        best[peer] = min(best.get(peer, math.inf), seconds)
    return {
        name: (call, seconds)
        for name, (call, seconds) in found.items()
        if (peer := name.partition("/")[0]) in keep or seconds <= _SLOW * best[peer]
    }


def _probe(call: Call, wait: Call) -> float:
    taken: list[float] = []
    while len(taken) < _PROBES and sum(taken) < _PROBE_SECONDS:
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return min(taken)


def rounds_for(seconds: float, round_seconds: float) -> int:
    """The least number of rounds: ten, or where they are long what fits twice the time, but three."""
    return max(3, min(10, int(2 * seconds / round_seconds)))


def time_interleaved(
    calls: Mapping[Name, Call],
    *,
    warmup: float = 0.05,
    known: Mapping[Name, float] | None = None,
    seconds: float = 0.5,
    min_runs: int = 20,
    tolerance: float = 0.02,
    clock: Clock = time.perf_counter_ns,
    stopwatch: Stopwatch | None = None,
    preempted: Callable[[], int] | None = None,
) -> dict[Name, Timing]:
    """Times several calls in turns (A B C A B C ...), so that a drifting clock or a busy neighbour meets all alike.

    Args:
        warmup: seconds of warm-up for each call.
        known: about how many seconds calls take that are warm already; they get no warm-up.
        seconds: stop after this long in all, even if not stable; at least ``min_runs`` rounds are taken.
        tolerance: a timing is stable when half its 95 % interval is below this share of the median.
        clock: what the limits above are told by.
        stopwatch: what samples are taken with; by default the same clock. cpu_timing.py and cuda_timing.py have others.
        preempted: :func:`times_preempted`, for calls that run on this thread: samples that it grew in are left out, so
            that a busy machine does not look like a slow network.

    Returns:
        one :class:`Timing` per name.
    """
    elapsed = stopwatch or host_stopwatch(clock)
    repeats = {}
    for name, call in calls.items():
        length = known[name] * 1e9 if known and name in known else _warm_up(call, warmup, elapsed, clock)
        repeats[name] = max(1, int(_MIN_SAMPLE_NS / max(1, length)))
    samples: dict[Name, list[float]] = {name: [] for name in calls}
    disturbed: dict[Name, list[bool]] = {name: [] for name in calls}
    count = preempted or _never

    def summary(name: Name) -> Timing:
        return summarize(undisturbed(samples[name], disturbed[name]), tolerance)

    start, rounds = clock(), 0
    while True:
        for name, call in calls.items():
            before = count()
            samples[name].append(elapsed(call, repeats[name]) / repeats[name] / 1e3)
            disturbed[name].append(count() != before)
        rounds += 1
        if rounds < min_runs:
            continue
        spent = (clock() - start) / 1e9
        starved = any(len(bad) - sum(bad) < FEWEST_CLEAN <= len(bad) for bad in disturbed.values())
        if starved and spent < _LONGER * seconds:
            continue
        if spent > seconds:
            break
        if rounds % 10 == 0 and not any(summary(name).noisy for name in calls):
            break
    return {name: summary(name) for name in calls}


def _never() -> int:
    return 0


def _warm_up(call: Call, seconds: float, elapsed: Stopwatch, clock: Clock) -> float:
    """Nanoseconds of a call, from all that it took to warm up: two calls or more."""
    start, spent, count = clock(), 0.0, 0
    while clock() - start < seconds * 1e9 or count < 2:
        spent += elapsed(call, 1)
        count += 1
    return spent / count


def time_call(call: Call, **options: Any) -> Timing:
    """Times one call; options as in :func:`time_interleaved`."""
    return time_interleaved({"call": call}, **options)["call"]

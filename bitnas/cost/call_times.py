"""Times of the calls of a frozen network where they run: inside forward passes, with the caches as they are there.

A call timed alone, again and again, finds its weights in the nearest cache and looks faster than it ever is in a
network. So whole passes are made, in turns one that reads the clock between calls and one that does not. Medians of
calls do not add up to the median of their pass, because noise is skewed; so a call's time is its mean over the typical
passes, those whose total is near the median. Where passes differ much there is no typical one: then it is the call's
first quartile, which a busy neighbour moves least.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bitnas.cost.timing import FEWEST_CLEAN, Clock, summarize, times_preempted, undisturbed
from bitnas.packed import PackedNetwork
from bitnas.packed.calls import timed_pass

# Below this a difference is that of reading the clock, and a call this short is not called noisy for it.
_CLOCK_US = 0.1

# A call of less than this share of its pass gets no more time for being noisy.
_SHARE = 0.01

# Typical passes: in order of their totals, those between these shares.
_TYPICAL = (0.35, 0.65)

# Passes are steady where their quartiles are no further apart than this share of the median.
_STEADY = 0.05

# Statistics go through the caches too, so samples are looked at only now and then.
_FIRST_LOOK = 20


@dataclass(frozen=True)
class Reading:
    """Microseconds of one call in the passes of one network.

    ``us`` is its share of a typical pass, or its first quartile where passes are not steady; the others are its own
    quartiles and the 95 % interval of its own median.
    """

    us: float
    median_us: float
    q1_us: float
    q3_us: float
    low_us: float
    high_us: float
    runs: int
    noisy: bool

    def __post_init__(self) -> None:
        times = (self.us, self.median_us, self.q1_us, self.q3_us, self.low_us, self.high_us)
        if not all(math.isfinite(value) for value in times):
            raise ValueError(f"a reading must be finite, got {times}")


@dataclass(frozen=True)
class CallTimes:
    """Every call of a pass in order, what the pass takes beside them, and the whole."""

    calls: tuple[Reading, ...]
    rest: Reading
    whole: Reading
    seconds: float

    @property
    def noisy(self) -> float:
        """Share of the pass's time that is in noisy calls."""
        total = sum(call.us for call in self.calls)
        return sum(call.us for call in self.calls if call.noisy) / total if total else 0.0


def time_calls(
    network: PackedNetwork,
    x: Tensor,
    *,
    warmup: float = 0.05,
    seconds: float = 0.5,
    extra: float = 4.0,
    min_runs: int = 10,
    tolerance: float = 0.02,
    clock: Clock = time.perf_counter_ns,
    preempted: Callable[[], int] = times_preempted,
) -> CallTimes:
    """Times every call of a frozen network in place.

    Args:
        x: float32 ``[N, C, H, W]``.
        warmup: seconds of passes before the first that counts; at least two of either sort are made.
        seconds: stop after this long (after half of it, if all is known well enough), if no call that matters is noisy,
            and after ``extra`` times as long anyhow. At least ``min_runs`` passes of either sort are made.
        tolerance: a call is noisy while half the 95 % interval of its median is more than this share of it.
        clock: nanoseconds. preempted: passes in which this count grows are left out, if enough remain.

    Raises:
        ValueError: the network or the input is not on the CPU. On a GPU calls overlap, and no host clock tells them
            apart.
    """
    if x.device.type != "cpu" or any(tensor.device.type != "cpu" for tensor in network.buffers()):
        raise ValueError(f"calls are timed on the CPU only, but x is on {x.device}; move the network and x by .cpu()")

    plain: list[float] = []
    parts: list[list[float]] = []
    disturbed: list[bool] = []

    def one_plain() -> None:
        start = clock()
        network(x)
        plain.append((clock() - start) / 1e3)

    def one_timed() -> None:
        parts.append([(b - a) / 1e3 for a, b in itertools.pairwise(timed_pass(network, x, clock))])

    def round_of_passes() -> None:
        before = preempted()
        for one in (one_plain, one_timed) if len(plain) % 2 else (one_timed, one_plain):  # neither is always the first
            one()
        disturbed.append(preempted() != before)

    with torch.inference_mode():
        begin = clock()
        while len(plain) < 2 or clock() - begin < warmup * 1e9:
            round_of_passes()
        for samples in (plain, parts, disturbed):
            samples.clear()
        begin, look = clock(), max(min_runs, _FIRST_LOOK)
        while True:
            round_of_passes()
            spent = (clock() - begin) / 1e9
            if len(plain) < min_runs or (len(plain) < look and spent < extra * seconds):
                continue
            look = len(plain) + max(_FIRST_LOOK, len(plain) // 2)
            found = _statistics(plain, parts, disturbed, tolerance, spent)
            total = sum(call.us for call in found.calls)
            hard = any(call.noisy and call.us > _SHARE * total for call in found.calls)
            hard = hard or len(disturbed) - sum(disturbed) < min(min_runs, 2 * FEWEST_CLEAN)
            if spent >= extra * seconds or (not hard and spent >= seconds / 2):
                return found


def _statistics(
    plain: Sequence[float],
    parts: Sequence[Sequence[float]],
    disturbed: Sequence[bool],
    tolerance: float,
    seconds: float,
) -> CallTimes:
    plain = undisturbed(plain, disturbed)
    passes = sorted(undisturbed(parts, disturbed), key=sum)
    low, high = (round(share * (len(passes) - 1)) for share in _TYPICAL)
    typical = passes[low : high + 1]
    totals = summarize([sum(part) for part in passes], tolerance)
    steady = len(disturbed) - sum(disturbed) >= FEWEST_CLEAN and totals.iqr_us <= _STEADY * totals.median_us
    calls = []
    for i in range(len(passes[0])):
        reading = _reading(statistics.fmean(part[i] for part in typical), [part[i] for part in passes], tolerance)
        calls.append(reading if steady else replace(reading, us=reading.q1_us))
    whole = _reading(statistics.median(plain), plain, tolerance)
    # Noise grows with a pass and this does not: it shows between the fastest passes of either sort.
    us = _fast(plain) - _fast([sum(part) for part in passes])
    reach = (whole.high_us - whole.low_us) / 2
    rest = Reading(us, us, us - reach, us + reach, us - reach, us + reach, len(plain), reach > tolerance * whole.us)
    return CallTimes(tuple(calls), rest, whole, seconds)


def _fast(samples: Sequence[float]) -> float:
    return sorted(samples)[len(samples) // 10]


def _reading(us: float, samples: list[float], tolerance: float) -> Reading:
    t = summarize(samples, tolerance)
    noisy = t.noisy and (t.high_us - t.low_us) / 2 > _CLOCK_US
    return Reading(us, t.median_us, t.q1_us, t.q3_us, t.low_us, t.high_us, t.runs, noisy)

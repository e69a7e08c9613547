"""What every method's candidates share: how they are seeded, read their data, and are timed.

A latency is put in proportion to a reference network that is timed in turns with the candidate: what a machine that
has become slower or faster since does to both says nothing of the candidate.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import itertools
import os
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import nn

    from bitnas.cost.agreement import Check
    from bitnas.cost.timing import Timing
    from bitnas.data import Source, Splits

# A latency is measured until its median's 95 % interval is under 2 % of it, or for so many seconds: in the search,
# where it is put in proportion to a reference, and at the end.
HALF_INTERVAL, SEARCH_SECONDS, FRONT_SECONDS = 0.01, 0.5, 1.0


class TimingSettings(Protocol):
    """What a search's settings say of its latencies."""

    @property
    def latency_batch(self) -> int: ...
    @property
    def latency_threads(self) -> int: ...
    @property
    def latency_tolerance(self) -> float: ...
    @property
    def latency_budget(self) -> float | None: ...


def single_threaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with torch on one thread, in a worker or not: sums depend on the number of threads."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        from bitnas.cost.latency import thread_count

        with thread_count(1):
            return function(*args, **kwargs)

    return run


def start_worker() -> None:
    """One thread per process: the processes are what uses the cores."""
    import torch

    torch.set_num_threads(1)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc); a wide network leaves 130 MB otherwise."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(maxsize=1)
def load_data(name: str, seed: int) -> Source:
    """The data set, read once per process."""
    from bitnas import data

    return data.load(name, seed=seed)


def split_data(name: str, seed: int, train: float, val: float) -> Splits:
    """A run's split; a search sees train and val only."""
    return load_data(name, seed).split(train, val, 1 - train - val)


def check_classes(data: Source) -> None:
    """Raises ValueError for images that are all of one class: nothing can be learnt, and every network is right."""
    present = data.labels.unique()
    if len(present) == 1:
        raise ValueError(
            f"data: all {len(data)} images of {data.name} are of class {int(present[0])}; wanted two classes and more"
        )


def few_images(parts: Mapping[str, Source], least: int = 2) -> list[str]:
    """Warnings for the parts of the data, by what they are for, that have fewer than `least` images of a class."""
    found = []
    for name, part in parts.items():
        counts = part.labels.bincount(minlength=part.num_classes)
        few = (counts < least).nonzero().flatten().tolist()
        if few:
            shown = ", ".join(map(str, few[:10])) + (", ..." if len(few) > 10 else "")
            found.append(
                f"{name}: of {len(few)} of {part.num_classes} classes there are fewer than {least} images ({shown}; "
                f"{len(part)} images in all), so it says little; give it a larger share, or more images"
            )
    return found


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits from whatever names the task."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pick_device(device: str, seed: int) -> str:
    """Where a network is trained or judged: "cpu", or for "cuda" the GPU that the seed falls on."""
    import torch

    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("device: got 'cuda', but torch finds no GPU here; use 'cpu'")
    return f"cuda:{seed % torch.cuda.device_count()}"


def beyond_latency(settings: TimingSettings, metrics: Mapping[str, float]) -> str | None:
    """Why a candidate is beyond the latency budget, or None: only a latency whose whole interval is above counts."""
    budget = settings.latency_budget
    if budget is None or metrics.get("latency_low_us", 0.0) <= budget:
        return None
    return f"its latency of {metrics['latency_us']:.1f} us is over the budget of {budget:g} us"


def in_proportion(
    networks: Iterable[nn.Module], reference: nn.Module, settings: TimingSettings, reference_us: float, seconds: float
) -> list[dict[str, float]]:
    """Latencies of frozen networks, in us per batch, timed in turns with each other and the reference.

    Args:
        networks: trained ones with a `config` that has an `input_size`; the kernels take the same time whatever the
            bits are, so random weights do. Taken one by one, and kept frozen only.
        reference: likewise.
        settings: batch, threads, and the least noise a latency is taken to have.
        reference_us: what the reference took when the search began.
        seconds: at most so many for each network.

    Returns:
        For each network latency_us, its interval latency_low_us and latency_high_us (never narrower than the run's
        latency_tolerance), latency_iqr_us, latency_noisy (0 or 1), latency_runs; latency_drift, how much slower the
        reference was than at the beginning, as a factor.
    """
    *timings, unit = time_in_turns(itertools.chain(networks, [reference]), settings, seconds)
    drift = unit.median_us / reference_us
    share = (unit.high_us - unit.low_us) / (2 * unit.median_us)
    found = []
    for own in timings:
        metrics = _latency(own, settings, share)
        scaled = {name: value / drift for name, value in metrics.items() if name.endswith("_us")}
        noisy = float(own.noisy or unit.noisy)
        found.append({**metrics, **scaled, "latency_noisy": noisy, "latency_drift": drift})
    return found


def alone(network: nn.Module, settings: TimingSettings) -> dict[str, float]:
    """Latency and interval of one network as the clock has it; see `in_proportion`."""
    return _latency(time_in_turns([network], settings, FRONT_SECONDS)[0], settings)


def time_in_turns(networks: Iterable[nn.Module], settings: TimingSettings, seconds: float) -> list[Timing]:
    """Of networks, frozen here, with this process alone on the machine, for up to so many seconds each."""
    import torch

    from bitnas.cost.exclusive import exclusive
    from bitnas.cost.latency import thread_count
    from bitnas.cost.timing import time_interleaved, times_preempted
    from bitnas.packed import freeze

    frozen = []
    config: Any = None
    for network in networks:
        config = network.config
        frozen.append(freeze(network.eval()))
    x = torch.rand((settings.latency_batch, *config.input_size), generator=torch.Generator().manual_seed(0))
    calls = {index: functools.partial(network, x) for index, network in enumerate(frozen)}
    with exclusive(), thread_count(settings.latency_threads), torch.inference_mode():
        timings = time_interleaved(
            calls, seconds=seconds * len(calls), tolerance=HALF_INTERVAL, preempted=times_preempted
        )
    del frozen, calls
    release_memory()
    return [timings[index] for index in range(len(timings))]


def _latency(timing: Timing, settings: TimingSettings, share: float = 0.0) -> dict[str, float]:
    """A timing as metrics; `share` of the median is unknown besides."""
    unknown = share * timing.median_us
    margin = 0.5 * settings.latency_tolerance * timing.median_us
    return {
        "latency_us": timing.median_us,
        "latency_low_us": min(timing.low_us - unknown, timing.median_us - margin),
        "latency_high_us": max(timing.high_us + unknown, timing.median_us + margin),
        "latency_iqr_us": timing.iqr_us,
        "latency_noisy": float(timing.noisy),
        "latency_runs": float(timing.runs),
    }


def predicted(latency_us: float, settings: TimingSettings, check: Check | None) -> dict[str, float]:
    """A latency from a device table as metrics, with the interval that the table's errors leave between networks.

    That is what nineteen in twenty of the table's check stayed below, without the bias that all share; never narrower
    than the run's latency_tolerance. `latency_predicted` is 1.
    """
    share = max(0.5 * settings.latency_tolerance, check.scatter_95 if check else 0.0)
    return {
        "latency_us": latency_us,
        "latency_low_us": (1 - share) * latency_us,
        "latency_high_us": (1 + share) * latency_us,
        "latency_predicted": 1.0,
    }

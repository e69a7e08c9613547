"""Measured latency of a whole network on the machine it will run on.

Operation counts do not tell it: a layer's speed depends on its width, its map and its place in the cache. So the number
the search uses is a measurement, with its spread, under a key that says what it was taken on.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from bitnas.cost import cuda_timing, machine
from bitnas.cost.exclusive import exclusive
from bitnas.cost.timing import Timing, time_call, times_preempted


@dataclass(frozen=True)
class Latency:
    """Microseconds per batch. ``timing`` holds the spread; ``machine`` where it was taken.

    ``mode``: what was timed. On a CPU a ``"call"``. On a GPU the replay of a CUDA ``"graph"``, with the same network
    launched from the host in ``launch``; or ``"launch"`` alone where the network cannot be captured.
    ``cold_cache``: every run began with nothing of it in the GPU's L2.
    """

    timing: Timing
    batch: int
    threads: int
    input_size: tuple[int, ...]
    machine: dict[str, Any]
    mode: str = "call"
    launch: Timing | None = None
    cold_cache: bool = False

    @property
    def median_us(self) -> float:
        return self.timing.median_us

    @property
    def iqr_us(self) -> float:
        return self.timing.iqr_us

    @property
    def runs(self) -> int:
        return self.timing.runs

    @property
    def noisy(self) -> bool:
        return self.timing.noisy

    @property
    def launch_us(self) -> float | None:
        """Median where every kernel is launched from the host; None on a CPU."""
        return self.launch.median_us if self.launch else None

    def to_dict(self) -> dict[str, Any]:
        """Timing and key as JSON."""
        key = {"batch": self.batch, "threads": self.threads, "input_size": list(self.input_size)}
        how = {"mode": self.mode, "launch_us": self.launch_us, "cold_cache": self.cold_cache}
        return {**self.timing.to_dict(), **how, **key, "machine": self.machine}

    def __str__(self) -> str:
        noise = ", noisy" if self.noisy else ""
        where = f"on {self.threads} thread(s)"
        if self.launch:
            where = f"by {self.mode} on {self.machine['device']}, {self.launch_us:.1f} us by launches"
        return (
            f"{self.median_us:.1f} us per batch of {self.batch} {where} "
            f"(IQR {self.iqr_us:.1f} us, {self.runs} runs{noise})"
        )


@contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Gives torch this many threads, for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def measure_latency(
    frozen: nn.Module,
    input_size: tuple[int, int, int],
    *,
    batch: int = 1,
    threads: int = 1,
    cold_cache: bool = False,
    **timing: Any,
) -> Latency:
    """Times a network, frozen or float, from float images to logits.

    Run nothing else on the machine meanwhile; processes of one user that measure wait for each other, and on a CPU
    samples during which the system ran something else are left out. Random images; inference mode; the module's own
    device. On a GPU, times are the GPU's own: a replayed graph, and beside it the same network launched from the host.

    Args:
        frozen: what :func:`bitnas.freeze` returns, or any module (evaluated in the mode it is in).
        input_size: ``(C, H, W)``.
        batch: images per call. threads: torch's threads during the measurement.
        cold_cache: GPU only: empty the L2 before every run.
        timing: options of :func:`bitnas.cost.timing.time_interleaved`.

    Returns:
        median, IQR, number of runs, whether it stayed noisy, and the machine.

    Raises:
        ValueError: a size, batch or thread count below 1; ``cold_cache`` on a CPU. Whatever the network raises on such
        an input.
    """
    for name, value in {"batch": batch, "threads": threads, "input_size": min(input_size, default=0)}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    tensor = next(iter(frozen.state_dict().values()), torch.empty(0))
    if cold_cache and not tensor.is_cuda:
        raise ValueError(f"cold_cache is for a network on a GPU, this one is on {tensor.device}")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((batch, *input_size), generator=generator).to(tensor.device)
    with exclusive(), thread_count(threads), torch.inference_mode():
        if not tensor.is_cuda:
            if "clock" not in timing:
                timing["preempted"] = times_preempted
            result = time_call(lambda: frozen(x), **timing)
            where = {**machine.facts(), "device": str(tensor.device)}
            return Latency(result, batch, threads, tuple(input_size), where)
        with torch.cuda.device(tensor.device):
            times = cuda_timing.time_launch_and_graph(lambda: frozen(x), cold_cache=cold_cache, **timing)
            where = {**machine.facts(), "device": str(tensor.device), "gpu_state": machine.gpu_state()}
    mode = "graph" if "graph" in times else "launch"
    return Latency(times[mode], batch, threads, tuple(input_size), where, mode, times["launch"], cold_cache)

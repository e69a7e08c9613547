"""What the parts of bench_cuda.py share: how they time, check and force kernels."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from bitnas import ops
from bitnas.cost import cuda_timing
from bitnas.cost.timing import Call, Timing

TensorCall = Callable[[], Tensor]

# Times calls in turns: (warm, cold) of each.
Measure = Callable[[Mapping[str, Call]], Mapping[str, tuple[Timing, Timing]]]


def measure_for(seconds: float) -> Measure:
    return functools.partial(cuda_timing.time_replays, seconds=seconds, min_runs=10, warmup=0.05)


def timed(calls: Mapping[str, Call], measure: Measure) -> dict[str, Any]:
    timings = measure(calls)
    return {
        "ms": {name: warm.median_us / 1e3 for name, (warm, _) in timings.items()},
        "cold_ms": {name: cold.median_us / 1e3 for name, (_, cold) in timings.items()},
        "noisy": [name for name, (warm, _) in timings.items() if warm.noisy],
    }


def require(ok: bool, what: str) -> None:
    if not ok:
        raise RuntimeError(f"{what}: wrong results; nothing was timed")


def forced(kernel: str, call: TensorCall) -> TensorCall:
    """The call on one kernel. A graph that captures it keeps that kernel."""

    def run() -> Tensor:
        ops.select_cuda_kernel(kernel)
        try:
            return call()
        finally:
            ops.select_cuda_kernel("auto")

    return run

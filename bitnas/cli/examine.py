"""What `bitnas doctor` finds out. Needs torch and numpy alone, so that it serves where the command line cannot run."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

TRIALS = 24  # products of the self-test per instruction set or CUDA kernel


def examine() -> dict[str, Any]:
    """Everything `doctor` prints, as JSON values. `ok` is False with a `problem` that says what to do."""
    import os
    import platform

    import numpy
    import torch

    from .. import __version__
    from .memory import memory_bytes

    found: dict[str, Any] = {
        "ok": True,
        "problem": None,
        "versions": {
            "bitnas": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "isas": [],
        "isa": None,
        "cuda": {"usable": False, "why": None},
        "self_test": None,
    }
    try:
        from .. import _library
    except ImportError as error:
        found |= {"ok": False, "problem": str(error)}
    else:
        from ..cost import machine

        found |= {name: value for name, value in machine.facts().items() if name in ("cpu", "cores", "isas", "isa")}
        found["cuda"] = _cuda()
        found["self_test"] = {name: _cpu_self_test(name) for name in _library.cpu_isas()}
        tests = {**found["self_test"], **found["cuda"].get("self_test", {})}
        wrong = [name for name, equal in tests.items() if equal != TRIALS]
        if wrong:
            found |= {"ok": False, "problem": f"the {', '.join(wrong)} kernels compute wrong results on this machine"}
    found["memory_bytes"] = memory_bytes(os.getpid())
    return found


def _cuda() -> dict[str, Any]:
    from .. import _library
    from ..cost import machine

    gpu, why = machine.facts()["gpu"], machine.why_no_gpu()
    found: dict[str, Any] = {"usable": why is None, "why": why}
    if gpu is not None:
        found |= {"device": gpu["name"], "gpu": gpu}
    if why is None:
        found["kernels"] = _library.cuda_kernels()
        found["self_test"] = {name: _cuda_self_test(name) for name in found["kernels"]}
    return found


def _cpu_self_test(isa: str) -> int:
    """How many of `TRIALS` random convolutions equal plain torch, every integer of them, on one instruction set."""
    from .. import _library

    active = _library.cpu_isa()
    _library.select_cpu_isa(isa)
    try:
        return _equal_trials("cpu", _convolution)
    finally:
        _library.select_cpu_isa(active)


def _cuda_self_test(kernel: str) -> int:
    """The same on a CUDA kernel, forced wherever it can compute; half of the trials are matrix products, which is all
    that some kernels do."""
    from .. import _library

    _library.select_cuda_kernel(kernel)
    try:
        return _equal_trials("cuda", _convolution, _matrix_product)
    finally:
        _library.select_cuda_kernel("auto")


Trial = Callable[[random.Random, Any, str], bool]


def _equal_trials(device: str, *kinds: Trial) -> int:
    import torch

    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    return sum(kinds[i % len(kinds)](draw, generator, device) for i in range(TRIALS))


def _convolution(draw: random.Random, generator: Any, device: str) -> bool:
    import torch

    from .. import ops, reference

    kernel = draw.choice((1, 3, 5))
    cin, cout, size = draw.randint(1, 200), draw.randint(1, 40), draw.randint(kernel, 9)
    x = torch.randn(2, cin, size, size, generator=generator)
    weight = torch.randn(cout, cin, kernel, kernel, generator=generator)
    geometry = {"stride": draw.choice((1, 2)), "padding": draw.choice((0, 1))}
    activations = draw.choice(("sign", "unit"))
    got = ops.conv2d(x.to(device), weight.to(device), activations=activations, **geometry)  # type: ignore[arg-type]
    return torch.equal(got.cpu(), reference.conv2d(x, weight, activations, **geometry))


def _matrix_product(draw: random.Random, generator: Any, device: str) -> bool:
    import torch

    from .. import ops, reference

    rows, features, out = draw.randint(1, 300), 128 * draw.randint(1, 20), draw.randint(1, 300)
    x, weight = torch.randn(rows, features, generator=generator), torch.randn(out, features, generator=generator)
    got = ops.linear(x.to(device), weight.to(device))
    return torch.equal(got.cpu(), reference.linear(x, weight))

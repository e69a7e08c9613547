"""`bitnas doctor`: what is installed, what this machine can run, and whether the kernels compute right."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

_TRIALS = 24  # shapes of the self-test per instruction set


def doctor(json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False) -> None:
    """Check the installation: versions, instruction sets, CUDA, and a self-test of the kernels.

    Exit code 1 if the compiled kernels are missing or wrong.
    """
    from .output import print_json

    found = examine()
    if json:
        print_json(found)
    else:
        for name, value in _lines(found):
            typer.echo(f"{name:<12}{value}")
    if not found["ok"]:
        if found["problem"]:
            print(f"error: {found['problem']}", file=sys.stderr)
        raise typer.Exit(1)


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
        found["cuda"] = _cuda(_library.cuda_loaded())
        found["self_test"] = {name: _self_test(name) for name in _library.cpu_isas()}
        wrong = [name for name, equal in found["self_test"].items() if equal != _TRIALS]
        if wrong:
            found |= {"ok": False, "problem": f"the {', '.join(wrong)} kernels compute wrong results on this machine"}
    found["memory_bytes"] = memory_bytes(os.getpid())
    return found


def _self_test(isa: str) -> int:
    """How many of `_TRIALS` random convolutions equal plain torch, every integer of them, on one instruction set."""
    import random

    import torch

    from .. import _library, ops, reference

    draw, generator = random.Random(0), torch.Generator().manual_seed(0)
    active, equal = _library.cpu_isa(), 0
    _library.select_cpu_isa(isa)
    try:
        for _ in range(_TRIALS):
            kernel = draw.choice((1, 3, 5))
            cin, cout, size = draw.randint(1, 200), draw.randint(1, 40), draw.randint(kernel, 9)
            x = torch.randn(2, cin, size, size, generator=generator)
            weight = torch.randn(cout, cin, kernel, kernel, generator=generator)
            geometry = {"stride": draw.choice((1, 2)), "padding": draw.choice((0, 1))}
            activations = draw.choice(("sign", "unit"))
            got = ops.conv2d(x, weight, activations=activations, **geometry)  # type: ignore[arg-type]
            equal += torch.equal(got, reference.conv2d(x, weight, activations, **geometry))
    finally:
        _library.select_cpu_isa(active)
    return equal


def _cuda(loaded: bool) -> dict[str, Any]:
    import torch

    if torch.version.cuda is None:
        return {"usable": False, "why": "this torch is a CPU build"}
    if not torch.cuda.is_available():
        return {
            "usable": False,
            "why": f"torch was built for CUDA {torch.version.cuda} but finds no usable GPU or driver",
        }
    name = torch.cuda.get_device_name()
    if not loaded:
        return {
            "usable": False,
            "device": name,
            "why": "bitnas was built without nvcc, so its CUDA kernels are missing",
        }
    return {"usable": True, "device": name, "why": None}


def _lines(found: dict[str, Any]) -> list[tuple[str, str]]:
    from ..report import numbers

    cuda = found["cuda"]
    rows = [
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        ("CPU", f"{found['cpu']}, {found['cores']} cores, torch uses {found['torch_threads']} threads"),
    ]
    if found["isas"]:
        rows += [
            ("kernels", f"{found['isa']} (this machine runs {', '.join(found['isas'])})"),
            ("CUDA", f"usable, {cuda['device']}" if cuda["usable"] else f"not usable: {cuda['why']}"),
        ]
    for isa, equal in (found["self_test"] or {}).items():
        rows.append(("self-test", f"{isa}: {equal} of {_TRIALS} convolutions equal to torch in every integer"))
    rows.append(("memory", f"{numbers.size(found['memory_bytes'])} in use by this process"))
    rows.append(("result", "OK" if found["ok"] else "NOT OK"))
    return rows

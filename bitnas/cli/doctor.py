"""`bitnas doctor`: what is installed, what this machine can run, and whether the kernels compute right."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from .examine import TRIALS, examine


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
    if gpu := cuda.get("gpu"):
        rows.append(("GPU", f"compute capability {gpu['compute_capability']}, driver {gpu['driver'] or 'unknown'}"))
    for isa, equal in (found["self_test"] or {}).items():
        rows.append(("self-test", f"{isa}: {equal} of {TRIALS} convolutions equal to torch in every integer"))
    for kernel, equal in cuda.get("self_test", {}).items():
        rows.append(("self-test", f"CUDA {kernel}: {equal} of {TRIALS} products equal to torch in every integer"))
    rows.append(("memory", f"{numbers.size(found['memory_bytes'])} in use by this process"))
    rows.append(("result", "OK" if found["ok"] else "NOT OK"))
    return rows

"""`bitnas demo`: the whole line on real digits in minutes: search, study, report, and what it took."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

# Small enough for three minutes on two cores, large enough for a front: the preset of the digits decides the rest.
_SEARCH: dict[str, Any] = {"population": 12, "generations": 4, "objectives": ("accuracy", "ops", "latency")}
_STUDY: dict[str, Any] = {"picks": 3, "folds": 6, "epochs": 8}


def demo(
    out: Annotated[Path, typer.Option(help="Run folder, made if missing.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(help="Decides the split, the candidates and the strategy.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the study and what the run took as JSON.")] = False,
) -> None:
    """Search, retrain, freeze, verify and report on scikit-learn's handwritten digits, with nothing to download.

    A folder that holds this run already is used: what was measured in it is not measured again.
    """
    import time

    from ..methods import width
    from ..report import build, findings, numbers
    from ..report.load import load_run
    from .memory import PeakMemory
    from .output import console, interruptible, networks_table, print_json
    from .progress import ProgressView

    config = width.preset("digits", seed=seed, **_SEARCH)
    again = f"bitnas demo --out {shlex.quote(str(out))} --seed {seed}"
    start = time.perf_counter()
    with PeakMemory() as memory, interruptible(f"nothing measured is lost. To go on: {again}"):
        with ProgressView() as view:
            width.search(config, out, on_progress=view)
            width.study(out, on_progress=view, **_STUDY)
        path = build(out)
    seconds = time.perf_counter() - start
    run = load_run(out)
    if json:
        print_json(
            {
                "networks": [network.values for network in run.networks],
                "claims": run.claims,
                "headline": findings.headline(run),
                "report": str(path),
                "seconds": seconds,
                "peak_memory_bytes": memory.peak_bytes,
            }
        )
        return
    screen = console()
    screen.print(networks_table(run.networks))
    screen.print(findings.headline(run), markup=False)
    screen.print(
        f"\ntook {seconds:.0f} s; peak memory of all processes {numbers.size(memory.peak_bytes)}", markup=False
    )
    screen.print(f"report: {path}", markup=False)

"""`bitnas bench`: layers on the packed kernels beside torch's float32, bfloat16 and int8, in the same run."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

DEFAULT_SHAPES = "resnet18"


def bench(
    shapes: Annotated[
        str | None,
        typer.Option(help="CSV of layers (name,cin,cout,h,w,kernel,stride,padding,dilation,groups) or a shipped name."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes with commas.")] = "1",
    threads: Annotated[str, typer.Option(help="Thread counts with commas.")] = "1",
    against: Annotated[str, typer.Option(help="What to compare with.")] = "float32,bfloat16,int8",
    isa: Annotated[
        str, typer.Option(help="scalar, avx2, avx512 or auto; torch is held to the same instructions.")
    ] = "auto",
    seconds: Annotated[float | None, typer.Option(help="Time spent on each figure.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print machine, rows and geomean_ratio as JSON.")] = False,
) -> None:
    """Time layers, median and interquartile range, and mark those where the packed kernel is slower."""
    from .output import console, integers, interruptible, names, print_json
    from .progress import ProgressView

    hold_to(isa)
    from ..cost.bench import bench_layers, read_shapes

    options: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    layers = read_shapes(shapes or DEFAULT_SHAPES)
    with interruptible("a benchmark keeps nothing; start it again when the machine is free"), ProgressView() as view:
        result = bench_layers(
            layers,
            batches=integers("--batch", batch) or (1,),
            threads=integers("--threads", threads) or (1,),
            against=names(against) or (),
            progress=lambda done, total, what: view.advance("timing layers", done, total),
            **options,
        )
    if json:
        print_json(result)
        return
    machine = result["machine"]
    screen = console()
    screen.print(f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}", markup=False)
    screen.print(_table(result))
    for name, ratio in result["geomean_ratio"].items():
        if ratio is not None:
            screen.print(f"against {name}: {ratio:.2f} times as fast in the geometric mean", markup=False)


def hold_to(isa: str) -> None:
    """Force our kernels, and torch's, to one instruction set; "auto" leaves everything as it is.

    Raises RuntimeError where torch is loaded already, because it would not listen any more.
    """
    if isa == "auto":
        return
    if "torch" in sys.modules:
        raise RuntimeError(f"--isa {isa}: torch is loaded already and reads its limits only when it loads")
    from ..cost.machine import TORCH_LIMITS

    os.environ["BITNAS_ISA"] = isa
    os.environ.update(TORCH_LIMITS.get(isa, {}))


def _table(result: dict[str, Any]) -> Any:
    from .output import table

    rows = result["rows"]
    peers = list(dict.fromkeys(name for row in rows for name in row["ms"] if name != "bitnas"))
    cells = []
    for row in rows:
        ms = row["ms"]
        ratios = {name: ms[name] / ms["bitnas"] for name in peers if ms.get(name)}
        slower = [name for name, ratio in ratios.items() if ratio < 1]
        cells.append(
            [
                row["name"],
                str(row["batch"]),
                str(row["threads"]),
                row["isa"],
                f"{ms['bitnas']:.4f}",
                *(f"{ms[name]:.4f}  {ratios[name]:5.2f}×" if name in ratios else "–" for name in peers),
                f"{row['gops'].get('bitnas', 0):.0f}",
                f"slower than {', '.join(slower)}" if slower else "",
            ]
        )
    columns = ["layer", "batch", "threads", "kernels", "packed ms", *(f"{name} ms" for name in peers), "GOP/s", ""]
    return table(columns, cells)

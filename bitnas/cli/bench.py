"""`bitnas bench`: layers on the packed kernels beside torch's own, in the same run, on the CPU or the GPU."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

DEFAULT_SHAPES = "resnet18"

# Of the times of a row: ours, and their columns.
_OURS = {"bitnas": "packed ms", "bitnas_to_bfloat16": "to bf16 ms"}


def bench(
    shapes: Annotated[
        str | None,
        typer.Option(help="CSV of layers (name,cin,cout,h,w,kernel,stride,padding,dilation,groups) or a shipped name."),
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes with commas.")] = "1",
    threads: Annotated[str, typer.Option(help="Thread counts with commas.")] = "1",
    against: Annotated[
        str | None,
        typer.Option(
            help="What to compare with. Default: float32,bfloat16,int8; with --device cuda float32,bfloat16,float16."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda: the current GPU, by replayed CUDA graphs.")] = "cpu",
    isa: Annotated[
        str,
        typer.Option(
            help="scalar, avx2, avx512 or auto; torch is held to the same instructions. With --device cuda a kernel "
            "that bitnas doctor lists, used wherever it can compute the layer."
        ),
    ] = "auto",
    seconds: Annotated[float | None, typer.Option(help="Time spent on each figure.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print machine, rows and geomean_ratio as JSON.")] = False,
) -> None:
    """Time layers, median and interquartile range, and mark those where the packed kernel is slower."""
    from .output import console, integers, interruptible, names, print_json
    from .progress import ProgressView

    options: dict[str, Any] = {"device": device}
    if device == "cpu":
        hold_to(isa)
    else:
        options["kernel"] = isa
    if seconds is not None:
        options["seconds"] = seconds
    from ..cost.bench import bench_layers, read_shapes

    layers = read_shapes(shapes or DEFAULT_SHAPES)
    with interruptible("a benchmark keeps nothing; start it again when the machine is free"), ProgressView() as view:
        result = bench_layers(
            layers,
            batches=integers("--batch", batch) or (1,),
            threads=integers("--threads", threads) or (1,),
            against=names(against),
            progress=lambda done, total, what: view.advance("timing layers", done, total),
            **options,
        )
    if json:
        print_json(result)
        return
    screen = console()
    screen.print(_where(result), markup=False)
    screen.print(_table(result))
    for results, key in (("", "geomean_ratio"), ("with bfloat16 results ", "geomean_ratio_to_bfloat16")):
        for name, ratio in result.get(key, {}).items():
            if ratio is not None:
                screen.print(f"{results}against {name}: {ratio:.2f} times as fast in the geometric mean", markup=False)
    for name, why in result.get("left_out", {}).items():
        screen.print(f"{name} left out: {why}", markup=False)


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    if result["device"] == "cpu":
        return f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}"
    gpu = machine["gpu"]
    return f"{gpu['name']}, driver {gpu['driver']}, torch {machine['torch']}; replayed CUDA graphs, warm L2"


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
    timed = dict.fromkeys(name for row in rows for name in row["ms"])
    ours = {name: title for name, title in _OURS.items() if name in timed}
    peers = [name for name in timed if name not in ours]
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
                *(f"{ms[name]:.4f}" for name in ours),
                *(f"{ms[name]:.4f}  {ratios[name]:5.2f}×" if name in ratios else "–" for name in peers),
                f"{row['gops'].get('bitnas', 0):.0f}",
                f"slower than {', '.join(slower)}" if slower else "",
            ]
        )
    names = [*ours.values(), *(f"{name} ms" for name in peers)]
    columns = ["layer", "batch", "threads", "kernels", *names, "GOP/s", ""]
    return table(columns, cells)

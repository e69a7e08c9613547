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
            help="An instruction set that bitnas doctor lists (scalar, avx2, avx512 ...) or auto; torch is held to the "
            "same instructions. With --device cuda a kernel that it lists, used wherever it can compute the layer."
        ),
    ] = "auto",
    seconds: Annotated[float | None, typer.Option(help="Time spent on each figure.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print machine, rows and geomean_ratio as JSON.")] = False,
) -> None:
    """Time layers beside torch's own, with warm and with cold caches, and say where the packed kernel is slower."""
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
                cold = None if results else result.get("geomean_cold_ratio", {}).get(name)
                text = f"{results}against {name}: {ratio:.2f} times as fast in the geometric mean"
                screen.print(text + (f", {cold:.2f} with cold caches" if cold else ""), markup=False)
    screen.print(_losses(result), markup=False)
    for name, why in result.get("left_out", {}).items():
        screen.print(f"{name} left out: {why}", markup=False)


def _losses(result: dict[str, Any]) -> str:
    """Where binary loses, in one line."""
    found = [
        f"{loss['name']} (batch {loss['batch']}, {loss['threads']} thread(s){', cold caches' if loss['cold'] else ''}) "
        f"to {loss['to']}, {loss['ratio']:.2f}×"
        for loss in result.get("losses", ())
    ]
    return f"binary loses: {'; '.join(found)}" if found else "binary loses nowhere in this list"


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
        ms, cold = row["ms"], row.get("cold_ms", {})
        ratios = {name: ms[name] / ms["bitnas"] for name in peers if ms.get(name)}
        slower = [name for name, ratio in ratios.items() if ratio < 1]
        shown = {name: f"{ms[name]:.4f} {ratio:6.2f}×" for name, ratio in ratios.items()}
        if "bitnas" in cold:
            shown |= {name: f"{shown[name]} ({cold[name] / cold['bitnas']:.1f}×)" for name in shown if name in cold}
        cells.append(
            [
                row["name"],
                str(row["batch"]),
                str(row["threads"]),
                row["isa"],
                *(f"{ms[name]:.4f}" for name in ours),
                *(shown.get(name, "–") for name in peers),
                f"{row['gops'].get('bitnas', 0):.0f}",
                f"slower than {', '.join(slower)}" if slower else "",
            ]
        )
    names = [*ours.values(), *(f"{name} ms (cold)" for name in peers)]
    columns = ["layer", "batch", "threads", "kernels", *names, "GOP/s", ""]
    made = table(columns, cells)
    made.columns[0].min_width = max(len(name) for name, *_ in cells)  # it would be the first to give way
    return made

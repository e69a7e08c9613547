"""1-bit matrix products against other packages' and torch's float32, bfloat16 and int8, per instruction set.

Packed bits in, int32 out ("bitnas"), and beside it bits out, as inside a network. The 1-bit peers are numkong, faiss
and numpy (cpu_peers.py: what each computes; each is checked against bitnas first); torch's are float32, bfloat16 and
int8, each the fastest of eager, products with prepacked weights and quantized engines. Weights are laid out outside of
what is timed. All peers of a product run in one process and in turns, with warm caches and with cold ones
(bitnas/cost/cpu_timing.py), on one thread and, where they have them, on two; all but numpy are held to the instructions
that bitnas may use. The sizes are bitnas/cost/shapes/gemm.csv: as 1x1 convolutions, m = h * w, n = cout, k = cin.

Prints tables, means, where binary loses and which goals are reached; writes <machine>-gemm.json and pictures, or
<machine>-gemm.partial.json when it is interrupted. Run nothing else on the machine meanwhile.
"""

import argparse
import contextlib
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpu_runs
import torch
from cpu_goals import GEMM_GOALS, Row
from cpu_peaks import describe, measure_peaks
from cpu_peers import BIT_PEERS, FAISS_LIMITS, TORCH_PEERS, Gemm, gemm_ways, hold_numkong_to, versions
from cpu_report import groups_of, publish, rows_table, with_bound

from bitnas import ops
from bitnas.cli.progress import ProgressView
from bitnas.cost.bench import EVERY_WAY, Layer, cpu_figures, read_shapes
from bitnas.cost.cpu_timing import time_ways
from bitnas.cost.machine import TORCH_LIMITS

KEYS = ("isa", "threads")
PEERS = (*BIT_PEERS, *TORCH_PEERS)

# Larger products take seconds a call there, and bfloat16 is emulated; the others tell enough.
MOST_PRODUCTS = {"scalar": 1 << 31, "avx2": 1 << 33}
EMULATED = {isa: {"bfloat16": "torch only emulates it on these instructions"} for isa in MOST_PRODUCTS}


def gemm_of(layer: Layer) -> Gemm:
    """Raises ValueError for a layer that is no matrix product."""
    if (layer.kernel, layer.stride, layer.padding, layer.groups) != (1, 1, 0, 1):
        raise ValueError(f"layer {layer.name!r} is no matrix product: it must be 1x1, stride 1, padding 0, groups 1")
    return Gemm(layer.positions, layer.cout, layer.cin)


def measure(options: argparse.Namespace) -> None:
    """In the process of one instruction set: says rows as they come."""
    isa, threads = ops.cpu_isa(), cpu_runs.thread_counts(options)
    with contextlib.suppress(ImportError):  # gemm_ways says so
        hold_numkong_to(isa)
    cpu_runs.say("left_out", EMULATED.get(isa, {}))
    against = [peer for peer in TORCH_PEERS if peer not in EMULATED.get(isa, {})]
    layers = read_shapes(options.shapes)[: 2 if options.quick else None]
    for done, layer in enumerate(layers):
        cpu_runs.say("progress", [done, len(layers), layer.name])
        gemm = gemm_of(layer)
        if gemm.products > MOST_PRODUCTS.get(isa, gemm.products):
            cpu_runs.say("left_out", {layer.name: "seconds a call for torch's peers on these instructions"})
            continue
        with torch.inference_mode():
            ways, kernel, left_out = gemm_ways(gemm, against)
            cpu_runs.say("left_out", {f"{peer}, {layer.name}": why for peer, why in left_out.items()})
            times = time_ways(ways, threads=threads, seconds=options.seconds, keep=EVERY_WAY)
        for count in threads:
            case = {"name": layer.name, "m": gemm.m, "n": gemm.n, "k": gemm.k, "batch": 1, "threads": count}
            figures = cpu_figures(2 * gemm.products, times[count])
            cpu_runs.say("row", {**case, "isa": isa, "kernel": kernel, **figures})
    cpu_runs.say("progress", [len(layers), len(layers), ""])


def show(peaks: Mapping[str, Any], isa: str, rows: list[Row]) -> None:
    for (_, threads), group in groups_of(with_bound(rows, peaks), KEYS):
        print(f"\n1-bit matrix products m x n x k, {threads} thread(s), {isa} kernels")
        print(rows_table(group, [peer for peer in PEERS if any(peer in row["ms"] for row in group)], "m x n x k"))


def main() -> int:
    parser = cpu_runs.parser_for(__doc__)
    parser.add_argument("--shapes", default="gemm", help="CSV of 1x1 layers, as for `bitnas bench` (default: gemm.csv)")
    options = parser.parse_args()
    options.seconds = options.seconds or (0.05 if options.quick else 0.5)
    if options.child:
        return cpu_runs.as_child(functools.partial(measure, options))
    threads, isas = cpu_runs.thread_counts(options), cpu_runs.wanted_isas(options)
    for layer in read_shapes(options.shapes):
        gemm_of(layer)
    facts, peaks = {**cpu_runs.machine_facts(), **versions()}, measure_peaks()
    cpu_runs.warn_if_busy(facts)
    print(describe(peaks))
    limits = {isa: {**TORCH_LIMITS.get(isa, {}), **FAISS_LIMITS.get(isa, {})} for isa in isas}
    arguments = [f"--threads={','.join(map(str, threads))}", f"--seconds={options.seconds}"]
    arguments += [f"--shapes={options.shapes}", *["--quick"] * options.quick]
    with ProgressView() as view:
        collected = cpu_runs.collect(
            Path(__file__), isas, arguments, limits, on_rows=functools.partial(show, peaks), advance=view.advance
        )
    collected.rows = with_bound(collected.rows, peaks)
    return publish(
        "gemm",
        collected,
        options,
        facts=facts,
        peaks=peaks,
        goals=GEMM_GOALS,
        peers=PEERS,
        keys=KEYS,
        limits=limits,
    )


if __name__ == "__main__":
    sys.exit(main())

"""The binary convolutions of ResNet-18 and VGG-small against torch's float32, bfloat16 and int8, per instruction set.

Bits in, bits out. All peers of a layer run in one process and in turns, with warm caches and with cold ones (as inside
a network: bitnas/cost/cpu_timing.py says how), on one thread and on two. float32 and bfloat16 are the faster of eager
channels_last and oneDNN with prepacked weights, int8 the fastest quantized engine; rows keep the times of all. torch,
oneDNN and FBGEMM are held to the instructions that bitnas may use. The bound is what the main loop of that
instruction set's kernels does with its operands in the L1 (cpu_peaks.cpp), measured in the same run. No 1-bit peer is
there to compare with: published ones that are fast compute matrix products (bench_gemm.py).

Prints tables, means, where binary loses and which goals are reached; writes <machine>-conv2d.json and pictures, or
<machine>-conv2d.partial.json when it is interrupted. Run nothing else on the machine meanwhile.
"""

import argparse
import functools
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cpu_runs
from cpu_goals import CONV2D_GOALS, NETWORKS, Row
from cpu_peaks import describe, measure_peaks
from cpu_report import groups_of, publish, rows_table, with_bound

from bitnas.cli.progress import ProgressView
from bitnas.cost.bench import PEERS, Layer, bench_layers, read_shapes
from bitnas.cost.machine import TORCH_LIMITS

KEYS = ("isa", "network", "batch", "threads")

# Bits of a number, by who computes with them.
BITS = {"bitnas": 1, "float32": 32, "bfloat16": 16, "int8": 8}

# Peers that torch only emulates on an instruction set: most of the time would be theirs (Zen 4: six times float32's).
EMULATED = {"scalar": {"bfloat16": "torch only emulates it on these instructions"}}


def measure(options: argparse.Namespace) -> None:
    """In the process of one instruction set: says rows as they come."""
    from bitnas import ops

    left_out = EMULATED.get(ops.cpu_isa(), {})
    cpu_runs.say("left_out", left_out)
    against = [peer for peer in PEERS if peer not in left_out]
    cases = [
        (network, batch, read_shapes(network)[: 2 if options.quick else None])
        for network, batches in NETWORKS.items()
        for batch in (batches[:1] if options.quick else batches)
    ]
    total, before = sum(len(layers) for _, _, layers in cases), 0
    for network, batch, layers in cases:
        bench_layers(
            layers,
            batches=(batch,),
            threads=cpu_runs.thread_counts(options),
            against=against,
            seconds=options.seconds,
            progress=functools.partial(say_progress, network, before, total),
            on_row=functools.partial(say_row, network, {layer.name: layer for layer in layers}),
        )
        before += len(layers)


def say_progress(network: str, before: int, total: int, done: int, _: int, what: str) -> None:
    cpu_runs.say("progress", [before + done, total, f"{network} {what}"])


def say_row(network: str, layers: Mapping[str, Layer], row: Row) -> None:
    layer = layers[row["name"]]
    operations, elements = 2 * layer.macs * row["batch"], layer.elements(row["batch"])
    intensity = {peer: operations / (elements * BITS[peer] / 8) for peer in row["ms"]}
    cpu_runs.say("row", {"network": network, **row, "operations_per_byte": intensity})


def show(peaks: Mapping[str, Any], isa: str, rows: list[Row]) -> None:
    limits = ", ".join(f"{name}={value}" for name, value in TORCH_LIMITS.get(isa, {}).items()) or "none"
    for (_, network, batch, threads), group in groups_of(with_bound(rows, peaks), KEYS):
        print(f"\n{network}, batch {batch}, {threads} thread(s), {isa} kernels; limits of torch: {limits}")
        print(rows_table(group, [peer for peer in PEERS if any(peer in row["ms"] for row in group)], "layer"))


def main() -> int:
    options = cpu_runs.parser_for(__doc__).parse_args()
    options.seconds = options.seconds or (0.05 if options.quick else 0.5)
    if options.child:
        return cpu_runs.as_child(functools.partial(measure, options))
    threads, isas = cpu_runs.thread_counts(options), cpu_runs.wanted_isas(options)
    facts, peaks = cpu_runs.machine_facts(), measure_peaks()
    cpu_runs.warn_if_busy(facts)
    print(describe(peaks))
    arguments = [f"--threads={','.join(map(str, threads))}", f"--seconds={options.seconds}"]
    arguments += ["--quick"] * options.quick
    with ProgressView() as view:
        collected = cpu_runs.collect(
            Path(__file__),
            isas,
            arguments,
            TORCH_LIMITS,
            on_rows=functools.partial(show, peaks),
            advance=view.advance,
        )
    collected.rows = with_bound(collected.rows, peaks)
    return publish(
        "conv2d",
        collected,
        options,
        facts=facts,
        peaks=peaks,
        goals=CONV2D_GOALS,
        peers=PEERS,
        keys=KEYS,
        limits=TORCH_LIMITS,
    )


if __name__ == "__main__":
    sys.exit(main())

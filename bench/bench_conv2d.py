"""The binary convolutions of ResNet-18 and VGG-small against torch's float32, bfloat16 and int8, per instruction set.

Each instruction set runs in a process of its own, because torch, oneDNN and FBGEMM read their limits once, when they
are loaded: a comparison is fair only when both sides may use the same instructions. Run nothing else on the machine
meanwhile.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from bitnas.cost.machine import TORCH_LIMITS

RESULTS = Path(__file__).parent / "results"

# The shipped layer lists and the batch sizes they are timed at.
NETWORKS = {"resnet18": (1, 32), "vgg_small": (1, 64)}


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Runs in the child: one entry per network and batch size."""
    from bitnas import ops
    from bitnas.cost.bench import bench_layers, read_shapes

    isa, runs = ops.cpu_isa(), []
    for network, batches in NETWORKS.items():
        for batch in batches[:1] if options.quick else batches:
            layers = read_shapes(network)[: 2 if options.quick else None]
            result = bench_layers(
                layers, batches=(batch,), threads=(options.threads,), seconds=options.seconds, progress=report_progress
            )
            runs.append({"isa": isa, "network": network, "batch": batch, **result})
    return runs


def report_progress(done: int, total: int, what: str) -> None:
    print(f"\r{done}/{total} {what:40}", end="" if done < total else "\r", file=sys.stderr, flush=True)


def run_child(isa: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    held = TORCH_LIMITS[isa]
    command = [sys.executable, __file__, "--child", f"--seconds={options.seconds}", f"--threads={options.threads}"]
    command += ["--quick"] * options.quick
    environment = {**os.environ, **held, "BITNAS_ISA": isa}
    child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return [{**run, "torch_limits": held} for run in json.loads(child.stdout)]


def show(run: dict[str, Any]) -> None:
    held = ", ".join(f"{name}={value}" for name, value in run["torch_limits"].items()) or "none"
    print(f"\n{run['network']}, batch {run['batch']}, {run['isa']} kernels; limits of torch: {held}")
    peers = list(run["geomean_ratio"])
    print(f"{'layer':14}{'bitnas':>20}" + "".join(f"{peer:>28}" for peer in peers))
    for row in run["rows"]:
        line = f"{row['name']:14}{row['ms']['bitnas']:9.3f} ms {row['gops']['bitnas']:5.0f} G"
        ratios = {peer: row["ms"][peer] / row["ms"]["bitnas"] for peer in peers if peer in row["ms"]}
        for peer in peers:
            figures = (
                f"{row['ms'][peer]:9.3f} ms {row['gops'][peer]:5.0f} G {ratios[peer]:5.1f}x" if peer in ratios else "-"
            )
            line += f"{figures:>28}"
        slower = [peer for peer, ratio in ratios.items() if ratio < 1]
        line += f"  SLOWER than {', '.join(slower)}" if slower else ""
        line += f"  noisy: {', '.join(row['noisy'])}" if row["noisy"] else ""
        print(line)
    means = (f"{peer} {ratio:.2f}x" for peer, ratio in run["geomean_ratio"].items() if ratio is not None)
    print(f"geometric mean of the ratios: {', '.join(means)}")


def slug(machine: dict[str, Any]) -> str:
    name = f"{machine['cpu']} {machine['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-")


def main() -> None:
    from bitnas import ops
    from bitnas.cost import machine
    from bitnas.files import write_json_atomic

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="instruction sets with commas (default: all of this CPU)")
    parser.add_argument("--seconds", type=float, help="time spent on each layer (default 0.5, quick 0.02)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two layers of each network at batch 1; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for <machine>.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.seconds = options.seconds or (0.02 if options.quick else 0.5)
    if options.child:
        print(json.dumps(measure(options)))
        return
    isas = ops.cpu_isas()
    wanted = options.isa.split(",") if options.isa else isas
    if unknown := [isa for isa in wanted if isa not in isas]:
        parser.error(f"--isa: got {unknown[0]!r}, this CPU and build run {', '.join(isas)}")
    runs: list[dict[str, Any]] = []
    for isa in wanted:
        for run in run_child(isa, options):
            show(run)
            runs.append(run)
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{slug(machine.facts())}.json"
        write_json_atomic(path, {"command": sys.argv, "seconds": options.seconds, "runs": runs})
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()

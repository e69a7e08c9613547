"""Readings of the CUDA kernels, a part at a time; cuda_stages.py runs them all and keeps what they found.

    python bench/bench_cuda.py gemm --json gemm.json

    doctor    what the machine is, and a self-test of every kernel
    peaks     what the GPU's instructions and memory can do at most (cuda_peaks.cu)
    gemm      matrix products against cuBLAS bfloat16, int8 and popcount kernels
    conv      the layers of ResNet-18 and VGG-small against cuDNN
    trunk     the sixteen binary convolutions of a Bi-Real ResNet-18
    kernels   every kernel on every shape: where select.cpp chose another than the fastest

Times are the GPU's own, of replayed CUDA graphs; "cold" is with an emptied L2 before every call. Whatever is timed has
been compared with float64 torch or the CPU's kernels before. Needs torch with CUDA and numpy; nvcc for the peaks; with
cupy there is one more baseline.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from cuda_gemm import GEMMS, Gemm, gemm
from cuda_goals import goals_table, table
from cuda_measure import Measure, TensorCall, forced, measure_for, require, timed
from cuda_trunk import trunk

from bitnas import ops
from bitnas.cost import cuda_timing, machine
from bitnas.cost.bench import Layer, bench_layers, binary_calls, read_shapes

ROOT = Path(__file__).resolve().parents[1]


def us(ms: float) -> str:
    return f"{1e3 * ms:.1f}"


# ---- peaks -----------------------------------------------------------------------


def find_nvcc() -> str | None:
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compile_command(nvcc: str, capability: tuple[int, int], program: Path) -> list[str]:
    number = 10 * capability[0] + capability[1]
    # wgmma belongs to the `a` variant of 9.0 alone.
    name = f"{number}a" if number == 90 else str(number)
    target = f"-gencode=arch=compute_{name},code=sm_{name}"
    flags = ["-O3", "-std=c++20", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}", target]
    return [nvcc, *flags, str(ROOT / "bench" / "cuda_peaks.cu"), "-o", str(program)]


def copy_bandwidth() -> float:
    """TB/s of a large copy on the GPU, counting bytes read and written."""
    source = torch.randint(0, 256, (1 << 31,), dtype=torch.uint8, device="cuda")
    to = torch.empty_like(source)
    stopwatch = cuda_timing.event_stopwatch()
    stopwatch(lambda: to.copy_(source), 3)
    return 2 * source.numel() / min(stopwatch(lambda: to.copy_(source), 5) / 5 for _ in range(5)) / 1e3


def peaks() -> dict[str, Any]:
    nvcc = find_nvcc()
    if nvcc is None:
        raise RuntimeError("nvcc not found: put it on PATH, or name it in CUDACXX")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cuda_peaks"
        subprocess.run(compile_command(nvcc, torch.cuda.get_device_capability(), program), check=True)
        found = json.loads(subprocess.run([program], stdout=subprocess.PIPE, text=True, check=True).stdout)
    result = {**found, "copy_tb_per_s": copy_bandwidth()}
    figures = {"pops": ".2f", "products_per_clock_per_sm": ".0f", "sm_mhz": ".0f"}
    rows = [
        [peak["instruction"], peak["operands"], *(format(peak[name], spec) for name, spec in figures.items())]
        for peak in result["peaks"]
    ]
    print(table(["instruction", "operands", "POPS", "products/clock/SM", "SM MHz"], rows))
    print(f"copy: {result['copy_tb_per_s']:.2f} TB/s read and written")
    return result


# ---- convolution layers --------------------------------------------------------------

NETWORKS = ("resnet18", "vgg_small")
BATCHES = (1, 8, 64, 256)


def conv(seconds: float, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    results = {}
    for network in NETWORKS:
        result = bench_layers(read_shapes(network), batches=batches, device="cuda", seconds=seconds)
        results[network] = result
        print(f"\n{network}: us, and times as fast bits to bits and to bfloat16")
        peers = list(result["geomean_ratio"])
        print(table(["layer", "batch", "to bits", "to bf16", *peers], conv_cells(result["rows"], peers)), flush=True)
    return results


def conv_cells(rows: Sequence[dict[str, Any]], peers: Sequence[str]) -> list[list[str]]:
    cells = []
    for row in rows:
        ms = row["ms"]
        bits, floats = ms["bitnas"], ms["bitnas_to_bfloat16"]
        against = [
            f"{us(ms[peer])} {ms[peer] / bits:5.1f}x {ms[peer] / floats:5.1f}x" if peer in ms else "-" for peer in peers
        ]
        cells.append([row["name"], str(row["batch"]), us(bits), us(floats), *against])
    return cells


# ---- every kernel on every shape ----------------------------------------------------------

KERNEL_GEMMS = (*GEMMS, (1, 4096, 4096), (16, 4096, 4096), (256, 4096, 4096), (1000, 1000, 1000), (8192, 256, 2304))
NOISE = 0.03  # of the fastest kernel's time


def kernel_cases(batches: Sequence[int] = BATCHES) -> Iterator[tuple[str, bool, TensorCall]]:
    """Name, whether it is a matrix product, and the checked call whose kernel select.cpp chooses."""
    for m, n, k in KERNEL_GEMMS:
        yield f"{m} x {n} x {k} to bfloat16", True, Gemm(m, n, k).binary_calls()["bitnas_to_bfloat16"]
    for network in NETWORKS:
        for layer in read_shapes(network):
            for batch in batches:
                yield (
                    f"{network} {layer.name}, batch {batch}, to bits",
                    is_matrix(layer),
                    binary_calls(layer, batch)["bitnas"],
                )


def is_matrix(layer: Layer) -> bool:
    return layer.kernel == layer.stride == layer.groups == 1 and layer.padding == 0


def kernels(measure: Measure) -> dict[str, Any]:
    rows = []
    for shape, matrix, call in kernel_cases():
        calls = {"auto": call}
        for name in ops.cuda_kernels():
            if matrix or not name.startswith("wgmma"):  # select.h: wgmma kernels compute matrix products alone
                calls[name] = forced(name, call)
                require(torch.equal(calls[name](), call()), f"{name}: {shape}")
        row = {"shape": shape, **timed(calls, measure)}
        rows.append({**row, **loss(row["ms"])})
        torch.cuda.empty_cache()
    slow = [row for row in rows if row["loss"] > 1 + NOISE]
    print(f"{len(rows) - len(slow)} of {len(rows)} shapes: the chosen kernel is the fastest, to within {NOISE:.0%}")
    if slow:
        cells = [
            [row["shape"], us(row["ms"]["auto"]), row["fastest"], us(row["ms"][row["fastest"]]), f"{row['loss']:.2f}"]
            for row in sorted(slow, key=lambda row: -row["loss"])
        ]
        print(table(["another kernel is faster", "chosen, us", "fastest", "us", "times slower"], cells))
    return {"rows": rows}


def loss(ms: Mapping[str, float]) -> dict[str, Any]:
    """The fastest of the forced kernels, and how many times longer the chosen one took."""
    fastest = min((name for name in ms if name != "auto"), key=lambda name: ms[name])
    return {"fastest": fastest, "loss": ms["auto"] / ms[fastest]}


# ---- command ----------------------------------------------------------------------------


def doctor() -> dict[str, Any]:
    from bitnas.cli.examine import examine

    found = examine()
    if found["problem"]:
        raise RuntimeError(found["problem"])
    tests = found["cuda"]["self_test"]
    print(f"{found['cuda']['device']}, driver {found['cuda']['gpu']['driver']}, torch {found['versions']['torch']}")
    print("kernels right in their self-test:", ", ".join(tests))
    return found


def run(part: str, seconds: float | None) -> dict[str, Any]:
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "doctor": doctor,
        "peaks": peaks,
        "gemm": lambda: gemm(measure_for(seconds or 1.0)),
        "conv": lambda: conv(seconds or 0.6),
        "trunk": lambda: trunk(seconds or 1.0),
        "kernels": lambda: kernels(measure_for(seconds or 0.2)),
    }
    with torch.inference_mode():
        result = parts[part]()
    return {**result, "machine": machine.facts(), "gpu_state": machine.gpu_state()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["doctor", "peaks", "gemm", "conv", "trunk", "kernels"])
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--seconds", type=float, help="time spent on each figure")
    options = parser.parse_args()
    if why := machine.why_no_gpu():
        print(f"bench_cuda: no usable GPU here: {why}", file=sys.stderr)
        return 1
    result = run(options.part, options.seconds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))
    if options.part in ("gemm", "conv", "trunk"):
        print(f"\n{goals_table({options.part: result})}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

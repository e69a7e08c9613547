"""The same calls under pytest-benchmark, for its statistics and comparisons while a kernel is being worked on:

    pytest bench --benchmark-only -k stage1

One thread, batch 1, warm, one call after the other. The figures of README come from bench_conv2d.py and bench_gemm.py,
which take turns, know cold caches and hold everyone to the same instructions.
"""

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bench_gemm import gemm_of
from cpu_peers import TORCH_PEERS, gemm_ways

from bitnas.cost.bench import PEERS, Layer, layer_ways, quantized_engines, read_shapes
from bitnas.cost.cpu_timing import Way
from bitnas.cost.latency import thread_count

FLOATS = [f"{dtype}/{variant}" for dtype in ("float32", "bfloat16") for variant in ("eager", "onednn")]
ENGINES = [f"int8/{name}" for name in quantized_engines()]
CONV2D_WAYS = ["bitnas", *FLOATS, *ENGINES]
GEMM_WAYS = ["bitnas", "bitnas_to_bits", "numkong/new", "numkong/into", "faiss", "numpy", *FLOATS, "float32/mkl"]
GEMM_WAYS += [*ENGINES, "int8/int_mm"]

LAYERS = [layer for network in ("resnet18", "vgg_small") for layer in read_shapes(network)]
GEMMS = read_shapes("gemm")


@functools.lru_cache(maxsize=1)  # tests of one layer come one after the other
def conv2d_ways(layer: Layer) -> dict[str, Way]:
    return layer_ways(layer, 1, PEERS)[0]


@functools.lru_cache(maxsize=1)
def matrix_ways(layer: Layer) -> dict[str, Way]:
    return gemm_ways(gemm_of(layer), TORCH_PEERS)[0]


def run(benchmark: Callable[[Any], Any], ways: dict[str, Way], name: str) -> None:
    if name not in ways:
        assert not name.startswith("bitnas")
        pytest.skip(f"{name} is not installed, or would take too long")
    try:
        call = ways[name].make()
        call()
    except RuntimeError as error:
        if name.startswith("bitnas"):
            raise
        pytest.skip(f"{name} does not run here: {str(error).splitlines()[0]}")
    benchmark(call)


@pytest.mark.parametrize("way", CONV2D_WAYS)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_conv2d(benchmark, layer, way):
    benchmark.group = f"conv2d {layer.name}"
    with thread_count(1), torch.inference_mode():
        run(benchmark, conv2d_ways(layer), way)


@pytest.mark.parametrize("way", GEMM_WAYS)
@pytest.mark.parametrize("layer", GEMMS, ids=lambda layer: layer.name)
def test_gemm(benchmark, layer, way):
    benchmark.group = f"gemm {layer.name}"
    with thread_count(1), torch.inference_mode():
        run(benchmark, matrix_ways(layer), way)

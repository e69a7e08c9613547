"""Fixtures shared by all tests: every instruction set of this CPU, every kernel, one and two threads; all put back.

With BITNAS_TEST_CUDA_MODEL=path/of/_C_cuda_model.so the operators on CPU tensors run the CUDA sources on the host
model, and a test of every instruction set becomes one of every CUDA kernel that its GPU has (tests/cuda does this).
"""

import os
from contextlib import contextmanager

import pytest
import torch

from bitnas import ops

CUDA_MODEL = os.environ.get("BITNAS_TEST_CUDA_MODEL")
if CUDA_MODEL:
    torch.ops.load_library(CUDA_MODEL)
    assert "registered at csrc/ops/cuda.cpp" in torch._C._dispatch_dump("bitnas::conv2d_int32")


CUDA_KERNELS = ["auto", *torch.ops.bitnas.cuda_kernels().split(",")] if CUDA_MODEL else []


@contextmanager
def _selected(select, name, put_back):
    select(name)
    yield name
    put_back()


def _use_cuda_kernel(name: str):
    def select(name):
        assert torch.ops.bitnas.select_cuda_kernel(name), name

    return _selected(select, name, lambda: select("auto"))


@pytest.fixture(params=CUDA_KERNELS or ops.cpu_isas())
def isa(request):
    """Every instruction set, its kernels chosen by shape."""
    before = ops.cpu_isa()
    with (
        _use_cuda_kernel(request.param)
        if CUDA_MODEL
        else _selected(ops.select_cpu_isa, request.param, lambda: ops.select_cpu_isa(before))
    ) as name:
        yield name


@pytest.fixture(params=CUDA_KERNELS or ops.cpu_kernels())
def kernel(request):
    """Every kernel of every instruction set, wherever it computes the layer."""
    before = ops.cpu_isa()

    def put_back():
        ops.select_cpu_kernel("auto")
        ops.select_cpu_isa(before)

    with (
        _use_cuda_kernel(request.param) if CUDA_MODEL else _selected(ops.select_cpu_kernel, request.param, put_back)
    ) as name:
        yield name


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """References run on one thread: they are small, and two threads on a busy machine wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(params=[1, 2], ids=["1thread", "2threads"])
def threads(request):
    """A context in which torch runs on that many threads: wrap the kernels under test in it."""

    @contextmanager
    def context():
        torch.set_num_threads(request.param)
        try:
            yield request.param
        finally:
            torch.set_num_threads(1)

    return context


def pytest_terminal_summary(terminalreporter):
    """A skipped test is a promise not checked: say so."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not torch.cuda.is_available():
        terminalreporter.write_line("No GPU here: the CUDA kernels were compiled where nvcc is, but not run.")
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} test(s) skipped; `pytest -rs` says why.")

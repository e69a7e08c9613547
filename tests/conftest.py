"""Fixtures shared by all tests: every instruction set of this CPU, one and two threads, both put back afterwards."""

from contextlib import contextmanager

import pytest
import torch

from bitnas import ops


@pytest.fixture(params=ops.cpu_isas())
def isa(request):
    before = ops.cpu_isa()
    ops.select_cpu_isa(request.param)
    yield request.param
    ops.select_cpu_isa(before)


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

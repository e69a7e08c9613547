"""Memory of a tree of processes, against allocations of a known size."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bitnas.cli import memory

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")
MIB = 2**20
_CHILD = "import sys\nblock = b'x' * (64 * 2**20)\nprint('ready', flush=True)\nsys.stdin.read()\n"


def child() -> subprocess.Popen[str]:
    """A process that holds 64 MiB until its input closes."""
    process = subprocess.Popen([sys.executable, "-c", _CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_tree_holds_children_and_drops_them():
    process = child()
    try:
        assert {os.getpid(), process.pid} <= set(memory.process_tree(os.getpid()))
        assert 64 * MIB < memory.memory_bytes(process.pid) < 100 * MIB
    finally:
        process.communicate("")
    assert process.pid not in memory.process_tree(os.getpid())
    assert memory.memory_bytes(process.pid) == 0


def test_the_peak_counts_a_child_that_is_gone():
    with memory.PeakMemory(interval=0.02) as peak:
        before = peak.peak_bytes
        process = child()
        time.sleep(0.2)
        process.communicate("")
    assert peak.peak_bytes - before > 60 * MIB
    assert memory.tree_memory_bytes() < peak.peak_bytes - 30 * MIB


def test_the_interval_is_checked():
    with pytest.raises(ValueError, match="interval"):
        memory.PeakMemory(interval=0)

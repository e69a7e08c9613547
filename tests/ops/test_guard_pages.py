"""Kernels against pages that fault: every buffer begins or ends at an unmapped page, so one byte too far is a crash.

Each kernel runs in a process of its own. A planted over-read must crash, or the test tests nothing.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from bitnas import ops

HARNESS = """
import ctypes, mmap, random, sys, torch
sys.path.insert(0, {here!r})
from shapes import random_case
from bitnas import ops, reference

torch.set_num_threads(1)  # a worker's scratch would hide a neighbour's fault
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
keep = []

def guarded(t, at_end):
    '''A copy of t that ends (or begins) exactly at a page that cannot be read or written.'''
    size = t.numel() * t.element_size()
    if size == 0:
        return t
    pages = -(-size // PAGE) + 2
    area = mmap.mmap(-1, pages * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for page in (0, pages - 1):
        assert libc.mprotect(base + page * PAGE, PAGE, 0) == 0
    start = (pages - 1) * PAGE - size if at_end else PAGE
    flat = torch.frombuffer(area, dtype=t.dtype, count=t.numel(), offset=start)
    keep.append(area)
    copy = flat.as_strided(t.shape, t.stride())
    copy.copy_(t)
    return copy

ops.select_cpu_kernel({kernel!r})
rng = random.Random(7)
for i in range({count}):
    case = random_case(rng)
    x, weight = case.tensors()
    end = i % 2 == 0
    n = case.out_channels
    packed = guarded(torch.ops.bitnas.pack(guarded(x, end), ops.THRESHOLDS[case.activations]), end)
    w = guarded(ops.pack_weight(weight), end)
    prepared = guarded(torch.ops.bitnas.prepare_weight(w, case.channels, case.groups), end)
    threshold = guarded(torch.zeros(n, dtype=torch.int32), end)
    scale = guarded(torch.ones(n), end)
    flip = guarded(torch.zeros((n + 63) // 64, dtype=torch.int64), end)
    channels = guarded(torch.zeros(case.channels), end)
    dots = torch.ops.bitnas.conv2d_int32(packed, w, prepared, *case.flat)
    assert torch.equal(dots, reference.conv2d(x.double(), weight, case.activations, **case.geometry)), case
    torch.ops.bitnas.conv2d_float(packed, w, prepared, scale, scale, *case.flat)
    torch.ops.bitnas.conv2d_bits(packed, w, prepared, threshold, flip, *case.flat)
    torch.ops.bitnas.pack_channels(guarded(x, end), channels, channels)
    torch.ops.bitnas.unpack(packed, case.channels, False)
    torch.ops.bitnas.max_pool2d_bits(packed, None, 1, 1, 1, 1, 0, 0)
    keep.clear()
if {plant}:
    t = guarded(torch.zeros(8, dtype=torch.int64), True)
    ctypes.string_at(t.data_ptr(), 65)
print("clean")
"""


def run(kernel, count, plant=False):
    code = HARNESS.format(here=str(Path(__file__).parent), kernel=kernel, count=count, plant=plant)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ops.cpu_kernels())
def test_no_kernel_reads_or_writes_out_of_bounds(kernel, count):
    done = run(kernel, count)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "clean"


def test_a_planted_overread_crashes():
    done = run("scalar", 1, plant=True)
    assert done.returncode < 0
    assert "clean" not in done.stdout

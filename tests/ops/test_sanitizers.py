"""The kernels built with ASAN and UBSAN, on random shapes; a report or a wrong bit fails. `make test-all` runs it.

The build matters by itself: its register pressure once showed a mask that the compiler widened wrongly.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bitnas import ops

ROOT = Path(__file__).parents[2]

HARNESS = """
import contextlib, random, sys
sys.path[:0] = [{package!r}, {tests!r}]
import torch
torch.set_num_threads(1)
import bitnas
from bitnas import ops
assert bitnas.__file__.startswith({package!r})
from shapes import random_case
from test_random_shapes import check

@contextlib.contextmanager
def one_thread():
    yield 1

for kernel in ops.cpu_kernels():
    ops.select_cpu_kernel(kernel)
    rng = random.Random("sanitized " + kernel)
    for i in range({shapes}):
        check(random_case(rng), one_thread, i % 2 == 0)
print("clean")
"""


@pytest.mark.slow
def test_sanitized_kernels_are_clean(tmp_path):
    build, package = tmp_path / "build", tmp_path / "package"
    torch_dir = Path(torch.__file__).parent
    options = ["-DBITNAS_SANITIZE=ON", "-DBITNAS_CUDA=OFF", f"-DBITNAS_TORCH_DIR={torch_dir}"]
    subprocess.run(["cmake", "-S", ROOT, "-B", build, *options], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build, "--parallel", "2"], check=True, capture_output=True)
    shutil.copytree(ROOT / "bitnas", package / "bitnas", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(build / "_C.so", package / "bitnas")
    runtimes = [
        subprocess.run(["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = {**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    code = HARNESS.format(package=str(package), tests=str(Path(__file__).parent), shapes=5000 // len(ops.cpu_isas()))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "runtime error" not in done.stderr, done.stderr[-3000:]
    assert done.stdout.strip() == "clean"

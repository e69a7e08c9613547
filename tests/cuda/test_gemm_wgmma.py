"""The wgmma matrix product on the host model, launched on one to many multiprocessors, against plain loops."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs gemm_wgmma_check.cpp on so many products of a seed: its exit status and what it wrote to stderr."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("gemm_wgmma")
    program = folder / "gemm_wgmma_check"
    flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-DBITNAS_CUDA_MODEL", "-Wno-unknown-pragmas"]
    source = Path(__file__).with_name("gemm_wgmma_check.cpp")
    subprocess.run([*compiler.split(), *flags, f"-I{ROOT / 'csrc'}", source, "-o", program], check=True)

    def run(seed: int, count: int) -> tuple[int, str]:
        environment = {"BITNAS_CUDA_MODEL_SEED": str(seed)}
        # In its own folder: where aborts leave core files, they go away with it.
        done = subprocess.run([program, str(seed), str(count)], env=environment, cwd=folder, capture_output=True,
                              text=True)  # fmt: skip
        return done.returncode, done.stderr

    return run


@pytest.mark.parametrize("seed", range(3))
def test_products_equal_plain_loops(check, seed):
    assert check(seed, count=60) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_many_products_equal_plain_loops(check, seed):
    assert check(seed, count=1000) == (0, "")

"""The CUDA sources on a CPU: kernels, launchers and operators, on a host model of the GPU (csrc/kernels/cuda/model).

A child process loads the model in place of the CPU kernels and runs the very tests that the CPU kernels pass, with
every kernel that a GPU of that compute capability has. What this cannot show is said in the model's README.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import bitnas

MODEL = Path(bitnas.__file__).with_name("_C_cuda_model.so")
TESTS = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not MODEL.exists(), reason="_C_cuda_model.so was not built (BITNAS_CUDA_MODEL=ON)")

# 7.5: no tensor-core kernel; 8.0: mma.sync; 9.0: wgmma too; 10.0 and 12.0: bytes instead of bits.
CAPABILITIES = ("75", "80", "90", "100", "120")


def run_tests(capability, *arguments, shapes=2000, seed=0):
    environment = {
        **os.environ,
        "BITNAS_TEST_CUDA_MODEL": str(MODEL),
        "BITNAS_CUDA_MODEL_CC": capability,
        "BITNAS_CUDA_MODEL_SEED": str(seed),
        "BITNAS_TEST_SHAPES": str(shapes),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments]
    child = subprocess.run(command, cwd=TESTS.parent, env=environment, capture_output=True, text=True)
    assert child.returncode == 0, f"{child.stdout[-4000:]}\n{child.stderr[-2000:]}"
    assert " passed" in child.stdout or "[100%]" in child.stdout, child.stdout[-1000:]


@pytest.mark.parametrize("capability", ["75", "90", "100"])
def test_kernels_equal_the_reference(capability):
    names = "random_convolutions or matrix_products or long_rows or extreme or borders"
    run_tests(capability, str(TESTS / "ops/test_random_shapes.py"), "-k", names, shapes=25)


FAMILIES = {
    "75": {"popc"},
    "80": {"popc", "int8", "mma"},
    "89": {"popc", "int8", "mma"},
    "90": {"popc", "int8", "mma", "wgmma"},
    "100": {"popc", "int8"},
    "120": {"popc", "int8"},
}


def test_a_gpu_gets_the_families_it_has_instructions_for():
    """Binary tensor cores ended with Hopper: what came after emulates them, slowly, and must not be given them."""
    code = f"""
import os, torch, bitnas.ops
torch.ops.load_library({str(MODEL)!r})
for os.environ["BITNAS_CUDA_MODEL_CC"] in {list(FAMILIES)}:
    print(torch.ops.bitnas.cuda_kernels())
"""
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = [{name.partition("_")[0] for name in line.split(",")} for line in child.stdout.split()]
    assert found == list(FAMILIES.values())


def test_packing_and_errors():
    names = ("test_pack.py", "test_bad_input.py")
    run_tests("90", *(str(TESTS / "ops" / name) for name in names), "-k", "not environment")


def test_frozen_networks():
    run_tests("90", str(TESTS / "packed/test_freeze.py"), "-k", "is_exact and xnor or residual")


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_everything_that_the_cpu_kernels_pass(capability):
    run_tests(capability, str(TESTS / "ops"), str(TESTS / "packed"), str(TESTS / "models"), seed=int(capability))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_many_schedules(seed):
    """Races show under some orders of the threads only."""
    run_tests("90", str(TESTS / "ops/test_random_shapes.py"), "-k", "random_convolutions", shapes=500, seed=seed)

"""The operators with the AMX kernels behind them, on the model of the tile unit: the CPU kernels' own tests.

They run in processes of their own on a copy of the package whose compiled object is `_C_amx_model.so`, which
`make setup` builds beside the real one.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "bitnas" / "_C_amx_model.so"
KERNELS = ("amx_direct", "amx_bits", "amx_winograd1d", "amx_winograd2d")


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder to put first on the path."""
    if not MODEL.exists():
        pytest.skip(
            f"{MODEL.name} was not built: AMX is not tested (CMAKE_ARGS=-DBITNAS_AMX_MODEL=ON pip install -e .)"
        )
    if "avx512_vpopcntdq" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("the model of the tile unit needs AVX-512 VPOPCNTDQ, which this CPU lacks: AMX is not tested")
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "bitnas", folder / "bitnas", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(MODEL, folder / "bitnas" / "_C.so")
    return folder


def run(package, *command, **environment):
    environment = {**os.environ, "PYTHONPATH": str(package), **environment}
    return subprocess.run([sys.executable, *command], cwd=package, env=environment, capture_output=True, text=True)


def test_the_list_of_kernels(package):
    done = run(package, "-c", "from bitnas import ops; print(*ops.cpu_kernels()); print(ops.cpu_isa())")
    assert done.returncode == 0, done.stderr
    kernels, isa = done.stdout.split("\n")[:2]
    assert kernels.split()[-len(KERNELS) :] == list(KERNELS)
    assert isa == "amx"


def run_tests(package, chosen, shapes):
    files = [ROOT / "tests" / "ops" / name for name in ("test_random_shapes.py", "test_pack.py")]
    options = ("-q", "-k", chosen, "-p", "no:cacheprovider", "-m", "not slow")
    done = run(package, "-m", "pytest", *files, *options, BITNAS_TEST_SHAPES=str(shapes))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "[100%]" in done.stdout


def test_random_layers(package):
    run_tests(package, "amx and 1thread and (random_convolutions or random_matrix)", 150)


@pytest.mark.slow
def test_all_that_the_other_kernels_pass(package):
    run_tests(package, "amx", 10_000)


CHOSEN = """
import torch
from bitnas import ops, reference
ops.select_cpu_isa("amx")
used = set()
layers = [(1, 128, 128, 14), (1, 256, 256, 8), (60, 512, 512, 6), (1, 512, 512, 5), (1, 64, 64, 9), (1, 64, 32, 2)]
for batch, channels, out, size in layers:
    x, weight = torch.randn(batch, channels, size, size), torch.randn(out, channels, 3, 3)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    for positions in (batch * size * size, 0):
        prepared = torch.ops.bitnas.prepare_weight(packed_weight, channels, 1, positions=positions)
        used.add(torch.ops.bitnas.prepared_kernel(prepared))
        dots = torch.ops.bitnas.conv2d_int32(packed, packed_weight, prepared, channels, 1, 1, 1, 1, 1, 1, 1, False)
        assert torch.equal(dots, reference.conv2d(x, weight, padding=1)), (batch, channels, out, size, positions)
print(*sorted(used))
"""


@pytest.mark.slow
def test_every_kernel_is_chosen_for_some_layer(package):
    done = run(package, "-c", CHOSEN)
    assert done.returncode == 0, done.stderr[-2000:]
    used = done.stdout.split()
    assert set(KERNELS) < set(used), used
    assert any(kernel.startswith("avx512") for kernel in used), used


def test_a_weight_prepared_for_one_geometry_serves_another(package):
    """Winograd's weights are of no use to a strided layer: they are recognised and laid out anew."""
    code = """
import torch
from bitnas import ops, reference
ops.select_cpu_kernel("amx_winograd1d")
x, weight = torch.randn(1, 64, 9, 9), torch.randn(32, 64, 3, 3)
packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
prepared = torch.ops.bitnas.prepare_weight(packed_weight, 64, 1)
assert torch.ops.bitnas.prepared_kernel(prepared) == "amx_winograd1d"
out = torch.ops.bitnas.conv2d_int32(packed, packed_weight, prepared, 64, 2, 2, 1, 1, 1, 1, 1, False)
assert torch.equal(out, reference.conv2d(x, weight, stride=2, padding=1))
print("equal")
"""
    done = run(package, "-c", code)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_permission_refused(package):
    """The kernels below are used; asking for AMX says what there is."""
    done = run(package, "-c", "from bitnas import ops; print(*ops.cpu_isas(), ops.cpu_isa())", BITNAS_NO_AMX="1")
    assert done.stdout.split() == ["scalar", "avx2", "avx512", "avx512"], done.stderr
    done = run(package, "-c", "import bitnas.ops", BITNAS_NO_AMX="1", BITNAS_ISA="amx")
    assert done.returncode != 0
    assert "BITNAS_ISA='amx': this CPU and build run scalar, avx2, avx512" in done.stderr


def test_a_weight_prepared_for_amx_is_laid_out_anew_without_it(package):
    """As when a process is refused what the one before it was given."""
    prepare = """
import torch
from bitnas import ops
ops.select_cpu_kernel("amx_direct")
w = ops.pack_weight(torch.ones(32, 64, 3, 3))
torch.ops.bitnas.prepare_weight(w, 64, 1).numpy().tofile("prepared.bin")
"""
    use = """
import numpy, torch
from bitnas import ops
prepared = torch.from_numpy(numpy.fromfile("prepared.bin", dtype=numpy.uint8))
assert torch.ops.bitnas.prepared_kernel(prepared) == ""
w, x = ops.pack_weight(torch.ones(32, 64, 3, 3)), ops.pack(torch.ones(1, 64, 4, 4))
out = torch.ops.bitnas.conv2d_int32(x, w, prepared, 64, 1, 1, 0, 0, 1, 1, 1, False)
assert (out == 576).all()
print("equal")
"""
    assert run(package, "-c", prepare).returncode == 0
    done = run(package, "-c", use, BITNAS_NO_AMX="1")
    assert done.stdout.strip() == "equal", done.stderr[-2000:]

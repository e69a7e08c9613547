"""No weak symbols in objects built for one instruction set.

An inline function compiled there would be a weak symbol, and the linker might keep that copy for everybody: a CPU
without those instructions would crash in code that has nothing to do with kernels.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILD = Path(os.environ.get("BITNAS_BUILD_DIR", ROOT / "build" / "cmake"))
NAMES = [f"{family}_{isa}" for family in ("float_conv2d", "pack", "xnor") for isa in ("avx2", "avx512")]
NAMES += [f"conv2d_amx_{algorithm}" for algorithm in ("direct", "bits", "winograd1d", "winograd2d")]


def weak_symbols(path: Path) -> list[str]:
    lines = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout.splitlines()
    symbols = [line[17:].partition(" ") for line in lines]  # 16 digits of address, a space, the type, the name
    assert any(kind in "Tt" for kind, _, _ in symbols), f"{path} defines nothing"
    return [name for kind, _, name in symbols if kind in "WVu"]


@pytest.mark.parametrize("name", NAMES)
def test_no_weak_symbols(name):
    if shutil.which("nm") is None:
        pytest.skip("nm is not installed: weak symbols are not checked")
    objects = list(BUILD.rglob(f"{name}.cpp.o"))
    if not objects:
        pytest.skip(f"no {name}.cpp.o under {BUILD}: weak symbols are not checked (build with `pip install -e .`)")
    for path in objects:
        assert weak_symbols(path) == []


def test_the_check_sees_a_weak_symbol(tmp_path):
    compiler = shutil.which("c++")
    if compiler is None or shutil.which("nm") is None:
        pytest.skip("no compiler or nm: the check itself is not checked")
    source = tmp_path / "weak.cpp"
    source.write_text("inline int shared() { return 1; }\nint (*keep)() = shared;\nint strong() { return 2; }\n")
    subprocess.run([compiler, "-c", source, "-o", tmp_path / "weak.o"], check=True)
    assert weak_symbols(tmp_path / "weak.o") == ["shared()"]

"""What the CPU's inner loops can do at most: compiles and runs cpu_peaks.cpp, and tells it how large the caches are."""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnas.cost.cpu_timing import cache_bytes

SOURCE = Path(__file__).with_name("cpu_peaks.cpp")

# Where a machine does not tell: small ones' sizes.
L2_BYTES, L3_BYTES = 1 << 20, 32 << 20


def compiler() -> str | None:
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")


def why_no_peaks() -> str | None:
    """Why they cannot be measured here; None where they can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"cpu_peaks.cpp knows x86-64 only, this is {platform.machine()}"
    if compiler() is None:
        return "no C++ compiler: put g++ on PATH, or name one in CXX"
    return None


def measure_peaks(seconds: float = 0.3) -> dict[str, Any]:
    """``{"clock_ghz", "loops": [{"loop", "isa", "gops", "products_per_cycle"}], "read": {level: {"bytes",
    "gb_per_s"}}}`` of one core, each looked for so many seconds; or ``{"problem": why not}``."""
    if why := why_no_peaks():
        return {"problem": why}
    arguments = [str(cache_bytes(level) or size) for level, size in ((2, L2_BYTES), (3, L3_BYTES))]
    arguments.append(str(seconds))
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "cpu_peaks"
        try:
            build = [str(compiler()), "-O3", "-std=c++20", str(SOURCE), "-o", str(program)]
            subprocess.run(build, check=True, capture_output=True, text=True)
            done = subprocess.run([str(program), *arguments], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            return {"problem": f"{Path(error.cmd[0]).name} failed: {error.stderr.strip()[-300:] or error.returncode}"}
        except OSError as error:
            return {"problem": f"{compiler()}: {error}"}
    return json.loads(done.stdout)


def bound_gops(peaks: Mapping[str, Any], isa: str, threads: int = 1) -> float | None:
    """10^9 operations a second that the fastest main loop of an instruction set's kernels does; None where unknown.

    A core more does as much again. AMX kernels may exceed theirs: it counts multiplications, and the exact Winograd
    transform needs fewer of them than the convolution has.
    """
    found = [loop["gops"] for loop in peaks.get("loops", ()) if loop["isa"] == isa]
    return threads * max(found) if found else None


def describe(peaks: Mapping[str, Any]) -> str:
    """A few lines for people."""
    if "problem" in peaks:
        return f"bound of the machine not measured: {peaks['problem']}"
    lines = [f"one core at {peaks['clock_ghz']:.2f} GHz; main loops at most:"]
    lines += [
        f"  {loop['loop']:9} {loop['isa'] or 'int8 peers':10} {loop['gops']:6.0f} GOP/s, "
        f"{loop['products_per_cycle']:4.0f} products a cycle"
        for loop in peaks["loops"]
    ]
    read = ", ".join(f"{level} {at['gb_per_s']:.0f}" for level, at in peaks["read"].items())
    return "\n".join([*lines, f"  reads, GB/s: {read}"])

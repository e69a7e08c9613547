"""What a measurement must say about where it was taken."""

import os
import platform
from functools import cache
from pathlib import Path
from typing import Any

# Raised whenever a kernel changes speed: latencies of another version are not comparable.
KERNEL_VERSION = 1

# How torch and its libraries are held to the instructions a kernel may use, so that a comparison is fair. They read
# these once, when torch is first imported.
TORCH_LIMITS: dict[str, dict[str, str]] = {
    "scalar": {
        "ATEN_CPU_CAPABILITY": "default",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",  # it has nothing below
    },
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    },
    "avx512": {},  # the best there is here: torch may use whatever it has
}


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _first_line(path: str) -> str | None:
    try:
        return Path(path).read_text().splitlines()[0].strip()
    except (OSError, IndexError):
        return None


@cache
def _fixed() -> dict[str, Any]:
    import torch

    from bitnas import __version__, ops

    return {
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "governor": _first_line("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "bitnas": __version__,
        "kernel_version": KERNEL_VERSION,
        "isas": ops.cpu_isas(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def facts() -> dict[str, Any]:
    """The machine and the software, as JSON: CPU, cores this process may use, instruction sets, versions, GPU."""
    from bitnas import ops

    return {**_fixed(), "isa": ops.cpu_isa()}

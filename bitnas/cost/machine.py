"""What a measurement must say about where it was taken."""

import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

# Raised whenever a kernel changes speed: latencies of another version are not comparable.
KERNEL_VERSION = 4

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
    "avx512": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_FP16"},  # all of AVX-512, and no AMX
    "amx": {},  # torch may use whatever it has
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


def _nvidia_smi(gpu: str, *names: str) -> list[str | None]:
    """What nvidia-smi says of one GPU, by its UUID; None for what it does not know, or where it is missing."""
    query = [f"--id={gpu}", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return [None] * len(names)
    values = [value.strip() for value in done.stdout.strip().split(",")]
    if len(values) != len(names):
        return [None] * len(names)
    return [None if value.startswith("[") else value for value in values]


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _uuid(index: int) -> str:
    import torch

    return "GPU-" + str(torch.cuda.get_device_properties(index).uuid).removeprefix("GPU-")


@cache
def _gpu(index: int) -> dict[str, Any]:
    import torch

    found = torch.cuda.get_device_properties(index)
    driver, *limits = _nvidia_smi(_uuid(index), "driver_version", "clocks.max.sm", "clocks.max.memory", "power.limit")
    sm, memory, power = map(_number, limits)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "clocks": {"sm_max_mhz": sm, "memory_max_mhz": memory},
        "power_limit_w": power,
    }


def gpu_state() -> dict[str, float | None]:
    """Clocks, power and temperature of the current GPU at this moment: read it right after a measurement."""
    import torch

    names = {
        "sm_mhz": "clocks.sm",
        "memory_mhz": "clocks.mem",
        "power_w": "power.draw",
        "temperature_c": "temperature.gpu",
    }
    values = _nvidia_smi(_uuid(torch.cuda.current_device()), *names.values())
    return dict(zip(names, map(_number, values), strict=True))


def why_no_gpu() -> str | None:
    """Why the CUDA kernels cannot run here; None where they can."""
    import torch

    from bitnas import ops  # noqa: F401  registers the kernels

    if torch.version.cuda is None:
        return "this torch is a CPU build"
    if not torch.cuda.is_available():
        return f"torch was built for CUDA {torch.version.cuda} but finds no usable GPU or driver"
    if not torch._C._dispatch_has_kernel_for_dispatch_key("bitnas::conv2d_bits", "CUDA"):
        return "bitnas was built without nvcc, so its CUDA kernels are missing"
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
    }


def facts() -> dict[str, Any]:
    """The machine and the software, as JSON: CPU, cores this process may use, instruction sets, versions, and under
    ``gpu`` the current GPU with its driver, limits of clocks and power, CUDA and cuDNN, or None."""
    import torch

    from bitnas import ops

    gpu = _gpu(torch.cuda.current_device()) if torch.cuda.is_available() else None
    return {**_fixed(), "gpu": gpu, "isa": ops.cpu_isa()}

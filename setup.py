"""Hands the compiled part to CMake; everything else is in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT / "tools"))

from torch_headers import find_torch  # noqa: E402


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, then installs the objects beside the package."""

    def build_extension(self, ext: Extension) -> None:
        torch_dir = find_torch()
        if torch_dir is None:
            raise SystemExit(
                "bitnas: found no torch >= 2.11 to compile against; install torch, or set BITNAS_TORCH_DIR"
            )
        build = ROOT / "build" / "cmake"
        target = ROOT if self.inplace or self.editable_mode else Path(self.build_lib).resolve()
        configure = ["cmake", "-S", str(ROOT), "-B", str(build), f"-DBITNAS_TORCH_DIR={torch_dir}"]
        configure += [f"-DCMAKE_INSTALL_PREFIX={target}", *os.environ.get("CMAKE_ARGS", "").split()]
        # ninja's path changes with every isolated environment: a cache that names a lost one is started anew.
        cache = build / "CMakeCache.txt"
        if not cache.exists() or subprocess.run(configure, capture_output=True).returncode != 0:
            cache.unlink(missing_ok=True)
            configure += ["-G", "Ninja"]
        subprocess.run(configure, check=True)
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(["cmake", "--build", str(build), "--parallel", jobs], check=True)
        for stale in (target / "bitnas").glob("_C*.so"):
            stale.unlink()  # BITNAS_CUDA=OFF leaves no CUDA object of an earlier build
        subprocess.run(["cmake", "--install", str(build)], check=True)
        if target == ROOT:  # what only tests load never goes into a wheel
            subprocess.run(["cmake", "--install", str(build), "--component", "development"], check=True)

    # What CMake makes are plain shared objects, not Python modules.
    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", os.sep) + ".so"

    def copy_extensions_to_source(self) -> None:
        pass


class AnyPythonWheel(bdist_wheel):
    """The objects never touch CPython, so one wheel per platform serves every version."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


setup(
    ext_modules=[Extension("bitnas._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": AnyPythonWheel},
)

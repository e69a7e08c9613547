"""What the CUDA compiler made of every kernel: registers, stack, shared memory, instructions.

`make cuda-compile` prints it and tests/cuda/test_sass.py holds the kernels to it; neither needs a GPU. Objects are read
with cuobjdump and nvdisasm, of the CUDA toolkit or of the wheels that the `dev` extra installs.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path

OBJECT = Path(__file__).parents[1] / "bitnas" / "_C_cuda.so"


@dataclass(frozen=True)
class Instruction:
    opcode: str  # with its modifiers: BMMA.168256.AND.POPC
    operands: str  # a called routine by its name

    def is_a(self, *operations: str) -> bool:
        return self.opcode.partition(".")[0] in operations


@dataclass(frozen=True)
class Kernel:
    """One kernel as compiled for one architecture; sizes in bytes."""

    architecture: str  # sm_90a
    name: str  # without namespaces and parameters
    symbol: str
    registers: int
    stack: int  # local memory: spilled registers, and arrays that did not fit into registers
    shared: int  # static; the compiler reserves 1,024 from sm_90 on
    cubin: int  # which of the object's ELF images it is in, counted from 1


def find_tool(name: str) -> str | None:
    """The path of cuobjdump or nvdisasm: the toolkit's, which knows all that its nvcc writes, before a wheel's."""
    wheels = sorted(Path(sysconfig.get_path("platlib")).glob(f"nvidia/*/bin/{name}"))
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin") or (str(wheels[-1]) if wheels else None)


def _run(tool: str, *arguments: str | Path, cwd: str | None = None) -> str:
    path = find_tool(tool)
    if path is None:
        raise FileNotFoundError(f"{tool} is neither in a CUDA toolkit nor installed: pip install nvidia-cuda-{tool}")
    done = subprocess.run([path, *arguments], cwd=cwd, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{path} failed: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _demangled(symbols: list[str]) -> list[str]:
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    plain = re.sub(r"^void |\b(bitnas|cuda)::|\(anonymous namespace\)::", "", done.stdout, flags=re.MULTILINE)
    return [re.sub(r"\([^()]*\)$", "", name) for name in plain.splitlines()]


def parse_resources(text: str) -> list[Kernel]:
    """The kernels of `cuobjdump -res-usage`, in its order."""
    found = []
    architecture, elf, cubin, symbol = "", False, 0, ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("Fatbin "):
            elf = line.startswith("Fatbin elf")
            cubin += elf
        elif line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif line.startswith("Function "):
            symbol = line.removeprefix("Function ").removesuffix(":")
        elif line.startswith("REG:") and elf:
            sizes = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            stack = sizes["STACK"] + sizes["LOCAL"]
            found.append((architecture, symbol, sizes["REG"], stack, sizes["SHARED"], cubin))
    names = _demangled([symbol for _, symbol, *_ in found])
    return [Kernel(row[0], name, *row[1:]) for row, name in zip(found, names, strict=True)]


def parse_sass(text: str) -> dict[str, list[Instruction]]:
    """Instructions per kernel of `nvdisasm`, in order; the routines that a kernel calls are at its end."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if line.startswith(".text."):
            current = kernels.setdefault(line.removeprefix(".text.").removesuffix(":"), [])
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z][\w.]*)\s*(.*?)\s*;", line):
            current.append(Instruction(match[1], " ".join(match[2].split())))
    return kernels


class CudaObject:
    """A shared object or .o file with device code."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()

    @cached_property
    def kernels(self) -> list[Kernel]:
        return parse_resources(_run("cuobjdump", "-res-usage", self.path))

    @cached_property
    def ptx_architectures(self) -> set[str]:
        return set(re.findall(r"\.(sm_\w+)\.ptx$", _run("cuobjdump", "-lptx", self.path), re.MULTILINE))

    def instructions(self, kernel: Kernel) -> list[Instruction]:
        return self._sass(kernel.cubin, kernel.architecture)[kernel.symbol]

    @lru_cache(maxsize=2)  # noqa: B019  objects live as long as the process
    def _sass(self, cubin: int, architecture: str) -> dict[str, list[Instruction]]:
        with tempfile.TemporaryDirectory() as folder:
            _run("cuobjdump", "-xelf", f".{cubin}.{architecture}.", self.path, cwd=folder)
            [image] = Path(folder).iterdir()
            return parse_sass(_run("nvdisasm", "-c", image))


def main(path: Path) -> None:
    if not path.exists():
        raise SystemExit(f"{path} was not built")
    cuda = CudaObject(path)
    print(f"{'architecture':<12} {'registers':>9} {'stack':>6} {'shared':>6} {'instructions':>12}  kernel")
    for _, cubin in groupby(cuda.kernels, key=lambda kernel: kernel.cubin):
        for kernel in sorted(cubin, key=lambda kernel: kernel.name):
            count = sum(not instruction.is_a("NOP") for instruction in cuda.instructions(kernel))
            print(
                f"{kernel.architecture:<12} {kernel.registers:>9} {kernel.stack:>6} {kernel.shared:>6} {count:>12}"
                f"  {kernel.name}"
            )
    print(f"PTX: {', '.join(sorted(cuda.ptx_architectures))}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OBJECT)

"""What the built CUDA object holds, read from its machine code: no GPU is needed to see that a kernel spills, calls a
routine that emulates an instruction its architecture lacks, or lost the instruction it is named for.
"""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_resources import OBJECT, CudaObject, Instruction, Kernel, find_tool, parse_resources, parse_sass

ROOT = Path(__file__).parents[2]
ARCHITECTURES = ("sm_75", "sm_80", "sm_90a", "sm_100", "sm_120")


@dataclass(frozen=True)
class Family:
    """What holds for every kernel whose name matches."""

    name: str  # a regular expression for all of it
    runs_on: tuple[str, ...] = ARCHITECTURES  # empty everywhere else
    needs: tuple[str, ...] = ()  # instructions that it exists for, from the left to the last modifier that matters
    registers: int = 64  # 1,024 threads on a multiprocessor, half of what the largest take


FAMILIES = (
    # Two blocks of 128 threads would take 256; no instruction can name more than 255.
    Family(
        "conv2d_mma_kernel<.*AndPopcount.*>",
        ("sm_80", "sm_90a"),
        ("BMMA.168256.AND.POPC", "LDGSTS", "LDSM"),
        registers=255,
    ),
    Family(
        "conv2d_mma_kernel<.*ExpandedBytes.*>",
        ("sm_80", "sm_90a", "sm_100", "sm_120"),
        ("IMMA.16832.U8.U8", "LDGSTS", "LDSM"),
        registers=255,
    ),
    # 384 threads share 65,536 registers until setmaxnreg moves them to the warps that multiply.
    Family("gemm_wgmma_kernel<.*>", ("sm_90a",), ("BGMMA.64x", "UTMALDG.2D", "USETMAXREG"), registers=168),
    Family("conv2d_popc_kernel", needs=("POPC",), registers=80),  # three blocks of 256 threads
    Family("(regroup|finish|max_pool2d|unpack|pad_rows|ones|join)_kernel"),
    Family("pack_(last|first)_kernel<.*>"),
)

# What a kernel may call: 64-bit division, a routine on every GPU (kernels divide where they work out what to compute,
# once); shuffles in code that ptxas cannot see to be converged; and its own labels, which is how some loops are left.
ROUTINES = re.compile(r"__cuda_sm20_(div|rem)_[su]64\b|__cuda_sm70_shflsync_|^`\(\.L_x_")


def family_of(kernel: Kernel) -> Family:
    found = [family for family in FAMILIES if re.fullmatch(family.name, kernel.name)]
    assert len(found) == 1, f"{kernel.name} matches {len(found)} rows of FAMILIES: every kernel needs one"
    return found[0]


def violations(kernel: Kernel, code: list[Instruction], family: Family) -> list[str]:
    """What is wrong with a kernel's code on its architecture."""
    code = [instruction for instruction in code if not instruction.is_a("NOP")]
    if kernel.architecture not in family.runs_on:
        return [] if len(code) <= 4 else [f"{len(code)} instructions where the kernel cannot run"]
    local = [f"{i.opcode} {i.operands}" for i in code if i.is_a("LDL", "STL")]
    found = [f"{len(local)} instructions on local memory, the first: {local[0]}"] if local else []
    calls = {i.operands for i in code if i.is_a("CALL")}
    found += [f"calls {routine}" for routine in sorted(calls) if not ROUTINES.search(routine)]
    found += [f"no {need}" for need in family.needs if not any(i.opcode.startswith(need) for i in code)]
    if kernel.stack:
        found.append(f"{kernel.stack} bytes of stack")
    if kernel.registers > family.registers:
        found.append(f"{kernel.registers} registers, at most {family.registers} were promised")
    return found


# ---- the built object ------------------------------------------------------------------


def why_not() -> str | None:
    if not OBJECT.exists():
        return "bitnas/_C_cuda.so was not built: no CUDA kernel is checked (see that nvcc is found, then `make test`)"
    missing = " and ".join(tool for tool in ("cuobjdump", "nvdisasm") if find_tool(tool) is None)
    return f"{missing} not found: no CUDA kernel is checked (pip install -e '.[dev]')" if missing else None


REASON = why_not()
BUILT = CudaObject(OBJECT)
KERNELS = [] if REASON else BUILT.kernels
needs_object = pytest.mark.skipif(REASON is not None, reason=str(REASON))


@needs_object
def test_the_object_has_code_for_every_architecture():
    expected = {kernel.name for kernel in KERNELS}
    for architecture in ARCHITECTURES:
        names = {kernel.name for kernel in KERNELS if kernel.architecture == architecture}
        assert names == expected, f"{architecture}: build with BITNAS_CUDA_ARCHITECTURES=all"
    assert {kernel.architecture for kernel in KERNELS} == set(ARCHITECTURES)
    assert BUILT.ptx_architectures == {"sm_80"}


@needs_object
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_has_kernels(family):
    assert any(family_of(kernel) == family for kernel in KERNELS)


@needs_object
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: f"{kernel.architecture}-{kernel.name}")
def test_machine_code(kernel):
    assert violations(kernel, BUILT.instructions(kernel), family_of(kernel)) == []


# ---- the checks themselves ---------------------------------------------------------------

MMA = FAMILIES[0]

# As cuobjdump and nvdisasm print them.
RESOURCES = """
Fatbin ptx code:
================
arch = sm_80

Fatbin elf code:
================
arch = sm_80

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN6bitnas4cuda12_GLOBAL__N_117conv2d_mma_kernelINS1_11AndPopcountEEEvi:
  REG:128 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:432 TEXTURE:0 SURFACE:0 SAMPLER:0
"""
CLEAN = """
.text._ZN6bitnas4cuda12_GLOBAL__N_117conv2d_mma_kernelINS1_11AndPopcountEEEvi:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/              @!P0 LDGSTS.E.BYPASS.LTC128B.128 [R2], desc[UR4][R4.64] ;
        /*0020*/                   LDSM.16.M88.4 R8, [R2] ;
        /*0030*/                   BMMA.168256.AND.POPC R4, R8.ROW, R12.COL, R4 ;
        /*0040*/                   CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64) ;
.L_x_0:
        /*0050*/                   EXIT ;
        /*0060*/                   NOP;
"""


def planted(sass: str, resources: str = RESOURCES) -> list[str]:
    [kernel] = parse_resources(resources)
    return violations(kernel, parse_sass(sass)[kernel.symbol], MMA)


def test_a_clean_kernel_passes():
    [kernel] = parse_resources(RESOURCES)
    assert (kernel.name, kernel.architecture) == ("conv2d_mma_kernel<AndPopcount>", "sm_80")
    assert (kernel.registers, kernel.stack, kernel.cubin) == (128, 0, 1)
    assert family_of(kernel) == MMA
    assert [i.opcode for i in parse_sass(CLEAN)[kernel.symbol]][1:3] == ["LDGSTS.E.BYPASS.LTC128B.128", "LDSM.16.M88.4"]
    assert planted(CLEAN) == []


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        ("LDL.64 R2, [R1+0x8]", "1 instructions on local memory, the first: LDL.64 R2, [R1+0x8]"),
        ("@!PT STL [R1], R0", "1 instructions on local memory, the first: STL [R1], R0"),
        (
            "CALL.REL.NOINC `($__internal_1_$__cuda_sm_9x_mma_bit_internal_xor_m16n8k256)",
            "calls `($__internal_1_$__cuda_sm_9x_mma_bit_internal_xor_m16n8k256)",
        ),
        ("CALL.ABS.NOINC R2", "calls R2"),
    ],
)
def test_a_planted_instruction_is_seen(instruction, message):
    assert planted(CLEAN.replace("MOV R1, c[0x0][0x28]", instruction)) == [message]


@pytest.mark.parametrize(("opcode", "need"), [("BMMA", "BMMA.168256.AND.POPC"), ("LDGSTS", "LDGSTS"), ("LDSM", "LDSM")])
def test_a_lost_instruction_is_seen(opcode, need):
    assert planted(CLEAN.replace(opcode, "IADD3")) == [f"no {need}"]


def test_an_xor_product_is_seen():
    assert planted(CLEAN.replace("AND", "XOR")) == ["no BMMA.168256.AND.POPC"]


def test_stack_and_registers_are_seen():
    assert planted(CLEAN, RESOURCES.replace("STACK:0", "STACK:16")) == ["16 bytes of stack"]
    assert planted(CLEAN, RESOURCES.replace("LOCAL:0", "LOCAL:8")) == ["8 bytes of stack"]
    assert planted(CLEAN, RESOURCES.replace("REG:128", "REG:256")) == ["256 registers, at most 255 were promised"]


def test_code_where_a_kernel_cannot_run_is_seen():
    assert planted(CLEAN, RESOURCES.replace("sm_80", "sm_100")) == ["6 instructions where the kernel cannot run"]


def test_a_kernel_without_a_row_is_seen():
    [kernel] = parse_resources(RESOURCES.replace("17conv2d_mma_kernel", "10new_kernel"))
    with pytest.raises(AssertionError, match=r"new_kernel<AndPopcount> matches 0 rows of FAMILIES"):
        family_of(kernel)


# Both compile without a word; b1 xor is a routine of two products from sm_90 on.
EMULATED = """
__global__ void kernel(int* p) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc {%0, %1, %2, %3}, {%4, %4, %4, %4}, {%4, %4}, "
      "{%0, %1, %2, %3};" : "+r"(p[0]), "+r"(p[1]), "+r"(p[2]), "+r"(p[3]) : "r"(p[4]));
}
"""
SPILLED = """
__global__ void kernel(int* p, int n) {
  int counts[64] = {};
  for (int i = 0; i < n; ++i) ++counts[p[i]];
  *p = counts[n];
}
"""
UNKNOWN_REGISTERS = """
__global__ void kernel(int* p) {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
  *p = 1;
}
"""


@pytest.fixture
def compiled(tmp_path):
    """Compiles a source for sm_90a; the finished process, and the object where there is one."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        pytest.skip("nvcc not found: the checks are not tried on freshly compiled kernels")

    def compile_source(source: str, *launcher: Path) -> tuple[subprocess.CompletedProcess, Path]:
        path, target = tmp_path / "kernel.cu", tmp_path / "kernel.o"
        path.write_text(source)
        architecture = "--generate-code=arch=compute_90a,code=sm_90a"
        command = [*launcher, nvcc, architecture, "-c", path, "-o", target]
        return subprocess.run(command, capture_output=True, text=True), target

    return compile_source


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (EMULATED, r"calls .*__cuda_sm_9x_mma_bit_internal_xor_m16n8k256"),
        (SPILLED, r"\d+ instructions on local memory.*; \d+ bytes of stack"),
    ],
    ids=["emulated", "spilled"],
)
def test_a_compiled_violation_is_seen(compiled, source, expected):
    if find_tool("cuobjdump") is None or find_tool("nvdisasm") is None:
        pytest.skip("cuobjdump or nvdisasm not found: the checks are not tried on freshly compiled kernels")
    done, path = compiled(source)
    assert done.returncode == 0, done.stderr
    cuda = CudaObject(path)
    [kernel] = cuda.kernels
    assert re.match(expected, "; ".join(violations(kernel, cuda.instructions(kernel), Family("kernel"))))


# ---- the compiler launcher ---------------------------------------------------------------

STRICT = ROOT / "tools" / "nvcc_strict.sh"


def test_lost_performance_fails_the_build(compiled):
    done, path = compiled(UNKNOWN_REGISTERS)
    assert done.returncode == 0
    assert path.exists()  # nvcc itself mentions it and goes on
    done, path = compiled(UNKNOWN_REGISTERS, STRICT)
    assert done.returncode == 1
    assert "'setmaxnreg' ignored" in done.stderr
    assert not path.exists()


def test_the_launcher_hands_on_messages_and_status():
    done = subprocess.run([STRICT, "sh", "-c", "echo one; echo two >&2; exit 3"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "one\ntwo\n")
    assert subprocess.run([STRICT, "true"], capture_output=True).returncode == 0

"""The AMX convolutions without AMX: on a model of the tile unit, and their machine code with every tile instruction
trapped and carried out by that model. On a CPU with AMX the machine code runs as it is.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
CPU = ROOT / "csrc" / "kernels" / "cpu"
KERNELS = ("direct", "bits", "winograd1d", "winograd2d")
FILES = {name: CPU / f"conv2d_amx_{name}.cpp" for name in KERNELS}
OTHERS = (HERE / "check.cpp", CPU / "amx_model.cpp", CPU / "amx_permission.cpp")
ISA = ("avx512f", "avx512bw", "avx512vl", "avx512vpopcntdq")
COMMON = ("-std=c++20", "-ffp-contract=off", "-Wno-maybe-uninitialized", *(f"-m{isa}" for isa in ISA))
# As a release is built.
RELEASE = (*COMMON, "-O3", "-fPIC", "-mamx-tile", "-mamx-int8")


def require(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def compile_to(out: Path, *arguments: str | Path) -> Path:
    require("g++")
    command = ["g++", f"-I{ROOT / 'csrc'}", *arguments, "-o", out]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def run(program: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    # In its own folder: where aborts leave core files, they go away with it.
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, cwd=program.parent,
                          env={**os.environ, **environment})  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    missing = [isa for isa in ISA if isa.replace("avx512vpop", "avx512_vpop") not in flags]
    if missing:
        pytest.skip(f"this CPU lacks {', '.join(missing)}, which the AMX kernels use beside AMX")
    return tmp_path_factory.mktemp("kernels_amx")


@pytest.fixture(scope="module")
def model(folder):
    """The kernels compiled against the model: caches may be small, and a layer of little work is cut into tasks."""
    return compile_to(folder / "model", *COMMON, "-O1", "-DBITNAS_AMX_MODEL", *OTHERS, *FILES.values())


@pytest.fixture(scope="module")
def objects(folder):
    """The kernels as a release holds them."""
    return {
        name: compile_to(folder / f"{name}.o", *RELEASE, "-Wall", "-Wextra", "-Werror", "-c", path)
        for name, path in FILES.items()
    }


@pytest.fixture(scope="module")
def release(folder, objects):
    return compile_to(folder / "release", *COMMON, "-O1", *OTHERS, *objects.values())


def counted(program: Path, kernel: str, seed: int, count: int) -> tuple[int, int]:
    done = run(program, kernel, seed, count)
    assert done.returncode == 0, done.stderr
    layers, tasks = map(int, re.findall(r"(\d+) layers, (\d+) tasks", done.stdout)[0])
    return layers, tasks


@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_on_the_model(model, kernel):
    layers, tasks = counted(model, kernel, seed=1, count=150)
    assert layers > 120  # the others have no images
    assert tasks > 2 * layers


@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_by_the_machine_code(release, kernel):
    assert counted(release, kernel, seed=2, count=40)[0] > 30


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("seed", range(10, 14))
def test_many_layers(model, release, kernel, seed):
    counted(model, kernel, seed, count=3000)
    counted(release, kernel, seed, count=1000)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_layers_under_sanitizers(folder, kernel):
    program = folder / "sanitized"
    if not program.exists():
        flags = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DBITNAS_AMX_MODEL")
        compile_to(program, *COMMON, *flags, *OTHERS, *FILES.values())
    counted(program, kernel, seed=3, count=400)


@pytest.mark.parametrize("kernel", KERNELS)
def test_one_wrong_product_is_seen(model, kernel):
    assert run(model, "spoil", kernel, 4).stdout == "100\n"


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("unconfigured", "tileloadd of tile 0: the unit is not configured (palette 0)"),
        ("released", "tilestored of tile 0: the unit is not configured (palette 0)"),
        ("foreign", "tilezero of tile 0: it has 8 rows of 32 bytes, not 16 of 64: another configuration"),
        ("unknown", "tdpbssd of tile 0: nobody loaded or zeroed it"),
        ("illegal", "ldtilecfg of tile 0: an illegal shape"),
    ],
)
def test_the_model_refuses_misuse(model, what, message):
    done = run(model, "misuse", what)
    assert done.returncode < 0
    assert done.stderr == f"AMX model: {message}\n"


def test_permission(model, release):
    """Asked once; a CPU that lacks AMX answers no without a fault; the user's word is the last."""
    assert run(model, "permission").stdout == "1 1\n"
    has_amx = all(isa in Path("/proc/cpuinfo").read_text() for isa in ("amx_tile", "amx_int8"))
    if not has_amx:
        assert run(release, "permission").stdout == "0 0\n"
    for program in (model, release):
        assert run(program, "permission", BITNAS_NO_AMX="1").stdout == "0 0\n"
    assert run(model, "permission", BITNAS_NO_AMX="0").stdout == "1 1\n"


# ---- machine code -------------------------------------------------------------


def listing(path: Path) -> list[tuple[int, str]]:
    """Address and text of every instruction, what it calls appended."""
    require("objdump")
    text = subprocess.run(["objdump", "-dr", "--no-show-raw-insn", path], capture_output=True, text=True, check=True)
    lines: list[tuple[int, str]] = []
    for line in text.stdout.splitlines():
        instruction = re.match(r"\s+([0-9a-f]+):\t([^\t]+)$", line)
        relocation = re.match(r"\s+[0-9a-f]+: R_X86_64_(?:PLT|PC)32\s+(\S+)", line)
        if instruction:
            lines.append((int(instruction[1], 16), instruction[2]))
        elif relocation and lines:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]} # {relocation[1]}")
    return lines


def product_loops(lines: list[tuple[int, str]]) -> list[list[str]]:
    """Bodies of the innermost loops that hold a product."""
    loops = []
    for address, text in lines:
        jump = re.match(r"j\w+\s+([0-9a-f]+)", text)
        if jump and int(jump[1], 16) <= address:
            body = [(at, what) for at, what in lines if int(jump[1], 16) <= at <= address]
            if any(what.startswith("tdpbssd") for _, what in body):
                loops.append((body[0][0], body[-1][0], [what for _, what in body]))
    return [
        body
        for first, last, body in loops
        if not any(first <= a and b <= last and (a, b) != (first, last) for a, b, _ in loops)
    ]


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_loops_over_products(objects, kernel):
    """All shapes of blocks are there; memory is not set or copied by a call, and nothing is divided."""
    loops = product_loops(listing(objects[kernel]))
    products = sorted(sum(text.startswith("tdpbssd") for text in loop) for loop in loops)
    assert products == ([1, 2, 3, 4] if kernel == "bits" else [1, 2, 2, 4])
    for loop in loops:
        assert not [text for text in loop if "mem" in text and "call" in text]
        assert not [text for text in loop if re.match(r"i?div", text)]


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_weak_symbols(objects, kernel):
    require("nm")
    lines = subprocess.run(["nm", objects[kernel]], capture_output=True, text=True, check=True).stdout.splitlines()
    kinds = {line[17:18] for line in lines}
    assert "t" in kinds
    assert not kinds & set("WVu")


def test_assembly_is_what_the_intrinsics_say(tmp_path):
    """amx.h writes operands by hand: the compiler's own intrinsics must give the same instructions."""
    head = '#include <immintrin.h>\n#include "kernels/cpu/amx.h"\nusing namespace bitnas::cpu;\n'
    bodies = {
        "ours": "amx::load_config(*c); amx::zero<3>(); amx::load<4>(p, n); amx::load<6>(p + 1024, n);"
        "amx::multiply_add<3, 4, 6>(); amx::store<3>(p, n); amx::release();",
        "theirs": "_tile_loadconfig(c); _tile_zero(3); _tile_loadd(4, p, n); _tile_loadd(6, p + 1024, n);"
        "_tile_dpbssd(3, 4, 6); _tile_stored(3, p, n); _tile_release();",
    }
    found = {}
    for name, body in bodies.items():
        source = tmp_path / f"{name}.cpp"
        source.write_text(f"{head}void f(const amx::Config* c, char* p, long n) {{ {body} }}\n")
        code = listing(compile_to(tmp_path / f"{name}.o", *RELEASE, "-c", source))
        found[name] = [text for _, text in code if text.startswith(("tile", "ldtile", "tdp"))]
    assert len(found["ours"]) == 7
    assert found["ours"] == found["theirs"]

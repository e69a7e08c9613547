"""Who may import whom (docs/architecture.md), read from the sources; and what importing bitnas must not load or run."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, CSRC = ROOT / "bitnas", ROOT / "csrc"
FILES = sorted(PACKAGE.rglob("*.py"))

# What each part may import of the others. A part may import itself; everybody may read bitnas.__version__.
ALLOWED = {
    "files": set(),
    "_library": set(),
    "reference": set(),
    "ops": {"_library"},
    "nn": {"ops"},
    "packed": {"reference", "files", "ops", "nn"},
    "models": {"files", "ops", "nn", "packed"},
    "cost": {"files", "ops", "reference", "nn", "packed", "models"},
    "data": {"files"},
    "train": {"files", "data"},
    "search": {"files"},
    "methods": {"files", "ops", "nn", "packed", "models", "cost", "data", "train", "search"},
    "report": {"files", "search"},
    "cli": {
        "files", "_library", "reference", "ops", "nn", "packed", "models", "cost", "data", "train", "search", "methods",
        "report",
    },
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, anywhere in it, relative ones resolved."""
    package = ["bitnas", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def without_type_checking(path: Path) -> ast.Module:
    """The file's syntax without what only a type checker reads."""

    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            name = node.test.attr if isinstance(node.test, ast.Attribute) else getattr(node.test, "id", "")
            return None if name == "TYPE_CHECKING" else self.generic_visit(node)

    return Strip().visit(ast.parse(path.read_text()))


def third_party(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names - sys.stdlib_module_names - {"bitnas"}


def of(*patterns: str) -> list[Path]:
    found = [path for path in FILES if any(path.relative_to(PACKAGE).match(pattern) for pattern in patterns)]
    assert found, patterns
    return found


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ---- Python ---------------------------------------------------------------------


def test_the_table_covers_the_package_and_has_no_cycle():
    assert {part(path) for path in FILES} <= ALLOWED.keys()
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [name for name, allowed in ALLOWED.items() if name not in order and allowed <= set(order)]
        assert ready, f"a cycle among {ALLOWED.keys() - set(order)}"
        order += ready


@pytest.mark.parametrize("path", FILES, ids=names)
def test_nothing_imports_to_its_right(path):
    # `from bitnas import freeze` is an import of the part that the public name comes from.
    init = ast.parse((PACKAGE / "__init__.py").read_text())
    table = next(n.value for n in init.body if isinstance(n, ast.Assign) and n.targets[0].id == "_PUBLIC")
    public = {name: module.removeprefix("bitnas.") for name, module in ast.literal_eval(table).items()}
    own = part(path)
    for name in imported(path):
        words = name.split(".")
        assert words[0] not in ("tests", "bench"), f"{name}: nothing imports tests or bench"
        if words[0] == "bitnas" and len(words) > 1 and words[1] != "__version__":
            target = public.get(words[1], words[1])
            assert target == own or target in ALLOWED[own], f"{own} may not import {name}"


def test_only_the_walker_reads_modules():
    readers = {
        path.name
        for path in of("cost/*.py")
        if any(name.startswith(("bitnas.nn", "bitnas.models")) for name in imported(path))
    }
    assert readers == {"walk.py"}


def test_rules_and_search_import_no_torch():
    for path in of("cost/rules.py", "cost/count.py", "search/*.py", "files.py", "__init__.py"):
        lazily = path.name in ("workers.py", "files.py")  # inside functions that are handed tensors, or processes
        tree = without_type_checking(path)
        if lazily:
            tree.body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not {"torch", "safetensors"} & third_party(tree), names(path)


def test_kernels_to_costs_need_torch_and_numpy_alone():
    for path in of("_library.py", "ops.py", "reference.py", "nn/*.py", "packed/*.py", "models/*.py", "cost/*.py"):
        assert third_party(ast.parse(path.read_text())) <= {"torch", "numpy"}, names(path)


def test_the_command_line_is_only_in_cli():
    for path in FILES:
        if part(path) != "cli":
            assert not {"typer", "rich", "click"} & third_party(ast.parse(path.read_text())), names(path)


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {dependency.partition(">")[0].replace("-", "_") for dependency in project["dependencies"]}
    declared = {{"scikit_learn": "sklearn", "pillow": "PIL"}.get(name, name) for name in declared}
    found = set().union(*(third_party(ast.parse(path.read_text())) for path in FILES))
    assert found <= declared, f"not in pyproject.toml: {sorted(found - declared)}"


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("torch", "compile"), ("os", "system"), ("yaml", "load")}


@pytest.mark.parametrize("path", FILES, ids=names)
def test_nothing_reads_or_runs_what_could_be_code(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in FORBIDDEN_CALLS, f"line {node.lineno}: {node.func.id}()"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in FORBIDDEN_ATTRIBUTES, f"line {node.lineno}: {node.attr}"
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            assert isinstance(node.value, ast.Constant), f"line {node.value.lineno}: {node.arg}"
            assert node.value.value is False, f"line {node.value.lineno}: {node.arg}"
    modules = {name.partition(".")[0] for name in imported(path)}
    assert not modules & FORBIDDEN_MODULES


IMPORTS = {
    "bitnas": ("torch", "numpy", "typer", "rich", "safetensors"),
    "bitnas.search": ("torch",),
    "bitnas.cost": ("torch",),
    "bitnas.cost.rules": ("torch",),
    "bitnas.files": ("torch", "safetensors"),
    "bitnas.cli": ("torch", "numpy", "pymoo", "matplotlib", "sklearn"),
    "bitnas.packed": ("pymoo", "typer", "rich", "matplotlib", "sklearn", "safetensors"),
    "bitnas.models": ("pymoo", "typer", "rich", "matplotlib", "sklearn"),
}


@pytest.mark.parametrize("module", IMPORTS)
def test_an_import_loads_nothing_heavy(module):
    script = f"import sys, {module}; print(*(name for name in {IMPORTS[module]!r} if name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


# ---- C++ --------------------------------------------------------------------------


def includes(path: Path) -> list[str]:
    lines = (line.strip() for line in path.read_text().splitlines())
    return [line.removeprefix("#include").strip() for line in lines if line.startswith("#include")]


def reached(path: Path) -> set[str]:
    """Every include of a file and of the headers of ours that it includes."""
    found: set[str] = set()
    waiting = [path]
    while waiting:
        for include in includes(waiting.pop()):
            if include not in found:
                found.add(include)
                if include.startswith('"'):
                    waiting.append(CSRC / include.strip('"'))
    return found


def sources(folder: str) -> list[Path]:
    found = [path for path in sorted((CSRC / folder).rglob("*")) if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert found
    return found


def test_kernels_know_no_torch_no_python_and_no_operators():
    for path in sources("kernels"):
        for include in includes(path):
            if include.startswith('"'):
                assert include.startswith('"kernels/'), f"{names(path)}: {include}"
            else:
                assert "torch" not in include and "Python" not in include, f"{names(path)}: {include}"  # noqa: PT018


def test_only_the_one_switch_reaches_the_host_model():
    """Kernels meet the GPU and its model through the same three headers."""
    doors = {CSRC / "kernels/cuda" / name for name in ("runtime.h", "ptx.cuh", "float16.h")}
    for path in sources("kernels/cuda"):
        if "model" not in path.parts and path not in doors:
            assert not any("/model/" in include for include in includes(path)), names(path)


def test_processors_do_not_know_each_other():
    for path in sources("kernels/cpu"):
        assert not any("cuda" in include for include in reached(path)), names(path)
    for path in sources("kernels/cuda"):
        assert not any("kernels/cpu" in include for include in reached(path)), names(path)


def test_shared_headers_know_no_processor():
    for path in (CSRC / "kernels").glob("*.h"):
        assert not any("/cpu/" in include or "cuda" in include for include in reached(path)), names(path)


def test_operators_use_the_stable_abi_only():
    for path in sources("ops"):
        for include in includes(path):
            if include.startswith("<") and "/" in include:
                assert include.startswith("<torch/csrc/stable/"), f"{names(path)}: {include}"
            assert "Python.h" not in include and "pybind" not in include, f"{names(path)}: {include}"  # noqa: PT018


def test_files_of_one_instruction_set_include_no_standard_library():
    isa_files = [path for path in sources("kernels/cpu") if path.stem.rpartition("_")[2] in ("avx2", "avx512", "amx")]
    assert len(isa_files) >= 4
    for path in isa_files:
        system = {include for include in reached(path) if include.startswith("<")}
        assert system <= {"<immintrin.h>", "<cstdint>"}, names(path)

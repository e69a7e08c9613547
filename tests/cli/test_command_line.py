"""The command line as a user meets it: help, JSON, errors in one line, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from bitnas import cli

COMMANDS = ["doctor", "bench", "count", "train", "search", "resume", "report", "reproduce", "demo"]
GROUPS = ["data", "latency"]
COUNT = ["count", "vgg_small", "--ratios", "0.5,2,1,1,1,0.5", "--rule", "shen2019"]


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bitnas", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | environment,
        check=False,
    )


def test_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(command in out for command in COMMANDS + GROUPS)


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"bitnas {command}" in out
    assert "--json" in out


@pytest.mark.parametrize("group", GROUPS)
def test_each_command_of_a_group_has_help(run, group):
    code, out, _ = run(group, "--help")
    assert code == 0
    names = {"data": ["list", "check", "pack"], "latency": ["build", "check", "show"]}[group]
    for name in names:
        assert name in out
        code, own, _ = run(group, name, "--help")
        assert code == 0
        assert "--json" in own


def test_help_is_quick_and_imports_nothing_heavy():
    script = (
        "import sys\nfrom bitnas.cli.app import run\n"
        + "".join(f"assert run([{command!r}, '--help']) == 0\n" for command in COMMANDS + GROUPS)
        + "heavy = {'torch', 'numpy', 'matplotlib', 'pymoo', 'sklearn', 'rich'} & set(sys.modules)\n"
        + "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)
    best = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        assert shell("count", "--help").returncode == 0
        best = min(best, time.perf_counter() - start)
    assert best < 0.6  # 0.13 s on a quiet machine; a loaded one must not fail the build


def test_version(run):
    from bitnas import __version__

    assert run("--version")[:2] == (0, f"bitnas {__version__}\n")


def test_an_unknown_command_and_an_unknown_option(run):
    assert run("serach")[0] == 2
    code, _, err = run("count", "vgg_small", "--ratio", "1")
    assert code == 2
    assert "--ratio" in err


def test_count_prints_only_json(run):
    code, out, err = run(*COUNT, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    # Shen et al. 2019, table 1, VGG-Auto-A: 11.3 M FLOPs and 5.1 M bits.
    assert found["flops"] == 11313152
    assert found["memory_bits"] == 5052416
    assert {"macs", "bops", "ops", "params", "layers"} <= found.keys()


def test_count_prints_a_table(run):
    code, out, _ = run("count", "resnet18", "--input-size", "3,32,32", "--num-classes", "10")
    assert code == 0
    assert "FLOPs" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["count", "vgg_smal"], "did you mean 'vgg_small'"),
        (["count", "vgg_small", "--ratios", "1,x"], "--ratios must be numbers"),
        (["count", "vgg_small", "--ratios", "1,2"], "wanted 6"),
        (["count", "vgg_small", "--ratios", "nan"], "finite"),
        (["count", "vgg_small", "--input-size", "3,a,2"], "--input-size must be integers"),
        (["count", "vgg_small", "--rule", "guess"], "guess"),
        (["report", "/nonexistent/run"], "/nonexistent/run does not exist"),
        (["resume", "/nonexistent/run"], "/nonexistent/run"),
        (["search", "--out", "/nonexistent/x", "--population", "0"], "population"),
        (["search", "--out", "/nonexistent/x", "--objectives", "accuracy,beauty"], "beauty"),
        (["search", "--out", "/nonexistent/x", "--model", "vgg_smal", "--no-inherit"], "vgg_smal"),
        (["train", "--out", "/nonexistent/x", "--recipe", "none"], "--recipe must be one of"),
        (["train", "--out", "/nonexistent/x", "--data", "mnist"], "mnist"),
    ],
)
def test_an_expected_error_is_one_line_without_traceback(run, monkeypatch, tmp_path, arguments, words):
    monkeypatch.delenv("BITNAS_TRACEBACK", raising=False)
    arguments = [argument.replace("/nonexistent/x", str(tmp_path / "run")) for argument in arguments]
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err


def test_a_traceback_on_request(monkeypatch):
    monkeypatch.setenv("BITNAS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="vgg_smal"):
        cli.main(["count", "vgg_smal"])


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("bitnas.cost.count", lambda *_, **__: {}["missing"])
    with pytest.raises(KeyError):
        cli.main(["count", "vgg_small"])


def test_report_of_a_minimal_run_folder(run, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    code, out, _ = run("report", str(tmp_path), "--json")
    assert code == 0
    assert json.loads(out)["report"] == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


def test_report_of_a_damaged_run_folder(run, tmp_path):
    (tmp_path / "config.json").write_text("{")
    code, _, err = run("report", str(tmp_path))
    assert code == 2
    assert "config.json" in err


def test_doctor_passes_its_own_test(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["ok"]
    assert found["isa"] in found["isas"]
    assert set(found["self_test"]) == set(found["isas"])
    assert set(found["self_test"].values()) == {24}
    assert found["cuda"]["usable"] or found["cuda"]["why"]
    assert found["memory_bytes"] > 10 * 2**20


def test_doctor_prints_lines(run):
    code, out, _ = run("doctor")
    assert code == 0
    assert "24 of 24 convolutions equal" in out
    assert out.endswith("OK\n")


def test_doctor_fails_with_the_fix_where_the_kernels_are_missing(run, monkeypatch):
    class Missing:
        def find_spec(self, name, path=None, target=None):
            if name == "bitnas._library":
                raise ImportError("bitnas: the compiled kernels are not there; run `pip install -e .`")

    monkeypatch.delitem(sys.modules, "bitnas._library", raising=False)
    monkeypatch.delattr("bitnas._library", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Missing(), *sys.meta_path])
    code, out, err = run("doctor")
    assert code == 1
    assert "NOT OK" in out
    assert "pip install" in err


def test_doctor_notices_wrong_results(run, monkeypatch):
    from bitnas import ops

    right = ops.conv2d
    monkeypatch.setattr(ops, "conv2d", lambda *a, **k: right(*a, **k) + 1)
    code, _, err = run("doctor", "--json")
    assert code == 1
    assert "wrong results" in err


@pytest.fixture
def pretended_gpu(monkeypatch):
    """A GPU whose kernels are the CPU's."""
    from bitnas import _library
    from bitnas.cli import examine
    from bitnas.cost import machine

    selected, right, facts = [], examine._equal_trials, machine.facts()
    gpu = {"name": "NVIDIA Test", "compute_capability": "9.0", "driver": "580.1"}
    monkeypatch.setattr(machine, "facts", lambda: {**facts, "gpu": gpu})
    monkeypatch.setattr(machine, "why_no_gpu", lambda: None)
    monkeypatch.setattr(_library, "cuda_kernels", lambda: ["popc", "mma_64x64"])
    monkeypatch.setattr(_library, "select_cuda_kernel", selected.append)
    monkeypatch.setattr(examine, "_equal_trials", lambda device, *kinds: right("cpu", *kinds))
    return selected


def test_doctor_tests_every_cuda_kernel(run, pretended_gpu):
    code, out, _ = run("doctor", "--json")
    cuda = json.loads(out)["cuda"]
    assert code == 0
    assert (cuda["usable"], cuda["device"], cuda["why"]) == (True, "NVIDIA Test", None)
    assert cuda["self_test"] == {"popc": 24, "mma_64x64": 24}
    assert pretended_gpu == ["popc", "auto", "mma_64x64", "auto"]
    _, out, _ = run("doctor")
    assert "compute capability 9.0, driver 580.1" in out
    assert "CUDA mma_64x64: 24 of 24 products equal" in out


def test_doctor_notices_wrong_cuda_results(run, pretended_gpu, monkeypatch):
    from bitnas import ops

    right = ops.linear  # which the self-test of the CPU does not use
    monkeypatch.setattr(ops, "linear", lambda *a, **k: right(*a, **k) + 1)
    code, _, err = run("doctor", "--json")
    assert code == 1
    assert "the popc, mma_64x64 kernels compute wrong results" in err


def test_bench_on_a_gpu_that_is_not_there(run, monkeypatch):
    from bitnas.cost import machine

    monkeypatch.setattr(machine, "why_no_gpu", lambda: "this torch is a CPU build")
    assert run("bench", "--device", "cuda") == (2, "", "error: device='cuda': this torch is a CPU build\n")


def test_bench_on_a_gpu(run, monkeypatch):
    row = {"name": "a", "batch": 8, "threads": 1, "isa": "popc", "gops": {"bitnas": 9}}
    row["ms"] = {"bitnas": 1.0, "bitnas_to_bfloat16": 2.0, "bfloat16": 8.0}
    result = {
        "device": "cuda",
        "machine": {"torch": "2.13", "gpu": {"name": "NVIDIA Test", "driver": "580.1"}},
        "rows": [row],
        "geomean_ratio": {"bfloat16": 8.0},
        "geomean_ratio_to_bfloat16": {"bfloat16": 4.0},
        "left_out": {"int8": "torch has none"},
    }
    asked = {}
    monkeypatch.setattr("bitnas.cost.bench.bench_layers", lambda layers, **options: asked.update(options) or result)
    options = ("bench", "--device", "cuda", "--isa", "popc", "--batch", "8")
    code, out, _ = run(*options)
    assert code == 0
    assert (asked["device"], asked["kernel"], asked["against"], asked["batches"]) == ("cuda", "popc", None, (8,))
    for words in ("NVIDIA Test, driver 580.1", "to bf16 ms", "8.00×", "int8 left out: torch has none"):
        assert words in out
    assert "with bfloat16 results against bfloat16: 4.00 times as fast" in out
    assert json.loads(run(*options, "--json")[1])["device"] == "cuda"


def test_bench_holds_torch_to_the_same_instructions():
    script = (
        "import os, sys\nfrom bitnas.cli.bench import hold_to\nassert 'torch' not in sys.modules\nhold_to('avx2')\n"
        "import torch\nassert torch.backends.cpu.get_cpu_capability() == 'AVX2'\n"
        "assert os.environ['BITNAS_ISA'] == 'avx2' and os.environ['ONEDNN_MAX_CPU_ISA'] == 'AVX2'\n"
        "try:\n    hold_to('avx2')\nexcept RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert "torch is loaded already" in done.stdout


def test_bench_prints_rows_and_ratios(run, tmp_path):
    shapes = tmp_path / "mine.csv"
    shapes.write_text("name,cin,cout,h,w,kernel,stride,padding,dilation,groups\nmine,64,32,6,6,3,1,1,1,1\n")
    options = ("bench", "--shapes", str(shapes), "--batch", "1,2", "--seconds", "0.01", "--against", "float32")
    code, out, _ = run(*options, "--json")
    found = json.loads(out)
    assert code == 0
    assert [(row["name"], row["batch"]) for row in found["rows"]] == [("mine", 1), ("mine", 2)]
    assert all(row["ms"]["bitnas"] > 0 and row["ms"]["float32"] > 0 for row in found["rows"])
    assert found["geomean_ratio"]["float32"] > 0
    assert found["machine"]["isa"]
    assert found["device"] == "cpu"
    code, out, _ = run(*options)
    assert code == 0
    assert "geometric mean" in out


def test_bench_marks_slower_layers(capsys):
    from bitnas.cli.bench import _table
    from bitnas.cli.output import console

    rows = [
        {
            "name": "good",
            "batch": 1,
            "threads": 1,
            "isa": "avx2",
            "ms": {"bitnas": 1.0, "float32": 4.0},
            "gops": {"bitnas": 9},
        },
        {
            "name": "bad",
            "batch": 1,
            "threads": 1,
            "isa": "avx2",
            "ms": {"bitnas": 2.0, "float32": 1.0},
            "gops": {"bitnas": 9},
        },
    ]
    console().print(_table({"rows": rows}))
    lines = capsys.readouterr().out.splitlines()
    good, bad = (next(line for line in lines if line.strip().startswith(name)) for name in ("good", "bad"))
    assert "4.00×" in good
    assert "slower" not in good
    assert "0.50×" in bad
    assert "slower than float32" in bad


def test_json_never_holds_nan(capsys):
    from bitnas.cli.output import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 1.5], 3: (1, 2)})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "3": [1, 2]}


def test_the_module_runs_as_the_command():
    done = shell(*COUNT, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["flops"] == 11313152
    assert done.stderr == ""


def test_an_unknown_instruction_set_is_one_line():
    done = shell("bench", "--isa", "neon", "--seconds", "0.01")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "neon" in done.stderr


def test_count_says_what_a_frozen_file_takes(run):
    code, out, _ = run("count", "vgg_small", "--frozen", "--json")
    assert code == 0
    assert 900_000 < json.loads(out)["frozen_bytes"] < 1_000_000

"""The two scripts: what a process says on small layers, and both of them from end to end."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import bench_conv2d
import bench_gemm
import pytest

from bitnas import ops
from bitnas.cost.bench import Layer
from bitnas.cost.cpu_timing import Times
from bitnas.cost.timing import summarize

BENCH = Path(bench_conv2d.__file__).parent
OPTIONS = argparse.Namespace(threads="1", seconds=0.001, quick=True, shapes="any")


def said(capsys):
    found = {"row": [], "progress": [], "left_out": []}
    for line in capsys.readouterr().out.splitlines():
        for kind, value in json.loads(line).items():
            found[kind].append(value)
    return found


def test_rows_of_convolutions(monkeypatch, capsys):
    layers = [Layer("a", 64, 32, 6, 6), Layer("b", 64, 32, 6, 6, kernel=1, stride=2, padding=0)]
    monkeypatch.setattr(bench_conv2d, "read_shapes", lambda network: layers)
    monkeypatch.setattr(bench_conv2d, "PEERS", ("float32",))
    bench_conv2d.measure(OPTIONS)
    found = said(capsys)
    assert [(row["network"], row["name"], row["threads"]) for row in found["row"]] == [
        (network, name, 1) for network in ("resnet18", "vgg_small") for name in "ab"
    ]
    row = found["row"][0]
    assert row["isa"] == ops.cpu_isa()
    assert row["ms"].keys() == {"bitnas", "float32"}
    elements = 64 * 36 + 32 * 36 + 64 * 32 * 9
    assert row["operations_per_byte"]["bitnas"] == pytest.approx(2 * 64 * 32 * 9 * 36 / (elements / 8))
    assert row["operations_per_byte"]["float32"] == pytest.approx(row["operations_per_byte"]["bitnas"] / 32)
    assert [(done, total) for done, total, _ in found["progress"]] == [
        (0, 4), (1, 4), (2, 4), (2, 4), (3, 4), (4, 4),
    ]  # fmt: skip


def test_bfloat16_is_left_out_where_torch_only_emulates_it(monkeypatch, capsys):
    monkeypatch.setattr(bench_conv2d, "read_shapes", lambda network: [Layer("a", 64, 32, 6, 6)])
    monkeypatch.setattr(ops, "cpu_isa", lambda: "scalar")
    monkeypatch.setattr(bench_conv2d, "NETWORKS", {"resnet18": (1,)})
    bench_conv2d.measure(OPTIONS)
    found = said(capsys)
    assert found["row"][0]["ms"].keys() == {"bitnas", "float32", "int8"}
    assert "bfloat16" in found["left_out"][0]


def test_rows_of_products(monkeypatch, capsys):
    layers = [Layer("30x20x128", 128, 20, 5, 6, kernel=1, padding=0)]
    monkeypatch.setattr(bench_gemm, "read_shapes", lambda shapes: layers)
    monkeypatch.setattr(bench_gemm, "hold_numkong_to", lambda isa: None)
    bench_gemm.measure(OPTIONS)
    found = said(capsys)
    [row] = found["row"]
    assert [row[key] for key in ("m", "n", "k", "threads", "isa")] == [30, 20, 128, 1, ops.cpu_isa()]
    assert {"bitnas", "bitnas_to_bits", "float32", "int8", "numpy"} <= row["ms"].keys()
    assert {"int8/onednn", "int8/int_mm"} <= row["way_ms"].keys()
    assert row["gops"]["bitnas"] == pytest.approx(2 * 30 * 20 * 128 / row["ms"]["bitnas"] / 1e6)


def test_rows_of_products_on_two_threads(monkeypatch, capsys):
    timing = summarize([5.0], 0.02)
    threads_asked = []

    def time_ways(ways, *, threads, **_):
        threads_asked.append(threads)
        return {
            count: {name: Times(timing, timing) for name, way in ways.items() if count <= (way.most_threads or count)}
            for count in threads
        }

    monkeypatch.setattr(bench_gemm, "read_shapes", lambda shapes: [Layer("a", 128, 20, 5, 6, kernel=1, padding=0)])
    monkeypatch.setattr(bench_gemm, "hold_numkong_to", lambda isa: None)
    monkeypatch.setattr(bench_gemm, "time_ways", time_ways)
    bench_gemm.measure(argparse.Namespace(**{**vars(OPTIONS), "threads": "1,2"}))
    one, two = said(capsys)["row"]
    assert threads_asked == [(1, 2)]
    assert (one["threads"], two["threads"]) == (1, 2)
    assert "numpy" in one["ms"]
    assert "numpy" not in two["ms"]


def test_large_products_are_left_to_the_fast_instruction_sets(monkeypatch, capsys):
    layers = [Layer("big", 4096, 4096, 64, 64, kernel=1, padding=0)]
    monkeypatch.setattr(bench_gemm, "read_shapes", lambda shapes: layers)
    monkeypatch.setattr(bench_gemm, "hold_numkong_to", lambda isa: None)
    monkeypatch.setattr(bench_gemm.ops, "cpu_isa", lambda: "scalar")
    bench_gemm.measure(OPTIONS)
    found = said(capsys)
    assert found["row"] == []
    assert {"big": "seconds a call for torch's peers on these instructions"} in found["left_out"]


@pytest.mark.parametrize("script", [bench_conv2d, bench_gemm])
@pytest.mark.parametrize(
    ("option", "message"),
    [("--isa=neon", "--isa: got 'neon', this CPU and build run scalar"), ("--threads=0", "--threads: got '0', wanted")],
)
def test_options_that_make_no_sense(monkeypatch, script, option, message):
    monkeypatch.setattr(sys, "argv", [script.__name__, option])
    with pytest.raises(SystemExit, match=message):
        script.main()


@pytest.mark.slow
@pytest.mark.parametrize(("script", "goal"), [("bench_conv2d.py", "two threads"), ("bench_gemm.py", "numkong")])
def test_a_quick_run(script, goal, tmp_path):
    options = ["--quick", "--threads=1", f"--isa={ops.cpu_isas()[-1]}", f"--out={tmp_path}"]
    command = [sys.executable, BENCH / script, *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("products a cycle", f"{ops.cpu_isas()[-1]} kernels", "geometric means", "binary loses", goal):
        assert words in done.stdout
    assert list(tmp_path.iterdir()) == []

"""The program that looks for the machine's bounds builds, finds its own loops right, and its figures are sane."""

import cpu_peaks
import pytest
from cpu_peaks import bound_gops, describe, measure_peaks

from bitnas import ops

PEAKS = {
    "clock_ghz": 3.5,
    "loops": [
        {"loop": "lookup", "isa": "avx2", "gops": 1600.0, "products_per_cycle": 230.0},
        {"loop": "popcount", "isa": "avx512", "gops": 2400.0, "products_per_cycle": 341.0},
        {"loop": "edges", "isa": "avx512", "gops": 2800.0, "products_per_cycle": 400.0},
        {"loop": "vpdpbusd", "isa": "", "gops": 900.0, "products_per_cycle": 128.0},
    ],
    "read": {level: {"bytes": 1, "gb_per_s": rate} for level, rate in {"l2": 100.0, "memory": 20.0}.items()},
}


@pytest.mark.skipif(cpu_peaks.why_no_peaks() is not None, reason=str(cpu_peaks.why_no_peaks()))
def test_the_program():
    found = measure_peaks(seconds=0.005)  # it ends with an error where a loop's sums are wrong
    assert "problem" not in found, found
    assert 0.5 < found["clock_ghz"] < 8
    assert {loop["isa"] for loop in found["loops"]} >= set(ops.cpu_isas()) - {"scalar"}
    for loop in found["loops"]:
        assert 1 < loop["products_per_cycle"] < 2000, loop
        assert loop["gops"] == pytest.approx(2 * loop["products_per_cycle"] * found["clock_ghz"], rel=0.02)
    assert all(level["gb_per_s"] > 1 for level in found["read"].values())


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(cpu_peaks, "compiler", lambda: None)
    assert "no C++ compiler" in measure_peaks()["problem"] or "x86-64 only" in measure_peaks()["problem"]


@pytest.mark.parametrize(("name", "text"), [("false", "false failed: 1"), ("/no/such/compiler", "/no/such/compiler")])
def test_a_compiler_that_fails(monkeypatch, name, text):
    monkeypatch.setattr(cpu_peaks, "compiler", lambda: name)
    monkeypatch.setattr(cpu_peaks.platform, "machine", lambda: "x86_64")
    assert text in measure_peaks()["problem"]


def test_another_processor(monkeypatch):
    monkeypatch.setattr(cpu_peaks.platform, "machine", lambda: "aarch64")
    problem = measure_peaks()["problem"]
    assert problem == "cpu_peaks.cpp knows x86-64 only, this is aarch64"
    assert describe({"problem": problem}) == f"bound of the machine not measured: {problem}"
    assert bound_gops({"problem": problem}, "avx2") is None


def test_the_bound_is_the_fastest_loop_of_an_instruction_set():
    assert bound_gops(PEAKS, "avx512") == 2800
    assert bound_gops(PEAKS, "avx2", threads=2) == 3200
    assert bound_gops(PEAKS, "scalar") is None
    text = describe(PEAKS)
    assert "one core at 3.50 GHz" in text
    assert "edges     avx512       2800 GOP/s,  400 products a cycle" in text
    assert "l2 100, memory 20" in text

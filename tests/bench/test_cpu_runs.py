"""A process per instruction set: what it says is collected, whatever becomes of it."""

import argparse
import json
import os
import subprocess
import sys
import time

import cpu_runs
import pytest

CHILD = """
import json, os, sys, time
def say(kind, value):
    print(json.dumps({kind: value}), flush=True)
isa, (_, child, how) = os.environ["BITNAS_ISA"], sys.argv
assert child == "--child"
say("left_out", {"bfloat16": "slow"} if isa == "avx2" else {})
say("progress", [0, 2, "first"])
say("row", {"isa": isa, "limit": os.environ.get("LIMIT")})
if how == isa + " fails":
    sys.exit("no")
if how == isa + " hangs":
    say("progress", [1, 2, str(os.getpid())])
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            pass
say("row", {"isa": isa, "limit": None})
"""


@pytest.fixture
def run(tmp_path):
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    shown, advanced = [], []

    def collect(how, advance=lambda *step: None):
        def note(*step):
            advanced.append(step)
            advance(*step)

        limits = {"avx2": {"LIMIT": "yes"}}
        found = cpu_runs.collect(
            script, ["avx512", "avx2"], [how], limits, on_rows=lambda *rows: shown.append(rows), advance=note
        )
        return found, shown, advanced

    return collect


def test_rows_of_every_process(run):
    found, shown, advanced = run("well")
    assert [(row["isa"], row["limit"]) for row in found.rows] == [
        ("avx512", None), ("avx512", None), ("avx2", "yes"), ("avx2", None),
    ]  # fmt: skip
    assert found.problem is None
    assert found.left_out == {"avx512": {}, "avx2": {"bfloat16": "slow"}}
    assert [(isa, len(rows)) for isa, rows in shown] == [("avx512", 2), ("avx2", 2)]
    assert advanced == [("avx512: first", 0, 2), ("avx2: first", 0, 2)]


def test_what_was_measured_before_a_failure_is_kept(run):
    found, shown, _ = run("avx512 fails")
    assert [row["isa"] for row in found.rows] == ["avx512"]
    assert found.problem == "the process for avx512 ended with 1"
    assert len(shown) == 1


def test_what_was_measured_before_ctrl_c_is_kept_and_nothing_goes_on(run, monkeypatch):
    monkeypatch.setattr(cpu_runs, "PATIENCE_SECONDS", 0.2)
    pids = []

    def interrupt(_, done, __):
        if done == 1:
            raise KeyboardInterrupt

    def advance(what, done, total):
        if done == 1:
            pids.append(int(what.rpartition(" ")[2]))
        interrupt(what, done, total)

    found, shown, _ = run("avx2 hangs", advance)
    assert [row["isa"] for row in found.rows] == ["avx512", "avx512", "avx2"]
    assert found.problem == "interrupted"
    assert len(shown) == 2
    with pytest.raises(ProcessLookupError):  # it was ended although it does not listen
        os.kill(pids[0], 0)


def test_a_child_ends_quietly(capsys):
    def interrupted():
        raise KeyboardInterrupt

    assert cpu_runs.as_child(interrupted) == 130
    assert cpu_runs.as_child(lambda: cpu_runs.say("row", {"a": 1})) == 0
    assert json.loads(capsys.readouterr().out) == {"row": {"a": 1}}


@pytest.mark.parametrize("text", ["", "1,", "0", "two", "1,-2"])
def test_bad_thread_counts(text):
    with pytest.raises(SystemExit, match="--threads: got"):
        cpu_runs.thread_counts(argparse.Namespace(threads=text))


def test_instruction_sets(monkeypatch):
    monkeypatch.setattr(cpu_runs.ops, "cpu_isas", lambda: ["scalar", "avx2"])
    assert cpu_runs.wanted_isas(argparse.Namespace(isa=None)) == ["avx2", "scalar"]
    assert cpu_runs.wanted_isas(argparse.Namespace(isa="scalar")) == ["scalar"]
    with pytest.raises(SystemExit, match="--isa: got 'amx', this CPU and build run scalar, avx2"):
        cpu_runs.wanted_isas(argparse.Namespace(isa="avx2,amx"))


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="the system does not tell how busy it is")
def test_a_busy_machine_is_noticed(capsys):
    spin = [sys.executable, "-c", "while True: pass"]
    with subprocess.Popen(spin) as other:
        try:
            time.sleep(0.3)
            busy = cpu_runs.busy_cores()
        finally:
            other.kill()
    assert busy > 0.4
    cpu_runs.warn_if_busy({"busy_cores": busy})
    assert "cores busy: times will be too long" in capsys.readouterr().err
    cpu_runs.warn_if_busy({"busy_cores": 0.05})
    cpu_runs.warn_if_busy({"busy_cores": None})
    assert capsys.readouterr().err == ""


def test_facts():
    facts = cpu_runs.machine_facts()
    json.dumps(facts, allow_nan=False)
    assert facts.keys() >= {"cpu", "cores", "isas", "l1_bytes", "l2_bytes", "l3_bytes", "amx", "busy_cores"}
    assert cpu_runs.slug({"cpu": "AMD EPYC (9R14)", "cores": 2}) == "amd-epyc-9r14-2-cores"

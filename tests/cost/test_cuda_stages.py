"""The unattended run: stages are processes, recorded once, resumed, timed out and stopped, none of it on a GPU."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cuda_stages
import pytest
from cuda_stages import Runner, Stage, run_stages

BENCH = Path(cuda_stages.__file__).parent


def stage(name, script, budget=60, **options):
    return Stage(name, (sys.executable, "-c", script), budget, **options)


def counting(folder, name, then="pass"):
    """A stage that notes each of its runs."""
    return stage(name, f"open({str(folder / name)!r}, 'a').write('x'); {then}")


def runs(folder, name):
    path = folder / name
    return len(path.read_text()) if path.exists() else 0


WRITES = "import json, sys; json.dump({'rows': [{'m': 1}]}, open(sys.argv[sys.argv.index('--json') + 1], 'w'))"


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path / "out", "test-gpu", "sources-1")


def reopened(runner, sources="sources-1"):
    return Runner(runner.results_path.parent, "test-gpu", sources)


def test_a_finished_stage_is_not_run_again(runner, tmp_path):
    wanted = [counting(tmp_path, "a"), counting(tmp_path, "b")]
    assert run_stages(runner, wanted) == 0
    assert run_stages(reopened(runner), wanted) == 0
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (1, 1)
    assert run_stages(reopened(runner), wanted[:1], again=True) == 0
    assert (runs(tmp_path, "a"), runs(tmp_path, "b")) == (2, 1)


def test_other_sources_run_it_again(runner, tmp_path):
    wanted = [counting(tmp_path, "a")]
    run_stages(runner, wanted)
    changed = reopened(runner, "sources-2")
    assert "done, with other kernels" in cuda_stages.summary(changed)
    run_stages(changed, wanted)
    assert runs(tmp_path, "a") == 2
    assert "with other kernels" not in cuda_stages.summary(changed)


def test_the_build_finds_out_by_itself_what_changed(runner, tmp_path):
    wanted = [counting(tmp_path, "build")]
    run_stages(runner, wanted)
    run_stages(runner, wanted)
    assert runs(tmp_path, "build") == 2


def test_a_failing_stage_does_not_stop_the_others(runner, tmp_path, capsys):
    failing = stage("bad", "print('first'); raise SystemExit('no such thing')")
    assert run_stages(runner, [failing, counting(tmp_path, "good")]) == 1
    assert runs(tmp_path, "good") == 1
    record = json.loads(runner.records_path.read_text())["bad"]
    assert (record["status"], record["reason"]) == ("failed", "exit code 1: no such thing")
    assert "bad: failed in" in capsys.readouterr().out
    assert not reopened(runner).is_finished(failing)
    assert "first" in runner.log_path.read_text()


def test_a_command_that_is_not_there(runner):
    record = runner.run(Stage("bad", ("/nonexistent/program",), 10))
    assert record["status"] == "failed"
    assert "/nonexistent/program" in record["reason"]


def test_readings_become_part_of_the_results(runner):
    assert runner.run(stage("gemm", WRITES, result=True))["status"] == "done"
    written = json.loads(runner.results_path.read_text())
    assert written["gemm"] == {"rows": [{"m": 1}]}
    assert len(written["goals"]) == 8
    assert not list(runner.results_path.parent.glob("*.part"))
    assert reopened(runner).results["gemm"] == {"rows": [{"m": 1}]}


def test_readings_of_a_stage_that_fails_are_not_kept(runner):
    runner.run(stage("gemm", WRITES, result=True))
    assert runner.run(stage("gemm", f"{WRITES}; raise SystemExit(3)", result=True))["status"] == "failed"
    assert "gemm" not in json.loads(runner.results_path.read_text())
    record = runner.run(stage("conv", "print('nothing written')", result=True))
    assert record["status"] == "failed"
    assert record["reason"].startswith("left no readings")


def test_what_is_missing_skips_a_stage_with_its_reason(runner, tmp_path, capsys):
    wanted = [stage("sanitize", "raise SystemExit(1)", missing=lambda: "no sanitizer here")]
    assert run_stages(runner, wanted) == 0
    assert runner.records["sanitize"]["status"] == "skipped"
    assert "skipped in 0 s: no sanitizer here" in capsys.readouterr().out
    assert not runner.is_finished(wanted[0])


def test_a_stage_ends_with_its_budget_and_so_does_what_it_started(runner, tmp_path):
    pid = tmp_path / "pid"
    script = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    start = time.monotonic()
    record = runner.run(stage("slow", script, budget=3))
    assert time.monotonic() - start < 20
    assert (record["status"], record["reason"]) == ("failed", "not finished within 3 s")
    assert ended(int(pid.read_text()))


def ended(pid):
    """Gone, or dead and not yet collected."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_ctrl_c_keeps_what_is_finished(tmp_path):
    script = (
        "import sys\n"
        f"sys.path.append({str(BENCH)!r})\n"
        "from pathlib import Path\n"
        "from cuda_stages import Runner, Stage, run_stages\n"
        f"out = Path({str(tmp_path)!r})\n"
        "wanted = [Stage('a', (sys.executable, '-c', 'pass'), 60),\n"
        "          Stage('b', (sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'), 60)]\n"
        "sys.exit(run_stages(Runner(out, 'gpu', 's'), wanted))\n"
    )
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "gpu.log"
    for _ in range(200):
        if log.exists() and log.read_text().rstrip().endswith("\n1"):
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "stopped; the same command goes on from here" in err
    assert list(json.loads((tmp_path / "gpu.stages.json").read_text())) == ["a"]


def test_forgetting(runner, tmp_path):
    wanted = [counting(tmp_path, "a")]
    run_stages(runner, wanted)
    runner.forget()
    assert not runner.results_path.exists()
    run_stages(runner, wanted)
    assert runs(tmp_path, "a") == 2


# ---- the real stages ---------------------------------------------------------------


def test_every_stage_takes_less_than_ten_minutes_and_has_its_script():
    found = cuda_stages.stages()
    names = [stage.name for stage in found]
    assert len(names) == len(set(names))
    assert names[:2] == ["build", "doctor"]
    for stage in found:
        assert stage.budget + 10 < 600
        scripts = [word for word in stage.command if word.endswith(".py")]
        assert scripts
        assert all((cuda_stages.ROOT / script).is_file() for script in scripts)
    shapes = [stage for stage in found if stage.name.startswith("shapes")]
    assert sum(int(stage.command[2].partition("=")[2]) for stage in shapes) == 100_000
    assert len({stage.command[3] for stage in shapes}) == len(shapes)


def test_choosing_stages():
    assert [stage.name for stage in cuda_stages.chosen("gemm")] == ["gemm"]
    assert [stage.name for stage in cuda_stages.chosen("sanitize-racecheck")] == ["sanitize-racecheck"]
    assert len(cuda_stages.chosen("sanitize")) == 4
    assert len(cuda_stages.chosen(None)) == len(cuda_stages.stages())
    with pytest.raises(ValueError, match="--stage 'gem': stages are build, doctor"):
        cuda_stages.chosen("gem")


def test_the_sources_of_the_kernels_have_an_id(tmp_path):
    for name in ("CMakeLists.txt", "csrc/kernels/a.cu", "csrc/ops/b.cpp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = cuda_stages.sources_id(tmp_path)
    assert cuda_stages.sources_id(tmp_path) == first
    (tmp_path / "csrc/kernels/a.cu").write_text("changed")
    assert cuda_stages.sources_id(tmp_path) != first


def test_without_a_gpu_one_line_says_so(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for script in (["cuda_stages.py", "--out", str(tmp_path / "out")], ["bench_cuda.py", "gemm"]):
        command = [sys.executable, str(BENCH / script[0]), *script[1:]]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.count("\n") == 1
        assert "no usable GPU here: " in done.stderr
    assert not (tmp_path / "out").exists()

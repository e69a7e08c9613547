"""Workers: a task that dies costs its own result only, and no process is left behind."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitnas.search import Failure, WorkerPool
from tests.search import fake


def alive(pid):
    """True if the process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_every_way_to_fail_is_a_failure_with_a_reason_and_the_pool_stays_healthy():
    with WorkerPool(2, timeout=3.0) as pool:
        start = time.monotonic()
        outcome = {index: result for index, result, _ in pool.run(fake.unruly, [((float(i),),) for i in range(9)])}
        assert time.monotonic() - start < 20
        assert outcome[0] == {"accuracy": 0.5, "ops": 0.0}
        assert outcome[1] == Failure("its process was ended by SIGKILL (attempt 2)")
        assert outcome[2] == Failure("killed after the time limit of 3 s")
        assert outcome[3] == Failure("ValueError: no such width")
        assert outcome[4] == Failure("MemoryError")
        assert outcome[6] == [1, 2]
        assert outcome[7] == Failure("its process ended early (exit code 3)")
        assert outcome[8] == {"accuracy": 0.5, "ops": 8.0}
        again = [result for _, result, _ in pool.run(fake.score, [((1.0,) * 4,)] * 4)]
        assert again == [fake.score((1.0,) * 4)] * 4


def test_initialiser_runs_in_each_worker_and_not_here():
    with WorkerPool(2, initializer=fake.initialise, initializer_arguments=("yes",)) as pool:
        assert {result for _, result, _ in pool.run(fake.read_initialised, [()] * 6)} == {"yes"}
    assert fake.read_initialised() is None


def test_stop_leaves_no_process_and_a_later_run_starts_anew():
    with WorkerPool(2) as pool:
        before = {pid for _, pid, _ in pool.run(fake.worker_pid, [()] * 6)}
        pool.stop()
        assert not any(alive(pid) for pid in before)
        after = {pid for _, pid, _ in pool.run(fake.worker_pid, [()] * 2)}
        assert after.isdisjoint(before)


def test_in_process_mode():
    with WorkerPool(0) as pool:
        outcome = [result for _, result, _ in pool.run(fake.unruly, [((3.0,),), ((0.0,),), ((4.0,),)])]
        assert outcome == [Failure("ValueError: no such width"), {"accuracy": 0.5, "ops": 0.0}, Failure("MemoryError")]
        assert next(pool.run(fake.worker_pid, [()]))[1] == os.getpid()
        with pytest.raises(KeyboardInterrupt):
            list(pool.run(fake.interrupted, [((1.0,),)]))


def test_bad_arguments_are_named():
    for workers in (-1, 1.5, True):
        with pytest.raises(ValueError, match="workers"):
            WorkerPool(workers)
    with pytest.raises(ValueError, match="timeout"):
        WorkerPool(1, timeout=0)


SCRIPT = """
import sys
from bitnas.search import WorkerPool
from tests.search import fake
if __name__ == "__main__":
    with WorkerPool(2) as pool:
        for _, pid, _ in pool.run(fake.worker_pid, [()] * 4):
            print(pid, flush=True)
        print("ready", flush=True)
        list(pool.run(fake.unruly, [((2.0,),)] * 2))
"""


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_workers_end_with_their_parent(tmp_path, name):
    import signal

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout is not None
    lines = []
    while not lines or lines[-1] != "ready":
        lines.append(process.stdout.readline().strip())
        assert lines[-1], "the script ended"
    pids = {int(line) for line in lines[:-1]}
    time.sleep(0.3)
    process.send_signal(getattr(signal, name))
    process.wait(timeout=15)
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in pids)


def test_script_without_main_guard_is_told_so(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from bitnas.search import WorkerPool\nfrom tests.search import fake\n"
        "print(list(WorkerPool(1).run(fake.worker_pid, [()])))\n"
    )
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert run.returncode != 0
    assert "if __name__ == '__main__'" in run.stderr.splitlines()[-1]

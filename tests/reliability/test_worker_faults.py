"""Every fault in every generation: the search ends, says why each candidate failed, and leaves nothing behind."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bitnas.search import Failure, Journal, Objective, Stage, WorkerPool, WorkersUnavailable, run_search
from bitnas.search.journal import read_journal
from tests.reliability import faults
from tests.reliability.processes import children, gone_within

ROOT = Path(__file__).parents[2]
OBJECTIVES = [Objective("accuracy", maximize=True), Objective("ops")]


class Fixed:
    """Asks for the given faults and two good candidates in each generation; refuses to be told a NaN."""

    def __init__(self, kinds):
        self.kinds, self.generation, self.told = kinds, 0, []

    def ask(self):
        self.generation += 1
        good = [(faults.GOOD, float(self.generation), ratio) for ratio in (1.0, 2.0)]
        return [(kind, float(self.generation), 0.0) for kind in self.kinds] + good

    def tell(self, genomes, losses, *_):
        for genome, loss in zip(genomes, losses, strict=True):
            assert not any(math.isnan(value) for value in loss), genome
            wrong = genome[0] != faults.GOOD and faults.FAULTS[genome[0]][1] is not None
            assert all(math.isinf(value) for value in loss) == wrong, (genome, loss)  # inf is how a failure is told
            assert not any(value == -math.inf for value in loss)
            self.told.append(genome)


def search(folder, kinds, generations, **options):
    strategy = Fixed(kinds)
    stage = Stage("evaluate", faults.evaluate, (str(folder),))
    with (
        Journal(folder / "journal.sqlite", meta={}) as journal,
        WorkerPool(2, timeout=faults.TIME_LIMIT, memory_limit=faults.MEMORY_LIMIT, **options) as pool,
    ):
        result = run_search(strategy, [stage], OBJECTIVES, journal, generations=generations, pool=pool)
        pids = {pid for _, pid, _ in pool.run(faults.pid, [()] * 4)}
        assert pids  # still healthy after all that
    assert gone_within(pids, 0)
    assert len(strategy.told) == generations * (len(kinds) + 2)
    return result


def check(folder, kinds, generations):
    before = {pid for pid, _ in children()}
    result = search(folder, kinds, generations)
    records = read_journal(folder / "journal.sqlite")[1]
    assert len(records) == generations * (len(kinds) + 2)
    for record in records:
        reason = None if record.genome[0] == faults.GOOD else faults.FAULTS[record.genome[0]][1]
        assert record.ok == (reason is None), record
        assert reason is None or reason in record.reason, record
        if reason and "time limit" in reason:
            assert faults.TIME_LIMIT <= record.seconds < faults.TIME_LIMIT + 2
    assert result.front
    assert all(candidate.status == "ok" for candidate in result.front)
    left = [(pid, state) for pid, state in children() if pid not in before]
    assert [entry for entry in left if entry[1] == "Z"] == []
    tracker = [pid for pid, _ in left if b"resource_tracker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert {pid for pid, _ in left} == set(tracker)  # Python's own, one for the life of this process
    started = [int(path.name.partition("-")[2]) for path in folder.glob("child-*")]
    assert gone_within(started, 2)  # what the candidates started is gone with them
    return len(started)


def test_every_fault_once(tmp_path):
    assert check(tmp_path, list(faults.FAULTS), 1) == 1


@pytest.mark.slow
def test_every_fault_in_each_of_ten_generations(tmp_path, capfd):
    assert check(tmp_path, list(faults.FAULTS), 10) == 10
    captured = capfd.readouterr()
    assert len(captured.out + captured.err) < 1000  # the floods of 80 MB stay off the terminal


def test_killed_from_outside_is_run_again_and_the_result_is_the_same(tmp_path):
    tasks = [(str(tmp_path / f"marker{index}"), index) for index in range(6)]
    with WorkerPool(2) as pool:
        assert sorted(result for _, result, _ in pool.run(faults.once_killed, tasks)) == list(range(6))
    with WorkerPool(2, retries=0) as pool:
        (tmp_path / "marker0").unlink()
        outcome = {index: result for index, result, _ in pool.run(faults.once_killed, tasks[:2])}
        assert outcome == {0: Failure("its process was ended by SIGKILL"), 1: 1}


def test_idle_workers_that_are_killed_are_replaced():
    with WorkerPool(2) as pool:
        for _ in range(3):
            for _, pid, _ in list(pool.run(faults.pid, [()] * 2)):
                os.kill(pid, signal.SIGKILL)
        assert len(list(pool.run(faults.pid, [()] * 4))) == 4


def test_workers_killed_at_random_moments_lose_nothing(tmp_path):
    """An operator who kills whatever worker he sees, for as long as the work takes; retries are plenty."""
    with WorkerPool(2, retries=1000) as pool:
        done = threading.Event()
        kills = 0

        def operator():
            nonlocal kills
            while not done.wait(0.4):
                for pid, _ in children():
                    command = Path(f"/proc/{pid}/cmdline").read_bytes()
                    if b"spawn_main" in command:
                        os.kill(pid, signal.SIGKILL)
                        kills += 1
                        break

        thread = threading.Thread(target=operator)
        list(pool.run(faults.pid, [()]))
        thread.start()
        try:
            found = sorted(index for index, result, _ in pool.run(faults.sleepy_pid, [(0.05,)] * 60) if result > 0)
        finally:
            done.set()
            thread.join()
    assert found == list(range(60))
    assert kills >= 3


def test_initializer_that_fails_sometimes_and_always(tmp_path):
    flag = tmp_path / "flag"
    with WorkerPool(1, initializer=faults.limited_initializer, initializer_arguments=(str(flag),)) as pool:
        for _ in range(3):
            flag.touch()
            assert len(list(pool.run(faults.pid, [()]))) == 1
            pool.stop()
    for initializer, reason in (
        (faults.failing_initializer, "RuntimeError: no device"),
        (faults.crashing_initializer, "SIGSEGV"),
    ):
        with WorkerPool(2, initializer=initializer) as pool, pytest.raises(WorkersUnavailable, match=reason):
            list(pool.run(faults.pid, [()] * 4))


def test_output_goes_to_a_log_of_bounded_size(tmp_path, capfd):
    log = tmp_path / "workers.log"
    with WorkerPool(1, log=log) as pool:
        for _ in range(20):
            assert next(pool.run(faults.flood, [("",)]))[1] == {"accuracy": 0.5, "ops": 2.0}
    assert 0 < log.stat().st_size <= 1 << 20
    assert log.read_bytes().startswith(b"---- task 0, attempt 1, ")
    assert (tmp_path / "workers.log.1").stat().st_size <= 1 << 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["workers.log", "workers.log.1"]
    assert capfd.readouterr() == ("", "")


def test_no_core_files_and_bad_options():
    with WorkerPool(1) as pool:
        assert next(pool.run(faults.core_limit, [()]))[1] == 0
        outcome = [result for _, result, _ in pool.run(lambda: 1, [()])]
        assert "cannot be sent to a worker" in outcome[0].reason
        assert len(list(pool.run(faults.pid, [()]))) == 1
    for name, value in (("memory_limit", 0), ("retries", -1), ("retries", 0.5), ("timeout", -1)):
        with pytest.raises(ValueError, match=name):
            WorkerPool(1, **{name: value})


SCRIPT = """
import sys
from bitnas.search import WorkerPool
from tests.reliability import faults
if __name__ == "__main__":
    with WorkerPool(1) as pool:
        print(next(pool.run(faults.pid, [()]))[1], flush=True)
        list(pool.run(faults.stubborn_hang, [(sys.argv[1],)]))
"""


def test_a_killed_parent_takes_hanging_workers_and_their_children_along(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    with process:
        worker = int(process.stdout.readline())
        deadline = time.monotonic() + 20
        while not (started := list(tmp_path.glob("child-*"))) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)
        process.kill()
    child = int(started[0].name.partition("-")[2])
    assert gone_within([worker, child], 5)

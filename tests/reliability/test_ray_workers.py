"""A cluster of two nodes made of processes: the same front as on one machine, also when a node dies on the way."""

import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from bitnas.search import (
    Evolution,
    Failure,
    Journal,
    Objective,
    Stage,
    WidthSpace,
    WorkerPool,
    WorkersUnavailable,
    run_search,
)
from bitnas.search.workers import open_workers
from tests.reliability import faults
from tests.reliability.small_search import META, evaluate


def test_a_spec_names_a_pool():
    pool = open_workers("3", timeout=2.0)
    assert isinstance(pool, WorkerPool)
    assert (pool.workers, pool.timeout) == (3, 2.0)
    for spec in ("rays", "", None, "ray://", "host:", "host:x", "host:99999"):
        with pytest.raises((ValueError, WorkersUnavailable), match="workers"):
            open_workers(spec)


def test_without_ray_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkersUnavailable, match=r"pip install 'bitnas\[ray\]'"):
        open_workers("ray")


def test_shared_files_are_the_folder_itself_on_one_machine(tmp_path):
    (tmp_path / "parent").write_bytes(b"weights")
    assert WorkerPool(1).share_files(tmp_path, ["parent"]) == str(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file to share"):
        WorkerPool(1).share_files(tmp_path, ["other"])


def test_an_address_without_a_cluster_is_refused_at_once():
    pytest.importorskip("ray", reason="the extra bitnas[ray] is not installed")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
        start = time.monotonic()
        with pytest.raises(WorkersUnavailable, match="no Ray cluster answers there"):
            open_workers(address)
        assert time.monotonic() - start < 20


@pytest.fixture
def cluster(monkeypatch):
    pytest.importorskip("ray", reason="the extra bitnas[ray] is not installed")
    from ray.cluster_utils import Cluster

    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("PYTHONPATH", str(Path(__file__).parents[2]))):
        monkeypatch.setenv(name, value)
    memory = {"object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    cluster.workers = [cluster.add_node(num_cpus=1, **memory) for _ in range(2)]
    yield cluster
    cluster.shutdown()


def search(folder, pool, pause, on_progress=None):
    folder.mkdir()
    strategy = Evolution(WidthSpace((0.25, 0.5, 1.0, 2.0), 4), population=8, seed=3)
    stage = Stage("evaluate", evaluate, (str(folder / "log"), pause))
    objectives = [Objective("fitness", maximize=True), Objective("ops")]
    with Journal(folder / "journal.sqlite", meta=META) as journal, pool:
        result = run_search(strategy, [stage], objectives, journal, generations=5, pool=pool, on_progress=on_progress)
        records = sorted((r.key, r.status, r.reason, tuple(r.metrics.items())) for r in journal.records())
    return [(c.genome, c.metrics) for c in result.front], records


@pytest.mark.slow
def test_on_a_cluster_as_on_one_machine_and_with_a_node_lost(tmp_path, cluster):
    expected = search(tmp_path / "here", WorkerPool(0), 0.0)
    assert search(tmp_path / "cluster", open_workers(cluster.address), 0.2) == expected
    done, lost_at = 0, []

    def lose_a_node(event):
        nonlocal done
        done += event["event"] == "evaluated"
        if done == 12 and not lost_at:
            lost_at.append(done)
            threading.Timer(0.1, cluster.remove_node, (cluster.workers[0],), {"allow_graceful": False}).start()

    assert search(tmp_path / "lossy", open_workers(cluster.address), 0.2, lose_a_node) == expected
    assert lost_at == [12]
    calls = (tmp_path / "lossy/log").read_text().splitlines()
    assert len(set(calls)) == 40
    assert len(calls) <= 42  # what ran on the lost node, again; the journal has it once


@pytest.mark.slow
def test_limits_faults_and_shared_files_on_a_cluster(tmp_path, cluster):
    (tmp_path / "parent.bin").write_text("weights")
    options = {"timeout": 4.0, "memory_limit": faults.MEMORY_LIMIT}
    with open_workers(cluster.address, **options) as pool:
        shared = pool.share_files(tmp_path, ["parent.bin"])
        for _, (folder, text), _ in pool.run(faults.read_shared, [(shared, "parent.bin")] * 4):
            assert folder != str(tmp_path)
            assert text == "weights"
        kinds = [1.0, 4.0, 5.0, 6.0, 9.0, 16.0, 18.0, 19.0]
        start = time.monotonic()
        outcome = {i: r for i, r, _ in pool.run(faults.evaluate, [((kind,), str(tmp_path)) for kind in kinds])}
        assert time.monotonic() - start < 40
        for index, kind in enumerate(kinds):
            reason = faults.FAULTS[kind][1]
            assert reason is None or isinstance(outcome[index], Failure), outcome[index]
            assert reason is None or reason in outcome[index].reason
        assert all(pid != os.getpid() for _, pid, _ in pool.run(faults.pid, [()] * 4))
    with (
        open_workers(cluster.address, initializer=faults.failing_initializer) as pool,
        pytest.raises(WorkersUnavailable, match="RuntimeError: no device"),
    ):
        list(pool.run(faults.pid, [()]))

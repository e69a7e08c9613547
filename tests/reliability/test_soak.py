"""A long search costs no more at its end than at its start."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def soak(folder, *arguments):
    run = subprocess.run(
        [sys.executable, "-m", "tests.reliability.soak", str(folder), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    print(found)
    assert found["descriptors"][0] == found["descriptors"][1]
    return found


def test_four_hundred_evaluations_in_workers(tmp_path):
    assert soak(tmp_path, 20, 20, 1)["evaluations"] == 400


@pytest.mark.slow
def test_ten_thousand_evaluations(tmp_path):
    found = soak(tmp_path, 50, 200, 0)
    assert found["evaluations"] == 10_000
    before, after = found["rss_mib"]
    # The search keeps its candidates for the front: a known, bounded cost of each, and nothing that leaks.
    assert (after - before) * 2**20 / 10_000 < 1600
    assert found["reopen_seconds"] < 1

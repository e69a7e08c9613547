"""Runs small searches and kills each at random moments, again and again, until it ends by itself. Prints what it did.

A script of its own: its process imports the search once and forks each life from there, in a few milliseconds, which
a process that has started torch's threads must not do.
"""

import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from bitnas.search.journal import read_journal
from tests.reliability.small_search import search


def life(folder, workers, pause, until):
    """One process that goes on with the search, killed after `until` seconds; True if it ended before that."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            search(folder, pause=pause, workers=workers)
            code = 0
        finally:
            os._exit(code)
    deadline = time.monotonic() + until
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            assert status == 0, f"a life ended with status {status}"
            return True
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1] == 0


def contents(folder):
    meta, records = read_journal(folder / "journal.sqlite")
    return meta, [(r.key, r.genome, r.status, r.reason, dict(r.metrics), r.generation, r.stage) for r in records]


def main(base, kills_wanted, workers, pause, mean):
    base, rng = Path(base), random.Random(11)
    whole = base / "whole"
    whole.mkdir()
    search(whole)
    expected, front = contents(whole), (whole / "front.json").read_bytes()
    kills = searches = repeated = worst = 0
    while kills < kills_wanted:
        folder = base / f"broken{searches}"
        folder.mkdir()
        died = 0
        while not life(folder, workers, pause, rng.expovariate(1 / mean)):
            died += 1
        meta, rows = contents(folder)
        assert (meta, sorted(rows, key=repr)) == (expected[0], sorted(expected[1], key=repr))
        assert workers or rows == expected[1]  # one by one the order is the same too
        assert (folder / "front.json").read_bytes() == front
        counted = Counter((folder / "log").read_text().splitlines())
        assert len(counted) == len(rows)
        lost = counted.total() - len(rows)
        assert lost <= died * max(1, workers), f"{lost} evaluations lost in {died} kills"
        kills, searches, repeated = kills + died, searches + 1, repeated + lost
        worst = max(worst, died)
    print(json.dumps({"kills": kills, "searches": searches, "lost": repeated, "rows": searches * len(expected[1])}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5]))

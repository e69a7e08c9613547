"""Many cheap evaluations in one search, in a process that has loaded torch as a real one has. Prints what it took."""

import json
import os
import sys
import time
from pathlib import Path

import torch  # noqa: F401  (its memory is part of what a search process holds)

from bitnas.search import Evolution, Journal, Objective, Stage, WidthSpace, WorkerPool, run_search
from bitnas.search.journal import read_journal
from tests.reliability.small_search import META, evaluate_six


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(folder, generations, population, workers):
    folder = Path(folder)
    seen = []

    def watch(event):
        if event["event"] == "generation_end":
            seen.append((resident(), len(os.listdir("/proc/self/fd"))))

    strategy = Evolution(WidthSpace(length=6), population=population, seed=1)
    start = time.perf_counter()
    with Journal(folder / "journal.sqlite", meta=META) as journal, WorkerPool(workers, timeout=60.0) as pool:
        run_search(
            strategy,
            [Stage("evaluate", evaluate_six)],
            [Objective("fitness", maximize=True)],
            journal,
            generations=generations,
            pool=pool,
            on_progress=watch,
        )
        rows = len(journal)
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    Journal(folder / "journal.sqlite", meta=META).close()
    reopen = time.perf_counter() - start
    assert len(read_journal(folder / "journal.sqlite")[1]) == rows
    first, last = seen[max(1, len(seen) // 20)], seen[-1]
    print(
        json.dumps(
            {
                "evaluations": rows,
                "seconds": round(seconds, 1),
                "reopen_seconds": round(reopen, 3),
                "rss_mib": [round(first[0] / 2**20, 1), round(last[0] / 2**20, 1)],
                "rss_growth": round(last[0] / first[0] - 1, 4),
                "descriptors": [first[1], last[1]],
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))

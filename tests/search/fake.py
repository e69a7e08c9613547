"""Importable evaluations that need no training: what workers are given in the tests. As a script, a whole search."""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path


def score(genome, delay=0.0):
    """A smooth, known trade of accuracy and cost."""
    time.sleep(delay)
    cost = sum(ratio * weight for ratio, weight in zip(genome, (1, 3, 2, 5), strict=True))
    gain = sum(math.sqrt(ratio) * weight for ratio, weight in zip(genome, (5, 4, 3, 2), strict=True))
    return {"ops": cost, "accuracy": gain / 30}


def timed(genome, log=""):
    """A made-up latency; each call leaves a line in `log`, so a second measurement of anything shows."""
    if log:
        with open(log, "a") as file:
            file.write(json.dumps(genome) + "\n")
    return {"latency_us": 10 + sum(genome)}


def unruly(genome):
    """Every way to fail, chosen by the first ratio."""
    match genome[0]:
        case 1.0:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2.0:
            time.sleep(60)
        case 3.0:
            raise ValueError("no such\nwidth")
        case 4.0:
            raise MemoryError
        case 5.0:
            return {"accuracy": math.nan, "ops": 1.0}
        case 6.0:
            return [1, 2]
        case 7.0:
            os._exit(3)
        case 8.0:
            print("x" * 1_000_000)
    return {"accuracy": 0.5, "ops": genome[0]}


def worker_pid(*_):
    return os.getpid()


def interrupted(genome):
    raise KeyboardInterrupt


def initialise(name):
    os.environ["BITNAS_TEST_WORKER"] = name


def read_initialised():
    return os.environ.get("BITNAS_TEST_WORKER")


def search(folder, *, delay=0.0, workers=0, log="", on_progress=None):
    """A small search in `folder` that ends with front.json there."""
    from bitnas.files import write_json_atomic
    from bitnas.search import NSGA2, Journal, Objective, Stage, WidthSpace, WorkerPool, run_search

    space = WidthSpace((0.25, 0.5, 1.0, 2.0, 3.0, 4.0), 4)
    objectives = [Objective("accuracy", maximize=True), Objective("ops"), Objective("latency_us")]
    stages = [Stage("train", score, (delay,)), Stage("latency", timed, (log,), parallel=False)]
    folder = Path(folder)
    with Journal(folder / "journal.sqlite", meta={"seed": 1}) as journal, WorkerPool(workers) as pool:
        strategy = NSGA2(space, objectives=3, population=10, seed=1)
        result = run_search(strategy, stages, objectives, journal, generations=6, pool=pool, on_progress=on_progress)
        rows = [{"ratios": c.genome, "key": c.key, "seconds_known": c.seconds >= 0, **c.metrics} for c in result.front]
        write_json_atomic(folder / "front.json", rows)
        return result


if __name__ == "__main__":

    def tell_fresh(event):
        if event["event"] == "evaluated" and not event["replayed"]:
            print("fresh", flush=True)

    search(sys.argv[1], delay=0.01, workers=int(sys.argv[2]), log=sys.argv[3], on_progress=tell_fresh)

"""A whole search of cheap evaluations, run as a script so that it can be killed. Imports nothing heavy."""

import math
import sys
import time
from pathlib import Path

from bitnas.files import write_json_checked
from bitnas.search import Evolution, Journal, Objective, Stage, WidthSpace, WorkerPool, run_search

META = {"seed": 3}
OBJECTIVES = [Objective("fitness", maximize=True), Objective("ops")]


def evaluate(genome, log, pause):
    """A line in `log` for each call: one too many shows as work that was lost."""
    with open(log, "a") as file:
        file.write(f"{genome}\n")
    time.sleep(pause)
    cost = sum(ratio * weight for ratio, weight in zip(genome, (1, 3, 2, 5), strict=True))
    gain = sum(math.sqrt(ratio) * weight for ratio, weight in zip(genome, (5, 4, 3, 2), strict=True))
    return {"fitness": gain / cost, "ops": cost, "accuracy": gain / 30}


def evaluate_six(genome):
    """The like for codes of six ratios; does nothing else."""
    gain = sum(math.sqrt(ratio) * (index + 1) for index, ratio in enumerate(genome))
    return {"fitness": gain / sum(genome), "ops": sum(genome), "accuracy": gain / 42, "memory_bits": 1e6 * genome[0]}


def search(folder, *, generations=20, population=20, pause=0.0, workers=0, on_progress=None):
    """Leaves journal.sqlite and front.json in `folder`."""
    folder = Path(folder)
    stage = Stage("evaluate", evaluate, (str(folder / "log"), pause))
    strategy = Evolution(WidthSpace((0.25, 0.5, 1.0, 2.0, 3.0, 4.0), 4), population=population, seed=3)
    with Journal(folder / "journal.sqlite", meta=META) as journal, WorkerPool(workers) as pool:
        result = run_search(
            strategy, [stage], OBJECTIVES, journal, generations=generations, pool=pool, on_progress=on_progress
        )
    write_json_checked(folder / "front.json", [{"genome": list(c.genome), **c.metrics} for c in result.front])
    return result


if __name__ == "__main__":
    search(sys.argv[1], pause=float(sys.argv[2]), workers=int(sys.argv[3]))

"""Subnets that are judged in every bad way: the place of a genome in its generation says which. For workers."""

import os
import signal
import time
from pathlib import Path


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def hangs():
    time.sleep(600)


def takes_all_memory():
    kept = []
    while True:
        kept.append(bytearray(100 << 20))


FAULTS = {
    2: (killed, "its process was ended by SIGKILL (attempt 2)"),
    3: (hangs, "killed after the time limit of 20 s"),
    4: (takes_all_memory, "MemoryError"),
}


def judge(genome, settings, run_dir):
    """The fault of this genome, or its real accuracy."""
    from bitnas.methods.nasbnn import evaluate

    places = (Path(run_dir) / "places.txt").read_text().splitlines()
    place = places.index(repr(list(genome))) if repr(list(genome)) in places else len(places)
    if place in FAULTS:
        FAULTS[place][0]()
    return evaluate.evaluate_candidate(genome, settings, run_dir)

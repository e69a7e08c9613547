"""Evaluations that fail in every way we could think of. The genome's first ratio says which; importable by workers."""

import ctypes
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

GOOD = 0.0


class OddError(Exception):
    """Cannot be rebuilt from its message: unpickling it raises."""

    def __init__(self, one, two):
        super().__init__("odd")


class Unreadable(Exception):
    def __str__(self):
        raise RuntimeError("no message")


def killed(folder):
    os.kill(os.getpid(), signal.SIGKILL)


def segfault(folder):
    ctypes.string_at(0)


def aborted(folder):
    os.write(2, b"terminate called after throwing an instance of 'std::bad_alloc'\n")
    os.abort()


def hang(folder):
    time.sleep(600)


def stubborn_hang(folder):
    """In C, holding the interpreter, deaf to SIGTERM, with a child of the same kind."""
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", child])
    (Path(folder) / f"child-{process.pid}").touch()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.PyDLL(None).sleep(600)


def raises(folder):
    raise ValueError("no such\nwidth")


def raises_odd(folder):
    raise OddError(1, 2)


def raises_unreadable(folder):
    raise Unreadable


def out_of_memory(folder):
    kept = []
    while True:
        kept.append(bytearray(100 << 20))


def not_a_number(folder):
    return {"accuracy": math.nan, "ops": 1.0}


def infinite(folder):
    return {"accuracy": 0.5, "ops": math.inf}


def wrong_type(folder):
    return [1, 2]


def nested(folder):
    value = {}
    for _ in range(50_000):
        value = {"deeper": value}
    return value


def text(folder):
    return {"accuracy": "high", "ops": 1.0}


def array(folder):
    return {"accuracy": [0.5, 0.6], "ops": 1.0}


def huge(folder):
    return {"accuracy": 0.5, "ops": "x" * 100_000_000}


def unpicklable(folder):
    return {"accuracy": lambda: 0.5, "ops": 1.0}


def flood(folder):
    for _ in range(64):
        os.write(1, b"out " * 16_384)
        sys.stderr.write("err " * 16_384)
    return {"accuracy": 0.5, "ops": 2.0}


def exits(folder):
    os._exit(0)


def exits_politely(folder):
    sys.exit(0)


def closes_everything(folder):
    os.closerange(0, 1000)
    time.sleep(600)


def forks(folder):
    os.fork()
    return {"accuracy": 0.5, "ops": 3.0}


TIME_LIMIT = 4.0
MEMORY_LIMIT = 350 << 20
# What each does, and what the record of it says; None where the candidate succeeds all the same.
FAULTS = {
    1.0: (killed, "its process was ended by SIGKILL (attempt 2)"),
    2.0: (segfault, "its process was ended by SIGSEGV (attempt 2)"),
    3.0: (aborted, "its process was ended by SIGABRT: terminate called after throwing an instance of 'std::bad_alloc'"),
    4.0: (hang, "killed after the time limit of 4 s"),
    5.0: (stubborn_hang, "killed after the time limit of 4 s"),
    6.0: (raises, "ValueError: no such width"),
    7.0: (raises_odd, "OddError: odd"),
    8.0: (raises_unreadable, "Unreadable"),
    9.0: (out_of_memory, "MemoryError"),
    10.0: (not_a_number, "metric 'accuracy' is not finite: nan"),
    11.0: (infinite, "metric 'ops' is not finite: inf"),
    12.0: (wrong_type, "returned list, not a dict of numbers"),
    13.0: (nested, "returned dict that is not JSON (RecursionError"),
    14.0: (text, "metric 'accuracy' is 'high', which is no number"),
    15.0: (array, "metric 'accuracy' is [0.5, 0.6], which is no number"),
    16.0: (huge, "bytes of JSON, more than"),
    17.0: (unpicklable, "returned dict that is not JSON (TypeError: function is no number)"),
    18.0: (flood, None),
    19.0: (exits, "its process ended early (exit code 0)"),
    20.0: (exits_politely, "SystemExit: 0"),
    21.0: (closes_everything, "it broke the connection to its parent"),
    22.0: (forks, None),
}


def evaluate(genome, folder):
    """The fault of the first ratio, or a smooth trade of accuracy and operations."""
    if genome[0] != GOOD:
        found = FAULTS[genome[0]][0](folder)
        if found is not None:
            return found
    return {"accuracy": 1 - 1 / (1 + sum(genome[1:])), "ops": sum(genome[1:])}


def limited_initializer(counter):
    """Fails at the first start of each generation: when the counter's file is there."""
    try:
        Path(counter).unlink()
    except FileNotFoundError:
        return
    raise RuntimeError("no device")


def failing_initializer():
    raise RuntimeError("no device")


def crashing_initializer():
    os.kill(os.getpid(), signal.SIGSEGV)


def pid(*_):
    return os.getpid()


def sleepy_pid(seconds):
    time.sleep(seconds)
    return os.getpid()


def once_killed(marker, value):
    """Killed the first time, as by the kernel out of memory; fine the second."""
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return value
    os.kill(os.getpid(), signal.SIGKILL)


def core_limit():
    return resource.getrlimit(resource.RLIMIT_CORE)[0]


def read_shared(folder, name):
    return [str(folder), (Path(folder) / name).read_text()]

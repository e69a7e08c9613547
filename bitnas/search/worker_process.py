"""The inside of a worker process.

A worker leads a session of its own, so that one kill ends it with all it started. Its output goes to a pipe, its
results go back as JSON: the parent reads both without ever waiting for a worker, and unpickles nothing that a candidate
made.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

RESULT_LIMIT = 1 << 20  # bytes of JSON; a flat dict of numbers takes some hundreds


@dataclass(frozen=True)
class Setup:
    """What a worker does before its first task: limit its memory (bytes, None for no limit), call `initializer`."""

    initializer: Callable[..., None] | None = None
    arguments: tuple[Any, ...] = ()
    memory_limit: int | None = None


def serve(tasks: Connection, results: Connection, output: Connection, setup: Setup) -> None:
    """Run tasks until there are no more: the body of a worker process.

    Args:
        tasks: gives (function, arguments) pairs; its end is the worker's end.
        results: takes one JSON line per event: {"ready"}, {"result"} or {"failure"} with "seconds", {"broken"} when the
            setup failed.
        output: takes what this process and its children print.
    """
    try:
        _leave_the_terminal(output)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if setup.memory_limit is not None:
            # What can be written to, not the whole address space: shared libraries and the ranges that a GPU driver
            # reserves are no memory yet.
            resource.setrlimit(resource.RLIMIT_DATA, (setup.memory_limit, resource.RLIM_INFINITY))
        if setup.initializer is not None:
            setup.initializer(*setup.arguments)
    except BaseException as error:
        _send(results, {"broken": describe(error)})
        os._exit(1)
    _send(results, {"ready": True})
    own = os.getpid()
    while True:
        try:
            function, arguments = tasks.recv()
        except (EOFError, ConnectionError):
            os._exit(0)
        except BaseException as error:  # named something that this process cannot import, say
            _send(results, {"failure": describe(error), "seconds": 0.0})
            continue
        answer = run_task(function, arguments)
        if os.getpid() != own:  # the candidate forked and its child came back here
            os._exit(0)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        _send(results, answer)


def run_task(function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    """{"result" or "failure", "seconds"} of one call, in what JSON can carry; never raises."""
    start = time.perf_counter()
    try:
        result = function(*arguments)
    except BaseException as error:
        return {"failure": describe(error), "seconds": time.perf_counter() - start}
    seconds = time.perf_counter() - start
    try:
        text = json.dumps(result, default=_plain)
    except BaseException as error:
        return {"failure": f"returned {type(result).__name__} that is not JSON ({describe(error)})", "seconds": seconds}
    if len(text) > RESULT_LIMIT:
        return {"failure": f"returned {len(text)} bytes of JSON, more than {RESULT_LIMIT}", "seconds": seconds}
    return {"result": text, "seconds": seconds}


def describe(error: BaseException) -> str:
    """An exception in one line of at most 500 characters: its class and message."""
    try:
        message = " ".join(str(error).split())
    except Exception:
        message = ""
    return f"{type(error).__name__}: {message}"[:500] if message else type(error).__name__


def _plain(value: Any) -> Any:
    """Scalars of numpy and torch, which know how to become Python's."""
    shape = getattr(value, "shape", None)
    if shape is None or len(shape):
        raise TypeError(f"{type(value).__name__} is no number")
    return value.item()


def _send(results: Connection, event: dict[str, Any]) -> None:
    data = json.dumps(event).encode() + b"\n"
    try:
        while data:
            data = data[os.write(results.fileno(), data) :]
    except OSError:  # nobody listens any more
        os._exit(1)


def _leave_the_terminal(output: Connection) -> None:
    with contextlib.suppress(PermissionError):  # already a leader
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it stops the workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    # New streams, flushed with each line: else the last words before a crash stay in a buffer.
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow_parent() -> None:
            parent.join()
            if os.getppid() != parent.pid:  # equal if the candidate closed what join waits on
                os.killpg(0, signal.SIGKILL)

        threading.Thread(target=follow_parent, daemon=True).start()

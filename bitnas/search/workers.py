"""Evaluations in processes of their own: one that crashes, hangs or runs out of memory costs its candidate and nothing
else.

Workers are spawned, never forked, because a fork after torch has started its threads can deadlock. A worker ends when
its parent does, also after kill -9, so no orphan keeps a core or the memory.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """What a task gave instead of a result, in one line."""

    reason: str


class WorkersUnavailable(RuntimeError):
    """Worker processes cannot be started at all."""


def _start_worker(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle; it stops the workers
    parent = multiprocessing.parent_process()
    if parent is not None:

        def follow_parent() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=follow_parent, daemon=True).start()
    if initializer is not None:
        initializer(*arguments)


class WorkerPool:
    """Runs a function over argument tuples in `workers` processes, or in this one when `workers` is 0.

    Args:
        workers: processes; 0 runs tasks here, one by one, without time limit or protection from a crash.
        timeout: seconds a task may take before its process is killed; None for no limit.
        initializer: importable function each worker calls once (say, to set its thread count).
        initializer_arguments: its arguments.

    Functions and arguments travel by pickle between these processes only, so functions must be importable by name.
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        timeout: float | None = None,
        initializer: Callable[..., None] | None = None,
        initializer_arguments: tuple[Any, ...] = (),
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers: got {workers!r}, wanted an integer of at least 0")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"timeout: got {timeout!r}, wanted positive seconds or None")
        self.workers = workers
        self.timeout = timeout
        self._initializer = initializer
        self._initializer_arguments = initializer_arguments
        self._pool: Any = None

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        """Yield (index, result or Failure, seconds) for each argument tuple as it completes.

        Raises:
            WorkersUnavailable: no worker process could start.
        """
        return self._run_here(function, arguments) if self.workers == 0 else self._run_pool(function, arguments)

    def _run_here(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        for index, task in enumerate(arguments):
            start = time.perf_counter()
            try:
                result = function(*task)
            except Exception as error:
                result = Failure(describe(error))
            yield index, result, time.perf_counter() - start

    def _run_pool(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        pool = self._started()
        futures = {
            pool.schedule(_timed, args=(function, task), timeout=self.timeout): index
            for index, task in enumerate(arguments)
        }
        try:
            for future in concurrent.futures.as_completed(futures):
                result, seconds = self._outcome(future)
                yield futures[future], result, seconds
        except BaseException:
            for future in futures:
                future.cancel()
            raise

    def _outcome(self, future: Any) -> tuple[Any, float]:
        from concurrent.futures.process import BrokenProcessPool

        from pebble import ProcessExpired

        try:
            return future.result()
        except BrokenProcessPool as error:
            self.stop()
            raise WorkersUnavailable(
                "worker processes could not start; a script that starts a search needs its calls under "
                "`if __name__ == '__main__':`, because each worker imports the script"
            ) from error
        except TimeoutError:
            limit = float(self.timeout or 0.0)
            return Failure(f"killed after the time limit of {limit:g} s"), limit
        except ProcessExpired as error:
            return Failure(_describe_exit(error.exitcode)), 0.0
        except Exception as error:
            return Failure(describe(error)), 0.0

    def _started(self) -> Any:
        if self._pool is None:
            from pebble import ProcessPool

            self._pool = ProcessPool(
                max_workers=self.workers,
                context=multiprocessing.get_context("spawn"),
                initializer=_start_worker,
                initargs=(self._initializer, self._initializer_arguments),
            )
        return self._pool

    def stop(self) -> None:
        """Kill the workers and wait until they are gone. The next run starts new ones."""
        if self._pool is not None:
            self._pool.stop()
            self._pool.join()
            self._pool = None

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _timed(function: Callable[..., Any], task: tuple[Any, ...]) -> tuple[Any, float]:
    start = time.perf_counter()
    return function(*task), time.perf_counter() - start


def describe(error: BaseException) -> str:
    """An exception in one line: its class and message."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"its process was ended by {signal.Signals(-code).name}"
        except ValueError:
            pass
    return f"its process ended early (exit code {code})"

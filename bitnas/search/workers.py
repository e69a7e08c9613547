"""Evaluations in processes of their own: one that crashes, hangs or runs out of memory costs its candidate and nothing
else.

The parent drives its workers from one loop, without threads or locks shared between processes, so there is nothing a
dying worker could hold or break: each has its own pipes, read without blocking, and is killed with all it started.
Workers are spawned, never forked, because a fork after torch has started its threads can deadlock.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing.util  # registers its own exit handler; ours, registered after it, runs before
import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

from bitnas.search.worker_process import RESULT_LIMIT, Setup, describe, serve

_TAIL = 1 << 16  # bytes of a candidate's output that are kept
_LOG_LIMIT = 1 << 20  # bytes; a full log is renamed to NAME.1, and an older one with that name goes
_START_LIMIT = 180.0  # seconds: importing torch on a machine that swaps
_STARTS = 5  # workers that die in a row before their first task, until it is called hopeless
_NO_START = "worker processes could not start"


@dataclass(frozen=True)
class Failure:
    """What a task gave instead of a result, in one line."""

    reason: str


class WorkersUnavailable(RuntimeError):
    """Worker processes cannot be started at all."""


class Workers(Protocol):
    """What runs tasks: `WorkerPool` on this machine, `RayPool` on many."""

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]: ...

    def share_files(self, folder: str | os.PathLike[str], names: Iterable[str]) -> Any: ...

    def stop(self) -> None: ...

    def __enter__(self) -> Workers: ...

    def __exit__(self, *_: object) -> None: ...


def open_workers(spec: int | str, **options: Any) -> Workers:
    """The pool that `spec` names; nothing starts before it is used.

    Args:
        spec: a number of processes on this machine (0: in this one), or where a Ray cluster is: "ray" (the one this
            machine belongs to, else a new one of this machine alone), "ray://host:port" or "host:port".
        options: timeout, initializer, initializer_arguments, memory_limit, retries, log as of `WorkerPool`.

    Raises:
        ValueError: none of these.
        WorkersUnavailable: Ray is named and not installed, or there is no cluster.
    """
    if isinstance(spec, str) and spec.isdecimal():
        spec = int(spec)
    if isinstance(spec, int):
        return WorkerPool(spec, **options)
    if not isinstance(spec, str) or not (spec == "ray" or ":" in spec):
        raise ValueError(f"workers: got {spec!r}, wanted a number, 'ray', 'ray://host:port' or 'host:port'")
    from bitnas.search.ray_workers import RayPool

    return RayPool(spec, **options)


class WorkerPool:
    """Runs a function over argument tuples in `workers` processes, or in this one when `workers` is 0.

    A task whose process is ended by a signal (the kernel out of memory, an operator, a crash) is run again, after all
    others, `retries` times: such a death may not be its own doing. A task that raises, exits, gives what is no result
    or exceeds its time is not: it would again. A task must therefore be a function of its arguments; then the number of
    attempts changes no result.

    Args:
        workers: processes; 0 runs tasks here, one by one, without time limit, retries or protection from a crash.
        timeout: seconds a task may take before its process is killed; None for no limit. Kept while `run` is iterated.
        initializer: importable function each worker calls once (say, to set its thread count).
        initializer_arguments: its arguments.
        memory_limit: bytes of writable memory a worker may hold (RLIMIT_DATA; one that has imported torch holds about
            220 MB), beyond which its allocations fail; None for no limit.
        retries: how often a task is run again whose process was ended by a signal.
        log: file that gets the end of what each task printed, at most 64 KiB of each and 2 MiB in all (with its older
            half in `log`.1); None keeps the terminal clean and drops it. The last line is in the reason of a crash.

    Functions and arguments travel by pickle to these processes, so functions must be importable by name. Results come
    back as JSON of at most 1 MiB: numbers, strings, lists and dicts with string keys (tuples become lists).
    """

    def __init__(
        self,
        workers: int = 0,
        *,
        timeout: float | None = None,
        initializer: Callable[..., None] | None = None,
        initializer_arguments: tuple[Any, ...] = (),
        memory_limit: int | None = None,
        retries: int = 1,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 0:
            raise ValueError(f"workers: got {workers!r}, wanted an integer of at least 0")
        check_options(timeout, memory_limit, retries)
        self.workers = workers
        self.timeout = timeout
        self.retries = retries
        self._setup = Setup(initializer, initializer_arguments, memory_limit)
        self._log = None if log is None else Path(log)
        self._team: list[_Worker] = []
        self._guard = _Guard()
        self._failed_starts = 0
        self._was_ready = False
        _pools.add(self)

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        """Yield (index, result or Failure, seconds) for each argument tuple as it completes.

        Raises:
            WorkersUnavailable: no worker process could start.
        """
        return self._run_here(function, arguments) if self.workers == 0 else self._run_team(function, arguments)

    def share_files(self, folder: str | os.PathLike[str], names: Iterable[str]) -> str:
        """What to give tasks as the folder that holds these files: on one machine, the folder itself."""
        folder = Path(folder)
        for name in names:
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file to share with the workers")
        return str(folder)

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

    def _run_team(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        waiting = deque(_Task(index, function, task) for index, task in enumerate(arguments))
        again: deque[_Task] = deque()
        try:
            while waiting or again or any(worker.task for worker in self._team):
                busy = sum(worker.task is not None for worker in self._team)
                self._fill(min(self.workers, busy + len(waiting) + len(again)))
                for worker in self._team:
                    if worker.ready and worker.task is None and (waiting or again):
                        task = waiting.popleft() if waiting else again.popleft()
                        problem = worker.give(task, self.timeout)
                        if problem is not None:
                            yield task.index, problem, 0.0
                if not (waiting or again or any(worker.task for worker in self._team)):
                    break  # nothing that a step could wait for
                for end in self._step():
                    if end.transient and end.task.attempt <= self.retries:
                        again.append(replace(end.task, attempt=end.task.attempt + 1))
                        continue
                    outcome = end.outcome
                    if isinstance(outcome, Failure) and end.task.attempt > 1:
                        outcome = Failure(f"{outcome.reason} (attempt {end.task.attempt})")
                    yield end.task.index, outcome, end.seconds
        finally:  # also when the caller stops iterating or is interrupted: nobody waits for these results any more
            for worker in [worker for worker in self._team if worker.task is not None]:
                self._dismiss(worker)

    def _fill(self, wanted: int) -> None:
        while len(self._team) < wanted:
            try:
                worker = _Worker(self._setup)
            except OSError as error:  # no more processes or descriptors: go on with those there are
                if not self._team:
                    raise WorkersUnavailable(f"{_NO_START}: {error}") from error
                return
            self._team.append(worker)
            self._guard.watch(worker.pid)

    def _step(self) -> list[_End]:
        """Wait until something happens, and say which tasks that ended."""
        limits = [worker.deadline for worker in self._team if worker.deadline is not None]
        pause = None if not limits else max(0.0, min(limits) - time.monotonic())
        sources = {source: worker for worker in self._team for source in worker.sources()}
        happened = {sources[source] for source in wait(list(sources), pause)}
        ends = []
        for worker in list(self._team):
            gone = worker in happened and worker.read()
            event = worker.next_event()
            if event is not None and event.get("ready") is True:
                worker.ready, worker.deadline = True, None
                self._was_ready, self._failed_starts = True, 0
            elif event is not None and "broken" in event:
                self._start_failed(worker, f"the initializer failed with {event['broken']}")
                continue
            elif event is not None and worker.task is not None:
                ends.append(self._ended(worker, _result(event), seconds=event.get("seconds")))
            if gone or worker.garbled:
                ends += self._lost(worker)
            elif worker.deadline is not None and time.monotonic() >= worker.deadline:
                if worker.task is None:
                    self._start_failed(worker, f"was not ready after {_START_LIMIT:g} s")
                else:
                    ends.append(self._ended(worker, Failure(f"killed after the time limit of {self.timeout:g} s")))
                    self._dismiss(worker)
        return ends

    def _lost(self, worker: _Worker) -> list[_End]:
        """A worker that is gone, or talks nonsense: the end of its task, if it had one."""
        self._dismiss(worker)
        code = worker.process.exitcode
        if worker.task is not None:
            last = worker.last_line()
            why = "it broke the connection to its parent" if worker.garbled else _describe_exit(code)
            transient = not worker.garbled and code is not None and code < 0
            return [self._ended(worker, Failure(f"{why}: {last}" if last else why), transient=transient)]
        if not worker.ready:
            self._start_failed(worker, _describe_exit(code))
        return []  # an idle worker that somebody killed: another one takes its place

    def _ended(self, worker: _Worker, outcome: Any, *, seconds: Any = None, transient: bool = False) -> _End:
        task, worker.task, worker.deadline = worker.task, None, None
        assert task is not None
        if not isinstance(seconds, float):
            seconds = time.monotonic() - worker.since
        if self._log is not None and worker.tail:
            _write_log(self._log, f"---- task {task.index}, attempt {task.attempt}, {seconds:.1f} s\n", worker.tail)
        return _End(task, outcome, seconds, transient)

    def _start_failed(self, worker: _Worker, reason: str) -> None:
        self._dismiss(worker)
        self._failed_starts += 1
        guarded = not worker.spoke and not self._was_ready and (worker.process.exitcode or 0) > 0
        if guarded or self._failed_starts >= _STARTS:
            last = worker.last_line()
            self.stop()
            hint = (
                "; a script that starts a search needs its calls under `if __name__ == '__main__':`, because each "
                "worker imports the script"
            )
            raise WorkersUnavailable(
                f"{_NO_START}: {reason}{f' ({last})' if last else ''}{hint if guarded else ''}"
            ) from None

    def _dismiss(self, worker: _Worker) -> None:
        if worker not in self._team:
            return
        self._team.remove(worker)
        worker.kill()
        self._guard.forget(worker.pid)

    def stop(self) -> None:
        """Kill the workers and wait until they are gone. The next run starts new ones."""
        for worker in list(self._team):
            self._dismiss(worker)
        self._guard.stop()
        self._failed_starts = 0

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class _Task:
    index: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    attempt: int = 1


@dataclass(frozen=True)
class _End:
    """How an attempt at a task ended; `transient` if it may end otherwise the next time."""

    task: _Task
    outcome: Any
    seconds: float
    transient: bool


class _Worker:
    """One process, seen from its parent. Its task, its deadline and the end of its output are those of the moment."""

    def __init__(self, setup: Setup) -> None:
        context = multiprocessing.get_context("spawn")
        with contextlib.ExitStack() as theirs:
            pipes = [context.Pipe(duplex=False) for _ in range(3)]
            (task_end, self._tasks), (self._results, result_end), (self._output, output_end) = pipes
            for end in (task_end, result_end, output_end):
                theirs.callback(end.close)
            for mine in (self._results, self._output):
                os.set_blocking(mine.fileno(), False)
            self.process = context.Process(
                target=serve, args=(task_end, result_end, output_end, setup), name="bitnas worker"
            )
            try:
                self.process.start()
            except BaseException:
                self._close()
                raise
        self.pid: int = self.process.pid or 0
        self.task: _Task | None = None
        self.since = time.monotonic()
        self.deadline: float | None = self.since + _START_LIMIT
        self.ready = self.spoke = self.garbled = False
        self.tail = bytearray()
        self._pending = bytearray()
        self._output_open = True

    def give(self, task: _Task, timeout: float | None) -> Failure | None:
        """Send it a task; a Failure if that cannot be sent at all. (A dead worker is found by the next step.)"""
        self.tail.clear()
        try:
            with contextlib.suppress(ConnectionError):
                self._tasks.send((task.function, task.arguments))
        except Exception as error:
            return Failure(f"cannot be sent to a worker: {describe(error)}")
        self.task, self.since = task, time.monotonic()
        self.deadline = None if timeout is None else self.since + timeout
        return None

    def sources(self) -> list[Any]:
        """What to wait for."""
        return [self.process.sentinel, self._results, *([self._output] if self._output_open else [])]

    def read(self) -> bool:
        """Take in what it has sent and printed, without waiting; True if it is gone."""
        gone = False
        if wait([self.process.sentinel], 0):  # asked first: what it sent before its end is then all there
            gone = self._has_ended()
            self.garbled = not gone
        for _ in range(64):  # bounded, so that a flood leaves the other workers their turn
            data = _available(self._output) if self._output_open else None
            if data is None:
                break
            if not data:
                self._output_open = False
            self.tail += data
            del self.tail[:-_TAIL]
        while (data := _available(self._results)) is not None:
            if not data:
                self.garbled = self.garbled or not gone
                break
            self._pending += data
            self.spoke = True
        self.garbled = self.garbled or len(self._pending) > 2 * RESULT_LIMIT + 4096
        return gone

    def _has_ended(self) -> bool:
        """Whether it ended, when its sentinel says so: a process that closes every descriptor looks the same."""
        deadline = time.monotonic() + 2.0  # an ending process closes its files an instant before it counts as ended
        while time.monotonic() < deadline:
            # It is not collected here: its number must stay its own until its group has been killed.
            try:
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                    return True
            except ChildProcessError:  # multiprocessing collects ended children whenever another one starts
                return True
            time.sleep(0.001)
        return False

    def next_event(self) -> dict[str, Any] | None:
        """One event that it sent, once it is complete."""
        line, newline, rest = bytes(self._pending).partition(b"\n")
        if not newline:
            return None
        self._pending = bytearray(rest)
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            self.garbled = True
            return None
        return event

    def last_line(self) -> str:
        """The last line that it printed, in at most 200 printable characters."""
        lines = bytes(self.tail[-2000:]).decode(errors="replace").split("\n")
        texts = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        return next((text for text in reversed(texts) if text), "")[-200:]

    def kill(self) -> None:
        """End it and all it started, and collect it."""
        # Its process group first: as long as the process is not collected, nobody else can have that number.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()  # for one that does not lead a group yet
        self.process.join(10)  # longer only if the kernel cannot end it, as one that waits for a lost disk
        self._close()

    def _close(self) -> None:
        for connection in (self._tasks, self._results, self._output):
            connection.close()


class _Guard:
    """A tiny process that outlives this one by an instant: it kills the workers and what they started when this process
    is gone, however it went. (Workers watch for that too, but one that hangs in C code cannot.)
    """

    _CODE = (
        "import os, signal, sys\n"
        "groups = set()\n"
        "for line in sys.stdin:\n"
        "    (groups.add if line[0] == '+' else groups.discard)(int(line[1:]))\n"
        "for group in groups:\n"
        "    for kill in (os.killpg, os.kill):\n"
        "        try:\n"
        "            kill(group, signal.SIGKILL)\n"
        "        except OSError:\n"
        "            pass\n"
    )

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._watched: set[int] = set()

    def watch(self, pid: int) -> None:
        self._watched.add(pid)
        self._tell(f"+{pid}\n")

    def forget(self, pid: int) -> None:
        self._watched.discard(pid)
        self._tell(f"-{pid}\n")

    def _tell(self, line: str) -> None:
        with contextlib.suppress(OSError):  # without it the workers' own watch remains
            if self._process is None or self._process.poll() is not None:
                self.stop()
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", self._CODE],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # out of reach of Ctrl-C
                    text=True,
                )
                line = "".join(f"+{pid}\n" for pid in self._watched)
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            process.wait()


_pools: weakref.WeakSet[WorkerPool] = weakref.WeakSet()


@atexit.register
def _stop_all() -> None:
    for pool in list(_pools):
        pool.stop()


def check_options(timeout: float | None, memory_limit: int | None, retries: int) -> None:
    """ValueError for a limit that is none."""
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout: got {timeout!r}, wanted positive seconds or None")
    if memory_limit is not None and (isinstance(memory_limit, bool) or not memory_limit > 0):
        raise ValueError(f"memory_limit: got {memory_limit!r}, wanted positive bytes or None")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise ValueError(f"retries: got {retries!r}, wanted an integer of at least 0")


def _available(connection: Connection) -> bytes | None:
    """What can be read now; empty at the end of the stream, None if there is nothing yet."""
    try:
        return os.read(connection.fileno(), _TAIL)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _result(event: dict[str, Any]) -> Any:
    if "result" not in event:
        return Failure(str(event.get("failure", "gave no result")))
    try:
        return json.loads(event["result"])
    except (ValueError, TypeError, RecursionError) as error:
        return Failure(f"returned what cannot be read back ({describe(error)})")


def _write_log(path: Path, heading: str, tail: bytes | bytearray) -> None:
    with contextlib.suppress(OSError):  # a log that cannot be written is no reason to stop a search
        if path.exists() and path.stat().st_size > _LOG_LIMIT - _TAIL:
            os.replace(path, path.with_name(path.name + ".1"))
        with open(path, "ab") as file:
            file.write(heading.encode() + bytes(tail) + (b"" if tail.endswith(b"\n") else b"\n"))


def _describe_exit(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"its process was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"its process was ended by signal {-code}"
    return f"its process ended early (exit code {code})"

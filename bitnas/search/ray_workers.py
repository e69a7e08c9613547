"""Workers on the machines of a Ray cluster, with the rules of those on one machine.

Ray places one seat on each CPU and tells when a node is lost. A seat runs its tasks in a `WorkerPool` of one process,
so time limit, memory limit, output and the reasons of failures are what they are without Ray, and enforced where the
task runs, whether the network works or not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import json
import os
import socket
import stat
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bitnas.files import write_bytes_atomic
from bitnas.search.workers import Failure, WorkerPool, WorkersUnavailable, check_options

_CONNECT_LIMIT = 5.0  # seconds to reach the address
_SEAT_LIMIT = 180.0  # seconds without any seat until the cluster is given up
_GRACE = 60.0  # seconds beyond all its attempts in which a seat must answer, before it is taken for lost
_LOSSES = 3  # how often a task is placed elsewhere because its node or seat was lost


@dataclass(frozen=True)
class SharedFolder:
    """Files that tasks need, named by their contents; a task is given the path of a folder on its node with them."""

    digest: str
    names: tuple[str, ...]


class RayPool:
    """`WorkerPool` over a Ray cluster: same `run`, same results, one task at a time on each CPU.

    A task that was on a lost node, or whose seat's process died, is run again elsewhere, at most three times; what else
    is run again is as in `WorkerPool`. Nodes may come and go. Every node needs bitnas installed in the same version,
    and data sets that are files under the same path.

    Args:
        address: "ray" (the cluster of `RAY_ADDRESS` or of this machine, else a new one of this machine alone),
            "host:port" of the cluster's head, from one of its machines, or "ray://host:port", from any machine.
        timeout, initializer, initializer_arguments, memory_limit, retries: as of `WorkerPool`.
        log: for the same call as of `WorkerPool`; not written, the nodes' disks are their own.

    Raises:
        WorkersUnavailable: Ray is not installed, or nothing answers at the address.
    """

    def __init__(
        self,
        address: str = "ray",
        *,
        timeout: float | None = None,
        initializer: Callable[..., None] | None = None,
        initializer_arguments: tuple[Any, ...] = (),
        memory_limit: int | None = None,
        retries: int = 1,
        log: str | os.PathLike[str] | None = None,
    ) -> None:
        check_options(timeout, memory_limit, retries)
        self.address = address
        self.timeout = timeout
        self.retries = retries
        self._options = {
            "timeout": timeout,
            "initializer": initializer,
            "initializer_arguments": initializer_arguments,
            "memory_limit": memory_limit,
            "retries": retries,
        }
        self._ray = _installed(address)
        _check_reachable(address)
        self._connected_here = False
        self._seats: dict[Any, _Seated] = {}  # by the reference to what each is doing
        self._idle: list[_Seated] = []
        self._shared: dict[str, dict[str, Any]] = {}

    def share_files(self, folder: str | os.PathLike[str], names: Iterable[str]) -> SharedFolder:
        """What to give tasks as the folder that holds these files; the files reach each node through Ray, once."""
        self._connect()
        contents = {name: (Path(folder) / name).read_bytes() for name in names}
        sums = {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}
        digest = hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()
        if digest not in self._shared:
            self._shared[digest] = {name: (sums[name], self._ray.put(data)) for name, data in contents.items()}
        return SharedFolder(digest, tuple(contents))

    def run(
        self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
    ) -> Iterator[tuple[int, Any, float]]:
        """Yield (index, result or Failure, seconds) for each argument tuple as it completes.

        Raises:
            WorkersUnavailable: the cluster cannot be reached, or has no CPU to give.
        """
        self._connect()
        waiting = deque(_Task(index, function, task) for index, task in enumerate(arguments))
        served = time.monotonic()
        try:
            while waiting or any(seat.task for seat in self._seats.values()):
                self._fill(len(waiting))
                while waiting and self._idle:
                    self._give(self._idle.pop(), waiting.popleft())
                if self._idle or any(seat.ready for seat in self._seats.values()):
                    served = time.monotonic()
                elif time.monotonic() - served > _SEAT_LIMIT:
                    raise WorkersUnavailable(
                        f"{self.address}: the cluster gave no CPU in {_SEAT_LIMIT:g} s; `ray status` says what it has"
                    )
                done, _ = self._ray.wait(list(self._seats), num_returns=1, timeout=1.0)
                for reference in done or self._overdue():
                    seat = self._seats.pop(reference)
                    task, seat.task = seat.task, None
                    outcome = self._outcome(reference, seat) if done else Lost("its node did not answer")
                    if not isinstance(outcome, Lost):
                        seat.ready = True
                        self._idle.append(seat)
                        if task is not None:
                            yield task.index, *outcome
                        continue
                    self._kill(seat)
                    if task is None:
                        continue
                    if task.losses < _LOSSES:
                        waiting.append(replace(task, losses=task.losses + 1))
                    else:
                        reason = f"{outcome.reason} ({task.losses + 1} times)"
                        yield task.index, Failure(reason), time.monotonic() - seat.since
        finally:
            for reference in [reference for reference, seat in self._seats.items() if seat.task is not None]:
                self._kill(self._seats.pop(reference))

    def _fill(self, waiting: int) -> None:
        """Ask for as many seats as there are CPUs, and tasks to give them."""
        here = len(self._seats) + len(self._idle)
        starting = sum(not seat.ready for seat in self._seats.values())
        wanted = waiting - len(self._idle) - starting
        if wanted <= 0:
            return
        free = int(self._ray.cluster_resources().get("CPU", 0)) - here
        for _ in range(min(wanted, free)):
            actor = self._ray.remote(Seat).options(num_cpus=1, max_restarts=0).remote(self._options)
            self._seats[actor.ready.remote()] = _Seated(actor, time.monotonic())

    def _give(self, seat: _Seated, task: _Task) -> None:
        folders = [argument.digest for argument in task.arguments if isinstance(argument, SharedFolder)]
        shared = {digest: self._shared[digest] for digest in folders}
        seat.task, seat.since = task, time.monotonic()
        self._seats[seat.actor.run.remote(task.function, task.arguments, shared)] = seat

    def _outcome(self, reference: Any, seat: _Seated) -> Any:
        """(result or Failure, seconds), or Lost."""
        exceptions = self._ray.exceptions
        try:
            result, seconds = self._ray.get(reference)
        except exceptions.RayTaskError as error:
            cause = error.cause if isinstance(getattr(error, "cause", None), Exception) else error
            if isinstance(cause, WorkersUnavailable):
                raise WorkersUnavailable(f"on a node of {self.address}, {cause}") from None
            return Failure(f"its node could not run it: {cause}"[:500]), time.monotonic() - seat.since
        except (exceptions.RayError, ConnectionError):
            return Lost("its node was lost")
        return result, seconds

    def _overdue(self) -> list[Any]:
        if self.timeout is None:
            return []
        limit = self.timeout * (self.retries + 1) + _GRACE
        now = time.monotonic()
        return [ref for ref, seat in self._seats.items() if seat.task is not None and now - seat.since > limit]

    def _kill(self, seat: _Seated) -> None:
        with contextlib.suppress(Exception):  # it may be gone, and so may the cluster
            self._ray.kill(seat.actor)

    def _connect(self) -> None:
        ray = self._ray
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet = {"log_to_driver": False, "logging_level": "error"}
        try:
            if self.address != "ray":
                ray.init(address=self.address, **quiet)
            else:
                try:
                    ray.init(address="auto", **quiet)
                except ConnectionError:
                    ray.init(include_dashboard=False, **quiet)
        except Exception as error:
            raise WorkersUnavailable(f"{self.address}: cannot join this Ray cluster: {error}") from error
        self._connected_here = True

    def stop(self) -> None:
        """Give the seats back, and leave the cluster if this pool joined it. The next run joins again."""
        for seat in [*self._seats.values(), *self._idle]:
            self._kill(seat)
        self._seats.clear()
        self._idle.clear()
        if self._connected_here:
            self._shared.clear()
            self._ray.shutdown()
            self._connected_here = False

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Lost:
    """A seat that is gone, and why; says nothing of its task."""

    reason: str


@dataclass(frozen=True)
class _Task:
    index: int
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    losses: int = 0


@dataclass
class _Seated:
    """An actor, since when it does what it does, and its task if it has one."""

    actor: Any
    since: float
    task: _Task | None = None
    ready: bool = False


class Seat:
    """The actor: one worker process on some node."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._pool = WorkerPool(1, **options)

    def ready(self) -> tuple[str, float]:
        """Start the worker, so that a task's time is its own."""
        list(self._pool.run(os.getpid, [()]))
        return os.uname().nodename, 0.0

    def run(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], shared: dict[str, dict[str, Any]]
    ) -> tuple[Any, float]:
        """One task; `shared` holds by digest of the folder, by name of the file, its SHA-256 and object reference."""
        local = tuple(
            _local_folder(argument, shared[argument.digest]) if isinstance(argument, SharedFolder) else argument
            for argument in arguments
        )
        [(_, result, seconds)] = self._pool.run(function, [local])
        return result, seconds


def _local_folder(shared: SharedFolder, files: dict[str, Any]) -> str:
    """The folder on this node with these files, each fetched if it is not there as it should be."""
    base = Path(tempfile.gettempdir()) / f"bitnas-shared-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    found = base.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{base} is not a folder of this user alone; remove it")
    folder = base / shared.digest
    folder.mkdir(exist_ok=True)
    for name, (digest, reference) in files.items():
        path = folder / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            write_bytes_atomic(path, importlib.import_module("ray").get(reference))
    return str(folder)


def _installed(address: str) -> Any:
    # By name, because it is an extra: the package works, and is checked, without it.
    try:
        ray = importlib.import_module("ray")
        if address.startswith("ray://"):
            importlib.import_module("grpc")
    except ImportError as error:
        raise WorkersUnavailable(
            f"workers {address!r} need Ray, which is not installed ({error}): pip install 'bitnas[ray]'"
        ) from error
    return ray


def _check_reachable(address: str) -> None:
    """Ray tries for minutes and may end the whole process; a closed port is known in an instant."""
    if address == "ray":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"workers: got {address!r}, wanted 'ray', 'ray://host:port' or 'host:port'")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_LIMIT).close()
    except OSError as error:
        raise WorkersUnavailable(
            f"{address}: no Ray cluster answers there ({error}). Start one with `ray start --head`, or name another."
        ) from error

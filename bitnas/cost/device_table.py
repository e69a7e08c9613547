"""Latencies of the calls of frozen networks on one device, kept in SQLite: measured once, summed for any network.

A row is one visit to a network, all its calls at once, or one check of the table; rows are only ever added, and each
one's checksum covers the row before it, so that an altered, removed or reordered row is found and the file refused.
(Rows lost from the end look like a build that was stopped, and are measured again.) Several visits that meet the same
call give it several readings, in different networks and at different times: the median counts, and their differences
are part of the interval.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import sqlite3
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bitnas.cost.agreement import Check
from bitnas.cost.call_times import Reading
from bitnas.files import CorruptFileError
from bitnas.packed.calls import canonical

_FORMAT = "bitnas-latency-1"
_SCHEMA = "CREATE TABLE rows (sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, body TEXT NOT NULL, checksum TEXT)"
_KINDS = ("device", "visit", "held_out", "check")

# From so many readings on, their spread is told by the median distance, which a few bad ones do not move.
_MANY = 5

# A visit is out of step where the reference network was further from its median, as a share.
OUT_OF_STEP = 0.1

Key = dict[str, Any]


class TableError(RuntimeError):
    """A table cannot be written; the message names the file and what to do. It can still be read."""


class TableLocked(TableError):
    """Another process is writing to it."""


@dataclass(frozen=True)
class Entry:
    """What a table says of one signature: the median of its readings, and their spread."""

    signature: str
    readings: tuple[Reading, ...]

    @property
    def us(self) -> float:
        return statistics.median(reading.us for reading in self.readings)

    @property
    def deviation_us(self) -> float:
        """Standard error of a prediction for one more network: between readings, or within the only one."""
        within = statistics.median((r.high_us - r.low_us) / 2 / 1.96 for r in self.readings)
        if len(self.readings) == 1:
            return within
        middle, values = self.us, [reading.us for reading in self.readings]
        if len(values) < _MANY:
            between = statistics.stdev(values)
        else:
            between = 1.4826 * statistics.median(abs(value - middle) for value in values)
        return max(within, between * math.sqrt(1 + 1 / len(self.readings)))

    @property
    def noisy(self) -> bool:
        """No reading of it was steady."""
        return all(reading.noisy for reading in self.readings)

    def to_dict(self) -> dict[str, Any]:
        """JSON: the signature as an object, the entry's figures, and the quartiles and interval over its readings."""
        readings = self.readings
        return {
            "signature": json.loads(self.signature),
            "latency_us": self.us,
            "deviation_us": self.deviation_us,
            "median_us": statistics.median(r.median_us for r in readings),
            "q1_us": statistics.median(r.q1_us for r in readings),
            "q3_us": statistics.median(r.q3_us for r in readings),
            "low_us": min(r.low_us for r in readings),
            "high_us": max(r.high_us for r in readings),
            "runs": sum(r.runs for r in readings),
            "readings": len(readings),
            "noisy": self.noisy,
        }


@dataclass(frozen=True)
class Visit:
    """One network, timed call by call. ``reference_us``: what the build's reference network took just before."""

    space: dict[str, Any]
    network: Any
    round: int
    signatures: tuple[str, ...]
    readings: tuple[Reading, ...]
    whole_us: float
    reference_us: float
    seconds: float
    date: str


@dataclass(frozen=True)
class Prediction:
    """Microseconds per batch, with the 95 % interval.

    ``missing``: signatures that the table does not hold; where there is one, the three numbers are NaN.
    """

    latency_us: float
    low_us: float
    high_us: float
    missing: tuple[str, ...] = ()


def default_table() -> Path:
    """``$BITNAS_TABLE``, or ``latency.sqlite`` in this user's cache folder."""
    if path := os.environ.get("BITNAS_TABLE"):
        return Path(path)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitnas" / "latency.sqlite"


def latency_key(*, batch: int = 1, threads: int = 1, memory: str = "fast", device: str = "cpu") -> Key:
    """What a latency depends on besides the network: this device and its software, and how it is used.

    Raises:
        ValueError: a device other than the CPU, a batch or a number of threads below 1.
    """
    from bitnas.cost import machine
    from bitnas.cost.cpu_timing import cache_bytes

    if device != "cpu":
        raise ValueError(
            f"device: got {device!r}, but calls are timed on the CPU only; time whole networks on a GPU with "
            "bitnas.measure_latency"
        )
    for name, value in {"batch": batch, "threads": threads}.items():
        if value < 1:
            raise ValueError(f"{name}: got {value}, wanted at least 1")
    if threads > (os.cpu_count() or threads):
        raise ValueError(f"threads: got {threads}, wanted at most the {os.cpu_count()} CPUs there are")
    facts = machine.facts()
    return {
        "device": device,
        "cpu": facts["cpu"],
        "architecture": facts["architecture"],
        "l2_bytes": cache_bytes(2),
        "l3_bytes": cache_bytes(3),
        "isa": facts["isa"],
        "kernel_version": facts["kernel_version"],
        "torch": facts["torch"],
        "memory": memory,
        "batch": batch,
        "threads": threads,
    }


def copy_table(path: str | os.PathLike[str] | None, copy: str | os.PathLike[str]) -> None:
    """Copies a table, by default :func:`default_table`, as it is now; ``copy`` is whole or not there.

    Raises as :meth:`DeviceTable.open`.
    """
    source = DeviceTable.open(path).path
    temporary = Path(copy).with_name(f".{Path(copy).name}.tmp")
    temporary.unlink(missing_ok=True)
    with (
        _explained(source),
        contextlib.closing(_connect_to_read(source)) as found,
        contextlib.closing(sqlite3.connect(temporary)) as made,
    ):
        found.backup(made)
    os.replace(temporary, copy)


class DeviceTable:
    """A table as it was when opened. Needs no lock, and works beside a build."""

    def __init__(self, path: Path, rows: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.path = path
        self._rows = list(rows)
        self._entries: dict[str, dict[str, Entry]] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str] | None = None) -> "DeviceTable":
        """Reads a table, by default :func:`default_table`.

        Raises:
            FileNotFoundError: there is none. CorruptFileError: it is damaged, was altered, or is no table.
        """
        path = default_table() if path is None else Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such latency table; make it with bitnas latency build")
        with _explained(path):
            db = _connect_to_read(path)
            try:
                return cls(path, _load(db, path)[0])
            finally:
                db.close()

    def devices(self) -> list[tuple[Key, dict[str, Any]]]:
        """The keys that the table has rows of, each with what the machine said of itself then."""
        return [(body["key"], body["machine"]) for kind, body in self._rows if kind == "device"]

    def visits(self, key: Key, space: Mapping[str, Any] | None = None) -> list[Visit]:
        """The visits under a key, of one space or of all, in the order they were made."""
        return [_visit(body) for body in self._of("visit", key, space)]

    def entries(self, key: Key) -> dict[str, Entry]:
        """All that is known under a key, by signature.

        What was read while the machine was out of step, by the reference network, counts only where nothing else is
        known.
        """
        name = key_name(key)
        if name not in self._entries:
            steady: dict[str, list[Reading]] = {}
            other: dict[str, list[Reading]] = {}
            for visit, away in _away(self.visits(key)):
                readings = other if away > OUT_OF_STEP else steady
                for signature, reading in zip(visit.signatures, visit.readings, strict=True):
                    readings.setdefault(signature, []).append(reading)
            self._entries[name] = {s: Entry(s, tuple(found)) for s, found in (other | steady).items()}
        return self._entries[name]

    def predict(self, signatures: Sequence[str], key: Key, space: Mapping[str, Any] | None = None) -> Prediction:
        """Latency of a network as the sum of its calls.

        The interval is the wider of two: what the spread of the entries leaves open (as if their errors were
        independent), and the error that nineteen in twenty networks of the last check stayed below. Without a check it
        is the former alone, and too narrow where errors have a common cause.

        Args:
            signatures: :func:`bitnas.packed.calls.call_signatures` of the network.
            space: whose check counts; None for the last one under the key.
        """
        entries = self.entries(key)
        missing = tuple(dict.fromkeys(s for s in signatures if s not in entries))
        if missing:
            return Prediction(math.nan, math.nan, math.nan, missing)
        counts: dict[str, int] = {}
        for signature in signatures:
            counts[signature] = counts.get(signature, 0) + 1
        latency = sum(n * entries[s].us for s, n in counts.items())
        # Calls of one signature share one entry, and so its error.
        half = 1.96 * math.hypot(*(n * entries[s].deviation_us for s, n in counts.items()))
        check = self.last_check(key, space)
        if check is not None:
            half = max(half, check.error_95 * latency)
        return Prediction(latency, max(0.0, latency - half), latency + half)

    def last_check(self, key: Key, space: Mapping[str, Any] | None = None) -> Check | None:
        """The latest check under the key, of any space or of one that holds ``space``; None if there is none.

        A space holds another if it agrees with all that the other says, and has its ``choices`` among its own.
        """
        found = [body for body in self._of("check", key, None) if space is None or _holds(body["space"], space)]
        return Check.from_dict(found[-1]["check"]) if found else None

    def checks(self, key: Key, space: Mapping[str, Any]) -> int:
        """How many checks of exactly this space have ended."""
        return len(self._of("check", key, space))

    def held_out(self, key: Key, name: str) -> list[dict[str, Any]]:
        """The networks that a check of this name has measured already."""
        return [body["result"] for body in self._of("held_out", key, None) if body["name"] == name]

    def spaces(self, key: Key) -> list[dict[str, Any]]:
        """The spaces that visits were made for, in order."""
        found: list[dict[str, Any]] = []
        for visit in self.visits(key):
            if visit.space not in found:
                found.append(visit.space)
        return found

    def holds(self, key: Key, space: Mapping[str, Any]) -> bool:
        """Whether the table was built for this space, or for one that holds it."""
        return any(_holds(found, space) for found in self.spaces(key))

    def _of(self, kind: str, key: Key, space: Mapping[str, Any] | None) -> list[dict[str, Any]]:
        name = key_name(key)
        wanted = None if space is None else canonical(dict(space))
        return [
            body
            for found, body in self._rows
            if found == kind and body["key"] == name and (wanted is None or canonical(body["space"]) == wanted)
        ]

    def _append(self, kind: str, body: dict[str, Any]) -> None:
        self._rows.append((kind, body))
        self._entries.clear()


class TableWriter:
    """A table to add to: use as a context manager. ``table`` is its content so far, kept up to date.

    A row is on the disk when ``add_...`` returns. Raises TableLocked if another process writes to the same table,
    CorruptFileError for a damaged one, TableError where the disk is full or not to be written.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self.path = default_table() if path is None else Path(path)
        try:
            self._lock = _lock(self.path)
        except OSError as error:
            raise TableError(f"{self.path} cannot be written: {error.strerror}; name another with --table") from error
        try:
            with _explained(self.path):
                self._db = sqlite3.connect(self.path, isolation_level=None)
                try:
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.execute("PRAGMA synchronous = FULL")
                    if self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                        self._db.execute(_SCHEMA)  # one transaction: a killed process leaves all of it or nothing
                    rows, self._head = _load(self._db, self.path)
                except BaseException:
                    self._db.close()
                    raise
            self.table = DeviceTable(self.path, rows)
        except BaseException:
            os.close(self._lock)
            raise

    def add_visit(self, key: Key, visit: Visit) -> None:
        """Adds what one network gave."""
        if len(visit.signatures) != len(visit.readings):
            raise ValueError(f"visit: got {len(visit.readings)} readings of {len(visit.signatures)} calls")
        body = {name: value for name, value in vars(visit).items() if name != "readings"}
        body["readings"] = [list(vars(reading).values()) for reading in visit.readings]
        self._add(key, "visit", {**body, "signatures": list(visit.signatures)})

    def add_held_out(self, key: Key, space: Mapping[str, Any], name: str, result: Mapping[str, Any]) -> None:
        """Adds one network that a check of that name has measured."""
        self._add(key, "held_out", {"space": dict(space), "name": name, "result": dict(result)})

    def add_check(self, key: Key, space: Mapping[str, Any], check: Check) -> None:
        """Adds what a check found."""
        self._add(key, "check", {"space": dict(space), "check": check.to_dict()})

    def _add(self, key: Key, kind: str, body: dict[str, Any]) -> None:
        name = key_name(key)
        if not any(key_name(known) == name for known, _ in self.table.devices()):
            from bitnas.cost import machine

            self._insert("device", {"key": key, "machine": machine.facts(), "date": now()})
        self._insert(kind, {"key": name, **body})

    def _insert(self, kind: str, body: dict[str, Any]) -> None:
        text, sequence = canonical(body), len(self.table._rows)
        head = _chain(self._head, sequence, kind, text)
        with _explained(self.path):
            self._db.execute("INSERT INTO rows VALUES (?, ?, ?, ?)", (sequence, kind, text, head))
        self._head = head
        self.table._append(kind, json.loads(text))

    def close(self) -> None:
        """Closes the file and gives the lock back."""
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def key_name(key: Key) -> str:
    """A short name for a key, equal for equal ones."""
    return hashlib.sha256(canonical(key).encode()).hexdigest()[:16]


def now() -> str:
    """The time as ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _holds(space: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    same = all(space.get(name) == value for name, value in other.items() if name != "choices")
    return same and set(other.get("choices", ())) <= set(space.get("choices", ()))


def _away(visits: Sequence[Visit]) -> Iterator[tuple[Visit, float]]:
    """Each visit with how far the reference network was from its median in that space's visits then, as a share."""
    references: dict[str, list[float]] = {}
    for visit in visits:
        references.setdefault(canonical(visit.space), []).append(visit.reference_us)
    middles = {space: statistics.median(found) for space, found in references.items()}
    for visit in visits:
        yield visit, abs(visit.reference_us / middles[canonical(visit.space)] - 1)


def _visit(body: dict[str, Any]) -> Visit:
    values = {name: value for name, value in body.items() if name != "key"}
    readings = tuple(Reading(*reading) for reading in values.pop("readings"))
    return Visit(**{**values, "signatures": tuple(values["signatures"]), "readings": readings})


def _chain(head: str, sequence: int, kind: str, text: str) -> str:
    return hashlib.sha256(f"{head}\n{sequence}\n{kind}\n{text}".encode()).hexdigest()


def _load(db: sqlite3.Connection, path: Path) -> tuple[list[tuple[str, dict[str, Any]]], str]:
    problems = [row[0] for row in db.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        raise _corrupt(path, str(problems[0]))
    head = hashlib.sha256(_FORMAT.encode()).hexdigest()
    rows: list[tuple[str, dict[str, Any]]] = []
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        return rows, head  # a build that was stopped before its first row
    for sequence, kind, text, checksum in db.execute("SELECT sequence, kind, body, checksum FROM rows ORDER BY 1"):
        head = _chain(head, sequence, kind, text)
        if checksum != head or sequence != len(rows) or kind not in _KINDS:
            raise _corrupt(path, f"row {len(rows)} does not match its checksum, or is of another version of bitnas")
        rows.append((kind, json.loads(text)))
    return rows, head


def _connect_to_read(path: Path) -> sqlite3.Connection:
    address = path.resolve().as_uri()
    db = sqlite3.connect(f"{address}?mode=ro", uri=True, isolation_level=None)
    try:
        db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:
        # In a folder that cannot be written SQLite makes no index of the log; where there is no log, none is needed.
        db.close()
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise
        db = sqlite3.connect(f"{address}?mode=ro&immutable=1", uri=True, isolation_level=None)
    return db


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if any(word in str(error) for word in ("full", "I/O", "readonly", "unable to open", "locked")):
            raise TableError(
                f"{path} cannot be written or read: {error}. Free space, check permissions, or name another file with "
                "--table; what was measured is kept, and the same command goes on."
            ) from error
        raise _corrupt(path, str(error)) from error
    except CorruptFileError:
        raise
    except (sqlite3.Error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, detail: str) -> CorruptFileError:
    return CorruptFileError(
        path,
        f"is damaged, or no latency table ({detail}), and is not used; restore it from a copy, or move it away with "
        "its -wal and -shm files and run bitnas latency build again",
    )


def _lock(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise TableLocked(
            f"{path} is being written by another process (pid {holder}); wait for it to end, or name another file "
            "with --table"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock

"""The record of what was measured, in SQLite: each stage of each architecture once, kept through kill -9 and checked
when read.

A search resumes by running its strategy again from the seed with the answers found here, so a row, once written, is
never changed. Every row's checksum covers the row before it, back to the settings the journal was opened with: an
altered, removed or reordered row is found. (Rows lost from the end look like an earlier kill, and are measured
again.)
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bitnas.search.space import Genome

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE evaluations (
    sequence INTEGER PRIMARY KEY, key TEXT NOT NULL, stage TEXT NOT NULL, genome TEXT NOT NULL, status TEXT NOT NULL,
    reason TEXT NOT NULL, metrics TEXT NOT NULL, seconds REAL NOT NULL, generation INTEGER NOT NULL,
    checksum TEXT NOT NULL,
    UNIQUE (key, stage)
);
"""
_COLUMNS = "sequence, key, stage, genome, status, reason, metrics, seconds, generation"


class JournalError(RuntimeError):
    """A journal cannot be used; the message names the file and what to do."""


class JournalCorrupt(JournalError):
    """The file is damaged."""


class JournalLocked(JournalError):
    """Another process is using it."""


class JournalMismatch(JournalError):
    """It belongs to a run with other settings."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stage of one architecture, as measured.

    Args:
        key: hash of the architecture.
        genome: its code.
        status: "ok" or "failed".
        reason: why it failed; empty when ok.
        metrics: what was measured, finite numbers by name; empty when failed.
        seconds: wall time it took.
        generation: when it was first asked for.
        stage: which of the evaluation's stages it is.
    """

    key: str
    genome: Genome
    status: str = "ok"
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    generation: int = 0
    stage: str = "evaluate"

    def __post_init__(self) -> None:
        if self.status not in ("ok", "failed"):
            raise ValueError(f"status: got {self.status!r}, wanted 'ok' or 'failed'")
        bad = {name: value for name, value in self.metrics.items() if not math.isfinite(value)}
        if bad:
            raise ValueError(f"metrics: got {bad}, wanted finite numbers; use Record.of to turn them into a failure")

    @property
    def ok(self) -> bool:
        """True if it was measured."""
        return self.status == "ok"

    @classmethod
    def of(cls, metrics: Mapping[str, Any], **fields: Any) -> Record:
        """A record of `metrics`; a value that is no finite number makes it a failed one that says which."""
        values: dict[str, float] = {}
        for name, value in sorted(metrics.items()):  # in the order in which the journal gives them back
            try:
                values[name] = float(value)
            except (TypeError, ValueError):
                return cls.failure(f"metric {name!r} is {value!r}, which is no number", **fields)
            if not math.isfinite(values[name]):
                return cls.failure(f"metric {name!r} is not finite: {values[name]}", **fields)
        return cls(status="ok", metrics=values, **fields)

    @classmethod
    def failure(cls, reason: str, **fields: Any) -> Record:
        """A failed record."""
        return cls(status="failed", reason=reason or "no reason given", **fields)


class Journal:
    """An open journal. Use as a context manager; closing gives the lock back.

    Args:
        path: the SQLite file, made if missing.
        meta: settings the rows depend on (space, seed, hash of the configuration); those of an existing journal must
            be the same.

    Raises:
        JournalLocked: another process has it open.
        JournalMismatch: it was made with other settings.
        JournalCorrupt: the file is damaged.
    """

    def __init__(self, path: str | os.PathLike[str], *, meta: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.meta = {name: _canonical(value) for name, value in sorted(meta.items())}
        self._lock = _acquire(self.path)
        try:
            with _explained(self.path):
                self._db = self._connect()
                stored, records, self._head = _load(self._db, self.path)
            # Only which rows there are is kept in memory: a long search must not grow by each of them twice.
            self._known: dict[str, set[str]] = {}
            self._count = 0
            for record in records:
                self._note(record)
            differing = sorted(
                name for name in stored.keys() | self.meta.keys() if stored.get(name) != self.meta.get(name)
            )
            if differing:
                name = differing[0]
                raise JournalMismatch(
                    f"{self.path} belongs to a run with other settings: {name} is {stored.get(name)} there and "
                    f"{self.meta.get(name)} here. Use another folder, or resume with the settings it was made with."
                )
        except BaseException:
            if hasattr(self, "_db"):
                self._db.close()
            os.close(self._lock)
            raise

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA cache_size = -512")  # KiB; nothing is read often
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        # A process killed while creating the file leaves it without tables, because they are made in one transaction.
        if tables == 0:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO meta VALUES (?, ?)", self.meta.items())
            db.execute("COMMIT")
        return db

    def get(self, key: str, stage: str = "evaluate") -> Record | None:
        """The record, or None if that stage was never measured."""
        if key not in self._known.get(stage, ()):
            return None
        with _explained(self.path):
            row = self._db.execute(f"SELECT {_COLUMNS} FROM evaluations WHERE key = ? AND stage = ?", (key, stage))
            return _record(row.fetchone())

    def add(self, record: Record) -> None:
        """Write one record durably; ValueError if that stage of that architecture is already there."""
        if record.key in self._known.get(record.stage, ()):
            raise ValueError(f"key: {record.key} already has stage {record.stage!r}; a measurement is never replaced")
        row = _row(self._count, record)
        head = _chain(self._head, row)
        with _explained(self.path):
            self._db.execute(
                f"INSERT INTO evaluations ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, head)
            )
        self._head = head
        self._note(record)

    def _note(self, record: Record) -> None:
        self._known.setdefault(record.stage, set()).add(record.key)
        self._count += 1

    def records(self) -> list[Record]:
        """Every record, in the order of writing."""
        with _explained(self.path):
            return [_record(row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM evaluations ORDER BY sequence")]

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Close the file and give the lock back."""
        self._db.close()
        os.close(self._lock)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Record]]:
    """Settings and records of a journal, for reports: takes no lock, so it works beside a running search.

    Raises:
        FileNotFoundError: there is no such file.
        JournalCorrupt: the file is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such journal")
    with ExitStack() as stack, _explained(path):
        source = path
        if not os.access(path.parent, os.W_OK):  # SQLite writes beside what it reads
            source = Path(stack.enter_context(TemporaryDirectory())) / path.name
            for suffix in ("-wal", ""):
                with suppress(FileNotFoundError):
                    shutil.copyfile(f"{path}{suffix}", f"{source}{suffix}")
        db = stack.enter_context(closing(sqlite3.connect(source)))
        meta, records, _ = _load(db, path)
    return {name: json.loads(value) for name, value in meta.items()}, records


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _acquire(path: Path) -> int:
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise JournalError(
            f"{path.parent} cannot be written: {error.strerror}. Give yourself write permission there, free space, or "
            "use another folder."
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise JournalLocked(
            f"{path.parent} is in use by another process (pid {holder}). Wait for it to end, or use another folder."
        ) from None
    except OSError as error:
        os.close(lock)
        raise JournalError(
            f"{lock_path} cannot be locked: {error.strerror}. Use a folder on a file system with locks."
        ) from error
    with suppress(OSError):  # whose it is only helps a reader; on a full disk the lock holds all the same
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what SQLite, JSON or the checks raise into one message that names the file and the fix."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise JournalLocked(f"{path} is in use by another process ({error}). Wait for it to end.") from error
        if any(word in str(error) for word in ("full", "I/O", "readonly", "unable to open")):
            raise JournalError(
                f"{path} cannot be written: {error}. Nothing that was measured is lost: free space, or give yourself "
                "permission, then resume."
            ) from error
        raise _corrupt(path, str(error)) from error
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        raise _corrupt(path, str(error)) from error


def _corrupt(path: Path, detail: str) -> JournalCorrupt:
    return JournalCorrupt(
        f"{path} is damaged ({detail}) and is not used. Restore it from a copy, or move it away "
        "with its -wal and -shm files: the search then measures again from the start."
    )


def _row(sequence: int, record: Record) -> tuple[Any, ...]:
    genome, metrics = _canonical(list(record.genome)), _canonical(dict(record.metrics))
    seconds, generation = float(record.seconds), int(record.generation)
    return (
        sequence,
        record.key,
        record.stage,
        genome,
        record.status,
        record.reason,
        metrics,
        seconds,
        generation,
    )


def _chain(head: str, row: tuple[Any, ...]) -> str:
    return hashlib.sha256((head + _canonical(list(row))).encode()).hexdigest()


def _load(db: sqlite3.Connection, path: Path) -> tuple[dict[str, str], list[Record], str]:
    problems = [row[0] for row in db.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        raise _corrupt(path, str(problems[0]))
    meta = dict(db.execute("SELECT name, value FROM meta ORDER BY name"))
    head = hashlib.sha256(_canonical(meta).encode()).hexdigest()
    records: list[Record] = []
    for *row, checksum in db.execute(f"SELECT {_COLUMNS}, checksum FROM evaluations ORDER BY sequence"):
        head = _chain(head, tuple(row))
        if checksum != head or row[0] != len(records):
            raise _corrupt(path, f"row {len(records)} does not match its checksum")
        records.append(_record(row))
    return meta, records, head


def _record(row: Sequence[Any]) -> Record:
    _, key, stage, genome, status, reason, metrics, seconds, generation = row
    return Record(
        key=key,
        genome=tuple(json.loads(genome)),
        status=status,
        reason=reason,
        metrics=json.loads(metrics),
        seconds=seconds,
        generation=generation,
        stage=stage,
    )

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
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
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


@dataclass(frozen=True)
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
                stored, self._rows, self._head = _load(self._db, self.path)
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
        return self._rows.get((key, stage))

    def add(self, record: Record) -> None:
        """Write one record durably; ValueError if that stage of that architecture is already there."""
        if (record.key, record.stage) in self._rows:
            raise ValueError(f"key: {record.key} already has stage {record.stage!r}; a measurement is never replaced")
        row = _row(len(self._rows), record)
        head = _chain(self._head, row)
        with _explained(self.path):
            self._db.execute(
                f"INSERT INTO evaluations ({_COLUMNS}, checksum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", (*row, head)
            )
        self._head = head
        self._rows[(record.key, record.stage)] = record

    def records(self) -> list[Record]:
        """Every record, in the order of writing."""
        return list(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

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
    with _explained(path):
        db = sqlite3.connect(path)
        try:
            meta, rows, _ = _load(db, path)
        finally:
            db.close()
    return {name: json.loads(value) for name, value in meta.items()}, list(rows.values())


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _acquire(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path = path.with_name(path.name + ".lock")
    lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise JournalLocked(
            f"{path.parent} is in use by another process (pid {holder}). Wait for it to end, or use another folder."
        ) from None
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
        if "full" in str(error) or "I/O" in str(error) or "readonly" in str(error):
            raise JournalError(f"{path} cannot be written: {error}. Free space or permissions, then resume.") from error
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


def _load(db: sqlite3.Connection, path: Path) -> tuple[dict[str, str], dict[tuple[str, str], Record], str]:
    problems = [row[0] for row in db.execute("PRAGMA integrity_check")]
    if problems != ["ok"]:
        raise _corrupt(path, str(problems[0]))
    meta = dict(db.execute("SELECT name, value FROM meta ORDER BY name"))
    head = hashlib.sha256(_canonical(meta).encode()).hexdigest()
    rows: dict[tuple[str, str], Record] = {}
    for *row, checksum in db.execute(f"SELECT {_COLUMNS}, checksum FROM evaluations ORDER BY sequence"):
        head = _chain(head, tuple(row))
        if checksum != head or row[0] != len(rows):
            raise _corrupt(path, f"row {len(rows)} does not match its checksum")
        _, key, stage, genome, status, reason, metrics, seconds, generation = row
        rows[(key, stage)] = Record(
            key=key,
            genome=tuple(json.loads(genome)),
            status=status,
            reason=reason,
            metrics=json.loads(metrics),
            seconds=seconds,
            generation=generation,
            stage=stage,
        )
    return meta, rows, head

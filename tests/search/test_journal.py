"""The journal: one row per measurement, refused when damaged, locked, or of another run."""

import math
import sqlite3
import subprocess
import sys
from random import Random

import pytest

from bitnas.search import Journal, JournalCorrupt, JournalLocked, JournalMismatch, Record
from bitnas.search.journal import read_journal

META = {"seed": 0, "choices": [0.25, 1.0], "config": "abc"}


def record(index, **more):
    return Record(key=f"{index:064x}", genome=(1.0, 2.0), metrics={"accuracy": index / 7}, seconds=0.5, **more)


def filled(path, count=20):
    with Journal(path, meta=META) as journal:
        for index in range(count):
            journal.add(record(index) if index % 5 else Record.failure("lost", key=f"{index:064x}", genome=(1.0,)))
    return path


def test_records_come_back_as_they_were_written(tmp_path):
    path = filled(tmp_path / "journal.sqlite")
    with Journal(path, meta=META) as journal:
        records = journal.records()
        assert len(journal) == 20
        assert records[1] == record(1)
        assert (records[5].status, records[5].reason, records[5].metrics) == ("failed", "lost", {})
        assert journal.get(f"{3:064x}") == record(3)
        assert journal.get(f"{3:064x}", "latency") is None
    meta, again = read_journal(path)
    assert (meta, again) == (META, records)


def test_durable_settings(tmp_path):
    with Journal(tmp_path / "j.sqlite", meta=META) as journal:
        assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_a_measurement_is_never_replaced(tmp_path):
    with Journal(tmp_path / "j.sqlite", meta=META) as journal:
        journal.add(record(1))
        with pytest.raises(ValueError, match="never replaced"):
            journal.add(record(1))
        journal.add(record(1, stage="latency"))
        assert len(journal) == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None, "fast"])
def test_what_is_no_finite_number_becomes_a_failure_with_its_reason(bad):
    made = Record.of({"accuracy": 0.5, "latency_us": bad}, key="k", genome=(1.0,))
    assert made.status == "failed"
    assert "latency_us" in made.reason
    assert made.metrics == {}


def test_a_record_refuses_non_finite_metrics():
    with pytest.raises(ValueError, match="metrics"):
        Record(key="k", genome=(1.0,), metrics={"accuracy": math.nan})
    with pytest.raises(ValueError, match="status"):
        Record(key="k", genome=(1.0,), status="running")


def test_other_settings_are_refused_by_name(tmp_path):
    path = filled(tmp_path / "j.sqlite")
    with pytest.raises(JournalMismatch, match=r"j\.sqlite.*seed is 0 there and 1 here"):
        Journal(path, meta={**META, "seed": 1})
    with pytest.raises(JournalMismatch, match="lambda is None there"):
        Journal(path, meta={**META, "lambda": 4})
    Journal(path, meta=META).close()  # a refusal keeps no lock


def test_second_opening_in_this_process_is_refused(tmp_path):
    with Journal(tmp_path / "j.sqlite", meta=META):
        with pytest.raises(JournalLocked, match="in use by another process"):
            Journal(tmp_path / "j.sqlite", meta=META)
        assert read_journal(tmp_path / "j.sqlite")[0] == META  # reading needs no lock


def test_second_process_is_refused(tmp_path):
    code = "import sys\nfrom bitnas.search import Journal\nJournal(sys.argv[1], meta={'seed': 0})"
    with Journal(tmp_path / "j.sqlite", meta={"seed": 0}):
        run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "j.sqlite")], capture_output=True, text=True)
        assert run.returncode != 0
        assert "JournalLocked" in run.stderr
        assert str(tmp_path) in run.stderr
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "j.sqlite")]).returncode == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE evaluations SET metrics = '{\"accuracy\":0.99}' WHERE sequence = 3",
        "UPDATE evaluations SET status = 'ok', reason = '' WHERE sequence = 5",
        "UPDATE evaluations SET genome = '[4.0]' WHERE sequence = 7",
        "UPDATE evaluations SET metrics = 'x' WHERE sequence = 19",
        "DELETE FROM evaluations WHERE sequence = 4",
        "DELETE FROM evaluations WHERE sequence = 0",
        "UPDATE meta SET value = '1' WHERE name = 'seed'",
        "DROP TABLE evaluations",
        "ALTER TABLE evaluations RENAME COLUMN reason TO why",
    ],
)
def test_altered_rows_are_refused(tmp_path, statement):
    path = filled(tmp_path / "j.sqlite")
    db = sqlite3.connect(path)
    db.execute(statement)
    db.commit()
    db.close()
    with pytest.raises(JournalCorrupt, match=r"j\.sqlite is damaged .* move it away"):
        Journal(path, meta=META)
    with pytest.raises(JournalCorrupt):
        read_journal(path)


def test_files_that_are_no_journal_are_refused(tmp_path):
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"not a database, but long enough to be read as one" * 40)
    with pytest.raises(JournalCorrupt, match=r"j\.sqlite"):
        Journal(path, meta=META)
    with pytest.raises(FileNotFoundError, match="no such journal"):
        read_journal(tmp_path / "missing.sqlite")


def test_random_damage_is_refused_or_changes_nothing(tmp_path):
    """Bytes flipped, cut and overwritten anywhere: what loads is what was written, or the start of it."""
    path = filled(tmp_path / "j.sqlite", count=60)
    whole, good = path.read_bytes(), read_journal(path)[1]
    rng, refused = Random(0), 0
    for _ in range(300):
        data = bytearray(whole)
        kind = rng.choice(["flip", "cut", "block"])
        at = rng.randrange(len(data))
        if kind == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del data[at:]
        else:
            data[at : at + 64] = rng.randbytes(len(data[at : at + 64]))
        for old in tmp_path.glob("j.sqlite*"):
            old.unlink()
        path.write_bytes(data)
        try:
            meta, records = read_journal(path)
        except JournalCorrupt:
            refused += 1
        else:
            assert meta == META
            assert records == good[: len(records)]
    assert refused > 100

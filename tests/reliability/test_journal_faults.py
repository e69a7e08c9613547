"""The journal under kill -9, torn writes, full, broken and read-only disks: the last good state, or a clear refusal."""

import json
import os
import random
import resource
import shutil
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bitnas.search import Journal, JournalCorrupt, JournalError, JournalLocked, Record
from bitnas.search.journal import read_journal
from tests.reliability import small_search

ROOT = Path(__file__).parents[2]
META = {"seed": 5}


def record(index, size=0):
    return Record(key=f"{index:064x}", genome=(1.0, index / 3), metrics={"accuracy": index / 7}, reason="x" * size)


def killed_searches(folder, kills, workers, pause, mean):
    arguments = [str(value) for value in (folder, kills, workers, pause, mean)]
    run = subprocess.run(
        [sys.executable, "-m", "tests.reliability.kill", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout)
    assert found["kills"] >= kills
    return found


def test_killed_at_random_moments(tmp_path):
    killed_searches(tmp_path, 15, 0, 0.002, 0.1)


@pytest.mark.slow
def test_killed_at_many_random_moments(tmp_path):
    print(killed_searches(tmp_path, 400, 0, 0.005, 0.1))


@pytest.mark.slow
def test_killed_at_random_moments_with_workers(tmp_path):
    print(killed_searches(tmp_path, 20, 2, 0.005, 1.5))


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A journal as a kill leaves it, half in the file and half in its -wal; and its records."""
    folder = tmp_path_factory.mktemp("image")
    with Journal(folder / "a.sqlite", meta=META) as journal:
        for index in range(40):
            journal.add(record(index, 100))
            if index == 19:
                journal._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        main, wal = (folder / "a.sqlite").read_bytes(), (folder / "a.sqlite-wal").read_bytes()
        records = journal.records()
    assert len(wal) > 20 * 4096
    return main, wal, records


def outcome(folder, main, wal, records):
    """Write a damaged journal and open it: how many rows it still has, or None if it was refused. Never other rows."""
    path = folder / "j.sqlite"
    for old in folder.glob("j.sqlite*"):
        old.unlink()
    path.write_bytes(main)
    if wal is not None:
        Path(f"{path}-wal").write_bytes(wal)
    try:
        with Journal(path, meta=META) as journal:
            found = journal.records()
            assert found == records[: len(found)]
            if len(found) < len(records):
                journal.add(records[len(found)])  # what was lost is measured again
    except JournalCorrupt as error:
        assert str(path) in str(error)  # noqa: PT017
        return None
    assert read_journal(path)[1] == records[: min(len(found) + 1, len(records))]
    return len(found)


def test_a_wal_cut_at_each_frame_and_anywhere_keeps_the_rows_before(tmp_path, image):
    main, wal, records = image
    frame = 24 + struct.unpack(">I", wal[8:12])[0]
    assert (len(wal) - 32) % frame == 0
    counts = [outcome(tmp_path, main, wal[:cut], records) for cut in range(32, len(wal) + 1, frame)]
    assert counts[0] == 20
    assert counts[-1] == 40
    assert counts == sorted(counts)
    rng = random.Random(0)
    for _ in range(60):
        cut = rng.randrange(len(wal))
        assert outcome(tmp_path, main, wal[:cut], records) == counts[max(0, cut - 32) // frame]
    assert outcome(tmp_path, main, None, records) == 20


def test_damage_in_file_or_wal_is_refused_or_leaves_earlier_rows(tmp_path, image):
    main, wal, records = image
    rng, refused = random.Random(1), 0
    for _ in range(150):
        parts = [bytearray(main), bytearray(wal)]
        data = parts[rng.randrange(2)]
        at = rng.randrange(len(data))
        size = rng.choice([1, 64, 512, 4096])
        data[at : at + size] = rng.choice([rng.randbytes, bytes])(len(data[at : at + size]))
        count = outcome(tmp_path, *parts, records)
        refused += count is None
    assert refused > 5


def test_a_page_half_written_in_a_checkpoint_is_mended_from_the_wal(tmp_path, image):
    """A checkpoint copies pages from the -wal into the file; the -wal is still there if it is cut short."""
    main, wal, records = image
    size = 4096
    for page in range(len(main) // size):
        torn = bytearray(main)
        torn[page * size + size // 2 : (page + 1) * size] = os.urandom(size // 2)
        count = outcome(tmp_path, torn, wal, records)
        assert count in (None, 40)


def test_file_size_limit_stops_a_row_and_it_goes_on_after(tmp_path):
    """A disk that takes no more bytes, in the middle of a search: clear error, whole journal, same end."""
    (tmp_path / "whole").mkdir()
    small_search.search(tmp_path / "whole", generations=6)
    folder = tmp_path / "full"
    folder.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, hard))
    try:
        with pytest.raises(
            JournalError, match=r"journal\.sqlite cannot be written: .*Nothing that was measured is lost"
        ):
            small_search.search(folder, generations=6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    kept = len(read_journal(folder / "journal.sqlite")[1])
    assert 0 < kept < 120
    small_search.search(folder, generations=6)
    assert (folder / "front.json").read_bytes() == (tmp_path / "whole/front.json").read_bytes()
    assert len((folder / "log").read_text().splitlines()) == 121  # the one whose row did not fit


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 4 MiB, where this user may mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_full_disk_stops_with_a_clear_error_and_resumes_when_there_is_space(tmp_path, small_disk):
    (tmp_path / "whole").mkdir()
    small_search.search(tmp_path / "whole", generations=6)
    folder = small_disk / "run"
    folder.mkdir()
    (small_disk / "ballast").write_bytes(bytes(3_900_000))
    with pytest.raises((JournalError, OSError), match=r"full|No space|I/O"):
        small_search.search(folder, generations=6)
    (small_disk / "ballast").unlink()
    assert len(read_journal(folder / "journal.sqlite")[1]) > 0
    small_search.search(folder, generations=6)
    assert (folder / "front.json").read_bytes() == (tmp_path / "whole/front.json").read_bytes()


def test_read_only_disk_is_refused_and_still_read(small_disk):
    with Journal(small_disk / "j.sqlite", meta=META) as journal:
        journal.add(record(1))
        wal = [path.read_bytes() for path in (small_disk / "j.sqlite", small_disk / "j.sqlite-wal")]
    for path, data in zip(("j.sqlite", "j.sqlite-wal"), wal, strict=True):
        (small_disk / path).write_bytes(data)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(JournalError, match=r"disk cannot be written: Read-only file system\. Give yourself"):
        Journal(small_disk / "j.sqlite", meta=META)
    with pytest.raises(JournalError, match="cannot be written"):
        Journal(small_disk / "new/j.sqlite", meta=META)
    assert read_journal(small_disk / "j.sqlite") == (META, [record(1)])


def test_sqlite_faults_have_one_clear_message(tmp_path, monkeypatch):
    """EIO and the like as SQLite words them; the row is not taken for written, and is written once the disk works."""

    class Broken:
        def __init__(self, db, words):
            self.db, self.words = db, words

        def execute(self, statement, *rest):
            raise sqlite3.OperationalError(self.words)

    with Journal(tmp_path / "j.sqlite", meta=META) as journal:
        whole = journal._db
        for words in ("disk I/O error", "database or disk is full", "attempt to write a readonly database"):
            with monkeypatch.context() as patch:
                patch.setattr(journal, "_db", Broken(whole, words))
                with pytest.raises(JournalError, match=f"cannot be written: {words}"):
                    journal.add(record(1))
            assert len(journal) == 0
        journal.add(record(1))
    assert read_journal(tmp_path / "j.sqlite")[1] == [record(1)]


def test_two_searches_on_one_folder(tmp_path):
    with (
        Journal(tmp_path / "journal.sqlite", meta=small_search.META),
        pytest.raises(JournalLocked, match=f"pid {os.getpid()}"),
    ):
        small_search.search(tmp_path)
    small_search.search(tmp_path, generations=1)

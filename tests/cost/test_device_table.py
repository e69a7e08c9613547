"""The table as a file: sums, intervals, and that it is whole or refused, whatever happens to it."""

import math
import os
import random
import resource
import signal
import sqlite3
import statistics

import pytest

from bitnas.cost.agreement import compare
from bitnas.cost.call_times import Reading
from bitnas.cost.device_table import (
    DeviceTable,
    TableError,
    TableLocked,
    TableWriter,
    Visit,
    default_table,
    latency_key,
)
from bitnas.files import CorruptFileError

KEY = latency_key(batch=1, threads=1)
SPACE = {"model": "m", "choices": [1.0, 2.0], "base_width": 1.0}


def reading(us, noisy=False):
    return Reading(us, us, 0.99 * us, 1.01 * us, 0.998 * us, 1.002 * us, 20, noisy)


def visit(network, times, *, number=0, reference=100.0, space=SPACE, noisy=False):
    readings = tuple(reading(us, noisy) for us in times.values())
    return Visit(space, network, number, tuple(times), readings, sum(times.values()), reference, 0.1, "2026-01-01")


def write(path, *visits, key=KEY):
    with TableWriter(path) as writer:
        for one in visits:
            writer.add_visit(key, one)
    return DeviceTable.open(path)


# ---- what it says -----------------------------------------------------------------------


def test_a_prediction_is_the_sum_of_the_medians(tmp_path):
    table = write(
        tmp_path / "t.sqlite",
        visit([1], {"a": 10.0, "b": 100.0}),
        visit([2], {"a": 12.0, "b": 100.0, "c": 1.0}),
        visit([3], {"a": 11.0}),
    )
    prediction = table.predict(["a", "b", "a"], KEY)
    assert prediction.latency_us == 11 + 100 + 11
    assert prediction.missing == ()
    spread = 2 * statistics.stdev([10, 12, 11]) * math.sqrt(1 + 1 / 3)
    within = 0.002 * 100 / 1.96
    assert prediction.high_us - prediction.latency_us == pytest.approx(1.96 * math.hypot(spread, within))
    assert prediction.latency_us - prediction.low_us == pytest.approx(prediction.high_us - prediction.latency_us)


def test_missing_calls_are_named_and_no_number_is_given(tmp_path):
    table = write(tmp_path / "t.sqlite", visit([1], {"a": 10.0}))
    prediction = table.predict(["a", "x", "y", "x"], KEY)
    assert prediction.missing == ("x", "y")
    assert math.isnan(prediction.latency_us)
    assert table.predict(["a"], {**KEY, "threads": 2}).missing == ("a",)


def test_the_interval_is_at_least_the_checks_error(tmp_path):
    path = tmp_path / "t.sqlite"
    write(path, visit([1], {"a": 1000.0}))
    check = compare([(110.0, 100.0), (100.0, 100.0)], date="d")
    with TableWriter(path) as writer:
        writer.add_check(KEY, SPACE, check)
    table = DeviceTable.open(path)
    assert table.last_check(KEY) == table.last_check(KEY, SPACE) == check
    assert table.last_check(KEY, {**SPACE, "choices": [2.0]}) == check  # a part of what was checked
    assert table.last_check(KEY, {**SPACE, "choices": [2.0, 3.0]}) is None
    assert table.last_check(KEY, {**SPACE, "base_width": 0.5}) is None
    assert table.last_check({**KEY, "batch": 2}) is None
    assert table.predict(["a"], KEY, SPACE).high_us == pytest.approx(1100)
    assert table.predict(["a"], KEY, {**SPACE, "model": "n"}).high_us < 1010


def test_what_was_read_out_of_step_counts_only_where_nothing_else_is_known(tmp_path):
    table = write(
        tmp_path / "t.sqlite",
        visit([1], {"a": 10.0}),
        visit([2], {"a": 20.0, "b": 30.0}, reference=150.0),
        visit([3], {"a": 10.2}, reference=104.0),
    )
    entries = table.entries(KEY)
    assert [r.us for r in entries["a"].readings] == [10.0, 10.2]
    assert entries["b"].us == 30.0


def test_an_entry_is_noisy_where_all_readings_are(tmp_path):
    table = write(tmp_path / "t.sqlite", visit([1], {"a": 1.0, "b": 1.0}, noisy=True), visit([2], {"a": 1.0}))
    assert {s: e.noisy for s, e in table.entries(KEY).items()} == {"a": False, "b": True}


def test_a_few_bad_readings_of_many_do_not_widen_the_interval(tmp_path):
    values = [10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 50.0]
    table = write(tmp_path / "t.sqlite", *(visit([i], {"a": us}) for i, us in enumerate(values)))
    assert table.entries(KEY)["a"].us == 10.0
    assert table.entries(KEY)["a"].deviation_us < 0.2


def test_a_reading_must_be_finite():
    with pytest.raises(ValueError, match="finite"):
        reading(math.nan)


def test_keys_name_the_device():
    assert KEY.keys() >= {"device", "cpu", "isa", "kernel_version", "torch", "memory", "batch", "threads"}
    with pytest.raises(ValueError, match="CPU only"):
        latency_key(device="cuda")
    with pytest.raises(ValueError, match="batch: got 0"):
        latency_key(batch=0)


def test_the_default_place(monkeypatch, tmp_path):
    monkeypatch.setenv("BITNAS_TABLE", str(tmp_path / "mine"))
    assert default_table() == tmp_path / "mine"
    monkeypatch.delenv("BITNAS_TABLE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_table() == tmp_path / "bitnas" / "latency.sqlite"


# ---- what can happen to it ---------------------------------------------------------------


def test_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="bitnas latency build"):
        DeviceTable.open(tmp_path / "none.sqlite")


def test_a_changed_file_is_refused_or_reads_the_same(tmp_path):
    path = tmp_path / "t.sqlite"
    table = write(path, *(visit([i], {"a": 10.0 + i, f"b{i}": 100.0}) for i in range(20)))
    with TableWriter(path) as writer:
        writer.add_check(KEY, SPACE, compare([(1.0, 1.0), (2.0, 2.0)]))
    table, good = DeviceTable.open(path), path.read_bytes()
    generator, refused = random.Random(0), 0
    for i in range(300):
        bad = bytearray(good)
        place = generator.randrange(len(bad))
        match i % 4:
            case 0:
                bad[place] ^= 1 << generator.randrange(8)
            case 1:
                del bad[place:]
            case 2:
                bad[place : place + 64] = generator.randbytes(64)
            case 3:
                bad[place : place + 8] = bad[place + 8 : place + 16]
        path.write_bytes(bad)
        try:
            found = DeviceTable.open(path)
        except (CorruptFileError, TableError):
            refused += 1
        else:
            assert found._rows == table._rows
    assert refused > 100


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rows SET body = replace(body, '10.0', '10.5') WHERE sequence = 1",
        "DELETE FROM rows WHERE sequence = 2",
        "UPDATE rows SET kind = 'check' WHERE sequence = 3",
        "UPDATE rows SET sequence = 99 WHERE sequence = 3",
        "ALTER TABLE rows RENAME TO other",
    ],
)
def test_an_edited_table_is_refused(tmp_path, change):
    path = tmp_path / "t.sqlite"
    write(path, *(visit([i], {"a": 10.0}) for i in range(3)))
    db = sqlite3.connect(path)
    db.execute(change)
    db.commit()
    db.close()
    for use in (DeviceTable.open, TableWriter):
        with pytest.raises(CorruptFileError, match="bitnas latency build again"):
            use(path)


def test_other_files_are_no_tables(tmp_path):
    path = tmp_path / "t.sqlite"
    path.write_text("not SQLite at all, but long enough to be looked at" * 100)
    with pytest.raises(CorruptFileError, match="no latency table"):
        DeviceTable.open(path)


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    path = tmp_path / "t.sqlite"
    with TableWriter(path) as writer:
        writer.add_visit(KEY, visit([1], {"a": 10.0}))
        with pytest.raises(TableLocked, match=f"pid {os.getpid()}"):
            TableWriter(path)
        assert DeviceTable.open(path).entries(KEY)["a"].us == 10.0  # beside the writer
    with TableWriter(path) as writer:
        assert len(writer.table.visits(KEY)) == 1


def forked(work):
    """Runs ``work(say)`` in a process of its own: its pid, and a file with what it says. No second import of torch."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            work(lambda text: os.write(theirs, f"{text}\n".encode()))
        finally:
            os._exit(0)
    os.close(theirs)
    return pid, os.fdopen(ours)


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_9_keeps_what_was_written(tmp_path, kills):
    path, generator = tmp_path / "t.sqlite", random.Random(0)

    def work(say):
        with TableWriter(path) as writer:
            for i in range(len(writer.table.visits(KEY)), 1_000_000):
                writer.add_visit(KEY, visit([i], {"a": 10.0, f"b{i}": 1.0}))
                say(i)

    seen = -1
    for _ in range(kills):
        pid, says = forked(work)
        for _ in range(generator.randrange(1, 20)):
            last = int(says.readline())
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        says.close()
        networks = [v.network for v in DeviceTable.open(path).visits(KEY)]
        assert networks == [[i] for i in range(len(networks))]
        assert len(networks) > last > seen
        seen = last


def test_a_full_disk_is_said_and_the_rest_can_be_read(tmp_path):
    path = tmp_path / "t.sqlite"

    def work(say):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
        with TableWriter(path) as writer:
            for i in range(1000):
                try:
                    writer.add_visit(KEY, visit([i], {"a": 10.0, "b" * 1000: 1.0}))
                except TableError as error:
                    say(f"{i} {error}")
                    return

    pid, says = forked(work)
    written, _, message = says.read().partition(" ")
    os.waitpid(pid, 0)
    says.close()
    assert "cannot be written" in message
    assert str(path) in message
    assert len(DeviceTable.open(path).visits(KEY)) == int(written) > 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TableError, match="--table"):
        TableWriter(tmp_path / "file" / "t.sqlite")

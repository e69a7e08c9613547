"""The lock of the machine: one process at a time, given back however its holder ends."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bitnas.cost import exclusive as module
from bitnas.cost.exclusive import exclusive, lock_path

_HOLD = """
import sys
from bitnas.cost.exclusive import exclusive
with exclusive():
    print("held", flush=True)
    sys.stdin.read()
"""

_AGAIN_AND_AGAIN = """
import time
from bitnas.cost.exclusive import exclusive
while True:
    with exclusive():
        print("held", flush=True)
        time.sleep(0.2)
    time.sleep(0.002)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A temporary folder of the test's own, for it and the processes it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(module.tempfile, "tempdir", None)
    yield tmp_path
    module.tempfile.tempdir = None


def holder():
    process = subprocess.Popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_it_waits_says_for_whom_and_goes_on_when_the_holder_is_killed(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE_SECONDS", 0.1)
    process, said = holder(), []

    def notify(text):
        said.append((text, time.monotonic()))
        process.send_signal(signal.SIGKILL)

    with exclusive(notify=notify):
        assert len(said) == 1
        assert f"pid {process.pid}" in said[0][0]
    process.communicate()


def test_a_process_that_holds_it_takes_it_again_and_gives_it_back_at_last():
    with exclusive():
        with exclusive():
            pass
        assert not _free()
        with pytest.raises(ZeroDivisionError), exclusive():
            1 / 0  # noqa: B018
        assert not _free()
    assert _free()


def test_who_waits_gets_it_between_two_turns_of_a_busy_holder():
    process = subprocess.Popen([sys.executable, "-c", _AGAIN_AND_AGAIN], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        start = time.monotonic()
        for _ in range(3):
            with exclusive():
                pass
        assert time.monotonic() - start < 10
    finally:
        process.kill()
        process.communicate()


def _free() -> bool:
    code = "import sys, os, fcntl; fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", code, lock_path()], stderr=subprocess.DEVNULL).returncode == 0


def test_a_link_in_place_of_the_file_is_not_followed(folder):
    target = folder / "somebody's"
    os.symlink(target, lock_path())
    with pytest.raises(OSError, match="bitnas-"), exclusive():
        pass
    assert not target.exists()

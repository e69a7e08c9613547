"""What /proc says of processes; Linux only, as the tests that use it."""

import os
import time
from pathlib import Path


def state(pid):
    """One letter, as in ps: R, S, Z (a zombie) ...; empty if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(parent=None):
    """(pid, state) of the children of a process, zombies included."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == (parent or os.getpid()):
                found.append((int(entry.name), fields[0]))
    return found


def running(pid):
    return state(pid) not in ("", "Z")


def gone_within(pids, seconds):
    """True if none of these processes runs any more after at most that time."""
    deadline = time.monotonic() + seconds
    while any(running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(running(pid) for pid in pids)

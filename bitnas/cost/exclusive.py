"""One measurement at a time on a machine: two that run together are each other's noise.

The lock is a file of this user's in the temporary folder, held by flock, so the system releases it when a process dies,
however it dies. A process that holds it may take it again.
"""

import fcntl
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_SECONDS = 3.0

_inside = threading.RLock()  # threads of this process wait here, and the holder passes
_held = {"pid": 0, "depth": 0}


def lock_path(name: str = "measuring") -> Path:
    """The file that is locked: one per user and machine."""
    return Path(tempfile.gettempdir()) / f"bitnas-{os.getuid()}.{name}.lock"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def exclusive(name: str = "measuring", *, notify: Callable[[str], None] = _say) -> Iterator[None]:
    """Holds the machine's lock of that name; waits for it, and says so after some seconds.

    Args:
        notify: is told once for whom it waits. By default, a line on stderr.

    Raises:
        OSError: the temporary folder cannot be written. PermissionError: the lock file is not this user's own.
    """
    with _inside:
        if _held["pid"] == os.getpid() and _held["depth"]:
            _held["depth"] += 1
            try:
                yield
            finally:
                _held["depth"] -= 1
            return
        lock = _acquire(lock_path(name), notify)
        _held.update(pid=os.getpid(), depth=1)
        try:
            yield
        finally:
            _held["depth"] = 0
            os.close(lock)


def _acquire(path: Path, notify: Callable[[str], None]) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW  # not into a file that someone else put a link to
    lock = os.open(path, flags, 0o600)
    try:
        found = os.fstat(lock)
        if found.st_uid != os.getuid() or not stat.S_ISREG(found.st_mode):
            raise PermissionError(f"{path} is not a file of this user's own; remove it, or set TMPDIR to a folder")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # Waited for in the system's queue: who polls is too late where the holder takes it again at once.
            tell = threading.Timer(_PATIENCE_SECONDS, lambda: notify(_waiting_for(lock)))
            tell.daemon = True
            tell.start()
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            finally:
                tell.cancel()
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _waiting_for(lock: int) -> str:
    holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
    return f"waiting: another bitnas process (pid {holder}) is measuring on this machine"

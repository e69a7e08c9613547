"""Peak memory of this process and everything it started, read from /proc.

A search trains in several processes that share torch's pages, so the sum of their resident sizes counts those pages
more than once. The proportional set size (PSS) splits each shared page among its users; its sum is what the machine
gives away. Sampled every half second: a short spike between two samples is not seen.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import TracebackType

_PROC = Path("/proc")


def process_tree(root: int) -> list[int]:
    """`root` and all its descendants that are alive now; only `root` where there is no /proc."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir() if _PROC.is_dir() else ():
        if entry.name.isdigit():
            try:
                # The command name stands in parentheses and may hold anything; the parent is the second field after it.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue  # the process ended while we looked
            children.setdefault(parent, []).append(int(entry.name))
    tree, pending = [], [root]
    while pending:
        process = pending.pop()
        tree.append(process)
        pending += children.get(process, [])
    return tree


def memory_bytes(process: int) -> int:
    """PSS of one process in bytes, its resident size where the kernel does not tell PSS, and 0 if it has ended."""
    for name, key in (("smaps_rollup", "Pss:"), ("status", "VmRSS:")):
        try:
            lines = (_PROC / str(process) / name).read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            if line.startswith(key):
                return int(line.split()[1]) * 1024
    return 0


def tree_memory_bytes() -> int:
    """Memory of this process and its descendants now, in bytes; 0 where there is no /proc."""
    return sum(memory_bytes(process) for process in process_tree(os.getpid()))


class PeakMemory:
    """Context manager that samples in a thread. `peak_bytes` holds the largest sum so far."""

    def __init__(self, interval: float = 0.5) -> None:
        if not interval > 0:
            raise ValueError(f"interval must be positive seconds, got {interval}")
        self.peak_bytes = 0
        self._interval = interval
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)

    def sample(self) -> None:
        """Look once."""
        self.peak_bytes = max(self.peak_bytes, tree_memory_bytes())

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.sample()

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

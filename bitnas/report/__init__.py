"""The report of a run: one HTML file that needs no network, no script and no other file.

It is written from the run folder alone, so it can be made again at any time, also of a search that still runs.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["build"]


def build(run_dir: str | Path) -> Path:
    """Write `report.html` into the run folder, atomically, and return its path.

    A piece the run has not measured yet (no study, no latency) is named by a plain sentence in its place.

    Args:
        run_dir: folder of a search; must hold `config.json`.

    Raises:
        FileNotFoundError: the folder or its `config.json` is missing.
        CorruptFileError: `config.json`, `front.json` or `study.json` is damaged.
        JournalCorrupt: `journal.sqlite` is damaged.
    """
    from ..files import write_bytes_atomic
    from .load import load_run
    from .page import render

    run = load_run(run_dir)
    path = run.folder / "report.html"
    write_bytes_atomic(path, render(run).encode())
    return path

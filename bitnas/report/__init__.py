"""The report of a run: one HTML file that needs no network, no script and no other file.

It is written from the run folder alone, so it can be made again at any time, also of a search that still runs.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["build"]


def build(run_dir: str | Path) -> Path:
    """Write `report.html` into the folder, atomically, and return its path.

    A piece that has not been measured yet (no study, no latency) is named by a plain sentence in its place.

    Args:
        run_dir: folder of a search (`config.json`), of a reproduction (`reproduction.json`), of a test of the claim
            (`claim.json`), of a study of NAS-BNN (`ranking.json`, `ablation.json`, `against.json`) or of BARS
            (`cells.json`, `guards.json`, `cost.json`, `parts.json`), or of methods against each other (`compare.json`);
            one that holds several gets a page with the sections of all.

    Raises:
        FileNotFoundError: the folder is missing, or holds none of these.
        CorruptFileError: one of these files, `search.json`, `front.json`, `course.json` or `study.json` is damaged.
        JournalCorrupt: `journal.sqlite` is damaged.
    """
    from ..files import write_bytes_atomic
    from .load import load_run
    from .page import render

    run = load_run(run_dir)
    path = run.folder / "report.html"
    write_bytes_atomic(path, render(run).encode())
    return path

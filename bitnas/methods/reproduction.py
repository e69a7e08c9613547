"""What the reproductions of all papers share: their file, what of it is kept from a run before, and the machine.

`reproduction.json` is the only state of a reproduction; each paper's `reproduce` says what is in its rows.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitnas.files import CorruptFileError

REPRODUCTION = "reproduction.json"
FORMAT = "bitnas-reproduction-1"


def facts() -> dict[str, Any]:
    """What `bitnas doctor` knows of the machine."""
    from bitnas.cost import machine

    return machine.facts()


def machine_key() -> dict[str, Any]:
    """What two latencies must share to stand in one column."""
    known = facts()
    return {name: known.get(name) for name in ("cpu", "isa", "kernel_version", "torch")}


def read(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The `reproduction.json` of a folder; FileNotFoundError if it holds none, CorruptFileError if it is damaged."""
    path = Path(folder) / REPRODUCTION
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}, wanted {FORMAT!r}")
        for table in found["tables"]:
            for row in table["rows"]:
                (row["key"], row["latency"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(path, f"is not a reproduction ({error}); delete it to start anew") from error
    return found


def timed_before(folder: Path, paper: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Latencies that the folder holds, by row; none if it holds no reproduction.

    Raises FileExistsError for a file in place of the folder, ValueError for a folder of another paper: nothing of it
    may be written over.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, wanted a folder")
    if not (folder / REPRODUCTION).exists():
        return {}
    found = read(folder)
    if found.get("paper") not in (None, dict(paper)):
        raise ValueError(f"{folder} holds the reproduction of another paper; choose another folder")
    rows = [row for table in found["tables"] for row in table["rows"]]
    return {**found.get("kept", {}), **{row["key"]: row["latency"] for row in rows if row["latency"] is not None}}


def ms(us: float) -> str:
    """Microseconds as milliseconds of three digits."""
    return f"{us / 1000:.0f}" if us >= 1e5 else f"{us / 1000:.3g}"

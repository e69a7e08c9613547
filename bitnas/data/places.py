"""Where the files of a data set by name are looked for, and how a path is shown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "BITNAS_DATA"


def bases(root: Path | None) -> list[Path]:
    """The folders to look in: `root` alone if it is given, else the folder that BITNAS_DATA names, and ./data."""
    if root is not None:
        return [root]
    named = os.environ.get(VARIABLE)
    return [*([Path(named)] if named else []), Path("data")]


def not_found(name: str, root: Path | None, wanted: Sequence[str]) -> FileNotFoundError:
    """The error that says where `name` was looked for and what would have been taken."""
    looked = ", ".join(str(base.absolute()) for base in bases(root))
    return FileNotFoundError(
        f"{name} was not found in {looked}; wanted there {', or '.join(wanted)}. Put the data in ./data, or name "
        f"the folder in the environment variable {VARIABLE}, or as root= (--data-root of `bitnas train`, --root of "
        "`bitnas data`)"
    )


def shown(path: str | bytes | os.PathLike[str]) -> str:
    """A path as text that any terminal and file can take: bytes that are not UTF-8 appear as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")

"""One training run, one folder, one process at a time: a lock that dies with its holder, and the settings in a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitnas.files import CorruptFileError, write_json_atomic

LOCK, SETTINGS = "train.lock", "settings.json"


class FolderInUse(RuntimeError):
    """Another process trains in the folder."""


class OtherSettings(ValueError):
    """The folder belongs to a run with other settings."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this process. Raises FolderInUse if another one does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise FolderInUse(
                f"{folder} is in use by another process (pid {holder}). Wait for it to end, or use another folder"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(lock)


def claim(folder: Path, settings: Mapping[str, Any], facts: Mapping[str, Any], checkpoint: Path) -> None:
    """Write the settings of a new run with facts about it, or check that the folder is of a run with these settings.

    A run that left no `checkpoint` has nothing to lose: its settings are replaced.

    Raises OtherSettings naming those that differ, CorruptFileError if the file is no settings.
    """
    path = folder / SETTINGS
    wanted = _flat(json.loads(json.dumps(settings)))
    if not path.exists() or not checkpoint.exists():
        write_json_atomic(path, {"settings": settings, "made_with": facts})
        return
    try:
        found = _flat(json.loads(path.read_text(encoding="utf-8"))["settings"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(path, f"is not the settings of a training ({error})") from error
    missing = object()
    names = [name for name in {**wanted, **found} if wanted.get(name, missing) != found.get(name, missing)]
    if names:
        differing = "; ".join(f"{name} {found.get(name)!r} there, {wanted.get(name)!r} here" for name in names)
        raise OtherSettings(
            f"{folder} belongs to a training with other settings: {differing}. Use another folder, or those settings"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"recipe": {"lr": 0.1}} as {"recipe.lr": 0.1}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found

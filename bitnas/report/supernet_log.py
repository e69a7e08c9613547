"""`supernet.csv`, the course of a supernet's training. Written anew after each epoch, so it is whole or refused."""

from __future__ import annotations

import csv
from pathlib import Path

from ..files import CorruptFileError

LOSS, ACCURACY = "loss", "val_accuracy"


def read_log(path: Path) -> list[dict[str, float]]:
    """One row for each epoch, the columns that hold a finite number; empty without a file.

    Raises CorruptFileError for a table without epochs and losses.
    """
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (ValueError, csv.Error) as error:
        raise CorruptFileError(path, f"is not a CSV table ({error})") from error
    found = [{str(name): value for name, text in row.items() if (value := _number(text)) is not None} for row in rows]
    for index, row in enumerate(found, 1):
        accuracy = row.get(ACCURACY, 0.0)
        if not {"epoch", LOSS} <= row.keys() or not 0 <= accuracy <= 1 or not 0 <= row["epoch"] <= 1e6:
            raise CorruptFileError(
                path, f"row {index} is not an epoch of a training. Delete it: only the report uses it"
            )
    return found


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if abs(value) < 1e18 else None

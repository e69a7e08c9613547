"""The epochs of a run for people and their tools: a CSV file, and TensorBoard's scalars where that is installed.

Both are written anew from the history, which the checkpoint holds: a run that was killed and goes on has every epoch
once, and no torn line.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bitnas.files import write_bytes_atomic
from bitnas.train.history import Epoch


def write_csv(path: str | os.PathLike[str], epochs: Sequence[Epoch]) -> None:
    """One row for each epoch under a row of names; accuracy is a fraction, an absent value empty.

    Atomic; the folder is made if it is missing.
    """
    text = io.StringIO()
    rows = csv.DictWriter(text, [field.name for field in fields(Epoch)], lineterminator="\n")
    rows.writeheader()
    rows.writerows(asdict(epoch) for epoch in epochs)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(path, text.getvalue().encode())


class Scalars:
    """TensorBoard's event file in `folder`, which is this run's alone. Does nothing without the package."""

    def __init__(self, folder: str | os.PathLike[str], epochs: Sequence[Epoch]) -> None:
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return
        for old in Path(folder).glob("events.out.tfevents.*"):
            old.unlink()
        self._writer = SummaryWriter(os.fspath(folder))
        for epoch in epochs:
            self.add(epoch)

    def add(self, epoch: Epoch) -> None:
        """One more epoch."""
        if self._writer is None:
            return
        values = {
            "loss/train": epoch.loss,
            "accuracy/train": epoch.train_accuracy,
            "accuracy/validation": epoch.val_accuracy,
            "lr": epoch.lr,
            "seconds/epoch": epoch.seconds,
            "seconds/waiting for data": epoch.data_seconds,
        }
        for name, value in values.items():
            if value is not None:
                self._writer.add_scalar(name, value, epoch.epoch + 1)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()

"""The state of a training run between two steps, in one file that says which run it belongs to.

A checkpoint of another run is refused, not adapted: loading it would give a network that no recipe describes.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from torch import nn

from bitnas.data import Source
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.train import distributed
from bitnas.train.recipe import Recipe
from bitnas.train.state import State

FORMAT, _OLD = "bitnas-training-2", "bitnas-training-1"
# At most one part in so many of the time goes into writing, however large the network and slow the disk.
_WRITING_SHARE = 50


def identity(
    model: nn.Module, data: Source, val: Source | None, recipe: Recipe, seed: int, passes: str | None = None
) -> dict[str, Any]:
    """What tells one run from another, as JSON values. Batch norm and dropout depend on the number of processes.

    `passes` is the name of what a step computes, None for plain cross entropy.
    """
    return {
        "recipe": recipe.to_dict(),
        "seed": seed,
        "processes": distributed.process_count(),
        "model": _model_fingerprint(model),
        "data": data.fingerprint(),
        "validation data": None if val is None else val.fingerprint(),
        "passes": passes,
    }


class Checkpoint:
    """Writes and restores the state of one run. Of several processes the first one writes, and makes the folder."""

    def __init__(self, path: str | os.PathLike[str], run: dict[str, Any], every: float) -> None:
        self.path, self.run, self.every = Path(path), run, every
        self._next = time.monotonic() + every
        if distributed.rank() == 0:  # now, not after an epoch
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def due(self) -> bool:
        """True if it is time to write inside an epoch."""
        return distributed.rank() == 0 and time.monotonic() >= self._next

    def write(self, state: State) -> None:
        """Replace the file, atomically."""
        if distributed.rank() != 0:
            return
        start = time.monotonic()
        save_tensors(self.path, state.tensors(), {"format": FORMAT, "run": self.run, **state.values()})
        end = time.monotonic()
        self._next = end + (max(self.every, _WRITING_SHARE * (end - start)) if self.every else 0.0)

    def restore(self, state: State) -> bool:
        """Load the state and return True, or leave it and return False if there is no file.

        Raises CorruptFileError if the file is damaged or is of another run.
        """
        if not self.path.exists():
            return False
        try:
            tensors, metadata = load_tensors(self.path, expected_format=FORMAT)
        except CorruptFileError as error:
            reason = error.reason
            if _OLD in reason:
                reason = f"an earlier version of bitnas wrote it (format {_OLD}, here {FORMAT})"
            raise CorruptFileError(error.path, f"{reason}. Delete it to train from the start") from error
        for name, value in self.run.items():
            if metadata["run"].get(name) != value:
                raise CorruptFileError(
                    self.path,
                    f"is the checkpoint of a run with another {name}"
                    f"{_difference(metadata['run'].get(name), value)}. Give this run another file, or delete that one",
                )
        state.load(tensors, metadata)
        return True


def _difference(found: Any, wanted: Any) -> str:
    """Which settings differ, where a person can read them; fingerprints only say that they do."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        names = [*wanted, *(name for name in found if name not in wanted)]
        changed = [
            f"{name} {found.get(name)!r}, here {wanted.get(name)!r}"
            for name in names
            if found.get(name) != wanted.get(name)
        ]
        return f" ({'; '.join(changed)})" if changed else ""
    return f" ({found!r}, here {wanted!r})" if isinstance(wanted, int) else ""


def _model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the kinds of the modules, the model's configuration if it has one, and every tensor's shape."""
    digest = hashlib.sha256(repr(getattr(model, "config", None)).encode())
    for name, module in model.named_modules():
        digest.update(f"|{name}:{type(module).__name__}".encode())
    for name, tensor in model.state_dict().items():
        digest.update(f"|{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
    return digest.hexdigest()

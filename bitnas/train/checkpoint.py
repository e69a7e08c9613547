"""The state of a training run between two epochs, in one file that says which run it belongs to.

A checkpoint of another run is refused, not adapted: loading it would give a network that no recipe describes.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bitnas.data import Source
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.train.recipe import Recipe

_FORMAT = "bitnas-training-1"


class Checkpoint:
    """Writes and restores model, optimizer and history. Recipe, seed, model and data identify the run."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Source,
        recipe: Recipe,
        seed: int,
    ) -> None:
        self.path = Path(path)
        self.model = model
        self.optimizer = optimizer
        self.run = {
            "recipe": recipe.to_dict(),
            "seed": seed,
            "model": _model_fingerprint(model),
            "data": data.fingerprint(),
        }

    def write(self, epochs: list[dict[str, Any]]) -> None:
        """Replace the file, atomically."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{name}"] = value
        save_tensors(self.path, tensors, {"format": _FORMAT, "run": self.run, "epochs": epochs})

    def restore(self) -> list[dict[str, Any]]:
        """Load model and optimizer and return the finished epochs: none, and nothing loaded, if there is no file.

        Raises CorruptFileError if the file is damaged or is of another run.
        """
        if not self.path.exists():
            return []
        try:
            tensors, metadata = load_tensors(self.path, expected_format=_FORMAT)
        except CorruptFileError as error:
            raise CorruptFileError(error.path, f"{error.reason}. Delete it to train from the start") from error
        for name, value in self.run.items():
            if metadata["run"].get(name) != value:
                raise CorruptFileError(
                    self.path,
                    f"is the checkpoint of a run with another {name}"
                    f"{_difference(metadata['run'].get(name), value)}. Give this run another file, or delete that one",
                )
        model_state: dict[str, Tensor] = {}
        optimizer_state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            owner, rest = name.split(".", 1)
            if owner == "model":
                model_state[rest] = tensor
            else:
                index, key = rest.split(".", 1)
                optimizer_state.setdefault(int(index), {})[key] = tensor
        self.model.load_state_dict(model_state)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        # The file holds contiguous tensors; fused optimizers walk parameter and state in the order of memory.
        for parameter, state in self.optimizer.state.items():
            for name, value in state.items():
                if value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)
        return metadata["epochs"]


def _difference(found: Any, wanted: Any) -> str:
    """Which settings differ, where a person can read them; fingerprints only say that they do."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        changed = [f"{key} {found.get(key)!r}, here {wanted[key]!r}" for key in wanted if found.get(key) != wanted[key]]
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

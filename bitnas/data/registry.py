"""From a name to a data set. A new one is a file with `read(root) -> Dataset` and a row here."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path

from bitnas.data.dataset import Dataset

# name -> module that defines read(root); imported on first use
_READERS = {"digits": "bitnas.data.digits"}


def list_datasets() -> list[str]:
    """Names that `load` knows, sorted."""
    return sorted(_READERS)


def load(name: str, *, seed: int = 0, root: str | os.PathLike[str] | None = None) -> Dataset:
    """Read a data set into memory.

    Args:
        name: one of `list_datasets()`, or the path of a `.safetensors` file with your own data: tensors `images`
            (float32 `[N, C, H, W]`, already normalised) and `labels` (int64 `[N]`, from 0).
        seed: the seed that `Dataset.split` and `Dataset.folds` use when they are given none. The order of the images
            does not depend on it.
        root: the folder that holds the files, for a data set that is not where its reader expects it, and the folder
            a relative path starts from.

    Raises:
        ValueError: the name is unknown, or the contents are not valid data.
        FileNotFoundError: there is no such `.safetensors` file.
        ModuleNotFoundError: a package that carries the data is missing; the message says how to install it.
    """
    folder = None if root is None else Path(root)
    if name in _READERS:
        dataset = importlib.import_module(_READERS[name]).read(folder)
    elif name.endswith(".safetensors"):
        from bitnas.data import tensor_file

        dataset = tensor_file.read(Path(name) if folder is None else folder / name)
    else:
        known = ", ".join(list_datasets())
        raise ValueError(f"name must be one of {known}, or the path of a .safetensors file, got {name!r}")
    return dataclasses.replace(dataset, seed=seed)

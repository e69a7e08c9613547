"""The 1,797 handwritten digits that scikit-learn carries: real data with no download.

8x8 grey images, 10 classes, from the UCI "Optical Recognition of Handwritten Digits" set (Alpaydin and Kaynak 1998,
its test part). The file is read without importing scikit-learn, whose import costs each search worker about a second
and 100 MB.
"""

from __future__ import annotations

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np
import torch

from bitnas.data.dataset import Dataset

_FILE = "digits.csv.gz"
_ROWS, _COLUMNS = 1797, 65  # 64 pixels, then the label
# Grey levels are 0..16. Scaling by that constant, with no statistics of the images, keeps the background at 0: the
# value that convolutions and random shifts pad with.
_WHITE = 16.0


def read(root: Path | None) -> Dataset:
    """Images in [0, 1] as float32 `[1797, 1, 8, 8]`, in the order of the file. `root` may hold `digits.csv.gz`.

    Raises ModuleNotFoundError without scikit-learn, ValueError if the file is not the digits.
    """
    path = _bundled_file() if root is None else root / _FILE
    table = _from_package() if path is None else _from_file(path)
    return Dataset(
        images=torch.from_numpy(table[:, :64] / np.float32(_WHITE)).reshape(-1, 1, 8, 8),
        labels=torch.from_numpy(table[:, 64].astype(np.int64)),
        num_classes=10,
        name="digits",
    )


def _bundled_file() -> Path | None:
    """Where scikit-learn keeps the file, or None if this version keeps it elsewhere."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the digits come with scikit-learn, which is missing: pip install scikit-learn")
    path = Path(spec.submodule_search_locations[0]) / "datasets" / "data" / _FILE
    return path if path.is_file() else None


def _from_file(path: Path) -> np.ndarray:
    try:
        with gzip.open(path, "rt", encoding="ascii") as lines:
            table = np.loadtxt(lines, delimiter=",", dtype=np.float32, ndmin=2)
    except (EOFError, ValueError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not the digits file of scikit-learn ({error})") from error
    return _checked(table, str(path))


def _from_package() -> np.ndarray:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    table = np.column_stack([pixels, labels]).astype(np.float32)
    return _checked(table, "sklearn.datasets.load_digits()")


def _checked(table: np.ndarray, source: str) -> np.ndarray:
    if table.shape != (_ROWS, _COLUMNS):
        raise ValueError(f"{source} must hold {_ROWS} rows of {_COLUMNS} values, got {table.shape}")
    if not (table[:, :64].min() >= 0 and table[:, :64].max() <= _WHITE):
        raise ValueError(f"{source} must hold grey levels in [0, {_WHITE:g}]")
    return table

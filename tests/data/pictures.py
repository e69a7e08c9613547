"""Image files in the formats that data sets are made of."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colour picture without sharp edges, uint8 `[height, width, 3]`; JPEG keeps it within a few levels."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    a, b, c = rng.uniform(40, 200, (3, 3))
    return np.clip(a * rows[..., None] + b * columns[..., None] * 0.5 + c * 0.2, 0, 255).astype(np.uint8)


def write(path: Path, pixels: np.ndarray, kind: str = "PNG", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, kind, **options)
    return path


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: object) -> bytes:
    blob = io.BytesIO()
    Image.fromarray(pixels).save(blob, kind, **options)
    return blob.getvalue()


def folder(
    root: Path, *, classes: int = 3, count: int = 5, height: int = 40, width: int = 50, kind: str = "JPEG"
) -> Path:
    """A folder of `classes` folders of `count` pictures."""
    for label in range(classes):
        for number in range(count):
            pixels = smooth(height, width, 100 * label + number)
            write(root / f"class_{label}" / f"{number}.{kind.lower()}", pixels, kind)
    return root

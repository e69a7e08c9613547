"""What is in a data set, and which of its files cannot be used: every image is decoded once."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitnas.data import decode, folder, places
from bitnas.data.dataset import Dataset
from bitnas.data.lazy import LazySource, default_workers
from bitnas.data.source import Source
from bitnas.files import CorruptFileError, write_json_atomic

_BATCH = 256
_SHOWN = 1000  # names of ignored files


def check_folder(
    root: Path,
    *,
    headers_only: bool = False,
    skip_bad: bool = False,
    workers: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decode every image of a folder (see `folder.read` for its form).

    Args:
        root: the folder.
        headers_only: look at formats and sizes alone, some ten times faster; a file that is cut short is not noticed.
        skip_bad: write the bad files to `bitnas-skip.json` in the folder; from then on they are left out.
        workers: threads; None is one for each core.
        on_progress: called with images done and their number.

    Returns JSON values: `images`, `test_images`, `classes` (name to count), `empty_classes`, `formats`, `modes`,
    `height` and `width` (smallest, median, largest), `bytes`, `bad` (`{"file", "reason"}`), `ignored`, `skipped`,
    `skip_file`, `notes`, `seconds`.
    """
    found = folder.scan(root)
    table = found.table
    formats, modes = Counter[str](), Counter[str]()
    shapes: list[tuple[int, int]] = []
    bad = list(found.bad)
    good = np.ones(len(table), bool)
    start = time.perf_counter()

    def look(index: int) -> decode.Facts | CorruptFileError:
        try:
            return decode.facts(table.path(index), whole=not headers_only)
        except CorruptFileError as error:
            return error

    with ThreadPoolExecutor(workers or default_workers()) as pool:
        for first in range(0, len(table), _BATCH):
            numbers = range(first, min(first + _BATCH, len(table)))
            for index, facts in zip(numbers, pool.map(look, numbers), strict=True):
                if isinstance(facts, CorruptFileError):
                    bad.append((table.name(index), facts.reason))
                    good[index] = False
                else:
                    formats[facts.format] += 1
                    modes[facts.mode] += 1
                    shapes.append((facts.height, facts.width))
            if on_progress is not None:
                on_progress(numbers.stop, len(table))
    seconds = time.perf_counter() - start
    bad.sort()
    skip_file = None
    if skip_bad and bad:
        skip_file = os.fspath(root / folder.SKIP_FILE)
        write_json_atomic(skip_file, folder.skip_file([name for name, _ in bad] + found.skipped_names))
    counts = np.bincount(found.labels[good], minlength=len(found.classes)).tolist()
    return {
        "kind": "folder",
        "images": int(good.sum()),
        "test_images": int((good & found.test).sum()) if found.has_test else None,
        "classes": dict(zip(found.classes, counts, strict=True)),
        "empty_classes": [name for name, count in zip(found.classes, counts, strict=True) if not count],
        "formats": dict(formats.most_common()),
        "modes": dict(modes.most_common()),
        "height": _spread([height for height, _ in shapes]),
        "width": _spread([width for _, width in shapes]),
        "bytes": int(table.sizes.sum()),
        "bad": [{"file": places.shown(name), "reason": reason} for name, reason in bad],
        "ignored": [places.shown(name) for name in found.ignored[:_SHOWN]],
        "skipped": len(found.skipped_names),
        "skip_file": skip_file,
        "notes": list(found.notes),
        "seconds": seconds,
    }


def describe(source: Source) -> dict[str, Any]:
    """The same of a data set whose images are decoded already: `images`, `test_images`, `classes`, `height`, `width`,
    `channels`, `dtype`, `notes`. Reading it has checked it.
    """
    names = class_names(source)
    counts = torch.bincount(source.labels, minlength=source.num_classes).tolist()
    channels, height, width = source.input_size
    return {
        "kind": "tensors" if isinstance(source, Dataset) else "packed",
        "images": len(source),
        "test_images": None if source.test is None else len(source.test),
        "classes": dict(zip(names, counts, strict=True)),
        "empty_classes": [name for name, count in zip(names, counts, strict=True) if not count],
        "channels": channels,
        "height": [height] * 3,
        "width": [width] * 3,
        "dtype": str(source.images.dtype).removeprefix("torch.") if isinstance(source, Dataset) else "uint8",
        "bad": [],
        "skipped": source.skipped if isinstance(source, LazySource) else 0,
        "notes": list(source.notes),
    }


def class_names(source: Source) -> list[str]:
    """What the labels stand for, in their order; numbers where the data set has no names."""
    return list(getattr(source, "classes", None) or map(str, range(source.num_classes)))


def preprocessing(source: Source) -> dict[str, Any]:
    """What becomes of an image before a network sees it, as JSON values, in this order.

    `view`: the square in the middle whose side is this share of the short one is resized to `input_size` (`[C, H, W]`);
    None leaves the image. Then values are divided by `divided_by`, and (x - `mean`) / `std` for each channel; None
    leaves them.
    """
    floats = isinstance(source, Dataset) and source.images.dtype == torch.float32
    mean, std = getattr(source, "mean", None), getattr(source, "std", None)
    return {
        "input_size": list(source.input_size),
        "view": getattr(source, "view", None),
        "divided_by": 1 if floats else 255,
        "mean": None if mean is None else list(mean),
        "std": None if std is None else list(std),
    }


def _spread(values: list[int]) -> list[int] | None:
    """Smallest, median and largest."""
    ordered = sorted(values)
    return [ordered[0], ordered[len(ordered) // 2], ordered[-1]] if ordered else None

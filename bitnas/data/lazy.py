"""Images that are made when a batch asks for them, by a few threads that work ahead of the training.

Threads, not processes: Pillow and NumPy let go of the interpreter while they work, batches need no copying between
processes, and nothing is left behind when a training is killed. Which thread makes an image does not matter to it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bitnas.data.augment import Augmentation, Draws, crop_box
from bitnas.data.source import Source

Box = tuple[float, float, float, float]

# What networks for ImageNet are trained with: its training images' mean and deviation, and the average of those for
# grey images.
MEAN = {3: (0.485, 0.456, 0.406), 1: (0.449,)}
STD = {3: (0.229, 0.224, 0.225), 1: (0.226,)}

_AHEAD = 256  # images that are made ahead of the batch in use, at least; in whole batches
_MOST_WORKERS = 8


class Store(Protocol):
    """Where images come from: files in folders, or one packed file."""

    def read(self, index: int, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
        """The box `(top, left, height, width)` that `choose(height, width)` gives, as uint8 `[C, size, size]`."""
        ...

    def fingerprint(self) -> str:
        """SHA-256 of what decides the images."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LazySource(Source):
    """Images of a store, cut and resized to `size` when they are asked for; a subset is a list of indices.

    Attributes:
        store: where they come from.
        indices: int64 `[N]`, the store's number of each image.
        labels: int64 `[N]`, each in `[0, num_classes)`.
        num_classes: at least 2.
        name: what it is called in reports.
        size: height and width of an image as a network sees it.
        view: an image as it is, for evaluation, is the square in its middle whose side is this share of the short one.
        mean, std: one number per channel; a batch is (image - mean) / std.
        seed: what `split` and `folds` use when they are given no seed.
        test: sorted int64 indices of the data set's own test part, or None.
        classes: what the classes are called.
        skipped: images that were left out because they cannot be read.
        workers: threads that make images.
        notes: lines for the user.

    Raises ValueError naming what is wrong.
    """

    store: Store = field(repr=False)
    indices: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_classes: int
    name: str
    size: int
    view: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int = 0
    test: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)
    skipped: int = 0
    workers: int = 1
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes of {self.name} must be at least 2, got {self.num_classes}")
        for setting, value in (("size", self.size), ("workers", self.workers)):
            if value < 1:
                raise ValueError(f"{setting} of {self.name} must be at least 1, got {value}")
        if not 0 < self.view <= 1:
            raise ValueError(f"view of {self.name} must be in (0, 1], got {self.view}")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, size, size)`."""
        return len(self.mean), self.size, self.size

    def subset(self, indices: Tensor) -> LazySource:
        """See `Source.subset`. Nothing is read."""
        return dataclasses.replace(self, indices=self.indices[indices], labels=self.labels[indices], test=None)

    def fingerprint(self) -> str:
        """SHA-256 of the store's fingerprint, which images of it these are, and how they are cut and normalised."""
        facts = (self.store.fingerprint(), self.num_classes, self.size, self.view, self.mean, self.std)
        digest = hashlib.sha256(repr(facts).encode())
        for tensor in (self.indices, self.labels):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def batches(
        self,
        order: Sequence[Tensor],
        *,
        augmentation: Augmentation | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source.batches`. While one batch is in use, the next ones are made.

        Raises CorruptFileError, which names the file, for an image that cannot be decoded.
        """
        if augmentation is not None and seeds is None:
            raise ValueError("seeds: wanted one for each batch, got None; an augmentation is random")
        numbers = iter(range(len(order)))
        waiting: deque[tuple[Tensor, Tensor, list[Future[None]]]] = deque()
        images = 0  # in `waiting`
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="bitnas-images")
        try:
            while True:
                while len(waiting) < 2 or images < _AHEAD:
                    number = next(numbers, None)
                    if number is None:
                        break
                    seed = seeds[number] if augmentation is not None and seeds is not None else 0
                    waiting.append(self._start(pool, order[number], augmentation, seed))
                    images += len(order[number])
                if not waiting:
                    return
                made, labels, parts = waiting.popleft()
                images -= len(labels)
                for part in parts:
                    part.result()
                yield made, labels
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _start(
        self, pool: ThreadPoolExecutor, indices: Tensor, augmentation: Augmentation | None, seed: int
    ) -> tuple[Tensor, Tensor, list[Future[None]]]:
        """Hand out the work of one batch: an empty one, its labels, and what to wait for before it is full."""
        count = len(indices)
        made = torch.empty(count, *self.input_size)
        draws = Draws(None, None, None)
        if augmentation is not None:
            draws = augmentation.draw(count, generator=torch.Generator().manual_seed(seed))
        numbers, target = self.indices[indices].tolist(), made.numpy()

        def fill(first: int, last: int) -> None:
            for place in range(first, last):
                self._fill(target[place], numbers[place], place, augmentation, draws)

        step = max(1, min(16, math.ceil(count / (4 * self.workers))))
        parts = [pool.submit(fill, first, min(first + step, count)) for first in range(0, count, step)]
        return made, self.labels[indices], parts

    def _fill(self, out: np.ndarray, number: int, place: int, augmentation: Augmentation | None, draws: Draws) -> None:
        """Write one image, float32 `[C, size, size]`: cut, normalised, shifted and mirrored as its draws say."""

        def choose(height: int, width: int) -> Box:
            if augmentation is not None and augmentation.crop is not None and draws.crop is not None:
                return crop_box(height, width, augmentation.crop, draws.crop[place])
            side = min(height, width) * self.view
            return (height - side) / 2, (width - side) / 2, side, side

        pixels = self.store.read(number, self.size, choose)
        mirrored = draws.mirrored is not None and bool(draws.mirrored[place])
        rows, columns = slice(None), slice(None)
        if augmentation is not None and draws.shift is not None:
            down, right = (augmentation.shift - int(offset) for offset in draws.shift[:, place])
            rows, pixels = _moved(pixels, down, 1)
            columns, pixels = _moved(pixels, right, 2)
            out.fill(0)
        final = out[:, :, ::-1] if mirrored else out
        for channel, mean in enumerate(self.mean):
            part = final[channel, rows, columns]
            part[...] = pixels[channel]
            # In this order, to give the same bits as a data set in memory.
            part /= np.float32(255)
            part -= np.float32(mean)
            part /= np.float32(self.std[channel])


def default_workers() -> int:
    """As many threads as this process has cores, up to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _MOST_WORKERS)


def _moved(pixels: np.ndarray, by: int, axis: int) -> tuple[slice, np.ndarray]:
    """Where along `axis` an image lies after it moved by so many pixels, and the part of it that is still seen."""
    length = pixels.shape[axis]
    by = max(-length, min(length, by))
    kept = slice(max(0, -by), length - max(0, by))
    return slice(max(0, by), length - max(0, -by)), pixels[(slice(None),) * axis + (kept,)]

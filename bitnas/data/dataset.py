"""A data set small enough to be two tensors, and splits of it that keep the share of every class."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Splits(NamedTuple):
    """Sorted int64 indices into a data set; together they cover it once."""

    train: Tensor
    val: Tensor
    test: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """Images, their labels, and how many classes there are.

    Attributes:
        images: float32 `[N, C, H, W]`, normalised, finite.
        labels: int64 `[N]`, each in `[0, num_classes)`.
        num_classes: at least 2.
        name: what it is called in reports.
        seed: what `split` and `folds` use when they are given no seed.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape is wrong, a value is not finite, or a label is out of range.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_classes: int
    name: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.images.dtype != torch.float32:
            raise TypeError(f"images of {self.name} must be float32, got {self.images.dtype}")
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels of {self.name} must be int64, got {self.labels.dtype}")
        if self.images.ndim != 4 or self.images.numel() == 0:
            raise ValueError(f"images of {self.name} must be non-empty [N, C, H, W], got {tuple(self.images.shape)}")
        if self.labels.shape != self.images.shape[:1]:
            wanted, got = tuple(self.images.shape[:1]), tuple(self.labels.shape)
            raise ValueError(f"labels of {self.name} must be {wanted}, one for each image, got {got}")
        if self.num_classes < 2:
            raise ValueError(f"num_classes of {self.name} must be at least 2, got {self.num_classes}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= self.num_classes:
            raise ValueError(f"labels of {self.name} must be in [0, {self.num_classes}), got [{low}, {high}]")
        bad = int((~torch.isfinite(self.images)).sum())
        if bad:
            raise ValueError(f"images of {self.name} must be finite, got {bad} NaN or infinite values")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Dataset:
        """The images and labels at `indices` (int64), in that order, as a data set of the same classes."""
        return Dataset(
            images=self.images[indices],
            labels=self.labels[indices],
            num_classes=self.num_classes,
            name=self.name,
            seed=self.seed,
        )

    def split(self, train: float = 0.6, val: float = 0.2, test: float = 0.2, seed: int | None = None) -> Splits:
        """Divide at random into three parts, the share of every class within two images of exact in each.

        The fractions must add up to 1; a part may be 0. The same seed gives the same parts.
        """
        fractions = {"train": train, "val": val, "test": test}
        for argument, fraction in fractions.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{argument} must be a fraction in [0, 1], got {fraction}")
        if abs(train + val + test - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, got {train} + {val} + {test} = {train + val + test}")
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        end = 0
        for members in self._shuffled_classes(seed):
            # Rounding the running total, not each class, also makes the sizes of the whole parts exact.
            start, end = end, end + len(members)
            first = _share(train, end) - _share(train, start)
            second = max(first, _share(train + val, end) - _share(train + val, start))
            for part, piece in zip(parts, members.tensor_split([first, second]), strict=True):
                part.append(piece)
        return Splits(*(torch.cat(part).sort().values for part in parts))

    def folds(self, k: int, seed: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """`k` pairs of sorted `(train, test)` indices. Each image is in one test part; classes are spread evenly."""
        if not 2 <= k <= len(self):
            raise ValueError(f"k must be in [2, {len(self)}], got {k}")
        dealt = torch.cat(self._shuffled_classes(seed))
        fold = torch.empty_like(dealt)
        fold[dealt] = torch.arange(len(dealt)) % k
        return [((fold != i).nonzero().flatten(), (fold == i).nonzero().flatten()) for i in range(k)]

    def _shuffled_classes(self, seed: int | None) -> list[Tensor]:
        """The indices of each class, shuffled."""
        generator = torch.Generator().manual_seed(self.seed if seed is None else seed)
        order = torch.randperm(len(self), generator=generator)
        labels = self.labels[order]
        return [order[labels == label] for label in range(self.num_classes)]


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 0.5)

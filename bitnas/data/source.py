"""What a training reads: labelled images in batches, wherever they are kept.

A batch depends on its indices, its augmentation and its seed alone. So whoever knows the seed of a step can make that
step's batch again: a stopped training goes on at any step, and processes that share one share it without talking.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Self, SupportsIndex

import torch
from torch import Tensor

from bitnas.data.augment import Augmentation


class Splits(NamedTuple):
    """Sorted int64 indices into a source; together they cover it once."""

    train: Tensor
    val: Tensor
    test: Tensor


class Source(abc.ABC):
    """Labelled images.

    Attributes:
        labels: int64 `[N]` on the CPU, each in `[0, num_classes)`.
        num_classes: at least 2.
        input_size: `(C, H, W)` of an image as a network sees it.
        name: what it is called in reports.
        seed: what `split` and `folds` use when they are given no seed.
        test: sorted int64 indices of the images that the data set's authors set aside, or None if they did not.
        notes: lines for the user, on what reading it decided or found odd.
    """

    labels: Tensor
    num_classes: int
    name: str
    seed: int
    test: Tensor | None
    notes: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def input_size(self) -> tuple[int, int, int]: ...

    @abc.abstractmethod
    def batches(
        self,
        order: Sequence[Tensor],
        *,
        augmentation: Augmentation | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One batch for each index tensor (int64) of `order`: images float32 `[n, C, H, W]`, normalised; labels `[n]`.

        Args:
            order: which images, batch by batch.
            augmentation: None gives the images as they are, as for an evaluation.
            seeds: one for each batch; decides all of its chance. Needed with an augmentation.
        """

    @abc.abstractmethod
    def subset(self, indices: Tensor) -> Self:
        """The images at `indices` (int64), in that order, as a source of the same classes; `test` is None."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 of all that decides a batch; equal contents have equal fingerprints on every machine."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices` as one batch, float32 `[n, C, H, W]`, not augmented."""
        return next(iter(self.batches([indices])))[0]

    def split(self, train: float = 0.6, val: float = 0.2, test: float = 0.2, seed: int | None = None) -> Splits:
        """Divide at random into three parts, the share of every class within two images of exact in each.

        The fractions must add up to 1; a part may be 0. The same seed gives the same parts. Where the data set has a
        `test` part of its own, that is the third, and `train` to `val` is the proportion in which the rest is divided.
        """
        fractions = {"train": train, "val": val, "test": test}
        for argument, fraction in fractions.items():
            if not 0 <= fraction <= 1:
                raise ValueError(f"{argument} must be a fraction in [0, 1], got {fraction}")
        if abs(train + val + test - 1) > 1e-9:
            raise ValueError(f"train + val + test must be 1, got {train} + {val} + {test} = {train + val + test}")
        if self.test is not None:
            if train + val == 0:
                raise ValueError(f"train + val must be above 0: {self.name} has a test part of its own")
            train, val = train / (train + val), val / (train + val)
        parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        end = 0
        for members in self._shuffled_classes(seed):
            # Rounding the running total, not each class, also makes the sizes of the whole parts exact.
            start, end = end, end + len(members)
            first = _share(train, end) - _share(train, start)
            second = max(first, _share(train + val, end) - _share(train + val, start))
            for part, piece in zip(parts, members.tensor_split([first, second]), strict=True):
                part.append(piece)
        found = Splits(*(torch.cat(part).sort().values for part in parts))
        return found if self.test is None else found._replace(test=self.test)

    def folds(self, k: int, seed: int | None = None) -> list[tuple[Tensor, Tensor]]:
        """`k` pairs of sorted `(train, test)` indices. Each image is in one test part; classes are spread evenly.

        Images of the data set's own `test` part are in none.
        """
        dealt = torch.cat(self._shuffled_classes(seed))
        if not 2 <= k <= len(dealt):
            raise ValueError(f"k must be in [2, {len(dealt)}], got {k}")
        fold = torch.full((len(self),), -1)
        fold[dealt] = torch.arange(len(dealt)) % k
        return [(((fold != i) & (fold >= 0)).nonzero().flatten(), (fold == i).nonzero().flatten()) for i in range(k)]

    def per_class(self, count: int, seed: int | None = None) -> Tensor:
        """Sorted indices of `count` images of each class, drawn at random outside the data set's own `test` part.

        The search of Shen et al. 2019 trains on 50 images of each class of ImageNet. Raises ValueError for a class with
        fewer.
        """
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        classes = self._shuffled_classes(seed)
        for label, members in enumerate(classes):
            if len(members) < count:
                raise ValueError(f"count: got {count}, but class {label} of {self.name} has {len(members)} images")
        return torch.cat([members[:count] for members in classes]).sort().values

    def _shuffled_classes(self, seed: int | None) -> list[Tensor]:
        """The indices of each class, shuffled, without the `test` part."""
        generator = torch.Generator().manual_seed(checked_seed(self.seed if seed is None else seed))
        order = torch.randperm(len(self), generator=generator)
        if self.test is not None:
            order = order[~torch.isin(order, self.test)]
        labels = self.labels[order]
        return [order[labels == label] for label in range(self.num_classes)]


def checked_seed(seed: int) -> int:
    """The seed, if it is one that every generator takes. Raises TypeError or ValueError."""
    if isinstance(seed, bool) or not isinstance(seed, SupportsIndex):  # NumPy's integers are fine
        raise TypeError(f"seed must be an integer, got {seed!r}")
    if not 0 <= seed.__index__() < 1 << 63:
        raise ValueError(f"seed must be at least 0 and below 2^63, got {seed}")
    return seed.__index__()


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 0.5)

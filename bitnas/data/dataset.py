"""A data set small enough to be two tensors in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bitnas.data.augment import Augmentation
from bitnas.data.source import Source


@dataclass(frozen=True, kw_only=True, eq=False)
class Dataset(Source):
    """Images, their labels, and how many classes there are.

    Attributes:
        images: `[N, C, H, W]`, float32 and finite, or uint8, which batches turn into [0, 1].
        labels: int64 `[N]`, each in `[0, num_classes)`.
        num_classes: at least 2.
        name: what it is called in reports.
        seed: what `split` and `folds` use when they are given no seed.
        mean, std: one number per channel; a batch is (image - mean) / std. None leaves the images as they are.
        test: sorted int64 indices of the data set's own test part, or None.
        classes: what the classes are called, or None.
        notes: lines for the user.

    Raises:
        TypeError: a tensor has another dtype.
        ValueError: a shape is wrong, a value is not finite, or a label is out of range.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    num_classes: int
    name: str
    seed: int = 0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    test: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    notes: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.images.dtype not in (torch.float32, torch.uint8):
            raise TypeError(f"images of {self.name} must be float32 or uint8, got {self.images.dtype}")
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
        if self.images.dtype == torch.float32:
            bad = int((~torch.isfinite(self.images)).sum())
            if bad:
                raise ValueError(f"images of {self.name} must be finite, got {bad} NaN or infinite values")
        self._check_normalisation()

    def _check_normalisation(self) -> None:
        channels = self.images.shape[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (values is None) != (self.mean is None):
                raise ValueError(f"mean, std of {self.name}: wanted both or neither, {name} differs from the other")
            if values is not None and len(values) != channels:
                raise ValueError(f"{name} of {self.name} must have {channels} numbers, one per channel, got {values}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std of {self.name} must be positive, got {self.std}")
        if self.test is not None and (self.test.dtype != torch.int64 or self.test.ndim != 1):
            raise TypeError(f"test of {self.name} must be int64 [n], got {self.test.dtype} {tuple(self.test.shape)}")

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        _, channels, height, width = self.images.shape
        return channels, height, width

    def subset(self, indices: Tensor) -> Dataset:
        """The images and labels at `indices` (int64), in that order, as a data set of the same classes."""
        return Dataset(
            images=self.images[indices],
            labels=self.labels[indices],
            num_classes=self.num_classes,
            name=self.name,
            seed=self.seed,
            mean=self.mean,
            std=self.std,
            classes=self.classes,
        )

    def normalised(self, images: Tensor) -> Tensor:
        """Images of this data set as float32, as a network sees them."""
        x = images.to(torch.float32) / 255 if images.dtype == torch.uint8 else images
        if self.mean is None or self.std is None:
            return x
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
        return (x - mean) / std

    def batches(
        self,
        order: Sequence[Tensor],
        *,
        augmentation: Augmentation | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See `Source.batches`. Augmentation comes after normalisation, so that what it fills in is the mean."""
        for number, indices in enumerate(order):
            x = self.normalised(self.images[indices])
            if augmentation is not None:
                if seeds is None:
                    raise ValueError("seeds: wanted one for each batch, got None; an augmentation is random")
                x = augmentation(x, generator=torch.Generator().manual_seed(seeds[number]))
            yield x, self.labels[indices]

    def fingerprint(self) -> str:
        """SHA-256 of images, labels and normalisation."""
        tensors = (self.images, self.labels)
        facts = [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]
        digest = hashlib.sha256(repr((facts, self.num_classes, self.mean, self.std)).encode())
        for tensor in tensors:
            digest.update(tensor.detach().contiguous().numpy().data)
        return digest.hexdigest()

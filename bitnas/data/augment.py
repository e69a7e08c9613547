"""Augmentation of whole batches. Chance comes from the caller's generator alone, so a run can be repeated.

All of it is drawn before anything is done with it, so that a source that decodes image by image, in any order and on
any number of threads, makes the same batch as one that has its images in a tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_ASPECT = (3 / 4, 4 / 3)  # width to height of a random crop
_TRIES = 10


class Draws(NamedTuple):
    """The chance of one batch of `n` images; a field is None where the augmentation has no such step.

    Attributes:
        crop: float64 `[n, 22]` in [0, 1), what `crop_box` makes a box of.
        shift: int64 `[2, n]` in [0, 2 * pixels], rows and columns.
        mirrored: bool `[n]`.
    """

    crop: np.ndarray | None
    shift: Tensor | None
    mirrored: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a batch for training, in this order.

    Attributes:
        crop: `(low, high)`: cut out a random part of each image and resize it to the size of the whole. Its share of
            the area is uniform in that range, its width to height log-uniform between 3/4 and 4/3. (0.08, 1) is usual
            for ImageNet (Szegedy et al. 2015, section 6).
        shift: move each image at random by up to this many pixels, with zeros at the border.
        flip: mirror each image left to right half of the time.

    Raises ValueError or TypeError naming the setting.
    """

    crop: tuple[float, float] | None = None
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.crop is not None:
            object.__setattr__(self, "crop", _checked_share(self.crop))
        if isinstance(self.shift, bool) or not isinstance(self.shift, int):
            raise TypeError(f"shift must be an integer, got {self.shift!r}")
        if self.shift < 0:
            raise ValueError(f"shift must be at least 0, got {self.shift}")
        if not isinstance(self.flip, bool):
            raise TypeError(f"flip must be True or False, got {self.flip!r}")

    def draw(self, count: int, *, generator: torch.Generator) -> Draws:
        """The chance for a batch of `count` images; `generator` lives on the CPU."""
        crop = None if self.crop is None else _draw_crops(count, generator)
        shift = _draw_shifts(count, self.shift, generator) if self.shift else None
        return Draws(crop, shift, _draw_mirrored(count, generator) if self.flip else None)

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """A batch `[N, C, H, W]` augmented; `generator` lives on the CPU."""
        draws = self.draw(len(images), generator=generator)
        if self.crop is not None and draws.crop is not None:
            images = _cropped(images, self.crop, draws.crop)
        if draws.shift is not None:
            images = _shifted(images, self.shift, draws.shift)
        return images if draws.mirrored is None else _mirrored(images, draws.mirrored)


def random_resized_crop(images: Tensor, share: tuple[float, float], *, generator: torch.Generator) -> Tensor:
    """Cut a random box out of each image `[N, C, H, W]` and resize it, bilinear and antialiased, to `H, W`.

    Args:
        images: float32 or uint8.
        share: the box's area is uniform between these shares of the image's, `0 < low <= high <= 1`.
        generator: lives on the CPU.
    """
    return _cropped(images, _checked_share(share), _draw_crops(len(images), generator))


def random_shift(images: Tensor, pixels: int, *, generator: torch.Generator) -> Tensor:
    """Move each image `[N, C, H, W]` by up to `pixels` in each direction; what comes in at the border is 0.

    The same as padding by `pixels` and cropping at a random place. `generator` lives on the CPU.
    """
    if pixels < 0:
        raise ValueError(f"pixels must be at least 0, got {pixels}")
    return _shifted(images, pixels, _draw_shifts(len(images), pixels, generator)) if pixels else images


def random_flip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror each image `[N, C, H, W]` left to right with probability 1/2. `generator` lives on the CPU."""
    return _mirrored(images, _draw_mirrored(len(images), generator))


def crop_box(height: int, width: int, share: tuple[float, float], draws: np.ndarray) -> tuple[int, int, int, int]:
    """The `(top, left, height, width)` that the draws of one image (float64 `[22]`) choose in it.

    The first of ten boxes that fits. If none does, as in a narrow image or where the share leaves no room, the largest
    one in the middle whose proportions are allowed.
    """
    low, high = share
    areas = height * width * (low + (high - low) * draws[:_TRIES])
    roots = np.exp(0.5 * (math.log(_ASPECT[0]) + math.log(_ASPECT[1] / _ASPECT[0]) * draws[_TRIES : 2 * _TRIES]))
    sides = np.sqrt(areas)
    widths, heights = np.rint(sides * roots), np.rint(sides / roots)
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    if fits.any():
        chosen = int(fits.argmax())
        h, w = int(heights[chosen]), int(widths[chosen])
        row, column = draws[2 * _TRIES :]
        return int(row * (height - h + 1)), int(column * (width - w + 1)), h, w
    h, w = min(height, max(1, round(width / _ASPECT[0]))), min(width, max(1, round(height * _ASPECT[1])))
    return (height - h) // 2, (width - w) // 2, h, w


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """One image `[C, h, w]`, float32 or uint8, as `[C, height, width]`: bilinear, averaging where it shrinks."""
    if image.shape[1:] == (height, width):
        return image
    return F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0]


def _checked_share(share: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = (float(end) for end in share)
    except (TypeError, ValueError):
        raise TypeError(f"crop must be two shares of the area, such as (0.08, 1), got {share!r}") from None
    if not 0 < low <= high <= 1:
        raise ValueError(f"crop must be (low, high) with 0 < low <= high <= 1, got {share!r}")
    return low, high


def _draw_crops(count: int, generator: torch.Generator) -> np.ndarray:
    return torch.rand(count, 2 * _TRIES + 2, generator=generator, dtype=torch.float64).numpy()


def _draw_shifts(count: int, pixels: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2 * pixels + 1, (2, count), generator=generator)


def _draw_mirrored(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) < 0.5


def _cropped(images: Tensor, share: tuple[float, float], draws: np.ndarray) -> Tensor:
    # One call for each image: the boxes differ. A sampling grid for all takes as long, within a third from 32x32 to
    # 224x224, and does not average where it shrinks.
    height, width = images.shape[2:]
    made = torch.empty_like(images)
    for image, result, row in zip(images, made, draws, strict=True):
        top, left, h, w = crop_box(height, width, share, row)
        result.copy_(resize(image[:, top : top + h, left : left + w], height, width))
    return made


def _shifted(images: Tensor, pixels: int, places: Tensor) -> Tensor:
    _, _, height, width = images.shape
    row, column = places.to(images.device)
    crops = F.pad(images, (pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view
    return crops[torch.arange(len(images), device=images.device), :, row, column]


def _mirrored(images: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.to(images.device)[:, None, None, None], images.flip(-1), images)

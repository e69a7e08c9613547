"""Augmentation of whole batches. Chance comes from the caller's generator alone, so a run can be repeated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to a batch for training, in this order.

    Attributes:
        shift: move each image at random by up to this many pixels, with zeros at the border.
        flip: mirror each image left to right half of the time.
    """

    shift: int = 0
    flip: bool = False

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """A batch `[N, C, H, W]` augmented; `generator` lives on the CPU."""
        images = random_shift(images, self.shift, generator=generator)
        return random_flip(images, generator=generator) if self.flip else images


def random_shift(images: Tensor, pixels: int, *, generator: torch.Generator) -> Tensor:
    """Move each image `[N, C, H, W]` by up to `pixels` in each direction; what comes in at the border is 0.

    The same as padding by `pixels` and cropping at a random place. `generator` lives on the CPU.
    """
    if pixels < 0:
        raise ValueError(f"pixels must be at least 0, got {pixels}")
    if pixels == 0:
        return images
    count, _, height, width = images.shape
    row, column = torch.randint(0, 2 * pixels + 1, (2, count), generator=generator).to(images.device)
    crops = F.pad(images, (pixels,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # a view
    return crops[torch.arange(count, device=images.device), :, row, column]


def random_flip(images: Tensor, *, generator: torch.Generator) -> Tensor:
    """Mirror each image `[N, C, H, W]` left to right with probability 1/2. `generator` lives on the CPU."""
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)

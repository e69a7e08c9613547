"""A user's own data: one safetensors file with `images` and `labels`. Reading it runs no code."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bitnas.data import packed_file
from bitnas.data.dataset import Dataset
from bitnas.files import CorruptFileError


def read(path: Path) -> Dataset:
    """`images` float32 `[N, C, H, W]` and `labels` int64 `[N]`; the highest label gives the number of classes.

    `notes` name classes without images. Raises FileNotFoundError; CorruptFileError if it is not safetensors, a tensor
    is missing, or it is a file of bitnas, which has a SHA-256 that this would not check; ValueError for channels last;
    and TypeError or ValueError as `Dataset` does.
    """
    import safetensors
    import safetensors.torch

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold the tensors images and labels")
    if packed_file.is_packed(path):
        raise CorruptFileError(path, "is a file that bitnas wrote, and is damaged or of another kind than images")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(path, f"is not a readable safetensors file ({error})") from error
    missing = [name for name in ("images", "labels") if name not in tensors]
    if missing:
        found = ", ".join(sorted(tensors)) or "nothing"
        raise CorruptFileError(path, f"must hold the tensors images and labels, {missing[0]} is missing; found {found}")
    images, labels = tensors["images"], tensors["labels"]
    n, h, w, c = images.shape if images.ndim == 4 else (0, 0, 0, 0)
    if c in (1, 3, 4) and h not in (1, 3) and min(h, w) > c:
        raise ValueError(
            f"images of {path.stem} must be [N, C, H, W], got {[n, h, w, c]}, which look like channels last; "
            f"images.permute(0, 3, 1, 2).contiguous() makes them {[n, c, h, w]}"
        )
    num_classes = max(2, int(labels.max()) + 1) if labels.numel() else 2
    return Dataset(
        images=images, labels=labels, num_classes=num_classes, name=path.stem, notes=_label_notes(labels, num_classes)
    )


def _label_notes(labels: Tensor, num_classes: int) -> tuple[str, ...]:
    """What is odd about labels that are valid."""
    if labels.dtype != torch.int64 or labels.ndim != 1 or not labels.numel() or int(labels.min()) < 0:
        return ()  # `Dataset` refuses them
    if int(labels.min()) == 1:
        return ("no image has the label 0: labels that count from 1 make a class too many; subtract 1",)
    empty = (torch.bincount(labels, minlength=num_classes) == 0).nonzero().flatten().tolist()
    shown = ", ".join(map(str, empty[:10])) + (", ..." if len(empty) > 10 else "")
    return (f"no image has the label {shown}",) if empty else ()

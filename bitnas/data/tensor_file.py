"""A user's own data: one safetensors file with `images` and `labels`. Reading it runs no code."""

from __future__ import annotations

from pathlib import Path

from bitnas.data.dataset import Dataset
from bitnas.files import CorruptFileError


def read(path: Path) -> Dataset:
    """`images` float32 `[N, C, H, W]` and `labels` int64 `[N]`; the highest label gives the number of classes.

    Raises FileNotFoundError, CorruptFileError if it is not safetensors or a tensor is missing, and TypeError or
    ValueError as `Dataset` does.
    """
    import safetensors
    import safetensors.torch

    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; it should hold the tensors images and labels")
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise CorruptFileError(path, f"is not a readable safetensors file ({error})") from error
    missing = [name for name in ("images", "labels") if name not in tensors]
    if missing:
        found = ", ".join(sorted(tensors)) or "nothing"
        raise CorruptFileError(path, f"must hold the tensors images and labels, {missing[0]} is missing; found {found}")
    images, labels = tensors["images"], tensors["labels"]
    num_classes = max(2, int(labels.max()) + 1) if labels.numel() else 2
    return Dataset(images=images, labels=labels, num_classes=num_classes, name=path.stem)

"""ImageNet (ILSVRC 2012) as folders: train/ and val/, each with a folder of JPEGs per class (n01440764, ...)."""

from __future__ import annotations

from pathlib import Path

from bitnas.data import folder, places
from bitnas.data.lazy import LazySource

_FOLDERS = ("", "imagenet", "ImageNet", "ILSVRC2012")


def read(root: Path | None, *, size: int | None = None, channels: int = 3, workers: int | None = None) -> LazySource:
    """The training images, with those of val/ as the `test` part; any number of classes.

    `root` is the folder that holds train/ and val/, or one that it is in; the other arguments are those of
    `folder.read`. Raises FileNotFoundError if it is not found.
    """
    return folder.read(find(root), name="imagenet", size=size, channels=channels, workers=workers)


def find(root: Path | None) -> Path:
    """The folder that holds train/ and val/; see `read`."""
    for base in places.bases(root):
        for name in _FOLDERS:
            path = base / name
            if (path / "train").is_dir() and (path / "val").is_dir():
                return path
    raise places.not_found("ImageNet", root, ["the folders train and val, with a folder of images per class in each"])

"""From a name to a data set. A new one is a file with `read(root) -> Source` and a row here."""

from __future__ import annotations

import dataclasses
import importlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bitnas.data.source import Source, checked_seed


class Entry(NamedTuple):
    """A data set by name."""

    module: str  # defines read(root, **options); imported on first use
    about: str
    decodes: bool = False  # takes the options of images that are decoded when they are needed


ENTRIES = {
    "cifar10": Entry("bitnas.data.cifar10", "60,000 colour images of 32x32 in 10 classes, 10,000 of them for testing"),
    "digits": Entry("bitnas.data.digits", "1,797 grey images of 8x8 in 10 classes, from scikit-learn; no files needed"),
    "imagenet": Entry("bitnas.data.imagenet", "ILSVRC 2012: a folder with train/ and val/", decodes=True),
}
OTHER_FORMS = (
    "a folder with a folder of images per class (or train/ and val/ with those)",
    "a .safetensors file, of `bitnas data pack` or with your own tensors images and labels",
)


def list_datasets() -> list[str]:
    """Names that `load` knows, sorted."""
    return sorted(ENTRIES)


def load(
    name: str,
    *,
    seed: int = 0,
    root: str | os.PathLike[str] | None = None,
    per_class: int | None = None,
    size: int | None = None,
    channels: int | None = None,
    workers: int | None = None,
) -> Source:
    """A data set, in memory if it is small and otherwise read image by image.

    Args:
        name: one of `list_datasets()`; or the path of a folder that has a folder of images for each class, or has
            train/ and val/ (or test/, or both) with such folders, the last being the `test` part; or the path of a
            `.safetensors` file, either one that `bitnas data pack` wrote or one with your own data: tensors `images`
            (`[N, C, H, W]`, float32 and already normalised, or uint8) and `labels` (int64 `[N]`, from 0).
            `NAME:50` is short for `per_class=50`.
        seed: the seed that `split`, `folds` and `per_class` use. The order of the images does not depend on it.
        root: the folder that holds the files, for a data set by name, and the folder a relative path starts from.
            None is the folder in the environment variable BITNAS_DATA, then ./data.
        per_class: keep this many images of each class, drawn by the seed, and the whole `test` part if there is one.
        size: height and width of an image as a network sees it; for folders and packed files only. None is 224, or
            what a packed file was made for, or less for small images.
        channels: 1 for grey, 3 for colour; for folders only. None is 3.
        workers: threads that decode; for folders and packed files only. None is one for each core, up to 8.

    Raises:
        ValueError: the name is unknown, an option does not fit the data set, or the contents are not valid data.
        FileNotFoundError: the files are not there; the message says where they were looked for.
        ModuleNotFoundError: a package that carries the data is missing; the message says how to install it.
    """
    checked_seed(seed)
    base = None if root is None else Path(root)
    if per_class is None:
        name, per_class = _split_name(name, base)
    source = _read(name, base, {"size": size, "channels": channels, "workers": workers})
    source = _with(source, seed=seed)
    return source if per_class is None else _few_per_class(source, per_class)


def _read(name: str, base: Path | None, options: dict[str, Any]) -> Source:
    given = {option: value for option, value in options.items() if value is not None}
    path = Path(name) if base is None else base / name
    if name in ENTRIES:
        _check_options(name, given, ("size", "channels", "workers") if ENTRIES[name].decodes else ())
        source: Source = importlib.import_module(ENTRIES[name].module).read(base, **given)
        return source
    if name.endswith(".safetensors"):
        from bitnas.data import packed_file, tensor_file

        if path.is_file() and packed_file.is_packed(path):
            _check_options(name, given, ("size", "workers"))
            return packed_file.read(path, **given)
        _check_options(name, given, ())
        return tensor_file.read(path)
    if path.is_dir():
        from bitnas.data import folder

        return folder.read(path, **given)
    raise ValueError(
        f"name must be one of {', '.join(list_datasets())}, or the path of {', or of '.join(OTHER_FORMS)}; got {name!r}"
        + (", which is no folder" if os.sep in name else "")
    )


def _check_options(name: str, given: dict[str, Any], fitting: tuple[str, ...]) -> None:
    for option in given:
        if option not in fitting:
            raise ValueError(f"{option}={given[option]}: {name} takes no {option}; its images are already decoded")


def _split_name(name: str, base: Path | None) -> tuple[str, int | None]:
    """`imagenet:50` as name and number. A path that exists is a path."""
    start, colon, count = name.rpartition(":")
    if not colon or not start or (Path(name) if base is None else base / name).exists():
        return name, None
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise ValueError(f"after the colon of {name!r} wanted a number of images per class, at least 1, got {count!r}")
    return start, int(count)


def _few_per_class(source: Source, count: int) -> Source:
    """`count` images of each class outside the test part, and the test part as it is."""
    chosen = source.per_class(count)
    if source.test is None:
        return source.subset(chosen)
    kept = torch.cat([chosen, source.test]).sort().values
    return _with(source.subset(kept), test=torch.searchsorted(kept, source.test))


def _with(source: Source, **changes: Any) -> Source:
    changed: Source = dataclasses.replace(source, **changes)  # type: ignore[type-var]
    return changed

"""CIFAR-10 (Krizhevsky 2009) from the files of either distribution, packed or unpacked.

The python version is pickles, which are read by `pickled.py` and so cannot run anything. An archive is read in place:
members are looked up by name and nothing is extracted, so what a path inside it says does not matter.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bitnas.data import pickled, places
from bitnas.data.dataset import Dataset
from bitnas.files import CorruptFileError

# Mean and standard deviation over all pixels of the 50,000 training images, each channel, of values in [0, 1].
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)

_PER_FILE = 10_000
_PIXELS = 3 * 32 * 32
_RECORD = 1 + _PIXELS  # binary version: a label and an image
_LARGEST_FILE = 64 << 20  # each file of either version is about 30 MB
_MOST_MEMBERS = 1000
_NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
_FORMS = {  # folder -> (archive, files of batches, file of class names)
    "cifar-10-batches-py": ("cifar-10-python.tar.gz", _NAMES, "batches.meta"),
    "cifar-10-batches-bin": ("cifar-10-binary.tar.gz", [f"{name}.bin" for name in _NAMES], "batches.meta.txt"),
}
_KNOWN = {name for _, files, classes in _FORMS.values() for name in (*files, classes)}


def read(root: Path | None, *, _per_file: int = _PER_FILE) -> Dataset:
    """All 60,000 images, uint8 `[60000, 3, 32, 32]`: the five training files in order, then `test`.

    Args:
        root: the folder of the files, the folder that this is in, or an archive; None looks where `places` says.

    Raises:
        FileNotFoundError: none of the four forms is there, or a file of one is missing.
        CorruptFileError: a file is not what the distribution holds: its size, its shape, a label; or it is a pickle
            that asks for anything but plain values.
    """
    where = _find(root)
    batches: dict[str, _Batch] = {}
    classes: tuple[str, ...] | None = None
    for name, path, blob in _from_archive(where) if where.is_file() else _from_folder(where):
        if name.startswith("batches.meta"):
            classes = _class_names(path, name, blob)
        else:
            batches[name] = _batch(path, name, blob, _per_file)
    names = max((files for _, files, _ in _FORMS.values()), key=lambda files: len(batches.keys() & set(files)))
    missing = [name for name in names if name not in batches]
    if missing:
        raise FileNotFoundError(f"{where}: {', '.join(missing)} not found; CIFAR-10 is {', '.join(names)}")
    labels = np.concatenate([batches[name][1] for name in names])
    return Dataset(
        images=torch.from_numpy(np.concatenate([batches[name][0] for name in names]).reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(labels),
        num_classes=10,
        name="cifar10",
        mean=MEAN,
        std=STD,
        test=torch.arange(len(labels) - _per_file, len(labels)),
        classes=classes,
    )


_Batch = tuple[np.ndarray, np.ndarray]  # uint8 [n, 3072], planes of red, green and blue; int64 [n]


def _find(root: Path | None) -> Path:
    """The folder of the files, or the archive."""
    for base in places.bases(root):
        if base.is_file() or any((base / name).exists() for name in _KNOWN):
            return base
        for folder, (archive, _, _) in _FORMS.items():
            if (base / folder).is_dir():
                return base / folder
            if (base / archive).is_file():
                return base / archive
    wanted = [f"the folder {folder} ({files[0]} to {files[-1]})" for folder, (_, files, _) in _FORMS.items()]
    raise places.not_found("CIFAR-10", root, [*wanted, *(f"the file {archive}" for archive, _, _ in _FORMS.values())])


def _from_folder(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Name, path and contents of each file that is there."""
    for name in sorted(_KNOWN):
        path = folder / name
        if path.is_file():
            _check_size(str(path), path.stat().st_size)
            yield name, str(path), path.read_bytes()


def _from_archive(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    try:
        with tarfile.open(archive, "r:gz") as members:
            for number, member in enumerate(members):
                if number >= _MOST_MEMBERS:
                    raise CorruptFileError(archive, f"has more than {_MOST_MEMBERS} members; CIFAR-10 has eight")
                path = f"{archive}:{places.shown(member.name)}"
                if not member.isdir():
                    _check_size(path, member.size)  # also of members that are passed over: that means unpacking them
                name = member.name.rpartition("/")[2]
                file = members.extractfile(member) if name in _KNOWN and member.isreg() else None
                if file is not None:
                    yield name, path, file.read()
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise CorruptFileError(archive, f"is not a readable .tar.gz ({error})") from error


def _check_size(path: str, size: int) -> None:
    if size > _LARGEST_FILE:
        raise CorruptFileError(path, f"has {size} bytes; no file of CIFAR-10 has more than {_LARGEST_FILE}")


def _batch(path: str, name: str, blob: bytes, count: int) -> _Batch:
    images, labels = _binary(path, blob, count) if name.endswith(".bin") else _python(path, blob)
    if images.shape != (count, _PIXELS) or len(labels) != count:
        raise CorruptFileError(
            path,
            f"wanted {count} images of {_PIXELS} bytes with a label each, got {images.shape}, {len(labels)} labels",
        )
    if labels.min() < 0 or labels.max() > 9:
        raise CorruptFileError(path, f"labels must be 0 to 9, got {labels.min()} to {labels.max()}")
    return images, labels


def _binary(path: str, blob: bytes, count: int) -> _Batch:
    if len(blob) != count * _RECORD:
        raise CorruptFileError(path, f"wanted {count} records of {_RECORD} bytes, {count * _RECORD}, got {len(blob)}")
    records = np.frombuffer(blob, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:], records[:, 0].astype(np.int64)


def _python(path: str, blob: bytes) -> _Batch:
    values = _text_keys(path, pickled.read(path, blob))
    images, labels = values.get("data"), values.get("labels")
    if not isinstance(images, np.ndarray) or not isinstance(labels, list):
        raise CorruptFileError(
            path, f"wanted an array 'data' and a list 'labels', got {', '.join(values) or 'nothing'}"
        )
    if not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise CorruptFileError(path, "labels must be integers, 0 to 9")
    return images, np.array(labels, np.int64)


def _class_names(path: str, name: str, blob: bytes) -> tuple[str, ...]:
    if name.endswith(".txt"):
        names: Any = blob.decode("latin-1").split()
    else:
        names = _text_keys(path, pickled.read(path, blob)).get("label_names")
    texts = (
        [part.decode("latin-1") if isinstance(part, bytes) else part for part in names]
        if isinstance(names, list)
        else []
    )
    if len(texts) != 10 or not all(isinstance(text, str) for text in texts):
        raise CorruptFileError(path, f"wanted the names of 10 classes, got {len(texts)}; is this CIFAR-10?")
    return tuple(texts)


def _text_keys(path: str, value: Any) -> dict[str, Any]:
    """A dict whose keys are text, whichever Python wrote it."""
    if not isinstance(value, dict):
        raise CorruptFileError(path, f"wanted a dict, got {type(value).__name__}")
    return {key.decode("latin-1") if isinstance(key, bytes) else str(key): item for key, item in value.items()}

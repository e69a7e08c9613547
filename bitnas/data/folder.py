"""Folders of images, one for each class, decoded when they are needed.

Listing asks the file system for names and sizes and opens no image: ImageNet has 1.3 million. Their names are kept as
one block of bytes, as the file system gives them, so that any name works and memory stays small.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bitnas.data import decode, places
from bitnas.data.lazy import MEAN, STD, Box, LazySource, default_workers
from bitnas.files import CorruptFileError

SKIP_FILE = "bitnas-skip.json"
SKIP_FORMAT = "bitnas-skip-1"
ENDINGS = (
    *(b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".webp", b".bmp", b".gif", b".tif", b".tiff"),
    *(b".ppm", b".pgm", b".pbm", b".pnm"),
)
_VIEW = 0.875  # 224 of 256, as ImageNet is usually evaluated
_USUAL_SIZE = 224
_SMALL = 128  # square images up to this are taken as they are
_LOOKED_AT = 64  # images whose size, and whose contents for the fingerprint, stand for all
_NAMED = 10  # in an error
# What folders are called that hold a part of a data set rather than a class; any case.
_ROLES = {
    b"train": "train",
    b"training": "train",
    b"val": "val",
    b"valid": "val",
    b"validation": "val",
    b"test": "test",
    b"testing": "test",
}


class Found(NamedTuple):
    """What a folder holds.

    Attributes:
        table: the images.
        labels: int64 `[N]`.
        test: bool `[N]`, True for the part that the data set's authors set aside.
        classes: folder names, in the order of the labels.
        has_test: whether there is such a part.
        bad: names under the root with the reason why they are no image: empty files, broken links.
        ignored: names of files that are no images.
        skipped_names: names of images that the skip file leaves out.
        notes: lines about what was decided for the user.
    """

    table: FileTable
    labels: np.ndarray
    test: np.ndarray
    classes: tuple[str, ...]
    has_test: bool
    bad: list[tuple[bytes, str]]
    ignored: list[bytes]
    skipped_names: list[bytes]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FileTable:
    """Names under a root, joined, with where each ends, and sizes in bytes."""

    root: bytes
    names: bytes
    ends: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, index: int) -> bytes:
        """The name of a file under the root."""
        start = int(self.ends[index - 1]) if index else 0
        return self.names[start : int(self.ends[index])]

    def path(self, index: int) -> bytes:
        """The path of a file."""
        return os.path.join(self.root, self.name(index))

    def some(self, count: int = _LOOKED_AT) -> list[int]:
        """Up to `count` files spread evenly over all."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()


@dataclass(frozen=True)
class FolderStore:
    """Decodes the files of a table."""

    table: FileTable
    channels: int

    def read(self, index: int, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
        """See `lazy.Store`."""
        return decode.pixels(self.table.path(index), size, self.channels, choose).transpose(2, 0, 1)

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(self.table.names)
        digest.update(self.table.ends.data)
        digest.update(self.table.sizes.data)
        for index in self.table.some():
            try:
                digest.update(Path(os.fsdecode(self.table.path(index))).read_bytes())
            except OSError as error:
                raise CorruptFileError(places.shown(self.table.path(index)), f"cannot be read ({error})") from error
        return digest.hexdigest()

    def fingerprint(self) -> str:
        """SHA-256 of all names and sizes, and of the contents of 64 files spread evenly.

        It sees a file added, taken away, renamed, moved to another class or of another length; a change that keeps the
        length only in those 64, because reading all of ImageNet takes an hour. Dates do not count.
        """
        return self._fingerprint


def read(
    root: Path,
    *,
    name: str | None = None,
    size: int | None = None,
    channels: int = 3,
    workers: int | None = None,
) -> LazySource:
    """The images of `root/CLASS/...`, or of `root/train/CLASS/...` with `root/val/CLASS/...` as the test part.

    Labels follow the names of the class folders, sorted as bytes. Folders inside a class folder belong to it. The parts
    may be called train or training; val, valid or validation; test or testing; in any case. Where there are all three,
    test is the test part and the images of val are training images; the source's `notes` say so.

    Args:
        root: the folder.
        name: what to call it; None is the folder's name.
        size: of an image as a network sees it. None is 224, or less if the images are smaller.
        channels: 3, or 1 for grey.
        workers: threads that decode; None is one for each core.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there are no class folders, one holds no images, files in it cannot be images, or folders that look
            like parts of a data set leave open what is to be done; it names them.
        CorruptFileError: the skip file is damaged.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (colour), got {channels}")
    found = scan(root)
    label = name or root.resolve().name
    if found.bad:
        lines = "; ".join(f"{places.shown(bad)} {reason}" for bad, reason in found.bad[:_NAMED])
        more = f"; and {len(found.bad) - _NAMED} more" if len(found.bad) > _NAMED else ""
        raise ValueError(
            f"{places.shown(root)}: {len(found.bad)} files cannot be read: {lines}{more}. Repair or delete them, or "
            "run `bitnas data check` on this data set with --skip-bad, which makes them be left out"
        )
    counts = np.bincount(found.labels[~found.test], minlength=len(found.classes))
    if not len(found.table) or (counts == 0).any():
        empty = [found.classes[index] for index in np.flatnonzero(counts == 0)]
        shown = ", ".join(empty[:_NAMED]) + (", ..." if len(empty) > _NAMED else "")
        raise ValueError(f"{places.shown(root)}: no images in the class folders {shown}; fill or delete them")
    best, view = _usual_view(found.table)
    return LazySource(
        store=FolderStore(found.table, channels),
        indices=torch.arange(len(found.table)),
        labels=torch.from_numpy(found.labels),
        num_classes=len(found.classes),
        name=label,
        size=best if size is None else size,
        view=view,
        mean=MEAN[channels],
        std=STD[channels],
        test=torch.from_numpy(np.flatnonzero(found.test)) if found.has_test else None,
        classes=found.classes,
        skipped=len(found.skipped_names),
        notes=found.notes,
        workers=default_workers() if workers is None else workers,
    )


def scan(root: Path) -> Found:
    """List a folder; see `read` for its form. No image is opened, unless its name has no ending that is known."""
    if not root.is_dir():
        raise FileNotFoundError(f"{places.shown(root)}: no such folder; it should hold a folder of images per class")
    base = os.fsencode(root.absolute())
    parts, notes = _parts(base)
    classes = sorted(_folders(os.path.join(base, parts[0][0])))
    for part, _ in parts[1:]:
        strange = sorted(set(_folders(os.path.join(base, part))).difference(classes))
        if strange:
            raise ValueError(
                f"{places.shown(root)}: {places.shown(part)}/ has classes that {places.shown(parts[0][0])}/ lacks: "
                f"{_listed(strange)}"
            )
    if len(classes) < 2:
        raise ValueError(
            f"{places.shown(root)}: wanted a folder of images for each of two or more classes, or train/ and val/ with "
            f"such folders, got {len(classes)} folders"
        )
    skip = _skipped_names(base)
    names, sizes, labels, test = [], [], [], []
    bad: list[tuple[bytes, str]] = []
    ignored: list[bytes] = []
    skipped: list[bytes] = []
    for part, is_test in parts:
        for label, folder in enumerate(classes):
            for file, bytes_or_reason in _files(base, os.path.join(part, folder), ()):
                if file in skip:
                    skipped.append(file)
                elif bytes_or_reason is None:
                    ignored.append(file)
                elif isinstance(bytes_or_reason, str):
                    bad.append((file, bytes_or_reason))
                else:
                    names.append(file)
                    sizes.append(bytes_or_reason)
                    labels.append(label)
                    test.append(is_test)
    table = FileTable(
        root=base,
        names=b"".join(names),
        ends=np.cumsum([len(file) for file in names], dtype=np.int64),
        sizes=np.array(sizes, np.int64),
    )
    return Found(
        table=table,
        labels=np.array(labels, np.int64),
        test=np.array(test, bool),
        classes=tuple(places.shown(folder) for folder in classes),
        has_test=any(is_test for _, is_test in parts),
        bad=bad,
        ignored=ignored,
        skipped_names=skipped,
        notes=notes,
    )


def skip_file(names: list[bytes]) -> dict[str, object]:
    """What `bitnas-skip.json` holds for these names under the root."""
    return {"format": SKIP_FORMAT, "files": [os.fsdecode(name) for name in sorted(names)]}


def _skipped_names(base: bytes) -> set[bytes]:
    path = Path(os.fsdecode(base)) / SKIP_FILE
    if not path.exists():
        return set()
    try:
        value = json.loads(path.read_text())
        if value["format"] != SKIP_FORMAT:
            raise ValueError(f"its format is {value['format']!r}, wanted {SKIP_FORMAT!r}")
        return {os.fsencode(name) for name in value["files"]}
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(
            places.shown(path), f"is not a list of files to skip ({error}); delete it, or write it again"
        ) from error


def _parts(base: bytes) -> tuple[list[tuple[bytes, bool]], tuple[str, ...]]:
    """Folders of class folders under the root, and whether each is the test part; the root alone is `b""`. And notes.

    A folder that would be left out, or be a class and a part at once, is refused rather than guessed about: a training
    on half of the images, or one that tells "Test" from "Train", looks like any other.
    """
    where = places.shown(base)
    entries = sorted(_folders(base))
    roles: dict[str, bytes] = {}
    for entry in entries:
        role = _ROLES.get(entry.lower())
        if role in roles:
            raise ValueError(f"{where}: {_listed([roles[role], entry])} are the same part; join them or move one away")
        if role is not None:
            roles[role] = entry
    sorted_in = {role: bool(_folders(os.path.join(base, part))) for role, part in roles.items()}
    if not sorted_in.get("train"):
        if entries and len(roles) == len(entries):
            raise ValueError(
                f"{where}: {_listed(entries)}: these are parts of a data set, not classes; wanted class folders in "
                "train/, and in val/ or test/ if there is a test part"
            )
        return [(b"", False)], ()
    train = roles["train"]
    others = [entry for entry in entries if entry not in roles.values() and _has_images(os.path.join(base, entry))]
    if others:
        raise ValueError(
            f"{where}: {places.shown(train)}/ has class folders, so the images in {_listed(others)} beside it would be "
            f"left out. Move those away; or, if {places.shown(train)} is itself a class, name it otherwise"
        )
    if "val" in roles and not sorted_in["val"] and (not sorted_in.get("test") or _has_images(base, roles["val"])):
        raise ValueError(
            f"{where}: {places.shown(roles['val'])}/ has no class folders; sort its images into folders named as those "
            f"of {places.shown(train)}/"
        )
    parts, notes = [(train, False)], []
    if sorted_in.get("val"):
        parts.append((roles["val"], not sorted_in.get("test")))
        if sorted_in.get("test"):
            notes.append(
                f"{places.shown(roles['test'])}/ is the test part; the images of {places.shown(roles['val'])}/ are "
                f"training images, as those of {places.shown(train)}/"
            )
    if sorted_in.get("test"):
        parts.append((roles["test"], True))
    elif "test" in roles and _has_images(base, roles["test"]):
        notes.append(f"{places.shown(roles['test'])}/ is left out: its images are in no class folders")
    return parts, tuple(notes)


def _has_images(*path: bytes) -> bool:
    """Whether there is a file anywhere below that is called like an image."""
    return any(
        name.lower().endswith(ENDINGS) and not _hidden(name)
        for _, _, files in os.walk(os.path.join(*path))
        for name in files
    )


def _listed(names: list[bytes]) -> str:
    """Names of folders for an error, the first of them."""
    shown = ", ".join(f"{places.shown(name)}/" for name in names[:_NAMED])
    return f"{shown}, ..." if len(names) > _NAMED else shown


def _folders(path: bytes) -> list[bytes]:
    """Names of the folders in a folder, hidden ones left out; none if it does not exist."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if not _hidden(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _hidden(name: bytes) -> bool:
    return name.startswith(b".") or name == b"__MACOSX"


def _files(base: bytes, folder: bytes, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[bytes, int | str | None]]:
    """Every file below `folder`, sorted: its name under the root, and its size, or why it is bad, or None: no image.

    `above` are the folders on the way, by device and inode, so that a link to one of them does not lead round in it.
    """
    path = os.path.join(base, folder)
    try:
        here = os.stat(path)
        entries = sorted(os.scandir(path), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    if (here.st_dev, here.st_ino) in above:
        return
    for entry in entries:
        name = os.path.join(folder, entry.name)
        if _hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _files(base, name, (*above, (here.st_dev, here.st_ino)))
            continue
        known = entry.name.lower().endswith(ENDINGS)
        try:
            size = entry.stat().st_size
        except OSError:
            yield name, "is a broken link" if known else None
            continue
        if not known and not (entry.is_file() and decode.looks_like_image(entry.path)):
            yield name, None
        elif not entry.is_file():
            yield name, "is not a file"
        else:
            yield name, size if size else "is empty (0 bytes)"


def _usual_view(table: FileTable) -> tuple[int, float]:
    """The size that a network should see, and the share of the short side that an evaluation shows it."""
    shapes = set()
    for index in table.some():
        try:
            facts = decode.facts(table.path(index), whole=False)
        except CorruptFileError:
            continue  # decoding says so where it matters
        shapes.add((facts.height, facts.width))
    if not shapes:
        return _USUAL_SIZE, _VIEW
    height, width = next(iter(shapes))
    if len(shapes) == 1 and height == width <= _SMALL:
        return height, 1.0
    short = sorted(min(shape) for shape in shapes)
    return min(_USUAL_SIZE, short[len(short) // 2]), _VIEW

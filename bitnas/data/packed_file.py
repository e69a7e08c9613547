"""A folder of images decoded once: uint8 squares and labels in one safetensors file, which is mapped, not read.

The file is laid out as `bitnas.files` lays out its own, with one SHA-256 over all of it, but is written in pieces and
never held in memory: ImageNet at 256 pixels is 250 GB, fifty images of each class 10 GB. Images come first, so that
where they are does not depend on how many there turn out to be.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from bitnas.data.augment import resize
from bitnas.data.lazy import Box, LazySource, default_workers
from bitnas.files import CorruptFileError, write_json_atomic

FORMAT = "bitnas-images-1"
_NO_DIGEST = "0" * 64
_LENGTH = struct.Struct("<Q")
_ROOM = 1024  # spare bytes of the header for counts that are known at the end
_LONGEST_HEADER = 64 << 20
_BLOCK = 8 << 20
_SYNC_EVERY = 256 << 20  # bytes after which a stopped packing can go on
_BATCH = 64


@dataclass(frozen=True)
class PackedStore:
    """Reads squares out of a mapped file."""

    images: np.ndarray  # uint8 [N, C, side, side], a np.memmap
    digest: str

    def read(self, index: int, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
        """See `lazy.Store`; the box is rounded to whole pixels."""
        image = self.images[index]
        top, left, height, width = (round(value) for value in choose(*image.shape[1:]))
        part = image[:, top : top + height, left : left + width]
        if part.shape[1:] == (size, size):
            return part
        return resize(torch.from_numpy(part.copy()), size, size).numpy()

    def fingerprint(self) -> str:
        """The file's SHA-256."""
        return self.digest


def is_packed(path: Path) -> bool:
    """Whether a safetensors file is one of bitnas, by its format or by the SHA-256 that it carries of itself.

    Either is enough, so that damage to one of them does not make it a file that nobody checks.
    """
    try:
        with open(path, "rb") as file:
            entries = _header(path, file)[0].get("__metadata__", {})
    except CorruptFileError:
        return False
    return "sha256" in entries or str(entries.get("format")).startswith("bitnas-")


def read(path: Path, *, size: int | None = None, workers: int | None = None, verify: bool = True) -> LazySource:
    """The images of a packed file.

    Args:
        path: what `write` wrote.
        size: of an image as a network sees it; None is what the file was made for.
        workers: threads that cut and resize; None is one for each core.
        verify: check the SHA-256, which reads the whole file, once in a process unless the file changes.

    Raises:
        FileNotFoundError: no such file.
        CorruptFileError: it is not exactly as it was written.
        ValueError: `size` is larger than the images in the file.
    """
    with open(path, "rb") as file:
        header, start = _header(path, file)
        found = os.fstat(file.fileno())
    entries = header.get("__metadata__", {})
    if entries.get("format") != FORMAT:
        raise CorruptFileError(path, f"its format is {entries.get('format')!r}, expected {FORMAT!r}")
    try:
        if not isinstance(entries.get("sha256"), str):
            raise ValueError("it holds no SHA-256 of itself, so it cannot be checked")
        facts, digest = json.loads(entries["metadata"]), entries["sha256"]
        tensors = {name: _mapped(path, start, header[name]) for name in ("images", "labels", "test") if name in header}
        images, labels = tensors["images"], torch.from_numpy(tensors["labels"].copy())
        test = torch.from_numpy(tensors["test"].copy()) if "test" in tensors else None
        end = start + max(header[name]["data_offsets"][1] for name in tensors)
        matching = images.ndim == 4 and len(images) == len(labels) and images.shape[1] == len(facts["mean"])
        classes, side, usual = tuple(facts["classes"]), images.shape[-1], int(facts["size"])
        mean, std = tuple(facts["mean"]), tuple(facts["std"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise CorruptFileError(path, f"is not a readable file of packed images ({error})") from error
    if not matching or end != found.st_size:
        raise CorruptFileError(path, f"is cut short or extended: {found.st_size} bytes, its header says {end}")
    if verify:
        _verify(path.absolute(), digest, found.st_size, found.st_mtime_ns, found.st_ino)
    if size is not None and not 1 <= size <= side:
        raise ValueError(f"size must be in [1, {side}], the side of the images in {path}, got {size}")
    if labels.min() < 0 or labels.max() >= len(classes):
        raise CorruptFileError(path, f"has labels outside [0, {len(classes)})")
    return LazySource(
        store=PackedStore(images, digest),
        indices=torch.arange(len(labels)),
        labels=labels,
        num_classes=len(classes),
        name=facts["name"],
        size=usual if size is None else size,
        view=min(1.0, usual / side),
        mean=mean,
        std=std,
        test=test,
        classes=classes,
        skipped=int(facts["skipped"]),
        workers=default_workers() if workers is None else workers,
    )


def write(
    source: LazySource,
    path: Path,
    *,
    side: int | None = None,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decode every image of `source` to its middle square, `side` pixels, and write them to one file.

    The same call goes on after a stop: what is done lies in `PATH.part`, and `PATH.part.json` says how much of it.
    `path` appears only when it is whole.

    Args:
        source: images in a folder.
        path: the file to write; one that is there is replaced at the end.
        side: None is what leaves room for the usual crop: 256 for networks that see 224.
        skip_bad: leave out images that cannot be decoded, and count them; otherwise the first one is an error.
        on_progress: called with images done and their number.

    Returns: `{"images", "skipped": [names], "bytes", "sha256"}`.

    Raises:
        CorruptFileError: an image cannot be decoded, or `PATH.part` is damaged.
        BlockingIOError: another process is writing it.
        ValueError: `side` is smaller than what a network sees, or no image is left of a class.
    """
    usual = round(source.size / source.view)
    side = usual if side is None else side
    if side < source.size:
        raise ValueError(f"side must be at least {source.size}, what a network sees of {source.name}, got {side}")
    channels = source.input_size[0]
    job = {"source": source.fingerprint(), "side": side}
    room = _LENGTH.size + len(_header_bytes(source, side, np.ones(len(source), bool), None)) + _ROOM
    room += -room % 8
    part, notes = path.with_name(path.name + ".part"), path.with_name(path.name + ".part.json")
    with _only_writer(part) as file:
        kept = _resumed(file, notes, job, room, channels * side * side, skip_bad)
        _decode_rest(source, file, notes, job, kept, side, skip_bad, on_progress)
        good = np.array(kept, bool)
        digest = _finish(source, file, side, good, room)
        os.replace(part, path)
    notes.unlink(missing_ok=True)
    folder = os.open(path.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    skipped = [_name(source, index) for index in np.flatnonzero(~good).tolist()]
    return {"images": int(good.sum()), "skipped": skipped, "bytes": path.stat().st_size, "sha256": digest}


def _decode_rest(
    source: LazySource,
    file: BinaryIO,
    notes: Path,
    job: dict[str, Any],
    kept: list[bool],
    side: int,
    skip_bad: bool,
    on_progress: Callable[[int, int], None] | None,
) -> None:
    """Append the images from number `len(kept)` on, and to `kept` whether each was good."""
    from concurrent.futures import ThreadPoolExecutor

    def square(height: int, width: int) -> Box:
        edge = min(height, width)
        return (height - edge) / 2, (width - edge) / 2, edge, edge

    def decoded(number: int) -> bytes | CorruptFileError:
        try:
            return source.store.read(number, side, square).tobytes()
        except CorruptFileError as error:
            if not skip_bad:
                raise
            return error

    def note() -> None:
        file.flush()
        os.fsync(file.fileno())
        write_json_atomic(notes, {**job, "kept": _runs(kept)})

    file.seek(0, os.SEEK_END)
    unsynced = 0
    try:
        with ThreadPoolExecutor(source.workers) as pool:
            for first in range(len(kept), len(source), _BATCH):
                for made in pool.map(decoded, source.indices[first : first + _BATCH].tolist()):
                    if isinstance(made, bytes):
                        file.write(made)
                        unsynced += len(made)
                    kept.append(isinstance(made, bytes))
                if on_progress is not None:
                    on_progress(len(kept), len(source))
                if unsynced >= _SYNC_EVERY:
                    unsynced = 0
                    note()
    except BaseException:
        note()
        raise


def _finish(source: LazySource, file: BinaryIO, side: int, good: np.ndarray, room: int) -> str:
    """Append labels and test part, write the header and the SHA-256, and sync."""
    labels = source.labels.numpy()[good]
    empty = np.flatnonzero(np.bincount(labels, minlength=source.num_classes) == 0)
    if len(empty):
        raise ValueError(f"no image of class {source.classes[empty[0]]} of {source.name} can be decoded")
    file.seek(0, os.SEEK_END)
    file.write(labels.astype("<i8").tobytes())
    test = _test_part(source, good)
    if test is not None:
        file.write(test.astype("<i8").tobytes())
    header = _header_bytes(source, side, good, test)
    header += b" " * (room - _LENGTH.size - len(header))
    file.seek(0)
    file.write(_LENGTH.pack(len(header)) + header)
    file.flush()
    place = _digest_place(header)
    digest = _digest(file, place)
    file.seek(place)
    file.write(digest.encode())
    file.flush()
    os.fsync(file.fileno())
    return digest


def _test_part(source: LazySource, good: np.ndarray) -> np.ndarray | None:
    """The test part as positions among the good images."""
    if source.test is None:
        return None
    chosen = source.test.numpy()
    return (np.cumsum(good) - 1)[chosen[good[chosen]]]


def _header_bytes(source: LazySource, side: int, good: np.ndarray, test: np.ndarray | None) -> bytes:
    count, channels = int(good.sum()), source.input_size[0]
    facts = {
        "format": FORMAT,
        "name": source.name,
        "classes": list(source.classes),
        "size": source.size,
        "mean": source.mean,
        "std": source.std,
        "skipped": source.skipped + len(good) - count,
        "source": source.fingerprint(),
    }
    entries = {
        "format": FORMAT,
        "metadata": json.dumps(facts, sort_keys=True, separators=(",", ":")),
        "sha256": _NO_DIGEST,
    }
    header: dict[str, Any] = {"__metadata__": entries}
    end = 0
    shapes = [("images", "U8", (count, channels, side, side), 1), ("labels", "I64", (count,), 8)]
    if test is not None:
        shapes.append(("test", "I64", (len(test),), 8))
    for name, dtype, shape, width in shapes:
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * width
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    return json.dumps(header, separators=(",", ":")).encode()


@contextlib.contextmanager
def _only_writer(part: Path) -> Iterator[BinaryIO]:
    """The unfinished file, opened for reading and writing, locked against a second writer."""
    import fcntl

    while True:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(f"{part}: another process is packing into it; wait for it") from None
            # Another writer may have finished between the two lines above: what is locked is then its whole file,
            # under its final name.
            if not _is_file_at(file, part):
                continue
            yield file
            return


def _is_file_at(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _resumed(
    file: BinaryIO, notes: Path, job: dict[str, Any], room: int, image_bytes: int, skip_bad: bool
) -> list[bool]:
    """Cut the file back to what is surely in it; gives, for each image that is done, whether it was good."""
    kept: list[bool] = []
    if notes.exists():
        try:
            found = json.loads(notes.read_text())
            runs = found.pop("kept")
            if found == job:
                kept = [flag for index, length in enumerate(runs) for flag in [index % 2 == 0] * length]
        except (ValueError, KeyError, TypeError, AttributeError):
            kept = []  # what it spares is only time
    wanted = room + sum(kept) * image_bytes
    if file.seek(0, os.SEEK_END) < wanted or not (skip_bad or all(kept)):
        kept, wanted = [], room
    file.truncate(wanted)
    return kept


def _runs(flags: list[bool]) -> list[int]:
    """Lengths of runs, the first of True."""
    runs, current = [0], True
    for flag in flags:
        if flag is not current:
            runs.append(0)
            current = flag
        runs[-1] += 1
    return runs


def _name(source: LazySource, index: int) -> str:
    from bitnas.data import places
    from bitnas.data.folder import FolderStore

    number = int(source.indices[index])
    return places.shown(source.store.table.name(number)) if isinstance(source.store, FolderStore) else str(number)


def _header(path: Path, file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors start."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(_LENGTH.size)
    length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else size
    if length > min(size - _LENGTH.size, _LONGEST_HEADER):
        raise CorruptFileError(path, f"is cut short, or is not a safetensors file: {size} bytes")
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"has no readable safetensors header ({error})") from error
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__", {}), dict):
        raise CorruptFileError(path, "has no readable safetensors header (not an object)")
    return header, _LENGTH.size + length


def _mapped(path: Path, start: int, entry: dict[str, Any]) -> np.ndarray:
    kinds: dict[str, np.dtype[Any]] = {"U8": np.dtype("u1"), "I64": np.dtype("<i8")}
    kind = kinds[entry["dtype"]]
    first, last = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if int(np.prod(shape, dtype=np.int64)) * kind.itemsize != last - first or first < 0:
        raise ValueError(f"a tensor of shape {shape} in {last - first} bytes")
    if last == first:
        return np.empty(shape, kind)
    return np.memmap(path, kind, "r", offset=start + first, shape=shape)


@functools.lru_cache(maxsize=16)
def _verify(path: Path, digest: str, size: int, changed_ns: int, inode: int) -> None:
    """Raise CorruptFileError unless the file has this SHA-256. Kept by the file's identity: once in a process."""
    with open(path, "rb") as file:
        _, start = _header(path, file)
        file.seek(0)
        place = _digest_place(file.read(start)[_LENGTH.size :], digest)
        if place < 0 or _digest(file, place) != digest:
            raise CorruptFileError(path, "the SHA-256 does not match the contents; the file is damaged or was edited")


def _digest_place(header: bytes, digest: str = _NO_DIGEST) -> int:
    """Where in the file the 64 digits stand, or -1. JSON escapes quotes in strings, so no text looks like this."""
    key = b'"sha256":"'
    found = header.find(key + digest.encode() + b'"')
    return _LENGTH.size + found + len(key) if found >= 0 else -1


def _digest(file: BinaryIO, place: int) -> str:
    """SHA-256 of a file whose own 64 digits at `place` are read as zeros."""
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place))
    digest.update(_NO_DIGEST.encode())
    file.seek(place + 64)
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()

"""Files that are either whole or refused: atomic writes, and safetensors under a SHA-256.

safetensors alone accepts many damaged headers (a renamed tensor, changed metadata). Here one hash covers every byte of
the file, header included, so a changed, cut or extended file is never loaded as if it were good. Nothing in such a file
is ever executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_NO_DIGEST = "0" * 64
_LENGTH = struct.Struct("<Q")  # safetensors: 8 bytes of header length, the header as JSON, the tensors


class CorruptFileError(ValueError):
    """A file that is damaged, or not of the kind that was asked for. The message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        super().__init__(f"{os.fspath(path)}: {reason}")
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[type[CorruptFileError], tuple[str, str]]:
        """Rebuild from both arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.path, self.reason)


def write_bytes_atomic(path: str | os.PathLike[str], data: bytes | bytearray | memoryview) -> None:
    """Write `data` to `path` so that a reader, or a crash at any moment, sees the old file or the new one, never a mix.

    The bytes go to a temporary file in the same folder, which is synced and renamed over `path`; then the folder is
    synced. An existing file's permission bits are kept. A process that is killed may leave the temporary file
    (`.NAME.*.tmp`), which nothing reads. Raises OSError as the file system reports it; `path` is then unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)  # a full disk does not say whose bytes it had no room for
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_json_atomic(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically.

    Raises ValueError if it holds a NaN or an infinity, TypeError if it is not JSON.
    """
    write_bytes_atomic(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_json_checked(path: str | os.PathLike[str], value: dict[str, Any] | list[dict[str, Any]]) -> None:
    """Write an object, or a list of them, as indented JSON with a checksum inside, atomically.

    The member "sha256" of the object, or of the last one in the list, is the SHA-256 of the value's canonical JSON
    (sorted keys, no spaces) without that member: other programs read the file as ever, and `read_json_checked` finds
    every change to what it says. Formatting and the order of members are not covered.

    Raises ValueError if `value` holds a NaN or an infinity, is empty or has a member "sha256" in that place already;
    TypeError if it is not JSON, or no object or list of objects.
    """
    holder = _digest_holder(value)
    if holder is None:
        raise TypeError(f"value: got {type(value).__name__}, wanted an object with members, or a list that ends in one")
    if "sha256" in holder:
        raise ValueError(
            "value: has a member 'sha256', which is where the checksum goes; give that member another name"
        )
    checked = {**holder, "sha256": _json_digest(value)}
    write_json_atomic(path, checked if isinstance(value, dict) else [*value[:-1], checked])


def read_json_checked(path: str | os.PathLike[str], *, fix: str = "Restore it from a copy") -> Any:
    """Read what `write_json_checked` wrote, without the checksum.

    Args:
        fix: what the user can do if the file is refused; ends the message.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is damaged, was edited, or carries no checksum.
    """
    data = Path(path).read_bytes()
    try:
        value = json.loads(data.decode(), parse_constant=_refuse_constant)
        holder = _digest_holder(value)
        digest = None if holder is None else holder.pop("sha256", None)
        matches = _json_digest(value) == digest
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"is not JSON as it was written ({error}). {fix}") from error
    if digest is None:
        raise CorruptFileError(path, f"holds no SHA-256 of itself, so it cannot be checked. {fix}")
    if not matches:
        raise CorruptFileError(
            path, f"the SHA-256 in it does not match the contents; it is damaged or was edited. {fix}"
        )
    return value


def _digest_holder(value: Any) -> dict[str, Any] | None:
    last = value[-1] if isinstance(value, list) and value else value
    return last if isinstance(last, dict) and last else None


def _json_digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write tensors and JSON metadata to one safetensors file, atomically, with a SHA-256 over all of it.

    Equal input gives equal bytes. Any safetensors reader opens the file; `load_tensors` also checks it.

    Args:
        path: the file; its folder must exist.
        tensors: name to tensor, of any dtype, shape and device; tensors that share memory are stored apart.
        metadata: a JSON object with at least `"format"`, a string that names the kind and version of the file.

    Raises:
        ValueError: `metadata["format"]` is missing, or a value is NaN or infinite.
        TypeError: a value of `metadata` is not JSON, or an entry of `tensors` is not a tensor.
    """
    kind = metadata.get("format")
    if not isinstance(kind, str) or not kind:
        raise ValueError(f"metadata['format'] must be a non-empty string that names the kind of file, got {kind!r}")
    text = json.dumps(dict(metadata), sort_keys=True, separators=(",", ":"), allow_nan=False)
    blob = _serialize(tensors, {"format": kind, "metadata": text, "sha256": _NO_DIGEST})
    start = _digest_position(blob, _NO_DIGEST)
    blob[start : start + 64] = _digest(blob, start).encode()
    write_bytes_atomic(path, blob)


def load_tensors(
    path: str | os.PathLike[str], *, expected_format: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote: CPU tensors by name, and the metadata.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: the file is not exactly as it was written, or its format is not `expected_format`.
    """
    blob = Path(path).read_bytes()
    entries = _header(path, blob)
    digest = entries.get("sha256")
    if not isinstance(digest, str) or len(digest) != 64:
        raise CorruptFileError(
            path, "holds no SHA-256 of itself, so it cannot be checked; it was not written by bitnas, or is damaged"
        )
    start = _digest_position(blob, digest)
    if start < 0 or _digest(blob, start) != digest:
        raise CorruptFileError(path, "the SHA-256 does not match the contents; the file is damaged or was edited")
    if entries.get("format") != expected_format:
        raise CorruptFileError(path, f"its format is {entries.get('format')!r}, expected {expected_format!r}")

    import safetensors
    import safetensors.torch

    try:
        metadata = json.loads(entries["metadata"])
        tensors = safetensors.torch.load(blob)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(path, f"cannot be decoded ({error})") from error
    if not isinstance(metadata, dict):
        raise CorruptFileError(path, "its metadata is not a JSON object")
    return tensors, metadata


def _serialize(tensors: Mapping[str, torch.Tensor], entries: dict[str, str]) -> bytearray:
    """safetensors bytes with `entries` as metadata, in this order: the library itself orders metadata by chance."""
    import safetensors.torch
    import torch

    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"tensors[{name!r}] must be a torch.Tensor, got {type(tensor).__name__}")
    plain = safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    )
    end = _LENGTH.size + _LENGTH.unpack_from(plain)[0]
    header = json.dumps(
        {"__metadata__": entries, **json.loads(plain[_LENGTH.size : end])}, separators=(",", ":")
    ).encode()
    header += b" " * (-len(header) % 8)  # keeps the tensors aligned, as the library does
    return bytearray().join((_LENGTH.pack(len(header)), header, plain[end:]))


def _header(path: str | os.PathLike[str], blob: bytes) -> dict[str, Any]:
    """The `__metadata__` entries of a safetensors file."""
    if len(blob) < _LENGTH.size:
        raise CorruptFileError(path, f"is cut short: {len(blob)} bytes")
    length = _LENGTH.unpack_from(blob)[0]
    if length > len(blob) - _LENGTH.size:
        raise CorruptFileError(
            path, f"is cut short or not safetensors: a header of {length} bytes in a file of {len(blob)}"
        )
    try:
        entries = json.loads(blob[_LENGTH.size : _LENGTH.size + length])["__metadata__"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptFileError(path, f"has no readable safetensors header ({error})") from error
    if not isinstance(entries, dict):
        raise CorruptFileError(path, "has no readable safetensors header (its metadata is not an object)")
    return entries


def _digest_position(blob: bytes | bytearray, digest: str) -> int:
    """Where the 64 digits stand, or -1. JSON escapes quotes inside strings, so no text can look like this entry."""
    key = b'"sha256":"'
    found = blob.find(key + digest.encode() + b'"')
    return found + len(key) if found >= 0 else -1


def _digest(blob: bytes | bytearray, start: int) -> str:
    """SHA-256 of the whole file with its own 64 digits read as zeros."""
    view = memoryview(blob)
    digest = hashlib.sha256(view[:start])
    digest.update(_NO_DIGEST.encode())
    digest.update(view[start + 64 :])
    return digest.hexdigest()

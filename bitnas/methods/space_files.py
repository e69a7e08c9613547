"""Search spaces as files: what every method's description of a space does alike when it is read."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

S = TypeVar("S")


def load_space(name: str | os.PathLike[str], known: Mapping[str, S], read: Callable[[Mapping[str, Any]], S]) -> S:
    """A space by its name among those that are `known`, or from a JSON file by `read`.

    Raises FileNotFoundError for a file that is not there, ValueError naming the file for one that is no space, and
    ValueError for an unknown name.
    """
    if str(name) in known:
        return known[str(name)]
    if not str(name).endswith(".json"):
        raise ValueError(f"space: got {str(name)!r}, wanted one of {', '.join(known)} or a .json file")
    try:
        return read(json.loads(Path(name).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} is not a search space: {error}") from error


def checked_fields(what: str, cls: type, values: Any) -> dict[str, Any]:
    """The values of a dataclass's fields. Raises TypeError for what is no object, ValueError naming fields that are
    unknown or missing."""
    if not isinstance(values, Mapping):
        raise TypeError(f"{what}: got {values!r}, wanted an object")
    fields = dataclasses.fields(cls)
    unknown = sorted(set(values) - {field.name for field in fields})
    missing = [f.name for f in fields if f.default is dataclasses.MISSING and f.name not in values]
    if unknown or missing:
        raise ValueError(f"{what}: unknown fields {unknown}, missing fields {missing}")
    return dict(values)


def sequence(name: str, value: Any) -> Sequence[Any]:
    """The value, if it is a list or tuple; TypeError if it is not."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: got {value!r}, wanted a list")
    return value

"""The description a network is built from, and its identity.

A network is fully described by a few numbers. They are a frozen record of their own, apart from the module, so that a
saved file or a search journal can name a network without building it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from bitnas.nn.arguments import integer, positive_real


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of a network.

    `ratios` holds one positive multiplier per searched width, `input_size` is `(C, H, W)`, `base_width` multiplies
    every base width before its ratio does, `scheme` is a key of `bitnas.nn.SCHEMES`, and `stem` is a network's choice
    of first layer, None where it has no choice. Numbers are normalised (ratios to float, sizes to int), so that equal
    networks compare equal. Raises TypeError or ValueError naming the field.
    """

    name: str
    ratios: tuple[float, ...]
    num_classes: int
    input_size: tuple[int, int, int]
    base_width: float = 1.0
    scheme: str = "dorefa"
    stem: str | None = None

    def __post_init__(self) -> None:
        for field in ("name", "scheme"):
            if not isinstance(getattr(self, field), str):
                raise TypeError(f"{field}: got {getattr(self, field)!r}, wanted a string")
        if self.stem is not None and not isinstance(self.stem, str):
            raise TypeError(f"stem: got {self.stem!r}, wanted a string or None")
        ratios = tuple(positive_real("ratios", ratio) for ratio in _sequence("ratios", self.ratios))
        size = tuple(integer("input_size", n) for n in _sequence("input_size", self.input_size))
        if len(size) != 3:
            raise ValueError(f"input_size: got {self.input_size!r}, wanted (channels, height, width)")
        object.__setattr__(self, "ratios", ratios)
        object.__setattr__(self, "input_size", size)
        object.__setattr__(self, "num_classes", integer("num_classes", self.num_classes))
        object.__setattr__(self, "base_width", positive_real("base_width", self.base_width))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `stem` only where the network has one."""
        values: dict[str, Any] = {
            "name": self.name,
            "ratios": list(self.ratios),
            "num_classes": self.num_classes,
            "input_size": list(self.input_size),
            "base_width": self.base_width,
            "scheme": self.scheme,
        }
        if self.stem is not None:
            values["stem"] = self.stem
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """The inverse of `to_dict`. Raises ValueError for a missing or an unknown field."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        missing = sorted(known - {"stem"} - set(values))
        if unknown or missing:
            raise ValueError(f"model config: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the same for the same network in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def scale_width(base: int, base_width: float, ratio: float) -> int:
    """int(int(base * base_width) * ratio), at least 1: truncated, as in Shen et al. 2019's published code."""
    return max(1, int(int(base * base_width) * ratio))


def _sequence(name: str, value: object) -> Sequence[Any]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}: got {value!r}, wanted a sequence of numbers")
    return value

"""A number for each epoch, as data: every guard of a search that may change while it runs is one of these.

A plain number in a file is a constant, so that a configuration says no more than it has to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONSTANT, LINEAR, COSINE, EXPONENTIAL, STEPS = "constant", "linear", "cosine", "exponential", "steps"
KINDS = (CONSTANT, LINEAR, COSINE, EXPONENTIAL, STEPS)
_MOVING = (LINEAR, COSINE, EXPONENTIAL)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A number for each epoch.

    Attributes:
        kind: one of `KINDS`. `"linear"`, `"cosine"` (half a period) and `"exponential"` (equal factors) go from `start`
            to `end`; `"steps"` is `start`, and from each epoch of `steps` on the value beside it.
        start, end: the values; a constant is its `start`.
        first, last: the epochs that have `start` and `end`, in JSON "from" and "to"; before and after it the value
            stays. `last` None: the last epoch of the run.
        steps: pairs of epoch and value, the epochs increasing.

    Epochs count from 0. Raises TypeError or ValueError naming the field.
    """

    kind: str = CONSTANT
    start: float = 0.0
    end: float | None = None
    first: int = 0
    last: int | None = None
    steps: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}, wanted one of {', '.join(KINDS)}")
        object.__setattr__(self, "start", _number("start", self.start))
        if (self.end is not None) != (self.kind in _MOVING):
            raise ValueError(f"end: got {self.end!r} for {self.kind!r}, wanted it for {', '.join(_MOVING)} alone")
        if self.end is not None:
            object.__setattr__(self, "end", _number("end", self.end))
        _epoch("from", self.first)
        if self.last is not None and _epoch("to", self.last) <= self.first:
            raise ValueError(f"to: got {self.last}, wanted an epoch after from {self.first}")
        if self.kind not in _MOVING and (self.first, self.last) != (0, None):
            raise ValueError(f"from, to: got {self.first}, {self.last} for {self.kind!r}, wanted none")
        if self.kind == EXPONENTIAL and min(self.values) <= 0:
            raise ValueError(f"start, end: got {self.start:g} and {self.end:g}, wanted both above 0 for {self.kind!r}")
        if isinstance(self.steps, str) or not isinstance(self.steps, Sequence):
            raise TypeError(f"steps: got {self.steps!r}, wanted pairs of epoch and value")
        object.__setattr__(self, "steps", tuple(map(_pair, self.steps)))
        if bool(self.steps) != (self.kind == STEPS):
            raise ValueError(f"steps: got {list(self.steps)} for {self.kind!r}, wanted some for 'steps' alone")
        epochs = [epoch for epoch, _ in self.steps]
        if epochs != sorted(set(epochs)):
            raise ValueError(f"steps: got epochs {epochs}, wanted them to increase")

    @property
    def values(self) -> tuple[float, ...]:
        """The values that it goes through or between; every other lies between two of them."""
        return (self.start, *([] if self.end is None else [self.end]), *(value for _, value in self.steps))

    def at(self, epoch: int, epochs: int) -> float:
        """The value in `epoch` (from 0) of a run of so many. Raises ValueError for an epoch that the run has not."""
        if not 0 <= epoch < epochs:
            raise ValueError(f"epoch: got {epoch}, wanted 0 to {epochs - 1}")
        if self.kind == STEPS:
            return next((value for begins, value in reversed(self.steps) if epoch >= begins), self.start)
        if self.end is None:
            return self.start
        last = epochs - 1 if self.last is None else self.last
        if epoch <= self.first:  # a run that ends before `first`, or of one epoch, keeps the start
            return self.start
        if epoch >= last:
            return self.end
        share = (epoch - self.first) / (last - self.first)
        if self.kind == EXPONENTIAL:
            return self.start * (self.end / self.start) ** share
        if self.kind == COSINE:
            share = (1 - math.cos(math.pi * share)) / 2
        return self.start + (self.end - self.start) * share

    def to_json(self) -> float | dict[str, Any]:
        """A number for a constant, else an object without what it leaves at its default."""
        if self.kind == CONSTANT:
            return self.start
        values: dict[str, Any] = {"kind": self.kind, "start": self.start}
        if self.end is not None:
            values |= {"end": self.end}
        if self.first:
            values |= {"from": self.first}
        if self.last is not None:
            values |= {"to": self.last}
        return values | ({"steps": [list(step) for step in self.steps]} if self.steps else {})

    @classmethod
    def from_json(cls, value: Any) -> Schedule:
        """The inverse of `to_json`; a `Schedule` is itself. Raises TypeError, ValueError as the constructor does."""
        if isinstance(value, Schedule):
            return value
        if not isinstance(value, Mapping):
            return cls(start=value)
        fields = dict(value)
        unknown = sorted(set(fields) - {"kind", "start", "end", "from", "to", "steps"})
        if unknown or "kind" not in fields or "start" not in fields:
            raise ValueError(f"schedule: got {fields}, wanted kind, start, and of end, from, to and steps what it has")
        renamed = {"from": "first", "to": "last"}
        return cls(**{renamed.get(name, name): entry for name, entry in fields.items()})


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}: got {value}, wanted a finite number")
    return float(value)


def _epoch(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, wanted an epoch")
    if value < 0:
        raise ValueError(f"{name}: got {value}, wanted an epoch of at least 0")
    return value


def _pair(step: Any) -> tuple[int, float]:
    if isinstance(step, str) or not isinstance(step, Sequence) or len(step) != 2:
        raise TypeError(f"steps: got {step!r}, wanted a pair of epoch and value")
    return _epoch("steps", step[0]), _number("steps", step[1])

"""What the settings of every search share: checks that name the setting, what it got and what it wanted; their way to a
file and back; the objectives.

No torch here, so that a command line can check settings at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from bitnas.search.pareto import Objective

C = TypeVar("C")

MEASURED, TABLE = "measured", "table"

# What a run may optimise: the name a user gives -> (metric, more is better).
OBJECTIVES = {
    "accuracy": ("accuracy", True),
    "ops": ("ops", False),
    "flops": ("flops", False),
    "bops": ("bops", False),
    "memory": ("memory_bits", False),
    "latency": ("latency_us", False),
}

MOST_CALIBRATION = 100  # batches that batch-norm statistics can be means over
_LEAST_MEMORY = 0.5  # GiB; a worker that has imported torch holds a quarter
_WORKERS = "an integer, 'ray', 'HOST:PORT' or 'ray://HOST:PORT'"


def check_names(settings: Any, names: tuple[str, ...]) -> None:
    """Words that may not be empty, and the two that are one of a few. Raises TypeError, ValueError."""
    for name in names:
        if not isinstance(getattr(settings, name), str) or not getattr(settings, name):
            raise TypeError(f"{name}: got {getattr(settings, name)!r}, wanted a name")
    for name, known in (("latency_source", (MEASURED, TABLE)), ("device", ("cpu", "cuda"))):
        if getattr(settings, name) not in known:
            raise ValueError(f"{name}: got {getattr(settings, name)!r}, wanted one of {', '.join(known)}")


def check_integers(settings: Any, least: Mapping[str, int], *, optional: tuple[str, ...] = ()) -> None:
    """Integers of at least so much; those of `optional` may be None. Raises TypeError, ValueError."""
    for name, low in least.items():
        value = getattr(settings, name)
        if value is None and name in optional:
            continue
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r}, wanted an integer")
        if value < low:
            raise ValueError(f"{name}: got {value}, wanted at least {low}")


def check_numbers(settings: Any, ranges: Mapping[str, tuple[float, float]], *, positive: Iterable[str] = ()) -> None:
    """Finite numbers within their range, those of `positive` above 0; become floats. Raises TypeError, ValueError."""
    for name, (least, most) in ranges.items():
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: got {value!r}, wanted a number")
        if not least <= value <= most or math.isinf(value) or (name in positive and value == 0):
            span = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
            raise ValueError(f"{name}: got {value}, wanted a finite number {'above 0' if name in positive else span}")
        object.__setattr__(settings, name, float(value))


def check_fractions(settings: Any) -> None:
    """Train and validation images leave some for a test. Raises ValueError."""
    if settings.train_fraction + settings.val_fraction >= 1:
        raise ValueError(
            f"train_fraction, val_fraction: got {settings.train_fraction} and {settings.val_fraction}, "
            "wanted a sum below 1, so that a test split remains"
        )


def check_calibration(settings: Any) -> None:
    """Not more batches than batch norm is measured on. Raises ValueError."""
    if settings.calibration_batches > MOST_CALIBRATION:
        raise ValueError(
            f"calibration_batches: got {settings.calibration_batches}, wanted at most {MOST_CALIBRATION}; take larger "
            "ones (calibration_size)"
        )


def check_limits(settings: Any, units: Mapping[str, str]) -> None:
    """Positive numbers of a unit, or None; `memory_limit` at least what torch needs. Raises TypeError, ValueError."""
    for name, unit in units.items():
        value = getattr(settings, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name}: got {value!r}, wanted {unit} or None")
        if not 0 < value < math.inf:
            raise ValueError(f"{name}: got {value}, wanted positive {unit} or None")
    if settings.memory_limit is not None and settings.memory_limit < _LEAST_MEMORY:
        raise ValueError(
            f"memory_limit: got {settings.memory_limit} GiB, wanted at least {_LEAST_MEMORY}, which torch needs"
        )


def check_workers(workers: object) -> None:
    """A number of processes, or where a cluster is. Raises TypeError, ValueError."""
    if isinstance(workers, bool) or not isinstance(workers, int | str):
        raise TypeError(f"workers: got {workers!r}, wanted {_WORKERS}")
    if isinstance(workers, str) and workers != "ray" and ":" not in workers:
        raise ValueError(f"workers: got {workers!r}, wanted {_WORKERS}")
    if isinstance(workers, int) and workers < 0:
        raise ValueError(f"workers: got {workers}, wanted at least 0")


def objective(settings: Any, name: str) -> Objective:
    """One of `OBJECTIVES` with the noise that the settings allow it."""
    metric, maximize = OBJECTIVES[name]
    return Objective(
        metric,
        maximize=maximize,
        tolerance=settings.accuracy_tolerance if name == "accuracy" else 0.0,
        relative_tolerance=settings.latency_tolerance if name == "latency" else 0.0,
        spread=("latency_low_us", "latency_high_us") if name == "latency" else None,
    )


def data_name(data: str) -> str:
    """What a data set is called in presets: its name, or the stem of a path, without the images of each class behind a
    colon."""
    return Path(data.partition(":")[0]).stem


def like_of(input_size: Sequence[int]) -> str:
    """Of digits, cifar10 and imagenet the data set whose images are most like these, by the shorter side."""
    return next(name for name, side in _SIDES.items() if min(input_size[1:]) <= side)


_SIDES = {"digits": 28, "cifar10": 64, "imagenet": math.inf}  # the longest shorter side


def from_dict(cls: type[C], settings: Mapping[str, Any], *, tuples: Iterable[str] = ("objectives",)) -> C:
    """The inverse of a settings class's `to_dict`, where lists stand for `tuples`.

    Raises ValueError for a setting that does not exist.
    """
    known = {setting.name for setting in dataclasses.fields(cls)}  # type: ignore[arg-type]  # a settings class is one
    unknown = sorted(set(settings) - known)
    if unknown:
        raise ValueError(f"{unknown[0]}: no such setting; there are {', '.join(sorted(known))}")
    values = dict(settings)
    for name in tuples:
        if isinstance(values.get(name), list):
            values[name] = tuple(values[name])
    return cls(**values)


def identity(settings: Mapping[str, Any], *, left_out: Iterable[str]) -> str:
    """SHA-256 of settings but those left out."""
    kept = {name: value for name, value in settings.items() if name not in set(left_out)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()

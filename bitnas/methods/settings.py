"""Checks of the settings that every search has. They name the setting, what it got and what it wanted.

No torch here, so that a command line can check settings at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MEASURED, TABLE = "measured", "table"

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


def check_fractions(settings: Any) -> None:
    """Train and validation images leave some for a test. Raises ValueError."""
    if settings.train_fraction + settings.val_fraction >= 1:
        raise ValueError(
            f"train_fraction, val_fraction: got {settings.train_fraction} and {settings.val_fraction}, "
            "wanted a sum below 1, so that a test split remains"
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

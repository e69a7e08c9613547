"""The folder of a search: what every method keeps in it, and how it is claimed, read and refused.

The folder is the only state of a search. A method brings its settings, its strategy and its stages; what is here knows
of none of them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

from bitnas.files import CorruptFileError, read_json_checked, write_json_checked
from bitnas.methods import candidates
from bitnas.search import Journal, WorkerPool, Workers, open_workers
from bitnas.search.loop import Candidate, SearchResult

Progress = Callable[[dict[str, Any]], None]

CONFIG, JOURNAL, FRONT, SUMMARY, STUDY = "config.json", "journal.sqlite", "front.json", "search.json", "study.json"
WORKER_LOG, LATENCY_TABLE = "workers.log", "latency.sqlite"


class Settings(Protocol):
    """What a folder needs of a method's settings."""

    @property
    def data(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def generations(self) -> int: ...
    @property
    def workers(self) -> int | str: ...
    @property
    def timeout(self) -> float | None: ...
    @property
    def memory_limit(self) -> float | None: ...
    def to_dict(self) -> dict[str, Any]: ...
    def identity(self, *, generations: bool = False) -> str: ...


class CheckedTable(Protocol):
    """What is known of a device table after `bitnas latency check`; see `bitnas.cost.agreement.Check`."""

    @property
    def good(self) -> bool: ...
    @property
    def spearman(self) -> float: ...
    @property
    def median_error(self) -> float: ...
    @property
    def networks(self) -> int: ...
    def to_dict(self) -> dict[str, Any]: ...


S = TypeVar("S", bound=Settings)


def claim(folder: Path, config: Settings, method: str, read: Callable[[Path], Settings], **facts: Any) -> None:
    """Make the folder, or check that it is this run's.

    Args:
        folder: the run folder.
        config: the run's settings.
        method: what `config.json` calls the method.
        read: gives the settings that a folder holds.
        facts: what `config.json` says beside the settings.

    Raises FileExistsError: it holds something else, or a run with other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, wanted a folder")
    if (folder / CONFIG).exists():
        existing = read(folder)
        if existing.identity(generations=True) != config.identity(generations=True):
            before, now = existing.to_dict(), config.to_dict()
            name, there, here = _difference(before, now)
            raise FileExistsError(
                f"{folder} holds a run with other settings: {name} is {there} there and {here} here. "
                "Use another folder, or `resume` to go on with the run as it was."
            )
        return
    if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty and holds no {CONFIG}; use a new folder for a new run")
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder, config, method, **facts)


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """The first setting that differs, by its path, with both values."""
    name = next(name for name in now if name not in before or before[name] != now[name])
    there, here = before.get(name), now[name]
    if isinstance(there, Mapping) and isinstance(here, Mapping) and there.keys() == here.keys():
        inner, there, here = _difference(there, here)
        name = f"{name}.{inner}"
    return name, there, here


def write_config(folder: Path, config: Settings, method: str, **facts: Any) -> None:
    """Write `config.json`: the settings, and what they ran on."""
    from bitnas.cost import machine

    write_json_checked(
        folder / CONFIG,
        {
            "method": method,
            "search": config.to_dict(),
            "seed": config.seed,
            **facts,
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "machine": machine.facts(),
        },
    )


def versions() -> dict[str, str]:
    """Of what decides numbers: this package, Python, torch, NumPy."""
    import platform

    import numpy
    import torch

    from bitnas import __version__

    return {
        "bitnas": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def _read(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {CONFIG}")
    found = read_json_checked(
        path,
        fix="A run's settings are never edited: start another run with a new folder, or restore the file from a copy",
    )
    if not isinstance(found, dict):
        raise CorruptFileError(path, "does not hold the settings of a search")
    return found


def read_method(folder: Path) -> str:
    """Which method searched in a folder; FileNotFoundError if none did, CorruptFileError if it cannot be read."""
    return str(_read(folder).get("method"))


def read_settings(folder: Path, method: str, from_dict: Callable[[Mapping[str, Any]], S]) -> S:
    """The settings of a run folder; FileNotFoundError if there is none, CorruptFileError if they cannot be read."""
    found = _read(folder)
    if found.get("method", method) != method:
        raise ValueError(f"{folder} holds a search by method {found['method']}, wanted {method}; use another folder")
    try:
        return from_dict(found["search"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(folder / CONFIG, f"does not hold the settings of a {method} search ({error})") from error


def open_journal(folder: Path, config: Settings, method: str, **facts: Any) -> Journal:
    """The folder's journal, bound to settings, data, machine and `facts`; holds the folder's lock while open."""
    from bitnas.cost import machine

    path = folder / JOURNAL
    if (folder / FRONT).exists() and (not path.exists() or path.stat().st_size == 0):
        raise CorruptFileError(path, "is empty or missing, though the search in this folder has finished; restore it")
    meta = {
        "method": method,
        "version": 1,
        "seed": config.seed,
        "data": candidates.load_data(config.data, config.seed).fingerprint(),
        # Latencies of another machine or kernel are not comparable with these.
        "machine": {name: machine.facts()[name] for name in ("cpu", "isa", "kernel_version", "torch")},
        "config": config.identity(),
        **facts,
    }
    return Journal(path, meta=meta)


def open_pool(config: Settings, folder: Path) -> Workers:
    """Workers for this run, on this machine or many, started on first use."""
    limit = None if config.memory_limit is None else int(config.memory_limit * 2**30)
    return open_workers(
        config.workers,
        timeout=config.timeout,
        memory_limit=limit,
        initializer=candidates.start_worker,
        log=folder / WORKER_LOG,
    )


def open_measurer(config: Settings) -> WorkerPool:
    """The one process that latencies are measured in; this one for a run without workers. Always on this machine."""
    return WorkerPool(0 if config.workers == 0 else 1, timeout=config.timeout)


def check_threads(threads: int) -> None:
    """Refuse to measure with more threads than there are CPUs."""
    cores = os.cpu_count() or 1
    if threads > cores:
        raise ValueError(f"latency_threads: got {threads}, wanted at most the {cores} CPUs there are")


def keep_table(folder: Path, table: str | None) -> str:
    """The run's own copy of the device table, made now if missing, so that building or checking that table again
    changes nothing here."""
    copy = folder / LATENCY_TABLE
    if not copy.exists():
        from bitnas.cost.device_table import copy_table

        copy_table(table, copy)
    return str(copy)


def table_facts(
    folder: Path, table: str | None, find: Callable[[str], CheckedTable | None], notify: Progress
) -> dict[str, Any] | None:
    """Keep the run's own copy of the device table, and say how true `find` says it was found; warns where that is not
    known or not good."""
    check = find(keep_table(folder, table))
    if check is None:
        notify({"event": "warning", "message": "the latency table was never checked; run `bitnas latency check`"})
        return None
    if not check.good:
        notify(
            {
                "event": "warning",
                "message": f"the latency table is off: Spearman {check.spearman:.3f}, median error "
                f"{check.median_error:.1%} over {check.networks} networks; build it again on an idle machine",
            }
        )
    return check.to_dict()


class Summary:
    """Keeps `search.json`: what follows from the journal by a run's settings, so that a report need not run the search
    again.

    Args:
        folder: the run folder.
        describe: what a candidate's entry says of its architecture.
        front: of the result so far, the front.
        latency: what the file says of the run's latencies.
        extra: of the result so far, further members of the file.
    """

    def __init__(
        self,
        folder: Path,
        describe: Callable[[Candidate], dict[str, Any]],
        front: Callable[[SearchResult], list[Candidate]],
        latency: dict[str, Any],
        extra: Callable[[SearchResult], dict[str, Any]] | None = None,
    ) -> None:
        self._path = folder / SUMMARY
        self._describe, self._front, self._latency, self._extra = describe, front, latency, extra
        self._fronts: list[list[str]] = []

    def write(self, result: SearchResult) -> None:
        """After each generation."""
        self._fronts.append([candidate.key for candidate in self._front(result)])
        write_json_checked(
            self._path,
            {
                "history": result.history,
                "fronts": self._fronts,
                "candidates": [
                    {
                        "key": candidate.key,
                        **self._describe(candidate),
                        "status": candidate.status,
                        "reason": candidate.reason,
                        "generation": candidate.generation,
                        "metrics": candidate.metrics,
                    }
                    for candidate in result.candidates
                ],
                **({} if self._extra is None else self._extra(result)),
                "latency": self._latency,
            },
        )


def search_end(found: SearchResult, front: list[dict[str, Any]]) -> dict[str, Any]:
    """The last event of a search."""
    return {
        "event": "search_end",
        "evaluated": len(found.candidates),
        "failed": sum(candidate.status == "failed" for candidate in found.candidates),
        "rejected": sum(candidate.status == "rejected" for candidate in found.candidates),
        "front": len(front),
    }


def resumed(folder: Path, config: S, generations: int | None, workers: int | str | None) -> S:
    """The settings that a search goes on with: perhaps more generations, perhaps other workers.

    Raises ValueError where `generations` is below what the run was started with.
    """
    if generations is not None and generations < config.generations:
        raise ValueError(f"generations: got {generations}, wanted at least the {config.generations} of {folder}")
    given: dict[str, Any] = {"generations": generations, "workers": workers}
    changed = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(config, **changed)  # type: ignore[type-var]  # a protocol does not say it is a dataclass


def write_front(folder: Path, rows: list[dict[str, Any]]) -> None:
    """A study of an earlier front says nothing of this one; its trainings stay in the journal."""
    path, study = folder / FRONT, folder / STUDY
    if study.exists() and not (path.exists() and read_front(folder) == json.loads(json.dumps(rows))):
        study.unlink()
    write_json_checked(path, rows)


def read_front(folder: Path) -> list[dict[str, Any]]:
    """The rows of `front.json`; FileNotFoundError without one, CorruptFileError if it was altered."""
    rows: list[dict[str, Any]] = read_json_checked(
        folder / FRONT,
        fix="Delete it and run `bitnas resume`: it is written again from the journal, nothing is measured",
    )
    return rows

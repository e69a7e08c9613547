"""What a run folder holds, read once into plain records.

Every file but the configuration may be missing, because a search can be reported while it still runs; a file that is
there but damaged is refused, so that a report never shows half of the truth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files import CorruptFileError

SEARCHED, UNIFORM = "searched", "uniform"


@dataclass(frozen=True)
class Network:
    """One retrained network of the study, or one of the search front. `values` is its JSON object."""

    values: Mapping[str, Any]

    @property
    def label(self) -> str:
        return str(self.values.get("label", "")) or "network"

    @property
    def kind(self) -> str:
        return str(self.values.get("kind", SEARCHED))

    @property
    def pair(self) -> str:
        return str(self.values.get("pair", ""))

    @property
    def widths(self) -> list[int]:
        """Channels of each searched layer, in order."""
        return [int(width) for width in self.values.get("widths") or ()]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Per-layer latency: `name`, `packed_us`, `float_us`, `macs`, `binary`."""
        return [layer for layer in self.values.get("layers") or () if isinstance(layer, dict)]

    def get(self, name: str) -> float | None:
        """A finite number, or None where it was not measured."""
        return number(self.values, name)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the accuracy interval, as fractions."""
        low, high = self.get("accuracy_low"), self.get("accuracy_high")
        return None if low is None or high is None else (low, high)

    @property
    def verified(self) -> bool | None:
        """Whether the frozen network was proved equal to the trained one; None if that was not tried."""
        found = self.values.get("verified")
        if isinstance(found, dict):
            found = found.get("ok")
        return found if isinstance(found, bool) else None


@dataclass(frozen=True)
class Candidate:
    """One evaluation of the search that succeeded."""

    ratios: tuple[float, ...]
    metrics: Mapping[str, float]
    generation: int | None

    def get(self, name: str) -> float | None:
        return number(self.metrics, name)


Point = Network | Candidate


@dataclass(frozen=True)
class FailedCandidate:
    """One evaluation of the search that failed, with the reason the journal gives."""

    ratios: tuple[float, ...]
    reason: str
    generation: int | None


@dataclass(frozen=True)
class Run:
    """A run folder in memory; the lists are empty until the search and the study have written them."""

    folder: Path
    config: dict[str, Any]
    candidates: list[Candidate] = field(default_factory=list)
    failures: list[FailedCandidate] = field(default_factory=list)
    front: list[Network] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    overall: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def pairs(self) -> list[tuple[Network, Network]]:
        """(searched, uniform) of equal cost, in the order of the study."""
        uniform = {network.pair: network for network in self.networks if network.kind == UNIFORM}
        return [
            (network, uniform[network.pair])
            for network in self.networks
            if network.kind == SEARCHED and network.pair in uniform
        ]


def number(record: Mapping[str, Any], name: str) -> float | None:
    """`record[name]` if it is a finite number, otherwise None."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def load_run(folder: str | Path) -> Run:
    """Read the run folder.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no `config.json`.
        CorruptFileError: a file is there but cannot be read as what it should be.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no config.json")
    config = _read_json(folder / "config.json", dict)
    study = _read_json(folder / "study.json", dict) if (folder / "study.json").exists() else {}
    front = _read_json(folder / "front.json", list) if (folder / "front.json").exists() else []
    candidates, failures = _read_journal(folder / "journal.sqlite")
    return Run(
        folder=folder,
        config=config,
        candidates=candidates,
        failures=failures,
        front=[Network(entry) for entry in _objects(folder / "front.json", front)],
        networks=[Network(entry) for entry in _objects(folder / "study.json", study.get("networks", []))],
        claims=_objects(folder / "study.json", study.get("claims", [])),
        overall=study["overall"] if isinstance(study.get("overall"), dict) else {},
        protocol=study["protocol"] if isinstance(study.get("protocol"), dict) else {},
    )


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise CorruptFileError(path, f"holds a {type(value).__name__}, expected a {kind.__name__}")
    return value


def _objects(path: Path, entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CorruptFileError(path, "expected a list of objects")
    return entries


def _read_journal(path: Path) -> tuple[list[Candidate], list[FailedCandidate]]:
    """The search's evaluations, their stages put together. Stages of the study are left out; study.json has them."""
    if not path.exists():
        return [], []
    from ..search.journal import read_journal

    _, records = read_journal(path)
    stages: dict[str, list[Any]] = {}
    for record in records:
        if not record.stage.startswith("study"):
            stages.setdefault(record.key, []).append(record)
    candidates, failures = [], []
    for group in stages.values():
        first = group[0]
        failed = next((record for record in group if not record.ok), None)
        if failed is not None:
            failures.append(FailedCandidate(first.genome, failed.reason, first.generation))
        else:
            metrics = {name: value for record in group for name, value in record.metrics.items()}
            candidates.append(Candidate(first.genome, metrics, first.generation))
    return candidates, failures

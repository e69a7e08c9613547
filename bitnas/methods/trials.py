"""What the studies of all methods share: a folder with a journal of its own, the data in parts, networks in turns.

A study is stopped and given again at will: each training and each measurement is journalled once, and the result is
written anew from the journal.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bitnas.files import write_json_checked
from bitnas.methods import candidates, run_folder
from bitnas.methods.intervals import wilson
from bitnas.methods.run_folder import Progress
from bitnas.search import Journal, Record, Stage, Workers, run_tasks
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from torch import nn

    from bitnas.data import Source
    from bitnas.models.registry import NetworkConfig

VERIFIED_IMAGES = 1000  # at most so many, each layer's every integer compared


class Settings(run_folder.Settings, Protocol):
    """What a study needs of a method's settings."""

    @property
    def train_fraction(self) -> float: ...
    @property
    def val_fraction(self) -> float: ...


@dataclass(frozen=True)
class Parts:
    """A split: `known` is train and val together, `held` val and test, which no supernet is trained on."""

    train: Source
    val: Source
    test: Source
    known: Source
    held: Source


def parts(config: Settings) -> Parts:
    """The run's split as sources."""
    import torch

    data = candidates.load_data(config.data, config.seed)
    split = candidates.split_data(config.data, config.seed, config.train_fraction, config.val_fraction)
    known, held = (torch.cat([split.val, other]).sort().values for other in (split.train, split.test))
    return Parts(*(data.subset(indices) for indices in (split.train, split.val, split.test, known, held)))


def numbered(seeds: int | Sequence[int]) -> list[int]:
    """Seeds: so many from 0, or which. Raises ValueError for none or for one given twice."""
    wrong = isinstance(seeds, bool) or not isinstance(seeds, int | Sequence) or isinstance(seeds, str)
    found = [] if wrong else list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not found or len(set(found)) != len(found):
        raise ValueError(f"seeds: got {seeds!r}, wanted at least one seed, none twice")
    return found


@contextlib.contextmanager
def opened(
    folder: Path,
    method: str,
    name: str,
    config: Settings,
    settings: Mapping[str, Any],
    workers: int | str | None,
) -> Iterator[tuple[Journal, Workers]]:
    """The journal and the workers of a study; the folder is made if missing.

    Args:
        folder: of the study.
        method: whose study it is; name: of the journal, `<name>.sqlite`.
        config: the settings that all its trainings share, or that the first has.
        settings: what else it is bound to.
        workers: processes; None for as many as the config has.

    Raises JournalMismatch: the folder holds a study of other settings; and as `Journal`.
    """
    from bitnas.cost import machine

    folder.mkdir(parents=True, exist_ok=True)
    meta = {
        "method": f"{method}-{name}",
        "version": 1,
        "settings": dict(settings),
        "data": candidates.load_data(config.data, config.seed).fingerprint(),
        "machine": {fact: machine.facts()[fact] for fact in ("cpu", "isa", "kernel_version", "torch")},
        "config": config.identity(),
    }
    # A candidate's time limit is none for a whole training.
    execution = dataclasses.replace(  # type: ignore[type-var]  # a protocol cannot say that it is a dataclass
        config, timeout=None, workers=config.workers if workers is None else workers
    )
    with (
        Journal(folder / f"{name}.sqlite", meta=meta) as journal,
        run_folder.open_pool(execution, folder) as pool,
    ):
        yield journal, pool


def write(folder: Path, method: str, name: str, result: Mapping[str, Any], **facts: Any) -> dict[str, Any]:
    """Write `<name>.json` with `facts` and what the study ran on, and give what it says."""
    from bitnas.cost import machine

    found = {
        "format": f"bitnas-{method}-{name}-1",
        **result,
        **facts,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": run_folder.versions(),
        "machine": machine.facts(),
    }
    write_json_checked(folder / f"{name}.json", found)
    return found


def measured(
    event: str,
    tasks: Sequence[tuple[str, Genome]],
    stage: Stage,
    journal: Journal,
    pool: Workers,
    notify: Progress,
    arguments: Sequence[tuple[Any, ...]],
) -> dict[str, dict[str, float]]:
    """Metrics of every task by its key; RuntimeError with the reason of one that failed."""
    found: dict[str, dict[str, float]] = {}
    for record, replayed in run_tasks(tasks, stage, journal, pool, task_arguments=arguments):
        found[record.key] = dict(_ok(record, journal).metrics)
        notify({"event": event, "key": record.key, "replayed": replayed, "done": len(found), "total": len(tasks)})
    return found


def _ok(record: Record, journal: Journal) -> Record:
    if not record.ok:
        raise RuntimeError(
            f"{record.stage} of {record.key} failed: {record.reason}. {journal.path} keeps that: use a new folder"
        )
    return record


def digest(value: Any) -> str:
    """SHA-256 of a JSON value: the key of a task that many networks share."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def make_network(network: NetworkConfig, seed: int) -> Any:
    """The network with random weights that the seed decides; torch's global random state is left as it was."""
    import torch

    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model_from_config(network)


def predictions(model: Any, data: Source) -> list[bool]:
    """Which images the network classifies right, in order."""
    import torch

    right: list[bool] = []
    with torch.inference_mode():
        for x, y in data.batches(torch.arange(len(data)).split(256)):
            right += (model(x).argmax(1) == y).tolist()
    return right


def finished(model: nn.Module, own: Parts, file: Path) -> dict[str, Any]:
    """Freeze, verify and save a trained network, its folder made if missing; what the frozen one gets right of the test
    part, image by image ("right") and with its Wilson interval."""
    import torch

    from bitnas import packed

    frozen = packed.freeze(model)
    verification = packed.verify(model, frozen, own.test.take(torch.arange(min(len(own.test), VERIFIED_IMAGES))))
    file.parent.mkdir(exist_ok=True)
    packed.save(frozen, file)
    right = predictions(frozen, own.test)
    accuracy = wilson(sum(right), len(right))
    return {
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "test_images": len(right),
        "verified": verification.to_dict(),
        "file": f"{file.parent.name}/{file.name}",
        "right": right,
    }


@dataclass(frozen=True)
class TimedAs:
    """Settings of timings, as `candidates.TimingSettings` wants them."""

    latency_batch: int = 1
    latency_threads: int = 1
    latency_tolerance: float = 0.02
    latency_budget: float | None = None


def timed_as(settings: candidates.TimingSettings) -> dict[str, Any]:
    """A method's settings of timings, for `time_networks`."""
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(TimedAs)}


def time_networks(
    genome: Genome, networks: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]
) -> dict[str, float]:
    """Latencies of frozen networks of any kind, timed in turns with this process alone on the machine.

    The kernels take the same time whatever the bits are, so networks have random weights.

    Args:
        genome: of no meaning; tasks have one.
        networks: descriptions, as the `to_dict` of their configs gives them.
        settings: of `TimedAs`.

    Returns:
        For each, by its number in `networks`: latency_us, latency_low_us, latency_high_us, latency_iqr_us,
        latency_noisy; in us per batch.
    """
    from bitnas.models.registry import config_from_dict

    config = TimedAs(**settings)

    def made(values: Mapping[str, Any]) -> nn.Module:
        network: nn.Module = make_network(config_from_dict(values), 0)
        return network

    timings = candidates.time_in_turns(map(made, networks), config, candidates.FRONT_SECONDS)
    margin = 0.5 * config.latency_tolerance
    found: dict[str, float] = {}
    for number, timing in enumerate(timings):
        found |= {
            f"{number}.latency_us": timing.median_us,
            f"{number}.latency_low_us": min(timing.low_us, (1 - margin) * timing.median_us),
            f"{number}.latency_high_us": max(timing.high_us, (1 + margin) * timing.median_us),
            f"{number}.latency_iqr_us": timing.iqr_us,
            f"{number}.latency_noisy": float(timing.noisy),
        }
    return found


LATENCIES = ("latency_us", "latency_low_us", "latency_high_us", "latency_iqr_us", "latency_noisy")


def timing_of(times: Mapping[str, float], number: int) -> dict[str, Any]:
    """What `time_networks` says of one of its networks."""
    found: dict[str, Any] = {name: times[f"{number}.{name}"] for name in LATENCIES}
    return {**found, "latency_noisy": bool(found["latency_noisy"])}

"""From rows of a front to networks that run, as every method whose networks have an architecture does it: which are
taken, and each trained, frozen, verified, saved and timed beside its float twin."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from bitnas.files import CorruptFileError, write_json_atomic
from bitnas.methods import candidates, run_folder, trials
from bitnas.methods.intervals import wilson
from bitnas.methods.run_folder import FRONT
from bitnas.models.registry import NetworkConfig
from bitnas.search import Journal, Stage, WorkerPool, run_tasks
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from torch import nn

NETWORKS = "networks"
VERIFIED_IMAGES = 1000  # at most so many, each layer's every integer compared

N = TypeVar("N", bound=NetworkConfig)


@dataclass(frozen=True)
class Pick(Generic[N]):
    """A network of a front that is deployed; `name` is a letter."""

    name: str
    genome: Genome
    network: N
    row: Mapping[str, Any]


def finished_front(folder: Path) -> list[dict[str, Any]]:
    """The front of a search that has ended; FileNotFoundError for one that has not."""
    if not (folder / FRONT).is_file():
        raise FileNotFoundError(f"{folder} holds no {FRONT}: its search has not finished; resume it first")
    return run_folder.read_front(folder)


def choose(
    front: Sequence[Mapping[str, Any]], picks: int, network: Callable[[Genome], N], *, cost: str = "ops"
) -> list[Pick[N]]:
    """Networks from the cheapest to the most accurate of a front, at about equal steps; by latency where it was
    measured, else by `cost`. Of those, only ones that no cheaper one matches.

    Args:
        front: rows with genome, accuracy and the cost.
        picks: at most so many; a single one is the most accurate.
        network: of a genome, its description.

    Raises CorruptFileError for rows that are none of a front.
    """
    try:
        by = "latency_us" if all("latency_us" in row for row in front) else cost
        edge: list[Mapping[str, Any]] = []
        for row in sorted(front, key=lambda row: (row[by], -row["accuracy"])):
            if not math.isfinite(row[by] + row["accuracy"]):
                raise ValueError("a figure is not finite")
            if not edge or row["accuracy"] > edge[-1]["accuracy"]:
                edge.append(row)
        if not edge:
            raise ValueError("it is empty")
        count = min(picks, len(edge))
        places = [len(edge) - 1] if count == 1 else [round(i * (len(edge) - 1) / (count - 1)) for i in range(count)]
        found = []
        for number, place in enumerate(places):
            genome = tuple(float(value) for value in edge[place]["genome"])
            found.append(Pick(_letter(number), genome, network(genome), edge[place]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(FRONT, f"is not the front of this run ({error})") from error
    return found


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"S{number}"


def trained_file(folder: Path, name: str) -> Path:
    """Where the float network of a deployment lies."""
    return folder / NETWORKS / "float" / f"{name}.safetensors"


def architecture_file(pick: Pick[Any]) -> str:
    """Where in the folder its architecture lies."""
    return f"{NETWORKS}/{pick.name}.json"


def load_trained(path: str | os.PathLike[str], wanted: Mapping[str, Any]) -> nn.Module:
    """A trained network with these facts, in evaluation mode. CorruptFileError for another one."""
    from bitnas.models.saved import load_with_facts

    model, facts = load_with_facts(path)
    if any(facts.get(name) != value for name, value in wanted.items()):
        raise CorruptFileError(path, "holds another network than the study's, or one trained otherwise")
    return model


def time_network(
    genome: Genome, network: Mapping[str, Any], data: str, seed: int, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Latency of a network, frozen and as its float twin, in us per batch; see `width.timing.time_pair`.

    The kernels take the same time whatever the bits are, so its weights are random.

    Args:
        genome: of no meaning; tasks have one.
        network: its description, as `to_dict` gives it.
        data, seed: images of this data set are what it computes on.
        settings: of `trials.TimedAs`.
    """
    import torch

    from bitnas.cost import count
    from bitnas.cost.exclusive import exclusive
    from bitnas.cost.latency import thread_count
    from bitnas.methods.width.timing import time_pair
    from bitnas.models.registry import config_from_dict
    from bitnas.packed import freeze

    config = trials.TimedAs(**settings)
    model = trials.make_network(config_from_dict(network), 0).eval()
    layers = [layer.name for layer in count(model, rule="mac").layers if layer.macs]
    images = candidates.load_data(data, seed)
    x = images.take(torch.arange(config.latency_batch) % len(images))
    with exclusive(), thread_count(config.latency_threads):
        return time_pair(model, freeze(model), x, layers, seconds=candidates.FRONT_SECONDS)


def time_picks(config: Any, picks: Sequence[Pick[Any]], journal: Journal) -> dict[str, Mapping[str, float]]:
    """What `time_network` says of each, by the name of its pick; nothing of one whose timing failed.

    Args:
        config: a method's settings.
        picks: what to time, one after the other in this process.
        journal: of the run; each is timed once.
    """
    names = {pick.network.key(): pick.name for pick in picks}
    stage = Stage("study-latency", time_network, parallel=False)
    tasks = [(pick.network.key(), pick.genome) for pick in picks]
    settings = trials.timed_as(config)
    arguments = [(pick.network.to_dict(), config.data, config.seed, settings) for pick in picks]
    done = run_tasks(tasks, stage, journal, WorkerPool(0), task_arguments=arguments)
    return {names[record.key]: record.metrics for record, _ in done}


def deploy_network(
    folder: Path,
    pick: Pick[Any],
    name: str,
    model: nn.Module,
    own: trials.Parts,
    rule: str,
    timing: Mapping[str, float],
) -> tuple[dict[str, Any], list[bool]]:
    """Freeze, verify and save a trained network, and write its architecture.

    Args:
        folder: of the run; the files go to its `networks`.
        pick: whose network it is.
        name: of its files.
        model: trained, in evaluation mode.
        own: the run's split.
        rule: that operations are counted by.
        timing: what `time_picks` says of it.

    Returns:
        Its row for `study.json`, and which test images the frozen network has right.
    """
    import torch

    from bitnas import packed
    from bitnas.cost import count

    frozen = packed.freeze(model)
    verification = packed.verify(model, frozen, own.test.take(torch.arange(min(VERIFIED_IMAGES, len(own.test)))))
    file = folder / NETWORKS / f"{name}.safetensors"
    packed.save(frozen, file)
    write_json_atomic(folder / architecture_file(pick), pick.network.to_dict())
    right = trials.predictions(frozen, own.test)
    accuracy = wilson(sum(right), len(right))
    counted = count(model, rule=rule)
    row = {
        "pair": pick.name,
        "key": pick.network.key(),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "test_images": len(right),
        "search_accuracy": pick.row["accuracy"],
        **{figure: float(getattr(counted, figure)) for figure in _COUNTED},
        "packed_bytes": packed.packed_bytes(frozen),
        "latency_us": timing.get("latency_us"),
        "latency_iqr_us": timing.get("latency_iqr_us"),
        "latency_noisy": bool(timing.get("latency_noisy", 0.0)),
        "float_latency_us": timing.get("float_latency_us"),
        "float_latency_iqr_us": timing.get("float_latency_iqr_us"),
        "layers": [
            {
                "name": layer.name,
                "packed_us": timing.get(f"layer.{layer.name}.packed_us"),
                "float_us": timing.get(f"layer.{layer.name}.float_us"),
                "macs": layer.macs,
                "binary": layer.binary,
            }
            for layer in count(model, rule="mac").layers
            if layer.macs
        ],
        "verified": verification.to_dict(),
        "file": f"{NETWORKS}/{file.name}",
    }
    return row, right


_COUNTED = ("ops", "flops", "bops", "macs", "params", "memory_bits")

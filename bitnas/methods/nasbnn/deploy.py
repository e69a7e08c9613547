"""From a finished search to networks that run: a few subnets of the front, with inherited weights and fine-tuned.

Each is frozen, verified, saved and timed beside its float twin; its accuracy is that on the test part, which neither
supernet nor search has seen.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError, write_json_atomic, write_json_checked
from bitnas.methods import candidates, run_folder
from bitnas.methods.nasbnn import evaluate, trials
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.intervals import paired, wilson
from bitnas.methods.nasbnn.search import open_journal, read_config
from bitnas.methods.run_folder import FRONT, STUDY, Progress
from bitnas.methods.width.compare import outcome
from bitnas.models.nasbnn import SubnetConfig
from bitnas.search import Journal, Record, Stage, WorkerPool, run_tasks
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from torch import nn

    from bitnas.train import Recipe

NETWORKS = "networks"
VERIFIED_IMAGES = 1000  # at most so many, each layer's every integer compared
INHERITED, TUNED = "inherited", "fine-tuned"


@dataclass(frozen=True)
class Pick:
    """A subnet of the front that is deployed; `name` is a letter."""

    name: str
    genome: Genome
    subnet: SubnetConfig
    row: Mapping[str, Any]


def deploy(
    out: str | os.PathLike[str],
    *,
    picks: int = 3,
    fine_tune_epochs: int | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Deploy subnets of the front of a finished search, and write `study.json`; goes on where it was stopped.

    In the folder `networks` lie, for each subnet, the frozen network of either training (`A-inherited.safetensors`,
    `bitnas.load`), in `networks/float` what it was frozen from (`bitnas.load_model`), and the architecture (`A.json`,
    `bitnas.create_model`). Both trainings of a subnet have one latency: weights decide no step.

    Args:
        out: the run folder.
        picks: how many subnets, spread over the front from the cheapest to the most accurate.
        fine_tune_epochs: of the fine-tuning on all images but the test part; None for the recipe's, 0 for none.
        workers: processes; None for as many as the search had.
        on_progress: called with {"event": "study_deploy", "label", "status", "done", "total"} after each training, and
            {"event": "study_network", ...} with each row.

    Returns:
        What it writes: {"networks": [...], "claims": [...], "protocol": {...}}. Accuracies are fractions on the test
        part with 95 % score intervals; a claim holds fine-tuned minus inherited on the same images.

    Raises:
        FileNotFoundError: the folder holds no run of NAS-BNN, or its search has not finished.
        ValueError: an argument is out of range.
        And as `search`.
    """
    for name, value, low in (("picks", picks, 1), ("fine_tune_epochs", fine_tune_epochs or 0, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least {low}")
    folder, notify = Path(out), on_progress or (lambda event: None)
    config = read_config(folder)
    if not (folder / FRONT).is_file():
        raise FileNotFoundError(f"{folder} holds no {FRONT}: its search has not finished; resume it first")
    chosen = choose(run_folder.read_front(folder), config, picks)
    recipe = trials.fine_tuning(config, fine_tune_epochs)
    (folder / NETWORKS / "float").mkdir(parents=True, exist_ok=True)
    execution = dataclasses.replace(config, timeout=None, workers=config.workers if workers is None else workers)
    with open_journal(folder, config) as journal, run_folder.open_pool(execution, folder) as pool:
        tasks = [(pick, kind) for pick in chosen for kind in ((INHERITED, TUNED) if recipe else (INHERITED,))]
        keys = {_key(pick, kind, recipe): (pick, kind) for pick, kind in tasks}
        records: dict[str, Record] = {}
        arguments = [
            (config.to_dict(), str(folder), kind, recipe.to_dict() if recipe else None, str(_float(folder, pick, kind)))
            for pick, kind in tasks
        ]
        for record, replayed in run_tasks(
            [(key, pick.genome) for key, (pick, _) in keys.items()],
            Stage("study-deploy", train_pick), journal, pool, task_arguments=arguments,
        ):  # fmt: skip
            records[record.key] = record
            pick, kind = keys[record.key]
            notify(
                {
                    "event": "study_deploy",
                    "label": label(pick, kind),
                    "status": record.status,
                    "reason": record.reason,
                    "accuracy": record.metrics.get("accuracy"),
                    "replayed": replayed,
                    "done": len(records),
                    "total": len(keys),
                }
            )
        pool.stop()  # the machine to itself, for the timings
        deployable = [pick for pick in chosen if any(records[key].ok for key, own in keys.items() if own[0] is pick)]
        timings = _time(config, deployable, journal)
        rows, right = [], {}
        for (key, (pick, kind)), given in zip(keys.items(), arguments, strict=True):
            if records[key].ok:
                row, right[pick.name, kind] = _finish(
                    folder, config, pick, kind, recipe, records[key], given, timings[pick.name]
                )
                rows.append(row)
                notify({"event": "study_network", **row})
        claims = _claims(chosen, right, {keys[key][0].name: r for key, r in records.items() if not r.ok}, recipe)
        result = {"networks": rows, "claims": claims, "protocol": _protocol(config, recipe)}
        write_json_checked(folder / STUDY, result)
    notify({"event": "study_end", "claims": claims})
    return result


def choose(front: Sequence[Mapping[str, Any]], config: NasBnnSearchConfig, picks: int) -> list[Pick]:
    """Subnets from the cheapest to the most accurate of the front, at about equal steps; by latency where it was
    measured, else by OPs. Of those, only ones that no cheaper one matches. CorruptFileError for rows that are none."""
    space = evaluate.search_space(config, window=False)
    try:
        cost = "latency_us" if all("latency_us" in row for row in front) else "ops"
        edge: list[Mapping[str, Any]] = []
        for row in sorted(front, key=lambda row: (row[cost], -row["accuracy"])):
            if not math.isfinite(row[cost] + row["accuracy"]):
                raise ValueError("a figure is not finite")
            if not edge or row["accuracy"] > edge[-1]["accuracy"]:
                edge.append(row)
        if not edge:
            raise ValueError("it is empty")
        count = min(picks, len(edge))
        # A single pick is the most accurate.
        places = [len(edge) - 1] if count == 1 else [round(i * (len(edge) - 1) / (count - 1)) for i in range(count)]
        found = []
        for number, place in enumerate(places):
            genome = tuple(float(value) for value in edge[place]["genome"])
            found.append(Pick(_letter(number), genome, space.subnet(genome), edge[place]))
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(FRONT, f"is not the front of this run ({error})") from error
    return found


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"S{number}"


def label(pick: Pick, kind: str) -> str:
    """What the report calls a deployed network: "A fine-tuned"."""
    return f"{pick.name} {kind}"


@candidates.single_threaded
def train_pick(
    genome: Genome, settings: dict[str, Any], run_dir: str, kind: str, recipe: dict[str, Any] | None, path: str
) -> dict[str, float]:
    """Inherit, fine-tune if asked to, and write the trained subnet to `path`.

    Returns:
        accuracy on the test part (fraction), correct, tested.
    """
    from bitnas import train
    from bitnas.models import save_model

    config = NasBnnSearchConfig.from_dict(settings)
    own, subnet = trials.parts(config), evaluate.search_space(config, window=False).subnet(genome)
    # Fine-tuning starts from statistics of the images that it trains on.
    data = own.known if kind == TUNED else own.train
    model = trials.inherit(config, subnet, Path(run_dir) / evaluate.SUPERNET, data)
    if kind == TUNED and recipe is not None:
        seed = candidates.derive_seed(config.seed, "fine-tune", subnet.key())
        train.fit(model, data, train.Recipe.from_dict(recipe), seed=seed)
    save_model(model, path, _trained_as(config, subnet, kind, recipe))
    right = trials.predictions(model, own.test)
    candidates.release_memory()
    return {"accuracy": sum(right) / len(right), "correct": float(sum(right)), "tested": float(len(right))}


def _trained_as(
    config: NasBnnSearchConfig, subnet: SubnetConfig, kind: str, recipe: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What tells one trained subnet of a folder from another."""
    return {
        "network": subnet.to_dict(),
        "training": kind,
        "recipe": dict(recipe) if kind == TUNED and recipe else None,
        "search": config.identity(),
    }


def load_trained(path: str | os.PathLike[str], wanted: Mapping[str, Any]) -> nn.Module:
    """The network that `train_pick` wrote, in evaluation mode. CorruptFileError for another one."""
    from bitnas.models.saved import load_with_facts

    model, facts = load_with_facts(path)
    if any(facts.get(name) != value for name, value in wanted.items()):
        raise CorruptFileError(path, "holds another network than the study's, or one trained otherwise")
    return model


def time_pick(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency of the subnet, frozen and as its float twin, in us per batch; see `width.timing.time_pair`.

    The kernels take the same time whatever the bits are, so its weights are random.
    """
    import torch

    from bitnas.cost import count
    from bitnas.cost.exclusive import exclusive
    from bitnas.cost.latency import thread_count
    from bitnas.methods.width.timing import time_pair
    from bitnas.packed import freeze

    config = NasBnnSearchConfig.from_dict(settings)
    subnet = evaluate.search_space(config, window=False).subnet(genome)
    model = trials.make_network(subnet, 0).eval()
    layers = [layer.name for layer in count(model, rule="mac").layers if layer.macs]
    data = candidates.load_data(config.data, config.seed)
    x = data.take(torch.arange(config.latency_batch) % len(data))
    with exclusive(), thread_count(config.latency_threads):
        return time_pair(model, freeze(model), x, layers, seconds=candidates.FRONT_SECONDS)


def _time(config: NasBnnSearchConfig, picks: Sequence[Pick], journal: Journal) -> dict[str, Mapping[str, float]]:
    """What `time_pick` says of each subnet, by the name of its pick; nothing of one whose timing failed."""
    names = {pick.subnet.key(): pick.name for pick in picks}
    stage = Stage("study-latency", time_pick, (config.to_dict(),), parallel=False)
    tasks = [(pick.subnet.key(), pick.genome) for pick in picks]
    return {names[record.key]: record.metrics for record, _ in run_tasks(tasks, stage, journal, WorkerPool(0))}


def _finish(
    folder: Path,
    config: NasBnnSearchConfig,
    pick: Pick,
    kind: str,
    recipe: Recipe | None,
    record: Record,
    arguments: tuple[Any, ...],
    timing: Mapping[str, float],
) -> tuple[dict[str, Any], list[bool]]:
    """Freeze, verify and save one network; its row, and which test images the frozen network has right."""
    from bitnas import packed
    from bitnas.cost import count

    path = _float(folder, pick, kind)
    wanted = _trained_as(config, pick.subnet, kind, recipe.to_dict() if recipe else None)
    try:
        model = load_trained(path, wanted)
    except (FileNotFoundError, CorruptFileError):  # lost, or of an earlier study
        train_pick(pick.genome, *arguments)
        model = load_trained(path, wanted)
    own = trials.parts(config)
    frozen = packed.freeze(model)
    data, split = candidates.load_data(config.data, config.seed), evaluate.split_data(config)
    verification = packed.verify(model, frozen, data.take(split.test[:VERIFIED_IMAGES]))
    file = folder / NETWORKS / f"{pick.name}-{kind}.safetensors"
    packed.save(frozen, file)
    architecture = folder / NETWORKS / f"{pick.name}.json"
    write_json_atomic(architecture, pick.subnet.to_dict())
    right = trials.predictions(frozen, own.test)
    accuracy = wilson(sum(right), len(right))
    counted = count(model, rule="nasbnn")
    row = {
        "label": label(pick, kind),
        "kind": kind,
        "pair": pick.name,
        "subnet": pick.subnet.to_dict(),
        "key": pick.subnet.key(),
        "accuracy": accuracy.mean,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "trained_accuracy": record.metrics["accuracy"],
        "test_images": len(right),
        "search_accuracy": pick.row["accuracy"],
        **{name: float(getattr(counted, name)) for name in ("ops", "flops", "bops", "macs", "params", "memory_bits")},
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
        "architecture": f"{NETWORKS}/{architecture.name}",
    }
    return row, right


def _claims(
    chosen: Sequence[Pick],
    right: Mapping[tuple[str, str], Sequence[bool]],
    failed: Mapping[str, Record],
    recipe: Recipe | None,
) -> list[dict[str, Any]]:
    """Fine-tuned minus inherited accuracy of each pick, on the same images."""
    claims: list[dict[str, Any]] = []
    for pick in chosen if recipe else ():
        claim = {"pair": pick.name, "searched": label(pick, TUNED), "uniform": label(pick, INHERITED)}
        if pick.name in failed:
            reason = failed[pick.name].reason
            claims.append({**claim, "outcome": "failed", "verdict": f"not compared, a training failed: {reason}"})
            continue
        found = paired(right[pick.name, TUNED], right[pick.name, INHERITED])
        gain = {"difference": found.mean, "low": found.low, "high": found.high, "outcome": outcome(found)}
        claims.append({**claim, **gain})
    return claims


def _protocol(config: NasBnnSearchConfig, recipe: Recipe | None) -> dict[str, Any]:
    tuned = "none"
    if recipe is not None:
        tuned = (
            f"{recipe.epochs} epochs of {recipe.optimizer}, lr {recipe.lr:g}, {recipe.schedule}, on all images outside "
            "the test part"
        )
    return {
        "weights": "inherited from the supernet, batch norm measured anew on train images",
        "fine-tuning": tuned,
        "test_images": len(trials.parts(config).test),
        "val_images": len(trials.parts(config).val),
        "accuracy": "of the frozen network on the test part, which neither supernet nor search has seen",
        "interval": "95 %: Wilson's of an accuracy, Agresti and Min's (2005) of a difference on the same images",
        "latency": "of the subnet, whatever its weights, in turns with its float twin",
        "float twin": "the same network in float32, batch norm fused, ReLU in place of the signs",
    }


def _float(folder: Path, pick: Pick, kind: str) -> Path:
    return folder / NETWORKS / "float" / f"{pick.name}-{kind}.safetensors"


def _key(pick: Pick, kind: str, recipe: Recipe | None) -> str:
    """The journal's key: the subnet and how it was trained."""
    epochs = f"/{recipe.epochs}" if kind == TUNED and recipe else ""
    return f"{pick.subnet.key()}/{kind}{epochs}"

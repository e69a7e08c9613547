"""From a finished search to networks that run: a few subnets of the front, with inherited weights and fine-tuned.

Each is frozen, verified, saved and timed beside its float twin; its accuracy is that on the test part, which neither
supernet nor search has seen.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError, write_json_checked
from bitnas.methods import candidates, deployment, run_folder, trials
from bitnas.methods.intervals import outcome, paired
from bitnas.methods.nasbnn import evaluate, studies
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.search import open_journal, read_config
from bitnas.methods.run_folder import STUDY, Progress
from bitnas.models.nasbnn import SubnetConfig
from bitnas.search import Record, Stage, run_tasks
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from bitnas.train import Recipe

INHERITED, TUNED = "inherited", "fine-tuned"


Pick = deployment.Pick[SubnetConfig]


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
    chosen = choose(deployment.finished_front(folder), config, picks)
    recipe = studies.fine_tuning(config, fine_tune_epochs)
    (folder / deployment.NETWORKS / "float").mkdir(parents=True, exist_ok=True)
    execution = dataclasses.replace(config, timeout=None, workers=config.workers if workers is None else workers)
    with open_journal(folder, config) as journal, run_folder.open_pool(execution, folder) as pool:
        tasks = [(pick, kind) for pick in chosen for kind in ((INHERITED, TUNED) if recipe else (INHERITED,))]
        keys = {_key(pick, kind, recipe): (pick, kind) for pick, kind in tasks}
        records: dict[str, Record] = {}
        tuned = recipe.to_dict() if recipe else None
        arguments = [
            (config.to_dict(), str(folder), kind, tuned, str(deployment.trained_file(folder, f"{pick.name}-{kind}")))
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
        timings = deployment.time_picks(config, deployable, journal)
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
    """Subnets from the cheapest to the most accurate of the front; see `bitnas.methods.deployment.choose`."""
    return deployment.choose(front, picks, evaluate.search_space(config, window=False).subnet)


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
    model = studies.inherit(config, subnet, Path(run_dir) / evaluate.SUPERNET, data)
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
    path = deployment.trained_file(folder, f"{pick.name}-{kind}")
    wanted = _trained_as(config, pick.network, kind, recipe.to_dict() if recipe else None)
    try:
        model = deployment.load_trained(path, wanted)
    except (FileNotFoundError, CorruptFileError):  # lost, or of an earlier study
        train_pick(pick.genome, *arguments)
        model = deployment.load_trained(path, wanted)
    row, right = deployment.deploy_network(
        folder, pick, f"{pick.name}-{kind}", model, trials.parts(config), "nasbnn", timing
    )
    own = {
        "label": label(pick, kind),
        "kind": kind,
        "subnet": pick.network.to_dict(),
        "trained_accuracy": record.metrics["accuracy"],
        "architecture": deployment.architecture_file(pick),
    }
    return {**own, **row}, right


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


def _key(pick: Pick, kind: str, recipe: Recipe | None) -> str:
    """The journal's key: the subnet and how it was trained."""
    epochs = f"/{recipe.epochs}" if kind == TUNED and recipe else ""
    return f"{pick.network.key()}/{kind}{epochs}"

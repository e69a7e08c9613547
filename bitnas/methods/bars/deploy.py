"""From a finished search to networks that run: a few of the front, trained from scratch on all but the test images.

Each is frozen, verified, saved and timed beside its float twin; its accuracy is that on the test part, which neither
supernet nor search has seen.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError, write_json_checked
from bitnas.methods import candidates, deployment, run_folder, trials
from bitnas.methods.bars import evaluate
from bitnas.methods.bars.config import BarsSearchConfig
from bitnas.methods.bars.search import open_journal, read_config
from bitnas.methods.deployment import Pick
from bitnas.methods.run_folder import STUDY, Progress
from bitnas.models.bars import BarsConfig
from bitnas.search import Record, Stage, run_tasks
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from bitnas.train import Recipe

SCRATCH = "from scratch"


def deploy(
    out: str | os.PathLike[str],
    *,
    picks: int = 3,
    epochs: int | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Train networks of the front of a finished search, freeze them, and write `study.json`; goes on where it was
    stopped.

    In the folder `networks` lie, for each, the frozen network (`A.safetensors`, `bitnas.load`), in `networks/float`
    what it was frozen from (`bitnas.load_model`), and the architecture (`A.json`, `bitnas.create_model`).

    Args:
        out: the run folder.
        picks: how many networks, spread over the front from the cheapest to the most accurate.
        epochs: of the training; None for the recipe's.
        workers: processes; None for as many as the search had.
        on_progress: called with {"event": "study_deploy", "label", "status", "done", "total"} after each training, and
            {"event": "study_network", ...} with each row.

    Returns:
        What it writes: {"networks": [...], "claims": [], "protocol": {...}}. Accuracies are fractions on the test part
        with 95 % score intervals.

    Raises:
        FileNotFoundError: the folder holds no run of BARS, or its search has not finished.
        ValueError: an argument is out of range.
        And as `search`.
    """
    for name, value in (("picks", picks), ("epochs", 1 if epochs is None else epochs)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least 1")
    folder, notify = Path(out), on_progress or (lambda event: None)
    config = read_config(folder)
    space = evaluate.description(config)
    chosen = deployment.choose(
        deployment.finished_front(folder), picks, lambda genome: space.network(space.architecture(genome))
    )
    recipe = _recipe(config, epochs)
    (folder / deployment.NETWORKS / "float").mkdir(parents=True, exist_ok=True)
    execution = dataclasses.replace(config, timeout=None, workers=config.workers if workers is None else workers)
    with open_journal(folder, config) as journal, run_folder.open_pool(execution, folder) as pool:
        keys = {f"{pick.network.key()}/{SCRATCH}/{recipe.epochs}": pick for pick in chosen}
        arguments = {
            key: (config.to_dict(), recipe.to_dict(), str(deployment.trained_file(folder, pick.name)))
            for key, pick in keys.items()
        }
        records: dict[str, Record] = {}
        for record, replayed in run_tasks(
            [(key, pick.genome) for key, pick in keys.items()],
            Stage("study-deploy", train_pick), journal, pool, task_arguments=list(arguments.values()),
        ):  # fmt: skip
            records[record.key] = record
            notify(
                {
                    "event": "study_deploy",
                    "label": keys[record.key].name,
                    "status": record.status,
                    "reason": record.reason,
                    "accuracy": record.metrics.get("accuracy"),
                    "replayed": replayed,
                    "done": len(records),
                    "total": len(keys),
                }
            )
        pool.stop()  # the machine to itself, for the timings
        trained = {key: pick for key, pick in keys.items() if records[key].ok}
        timings = deployment.time_picks(config, list(trained.values()), journal)
        rows = []
        for key, pick in trained.items():
            timing = timings.get(pick.name, {})
            rows.append(_finish(folder, config, pick, recipe, records[key], arguments[key], timing))
            notify({"event": "study_network", **rows[-1]})
        result = {"networks": rows, "claims": [], "protocol": _protocol(config, recipe)}
        write_json_checked(folder / STUDY, result)
    notify({"event": "study_end", "claims": []})
    return result


def _recipe(config: BarsSearchConfig, epochs: int | None) -> Recipe:
    from bitnas.train import RECIPES

    recipe = RECIPES[config.recipe]
    return recipe if epochs is None else recipe.for_epochs(epochs)


@candidates.single_threaded
def train_pick(genome: Genome, settings: dict[str, Any], recipe: dict[str, Any], path: str) -> dict[str, float]:
    """Train a network of the run's space from scratch, on all images but the test part, and write it to `path`.

    Returns:
        accuracy on the test part (fraction), correct, tested.
    """
    from bitnas import train
    from bitnas.models import save_model

    config = BarsSearchConfig.from_dict(settings)
    own, network = trials.parts(config), evaluate.network(config, genome)
    seed = candidates.derive_seed(config.seed, "deploy", network.key())
    model = trials.make_network(network, seed).to(candidates.pick_device(config.device, seed))
    train.fit(model, own.known, train.Recipe.from_dict(recipe), seed=seed)
    model = model.to("cpu").eval()
    save_model(model, path, _trained_as(config, network, recipe))
    right = trials.predictions(model, own.test)
    candidates.release_memory()
    return {"accuracy": sum(right) / len(right), "correct": float(sum(right)), "tested": float(len(right))}


def _trained_as(config: BarsSearchConfig, network: BarsConfig, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What tells one trained network of a folder from another."""
    return {"network": network.to_dict(), "training": SCRATCH, "recipe": dict(recipe), "search": config.identity()}


def _finish(
    folder: Path,
    config: BarsSearchConfig,
    pick: Pick[BarsConfig],
    recipe: Recipe,
    record: Record,
    arguments: tuple[Any, ...],
    timing: Mapping[str, float],
) -> dict[str, Any]:
    """Freeze, verify and save one network; its row."""
    path = deployment.trained_file(folder, pick.name)
    wanted = _trained_as(config, pick.network, recipe.to_dict())
    try:
        model = deployment.load_trained(path, wanted)
    except (FileNotFoundError, CorruptFileError):  # lost, or of an earlier study
        train_pick(pick.genome, *arguments)
        model = deployment.load_trained(path, wanted)
    row, _ = deployment.deploy_network(folder, pick, pick.name, model, trials.parts(config), "mac", timing)
    return {
        "label": pick.name,
        "kind": "searched",
        "architecture": pick.row["architecture"],
        "network": pick.network.to_dict(),
        "trained_accuracy": record.metrics["accuracy"],
        "architecture_file": deployment.architecture_file(pick),
        **row,
    }


def _protocol(config: BarsSearchConfig, recipe: Recipe) -> dict[str, Any]:
    own = trials.parts(config)
    return {
        "training": (
            f"from scratch, {recipe.epochs} epochs of {recipe.optimizer}, lr {recipe.lr:g}, {recipe.schedule}, on all "
            "images outside the test part"
        ),
        "test_images": len(own.test),
        "val_images": len(own.val),
        "accuracy": "of the frozen network on the test part, which neither supernet nor search has seen",
        "interval": "95 %: Wilson's of an accuracy",
        "latency": "of the network, whatever its weights, in turns with its float twin",
        "float twin": "the same network in float32, batch norm fused, ReLU in place of the signs",
    }

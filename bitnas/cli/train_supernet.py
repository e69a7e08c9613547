"""`bitnas train --method nasbnn`: a supernet in a folder, and how well some of its subnets do."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..methods.nasbnn.description import Description
    from ..methods.nasbnn.supernet import Supernet
    from ..models.nasbnn import SubnetConfig

# What is measured after training: subnets drawn beside the biggest and the smallest, and how each is recalibrated.
RANDOM_SUBNETS, CALIBRATION_BATCHES = 4, 10


def train_to_folder(
    out: Path,
    *,
    data: str,
    data_options: Mapping[str, Any],
    space: str | None,
    strategies: Mapping[str, Any],
    recipe: str | None,
    changes: Mapping[str, Any],
    val_share: float | None,
    seed: int,
    threads: int | None,
    device: str,
    checkpoint_every: float,
) -> dict[str, Any] | None:
    """Do the work of `bitnas train --method nasbnn`; gives what it writes to `train.json`, and None in all processes
    but the first. Accuracy is a fraction.
    """
    import torch

    from .. import __version__
    from .. import data as datasets
    from ..files import write_json_atomic
    from ..methods.nasbnn import training
    from ..methods.nasbnn.config import fitting
    from ..methods.nasbnn.description import load
    from ..methods.nasbnn.supernet import Strategies
    from ..train import RECIPES, distributed, folder
    from . import train

    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    train.use_threads(threads)
    chosen = Strategies(**strategies)
    place = distributed.local_device(device)
    with distributed.joined(place):
        first, processes = distributed.rank() == 0, distributed.process_count()
        dataset = datasets.load(data, seed=seed, **data_options)
        share = train.validation_share(dataset, val_share)
        parts = train.data_parts(dataset, share, seed)
        defaults = fitting(data, dataset.input_size, len(parts["train"]))
        name = recipe or defaults["recipe"]
        settings = train.changed_recipe(RECIPES[name], changes)
        description = load(space or defaults["space"]).for_data(dataset.input_size, dataset.num_classes)
        with folder.locked(out) if first else nullcontext():
            if first:
                folder.claim(
                    out,
                    {
                        "method": "nasbnn",
                        "space": description.to_dict(),
                        "strategies": chosen.to_dict(),
                        "data": data,
                        "seed": seed,
                        "val_share": val_share,
                        "processes": processes,
                        "recipe": {"name": name, **settings.to_dict()},
                    },
                    {"bitnas": __version__, "torch": torch.__version__, "command": train.command_line()},
                    out / train.CHECKPOINT,
                )
                lines = [
                    f"supernet of space {description.name} on {data}: {train.parts_line(dataset, parts)}",
                    train.recipe_line(name, RECIPES[name], settings, len(parts["train"]), place.type, processes),
                    *(f"note: {note}" for note in dataset.notes),
                ]
                train.say(lines, settings, len(parts["train"]))
            with train.progress(settings.epochs, speak=first) as (on_epoch, on_step):
                supernet = training.train_supernet(
                    description,
                    chosen,
                    parts["train"],
                    settings,
                    seed=seed,
                    val=parts.get("val"),
                    checkpoint=out / train.CHECKPOINT,
                    checkpoint_every=checkpoint_every,
                    log=out / "log.csv",
                    tensorboard=out / "tensorboard",
                    on_epoch=on_epoch,
                    on_step=on_step,
                    device=place,
                )
            judged, measured_on = (parts["val"], "validation") if "val" in parts else (parts["test"], "test")
            subnets = _measured(supernet, description, parts["train"], judged, settings.batch_size, seed)
            if not first:
                return None
            result = {
                "method": "nasbnn",
                "space": description.to_dict(),
                "strategies": chosen.to_dict(),
                "data": data,
                "parts": {part: len(parts[part]) if part in parts else 0 for part in ("train", "val", "test")},
                "val_share": share,
                "seed": seed,
                "recipe": {"name": name, **settings.to_dict()},
                "processes": processes,
                "threads": torch.get_num_threads(),
                "notes": list(dataset.notes),
                "parameters": sum(parameter.numel() for parameter in supernet.parameters()),
                "accuracy_on": measured_on,
                "accuracy_images": len(judged),
                "subnets": subnets,
            }
            # What `bitnas search --supernet` asks for: the images that taught it, and how.
            facts = {"images": parts["train"].fingerprint(), "recipe": settings.to_dict()}
            training.save_supernet(supernet.to("cpu"), out / "supernet.safetensors", facts)
            write_json_atomic(out / "train.json", result)
            return result


def _measured(
    supernet: Supernet, description: Description, data: Any, judged: Any, batch_size: int, seed: int
) -> list[dict[str, Any]]:
    """Accuracy and OPs of the biggest subnet, the smallest and a few random ones, recalibrated."""
    import random

    from .. import count
    from ..methods.nasbnn import training
    from ..train import evaluate

    chance = random.Random(seed)
    drawn = [supernet.space.subnet(supernet.space.random(chance)) for _ in range(RANDOM_SUBNETS)]
    chosen: list[tuple[str, SubnetConfig]] = [("biggest", supernet.biggest), ("smallest", supernet.smallest)]
    found = []
    for label, subnet in [*chosen, *(("random", subnet) for subnet in drawn)]:
        network = training.inherited(
            supernet, subnet, data, batches=CALIBRATION_BATCHES, batch_size=batch_size, seed=seed
        )
        cost = count(network, description.input_size, "nasbnn")
        found.append(
            {
                "label": label,
                "subnet": subnet.to_dict(),
                "accuracy": evaluate(network, judged),
                "ops": cost.ops,
                "flops": cost.flops,
                "bops": cost.bops,
                "params": cost.params,
            }
        )
    return found

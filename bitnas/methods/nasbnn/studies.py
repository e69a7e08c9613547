"""What the studies of NAS-BNN share beside `methods.trials`: supernets in workers, and subnets to judge.

A supernet goes on from its checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods import candidates, trials
from bitnas.methods.nasbnn import evaluate
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.search import Journal, Workers
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from bitnas.data import Source
    from bitnas.models.nasbnn import SubnetConfig
    from bitnas.train import Recipe

_LISTED = 20_000  # subnets of a space that is listed whole rather than drawn from
_NEAR = 8  # subnets drawn near each wanted number of OPs
SUPERNETS = "supernets"


def recipe_of(config: NasBnnSearchConfig, epochs: int | None = None) -> Recipe:
    """The recipe of the run's supernet, of so many epochs if they are given."""
    recipe = evaluate.supernet_recipe(config)
    return recipe if epochs is None else recipe.for_epochs(epochs)


def fine_tuning(config: NasBnnSearchConfig, epochs: int | None) -> Recipe | None:
    """The recipe of fine-tuning, with the batches and augmentation of the run's supernet; None for 0 epochs."""
    if epochs == 0:
        return None
    from bitnas.train import RECIPES

    small, own = "nasbnn-finetune-digits", evaluate.supernet_recipe(config)
    recipe = RECIPES[small if config.recipe == "nasbnn-digits" else "nasbnn-finetune"]
    recipe = dataclasses.replace(
        recipe,
        batch_size=min(recipe.batch_size, own.batch_size),
        shift=own.shift,
        flip=own.flip,
        crop=own.crop,
    )
    return recipe if epochs is None else recipe.for_epochs(epochs)


def opened(
    folder: Path, name: str, config: NasBnnSearchConfig, settings: Mapping[str, Any], workers: int | str | None
) -> AbstractContextManager[tuple[Journal, Workers]]:
    """`methods.trials.opened` of a study of NAS-BNN."""
    return trials.opened(folder, "nasbnn", name, config, settings, workers)


def write(folder: Path, name: str, config: NasBnnSearchConfig, result: Mapping[str, Any]) -> dict[str, Any]:
    """`methods.trials.write` of a study of NAS-BNN, with its settings."""
    facts = {"data": config.data, "space": config.space.get("name"), "search": config.to_dict()}
    return trials.write(folder, "nasbnn", name, result, **facts)


def spread(space: SubnetSpace, count: int, seed: int) -> list[Genome]:
    """Subnets from the smallest to the biggest, one at each of `count` equal steps of log OPs, or as near as there are
    any, in order of OPs. Those at a step are drawn uniformly.

    Raises ValueError for fewer than two, or a space that holds fewer.
    """
    if count < 2:
        raise ValueError(f"subnets: got {count}, wanted at least 2")
    if count > space.size:
        raise ValueError(f"subnets: got {count}, wanted at most {space.size}, as many as the space holds")
    low, high = (math.log(float(space.cost(genome).ops)) for genome in (space.smallest, space.biggest))
    targets = [low + (high - low) * step / (count - 1) for step in range(count)]
    drawn = dict.fromkeys([space.smallest, space.biggest])
    if space.size <= _LISTED:
        drawn |= dict.fromkeys(space.enumerate())
    else:
        rng = random.Random(seed)
        for target in targets[1:-1]:
            drawn |= dict.fromkeys(_near(space, target, (high - low) / (count - 1), rng))
    ops = {genome: math.log(float(space.cost(genome).ops)) for genome in drawn}
    chosen: dict[str, Genome] = {}
    for target in targets:
        # Genomes that differ in rows that are not used are one subnet.
        nearest = sorted(ops, key=lambda genome: (abs(ops[genome] - target), genome))
        found = next((genome for genome in nearest if space.subnet(genome).key() not in chosen), None)
        if found is None:
            raise ValueError(
                f"subnets: got {count}, wanted at most {len(chosen)}, which is what was found in the space"
            )
        chosen[space.subnet(found).key()] = found
    return sorted(chosen.values(), key=lambda genome: (ops[genome], genome))


def _near(space: SubnetSpace, target: float, step: float, rng: random.Random) -> list[Genome]:
    """Random subnets about so many log OPs: of the narrowest of ever wider windows that one is found in."""
    for widening in range(12):
        half = 0.02 * step * 2**widening
        window = (math.exp(target - half), math.exp(target + half))
        within = SubnetSpace(space.description, weight_normalization=space.weight_normalization, ops=window)
        with contextlib.suppress(ValueError):
            return [within.random(rng, draws=200) for _ in range(_NEAR)]
    return []


def largest_gap(ops: Sequence[float]) -> float:
    """By what factor the OPs of neighbours differ at most."""
    found = sorted(ops)
    return max((after / before for before, after in itertools.pairwise(found)), default=1.0)


def random_subnets(space: SubnetSpace, count: int, seed: int) -> list[Genome]:
    """Distinct random subnets, neither the smallest nor the biggest. Raises ValueError where there are fewer."""
    if count > space.size - 2:
        raise ValueError(f"subnets: got {count}, wanted at most {space.size - 2}, as many as the space holds")
    rng = random.Random(seed)
    left_out = {space.subnet(genome).key() for genome in (space.smallest, space.biggest)}
    found: dict[str, Genome] = {}
    for _ in range(100 * count + 100):
        genome = space.random(rng)
        key = space.subnet(genome).key()
        if key not in left_out:
            found.setdefault(key, genome)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"subnets: got {count}, wanted at most {len(found)}, which is what was found in the space")


def supernet_path(folder: Path, name: str) -> Path:
    return folder / SUPERNETS / f"{name}.safetensors"


@candidates.single_threaded
def make_supernet(genome: Genome, settings: dict[str, Any], path: str) -> dict[str, float]:
    """Train a supernet on the train split and write it to `path`, unless it is there; goes on from its checkpoint.

    Args:
        genome: of no meaning; tasks have one.
        settings: `NasBnnSearchConfig.to_dict()`.
        path: safetensors; its folder is made.

    Returns:
        epochs; images that it was trained on.
    """
    from bitnas.files import CorruptFileError
    from bitnas.methods.nasbnn.supernet import Strategies
    from bitnas.methods.nasbnn.training import load_supernet, save_supernet, train_supernet

    config = NasBnnSearchConfig.from_dict(settings)
    data, recipe = trials.parts(config).train, recipe_of(config)
    result = {"epochs": float(recipe.epochs), "images": float(len(data))}
    with contextlib.suppress(FileNotFoundError, CorruptFileError):
        load_supernet(path)
        return result
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    checkpoint = Path(path).with_suffix(".ckpt.safetensors")
    supernet = train_supernet(
        evaluate.description(config),
        Strategies.from_dict(config.strategies),
        data,
        recipe,
        seed=candidates.derive_seed(config.seed, "supernet"),
        checkpoint=checkpoint,
        checkpoint_every=20.0,
        log=Path(path).with_suffix(".csv"),
    )
    save_supernet(supernet, path, {"images": data.fingerprint(), "recipe": recipe.to_dict()})
    checkpoint.unlink(missing_ok=True)
    candidates.release_memory()
    return result


def inherit(config: NasBnnSearchConfig, subnet: SubnetConfig, path: str | os.PathLike[str], data: Source) -> Any:
    """The subnet with the supernet's weights and batch norm measured on `data`, in evaluation mode."""
    from bitnas.methods.nasbnn.training import inherited

    return inherited(
        evaluate.load_supernet(str(path), "cpu"),
        subnet,
        data,
        batches=config.calibration_batches,
        batch_size=config.calibration_size,
        seed=candidates.derive_seed(config.seed, "calibration", subnet.key()),
    )


def counted(config: NasBnnSearchConfig, model: Any) -> dict[str, float]:
    """How many images of the validation and the test part the network classifies right, and how many there are."""
    own = trials.parts(config)
    return {
        f"{name}_{what}": float(value)
        for name, part in (("val", own.val), ("test", own.test))
        for what, value in (("correct", sum(trials.predictions(model, part))), ("images", len(part)))
    }

"""What workers do in the studies of BARS: a search by gradient, and the training of one network from scratch.

Each is a function of its arguments, and each leaves what is too large for the journal in files that it can make again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError
from bitnas.methods import candidates, trials
from bitnas.methods.bars import evaluate
from bitnas.methods.bars.config import BarsSearchConfig
from bitnas.methods.bars.controller import Controller
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from torch import nn

    from bitnas.methods.bars.course import Course


@candidates.single_threaded
def search_one(genome: Genome, settings: dict[str, Any], path: str) -> dict[str, float]:
    """Train a supernet with its architecture, and derive the most likely network; goes on from its checkpoint.

    Args:
        genome: of no meaning; tasks have one.
        settings: `BarsSearchConfig.to_dict()`.
        path: of the course, JSON; its folder is made.

    Returns:
        epochs that were trained; gene.0, gene.1, ...: the genome of the network.
    """
    from bitnas.methods.bars import training
    from bitnas.methods.bars.derive import derive

    config = BarsSearchConfig.from_dict(settings)
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = file.with_suffix(".ckpt.safetensors")
    weights, architecture = evaluate.halves(config)
    space, seed = evaluate.description(config), candidates.derive_seed(config.seed, "supernet")
    supernet, course = training.train(
        space,
        Controller.from_dict(config.controller),
        weights,
        architecture,
        seed=seed,
        prices=evaluate.prices(config, config.latency_table),
        checkpoint=checkpoint,
        checkpoint_every=20.0,
        device=candidates.pick_device(config.device, seed),
    )
    training.save_course(course, file)
    (found,) = derive(space, supernet.probabilities().map(lambda p: p.detach()), 1, seed)
    checkpoint.unlink(missing_ok=True)
    del supernet
    candidates.release_memory()
    return {"epochs": float(len(course)), **{f"gene.{n}": gene for n, gene in enumerate(space.genome(found))}}


def genome_of(metrics: Mapping[str, float]) -> Genome:
    """The genome that `search_one` gave."""
    return tuple(metrics[f"gene.{n}"] for n in range(sum(name.startswith("gene.") for name in metrics)))


def course_of(settings: dict[str, Any], path: str) -> Course:
    """The course that `search_one` wrote; one that was lost or damaged is made again."""
    from bitnas.methods.bars.course import load_course

    with contextlib.suppress(FileNotFoundError, CorruptFileError):
        return load_course(path)
    search_one((), settings, path)
    return load_course(path)


@candidates.single_threaded
def train_one(genome: Genome, settings: dict[str, Any], network: dict[str, Any], recipe: dict[str, Any], path: str) -> (
    dict[str, float]
):  # fmt: skip
    """Train a network from scratch on all images outside the test part and write it to `path`, if it is not there.

    Returns:
        correct, tested: of the test part.
    """
    from bitnas import train
    from bitnas.models import save_model
    from bitnas.models.registry import config_from_dict

    config = BarsSearchConfig.from_dict(settings)
    own, described = trials.parts(config), config_from_dict(network)
    model = _trained(path, network, recipe)
    if model is None:
        seed = candidates.derive_seed(config.seed, "study", described.key())
        model = trials.make_network(described, seed).to(candidates.pick_device(config.device, seed))
        train.fit(model, own.known, train.Recipe.from_dict(recipe), seed=seed)
        model = model.cpu().eval()
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_model(model, path, {"recipe": recipe})
    right = trials.predictions(model, own.test)
    candidates.release_memory()
    return {"correct": float(sum(right)), "tested": float(len(right))}


def load_one(settings: dict[str, Any], network: dict[str, Any], recipe: dict[str, Any], path: str) -> nn.Module:
    """The network that `train_one` wrote; one that was lost or damaged is trained again."""
    model = _trained(path, network, recipe)
    if model is None:
        train_one((), settings, network, recipe, path)
        model = _trained(path, network, recipe)
        assert model is not None
    return model


def _trained(path: str, network: Mapping[str, Any], recipe: Mapping[str, Any]) -> nn.Module | None:
    """What the file holds, if that is this network trained so."""
    from bitnas.models.saved import load_with_facts

    with contextlib.suppress(FileNotFoundError, CorruptFileError):
        model, facts = load_with_facts(path)
        if facts.get("network") == network and facts.get("recipe") == recipe:
            return model
    return None

"""A supernet from images to a file, and its subnets made ready for use.

Batch norm's running statistics in a supernet are a mixture of four passes a step, which fits no subnet: whatever is
judged or used is a copy whose statistics were measured anew, as plain means.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitnas.data import Source
from bitnas.data.source import checked_seed
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.methods.calibration import recalibrate
from bitnas.methods.nasbnn.description import Description
from bitnas.methods.nasbnn.passes import sandwich
from bitnas.methods.nasbnn.supernet import Strategies, Supernet
from bitnas.models.nasbnn import NasBnn, SubnetConfig
from bitnas.train import Epoch, Recipe, evaluate, fit

FORMAT = "bitnas-supernet-1"

# Batches that the statistics of the biggest subnet are means over, wherever training itself wants to know how it does.
_JUDGED_BATCHES = 4


def train_supernet(
    description: Description,
    strategies: Strategies,
    data: Source,
    recipe: Recipe,
    *,
    seed: int,
    val: Source | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    log: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
) -> Supernet:
    """A new supernet, trained by `bitnas.train.fit`, which has the arguments not named here and the errors.

    Args:
        description: the space. Its input size and classes must be those of `data`, else ValueError.
        seed: also decides the first weights.
        val: its accuracy after each epoch is that of the biggest binary subnet, recalibrated on 4 batches.

    Returns:
        The supernet in evaluation mode. Its running statistics are those of the biggest subnet, so that a plain call is
        meaningful; every other subnet has to be recalibrated.
    """
    if (description.input_size, description.num_classes) != (data.input_size, data.num_classes):
        raise ValueError(
            f"description: {description.name} is for {description.input_size} images of {description.num_classes} "
            f"classes, and {data.name} has {data.input_size} of {data.num_classes}; use description.for_data"
        )
    if recipe.sync_batch_norm:
        raise ValueError("sync_batch_norm: a supernet's batch norm sees the images of its process; leave it out")
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(checked_seed(seed))
        supernet = Supernet(description, strategies).to(device)

    def judge(model: nn.Module, images: Source) -> float:
        assert isinstance(model, Supernet)
        biggest = model.extract(model.biggest)
        recalibrate(biggest, data, batches=_JUDGED_BATCHES, batch_size=recipe.batch_size, seed=seed)
        return evaluate(biggest, images)

    fit(
        supernet,
        data,
        recipe,
        seed=seed,
        val=val,
        checkpoint=checkpoint,
        checkpoint_every=checkpoint_every,
        log=log,
        tensorboard=tensorboard,
        on_epoch=on_epoch,
        on_step=on_step,
        passes=sandwich,
        judge=judge,
    )
    recalibrate(supernet, data, batches=_JUDGED_BATCHES, batch_size=recipe.batch_size, seed=seed)
    return supernet


def inherited(
    supernet: Supernet, subnet: SubnetConfig, data: Source, *, batches: int, batch_size: int, seed: int
) -> NasBnn:
    """A subnet with the supernet's weights as a plain module, recalibrated on `data`, in evaluation mode."""
    network = supernet.extract(subnet).eval()
    recalibrate(network, data, batches=batches, batch_size=batch_size, seed=seed)
    return network


def save_supernet(supernet: Supernet, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
    """Write a supernet, atomically, with a SHA-256; its folder must exist. `facts` are JSON values kept with it."""
    metadata = {
        **(facts or {}),
        "format": FORMAT,
        "space": supernet.description.to_dict(),
        "strategies": supernet.strategies.to_dict(),
    }
    save_tensors(path, supernet.state_dict(), metadata)


def load_supernet(path: str | os.PathLike[str]) -> Supernet:
    """The supernet that `save_supernet` wrote, on the CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is damaged, or is no supernet of this version.
    """
    tensors, metadata = load_tensors(path, expected_format=FORMAT)
    try:
        description = Description.from_dict(metadata["space"])
        strategies = Strategies.from_dict(metadata["strategies"])
        with torch.device("meta"):
            supernet = Supernet(description, strategies)
        _check_tensors(supernet, tensors)
        supernet.load_state_dict(tensors, assign=True)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFileError(path, f"is no supernet of this version of bitnas ({error})") from error
    return supernet.eval()


def _check_tensors(supernet: Supernet, tensors: Mapping[str, Tensor]) -> None:
    """`assign` takes any dtype."""
    for name, wanted in supernet.state_dict().items():
        if name in tensors and tensors[name].dtype != wanted.dtype:
            raise ValueError(f"{name} is {tensors[name].dtype}, wanted {wanted.dtype}")

"""The training loop: one readable function whose result depends on its arguments alone.

Everything random in an epoch is drawn from a seed made of the run's seed and the epoch's number, and the learning rate
is a function of the step. So the state between epochs is the weights and the optimizer, and a run that is killed
goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from bitnas.data import Source
from bitnas.train.checkpoint import Checkpoint
from bitnas.train.recipe import Recipe


class NonFiniteError(ArithmeticError):
    """A network gave NaN or infinity."""


class TrainingDiverged(NonFiniteError):
    """The loss of a step was NaN or infinite. `epoch` counts from 0, `step` from 0 within the epoch."""

    def __init__(self, epoch: int, step: int, value: float) -> None:
        super().__init__(f"training diverged: the loss is {value} at epoch {epoch}, step {step}; try a lower lr")
        self.epoch, self.step, self.value = epoch, step, value

    def __reduce__(self) -> tuple[type[TrainingDiverged], tuple[int, int, float]]:
        """Rebuild from the arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.epoch, self.step, self.value)


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave: mean loss and accuracy over its training steps, and accuracy on the validation images."""

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float | None
    lr: float
    seconds: float


@dataclass(kw_only=True)
class History:
    """The epochs of a run, in order. `seconds` is the only value that differs between two equal runs."""

    epochs: list[Epoch] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def fit(
    model: nn.Module,
    data: Source,
    recipe: Recipe,
    *,
    seed: int,
    val: Source | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> History:
    """Train `model` in place, on the device it is on, and leave it in evaluation mode.

    On the CPU the weights depend on the arguments and `torch.get_num_threads()` alone, and are equal bit for bit in
    every run; torch's global random state is left as it was.

    Args:
        model: float `[N, C, H, W]` to logits `[N, classes]`.
        data: what to train on.
        recipe: what to do.
        seed: decides the order of the images, their augmentation and the model's own chance (dropout), not its
            first weights.
        val: images whose accuracy is measured after each epoch.
        checkpoint: a file that is replaced after each epoch. If it is there already, training goes on after its last
            epoch and ends as if it had never stopped.
        on_epoch: called after each epoch that is trained (and written), not for those read from the checkpoint.

    Raises:
        TrainingDiverged: a loss was not finite; the checkpoint still holds the epoch before.
        NonFiniteError: the logits of the validation images were not finite.
        CorruptFileError: the checkpoint is damaged, or is of another model, recipe, seed or data.
    """
    history = History()
    with _channels_last(model):
        optimizer = _make_optimizer(model, recipe)
        saved = None if checkpoint is None else Checkpoint(checkpoint, model, optimizer, data, recipe, seed)
        if saved is not None:
            history.epochs = [Epoch(**values) for values in saved.restore()]
        for epoch in range(len(history.epochs), recipe.epochs):
            start = time.perf_counter()
            with torch.random.fork_rng():
                loss, accuracy, lr = _train_epoch(model, optimizer, data, recipe, epoch, seed)
            val_accuracy = None if val is None else evaluate(model, val)
            record = Epoch(
                epoch=epoch,
                loss=loss,
                train_accuracy=accuracy,
                val_accuracy=val_accuracy,
                lr=lr,
                seconds=time.perf_counter() - start,
            )
            history.epochs.append(record)
            if saved is not None:
                saved.write([asdict(done) for done in history.epochs])
            if on_epoch is not None:
                on_epoch(record)
    model.eval()
    return history


def evaluate(model: nn.Module, data: Source, *, batch_size: int = 256) -> float:
    """The share of the images that `model` classifies right, in evaluation mode; its mode is put back after.

    Raises NonFiniteError if a logit is NaN or infinite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = _device(model)
    was_training = model.training
    model.eval()
    correct, first = 0, 0
    try:
        with torch.no_grad():
            for x, y in data.batches(torch.arange(len(data)).split(batch_size)):
                logits = model(x.to(device))
                if not torch.isfinite(logits).all():
                    bad = int((~torch.isfinite(logits)).any(1).sum())
                    raise NonFiniteError(
                        f"the logits of {bad} of the images {first} to {first + len(logits) - 1} are NaN or infinite"
                    )
                correct += int((logits.argmax(1) == y.to(device)).sum())
                first += len(y)
    finally:
        model.train(was_training)
    return correct / len(data)


def _train_epoch(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Source, recipe: Recipe, epoch: int, seed: int
) -> tuple[float, float, float]:
    """One pass over the images. Returns the mean loss, the accuracy and the last learning rate."""
    device = _device(model)
    model.train()
    # Equal steps rather than full ones and a rest: batch norm never sees a tiny batch.
    steps = math.ceil(len(data) / recipe.batch_size)
    shuffle = torch.Generator().manual_seed(_seeds(seed, epoch, 1)[0])
    order = torch.randperm(len(data), generator=shuffle).tensor_split(steps)
    seeds = [_seeds(seed, epoch, 2, step) for step in range(steps)]
    batches = data.batches(order, augmentation=recipe.augmentation, seeds=[first for first, _ in seeds])
    total, correct, lr = 0.0, 0, recipe.lr
    for step, (images, labels) in enumerate(batches):
        torch.manual_seed(seeds[step][1])  # for layers that draw from the global generator
        x, y = images.to(device), labels.to(device)
        lr = recipe.learning_rate(epoch * steps + step, steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(epoch, step, value)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += value * len(y)
        correct += int((logits.argmax(1) == y).sum())
    return total / len(data), correct / len(data), lr


def _seeds(seed: int, epoch: int, count: int, *step: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence([seed, epoch, *step]).generate_state(count)]


def _make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, fused=True)


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Train with channels last, and leave the weights contiguous and without gradients.

    VGG-small at a quarter of its widths, 8x8 images, batches of 64: 16.9 ms instead of 22.8 ms a step (AMD EPYC, Zen 4,
    one thread).
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.zero_grad()
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _device(model: nn.Module) -> torch.device:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device

"""One optimizer step: micro-batches, mixed precision, the sum over processes, clipping and the moving average.

With one process, one micro-batch and float32 it is forward, backward and step with nothing in between.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bitnas.train import distributed
from bitnas.train.recipe import Recipe

# What a step computes: of model, images, labels, recipe and a generator of chance, one loss and its logits after the
# other. Each loss goes backward before the next is asked for, and their gradients add up.
Passes = Callable[[nn.Module, Tensor, Tensor, Recipe, random.Random], Iterable[tuple[Tensor, Tensor]]]


def cross_entropy(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, chance: random.Random
) -> Iterable[tuple[Tensor, Tensor]]:
    """The passes of plain training: one, on the labels."""
    logits: Tensor = model(x)
    yield F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing), logits


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer.

    Weight decay only for parameters of two or more dimensions, less those that the model lists by name in its attribute
    `no_weight_decay`.
    """
    spared = frozenset(getattr(model, "no_weight_decay", ()))
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    decaying = [p for name, p in named if p.ndim >= 2 and name not in spared]
    others = [p for name, p in named if p.ndim < 2 or name in spared]
    groups = [
        {"params": decaying, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, fused=True)


class Step:
    """The steps of one training: `gradients` of a batch, then `update` with them."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: AveragedModel | None,
        recipe: Recipe,
        passes: Passes = cross_entropy,
    ) -> None:
        self.model, self.optimizer, self.average, self.recipe = model, optimizer, average, recipe
        self.passes = passes
        self.parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.device = self.parameters[0].device
        if recipe.precision != "float32" and self.device.type != "cuda":
            raise ValueError(
                f"precision {recipe.precision!r} needs a GPU, and the model is on {self.device.type!r}; "
                "use precision 'float32', or move the model to a GPU"
            )
        kind = None if recipe.precision == "float32" else getattr(torch, recipe.precision)
        self.precision: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if kind is None else partial(torch.autocast, self.device.type, kind)
        )
        self.scaler = torch.amp.GradScaler(self.device.type) if recipe.precision == "float16" else None
        self.add_up = distributed.GradientSum(self.parameters, 3) if distributed.process_count() > 1 else None

    def gradients(self, images: Tensor, labels: Tensor, whole: int, stop: Callable[[], bool], seed: int = 0) -> Tensor:
        """Start computing the gradients of this process's part of a step of `whole` images.

        `seed` is that of the passes' chance, the same in every process and for each micro-batch.

        Returns, on the model's device: the sum of the losses of the images and how many were classified right, both in
        the first pass; the loss is NaN if that of a later one is not finite. Where processes train together these are
        of all of them, and a third number says how many want to `stop`.
        """
        self.optimizer.zero_grad()
        sums = []
        for x, y in self._micro_batches(images, labels):
            first = True
            for loss, logits in self._losses(x, y, whole, random.Random(seed)):
                if first:
                    sums.append(torch.stack([loss.detach().double() * len(y), (logits.argmax(1) == y).sum()]))
                else:
                    sums[-1][0] += 0 * loss.detach()
                first = False
                weighted = loss if len(y) == whole else loss * (len(y) / whole)
                (weighted if self.scaler is None else self.scaler.scale(weighted)).backward()
        total = sums[0] if len(sums) == 1 else torch.stack(sums).sum(0)
        return total if self.add_up is None else self.add_up(torch.cat([total, total.new_tensor([float(stop())])]))

    def update(self, lr: float) -> None:
        """Change the weights by the gradients."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.recipe.clip_norm:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def _losses(self, x: Tensor, y: Tensor, whole: int, chance: random.Random) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            passes = iter(self.passes(self.model, x, y, self.recipe, chance))
            while True:
                with self.precision():  # not around what the caller does between two passes
                    found = next(passes, None)
                if found is None:
                    return
                yield found
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch norm needs two values of each channel, and this network has one in a micro-batch of {len(x)}: "
                f"a step of {whole} images (batch_size {self.recipe.batch_size}) is cut among "
                f"{distributed.process_count()} processes and by accumulate {self.recipe.accumulate}; take larger "
                "batches, or cut them less"
            ) from error

    def _micro_batches(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        x, y = to_device(images, self.device), to_device(labels, self.device)
        count = min(self.recipe.accumulate, len(labels))
        return [(x, y)] if count == 1 else list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a copy to a GPU runs beside what the GPU is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

"""One optimizer step: micro-batches, mixed precision, the sum over processes, clipping and the moving average.

With one process, one micro-batch and float32 it is forward, backward and step with nothing in between.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bitnas.train import distributed
from bitnas.train.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer; weight decay only for parameters of two or more dimensions."""
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


class Step:
    """The steps of one training: `gradients` of a batch, then `update` with them."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel | None, recipe: Recipe
    ) -> None:
        self.model, self.optimizer, self.average, self.recipe = model, optimizer, average, recipe
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

    def gradients(self, images: Tensor, labels: Tensor, whole: int, stop: Callable[[], bool]) -> Tensor:
        """Start computing the gradients of this process's part of a step of `whole` images.

        Returns, on the model's device: the sum of the losses of the images and how many were classified right. Where
        processes train together these are of all of them, and a third number says how many want to `stop`.
        """
        self.optimizer.zero_grad()
        sums = []
        for x, y in self._micro_batches(images, labels):
            with self.precision():
                logits = self._logits(x, whole)
                loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
            sums.append(torch.stack([loss.detach().double() * len(y), (logits.argmax(1) == y).sum()]))
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

    def _logits(self, x: Tensor, whole: int) -> Tensor:
        try:
            logits: Tensor = self.model(x)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"batch norm needs two values of each channel, and this network has one in a micro-batch of {len(x)}: "
                f"a step of {whole} images (batch_size {self.recipe.batch_size}) is cut among "
                f"{distributed.process_count()} processes and by accumulate {self.recipe.accumulate}; take larger "
                "batches, or cut them less"
            ) from error
        return logits

    def _micro_batches(self, images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        x, y = to_device(images, self.device), to_device(labels, self.device)
        count = min(self.recipe.accumulate, len(labels))
        return [(x, y)] if count == 1 else list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor there; a copy to a GPU runs beside what the GPU is doing."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)

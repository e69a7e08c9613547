"""Passes for `fit` beyond the labels: a teacher's outputs, and a second classifier inside the network.

Both add to the loss of one pass, so a step computes the network once. Their settings are part of the name by which a
checkpoint knows its passes: a run goes on with these and with no others.
"""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas.train.recipe import Recipe
from bitnas.train.step import Passes


class Distillation:
    """(1 - w) CE(labels) + w T^2 KL(softmax(teacher / T) || softmax(student / T)), and an auxiliary classifier's CE.

    Hinton et al. 2015, equation 1 and section 2: T^2 keeps the gradients of both terms alike for any T. Given to `fit`
    as `passes`.

    Args:
        teacher: float `[N, C, H, W]` to logits of the student's classes. A copy is used, in evaluation mode.
        weight: w, above 0 and at most 1.
        temperature: T, above 0.
        auxiliary: as in `auxiliary`; 0 for none.

    `digest` is the start of a SHA-256 over the teacher's tensors.

    Raises TypeError or ValueError naming the argument; while training ValueError where teacher and student differ in
    classes.
    """

    def __init__(
        self, teacher: nn.Module, weight: float = 0.5, temperature: float = 4.0, *, auxiliary: float = 0.0
    ) -> None:
        if not isinstance(teacher, nn.Module):
            raise TypeError(f"teacher: got a {type(teacher).__name__}, wanted a module")
        if not 0 < _number("weight", weight) <= 1:
            raise ValueError(f"weight: got {weight}, wanted above 0 and at most 1")
        if not 0 < _number("temperature", temperature) < float("inf"):
            raise ValueError(f"temperature: got {temperature}, wanted a finite number above 0")
        if not 0 <= _number("auxiliary", auxiliary) < float("inf"):
            raise ValueError(f"auxiliary: got {auxiliary}, wanted a finite number of at least 0")
        self.teacher = copy.deepcopy(teacher).eval().requires_grad_(False)
        self.weight, self.temperature, self.auxiliary = weight, temperature, auxiliary
        self.digest = _digest(teacher)
        self.__qualname__ = f"Distillation({self.digest}, {weight}, {temperature}, {auxiliary})"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, chance: random.Random
    ) -> Iterator[tuple[Tensor, Tensor]]:
        loss, logits = _on_labels(model, x, y, recipe, self.auxiliary, 1 - self.weight)
        with torch.no_grad():
            wanted = self.teacher.to(x.device)(x)
        if wanted.shape != logits.shape:
            raise ValueError(
                f"teacher: it gives {wanted.shape[-1]} classes and the network {logits.shape[-1]}, wanted as many"
            )
        t = self.temperature
        distance = F.kl_div(
            (logits / t).log_softmax(1), (wanted / t).log_softmax(1), reduction="batchmean", log_target=True
        )
        yield loss + self.weight * t * t * distance, logits


class _Auxiliary:
    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.__qualname__ = f"auxiliary({weight})"

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, chance: random.Random
    ) -> Iterator[tuple[Tensor, Tensor]]:
        yield _on_labels(model, x, y, recipe, self.weight, 1.0)


def auxiliary(weight: float) -> Passes:
    """CE(labels) + weight * CE(labels) of the network's second classifier, whose logits `model.both(x)` also gives.

    Szegedy et al. 2015, section 5. Raises ValueError for a weight that is not finite and above 0; while training
    TypeError for a network without such a classifier.
    """
    if not 0 < _number("weight", weight) < float("inf"):
        raise ValueError(f"weight: got {weight}, wanted a finite number above 0")
    return _Auxiliary(weight)


def _on_labels(
    model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe, second: float, share: float
) -> tuple[Tensor, Tensor]:
    """`share` times the cross entropy, plus `second` times that of the second classifier; the logits of the first."""
    if not second:
        logits: Tensor = model(x)
        return share * F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing), logits
    both = getattr(model, "both", None)
    if both is None:
        raise TypeError(f"auxiliary: a {type(model).__name__} has no second classifier; wanted a network with `both`")
    logits, other = both(x)
    losses = [F.cross_entropy(given, y, label_smoothing=recipe.label_smoothing) for given in (logits, other)]
    return share * losses[0] + second * losses[1], logits


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    return value


def _digest(module: nn.Module) -> str:
    """SHA-256 over all tensors, its first 16 digits."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"|{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

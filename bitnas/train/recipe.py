"""What a training run does, as data: it can be printed, compared, saved beside the result and checked before use."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from bitnas.data import Augmentation

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "cosine", "steps")
PRECISIONS = ("float32", "bfloat16", "float16")
KEPT = ("last", "best")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of one training run. `dataclasses.replace(recipe, lr=0.5)` gives a variant, `for_epochs` a shorter one.

    Attributes:
        epochs: passes over the training images.
        batch_size: the most images in a step; an epoch is cut into steps of equal size, within one image.
        lr: the highest learning rate.
        optimizer: `"sgd"`, `"adam"` or `"adamw"` (decoupled weight decay).
        momentum: of SGD; Adam keeps its betas (0.9, 0.999).
        weight_decay: for parameters of two or more dimensions, so not for batch norm and biases.
        schedule: `"constant"`; `"cosine"`, to 0 at the last step (a run of one step has the full rate); `"steps"`,
            times `gamma` at each of `milestones`.
        milestones: epochs, counted from 0, before which the rate drops; increasing.
        gamma: factor of a drop.
        warmup_epochs: the rate rises linearly from 0 over this many epochs; may be a fraction of one, at most `epochs`.
        label_smoothing: share of the target spread over all classes.
        shift: move each image at random by up to this many pixels, with zeros at the border.
        flip: mirror each image left to right half of the time.
        crop: `(low, high)` cuts out a rectangle of a random share of the area, at a random place and aspect, and scales
            it to the whole; None leaves it.
        accumulate: micro-batches that a step is cut into. Their gradients are weighted by their images, so the step is
            that of the whole batch up to rounding, but batch norm sees one micro-batch at a time.
        precision: `"float32"`, or `"bfloat16"` or `"float16"` for mixed precision (autocast; float16 with a loss scale)
            on a GPU. Weights stay float32.
        clip_norm: gradients longer than this, all parameters together, are scaled down to it; 0 leaves them.
        ema: decay, per step, of an exponential moving average of the weights, which is what is validated and kept; 0
            for none.
        sync_batch_norm: batch norm over the images of all processes; GPUs only.
        keep: `"last"` ends with the weights of the last epoch, `"best"` with those of the best validation accuracy.

    Raises TypeError or ValueError naming the setting.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_epochs: float = 0.0
    label_smoothing: float = 0.0
    shift: int = 0
    flip: bool = False
    crop: tuple[float, float] | None = None
    accumulate: int = 1
    precision: str = "float32"
    clip_norm: float = 0.0
    ema: float = 0.0
    sync_batch_norm: bool = False
    keep: str = "last"

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("accumulate", 1)):
            _check_integer(name, getattr(self, name), low)
        _check_number("lr", self.lr, above=0)
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_number("momentum", self.momentum, low=0, below=1)
        _check_number("weight_decay", self.weight_decay, low=0)
        _check_choice("schedule", self.schedule, SCHEDULES)
        object.__setattr__(self, "milestones", tuple(self.milestones))
        for milestone in self.milestones:
            _check_integer("milestones", milestone, 1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {self.milestones}")
        if bool(self.milestones) != (self.schedule == "steps"):
            raise ValueError(
                f"milestones go with schedule 'steps' and only with it, got {self.milestones} with {self.schedule!r}"
            )
        _check_number("gamma", self.gamma, above=0, below=1)
        _check_number("warmup_epochs", self.warmup_epochs, low=0)
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs must be at most epochs {self.epochs}, got {self.warmup_epochs}")
        _check_number("label_smoothing", self.label_smoothing, low=0, below=1)
        for name in ("flip", "sync_batch_norm"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.crop is not None:
            object.__setattr__(self, "crop", _checked_crop(self.crop))
        if self.accumulate > self.batch_size:
            raise ValueError(f"accumulate must be at most batch_size {self.batch_size}, got {self.accumulate}")
        _check_choice("precision", self.precision, PRECISIONS)
        _check_number("clip_norm", self.clip_norm, low=0)
        _check_number("ema", self.ema, low=0, below=1)
        _check_choice("keep", self.keep, KEPT)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to a batch."""
        return Augmentation(shift=self.shift, flip=self.flip, crop=self.crop)

    def for_epochs(self, epochs: int) -> Recipe:
        """The same training in another number of epochs: `milestones` keep their shares of the run.

        They are rounded, to at least 1; those that fall together or at the end are dropped, and without any the rate is
        constant. Raises TypeError or ValueError for a number of epochs that no recipe can have, or fewer than
        `warmup_epochs`.
        """
        _check_integer("epochs", epochs, 1)
        scaled = {max(1, math.floor(milestone * epochs / self.epochs + 0.5)) for milestone in self.milestones}
        milestones = tuple(sorted(milestone for milestone in scaled if milestone < epochs))
        schedule = "constant" if self.schedule == "steps" and not milestones else self.schedule
        return replace(self, epochs=epochs, milestones=milestones, schedule=schedule)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The rate of step `step`, counted from 0 over the whole run."""
        rate = self.lr
        if self.schedule == "cosine":
            steps = self.epochs * steps_per_epoch
            if steps > 1:  # the last rate is 0, and the only step must not be without effect
                rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, (step + 1) / steps)))
        elif self.schedule == "steps":
            rate *= self.gamma ** sum(step >= milestone * steps_per_epoch for milestone in self.milestones)
        warmup_steps = self.warmup_epochs * steps_per_epoch
        return rate * min(1.0, (step + 1) / warmup_steps) if warmup_steps else rate

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON values.

        One of a later version is there only where it is not its default, so that a run of an earlier version keeps its
        identity.
        """
        values = asdict(self) | {"milestones": list(self.milestones)}
        if self.crop is not None:
            values["crop"] = list(self.crop)
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in values.items() if name not in _LATER or value != defaults[name]}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> Recipe:
        """The inverse of `to_dict`; settings with a default may be missing. Raises ValueError for an unknown one."""
        unknown = sorted(set(settings) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"a recipe has no setting {', '.join(map(repr, unknown))}")
        missing = sorted({"epochs", "batch_size", "lr"} - set(settings))
        if missing:
            raise ValueError(f"a recipe needs the setting {', '.join(map(repr, missing))}")
        return cls(**settings)


# Settings that recipes saved by version 0.1.0 do not have.
_LATER = ("crop", "accumulate", "precision", "clip_norm", "ema", "sync_batch_norm", "keep")


def _checked_crop(crop: Any) -> tuple[float, float]:
    if isinstance(crop, str) or not isinstance(crop, Sequence) or len(crop) != 2:
        raise TypeError(f"crop must be two numbers (low, high) or None, got {crop!r}")
    low, high = crop
    for share in (low, high):
        _check_number("crop", share, above=0)
    if not low <= high <= 1:
        raise ValueError(f"crop must be two shares of the area, 0 < low <= high <= 1, got {tuple(crop)}")
    return float(low), float(high)


def _check_integer(name: str, value: Any, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")


def _check_number(
    name: str, value: Any, *, low: float = -math.inf, above: float = -math.inf, below: float = math.inf
) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (value >= low and above < value < below):
        bounds = [f"{word} {bound:g}" for word, bound in (("at least", low), ("above", above), ("below", below))
                  if math.isfinite(bound)]  # fmt: skip
        raise ValueError(f"{name} must be finite, {' and '.join(bounds)}, got {value}")


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


# Shen et al. 2019 print epochs, rate and milestones of the final training and refer to earlier work for the rest; these
# are the field's usual values for CIFAR-10 and ImageNet.
_CIFAR10 = Recipe(
    epochs=200,
    batch_size=128,
    lr=0.1,
    weight_decay=1e-4,
    schedule="steps",
    milestones=(60, 120, 180),
    shift=4,
    flip=True,
)
_IMAGENET = Recipe(
    epochs=150,
    batch_size=256,
    lr=0.1,
    weight_decay=1e-4,
    schedule="steps",
    milestones=(50, 100, 135),
    crop=(0.08, 1.0),
    flip=True,
)

# Lin et al. 2024, as in the public code; the augmentation of the fine-tuning is taken to be that of the training.
_SUPERNET = Recipe(
    epochs=512,
    batch_size=512,
    lr=2.5e-3,
    optimizer="adam",
    weight_decay=5e-6,
    label_smoothing=0.1,
    crop=(0.08, 1.0),
    flip=True,
)
_FINETUNE = Recipe(epochs=25, batch_size=512, lr=1e-5, optimizer="adam", crop=(0.08, 1.0), flip=True)

RECIPES: dict[str, Recipe] = {
    # Chosen on validation images for VGG-small at a quarter of its widths: about 3 s on one thread for ratio 1. The
    # parent of ratio 4 takes about 23 s on one thread (AMD EPYC, Zen 4).
    "digits": Recipe(epochs=10, batch_size=64, lr=0.01, optimizer="adam"),
    "digits-parent": Recipe(epochs=8, batch_size=128, lr=0.004, optimizer="adam"),
    "shen2019-cifar10": _CIFAR10,
    "shen2019-imagenet": _IMAGENET,
    # The same schedules with Adam. Its step does not shrink with the gradient, so weights that decay towards 0 change
    # their signs all the time: no decay.
    "shen2019-cifar10-adam": replace(_CIFAR10, optimizer="adam", lr=0.001, weight_decay=0.0),
    "shen2019-imagenet-adam": replace(_IMAGENET, optimizer="adam", lr=0.001, weight_decay=0.0),
    # What the authors of BARS (Zhao et al. 2020) trained a binary ResNet-18 with, in the history of their code.
    "bars-cifar10": Recipe(epochs=300, batch_size=256, lr=0.001, optimizer="adam", clip_norm=5.0, shift=4, flip=True),
    # Supernets of Lin et al. 2024: theirs for ImageNet, and what fits smaller images.
    "nasbnn-imagenet": _SUPERNET,
    "nasbnn-cifar10": replace(_SUPERNET, epochs=300, batch_size=128, crop=None, shift=4),
    "nasbnn-digits": replace(_SUPERNET, epochs=15, batch_size=64, lr=5e-3, crop=None, flip=False),
    # A subnet with the supernet's weights, trained on.
    "nasbnn-finetune": _FINETUNE,
    "nasbnn-finetune-digits": replace(_FINETUNE, epochs=5, batch_size=64, lr=1e-3, crop=None, flip=False),
}

"""How a supernet and its architecture are trained together, as data.

Every guard against collapse that the paper's code has is a setting of its own here, so that a study can take each away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bitnas.data import Augmentation
from bitnas.methods.bars.relaxation import GUMBEL, KINDS, SOFTMAX
from bitnas.methods.bars.schedule import COSINE, Schedule

FLOPS, LATENCY, BOTH, NO_COST = "flops", "latency", "both", "none"
COSTS = (NO_COST, FLOPS, LATENCY, BOTH)
OPTIMIZERS = ("sgd", "adam")
MACRO_KINDS = (SOFTMAX, GUMBEL)  # weights of one width, or depth, out of several: they add up to 1

_COSINE = Schedule(kind=COSINE, start=0.01, end=1e-4)
_ONE, _SHARPEN, _NEVER = Schedule(start=1.0), Schedule(start=0.01), Schedule(start=0.0)
_SCHEDULES = ("lr", "temperature_edges", "temperature_layout", "entropy_edges", "entropy_layout", "every", "prune")


@dataclass(frozen=True, kw_only=True)
class Controller:
    """Settings of one search by gradient. A `Schedule` may be given as a number or as its JSON.

    Attributes:
        epochs: passes over the images that train the weights.
        batch_size: the most images in a step, of either kind; an epoch is cut into steps of equal size, within one.
        optimizer: of the weights, `"sgd"` or `"adam"`. lr: its rate, a schedule.
        momentum: of SGD. weight_decay: for weights of two or more dimensions. clip_norm: longest gradient; 0 for any.
        shift, flip: augmentation of both kinds of images, as in `bitnas.data.Augmentation`.
        architecture_lr, architecture_betas, architecture_decay: of Adam, which trains the logits.
        micro, macro: relaxation of the operations on edges, of `relaxation.KINDS`, and of widths and depths, of
            `MACRO_KINDS`.
        micro_hard, macro_hard: choose one by straight-through instead of mixing.
        temperature_edges, temperature_layout: of these relaxations, schedules above 0.
        entropy_edges, entropy_layout: schedules; each times the sum of the entropies of all edges, or of all widths and
            depths, is added to the loss of the architecture. Above 0 sharpens.
        warmup_epochs: the first so many train weights alone, by the relaxation of logits that stay 0.
        uniform_epochs: in the first so many every choice has its uniform weight, without chance, and logits stay.
        every: a step of the architecture for each so many steps of the weights, a schedule rounded to integers, counted
            from the start of each epoch.
        full_start: every operation of an edge starts with weight 1 (not 1 / operations): weights are divided by the
            largest of their edge.
        prune: a schedule; an operation whose probability is below it at the end of an epoch that trained the
            architecture is gone for good, but never an edge's likeliest. 0 for never.
        hessian_every: epochs between measurements of the largest eigenvalue of the Hessian of the architecture's loss,
            once the architecture moves; 0 for never.
        hessian_stop: end the search when it is above so many times the mean of the earlier ones; None for never.
        cost: `"none"`, `"flops"`, `"latency"` or `"both"`: what multiplies the loss of the architecture.
        flops_budget: FLOPs by rule `bars` without stem and classifier. latency_budget: us. Without their cost neither
            does anything; `BarsSearchConfig` refuses one that is set with cost `"none"`.
        below, above: exponents of `regulariser.factor`.

    The defaults are the authors' interim configuration for CIFAR-10 and the defaults of their public code (Zhao et al.
    2020); the final ones are lost. Raises TypeError or ValueError naming the setting.
    """

    epochs: int = 50
    batch_size: int = 256
    optimizer: str = "sgd"
    lr: Schedule = _COSINE
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip_norm: float = 0.0
    shift: int = 0
    flip: bool = False
    architecture_lr: float = 3e-4
    architecture_betas: tuple[float, float] = (0.5, 0.999)
    architecture_decay: float = 1e-3
    micro: str = "bernoulli"
    macro: str = "softmax"
    micro_hard: bool = False
    macro_hard: bool = False
    temperature_edges: Schedule = _ONE
    temperature_layout: Schedule = _ONE
    entropy_edges: Schedule = _SHARPEN
    entropy_layout: Schedule = _SHARPEN
    warmup_epochs: int = 0
    uniform_epochs: int = 0
    every: Schedule = _ONE
    full_start: bool = False
    prune: Schedule = _NEVER
    hessian_every: int = 0
    hessian_stop: float | None = None
    cost: str = NO_COST
    flops_budget: float = 5e8
    latency_budget: float | None = None
    below: float = 0.0
    above: float = 1.0

    def __post_init__(self) -> None:
        for name in _SCHEDULES:
            try:
                object.__setattr__(self, name, Schedule.from_json(getattr(self, name)))
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name}: {error}") from error
        object.__setattr__(self, "architecture_betas", tuple(_betas(self.architecture_betas)))
        for name, low in (("epochs", 1), ("batch_size", 1), ("shift", 0), ("warmup_epochs", 0), ("uniform_epochs", 0),
                          ("hessian_every", 0)):  # fmt: skip
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name}: got {value!r}, wanted an integer")
            if value < low:
                raise ValueError(f"{name}: got {value}, wanted at least {low}")
        for name in ("flip", "micro_hard", "macro_hard", "full_start"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        for name, choices in (("optimizer", OPTIMIZERS), ("micro", KINDS), ("macro", MACRO_KINDS), ("cost", COSTS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted one of {', '.join(choices)}")
        self._check_numbers()
        if max(self.warmup_epochs, self.uniform_epochs) >= self.epochs:
            name = "warmup_epochs" if self.warmup_epochs >= self.epochs else "uniform_epochs"
            raise ValueError(
                f"{name}: got {getattr(self, name)}, wanted below epochs {self.epochs}, so that the architecture trains"
            )
        if self.hessian_stop is not None and not self.hessian_every:
            raise ValueError(f"hessian_stop: got {self.hessian_stop}, wanted hessian_every above 0 with it")
        if self.cost in (LATENCY, BOTH) and self.latency_budget is None:
            raise ValueError(f"latency_budget: got None, wanted microseconds for cost {self.cost!r}")

    def _check_numbers(self) -> None:
        for name, low, strict, high in (
            ("momentum", 0, False, 1),
            ("weight_decay", 0, False, math.inf),
            ("clip_norm", 0, False, math.inf),
            ("architecture_lr", 0, True, math.inf),
            ("architecture_decay", 0, False, math.inf),
            ("hessian_stop", 1, True, math.inf),
            ("flops_budget", 0, True, math.inf),
            ("latency_budget", 0, True, math.inf),
            ("below", 0, False, math.inf),
            ("above", 0, False, math.inf),
        ):
            value = getattr(self, name)
            if value is None and name in ("hessian_stop", "latency_budget"):
                continue
            _check_range(name, value, low, strict, high)
        for name, low, strict, high in (
            ("lr", 0, False, math.inf),
            ("temperature_edges", 0, True, math.inf),
            ("temperature_layout", 0, True, math.inf),
            ("every", 1, False, math.inf),
            ("prune", 0, False, 1),
        ):
            for value in getattr(self, name).values:
                _check_range(name, value, low, strict, high)

    @property
    def augmentation(self) -> Augmentation:
        """What is done to a batch."""
        return Augmentation(shift=self.shift, flip=self.flip)

    @property
    def first_architecture_epoch(self) -> int:
        """The first epoch that trains the architecture."""
        return max(self.warmup_epochs, self.uniform_epochs)

    @property
    def budgets(self) -> dict[str, float]:
        """The budget of each cost that is in the loss, by the name of its price list."""
        found: dict[str, float] = {}
        if self.cost in (FLOPS, BOTH):
            found[FLOPS] = self.flops_budget
        if self.cost in (LATENCY, BOTH):
            assert self.latency_budget is not None
            found[LATENCY] = self.latency_budget
        return found

    def to_dict(self) -> dict[str, Any]:
        """JSON values; a constant schedule is a number."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found |= {name: found[name].to_json() for name in _SCHEDULES}
        return found | {"architecture_betas": list(self.architecture_betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Controller:
        """The inverse of `to_dict`; what is left out has its default. Raises ValueError for an unknown setting."""
        if not isinstance(values, Mapping):
            raise TypeError(f"controller: got {values!r}, wanted an object of settings")
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"controller: unknown settings {unknown}, wanted some of {', '.join(known)}")
        return cls(**values)


def _check_range(name: str, value: Any, low: float, strict: bool, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: got {value!r}, wanted a number")
    if not (low < value < high or (value == low and not strict)):
        bound = f"{'above' if strict else 'at least'} {low:g}"
        raise ValueError(
            f"{name}: got {value}, wanted {bound} and {'finite' if high == math.inf else f'below {high:g}'}"
        )


def _betas(value: Any) -> tuple[float, ...]:
    if isinstance(value, str) or not isinstance(value, tuple | list) or len(value) != 2:
        raise TypeError(f"architecture_betas: got {value!r}, wanted two numbers")
    for beta in value:
        _check_range("architecture_betas", beta, 0, False, 1)
    return tuple(map(float, value))

"""Settings of a width search: one frozen record, checked when made, that decides the result together with the data.

No torch here, so that a command line can check and print settings at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnas.methods.settings import (
    MEASURED,
    TABLE,
    check_fractions,
    check_integers,
    check_limits,
    check_names,
    check_workers,
    from_dict,
    identity,
)
from bitnas.search.pareto import Objective
from bitnas.search.space import DEFAULT_CHOICES, Genome

# What a run may optimise: the name a user gives -> (metric, more is better)
OBJECTIVES = {
    "fitness": ("fitness", True),
    "accuracy": ("accuracy", True),
    "ops": ("ops", False),
    "flops": ("flops", False),
    "bops": ("bops", False),
    "memory": ("memory_bits", False),
    "latency": ("latency_us", False),
}

# The ends of the intervals that measured metrics are known to.
SPREADS = {"latency_us": ("latency_low_us", "latency_high_us"), "fitness": ("fitness_low", "fitness_high")}

# Settings that change how long a run takes but not what it finds.
_EXECUTION = ("workers",)


@dataclass(frozen=True, kw_only=True)
class WidthSearchConfig:
    """Everything that decides a width search. Defaults are those of Shen et al. 2019, section 3.2, where it gives them.

    Attributes:
        model: a name of `bitnas.list_models()` with a width code.
        data: a data set `bitnas.data.load` knows, or the path of a `.safetensors` file.
        choices: ratios allowed for each width.
        population: new candidates in each generation.
        generations: how many; the first one is random.
        epochs: of training for a candidate.
        parent_epochs: of training for the widest network, whose weights the candidates inherit.
        start_uniform: the first generation is made of the uniform networks of the choices, narrowest first and at most
            half of it, and of crossings of those, so that it is spread over the costs; random codes are mostly wide.
            The paper does not say how its first generation is made.
        inherit: False trains every candidate from its own random weights; no parent is trained.
        seed: decides the split, the parent, the candidates and the strategy.
        objectives: `("fitness",)` is the paper's evolution on one number, `("accuracy",)` the same within a `budget` or
            `latency_budget`; two or more of `OBJECTIVES` but "fitness" are searched with NSGA-II.
        budget: FLOPs that a candidate may have, in those of the un-widened network, or None. Dearer ones are never
            trained.
        latency_budget: us per batch that a candidate may take, or None. One that takes more, beyond the noise, is not
            trained.
        fitness_lambda: percent points of accuracy that one un-widened network of FLOPs must bring.
        latency_weight: percent points of accuracy that one un-widened network of latency must bring; the paper has no
            such term.
        recipe, parent_recipe: names in `bitnas.train.RECIPES`; `epochs` and `parent_epochs` replace theirs.
        base_width: multiplies the network's base widths.
        scheme: how weights and activations become bits.
        rule: of counting; None is the paper's ("shen2019") for its two networks and "mac" for any other.
        train_fraction, val_fraction: of the data; the rest is the test split, which neither parent nor search sees.
        latency_batch, latency_threads: what a latency is measured with.
        latency_source: "measured" times each candidate whole, with the machine to itself; "table" adds up what
            `bitnas latency build` measured. The front is measured whole at the end either way.
        latency_table: file of that table; None is the user's own (see `bitnas latency`).
        accuracy_tolerance: difference in accuracy that removes nobody from the front.
        latency_tolerance: the same for latency, as a fraction. Also the least noise a measured latency is taken to
            have: two runs of one network differ by as much.
        parent_threads: torch threads of the parent's training; part of the result, since sums depend on it.
        device: where parent and candidates are trained, "cpu" or "cuda". On a GPU a resumed search ends with the same
            journal, but a repeated one need not.
        workers: processes that train candidates, one thread each; 0 trains in this one. "ray" or "ray://HOST:PORT":
            tasks on a cluster. Does not change the result.
        timeout: seconds after which a candidate is given up, or None. Needs workers. Part of the result: who is given
            up stays so.
        memory_limit: GiB that a worker may hold, beyond which its candidate fails, or None. As `timeout`.

    Raises ValueError or TypeError naming the setting.
    """

    model: str = "vgg_small"
    data: str = "digits"
    choices: Genome = DEFAULT_CHOICES
    population: int = 32
    generations: int = 50
    epochs: int = 10
    parent_epochs: int = 150
    start_uniform: bool = False
    inherit: bool = True
    seed: int = 0
    objectives: tuple[str, ...] = ("fitness",)
    budget: float | None = None
    latency_budget: float | None = None
    fitness_lambda: float = 4.0
    latency_weight: float = 0.0
    recipe: str = "shen2019-cifar10"
    parent_recipe: str = "shen2019-cifar10"
    base_width: float = 1.0
    scheme: str = "dorefa"
    rule: str | None = None
    train_fraction: float = 0.6
    val_fraction: float = 0.2
    latency_batch: int = 1
    latency_threads: int = 1
    latency_source: str = MEASURED
    latency_table: str | None = None
    accuracy_tolerance: float = 0.005
    latency_tolerance: float = 0.02
    parent_threads: int = 1
    device: str = "cpu"
    workers: int | str = 2
    timeout: float | None = None
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        check_names(self, ("model", "data", "recipe", "parent_recipe", "scheme", "latency_source", "device"))
        for name in ("rule", "latency_table"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(
                    f"{name}: got {value!r}, wanted a {'path' if name == 'latency_table' else 'name'} or None"
                )
        if self.latency_table is not None and self.latency_source != TABLE:
            raise ValueError(
                f"latency_table: got {self.latency_table!r} with latency_source 'measured', wanted 'table'"
            )
        check_workers(self.workers)
        for name in ("inherit", "start_uniform"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        check_integers(self, _INTEGERS)
        for name in ("fitness_lambda", "latency_weight", "base_width", "train_fraction", "val_fraction", *_TOLERANCES):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(f"{name}: got {value!r}, wanted a number")
            positive = name in ("base_width", "train_fraction", "val_fraction")
            if not math.isfinite(value) or value < 0 or (positive and value == 0):
                raise ValueError(
                    f"{name}: got {value}, wanted a finite number {'above' if positive else 'of at least'} 0"
                )
            object.__setattr__(self, name, float(value))
        check_fractions(self)
        check_limits(self, _OPTIONAL)
        choices = tuple(sorted(float(choice) for choice in self.choices))
        if len(choices) < 2 or len(set(choices)) != len(choices) or not all(0 < c < math.inf for c in choices):
            raise ValueError(f"choices: got {self.choices!r}, wanted at least two distinct positive ratios")
        object.__setattr__(self, "choices", choices)
        self._check_objectives()

    def _check_objectives(self) -> None:
        if isinstance(self.objectives, str):
            raise TypeError(f"objectives: got {self.objectives!r}, wanted a tuple of names")
        objectives = tuple(self.objectives)
        unknown = [name for name in objectives if name not in OBJECTIVES]
        if unknown or not objectives or len(set(objectives)) != len(objectives):
            raise ValueError(f"objectives: got {objectives!r}, wanted distinct names out of {', '.join(OBJECTIVES)}")
        if objectives == ("accuracy",) and self.budget is None and self.latency_budget is None:
            raise ValueError(f"objectives: got {objectives!r}, wanted a budget or latency_budget with accuracy alone")
        if len(objectives) == 1 and objectives not in (("fitness",), ("accuracy",)):
            raise ValueError(f"objectives: got {objectives!r}, wanted 'fitness' or 'accuracy' alone, or two and more")
        if self.latency_weight and objectives != ("fitness",):
            raise ValueError(
                f"latency_weight: got {self.latency_weight} with objectives {objectives!r}, wanted 'fitness'"
            )
        if len(objectives) > 1 and "fitness" in objectives:
            raise ValueError(f"objectives: got {objectives!r}; 'fitness' already weighs accuracy against FLOPs")
        object.__setattr__(self, "objectives", objectives)
        if self.latency_source == TABLE and not self.needs_latency:
            raise ValueError(
                f"latency_source: got 'table', but no latency takes part in this search of {', '.join(objectives)}; "
                "add it to the objectives, or give a latency_weight or latency_budget"
            )

    @property
    def single_objective(self) -> bool:
        """True for the paper's evolution on one number."""
        return len(self.objectives) == 1

    @property
    def needs_latency(self) -> bool:
        """Whether a latency takes part in the selection."""
        return "latency" in self.objectives or self.latency_weight > 0 or self.latency_budget is not None

    @property
    def counting_rule(self) -> str:
        """The rule `count` is called with."""
        if self.rule is not None:
            return self.rule
        return "shen2019" if self.model in ("vgg_small", "resnet18") else "mac"

    def search_objectives(self) -> list[Objective]:
        """What the strategy optimises."""
        return [self._objective(name) for name in self.objectives]

    def ties(self) -> list[Objective]:
        """What decides between candidates of one fitness: exact numbers, none that was timed."""
        return [self._objective(name) for name in ("accuracy", "flops")] if self.single_objective else []

    def front_objectives(self) -> list[Objective]:
        """What decides the front: the objectives, or accuracy against costs where the search knows one number only."""
        names = self.objectives
        if self.single_objective:
            names = ("accuracy", "flops", "latency") if self.needs_latency else ("accuracy", "flops")
        return [self._objective(name) for name in names]

    def _objective(self, name: str) -> Objective:
        metric, maximize = OBJECTIVES[name]
        return Objective(
            metric,
            maximize=maximize,
            tolerance=self.accuracy_tolerance if name == "accuracy" else 0.0,
            relative_tolerance=self.latency_tolerance if name == "latency" else 0.0,
            spread=SPREADS.get(metric),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"choices": list(self.choices), "objectives": list(self.objectives)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> WidthSearchConfig:
        """The inverse of `to_dict`; raises ValueError for a setting that does not exist."""
        return from_dict(cls, settings, tuples=("choices", "objectives"))

    def identity(self, *, generations: bool = False) -> str:
        """SHA-256 of the settings that decide a measurement; with `generations`, also of how many there are."""
        return identity(self.to_dict(), left_out=(*_EXECUTION, *(() if generations else ("generations",))))


_INTEGERS = {
    "population": 2,
    "generations": 1,
    "epochs": 1,
    "parent_epochs": 1,
    "seed": 0,
    "latency_batch": 1,
    "latency_threads": 1,
    "parent_threads": 1,
}
_OPTIONAL = {
    "timeout": "seconds",
    "memory_limit": "GiB",
    "budget": "multiples of the un-widened network",
    "latency_budget": "us per batch",
}
_TOLERANCES = ("accuracy_tolerance", "latency_tolerance")

# Settings that suit a data set, on top of the defaults. The un-widened digits network is close to the best that any
# width reaches, so wider ones are not worth a search's time: they are kept out by a budget.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "base_width": 0.25,
        "start_uniform": True,
        "fitness_lambda": 4.0,
        "budget": 1.0,
        "epochs": 4,
        "parent_epochs": 4,
        "recipe": "digits",
        "parent_recipe": "digits-parent",
        "latency_batch": 32,
        "timeout": 300.0,
    },
    "cifar10": {"epochs": 10, "parent_epochs": 150},
    # The paper trains on 50 images of each class; another 10 judge. Name a number of your own, or the folder's path for
    # all images.
    "imagenet": {
        "data": "imagenet:60",
        "train_fraction": 0.75,
        "val_fraction": 0.15,
        "model": "resnet18",
        "epochs": 10,
        "parent_epochs": 150,
        "recipe": "shen2019-imagenet",
        "parent_recipe": "shen2019-imagenet",
    },
}


def preset(data: str, **settings: Any) -> WidthSearchConfig:
    """The settings for a data set: its preset, under those given here.

    A data set is known by its name, or by the stem of a file's or folder's path, without the number of images per class
    that may follow it. One without a preset gets the paper's settings.
    """
    name, _, number = data.partition(":")
    found = dict(PRESETS.get(Path(name).stem, {}))
    if number or name not in PRESETS:
        found.pop("data", None)
    return WidthSearchConfig(**{"data": data, **found, **settings})

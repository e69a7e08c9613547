"""Settings of a search by BARS: one frozen record, checked when made, that decides the result with the data.

What trains the supernet is in the `Controller` inside it; what is here is the data, the space, and how the networks
that come out are judged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnas.methods.bars.controller import BOTH, FLOPS, LATENCY, NO_COST, Controller
from bitnas.methods.bars.description import DESCRIPTIONS, Description, load
from bitnas.methods.settings import (
    MEASURED,
    OBJECTIVES,
    TABLE,
    check_calibration,
    check_fractions,
    check_integers,
    check_limits,
    check_names,
    check_numbers,
    check_workers,
    data_name,
    from_dict,
    identity,
    like_of,
    objective,
)
from bitnas.search.pareto import Objective

# Settings that change how long a run takes but not what it finds.
_EXECUTION = ("workers",)
_DEFAULTS = Controller()
_BY_TABLE = (LATENCY, BOTH)  # the controller's costs that read the device table


@dataclass(frozen=True, kw_only=True)
class BarsSearchConfig:
    """Everything that decides a search by BARS. Defaults are the interim configuration of its authors for CIFAR-10.

    Attributes:
        data: a data set `bitnas.data.load` knows, or the path of a file.
        space: a `Description` as `to_dict` gives it, whose size of images and number of classes give way to those of
            the data; a `Description`, its name, or a JSON file are turned into that.
        controller: a `Controller` as `to_dict` gives it, or some of its settings: those left out are its defaults.
        search_fraction: share of the training images that train the weights; the others train the architecture.
        samples: networks derived from the supernet: the most likely one, and draws.
        sample_layout: whether a draw has widths and depths of its own; the authors' have the most likely ones.
        train_epochs: 0 judges a derived network with the supernet's weights, batch norm measured anew; else each is
            trained from scratch, for so many epochs.
        recipe: of that training and of a study's, a name in `bitnas.train.RECIPES`.
        calibration_batches, calibration_size: training images that batch norm is measured on, with the supernet's
            weights.
        supernet_threads: torch threads of the supernet's training; part of the result, since sums depend on it.
        objectives: two and more of `OBJECTIVES`, or accuracy alone; they decide the front.
        latency_batch, latency_threads: what a latency is measured with, and what the device table in the loss is of.
        latency_source: "measured" times each derived network whole; "table" adds up what `bitnas latency build`
            measured. The front is measured whole at the end either way.
        latency_table: file of the device table, for that or for a cost in the loss; None is the user's own.
        accuracy_tolerance: difference in accuracy that removes nobody from the front.
        latency_tolerance: the same for latency, as a fraction. Also the least noise a measured latency is taken to
            have.
        train_fraction, val_fraction: of the data; the rest is the test split, which the search does not see. Where the
            data have a test part of their own, only their proportion counts.
        seed: decides the splits, the supernet, the draws and the trainings.
        device: where networks are trained and judged, "cpu" or "cuda".
        workers: processes that judge networks, one thread each; 0 judges in this one. "ray" or "ray://HOST:PORT": tasks
            on a cluster. Does not change the result.
        timeout: seconds after which a network is given up, or None. Needs workers. Part of the result.
        memory_limit: GiB that a worker may hold, beyond which its network fails, or None. As `timeout`.

    Raises ValueError or TypeError naming the setting.
    """

    data: str = "cifar10"
    space: dict[str, Any] = field(default_factory=lambda: DESCRIPTIONS["cifar"].to_dict())
    controller: dict[str, Any] = field(default_factory=dict)
    search_fraction: float = 0.5
    samples: int = 8
    sample_layout: bool = False
    train_epochs: int = 0
    recipe: str = "bars-cifar10"
    calibration_batches: int = 10
    calibration_size: int = 500
    supernet_threads: int = 1
    objectives: tuple[str, ...] = ("accuracy", "latency")
    latency_batch: int = 1
    latency_threads: int = 1
    latency_source: str = MEASURED
    latency_table: str | None = None
    accuracy_tolerance: float = 0.0
    latency_tolerance: float = 0.02
    train_fraction: float = 0.6
    val_fraction: float = 0.2
    seed: int = 0
    device: str = "cpu"
    workers: int | str = 2
    timeout: float | None = None
    memory_limit: float | None = None

    def __post_init__(self) -> None:
        check_names(self, ("data", "recipe", "latency_source", "device"))
        if self.latency_table is not None and not isinstance(self.latency_table, str):
            raise TypeError(f"latency_table: got {self.latency_table!r}, wanted a path or None")
        if not isinstance(self.sample_layout, bool):
            raise TypeError(f"sample_layout: got {self.sample_layout!r}, wanted True or False")
        object.__setattr__(self, "space", _space(self.space).to_dict())
        object.__setattr__(self, "controller", _controller(self.controller).to_dict())
        check_integers(self, _INTEGERS)
        check_calibration(self)
        check_numbers(self, _NUMBERS, positive=_POSITIVE)
        if self.search_fraction == 1:
            raise ValueError("search_fraction: got 1, wanted less, so that images are left for the architecture")
        check_fractions(self)
        check_limits(self, _OPTIONAL)
        check_workers(self.workers)
        self._check_objectives()
        if self.latency_source == TABLE and not self.needs_latency:
            raise ValueError(
                f"latency_source: got 'table', but no latency is among the objectives {', '.join(self.objectives)}; "
                "add it (the loss has its own: controller cost 'latency')"
            )
        if self.latency_table is not None and not self.needs_table:
            raise ValueError(
                f"latency_table: got {self.latency_table!r}, but nothing reads it; wanted latency_source 'table', or "
                "controller cost 'latency' or 'both' (--cost latency)"
            )

    def _check_objectives(self) -> None:
        if isinstance(self.objectives, str):
            raise TypeError(f"objectives: got {self.objectives!r}, wanted a tuple of names")
        objectives = tuple(self.objectives)
        object.__setattr__(self, "objectives", objectives)
        if not objectives or len(set(objectives)) != len(objectives) or set(objectives) - set(OBJECTIVES):
            raise ValueError(f"objectives: got {objectives!r}, wanted distinct names out of {', '.join(OBJECTIVES)}")
        if len(objectives) == 1 and objectives != ("accuracy",):
            raise ValueError(f"objectives: got {objectives!r}, wanted 'accuracy' alone, or two and more")

    @property
    def generations(self) -> int:
        """One: what is judged is derived from the supernet at once."""
        return 1

    @property
    def latency_budget(self) -> float | None:
        """None: a derived network is never given up for its latency; the controller's budget steers what is derived."""
        return None

    @property
    def needs_latency(self) -> bool:
        """Whether a latency takes part in the selection."""
        return "latency" in self.objectives

    @property
    def latency_in_loss(self) -> bool:
        """Whether the supernet's loss holds an expected latency."""
        return self.controller["cost"] in _BY_TABLE

    @property
    def needs_table(self) -> bool:
        """Whether the run reads a device table."""
        return self.latency_in_loss or self.latency_source == TABLE

    def front_objectives(self) -> list[Objective]:
        """What decides the front."""
        return [objective(self, name) for name in self.objectives]

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"objectives": list(self.objectives)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> BarsSearchConfig:
        """The inverse of `to_dict`; raises ValueError for a setting that does not exist."""
        return from_dict(cls, settings)

    def identity(self, *, generations: bool = False) -> str:
        """SHA-256 of the settings that decide a result; `generations` is for methods that have more than one."""
        return identity(self.to_dict(), left_out=_EXECUTION)


_INTEGERS = {
    "samples": 1,
    "train_epochs": 0,
    "calibration_batches": 1,
    "calibration_size": 1,
    "supernet_threads": 1,
    "latency_batch": 1,
    "latency_threads": 1,
    "seed": 0,
}
_NUMBERS = {
    "search_fraction": (0.0, 1.0),
    "accuracy_tolerance": (0.0, float("inf")),
    "latency_tolerance": (0.0, float("inf")),
    "train_fraction": (0.0, 1.0),
    "val_fraction": (0.0, 1.0),
}
_POSITIVE = ("search_fraction", "train_fraction", "val_fraction")
_OPTIONAL = {"timeout": "seconds", "memory_limit": "GiB"}


def _space(value: Any) -> Description:
    if isinstance(value, Description):
        return value
    if isinstance(value, str | Path):
        return load(value)
    try:
        return Description.from_dict(value)
    except (ValueError, TypeError) as error:
        raise type(error)(f"space: {error}") from error


def _controller(value: Any) -> Controller:
    try:
        found = value if isinstance(value, Controller) else Controller.from_dict(value)
    except (ValueError, TypeError) as error:
        said = str(error)
        raise type(error)(said if said.startswith("controller") else f"controller.{said}") from error
    if found.cost == NO_COST:
        for name in (FLOPS, LATENCY):
            budget = getattr(found, f"{name}_budget")
            if budget != getattr(_DEFAULTS, f"{name}_budget"):
                raise ValueError(
                    f"controller.{name}_budget: got {budget:g} with controller.cost {NO_COST!r}, which has no budget; "
                    f"wanted cost {name!r} or {BOTH!r} (--cost) with it, or no budget"
                )
    return found


# Settings that suit a data set, on top of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    # Of so few steps the interim rates move neither weights nor logits. Gumbel-softmax, as `none` is among the
    # operations: the weight of that one reaches no loss, so where every operation is on or off by itself (Bernoulli)
    # nothing but the entropy moves it, and it took 92 % of the probability. The architecture waits for weights that
    # mean something, and is sharpened towards the end.
    "digits": {
        "space": "small",
        "controller": {
            "epochs": 20,
            "batch_size": 64,
            "optimizer": "adam",
            "lr": {"kind": "cosine", "start": 0.01, "end": 1e-4},
            "weight_decay": 0.0,
            "architecture_lr": 0.03,
            "micro": "gumbel",
            "macro": "gumbel",
            "warmup_epochs": 4,
            "entropy_edges": {"kind": "linear", "start": 0.0, "end": 0.005},
            "entropy_layout": {"kind": "linear", "start": 0.0, "end": 0.02},
        },
        "sample_layout": True,
        "train_epochs": 10,
        "recipe": "digits",
        "latency_batch": 32,
        "timeout": 300.0,
    },
    "cifar10": {},
    # Nothing is known of the settings of the authors. Gumbel-softmax for the reason above, `none` being an operation.
    "imagenet": {
        "space": "imagenet",
        "controller": {"micro": "gumbel"},
        "recipe": "shen2019-imagenet-adam",
        "train_fraction": 0.96,
        "val_fraction": 0.039,
    },
}


def preset(data: str, **settings: Any) -> BarsSearchConfig:
    """The settings for a data set: its preset, under those given here.

    A data set is known by its name, or by the stem of a file's or folder's path, without the number of images per class
    that may follow it. One without a preset is read, and has that of the data set whose images are of its size. `space`
    may be a name of `DESCRIPTIONS` or a JSON file; what it says is kept, so that a later edit of the file changes
    nothing. A `controller` that is given changes single settings of the preset's; other epochs keep the share of its
    warm-up.
    """
    name = data_name(data)
    if name not in PRESETS:
        from bitnas.methods.candidates import load_data

        # Whatever is wrong with what was given is said before anything is read.
        name = like_of(load_data(data, BarsSearchConfig(**{"data": data, **settings}).seed).input_size)
    found = PRESETS[name]
    given = settings.get("controller", {})
    if isinstance(given, Mapping):
        settings = {**settings, "controller": {**_shortened(found.get("controller", {}), given.get("epochs")), **given}}
    return BarsSearchConfig(**{**found, "data": data, **settings})


def _shortened(controller: Mapping[str, Any], epochs: Any) -> dict[str, Any]:
    """A preset's controller for other epochs."""
    if not isinstance(epochs, int) or "warmup_epochs" not in controller:
        return dict(controller)
    return {**controller, "warmup_epochs": max(0, controller["warmup_epochs"] * epochs // controller["epochs"])}

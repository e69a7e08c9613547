"""Settings of a search by NAS-BNN: one frozen record, checked when made, that decides the result with the data.

No torch here, so that a command line can check and print settings at once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, load
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

ARCHIVE = "archive"  # the paper's: the most accurate subnet of every bucket of OPs

# The training strategies of the paper, sections 2.2 and 2.3 of its public description; all on, without the optional
# loss of consistency.
STRATEGIES: dict[str, bool | float] = {
    "bi_teacher": True,
    "bi_transformation": True,
    "weight_normalization": True,
    "consistency": 0.0,
}

# Settings that change how long a run takes but not what it finds.
_EXECUTION = ("workers",)

CALIBRATION = (10, 2048)  # batches, and images in each


@dataclass(frozen=True, kw_only=True)
class NasBnnSearchConfig:
    """Everything that decides a search by NAS-BNN. Defaults are those of Lin et al. 2024 and its public code.

    Attributes:
        data: a data set `bitnas.data.load` knows, or the path of a file.
        space: a `Description` as `to_dict` gives it, whose size of images and number of classes give way to those of
            the data; a `Description`, its name, or a JSON file are turned into that.
        strategies: of the supernet's training: bi_teacher, bi_transformation, weight_normalization (True or False),
            consistency (weight of that loss). Those left out are the paper's.
        supernet_epochs: of the supernet's training; None is the recipe's.
        recipe: a name in `bitnas.train.RECIPES`.
        supernet_threads: torch threads of that training; part of the result, since sums depend on it.
        supernet: SHA-256 of the supernet that the search was given; None trains one.
        population: genomes of the first generation, and survivors of NSGA-II.
        generations: how many, the first included.
        mutations, crossovers: genomes of each later generation of the archive's search.
        mutation_rate: probability that a mutation redraws one part of a genome.
        ops_low, ops_high: OPs that a genome drawn for the search has. The smallest and the biggest subnet are judged
            all the same, as in the paper.
        bucket: OPs that a bucket of the archive spans.
        objectives: `("archive",)` is the paper's; two or more of `OBJECTIVES` are searched with NSGA-II.
        latency_budget: us per batch that a candidate may take, or None. One that takes more, beyond the noise, is not
            judged.
        latency_batch, latency_threads: what a latency is measured with.
        latency_source: "measured" times each candidate whole, with the machine to itself; "table" adds up what
            `bitnas latency build` measured. The front is measured whole at the end either way.
        latency_table: file of that table; None is the user's own.
        calibration_batches, calibration_size: training images that a candidate's batch-norm statistics are the plain
            average of.
        accuracy_tolerance: difference in accuracy that removes nobody from the front.
        latency_tolerance: the same for latency, as a fraction. Also the least noise a measured latency is taken to
            have.
        train_fraction, val_fraction: of the data; the rest is the test split, which the search does not see. Where the
            data have a test part of their own, only their proportion counts.
        seed: decides the split, the supernet, the calibration and the strategy.
        device: where the supernet is trained and candidates are judged, "cpu" or "cuda".
        workers: processes that judge candidates, one thread each; 0 judges in this one. "ray" or "ray://HOST:PORT":
            tasks on a cluster. Does not change the result.
        timeout: seconds after which a candidate is given up, or None. Needs workers. Part of the result.
        memory_limit: GiB that a worker may hold, beyond which its candidate fails, or None. As `timeout`.

    Raises ValueError or TypeError naming the setting.
    """

    data: str = "imagenet"
    space: dict[str, Any] = field(default_factory=lambda: DESCRIPTIONS["imagenet"].to_dict())
    strategies: dict[str, Any] = field(default_factory=lambda: dict(STRATEGIES))
    supernet_epochs: int | None = None
    recipe: str = "nasbnn-imagenet"
    supernet_threads: int = 1
    supernet: str | None = None
    population: int = 512
    generations: int = 21
    mutations: int = 128
    crossovers: int = 128
    mutation_rate: float = 0.2
    ops_low: float = 20e6
    ops_high: float = 180e6
    bucket: float = 2e6
    objectives: tuple[str, ...] = (ARCHIVE,)
    latency_budget: float | None = None
    latency_batch: int = 1
    latency_threads: int = 1
    latency_source: str = MEASURED
    latency_table: str | None = None
    calibration_batches: int = CALIBRATION[0]
    calibration_size: int = CALIBRATION[1]
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
        for name, wanted in (("latency_table", "a path"), ("supernet", "a SHA-256")):
            value = getattr(self, name)
            if value is not None and not isinstance(value, str):
                raise TypeError(f"{name}: got {value!r}, wanted {wanted} or None")
        object.__setattr__(self, "space", _space(self.space).to_dict())
        object.__setattr__(self, "strategies", _strategies(self.strategies))
        check_integers(self, _INTEGERS, optional=("supernet_epochs",))
        check_calibration(self)
        if self.supernet is not None and not re.fullmatch("[0-9a-f]{64}", self.supernet):
            raise ValueError(f"supernet: got {self.supernet!r}, wanted a SHA-256; give `search` the file")
        check_numbers(self, _NUMBERS, positive=_POSITIVE)
        if self.mutations + self.crossovers == 0:
            raise ValueError("mutations, crossovers: got 0 and 0, wanted at least one genome in each later generation")
        if self.ops_low >= self.ops_high:
            raise ValueError(f"ops_low, ops_high: got {self.ops_low:g} and {self.ops_high:g}, wanted low below high")
        check_fractions(self)
        check_limits(self, _OPTIONAL)
        check_workers(self.workers)
        self._check_objectives()

    def _check_objectives(self) -> None:
        if isinstance(self.objectives, str):
            raise TypeError(f"objectives: got {self.objectives!r}, wanted a tuple of names")
        objectives = tuple(self.objectives)
        object.__setattr__(self, "objectives", objectives)
        known = (ARCHIVE, *OBJECTIVES)
        if not objectives or len(set(objectives)) != len(objectives) or set(objectives) - set(known):
            raise ValueError(f"objectives: got {objectives!r}, wanted distinct names out of {', '.join(known)}")
        if objectives != (ARCHIVE,) and (len(objectives) == 1 or ARCHIVE in objectives):
            raise ValueError(f"objectives: got {objectives!r}, wanted 'archive' alone, or two and more of the others")
        if self.latency_table is not None and self.latency_source != TABLE:
            raise ValueError(
                f"latency_table: got {self.latency_table!r} with latency_source 'measured', wanted 'table'"
            )
        if self.latency_source == TABLE and not self.needs_latency:
            raise ValueError(
                f"latency_source: got 'table', but no latency takes part in this search of {', '.join(objectives)}; "
                "add it to the objectives, or give a latency_budget"
            )

    @property
    def by_archive(self) -> bool:
        """True for the paper's strategy."""
        return self.objectives == (ARCHIVE,)

    @property
    def needs_latency(self) -> bool:
        """Whether a latency takes part in the selection."""
        return "latency" in self.objectives or self.latency_budget is not None

    def search_objectives(self) -> list[Objective]:
        """What the strategy is told: of the archive accuracy and OPs."""
        return [objective(self, name) for name in (("accuracy", "ops") if self.by_archive else self.objectives)]

    def front_objectives(self) -> list[Objective]:
        """What decides the front."""
        if self.by_archive and self.needs_latency:
            return [objective(self, name) for name in ("accuracy", "ops", "latency")]
        return self.search_objectives()

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self) | {"objectives": list(self.objectives)}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> NasBnnSearchConfig:
        """The inverse of `to_dict`; raises ValueError for a setting that does not exist."""
        return from_dict(cls, settings)

    def identity(self, *, generations: bool = False) -> str:
        """SHA-256 of the settings that decide a measurement; with `generations`, also of how many there are."""
        return identity(self.to_dict(), left_out=(*_EXECUTION, *(() if generations else ("generations",))))


_INTEGERS = {
    "supernet_epochs": 1,
    "supernet_threads": 1,
    "population": 2,
    "generations": 1,
    "mutations": 0,
    "crossovers": 0,
    "latency_batch": 1,
    "latency_threads": 1,
    "calibration_batches": 1,
    "calibration_size": 1,
    "seed": 0,
}
_NUMBERS = {
    "mutation_rate": (0.0, 1.0),
    "ops_low": (0.0, math.inf),
    "ops_high": (0.0, math.inf),
    "bucket": (0.0, math.inf),
    "accuracy_tolerance": (0.0, math.inf),
    "latency_tolerance": (0.0, math.inf),
    "train_fraction": (0.0, 1.0),
    "val_fraction": (0.0, 1.0),
}
_POSITIVE = ("bucket", "train_fraction", "val_fraction")
_OPTIONAL = {"timeout": "seconds", "memory_limit": "GiB", "latency_budget": "us per batch"}


def _space(value: Any) -> Description:
    if isinstance(value, Description):
        return value
    if isinstance(value, str | Path):
        return load(value)
    try:
        return Description.from_dict(value)
    except (ValueError, TypeError) as error:
        raise type(error)(f"space: {error}") from error


def _strategies(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"strategies: got {value!r}, wanted an object of {', '.join(STRATEGIES)}")
    if unknown := sorted(set(value) - set(STRATEGIES)):
        raise ValueError(f"strategies: {unknown[0]!r} is none of {', '.join(STRATEGIES)}")
    found = {**STRATEGIES, **value}
    for name, default in STRATEGIES.items():
        given = found[name]
        if isinstance(default, bool):
            if not isinstance(given, bool):
                raise TypeError(f"strategies: {name} is {given!r}, wanted True or False")
        elif isinstance(given, bool) or not isinstance(given, int | float):
            raise TypeError(f"strategies: {name} is {given!r}, wanted a number")
        elif not 0 <= given < math.inf:
            raise ValueError(f"strategies: {name} is {given}, wanted a finite number of at least 0")
        else:
            found[name] = float(given)
    return found


# Settings that suit a data set, on top of the defaults.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {
        "space": "small",
        "recipe": "nasbnn-digits",
        "population": 96,
        "generations": 7,
        "mutations": 24,
        "crossovers": 24,
        "ops_low": 2e3,
        "ops_high": 210e3,
        "bucket": 3e3,
        "calibration_batches": 4,
        "calibration_size": 256,
        "latency_batch": 32,
        "timeout": 120.0,
    },
    "cifar10": {
        "space": "cifar",
        "recipe": "nasbnn-cifar10",
        "population": 128,
        "mutations": 32,
        "crossovers": 32,
        "ops_low": 1.5e6,
        "ops_high": 16e6,
        "bucket": 0.2e6,
        "calibration_size": 500,
    },
    # The paper holds 50 training images of each class out; the data's own test part is never seen.
    "imagenet": {"train_fraction": 0.96, "val_fraction": 0.039},
}


def preset(data: str, **settings: Any) -> NasBnnSearchConfig:
    """The settings for a data set: its preset, under those given here.

    A data set is known by its name, or by the stem of a file's or folder's path, without the number of images per class
    that may follow it. One without a preset is read: `fitting` chooses by its images, the window of OPs is all that the
    space holds for them, and 80 buckets fill it. `space` may be a name of `DESCRIPTIONS` or a JSON file; what it says
    is kept, so that a later edit of the file changes nothing.
    """
    if data_name(data) in PRESETS:
        return NasBnnSearchConfig(**{"data": data, **PRESETS[data_name(data)], **settings})
    return NasBnnSearchConfig(**{"data": data, **_measured(data, settings), **settings})


def fitting(data: str, input_size: Sequence[int], images: int) -> dict[str, Any]:
    """The preset of a data set, or settings by the side of its images and by how many there are to train on.

    `space` and `recipe` are always among them. Without a preset the side gives the space and how long a search is; a
    recipe is for so many images that an epoch has 16 steps of it, and no more images are asked for than there are.
    """
    name = data_name(data)
    if name in PRESETS:
        return {"space": "imagenet", "recipe": "nasbnn-imagenet", **PRESETS[name]}
    kinds, kind = list(_LEAST_IMAGES), like_of(input_size)
    reachable = [kind for kind in kinds[: kinds.index(kind) + 1] if images >= _LEAST_IMAGES[kind]]
    chosen = fitting(kind, input_size, images)
    size = min(chosen.get("calibration_size", CALIBRATION[1]), images)
    return {
        **{name: chosen[name] for name in _BY_SIDE if name in chosen},
        "recipe": fitting(reachable[-1] if reachable else kinds[0], input_size, images)["recipe"],
        "calibration_batches": min(chosen.get("calibration_batches", CALIBRATION[0]), max(1, images // size)),
        "calibration_size": size,
    }


_LEAST_IMAGES = {"digits": 0, "cifar10": 16 * 128, "imagenet": 16 * 512}  # that a preset's recipe is for
_BY_SIDE = ("space", "population", "generations", "mutations", "crossovers", "latency_batch")
_BUCKETS = 80  # as many as the paper's window holds


def _measured(data: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings for a data set without a preset, where those given leave them open."""
    from bitnas.methods import candidates
    from bitnas.methods.nasbnn.space import SubnetSpace

    window = ("ops_low", "ops_high", "bucket")
    # Whatever is wrong with what was given is said before anything is read.
    checked = NasBnnSearchConfig(**{"data": data, **{k: v for k, v in settings.items() if k not in window}})
    source = candidates.load_data(data, checked.seed)
    split = candidates.split_data(data, checked.seed, checked.train_fraction, checked.val_fraction)
    found = fitting(data, source.input_size, len(split.train))
    chosen = checked.space if "space" in settings else found["space"]
    space = SubnetSpace(_space(chosen).for_data(source.input_size, source.num_classes))
    least, most = (float(space.cost(genome).ops) for genome in (space.smallest, space.biggest))
    # To three digits, outward.
    unit = 10.0 ** (math.floor(math.log10(most)) - 2)
    low = settings.get("ops_low", math.floor(least / unit) * unit)
    high = settings.get("ops_high", (math.floor(most / unit) + 1) * unit)
    numbers = all(isinstance(end, int | float) and math.isfinite(end) for end in (low, high))
    bucket = {"bucket": float(f"{(high - low) / _BUCKETS:.2g}")} if numbers and low < high else {}
    return {**found, "ops_low": low, "ops_high": high, **bucket}

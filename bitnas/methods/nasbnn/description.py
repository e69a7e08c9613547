"""What a search space of NAS-BNN is: the choices of every stage, as data that a user can edit in a file.

No torch here, so that a command line can check and print a space at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnas.methods.space_files import checked_fields, load_space, sequence

MOST_PARAMETERS = 10**9  # 15 times the paper's; training holds 16 bytes for each


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Blocks of one resolution.

    Attributes:
        channels: choices for the output of each block, on its own.
        depths: choices for the number of blocks.
        kernels: choices for the side of each block's first convolution; odd.
        groups: choices for its groups.
        groups_1x1: groups of each block's 1 x 1 convolution.
        stride: of the first block, 1 or 2.

    Tuples are kept sorted. Raises TypeError or ValueError naming the field.
    """

    channels: tuple[int, ...]
    depths: tuple[int, ...]
    kernels: tuple[int, ...] = (3,)
    groups: tuple[int, ...] = (1,)
    groups_1x1: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for name in ("channels", "depths", "kernels", "groups"):
            object.__setattr__(self, name, _choices(name, getattr(self, name)))
        if even := [kernel for kernel in self.kernels if kernel % 2 == 0]:
            raise ValueError(f"kernels: got {even[0]}, wanted odd numbers")
        _integer("groups_1x1", self.groups_1x1)
        if self.stride not in (1, 2):
            raise ValueError(f"stride: got {self.stride!r}, wanted 1 or 2")


@dataclass(frozen=True, kw_only=True)
class Description:
    """A space: a stem of 8-bit weights, then stages of binary blocks.

    Attributes:
        name: what it is called in reports.
        input_size: `(C, H, W)` that its networks are made for.
        num_classes: outputs of the classifier.
        stem: choices for the channels of the first convolution, 3 x 3.
        stem_stride: 1 or 2.
        stages: in order.

    Raises TypeError or ValueError naming the field: also where some choice of channels is not divided by some choice of
    groups, or no non-decreasing choice of channels exists.
    """

    name: str
    input_size: tuple[int, int, int]
    num_classes: int
    stem: tuple[int, ...]
    stem_stride: int = 1
    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name: got {self.name!r}, wanted a word")
        size = sequence("input_size", self.input_size)
        if len(size) != 3:
            raise ValueError(f"input_size: got {self.input_size!r}, wanted (channels, height, width)")
        object.__setattr__(self, "input_size", tuple(_integer("input_size", n) for n in size))
        _integer("num_classes", self.num_classes, 2)
        object.__setattr__(self, "stem", _choices("stem", self.stem))
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride: got {self.stem_stride!r}, wanted 1 or 2")
        stages = tuple(sequence("stages", self.stages))
        if not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise ValueError(f"stages: got {self.stages!r}, wanted at least one Stage")
        object.__setattr__(self, "stages", stages)
        self._check_channels()

    def _check_channels(self) -> None:
        """Channels can go through the space without ever shrinking, and every choice of groups divides them."""
        before = self.stem
        for number, stage in enumerate(self.stages):
            where = f"stages[{number}]"
            inputs = sorted({*before, *stage.channels}) if max(stage.depths) > 1 else list(before)
            for channels in inputs:
                for groups in (*stage.groups, stage.groups_1x1):
                    if channels % groups:
                        raise ValueError(
                            f"{where}: {channels} channels can enter its blocks, which groups {groups} do not divide"
                        )
            for channels in stage.channels:
                if channels % stage.groups_1x1:
                    raise ValueError(f"{where}: groups_1x1 {stage.groups_1x1} do not divide {channels} channels")
            if min(stage.channels) < min(before) or max(stage.channels) < max(before):
                raise ValueError(
                    f"{where}.channels: got {list(stage.channels)} after {list(before)}; channels never shrink, so the "
                    "least and the most of them must be at least those before"
                )
            before = stage.channels

    def for_data(self, input_size: Sequence[int], num_classes: int) -> Description:
        """The same choices for other images and classes.

        Raises ValueError naming the field where a kernel spans more than two of a stage's maps and a pixel, or where
        the biggest network is too big to be trained.
        """
        made = dataclasses.replace(self, input_size=tuple(input_size), num_classes=num_classes)  # type: ignore[arg-type]
        try:
            made._check_kernels()
            made._check_parameters()
        except ValueError as error:
            size = " x ".join(map(str, made.input_size))
            raise ValueError(f"space {self.name} on images of {size}: {error}") from error
        return made

    def _check_kernels(self) -> None:
        side = -(-max(self.input_size[1:]) // self.stem_stride)
        for number, stage in enumerate(self.stages):
            if max(stage.kernels) > 2 * side + 1:
                raise ValueError(
                    f"stages[{number}].kernels: got {max(stage.kernels)} on maps of side {side}, wanted at most "
                    f"{2 * side + 1}: beyond that they grow into padding only"
                )
            side = -(-side // stage.stride)

    def _check_parameters(self) -> None:
        """Weights of the biggest network with the matrices that make kernels of each other; the rest is small."""
        before = max(self.stem)
        parameters = {"stem": 9 * self.input_size[0] * before}
        for number, stage in enumerate(self.stages):
            most, depth = max(stage.channels), max(stage.depths)
            taps, chosen = max(stage.kernels) ** 2, min(stage.groups)
            where = f"stages[{number}]"
            parameters[f"{where}.channels"] = sum(
                blocks * (taps * entering**2 // chosen + entering * most // stage.groups_1x1)
                for blocks, entering in ((1, before), (depth - 1, most))
            )
            parameters[f"{where}.kernels"] = depth * sum(kernel**4 for kernel in stage.kernels)
            before = most
        parameters["num_classes"] = self.num_classes * (before + 1)
        total, field = sum(parameters.values()), max(parameters, key=lambda name: parameters[name])
        if total > MOST_PARAMETERS:
            raise ValueError(
                f"{field}: they bring most of the {total:.3g} parameters of the biggest network, wanted at most "
                f"{MOST_PARAMETERS:.3g} in all"
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, as a space file holds them."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        return {name: values[name] for name in ("name", "input_size", "num_classes", "stem", "stem_stride", "stages")}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Description:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing fields, as a file may have them."""
        fields = checked_fields("space", cls, values)
        stages = fields["stages"]
        if isinstance(stages, str) or not isinstance(stages, Sequence):
            raise TypeError(f"stages: got {stages!r}, wanted a list of objects")
        fields["stages"] = tuple(_stage(f"stages[{number}]", values) for number, values in enumerate(stages))
        return cls(**fields)

    def key(self) -> str:
        """SHA-256 of the canonical JSON without the name: equal spaces have equal keys."""
        values = {name: value for name, value in self.to_dict().items() if name != "name"}
        return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def load(name: str | os.PathLike[str]) -> Description:
    """A space by its name in `DESCRIPTIONS`, or from a JSON file; raises as `load_space`."""
    return load_space(name, DESCRIPTIONS, Description.from_dict)


def _stage(where: str, values: Any) -> Stage:
    fields = checked_fields(where, Stage, values)
    try:
        return Stage(**fields)
    except (ValueError, TypeError) as error:
        raise type(error)(f"{where}.{error}") from error


def _integer(name: str, value: Any, low: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: got {value!r}, wanted an integer")
    if value < low:
        raise ValueError(f"{name}: got {value}, wanted at least {low}")
    return value


def _choices(name: str, values: Any) -> tuple[int, ...]:
    found = tuple(sorted(_integer(name, value) for value in sequence(name, values)))
    if not found or len(set(found)) != len(found):
        raise ValueError(f"{name}: got {values!r}, wanted at least one number, none twice")
    return found


# The paper's own: Lin et al. 2024, table of the search space, as its public code has it.
_IMAGENET = Description(
    name="imagenet",
    input_size=(3, 224, 224),
    num_classes=1000,
    stem=(24, 32, 48),
    stem_stride=2,
    stages=(
        Stage(channels=(48, 64, 96), depths=(2, 3)),
        Stage(channels=(96, 128, 192), depths=(2, 3), kernels=(3, 5), groups=(1, 2), stride=2),
        Stage(channels=(192, 256, 384), depths=(2, 3), kernels=(3, 5), groups=(2, 4), stride=2),
        Stage(channels=(384, 512, 768), depths=(8, 9), kernels=(3, 5), groups=(4, 8), stride=2),
        Stage(channels=(768, 1024, 1536), depths=(2, 3), kernels=(3, 5), groups=(8, 16), stride=2),
    ),
)

DESCRIPTIONS: dict[str, Description] = {
    "imagenet": _IMAGENET,
    # The same stages for images of 32 x 32: the stem and the first reduction keep the resolution, and the deep stage is
    # as deep as the others.
    "cifar": Description(
        name="cifar",
        input_size=(3, 32, 32),
        num_classes=10,
        stem=(24, 32, 48),
        stages=(
            Stage(channels=(48, 64, 96), depths=(2, 3)),
            Stage(channels=(96, 128, 192), depths=(2, 3), kernels=(3, 5), groups=(1, 2), stride=2),
            Stage(channels=(192, 256, 384), depths=(3, 4), kernels=(3, 5), groups=(2, 4), stride=2),
            Stage(channels=(384, 512, 768), depths=(2, 3), kernels=(3, 5), groups=(4, 8), stride=2),
        ),
    ),
    # For images of 8 x 8 to 28 x 28, on a processor, in minutes.
    "small": Description(
        name="small",
        input_size=(1, 8, 8),
        num_classes=10,
        stem=(8, 16, 24),
        stages=(
            Stage(channels=(16, 32, 48), depths=(1, 2)),
            Stage(channels=(32, 64, 96), depths=(1, 2, 3), kernels=(3, 5), groups=(1, 2), stride=2),
            Stage(channels=(64, 128, 192), depths=(1, 2), kernels=(3, 5), groups=(2, 4), stride=2),
        ),
    ),
}

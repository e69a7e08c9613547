"""Tables 1 and 2 of Shen et al. 2019 (arXiv 1909.07378) as printed, and which network of ours each row stands for.

Data only, so that what is compared lies in one place, apart from the comparing. A printed figure is kept as the text
that is printed: its digits say how far it was rounded. None is a figure that is not at hand; it is not guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAMBDA = 4.0  # percent points of accuracy for each un-widened network of FLOPs (section 3.2)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        key: unique among all rows.
        label: what the row is called.
        kind: "full precision", "other" (a network of an earlier paper), "uniform" or "searched".
        model: name for `bitnas.create_model` and `bitnas.count`; None for a network that bitnas does not have.
        ratios: width multiplier of all layers, or None where `model` names a code.
        counting: options of `bitnas.count` that make its figure this row's: `full_precision`, or the numbers of bases
            that the row is printed with.
        flops, memory: as printed, in millions; memory is in bits.
        speed_up: as printed, FLOPs of the full-precision row over those of this one.
        top1, top5: accuracy as printed, in percent.
    """

    key: str
    label: str
    kind: str
    model: str | None
    flops: str
    top1: str
    top5: str | None = None
    memory: str | None = None
    speed_up: str | None = None
    ratios: float | None = None
    counting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def buildable(self) -> bool:
        """Whether the binary network itself exists in bitnas; the others are only counted, or only quoted."""
        return self.kind in ("uniform", "searched")

    def model_options(self) -> dict[str, Any]:
        """Options of `create_model` beside the name."""
        return {} if self.ratios is None else {"ratios": self.ratios}


@dataclass(frozen=True)
class Table:
    """One table: its data set, the base network, the counting rule that reproduces it, and the recipe it trains by."""

    number: int
    data: str
    model: str
    rule: str
    recipe: str
    rows: tuple[Row, ...]

    def row(self, key: str) -> Row:
        """The row of a key; KeyError if there is none."""
        return {row.key: row for row in self.rows}[key]

    @property
    def full_precision(self) -> Row:
        return next(row for row in self.rows if row.kind == "full precision")

    @property
    def unit(self) -> Row:
        """The un-widened binary network, whose FLOPs are the unit of F in the fitness."""
        return next(row for row in self.rows if row.kind == "uniform" and row.ratios == 1.0)


_FULL: dict[str, Any] = {"full_precision": True}

TABLE_1 = Table(
    number=1,
    data="CIFAR-10",
    model="vgg_small",
    rule="shen2019-table1",
    recipe="shen2019-cifar10",
    rows=(
        Row("vgg-fp", "Full precision", "full precision", "vgg_small", "608", "93.48", memory="149", counting=_FULL),
        Row("vgg-x1", "Uniform-1x", "uniform", "vgg_small", "13.2", "90.24", memory="7.3", ratios=1.0),
        Row("vgg-x2", "Uniform-2x", "uniform", "vgg_small", "45.3", "91.65", memory="23.7", ratios=2.0),
        Row("vgg-x3", "Uniform-3x", "uniform", "vgg_small", "96.2", "91.87", memory="49.3", ratios=3.0),
        Row("vgg-x4", "Uniform-4x", "uniform", "vgg_small", "166", "92.56", memory="84.1", ratios=4.0),
        Row("vgg-auto-a", "VGG-Auto-A", "searched", "vgg_auto_a", "11.3", "92.17", memory="5.1", speed_up="53.6"),
        Row("vgg-auto-b", "VGG-Auto-B", "searched", "vgg_auto_b", "59.3", "93.06", memory="23.4"),
    ),
)

_BASES_5_3 = {"weight_bases": 5, "activation_bases": 3}  # both rows of ABC-Net are printed with {5/3}

TABLE_2 = Table(
    number=2,
    data="ImageNet",
    model="resnet18",
    rule="shen2019-table2",
    recipe="shen2019-imagenet",
    rows=(
        Row("res18-fp", "Full precision", "full precision", "resnet18", "1820", "69.6", "89.2", counting=_FULL),
        Row("pcnn", "PCNN", "other", None, "169", "57.3", "80.0"),
        Row("abc-1", "ABC-Net {5/3}", "other", "resnet18", "520", "62.5", "84.2", counting=_BASES_5_3),
        Row("abc-2", "ABC-Net {5/3} (second)", "other", "resnet18", "785", "65.0", "85.9", counting=_BASES_5_3),
        Row("res18-x1", "Uniform-1x", "uniform", "resnet18", "149", "52.77", "76.85", ratios=1.0),
        Row("res18-x2", "Uniform-2x", "uniform", "resnet18", "352", "64.0", "85.45", ratios=2.0),
        Row("res18-x3", "Uniform-3x", "uniform", "resnet18", "607", "68.51", "88.25", ratios=3.0),
        Row("res18-x4", "Uniform-4x", "uniform", "resnet18", "915", "70.35", "89.27", ratios=4.0),
        Row("res18-auto-a", "Res18-Auto-A", "searched", "resnet18_auto_a", "495", "68.64", "88.46"),
        Row("res18-auto-b", "Res18-Auto-B", "searched", "resnet18_auto_b", "660", "69.65", "89.08"),
    ),
)

TABLES: dict[int, Table] = {1: TABLE_1, 2: TABLE_2}

# The text says that Res18-Auto-A is narrower than this uniform network in these stages (counted from 1; the last is 4).
AUTO_A_NARROWER_THAN = "res18-x3"
AUTO_A_NARROWER_STAGES = (1, 2, 4)

"""What is known of BARS (Zhao et al. 2020, arXiv 2011.10804), each figure with how it is known.

Data only. Of the paper the abstract was at hand, and the authors' public code; its final configurations were kept apart
from the code and are lost. A figure is kept as the text that is known. What was only recalled by others is not here.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitnas.methods.bars.description import Architecture, Description
from bitnas.models.bars import EDGES

PAPER = {"title": "BARS: Joint Search of Cell Topology and Layout for Accurate and Efficient Binary ARchitectures",
         "arxiv": "2011.10804"}  # fmt: skip

EVIDENCE = {
    "abstract": "printed in the paper's abstract",
    "first version": "stated by a summary of the paper's first version",
    "code": "read in the authors' public code",
    "history": "the interim configuration for CIFAR-10 in the history of the authors' public code (September 2020)",
    "formula": "worked out by hand from the formulas of the public code",
    "lost": "kept outside the public code by its authors, and no longer there",
}

# The network that the code's counter is known by: every edge a binary 3 x 3, full width, all cells, and the
# convolution before each cell in full precision.
EXAMPLE_SPACE = Description(name="worked example", layout="NNRNNRNN", channels=16, preprocess="float")
EXAMPLE = Architecture(
    (("binary_conv_3x3",) * len(EDGES),) * EXAMPLE_SPACE.topologies,
    (1.0,) * EXAMPLE_SPACE.width_count,
    tuple(max(choices) for choices in EXAMPLE_SPACE.depth_choices),
)


@dataclass(frozen=True)
class Known:
    """A network whose cost is known: two operations for each multiply-add, binary ones apart and not divided.

    Attributes:
        key, label: unique, and what it is called.
        evidence: a key of `EVIDENCE`.
        flops, biops, float_weights, binary_weights: numbers.
    """

    key: str
    label: str
    evidence: str
    flops: str
    biops: str
    float_weights: str
    binary_weights: str


NETWORKS = (
    Known("example", "NNRNNRNN, 16 channels, all edges binary 3 x 3", "formula", "19764224", "358612992", "52154",
          "1336320"),
)  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A single figure. `value` is None where only ours is known, by a rule or a reading that no source has."""

    key: str
    label: str
    value: str | None
    evidence: str
    unit: int = 1


QUANTITIES = (
    Quantity("operations", "operations of the worked example, float and binary", "378377216", "formula"),
    Quantity("expected", "of these, expected cost at one-hot parameters", "375390208", "formula"),
    Quantity("mac-flops", "the same network by rule mac: FLOPs", "9882112", "formula"),
    Quantity("mac-bops", "by rule mac: BOPs", "179306496", "formula"),
    Quantity("mac-ops", "by rule mac: FLOPs + BOPs / 64", "12683776", "formula"),
    Quantity("shen2019-table1", "by the formula of Shen et al. 2019 for VGG-small", None, "formula"),
    Quantity("shen2019-table2", "by that of Shen et al. 2019 for ResNet-18", None, "formula"),
    Quantity("edges", "edges of a cell", "10", "code"),
    Quantity("cells", "cells of one group from three operations", "59049", "formula"),
    Quantity("factor-below", "regulariser at half the budget", "1", "code"),
    Quantity("factor-at", "regulariser at the budget", "1", "code"),
    Quantity("factor-above", "regulariser at twice the budget", "2", "code"),
    Quantity("budget", "budget of the expected cost, by default", "500000000", "code"),
)

SETTINGS = (
    Quantity("layout-cells", "cells of the layout", "8", "history"),
    Quantity("groups", "groups of cells with operations of their own", "7", "history"),
    Quantity("choices", "operations to choose from", "2", "history"),
    Quantity("epochs", "epochs", "50", "history"),
    Quantity("batch_size", "images in a step", "256", "history"),
    Quantity("lr", "SGD: rate at the start", "0.01", "history"),
    Quantity("lr-end", "SGD: rate at the end of the cosine", "0.0001", "history"),
    Quantity("momentum", "SGD: momentum", "0.9", "history"),
    Quantity("weight_decay", "SGD: weight decay", "0.0003", "history"),
    Quantity("arch-lr", "Adam of the architecture: rate", "0.0003", "history"),
    Quantity("arch-beta1", "Adam of the architecture: beta 1", "0.5", "history"),
    Quantity("arch-beta2", "Adam of the architecture: beta 2", "0.999", "history"),
    Quantity("arch-weight_decay", "Adam of the architecture: weight decay", "0.001", "history"),
    Quantity("samples", "architectures derived", "8", "history"),
)


@dataclass(frozen=True)
class Claim:
    """A result, or something of the paper, that cannot be checked or rebuilt here; `needs` says what it would take."""

    key: str
    label: str
    value: str
    evidence: str
    needs: str


_CIFAR = "CIFAR-10, and the architectures and hyper-parameters behind the figure, which are lost"
_IMAGENET = "ImageNet, and the architectures and hyper-parameters behind the figure, which are lost"
CLAIMS = (
    Claim("cifar10-gain", "accuracy on CIFAR-10 above earlier binary architecture search", "+1.5 %", "abstract",
          _CIFAR),
    Claim("cifar10-binary", "with this share of its binary operations", "2/3", "abstract", _CIFAR),
    Claim("cifar10-float", "and this share of those in full precision", "1/10", "abstract", _CIFAR),
    Claim("imagenet-gain", "accuracy on ImageNet above hand-made binary ResNet-18", "+6 %", "abstract", _IMAGENET),
    Claim("imagenet-gain-v1", "the same in the first version", "+3 %", "first version", _IMAGENET),
    Claim("architectures", "the architectures BARS-A to BARS-F", "lost", "lost", "the authors' files"),
    Claim("hyperparameters", "the final hyper-parameters of search and training", "lost", "lost", "the authors' files"),
    Claim("guards", "which guards against collapse the results were found with", "lost", "lost", "the authors' files"),
)  # fmt: skip

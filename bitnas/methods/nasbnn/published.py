"""What is known of NAS-BNN (Lin et al. 2024, arXiv 2408.15484), each figure with how it is known.

Data only. The paper's body was not at hand: its abstract, its authors' public code and an independent summary were. So
few figures are printed ones, and every figure says which it is. A figure is kept as the text that is known: its digits
say how far it was rounded. What is not known is not here: the table of models, the ablations, the recipe on COCO, the
architectures that were released.
"""

from __future__ import annotations

from dataclasses import dataclass

from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description

PAPER = {"title": "NAS-BNN: Neural Architecture Search for Binary Neural Networks", "arxiv": "2408.15484"}
SPACE: Description = DESCRIPTIONS["imagenet"]

EVIDENCE = {
    "abstract": "printed in the paper's abstract",
    "summary": "stated by an independent summary of the paper",
    "code": "read in the authors' public code",
    "formula": "worked out by hand from the formulas of the public code",
    "fork": "architecture listed in a third-party fork of the public code; its origin and its accuracy are unknown",
}

# Settings of the public code's search that are checked against ours.
SEARCH_GENERATIONS = 20  # after the first
SEARCH_WINDOW = (20e6, 180e6)


@dataclass(frozen=True)
class Known:
    """A subnet whose cost is known.

    Attributes:
        key, label: unique, and what it is called.
        code: stem | channels/kernel/groups of each block, stages apart by |; or "smallest", "biggest" of the space.
        evidence: of the architecture, a key of `EVIDENCE`. The figures are worked out by hand.
        flops, bops, ops: in millions.
        binary_weights: a number.
    """

    key: str
    label: str
    code: str
    evidence: str
    flops: str
    bops: str
    ops: str
    binary_weights: str


SUBNETS: tuple[Known, ...] = (
    Known("smallest", "smallest", "smallest", "code", "1.785064", "1215.212544", "20.772760", "3862080"),
    Known("biggest", "biggest", "biggest", "code", "3.569128", "21007.687680", "331.814248", "64804608"),
    Known(
        "fork-1",
        "fork-1",
        "24 | 48/3/1 48/3/1 64/3/1 | 96/3/2 192/5/2 | 256/5/4 384/5/4 | 384/5/8 384/3/8 384/3/8 512/5/4 768/5/8 "
        "768/5/4 768/3/4 768/5/4 | 1536/3/8 1536/3/16 1536/3/8",
        "fork",
        "2.553064",
        "5048.107008",
        "81.429736",
        "25576896",
    ),
    Known(
        "fork-2",
        "fork-2",
        "24 | 96/3/1 96/3/1 | 96/5/2 128/3/1 | 192/3/4 256/3/4 384/5/4 | 512/3/8 512/3/4 768/3/8 768/3/4 768/3/8 "
        "768/3/8 768/5/8 768/5/4 768/3/8 | 1024/5/16 1536/5/16",
        "fork",
        "2.553064",
        "5530.398720",
        "88.965544",
        "20228928",
    ),
    Known(
        "fork-3",
        "fork-3",
        "32 | 48/3/1 96/3/1 96/3/1 | 128/3/1 128/5/2 | 192/3/2 256/3/2 | 384/5/4 384/3/8 384/3/4 768/5/8 768/5/8 "
        "768/3/8 768/3/4 768/5/8 768/3/4 | 768/5/16 1536/3/16",
        "fork",
        "2.891752",
        "5348.761600",
        "86.466152",
        "15790336",
    ),
)


@dataclass(frozen=True)
class Quantity:
    """A single known figure of the space, the supernet or the search.

    Attributes:
        key, label: unique, and what it is.
        value: as known.
        unit: what the value is multiplied with to be exact: "4.0" with 1e21.
        evidence: a key of `EVIDENCE`.
    """

    key: str
    label: str
    value: str
    unit: int
    evidence: str


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("size", "subnets, channels free, as quoted", "4.0", 10**21, "summary"),
    Quantity("size-digits", "subnets, channels free", "3.9604", 10**21, "formula"),
    Quantity("size-rule", "subnets, channels never shrinking", "3.3235", 10**17, "formula"),
    Quantity("cut", "how many times fewer by that rule", "11916", 1, "formula"),
    Quantity("supernet-params", "trainable parameters of the supernet", "66508159", 1, "formula"),
    Quantity("transforms", "of these, entries of the Bi-Transformation's matrices", "12951", 1, "formula"),
    Quantity("binary-weights", "of these, weights of binary convolutions", "64804608", 1, "formula"),
    Quantity("classifier", "of these, the classifier's", "1537000", 1, "formula"),
    Quantity("evaluations", "subnets that a search judges", "5632", 1, "code"),
)


@dataclass(frozen=True)
class Claim:
    """A result that only training on the paper's data can check.

    Attributes:
        key, label: unique, and what is claimed.
        value: as known, with its unit.
        ops: of the network it is claimed of, or None.
        evidence: a key of `EVIDENCE`.
        needs: what a check would take.
    """

    key: str
    label: str
    value: str
    ops: float | None
    evidence: str
    needs: str


_IMAGENET = "ImageNet, and a supernet trained on it for 512 epochs"
_COCO = "ImageNet, COCO, and a detection recipe that is not known"
CLAIMS: tuple[Claim, ...] = (
    Claim("imagenet-57m", "top-1 on ImageNet", "68.20 %", 57e6, "abstract", _IMAGENET),
    Claim("imagenet-180m", "top-1 on ImageNet", "70.80 %", 180e6, "summary", _IMAGENET),
    Claim("coco-370m", "mAP on COCO", "31.6", 370e6, "abstract", _COCO),
    Claim("coco-larger", "mAP on COCO at larger budgets", "above 32", None, "summary", _COCO),
    Claim("days", "GPU-days of it all", "about 240", None, "summary", _IMAGENET),
)

# OPs that the family of the abstract spans.
FAMILY = ("20", "200")

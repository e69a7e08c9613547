"""What a subnet of NAS-BNN costs, in closed form (Lin et al. 2024): a search judges millions of candidates by it.

No torch and no module here: `bitnas.count(rule="nasbnn")` reads the same figures from the network itself, in seconds
where this takes microseconds, and the tests hold the two equal.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnas.models.nasbnn import SubnetConfig

Row = tuple[int, int, int, int, int]
"""channels, kernel, groups, groups_1x1, stride of a block."""


@dataclass(frozen=True)
class Cost:
    """Figures of one subnet, for one image.

    Attributes:
        flops: multiply-adds in full precision: those of the 8-bit stem divided by 8, the classifier with its bias.
        bops: binary multiply-adds.
        binary_weights: weights of one bit.
        params: all trainable parameters, the stem's steps among them.
    """

    flops: int
    bops: int
    binary_weights: int
    params: int

    @property
    def ops(self) -> int | float:
        """FLOPs + BOPs / 64, exact; an int unless it has a fractional part."""
        whole, rest = divmod(self.bops, 64)
        return self.flops + whole + rest / 64 if rest else self.flops + whole


def subnet_cost(subnet: SubnetConfig) -> Cost:
    """The cost of a subnet, equal to `bitnas.count(NasBnn(subnet), rule="nasbnn")`."""
    rows = ((b.channels, b.kernel, b.groups, b.groups_1x1, b.stride) for b in subnet.blocks)
    return cost(subnet.input_size, subnet.stem_stride, subnet.stem, rows, subnet.num_classes)


def cost(input_size: tuple[int, int, int], stem_stride: int, stem: int, rows: Iterable[Row], num_classes: int) -> Cost:
    """The cost of a subnet given by its numbers; `rows` are its blocks in order."""
    inputs, height, width = input_size
    height, width = -(-height // stem_stride), -(-width // stem_stride)
    flops = 9 * inputs * stem * height * width // 8
    bops = weights = 0
    others = 9 * inputs * stem + 6 * stem  # a step, a batch norm and an RPReLU for each channel
    channels = stem
    for out, kernel, groups, groups_1x1, stride in rows:
        height, width = -(-height // stride), -(-width // stride)
        # The k x k convolution keeps the channels, the 1 x 1 changes them; both work at the block's resolution.
        own = kernel * kernel * (channels // groups) * channels + (channels // groups_1x1) * out
        weights += own
        bops += own * height * width
        others += 7 * channels + 5 * out  # two biases before signs, two batch norms, two RPReLUs
        channels = out
    classifier = num_classes * (channels + 1)
    return Cost(flops + classifier, bops, weights, weights + others + classifier)

"""The operations that an edge of a cell can have, by name: the one list that networks, search, cost and pictures read.

A new one is a line in `OPERATIONS`, if a binary convolution of another shape will do.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from bitnas.nn import BinaryConv2d

NONE, SKIP = "none", "skip"


def pool(stride: int) -> nn.Module:
    """What a value without a convolution goes through where a cell strides: 2 x 2 average pooling."""
    return nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)


class BinaryOperation(nn.Module):
    """Batch norm, sign, binary convolution, ReLU. Float `[N, cin, H, W]` to float `[N, cout, H / stride, W / stride]`.

    Zhao et al. 2020 (BARS), as in the authors' public code, but for the stride: there, two strided convolutions make
    half the outputs each, the second from the map shifted by one pixel; here one convolution makes them all, with as
    many weights and multiply-adds.
    """

    def __init__(
        self, cin: int, cout: int, kernel: int, stride: int = 1, dilation: int = 1, *, scheme: str = "bars"
    ) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(cin)
        padding = dilation * (kernel // 2)
        self.conv = BinaryConv2d(cin, cout, kernel, stride, padding, dilation, scheme=scheme)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv(self.bn(x)))


@dataclass(frozen=True)
class Operation:
    """What is on an edge: a binary convolution with a square `kernel` and `dilation`; kernel 0 for none and skip."""

    kernel: int = 0
    dilation: int = 1

    def make(self, cin: int, cout: int, stride: int, scheme: str) -> BinaryOperation:
        """The module of a convolution."""
        return BinaryOperation(cin, cout, self.kernel, stride, self.dilation, scheme=scheme)

    def macs(self, cin: int, cout: int, pixels: int) -> int:
        """Binary multiply-adds for so many output pixels."""
        return self.kernel**2 * cin * cout * pixels


OPERATIONS: dict[str, Operation] = {
    NONE: Operation(),
    SKIP: Operation(),
    "binary_conv_1x1": Operation(1),
    "binary_conv_3x3": Operation(3),
    "binary_conv_5x5": Operation(5),
    "binary_dil_conv_3x3": Operation(3, 2),
}
"""By name. `none`: nothing is added to the node. `skip`: the value itself, average-pooled with each channel doubled
where the cell strides."""

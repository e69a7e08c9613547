"""Binary convolution and linear layers that train in float.

A training step needs the pseudo-gradient of the scaled weight; an evaluation needs the integers that the packed kernels
will produce. So the two modes compute the same function in two orders: training multiplies the weight by its scale
before the dot product, evaluation after it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.nn.arguments import integer, pair
from bitnas.nn.binarizers import ActivationBinarizer, WeightBinarizer, get_scheme, init_weight_, sign

Pair = tuple[int, int]


def binary_weight(weight: Tensor, binarizer: WeightBinarizer) -> Tensor:
    """What the kernels compute with: +1 or -1, shape and dtype of `weight`, detached."""
    return sign(binarizer.latent(weight.detach()))


def weight_scale(weight: Tensor, binarizer: WeightBinarizer) -> Tensor:
    """The factor of each output channel, float64 `[Cout]`, detached."""
    return binarizer.scale(weight.detach().double()).expand(weight.shape[0])


def binary_conv2d(
    x: Tensor,
    weight: Tensor,
    binarizer: WeightBinarizer,
    bias: Tensor | None = None,
    *,
    training: bool,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """What `BinaryConv2d` computes on an input that is binarized already: one function for layers whose weight is their
    own and for those whose weight is made of a larger one.

    Args:
        x: `[N, Cin, H, W]` of two values. weight: latent, `[Cout, Cin / groups, kh, kw]`. bias: `[Cout]` or None.
        training: True scales the weight before the dot product, with the scheme's pseudo-gradient; False scales the
            exact integers after it, without a gradient for the weight.
    """
    if training:
        return F.conv2d(x, binarizer(weight), bias, stride, padding, dilation, groups)
    dot = F.conv2d(x, binary_weight(weight, binarizer), None, stride, padding, dilation, groups)
    y = dot * weight_scale(weight, binarizer).to(dot.dtype).view(-1, 1, 1)
    return y if bias is None else y + bias.view(-1, 1, 1)


class _BinaryLayer(nn.Module):
    """What the convolution and the linear layer share: a latent float weight and two binarizers."""

    input_binarizer: ActivationBinarizer
    weight_binarizer: WeightBinarizer
    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, weight_shape: tuple[int, ...], bias: bool, scheme: str) -> None:
        super().__init__()
        chosen = get_scheme(scheme)
        self.scheme = scheme
        self.input_binarizer = chosen.activation()
        self.weight_binarizer = chosen.weight()
        self.weight = nn.Parameter(torch.empty(weight_shape))
        if bias:
            self.bias = nn.Parameter(torch.empty(weight_shape[0]))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights uniform with variance 1 / fan-in, bias zero."""
        init_weight_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def binary_weight(self) -> Tensor:
        """The signs of the weight: +1 or -1, shape and dtype of `weight`, detached."""
        return binary_weight(self.weight, self.weight_binarizer)

    def weight_scale(self) -> Tensor:
        """The factor of each output channel, float64 `[Cout]`, detached: a scheme's single scale is repeated."""
        return weight_scale(self.weight, self.weight_binarizer)


class BinaryConv2d(_BinaryLayer):
    """2-D convolution of a binarized input with a binarized weight; arguments as in `torch.nn.Conv2d`.

    Input float `[N, in_channels, H, W]`, output float `[N, out_channels, H', W']`. Padding is with zeros *after* the
    input is binarized, so a padded tap contributes exactly 0 in either encoding.

    In evaluation mode the convolution runs on ±1 weights and the scale follows, so that in float32 on the CPU the dot
    products are exact integers (up to 2^24), those of `bitnas.ops.conv2d`; no gradient reaches the weight there.

    `scheme` is a key of `bitnas.nn.SCHEMES`. Raises TypeError for an argument that is not an integer or a pair of them,
    and ValueError for zero channels, channels that `groups` does not divide, negative padding, a kernel, stride or
    dilation below 1, or an unknown scheme.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        scheme: str = "dorefa",
    ) -> None:
        in_channels = integer("in_channels", in_channels)
        out_channels = integer("out_channels", out_channels)
        kernel = pair("kernel_size", kernel_size, 1)
        groups = integer("groups", groups)
        if in_channels % groups or out_channels % groups:
            raise ValueError(
                f"groups: got {groups}, wanted a divisor of in_channels={in_channels} and out_channels={out_channels}"
            )
        super().__init__((out_channels, in_channels // groups, *kernel), bias, scheme)
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return binary_conv2d(
            self.input_binarizer(x),
            self.weight,
            self.weight_binarizer,
            self.bias,
            training=self.training,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
        )

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        if self.dilation != (1, 1):
            text += f", dilation={self.dilation}"
        if self.groups != 1:
            text += f", groups={self.groups}"
        return f"{text}, bias={self.bias is not None}, scheme={self.scheme!r}"


class BinaryLinear(_BinaryLayer):
    """Linear layer of a binarized input with a binarized weight; arguments as in `torch.nn.Linear`.

    Input float `[..., in_features]`, output float `[..., out_features]`. Evaluation mode is exact as in `BinaryConv2d`.
    Raises TypeError or ValueError for a number of features that is not a positive integer, ValueError for an unknown
    scheme.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, scheme: str = "dorefa") -> None:
        in_features = integer("in_features", in_features)
        out_features = integer("out_features", out_features)
        super().__init__((out_features, in_features), bias, scheme)
        self.in_features = in_features
        self.out_features = out_features

    def forward(self, x: Tensor) -> Tensor:
        x = self.input_binarizer(x)
        if self.training:
            return F.linear(x, self.weight_binarizer(self.weight), self.bias)
        dot = F.linear(x, self.binary_weight())
        y = dot * self.weight_scale().to(dot.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, scheme={self.scheme!r}"

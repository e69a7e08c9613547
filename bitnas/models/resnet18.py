"""ResNet-18 as binarized by Shen et al. 2019: everything but the stem and the classifier is one bit.

It differs from Bi-Real Net in two ways that matter for a kernel: one shortcut spans two convolutions, and the 1x1
convolution of a down-sampling shortcut is binary too, so its input is quantised.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from bitnas.models.config import ModelConfig
from bitnas.models.registry import register, register_code
from bitnas.nn import BinaryConv2d

_STEMS = ("imagenet", "cifar")


def _default_stem(input_size: tuple[int, int, int]) -> str:
    return "cifar" if min(input_size[1:]) < 64 else "imagenet"


class BasicBlock(nn.Module):
    """Two binary 3x3 convolutions, each with batch norm, and one shortcut over both.

    Float `[N, cin, H, W]` to float `[N, cout, H / stride, W / stride]`; `inner` is the width between the convolutions.
    """

    def __init__(self, cin: int, inner: int, cout: int, stride: int, scheme: str) -> None:
        super().__init__()
        self.conv1 = BinaryConv2d(cin, inner, 3, stride=stride, padding=1, scheme=scheme)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = BinaryConv2d(inner, cout, 3, padding=1, scheme=scheme)
        self.bn2 = nn.BatchNorm2d(cout)
        self.downsample: nn.Module | None = None
        if stride != 1 or cin != cout:
            conv = BinaryConv2d(cin, cout, 1, stride=stride, scheme=scheme)
            self.downsample = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(cout)))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(x))
        y = self.bn2(self.conv2(y))
        return y + shortcut


@register(
    "resnet18",
    base_widths=(64, 128, 256, 512, 64, 64, 128, 128, 256, 256, 512, 512),
    num_classes=1000,
    input_size=(3, 224, 224),
    default_stem=_default_stem,
)
class ResNet18(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`.

    Ratios 0 to 3 are those of the outputs of the four stages (the first also sets the stem), ratios 4 to 11 those of
    the inner widths of the eight blocks in order. Stem `"imagenet"` is a 7x7 convolution of stride 2 and a 3x3 max-pool
    of stride 2; `"cifar"` a 3x3 convolution of stride 1. Raises ValueError for another stem.
    """

    def __init__(self, config: ModelConfig, widths: tuple[int, ...]) -> None:
        super().__init__()
        if config.stem not in _STEMS:
            raise ValueError(f"stem: got {config.stem!r}, wanted one of {', '.join(map(repr, _STEMS))}")
        self.config = config
        channels = config.input_size[0]
        outputs, inner = widths[:4], widths[4:]
        self.maxpool: nn.Module | None = None
        if config.stem == "imagenet":
            self.conv1 = nn.Conv2d(channels, outputs[0], 7, stride=2, padding=3, bias=False)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(channels, outputs[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs[0])
        scheme = config.scheme
        self.layer1 = _stage(outputs[0], inner[0:2], outputs[0], 1, scheme)
        self.layer2 = _stage(outputs[0], inner[2:4], outputs[1], 2, scheme)
        self.layer3 = _stage(outputs[1], inner[4:6], outputs[2], 2, scheme)
        self.layer4 = _stage(outputs[2], inner[6:8], outputs[3], 2, scheme)
        self.relu = nn.ReLU()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(outputs[3], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        if self.maxpool is not None:
            x = self.maxpool(x)
        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)
        x = self.avgpool(self.relu(x))
        return self.fc(torch.flatten(x, 1))


def _stage(cin: int, inner: tuple[int, ...], cout: int, stride: int, scheme: str) -> nn.Sequential:
    return nn.Sequential(
        BasicBlock(cin, inner[0], cout, stride, scheme),
        BasicBlock(cout, inner[1], cout, 1, scheme),
    )


register_code("resnet18_auto_a", network="resnet18", ratios=(2, 4, 2, 2, 2, 4, 4, 4, 4, 4, 4, 4))
register_code("resnet18_auto_b", network="resnet18", ratios=(3, 4, 4, 3, 1, 4, 4, 4, 3, 3, 3, 3))

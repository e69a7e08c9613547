"""VGG-small, the CIFAR-10 network of Shen et al. 2019: six 3x3 convolutions and one linear layer.

There is no ReLU: the binarizer at the input of each binary convolution is the non-linearity. Pooling comes before batch
norm, so that a frozen network can pool integers.
"""

import torch
from torch import Tensor, nn

from bitnas.models.config import ModelConfig
from bitnas.models.registry import register, register_code
from bitnas.nn import BinaryConv2d

_SMALLEST = 8  # three 2x2 pools leave one pixel of it


@register("vgg_small", base_widths=(128, 128, 256, 256, 512, 512), num_classes=10, input_size=(3, 32, 32))
class VGGSmall(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`; the ratios are those of the outputs of conv1 to conv6.

    The first convolution and the classifier stay in float. Raises ValueError for an input below 8x8.
    """

    def __init__(self, config: ModelConfig, widths: tuple[int, ...]) -> None:
        super().__init__()
        channels, height, width = config.input_size
        if min(height, width) < _SMALLEST:
            raise ValueError(
                f"input_size: got {config.input_size}, wanted at least {_SMALLEST}x{_SMALLEST} pixels for vgg_small"
            )
        self.config = config
        c1, c2, c3, c4, c5, c6 = widths
        scheme = config.scheme
        self.conv1 = nn.Conv2d(channels, c1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c1)
        self.conv2 = BinaryConv2d(c1, c2, 3, padding=1, scheme=scheme)
        self.pool2 = nn.MaxPool2d(2)
        self.bn2 = nn.BatchNorm2d(c2)
        self.conv3 = BinaryConv2d(c2, c3, 3, padding=1, scheme=scheme)
        self.bn3 = nn.BatchNorm2d(c3)
        self.conv4 = BinaryConv2d(c3, c4, 3, padding=1, scheme=scheme)
        self.pool4 = nn.MaxPool2d(2)
        self.bn4 = nn.BatchNorm2d(c4)
        self.conv5 = BinaryConv2d(c4, c5, 3, padding=1, scheme=scheme)
        self.bn5 = nn.BatchNorm2d(c5)
        self.conv6 = BinaryConv2d(c5, c6, 3, padding=1, scheme=scheme)
        self.pool6 = nn.MaxPool2d(2)
        self.bn6 = nn.BatchNorm2d(c6)
        self.fc = nn.Linear(c6 * (height // 8) * (width // 8), config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x))
        x = self.bn2(self.pool2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        x = self.bn4(self.pool4(self.conv4(x)))
        x = self.bn5(self.conv5(x))
        x = self.bn6(self.pool6(self.conv6(x)))
        return self.fc(torch.flatten(x, 1))


register_code("vgg_auto_a", network="vgg_small", ratios=(0.5, 2, 1, 1, 1, 0.5))
register_code("vgg_auto_b", network="vgg_small", ratios=(2, 2, 4, 2, 4, 0.5))

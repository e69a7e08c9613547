"""Networks of BARS that tests freeze: random cells, with values as training leaves them."""

import random

import torch
from torch import nn

from bitnas.models.bars import EDGES, Bars, BarsConfig, Cell, canonical
from bitnas.models.operations import NONE, OPERATIONS, SKIP


def random_cell(draw: random.Random, channels: int, stride: int, operations: tuple[str, ...]) -> Cell:
    return Cell(canonical([draw.choice(operations) for _ in EDGES]), channels, stride)


def random_network(seed: int, **options) -> BarsConfig:
    """Four cells of any operations and widths, one or two of them reductions; `options` as of `BarsConfig`."""
    draw = random.Random(seed)
    operations = draw.choice((tuple(OPERATIONS), (NONE, SKIP, "binary_conv_3x3"), (SKIP, "binary_conv_3x3")))
    strides = draw.choice(((1, 2, 1, 2), (1, 1, 2, 1), (2, 1, 1, 1)))
    cells = [random_cell(draw, draw.choice((2, 4, 6, 10, 17, 24)) * s, s, operations) for s in strides]
    return BarsConfig(draw.choice((4, 9, 20)), draw.choice((3, 4, 12)), tuple(cells), num_classes=7, **options)


def trained(config: BarsConfig, seed: int = 0) -> Bars:
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, deviation: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    model = Bars(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.weight, 1.0)  # some negative: their thresholds run the other way
                normal(module.bias, 0.3)
                normal(module.running_mean, 0.3)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
            elif isinstance(getattr(module, "weight", None), torch.Tensor):
                normal(module.weight, 0.3)
    return model.eval()

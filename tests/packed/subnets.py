"""Networks of NAS-BNN that tests freeze: any subnet of a space, with values as training leaves them."""

import random

import torch
from torch import nn

from bitnas.methods.nasbnn.description import Description
from bitnas.models.nasbnn import Block, NasBnn, SubnetConfig
from bitnas.nn import ChannelBias, LSQConv2d
from bitnas.nn.quantized import first_step


def random_subnet(description: Description, seed: int) -> SubnetConfig:
    """Every choice drawn evenly, of the channels those that do not shrink."""
    draw = random.Random(seed)
    channels = stem = draw.choice(description.stem)
    blocks = []
    for stage in description.stages:
        for i in range(draw.choice(stage.depths)):
            channels = draw.choice([c for c in stage.channels if c >= channels])
            stride = stage.stride if i == 0 else 1
            groups, kernel = draw.choice(stage.groups), draw.choice(stage.kernels)
            blocks.append(Block(channels, kernel, groups, stage.groups_1x1, stride))
    return SubnetConfig(stem, tuple(blocks), description.num_classes, description.input_size, description.stem_stride)


def trained(config: SubnetConfig, seed: int = 0) -> NasBnn:
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: torch.Tensor, deviation: float, mean: float = 0.0) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * deviation + mean)

    model = NasBnn(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                normal(module.weight, 0.3, 0.8)
                normal(module.bias, 0.2)
                normal(module.running_mean, 2.0)
                module.running_var.copy_(torch.rand(module.num_features, generator=generator) * 40 + 10)
            elif isinstance(module, ChannelBias):
                normal(module.bias, 0.3)
            elif isinstance(module, nn.PReLU):
                normal(module.weight, 0.2, 0.25)
            elif isinstance(getattr(module, "weight", None), torch.Tensor):
                normal(module.weight, 0.3)
                if isinstance(module, LSQConv2d):
                    module.step.copy_(first_step(module.weight))
    return model.eval()

"""Modules and inputs that tests of frozen networks share."""

import torch
from torch import nn

from bitnas.nn import BinaryConv2d


class User(nn.Module):
    """A module made of a forward function and the layers it uses."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.run = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.run(self, x)


def conv(cin=3, cout=8, kernel=3, *, padding=1, scheme="xnor", **options):
    return BinaryConv2d(cin, cout, kernel, padding=padding, scheme=scheme, **options)


def images(*shape, seed=0):
    return torch.randn(shape or (3, 3, 8, 8), generator=torch.Generator().manual_seed(seed))

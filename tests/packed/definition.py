"""What a frozen network is defined to compute, written down a second time, in numpy.

Every binary layer is replaced by its exact integers, every batch norm behind one by y = fl32(fl32(s * dot) + t) with s
and t computed in float64 and stored in float32. A frozen network must give the same bits at every binary layer.
"""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas import ops
from bitnas.nn import BinaryConv2d, BinaryLinear

BINARY = (BinaryConv2d, BinaryLinear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class Dots(nn.Module):
    """A binary layer's integers as float32, and the bits it was given, packed."""

    def __init__(self, layer: BinaryConv2d | BinaryLinear) -> None:
        super().__init__()
        self.layer = layer
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        layer = self.layer
        self.seen.append(ops.pack(x, activations=layer.input_binarizer.encoding))
        bits, weight = layer.input_binarizer(x).double(), layer.binary_weight().double()
        if isinstance(layer, BinaryLinear):
            return F.linear(bits, weight).float()
        return F.conv2d(bits, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).float()


class Affine32(nn.Module):
    """fl32(fl32(scale * x) + bias) per channel."""

    def __init__(self, scale: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.scale, self.bias = scale.astype(np.float32), bias.astype(np.float32)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        product = self.scale.reshape(shape) * x.numpy()
        return torch.from_numpy(product + self.bias.reshape(shape))


def folded(layer: nn.Module | None, norm: nn.Module | None) -> Affine32:
    """The affine map of a binary layer (None: of plain floats) with a batch norm behind it."""
    channels = norm.num_features if norm is not None else layer.weight.shape[0]
    scale, bias = np.ones(channels), np.zeros(channels)
    if layer is not None:
        scale = layer.weight_scale().numpy()
        bias = bias if layer.bias is None else layer.bias.detach().double().numpy()
    if norm is not None:
        gain = 1 / np.sqrt(norm.running_var.double().numpy() + norm.eps)
        if norm.weight is not None:
            gain = gain * norm.weight.detach().double().numpy()
        scale, bias = scale * gain, (bias - norm.running_mean.double().numpy()) * gain
        if norm.bias is not None:
            bias = bias + norm.bias.detach().double().numpy()
    return Affine32(scale, bias)


def defined(model: nn.Module, norms: dict[str, str | None]) -> nn.Module:
    """A copy of the model that computes the definition.

    ``norms`` maps each folded batch norm to the binary layer before it, or to None where floats come in.
    """
    model = copy.deepcopy(model).eval()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BINARY)}
    for norm, layer in norms.items():
        affine = folded(layers[layer] if layer else None, model.get_submodule(norm))
        model.set_submodule(norm, affine)
    for name, layer in layers.items():
        scaled = [] if name in norms.values() else [folded(layer, None)]
        model.set_submodule(name, nn.Sequential(Dots(layer), *scaled))
    return model


def bits_seen(definition: nn.Module) -> dict[str, Tensor]:
    """The packed input of every binary layer in the last forward pass, by the layer's name."""
    return {
        name.removesuffix(".0"): module.seen[-1]
        for name, module in definition.named_modules()
        if isinstance(module, Dots)
    }


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with an all-zero channel, and batch norms as hostile as training could leave them.

    Gains are ordinary, negative, zero, tiny or huge; a third of the channels have a mean that is a multiple of the
    layer's scale and no offset, so that integers fall exactly on the threshold.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(n: int) -> Tensor:
        return torch.randn(n, generator=generator)

    def choose(options: Tensor, n: int) -> Tensor:
        return options[torch.randint(len(options), (n,), generator=generator)]

    fan_in = 9
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BINARY):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
                module.weight[0] = 0
                module.weight[-1] = -module.weight[-1].abs()
                fan_in = module.weight[0].numel()
                if module.bias is not None:
                    module.bias.copy_(normal(len(module.bias)))
            elif isinstance(module, NORMS):
                n = module.num_features
                module.weight.copy_(normal(n) * choose(torch.tensor([1.0, 1.0, -1.0, 0.0, -0.0, 1e-30, -1e-7, 1e6]), n))
                module.bias.copy_(normal(n) * choose(torch.tensor([0.0, 1.0, 10.0]), n))
                module.running_mean.copy_(normal(n) * choose(torch.tensor([0.0, 1.0, fan_in**0.5, 1e4]), n))
                module.running_var.copy_(normal(n).abs() * fan_in + 1e-3)
                on_boundary = torch.arange(n) % 3 == 1
                module.bias[on_boundary] = 0
                module.running_mean[on_boundary] = module.running_mean[on_boundary].round()
    return model

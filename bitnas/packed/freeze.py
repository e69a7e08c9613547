"""Turns a trained module into a frozen network: what may be frozen, and in which order it is asked for."""

import copy
from typing import Any

import torch
from torch import nn

from bitnas.packed.graph import LEAVES, Graph
from bitnas.packed.int8 import check_pixels
from bitnas.packed.layers import Memory, check_memory
from bitnas.packed.lowering import Lowering
from bitnas.packed.network import PackedNetwork


def freeze(model: nn.Module, *, memory: Memory = "fast", pixels: tuple[float, float] | None = None) -> PackedNetwork:
    """Folds a trained model onto the packed kernels. The model itself is untouched.

    Args:
        model: any module whose forward torch.fx can trace, of bitnas.nn layers and the float layers and functions that
            :mod:`bitnas.packed.steps` lists. Its evaluation behaviour is frozen, whatever mode it is in.
        memory: ``"fast"`` keeps weights laid out for the machine's kernels beside their bits, ``"bits"`` the bits
            alone, which every call lays out anew: less memory, the same results, slower (see
            :func:`bitnas.packed.measure_memory`). A file keeps the choice.
        pixels: (mean, standard deviation) of all channels alike, for a model whose input only 8-bit convolutions
            (:class:`bitnas.nn.LSQConv2d`) read: the network then also takes uint8 images, as (x / 255 - mean) / std,
            and computes those convolutions in exact integers. 510 * mean must be an integer (a mean of 0 or 0.5, say).

    Returns:
        A module with the same inputs and outputs, on the device of the model. Its state dict holds canonical bits.

    Raises:
        TypeError: not a module. ValueError: the model cannot be traced, holds a layer that cannot be frozen, or a value
        that is not finite; the message names it. Another word for ``memory``. ``pixels`` that are not as said, or for a
        model whose input others read, or whose integers could pass 2**24.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, PackedNetwork):
        raise ValueError("model is frozen already")
    check_memory(memory)
    if pixels is not None:
        pixels = check_pixels(pixels)
    _check(model)
    device = _device(model)
    source = copy.deepcopy(model).cpu().eval()  # thresholds are found in float64, by the same arithmetic everywhere
    graph = Graph(source)
    with torch.no_grad():
        return Lowering(graph, pixels).network(_description(model), memory).to(device)


def _device(model: nn.Module) -> torch.device:
    devices = {tensor.device for tensor in model.state_dict().values()}
    if len(devices) > 1:
        raise ValueError(f"the model's tensors are on {', '.join(map(str, devices))}; move it to one device first")
    return devices.pop() if devices else torch.device("cpu")


def _check(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name} holds values that are not finite; the network cannot be frozen")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ValueError(f"{name} is {tensor.dtype}; a network is frozen from float32 (call model.float() first)")
    for name, module in model.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f"{name or 'the model'} has forward hooks, which freezing would drop; remove them first")
        for layer in LEAVES:
            if isinstance(module, layer) and type(module).forward is not layer.forward:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, a {layer.__name__} with a forward of its own, which a "
                    "frozen network cannot hold"
                )


def _description(model: nn.Module) -> dict[str, Any] | None:
    """What the model says of itself: ``model.config.to_dict()``, as bitnas.models have it; None for other modules."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return to_dict() if callable(to_dict) else None

"""Weights of a narrow network from a wide one: the first channels of every tensor.

Shen et al. 2019, section 3.2: a candidate starts from the leading channels of the trained widest network, on input
and output dimensions alike. The head reads a flattened map whose channels come first, so its prefix is right as long
as the map's size is the same in both; networks of one input size have that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn


def inherit(child: nn.Module, parent: Mapping[str, Tensor]) -> None:
    """Overwrite every parameter and buffer of `child` with the leading slice of the parent's tensor of the same name.

    Args:
        child: a network of the parent's topology, no dimension larger than the parent's.
        parent: the parent's `state_dict()`.

    Raises:
        ValueError: a tensor is missing in either, has another number of dimensions, or is larger than the parent's. The
            child is then unchanged.
    """
    import torch

    own = child.state_dict()
    if own.keys() != parent.keys():
        odd = sorted(own.keys() ^ parent.keys())
        raise ValueError(f"parent: wanted the tensors of the child, and no others; {odd[0]!r} is in one of them only")
    for name, tensor in own.items():
        wide = parent[name]
        if tensor.ndim != wide.ndim or any(n > m for n, m in zip(tensor.shape, wide.shape, strict=True)):
            raise ValueError(f"parent: {name} is {tuple(wide.shape)}, wanted at least {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(parent[name][tuple(slice(0, size) for size in tensor.shape)])

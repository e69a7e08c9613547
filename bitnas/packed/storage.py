"""Frozen networks as files: canonical bits in safetensors, the steps as JSON, one SHA-256 over both."""

import os
from typing import Any

import torch

from bitnas import __version__
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.packed.layers import Memory, PackedConv2d, PackedLinear, check_memory
from bitnas.packed.network import PackedNetwork

_FORMAT = "bitnas.packed/1"

# What the bits of a file mean; a file that says otherwise is refused.
_CONVENTIONS = {"bit_order": "lsb-first int64, channels last", "sign_of_zero": "+1", "padding": "exact zero"}


def save(frozen: PackedNetwork, path: str | os.PathLike[str]) -> None:
    """Writes a frozen network to one file, atomically; equal networks give equal bytes.

    Raises:
        TypeError: not a frozen network. OSError: the file cannot be written.
    """
    if not isinstance(frozen, PackedNetwork):
        raise TypeError(f"frozen must be what bitnas.freeze returns, got {type(frozen).__name__}")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in frozen.state_dict().items()}
    metadata: dict[str, Any] = {"format": _FORMAT, "bitnas": __version__, "conventions": _CONVENTIONS}
    save_tensors(path, tensors, metadata | frozen.describe())


def load(path: str | os.PathLike[str], *, memory: Memory | None = None) -> PackedNetwork:
    """Reads a frozen network and prepares its weights for this machine. Runs no code of the file's.

    Args:
        memory: ``"fast"`` or ``"bits"`` as in :func:`bitnas.freeze`; None for what the file says.

    Raises:
        CorruptFileError (a ValueError): the file is damaged, or not a frozen network, or made under other conventions.
        FileNotFoundError: there is none. ValueError: another word for ``memory``.
    """
    if memory is not None:
        check_memory(memory)
    tensors, metadata = load_tensors(path, expected_format=_FORMAT)
    if metadata.get("conventions") != _CONVENTIONS:
        raise CorruptFileError(path, f"was made under other bit conventions: {metadata.get('conventions')}")
    try:
        # Sizes are compared before any memory is taken: a description may ask for more than there is.
        with torch.device("meta"):
            network = PackedNetwork.from_description(metadata, memory)
        for name, empty in network.state_dict().items():
            if name in tensors and tensors[name].dtype != empty.dtype:
                raise ValueError(f"{name} is {tensors[name].dtype}, expected {empty.dtype}")
        network.load_state_dict(tensors, assign=True)
        for name, layer in network.named_children():
            if isinstance(layer, PackedConv2d | PackedLinear):
                layer.check_tail(name)
    except (ValueError, RuntimeError) as error:
        raise CorruptFileError(path, f"does not describe a network this version can build: {error}") from error
    return network


def packed_bytes(frozen: PackedNetwork) -> int:
    """Bytes of all saved tensors: weights at one bit, per-channel terms, float layers. A file adds its description."""
    return sum(tensor.numel() * tensor.element_size() for tensor in frozen.state_dict().values())

"""A trained network in one file: its float weights and the configuration that builds it, under a SHA-256.

What `freeze` needs to start from, when the process that trained is gone.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.models.registry import config_from_dict, create_model_from_config

FORMAT = "bitnas-model-1"
_EARLIER = "bitnas-trained-1"  # what studies wrote before, of the same contents


def save_model(model: nn.Module, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
    """Write a network of `create_model`, atomically.

    Args:
        model: its parameters, buffers and `config` are written.
        path: a safetensors file; its folder must exist.
        facts: JSON values to keep with it, such as the names of its classes.

    Raises TypeError for a module without a description of its own.
    """
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if to_dict is None:
        raise TypeError(f"model: got a {type(model).__name__} without a config, wanted a network of create_model")
    save_tensors(path, model.state_dict(), {**(facts or {}), "format": FORMAT, "network": to_dict()})


def load_model(path: str | os.PathLike[str]) -> nn.Module:
    """The network that `bitnas train` or a study wrote (`model.safetensors`, `networks/float/*.safetensors`), on the
    CPU, in evaluation mode.

    Raises:
        FileNotFoundError: there is no such file.
        CorruptFileError: it is damaged, or is another kind of file; frozen networks are for `bitnas.load`.
    """
    return load_with_facts(path)[0]


def load_with_facts(path: str | os.PathLike[str]) -> tuple[nn.Module, dict[str, Any]]:
    """The same, and the facts that were kept with it, among which `network` is its description."""
    tensors, metadata = _read(path)
    try:
        model = create_model_from_config(config_from_dict(metadata["network"]))
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFileError(path, f"does not fit the networks of this version of bitnas ({error})") from error
    return model.eval(), metadata


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        return load_tensors(path, expected_format=FORMAT)
    except CorruptFileError as error:
        if f"is '{_EARLIER}'" in error.reason:
            return load_tensors(path, expected_format=_EARLIER)
        if "'bitnas.packed/" in error.reason:
            raise CorruptFileError(path, f"{error.reason}; it is a frozen network, which bitnas.load reads") from error
        raise

"""What a frozen network is made of: steps over named values, and the tables of what a step may be.

The list of steps is also what a file holds. Every step is a layer or a function from the tables below and says which
earlier values it reads, so a network can be rebuilt from JSON without running any code of the file's.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas.nn.cells import fit_channels, join_nodes
from bitnas.nn.channels import tile_channels
from bitnas.packed.int8 import Int8Conv2d
from bitnas.packed.layers import (
    Affine,
    Pack,
    PackedConv2d,
    PackedConv2dAdd,
    PackedLayer,
    PackedLinear,
    PackedMaxPool2d,
)

INPUT = "input"

PACKED_LAYERS: dict[str, type[PackedLayer]] = {
    "pack": Pack,
    "conv2d": PackedConv2d,
    "conv2d_add": PackedConv2dAdd,
    "linear": PackedLinear,
    "max_pool2d": PackedMaxPool2d,
    "affine": Affine,
    "int8_conv2d": Int8Conv2d,
}

# Float layers that stay as they are: class and the arguments that rebuild it.
_CONV = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")
_AVG_POOL = (*_POOL, "count_include_pad", "divisor_override")
FLOAT_LAYERS: dict[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "float_conv2d": (nn.Conv2d, _CONV),
    "float_linear": (nn.Linear, ("in_features", "out_features")),
    "float_batch_norm2d": (nn.BatchNorm2d, ("num_features", "eps")),
    "float_batch_norm1d": (nn.BatchNorm1d, ("num_features", "eps")),
    "float_max_pool2d": (nn.MaxPool2d, (*_POOL, "dilation")),
    "float_avg_pool2d": (nn.AvgPool2d, _AVG_POOL),
    "float_adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d, ("output_size",)),
    "float_relu": (nn.ReLU, ()),
    "float_prelu": (nn.PReLU, ("num_parameters",)),
    "float_hardtanh": (nn.Hardtanh, ("min_val", "max_val")),
    "float_flatten": (nn.Flatten, ("start_dim", "end_dim")),
}

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "mul": torch.mul,
    "sub": torch.sub,
    "relu": F.relu,
    "flatten": torch.flatten,
    "cat": lambda *tensors, dim=0: torch.cat(tensors, dim),
    "mean": lambda x, dim=None, keepdim=False: x.mean(dim, keepdim),
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "tile_channels": tile_channels,
    "fit_channels": fit_channels,
    "join_nodes": join_nodes,
}


# Tensors that a step reads, where it is not one; None: any number.
_INPUT_COUNTS: dict[str, int | None] = {"conv2d_add": 2, "add": 2, "mul": 2, "sub": 2, "cat": None}


@dataclass(frozen=True)
class Step:
    """One line: ``name = kind(*inputs, **arguments)``. ``inputs`` name earlier values; arguments are JSON.

    ``source`` says which call of the trained model a binary layer stands for (see :func:`source_name`).
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    arguments: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    def __post_init__(self) -> None:
        # JSON has no tuples, and torch wants them.
        object.__setattr__(self, "arguments", {key: _tuples(value) for key, value in self.arguments.items()})


def input_count(step: Step) -> int | None:
    """Tensors that a step reads; None: any number. A cell's end reads its shortcut and the nodes that are live."""
    if step.kind == "join_nodes":
        return 1 + sum(map(bool, step.arguments.get("live", ())))
    return _INPUT_COUNTS.get(step.kind, 1)


def source_name(module: str, call: int) -> str:
    """A call of a module in one forward pass: its path, with ``#2`` for the second time it is called."""
    return module if call == 1 else f"{module}#{call}"


def float_layer_kind(module: nn.Module) -> str | None:
    """The kind of a float layer that a frozen network may hold, or None."""
    return next((kind for kind, (cls, _) in FLOAT_LAYERS.items() if type(module) is cls), None)


def float_layer_arguments(kind: str, module: nn.Module) -> dict[str, Any]:
    """What rebuilds the layer, as JSON. Raises ValueError for a feature that no step can express."""
    cls, names = FLOAT_LAYERS[kind]
    arguments = {name: getattr(module, name) for name in names}
    if kind == "float_conv2d" and module.padding_mode != "zeros":
        raise ValueError(f"padding_mode={module.padding_mode!r} cannot be frozen; it must be 'zeros'")
    if cls in (nn.Conv2d, nn.Linear):
        arguments["bias"] = module.bias is not None
    if cls in (nn.BatchNorm1d, nn.BatchNorm2d):
        arguments |= {"affine": module.affine, "track_running_stats": module.track_running_stats}
    return arguments


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list | tuple) else value


def _check_join(step: Step) -> None:
    """Raises ValueError for arguments of a cell's end that a plan could not be made from."""
    wanted = {"channels", "repeat", "live" if step.kind == "join_nodes" else "groups"}
    numbers = [value for name, value in step.arguments.items() if name != "live"]
    live = step.arguments.get("live", (True,))
    good = isinstance(live, tuple) and live and all(isinstance(alive, bool) for alive in live)
    if not good or set(step.arguments) != wanted or not all(type(n) is int and 0 < n <= 2**30 for n in numbers):
        raise ValueError(
            f"step {step.name!r}: {step.kind} wants {', '.join(sorted(wanted))}, positive numbers and a bool for each "
            f"node; got {step.arguments}"
        )


def build_layer(step: Step) -> nn.Module | None:
    """An empty layer for the step; None for a function. Raises ValueError for an unknown kind or bad arguments."""
    try:
        if step.kind in PACKED_LAYERS:
            return PACKED_LAYERS[step.kind](**step.arguments)
        if step.kind in FLOAT_LAYERS:
            return FLOAT_LAYERS[step.kind][0](**step.arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"step {step.name!r}: {step.kind} cannot be built from {step.arguments}: {error}") from error
    if step.kind in ("join_nodes", "fit_channels"):
        _check_join(step)
    if step.kind not in FUNCTIONS:
        raise ValueError(f"step {step.name!r} has unknown kind {step.kind!r}")
    return None

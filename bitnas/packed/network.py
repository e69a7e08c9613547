"""A frozen network: a straight line of steps over named values. The list of steps is also what a file holds.

Every step is a layer or a function from the tables below and says which earlier values it reads, so a network can be
rebuilt from JSON without running any code of the file's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    "max_pool2d": F.max_pool2d,
    "avg_pool2d": F.avg_pool2d,
    "adaptive_avg_pool2d": F.adaptive_avg_pool2d,
}


# Tensors that a step reads, where it is not one; None: any number.
_INPUTS: dict[str, int | None] = {"conv2d_add": 2, "add": 2, "mul": 2, "sub": 2, "cat": None}


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


def build_layer(step: Step) -> nn.Module | None:
    """An empty layer for the step; None for a function. Raises ValueError for an unknown kind or bad arguments."""
    try:
        if step.kind in PACKED_LAYERS:
            return PACKED_LAYERS[step.kind](**step.arguments)
        if step.kind in FLOAT_LAYERS:
            return FLOAT_LAYERS[step.kind][0](**step.arguments)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"step {step.name!r}: {step.kind} cannot be built from {step.arguments}: {error}") from error
    if step.kind not in FUNCTIONS:
        raise ValueError(f"step {step.name!r} has unknown kind {step.kind!r}")
    return None


class PackedNetwork(nn.Module):
    """A frozen network. Call it like the module it came from: float ``[N, C, H, W]`` in, float out.

    Args:
        steps: the lines in order; the last one is the output.
        layers: the layer of each step that has one.
        config: the description of the model it was frozen from (``model.config.to_dict()``), or None.

    Raises:
        ValueError: no steps, a name twice, a value used before it is made, the wrong number of inputs.
    """

    def __init__(
        self, steps: Iterable[Step], layers: dict[str, nn.Module], config: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.steps = tuple(steps)
        self.config = config
        known = {INPUT}
        for step in self.steps:
            if step.name in known or step.name in RESERVED or not step.name.replace("_", "").isalnum():
                raise ValueError(f"step name {step.name!r} is taken or not a plain word")
            wanted = _INPUTS.get(step.kind, 1)
            if not step.inputs or (wanted is not None and len(step.inputs) != wanted):
                raise ValueError(
                    f"step {step.name!r}: {step.kind} reads {wanted or 'some'} value(s), got {step.inputs}"
                )
            for name in step.inputs:
                if name not in known:
                    raise ValueError(f"step {step.name!r} reads {name!r}, which no earlier step makes")
            known.add(step.name)
        if not self.steps:
            raise ValueError("a network needs at least one step")
        for name, layer in layers.items():
            self.add_module(name, layer)
        self._plan = _plan(self.steps, layers)
        self.eval().requires_grad_(False)

    @classmethod
    def from_description(cls, description: dict[str, Any]) -> "PackedNetwork":
        """The empty network that :meth:`describe` describes. Raises ValueError for anything malformed."""
        try:
            steps = [
                Step(str(s["name"]), str(s["kind"]), tuple(map(str, s["inputs"])), dict(s["arguments"]), s["source"])
                for s in description["steps"]
            ]
            config = description["config"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a description of a frozen network: {error!r}") from error
        layers = {step.name: layer for step in steps if (layer := build_layer(step)) is not None}
        return cls(steps, layers, config)

    def describe(self) -> dict[str, Any]:
        """The network without its tensors, as JSON."""
        return {"steps": [asdict(step) for step in self.steps], "config": self.config}

    def _run(self, x: Tensor, *, keep: bool) -> Iterator[tuple[str, Tensor]]:
        values = {INPUT: x}
        modules: dict[str, Any] = self._modules
        for call in self._plan:
            inputs = [values[i] for i in call.inputs]
            if call.packed is not None:
                values[call.name], values[call.packed] = modules[call.name].run_and_pack(modules[call.packed], *inputs)
                yield call.packed, values[call.packed]
            elif call.function is None:
                values[call.name] = modules[call.name](*inputs)
            else:
                values[call.name] = call.function(*inputs, **call.arguments)
            yield call.name, values[call.name]
            if not keep:
                del inputs
                for i in call.done:
                    del values[i]

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            raise TypeError(f"x must be float32, as the network was trained; got {x.dtype}")
        result = x
        for _, value in self._run(x, keep=False):
            result = value
        return result

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every value of a forward pass by its name, the input included."""
        return {INPUT: x, **dict(self._run(x, keep=True))}

    def train(self, mode: bool = True) -> "PackedNetwork":
        """A frozen network only evaluates. Raises ValueError for ``train(True)``."""
        if mode:
            raise ValueError("a frozen network cannot be trained; train the model it was frozen from")
        return super().train(False)


@dataclass(frozen=True)
class _Call:
    """What runs for a step. A layer is looked up by name, so that a deep copy runs its own."""

    name: str
    inputs: tuple[str, ...]
    function: Callable[..., Tensor] | None  # None: the layer
    arguments: dict[str, Any]
    packed: str | None  # the pack step that this convolution's epilogue does on the way
    done: tuple[str, ...]  # values that nobody reads any more


def _plan(steps: tuple[Step, ...], layers: dict[str, nn.Module]) -> list[_Call]:
    """The steps as calls: one each, but for values that a convolution can pack while it still has them at hand."""
    packers: dict[str, str] = {}
    for step in steps:
        if step.kind == "pack":
            maker = layers.get(step.inputs[0])
            if isinstance(maker, PackedConv2d) and maker.epilogue == "float":
                packers.setdefault(step.inputs[0], step.name)
    fused = set(packers.values())
    calls = [step for step in steps if step.name not in fused]
    last_use = {step.name: i for i, step in enumerate(calls)}
    last_use |= {packed: last_use[name] for name, packed in packers.items()}
    last_use |= {name: i for i, step in enumerate(calls) for name in step.inputs}
    last_use.pop(steps[-1].name)
    done: list[list[str]] = [[] for _ in calls]
    for name, i in last_use.items():
        done[i].append(name)
    return [
        _Call(
            step.name,
            step.inputs,
            None if step.name in layers else FUNCTIONS[step.kind],
            {} if step.name in layers else step.arguments,
            packers.get(step.name),
            tuple(done[i]),
        )
        for i, step in enumerate(calls)
    ]


# Names that a step cannot have, because a layer of that name would hide an attribute of the network.
RESERVED = frozenset({INPUT, "steps", "config", "_plan", *dir(PackedNetwork), *dir(nn.Module())})

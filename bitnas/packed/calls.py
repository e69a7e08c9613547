"""The calls of a frozen network one by one: what decides how long each takes, and how long it took.

A signature is canonical JSON: the steps that the call stands for with their arguments, which of their values leave it,
and of each value it reads the shape, the dtype and the kind of step that made it (the memory format and the place in
the caches follow from that). Values of weights are not in it: no kernel's time depends on them. Nor is what time does
not depend on and cells of many forms differ in: which of the kernels that write bits, or floats of channels last, made
a value; and which nodes are joined, but how many.
"""

import json
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bitnas.packed.layers import Memory
from bitnas.packed.network import PackedNetwork
from bitnas.packed.steps import INPUT, Step, build_layer

# Values of channels last, as whoever reads them finds them.
_CHANNELS_LAST = ("conv2d", "conv2d_add", "float_conv2d", "add", "fit_channels", "join_nodes")


def call_signatures(
    steps: Iterable[Step], input_shape: tuple[int, ...], memory: Memory = "fast", dtype: torch.dtype = torch.float32
) -> list[str]:
    """Signatures of the calls of a forward pass, in order, and last that of the pass around them.

    Args:
        steps: of a frozen network (:attr:`PackedNetwork.steps`); its layers are built without storage.
        input_shape: ``[N, C, H, W]``. dtype: of the input; uint8 for a network that takes pixels.

    Raises:
        ValueError: steps that make no network. RuntimeError: ones that do not run on such an input.
    """
    steps = tuple(steps)
    with torch.device("meta"), torch.inference_mode():
        layers = {step.name: layer for step in steps if (layer := build_layer(step)) is not None}
        network = PackedNetwork(steps, layers, None, memory)
        found = _walk(network, torch.empty(input_shape, dtype=dtype))
    return [*found, canonical({"does": "pass", "calls": len(found)})]


def _walk(network: PackedNetwork, x: Tensor) -> list[str]:
    steps = {step.name: step for step in network.steps}
    values, found = {INPUT: x}, []
    for call, _ in network._plan:
        reads = [
            {
                "from": _maker(steps[name]) if name in steps else INPUT,
                "shape": list(values[name].shape),
                "dtype": str(values[name].dtype).removeprefix("torch."),
            }
            for name in call.inputs
        ]
        does = [{"kind": steps[name].kind, "arguments": _arguments(steps[name])} for name in call.covers]
        gives = [call.covers.index(name) for name in call.names]
        found.append(canonical({"does": does, "gives": gives, "reads": reads}))
        call.run(network._modules, values)
    return found


def _maker(step: Step) -> str:
    if step.kind == "pack" or step.arguments.get("epilogue") == "bits":
        return "bits"
    return "channels_last" if step.kind in _CHANNELS_LAST else step.kind


def _arguments(step: Step) -> dict[str, Any]:
    live = step.arguments.get("live")
    return step.arguments if live is None else {**step.arguments, "live": sum(live)}


def timed_pass(network: PackedNetwork, x: Tensor, clock: Callable[[], int]) -> list[int]:
    """A forward pass in which the clock is read before the first call and after each one; gives the readings.

    What a call takes includes giving back the memory of the values that nobody reads after it.
    """
    modules = network._modules
    values = {INPUT: x}
    readings = [clock()]
    for call, done in network._plan:
        call.run(modules, values)
        for name in done:
            del values[name]
        readings.append(clock())
    return readings


def canonical(value: object) -> str:
    """JSON with one text for equal values. Raises ValueError for a NaN or an infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)

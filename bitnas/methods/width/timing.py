"""Time of a frozen network and of its float twin, as a whole and layer by layer, taken in turns.

The twin is the float network one would run instead: the same widths, with an ordinary convolution after a ReLU where
the network has a binary one, batch norm fused into the convolution before it where they are neighbours, in the faster
of torch's two memory formats. (The trained module itself would binarize its weights again in every call, and look slow
for it.)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from bitnas.cost.timing import time_interleaved
from bitnas.nn import (
    BinaryConv2d,
    BinaryLinear,
    ChannelBias,
    FitChannels,
    JoinNodes,
    LSQConv2d,
    RPReLU,
    TileChannels,
)

if TYPE_CHECKING:
    from bitnas.packed import PackedNetwork

Call = Callable[[], object]

# A float ResNet-18 of four times the width takes about a second for an image on one thread.
_FLOAT_RUNS = 5


def float_twin(model: nn.Module) -> nn.Module:
    """A fused copy in evaluation mode, every binary layer replaced by ReLU and the float layer of the same shape.

    A stem of 8-bit weights becomes a float one. What only serves the signs (biases before them, RPReLU after them) is
    left out: the ReLU stands for it, and the twin is the faster for it.
    """
    twin = copy.deepcopy(model).eval()
    replaced: list[str] = []
    for name, layer in list(twin.named_modules()):
        if any(name.startswith(outer + ".") for outer in replaced):
            continue
        plain: nn.Module
        if isinstance(layer, BinaryConv2d):
            plain = _StandIn(nn.ReLU(), _float_conv(layer)).eval()
        elif isinstance(layer, BinaryLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
            plain = _StandIn(nn.ReLU(), linear).eval()
        elif isinstance(layer, LSQConv2d):
            plain = _float_conv(layer).eval()
        elif isinstance(layer, ChannelBias | RPReLU):
            plain = nn.Identity()
        else:
            continue
        parent, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(parent), attribute, plain)
        replaced.append(name)
    _fuse_batch_norms(twin)
    return twin


def _float_conv(layer: BinaryConv2d | nn.Conv2d) -> nn.Conv2d:
    """An ordinary convolution of the same shape."""
    return nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # pairs, which torch's annotation leaves open
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        layer.groups,
        bias=layer.bias is not None,
    )


class _StandIn(nn.Sequential):
    """What stands where a binary layer was."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _StandIn | TileChannels | FitChannels | JoinNodes) or super().is_leaf_module(
            m, module_qualified_name
        )


def _fuse_batch_norms(twin: nn.Module) -> None:
    """Folds each batch norm into the convolution whose result only it reads."""
    for node in _Tracer().trace(twin).nodes:
        norm = twin.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(norm, nn.BatchNorm2d) or node.args[0].op != "call_module" or len(node.args[0].users) > 1:
            continue
        name = str(node.args[0].target)
        layer = twin.get_submodule(name)
        conv = layer[1] if isinstance(layer, _StandIn) else layer
        if not isinstance(conv, nn.Conv2d):
            continue
        fused = fuse_conv_bn_eval(conv, norm)
        twin.set_submodule(name, _StandIn(layer[0], fused).eval() if isinstance(layer, _StandIn) else fused)
        twin.set_submodule(str(node.target), nn.Identity())


def time_beside_float(
    model: Any, *, frozen: bool = True, batch: int = 1, threads: int = 1, seconds: float = 1.0
) -> dict[str, Any]:
    """Time a network frozen, and its float twin in both of torch's memory formats, of which the faster one counts.

    Args:
        model: in evaluation mode, with its config; only its shapes matter.
        frozen: whether the frozen network is timed at all; without it, only the twin.
        batch, threads: what is timed.
        seconds: of each of the three timings, at most, unless its few runs take longer.

    Returns:
        median_us, iqr_us, noisy, runs (None without `frozen`), the same of the twin as float_us, float_iqr_us,
        float_noisy, float_runs; ratio = float_us / median_us or None; input_size. Times are in us per batch.
    """
    from bitnas.cost import measure_latency
    from bitnas.packed import freeze

    size = tuple(model.config.input_size)
    options: dict[str, Any] = {"batch": batch, "threads": threads, "seconds": seconds}
    found = None
    if frozen:
        network = freeze(model)
        found = measure_latency(network, size, **options)
        del network
    twin = float_twin(model)
    del model  # the widest takes 0.7 GB, where the caller keeps none
    contiguous = measure_latency(twin, size, min_runs=_FLOAT_RUNS, **options)
    last = measure_latency(_ChannelsLast(twin), size, min_runs=_FLOAT_RUNS, **options)
    best = min((contiguous, last), key=lambda timed: timed.median_us)
    return {
        "median_us": found and found.median_us,
        "iqr_us": found and found.iqr_us,
        "noisy": found and found.noisy,
        "runs": found and found.runs,
        "float_us": best.median_us,
        "float_iqr_us": best.iqr_us,
        "float_noisy": best.noisy,
        "float_runs": best.runs,
        "ratio": found and best.median_us / found.median_us,
        "input_size": list(size),
    }


class _ChannelsLast(nn.Module):
    """A network that is handed its images as it likes them."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.contiguous(memory_format=torch.channels_last))


def time_pair(
    model: nn.Module, frozen: PackedNetwork, x: Tensor, layers: Sequence[str], *, seconds: float = 1.0
) -> dict[str, float]:
    """Time the frozen network, its float twin, and each layer of both, interleaved.

    Args:
        model: the trained module.
        frozen: the same, frozen.
        x: float32 `[N, C, H, W]`.
        layers: names of the layers to time, in order of execution. What runs between two of them (batch norm, pooling,
            packing) counts for the first.
        seconds: for the whole networks; the layers take as long again.

    Returns:
        latency_us, latency_iqr_us, latency_noisy (0 or 1), latency_runs, float_latency_us, float_latency_iqr_us, and
        for each layer `layer.<name>.packed_us` and `layer.<name>.float_us`: medians, in us per batch.
    """
    twin = float_twin(model)
    last: Any = copy.deepcopy(twin)
    last.to(memory_format=torch.channels_last)
    x_last = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        networks = {"packed": lambda: frozen(x), "float": lambda: twin(x), "channels_last": lambda: last(x_last)}
        whole = time_interleaved(networks, seconds=seconds)
        x_twin = x
        if whole["channels_last"].median_us < whole["float"].median_us:
            whole["float"], twin, x_twin = whole["channels_last"], last, x_last
        groups: dict[str, Call] = {}
        for name, calls in _packed_calls(frozen, x, layers).items():
            groups[f"layer.{name}.packed_us"] = _in_sequence(calls)
        for name, calls in _float_calls(twin, x_twin, layers).items():
            groups[f"layer.{name}.float_us"] = _in_sequence(calls)
        parts = time_interleaved(groups, warmup=0.01, seconds=seconds) if groups else {}
    return {
        "latency_us": whole["packed"].median_us,
        "latency_iqr_us": whole["packed"].iqr_us,
        "latency_noisy": float(whole["packed"].noisy),
        "latency_runs": float(whole["packed"].runs),
        "float_latency_us": whole["float"].median_us,
        "float_latency_iqr_us": whole["float"].iqr_us,
        **{name: timing.median_us for name, timing in parts.items()},
    }


def _packed_calls(frozen: PackedNetwork, x: Tensor, layers: Sequence[str]) -> dict[str, list[Call]]:
    """For each layer, the calls of a forward pass from its own to the next layer's."""
    names = {name.replace(".", "_"): name for name in layers}
    groups: dict[str, list[Call]] = {}
    current = None
    for step, call in frozen.calls(x):
        current = names.get(step, current)
        if current is not None:
            groups.setdefault(current, []).append(call)
    return groups


def _float_calls(twin: nn.Module, x: Tensor, layers: Sequence[str]) -> dict[str, list[Call]]:
    """The same for the modules of the float twin."""
    groups: dict[str, list[Call]] = {}
    current: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if name in layers:
                current[:] = [name]
            if current:
                groups.setdefault(current[0], []).append(lambda: module(*inputs))

        return hook

    # A binary layer's stand-in is a Sequential; it is timed whole, and its parts not again.
    stand_ins = [name for name in layers if isinstance(twin.get_submodule(name), _StandIn)]
    leaves = [
        (name, module)
        for name, module in twin.named_modules()
        if name in stand_ins
        or (not any(module.children()) and not any(name.startswith(whole + ".") for whole in stand_ins))
    ]
    hooks = [module.register_forward_pre_hook(watch(name)) for name, module in leaves]
    try:
        twin(x)
    finally:
        for handle in hooks:
            handle.remove()
    return groups


def _in_sequence(calls: Sequence[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run

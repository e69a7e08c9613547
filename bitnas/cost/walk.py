"""Reads a torch module into the records that the cost rules work on.

The module runs once with a hook on every layer, on `device="meta"` where tensors have shapes and no storage. A copy
for that device shares nothing and costs nothing: each tensor of the original is replaced as the copy is made.
"""

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bitnas.cost.rules import Kind, Layer
from bitnas.models import create_model
from bitnas.nn import BinaryConv2d, BinaryLinear, ChannelBias
from bitnas.nn.arguments import integer

Size = tuple[int, ...]
_Rule = Callable[[Any, Tensor, Tensor], dict[str, Any]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OTHER_NORMS = (
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.PReLU,
    nn.RReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Hardtanh,
    nn.Sigmoid,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Softplus,
    nn.Softmax,
    nn.LogSoftmax,
)
_WINDOW_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def open_model(
    model: nn.Module | str, input_size: Iterable[int] | None, options: Mapping[str, Any]
) -> tuple[nn.Module, str, str | None, Size]:
    """The module, its label, its registered name (None for a foreign module) and the size of one input.

    A name is built without storage. Raises TypeError for anything but a module or a name, and for options beside a
    module; ValueError for a missing input size or one that is not positive.
    """
    size = None if input_size is None else tuple(input_size)
    if isinstance(model, str):
        with torch.device("meta"):
            module = create_model(model, input_size=size, **options)
        label = model
    elif isinstance(model, nn.Module):
        if options:
            raise TypeError(f"model_options: got {', '.join(options)}, wanted none beside a module")
        module, label = model, type(model).__name__
    else:
        raise TypeError(f"model: got {type(model).__name__}, wanted an nn.Module or a name of list_models()")
    config = getattr(module, "config", None)
    network = getattr(config, "name", None)
    if size is None:
        if config is None or not hasattr(config, "input_size"):
            raise ValueError(f"input_size: got None, wanted the shape of one input of {label}, such as (3, 224, 224)")
        size = tuple(config.input_size)
    return module, label, network, tuple(integer("input_size", n) for n in size)


def read_layers(model: nn.Module, input_size: Size) -> tuple[list[Layer], dict[str, str]]:
    """One record per call of a layer, for one input, and the modules with parameters that could not be counted.

    Raises ValueError if the module cannot run on an input of this size.
    """
    try:
        return _observe(_without_storage(model), input_size)
    except Exception as meta_error:  # a module may do anything: read values, use a C extension, refuse to be copied
        if any(parameter.is_meta for parameter in model.parameters()):
            raise _does_not_run(input_size, meta_error) from meta_error
    try:
        return _observe(model, input_size)
    except Exception as error:
        raise _does_not_run(input_size, error) from error


def _does_not_run(input_size: Size, error: Exception) -> ValueError:
    return ValueError(f"input_size: the model does not run on one input of size {input_size}: {error}")


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy of the module on the meta device, made without copying one weight."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _observe(model: nn.Module, input_size: Size) -> tuple[list[Layer], dict[str, str]]:
    """Run the module once in evaluation mode and record every layer; modes and hooks are put back."""
    reader = _Reader(model)
    modes = {module: module.training for module in model.modules()}
    hooks = [module.register_forward_hook(reader, with_kwargs=True) for module in modes]
    tensors = (*model.parameters(), *model.buffers())
    first = next((tensor for tensor in tensors if tensor.is_floating_point()), torch.empty(0))
    x = torch.zeros(1, *input_size, dtype=first.dtype, device=first.device)
    try:
        model.eval()
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    return reader.finish()


class _Reader:
    """The hook: turns each call of a layer into a record and keeps account of every parameter once."""

    def __init__(self, model: nn.Module) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.layers: list[Layer] = []
        self.called: set[nn.Module] = set()
        self.uncounted: dict[str, str] = {}
        self.seen: set[int] = set()

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        self.called.add(module)
        found = _find(module)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if found is None or not tensors or not isinstance(output, Tensor):
            if _holds_tensors(module):
                self._leave_out(module, f"{type(module).__name__}: no rule")
            return
        kind, rule = found
        weights, biases = self._take(module, "weight"), self._take(module, "bias")
        figures = rule(module, tensors[0], output)
        self.layers.append(
            Layer(
                name=self.names[module],
                kind=kind,
                output_shape=tuple(output.shape[1:]),
                outputs=output.numel(),
                weights=weights if kind in ("conv", "linear", "embedding") else 0,
                biases=biases,
                params=weights + biases + self._take_rest(module),
                **figures,
            )
        )

    def finish(self) -> tuple[list[Layer], dict[str, str]]:
        for module in self.names:
            if module not in self.called and _holds_tensors(module):
                self._leave_out(module, f"{type(module).__name__}: never called as a module")
        return self.layers, self.uncounted

    def _leave_out(self, module: nn.Module, reason: str) -> None:
        self.uncounted[self.names[module]] = reason
        if params := self._take_rest(module):
            self.layers.append(Layer(self.names[module], "other", (), 0, params=params))

    def _take(self, module: nn.Module, name: str) -> int:
        """Elements of one parameter, 0 if there is none or if a layer before has it (tied weights, a second call)."""
        parameter = module._parameters.get(name)
        if parameter is None or id(parameter) in self.seen:
            return 0
        self.seen.add(id(parameter))
        return parameter.numel()

    def _take_rest(self, module: nn.Module) -> int:
        return sum(self._take(module, name) for name in module._parameters)


def _holds_tensors(module: nn.Module) -> bool:
    """Whether the module itself, not a child, has parameters or buffers: then it surely computes something."""
    return any(tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values()))


def _find(module: nn.Module) -> tuple[Kind, _Rule] | None:
    return next(((kind, rule) for types, kind, rule in _RULES if isinstance(module, types)), None)


def _conv(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"macs": y.numel() * math.prod(module.weight.shape[1:]), **_weight_format(module)}


def _transposed_conv(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    return {"macs": x.numel() * math.prod(module.weight.shape[1:]), **_weight_format(module)}


def _weight_format(module: Any) -> dict[str, Any]:
    """One bit for the binary layers of this package; any other module may say `weight_bits`."""
    if isinstance(module, (BinaryConv2d, BinaryLinear)):
        return {"binary": True, "weight_bits": 1}
    bits = getattr(module, "weight_bits", 32)
    return {"weight_bits": bits if isinstance(bits, int) else 32}


def _free(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    return {}


def _window_pool(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    kernel = module.kernel_size
    window = kernel ** (y.dim() - 2) if isinstance(kernel, int) else math.prod(kernel)
    return {"reads": y.numel() * window}


def _adaptive_pool(module: Any, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Window i of an axis covers floor(i * n / m) to ceil((i + 1) * n / m), so windows may overlap."""
    spatial = x.dim() - 2
    reads = math.prod(y.shape[:-spatial])
    for n, m in zip(x.shape[-spatial:], y.shape[-spatial:], strict=True):
        reads *= sum(-(-(i + 1) * n // m) - i * n // m for i in range(m))
    return {"reads": reads}


_RULES: tuple[tuple[tuple[type[nn.Module], ...], Kind, _Rule], ...] = (
    ((BinaryConv2d, *_CONVOLUTIONS), "conv", _conv),
    (_TRANSPOSED, "conv", _transposed_conv),
    ((BinaryLinear, nn.Linear), "linear", _conv),
    (_BATCH_NORMS, "batch_norm", _free),
    (_OTHER_NORMS, "norm", _free),
    ((*_ACTIVATIONS, ChannelBias), "activation", _free),
    (_WINDOW_POOLS, "pool", _window_pool),
    (_ADAPTIVE_POOLS, "pool", _adaptive_pool),
    ((nn.Embedding,), "embedding", _free),
)

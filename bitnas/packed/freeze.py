"""Turns a trained module into a frozen network.

The module is traced with torch.fx and lowered from its output backwards: each value is asked for either as floats or as
the bits of a binarizer, and the cheapest way to make it is chosen by the few rules in :class:`_Lowering`. So batch norm
becomes a scale or an integer threshold, pooling runs on bits, two layers that binarize the same value share one packed
tensor, and a value that only binary layers read never exists in float.
"""

import copy
import json
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bitnas import ops
from bitnas.nn import BinaryConv2d, BinaryLinear
from bitnas.packed import fold
from bitnas.packed.layers import (
    Affine,
    Memory,
    Pack,
    PackedConv2d,
    PackedConv2dAdd,
    PackedLayer,
    PackedLinear,
    PackedMaxPool2d,
    check_memory,
)
from bitnas.packed.network import RESERVED, PackedNetwork
from bitnas.packed.steps import INPUT, Step, float_layer_arguments, float_layer_kind, source_name

Binary = BinaryConv2d | BinaryLinear
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d)
_FLOAT_DOTS = (nn.Conv2d, nn.Linear)

# torch.fx call targets and the functions of a frozen network; names of methods stand for themselves.
_FUNCTIONS: dict[Any, str] = {
    operator.add: "add", operator.iadd: "add", torch.add: "add", "add": "add", "add_": "add",
    operator.sub: "sub", operator.isub: "sub", torch.sub: "sub",
    operator.mul: "mul", operator.imul: "mul", torch.mul: "mul", "mul": "mul",
    F.relu: "relu", torch.relu: "relu", "relu": "relu",
    torch.flatten: "flatten", "flatten": "flatten",
    torch.cat: "cat", torch.concat: "cat",
    torch.mean: "mean", "mean": "mean",
    F.max_pool2d: "max_pool2d", F.avg_pool2d: "avg_pool2d", F.adaptive_avg_pool2d: "adaptive_avg_pool2d",
}  # fmt: skip

_IN_PLACE = (operator.iadd, operator.isub, operator.imul, "add_")

# Names of arguments given by position, after the tensors.
_POSITIONAL = {
    "flatten": ("start_dim", "end_dim"),
    "cat": ("dim",),
    "mean": ("dim", "keepdim"),
    "max_pool2d": ("kernel_size", "stride", "padding"),
    "avg_pool2d": ("kernel_size", "stride", "padding"),
    "adaptive_avg_pool2d": ("output_size",),
}


def freeze(model: nn.Module, *, memory: Memory = "fast") -> PackedNetwork:
    """Folds a trained model onto the packed kernels. The model itself is untouched.

    Args:
        model: any module whose forward torch.fx can trace, of bitnas.nn layers and the float layers and functions that
            :mod:`bitnas.packed.steps` lists. Its evaluation behaviour is frozen, whatever mode it is in.
        memory: ``"fast"`` keeps weights laid out for the machine's kernels beside their bits, ``"bits"`` the bits
            alone, which every call lays out anew: less memory, the same results, slower (see
            :func:`bitnas.packed.measure_memory`). A file keeps the choice.

    Returns:
        A module with the same inputs and outputs, on the device of the model. Its state dict holds canonical bits.

    Raises:
        TypeError: not a module. ValueError: the model cannot be traced, holds a layer that cannot be frozen, or a value
        that is not finite; the message names it. Another word for ``memory``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if isinstance(model, PackedNetwork):
        raise ValueError("model is frozen already")
    check_memory(memory)
    _check(model)
    device = _device(model)
    source = copy.deepcopy(model).cpu().eval()  # thresholds are found in float64, by the same arithmetic everywhere
    try:
        graph = _Tracer().trace(source)
    except Exception as error:  # fx raises whatever the traced code raises
        raise ValueError(
            f"{type(model).__name__}.forward cannot be traced by torch.fx ({error}); it must not branch on tensor "
            "values or shapes"
        ) from error
    with torch.no_grad():
        return _Lowering(source, graph).network(_description(model), memory).to(device)


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
        for layer in (BinaryConv2d, BinaryLinear):
            if isinstance(module, layer) and type(module).forward is not layer.forward:
                raise ValueError(
                    f"{name} is a {type(module).__name__}, a {layer.__name__} with a forward of its own, which a "
                    "frozen network cannot hold"
                )


def _description(model: nn.Module) -> dict[str, Any] | None:
    """What the model says of itself: ``model.config.to_dict()``, as bitnas.models have it; None for other modules."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    return to_dict() if callable(to_dict) else None


class _Proxy(fx.Proxy):
    """torch.fx records ``x += y`` as ``x + y``. Told apart, one that another reader of x would see can be refused."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, BinaryConv2d | BinaryLinear) or super().is_leaf_module(m, module_qualified_name)


class _Lowering:
    """Makes steps for the values that are asked for, each once, in the order they are needed."""

    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self.model = model
        self.graph = fx.GraphModule(model, graph).graph
        self.sources = self._name_calls()  # before dead code goes: a hook sees dead calls too
        _flatten_views(self.graph)
        self.graph.eliminate_dead_code()
        self._check_in_place()
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.made: dict[tuple[fx.Node, str], str] = {}

    def network(self, config: Any, memory: Memory) -> PackedNetwork:
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ValueError(f"a frozen network takes one input, this model takes {len(inputs)}")
        output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise ValueError("a frozen network returns one tensor")
        # In the order of the forward pass: all of these are asked for in the end, and no chain of askers grows long.
        for node in self.graph.nodes:
            if isinstance(self.module(node), BinaryConv2d | BinaryLinear):
                self.packed_input(node)
            elif node.op not in ("placeholder", "output") and not self.may_fold(node):
                self.floats(node)
        last = self.floats(output)
        if not self.steps or last != self.steps[-1].name:
            raise ValueError("the model's output is its input: there is nothing to freeze")
        return PackedNetwork(self.steps, self.layers, config, memory)

    def may_fold(self, node: fx.Node) -> bool:
        """Whether the value may never exist in float: a batch norm, a pool, a convolution that its norm folds into."""
        module = self.module(node)
        if isinstance(module, _FLOAT_DOTS):
            return any(isinstance(self.module(reader), _NORMS) for reader in self.readers(node))
        return isinstance(module, (*_NORMS, *_PASS_THROUGH, nn.MaxPool2d))

    def _name_calls(self) -> dict[fx.Node, str]:
        calls: dict[str, int] = {}
        names = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                target = str(node.target)
                calls[target] = calls.get(target, 0) + 1
                names[node] = source_name(target, calls[target])
        return names

    def _check_in_place(self) -> None:
        """An operation in place is the plain one, unless somebody reads its operand afterwards."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            module = self.module(node)
            if node.target in _IN_PLACE or node.kwargs.get("inplace") or getattr(module, "inplace", False):
                operand = self.source(node) if module is not None else self.skip(node.args[0])
                if any(order[reader] > order[node] for same in self.aliases(operand) for reader in self.readers(same)):
                    raise ValueError(
                        f"{node.name} changes a value in place that is read again later; give that reader a copy, or "
                        "use the operation that is not in place"
                    )
            if isinstance(module, nn.ReLU | nn.Hardtanh):
                module.inplace = False

    # ---- reading the graph ----------------------------------------------------

    def flattens(self, node: fx.Node) -> bool:
        return _FUNCTIONS.get(node.target) == "flatten" or isinstance(self.module(node), nn.Flatten)

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose value may share the memory of this one: what it is a flat view of, and the views of that."""
        while self.flattens(node):
            node = self.skip(cast(fx.Node, node.args[0]))
        found = [node]
        for same in found:
            found += [reader for reader in self.readers(same) if self.flattens(reader)]
        return found

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def source(self, node: fx.Node) -> fx.Node:
        """The input of a layer, past layers that do nothing when evaluated."""
        if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            raise ValueError(f"{node.target} must be called with one tensor, by position, to be frozen")
        return self.skip(cast(fx.Node, node.args[0]))

    def skip(self, node: fx.Node) -> fx.Node:
        while isinstance(self.module(node), _PASS_THROUGH):
            node = cast(fx.Node, node.args[0])
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if isinstance(self.module(user), _PASS_THROUGH) else [user]
        return found

    def read_once(self, node: fx.Node) -> bool:
        return len(self.readers(node)) == 1

    def only_binarized(self, node: fx.Node, activations: str) -> bool:
        """Whether every reader of the value binarizes it this way, directly or behind a max-pool."""
        for reader in self.readers(node):
            module = self.module(reader)
            if isinstance(module, BinaryConv2d | BinaryLinear):
                if module.input_binarizer.encoding != activations:
                    return False
            elif not (_packable_pool(module) and self.only_binarized(reader, activations)):
                return False
        return True

    def dot_behind(self, node: fx.Node) -> tuple[fx.Node, fx.Node | None, nn.Module | None] | None:
        """The binary layer, max-pool and batch norm that make this value, if nothing else reads what lies between."""
        norm = self.module(node)
        pool_node: fx.Node | None = None
        if isinstance(norm, _NORMS):
            node = self.source(node)
            if not self.read_once(node):
                return None
            if isinstance(self.module(node), nn.MaxPool2d) and _packable_pool(self.module(node)):
                pool_node = node
                node = self.source(node)
                if not self.read_once(node):
                    return None
        else:
            norm = None
        if isinstance(self.module(node), BinaryConv2d | BinaryLinear):
            return node, pool_node, norm
        return None

    # ---- making values ----------------------------------------------------------

    def emit(
        self, node: fx.Node, suffix: str, kind: str, inputs: list[str], layer: nn.Module | None, **arguments: Any
    ) -> str:
        name = (str(node.target) if node.op == "call_module" else node.name).replace(".", "_") + suffix
        while name in RESERVED or any(step.name == name for step in self.steps):
            name += "_"
        if isinstance(layer, PackedLayer):
            arguments = layer.spec
        source = self.sources[node] if isinstance(layer, PackedConv2d | PackedLinear) else None
        self.steps.append(Step(name, kind, tuple(inputs), arguments, source))
        if layer is not None:
            self.layers[name] = layer
        return name

    def once(self, node: fx.Node, form: str, make: Callable[[], str]) -> str:
        if (node, form) not in self.made:
            self.made[node, form] = make()
        return self.made[node, form]

    def bits(self, node: fx.Node, activations: str) -> str:
        """The value, binarized and packed."""
        node = self.skip(node)
        return self.once(node, activations, lambda: self._bits(node, activations))

    def _bits(self, node: fx.Node, activations: str) -> str:
        module = self.module(node)
        if self.only_binarized(node, activations):
            if (chain := self.dot_behind(node)) is not None:
                return self.threshold(*chain, activations)
            if _packable_pool(module):
                pool = cast(nn.MaxPool2d, module)
                channels = self.channels(self.source(node))
                if channels is not None:
                    pooled = _packed_pool(pool, channels, None)
                    return self.emit(node, "", "max_pool2d", [self.bits(self.source(node), activations)], pooled)
            if isinstance(module, _NORMS):
                affine = fold.fold_affine(torch.ones(module.num_features), None, module, str(node.target))
                layer = Pack(activations=cast(Any, activations), channels=module.num_features)
                layer.threshold, layer.direction = fold.float_threshold(affine, activations)
                return self.emit(node, "_pack", "pack", [self.floats(self.source(node))], layer)
        return self.emit(node, "_pack", "pack", [self.floats(node)], Pack(activations=cast(Any, activations)))

    def threshold(self, dot: fx.Node, pool: fx.Node | None, norm: nn.Module | None, activations: str) -> str:
        """A binary layer straight to the bits of the next one; under a max-pool the flip waits until after it."""
        layer = cast(Binary, self.module(dot))
        affine = _affine(layer, norm, str(dot.target))
        threshold, flip = fold.integer_threshold(affine, activations, _largest_dot(layer))
        packed = _packed_dot(layer, "bits")
        packed.threshold = threshold
        flip_words = ops._pack(flip.float()[None], 0.5)[0]
        if pool is None:
            packed.flip = flip_words
        name = self.emit(dot, "", _kind(layer), [self.packed_input(dot)], packed)
        if pool is None:
            return name
        pooled = _packed_pool(cast(nn.MaxPool2d, self.module(pool)), layer.weight.shape[0], flip_words)
        return self.emit(pool, "", "max_pool2d", [name], pooled)

    def packed_input(self, dot: fx.Node) -> str:
        layer = cast(Binary, self.module(dot))
        return self.bits(self.source(dot), layer.input_binarizer.encoding)

    def floats(self, node: fx.Node) -> str:
        """The value as floats."""
        node = self.skip(node)
        return self.once(node, "float", lambda: self._floats(node))

    def _floats(self, node: fx.Node) -> str:
        if node.op == "placeholder":
            return INPUT
        if (chain := self.dot_behind(node)) is not None:
            return self.scaled(*chain)
        module = self.module(node)
        if module is None:
            return self.residual(node) or self.function(node)
        if isinstance(module, _NORMS):
            conv_node = self.source(node)
            conv = self.module(conv_node)
            if type(conv) in _FLOAT_DOTS and self.read_once(conv_node):
                fused = _fuse(cast(Any, conv), module, str(node.target))
                return self.float_layer(conv_node, fused, self.source(conv_node))
        return self.float_layer(node, module, self.source(node))

    def float_layer(self, node: fx.Node, module: nn.Module, source: fx.Node) -> str:
        kind = float_layer_kind(module)
        if kind is None:
            raise ValueError(
                f"{node.target} is a {type(module).__name__}, which a frozen network cannot hold; use the layers of "
                "bitnas.nn and the float layers listed in bitnas.packed.steps"
            )
        try:
            arguments = float_layer_arguments(kind, module)
        except ValueError as error:
            raise ValueError(f"{node.target}: {error}") from error
        return self.emit(node, "", kind, [self.floats(source)], module, **arguments)

    def scaled(self, dot: fx.Node, pool: fx.Node | None, norm: nn.Module | None) -> str:
        """A binary layer to floats. Under a max-pool the integers are pooled, then the one affine map follows."""
        layer = cast(Binary, self.module(dot))
        affine = _affine(layer, norm, str(dot.target))
        packed = _packed_dot(layer, "float")
        if pool is None:
            packed.scale, packed.bias = affine.scale, affine.bias
        name = self.emit(dot, "", _kind(layer), [self.packed_input(dot)], packed)
        if pool is None:
            return name
        pool_module = cast(nn.MaxPool2d, self.module(pool))
        name = self.emit(
            pool, "", "float_max_pool2d", [name], pool_module, **float_layer_arguments("float_max_pool2d", pool_module)
        )
        after = Affine(channels=affine.scale.numel())
        after.scale, after.bias = affine.scale, affine.bias
        return self.emit(pool, "_affine", "affine", [name], after)

    def residual(self, node: fx.Node) -> str | None:
        """A sum of two values of which one is a binary convolution's that nobody else reads: added in its epilogue."""
        if _FUNCTIONS.get(node.target) != "add" or len(node.args) != 2 or set(node.kwargs) - {"inplace"}:
            return None
        values = [self.skip(value) for value in node.args if isinstance(value, fx.Node)]
        if len(values) != 2:
            return None
        for value, other in (values, values[::-1]):
            chain = self.dot_behind(value) if self.read_once(value) and value is not other else None
            if chain is None or chain[1] is not None or not isinstance(self.module(chain[0]), BinaryConv2d):
                continue
            dot, _, norm = chain
            layer = cast(BinaryConv2d, self.module(dot))
            packed = _packed_dot(layer, "float", PackedConv2dAdd)
            affine = _affine(layer, norm, str(dot.target))
            packed.scale, packed.bias = affine.scale, affine.bias
            inputs = [self.packed_input(dot), self.floats(other)]
            return self.emit(dot, "", "conv2d_add", inputs, packed)
        return None

    def function(self, node: fx.Node) -> str:
        if node.op == "get_attr":
            raise ValueError(f"forward reads {node.target} itself, which a frozen network cannot hold; only layers may")
        kind = _FUNCTIONS.get(node.target)
        if kind is None:
            raise ValueError(
                f"{node.name} calls {getattr(node.target, '__name__', node.target)}, which a frozen network cannot "
                f"hold; it may call {', '.join(sorted(set(_FUNCTIONS.values())))}"
            )
        flat: list[Any] = []
        for argument in node.args:
            flat += argument if isinstance(argument, list | tuple) and kind == "cat" else [argument]
        tensors = [argument for argument in flat if isinstance(argument, fx.Node)]
        rest = [argument for argument in flat if not isinstance(argument, fx.Node)]
        names = _POSITIONAL.get(kind, ())
        if len(rest) > len(names):
            raise ValueError(f"{node.name}: {kind} with constant arguments {rest} cannot be frozen")
        arguments = dict(zip(names, rest, strict=False)) | dict(node.kwargs)
        arguments.pop("inplace", None)
        try:
            json.dumps(arguments, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{node.name}: {kind} cannot be frozen with {arguments}; it takes tensors by position, and numbers"
            ) from error
        inputs, layer = [self.floats(tensor) for tensor in tensors], None
        if kind == "max_pool2d":
            kind, layer = "float_max_pool2d", nn.MaxPool2d(**arguments)
            arguments = float_layer_arguments(kind, layer)
        return self.emit(node, "", kind, inputs, layer, **arguments)

    def channels(self, node: fx.Node) -> int | None:
        """Channels of a value that a batch norm, convolution or pool of one makes."""
        module = self.module(node)
        if isinstance(module, BinaryConv2d | nn.Conv2d):
            return module.out_channels
        if isinstance(module, _NORMS):
            return module.num_features
        return self.channels(self.source(node)) if isinstance(module, nn.MaxPool2d) else None


def _flatten_views(graph: fx.Graph) -> None:
    """``x.view(x.size(0), -1)``, the usual way to say flatten, as flatten."""
    for node in list(graph.nodes):
        if node.op != "call_method" or node.target not in ("view", "reshape") or len(node.args) != 3:
            continue
        x, rows, rest = node.args
        if rest == -1 and _is_batch_size(rows):
            with graph.inserting_before(node):
                flat = graph.call_function(torch.flatten, (x, 1))
            node.replace_all_uses_with(flat)
            graph.erase_node(node)


def _is_batch_size(value: Any) -> bool:
    """Whether a traced value is ``size(0)`` or ``shape[0]`` of some tensor."""
    if not isinstance(value, fx.Node):
        return False
    if value.op == "call_method" and value.target == "size":
        return value.args[1:] == (0,)
    if value.target is not operator.getitem or value.args[1] != 0:
        return False
    shape = cast(fx.Node, value.args[0])
    return shape.target == "size" or (shape.target is getattr and shape.args[1] == "shape")


def _kind(layer: Binary) -> str:
    return "conv2d" if isinstance(layer, BinaryConv2d) else "linear"


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _packable_pool(module: nn.Module | None) -> bool:
    if not isinstance(module, nn.MaxPool2d):
        return False
    return _pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices


def _packed_pool(pool: nn.MaxPool2d, channels: int, flip: Tensor | None) -> PackedMaxPool2d:
    layer = PackedMaxPool2d(
        channels=channels,
        kernel_size=_pair(pool.kernel_size),
        stride=_pair(pool.stride),
        padding=_pair(pool.padding),
        flips=flip is not None,
    )
    if flip is not None:
        layer.flip = flip
    return layer


def _packed_dot(layer: Binary, epilogue: str, conv2d: type[PackedConv2d] = PackedConv2d) -> Any:
    activations = layer.input_binarizer.encoding
    packed: PackedConv2d | PackedLinear
    if isinstance(layer, BinaryConv2d):
        packed = conv2d(
            in_channels=layer.in_channels,
            out_channels=layer.out_channels,
            kernel_size=layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            activations=cast(Any, activations),
            epilogue=cast(Any, epilogue),
        )
    else:
        packed = PackedLinear(
            in_features=layer.in_features,
            out_features=layer.out_features,
            activations=cast(Any, activations),
            epilogue=cast(Any, epilogue),
        )
    packed.weight = ops.pack_weight(layer.binary_weight())
    return packed


def _affine(layer: Binary, norm: nn.Module | None, name: str) -> fold.ChannelAffine:
    return fold.fold_affine(layer.weight_scale(), layer.bias, cast(Any, norm), name)


def _largest_dot(layer: Binary) -> int:
    return layer.weight[0].numel()


def _fuse(conv: nn.Conv2d | nn.Linear, norm: nn.Module, name: str) -> nn.Module:
    """A float convolution or linear layer with its batch norm folded in."""
    affine = fold.fold_affine(torch.ones(conv.weight.shape[0]), conv.bias, cast(Any, norm), name)
    fused = copy.deepcopy(conv)
    shape = (-1, *[1] * (conv.weight.dim() - 1))
    fused.weight = nn.Parameter(conv.weight.detach() * affine.scale.view(shape))
    fused.bias = nn.Parameter(affine.bias)
    return fused

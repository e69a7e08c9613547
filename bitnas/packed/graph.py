"""A trained module as a graph that freezing can ask questions of: torch.fx traces it, this reads what was traced.

Nothing here makes a step of the frozen network; :mod:`bitnas.packed.lowering` does.
"""

import operator
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import fx, nn

from bitnas.nn import BinaryConv2d, BinaryLinear, ChannelBias, FitChannels, JoinNodes, LSQConv2d, TileChannels
from bitnas.packed.steps import source_name

# Layers that are one node of the graph, with a forward that freezing knows.
LEAVES = (BinaryConv2d, BinaryLinear, LSQConv2d, ChannelBias, TileChannels, FitChannels, JoinNodes)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
PASS_THROUGH = (nn.Identity, nn.Dropout, nn.Dropout2d)

# torch.fx call targets and the functions of a frozen network; names of methods stand for themselves.
FUNCTION_NAMES: dict[Any, str] = {
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

# Layers whose output has the layout of their input.
_SAME_LAYOUT = (nn.ReLU, nn.PReLU, nn.Hardtanh, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, *PASS_THROUGH)


class Layout(NamedTuple):
    """``[N, channels, H, W]``, or ``[N, channels]`` where ``rows``."""

    channels: int
    rows: bool = False


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
        return isinstance(m, LEAVES) or super().is_leaf_module(m, module_qualified_name)


class Graph:
    """What a module's forward calls, in order.

    Raises ValueError where torch.fx cannot trace it, or where it changes a value in place that is read again.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        try:
            traced = _Tracer().trace(model)
        except Exception as error:  # fx raises whatever the traced code raises
            raise ValueError(
                f"{type(model).__name__}.forward cannot be traced by torch.fx ({error}); it must not branch on tensor "
                "values or shapes"
            ) from error
        graph = fx.GraphModule(model, traced).graph
        self.nodes = graph.nodes
        self.sources = self._name_calls()  # before dead code goes: a hook sees dead calls too
        _flatten_views(graph)
        graph.eliminate_dead_code()
        self._check_in_place()
        self.layouts: dict[fx.Node, Layout] = {}
        for node in self.nodes:
            if (layout := self._layout(node)) is not None:
                self.layouts[node] = layout

    def _name_calls(self) -> dict[fx.Node, str]:
        calls: dict[str, int] = {}
        names = {}
        for node in self.nodes:
            if node.op == "call_module":
                target = str(node.target)
                calls[target] = calls.get(target, 0) + 1
                names[node] = source_name(target, calls[target])
        return names

    def _check_in_place(self) -> None:
        """An operation in place is the plain one, unless somebody reads its operand afterwards."""
        order = {node: i for i, node in enumerate(self.nodes)}
        for node in self.nodes:
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

    def _layout(self, node: fx.Node) -> Layout | None:
        """As far as the layers say it, whatever the input is."""
        module, function = self.module(node), self.function(node)
        if isinstance(module, BinaryConv2d | nn.Conv2d | FitChannels | JoinNodes):
            return Layout(module.out_channels)
        if isinstance(module, nn.BatchNorm2d):
            return Layout(module.num_features)
        if isinstance(module, BinaryLinear):  # a frozen one takes rows alone
            return Layout(module.out_features, True)
        values = [self.layouts.get(value) for value in node.args if isinstance(value, fx.Node)]
        before = values[0] if values else None
        if before is None:
            return None
        if self.flattens(node):
            return Layout(before.channels, True) if self.flattens_pixels(node) else None
        if isinstance(module, TileChannels):
            return Layout(module.out_channels, before.rows)
        if isinstance(module, nn.Linear):
            return Layout(module.out_features, True) if before.rows else None
        if isinstance(module, ChannelBias):
            return before if module.channels == before.channels else None
        if isinstance(module, nn.BatchNorm1d):
            return before if before.rows else None
        if isinstance(module, _SAME_LAYOUT) or function in ("relu", "avg_pool2d", "adaptive_avg_pool2d"):
            return before
        if function == "mean" and (keeps := self.spatial_mean(node)) is not None:
            return Layout(before.channels, not keeps)
        if function == "add" and len(values) == len(node.args) == 2 and values[1] == before:
            return before
        return None

    # ---- questions ------------------------------------------------------------

    def module(self, node: fx.Node) -> nn.Module | None:
        return self.model.get_submodule(str(node.target)) if node.op == "call_module" else None

    def function(self, node: fx.Node) -> str | None:
        """The name of the function that the node calls, if a frozen network has it."""
        return FUNCTION_NAMES.get(node.target) if node.op in ("call_function", "call_method") else None

    def flattens(self, node: fx.Node) -> bool:
        return self.function(node) == "flatten" or isinstance(self.module(node), nn.Flatten)

    def flattens_pixels(self, node: fx.Node) -> bool:
        """Whether the node flattens all but the first dimension, the value having one pixel: ``[N, C, 1, 1]``."""
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            dims: tuple[Any, ...] = (module.start_dim, module.end_dim)
        else:
            dims = (*node.args[1:], -1, -1)[:2]
            dims = (node.kwargs.get("start_dim", dims[0]), node.kwargs.get("end_dim", dims[1]))
        return dims in ((1, -1), (1, 3)) and self.one_pixel(cast(fx.Node, node.args[0]))

    def one_pixel(self, node: fx.Node) -> bool:
        """Whether the value is ``[N, C, 1, 1]`` whatever the input is: global average pooling gave it."""
        node = self.skip(node)
        if isinstance(module := self.module(node), nn.AdaptiveAvgPool2d):
            return module.output_size in (1, (1, 1))
        if self.function(node) == "adaptive_avg_pool2d":
            return (*node.args[1:], node.kwargs.get("output_size"))[0] in (1, (1, 1), [1, 1])
        return self.function(node) == "mean" and self.spatial_mean(node) is True

    def spatial_mean(self, node: fx.Node) -> bool | None:
        """Of a ``mean``: whether it keeps the dimensions, if it is one over height and width; else None."""
        names = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | dict(node.kwargs)
        dims = names.get("dim")
        if set(names) - {"dim", "keepdim"} or not isinstance(dims, list | tuple):
            return None
        return bool(names.get("keepdim")) if set(dims) in ({2, 3}, {-2, -1}) else None

    def aliases(self, node: fx.Node) -> list[fx.Node]:
        """The nodes whose value may share the memory of this one: what it is a flat view of, and the views of that."""
        while self.flattens(node):
            node = self.skip(cast(fx.Node, node.args[0]))
        found = [node]
        for same in found:
            found += [reader for reader in self.readers(same) if self.flattens(reader)]
        return found

    def source(self, node: fx.Node) -> fx.Node:
        """The input of a layer, past layers that do nothing when evaluated."""
        if len(node.args) != 1 or not isinstance(node.args[0], fx.Node):
            raise ValueError(f"{node.target} must be called with one tensor, by position, to be frozen")
        return self.skip(cast(fx.Node, node.args[0]))

    def skip(self, node: fx.Node) -> fx.Node:
        while isinstance(self.module(node), PASS_THROUGH):
            node = cast(fx.Node, node.args[0])
        return node

    def readers(self, node: fx.Node) -> list[fx.Node]:
        found: list[fx.Node] = []
        for user in node.users:
            found += self.readers(user) if isinstance(self.module(user), PASS_THROUGH) else [user]
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
            elif not (packable_pool(module) and self.only_binarized(reader, activations)):
                return False
        return True

    def channels(self, node: fx.Node) -> int | None:
        """Channels of a value that a batch norm, convolution or pool of one makes."""
        module = self.module(node)
        if isinstance(module, BinaryConv2d | nn.Conv2d):
            return module.out_channels
        if isinstance(module, NORMS):
            return module.num_features
        return self.channels(self.source(node)) if isinstance(module, nn.MaxPool2d) else None


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def packable_pool(module: nn.Module | None) -> bool:
    """Whether a layer is a max-pool that bits can go through."""
    if not isinstance(module, nn.MaxPool2d):
        return False
    return pair(module.dilation) == (1, 1) and not module.ceil_mode and not module.return_indices


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

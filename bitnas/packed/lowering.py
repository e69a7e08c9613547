"""The traced graph lowered to steps, from its output backwards.

Each value is asked for either as floats or as the bits of a binarizer, and the cheapest way to make it is chosen by the
few rules in :class:`Lowering`. So batch norm becomes a scale or an integer threshold, pooling runs on bits, two layers
that binarize the same value share one packed tensor, and a value that only binary layers read never exists in float.

A bias per channel costs no pass over memory either: one that follows an affine map is added to its bias, and one that
follows anything else waits (:class:`Value`) until a threshold, the affine map that adds the value as a residual, or the
classifier takes it in.
"""

import copy
import json
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx, nn

from bitnas import ops
from bitnas.nn import BinaryConv2d, BinaryLinear, ChannelBias, FitChannels, JoinNodes, LSQConv2d, TileChannels
from bitnas.nn.channels import tile_channels
from bitnas.packed import fold
from bitnas.packed.graph import FUNCTION_NAMES, NORMS, PASS_THROUGH, Graph, Layout, packable_pool, pair
from bitnas.packed.int8 import Int8Conv2d
from bitnas.packed.layers import (
    Affine,
    Memory,
    Pack,
    PackedConv2d,
    PackedConv2dAdd,
    PackedLayer,
    PackedLinear,
    PackedMaxPool2d,
)
from bitnas.packed.network import RESERVED, PackedNetwork
from bitnas.packed.steps import INPUT, Step, float_layer_arguments, float_layer_kind

Binary = BinaryConv2d | BinaryLinear
_FLOAT_DOTS = (nn.Conv2d, nn.Linear)

# Names of arguments given by position, after the tensors.
_POSITIONAL = {
    "flatten": ("start_dim", "end_dim"),
    "cat": ("dim",),
    "mean": ("dim", "keepdim"),
    "max_pool2d": ("kernel_size", "stride", "padding"),
    "avg_pool2d": ("kernel_size", "stride", "padding"),
    "adaptive_avg_pool2d": ("output_size",),
}


class Value(NamedTuple):
    """What a step makes, and what is still to be added to it: float64 ``[C]``, or None for nothing."""

    name: str
    offset: Tensor | None = None


class Chain(NamedTuple):
    """A binary layer, and what makes one affine map of its integers: nothing else reads what lies between."""

    dot: fx.Node
    pool: fx.Node | None  # max-pool, before the norm
    norm: nn.Module | None
    offset: Tensor | None  # added last, float64 [C]
    relu: bool = False  # behind all of it


class Lowering:
    """Makes steps for the values that are asked for, each once, in the order they are needed."""

    def __init__(self, graph: Graph, pixels: tuple[float, float] | None) -> None:
        self.graph = graph
        self.pixels = pixels
        self.steps: list[Step] = []
        self.layers: dict[str, nn.Module] = {}
        self.made: dict[tuple[fx.Node, str], str] = {}
        self.values: dict[fx.Node, Value] = {}

    def network(self, config: Any, memory: Memory) -> PackedNetwork:
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ValueError(f"a frozen network takes one input, this model takes {len(inputs)}")
        output = next(node for node in self.graph.nodes if node.op == "output").args[0]
        if not isinstance(output, fx.Node):
            raise ValueError("a frozen network returns one tensor")
        # In the order of the forward pass: all of these are asked for in the end, and no chain of askers grows long.
        for node in self.graph.nodes:
            if isinstance(self.graph.module(node), BinaryConv2d | BinaryLinear):
                self.packed_input(node)
            elif node.op not in ("placeholder", "output") and not self.waits(node):
                self.value(node)
        last = self.floats(output)
        if not self.steps or last != self.steps[-1].name:
            raise ValueError("the model's output is its input: there is nothing to freeze")
        network = PackedNetwork(self.steps, self.layers, config, memory)
        if self.pixels is not None and network.pixels is None:
            raise ValueError(
                f"pixels={self.pixels}: this model's input is not read by 8-bit convolutions (bitnas.nn.LSQConv2d) "
                "alone, so it cannot take uint8 images; leave pixels out"
            )
        return network

    def waits(self, node: fx.Node) -> bool:
        """Whether the value is made when its first reader asks, if ever: it may fold into what comes after it."""
        module = self.graph.module(node)
        if self.rectified(node) is not None:
            return True
        readers = [self.graph.module(reader) for reader in self.graph.readers(node)]
        if type(module) in _FLOAT_DOTS:
            return any(isinstance(reader, (*NORMS, ChannelBias)) for reader in readers)
        if self.graph.function(node) == "add":
            return len(readers) == 1 and isinstance(readers[0], ChannelBias)
        return isinstance(module, (*NORMS, *PASS_THROUGH, nn.MaxPool2d, LSQConv2d, ChannelBias, TileChannels))

    # ---- what lies before a value ------------------------------------------------

    def shifted(self, node: fx.Node) -> tuple[fx.Node, Tensor | None]:
        """The value and, past the biases that alone read it, what they add: float64 ``[C]``."""
        total = None
        while isinstance(bias := self.graph.module(node), ChannelBias):
            source = self.graph.source(node)
            layout = self.graph.layouts.get(source)
            if not self.graph.read_once(source) or layout is None or layout.channels != bias.channels:
                break
            node, total = source, _sum(total, bias.bias.detach().double())
        return node, total

    def dot_behind(self, node: fx.Node) -> Chain | None:
        """The binary layer, max-pool, batch norm and biases that make this value, if nothing else reads them."""
        node, offset = self.shifted(node)
        norm = self.graph.module(node)
        pool: fx.Node | None = None
        if isinstance(norm, NORMS):
            node = self.graph.source(node)
            if not self.graph.read_once(node):
                return None
            if packable_pool(self.graph.module(node)):
                pool = node
                node = self.graph.source(node)
                if not self.graph.read_once(node):
                    return None
        else:
            norm = None
        if isinstance(self.graph.module(node), BinaryConv2d | BinaryLinear):
            return Chain(node, pool, norm, offset)
        return None

    def rectified(self, node: fx.Node) -> Chain | None:
        """The same of a binary convolution with a ReLU behind it."""
        if not isinstance(self.graph.module(node), nn.ReLU) and self.graph.function(node) != "relu":
            return None
        source = self.graph.skip(cast(fx.Node, node.args[0]))
        chain = self.dot_behind(source) if self.graph.read_once(source) else None
        if chain is None or chain.pool is not None or not isinstance(self.graph.module(chain.dot), BinaryConv2d):
            return None
        return chain._replace(relu=True)

    # ---- making values ----------------------------------------------------------

    def emit(
        self, node: fx.Node, suffix: str, kind: str, inputs: list[str], layer: nn.Module | None, **arguments: Any
    ) -> str:
        name = (str(node.target) if node.op == "call_module" else node.name).replace(".", "_") + suffix
        while name in RESERVED or any(step.name == name for step in self.steps):
            name += "_"
        if isinstance(layer, PackedLayer):
            arguments = layer.spec
        named = isinstance(layer, PackedConv2d | PackedLinear | Int8Conv2d)
        self.steps.append(Step(name, kind, tuple(inputs), arguments, self.graph.sources[node] if named else None))
        if layer is not None:
            self.layers[name] = layer
        return name

    def once(self, node: fx.Node, form: str, make: Callable[[], str]) -> str:
        if (node, form) not in self.made:
            self.made[node, form] = make()
        return self.made[node, form]

    # ---- bits -------------------------------------------------------------------

    def packed_input(self, dot: fx.Node) -> str:
        layer = cast(Binary, self.graph.module(dot))
        return self.bits(self.graph.source(dot), layer.input_binarizer.encoding)

    def bits(self, node: fx.Node, activations: ops.Activations) -> str:
        """The value, binarized and packed."""
        node = self.graph.skip(node)
        return self.once(node, activations, lambda: self._bits(node, activations))

    def _bits(self, node: fx.Node, activations: ops.Activations) -> str:
        module = self.graph.module(node)
        if self.graph.only_binarized(node, activations):
            if (chain := self.dot_behind(node)) is not None:
                return self.threshold(chain, activations)
            if packable_pool(module):
                pool = cast(nn.MaxPool2d, module)
                channels = self.graph.channels(self.graph.source(node))
                if channels is not None:
                    pooled = _packed_pool(pool, channels, None)
                    return self.emit(node, "", "max_pool2d", [self.bits(self.graph.source(node), activations)], pooled)
            if isinstance(module, NORMS) and (chain := self.rectified_once(node)) is not None:
                return self.threshold(chain, activations, module)
            if isinstance(module, NORMS):
                value = self.value(self.graph.source(node))
                affine = fold.fold_affine(torch.ones(module.num_features), value.offset, module, str(node.target))
                return self.emit(node, "_pack", "pack", [value.name], _pack(affine, activations))
        value = self.value(node)
        if value.offset is None:
            return self.emit(node, "_pack", "pack", [value.name], Pack(activations=activations))
        affine = fold.ChannelAffine(torch.ones(value.offset.numel()), value.offset.float())
        return self.emit(node, "_pack", "pack", [value.name], _pack(affine, activations))

    def rectified_once(self, norm: fx.Node) -> Chain | None:
        """The binary convolution and ReLU before a norm that alone reads them."""
        source = self.graph.source(norm)
        return self.rectified(source) if self.graph.read_once(source) else None

    def threshold(self, chain: Chain, activations: ops.Activations, norm: nn.Module | None = None) -> str:
        """A binary layer straight to the bits of the next one; under a max-pool the flip waits until after it.

        ``norm``: the batch norm behind a chain that ends in a ReLU.
        """
        layer = cast(Binary, self.graph.module(chain.dot))
        affine, after = _affine(layer, chain), None
        if chain.relu:
            ones = torch.ones(affine.scale.numel())
            after = fold.fold_affine(ones, None, cast(Any, norm), f"{chain.dot.target}, what follows")
        threshold, flip = fold.integer_threshold(affine, activations, _largest_dot(layer), after)
        packed = _packed_dot(layer, "bits")
        packed.threshold = threshold
        flip_words = ops._pack(flip.float()[None], 0.5)[0]
        if chain.pool is None:
            packed.flip = flip_words
        name = self.emit(chain.dot, "", _kind(layer), [self.packed_input(chain.dot)], packed)
        if chain.pool is None:
            return name
        pooled = _packed_pool(cast(nn.MaxPool2d, self.graph.module(chain.pool)), layer.weight.shape[0], flip_words)
        return self.emit(chain.pool, "", "max_pool2d", [name], pooled)

    # ---- floats -----------------------------------------------------------------

    def floats(self, node: fx.Node) -> str:
        """The value as floats, nothing left to be added."""
        node = self.graph.skip(node)
        value = self.value(node)
        offset = value.offset
        if offset is None:
            return value.name
        return self.once(node, "float", lambda: self.emit(node, "_bias", "affine", [value.name], _added(offset)))

    def value(self, node: fx.Node) -> Value:
        """The value as floats, a bias per channel perhaps still to be added."""
        node = self.graph.skip(node)
        if node not in self.values:
            self.values[node] = self._value(node)
        return self.values[node]

    def _value(self, node: fx.Node) -> Value:
        if node.op == "placeholder":
            return Value(INPUT)
        if (name := self.affine_map(node)) is not None:
            return Value(name)
        module = self.graph.module(node)
        if isinstance(module, ChannelBias):
            return self.biased(node, module)
        if isinstance(module, FitChannels | JoinNodes):
            return Value(self.cell_end(node, module))
        if (value := self.with_offset_kept(node)) is not None:
            return value
        if module is None:
            return Value(self.function(node))
        source = self.graph.source(node)
        if type(module) is nn.Linear:
            return Value(self.linear(node, module, None, None))
        return Value(self.float_layer(node, module, self.floats(source)))

    def affine_map(self, node: fx.Node) -> str | None:
        """The value where an affine map ends it, with the biases behind it: a binary or 8-bit layer's, a float
        layer's with its batch norm, or a residual sum."""
        if (chain := self.dot_behind(node) or self.rectified(node)) is not None:
            return self.scaled(chain)
        base, offset = self.shifted(node)
        module = norm = self.graph.module(base)
        if isinstance(norm, NORMS):
            if not self.graph.read_once(base := self.graph.source(base)):
                return None
            module = self.graph.module(base)
        else:
            norm = None
        if isinstance(module, LSQConv2d):
            return self.int8_conv2d(base, module, norm, offset)
        if type(module) is nn.Linear and (norm is not None or offset is not None):
            return self.linear(base, module, norm, offset)
        if type(module) is nn.Conv2d and (norm is not None or offset is not None):
            fused = _fuse(module, norm, offset, str(base.target))
            return self.float_layer(base, fused, self.floats(self.graph.source(base)))
        return self.residual(base, offset) if self.graph.function(base) == "add" else None

    def biased(self, node: fx.Node, bias: ChannelBias) -> Value:
        """A bias that no affine map before it takes in. Where it is sure to have as many channels as the value, whoever
        reads it may still do."""
        source = self.graph.source(node)
        added = bias.bias.detach().double()
        layout = self.graph.layouts.get(source)
        if layout is not None and layout.channels == bias.channels:
            before = self.value(source)
            return Value(before.name, _sum(before.offset, added))
        return Value(self.emit(node, "", "affine", [self.floats(source)], _added(added)))

    def with_offset_kept(self, node: fx.Node) -> Value | None:
        """Of layers and functions with f(x + offset) = f(x) + offset, tiled where f tiles: pools, views and tiling."""
        module, function = self.graph.module(node), self.graph.function(node)
        if isinstance(module, TileChannels):
            value = self.value(self.graph.source(node))
            name = self.emit(node, "", "tile_channels", [value.name], None, channels=module.out_channels)
            return Value(name, _tiled(value.offset, module.out_channels))
        keeps = isinstance(module, nn.AdaptiveAvgPool2d | nn.MaxPool2d)
        if isinstance(module, nn.AvgPool2d):
            keeps = module.divisor_override is None and not (module.count_include_pad and any(pair(module.padding)))
        keeps |= self.graph.flattens(node) and self.graph.flattens_pixels(node)
        keeps |= function == "adaptive_avg_pool2d"
        keeps |= function == "mean" and self.graph.spatial_mean(node) is not None
        sources = [self.graph.skip(value) for value in node.args if isinstance(value, fx.Node)]
        if not keeps or len(sources) != 1:
            return None
        layout, value = self.graph.layouts.get(sources[0]), self.value(sources[0])
        if value.offset is None or layout is None or layout.rows:
            return None
        if module is None:
            return Value(self.function(node, value.name), value.offset)
        return Value(self.float_layer(node, module, value.name), value.offset)

    def cell_end(self, node: fx.Node, module: FitChannels | JoinNodes) -> str:
        inputs = [self.floats(cast(fx.Node, value)) for value in node.args]
        arguments: dict[str, Any] = {"repeat": module.repeat}
        if isinstance(module, JoinNodes):
            return self.emit(
                node, "", "join_nodes", inputs, None, channels=module.channels, live=module.live, **arguments
            )
        arguments |= {"channels": module.out_channels, "groups": module.groups}
        return self.emit(node, "", "fit_channels", inputs, None, **arguments)

    def float_layer(self, node: fx.Node, module: nn.Module, source: str) -> str:
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
        return self.emit(node, "", kind, [source], module, **arguments)

    def linear(self, node: fx.Node, module: nn.Linear, norm: nn.Module | None, offset: Tensor | None) -> str:
        """A float linear layer, with what its input still lacks in its bias."""
        source = self.graph.source(node)
        before = self.value(source)
        if before.offset is None or self.graph.layouts.get(source) != Layout(module.in_features, rows=True):
            name = self.floats(source)
        else:
            name, module = before.name, copy.deepcopy(module)
            moved = module.weight.double() @ before.offset
            if module.bias is not None:
                moved = moved + module.bias.double()
            module.bias = nn.Parameter(moved.float())
        if norm is not None or offset is not None:
            module = cast(nn.Linear, _fuse(module, norm, offset, str(node.target)))
        return self.float_layer(node, module, name)

    def int8_conv2d(self, node: fx.Node, module: LSQConv2d, norm: nn.Module | None, offset: Tensor | None) -> str:
        source = self.graph.source(node)
        pixels = self.pixels if source.op == "placeholder" else None
        layer = Int8Conv2d.folded(module, norm, offset, pixels, str(node.target))
        return self.emit(node, "", "int8_conv2d", [self.floats(source)], layer)

    def scaled(self, chain: Chain) -> str:
        """A binary layer to floats. Under a max-pool the integers are pooled, then the one affine map follows."""
        layer = cast(Binary, self.graph.module(chain.dot))
        affine = _affine(layer, chain)
        packed = _packed_dot(layer, "float", PackedConv2d, **_relu(chain))
        if chain.pool is None:
            packed.scale, packed.bias = affine.scale, affine.bias
        name = self.emit(chain.dot, "", _kind(layer), [self.packed_input(chain.dot)], packed)
        if chain.pool is None:
            return name
        pool = cast(nn.MaxPool2d, self.graph.module(chain.pool))
        name = self.float_layer(chain.pool, pool, name)
        after = Affine(channels=affine.scale.numel())
        after.scale, after.bias = affine.scale, affine.bias
        return self.emit(chain.pool, "_affine", "affine", [name], after)

    def residual(self, node: fx.Node, offset: Tensor | None) -> str | None:
        """A sum of two values of which one is a binary convolution's that nobody else reads: added in its epilogue."""
        if len(node.args) != 2 or set(node.kwargs) - {"inplace"}:
            return None
        values = [self.graph.skip(value) for value in node.args if isinstance(value, fx.Node)]
        if len(values) != 2:
            return None
        # The running sum of a cell's node has its next term last.
        for value, other in (values[::-1], values) if self.rectified(values[1]) is not None else (values, values[::-1]):
            once = self.graph.read_once(value) and value is not other
            chain = self.dot_behind(value) or self.rectified(value) if once else None
            if (
                chain is None
                or (chain.relu and offset is not None)
                or chain.pool is not None
                or not isinstance(self.graph.module(chain.dot), BinaryConv2d)
            ):
                continue
            layer = cast(BinaryConv2d, self.graph.module(chain.dot))
            bits = self.packed_input(chain.dot)
            name, total, channels = (
                self.added(other, layer.out_channels) if not chain.relu else (self.floats(other), None, None)
            )
            packed = _packed_dot(layer, "float", PackedConv2dAdd, residual_channels=channels, **_relu(chain))
            affine = _affine(layer, chain, _sum(offset, total))
            packed.scale, packed.bias = affine.scale, affine.bias
            return self.emit(chain.dot, "", "conv2d_add", [bits, name], packed)
        return None

    def added(self, node: fx.Node, channels: int) -> tuple[str, Tensor | None, int | None]:
        """A value for an epilogue of so many channels that adds it: its name, the offset that is still to be added, and
        how many channels it has where it has fewer, to be repeated."""
        if self.graph.layouts.get(node) != Layout(channels):
            return self.floats(node), None, None
        if not isinstance(self.graph.module(node), TileChannels):
            return *self.value(node), None
        source = self.graph.source(node)
        fewer = cast(Layout, self.graph.layouts[source]).channels
        if fewer == channels:
            return *self.value(source), None
        value = self.value(source)
        return value.name, _tiled(value.offset, channels), fewer

    def function(self, node: fx.Node, source: str | None = None) -> str:
        """``source``: what the one tensor it reads is called, where it is not to be asked for."""
        if node.op == "get_attr":
            raise ValueError(f"forward reads {node.target} itself, which a frozen network cannot hold; only layers may")
        kind = FUNCTION_NAMES.get(node.target)
        if kind is None:
            raise ValueError(
                f"{node.name} calls {getattr(node.target, '__name__', node.target)}, which a frozen network cannot "
                f"hold; it may call {', '.join(sorted(set(FUNCTION_NAMES.values())))}"
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
        inputs = [self.floats(tensor) for tensor in tensors] if source is None else [source]
        layer = None
        if kind == "max_pool2d":
            kind, layer = "float_max_pool2d", nn.MaxPool2d(**arguments)
            arguments = float_layer_arguments(kind, layer)
        return self.emit(node, "", kind, inputs, layer, **arguments)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return a if b is None else b if a is None else a + b


def _tiled(offset: Tensor | None, channels: int) -> Tensor | None:
    return None if offset is None else tile_channels(offset[None], channels)[0]


def _kind(layer: Binary) -> str:
    return "conv2d" if isinstance(layer, BinaryConv2d) else "linear"


def _pack(affine: fold.ChannelAffine, activations: ops.Activations) -> Pack:
    layer = Pack(activations=activations, channels=affine.scale.numel())
    layer.threshold, layer.direction = fold.float_threshold(affine, activations)
    return layer


def _relu(chain: Chain) -> dict[str, bool]:
    return {"relu": True} if chain.relu else {}


def _added(offset: Tensor) -> Affine:
    layer = Affine(channels=offset.numel())
    layer.bias = offset.float()
    return layer


def _packed_pool(pool: nn.MaxPool2d, channels: int, flip: Tensor | None) -> PackedMaxPool2d:
    layer = PackedMaxPool2d(
        channels=channels,
        kernel_size=pair(pool.kernel_size),
        stride=pair(pool.stride),
        padding=pair(pool.padding),
        flips=flip is not None,
    )
    if flip is not None:
        layer.flip = flip
    return layer


def _packed_dot(layer: Binary, epilogue: str, conv2d: type[PackedConv2d] = PackedConv2d, **options: Any) -> Any:
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
            **options,
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


def _affine(layer: Binary, chain: Chain, offset: Tensor | None = None) -> fold.ChannelAffine:
    total = _sum(chain.offset, offset)
    return fold.fold_affine(layer.weight_scale(), layer.bias, cast(Any, chain.norm), str(chain.dot.target), total)


def _largest_dot(layer: Binary) -> int:
    return layer.weight[0].numel()


def _fuse(conv: nn.Conv2d | nn.Linear, norm: nn.Module | None, offset: Tensor | None, name: str) -> nn.Module:
    """A float convolution or linear layer with its batch norm and the bias behind it folded in."""
    affine = fold.fold_affine(torch.ones(conv.weight.shape[0]), conv.bias, cast(Any, norm), name, offset)
    fused = copy.deepcopy(conv)
    shape = (-1, *[1] * (conv.weight.dim() - 1))
    fused.weight = nn.Parameter(conv.weight.detach() * affine.scale.view(shape))
    fused.bias = nn.Parameter(affine.bias)
    return fused

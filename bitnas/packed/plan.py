"""How a frozen network runs: its steps as calls, several steps in one call where that saves a pass over memory.

Binary layers are exact whatever call they are in, and so, on a CPU, is a float convolution of few channels with what
follows it. Other float layers, and all of them on a GPU, compute what torch computes. A call is data: it names its
layers, which are looked up when it runs, so that a deep copy of a network runs its own.

What a cell of BARS becomes (bitnas.models.bars; k is how many binary convolutions read a value, each packs it by
thresholds of its own; all k packings are in the call that makes the value):

    preprocess   binary: [conv2d, k x pack], or [conv2d to bits] where one convolution is all that reads node 0;
                 float: [relu], [float convolution], [k x pack]; from at most 16 channels as any stem
    convolution  first term of its node: [conv2d]; later: [conv2d_add], which adds the sum of the terms before it; the
                 node's last term: with k x pack. ReLU, sum and packings are in its epilogue
    skip         none where it is its node's first term: the value is the sum so far. A node that is one skip alone is
                 the value it skips from, and its readers count in that value's k. Each further skip: [add], and behind
                 the last term of skips alone [k x pack]. From node 0 of a cell that strides: one [average pool, fit,
                 k x pack] for all of them
    join         [join, k x pack], [average pool, join, k x pack] where the cell strides; k is 1 before a live cell with
                 a binary preprocess, else 0. It reads the shortcut and the nodes that are live
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitnas.packed.int8 import STEM_CHANNELS, Int8Conv2d, dense
from bitnas.packed.layers import Pack, PackedConv2d, pack_all
from bitnas.packed.steps import FUNCTIONS, Step

Modules = dict[str, Any]
Values = dict[str, Tensor]

_float_conv2d = torch.ops.bitnas.float_conv2d.default
_float_conv2d_bits = torch.ops.bitnas.float_conv2d_bits.default
_join_nodes = torch.ops.bitnas.join_nodes.default
_join_nodes_bits = torch.ops.bitnas.join_nodes_bits.default
_MOST_JOINED = 8  # kMaxJoinedNodes of join.h
_HALVES = {
    "kernel_size": 2,
    "stride": 2,
    "padding": 0,
    "ceil_mode": True,
    "count_include_pad": False,
    "divisor_override": None,
}
_NO_POOL = (1, 1, 1, 1, 0, 0)


@dataclass(frozen=True)
class Call(abc.ABC):
    """Makes the values ``names``, of one step or of several, from those of ``inputs``."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]

    @property
    def step(self) -> str:
        """The first step that the call stands for."""
        return self.names[0]

    @property
    def covers(self) -> tuple[str, ...]:
        """Every step that the call stands for, in order."""
        return self.names

    @abc.abstractmethod
    def run(self, modules: Modules, values: Values) -> None:
        """Adds ``names`` to the values."""

    def trace(self, modules: Modules, values: Values) -> None:
        """Adds the value of every step that the call stands for."""
        self.run(modules, values)

    def prepare(self, modules: Modules) -> None:  # noqa: B027  # most calls have nothing to lay out
        """Gives float weights the strides that are read fastest. Their values and shapes stay."""


@dataclass(frozen=True)
class _Layer(Call):
    def run(self, modules: Modules, values: Values) -> None:
        values[self.names[0]] = modules[self.names[0]](*[values[name] for name in self.inputs])


@dataclass(frozen=True)
class _Function(Call):
    function: Callable[..., Tensor]
    arguments: dict[str, Any]

    def run(self, modules: Modules, values: Values) -> None:
        values[self.names[0]] = self.function(*[values[name] for name in self.inputs], **self.arguments)


@dataclass(frozen=True)
class _Stem(Call):
    """A float or 8-bit convolution of few channels with the ReLU or PReLU, max-pool and packing behind it, rounded
    alike on every CPU.

    ``chain``: the steps but the one that packs, in order.
    """

    chain: tuple[str, ...]
    relu: bool
    prelu: str | None
    pool: str | None
    pack: str | None

    @property
    def step(self) -> str:
        return self.chain[0]

    @property
    def covers(self) -> tuple[str, ...]:
        return self.chain if self.pack is None else (*self.chain, self.pack)

    def run(self, modules: Modules, values: Values) -> None:
        x = values[self.inputs[0]]
        if not _on_cpu(x):
            made = self._by_steps(modules, x)
            values.update({name: made[name] for name in self.names})
            return
        conv, last = modules[self.chain[0]], self.chain[-1]
        pool = _NO_POOL if self.pool is None else _window(modules[self.pool])
        x, weight, bias, scale = _operands(x, conv)
        slope = None if self.prelu is None else _slope(modules[self.prelu], conv.out_channels)
        geometry = (*conv.stride, *conv.padding, self.relu, *pool, scale, slope)
        if self.pack is None:
            values[last] = _float_conv2d(x, weight, bias, *geometry)
            return
        wanted = last in self.names
        cuts = modules[self.pack].cuts(conv.out_channels)
        floats, values[self.pack] = _float_conv2d_bits(x, weight, bias, *cuts, wanted, *geometry)
        if wanted:
            values[last] = floats

    def trace(self, modules: Modules, values: Values) -> None:
        values.update(self._by_steps(modules, values[self.inputs[0]]))
        self.run(modules, values)

    def _by_steps(self, modules: Modules, x: Tensor) -> Values:
        conv = modules[self.chain[0]]
        if isinstance(conv, Int8Conv2d) or not _on_cpu(x):
            y = conv(x)
        else:
            x, weight, bias, _ = _operands(x, conv)
            y = _float_conv2d(x, weight, bias, *conv.stride, *conv.padding, False, *_NO_POOL)
        made = {self.chain[0]: y}
        for name in self.chain[1:]:
            y = made[name] = modules[name](y) if name in modules else y.relu()
        if self.pack is not None:
            made[self.pack] = modules[self.pack](y)
        return made

    def prepare(self, modules: Modules) -> None:
        conv = modules[self.chain[0]]
        if isinstance(conv, Int8Conv2d):
            return  # prepares itself
        weight = conv.weight.data
        by_taps = weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
        conv.weight.data = by_taps if weight.device.type == "cpu" else weight.contiguous()


def _on_cpu(x: Tensor) -> bool:
    return x.dim() == 4 and x.device.type == "cpu"


def _operands(x: Tensor, conv: nn.Conv2d | Int8Conv2d) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    if isinstance(conv, Int8Conv2d):
        return conv.operands(x)
    return dense(x), conv.weight.permute(2, 3, 1, 0).contiguous(), conv.bias, None


def _slope(prelu: nn.PReLU, channels: int) -> Tensor:
    slope = prelu.weight
    return slope.expand(channels).contiguous() if slope.numel() == 1 else slope


def _window(pool: nn.MaxPool2d) -> tuple[int, ...]:
    return *_pair(pool.kernel_size), *_pair(pool.stride), *_pair(pool.padding)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


@dataclass(frozen=True)
class _FloatConv2d(Call):
    def run(self, modules: Modules, values: Values) -> None:
        x = values[self.inputs[0]]
        if x.dim() == 4 and not x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        values[self.names[0]] = modules[self.names[0]](x)

    def prepare(self, modules: Modules) -> None:
        weight = modules[self.names[0]].weight
        wanted = torch.channels_last if weight.device.type == "cpu" else torch.contiguous_format
        weight.data = weight.data.contiguous(memory_format=wanted)


@dataclass(frozen=True)
class _BinaryConv2d(Call):
    """A binary convolution to floats, with what its epilogue does on the way: a PReLU, and packing the result, once for
    each reader that packs it by thresholds of its own."""

    name: str
    prelu: str | None
    packs: tuple[str, ...]

    @property
    def step(self) -> str:
        return self.name

    @property
    def covers(self) -> tuple[str, ...]:
        return (self.name, *(() if self.prelu is None else (self.prelu,)), *self.packs)

    def run(self, modules: Modules, values: Values) -> None:
        layer: PackedConv2d = modules[self.name]
        x, residual = values[self.inputs[0]], values[self.inputs[1]] if len(self.inputs) > 1 else None
        slope = None
        if self.prelu is not None:
            slope = _slope(modules[self.prelu], layer.spec["out_channels"])
        if not self.packs:
            values[self.names[0]] = layer.floats(x, residual, slope)
            return
        packs = [modules[name] for name in self.packs]
        values[self.names[0]], bits = layer.floats_and_bits(packs, x, residual, slope)
        values.update(zip(self.packs, bits, strict=True))

    def trace(self, modules: Modules, values: Values) -> None:
        self.run(modules, values)
        if self.prelu is not None:
            values[self.name] = modules[self.name](*[values[name] for name in self.inputs])

    def prepare(self, modules: Modules) -> None:
        _stack(modules, self.packs)


@dataclass(frozen=True)
class _Packs(Call):
    """Several packings of one value, each by thresholds of its own."""

    def run(self, modules: Modules, values: Values) -> None:
        bits = pack_all([modules[name] for name in self.names], values[self.inputs[0]])
        values.update(zip(self.names, bits, strict=True))

    def prepare(self, modules: Modules) -> None:
        _stack(modules, self.names)


@dataclass(frozen=True)
class _Join(Call):
    """The end of a cell, or a shortcut fitted, with the average pooling before it and the packings behind it.

    ``place``: of the nodes that are live, then groups, channels and repeat, as the operator takes them.
    """

    name: str
    pool: str | None
    packs: tuple[str, ...]
    place: tuple[int, int, int, int]

    @property
    def step(self) -> str:
        return self.name

    @property
    def covers(self) -> tuple[str, ...]:
        return (*(() if self.pool is None else (self.pool,)), self.name, *self.packs)

    def run(self, modules: Modules, values: Values) -> None:
        shortcut, *nodes = [_channels_last(values[name]) for name in self.inputs]
        if not self.packs:
            values[self.name] = _join_nodes(shortcut, nodes, *self.place, self.pool is not None)
            return
        first, *others = [modules[name] for name in self.packs]
        cuts = first.stacked(others) if others else (first.threshold, first.direction)
        joined = _join_nodes_bits(shortcut, nodes, *cuts, *self.place, self.pool is not None)
        values[self.name] = joined[0]
        values.update(zip(self.packs, joined[1].unbind() if others else joined[1:], strict=True))

    def trace(self, modules: Modules, values: Values) -> None:
        self.run(modules, values)
        if self.pool is not None:
            values[self.pool] = modules[self.pool](values[self.inputs[0]])

    def prepare(self, modules: Modules) -> None:
        _stack(modules, self.packs)


def _channels_last(x: Tensor) -> Tensor:
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous(memory_format=torch.channels_last)


def _stack(modules: Modules, packs: tuple[str, ...]) -> None:
    if len(packs) > 1:
        modules[packs[0]].stack([modules[name] for name in packs[1:]])


class Line(NamedTuple):
    """A call, and the values that nobody reads after it."""

    call: Call
    done: tuple[str, ...]


def make_plan(steps: tuple[Step, ...], layers: dict[str, nn.Module]) -> tuple[Line, ...]:
    """The calls that compute the steps, in order."""
    calls = _Planner(steps, layers).calls()
    last_use = {name: i for i, call in enumerate(calls) for name in call.names}
    last_use |= {name: i for i, call in enumerate(calls) for name in call.inputs}
    last_use.pop(steps[-1].name)
    done: list[list[str]] = [[] for _ in calls]
    for name, i in last_use.items():
        done[i].append(name)
    return tuple(Line(call, tuple(names)) for call, names in zip(calls, done, strict=True))


def _groups(step: Step) -> tuple[bool, ...]:
    """Of the groups that a cell ends in: which have a node. One that fits channels alone has none."""
    return step.arguments["live"] if step.kind == "join_nodes" else (False,) * step.arguments.get("groups", 1)


def _is_join(step: Step) -> bool:
    return step.kind in ("join_nodes", "fit_channels") and 0 < len(_groups(step)) <= _MOST_JOINED


def _is_stem(conv: nn.Conv2d) -> bool:
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return plain and not isinstance(conv.padding, str) and conv.in_channels <= STEM_CHANNELS


class _Planner:
    def __init__(self, steps: tuple[Step, ...], layers: dict[str, nn.Module]) -> None:
        self.steps = steps
        self.layers = layers
        self.by_name = {step.name: step for step in steps}
        self.readers: dict[str, list[Step]] = {}
        for step in steps:
            for name in step.inputs:
                self.readers.setdefault(name, []).append(step)

    def calls(self) -> list[Call]:
        made: set[str] = set()
        calls: list[Call] = []
        for step in self.steps:
            if step.name not in made and not self.joined_later(step.name):
                call = self.call(step)
                calls.append(call)
                made |= set(call.covers)
        return calls

    def call(self, step: Step) -> Call:
        layer, names = self.layers.get(step.name), (step.name,)
        if isinstance(layer, PackedConv2d) and layer.epilogue == "float":
            return self.binary_conv2d(step, layer)
        if isinstance(layer, nn.Conv2d):
            return self.stem(step, layer) if _is_stem(layer) else _FloatConv2d(names, step.inputs)
        if isinstance(layer, Int8Conv2d) and layer.is_stem:
            return self.stem(step, layer)
        if _is_join(step):
            return self.join(step)
        if isinstance(layer, Pack) and len(packs := self.packs(step.inputs[0])) > 1 and step.name in packs:
            return _Packs(packs, step.inputs)
        if layer is None:
            return _Function(names, step.inputs, FUNCTIONS[step.kind], step.arguments)
        return _Layer(names, step.inputs)

    def only_reader(self, name: str) -> Step | None:
        """The step that reads this value, if nothing else does; the output has a reader outside."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and name != self.steps[-1].name else None

    def binary_conv2d(self, step: Step, layer: PackedConv2d) -> Call:
        name, prelu = step.name, None
        reader = self.only_reader(name)
        if reader is not None and self.is_prelu(reader, layer.spec["out_channels"]):
            name = prelu = reader.name
        packs = self.packs(name)
        return _BinaryConv2d((name, *packs), step.inputs, step.name, prelu, packs)

    def packs(self, name: str) -> tuple[str, ...]:
        """The steps that pack this value and may do it in one call: those with a threshold per channel, or one."""
        readers = [reader for reader in self.readers.get(name, []) if reader.kind == "pack"]
        own = tuple(reader.name for reader in readers if reader.arguments["channels"] is not None)
        return own or tuple(reader.name for reader in readers[:1])

    def join(self, step: Step) -> Call:
        arguments, live = step.arguments, _groups(step)
        channels = arguments["channels"] // (len(live) if step.kind == "fit_channels" else 1)
        pool = next((name for name in step.inputs[:1] if self.joined_later(name)), None)
        source = step.inputs[0] if pool is None else self.by_name[pool].inputs[0]
        packs = tuple(name for name in self.packs(step.name) if self.by_name[name].arguments["channels"] is not None)
        mask = sum(alive << place for place, alive in enumerate(live))
        place = (mask, len(live), channels, arguments.get("repeat", 1))
        return _Join((step.name, *packs), (source, *step.inputs[1:]), step.name, pool, packs, place)

    def joined_later(self, name: str) -> bool:
        """Whether the step halves the shortcut of a cell, and nothing else: the call that ends the cell does it."""
        step, reader = self.by_name.get(name), self.only_reader(name)
        if step is None or reader is None or not _is_join(reader) or name in reader.inputs[1:]:
            return False
        return step.kind == "float_avg_pool2d" and {**step.arguments, **_HALVES} == step.arguments

    def is_prelu(self, step: Step, channels: int) -> bool:
        layer = self.layers.get(step.name)
        return isinstance(layer, nn.PReLU) and layer.num_parameters in (1, channels)

    def stem(self, step: Step, conv: nn.Conv2d | Int8Conv2d) -> Call:
        chain, relu, prelu, pool = [step.name], False, None, None
        while (reader := self.only_reader(chain[-1])) is not None and pool is None:
            layer = self.layers.get(reader.name)
            if reader.kind in ("relu", "float_relu") and not relu and prelu is None:
                relu = True
            elif self.is_prelu(reader, conv.out_channels) and not relu and prelu is None:
                prelu = reader.name
            elif isinstance(layer, nn.MaxPool2d) and _pair(layer.dilation) == (1, 1) and not layer.ceil_mode:
                pool = reader.name
            else:
                break
            chain.append(reader.name)
        readers = self.readers.get(chain[-1], [])
        packs = self.packs(chain[-1])
        pack = packs[0] if len(packs) == 1 else None
        names = () if pack is None else (pack,)
        if pack is None or len(readers) > 1 or chain[-1] == self.steps[-1].name:
            names = (chain[-1], *names)
        return _Stem(names, step.inputs, tuple(chain), relu, prelu, pool, pack)

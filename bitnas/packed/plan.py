"""How a frozen network runs: its steps as calls, several steps in one call where that saves a pass over memory.

Binary layers are exact whatever call they are in. Float layers compute what torch computes, in the memory layout and
block of images that the processor likes best; a GPU, and torch.compile, get them as torch has them. A call is data: it
names its layers, which are looked up when it runs, so that a deep copy of a network runs its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bitnas.packed.layers import PackedConv2d
from bitnas.packed.steps import FUNCTIONS, INPUT, Step

Modules = dict[str, Any]
Values = dict[str, Tensor]

# Float values of one block of images: what stays in a core's cache, and what the allocator hands out again. (Memory of
# 32 MB and more comes zeroed from the operating system, page by page, in every call.)
_BLOCK_BYTES = 1 << 21


@dataclass(frozen=True)
class Call:
    """Makes the values ``names``, of one step or of several, from those of ``inputs``."""

    names: tuple[str, ...]
    inputs: tuple[str, ...]

    def run(self, modules: Modules, values: Values) -> None:
        """Adds ``names`` to the values."""
        raise NotImplementedError

    def trace(self, modules: Modules, values: Values) -> None:
        """Adds the value of every step that the call stands for."""
        self.run(modules, values)


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
class _FloatConv2d(Call):
    def run(self, modules: Modules, values: Values) -> None:
        x = values[self.inputs[0]]
        if x.dim() == 4 and not x.is_cuda:
            x = x.contiguous(memory_format=torch.channels_last)
        values[self.names[0]] = modules[self.names[0]](x)


@dataclass(frozen=True)
class _BinaryConv2d(Call):
    """A binary convolution to floats, with what its epilogue does on the way: a PReLU, and packing the result."""

    name: str
    prelu: str | None
    pack: str | None

    def run(self, modules: Modules, values: Values) -> None:
        layer: PackedConv2d = modules[self.name]
        x, residual = values[self.inputs[0]], values[self.inputs[1]] if len(self.inputs) > 1 else None
        slope = None
        if self.prelu is not None:
            slope = modules[self.prelu].weight
            if slope.numel() == 1:
                slope = slope.expand(layer.spec["out_channels"]).contiguous()
        if self.pack is None:
            values[self.names[0]] = layer.floats(x, residual, slope)
        else:
            floats, bits = layer.floats_and_bits(modules[self.pack], x, residual, slope)
            values[self.names[0]], values[self.pack] = floats, bits

    def trace(self, modules: Modules, values: Values) -> None:
        self.run(modules, values)
        if self.prelu is not None:
            values[self.name] = modules[self.name](*[values[name] for name in self.inputs])


@dataclass(frozen=True)
class Blocks(Call):
    """Calls that the network begins with, on a few images at a time."""

    calls: tuple[Call, ...]
    inside: tuple[str, ...]  # values of theirs that nobody else reads

    def run(self, modules: Modules, values: Values) -> None:
        blocks = self.blocks(modules, values[INPUT])
        if len(blocks) == 1:
            for call in self.calls:
                call.run(modules, values)
            for name in self.inside:
                del values[name]
            return
        parts = []
        for block in blocks:
            part = {INPUT: block}
            for call in self.calls:
                call.run(modules, part)
            parts.append([part[name] for name in self.names])
        values.update(zip(self.names, map(torch.cat, zip(*parts, strict=True)), strict=True))

    def trace(self, modules: Modules, values: Values) -> None:
        parts = []
        for block in self.blocks(modules, values[INPUT]):
            part = {INPUT: block}
            for call in self.calls:
                call.trace(modules, part)
            del part[INPUT]
            parts.append(part)
        values.update({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def blocks(self, modules: Modules, x: Tensor) -> tuple[Tensor, ...]:
        if x.dim() != 4 or x.shape[0] < 2 or x.is_cuda or torch.compiler.is_compiling():
            return (x,)
        conv = modules[self.calls[0].names[0]]
        pixels = x.shape[2] * x.shape[3] // (conv.stride[0] * conv.stride[1])
        images = _BLOCK_BYTES * torch.get_num_threads() // max(1, 4 * conv.out_channels * pixels)
        return x.split(max(1, images))


class Line(NamedTuple):
    """A call, and the values that nobody reads after it."""

    call: Call
    done: tuple[str, ...]


def make_plan(steps: tuple[Step, ...], layers: dict[str, nn.Module]) -> tuple[Line, ...]:
    """The calls that compute the steps, in order."""
    planner = _Planner(steps, layers)
    calls = planner.in_blocks(planner.calls())
    last_use = {name: i for i, call in enumerate(calls) for name in call.names}
    last_use |= {name: i for i, call in enumerate(calls) for name in call.inputs}
    last_use.pop(steps[-1].name)
    done: list[list[str]] = [[] for _ in calls]
    for name, i in last_use.items():
        done[i].append(name)
    return tuple(Line(call, tuple(names)) for call, names in zip(calls, done, strict=True))


# Steps that treat every image by itself, and may share a block of images with the float convolution before them.
_BY_IMAGE = (
    "pack", "relu", "float_conv2d", "float_batch_norm2d", "float_relu", "float_prelu", "float_hardtanh",
    "float_max_pool2d", "float_avg_pool2d",
)  # fmt: skip


class _Planner:
    def __init__(self, steps: tuple[Step, ...], layers: dict[str, nn.Module]) -> None:
        self.steps = steps
        self.layers = layers
        self.kinds = {step.name: step.kind for step in steps}
        self.readers: dict[str, list[Step]] = {}
        for step in steps:
            for name in step.inputs:
                self.readers.setdefault(name, []).append(step)

    def calls(self) -> list[Call]:
        made: set[str] = set()
        calls: list[Call] = []
        for step in self.steps:
            if step.name not in made:
                call = self.call(step)
                calls.append(call)
                made |= set(call.names) | {step.name}
        return calls

    def call(self, step: Step) -> Call:
        layer, names = self.layers.get(step.name), (step.name,)
        if isinstance(layer, PackedConv2d) and layer.epilogue == "float":
            return self.binary_conv2d(step, layer)
        if step.kind == "float_conv2d":
            return _FloatConv2d(names, step.inputs)
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
        after = self.layers.get(reader.name) if reader is not None else None
        if isinstance(after, nn.PReLU) and after.num_parameters in (1, layer.spec["out_channels"]):
            assert reader is not None
            name = prelu = reader.name
        pack = next((reader.name for reader in self.readers.get(name, []) if reader.kind == "pack"), None)
        return _BinaryConv2d((name,) if pack is None else (name, pack), step.inputs, step.name, prelu, pack)

    def in_blocks(self, calls: list[Call]) -> list[Call]:
        """The float convolution that a network begins with, and what follows it image by image, as one call."""
        if not (isinstance(calls[0], _FloatConv2d) and calls[0].inputs == (INPUT,)):
            return calls
        known, length = {INPUT}, 0
        for call in calls:
            if self.kinds[call.names[0]] not in _BY_IMAGE or not known.issuperset(call.inputs):
                break
            known |= set(call.names)
            length += 1
        if length < 2:
            return calls
        read = {name for call in calls[length:] for name in call.inputs} | {self.steps[-1].name}
        made = [name for call in calls[:length] for name in call.names]
        names, inside = tuple(n for n in made if n in read), tuple(n for n in made if n not in read)
        return [Blocks(names, (INPUT,), tuple(calls[:length]), inside), *calls[length:]]


def lay_out(layer: nn.Module) -> None:
    """Gives the weight of a float convolution the strides that are read fastest. Its values and shape stay."""
    if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
        wanted = torch.channels_last if layer.weight.device.type == "cpu" else torch.contiguous_format
        layer.weight.data = layer.weight.data.contiguous(memory_format=wanted)

"""The trunk of a residual network, as a whole: what fusing scale, bias, shortcut and the next signs is worth."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cuda_goals import table
from cuda_measure import require
from torch import Tensor

from bitnas import ops
from bitnas.cost import cuda_timing
from bitnas.cost.timing import Call

_ops = torch.ops.bitnas

# What goes past the convolution of that index, given the floats before it.
Shortcut = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Convolution:
    """A binary 3x3 convolution, padded by 1, with all that its epilogue needs."""

    channels: int
    out_channels: int
    stride: int
    weight: Tensor
    prepared: Tensor
    scale: Tensor
    bias: Tensor
    cut: Tensor
    direction: Tensor

    def __call__(self, bits: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """bfloat16 scale * dot + bias + residual, and its signs."""
        geometry = (self.channels, self.stride, self.stride, 1, 1, 1, 1, 1, False)
        terms = (self.weight, self.prepared, self.scale, self.bias, self.cut, self.direction)
        return _ops.conv2d_float_bits(bits, *terms, *geometry, residual=residual, dtype=torch.bfloat16)


def random_convolution(
    channels: int, out_channels: int, stride: int, device: str, generator: torch.Generator
) -> Convolution:
    weight = ops.pack_weight(torch.randn(out_channels, channels, 3, 3, generator=generator)).to(device)
    scale = torch.rand(out_channels, generator=generator) / (9 * channels) ** 0.5
    bias = torch.randn(out_channels, generator=generator) / 4
    terms = (t.to(device) for t in (scale, bias, torch.zeros(out_channels), torch.ones(out_channels)))
    prepared = _ops.prepare_weight(weight, channels, 1)
    return Convolution(channels, out_channels, stride, weight, prepared, *terms)


class Trunk:
    """The trunk of a Bi-Real ResNet-18: sixteen binary 3x3 convolutions, a shortcut over each.

    Each takes packed signs and gives bfloat16, scale * dot + bias + shortcut, and the next signs beside, in one kernel.
    Where a stage begins, the shortcut is an average pool and a 1x1 convolution in bfloat16, which is no binary layer:
    it is torch's, and timed with the rest or not at all.
    """

    WIDTHS = (64, 128, 256, 512)
    CONVS_PER_STAGE = 4

    def __init__(self, device: str, widths: Sequence[int] = WIDTHS) -> None:
        generator = torch.Generator().manual_seed(0)
        self.convs: list[Convolution] = []
        self.shortcut_weights: dict[int, Tensor] = {}
        channels = widths[0]
        for stage, width in enumerate(widths):
            for i in range(self.CONVS_PER_STAGE):
                first = i == 0 and stage > 0
                if first:
                    weight = torch.randn(width, channels, 1, 1, generator=generator) / channels**0.5
                    self.shortcut_weights[len(self.convs)] = weight.bfloat16().to(device)
                self.convs.append(random_convolution(channels, width, 2 if first else 1, device, generator))
                channels = width

    def shortcut(self, index: int, floats: Tensor) -> Tensor:
        """Of a convolution that begins a stage."""
        values = F.conv2d(F.avg_pool2d(floats, 2), self.shortcut_weights[index])
        return values.contiguous(memory_format=torch.channels_last)

    def __call__(self, floats: Tensor, bits: Tensor, shortcut: Shortcut | None = None) -> tuple[Tensor, Tensor]:
        """Floats and signs through all convolutions. ``shortcut``: in place of :meth:`shortcut`."""
        shortcut = shortcut or self.shortcut
        for i, conv in enumerate(self.convs):
            residual = shortcut(i, floats) if i in self.shortcut_weights else floats
            floats, bits = conv(bits, residual)
        return floats, bits

    def shortcut_values(self, floats: Tensor, bits: Tensor) -> dict[int, Tensor]:
        """What the shortcuts compute in a forward pass, by the index of their convolution."""
        values: dict[int, Tensor] = {}

        def keep(index: int, before: Tensor) -> Tensor:
            values[index] = self.shortcut(index, before)
            return values[index]

        self(floats, bits, keep)
        return values


def given(values: Mapping[int, Tensor]) -> Shortcut:
    """Shortcuts that were computed before."""
    return lambda index, _: values[index]


class FloatTrunk:
    """The network one would run instead: bfloat16 convolutions on cuDNN, ReLU, the same shortcuts."""

    def __init__(self, trunk: Trunk, device: str) -> None:
        generator = torch.Generator().manual_seed(1)
        self.trunk = trunk
        self.weights, self.biases = [], []
        for conv in trunk.convs:
            values = torch.randn(conv.out_channels, conv.channels, 3, 3, generator=generator)
            values = (values / (9 * conv.channels) ** 0.5).bfloat16().to(device)
            self.weights.append(values.contiguous(memory_format=torch.channels_last))
            self.biases.append(conv.bias.bfloat16())

    def __call__(self, floats: Tensor) -> Tensor:
        for i, conv in enumerate(self.trunk.convs):
            residual = self.trunk.shortcut(i, floats) if i in self.trunk.shortcut_weights else floats
            floats = F.relu(F.conv2d(floats, self.weights[i], self.biases[i], conv.stride, 1)).add_(residual)
        return floats


def inputs(batch: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """bfloat16 images in channels_last and their signs, on the CPU."""
    floats = torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(2)).bfloat16()
    floats = floats.contiguous(memory_format=torch.channels_last)
    return floats, ops.pack(floats)


CHECKED_IMAGES = 8  # of a batch, on the CPU's kernels


def check(trunk: Trunk, on_cpu: Trunk, floats: Tensor, bits: Tensor, values: Mapping[int, Tensor]) -> None:
    """The trunk equals the CPU's on the first images, given the same shortcuts. Raises RuntimeError."""
    device = trunk.convs[0].weight.device
    got = trunk(floats.to(device), bits.to(device), given(values))
    some = {i: value[:CHECKED_IMAGES].cpu() for i, value in values.items()}
    expected = on_cpu(floats[:CHECKED_IMAGES], bits[:CHECKED_IMAGES], given(some))
    for one, other in zip(expected, got, strict=True):
        require(torch.equal(one, other[:CHECKED_IMAGES].cpu()), f"trunk at batch {len(floats)}")


def trunk(seconds: float, batches: Sequence[int] = (1, 256), size: int = 56) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    binary, on_cpu = Trunk("cuda"), Trunk("cpu")
    float_trunk = FloatTrunk(binary, "cuda")
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        for batch in batches:
            floats, bits = inputs(batch, Trunk.WIDTHS[0], size)
            x, signs = floats.cuda(), bits.cuda()
            values = binary.shortcut_values(x, signs)
            check(binary, on_cpu, floats, bits, values)
            calls: dict[str, Call] = {
                "convolutions": functools.partial(binary, x, signs, given(values)),
                "with shortcuts": functools.partial(binary, x, signs),
                "float, cuDNN bfloat16": functools.partial(float_trunk, x),
            }
            rows += [{"batch": batch, "what": what, **timed_modes(call, seconds)} for what, call in calls.items()]
    columns = ["graph_ms", "cold_graph_ms", "launch_ms", "cold_launch_ms"]

    def cell(row: dict[str, Any], name: str) -> str:
        return f"{1e3 * row[name]:.1f}" if name in row else "-"  # nothing captured, no graph

    cells = [[row["what"], str(row["batch"]), *(cell(row, name) for name in columns)] for row in rows]
    print(table(["trunk, us", "batch", "graph", "cold graph", "launched", "cold launched"], cells))
    return {"rows": rows, "image_size": size}


def timed_modes(call: Call, seconds: float) -> dict[str, Any]:
    """Milliseconds by graph and by launches, with a warm and with a cold L2."""
    row: dict[str, Any] = {"noisy": []}
    for prefix, cold in (("", False), ("cold_", True)):
        for mode, timing in cuda_timing.time_launch_and_graph(call, cold_cache=cold, seconds=seconds).items():
            row[f"{prefix}{mode}_ms"] = timing.median_us / 1e3
            row["noisy"] += [f"{prefix}{mode}"] * timing.noisy
    return row

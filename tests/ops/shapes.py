"""Random convolutions that straddle every edge: word and lane boundaries, groups, borders, empty batches."""

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_GROUP_CHANNELS = (1, 2, 3, 7, 8, 16, 24, 31, 32, 33, 48, 63, 64, 65, 100, 127, 128, 129, 192)
_GROUP_OUTPUTS = (1, 2, 5, 8, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 80, 127, 128, 130)


@dataclass(frozen=True)
class Case:
    batch: int
    channels: int
    out_channels: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    activations: str
    channels_last: bool
    dtype: torch.dtype
    seed: int

    @property
    def geometry(self):
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}

    @property
    def flat(self):
        """The geometry as the private operators take it."""
        unit = self.activations == "unit"
        return (self.channels, *self.stride, *self.padding, *self.dilation, self.groups, unit)

    def tensors(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed)
        x = torch.randn(self.batch, self.channels, *self.size, generator=generator) + 0.3
        weight = torch.randn(self.out_channels, self.channels // self.groups, *self.kernel, generator=generator)
        x.view(-1)[::7] = 0.0
        x.view(-1)[::11] = -0.0
        x.view(-1)[::13] = 0.5
        weight.view(-1)[::5] = 0.0
        x = x.to(self.dtype)
        return (x.contiguous(memory_format=torch.channels_last) if self.channels_last else x), weight


def random_case(rng: random.Random) -> Case:
    while True:
        groups = rng.choice((1, 1, 1, 1, 2, 3, 5))
        kernel = (rng.choice((1, 1, 2, 3, 3, 3, 5, 7)), rng.choice((1, 1, 2, 3, 3, 3, 5)))
        dilation = (rng.choice((1, 1, 1, 2, 3)), rng.choice((1, 1, 1, 2)))
        padding = (rng.choice((0, 0, 1, 1, 2, 5)), rng.choice((0, 0, 1, 1, 2, 6)))
        size = (rng.randint(1, 12), rng.randint(1, 12))
        if any(size[i] + 2 * padding[i] < dilation[i] * (kernel[i] - 1) + 1 for i in range(2)):
            continue
        return Case(
            batch=rng.choice((0, 1, 1, 2, 3, 5)),
            channels=groups * rng.choice(_GROUP_CHANNELS),
            out_channels=groups * rng.choice(_GROUP_OUTPUTS),
            size=size,
            kernel=kernel,
            stride=(rng.choice((1, 1, 2, 3)), rng.choice((1, 1, 2, 3))),
            padding=padding,
            dilation=dilation,
            groups=groups,
            activations=rng.choice(("sign", "unit")),
            channels_last=rng.random() < 0.5,
            dtype=rng.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16)),
            seed=rng.randrange(1 << 30),
        )


def edge_cases() -> Iterator[Case]:
    """More than 50,000 small convolutions: the product of the sizes at which something begins or ends."""
    channels = (1, 3, 4, 5, 31, 32, 33, 63, 64, 65, 96, 129)
    outputs = (1, 15, 16, 17, 32, 33, 64, 65, 80)
    # kernel, padding, stride, dilation
    windows = (
        ((1, 1), 0, 1, 1), ((1, 1), 0, 2, 1), ((3, 3), 1, 1, 1), ((3, 3), 0, 1, 1), ((3, 3), 1, 2, 1),
        ((3, 3), 2, 1, 2), ((2, 2), 1, 1, 1), ((5, 5), 2, 1, 1), ((1, 3), 1, 1, 1), ((3, 1), 1, 2, 1),
    )  # fmt: skip
    sizes = ((1, 1), (1, 2), (2, 3), (3, 5), (4, 4), (1, 9), (5, 2))
    cases = itertools.product(channels, outputs, windows, sizes, (1, 2), (1, 2), ("sign", "unit"))
    for seed, (c, n, (kernel, padding, stride, dilation), size, groups, batch, activations) in enumerate(cases):
        if all(size[i] + 2 * padding >= dilation * (kernel[i] - 1) + 1 for i in range(2)):
            yield Case(
                batch=batch,
                channels=c * groups,
                out_channels=n * groups,
                size=size,
                kernel=kernel,
                stride=(stride, stride),
                padding=(padding, padding),
                dilation=(dilation, dilation),
                groups=groups,
                activations=activations,
                channels_last=True,
                dtype=torch.float32,
                seed=seed,
            )

"""Layers of a few numbers per channel that stand between binary convolutions."""

import torch
from torch import Tensor, nn

from bitnas.nn.arguments import integer


class ChannelBias(nn.Module):
    """x + bias, one learned number per channel, first 0. Float `[N, channels, ...]` to the same shape.

    Before a sign it learns the threshold (RSign of Liu et al. 2020, ReActNet). Raises TypeError or ValueError for a
    number of channels that is not a positive integer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = integer("channels", channels)
        self.bias = nn.Parameter(torch.zeros(self.channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(-1, *[1] * (x.dim() - 2))

    def extra_repr(self) -> str:
        return f"{self.channels}"


class RPReLU(nn.Module):
    """prelu(x + before) + after, everything per channel. Float `[N, channels, ...]` to the same shape.

    Liu et al. 2020 (ReActNet), equation 7. Biases start at 0, slopes at 0.25.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = ChannelBias(channels)
        self.prelu = nn.PReLU(channels)
        self.after = ChannelBias(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.prelu(self.before(x)))


class TileChannels(nn.Module):
    """Repeats the channels in their order and cuts at `out_channels`: a shortcut without parameters to more channels.

    Float `[N, in_channels, ...]` to `[N, out_channels, ...]`; output channel c is input channel c modulo `in_channels`.
    Lin et al. 2024 (NAS-BNN). Raises TypeError or ValueError for a number that is not a positive integer, or fewer
    channels out than in.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels)
        self.out_channels = integer("out_channels", out_channels)
        if out_channels < in_channels:
            raise ValueError(f"out_channels: got {out_channels}, wanted at least in_channels={in_channels}")

    def forward(self, x: Tensor) -> Tensor:
        return tile_channels(x, self.out_channels)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}"


def tile_channels(x: Tensor, channels: int) -> Tensor:
    """`x` `[N, C, ...]` repeated along its channels and cut to `channels`; `x` itself if it has as many."""
    present = x.shape[1]
    if present == channels:
        return x
    return torch.cat([x] * (channels // present) + ([x[:, : channels % present]] if channels % present else []), 1)

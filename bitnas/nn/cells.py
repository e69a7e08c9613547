"""What joins the nodes of a cell to its output, without a parameter: channels kept, repeated, cut or filled.

A prefix of every node's channels is what a narrower network keeps. So doubled channels stand side by side (0, 0, 1, 1,
...) and not one block behind the other: only then is the prefix of the doubled channels the doubled prefix.
"""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.nn.arguments import integer


def fit_channels(x: Tensor, channels: int, groups: int = 1, repeat: int = 1) -> Tensor:
    """`x` `[N, C, H, W]` with `channels` channels, both in `groups` equal groups.

    In each group every channel is repeated `repeat` times where it stands; then the group is cut, or filled with zeros,
    to `channels / groups`.
    """
    n, present, height, width = x.shape
    own, wanted = present // groups * repeat, channels // groups
    if repeat > 1:
        x = x.unsqueeze(2).expand(n, present, repeat, height, width).reshape(n, present * repeat, height, width)
    if own == wanted:
        return x
    x = x.reshape(n, groups, own, height, width)
    x = x[:, :, :wanted] if wanted < own else F.pad(x, (0, 0, 0, 0, 0, wanted - own))
    return x.reshape(n, channels, height, width)


class FitChannels(nn.Module):
    """A shortcut without parameters between two numbers of channels, see `fit_channels`.

    Float `[N, in_channels, H, W]` to `[N, out_channels, H, W]`. Zhao et al. 2020 (BARS) double the channels of a
    shortcut by putting the value behind itself; here the copies stand side by side. Raises TypeError or ValueError for
    a number that is not a positive integer, or channels that `groups` does not divide.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int = 1, repeat: int = 1) -> None:
        super().__init__()
        self.in_channels = integer("in_channels", in_channels)
        self.out_channels = integer("out_channels", out_channels)
        self.groups = integer("groups", groups)
        self.repeat = integer("repeat", repeat)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % groups:
                raise ValueError(f"groups: got {groups}, wanted a divisor of {name}={getattr(self, name)}")

    def forward(self, x: Tensor) -> Tensor:
        return fit_channels(x, self.out_channels, self.groups, self.repeat)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, groups={self.groups}, repeat={self.repeat}"


class JoinNodes(nn.Module):
    """The output of a cell: its nodes one behind the other, plus the cell's shortcut.

    Called as `join(shortcut, *nodes)`: `shortcut` float `[N, in_channels, H, W]`, fitted to `len(live)` groups of
    `channels`; then a float `[N, channels, H, W]` for each node that is live, added to its group. A node that is not
    live adds nothing and is not given. Gives `[N, len(live) * channels, H, W]`. `repeat` is that of `FitChannels`.
    Zhao et al. 2020 (BARS). Raises TypeError or ValueError as `FitChannels`, or for a `live` that is no list of bools.
    """

    def __init__(self, in_channels: int, channels: int, live: Sequence[bool], repeat: int = 1) -> None:
        super().__init__()
        if not live or not all(isinstance(node, bool) for node in live):
            raise TypeError(f"live: got {live!r}, wanted a bool for each node")
        self.live = tuple(live)
        self.in_channels = integer("in_channels", in_channels)
        self.channels = integer("channels", channels)
        self.repeat = integer("repeat", repeat)
        if in_channels % len(self.live):
            raise ValueError(f"in_channels: got {in_channels}, wanted a multiple of the {len(self.live)} nodes")

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return len(self.live) * self.channels

    def forward(self, shortcut: Tensor, *nodes: Tensor) -> Tensor:
        return join_nodes(shortcut, *nodes, channels=self.channels, live=self.live, repeat=self.repeat)

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.channels}, live={self.live}, repeat={self.repeat}"


def join_nodes(shortcut: Tensor, *nodes: Tensor, channels: int, live: Sequence[bool], repeat: int = 1) -> Tensor:
    """What `JoinNodes` computes. Raises ValueError for another number of nodes than are live."""
    if len(nodes) != sum(live):
        raise ValueError(f"nodes: got {len(nodes)}, wanted the {sum(live)} that are live")
    fitted = fit_channels(shortcut, len(live) * channels, len(live), repeat)
    if not nodes:
        return fitted
    output = fitted.clone()
    for place, node in zip((i for i, alive in enumerate(live) if alive), nodes, strict=True):
        output[:, place * channels : (place + 1) * channels] += node
    return output

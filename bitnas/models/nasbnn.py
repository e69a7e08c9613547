"""Networks of the space of NAS-BNN (Lin et al. 2024, arXiv 2408.15484): any one of its subnets, as a plain module.

Like MobileNet-V1 without bottlenecks: pairs of a grouped binary k x k convolution and a binary 1 x 1 convolution, each
with a shortcut that has no parameters, so full-precision features reach the end whatever the widths are.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from bitnas.models.registry import register_config
from bitnas.nn import BinaryConv2d, ChannelBias, LSQConv2d, RPReLU, TileChannels
from bitnas.nn.arguments import integer

NAME = "nasbnn"


@dataclass(frozen=True)
class Block:
    """One block: `channels` out of it, side and groups of its k x k convolution, groups of its 1 x 1, its stride."""

    channels: int
    kernel: int
    groups: int = 1
    groups_1x1: int = 1
    stride: int = 1

    def __post_init__(self) -> None:
        for field in fields(self):
            integer(field.name, getattr(self, field.name))
        if self.kernel % 2 == 0:
            raise ValueError(f"kernel: got {self.kernel}, wanted an odd number")
        if self.stride not in (1, 2):
            raise ValueError(f"stride: got {self.stride}, wanted 1 or 2")


@dataclass(frozen=True)
class SubnetConfig:
    """Everything that decides the shape of a subnet; `key()` is its identity.

    `stem` channels leave the first convolution (3 x 3, `stem_stride`); `blocks` follow in order and never shrink the
    channels. `weight_normalization` False leaves out the standardisation of the binary weights. Raises TypeError or
    ValueError naming the field.
    """

    stem: int
    blocks: tuple[Block, ...]
    num_classes: int = 1000
    input_size: tuple[int, int, int] = (3, 224, 224)
    stem_stride: int = 2
    weight_normalization: bool = True

    def __post_init__(self) -> None:
        for name in ("stem", "num_classes"):
            integer(name, getattr(self, name))
        if self.stem_stride not in (1, 2):
            raise ValueError(f"stem_stride: got {self.stem_stride!r}, wanted 1 or 2")
        if not isinstance(self.weight_normalization, bool):
            raise TypeError(f"weight_normalization: got {self.weight_normalization!r}, wanted True or False")
        if isinstance(self.input_size, str) or not isinstance(self.input_size, Sequence) or len(self.input_size) != 3:
            raise ValueError(f"input_size: got {self.input_size!r}, wanted (channels, height, width)")
        object.__setattr__(self, "input_size", tuple(integer("input_size", n) for n in self.input_size))
        if isinstance(self.blocks, str) or not isinstance(self.blocks, Sequence) or not self.blocks:
            raise ValueError(f"blocks: got {self.blocks!r}, wanted at least one block")
        object.__setattr__(self, "blocks", tuple(_block(n, block) for n, block in enumerate(self.blocks)))
        channels = self.stem
        for number, block in enumerate(self.blocks):
            where = f"blocks[{number}]"
            if block.channels < channels:
                raise ValueError(f"{where}.channels: got {block.channels} after {channels}, wanted no fewer")
            if channels % block.groups:
                raise ValueError(f"{where}.groups: got {block.groups}, wanted a divisor of its {channels} channels")
            if channels % block.groups_1x1 or block.channels % block.groups_1x1:
                raise ValueError(
                    f"{where}.groups_1x1: got {block.groups_1x1}, wanted a divisor of {channels} and {block.channels}"
                )
            channels = block.channels

    @property
    def name(self) -> str:
        """What the network is called in files."""
        return NAME

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of `from_dict`."""
        blocks = [asdict(block) for block in self.blocks]
        return {"name": NAME, **asdict(self), "blocks": blocks, "input_size": list(self.input_size)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SubnetConfig":
        """Raises ValueError for a missing or an unknown field, or another network."""
        values = dict(values)
        if (name := values.pop("name", NAME)) != NAME:
            raise ValueError(f"name: got {name!r}, wanted {NAME!r}")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        missing = sorted({"stem", "blocks"} - set(values))
        if unknown or missing:
            raise ValueError(f"architecture of {NAME}: unknown fields {unknown}, missing fields {missing}")
        return cls(**values)

    def key(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal: the same for the same network in every process."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def scheme(self) -> str:
        """How its weights become bits."""
        return "nasbnn" if self.weight_normalization else "bireal"


def _block(number: int, value: Any) -> Block:
    if isinstance(value, Block):
        return value
    where = f"blocks[{number}]"
    if not isinstance(value, Mapping):
        raise TypeError(f"{where}: got {value!r}, wanted an object of channels, kernel, groups, groups_1x1, stride")
    unknown = sorted(set(value) - {field.name for field in fields(Block)})
    missing = sorted({"channels", "kernel"} - set(value))
    if unknown or missing:
        raise ValueError(f"{where}: {dict(value)} has unknown fields {unknown}, missing fields {missing}")
    try:
        return Block(**value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{where}.{error}") from error


def shortcut_pool(stride: int) -> nn.Module:
    """The shortcut of the k x k convolution: 2 x 2 average pooling where it strides; odd sides round up alike."""
    return nn.Identity() if stride == 1 else nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)


class NasBnnBlock(nn.Module):
    """Float `[N, cin, H, W]` to float `[N, block.channels, H / stride, W / stride]`. Paper's public code, block."""

    def __init__(self, cin: int, block: Block, scheme: str) -> None:
        super().__init__()
        cout, k = block.channels, block.kernel
        self.bias1 = ChannelBias(cin)
        self.conv1 = BinaryConv2d(cin, cin, k, block.stride, k // 2, groups=block.groups, scheme=scheme)
        self.bn1 = nn.BatchNorm2d(cin)
        self.pool = shortcut_pool(block.stride)
        self.act1 = RPReLU(cin)
        self.bias2 = ChannelBias(cin)
        self.conv2 = BinaryConv2d(cin, cout, 1, groups=block.groups_1x1, scheme=scheme)
        self.bn2 = nn.BatchNorm2d(cout)
        self.tile = nn.Identity() if cin == cout else TileChannels(cin, cout)
        self.act2 = RPReLU(cout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(self.bias1(x))) + self.pool(x))
        return self.act2(self.bn2(self.conv2(self.bias2(x))) + self.tile(x))


@register_config(NAME, SubnetConfig)
class NasBnn(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`; raises ValueError for an input that the strides use up."""

    def __init__(self, config: SubnetConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = LSQConv2d(config.input_size[0], config.stem, 3, config.stem_stride, 1)
        self.stem_bn = nn.BatchNorm2d(config.stem)
        self.stem_act = RPReLU(config.stem)
        widths = (config.stem, *(block.channels for block in config.blocks))
        self.blocks = nn.Sequential(
            *(NasBnnBlock(cin, block, config.scheme) for cin, block in zip(widths, config.blocks, strict=False))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem_act(self.stem_bn(self.stem(x))))
        return self.fc(torch.flatten(self.pool(x), 1))

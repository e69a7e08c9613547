"""One network that holds every subnet of a space (Lin et al. 2024, NAS-BNN).

Its tensors are those of the biggest subnet's plain module, and the matrices of the Bi-Transformation. A subnet is a way
of slicing them; its pass calls the functions that the plain modules call, so it gives the bits of the extracted module.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.methods.nasbnn.description import Description, Stage
from bitnas.methods.nasbnn.elastic import Cut, centre, cut_all, transform_sizes, transformed
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.models.nasbnn import Block, NasBnn, NasBnnBlock, SubnetConfig
from bitnas.nn import BinaryConv2d, ChannelBias, RPReLU
from bitnas.nn.binarizers import WeightBinarizer
from bitnas.nn.channels import tile_channels
from bitnas.nn.layers import binary_conv2d
from bitnas.nn.quantized import lsq_conv2d

_NO_SQUARE = 1e-10  # a filter's mean square below this is rounding


@dataclass(frozen=True)
class Strategies:
    """What the paper adds to plain weight sharing, each to be switched off for an ablation.

    Attributes:
        bi_teacher: the biggest subnet learns and teaches with float weights; without it, with binary ones.
        bi_transformation: learned matrices turn float kernels into those that become signs; without it, they are the
            float kernels or their centres.
        weight_normalization: binary weights are the signs of standardised ones; without it, of the weights.
        consistency: factor of a loss that draws binary and float weights together; 0 for none, 0.1 in the paper's code.
    """

    bi_teacher: bool = True
    bi_transformation: bool = True
    weight_normalization: bool = True
    consistency: float = 0.0

    def __post_init__(self) -> None:
        for name in ("bi_teacher", "bi_transformation", "weight_normalization"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        if isinstance(self.consistency, bool) or not isinstance(self.consistency, int | float):
            raise TypeError(f"consistency: got {self.consistency!r}, wanted a number")
        if not 0 <= self.consistency < float("inf"):
            raise ValueError(f"consistency: got {self.consistency}, wanted a finite number of at least 0")

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Strategies:
        """The inverse of `to_dict`; what is missing has its default. Raises ValueError for an unknown name."""
        unknown = sorted(set(values) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(f"strategies: unknown fields {unknown}")
        return cls(**values)


@dataclass(frozen=True)
class _Place:
    """A block of a subnet and where in the supernet it is."""

    index: int
    layer: NasBnnBlock
    matrices: nn.ParameterDict
    kernels: tuple[int, ...]
    cin: int
    block: Block


class Supernet(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`, through any subnet of `description`.

    `space` is a `SubnetSpace` of the description, `biggest` and `smallest` the `SubnetConfig` of its ends. Batch norm's
    running statistics belong to no subnet: every pass in training moves those of the channels that it uses. Recalibrate
    a subnet before you use it (`training.inherited`).

    A backward pass adds to `.grad` of the parameters; `torch.autograd.grad` does not see them.
    """

    def __init__(self, description: Description, strategies: Strategies | None = None) -> None:
        super().__init__()
        self.description = description
        self.strategies = strategies or Strategies()
        self.space = SubnetSpace(description, weight_normalization=self.strategies.weight_normalization)
        self.biggest: SubnetConfig = self.space.subnet(self.space.biggest)
        self.smallest: SubnetConfig = self.space.subnet(self.space.smallest)
        self.network = NasBnn(self.biggest)
        self.transforms = nn.ModuleList(
            nn.ParameterDict(
                {str(k): nn.Parameter(torch.eye(k * k)) for k in transform_sizes(stage.kernels)}
                if self.strategies.bi_transformation
                else {}
            )
            for stage in _stages(description)
        )
        # The matrices start at the identity, not at 0: decay would not draw them back to it.
        self.no_weight_decay = frozenset(name for name, _ in self.named_parameters() if name.startswith("transforms."))

    @property
    def config(self) -> tuple[Description, Strategies]:
        """What tells it from another supernet, besides its tensors."""
        return self.description, self.strategies

    def forward(
        self,
        x: Tensor,
        subnet: SubnetConfig | None = None,
        *,
        teacher: bool = False,
        distances: list[Tensor] | None = None,
    ) -> Tensor:
        """Logits of a subnet.

        Args:
            x: `[N, C, H, W]`.
            subnet: None for the biggest. ValueError if it is none of the space.
            teacher: with float weights, standardised but neither transformed nor scaled; activations stay binary.
            distances: gets, for each binary layer of the pass, the mean squared distance between its binary and its
                float weights, each divided by the mean square of its filter.
        """
        subnet = self.biggest if subnet is None else subnet
        places = self._places(subnet)
        of = cut_all(self._cuts(subnet, places, teacher))
        net = self.network
        x = lsq_conv2d(
            x,
            _channels_last(of[net.stem.weight]),
            of[net.stem.step],
            training=self.training,
            stride=net.stem.stride,
            padding=net.stem.padding,
        )
        x = _rprelu(_batch_norm(x, net.stem_bn, of), net.stem_act, of)
        for place in places:
            x = self._block(x, place, of, teacher, distances)
        return F.linear(torch.flatten(net.pool(x), 1), of[net.fc.weight], of[net.fc.bias])

    def extract(self, subnet: SubnetConfig) -> NasBnn:
        """A copy of a subnet as a plain module: its slices, the kernels transformed, the running statistics as they
        are; in the supernet's mode, on its device. Raises ValueError for a subnet that is not of the space.
        """
        places = self._places(subnet)
        with torch.no_grad(), torch.device("meta"):
            network = NasBnn(subnet)  # on "meta" it costs nothing, and takes nothing from the random state
        with torch.no_grad():
            of = cut_all(self._cuts(subnet, places, teacher=False))
            weights = {
                f"blocks.{number}.conv1.weight": self._kernel(place, of, teacher=False)
                for number, place in enumerate(places)
            }
            found = {}
            names = {id(parameter): name for name, parameter in self.network.named_parameters()}
            for parameter, tensor in of.items():
                if id(parameter) in names:
                    found[names[id(parameter)]] = tensor
            buffers = dict(self.network.named_buffers())
            state = {}
            for name, target in network.state_dict().items():
                source = _source(name, places)
                whole = found[source] if source in found else buffers[source]
                tensor = weights.get(name, whole if whole.shape == target.shape else whole[: len(target)])
                state[name] = tensor.detach().clone(memory_format=torch.contiguous_format)
        network.load_state_dict(state, assign=True)
        network.stem.weight = nn.Parameter(_channels_last(network.stem.weight.detach()))
        return network.train(self.training)

    def _places(self, subnet: SubnetConfig) -> list[_Place]:
        """Where in the supernet the blocks of a subnet are: a stage of depth d is its first d blocks."""
        genome = self.space.genome(subnet)
        places, blocks, cin, first, at = [], iter(subnet.blocks), subnet.stem, 0, 1
        for stage in self.description.stages:
            deepest = max(stage.depths)
            for index in range(first, first + int(genome[at])):
                block, layer = next(blocks), self.network.blocks[index]
                places.append(_Place(index, layer, self.transforms[index], stage.kernels, cin, block))  # type: ignore[arg-type]
                cin = block.channels
            first, at = first + deepest, at + 1 + 3 * deepest
        return places

    def _cuts(self, subnet: SubnetConfig, places: list[_Place], teacher: bool) -> dict[Tensor, Cut]:
        net, stem, last = self.network, subnet.stem, subnet.blocks[-1].channels
        cuts = {net.stem.weight: Cut((stem, *net.stem.weight.shape[1:]))}
        for vector in (net.stem.step, *_vectors(net.stem_bn, net.stem_act)):
            cuts[vector] = Cut((stem,))
        for place in places:
            layer, cin, cout, block = place.layer, place.cin, place.block.channels, place.block
            side = block.kernel
            if place.matrices and not teacher:
                larger = [k for k in place.kernels[:-1] if k >= block.kernel]
                side = max(larger) if larger else place.kernels[-1]
                for k, matrix in place.matrices.items():
                    if block.kernel <= int(k) <= side:
                        cuts[matrix] = Cut(tuple(matrix.shape))
            cuts[layer.conv1.weight] = Cut((cin, cin // block.groups, side, side), block.groups)
            cuts[layer.conv2.weight] = Cut((cout, cin // block.groups_1x1, 1, 1), block.groups_1x1)
            for vector in (layer.bias1.bias, layer.bias2.bias, *_vectors(layer.bn1, layer.act1)):
                cuts[vector] = Cut((cin,))
            for vector in _vectors(layer.bn2, layer.act2):
                cuts[vector] = Cut((cout,))
        cuts[net.fc.weight] = Cut((net.fc.out_features, last))
        cuts[net.fc.bias] = Cut((net.fc.out_features,))
        return cuts

    def _kernel(self, place: _Place, of: Mapping[Tensor, Tensor], teacher: bool) -> Tensor:
        """The weight of a block's first convolution, before it is standardised."""
        weight = of[place.layer.conv1.weight]
        if teacher or not place.matrices:
            return weight
        matrices = {int(k): of[matrix] for k, matrix in place.matrices.items() if matrix in of}
        return transformed(weight, place.block.kernel, matrices)

    def _block(
        self,
        x: Tensor,
        place: _Place,
        of: Mapping[Tensor, Tensor],
        teacher: bool,
        distances: list[Tensor] | None,
    ) -> Tensor:
        layer, block = place.layer, place.block
        kernel, pointwise = self._kernel(place, of, teacher), of[layer.conv2.weight]
        if distances is not None:
            floats = centre(of[layer.conv1.weight], block.kernel)
            distances.append(_distance(kernel, floats, layer.conv1.weight_binarizer))
            distances.append(_distance(pointwise, pointwise, layer.conv2.weight_binarizer))
        y = self._convolve(_shift(x, layer.bias1, of), layer.conv1, kernel, block.groups, teacher)
        x = _rprelu(_batch_norm(y, layer.bn1, of) + layer.pool(x), layer.act1, of)
        y = self._convolve(_shift(x, layer.bias2, of), layer.conv2, pointwise, block.groups_1x1, teacher)
        return _rprelu(_batch_norm(y, layer.bn2, of) + tile_channels(x, block.channels), layer.act2, of)

    def _convolve(self, x: Tensor, layer: BinaryConv2d, weight: Tensor, groups: int, teacher: bool) -> Tensor:
        x, margin = layer.input_binarizer(x), weight.shape[-1] // 2
        if teacher:
            return F.conv2d(x, layer.weight_binarizer.latent(weight), None, layer.stride, margin, 1, groups)
        return binary_conv2d(
            x, weight, layer.weight_binarizer, training=self.training, stride=layer.stride, padding=(margin, margin),
            groups=groups,
        )  # fmt: skip


def _channels_last(weight: Tensor) -> Tensor:
    """A copy that makes a convolution's output channels last, and with it all that follows.

    `Tensor.contiguous` leaves the weight of a single input channel as it is, which decides nothing. The small space at
    8 x 8 in batches of 128: 0.36 s instead of 0.47 s a step (AMD EPYC, Zen 4, one thread).
    """
    return torch.empty_like(weight, memory_format=torch.channels_last).copy_(weight)


def _shift(x: Tensor, layer: ChannelBias, of: Mapping[Tensor, Tensor]) -> Tensor:
    return x + of[layer.bias].view(-1, 1, 1)


def _rprelu(x: Tensor, layer: RPReLU, of: Mapping[Tensor, Tensor]) -> Tensor:
    return _shift(F.prelu(_shift(x, layer.before, of), of[layer.prelu.weight]), layer.after, of)


def _batch_norm(x: Tensor, layer: nn.BatchNorm2d, of: Mapping[Tensor, Tensor]) -> Tensor:
    """`nn.BatchNorm2d.forward` on the first channels of the layer."""
    mean, variance, batches = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert variance is not None
    assert batches is not None
    factor = layer.momentum
    if layer.training:
        batches.add_(1)
        if factor is None:  # the plain mean over the batches
            factor = 1 / float(batches)
    channels = x.shape[1]
    return F.batch_norm(
        x, mean[:channels], variance[:channels], of[layer.weight], of[layer.bias], layer.training, factor or 0.0,
        layer.eps,
    )  # fmt: skip


def _distance(kernel: Tensor, floats: Tensor, binarizer: WeightBinarizer) -> Tensor:
    """Mean squared distance of a layer's binary weights from its float ones, each over its filter's mean square; a
    filter that is 0 stays 0."""

    def relative(w: Tensor) -> Tensor:
        square = w.flatten(1).square().mean(1).view(-1, 1, 1, 1)
        return w / square.masked_fill(square <= _NO_SQUARE, 1.0)

    return F.mse_loss(relative(binarizer(kernel)), relative(binarizer.latent(floats)))


def _vectors(norm: nn.BatchNorm2d, act: RPReLU) -> tuple[nn.Parameter, ...]:
    return norm.weight, norm.bias, act.before.bias, act.prelu.weight, act.after.bias


def _stages(description: Description) -> Iterator[Stage]:
    """The stage of each block of the biggest subnet."""
    for stage in description.stages:
        yield from [stage] * max(stage.depths)


def _source(name: str, places: list[_Place]) -> str:
    """What a tensor of a subnet is called in the supernet's network."""
    if not name.startswith("blocks."):
        return name
    _, number, rest = name.split(".", 2)
    return f"blocks.{places[int(number)].index}.{rest}"

"""One network with every operation on every edge, all channels and all cells, and what is searched as parameters beside
its weights (Zhao et al. 2020, BARS).

Widths are masks of prefixes, a depth is what the end of a stage reads. What a choice of weight exactly 0 would compute
is left out, unless the gradient by that weight is wanted; and where widths are given without a gradient, the channels
that none of them keeps are cut away instead of masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.description import Architecture, Description, Place, cut
from bitnas.methods.bars.masked import SCHEMES, Fan, Kept, batch_norm, cut_weight, mix, preprocessed
from bitnas.methods.bars.relaxation import SOFTMAX, relax
from bitnas.models.bars import EDGES, NODES, Bars, BarsStem, preprocess
from bitnas.models.operations import NONE, OPERATIONS, SKIP, BinaryOperation, pool
from bitnas.nn.cells import fit_channels


@dataclass(frozen=True)
class _Edge:
    """A choice of an edge that computes something: where its weight is in the flat `[10 * operations]`."""

    source: int
    target: int
    position: int
    operation: str


@dataclass(frozen=True)
class _State:
    """What enters a cell: float `[N, 4 * kept.channels, H, W]`, multiplied by the mask already."""

    x: Tensor
    kept: Kept


class SuperCell(nn.Module):
    """The weights of one cell of the layout: all convolutions on all edges, at full width."""

    def __init__(self, description: Description, place: Place) -> None:
        super().__init__()
        channels, inner = place.channels, place.channels // place.stride
        self.stride = place.stride
        # As many channels enter as the input node has: a reduction doubles them, no other cell changes them.
        self.preprocess = preprocess(description.preprocess, NODES * inner, inner, description.scheme)
        self.shortcut = pool(place.stride)
        self.into: dict[int, list[_Edge]] = {target: [] for target in range(1, NODES + 1)}
        names = description.operations
        for edge, (source, target) in enumerate(EDGES):
            for n, name in enumerate(names):
                if name != NONE:
                    self.into[target].append(_Edge(source, target, edge * len(names) + n, name))
        for edges in self.into.values():
            edges.sort(key=lambda edge: edge.operation != SKIP)  # in the order of a plain cell's sums
        self.fans = nn.ModuleDict()
        for source in range(NODES):
            stride, cin = (place.stride, inner) if source == 0 else (1, channels)
            for name in names:
                if name not in (NONE, SKIP):
                    self.fans[f"{source}_{name}"] = Fan(
                        NODES - source, cin, channels, OPERATIONS[name], stride, description.scheme
                    )

    def forward(
        self,
        state: _State,
        inner: Kept,
        kept: Kept,
        weights: Tensor,
        values: Sequence[float],
        alive: Sequence[bool] | None,
    ) -> _State:
        """What leaves the cell.

        Args:
            inner: of the input node. kept: of the other nodes and the output.
            weights: of the cell's operations, `[10, operations]`. values: the same, flat, on the host.
            alive: of the operations of value 0, flat: whether the gradient by the weight is wanted. None: of none.
        """
        wanted = {
            target: [e for e in edges if values[e.position] != 0 or (alive is not None and alive[e.position])]
            for target, edges in self.into.items()
        }
        # Nothing comes from a node that nothing reaches, whatever is on the edges out of it.
        live = {0}
        for target in range(1, NODES + 1):
            wanted[target] = [edge for edge in wanted[target] if edge.source in live]
            if any(values[edge.position] != 0 for edge in wanted[target]):
                live.add(target)
        nodes: dict[int, Tensor] = {}
        made: dict[_Edge, Tensor] = {}
        if any(wanted.values()):
            nodes[0] = self._preprocess(state, inner)
            self._leave(0, nodes[0], wanted, inner, kept, made)
        for target in range(1, NODES + 1):
            if into := wanted[target]:
                positions = [edge.position for edge in into]
                terms = [made[edge] for edge in into]
                nodes[target] = mix(terms, weights, positions, [values[n] for n in positions], kept.mask)
                self._leave(target, nodes[target], wanted, kept, kept, made)
        output = fit_channels(self.shortcut(state.x), NODES * kept.channels, NODES, self.stride)
        if len(nodes) > 1:
            nothing = torch.zeros_like(next(reversed(nodes.values()))) if len(nodes) <= NODES else None
            parts = [nodes.get(target, nothing) for target in range(1, NODES + 1)]
            output = output + torch.cat(cast("list[Tensor]", parts), 1)
        return _State(_masked(output, kept), kept)

    def _leave(
        self,
        source: int,
        x: Tensor,
        wanted: dict[int, list[_Edge]],
        of_source: Kept,
        of_target: Kept,
        made: dict[_Edge, Tensor],
    ) -> None:
        """Puts what the edges out of a node carry into `made`; operations of one kind are computed together."""
        kinds: dict[str, list[_Edge]] = {}
        for edges in wanted.values():
            for edge in edges:
                if edge.source == source:
                    kinds.setdefault(edge.operation, []).append(edge)
        for kind, edges in kinds.items():
            if kind == SKIP:
                halve = source == 0 and self.stride == 2
                value = fit_channels(self.shortcut(x), of_target.channels, repeat=2) if halve else x
                made.update(dict.fromkeys(edges, value))
            else:
                fan = cast(Fan, self.fans[f"{source}_{kind}"])
                y = fan(x, [edge.target - source - 1 for edge in edges], of_source, of_target)
                made.update(zip(edges, y.split(of_target.channels, 1) if len(edges) > 1 else [y], strict=True))

    def _preprocess(self, state: _State, inner: Kept) -> Tensor:
        if isinstance(self.preprocess, BinaryOperation):
            y = preprocessed(self.preprocess, state.x, state.kept, inner, NODES)
        else:
            relu, convolution, norm = cast(nn.Sequential, self.preprocess)
            weight = cut_weight(cast(Tensor, convolution.weight), inner.channels, state.kept.channels, NODES)
            y = F.conv2d(relu(state.x), weight.contiguous())
            y = batch_norm(y, cast(nn.BatchNorm2d, norm), inner.channels)
        return y if inner.mask is None else y * inner.mask.view(-1, 1, 1)


class Supernet(nn.Module):
    """Float `[N, C, H, W]` to float `[N, num_classes]`, by any weights of the choices of `description`.

    Parameters `edges` `[topology groups, 10, operations]`, `widths` `[width groups, widths]` and `depths` (for each
    stage `[depth choices]`) are the logits of what is searched, all 0 at first; the others are weights. The buffer
    `alive`, bool as `edges`, is False for operations that were pruned.

    Raises ValueError for a description whose scheme cannot be masked (`masked.SCHEMES`).
    """

    alive: Tensor

    def __init__(self, description: Description) -> None:
        super().__init__()
        if description.scheme not in SCHEMES:
            raise ValueError(
                f"scheme: got {description.scheme!r}, whose weights cannot be masked by width; "
                f"wanted one of {', '.join(map(repr, SCHEMES))} for a supernet"
            )
        self.description = description
        self._places, self._stages = description.places, description.stages  # worked out once, not every pass
        self._depth_choices = description.depth_choices
        places = self._places
        self.stem = BarsStem(
            description.input_size[0], description.channels, description.channels, description.stem_stride
        )
        self.cells = nn.ModuleList(SuperCell(description, place) for place in places)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(NODES * places[-1].channels, description.num_classes)
        shape = (description.topologies, len(EDGES), len(description.operations))
        self.edges = nn.Parameter(torch.zeros(shape))
        self.widths = nn.Parameter(torch.zeros(description.width_count, len(description.widths)))
        self.depths = nn.ParameterList(torch.zeros(len(choices)) for choices in description.depth_choices)
        self.register_buffer("alive", torch.ones(shape, dtype=torch.bool))
        wanted = {(place.channels, place.stride) for place in places} | {(place.channels, 1) for place in places}
        for channels, stride in wanted | {(description.channels, 1)}:
            masks = [[n < max(1, cut(share, channels) // stride) for n in range(channels // stride)]
                     for share in description.widths]  # fmt: skip
            self.register_buffer(f"_prefixes_{channels}_{stride}", torch.tensor(masks).float(), persistent=False)

    # ---- what is searched ---------------------------------------------------------------------

    def logits(self) -> Choices:
        """The parameters that are searched."""
        return Choices(self.edges, self.widths, tuple(self.depths))

    def probabilities(self) -> Choices:
        """Softmax of the logits, differentiable; pruned operations exactly 0."""
        return Choices(
            relax(self.edges, SOFTMAX, alive=self.alive),
            relax(self.widths, SOFTMAX),
            tuple(relax(logits, SOFTMAX) for logits in self.depths),
        )

    def architecture_parameters(self) -> dict[str, nn.Parameter]:
        """The logits by name."""
        depths = {f"depths.{stage}": logits for stage, logits in enumerate(self.depths)}
        return {"edges": self.edges, "widths": self.widths, **depths}

    def weight_parameters(self) -> dict[str, nn.Parameter]:
        """All other parameters by name."""
        searched = self.architecture_parameters()
        return {name: parameter for name, parameter in self.named_parameters() if name not in searched}

    # ---- the pass -----------------------------------------------------------------------------

    def forward(self, x: Tensor, choices: Choices) -> Tensor:
        """Logits `[N, num_classes]` of the mixture.

        Args:
            x: `[N, C, H, W]`.
            choices: the weight of every choice, `relax` of the logits or `one_hot` of a point. Where they need no
                gradient, what has weight 0 is not computed: detach them to train weights. A pruned operation is
                computed only if its weight here is not 0. The weight of `none` multiplies nothing: it counts where
                weights compete, as softmax and Gumbel's do; Bernoulli's gives its logit no gradient.

        With the choices of a point this is its network: in evaluation mode `extract` of it gives the same logits, also
        where the point has operations on edges out of a node that nothing reaches. With widths that need a gradient
        full-precision sums add zeros of masked channels, maybe in another order than those of a network without them.

        Raises ValueError for a width group or a stage whose weights are all 0.
        """
        description, places, depth_choices = self.description, self._places, self._depth_choices
        values = [tensor.detach().flatten().tolist() for tensor in choices.tensors()]
        self._check(values)
        grad = torch.is_grad_enabled()
        alive = self.alive.flatten(1).tolist() if grad and choices.edges.requires_grad else None
        edges = choices.edges.unbind(0)
        width = len(EDGES) * len(description.operations)
        keeper = _Keeper(self, choices.widths, values[1])
        state = self._stem(x, keeper(places[0].width, description.channels, 1))
        if self.training:  # evaluation keeps to the layout, and so to the rounding, of a plain network
            state = _State(state.x.contiguous(memory_format=torch.channels_last), state.kept)
        for stage, normal in enumerate(self._stages):
            weights, chances = choices.depths[stage], values[2 + stage]
            wanted = grad and weights.requires_grad
            counts = [depth for depth, chance in zip(depth_choices[stage], chances, strict=True) if wanted or chance]
            order = [number for number, place in enumerate(places) if place.stage == stage and place.stride == 2]
            assert len(order) == (stage > 0)
            passed = []
            for number in order + list(normal[: max(counts)]):
                place = places[number]
                if place.stride == 1:
                    passed.append(state)
                group = place.topology
                state = cast(SuperCell, self.cells[number])(
                    state,
                    keeper(place.width, place.channels, place.stride),
                    keeper(place.width, place.channels, 1),
                    edges[group],
                    values[0][group * width : (group + 1) * width],
                    None if alive is None else alive[group],
                )
            passed.append(state)
            offsets = [depth_choices[stage].index(depth) for depth in counts]
            state = _sink([passed[depth] for depth in counts], weights, offsets, [chances[n] for n in offsets])
        features = torch.flatten(self.pool(state.x.contiguous()), 1)
        weight = cut_weight(self.fc.weight, self.fc.out_features, state.kept.channels, NODES)
        return F.linear(features, weight.contiguous(), self.fc.bias)

    def _check(self, values: list[list[float]]) -> None:
        size = len(self.description.widths)
        rows = {f"widths[{n}]": values[1][n * size : (n + 1) * size] for n in range(len(values[1]) // size)}
        rows |= {f"depths[{stage}]": row for stage, row in enumerate(values[2:])}
        for name, row in rows.items():
            if not any(row):
                raise ValueError(f"{name}: got weights that are all 0, wanted a choice with another one")

    def _stem(self, x: Tensor, kept: Kept) -> _State:
        stem, channels = self.stem, kept.channels
        x = stem.pool(stem.relu(stem.bn(stem.conv(x))))
        weight = stem.widen.weight
        if channels * NODES != weight.shape[0]:
            weight = weight.unflatten(0, (NODES, -1))[:, :channels].flatten(0, 1).contiguous()
        x = F.conv2d(x, weight)
        return _State(_masked(batch_norm(x, stem.widen_bn, channels, NODES), kept), kept)

    # ---- points -------------------------------------------------------------------------------

    @torch.no_grad()
    def extract(self, architecture: Architecture) -> Bars:
        """A copy of a point's network as a plain module: its slices of the weights and running statistics, in the
        supernet's mode, on its device. Raises ValueError for a point that is not of the space.
        """
        description = self.description
        config = description.network(architecture)
        with torch.device("meta"):
            network = Bars(config)  # on "meta" it costs nothing, and takes nothing from the random state
        state = {}
        numbers = kept_cells(description, architecture)
        whole = dict(self.named_parameters()) | dict(self.named_buffers())
        for name, target in network.state_dict().items():
            parts = name.split(".")
            block = None
            if parts[0] == "cells":
                number = numbers[int(parts[1])]
                parts[1] = str(number)
                if parts[2] == "edges":
                    source, to = map(int, parts[3].split("_"))
                    topology = architecture.cells[description.places[number].topology]
                    parts[2:4] = ["fans", f"{source}_{topology[EDGES.index((source, to))]}"]
                    block = (NODES - source, to - source - 1)
            state[name] = _slice(parts, whole[".".join(parts)], target.shape, block)
        network.load_state_dict(state, assign=True)
        return network.train(self.training)


class _Keeper:
    """What is kept of the channels of each width group, made once a pass."""

    def __init__(self, net: Supernet, widths: Tensor, values: list[float]) -> None:
        self.net, self.widths = net, widths
        self.shares = net.description.widths
        self.values = values
        self.masked = torch.is_grad_enabled() and widths.requires_grad
        self.found: dict[tuple[int, int, int], Kept] = {}

    def __call__(self, group: int, channels: int, stride: int) -> Kept:
        """Of `channels` at full width, divided by the stride."""
        key = (group, channels, stride)
        if key not in self.found:
            self.found[key] = self._make(*key)
        return self.found[key]

    def _make(self, group: int, channels: int, stride: int) -> Kept:
        whole = channels // stride
        row = self.values[group * len(self.shares) : (group + 1) * len(self.shares)]
        if self.masked and len(self.shares) > 1:
            return Kept(whole, self.widths[group] @ self._prefixes(channels, stride))
        used = [(max(1, cut(share, channels) // stride), value) for share, value in zip(self.shares, row, strict=True)]
        most = max(count for count, value in used if value)
        if sum(value for count, value in used if count == most) == 1 == sum(row):
            return Kept(most)
        return Kept(most, (self.widths[group] @ self._prefixes(channels, stride))[:most])

    def _prefixes(self, channels: int, stride: int) -> Tensor:
        return cast(Tensor, getattr(self.net, f"_prefixes_{channels}_{stride}")).to(self.widths.dtype)


def kept_cells(description: Description, architecture: Architecture) -> list[int]:
    """The cells of a point by their place in the layout."""
    normal = {n for cells, depth in zip(description.stages, architecture.depths, strict=True) for n in cells[:depth]}
    return [n for n, place in enumerate(description.places) if place.stride == 2 or n in normal]


def _masked(x: Tensor, kept: Kept) -> Tensor:
    mask = kept.rows(NODES)
    return x if mask is None else x * mask.view(-1, 1, 1)


def _sink(states: list[_State], weights: Tensor, positions: list[int], values: list[float]) -> _State:
    """What the end of a stage reads: the sum of what may enter it, weighted; its mask is the sum of theirs."""
    if len(states) == 1 and values[0] == 1 and not (weights.requires_grad and torch.is_grad_enabled()):
        return states[0]
    channels = max(state.kept.channels for state in states)
    terms = [fit_channels(state.x, NODES * channels, NODES) for state in states]
    mixed = mix(terms, weights, positions, values, None)
    if all(state.kept.mask is None and state.kept.channels == channels for state in states):
        return _State(mixed, Kept(channels))
    masks = []
    for state in states:
        mask = state.kept.mask
        mask = weights.new_ones(state.kept.channels) if mask is None else mask
        masks.append(F.pad(mask, (0, channels - len(mask))))
    return _State(mixed, Kept(channels, weights[positions] @ torch.stack(masks)))


def _slice(parts: list[str], whole: Tensor, shape: torch.Size, block: tuple[int, int] | None) -> Tensor:
    """The part of one of the supernet's tensors that has `shape`: a prefix of each dimension; where a dimension is that
    of a state, a prefix of each of its groups. `block`: of how many stacked layers, and which."""
    if block is not None and shape:
        whole = whole.unflatten(0, (block[0], -1))[block[1]]
    dimension = None
    if parts[0] == "fc" and len(shape) == 2:
        dimension = 1
    elif parts[1].startswith("widen") and shape:
        dimension = 0
    elif parts[2:3] == ["preprocess"] and len(shape) == 4:
        dimension = 1
    elif parts[2:4] == ["preprocess", "bn"] and shape:
        dimension = 0
    for n, size in enumerate(shape):
        if n == dimension:
            whole = whole.unflatten(n, (NODES, -1)).narrow(n + 1, 0, size // NODES).flatten(n, n + 1)
        else:
            whole = whole.narrow(n, 0, size)
    return whole.detach().clone(memory_format=torch.contiguous_format)

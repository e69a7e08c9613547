"""The device table of a space of BARS: built from few networks, and checked on others (`cost.table_space`).

A call belongs to a part of a cell, in one of the few ways that it can be called (`structure`), of a width, behind
another: some thousand combinations hold every call of 10^40 networks. A network holds many at once, so a covering set
is packed: combinations still to be met are put into one network as long as they agree on its cells, widths and depths.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.cost import table_space
from bitnas.cost.device_table import latency_key
from bitnas.cost.table_space import BuildReport, Code, build, check, open_table
from bitnas.methods.bars import outline
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.bars.expected import Entry, Layout
from bitnas.methods.bars.latency_prices import Item, asked, can_follow, head, items, packs_for, passes_met, stem
from bitnas.methods.bars.outline import NO_NODES, Numbers
from bitnas.methods.bars.structure import First, Joined
from bitnas.models.bars import Bars, BarsConfig, canonical
from bitnas.models.operations import NONE, OPERATIONS, SKIP

if TYPE_CHECKING:
    import torch

    from bitnas.cost.agreement import Check
    from bitnas.cost.device_table import DeviceTable, Key, Prediction
    from bitnas.packed import PackedNetwork

__all__ = ["BuildReport", "LatencySpace", "build", "built", "check", "last_check", "predict", "signatures"]

METHOD = "bars"

_STEPS = 400  # changes tried to make a network of so many calls


@dataclass(frozen=True)
class LatencySpace:
    """The networks that a table is for. A code is a genome of `Description`."""

    description: Description

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        return self.description.input_size

    @property
    def size(self) -> int:
        """How many points there are."""
        return self.description.size

    @cached_property
    def reference(self) -> Code:
        """The network that is timed again and again to see a drift of the machine: all cells, the middle width, and
        on every edge the first operation that is a convolution."""
        d = self.description
        name = next((name for name in d.operations if OPERATIONS[name].kernel), d.operations[-1])
        widths = (d.widths[(len(d.widths) - 1) // 2],) * d.width_count
        edges = (name,) * len(NO_NODES)
        return d.genome(Architecture((edges,) * d.topologies, widths, tuple(max(c) for c in d.depth_choices)))

    def to_dict(self) -> dict[str, Any]:
        """JSON, as tables hold it: the description without its name."""
        values = {name: value for name, value in self.description.to_dict().items() if name != "name"}
        return {"method": METHOD, **values}

    def network(self, code: Code) -> BarsConfig:
        """What a code stands for."""
        return self.description.network(self.description.architecture(code))

    def named(self, code: Code) -> str:
        """A network in a few words."""
        return name(self.network(code))

    def random(self, rng: Random) -> Code:
        """A network, with more or fewer operations in each: drawn evenly they all cost much the same, but a search
        keeps networks of all costs."""
        d = self.description
        shares = [rng.random() ** 2 + 1e-3 for _ in d.operations]
        drawn = d.random(rng)
        cells = tuple(tuple(rng.choices(d.operations, shares, k=len(NO_NODES))) for _ in range(d.topologies))
        return d.genome(_plain(d, Architecture(cells, drawn.widths, drawn.depths)))

    def covering(self, *, batch: int, rounds: int, seed: int) -> list[list[Code]]:
        """For each round, genomes that together hold every call of the space; other ones in each round."""
        rng = Random(seed)
        targets = list(_targets(self.description, batch))
        found = []
        for _ in range(rounds):
            networks = _cover(self.description, targets, batch, rng)
            networks += _of_other_lengths(self, networks, batch, rng)
            codes = list(dict.fromkeys(self.description.genome(a) for a in networks))
            rng.shuffle(codes)
            found.append(codes)
        return found

    def signatures(self, code: Code, batch: int) -> Sequence[str]:
        """Of the calls of a network, in order."""
        return outline.signatures(self.network(code), batch)

    def random_network(self, code: Code, generator: torch.Generator) -> PackedNetwork:
        """The frozen network with random bits."""
        return outline.random_network(self.network(code), generator)

    def frozen(self, code: Code) -> PackedNetwork:
        """The network made and frozen as a search does it, with weights of chance."""
        from bitnas.packed import freeze

        return freeze(Bars(self.network(code)).eval())


def name(network: BarsConfig) -> str:
    """A network in a few words: of each cell its channels, and skips + convolutions; R for a reduction."""
    cells = []
    for cell in network.cells:
        skips = cell.edges.count(SKIP)
        convolutions = sum(OPERATIONS[operation].kernel > 0 for operation in cell.edges)
        cells.append(f"{'R' if cell.stride == 2 else ''}{cell.channels}:{skips}+{convolutions}")
    return f"the network {network.width} {' '.join(cells)}"


def signatures(network: BarsConfig, batch: int = 1, memory: Any = "fast") -> Sequence[str]:
    """What `DeviceTable.predict` takes: the calls of the frozen network in some order, without making its weights."""
    return outline.calls(network, batch, memory)


def predict(network: BarsConfig, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> Prediction:
    """Latency of a network from the device table, in us per batch.

    Args:
        table: the file; None for `cost.device_table.default_table()`. It is read again when it has changed.

    Raises:
        FileNotFoundError, CorruptFileError: there is no table, or it is damaged. ValueError: it lacks a call of this
        network on this device.
    """
    key = latency_key(batch=batch, threads=threads)
    about = {"method": METHOD, "input_size": list(network.input_size), "num_classes": network.num_classes}
    opened = open_table(table)
    return table_space.predict(opened, _met(opened, key, signatures(network, batch)), key, name(network), about)


def _met(table: DeviceTable, key: Key, calls: Sequence[str]) -> Sequence[str]:
    """The calls, the last of which is the pass around them: that of the nearest number of calls the table has met."""
    passes = passes_met(table.entries(key))
    if not passes:
        return calls
    return [*calls[:-1], passes[min(passes, key=lambda count: (abs(count - len(calls) + 1), count))]]


def built(description: Description, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> bool:
    """Whether the table was built for this space, or for one that has all its networks, on this device."""
    key = latency_key(batch=batch, threads=threads)
    return bool(table_space.holding(open_table(table), key, lambda space: holds(space, description)))


def last_check(
    description: Description, *, table: str | Path | None = None, batch: int = 1, threads: int = 1
) -> Check | None:
    """The latest check of the table on this space, or on one that has all its networks; None if there is none."""
    key = latency_key(batch=batch, threads=threads)
    return table_space.last_check(open_table(table), key, lambda space: holds(space, description))


_SAME = ("layout", "channels", "preprocess", "scheme", "stem_stride", "input_size", "num_classes")


def holds(space: Mapping[str, Any], description: Description) -> bool:
    """Whether every network of a description is one of a table's space (`LatencySpace.to_dict`)."""
    if space.get("method") != METHOD:
        return False
    own = Description.from_dict({"name": "own", **{key: value for key, value in space.items() if key != "method"}})
    return (
        all(getattr(own, field) == getattr(description, field) for field in _SAME)
        and set(description.operations) <= set(own.operations)
        and set(description.widths) <= set(own.widths)
        and all(set(a) <= set(b) for a, b in zip(description.depth_choices, own.depth_choices, strict=True))
        and _finer([p.topology for p in own.places], [p.topology for p in description.places])
        and _finer([p.width for p in own.places], [p.width for p in description.places])
    )


def _finer(groups: Sequence[int], others: Sequence[int]) -> bool:
    """Whether cells that share a group also share the other."""
    return len(set(zip(groups, others, strict=True))) == len(set(groups))


# ---- coverings ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Target:
    """What a network needs in order to have some calls, by the numbers of groups and stages.

    `nodes`: topology groups whose cells must have nodes, or must not. `depths`: choices of a stage's depth, as indices.
    """

    signatures: tuple[str, ...]
    depths: tuple[tuple[int, frozenset[int]], ...]
    widths: tuple[tuple[int, float], ...] = ()
    cells: tuple[tuple[int, tuple[str, ...]], ...] = ()
    nodes: tuple[tuple[int, bool], ...] = ()


def _targets(description: Description, batch: int) -> Iterator[_Target]:
    """Every call that a network of the space can make, with what it takes."""
    d, layout = description, Layout(description)
    both = (False, True) if NONE in d.operations else (True,)
    for row, entry in enumerate(layout.entries):
        behind = [two for two in layout.entries if entry.cell is not None and two.before == entry.cell]
        for before in d.widths:
            yield from _of_ends(d, entry, before, batch, both)
            for own in d.widths:
                if entry.cell is not None and layout.meet(row, before, own):
                    yield from _of_cell(d, entry, behind, before, own, batch)


def _of_ends(d: Description, entry: Entry, share: float, batch: int, both: Sequence[bool]) -> Iterator[_Target]:
    depths = ((entry.stage, frozenset(entry.depths)),)
    if entry.before is None:
        assert entry.cell is not None
        for nodes in both:
            calls = outline.stem_calls(stem(d, share, nodes=nodes), batch)
            group = d.places[entry.cell].topology
            yield _Target(calls, depths, ((d.places[0].width, share),), nodes=((group, nodes),))
    if entry.cell is None:
        assert entry.before is not None
        calls = outline.head_calls(head(d, entry, share), batch)
        yield _Target(calls, depths, ((d.places[entry.before].width, share),))


def _of_cell(
    d: Description, entry: Entry, behind: Sequence[Entry], before: float, own: float, batch: int
) -> Iterator[_Target]:
    assert entry.cell is not None
    place, cell = d.places[entry.cell], asked(d, entry, before, own)
    numbers = Numbers.of(cell.cell, cell.cin, cell.size, batch)
    enters = d.places[0 if entry.before is None else entry.before].width
    widths, depths = ((enters, before), (place.width, own)), (entry.stage, frozenset(entry.depths))

    def calls(item: Item, packs: bool) -> tuple[str, ...]:
        piece = item.piece
        if isinstance(piece.way, First):
            piece = piece._replace(style=piece.style._replace(few=outline.is_few(cell.cin, d.preprocess)))
        piece = piece._replace(style=piece.style._replace(packs=packs))
        return tuple(outline.fill(outline.part_calls(piece, item.example), numbers))

    for item in items(d, place.stride):
        cells = ((place.topology, item.example),)
        if not isinstance(item.piece.way, Joined):
            yield _Target(calls(item, False), (depths,), widths, cells)
            continue
        for two in behind:
            for nodes in can_follow(d, entry, two, item):
                wanted = () if two.cell is None else ((d.places[two.cell].topology, nodes),)
                both = (depths, (two.stage, frozenset(two.depths)))
                yield _Target(calls(item, nodes and packs_for(d, two)), both, widths, cells, wanted)


@dataclass
class _Plan:
    """A network while it is put together: what is settled."""

    description: Description
    cells: dict[int, tuple[str, ...]] = field(default_factory=dict)
    widths: dict[int, float] = field(default_factory=dict)
    nodes: dict[int, bool] = field(default_factory=dict)
    depths: dict[int, frozenset[int]] = field(default_factory=dict)

    def take(self, target: _Target) -> bool:
        """Settles what the target needs, if it agrees with what is settled."""
        widths, cells, nodes, depths = dict(self.widths), dict(self.cells), dict(self.nodes), dict(self.depths)
        for group, share in target.widths:
            if widths.setdefault(group, share) != share:
                return False
        for group, edges in target.cells:
            if cells.setdefault(group, edges) != edges:
                return False
            if nodes.setdefault(group, outline.has_nodes(canonical(edges))) != outline.has_nodes(canonical(edges)):
                return False
        for group, wanted in target.nodes:
            if nodes.setdefault(group, wanted) != wanted:
                return False
        for stage, choices in target.depths:
            depths[stage] = depths[stage] & choices if stage in depths else choices
            if not depths[stage]:
                return False
        self.widths, self.cells, self.nodes, self.depths = widths, cells, nodes, depths
        return True

    def finished(self, rng: Random) -> Architecture:
        """The network, with the rest by chance."""
        d, drawn = self.description, self.description.random(rng)
        cells = []
        for group in range(d.topologies):
            edges = self.cells.get(group, drawn.cells[group])
            while group in self.nodes and outline.has_nodes(canonical(edges)) != self.nodes[group]:
                edges = d.random(rng).cells[group] if self.nodes[group] else NO_NODES
            cells.append(edges)
        widths = tuple(self.widths.get(group, share) for group, share in enumerate(drawn.widths))
        depths = []
        for stage, choices in enumerate(d.depth_choices):
            left = sorted(self.depths.get(stage, range(len(choices))))
            depths.append(choices[rng.choice(left)])
        return _plain(d, Architecture(tuple(cells), widths, tuple(depths)))


def _plain(description: Description, architecture: Architecture) -> Architecture:
    """The same network with nothing on edges out of dead nodes."""
    if NONE not in description.operations:
        return architecture
    return dataclasses.replace(architecture, cells=tuple(map(canonical, architecture.cells)))


def _cover(description: Description, targets: Sequence[_Target], batch: int, rng: Random) -> list[Architecture]:
    """Networks that together have the calls of all targets."""
    left = {signature for target in targets for signature in target.signatures}
    open_targets = list(targets)
    found = []
    while left:
        rng.shuffle(open_targets)
        plan = _Plan(description)
        for target in open_targets:
            plan.take(target)
        architecture = plan.finished(rng)
        met = left & set(outline.calls(description.network(architecture), batch))
        if not met:
            raise RuntimeError(f"no network was found for {len(left)} calls of {description.name}, such as {min(left)}")
        left -= met
        found.append(architecture)
        open_targets = [target for target in open_targets if not left.isdisjoint(target.signatures)]
    return found


def _of_other_lengths(
    space: LatencySpace, networks: Sequence[Architecture], batch: int, rng: Random
) -> list[Architecture]:
    """Networks of the numbers of calls that the others do not have: a pass has a cost beside its calls, which goes by
    their number. Numbers that a few hundred changes do not lead to are left out."""
    d = space.description

    def length(architecture: Architecture) -> int:
        return outline.length(d.network(architecture), batch)

    known = {length(architecture): architecture for architecture in networks}
    least, most = (length(a) for a in (_smallest(d), d.biggest))
    found = {}
    for wanted in range(min(least, *known), max(most, *known) + 1):
        if wanted in known:
            continue
        near = min(known, key=lambda n: abs(n - wanted))
        current, distance = known[near], abs(near - wanted)
        for _ in range(_STEPS):
            changed = _changed(d, current, rng)
            reached = length(changed)
            known.setdefault(reached, changed)
            if abs(reached - wanted) <= distance:
                current, distance = changed, abs(reached - wanted)
            if not distance:
                found[wanted] = current
                break
    return list(found.values())


def _smallest(d: Description) -> Architecture:
    cells = ((NONE if NONE in d.operations else d.operations[0],) * len(NO_NODES),) * d.topologies
    return Architecture(cells, (d.widths[0],) * d.width_count, tuple(min(choices) for choices in d.depth_choices))


def _changed(d: Description, architecture: Architecture, rng: Random) -> Architecture:
    """The network with one thing drawn anew."""
    drawn = d.random(rng)
    if rng.random() < 0.2:
        return dataclasses.replace(architecture, depths=drawn.depths)
    group, edge = rng.randrange(d.topologies), rng.randrange(len(NO_NODES))
    cells = [list(edges) for edges in architecture.cells]
    cells[group][edge] = drawn.cells[group][edge]
    return _plain(d, dataclasses.replace(architecture, cells=tuple(map(tuple, cells))))

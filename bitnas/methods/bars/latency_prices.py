"""The latency of a network of a space from the device table, and its mean where choices are not made yet.

A latency is a sum over calls. Each call belongs to a part of a cell (`outline.Piece`); how likely a part is called in
which way is known exactly (`structure`), and so are the chances of where a cell stands and of the widths around it
(`expected`). So the mean over all networks is prices times chances. Two things pass the border of a cell: a join packs
for the cell behind it if that has nodes, which is in the sum; and what a pass costs beside its calls goes by how many
there are in all, which is the one thing that is not exact before choices are made (`LatencyPrices.expected`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

import torch
from torch import Tensor

from bitnas.cost import table_space
from bitnas.cost.device_table import latency_key
from bitnas.methods.bars import outline
from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.cost import entering_size
from bitnas.methods.bars.description import Architecture, Description, cut
from bitnas.methods.bars.expected import LIVE_SETS, Entry, Layout, double, live_sets, needed
from bitnas.methods.bars.outline import NO_NODES, Numbers, Style
from bitnas.methods.bars.structure import First, Joined, roles, structures
from bitnas.models.bars import NODES, BarsConfig, Cell
from bitnas.models.operations import NONE, OPERATIONS, SKIP


class Item(NamedTuple):
    """A part of a cell in a way it can be called: the number of the way among `Structures.ways`, a cell that has it,
    and of an edge its number and that of its operation."""

    number: int
    piece: outline.Piece
    example: tuple[str, ...]
    edge: tuple[int, int] | None = None


def items(description: Description, stride: int) -> Iterator[Item]:
    """Every part in every way that a cell of this stride can have in the space; joins that do not pack."""
    d = description
    style = Style(stride, d.preprocess, d.scheme, packs=False, few=False)
    convolutions = [n for n, name in enumerate(d.operations) if OPERATIONS[name].kernel]
    found = structures(roles(d.operations), stride)
    for number, ((part, way), example) in enumerate(zip(found.ways, found.examples, strict=True)):
        for operation in convolutions if isinstance(part, int) else convolutions[:1] or [0]:
            name = d.operations[operation]
            edges = tuple((NONE, SKIP, name)[role] for role in example)
            edge = (part, operation) if isinstance(part, int) else None
            yield Item(number, outline.piece(part, way, style, name if edge else None), edges, edge)


class Asked(NamedTuple):
    """A cell as prices are asked for it: of this width, behind that one, and what enters it."""

    cell: Cell
    cin: int
    size: tuple[int, int]


def asked(description: Description, entry: Entry, before: float, own: float) -> Asked:
    """The cell of an entry at two widths, without its operations."""
    d = description
    assert entry.cell is not None
    place = d.places[entry.cell]
    cell = Cell(NO_NODES, cut(own, place.channels), place.stride)
    channels = d.channels if entry.before is None else d.places[entry.before].channels
    return Asked(cell, cut(before, channels), entering_size(d, entry.cell))


def stem(description: Description, share: float, *, nodes: bool) -> BarsConfig:
    """A network with the stem of this width, and a first cell with nodes or without."""
    d = description
    cells = (Cell((SKIP, *NO_NODES[1:]) if nodes else NO_NODES, 1),)
    width = cut(share, d.channels)
    return BarsConfig(d.channels, width, cells, d.preprocess, 2, d.input_size, d.stem_stride, d.scheme)


def head(description: Description, entry: Entry, share: float) -> BarsConfig:
    """A network whose last cell is that of the entry, at this width."""
    d = description
    assert entry.before is not None
    cells = (Cell(NO_NODES, cut(share, d.places[entry.before].channels)),)
    size = entering_size(d, len(d.places))
    return BarsConfig(1, 1, cells, d.preprocess, d.num_classes, (1, *size), scheme=d.scheme)


def can_follow(description: Description, entry: Entry, behind: Entry, join: Item) -> tuple[bool, ...]:
    """Whether the cell behind a join may have no node, and may have some."""
    assert entry.cell is not None
    if behind.cell is not None and description.places[behind.cell].topology == description.places[entry.cell].topology:
        return (cast(Joined, join.piece.way).live > 0,)
    return (False, True) if NONE in description.operations else (True,)


def packs_for(description: Description, entry: Entry) -> bool:
    """Whether the cell of an entry has the one before it pack, if it has nodes."""
    return entry.cell is not None and description.preprocess == "binary"


def passes_met(signatures: Iterable[str]) -> dict[int, str]:
    """Of the signatures of a table those of a pass, by the number of its calls."""
    found = {signature: json.loads(signature) for signature in signatures if signature.startswith('{"calls":')}
    return {values["calls"]: signature for signature, values in found.items() if values["does"] == "pass"}


class LatencyPrices:
    """Microseconds per batch, by the device table.

    Args:
        table: the file; None for `cost.device_table.default_table()`.
        batch, threads: what latencies are for.

    Raises:
        FileNotFoundError, CorruptFileError: there is no table, or it is damaged. ValueError: it lacks calls of the
        space's networks on this device.
    """

    unit = "us"

    def __init__(
        self, description: Description, table: str | Path | None = None, *, batch: int = 1, threads: int = 1
    ) -> None:
        self.description, self.batch, self.threads = description, batch, threads
        self._key = latency_key(batch=batch, threads=threads)
        self._table = table_space.open_table(table)
        self._layout = Layout(description)
        self._us = {signature: entry.us for signature, entry in self._table.entries(self._key).items()}
        self._missing: set[str] = set()
        self._known: dict[tuple[outline.Piece, Numbers], tuple[float, int, int]] = {}
        entries = self._layout.entries
        self._strides = {
            stride: _Cells(self, [n for n, e in enumerate(entries) if self._stride(e) == stride], stride)
            for stride in sorted({place.stride for place in description.places})
        }
        self._joins = _Joins(self)
        self._ends = self._of_ends()
        passes = sorted((count, self._us[signature]) for count, signature in passes_met(self._us).items())
        if self._missing or not passes:
            raise ValueError(self._lacks(max(1, len(self._missing))))
        self._counts = torch.tensor([float(n) for n, _ in passes], dtype=torch.float64)
        self._passes = torch.tensor([us for _, us in passes], dtype=torch.float64)

    def _stride(self, entry: Entry) -> int | None:
        return None if entry.cell is None else self.description.places[entry.cell].stride

    def _lacks(self, calls: int) -> str:
        d = self.description
        size = ",".join(map(str, d.input_size))
        return (
            f"{self._table.path} lacks {calls} calls of networks of the space {d.name} at batch {self.batch} and "
            f"{self.threads} thread(s) on this device; run bitnas latency build --method bars --space {d.name} (or its "
            f"file) --input-size {size} --num-classes {d.num_classes} --batch {self.batch} --threads {self.threads} "
            f"--table {self._table.path}"
        )

    # ---- prices -------------------------------------------------------------------------------

    def of_calls(self, signatures: tuple[str, ...]) -> tuple[float, int, int]:
        """Their microseconds, their number and its square; what the table lacks is noted."""
        self._missing.update(s for s in signatures if s not in self._us)
        count = len(signatures)
        return sum(self._us.get(s, 0.0) for s in signatures), count, count**2

    def of_piece(self, item: Item, cell: Asked, *, packs: bool = False) -> tuple[float, int, int]:
        """The same of a part of a cell."""
        piece = item.piece
        if isinstance(piece.way, First):
            few = outline.is_few(cell.cin, self.description.preprocess)
            piece = piece._replace(style=piece.style._replace(few=few))
        if isinstance(piece.way, Joined):
            piece = piece._replace(style=piece.style._replace(packs=packs))
        numbers = Numbers.of(cell.cell, cell.cin, cell.size, self.batch)
        if (piece, numbers) not in self._known:
            calls = outline.part_calls(piece, item.example)
            self._known[piece, numbers] = self.of_calls(tuple(outline.fill(calls, numbers)))
        return self._known[piece, numbers]

    def _of_ends(self) -> Tensor:
        """`[entries, widths before, nodes behind or not, 3]`: the stem's and the head's."""
        d, entries = self.description, self._layout.entries
        found = torch.zeros(len(entries), len(d.widths), 2, 3, dtype=torch.float64)
        for row, entry in enumerate(entries):
            for width, share in enumerate(d.widths):
                for nodes in (False, True) if NONE in d.operations else (True,):
                    if entry.before is None:
                        calls = outline.stem_calls(stem(d, share, nodes=nodes), self.batch)
                        found[row, width, int(nodes)] += torch.tensor(self.of_calls(calls), dtype=torch.float64)
                    if entry.cell is None:
                        calls = outline.head_calls(head(d, entry, share), self.batch)
                        found[row, width, int(nodes)] += torch.tensor(self.of_calls(calls), dtype=torch.float64)
        return found

    # ---- what is asked ------------------------------------------------------------------------

    def expected(self, probabilities: Choices) -> Tensor:
        """The mean over networks drawn with these probabilities.

        Exact, but for what a pass costs beside its calls: for that, how many there are is taken as normal (`_beside`).
        In spaces of some thousand networks this was off by up to 6e-5 of the latency where that price grows with the
        square of their number (0.01 us times it), and by 1e-9 where it grows in a straight line.

        Args:
            probabilities: each row sums to 1, such as softmax of the logits or `choices.one_hot`.

        Returns: a float64 scalar on the CPU, with a gradient to the probabilities. At one-hot probabilities it is `of`
        that network, as far as sums of floats in another order agree.
        """
        p, d = double(probabilities), self.description
        chances = self._layout.chances(p)
        nodes = needed(p.edges, d.operations)
        behind = nodes[self._layout.topologies]
        ends = torch.einsum("ka,kanc,kn->kc", chances.sum(2), self._ends, torch.stack([1 - behind, behind], 1))
        parts = [ends, self._joins.expected(p, nodes)]
        parts += [cells.expected(p, chances) for cells in self._strides.values()]
        us, calls, squares = torch.cat(parts).unbind(1)
        return us.sum() + self._beside(calls, squares)

    def _beside(self, calls: Tensor, squares: Tensor) -> Tensor:
        """What a pass costs beside its calls, from the means of each part's number of calls and of its square.

        The table has a price for each number of calls. The number in all is a sum over parts, here taken as normal with
        its true mean and the variance that it had if parts were independent; once choices are made it has none, and
        what is left is that number's own price.
        """
        mean = calls.sum()
        variance = (squares - calls.square()).sum().clamp_min(0)
        away = (self._counts - mean).square()
        return torch.softmax(-away / (2 * variance + 1e-9), 0) @ self._passes

    def of(self, architecture: Architecture) -> float:
        """What the table says of a point: the sum of its calls, and of the pass around them, whose price is that of the
        nearest number of calls the table has met. Raises ValueError for a point that is not of the space."""
        calls = outline.calls(self.description.network(architecture), self.batch)[:-1]
        count = torch.tensor([float(len(calls))], dtype=torch.float64)
        return sum(self._us[call] for call in calls) + float(self._beside(count, count.square()))


class _Cells:
    """The cells of one stride: the parts that are theirs alone."""

    def __init__(self, prices: LatencyPrices, rows: list[int], stride: int) -> None:
        d, layout = prices.description, prices._layout
        self.description = d
        self.rows = torch.tensor(rows)
        groups, self.group = layout.topologies[self.rows].unique(return_inverse=True)
        self.groups = groups
        self.structures = structures(roles(d.operations), stride)
        found = [item for item in items(d, stride) if not isinstance(item.piece.way, Joined)]
        firsts = [item for item in found if isinstance(item.piece.way, First)]
        others = [item for item in found if not isinstance(item.piece.way, First)]
        entries = [layout.entries[row] for row in rows]

        def table(wanted: list[Item], ask: Callable[[Entry, float, float], Asked]) -> Tensor:
            return torch.tensor(
                [
                    [
                        [
                            [
                                prices.of_piece(item, ask(entry, before, own))
                                if wanted is others or layout.meet(row, before, own)
                                else (0.0, 0, 0)
                                for item in wanted
                            ]
                            for own in d.widths
                        ]
                        for before in (d.widths if wanted is firsts else d.widths[:1])
                    ]
                    for row, entry in zip(rows, entries, strict=True)
                ],
                dtype=torch.float64,
            )

        # No other part may follow the channels that enter; that none does shows where they are none.
        self.first = table(firsts, lambda entry, before, own: asked(d, entry, before, own))
        self.other = table(others, lambda entry, _, own: asked(d, entry, 1.0, own)._replace(cin=0))[:, 0]
        self.first_ways = torch.tensor([item.number for item in firsts])
        self.plain = [(n, item.number) for n, item in enumerate(others) if item.edge is None]
        self.edges = [(n, item.number, *item.edge) for n, item in enumerate(others) if item.edge is not None]
        order = [n for n, *_ in (*self.plain, *self.edges)]
        self.other = self.other[:, :, order]
        self.plain_ways = torch.tensor([number for _, number in self.plain], dtype=torch.long)
        self.edge_ways = torch.tensor([number for _, number, _, _ in self.edges], dtype=torch.long)
        self.edge, self.operation = (torch.tensor([item[n] for item in self.edges], dtype=torch.long) for n in (2, 3))

    def expected(self, p: Choices, chances: Tensor) -> Tensor:
        """`[parts, 3]`: means of microseconds, calls and their square, of each part of each cell."""
        edges = p.edges[self.groups]
        ways = self.structures.probabilities(edges, self.description.operations)
        on_edge = ways[:, self.edge_ways] * edges[:, self.edge, self.operation]
        others = torch.cat([ways[:, self.plain_ways], on_edge], 1)[self.group]
        firsts = ways[:, self.first_ways][self.group]
        own = chances[self.rows]
        first = torch.einsum("kab,ki,kabic->kic", own, firsts, self.first)
        other = torch.einsum("kb,ki,kbic->kic", own.sum(1), others, self.other)
        return torch.cat([first, other], 1).flatten(0, 1)


class _Joins:
    """The joins: for each pair of entries that meet in a cell, by how many nodes are live and whether the cell behind
    has nodes to pack for."""

    def __init__(self, prices: LatencyPrices) -> None:
        d, layout = prices.description, prices._layout
        self.description, self.layout = d, layout
        pairs = [
            (before, behind)
            for before, one in enumerate(layout.entries)
            for behind, two in enumerate(layout.entries)
            if one.cell is not None and one.cell == two.before
            if one.stage != two.stage or set(one.depths) & set(two.depths)
        ]
        self.before = torch.tensor([before for before, _ in pairs])
        first, second, tables = [], [], []
        for before, behind in pairs:
            one, two = layout.entries[before], layout.entries[behind]
            both = one.depths if one.stage != two.stage else sorted(set(one.depths) & set(two.depths))
            first.append(layout.depths(one.stage, both))
            every = range(len(d.depth_choices[two.stage]))
            second.append(layout.depths(two.stage, two.depths if one.stage != two.stage else every))
            tables.append(self._table(prices, before, behind))
        self.first, self.second = torch.stack(first), torch.stack(second)
        self.prices = torch.stack(tables)
        self.own = layout.topologies[self.before]
        self.behind = layout.topologies[torch.tensor([behind for _, behind in pairs])]
        self.count = torch.tensor([sum(nodes) for nodes in LIVE_SETS])

    def _table(self, prices: LatencyPrices, before: int, behind: int) -> Tensor:
        """`[widths before, widths, live nodes, the cell behind has none or some, 3]`; 0 for what cannot be."""
        d, layout = self.description, self.layout
        one, two = layout.entries[before], layout.entries[behind]
        found = torch.zeros(len(d.widths), len(d.widths), NODES + 1, 2, 3, dtype=torch.float64)
        assert one.cell is not None
        joins = [item for item in items(d, d.places[one.cell].stride) if isinstance(item.piece.way, Joined)]
        for a, wide in enumerate(d.widths):
            for b, own in enumerate(d.widths):
                if layout.meet(before, wide, own):
                    cell = asked(d, one, wide, own)
                    for item in joins:
                        live = cast(Joined, item.piece.way).live
                        for nodes in can_follow(d, one, two, item):
                            price = prices.of_piece(item, cell, packs=nodes and packs_for(d, two))
                            found[a, b, live, int(nodes)] = torch.tensor(price, dtype=torch.float64)
        return found

    def expected(self, p: Choices, nodes: Tensor) -> Tensor:
        """`[pairs, 3]`: means of microseconds, calls and their square, of each."""
        depths = torch.cat(p.depths)
        stands = (self.first @ depths) * (self.second @ depths)
        widths = self.layout.widths(p)[self.before]
        sets = live_sets(p.edges, self.description.operations)
        live = sets.new_zeros(len(sets), NODES + 1).index_add(1, self.count, sets)[self.own]
        behind = nodes[self.behind].unsqueeze(1)
        # A group of cells either has nodes or not: behind itself it has them exactly if it has them here.
        some = (torch.arange(NODES + 1) > 0).double()
        behind = torch.where((self.own == self.behind).unsqueeze(1), some, behind)
        joint = torch.stack([live * (1 - behind), live * behind], 2)
        return torch.einsum("t,tab,tln,tablnc->tc", stands, widths, joint, self.prices)

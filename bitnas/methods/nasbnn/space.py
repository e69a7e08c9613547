"""The subnets of a description as genomes, and the operators on them (Lin et al. 2024, NAS-BNN).

Channels never shrink with depth, and here that holds for every genome that leaves an operator. The paper's public
mutation looks at the row before only, so a child of it can shrink at the row behind. Rows beyond a stage's depth carry
nothing of their own but repeat the last active one: a subnet has one genome, and what was asked for is known exactly.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from bitnas.methods.nasbnn.by_ops import OpsCounts, ops_counts
from bitnas.methods.nasbnn.cost import Cost, cost
from bitnas.methods.nasbnn.description import Description, Stage

if TYPE_CHECKING:
    from bitnas.models.nasbnn import Block, SubnetConfig

Genome = tuple[float, ...]
T = TypeVar("T")

MUTATION_RATE = 0.2  # the paper's
_EASY = 0.02  # share of the subnets in a window from which on drawing until one fits is the faster way
_ROW = 3  # numbers of a row: channels, kernel, groups


class _Row(NamedTuple):
    channels: int
    kernel: int
    groups: int


class _Subnet(NamedTuple):
    """A genome taken apart: channels of the stem, and of each stage its active rows."""

    stem: int
    stages: list[list[_Row]]

    def rows(self) -> list[_Row]:
        return [row for rows in self.stages for row in rows]


class SubnetSpace:
    """Every subnet of a description whose channels never decrease from the stem to the last block.

    A genome is (stem channels, then for each stage: depth, then for each of max(depths) rows: channels, kernel,
    groups), all as floats. The column of channels, inactive rows included, never decreases. Rows beyond the depth
    repeat the last active one in every genome that is returned.

    Args:
        description: what the choices are.
        weight_normalization: of the subnets, whether binary weights are standardised.
        allowed: says of a subnet whether it may be asked for; None allows every one.
        ops: (low, high), the OPs that a subnet may have, ends included. Unlike what `allowed` permits, `random` finds
            them however few they are.

    Where two stages of stride 1 follow each other and share choices, two genomes may describe one network; the key of
    its `SubnetConfig` tells.
    """

    def __init__(
        self,
        description: Description,
        *,
        weight_normalization: bool = True,
        allowed: Callable[[SubnetConfig], bool] | None = None,
        ops: tuple[float, float] | None = None,
    ) -> None:
        if ops is not None and not (len(ops) == 2 and 0 <= ops[0] <= ops[1]):
            raise ValueError(f"ops: got {ops!r}, wanted (low, high) with 0 <= low <= high")
        self.description = description
        self.weight_normalization = weight_normalization
        self.allowed = allowed
        self.ops_window = ops
        self._depths = [max(stage.depths) for stage in description.stages]
        # Where each stage's depth stands in a genome; its rows follow.
        self._starts = [1 + sum(1 + _ROW * depth for depth in self._depths[:n]) for n in range(len(self._depths))]
        self.length = 1 + sum(1 + _ROW * depth for depth in self._depths)

    # ---- size -------------------------------------------------------------------

    @cached_property
    def size(self) -> int:
        """Number of genomes, which is that of the subnets, by the non-decreasing rule; those not allowed included.

        3.3235e17 for the paper's space.
        """
        return sum(self._completions[0][stem] for stem in self.description.stem)

    @property
    def size_without_rule(self) -> int:
        """Number of subnets if channels were free: 3.9604e21 for the paper's space, which prints about 4.0e21."""
        total = len(self.description.stem)
        for stage in self.description.stages:
            choices = len(stage.channels) * len(stage.kernels) * len(stage.groups)
            total *= sum(choices**depth for depth in stage.depths)
        return total

    @cached_property
    def _completions(self) -> list[dict[int, int]]:
        """[n][c]: in how many ways stages n, n + 1, ... go on after c channels. Exact, from the last stage back."""
        known: list[dict[int, int]] = [dict.fromkeys(self._channels_before(len(self._depths)), 1)]
        for number in reversed(range(len(self._depths))):
            tails = self._tails(number, known[0])
            depths = self.description.stages[number].depths
            known.insert(0, {c: sum(tails[d][c] for d in depths) for c in self._channels_before(number)})
        return known

    def _tails(self, number: int, after: dict[int, int]) -> list[dict[int, int]]:
        """[r][c]: the same within a stage of which r rows are still to come."""
        stage = self.description.stages[number]
        variants = len(stage.kernels) * len(stage.groups)
        here = sorted({*self._channels_before(number), *stage.channels})
        tails = [{c: after.get(c, 0) for c in here}]  # channels that only lead into a stage cannot end it
        for _ in range(self._depths[number]):
            last = tails[-1]
            tails.append({c: variants * sum(last[n] for n in stage.channels if n >= c) for c in here})
        return tails

    @cached_property
    def _all_tails(self) -> list[list[dict[int, int]]]:
        return [self._tails(number, self._completions[number + 1]) for number in range(len(self._depths))]

    def _channels_before(self, number: int) -> tuple[int, ...]:
        """Channels that can enter a stage."""
        return self.description.stages[number - 1].channels if number else self.description.stem

    @property
    def limited(self) -> bool:
        """Whether some genome may be one that is not permitted."""
        return self.allowed is not None or self.ops_window is not None

    # ---- single genomes ---------------------------------------------------------

    @cached_property
    def smallest(self) -> Genome:
        """Fewest channels, smallest kernels, least depth, most groups: the cheapest subnet."""
        return self._encode(
            _Subnet(
                min(self.description.stem),
                [
                    [_Row(min(s.channels), min(s.kernels), max(s.groups))] * min(s.depths)
                    for s in self.description.stages
                ],
            )
        )

    @cached_property
    def biggest(self) -> Genome:
        """Most channels, biggest kernels, most depth, fewest groups: the dearest subnet, and the paper's teacher."""
        return self._encode(
            _Subnet(
                max(self.description.stem),
                [
                    [_Row(max(s.channels), max(s.kernels), min(s.groups))] * max(s.depths)
                    for s in self.description.stages
                ],
            )
        )

    def validate(self, genome: Sequence[float]) -> Genome:
        """The genome of this subnet as operators return it; ValueError naming what is wrong if it is none of this
        space. Inactive rows may be any choices that keep the column of channels from shrinking."""
        if len(genome) != self.length:
            raise ValueError(f"genome: got {len(genome)} numbers, wanted {self.length}")
        self._check("the stem's channels", genome[0], self.description.stem)
        before = genome[0]
        for number, stage in enumerate(self.description.stages):
            start = self._starts[number]
            self._check(f"the depth of stage {number}", genome[start], stage.depths)
            for row in range(self._depths[number]):
                at = start + 1 + _ROW * row
                where = f"of row {row} of stage {number}"
                self._check(f"the channels {where}", genome[at], stage.channels)
                self._check(f"the kernel {where}", genome[at + 1], stage.kernels)
                self._check(f"the groups {where}", genome[at + 2], stage.groups)
                if genome[at] < before:
                    raise ValueError(f"genome: got {genome[at]:g} channels {where} after {before:g}, wanted no fewer")
                before = genome[at]
        return self._encode(self._decode(genome))

    @staticmethod
    def _check(what: str, value: float, choices: tuple[int, ...]) -> None:
        if value not in choices:
            raise ValueError(f"genome: got {value!r} for {what}, wanted one of {choices}")

    def subnet(self, genome: Sequence[float]) -> SubnetConfig:
        """The network that a genome describes. Raises ValueError as `validate` does."""
        self.validate(genome)
        return self._subnet(self._decode(genome))

    def _subnet(self, parts: _Subnet) -> SubnetConfig:
        from bitnas.models.nasbnn import SubnetConfig  # loads torch, which nothing else here needs

        return SubnetConfig(
            stem=parts.stem,
            blocks=tuple(_block(*row) for row in self._blocks(parts)),
            num_classes=self.description.num_classes,
            input_size=self.description.input_size,
            stem_stride=self.description.stem_stride,
            weight_normalization=self.weight_normalization,
        )

    def _blocks(self, parts: _Subnet) -> Iterator[tuple[int, int, int, int, int]]:
        for stage, rows in zip(self.description.stages, parts.stages, strict=True):
            stride = stage.stride
            for channels, kernel, groups in rows:
                yield channels, kernel, groups, stage.groups_1x1, stride
                stride = 1

    def genome(self, subnet: SubnetConfig) -> Genome:
        """The genome of a subnet; where its blocks fit the stages in two ways, that of the shallower first stages.

        Raises ValueError, saying what does not fit, for a subnet that is not of this space.
        """
        for name, wanted in (
            ("input_size", self.description.input_size),
            ("num_classes", self.description.num_classes),
            ("stem_stride", self.description.stem_stride),
            ("weight_normalization", self.weight_normalization),
        ):
            if (found := getattr(subnet, name)) != wanted:
                raise ValueError(f"subnet: its {name} is {found!r}, wanted {wanted!r} of space {self.description.name}")
        self._check("the stem's channels", subnet.stem, self.description.stem)
        blocks = [(b.channels, b.kernel, b.groups, b.groups_1x1, b.stride) for b in subnet.blocks]
        stages = self._split(blocks, 0)
        if stages is None:
            raise ValueError(
                f"subnet: its {len(blocks)} blocks do not fit the stages of space {self.description.name}; "
                "their depths, channels, kernels, groups or strides are no choices of it"
            )
        return self._encode(_Subnet(subnet.stem, stages))

    def _split(self, blocks: list[tuple[int, int, int, int, int]], number: int) -> list[list[_Row]] | None:
        """The blocks as rows of stages `number` and on; None if they do not fit."""
        if number == len(self._depths):
            return None if blocks else []
        stage = self.description.stages[number]
        for depth in stage.depths:
            if depth <= len(blocks) and all(_fits(block, stage, n) for n, block in enumerate(blocks[:depth])):
                rest = self._split(blocks[depth:], number + 1)
                if rest is not None:
                    return [[_Row(*block[:_ROW]) for block in blocks[:depth]], *rest]
        return None

    def cost(self, genome: Genome) -> Cost:
        """FLOPs, BOPs, OPs, weights of a genome of this space, in closed form. Takes it as it is, unchecked."""
        parts, d = self._decode(genome), self.description
        return cost(d.input_size, d.stem_stride, parts.stem, self._blocks(parts), d.num_classes)

    def permits(self, genome: Genome) -> bool:
        """Whether the genome may be asked for."""
        if self.ops_window is not None and not self.ops_window[0] <= self.cost(genome).ops <= self.ops_window[1]:
            return False
        return self.allowed is None or self.allowed(self._subnet(self._decode(genome)))

    def _decode(self, genome: Sequence[float]) -> _Subnet:
        stages = []
        for start in self._starts:
            first = start + 1
            values = [int(value) for value in genome[first : first + _ROW * int(genome[start])]]
            stages.append([_Row(*values[at : at + _ROW]) for at in range(0, len(values), _ROW)])
        return _Subnet(int(genome[0]), stages)

    def _encode(self, parts: _Subnet) -> Genome:
        values: list[int] = [parts.stem]
        for most, rows in zip(self._depths, parts.stages, strict=True):
            values.append(len(rows))
            for row in (*rows, *[rows[-1]] * (most - len(rows))):
                values += row
        return tuple(map(float, values))

    # ---- many genomes -----------------------------------------------------------

    def random(self, rng: Random, *, draws: int = 5000) -> Genome:
        """A permitted genome drawn uniformly, however few the window of OPs holds; ValueError if there is none, or none
        of `draws` genomes is permitted."""
        make = self._draw
        if self._counts is not None and self.ops_window is not None:
            low, high = self.ops_window
            near = self._near
            if not near:
                raise ValueError(f"no subnet has {low:g} to {high:g} OPs, the limits of the search; widen them")
            if near < _EASY * self.size:
                make = self._draw_within
        for _ in range(draws):
            genome = make(rng)
            if not self.limited or self.permits(genome):
                return genome
        near_it = "" if make == self._draw else " and near its window of OPs"
        raise ValueError(f"none of {draws} random subnets{near_it} is within the limits of the search; widen them")

    @cached_property
    def _counts(self) -> OpsCounts | None:
        """None where the window holds the whole space."""
        if self.ops_window is None:
            return None
        (low, high), most = self.ops_window, float(self.cost(self.biggest).ops)
        if low <= self.cost(self.smallest).ops and most <= high:
            return None
        return ops_counts(self.description, max(1.0, min(high, most)), self.size)

    @cached_property
    def _near(self) -> int:
        """Subnets of the window and a little beside it; 0 only if it holds none."""
        return self._counts.count(*self.ops_window) if self._counts and self.ops_window else self.size

    def _draw_within(self, rng: Random) -> Genome:
        assert self._counts is not None
        assert self.ops_window is not None
        stem, stages = self._counts.draw(*self.ops_window, rng)
        return self._encode(_Subnet(stem, [[_Row(*row) for row in rows] for rows in stages]))

    def _draw(self, rng: Random) -> Genome:
        """Each choice in proportion to the ways of going on after it, so that all whole subnets are equally likely."""
        ways = self._completions[0]
        channels = stem = _weighted(self.description.stem, [ways[c] for c in self.description.stem], rng)
        stages = []
        for stage, tails in zip(self.description.stages, self._all_tails, strict=True):
            depth = _weighted(stage.depths, [tails[d][channels] for d in stage.depths], rng)
            rows = []
            for left in reversed(range(depth)):
                upward = [c for c in stage.channels if c >= channels]
                channels = _weighted(upward, [tails[left][c] for c in upward], rng)
                rows.append(_Row(channels, rng.choice(stage.kernels), rng.choice(stage.groups)))
            stages.append(rows)
        return self._encode(_Subnet(stem, stages))

    def enumerate(self, *, limit: int = 1_000_000) -> Iterator[Genome]:
        """Every genome, permitted or not; ValueError if there are more than `limit`."""
        if self.size > limit:
            raise ValueError(f"limit: got {limit}, wanted at least the {self.size} subnets of this space")
        return (self._encode(_Subnet(stem, stages)) for stem in self.description.stem for stages in self._from(0, stem))

    def _from(self, number: int, channels: int) -> Iterator[list[list[_Row]]]:
        """Every way of going on with stage `number` after so many channels."""
        if number == len(self._depths):
            yield []
            return
        stage = self.description.stages[number]
        variants = list(itertools.product(stage.kernels, stage.groups))
        for depth in stage.depths:
            widths = itertools.combinations_with_replacement([c for c in stage.channels if c >= channels], depth)
            for column in widths:
                for own in itertools.product(variants, repeat=depth):
                    rows = [_Row(c, kernel, groups) for c, (kernel, groups) in zip(column, own, strict=True)]
                    for rest in self._from(number + 1, column[-1]):
                        yield [rows, *rest]

    def mutate(self, genome: Genome, rng: Random, *, rate: float | None = None) -> Genome:
        """Redraw parts of a genome; something always changes, unless the space holds a single subnet.

        As in the paper, with probability `rate` (default 0.2) the stem, each stage's depth, and for each active row its
        channels, kernel and groups together. Channels are drawn from what both neighbours allow; a row that a new depth
        makes active is drawn whole.
        """
        rate = MUTATION_RATE if rate is None else rate
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: got {rate}, wanted a probability in [0, 1]")
        parts = self._decode(genome)
        for _ in range(20):
            mutant = self._encode(self._redrawn(parts, rng, rate))
            if mutant != genome:
                return mutant
        single = list(self._neighbours(parts))  # a low rate, or hardly a choice left: one change, drawn from all
        return rng.choice(single) if single else genome

    def _redrawn(self, parts: _Subnet, rng: Random, rate: float) -> _Subnet:
        stages, fresh = [], []
        for stage, rows in zip(self.description.stages, parts.stages, strict=True):
            depth = rng.choice(stage.depths) if rng.random() < rate else len(rows)
            stages.append([*rows[:depth], *[rows[-1]] * (depth - len(rows))])
            fresh += [n >= len(rows) for n in range(depth)]
        column = [row.channels for rows in stages for row in rows]
        # What the row behind allows; one that is new allows what the next old one does, for it is drawn anew itself.
        most = [max(self.description.stages[-1].channels)]
        for channels, new in zip(reversed(column), reversed(fresh), strict=True):
            most.append(most[-1] if new else channels)
        most.reverse()
        stem = parts.stem
        if rng.random() < rate:
            stem = rng.choice([c for c in self.description.stem if c <= most[0]])
        before, at = stem, 0
        for stage, rows in zip(self.description.stages, stages, strict=True):
            for n in range(len(rows)):
                if fresh[at] or rng.random() < rate:
                    channels = rng.choice([c for c in stage.channels if before <= c <= most[at + 1]])
                    rows[n] = _Row(channels, rng.choice(stage.kernels), rng.choice(stage.groups))
                before, at = rows[n].channels, at + 1
        return _Subnet(stem, stages)

    def _neighbours(self, parts: _Subnet) -> Iterator[Genome]:
        """Every genome that differs in the stem, in one depth, or in one row."""
        column = [parts.stem, *(row.channels for row in parts.rows())]
        for stem in self.description.stem:
            if stem != parts.stem and stem <= column[1]:
                yield self._encode(parts._replace(stem=stem))
        at = 0
        for number, stage in enumerate(self.description.stages):
            rows = parts.stages[number]

            def with_rows(found: list[_Row], number: int = number) -> Genome:
                return self._encode(parts._replace(stages=[*parts.stages[:number], found, *parts.stages[number + 1 :]]))

            for depth in stage.depths:
                if depth != len(rows):
                    yield with_rows([*rows[:depth], *[rows[-1]] * (depth - len(rows))])
            for n, row in enumerate(rows):
                at += 1
                after = column[at + 1] if at + 1 < len(column) else max(stage.channels)
                channels = [c for c in stage.channels if column[at - 1] <= c <= after]
                for other in itertools.product(channels, stage.kernels, stage.groups):
                    if other != row:
                        yield with_rows([*rows[:n], _Row(*other), *rows[n + 1 :]])

    def crossover(self, mother: Genome, father: Genome, rng: Random) -> Genome:
        """Each number from either parent, each stage's depth from either parent, the channels not shrinking.

        The paper mixes number by number and throws away what shrinks. The channels are drawn here with the same
        probabilities without throwing anything away: every mix that does not shrink is equally likely.
        """
        parents = (mother, father)
        depths = [int(rng.choice(parents)[start]) for start in self._starts]
        active = [start + 1 + _ROW * n for start, depth in zip(self._starts, depths, strict=True) for n in range(depth)]
        positions = [0, *active]
        # ways[n][p]: mixes of the positions behind n, if parent p gives that of n. All from one parent is always one.
        ways = [[1, 1]]
        for here, behind in zip(positions[-2::-1], positions[:0:-1], strict=True):
            ways.insert(
                0, [sum(w for q, w in zip(parents, ways[0], strict=True) if q[behind] >= p[here]) for p in parents]
            )
        child, before = list(mother), 0.0
        for at, weights in zip(positions, ways, strict=True):
            fitting = [w if p[at] >= before else 0 for p, w in zip(parents, weights, strict=True)]
            before = child[at] = _weighted(parents, fitting, rng)[at]
        for at in active:
            child[at + 1], child[at + 2] = rng.choice(parents)[at + 1], rng.choice(parents)[at + 2]
        for start, depth in zip(self._starts, depths, strict=True):
            child[start] = depth
        return self._encode(self._decode(child))


@functools.cache
def _block(channels: int, kernel: int, groups: int, groups_1x1: int, stride: int) -> Block:
    """A block, checked once: a space has few of them and a search asks for its subnets over and over."""
    from bitnas.models.nasbnn import Block

    return Block(channels, kernel, groups, groups_1x1, stride)


def _fits(block: tuple[int, int, int, int, int], stage: Stage, row: int) -> bool:
    channels, kernel, groups, groups_1x1, stride = block
    return (
        channels in stage.channels
        and kernel in stage.kernels
        and groups in stage.groups
        and groups_1x1 == stage.groups_1x1
        and stride == (stage.stride if row == 0 else 1)
    )


def _weighted(values: Sequence[T], weights: Sequence[int], rng: Random) -> T:
    """One of the values, with probabilities in proportion to exact integers that a float could not hold."""
    at = rng.randrange(sum(weights))
    for value, weight in zip(values, weights, strict=True):
        if at < weight:
            return value
        at -= weight
    raise AssertionError("the weights do not add up")

"""The device table of a space of subnets: built from few networks, and checked on others (`cost.table_space`).

A subnet is a path through its space, block by block, and a call depends on one block: what enters it, what it makes. So
a few dozen paths hold every call of 10^17 subnets. They are found by going where most calls are still to be met.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from bitnas.cost import table_space
from bitnas.cost.device_table import latency_key
from bitnas.cost.table_space import BuildReport, Code, build, check, open_table
from bitnas.methods.nasbnn import outline
from bitnas.methods.nasbnn.description import Description, Stage
from bitnas.methods.nasbnn.outline import Place, Site
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.models.nasbnn import Block, NasBnn, SubnetConfig

if TYPE_CHECKING:
    import torch

    from bitnas.cost.agreement import Check
    from bitnas.cost.device_table import Prediction
    from bitnas.packed import PackedNetwork

__all__ = ["BuildReport", "LatencySpace", "build", "built", "check", "last_check", "predict", "signatures"]

METHOD = "nasbnn"

_TRIES = 8  # paths tried for each network of a covering set

_SAME = ("input_size", "num_classes", "stem_stride")
_CHOICES = ("channels", "depths", "kernels", "groups")


@dataclass(frozen=True)
class LatencySpace:
    """The subnets that a table is for. How their weights were made binary decides no step of a frozen network, so one
    table is for both settings of `weight_normalization`. A code is a genome of `SubnetSpace`."""

    description: Description
    weight_normalization: bool = True

    @cached_property
    def subnets(self) -> SubnetSpace:
        """Genomes and what they stand for."""
        return SubnetSpace(self.description, weight_normalization=self.weight_normalization)

    @property
    def input_size(self) -> tuple[int, int, int]:
        """`(C, H, W)` of one image."""
        return self.description.input_size

    @property
    def size(self) -> int:
        """How many subnets there are."""
        return self.subnets.size

    @cached_property
    def reference(self) -> Code:
        """The subnet that is timed again and again to see a drift of the machine: the middle of every choice."""
        stem = channels = _middle(self.description.stem)
        blocks = []
        for stage in self.description.stages:
            channels = min(c for c in stage.channels if c >= max(channels, _middle(stage.channels)))
            rows = [(channels, _middle(stage.kernels), _middle(stage.groups))] * _middle(stage.depths)
            blocks += _blocks(stage, rows)
        return self.subnets.genome(self._subnet(stem, blocks))

    def _subnet(self, stem: int, blocks: Iterable[Block]) -> SubnetConfig:
        d = self.description
        options = (d.num_classes, d.input_size, d.stem_stride, self.weight_normalization)
        return SubnetConfig(stem, tuple(blocks), *options)

    def to_dict(self) -> dict[str, Any]:
        """JSON, as tables hold it: the description without its name."""
        values = {name: value for name, value in self.description.to_dict().items() if name != "name"}
        return {"method": METHOD, **values}

    def named(self, code: Code) -> str:
        """A subnet in a few words."""
        return name(self.subnets.subnet(code))

    def random(self, rng: Random) -> Code:
        """A subnet; one in three is mixed with the smallest and one in three with the biggest.

        Subnets drawn evenly cost much the same, because most are deep and neither narrow nor wide, but a search keeps
        networks of all costs.
        """
        genome = self.subnets.random(rng)
        other = rng.choice((None, self.subnets.smallest, self.subnets.biggest))
        mixed = genome if other is None else self.subnets.crossover(genome, other, rng)
        return self.subnets.genome(self.subnets.subnet(mixed))

    def covering(self, *, batch: int, rounds: int, seed: int) -> list[list[Code]]:
        """For each round, genomes that together hold every call of the space; other ones in each round."""
        rng, paths = Random(seed), _Paths(self)
        known = outline.known_calls(batch)
        # With chance of its own: what is known already must not change what follows.
        for subnet in paths.cover(lambda step: [p for p in step.places if p not in known], Random(seed)):
            outline.learn(subnet, batch)

        def calls(step: _Step) -> list[str]:
            return [signature for place in step.places for signature in known[place]]

        found = []
        for _ in range(rounds):
            subnets = paths.cover(calls, rng)
            # A pass has a cost beside its calls, which goes by their number.
            met = {outline.signatures(subnet, batch)[-1] for subnet in subnets}
            subnets += [paths.of_length(n, calls, rng) for n in paths.lengths(calls) if outline.pass_call(n) not in met]
            codes = [self.subnets.genome(subnet) for subnet in subnets]
            rng.shuffle(codes)
            found.append(codes)
        return found

    def signatures(self, code: Code, batch: int) -> Sequence[str]:
        """Of the calls of a subnet, as :func:`signatures`."""
        return outline.signatures(self.subnets.subnet(code), batch)

    def random_network(self, code: Code, generator: torch.Generator) -> PackedNetwork:
        """The frozen subnet with random bits, made from its outline."""
        return outline.random_network(self.subnets.subnet(code), generator)

    def frozen(self, code: Code) -> PackedNetwork:
        """The subnet made and frozen as a search does it, with weights of chance."""
        from bitnas.packed import freeze

        return freeze(NasBnn(self.subnets.subnet(code)).eval())


def name(subnet: SubnetConfig) -> str:
    """A subnet in a few words: the stem's channels, then channels/kernel/groups of each block."""
    blocks = " ".join(f"{b.channels}/{b.kernel}/{b.groups}" for b in subnet.blocks)
    return f"the subnet {subnet.stem} {blocks}"


def signatures(subnet: SubnetConfig, batch: int = 1, memory: Any = "fast") -> Sequence[str]:
    """What `DeviceTable.predict` takes: the calls of the frozen subnet, without making its weights."""
    return outline.signatures(subnet, batch, memory)


def predict(subnet: SubnetConfig, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> Prediction:
    """Latency of a subnet from the device table, in us per batch.

    Args:
        table: the file; None for `cost.device_table.default_table()`. It is read again when it has changed.

    Raises:
        FileNotFoundError, CorruptFileError: there is no table, or it is damaged. ValueError: it lacks a call of this
        subnet on this device.
    """
    key = latency_key(batch=batch, threads=threads)
    about = {"method": METHOD, "input_size": list(subnet.input_size), "num_classes": subnet.num_classes}
    calls = signatures(subnet, batch)
    return table_space.predict(open_table(table), calls, key, name(subnet), about)


def built(description: Description, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> bool:
    """Whether the table was built for this space, or for one that has all its subnets, on this device."""
    key = latency_key(batch=batch, threads=threads)
    return bool(table_space.holding(open_table(table), key, lambda space: holds(space, description)))


def last_check(
    description: Description, *, table: str | Path | None = None, batch: int = 1, threads: int = 1
) -> Check | None:
    """The latest check of the table on this space, or on one that has all its subnets; None if there is none."""
    key = latency_key(batch=batch, threads=threads)
    return table_space.last_check(open_table(table), key, lambda space: holds(space, description))


def holds(space: Mapping[str, Any], description: Description) -> bool:
    """Whether every subnet of a description is one of a table's space (`LatencySpace.to_dict`)."""
    if space.get("method") != METHOD:
        return False
    wanted = description.to_dict()
    stages = list(zip(space["stages"], wanted["stages"], strict=False))
    return (
        len(space["stages"]) == len(wanted["stages"])
        and all(space[field] == wanted[field] for field in _SAME)
        and set(wanted["stem"]) <= set(space["stem"])
        and all(own[field] == other[field] for own, other in stages for field in ("groups_1x1", "stride"))
        and all(set(other[field]) <= set(own[field]) for own, other in stages for field in _CHOICES)
    )


# ---- coverings ------------------------------------------------------------------------------


class _State(NamedTuple):
    """Where a path through a space is: `rows` blocks of a stage are behind it, and `channels` left the last one.

    Stage -1: before the stem; stage None: at the end.
    """

    stage: int | None
    rows: int
    channels: int


class _Step(NamedTuple):
    """One more block (or the stem), the places whose calls it brings, and where it leads."""

    block: Block | None
    places: tuple[Place, ...]
    to: _State


_START = _State(-1, 0, 0)

Items = Callable[[_Step], Iterable[Hashable]]


class _Paths:
    """The paths through a space. Steps are sorted and chance comes from the caller, so that a seed decides a set."""

    def __init__(self, space: LatencySpace) -> None:
        self.space = space
        self.description = space.description
        self.steps: dict[_State, list[_Step]] = {}
        self._sizes = self._stage_sizes()
        waiting = [_START]
        while waiting:
            state = waiting.pop()
            if state not in self.steps:
                self.steps[state] = list(self._from(state))
                waiting += [step.to for step in self.steps[state]]
        # Every state after those that lead to it.
        self.order = sorted(self.steps, key=lambda s: (s.stage is None, s.stage or 0, s.rows, s.channels))

    def _stage_sizes(self) -> list[tuple[int, int]]:
        """Height and width of what enters each stage, and of what leaves the last."""
        sizes = [outline.out_size(self.description.input_size[1:], self.description.stem_stride)]
        for stage in self.description.stages:
            sizes.append(outline.out_size(sizes[-1], stage.stride))
        return sizes

    def _from(self, state: _State) -> Iterator[_Step]:
        d = self.description
        if state.stage is None:
            return
        if state.stage < 0:
            for stem in d.stem:
                yield _Step(None, (outline.stem_place(stem, d.stem_stride, d.input_size),), _State(0, 0, stem))
            return
        stage = d.stages[state.stage]
        if state.rows < max(stage.depths):
            yield from self._blocks(state, state.stage, state.rows)
        if state.rows in stage.depths and state.stage + 1 < len(d.stages):
            yield from self._blocks(state, state.stage + 1, 0)

    def _blocks(self, state: _State, number: int, row: int) -> Iterator[_Step]:
        d = self.description
        stage = d.stages[number]
        size = self._sizes[number if row == 0 else number + 1]
        for channels in stage.channels:
            if channels < state.channels:
                continue
            for kernel in stage.kernels:
                for groups in stage.groups:
                    (block,) = _blocks(stage, [(channels, kernel, groups)], row)
                    first = number == row == 0
                    if number < len(d.stages) - 1 or row + 1 < max(stage.depths):
                        place = Place(Site(state.channels, block, first, False), size)
                        yield _Step(block, (place,), _State(number, row + 1, channels))
                    if number == len(d.stages) - 1 and row + 1 in stage.depths:
                        place = Place(Site(state.channels, block, first, True), size)
                        head = outline.head_place(channels, d.num_classes, self._sizes[-1])
                        yield _Step(block, (place, head), _State(None, 0, 0))

    # ---- walks ------------------------------------------------------------------

    def cover(self, items: Items, rng: Random) -> list[SubnetConfig]:
        """Subnets, each chosen greedily, until every item of every step has been met."""
        own = {id(step): frozenset(items(step)) for steps in self.steps.values() for step in steps}
        left: set[Hashable] = set().union(*own.values())
        found = []
        while left:
            worth = self._worth({key: len(values & left) for key, values in own.items()})
            tried = [self._walk(own, left, worth, rng) for _ in range(_TRIES)]
            met, path = max(tried, key=lambda one: len(one[0]))
            left -= met
            found.append(self._subnet(path))
        return found

    def _worth(self, gains: Mapping[int, int]) -> dict[_State, int]:
        """What the best way from each state to the end brings, where what is met twice counts twice."""
        worth: dict[_State, int] = {}
        for state in reversed(self.order):
            worth[state] = max((gains[id(step)] + worth[step.to] for step in self.steps[state]), default=0)
        return worth

    def _walk(
        self, own: Mapping[int, frozenset[Hashable]], left: set[Hashable], worth: Mapping[_State, int], rng: Random
    ) -> tuple[set[Hashable], list[_Step]]:
        met: set[Hashable] = set()
        path: list[_Step] = []
        state = _START
        while steps := self.steps[state]:
            gains = [len((own[id(step)] & left) - met) + worth[step.to] for step in steps]
            best = max(gains)
            path.append(rng.choice([step for step, gain in zip(steps, gains, strict=True) if gain == best]))
            met |= own[id(path[-1])] & left
            state = path[-1].to
        return met, path

    def lengths(self, items: Callable[[_Step], Sequence[Hashable]]) -> list[int]:
        """How many items a whole path can have."""
        return sorted(self._left(items)[_START])

    def of_length(self, length: int, items: Callable[[_Step], Sequence[Hashable]], rng: Random) -> SubnetConfig:
        """A subnet of a path that has so many items."""
        left, path, state = self._left(items), [], _START
        while steps := self.steps[state]:
            path.append(rng.choice([step for step in steps if length - len(items(step)) in left[step.to]]))
            length -= len(items(path[-1]))
            state = path[-1].to
        return self._subnet(path)

    def _left(self, items: Callable[[_Step], Sequence[Hashable]]) -> dict[_State, set[int]]:
        """How many items can still come behind each state."""
        left: dict[_State, set[int]] = {}
        for state in reversed(self.order):
            steps = self.steps[state]
            left[state] = {len(items(step)) + n for step in steps for n in left[step.to]} if steps else {0}
        return left

    def _subnet(self, path: Sequence[_Step]) -> SubnetConfig:
        stem = path[0].to.channels
        return self.space._subnet(stem, [step.block for step in path if step.block is not None])


def _middle(choices: Sequence[int]) -> int:
    return choices[(len(choices) - 1) // 2]


def _blocks(stage: Stage, rows: Iterable[tuple[int, int, int]], first: int = 0) -> list[Block]:
    """Blocks of (channels, kernel, groups) as row `first` and on of a stage: only row 0 strides."""
    return [
        Block(channels, kernel, groups, stage.groups_1x1, stage.stride if row == 0 else 1)
        for row, (channels, kernel, groups) in enumerate(rows, first)
    ]

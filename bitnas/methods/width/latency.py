"""The device table of a space of width codes: built from few networks, and checked on others (`cost.table_space`).

A call depends on one or two widths of a code (what it reads and what it makes), so some forty networks hold every call
of a space of millions.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.cost import table_space
from bitnas.cost.table_space import BuildReport, build, check, open_table
from bitnas.methods.width import outline
from bitnas.search.space import DEFAULT_CHOICES, Genome, WidthSpace

if TYPE_CHECKING:
    import torch

    from bitnas.cost.agreement import Check
    from bitnas.cost.device_table import Prediction
    from bitnas.models import ModelConfig
    from bitnas.packed import PackedNetwork

__all__ = ["BuildReport", "LatencySpace", "build", "built", "check", "covering", "last_check", "predict", "signatures"]

_SAME = ("base_width", "scheme")

_TRIES = 12  # codes tried for each one of a covering set


@dataclass(frozen=True, kw_only=True)
class LatencySpace:
    """The networks that a table is for: every code of `choices`, with all else fixed. Fields as in `make_config`."""

    model: str = "vgg_small"
    choices: Genome = DEFAULT_CHOICES
    num_classes: int = 10
    input_size: tuple[int, int, int] = (3, 32, 32)
    base_width: float = 1.0
    scheme: str = "dorefa"

    def __post_init__(self) -> None:
        object.__setattr__(self, "choices", self.codes.choices)
        object.__setattr__(self, "input_size", tuple(self.input_size))
        self.network(self.reference)  # raises for what no network can be

    @property
    def codes(self) -> WidthSpace:
        """The width codes; ValueError for choices that make no space, or an unknown model."""
        from bitnas.models import num_ratios

        return WidthSpace(tuple(self.choices), num_ratios(self.model))

    @property
    def reference(self) -> Genome:
        """The code of the network that is timed again and again to see a drift of the machine: the middle choice."""
        return self.codes.uniform(self.choices[(len(self.choices) - 1) // 2])

    def network(self, ratios: Genome) -> ModelConfig:
        """The network that a code stands for."""
        from bitnas.models import make_config

        return make_config(
            self.model,
            ratios=ratios,
            num_classes=self.num_classes,
            input_size=self.input_size,
            base_width=self.base_width,
            scheme=self.scheme,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON, as tables hold it."""
        return asdict(self) | {"choices": list(self.choices), "input_size": list(self.input_size)}

    @property
    def size(self) -> int:
        """How many codes there are."""
        return self.codes.size

    def named(self, code: Genome) -> str:
        """A network in a few words."""
        return f"{self.model} with ratios {list(code)}"

    def random(self, rng: Random) -> Genome:
        """A code, each with the same chance."""
        return self.codes.random(rng)

    def covering(self, *, batch: int, rounds: int, seed: int) -> list[list[Genome]]:
        """As :func:`covering`."""
        return covering(self, batch=batch, rounds=rounds, seed=seed)

    def signatures(self, code: Genome, batch: int) -> list[str]:
        """Of the calls of the network, as :func:`signatures`."""
        return signatures(self.network(code), batch)

    def random_network(self, code: Genome, generator: torch.Generator) -> PackedNetwork:
        """The frozen network with random bits, made from its outline."""
        return outline.random_network(self.network(code), generator)

    def frozen(self, code: Genome) -> PackedNetwork:
        """The network made and frozen as a search does it."""
        from bitnas.models import create_model_from_config
        from bitnas.packed import freeze

        return freeze(create_model_from_config(self.network(code)).eval())


def signatures(network: ModelConfig, batch: int = 1, memory: Any = "fast") -> list[str]:
    """What `DeviceTable.predict` takes: the calls of the frozen network, without making its weights. Cached."""
    return list(outline.signatures(network, batch, memory))


def predict(network: ModelConfig, *, table: str | Path | None = None, batch: int = 1, threads: int = 1) -> Prediction:
    """Latency of a network from the device table, in us per batch.

    Args:
        table: the file; None for `cost.device_table.default_table()`. It is read again when it has changed.

    Raises:
        FileNotFoundError, CorruptFileError: there is no table, or it is damaged. ValueError: it lacks a call of this
        network on this device.
    """
    from bitnas.cost.device_table import latency_key

    key = latency_key(batch=batch, threads=threads)
    name = f"{network.name} with ratios {list(network.ratios)}"
    return table_space.predict(open_table(table), signatures(network, batch), key, name, _about(network))


def built(
    network: ModelConfig,
    choices: Sequence[float],
    *,
    table: str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
) -> bool:
    """Whether the table was built for networks like this one, of these choices and perhaps more, on this device."""
    from bitnas.cost.device_table import latency_key

    key = latency_key(batch=batch, threads=threads)
    return open_table(table).holds(key, {**_about(network), "choices": list(choices)})


def last_check(
    network: ModelConfig,
    choices: Sequence[float],
    *,
    table: str | Path | None = None,
    batch: int = 1,
    threads: int = 1,
) -> Check | None:
    """The latest check of the table on networks like this one, of these choices and perhaps more; None if none."""
    from bitnas.cost.device_table import latency_key

    key = latency_key(batch=batch, threads=threads)
    return open_table(table).last_check(key, {**_about(network), "choices": list(choices)})


def _about(network: ModelConfig) -> dict[str, Any]:
    """What a space says of its networks, but for the choices."""
    values = network.to_dict()
    return {"model": values["name"], **{name: values[name] for name in ("num_classes", "input_size", *_SAME)}}


def covering(space: LatencySpace, *, batch: int = 1, rounds: int = 1, seed: int = 0) -> list[list[Genome]]:
    """For each round, codes that together hold every call of the space; other codes in each round.

    Raises:
        ValueError: the calls of the model are not the same ones for all codes, so that they cannot be told apart.
    """
    rng = Random(seed)
    groups = _dependencies(space, batch, rng)
    found = []
    for _ in range(rounds):
        codes = list(_cover(groups, space.codes, rng))
        rng.shuffle(codes)
        found.append(codes)
    return found


def _dependencies(space: LatencySpace, batch: int, rng: Random) -> list[tuple[int, ...]]:
    """The sets of positions that calls depend on, found by changing one ratio at a time; none within another."""
    codes = space.codes
    depends: list[set[int]] = []
    for base in (codes.uniform(codes.choices[0]), codes.uniform(codes.choices[-1]), codes.random(rng)):
        own = signatures(space.network(base), batch)
        depends = depends or [set() for _ in own]
        for position, choice in itertools.product(range(codes.length), codes.choices):
            changed = signatures(space.network((*base[:position], choice, *base[position + 1 :])), batch)
            if len(changed) != len(depends):
                raise ValueError(
                    f"model: got {space.model!r}, whose frozen network has {len(depends)} calls for one code and "
                    f"{len(changed)} for another; wanted one with the same calls for all codes"
                )
            for index, (a, b) in enumerate(zip(own, changed, strict=True)):
                if a != b:
                    depends[index].add(position)
    sets = {frozenset(positions) for positions in depends if positions}
    return sorted(tuple(sorted(s)) for s in sets if not any(s < other for other in sets))


def _cover(groups: Sequence[tuple[int, ...]], codes: WidthSpace, rng: Random) -> Iterator[Genome]:
    """Codes, each chosen greedily, until every group of positions has had every combination of choices."""
    left = {group: set(itertools.product(codes.choices, repeat=len(group))) for group in groups}

    def gain(code: Sequence[float | None], group: tuple[int, ...]) -> bool:
        return tuple(code[position] for position in group) in left[group]

    def completed(code: Sequence[float | None], position: int, value: float) -> int:
        changed = [*code[:position], value, *code[position + 1 :]]
        return sum(gain(changed, group) for group in groups if position in group)

    if not groups:  # a space of one network
        yield codes.uniform(codes.choices[0])
    while any(left.values()):
        best: tuple[int, Genome] | None = None
        for _ in range(_TRIES):
            code: list[float | None] = [None] * codes.length
            group = rng.choice([group for group, values in left.items() if values])
            for position, value in zip(group, rng.choice(sorted(left[group])), strict=True):
                code[position] = value
            free = [position for position in range(codes.length) if code[position] is None]
            # Outwards from what is fixed, so that each choice completes as many groups as it can.
            for position in sorted(free, key=lambda p: min(abs(p - q) for q in group)):
                options = list(codes.choices)
                rng.shuffle(options)
                code[position] = max(options, key=lambda value: completed(code, position, value))
            genome = tuple(value for value in code if value is not None)
            total = sum(gain(genome, g) for g in groups)
            if best is None or total > best[0]:
                best = total, genome
        assert best is not None
        for g in groups:
            left[g].discard(tuple(best[1][position] for position in g))
        yield best[1]

"""What a strategy needs of a space, and the space of width codes with the operators on it.

Operators are functions of their arguments and a `random.Random`, so each can be tested alone and a seed decides
everything.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

Genome = tuple[float, ...]

DEFAULT_CHOICES: Genome = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


def genome_key(genome: Sequence[float]) -> str:
    """SHA-256 (hex) of the genome's canonical JSON; equal genomes have equal keys on every machine."""
    return hashlib.sha256(json.dumps([float(ratio) for ratio in genome]).encode()).hexdigest()


class Space(Protocol):
    """A set of genomes with its own operators. Every genome that an operator returns is of the space."""

    @property
    def length(self) -> int:
        """Numbers in a genome."""
        ...

    @property
    def size(self) -> int:
        """Number of genomes, those that are not permitted included."""
        ...

    @property
    def limited(self) -> bool:
        """Whether some genome may be one that is not permitted."""
        ...

    def validate(self, genome: Sequence[float]) -> Genome:
        """The genome as operators return it; ValueError if it is not of the space."""
        ...

    def permits(self, genome: Genome) -> bool:
        """Whether the genome may be asked for."""
        ...

    def random(self, rng: Random) -> Genome:
        """A permitted genome drawn uniformly; ValueError if none is found."""
        ...

    def enumerate(self) -> Iterator[Genome]:
        """Every genome of a space of at most a million; ValueError for a larger one."""
        ...

    def mutate(self, genome: Genome, rng: Random, *, rate: float | None = None) -> Genome:
        """A genome with changes, permitted or not; `rate` says how many, None as is usual in the space."""
        ...

    def crossover(self, mother: Genome, father: Genome, rng: Random) -> Genome:
        """A mix of two genomes, permitted or not."""
        ...


@dataclass(frozen=True)
class WidthSpace:
    """Every code of `length` ratios, each one of `choices` (Shen et al. 2019, section 3.2: six choices, 0.25 to 4).

    Args:
        choices: the ratios allowed at each position; positive, finite, distinct. Kept sorted.
        length: ratios in a code, at least 1 (6 for VGG-small, 12 for ResNet-18).
        allowed: says of a code whether it may be asked for at all, such as one within a budget; None allows every code.

    Raises:
        ValueError: a choice is not a positive finite number, is repeated, there is none, or `length` is below 1.
    """

    choices: Genome = DEFAULT_CHOICES
    length: int = 6
    allowed: Callable[[Genome], bool] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        choices = tuple(sorted(float(choice) for choice in self.choices))
        if not choices or not all(math.isfinite(choice) and choice > 0 for choice in choices):
            raise ValueError(f"choices: got {self.choices!r}, wanted at least one ratio, all positive and finite")
        if len(set(choices)) != len(choices):
            raise ValueError(f"choices: got {self.choices!r}, wanted distinct ratios")
        if isinstance(self.length, bool) or not isinstance(self.length, int) or self.length < 1:
            raise ValueError(f"length: got {self.length!r}, wanted an integer of at least 1")
        object.__setattr__(self, "choices", choices)

    @property
    def size(self) -> int:
        """Number of codes, those that are not allowed included."""
        return len(self.choices) ** self.length

    @property
    def limited(self) -> bool:
        """Whether some code may be one that is not permitted."""
        return self.allowed is not None

    def validate(self, genome: Sequence[float]) -> Genome:
        """The genome as a tuple of floats; ValueError if it is not a code of this space."""
        code = tuple(float(ratio) for ratio in genome)
        if len(code) != self.length:
            raise ValueError(f"genome: got {len(code)} ratios, wanted {self.length}")
        for position, ratio in enumerate(code):
            if ratio not in self.choices:
                raise ValueError(f"genome: got ratio {ratio} at position {position}, wanted one of {self.choices}")
        return code

    def encode(self, genome: Sequence[float]) -> tuple[int, ...]:
        """Indices into `choices`, one per position."""
        return tuple(self.choices.index(ratio) for ratio in self.validate(genome))

    def decode(self, indices: Sequence[int]) -> Genome:
        """The inverse of `encode`; ValueError if an index is out of range."""
        if len(indices) != self.length or not all(0 <= int(index) < len(self.choices) for index in indices):
            raise ValueError(f"indices: got {list(indices)}, wanted {self.length} in [0, {len(self.choices)})")
        return tuple(self.choices[int(index)] for index in indices)

    def uniform(self, ratio: float) -> Genome:
        """The code with the same ratio everywhere; ValueError if it is not a choice."""
        return self.validate((ratio,) * self.length)

    def permits(self, genome: Genome) -> bool:
        """Whether the code may be asked for."""
        return self.allowed is None or self.allowed(genome)

    def random(self, rng: Random, *, draws: int = 500) -> Genome:
        """A permitted code drawn uniformly; ValueError if none of `draws` codes is permitted."""
        for _ in range(draws):
            genome = tuple(rng.choice(self.choices) for _ in range(self.length))
            if self.permits(genome):
                return genome
        raise ValueError(f"none of {draws} random codes is within the limits of the search; widen them")

    def enumerate(self, *, limit: int = 1_000_000) -> Iterator[Genome]:
        """Every code, in lexicographic order; ValueError if there are more than `limit`."""
        if self.size > limit:
            raise ValueError(f"limit: got {limit}, wanted at least the {self.size} codes of this space")
        return itertools.product(self.choices, repeat=self.length)

    def mutate(self, genome: Genome, rng: Random, *, rate: float | None = None) -> Genome:
        """Replace each ratio with probability `rate` (default 1 / length) by another choice, drawn uniformly.

        At least one position changes, unless the space has a single choice.
        """
        if len(self.choices) == 1:
            return genome
        rate = 1 / self.length if rate is None else rate
        if not 0 <= rate <= 1:
            raise ValueError(f"rate: got {rate}, wanted a probability in [0, 1]")
        changed = [position for position in range(self.length) if rng.random() < rate]
        mutant = list(genome)
        for position in changed or [rng.randrange(self.length)]:
            mutant[position] = rng.choice([choice for choice in self.choices if choice != genome[position]])
        return tuple(mutant)

    def crossover(self, mother: Genome, father: Genome, rng: Random) -> Genome:
        """Uniform crossover: each ratio comes from either parent with probability one half."""
        return tuple(m if rng.random() < 0.5 else f for m, f in zip(mother, father, strict=True))

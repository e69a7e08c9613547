"""The search of NAS-BNN (Lin et al. 2024): an archive that keeps the most accurate candidate for each amount of OPs.

The paper's public code calls the archive a Pareto front, but nothing in it tests dominance: a bucket of more OPs keeps
its best candidate though a cheaper one may be more accurate. Parents are drawn from all of it alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import NamedTuple

from bitnas.search.evolution import check_initial, unseen_random
from bitnas.search.pareto import Interval
from bitnas.search.space import Genome, Space


class Kept(NamedTuple):
    """What a bucket holds: its number (OPs / bucket, rounded), the genome, the losses it was told with."""

    bucket: int
    genome: Genome
    losses: tuple[float, ...]


class BucketArchive:
    """The paper's evolution by ask and tell: losses are (what accuracy lacks, OPs).

    Args:
        space: where to search.
        population: genomes of the first generation.
        mutations, crossovers: children of each later generation.
        bucket: width of a bucket, in OPs.
        mutation_rate: as `space.mutate` takes it.
        seed: decides every random choice.
        initial: genomes of the first generation, at most `population`, asked for whether the space permits them or not;
            the rest of it is random. The paper begins with the smallest and the biggest subnet.

    With the defaults and 20 generations after the first, 5,632 genomes are asked for, none twice, where so many are
    permitted; fewer where fewer are.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int = 512,
        mutations: int = 128,
        crossovers: int = 128,
        bucket: float = 2e6,
        mutation_rate: float | None = 0.2,
        seed: int = 0,
        initial: Sequence[Genome] = (),
    ) -> None:
        if population < 2:
            raise ValueError(f"population: got {population}, wanted at least 2")
        for name, children in (("mutations", mutations), ("crossovers", crossovers)):
            if children < 0:
                raise ValueError(f"{name}: got {children}, wanted at least 0")
        if mutations + crossovers < 1:
            raise ValueError("mutations, crossovers: got 0 of both, wanted at least one child in a generation")
        if not (math.isfinite(bucket) and bucket > 0):
            raise ValueError(f"bucket: got {bucket}, wanted a positive number of OPs")
        if mutation_rate is not None and not 0 <= mutation_rate <= 1:
            raise ValueError(f"mutation_rate: got {mutation_rate}, wanted a probability in [0, 1]")
        self.space = space
        self.population = population
        self.mutations = mutations
        self.crossovers = crossovers
        self.bucket = bucket
        self.mutation_rate = mutation_rate
        self._initial = check_initial(space, initial, population)
        self._rng = Random(seed)
        self._seen: set[Genome] = set()
        self._kept: dict[int, Kept] = {}

    def ask(self) -> list[Genome]:
        """The next generation, of genomes never asked for before; empty when the space is exhausted.

        Until something was told that did not fail, each is a first generation. Where too few children are new, random
        genomes take their place.
        """
        if self._kept:
            parents = [kept.genome for kept in self.archive()]
            children = self._children(self.mutations, lambda: self._mutant(parents))
            self._seen.update(children)
            children += self._children(self.crossovers, lambda: self._mixed(parents))
            wanted = self.mutations + self.crossovers
        else:
            children = [genome for genome in self._initial if genome not in self._seen]
            wanted = self.population
        self._seen.update(children)
        children += unseen_random(self.space, self._seen, wanted - len(children), self._rng)
        self._seen.update(children)
        return children

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None:
        """Report one row per genome, to be minimised: the first value decides within a bucket, the second, the OPs,
        gives the bucket and breaks ties.

        A failed genome has a value that is not finite and never enters. `intervals` are not used: the first value is a
        share of the same images for every genome, and the OPs are exact.
        """
        if len(genomes) != len(losses):
            raise ValueError(f"losses: got {len(losses)} rows, wanted {len(genomes)}")
        for genome, row in zip(genomes, losses, strict=True):
            if len(row) < 2:
                raise ValueError(f"losses: got a row of {len(row)}, wanted what accuracy lacks and the OPs")
            if not all(map(math.isfinite, row)):
                continue
            kept = Kept(round(row[1] / self.bucket), genome, tuple(row))
            best = self._kept.get(kept.bucket, kept)
            # What is left to break ties is the genome itself, so the order of evaluation has no say.
            self._kept[kept.bucket] = min(best, kept, key=lambda one: (one.losses, one.genome))

    def archive(self) -> list[Kept]:
        """What is kept, by OPs: at most one genome for each bucket, dominated ones among them."""
        return [self._kept[bucket] for bucket in sorted(self._kept)]

    def front(self) -> list[Genome]:
        """Genomes of the archive that no other of it dominates, by OPs: what the archive itself does not ask."""
        best, found = math.inf, []
        for kept in sorted(self._kept.values(), key=lambda one: (one.losses[1], one.losses[0])):
            if kept.losses[0] < best:
                best = kept.losses[0]
                found.append(kept.genome)
        return found

    def _children(self, count: int, make: Callable[[], Genome]) -> list[Genome]:
        """Up to `count` new ones; fewer where a thousand tries in a row gave none."""
        children: list[Genome] = []
        taken = set(self._seen)
        misses = 0
        while len(children) < count and misses < 1000:
            child = make()
            misses += 1
            if child not in taken and self.space.permits(child):
                taken.add(child)
                children.append(child)
                misses = 0
        return children

    def _mutant(self, parents: Sequence[Genome]) -> Genome:
        return self.space.mutate(self._rng.choice(parents), self._rng, rate=self.mutation_rate)

    def _mixed(self, parents: Sequence[Genome]) -> Genome:
        return self.space.crossover(self._rng.choice(parents), self._rng.choice(parents), self._rng)

"""The single-objective evolution of Shen et al. 2019, section 3.2.

The paper gives population (32), generations (50), and fitness; it does not give selection, crossover, mutation or
elitism. Chosen here: binary tournament, uniform crossover, mutation of each gene with probability 1 / length, and
survival of the best of parents and offspring together. No code is asked for twice, since an evaluation is a training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from bitnas.search.pareto import Interval, fronts
from bitnas.search.space import Genome, Space


def penalised_accuracy(
    accuracy: float,
    relative_flops: float,
    *,
    penalty: float = 4.0,
    relative_latency: float = 0.0,
    latency_penalty: float = 0.0,
) -> float:
    """Fitness max(Acc - penalty * F - latency_penalty * L, 0) in percent points.

    Without the latency term, which is off by default, this is the fitness of Shen et al. 2019, section 3.2.

    Args:
        accuracy: fraction in [0, 1].
        relative_flops: F, the FLOPs divided by those of the un-widened network.
        penalty: the paper's lambda, percent points per un-widened network.
        relative_latency: L, the latency divided by that of the un-widened network on the same machine.
        latency_penalty: percent points per un-widened network of latency.
    """
    return max(100.0 * accuracy - penalty * relative_flops - latency_penalty * relative_latency, 0.0)


def unseen_random(space: Space, seen: set[Genome], count: int, rng: Random) -> list[Genome]:
    """Up to `count` distinct permitted codes that are not in `seen`; fewer when there are no more to be found.

    A strategy that asks for fewer codes than it was told to shows it by their number; who runs it says so.
    """
    fresh: list[Genome] = []
    taken = set(seen)
    misses = 0
    while len(fresh) < count and len(taken) < space.size:
        try:
            genome = space.random(rng)
        except ValueError:  # so few codes are permitted that drawing does not find them
            return fresh
        if genome not in taken:
            taken.add(genome)
            fresh.append(genome)
            misses = 0
            continue
        misses += 1
        if misses > 1000 and space.limited:  # asking of every code whether it is allowed may take hours
            return fresh
        if misses > 1000 and space.size <= 1_000_000:  # nearly exhausted: list what is left instead of guessing
            left = [genome for genome in space.enumerate() if genome not in taken]
            rng.shuffle(left)
            return fresh + left[: count - len(fresh)]
    return fresh


def check_initial(space: Space, initial: Sequence[Genome], population: int) -> list[Genome]:
    """The codes given for a first generation; ValueError if they are too many, not distinct, or not of the space."""
    codes = [space.validate(genome) for genome in initial]
    if len(codes) > population or len(set(codes)) != len(codes):
        raise ValueError(f"initial: got {len(codes)} codes, wanted at most {population}, all distinct")
    return codes


class _Survivor(NamedTuple):
    genome: Genome
    losses: tuple[float, ...]
    interval: Interval


class Evolution:
    """Genetic search for the code with the smallest value of one objective, by ask and tell.

    Args:
        space: where to search.
        population: survivors of a generation, and new codes asked for in each; at least 2.
        seed: decides every random choice.
        tournament: survivors drawn for each parent; the best of them becomes one.
        mutation_rate: probability per ratio, default 1 / length.
        crossover_rate: probability that a child has two parents.
        initial: codes of the first generation, at most `population`; the rest of it is random.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int = 32,
        seed: int = 0,
        tournament: int = 2,
        mutation_rate: float | None = None,
        crossover_rate: float = 0.9,
        initial: Sequence[Genome] = (),
    ) -> None:
        if population < 2:
            raise ValueError(f"population: got {population}, wanted at least 2")
        if tournament < 1:
            raise ValueError(f"tournament: got {tournament}, wanted at least 1")
        if not 0 <= crossover_rate <= 1:
            raise ValueError(f"crossover_rate: got {crossover_rate}, wanted a probability in [0, 1]")
        self.space = space
        self.population = population
        self.tournament = tournament
        self.mutation_rate = mutation_rate
        self.crossover_rate = crossover_rate
        self._initial = check_initial(space, initial, population)
        self._rng = Random(seed)
        self._seen: set[Genome] = set()
        self._survivors: list[_Survivor] = []

    def ask(self) -> list[Genome]:
        """The next generation: up to `population` codes never asked before; empty when the space is exhausted."""
        children = self._offspring() if self._survivors else [g for g in self._initial if g not in self._seen]
        self._seen.update(children)
        children += unseen_random(self.space, self._seen, self.population - len(children), self._rng)
        self._seen.update(children)
        return children

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None:
        """Report one row per code, to be minimised: the first value decides, the others break ties.

        A failed code has a non-finite value and never survives. `intervals` say what each value is known to: codes are
        put in fronts by the first value (`pareto.fronts`), where only intervals that do not meet count; the other
        values order a front.
        """
        if len(genomes) != len(losses):
            raise ValueError(f"losses: got {len(losses)} rows, wanted {len(genomes)}")
        known = intervals or [[(value, value) for value in row] for row in losses]
        told = [
            _Survivor(genome, tuple(row), interval[0])
            for genome, row, interval in zip(genomes, losses, known, strict=True)
            if math.isfinite(row[0])
        ]
        pool = self._survivors + told
        rank = {
            index: number
            for number, front in enumerate(
                fronts([one.losses[:1] for one in pool], intervals=[[one.interval] for one in pool])
            )
            for index in front
        }
        # What is left to break ties is the code itself, so the order of evaluation has no say.
        order = sorted(range(len(pool)), key=lambda i: (rank[i], pool[i].losses[1:], pool[i].genome))
        self._survivors = [pool[i] for i in order[: self.population]]

    def _offspring(self) -> list[Genome]:
        children: list[Genome] = []
        taken = set(self._seen)
        for _ in range(50 * self.population):
            if len(children) == self.population:
                break
            child = self._parent()
            if self._rng.random() < self.crossover_rate:
                child = self.space.crossover(child, self._parent(), self._rng)
            child = self.space.mutate(child, self._rng, rate=self.mutation_rate)
            if child not in taken and self.space.permits(child):
                taken.add(child)
                children.append(child)
        return children

    def _parent(self) -> Genome:
        ranks = range(len(self._survivors))  # the best survivor stands first
        return self._survivors[min(self._rng.choice(ranks) for _ in range(self.tournament))].genome

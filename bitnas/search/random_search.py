"""Random search: what every other strategy has to beat at the same number of evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from bitnas.search.evolution import check_initial, unseen_random
from bitnas.search.pareto import Interval, non_dominated
from bitnas.search.space import Genome, Space


class RandomSearch:
    """Genomes drawn uniformly, none twice, by ask and tell; fewer than asked for where no more are permitted.

    Args:
        space: where to search.
        population: genomes of the first generation.
        later: genomes of each later generation; None for as many. What a strategy asks for is matched by its own
            numbers, so that both spend the same: 512 and 256 for the archive of NAS-BNN.
        seed: decides every random choice.
        initial: genomes of the first generation, at most `population`; the rest of it is random.
    """

    def __init__(
        self,
        space: Space,
        *,
        population: int = 32,
        later: int | None = None,
        seed: int = 0,
        initial: Sequence[Genome] = (),
    ) -> None:
        for name, count in (("population", population), ("later", population if later is None else later)):
            if count < 1:
                raise ValueError(f"{name}: got {count}, wanted at least 1")
        self.space = space
        self.population = population
        self.later = population if later is None else later
        self._initial = check_initial(space, initial, population)
        self._rng = Random(seed)
        self._seen: set[Genome] = set()
        self._first = True
        self._told: dict[Genome, tuple[list[float], list[Interval]]] = {}

    def ask(self) -> list[Genome]:
        """The next generation; empty when the space is exhausted."""
        genomes = list(self._initial) if self._first else []
        wanted, self._first = self.population if self._first else self.later, False
        self._seen.update(genomes)
        genomes += unseen_random(self.space, self._seen, wanted - len(genomes), self._rng)
        self._seen.update(genomes)
        return genomes

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None:
        """Report one row per genome, to be minimised; it only decides `front`. A failed one has a value that is not
        finite."""
        if len(genomes) != len(losses):
            raise ValueError(f"losses: got {len(losses)} rows, wanted {len(genomes)}")
        known = intervals or [[(value, value) for value in row] for row in losses]
        for genome, row, interval in zip(genomes, losses, known, strict=True):
            self._told[genome] = list(row), list(interval)

    def front(self) -> list[Genome]:
        """Genomes told so far that no other one dominates."""
        told = list(self._told.values())
        found = non_dominated([row for row, _ in told], intervals=[interval for _, interval in told])
        genomes = list(self._told)
        return [genomes[index] for index in found]

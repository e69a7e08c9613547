"""NSGA-II (Deb et al. 2002) on genomes of any space, by ask and tell over pymoo.

pymoo keeps the ranking and the survival; what it would get wrong here is done around it: duplicates are looked for in
the whole history and not only the population, and a failed candidate becomes +inf, since one NaN would take over
pymoo's Pareto set. On a grid of choices pymoo's own operators work on their indices; any other space brings its
operators, for only they know which genomes are its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from bitnas.search.evolution import check_initial, unseen_random
from bitnas.search.pareto import Interval, fronts
from bitnas.search.space import Genome, Space, WidthSpace


class NSGA2:
    """Multi-objective search, every objective minimised.

    Args:
        space: where to search.
        objectives: number of values told for each code, at least 1.
        population: survivors of a generation, and new codes asked for in each; at least 2.
        seed: decides every random choice.
        initial: codes of the first generation, at most `population`; the rest of it is random.
        mutation_rate: how much a child is changed, as `space.mutate` takes it; on a grid of ratios the probability for
            each one, default 1 / length.
    """

    def __init__(
        self,
        space: Space,
        *,
        objectives: int,
        population: int = 32,
        seed: int = 0,
        initial: Sequence[Genome] = (),
        mutation_rate: float | None = None,
    ) -> None:
        if population < 2:
            raise ValueError(f"population: got {population}, wanted at least 2")
        if objectives < 1:
            raise ValueError(f"objectives: got {objectives}, wanted at least 1")
        if mutation_rate is not None and not 0 <= mutation_rate <= 1:
            raise ValueError(f"mutation_rate: got {mutation_rate}, wanted a probability in [0, 1]")
        self.space = space
        self.mutation_rate = mutation_rate
        self.objectives = objectives
        self.population = population
        self._rng = Random(seed)
        self._seen: set[Genome] = set()
        self._asked: tuple[list[Genome], Any] | None = None
        self._told: dict[Genome, tuple[list[float], list[Interval]]] = {}
        self._codec: _Grid | _Own = (
            _Grid(space, mutation_rate) if isinstance(space, WidthSpace) else _Own(space, self._rng, mutation_rate)
        )
        self._algorithm = self._make_algorithm(seed, check_initial(space, initial, population))

    def _make_algorithm(self, seed: int, initial: list[Genome]) -> Any:
        import numpy as np
        from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2
        from pymoo.core.duplicate import DuplicateElimination
        from pymoo.core.termination import NoTermination
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        strategy = self

        class UnseenOnly(DuplicateElimination):
            """Drops codes asked for at any time, repeats within the batch, and codes that are not permitted."""

            def _do(self, pop: Any, other: Any, is_duplicate: Any) -> Any:
                batch = set() if other is None else {tuple(ind.X) for ind in other}
                for index, individual in enumerate(pop):
                    code = tuple(individual.X)
                    genome = strategy._decode(code)
                    known = code in batch or genome in strategy._seen
                    is_duplicate[index] = known or not strategy.space.permits(genome)
                    if other is None:
                        batch.add(code)
                return is_duplicate

        first = initial + unseen_random(self.space, set(initial), self.population - len(initial), self._rng)
        if not first:
            raise ValueError("no code that was drawn is within the limits of the search; widen them")

        class NoisyRanks(RankAndCrowding):
            """Fronts by what the intervals tell apart."""

            def _do(self, problem: Any, pop: Any, *args: Any, **kwargs: Any) -> Any:
                told = [strategy._told[strategy._decode(individual.X)] for individual in pop]

                class Sorting:
                    def do(self, F: Any, **options: Any) -> list[Any]:
                        found = fronts([row for row, _ in told], intervals=[interval for _, interval in told])
                        return [np.array(front) for front in found]

                self.nds = Sorting()
                return super()._do(problem, pop, *args, **kwargs)

        algorithm = PymooNSGA2(
            survival=NoisyRanks(),
            pop_size=self.population,
            sampling=np.array([self._codec.encode(genome) for genome in first]),
            crossover=self._codec.crossover(),
            mutation=self._codec.mutation(),
            eliminate_duplicates=UnseenOnly(),
        )
        algorithm.setup(self._codec.problem(self.objectives), termination=NoTermination(), seed=seed, verbose=False)
        return algorithm

    def _decode(self, code: Sequence[float]) -> Genome:
        return self._codec.decode(code)

    def ask(self) -> list[Genome]:
        """The next generation: up to `population` codes never asked before; empty when the space is exhausted."""
        from pymoo.core.population import Population

        infills = self._algorithm.ask() if len(self._seen) < self.space.size else None
        genomes = [] if infills is None else [self._decode(individual.X) for individual in infills]
        self._seen.update(genomes)
        # Mating can run dry in a small space before the space itself does; random codes fill the gap.
        extra = unseen_random(self.space, self._seen, self.population - len(genomes), self._rng)
        if extra:
            import numpy as np

            added = Population.new("X", np.array([self._codec.encode(genome) for genome in extra]))
            infills = added if infills is None or not len(infills) else Population.merge(infills, added)
        self._seen.update(extra)
        genomes += extra
        self._asked = (genomes, infills)
        return list(genomes)

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None:
        """Report one row per code asked for; a row with a non-finite value counts as +inf in every objective.

        `intervals` say what each value is known to: only intervals that do not meet put a code in a later front
        (`pareto.fronts`). Crowding, which thins the last front, takes the values as they are.
        """
        import numpy as np

        if self._asked is None or list(genomes) != self._asked[0]:
            raise ValueError("genomes: wanted exactly those of the last ask(), in its order")
        if len(losses) != len(genomes) or any(len(row) != self.objectives for row in losses):
            raise ValueError(f"losses: wanted {len(genomes)} rows of {self.objectives} values")
        infills = self._asked[1]
        self._asked = None
        if not genomes:
            return
        known = intervals or [[(value, value) for value in row] for row in losses]
        for genome, row, interval in zip(genomes, losses, known, strict=True):
            safe = list(row) if all(map(math.isfinite, row)) else [math.inf] * self.objectives
            self._told[genome] = safe, list(interval)
        infills.set("F", np.array([self._told[genome][0] for genome in genomes], dtype=float))
        for individual in infills:
            individual.evaluated.update({"F", "G", "H"})
        with np.errstate(invalid="ignore"):  # inf - inf, in the crowding of failed codes among themselves
            self._algorithm.tell(infills=infills)

    def front(self) -> list[Genome]:
        """Non-dominated codes of the present population; never a failed one."""
        survivors = self._algorithm.opt
        if survivors is None:
            return []
        return [self._decode(individual.X) for individual in survivors if _all_finite(individual.F)]


class _Grid:
    """Width codes as pymoo has them: indices of the choices, with its own operators on integers."""

    def __init__(self, space: WidthSpace, rate: float | None) -> None:
        self.space = space
        self.rate = 1 / space.length if rate is None else rate

    def encode(self, genome: Genome) -> tuple[int, ...]:
        return self.space.encode(genome)

    def decode(self, code: Sequence[float]) -> Genome:
        return self.space.decode([round(float(index)) for index in code])

    def problem(self, objectives: int) -> Any:
        from pymoo.core.problem import Problem

        return Problem(n_var=self.space.length, n_obj=objectives, xl=0, xu=len(self.space.choices) - 1, vtype=int)

    def crossover(self) -> Any:
        from pymoo.operators.crossover.ux import UX

        return UX()

    def mutation(self) -> Any:
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.repair.rounding import RoundingRepair

        return PM(prob=1.0, prob_var=self.rate, eta=3.0, vtype=float, repair=RoundingRepair())


class _Own:
    """Genomes as they are, with the operators of their space."""

    def __init__(self, space: Space, rng: Random, rate: float | None) -> None:
        self.space = space
        self.rng = rng
        self.rate = rate

    def encode(self, genome: Genome) -> Genome:
        return genome

    def decode(self, code: Sequence[float]) -> Genome:
        return tuple(float(value) for value in code)

    def problem(self, objectives: int) -> Any:
        from pymoo.core.problem import Problem

        return Problem(n_var=self.space.length, n_obj=objectives, vtype=float)

    def crossover(self) -> Any:
        import numpy as np
        from pymoo.core.crossover import Crossover

        own = self

        class Mix(Crossover):
            """Two children of each pair."""

            def _do(self, problem: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
                pairs = [(own.decode(mother), own.decode(father)) for mother, father in zip(*X, strict=True)]
                return np.array([[own.space.crossover(*pair, own.rng) for pair in pairs] for _ in range(2)])

        return Mix(n_parents=2, n_offsprings=2)

    def mutation(self) -> Any:
        import numpy as np
        from pymoo.core.mutation import Mutation

        own = self

        class Change(Mutation):
            def _do(self, problem: Any, X: Any, *args: Any, **kwargs: Any) -> Any:
                return np.array([own.space.mutate(own.decode(code), own.rng, rate=own.rate) for code in X])

        return Change(prob=1.0)


def _all_finite(values: Sequence[float]) -> bool:
    """True if every value is finite."""
    return all(math.isfinite(float(value)) for value in values)

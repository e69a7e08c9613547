"""A list of genomes as a strategy: for methods that choose their candidates before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence

from bitnas.search.pareto import Interval
from bitnas.search.space import Genome


class FixedList:
    """Asks for the genomes once, in their order, and takes nothing from what it is told.

    Raises ValueError for a genome that is there twice.
    """

    def __init__(self, genomes: Sequence[Genome]) -> None:
        if len(set(genomes)) != len(genomes):
            raise ValueError(f"genomes: got {len(genomes)} of which {len(set(genomes))} differ, wanted none twice")
        self._left = list(genomes)

    def ask(self) -> list[Genome]:
        """All of them, then none."""
        asked, self._left = self._left, []
        return asked

    def tell(
        self,
        genomes: Sequence[Genome],
        losses: Sequence[Sequence[float]],
        intervals: Sequence[Sequence[Interval]] | None = None,
    ) -> None:
        """Has no effect: nothing is asked for by what was measured."""

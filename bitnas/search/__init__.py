"""Search strategies, the journal and the workers. Nothing here imports torch or knows what a number means."""

from bitnas.search.archive import BucketArchive, Kept
from bitnas.search.evolution import Evolution, penalised_accuracy
from bitnas.search.fixed import FixedList
from bitnas.search.journal import Journal, JournalCorrupt, JournalError, JournalLocked, JournalMismatch, Record
from bitnas.search.loop import SearchFailed, SearchResult, Stage, run_search, run_tasks
from bitnas.search.nsga2 import NSGA2
from bitnas.search.pareto import Objective, crowding_distance, dominates, fronts, hypervolume_2d, non_dominated
from bitnas.search.random_search import RandomSearch
from bitnas.search.space import Genome, Space, WidthSpace, genome_key
from bitnas.search.workers import Failure, WorkerPool, Workers, WorkersUnavailable, open_workers

__all__ = [
    "NSGA2",
    "BucketArchive",
    "Evolution",
    "Failure",
    "FixedList",
    "Genome",
    "Journal",
    "JournalCorrupt",
    "JournalError",
    "JournalLocked",
    "JournalMismatch",
    "Kept",
    "Objective",
    "RandomSearch",
    "Record",
    "SearchFailed",
    "SearchResult",
    "Space",
    "Stage",
    "WidthSpace",
    "WorkerPool",
    "Workers",
    "WorkersUnavailable",
    "crowding_distance",
    "dominates",
    "fronts",
    "genome_key",
    "hypervolume_2d",
    "non_dominated",
    "open_workers",
    "penalised_accuracy",
    "run_search",
    "run_tasks",
]

"""Both strategies on spaces small enough to enumerate, where the right answer is known."""

import math
from functools import partial

import pytest

from bitnas.search import NSGA2, Evolution, WidthSpace, non_dominated, penalised_accuracy

SPACE = WidthSpace((0.25, 0.5, 1.0, 2.0, 3.0, 4.0), 5)  # 7,776 codes


def cost(genome):
    return sum(ratio * weight for ratio, weight in zip(genome, (1, 3, 2, 5, 4), strict=True))


def gain(genome):
    return sum(math.sqrt(ratio) * weight for ratio, weight in zip(genome, (5, 4, 3, 2, 1), strict=True))


def drive(strategy, score, generations):
    told = {}
    for _ in range(generations):
        genomes = strategy.ask()
        if not genomes:
            break
        rows = [score(genome) for genome in genomes]
        told.update(zip(genomes, rows, strict=True))
        strategy.tell(genomes, rows)
    return told


# Final accuracies and FLOPs of Shen et al. 2019, tables 1 and 2, with F against the un-widened network.
@pytest.mark.parametrize(
    ("accuracy", "flops", "base", "fitness"),
    [
        (0.9024, 13_189_120, 13_189_120, 86.24),
        (0.9165, 45_252_608, 13_189_120, 77.93),
        (0.9256, 166_002_688, 13_189_120, 42.21),
        (0.9217, 11_313_152, 13_189_120, 88.74),
        (0.5277, 149_335_016, 149_335_016, 48.77),
        (0.7035, 915_252_200, 149_335_016, 45.83),
    ],
)
def test_fitness_of_the_published_networks(accuracy, flops, base, fitness):
    assert penalised_accuracy(accuracy, flops / base) == pytest.approx(fitness, abs=0.006)


def test_fitness_is_never_negative():
    assert penalised_accuracy(0.1, 100.0) == 0.0


def test_evolution_finds_the_known_optimum():
    best = min(SPACE.enumerate(), key=lambda g: cost(g) - 3 * gain(g))
    told = drive(Evolution(SPACE, population=24, seed=0), lambda g: (cost(g) - 3 * gain(g),), 20)
    assert min(told, key=told.get) == best
    assert len(told) < SPACE.size / 10


def make(kind, space, population, seed):
    if kind == "evolution":
        return Evolution(space, population=population, seed=seed)
    return NSGA2(space, objectives=1, population=population, seed=seed)


@pytest.mark.parametrize("kind", ["evolution", "nsga2"])
def test_a_seed_decides_everything(kind):
    def run(seed):
        return list(drive(make(kind, SPACE, 16, seed), lambda g: (cost(g) - 3 * gain(g),), 8))

    assert run(5) == run(5)
    assert run(5) != run(6)


@pytest.mark.parametrize("kind", ["evolution", "nsga2"])
def test_no_code_is_asked_for_twice_and_a_small_space_is_exhausted(kind):
    space = WidthSpace((1.0, 2.0, 3.0), 4)
    strategy = make(kind, space, 10, 1)
    asked = []
    for _ in range(20):
        genomes = strategy.ask()
        asked += genomes
        strategy.tell(genomes, [(sum(genome),) for genome in genomes])
    assert len(asked) == len(set(asked)) == space.size


def test_no_duplicates_over_a_long_search():
    strategy = NSGA2(SPACE, objectives=2, population=20, seed=3)
    asked = []
    for _ in range(30):
        genomes = strategy.ask()
        asked += genomes
        strategy.tell(genomes, [(cost(g), -gain(g)) for g in genomes])
    assert len(asked) == len(set(asked)) == 600


def test_nsga2_finds_the_known_front():
    space = WidthSpace((0.25, 0.5, 1.0, 2.0, 3.0, 4.0), 3)  # 216 codes
    weights = (1, 3, 2)

    def score(genome):
        spent = sum(r * w for r, w in zip(genome, weights, strict=True))
        gained = sum(math.sqrt(r) * w for r, w in zip(genome, (5, 4, 3), strict=True))
        return spent, -gained

    every = list(space.enumerate())
    front = {every[i] for i in non_dominated([score(g) for g in every])}
    shares = []
    for seed in range(4):
        told = drive(NSGA2(space, objectives=2, population=20, seed=seed), score, 7)
        codes = list(told)
        found = {codes[i] for i in non_dominated([told[g] for g in codes])}
        assert len(told) < 0.7 * space.size
        shares.append(len(found & front) / len(front))
    assert sum(shares) / 4 > 0.8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_failed_code_never_reaches_the_front(bad):
    def score(genome):
        return (bad, bad) if hash(genome) % 5 == 0 else (cost(genome), -gain(genome))

    strategy = NSGA2(SPACE, objectives=2, population=20, seed=0)
    drive(strategy, score, 12)
    front = strategy.front()
    assert len(front) > 3
    assert all(math.isfinite(value) for genome in front for value in score(genome))


def test_one_non_finite_objective_fails_the_whole_row():
    strategy = NSGA2(SPACE, objectives=2, population=8, seed=0)
    genomes = strategy.ask()
    strategy.tell(genomes, [(math.nan, -1e9), *[(cost(g), -gain(g)) for g in genomes[1:]]])
    assert genomes[0] not in strategy.front()


def test_evolution_survives_a_generation_of_failures():
    strategy = Evolution(SPACE, population=6, seed=0)
    strategy.tell(strategy.ask(), [(math.nan,)] * 6)
    assert len(strategy.ask()) == 6


def test_everything_failed_gives_an_empty_front():
    strategy = NSGA2(SPACE, objectives=2, population=6, seed=0)
    assert strategy.front() == []
    strategy.tell(strategy.ask(), [(math.inf, math.nan)] * 6)
    assert strategy.front() == []
    assert len(strategy.ask()) == 6


def test_wrong_calls_are_refused():
    with pytest.raises(ValueError, match="population"):
        Evolution(SPACE, population=1)
    with pytest.raises(ValueError, match="population"):
        NSGA2(SPACE, objectives=2, population=1)
    with pytest.raises(ValueError, match="objectives"):
        NSGA2(SPACE, objectives=0)
    with pytest.raises(ValueError, match="crossover_rate"):
        Evolution(SPACE, crossover_rate=1.1)
    strategy = NSGA2(SPACE, objectives=2, population=4, seed=0)
    genomes = strategy.ask()
    with pytest.raises(ValueError, match="genomes"):
        strategy.tell(genomes[:-1], [(0.0, 0.0)] * 3)
    with pytest.raises(ValueError, match="losses"):
        strategy.tell(genomes, [(0.0,)] * 4)


@pytest.mark.parametrize("make", [Evolution, partial(NSGA2, objectives=1)], ids=["evolution", "nsga2"])
def test_a_strategy_asks_for_permitted_codes_only(make):
    space = WidthSpace((0.25, 1.0, 4.0), 4, allowed=lambda genome: sum(genome) <= 5)
    strategy = make(space, population=6, seed=3)
    asked = []
    for _ in range(6):
        genomes = strategy.ask()
        strategy.tell(genomes, [[-sum(genome)] for genome in genomes])
        asked += genomes
    assert len(asked) == len(set(asked)) > 12
    assert all(sum(genome) <= 5 for genome in asked)

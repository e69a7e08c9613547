"""The paper's archive, random search beside it, and NSGA-II on a space that is no grid."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random

import pytest

from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.search import (
    NSGA2,
    BucketArchive,
    Evolution,
    Journal,
    Objective,
    RandomSearch,
    WidthSpace,
    non_dominated,
    run_search,
)
from bitnas.search import (
    Stage as Evaluation,
)

PAPER = SubnetSpace(DESCRIPTIONS["imagenet"], ops=(20e6, 180e6))
CHEAP = SubnetSpace(DESCRIPTIONS["imagenet"], ops=(20e6, 40e6))
FEW = Description(
    name="few",
    input_size=(1, 8, 8),
    num_classes=10,
    stem=(4, 8),
    stages=(
        Stage(channels=(8, 12, 16), depths=(1, 2)),
        Stage(channels=(16, 24), depths=(1, 2), kernels=(3, 5), groups=(1, 2), stride=2),
    ),
)  # 1,008 subnets


def loss(genome):
    """A made-up error: less with more channels, most of all early, with larger kernels and fewer groups."""
    return -sum(math.log(1 + value) / (1 + position) for position, value in enumerate(genome))


def drive(strategy, score, generations):
    asked = []
    for _ in range(generations):
        genomes = strategy.ask()
        asked.append(genomes)
        strategy.tell(genomes, [score(genome) for genome in genomes])
    return asked


def test_the_papers_search_whole():
    """20 generations after the first, with a made-up accuracy that takes no time."""

    def score(genome):
        return loss(genome), float(PAPER.cost(genome).ops)

    strategy = BucketArchive(PAPER, seed=0, initial=(PAPER.smallest, PAPER.biggest))
    asked = drive(strategy, score, 21)
    assert [len(genomes) for genomes in asked] == [512] + [256] * 20
    every = [genome for genomes in asked for genome in genomes]
    assert len(set(every)) == len(every) == 5632
    assert every[:2] == [PAPER.smallest, PAPER.biggest]
    assert all(PAPER.permits(genome) for genome in every[2:])  # these two are asked for whatever the window says
    archive = strategy.archive()
    buckets = [kept.bucket for kept in archive]
    assert buckets == sorted(set(buckets))
    assert buckets[-1] == 166  # the biggest: 331.8 M OPs in steps of 2 M
    scores = {genome: score(genome) for genome in every}
    for kept in archive:
        inside = [row for row in scores.values() if round(row[1] / 2e6) == kept.bucket]
        assert kept.losses == min(inside) == scores[kept.genome]
    # No test of dominance: it also keeps what is dearer and worse; `front` leaves that out.
    front = [scores[genome] for genome in strategy.front()]
    assert front == sorted(front, key=lambda row: row[1])
    kept = [kept.losses for kept in archive]
    assert set(front) == {kept[i] for i in non_dominated(kept)}


def test_the_archive_beats_random_search_of_equal_budget():
    def score(genome):
        return loss(genome), float(PAPER.cost(genome).ops)

    best = {}
    for name, strategy in (
        ("archive", BucketArchive(PAPER, population=60, mutations=20, crossovers=20, seed=1)),
        ("random", RandomSearch(PAPER, population=60, later=40, seed=1)),
    ):
        asked = drive(strategy, score, 11)
        assert sum(map(len, asked)) == 60 + 10 * 40
        # Where random search has candidates at all: the least loss of each 20 M.
        rows = [score(genome) for genomes in asked for genome in genomes]
        best[name] = {
            step: min((row[0] for row in rows if round(row[1] / 20e6) == step), default=0.0) for step in range(3, 7)
        }
    assert all(best["archive"][step] < best["random"][step] for step in range(3, 7))


def test_the_better_one_of_a_bucket_stays_and_ties_go_to_fewer_ops():
    strategy = BucketArchive(WidthSpace((1.0, 2.0), 3), population=2, bucket=10.0)
    strategy.tell([(1.0, 1.0, 1.0), (1.0, 1.0, 2.0)], [(0.5, 14.0), (0.4, 6.0)])
    assert [(kept.bucket, kept.losses) for kept in strategy.archive()] == [(1, (0.4, 6.0))]
    strategy.tell([(1.0, 2.0, 1.0), (2.0, 1.0, 1.0)], [(0.4, 5.5), (0.9, 26.0)])
    assert [kept.genome for kept in strategy.archive()] == [(1.0, 2.0, 1.0), (2.0, 1.0, 1.0)]
    assert strategy.front() == [(1.0, 2.0, 1.0)]


@pytest.mark.parametrize("bad", [(math.nan, 10.0), (0.1, math.inf), (math.inf, math.inf)])
def test_what_failed_never_enters(bad):
    strategy = BucketArchive(PAPER, population=4, seed=0)
    first = strategy.ask()
    strategy.tell(first, [bad] * 4)
    assert strategy.archive() == []
    again = strategy.ask()  # nothing to breed from: another first generation
    assert len(again) == 4
    assert not set(again) & set(first)
    strategy.tell(again, [bad, (0.5, 30e6), bad, bad])
    assert [kept.genome for kept in strategy.archive()] == strategy.front() == [again[1]]
    assert len(strategy.ask()) == 256


def strategies(space, seed, **sizes):
    return {
        "archive": BucketArchive(space, population=16, mutations=8, crossovers=8, bucket=500.0, seed=seed),
        "random": RandomSearch(space, population=16, seed=seed),
        "nsga2": NSGA2(space, objectives=2, population=16, seed=seed),
        "evolution": Evolution(space, population=16, seed=seed),
    }


@pytest.mark.parametrize("name", ["archive", "random", "nsga2", "evolution"])
def test_a_seed_decides_everything_and_no_subnet_is_asked_for_twice(name):
    space = SubnetSpace(FEW)

    def history(seed):
        return drive(strategies(space, seed)[name], lambda g: (loss(g), float(space.cost(g).ops)), 12)

    asked = history(3)
    assert asked == history(3)
    assert asked != history(4)
    flat = [genome for genomes in asked for genome in genomes]
    assert len(set(flat)) == len(flat) == 12 * 16
    assert len({space.subnet(genome).key() for genome in flat}) == len(flat)
    assert all(space.validate(genome) == genome for genome in flat)


@pytest.mark.parametrize("name", ["archive", "random", "nsga2", "evolution"])
def test_only_permitted_subnets_are_asked_for_until_there_are_no_more(name):
    shallow = replace(FEW, stages=(FEW.stages[0], replace(FEW.stages[1], depths=(1,))))
    plain = SubnetSpace(shallow)
    costs = sorted(plain.cost(genome).ops for genome in plain.enumerate())
    space = SubnetSpace(shallow, ops=(costs[0], costs[69]))
    permitted = {genome for genome in plain.enumerate() if plain.cost(genome).ops <= costs[69]}
    asked = drive(strategies(space, 5)[name], lambda g: (loss(g), float(space.cost(g).ops)), 7)
    assert {genome for genomes in asked for genome in genomes} == permitted
    assert asked[-1] == []


def test_nsga2_finds_the_known_front_of_a_space_of_subnets():
    space = SubnetSpace(FEW)
    every = {genome: (loss(genome), float(space.cost(genome).ops)) for genome in space.enumerate()}
    assert len(every) == space.size == 1008
    genomes = list(every)
    front = {every[genomes[i]] for i in non_dominated(list(every.values()))}
    shares = []
    for seed in range(3):
        strategy = NSGA2(space, objectives=2, population=24, seed=seed, initial=(space.smallest, space.biggest))
        asked = [genome for part in drive(strategy, every.get, 16) for genome in part]
        assert len(asked) < 0.4 * space.size
        found = {every[asked[i]] for i in non_dominated([every[genome] for genome in asked])}
        shares.append(len(found & front) / len(front))
        by_chance = Random(seed).sample(genomes, len(asked))
        lucky = {every[genome] for genome in by_chance} & front
        assert len(found & front) > len(lucky)
        assert {every[genome] for genome in strategy.front()} <= found
    assert sum(shares) / 3 > 0.8


def test_the_archive_goes_through_the_loop_and_its_journal(tmp_path):
    """As a search uses it: resumed from the journal it asks for the same, and nothing is measured again."""
    space = SubnetSpace(FEW)
    measured = []

    def evaluate(genome):
        measured.append(genome)
        if len(genome) % 2 and genome[0] == 8 and genome[1] == 2:
            raise RuntimeError("out of luck")
        return {"accuracy": -loss(genome) / 100, "ops": float(space.cost(genome).ops)}

    objectives = [Objective("accuracy", maximize=True), Objective("ops")]

    def search(generations):
        strategy = BucketArchive(space, population=20, mutations=6, crossovers=6, bucket=500.0, seed=2)
        with Journal(tmp_path / "journal.sqlite", meta={"seed": 2}) as journal:
            result = run_search(
                strategy, [Evaluation("evaluate", evaluate)], objectives, journal, generations=generations
            )
        return strategy, result

    search(3)
    assert len(measured) == 20 + 2 * 12
    strategy, result = search(6)
    assert len(measured) == 20 + 5 * 12
    failed = {candidate.genome for candidate in result.candidates if candidate.status == "failed"}
    assert failed
    assert not failed & {kept.genome for kept in strategy.archive()}
    assert set(strategy.front()) <= {candidate.genome for candidate in result.front}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 1}, "population: got 1"),
        ({"mutations": -1}, "mutations: got -1"),
        ({"mutations": 0, "crossovers": 0}, "at least one child"),
        ({"bucket": 0.0}, "bucket: got 0"),
        ({"bucket": math.inf}, "bucket: got inf"),
        ({"mutation_rate": 2.0}, "mutation_rate: got 2.0"),
        ({"population": 2, "initial": (PAPER.smallest,) * 2}, "initial: got 2 codes"),
        ({"initial": ((1.0, 2.0),)}, "genome: got 2 numbers, wanted 69"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BucketArchive(PAPER, **options)


def test_other_wrong_settings_are_named():
    with pytest.raises(ValueError, match="later: got 0"):
        RandomSearch(PAPER, population=4, later=0)
    with pytest.raises(ValueError, match="mutation_rate: got -1"):
        NSGA2(PAPER, objectives=2, mutation_rate=-1)
    with pytest.raises(ValueError, match="losses: got a row of 1"):
        BucketArchive(PAPER).tell([PAPER.smallest], [(0.5,)])
    with pytest.raises(ValueError, match="losses: got 1 rows, wanted 0"):
        RandomSearch(PAPER).tell([], [(0.5,)])


def test_the_front_of_random_search_minds_the_noise():
    strategy = RandomSearch(WidthSpace((1.0, 2.0, 3.0), 1), population=3)
    codes = sorted(strategy.ask())
    rows = [(0.1, 100.0), (0.2, 99.0), (0.3, 50.0)]
    strategy.tell(codes, rows, [[(a, a), (0.98 * t, 1.02 * t)] for a, t in rows])
    assert strategy.front() == [(1.0,), (3.0,)]
    assert strategy.ask() == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: BucketArchive(CHEAP, population=64, mutations=16, crossovers=16, initial=[CHEAP.smallest]),
        lambda: RandomSearch(CHEAP, population=64, later=32),
        lambda: NSGA2(CHEAP, objectives=2, population=64),
    ],
    ids=["archive", "random", "nsga2"],
)
def test_generations_at_the_cheap_end_are_full(make):
    """One in ten thousand of the paper's subnets has less than 40 M OPs."""
    strategy = make()
    wanted = (64, 64 if isinstance(strategy, NSGA2) else 32)
    for count in wanted:
        genomes = strategy.ask()
        assert len(set(genomes)) == count
        assert all(CHEAP.permits(genome) for genome in genomes)
        strategy.tell(genomes, [(1 / genome[0], CHEAP.cost(genome).ops) for genome in genomes])

"""The space of NAS-BNN: its sizes, its closed-form costs, and channels that shrink in no genome of any operator."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnas.methods.nasbnn.cost import subnet_cost
from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.space import SubnetSpace

TINY = Description(
    name="tiny",
    input_size=(1, 8, 8),
    num_classes=10,
    stem=(4, 8),
    stages=(
        Stage(channels=(4, 8), depths=(1, 2)),
        Stage(channels=(4, 8, 12), depths=(1, 2), kernels=(3, 5), groups=(1,), stride=2),
    ),
)  # its stages overlap in channels, so the rule also binds between them


def column(genome: tuple[float, ...], space: SubnetSpace) -> list[float]:
    """Channels of the stem and of all rows, inactive ones too, read as the contract of a genome says."""
    found, at = [genome[0]], 1
    for stage in space.description.stages:
        found += [genome[at + 1 + 3 * row] for row in range(max(stage.depths))]
        at += 1 + 3 * max(stage.depths)
    assert at == len(genome) == space.length
    return found


def pieces(genome: tuple[float, ...], space: SubnetSpace) -> list[list[tuple[float, ...]]]:
    """The stem, then the active rows of each stage."""
    found, at = [[genome[:1]]], 1
    for stage in space.description.stages:
        rows = [genome[at + 1 + 3 * row : at + 4 + 3 * row] for row in range(int(genome[at]))]
        found.append(rows)
        at += 1 + 3 * max(stage.depths)
    return found


def holds(genome: tuple[float, ...], space: SubnetSpace) -> bool:
    channels = column(genome, space)
    return channels == sorted(channels)


# ---- size -----------------------------------------------------------------------


def test_the_papers_space_has_the_papers_size():
    space = SubnetSpace(DESCRIPTIONS["imagenet"])
    assert space.size == 3 * 16 * 736**3 * 17_367_040 == 332_353_674_695_147_520
    assert space.size_without_rule == 3 * 36 * 1872**3 * (12**8 + 12**9)
    assert (f"{space.size:.4e}", f"{space.size_without_rule:.4e}") == ("3.3235e+17", "3.9604e+21")
    assert space.size_without_rule // space.size == 11_916
    assert space.length == 1 + 5 + 3 * (3 + 3 + 3 + 9 + 3)


def by_hand(description: Description, rule: bool) -> int:
    """Counts by trying everything."""
    total = 0
    for depths in itertools.product(*(stage.depths for stage in description.stages)):
        rows = [stage for stage, depth in zip(description.stages, depths, strict=True) for _ in range(depth)]
        variants = math.prod(len(row.kernels) * len(row.groups) for row in rows)
        for channels in itertools.product(description.stem, *(row.channels for row in rows)):
            total += variants * (not rule or list(channels) == sorted(channels))
    return total


@pytest.mark.parametrize("description", [TINY, DESCRIPTIONS["small"]], ids=["tiny", "small"])
def test_sizes_are_those_of_counting_by_hand(description):
    space = SubnetSpace(description)
    assert space.size == by_hand(description, rule=True)
    assert space.size_without_rule == by_hand(description, rule=False)


def test_enumeration_gives_every_genome_once():
    space = SubnetSpace(TINY)
    genomes = list(space.enumerate())
    assert len(set(genomes)) == len(genomes) == space.size == 140
    assert all(holds(genome, space) and space.validate(genome) == genome for genome in genomes)
    with pytest.raises(ValueError, match="limit: got 100, wanted at least the 140 subnets"):
        space.enumerate(limit=100)
    with pytest.raises(ValueError, match="limit"):
        SubnetSpace(DESCRIPTIONS["imagenet"]).enumerate()


def test_random_is_uniform():
    from scipy.stats import chisquare

    space = SubnetSpace(TINY)
    rng = Random(0)
    counts = Counter(space.random(rng) for _ in range(30 * space.size))
    assert set(counts) == set(space.enumerate())
    assert chisquare(list(counts.values())).pvalue > 0.01


def test_random_stays_uniform_within_a_window():
    from scipy.stats import chisquare

    plain = SubnetSpace(TINY)
    costs = sorted(plain.cost(genome).ops for genome in plain.enumerate())
    window = (costs[30], costs[100])
    space = SubnetSpace(TINY, ops=window)
    inside = [genome for genome in space.enumerate() if window[0] <= space.cost(genome).ops <= window[1]]
    rng = Random(1)
    counts = Counter(space.random(rng) for _ in range(20 * len(inside)))
    assert set(counts) == set(inside)
    assert chisquare(list(counts.values())).pvalue > 0.01
    with pytest.raises(ValueError, match="no subnet has 0 to 1 OPs, the limits of the search"):
        SubnetSpace(TINY, ops=(0.0, 1.0)).random(rng)
    with pytest.raises(ValueError, match="none of 40 random subnets is within the limits"):
        SubnetSpace(TINY, allowed=lambda subnet: False).random(rng, draws=40)


def walked(space: SubnetSpace, steps: int) -> set[tuple[float, ...]]:
    """Subnets of the window that mutations from the smallest come by."""
    rng, seen, pool = Random(0), {space.smallest}, [space.smallest]
    for _ in range(steps):
        genome = space.mutate(rng.choice(pool), rng)
        if genome not in seen and space.permits(genome):
            seen.add(genome)
            pool.append(genome)
    return seen


def test_random_finds_every_subnet_of_a_narrow_window():
    """34 of nearly a million, which drawing until one fits does not find for most seeds."""
    from scipy.stats import chisquare

    space = SubnetSpace(DESCRIPTIONS["small"], ops=(2e3, 4e3))
    known = walked(space, 6000)
    assert len(known) == 34
    for seed in range(4):
        counts = Counter(space.random(rng) for rng in [Random(seed)] for _ in range(20 * len(known)))
        assert set(counts) == known
        assert chisquare(list(counts.values())).pvalue > 0.005
    assert all(holds(genome, space) and space.validate(genome) == genome for genome in known)


@pytest.mark.parametrize("window", [(20e6, 30e6), (100e6, 100.01e6), (325e6, math.inf)])
def test_random_finds_rare_subnets_of_the_papers_space(window):
    space = SubnetSpace(DESCRIPTIONS["imagenet"], ops=window)
    drawn = [space.random(rng) for rng in [Random(0)] for _ in range(40)]
    assert all(window[0] <= space.cost(genome).ops <= window[1] for genome in drawn)
    assert all(holds(genome, space) and space.validate(genome) == genome for genome in drawn)
    assert len(set(drawn)) > 30
    assert drawn == [space.random(rng) for rng in [Random(0)] for _ in range(40)]


@pytest.mark.parametrize("size", [140, 1 << 62])  # counted in 64 bits, and without an end
def test_counts_by_ops_miss_no_subnet_and_count_none_twice(size):
    from bitnas.methods.nasbnn.by_ops import OpsCounts

    space = SubnetSpace(TINY)
    costs = sorted(float(space.cost(genome).ops) for genome in space.enumerate())
    counts = OpsCounts(TINY, costs[-1], size)
    assert counts.count(0, math.inf) == space.size
    for low, high in ((costs[0], costs[0]), (costs[30], costs[60]), (costs[-1], costs[-1])):
        inside = sum(low <= cost <= high for cost in costs)
        assert inside <= counts.count(low, high) < inside + 20
    assert counts.count(0, 0.5 * costs[0]) == counts.count(2 * costs[-1], math.inf) == 0
    with pytest.raises(ValueError, match="no subnet has"):
        counts.draw(0, 0.5 * costs[0], Random(0))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 139), st.integers(0, 139), st.integers(0, 99))
def test_random_is_refused_only_where_a_window_is_empty(first, last, seed):
    plain = SubnetSpace(TINY)
    costs = sorted(float(plain.cost(genome).ops) for genome in plain.enumerate())
    low, high = sorted((costs[first], costs[last]))
    genome = SubnetSpace(TINY, ops=(low, high)).random(Random(seed))
    assert low <= plain.cost(genome).ops <= high


# ---- genomes and networks -------------------------------------------------------


@pytest.mark.parametrize("description", [*DESCRIPTIONS.values(), TINY], ids=lambda d: d.name)
def test_a_genome_and_its_network_describe_each_other(description):
    space = SubnetSpace(description, weight_normalization=False)
    rng = Random(2)
    for genome in (space.smallest, space.biggest, *(space.random(rng) for _ in range(30))):
        subnet = space.subnet(genome)
        assert space.genome(subnet) == genome
        assert (subnet.input_size, subnet.num_classes) == (description.input_size, description.num_classes)
        assert not subnet.weight_normalization
        assert [block.stride for block in subnet.blocks].count(2) == sum(s.stride == 2 for s in description.stages)


def test_smallest_and_biggest_are_the_ends_of_cost():
    space = SubnetSpace(TINY)
    costs = {genome: space.cost(genome).ops for genome in space.enumerate()}
    assert costs[space.smallest] == min(costs.values())
    assert costs[space.biggest] == max(costs.values())
    grouped = SubnetSpace(DESCRIPTIONS["imagenet"])
    assert {block.groups for block in grouped.subnet(grouped.smallest).blocks} == {1, 2, 4, 8, 16}
    assert {block.groups for block in grouped.subnet(grouped.biggest).blocks} == {1, 2, 4, 8}


def test_what_is_no_genome_of_the_space_is_refused_by_name():
    space = SubnetSpace(TINY)
    genome = list(space.biggest)
    for position, value, message in (
        (0, 5.0, r"got 5.0 for the stem's channels, wanted one of \(4, 8\)"),
        (1, 3.0, "the depth of stage 0"),
        (2, 4.0, r"got 4 channels of row 0 of stage 0 after 8, wanted no fewer"),
        (3, 7.0, "the kernel of row 0 of stage 0"),
        (9 + 2, 2.0, "the groups of row 0 of stage 1"),
    ):
        wrong = [*genome[:position], value, *genome[position + 1 :]]
        with pytest.raises(ValueError, match=message):
            space.validate(wrong)
        with pytest.raises(ValueError, match=message):
            space.subnet(wrong)
    with pytest.raises(ValueError, match="got 3 numbers, wanted 15"):
        space.validate((1.0, 2.0, 3.0))


def test_inactive_rows_are_free_to_read_and_the_same_once_read():
    space = SubnetSpace(TINY)
    free = (4.0, 1.0, 4.0, 3.0, 1.0, 8.0, 3.0, 1.0, 1.0, 8.0, 5.0, 1.0, 12.0, 3.0, 1.0)
    kept = space.validate(free)
    assert kept == (4.0, 1.0, 4.0, 3.0, 1.0, 4.0, 3.0, 1.0, 1.0, 8.0, 5.0, 1.0, 8.0, 5.0, 1.0)
    assert space.subnet(free) == space.subnet(kept)
    assert space.cost(free) == space.cost(kept)


def test_a_network_of_another_space_is_refused():
    space = SubnetSpace(TINY)
    subnet = space.subnet(space.biggest)
    for other, message in (
        (replace(subnet, num_classes=3), "num_classes is 3, wanted 10"),
        (replace(subnet, blocks=(*subnet.blocks, subnet.blocks[-1])), "its 5 blocks do not fit"),
        (replace(subnet, stem=2), "the stem's channels"),
        (replace(subnet, weight_normalization=False), "weight_normalization is False"),
    ):
        with pytest.raises(ValueError, match=message):
            space.genome(other)


# ---- cost -----------------------------------------------------------------------


@pytest.mark.parametrize("description", [*DESCRIPTIONS.values(), TINY], ids=lambda d: d.name)
def test_the_closed_form_is_what_counting_the_network_gives(description):
    import torch

    from bitnas import count
    from bitnas.models import create_model_from_config

    space = SubnetSpace(description)
    rng = Random(3)
    odd = SubnetSpace(description.for_data((3, 29, 27), 7))  # sides that strides do not divide
    for chosen, genome in (
        *((space, space.random(rng)) for _ in range(2)),
        (odd, odd.random(rng)),
    ):
        subnet = chosen.subnet(genome)
        with torch.device("meta"):
            counted = count(create_model_from_config(subnet), rule="nasbnn")
        found = chosen.cost(genome)
        assert found == subnet_cost(subnet)
        assert (found.flops, found.bops, found.ops) == (counted.flops, counted.bops, counted.ops)
        assert type(found.ops) is type(counted.ops)
        assert found.params == counted.params
        assert found.binary_weights == sum(layer.weights for layer in counted.layers if layer.binary)


def test_a_window_and_a_rule_of_ones_own_are_both_asked():
    seen = []

    def allowed(subnet):
        seen.append(subnet)
        return subnet.stem == 8

    space = SubnetSpace(TINY, allowed=allowed, ops=(0.0, 3000.0))
    for genome in SubnetSpace(TINY).enumerate():
        inside = space.cost(genome).ops <= 3000
        assert space.permits(genome) == (inside and genome[0] == 8)
    assert seen
    assert all(subnet_cost(subnet).ops <= 3000 for subnet in seen)
    assert space.limited
    assert not SubnetSpace(TINY).limited
    with pytest.raises(ValueError, match="ops"):
        SubnetSpace(TINY, ops=(2.0, 1.0))


# ---- operators ------------------------------------------------------------------


@st.composite
def descriptions(draw: st.DrawFn) -> Description:
    """Descriptions with stages that may share channels, or leave a gap between them."""
    widths = st.sets(st.integers(1, 8), min_size=1, max_size=4)
    before = sorted(draw(widths))
    stem, stages = before, []
    for _ in range(draw(st.integers(1, 3))):
        low, high = draw(st.integers(before[0], 9)), draw(st.integers(before[-1], 12))
        between = {c for c in draw(st.sets(st.integers(1, 12), max_size=3)) if min(low, high) <= c <= max(low, high)}
        before = sorted({min(low, high), max(low, high), *between})
        depths = sorted(draw(st.sets(st.integers(1, 4), min_size=1, max_size=3)))
        kernels = draw(st.sampled_from([(3,), (3, 5), (1, 3, 5)]))
        stages.append(Stage(channels=tuple(before), depths=tuple(depths), kernels=kernels))
    return Description(name="any", input_size=(1, 8, 8), num_classes=10, stem=tuple(stem), stages=tuple(stages))


@settings(deadline=None, max_examples=150)
@given(descriptions(), st.integers(0, 2**32))
def test_no_child_of_any_space_shrinks(description, seed):
    space, rng = SubnetSpace(description), Random(seed)
    genomes = [space.smallest, space.biggest, *(space.random(rng) for _ in range(4))]
    for _ in range(40):
        mother, father = rng.choice(genomes), rng.choice(genomes)
        mutant = space.mutate(mother, rng, rate=rng.choice([0.0, 0.2, 1.0]))
        child = space.crossover(mutant, father, rng)
        assert (mutant == mother) == (space.size == 1)
        for genome in (mutant, child):
            assert holds(genome, space)
            assert space.validate(genome) == genome
        genomes += [mutant, child]


def test_thousands_of_children_of_the_papers_space_keep_the_rule():
    space, rng = SubnetSpace(DESCRIPTIONS["imagenet"]), Random(4)
    genomes = [space.random(rng) for _ in range(50)]
    for _ in range(3000):
        mutant = space.mutate(rng.choice(genomes), rng)
        child = space.crossover(rng.choice(genomes), mutant, rng)
        assert holds(mutant, space)
        assert holds(child, space)
        genomes[rng.randrange(50)] = child


def published_mutation(genome, space, rng):
    """Channels of a row redrawn by looking at the row before only, as the paper's public code is known to do."""
    child, at, before = list(genome), 1, genome[0]
    for stage in space.description.stages:
        depth = int(child[at])
        for row in range(depth):
            position = at + 1 + 3 * row
            if rng.random() < 0.2:
                child[position] = float(rng.choice([c for c in stage.channels if c >= before]))
            before = child[position]
        at += 1 + 3 * max(stage.depths)
    return tuple(child)


def test_the_published_mutation_would_break_the_rule():
    space, rng = SubnetSpace(DESCRIPTIONS["imagenet"]), Random(5)
    broken = 0
    for _ in range(500):
        child = published_mutation(space.random(rng), space, rng)
        active = [row[0] for rows in pieces(child, space) for row in rows]
        broken += active != sorted(active)
    assert broken > 200  # about half of its children: their network cannot be built


def test_mutation_reaches_every_genome_and_a_low_rate_changes_one_thing():
    space, rng = SubnetSpace(TINY), Random(6)
    genome, visited = space.smallest, set()
    for _ in range(20_000):
        genome = space.mutate(genome, rng)
        visited.add(genome)
    assert len(visited) == space.size
    for _ in range(200):
        before = space.random(rng)
        changes = 0
        for old, new in zip(pieces(before, space), pieces(space.mutate(before, rng, rate=0.0), space), strict=True):
            changes += (len(old) != len(new)) + sum(x != y for x, y in zip(old, new, strict=False))
        assert changes == 1
    with pytest.raises(ValueError, match="rate: got 1.5"):
        space.mutate(genome, rng, rate=1.5)


def test_mutation_of_a_single_subnet_is_the_identity():
    stage = Stage(channels=(4,), depths=(2,))
    space = SubnetSpace(Description(name="one", input_size=(1, 8, 8), num_classes=10, stem=(4,), stages=(stage,)))
    assert space.size == 1
    assert space.mutate(space.smallest, Random(0)) == space.smallest == space.biggest


def test_a_deeper_mutant_draws_its_new_rows():
    """They are not only copies of the last row, nor bound by one another's copies."""
    stage = Stage(channels=(4, 8, 12), depths=(1, 3), kernels=(3, 5))
    space = SubnetSpace(Description(name="deep", input_size=(1, 8, 8), num_classes=10, stem=(4,), stages=(stage,)))
    rng, seen = Random(7), set()
    for _ in range(3000):
        child = space.subnet(space.mutate(space.smallest, rng))
        if len(child.blocks) == 3:
            seen.add(tuple((block.channels, block.kernel) for block in child.blocks[1:]))
    assert len(seen) == 6 * 4  # every non-decreasing pair of widths, with every pair of kernels


def test_a_child_takes_every_number_from_a_parent():
    space, rng = SubnetSpace(DESCRIPTIONS["imagenet"]), Random(8)
    for _ in range(300):
        mother, father = space.random(rng), space.random(rng)
        child = space.crossover(mother, father, rng)
        at = 1
        assert child[0] in (mother[0], father[0])
        for stage in space.description.stages:
            assert child[at] in (mother[at], father[at])
            active = range(at + 1, at + 1 + 3 * int(child[at]))
            assert all(child[position] in (mother[position], father[position]) for position in active)
            at += 1 + 3 * max(stage.depths)


def test_mixes_of_channels_are_as_likely_as_by_throwing_away_what_shrinks():
    from scipy.stats import chisquare

    stages = tuple(Stage(channels=(1, 2, 3, 4), depths=(2,)) for _ in range(2))
    space = SubnetSpace(Description(name="mix", input_size=(1, 8, 8), num_classes=10, stem=(1, 2, 3, 4), stages=stages))

    def genome(*channels):
        stem, a, b, c, d = channels
        return space.validate((stem, 2, a, 3, 1, b, 3, 1, 2, c, 3, 1, d, 3, 1))

    mother, father = genome(1, 1, 3, 3, 4), genome(2, 2, 2, 4, 4)
    mixes = [tuple(map(float, mix)) for mix in itertools.product(*zip((1, 1, 3, 3, 4), (2, 2, 2, 4, 4), strict=True))]
    wanted = Counter(mix for mix in mixes if list(mix) == sorted(mix))
    rng, draws = Random(9), 12_000
    found = Counter(tuple(column(space.crossover(mother, father, rng), space)) for _ in range(draws))
    assert set(found) == set(wanted)
    expected = [draws * count / wanted.total() for count in wanted.values()]
    assert chisquare([found[mix] for mix in wanted], expected).pvalue > 0.01


def test_a_seed_decides_everything():
    space = SubnetSpace(DESCRIPTIONS["imagenet"])

    def history(seed):
        rng = Random(seed)
        genomes = [space.random(rng) for _ in range(5)]
        return genomes + [space.crossover(space.mutate(g, rng), genomes[0], rng) for g in genomes]

    assert history(1) == history(1) != history(2)


def test_the_space_needs_no_torch():
    script = (
        "import sys, random; from bitnas.methods.nasbnn.space import SubnetSpace; "
        "from bitnas.methods.nasbnn.description import load; s = SubnetSpace(load('imagenet'), ops=(20e6, 180e6)); "
        "s.crossover(s.random(random.Random(0)), s.mutate(s.biggest, random.Random(1)), random.Random(2)); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

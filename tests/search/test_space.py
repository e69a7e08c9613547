"""The width space: what a code is, and that each operator keeps to the space and to its seed."""

from random import Random

import pytest

from bitnas.search import WidthSpace, genome_key

SPACE = WidthSpace()


def test_paper_space_has_46656_codes_for_six_layers():
    assert SPACE.size == 46_656
    assert SPACE.choices == (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize("code", [(0.5, 2, 1, 1, 1, 0.5), (2, 2, 4, 2, 4, 0.5)])
def test_published_codes_are_valid_and_survive_encoding(code):
    assert SPACE.decode(SPACE.encode(code)) == code


@pytest.mark.parametrize("choices", [(), (0.0, 1.0), (1.0, 1.0), (float("nan"),), (float("inf"),), (-1.0,)])
def test_bad_choices_are_named(choices):
    with pytest.raises(ValueError, match="choices"):
        WidthSpace(choices)


@pytest.mark.parametrize("length", [0, -1, 1.5, True])
def test_bad_length_is_named(length):
    with pytest.raises(ValueError, match="length"):
        WidthSpace((1.0,), length)


def test_validate_says_which_ratio_is_wrong():
    with pytest.raises(ValueError, match=r"1\.5 at position 2"):
        SPACE.validate((1, 1, 1.5, 1, 1, 1))
    with pytest.raises(ValueError, match="got 5 ratios, wanted 6"):
        SPACE.validate((1, 1, 1, 1, 1))


def test_decode_refuses_an_index_out_of_range():
    with pytest.raises(ValueError, match="indices"):
        SPACE.decode((0, 0, 0, 0, 0, 6))


def test_enumerate_lists_each_code_once():
    space = WidthSpace((1.0, 2.0, 3.0), 4)
    codes = list(space.enumerate())
    assert len(codes) == len(set(codes)) == space.size == 81
    with pytest.raises(ValueError, match="limit"):
        WidthSpace(length=12).enumerate()


def test_uniform():
    assert SPACE.uniform(3) == (3.0,) * 6
    with pytest.raises(ValueError, match="ratio"):
        SPACE.uniform(1.5)


def test_mutation_changes_something_and_stays_in_the_space():
    rng = Random(0)
    for _ in range(500):
        genome = SPACE.random(rng)
        mutant = SPACE.mutate(genome, rng)
        assert mutant != genome
        SPACE.validate(mutant)


def test_mutation_rate_one_changes_every_ratio():
    rng = Random(1)
    genome = SPACE.uniform(1)
    assert all(new != old for new, old in zip(SPACE.mutate(genome, rng, rate=1.0), genome, strict=True))


def test_mutation_of_a_single_choice_is_the_identity():
    space = WidthSpace((1.0,), 3)
    assert space.mutate((1.0, 1.0, 1.0), Random(0)) == (1.0, 1.0, 1.0)


def test_crossover_takes_each_ratio_from_either_parent():
    rng = Random(2)
    mother, father = SPACE.uniform(0.25), SPACE.uniform(4)
    children = [SPACE.crossover(mother, father, rng) for _ in range(200)]
    assert all(ratio in (0.25, 4.0) for child in children for ratio in child)
    for position in range(6):
        assert {child[position] for child in children} == {0.25, 4.0}


def test_random_reaches_every_choice_and_repeats_under_a_seed():
    codes = [SPACE.random(rng) for rng in [Random(3)] for _ in range(200)]
    again = [SPACE.random(rng) for rng in [Random(3)] for _ in range(200)]
    assert codes == again
    assert {ratio for code in codes for ratio in code} == set(SPACE.choices)


def test_key_does_not_depend_on_the_number_type():
    assert genome_key((1, 2)) == genome_key((1.0, 2.0)) != genome_key((2.0, 1.0))


def test_only_permitted_codes_are_drawn():
    space = WidthSpace((0.25, 1.0, 4.0), 4, allowed=lambda genome: sum(genome) <= 3)
    rng = Random(0)
    assert all(sum(space.random(rng)) <= 3 for _ in range(50))
    nothing = WidthSpace((1.0, 4.0), 4, allowed=lambda genome: False)
    with pytest.raises(ValueError, match="none of 500 random codes is within the limits"):
        nothing.random(rng)

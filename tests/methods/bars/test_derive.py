"""Networks from probabilities: the most likely one first, then draws, none twice."""

import collections

import pytest
import torch

from bitnas.methods.bars.choices import Choices, most_likely, one_hot
from bitnas.methods.bars.derive import derive
from bitnas.methods.bars.description import Architecture, Description

SPACE = Description(name="tiny", layout="NRN", channels=4, widths=(0.5, 1.0), input_size=(1, 8, 8))


def random_probabilities(seed=0, sharpness=1.0, space=SPACE):
    chance = torch.Generator().manual_seed(seed)
    shapes = [(space.topologies, 10, len(space.operations)), (space.width_count, len(space.widths))]
    shapes += [(len(choices),) for choices in space.depth_choices]
    edges, widths, *depths = (torch.randn(shape, generator=chance).mul(sharpness).softmax(-1) for shape in shapes)
    return Choices(edges, widths, tuple(depths))


def keys(found, space=SPACE):
    return [space.network(architecture).key() for architecture in found]


def test_the_most_likely_is_first_and_no_network_is_there_twice():
    probabilities = random_probabilities()
    found = derive(SPACE, probabilities, 12, seed=3)
    assert found[0] == most_likely(SPACE, probabilities)
    assert len(set(keys(found))) == len(found) == 12


def test_widths_and_depths_are_the_likeliest_unless_they_are_drawn():
    probabilities = random_probabilities()
    plain = derive(SPACE, probabilities, 16, seed=3)
    assert {(a.widths, a.depths) for a in plain} == {(plain[0].widths, plain[0].depths)}
    drawn = derive(SPACE, probabilities, 16, seed=3, layout=True)
    assert len({a.widths for a in drawn}) > 1
    assert len({a.depths for a in drawn}) > 1


def test_the_seed_decides_and_more_samples_begin_with_the_same():
    probabilities = random_probabilities()
    few, many = (derive(SPACE, probabilities, samples, seed=5) for samples in (4, 9))
    assert many[:4] == few == derive(SPACE, probabilities, 4, seed=5)
    assert derive(SPACE, probabilities, 4, seed=6)[1:] != few[1:]


def test_edges_are_drawn_by_their_probabilities():
    """Of one edge whose operations have 0.6, 0.3 and 0.1, the others decided: after the first, draws of either."""
    space = Description(name="chain", layout="R", channels=4, widths=(1.0,), input_size=(1, 8, 8))
    plain = Architecture((("binary_conv_3x3",) * 10,), (1.0,), tuple(c[0] for c in space.depth_choices))
    edges = one_hot(space, plain).edges.clone()
    edges[0, 4] = torch.tensor([0.6, 0.3, 0.1])
    probabilities = Choices(edges, one_hot(space, plain).widths, one_hot(space, plain).depths)
    seconds = collections.Counter(derive(space, probabilities, 2, seed=seed)[1].cells[0][4] for seed in range(400))
    assert set(seconds) == {"skip", "binary_conv_3x3"}
    # Given that it is not the first choice, 3 : 1. Six standard deviations of 400 draws are 52.
    assert abs(seconds["skip"] - 300) < 52


def test_decided_probabilities_give_one_network():
    architecture = SPACE.biggest
    assert derive(SPACE, one_hot(SPACE, architecture), 8, seed=0) == [architecture]


def test_points_that_differ_behind_a_dead_node_count_once():
    """Nothing reaches node 1, so the edges out of it decide nothing."""
    plain = Architecture((("binary_conv_3x3",) * 10,) * SPACE.topologies, (1.0,) * SPACE.width_count, (1, 1))
    edges = one_hot(SPACE, plain).edges.clone()
    edges[:, 0] = torch.tensor([1.0, 0.0, 0.0])  # none into node 1
    edges[:, 2] = torch.tensor([0.4, 0.3, 0.3])  # from node 1 to node 2
    probabilities = Choices(edges, one_hot(SPACE, plain).widths, one_hot(SPACE, plain).depths)
    assert len(derive(SPACE, probabilities, 8, seed=0)) == 1


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="samples: got 0, wanted at least 1"):
        derive(SPACE, random_probabilities(), 0, seed=0)

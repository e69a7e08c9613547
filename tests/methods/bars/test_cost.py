"""Costs in closed form against those that `bitnas.count` reads from the networks, and against the known example."""

import dataclasses
import random

import pytest
import torch

import bitnas
from bitnas.methods.bars.cost import costs, network_cost
from bitnas.methods.bars.description import DESCRIPTIONS, Architecture, Description
from bitnas.models.bars import Bars
from bitnas.models.operations import OPERATIONS

ALL = tuple(OPERATIONS)
CHANGING = Description(  # widths that change across reductions, all operations, odd sizes, cells of no node
    name="changing", layout="NRNNRR", operations=ALL, width_groups="cell", channels=5, input_size=(2, 9, 7)
)
WORKED = Description(
    name="worked",
    layout="NNRNNRNN",
    operations=("none", "skip", "binary_conv_3x3"),
    channels=16,
    preprocess="float",
)


def counted(network, rule):
    with torch.device("meta"):
        return bitnas.count(Bars(network), rule=rule)


@pytest.mark.parametrize(
    "description",
    [
        CHANGING,
        dataclasses.replace(CHANGING, preprocess="float", stem_stride=2),
        dataclasses.replace(DESCRIPTIONS["small"], stem_stride=4, input_size=(3, 21, 30)),
    ],
    ids=["binary", "float", "stem of stride 4"],
)
def test_the_closed_form_is_what_counting_finds(description):
    rng = random.Random(0)
    for _ in range(4):
        architecture = description.random(rng)
        found = counted(description.network(architecture), "mac")
        wanted = {name: getattr(found, name) for name in ("flops", "bops", "ops", "memory_bits", "params")}
        assert costs(description, architecture) == wanted


def test_the_worked_example():
    """Zhao et al. 2020: the figures that the authors' counter gives for this network."""
    cost = network_cost(WORKED.network(WORKED.biggest))
    assert 2 * cost.macs == 19_764_224
    assert 2 * cost.bops == 358_612_992
    assert cost.params - cost.binary_weights - batch_norms(WORKED.network(WORKED.biggest)) == 52_154
    assert cost.binary_weights == 1_336_320


def batch_norms(network):
    """Their parameters, which the authors' figure of full-precision weights leaves out."""
    with torch.device("meta"):
        layers = [m for m in Bars(network).modules() if isinstance(m, torch.nn.BatchNorm2d)]
    return sum(2 * layer.num_features for layer in layers)


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(ValueError, match="architecture: got 1 cells"):
        costs(WORKED, Architecture((("skip",) * 10,), (1.0,), (2,)))

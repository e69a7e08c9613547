"""Outlines of calls against real freezing: the calls of random networks, exactly and in order."""

import dataclasses
import random
from collections import Counter

import pytest

from bitnas.methods.bars import outline
from bitnas.methods.bars.description import DESCRIPTIONS, Description
from bitnas.models.bars import Bars
from bitnas.models.operations import OPERATIONS
from bitnas.packed import freeze
from bitnas.packed.calls import call_signatures

CHANGING = Description(
    name="changing",
    layout="NRNNRR",
    operations=tuple(OPERATIONS),
    widths=(0.2, 0.5, 1.0),
    width_groups="cell",
    channels=10,
    input_size=(2, 13, 9),
)


def assert_outlined(network, batch=2):
    frozen = freeze(Bars(network).eval())
    wanted = call_signatures(frozen.steps, (batch, *network.input_size))
    assert list(outline.signatures(network, batch)) == wanted
    assert Counter(outline.calls(network, batch)) == Counter(wanted)


@pytest.mark.parametrize(
    "description",
    [
        CHANGING,
        dataclasses.replace(CHANGING, preprocess="float", stem_stride=2, channels=20),
        DESCRIPTIONS["small"],
        dataclasses.replace(DESCRIPTIONS["imagenet"], input_size=(3, 60, 48)),
    ],
    ids=["binary", "float", "small", "imagenet"],
)
def test_an_outline_is_what_freezing_gives(description):
    rng = random.Random(0)
    for _ in range(2):
        assert_outlined(description.network(description.random(rng)))

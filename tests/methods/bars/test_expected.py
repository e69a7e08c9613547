"""Expected operations: at one-hot probabilities the true ones, elsewhere the mean over all points of the space."""

import dataclasses
import itertools
import math
import random
import time

import pytest
import torch

import bitnas
from bitnas.methods.bars.choices import Choices, one_hot
from bitnas.methods.bars.description import DESCRIPTIONS, Architecture, Description
from bitnas.methods.bars.expected import LIVE_SETS, entries, live, live_sets
from bitnas.methods.bars.prices import FlopPrices
from bitnas.models.bars import EDGES, Bars, live_nodes
from bitnas.models.operations import OPERATIONS

WORKED = Description(name="worked", layout="NNRNNRNN", channels=16, preprocess="float")
# Widths that change across reductions, cells that may be left out, two reductions in a row, odd sizes, dead nodes.
CHANGING = Description(
    name="changing",
    layout="NRNNRRN",
    operations=tuple(OPERATIONS),
    widths=(0.3, 0.5, 1.0),
    width_groups="cell",
    channels=5,
    input_size=(2, 9, 7),
)
SHARED = dataclasses.replace(  # the same width before and behind a reduction; one topology for several cells
    CHANGING, name="shared", width_groups="stage", topology=(0, 1, 0, 2, 1, 1, 0), preprocess="float", stem_stride=4
)
FULL = dataclasses.replace(  # no edge can be left out, and no cell
    CHANGING, name="full", operations=("skip", "binary_conv_3x3"), least_depth=None
)
SPACES = [*DESCRIPTIONS.values(), CHANGING, SHARED, FULL]


def probabilities(description, seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def logits(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    found = Choices(
        logits(description.topologies, len(EDGES), len(description.operations)),
        logits(description.width_count, len(description.widths)),
        tuple(logits(len(choices)) for choices in description.depth_choices),
    )
    return found, found.map(lambda tensor: tensor.softmax(-1))


def rows(choices):
    """Every row of probabilities, as (which tensor, which row of it)."""
    return [(n, r) for n, t in enumerate(choices.tensors()) for r in range(t.reshape(-1, t.shape[-1]).shape[0])]


def with_row(choices, place, values):
    """The choices with other probabilities in one row."""
    tensors = [tensor.clone() for tensor in choices.tensors()]
    tensors[place[0]].view(-1, tensors[place[0]].shape[-1])[place[1]] = values
    return Choices(tensors[0], tensors[1], tuple(tensors[2:]))


def assert_expectation(expected, choices, places):
    """The mean is linear in the probabilities of each choice, whatever those of the others. With the right values where
    all are one-hot, there is one such function."""
    whole = float(expected(choices))
    for place in places:
        tensor = choices.tensors()[place[0]]
        row = tensor.reshape(-1, tensor.shape[-1])[place[1]]
        parts = [float(expected(with_row(choices, place, one))) for one in torch.eye(len(row), dtype=row.dtype)]
        assert whole == pytest.approx(sum(p * part for p, part in zip(row.tolist(), parts, strict=True)), rel=1e-11)


def test_the_worked_example_without_stem_and_classifier():
    """Zhao et al. 2020: their formula has neither in it."""
    prices = FlopPrices(WORKED)
    biggest = one_hot(WORKED, WORKED.biggest)
    assert prices.expected(biggest).item() == prices.of(WORKED.biggest) == 375_390_208
    assert prices.expected(biggest).dtype == torch.float64
    assert prices.unit == "FLOPs"


@pytest.mark.parametrize("description", SPACES, ids=lambda d: d.name)
def test_at_one_hot_it_is_the_true_cost(description):
    prices, rng = FlopPrices(description), random.Random(0)
    for _ in range(100):
        architecture = description.random(rng)
        assert prices.expected(one_hot(description, architecture)).item() == prices.of(architecture)


@pytest.mark.parametrize("description", [CHANGING, SHARED, DESCRIPTIONS["imagenet"]], ids=lambda d: d.name)
def test_the_true_cost_is_what_counting_finds(description):
    prices, rng = FlopPrices(description), random.Random(1)
    for _ in range(3):
        architecture = description.random(rng)
        with torch.device("meta"):
            count = bitnas.count(Bars(description.network(architecture)), rule="bars")
        ends = sum(layer.ops for layer in count.layers if layer.name.startswith(("stem.", "fc")))
        assert prices.of(architecture) == count.ops - ends


def test_it_is_the_mean_over_all_points():
    tiny = Description(
        name="tiny",
        layout="NRN",
        topology=(0, 0, 0),
        operations=("none", "binary_conv_1x1"),
        widths=(0.5, 1.0),
        channels=3,
        input_size=(1, 5, 4),
    )
    prices, (_, p) = FlopPrices(tiny), probabilities(tiny, 0)
    edges = [p.edges[0, e].tolist() for e in range(len(EDGES))]
    mean = 0.0
    # A cell's edges only matter by their pattern, so each pattern is priced once for each width and depth.
    layouts = [
        (widths, depths, math.prod(p.widths[g, tiny.widths.index(w)] for g, w in enumerate(widths)))
        for widths in itertools.product(tiny.widths, repeat=tiny.width_count)
        for depths in itertools.product(*tiny.depth_choices)
    ]
    for pattern in itertools.product(range(2), repeat=len(EDGES)):
        chance = math.prod(row[n] for row, n in zip(edges, pattern, strict=True))
        cell = tuple(tiny.operations[n] for n in pattern)
        for widths, depths, of_widths in layouts:
            of_depths = math.prod(p.depths[s][depth] for s, depth in enumerate(depths))
            mean += chance * float(of_widths * of_depths) * prices.of(Architecture((cell,), widths, depths))
    assert prices.expected(p).item() == pytest.approx(mean, rel=1e-12)


@pytest.mark.parametrize("description", [CHANGING, SHARED, FULL], ids=lambda d: d.name)
def test_it_is_linear_in_every_choice(description):
    prices, (_, p) = FlopPrices(description), probabilities(description, 1)
    assert_expectation(prices.expected, p, random.Random(0).sample(rows(p), 25) + rows(p)[-len(p.depths) :])


def test_a_gradient_reaches_every_choice():
    for description in SPACES:
        logits, p = probabilities(description, 2, requires_grad=True)
        FlopPrices(description).expected(p).backward()
        for tensor in logits.tensors():
            rows = tensor.grad.reshape(-1, tensor.shape[-1])
            assert rows.isfinite().all()
            choices = tensor.shape[-1] > 1
            assert (rows.abs().amax(-1) > 0).all() == choices


def test_a_gradient_is_finite_at_one_hot():
    p = one_hot(CHANGING, CHANGING.random(random.Random(0))).map(lambda tensor: tensor.double().requires_grad_())
    FlopPrices(CHANGING).expected(p).backward()
    assert all(tensor.grad.isfinite().all() for tensor in p.tensors())


def test_single_precision_is_enough_for_probabilities():
    _, p = probabilities(WORKED, 3)
    prices = FlopPrices(WORKED)
    assert prices.expected(p.map(torch.Tensor.float)).item() == pytest.approx(prices.expected(p).item(), rel=1e-6)


def test_live_sets_are_those_of_random_cells():
    operations = ("none", "skip")
    for seed in range(20):
        rng = random.Random(seed)
        cell = [rng.choice(operations) for _ in EDGES]
        edges = torch.eye(2, dtype=torch.float64)[[operations.index(name) for name in cell]][None]
        assert live(edges, operations)[0].tolist() == list(live_nodes(cell))
        found = live_sets(edges, operations)[0]
        assert found[LIVE_SETS.index(live_nodes(cell)[1:])] == found.sum() == 1
    edges = torch.rand(3, len(EDGES), 2, dtype=torch.float64)
    assert torch.allclose(live_sets(edges / edges.sum(-1, keepdim=True), operations).sum(-1), edges.new_ones(3))


def test_every_kept_cell_is_an_entry_once():
    for description in SPACES:
        stages = [entry.stage for entry in entries(description)]
        assert stages == sorted(stages)
        rng = random.Random(0)
        for _ in range(20):
            architecture = description.random(rng)
            chosen = [c.index(d) for c, d in zip(description.depth_choices, architecture.depths, strict=True)]
            found = [entry for entry in entries(description) if chosen[entry.stage] in entry.depths]
            assert [e.before for e in found] == [None, *(e.cell for e in found[:-1])]
            assert found[-1].cell is None
            assert len(found) - 1 == len(description.network(architecture).cells)


def test_it_is_fast_enough_for_every_step():
    prices = FlopPrices(DESCRIPTIONS["imagenet"])
    logits, _ = probabilities(DESCRIPTIONS["imagenet"], 4, requires_grad=True)
    seconds = []
    for _ in range(20):
        begin = time.perf_counter()
        prices.expected(logits.map(lambda tensor: tensor.softmax(-1))).backward()
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 0.02  # 1.5 ms where nobody else runs

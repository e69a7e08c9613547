"""Expected latency against the table's own sums, coverings of a space of cells, and a small table built and checked.

Prices are made up, another one for each call, so that one call taken for another shows.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import random

import pytest
import torch

from bitnas.cost.call_times import Reading
from bitnas.cost.device_table import DeviceTable, TableWriter, Visit, latency_key, now
from bitnas.methods.bars import outline
from bitnas.methods.bars.choices import Choices, one_hot
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.bars.latency import LatencySpace, _targets, build, built, check, holds, last_check, predict
from bitnas.methods.bars.prices import LatencyPrices
from bitnas.methods.bars.structure import roles, structures, ways
from bitnas.models.bars import EDGES
from tests.methods.bars.test_expected import assert_expectation, probabilities, rows

# Widths that change everywhere, cells that may be left out, two reductions in a row, dead cells.
CHANGING = Description(
    name="changing",
    layout="NNRRN",
    operations=("none", "skip", "binary_conv_1x1"),
    widths=(0.5, 1.0),
    width_groups="cell",
    channels=6,
    input_size=(2, 9, 7),
    num_classes=3,
)
SHARED = dataclasses.replace(  # one topology for cells that follow each other, and for both strides
    CHANGING, name="shared", topology=(0, 0, 0, 1, 1), width_groups="stage"
)
PLAIN = dataclasses.replace(CHANGING, name="plain", operations=("skip", "binary_conv_1x1"), least_depth=None)
# Narrow cells begin with a float convolution of few channels, which is done as a stem's: in fewer calls than wide ones.
FLOAT = dataclasses.replace(
    CHANGING,
    name="float",
    layout="NR",
    topology=None,
    operations=("none", "binary_conv_1x1"),
    preprocess="float",
    channels=8,
)
MANY = dataclasses.replace(
    CHANGING,
    name="many",
    operations=("none", "skip", "binary_conv_1x1", "binary_dil_conv_3x3"),
    preprocess="float",
    channels=8,
    stem_stride=2,
)
# For real timing: few networks hold all its calls.
TINY = Description(
    name="tiny",
    layout="N",
    operations=("none", "binary_conv_1x1"),
    widths=(0.5, 1.0),
    least_depth=None,
    channels=4,
    input_size=(1, 6, 6),
    num_classes=3,
)
QUICK = {"seconds": 0.01, "rounds": 1}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def made_up(signature):
    return int(hashlib.sha256(signature.encode()).hexdigest()[:6], 16) / 1e5


def write_table(path, description, *, batch=1, without=(), price=made_up):
    """A table of all calls of the space, and of passes of up to a hundred calls."""
    calls = {signature for target in _targets(description, batch) for signature in target.signatures}
    calls = sorted((calls | {outline.pass_call(n) for n in range(100)}) - set(without))
    readings = tuple(Reading(*[price(call)] * 6, 10, False) for call in calls)
    about = LatencySpace(description).to_dict()
    with TableWriter(path) as writer:
        visit = Visit(about, [0.0], 0, tuple(calls), readings, 1.0, 1.0, 1.0, now())
        writer.add_visit(latency_key(batch=batch), visit)
    return path


# ---- structures ---------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("operations", [CHANGING.operations, PLAIN.operations], ids=len)
def test_ways_of_parts_are_known_exactly(operations, stride):
    found = structures(roles(operations), stride)
    rng = random.Random(0)
    for _ in range(50):
        cell = [rng.choice(operations) for _ in EDGES]
        edges = torch.eye(len(operations), dtype=torch.float64)[[operations.index(name) for name in cell]][None]
        likely = found.probabilities(edges, operations)[0].tolist()
        # That of an edge is given that a convolution is on it.
        here = {
            way: p
            for way, p in zip(found.ways, likely, strict=True)
            if p and not (isinstance(way[0], int) and cell[way[0]] in ("none", "skip"))
        }
        assert here == dict.fromkeys(ways(cell, stride).items(), 1.0)
    for way, example in zip(found.ways, found.examples, strict=True):
        assert way[1] in ways([("none", "skip", "binary_conv_1x1")[role] for role in example], stride).values()


# ---- prices -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "description",
    [CHANGING, SHARED, PLAIN, FLOAT, pytest.param(MANY, marks=pytest.mark.slow)],
    ids=lambda d: d.name,
)
def test_expected_at_one_hot_is_the_sum_of_the_table(description, tmp_path):
    prices = LatencyPrices(description, write_table(tmp_path / "t.sqlite", description))
    table, key, rng = DeviceTable.open(tmp_path / "t.sqlite"), latency_key(), random.Random(0)
    assert prices.unit == "us"
    for _ in range(30):
        drawn = LatencySpace(description).random(rng)
        for architecture in (description.random(rng), description.architecture(drawn)):
            exact = prices.of(architecture)
            assert prices.expected(one_hot(description, architecture)).item() == pytest.approx(exact, rel=1e-10)
    frozen = outline.signatures(description.network(architecture))
    assert exact == pytest.approx(table.predict(frozen, key).latency_us, rel=1e-12)


@pytest.mark.parametrize("description", [CHANGING, SHARED], ids=lambda d: d.name)
def test_expected_is_the_mean_over_networks(description, tmp_path):
    """All of it but what a pass costs beside its calls, which here is the same for any number of them."""

    def price(signature):
        return 5.0 if json.loads(signature)["does"] == "pass" else made_up(signature)

    prices = LatencyPrices(description, write_table(tmp_path / "t.sqlite", description, price=price))
    _, p = probabilities(description, 0)
    assert_expectation(lambda choices: prices.expected(choices).item(), p, random.Random(0).sample(rows(p), 8))
    assert_expectation(lambda choices: prices.expected(choices).item(), p, rows(p)[-len(p.depths) :])


def test_beside_its_calls_a_pass_costs_what_passes_of_about_as_many_do(tmp_path):
    def price(signature):
        found = json.loads(signature)
        return 100.0 + slope * found["calls"] if found["does"] == "pass" else 1.0

    _, p = probabilities(CHANGING, 1)
    found = []
    for slope in (0.0, 0.5):
        path = write_table(tmp_path / f"{slope}.sqlite", CHANGING, price=price)
        found.append(LatencyPrices(CHANGING, path).expected(p).item() - 100)
    calls, with_slope = found  # the mean number of calls, since each costs 1 us, and that and half of it
    assert with_slope == pytest.approx(1.5 * calls, rel=1e-3)


@pytest.mark.parametrize("description", [CHANGING, SHARED, FLOAT], ids=lambda d: d.name)
def test_beside_its_calls_the_mean_is_off_by_little(description, tmp_path):
    """All networks of some choices that are open, the others made; a price that grows with the square."""

    def price(signature):
        found = json.loads(signature)
        return 3.0 + 0.01 * found["calls"] ** 2 if found["does"] == "pass" else made_up(signature)

    prices = LatencyPrices(description, write_table(tmp_path / "t.sqlite", description, price=price))
    _, p = probabilities(description, 0)
    rng, d = random.Random(0), description
    edges = p.edges.clone().view(-1, len(d.operations))
    for row in rng.sample(range(len(edges)), len(edges) - 3):
        edges[row] = torch.eye(len(d.operations))[rng.randrange(len(d.operations))]
    p = Choices(edges.view_as(p.edges), one_hot(d, d.biggest).widths.double(), p.depths)
    open_rows = [[n for n, chance in enumerate(row) if chance] for row in edges.tolist()]
    mean = 0.0
    for operations in itertools.product(*open_rows):
        names = [d.operations[n] for n in operations]
        cells = tuple(tuple(names[first : first + len(EDGES)]) for first in range(0, len(names), len(EDGES)))
        chance = math.prod(row[n] for row, n in zip(edges.tolist(), operations, strict=True))
        for depths in itertools.product(*d.depth_choices):
            share = math.prod(
                float(t[choices.index(depth)])
                for t, choices, depth in zip(p.depths, d.depth_choices, depths, strict=True)
            )
            mean += chance * share * prices.of(Architecture(cells, d.biggest.widths, depths))
    assert prices.expected(p).item() == pytest.approx(mean, rel=1e-4)
    assert prices.expected(p).item() != pytest.approx(mean, rel=1e-9)


def test_a_gradient_reaches_every_choice(tmp_path):
    prices = LatencyPrices(CHANGING, write_table(tmp_path / "t.sqlite", CHANGING))
    logits, p = probabilities(CHANGING, 2, requires_grad=True)
    prices.expected(p).backward()
    for tensor in logits.tensors():
        found = tensor.grad.reshape(-1, tensor.shape[-1])
        assert found.isfinite().all()
        assert (found.abs().amax(-1) > 0).all() == (tensor.shape[-1] > 1)


def test_what_the_table_lacks_is_said_with_the_command_that_adds_it(tmp_path):
    lacking = next(call for target in _targets(CHANGING, 1) for call in target.signatures if '"binary' not in call)
    path = write_table(tmp_path / "t.sqlite", CHANGING, without=[lacking])
    with pytest.raises(ValueError, match="lacks 1 calls .* run bitnas latency build --method bars --space changing"):
        LatencyPrices(CHANGING, path)
    with pytest.raises(ValueError, match="batch 2 and 1 thread"):
        LatencyPrices(CHANGING, path, batch=2)
    with pytest.raises(FileNotFoundError, match="bitnas latency build"):
        LatencyPrices(CHANGING, tmp_path / "none.sqlite")


# ---- coverings ----------------------------------------------------------------------------


@pytest.mark.parametrize("description", [SHARED, PLAIN], ids=lambda d: d.name)
def test_a_covering_holds_every_call_of_the_space(description):
    space, rng = LatencySpace(description), random.Random(1)
    (codes,) = space.covering(batch=1, rounds=1, seed=0)
    known = {call for code in codes for call in outline.calls(space.network(code))}
    for _ in range(100):
        calls = outline.calls(space.network(space.random(rng)))
        assert set(calls[:-1]) <= known
    assert len(codes) == len(set(codes)) < space.size


def test_a_covering_follows_from_the_seed_alone():
    space = LatencySpace(TINY)
    one, two = space.covering(batch=2, rounds=2, seed=0)
    assert one != two
    assert space.covering(batch=2, rounds=2, seed=0) == [one, two]
    assert space.covering(batch=2, rounds=1, seed=1) != [one]


def test_the_reference_is_of_the_space():
    for description in (CHANGING, SHARED, PLAIN, TINY):
        space = LatencySpace(description)
        architecture = description.architecture(space.reference)
        assert architecture.depths == tuple(max(choices) for choices in description.depth_choices)
        assert "binary_conv_1x1" in architecture.cells[0]


# ---- building and checking ------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("latency") / "t.sqlite"

    def stop(event):
        if event["done"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(LatencySpace(TINY), path, batch=2, on_progress=stop, **QUICK)
    report = build(LatencySpace(TINY), path, batch=2, **QUICK)
    visits = DeviceTable.open(path).visits(latency_key(batch=2), LatencySpace(TINY).to_dict())
    assert report.networks == 2 + report.visited == len(visits)
    return path


def test_a_table_predicts_every_network(table):
    rng, space = random.Random(2), LatencySpace(TINY)
    entries = DeviceTable.open(table).entries(latency_key(batch=2))
    prices = LatencyPrices(TINY, table, batch=2)
    for _ in range(20):
        code = space.random(rng)
        calls = outline.signatures(space.network(code), 2)
        if calls[-1] in entries:  # a number of calls that networks of the covering have
            found = predict(space.network(code), table=table, batch=2)
            assert found.latency_us == pytest.approx(sum(entries[call].us for call in calls))
            assert prices.of(TINY.architecture(code)) == pytest.approx(found.latency_us)
    assert built(TINY, table=table, batch=2)
    assert not built(TINY, table=table, batch=1)
    other = dataclasses.replace(TINY, channels=7)
    with pytest.raises(ValueError, match=r"lacks \d+ calls of the network 7 .* at batch 2 .*latency build"):
        predict(other.network(other.biggest), table=table, batch=2)


def test_a_check_is_of_networks_that_were_not_built_and_is_kept(table):
    found = check(LatencySpace(TINY), table, networks=3, batch=2, seconds=0.01)
    assert found.networks == 3
    assert all(m > 0 and 0.1 < p / m < 10 for p, m in found.pairs)
    assert last_check(TINY, table=table, batch=2) == found
    assert last_check(dataclasses.replace(TINY, num_classes=5), table=table, batch=2) is None


def test_a_table_is_for_spaces_that_its_own_holds():
    own = LatencySpace(dataclasses.replace(CHANGING, topology=(0, 1, 2, 3, 4))).to_dict()
    assert holds(own, CHANGING)
    assert holds(own, SHARED)  # coarser groups of cells and of widths
    assert not holds(LatencySpace(SHARED).to_dict(), CHANGING)
    assert holds(own, dataclasses.replace(CHANGING, widths=(1.0,), operations=("skip", "binary_conv_1x1")))
    assert holds(own, dataclasses.replace(CHANGING, least_depth=1))
    for other in ({"widths": (0.25, 1.0)}, {"channels": 8}, {"preprocess": "float"}, {"layout": "NNRRR"}):
        assert not holds(own, dataclasses.replace(CHANGING, **other))
    assert not holds({"method": "nasbnn"}, CHANGING)

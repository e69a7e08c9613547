"""The table of a space of subnets: outlines against real freezing, coverings, and a small table built and checked."""

import dataclasses
import random

import pytest
import torch

from bitnas.cost.device_table import DeviceTable, latency_key
from bitnas.methods.nasbnn import latency, outline
from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.latency import LatencySpace, build, built, check, holds, last_check, predict, signatures
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.methods.width import latency as width_latency
from bitnas.models.nasbnn import Block, NasBnn, SubnetConfig
from bitnas.packed import freeze
from bitnas.packed.calls import call_signatures

TINY = Description(
    name="tiny",
    input_size=(1, 9, 8),
    num_classes=4,
    stem=(8, 12),
    stages=(
        Stage(channels=(8, 16), depths=(1, 2)),
        Stage(channels=(16, 24), depths=(1, 2), kernels=(1, 3), groups=(1, 2), groups_1x1=2, stride=2),
    ),
)
# One block that is the first and the last, a stem of too many image channels for the stem's own kernel.
SINGLE = Description(
    name="single",
    input_size=(20, 7, 7),
    num_classes=3,
    stem=(6, 12),
    stem_stride=2,
    stages=(Stage(channels=(12, 30), depths=(1,), kernels=(3, 7), groups=(1, 3), stride=2),),
)
SPACE = LatencySpace(TINY)
QUICK = {"seconds": 0.01, "rounds": 1}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def subnets(space, count, *, ends=True):
    rng = random.Random(0)
    found = [space.smallest, space.biggest] if ends else []
    return [space.subnet(genome) for genome in (*found, *(space.random(rng) for _ in range(count)))]


# ---- outlines -----------------------------------------------------------------------------


def assert_outlined(subnet, batch=2):
    frozen = freeze(NasBnn(subnet).eval())
    assert outline.steps(subnet) == frozen.steps
    wanted = call_signatures(frozen.steps, (batch, *subnet.input_size))
    assert list(signatures(subnet, batch)) == wanted
    assert list(signatures(subnet, batch)) == wanted  # now from what is known of its places
    return frozen


@pytest.mark.parametrize("description", [TINY, SINGLE, DESCRIPTIONS["small"]], ids=lambda d: d.name)
def test_an_outline_is_what_freezing_gives(description):
    for subnet in subnets(SubnetSpace(description), 4):
        assert_outlined(subnet)


@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_an_outline_of_a_big_space_is_what_freezing_gives(name):
    space = SubnetSpace(DESCRIPTIONS[name])
    assert_outlined(space.subnet(space.smallest), 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar", "imagenet"])
def test_outlines_of_big_subnets_are_what_freezing_gives(name):
    for subnet in subnets(SubnetSpace(DESCRIPTIONS[name]), 3):
        assert_outlined(subnet)


def test_places_are_known_from_other_subnets(monkeypatch):
    space = SubnetSpace(TINY)
    paths = latency._Paths(SPACE)
    for subnet in paths.cover(lambda step: step.places, random.Random(0)):
        outline.learn(subnet, 3)

    def frozen(*_, **__):
        raise AssertionError("what is known is not frozen again")

    monkeypatch.setattr(outline, "freeze", frozen)
    monkeypatch.setattr(outline, "steps", frozen)
    found = {subnet: signatures(subnet, 3) for subnet in map(space.subnet, random.Random(1).sample(every(space), 12))}
    monkeypatch.undo()
    for subnet, calls in found.items():
        assert list(calls) == call_signatures(freeze(NasBnn(subnet).eval()).steps, (3, *subnet.input_size))


def test_how_weights_are_made_binary_changes_no_call():
    subnet = SubnetSpace(TINY).subnet(SubnetSpace(TINY).biggest)
    other = dataclasses.replace(subnet, weight_normalization=False)
    assert signatures(other) == signatures(subnet)
    assert call_signatures(freeze(NasBnn(other).eval()).steps, (1, 1, 9, 8)) == list(signatures(subnet))


def test_a_random_network_is_one_that_freezing_could_give():
    subnet = subnets(SubnetSpace(TINY), 1, ends=False)[0]
    frozen = freeze(NasBnn(subnet).eval())
    one, two, other = (outline.random_network(subnet, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert [(n, t.shape, t.dtype) for n, t in one.state_dict().items()] == [
        (n, t.shape, t.dtype) for n, t in frozen.state_dict().items()
    ]
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.stem.weight, other.stem.weight)
    for name, layer in one.named_children():
        if hasattr(layer, "check_tail"):
            layer.check_tail(name)
    x = torch.rand(2, 1, 9, 8)
    assert one(x).shape == frozen(x).shape
    assert one(x).isfinite().all()


# ---- coverings ----------------------------------------------------------------------------


def every(space):
    return list(space.enumerate())


@pytest.mark.parametrize("description", [TINY, SINGLE], ids=lambda d: d.name)
def test_a_covering_holds_every_call_of_the_space(description):
    space = LatencySpace(description)
    rounds = space.covering(batch=1, rounds=2, seed=3)
    wanted = {call for genome in every(space.subnets) for call in space.signatures(genome, 1)}
    for codes in rounds:
        assert {call for code in codes for call in space.signatures(code, 1)} == wanted
        assert len(codes) <= space.size / 2
        assert all(space.subnets.validate(code) == code for code in codes)
    assert rounds[0] != rounds[1]


def test_a_covering_follows_from_the_seed_alone(monkeypatch):
    before = SPACE.covering(batch=1, rounds=2, seed=0)
    monkeypatch.setattr(outline, "_KNOWN", {})
    assert SPACE.covering(batch=1, rounds=2, seed=0) == before
    assert SPACE.covering(batch=1, rounds=2, seed=1) != before


def test_a_covering_of_a_named_space_holds_random_subnets():
    space, rng = LatencySpace(DESCRIPTIONS["small"]), random.Random(5)
    (codes,) = space.covering(batch=32, rounds=1, seed=0)
    assert len(codes) <= 20
    known = {call for code in codes for call in space.signatures(code, 32)}
    for _ in range(300):
        assert set(space.signatures(space.random(rng), 32)) <= known


def test_the_reference_is_in_the_middle():
    subnet = SPACE.subnets.subnet(SPACE.reference)
    assert (subnet.stem, [b.channels for b in subnet.blocks]) == (8, [8, 16])
    for description in (*DESCRIPTIONS.values(), SINGLE):
        space = LatencySpace(description)
        assert space.subnets.validate(space.reference) == space.reference


# ---- building and checking ------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("latency") / "t.sqlite"

    def stop(event):
        if event["done"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(SPACE, path, batch=2, on_progress=stop, **QUICK)
    assert len(DeviceTable.open(path).visits(latency_key(batch=2))) == 3
    report = build(SPACE, path, batch=2, **QUICK)
    visits = DeviceTable.open(path).visits(latency_key(batch=2), SPACE.to_dict())
    planned = SPACE.covering(batch=2, rounds=1, seed=0)[0]
    assert [tuple(visit.network) for visit in visits[: len(planned)]] == planned
    assert report.networks == 3 + report.visited == len(visits)
    return path


def test_a_table_predicts_every_subnet(table):
    rng = random.Random(2)
    entries = DeviceTable.open(table).entries(latency_key(batch=2))
    for _ in range(20):
        subnet = SPACE.subnets.subnet(SPACE.random(rng))
        found = predict(subnet, table=table, batch=2)
        assert found.latency_us == pytest.approx(sum(entries[call].us for call in signatures(subnet, 2)))
        assert found.low_us <= found.latency_us <= found.high_us
    assert built(TINY, table=table, batch=2)
    assert not built(TINY, table=table, batch=1)
    other = SubnetConfig(8, (Block(8, 5), Block(24, 1, 1, 2, 2)), 4, (1, 9, 8), 1)
    with pytest.raises(ValueError, match=r"lacks \d+ calls of the subnet 8 8/5/1 24/1/1 at batch 2 .*latency build"):
        predict(other, table=table, batch=2)


def test_a_check_is_of_subnets_that_were_not_built_and_is_kept(table):
    found = check(SPACE, table, networks=3, batch=2, seconds=0.01)
    assert found.networks == 3
    assert all(m > 0 and 0.1 < p / m < 10 for p, m in found.pairs)
    assert last_check(TINY, table=table, batch=2) == found
    narrower = dataclasses.replace(
        TINY, name="narrower", stem=(8,), stages=(TINY.stages[0], dataclasses.replace(TINY.stages[1], kernels=(3,)))
    )
    assert last_check(narrower, table=table, batch=2) == found
    assert last_check(dataclasses.replace(TINY, num_classes=5), table=table, batch=2) is None
    opened = DeviceTable.open(table)
    known = {tuple(visit.network) for visit in opened.visits(latency_key(batch=2))}
    measured = {tuple(body["result"]["network"]) for kind, body in opened._rows if kind == "held_out"}
    assert len(measured) == 3
    assert not known & measured


def test_networks_with_other_calls_than_predicted_are_found(table):
    class Changed(LatencySpace):
        def frozen(self, code):
            return super().frozen(self.subnets.biggest)

    with pytest.raises(RuntimeError, match="the subnet .* was frozen to other calls than the table's prediction"):
        check(Changed(TINY), table, networks=2, batch=2, seconds=0.01)


def test_a_space_holds_another_that_has_its_choices():
    found = SPACE.to_dict()
    stage = TINY.stages[1]
    assert holds(found, dataclasses.replace(TINY, name="same"))
    assert not holds(found, dataclasses.replace(TINY, stem=(8, 16)))
    assert not holds(found, TINY.for_data((1, 8, 8), 4))
    assert not holds(found, dataclasses.replace(TINY, stages=TINY.stages[:1]))
    for change in ({"depths": (3,)}, {"groups": (1, 4)}, {"groups_1x1": 1}, {"stride": 1}, {"channels": (16, 32)}):
        assert not holds(
            found, dataclasses.replace(TINY, stages=(TINY.stages[0], dataclasses.replace(stage, **change)))
        )
    assert not holds(width_latency.LatencySpace().to_dict(), TINY)


@pytest.mark.slow
def test_a_table_predicts_subnets_it_has_not_seen(tmp_path):
    space = LatencySpace(DESCRIPTIONS["small"])
    build(space, tmp_path / "t.sqlite", batch=32, rounds=2, seconds=0.2)
    found = check(space, tmp_path / "t.sqlite", networks=20, batch=32, seconds=0.2)
    assert found.spearman > 0.6  # beside other tests; the goal is for a machine with nothing else to do
    assert found.scatter_error < 0.15

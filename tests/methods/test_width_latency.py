"""The table of a width space: outlines against real freezing, coverings, and a small table built and checked."""

import dataclasses
import itertools
import math
import random

import pytest
import torch
from torch import Tensor, nn

from bitnas.cost import table_space
from bitnas.cost.device_table import DeviceTable, TableLocked, TableWriter, latency_key
from bitnas.methods.width import latency, outline
from bitnas.methods.width.latency import LatencySpace, build, check, covering, signatures
from bitnas.models import create_model_from_config, make_config, registry
from bitnas.nn import BinaryConv2d
from bitnas.packed import freeze
from bitnas.packed.calls import call_signatures

SMALL = LatencySpace(choices=(0.5, 1.0), input_size=(1, 8, 8), base_width=0.05)
QUICK = {"seconds": 0.01, "rounds": 2}


@pytest.fixture
def toy():
    """Registers networks of three widths for a test, by their forward."""
    names = []

    def make(name, body):
        @registry.register(name, base_widths=(16, 16, 16), num_classes=4, input_size=(3, 8, 8))
        class Toy(nn.Module):
            def __init__(self, config, widths):
                super().__init__()
                self.config = config
                self.stem = nn.Conv2d(3, widths[0], 3, padding=1)
                self.one = BinaryConv2d(widths[0], widths[1], 3, padding=1)
                self.two = BinaryConv2d(widths[1], widths[2], 3, padding=1)
                self.flatten = nn.Flatten()
                self.same = widths[0] == widths[2]
                inputs = sum(widths[1:]) if name == "toy_cat" else widths[2]
                self.fc = nn.Linear(64 * inputs, config.num_classes)

            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.flatten(body(self, self.stem(x))))

        names.append(name)
        return name

    yield make
    for name in names:
        del registry._NETWORKS[name]


def shortcut(model, x):
    y = model.two(model.one(x))
    return y + x if model.same else y


def longer(model, x):
    y = model.two(model.one(x))
    return y * y if model.same else y


def concatenated(model, x):
    y = model.one(x)
    return torch.cat([y, model.two(y)], 1)


# ---- outlines -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "base_width"),
    [("vgg_small", (3, 32, 32), 0.1), ("vgg_small", (1, 8, 8), 0.25), ("resnet18", (3, 64, 64), 0.05)],
)
def test_an_outline_is_what_freezing_gives(name, size, base_width):
    rng = random.Random(0)
    length = registry.num_ratios(name)
    for ratios in (1.0, *([rng.choice([0.25, 0.5, 1, 2, 3, 4]) for _ in range(length)] for _ in range(3))):
        config = make_config(name, ratios=ratios, input_size=size, base_width=base_width)
        frozen = freeze(create_model_from_config(config).eval())
        assert outline.steps(config) == frozen.steps
        assert signatures(config, 2) == call_signatures(frozen.steps, (2, *size))
        made = outline.random_network(config, torch.Generator().manual_seed(0))
        assert made.state_dict().keys() == frozen.state_dict().keys()
        for a, b in zip(made.state_dict().values(), frozen.state_dict().values(), strict=True):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
        x = torch.rand(2, *size)
        assert made(x).shape == frozen(x).shape
        assert made(x).isfinite().all()


def test_random_bits_have_no_tails_and_depend_on_the_generator_alone():
    config = SMALL.network((0.5,) * 6)
    one, two, other = (outline.random_network(config, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert not torch.equal(one.conv4.weight, other.conv4.weight)
    for name, layer in one.named_children():
        if hasattr(layer, "check_tail"):
            layer.check_tail(name)


def test_structures_that_follow_the_widths_are_frozen_themselves(toy):
    for name, body in (("toy_shortcut", shortcut), ("toy_cat", concatenated), ("toy_longer", longer)):
        toy(name, body)
        for ratios in ((1, 1, 1), (1, 2, 1), (1, 2, 3)):
            config = make_config(name, ratios=ratios)
            assert outline.steps(config) == freeze(create_model_from_config(config).eval()).steps
    assert outline.steps(make_config("toy_shortcut", ratios=(1, 1, 1))) != outline.steps(
        make_config("toy_shortcut", ratios=(1, 1, 2))
    )
    space = LatencySpace(model="toy_shortcut", choices=(1, 2), num_classes=4, input_size=(3, 8, 8))
    known = {s for code in covering(space)[0] for s in signatures(space.network(code))}
    assert known == {s for code in space.codes.enumerate() for s in signatures(space.network(code))}
    with pytest.raises(ValueError, match="the same calls for all codes"):
        covering(dataclasses.replace(space, model="toy_longer"))


# ---- coverings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "choices", "most"), [("vgg_small", (0.5, 1.0, 2.0), 11), ("resnet18", (0.5, 1.0), 8)]
)
def test_a_covering_holds_every_call_of_the_space(model, choices, most):
    space = LatencySpace(
        model=model, choices=choices, input_size=(3, 32, 32), base_width=0.1 if model == "vgg_small" else 0.25
    )
    rounds = covering(space, rounds=2, seed=3)
    known = [{s for code in codes for s in signatures(space.network(code))} for codes in rounds]
    assert known[0] == known[1]
    assert all(len(choices) ** 2 <= len(codes) <= most for codes in rounds)  # what every pair of choices takes
    assert rounds[0] != rounds[1]
    assert rounds == covering(space, rounds=2, seed=3)
    rng = random.Random(1)
    for _ in range(60):
        assert set(signatures(space.network(space.codes.random(rng)))) <= known[0]


def test_spaces_are_checked():
    assert LatencySpace(choices=(2.0, 0.5, 1.0)).choices == (0.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="lenet"):
        LatencySpace(model="lenet")
    with pytest.raises(ValueError, match="at least 8x8"):
        create_model_from_config(LatencySpace(input_size=(3, 4, 4)).network((1.0,) * 6))


# ---- building and checking ------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A small table, built with a stop in the middle."""
    path = tmp_path_factory.mktemp("latency") / "t.sqlite"
    stopped = []

    def stop(event):
        stopped.append(event)
        if event["done"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(SMALL, path, batch=2, on_progress=stop, **QUICK)
    assert [event["done"] for event in stopped] == [0, 1, 2, 3]
    return path


def test_a_build_goes_on_where_it_was_stopped(table):
    key = latency_key(batch=2)
    before = DeviceTable.open(table).visits(key)
    assert len(before) == 3
    report = build(SMALL, table, batch=2, **QUICK)
    visits = DeviceTable.open(table).visits(key, SMALL.to_dict())
    assert visits[:3] == before
    planned = [(i, code) for i, codes in enumerate(covering(SMALL, batch=2, rounds=2)) for code in codes]
    assert [(v.round, tuple(v.network)) for v in visits[: len(planned)]] == planned
    assert report.networks == len(visits) == 3 + report.visited
    entries = DeviceTable.open(table).entries(key)
    assert report.entries == len(entries)
    assert min(len(entry.readings) for entry in entries.values()) >= 1
    for one in visits[: len(planned)]:
        assert len(one.readings) == len(one.signatures) == 13
        assert all(r.us > 0 and r.runs >= 5 for r in one.readings[:-1])

    again = build(SMALL, table, batch=2, **QUICK)
    assert again.entries == report.entries
    assert again.visited <= len(planned) // 2  # at most the noisy ones once more


def test_a_check_is_of_other_networks_and_is_kept(table):
    build(SMALL, table, batch=2, **QUICK)
    key = latency_key(batch=2)
    events = []

    def stop(event):
        events.append(event)
        if event["done"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(SMALL, table, networks=4, batch=2, seconds=0.01, on_progress=stop)
    found = check(SMALL, table, networks=4, batch=2, seconds=0.01, on_progress=events.append)
    assert events[3] == {"event": "measuring whole networks", "done": 2, "total": 4}
    assert found.networks == 4
    assert not found.good
    assert -1 <= found.spearman <= 1
    assert all(m > 0 and 0.1 < p / m < 10 for p, m in found.pairs)
    opened = DeviceTable.open(table)
    assert opened.last_check(key, SMALL.to_dict()) == found
    built = {tuple(visit.network) for visit in opened.visits(key)}
    measured = {tuple(body["result"]["network"]) for kind, body in opened._rows if kind == "held_out"}
    assert len(measured) == 4
    assert not built & measured

    network = SMALL.network(next(iter(measured)))
    prediction = latency.predict(network, table=table, batch=2)
    assert prediction.low_us < prediction.latency_us < prediction.high_us
    assert any(math.isclose(prediction.latency_us, p) for p, _ in found.pairs)
    assert latency.last_check(network, (1.0,), table=table, batch=2) == found
    assert latency.last_check(dataclasses.replace(network, base_width=1.0), (1.0,), table=table, batch=2) is None

    # One that has ended is not repeated from its readings: the machine may have changed.
    events.clear()
    again = check(SMALL, table, networks=4, batch=2, seconds=0.01, on_progress=events.append)
    assert events[0]["done"] == 0
    assert [m for _, m in again.pairs] != [m for _, m in found.pairs]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf])
def test_seconds_must_be_positive(table, seconds):
    for call in (build, check):
        with pytest.raises(ValueError, match="seconds: got .*, wanted a positive finite number"):
            call(SMALL, table, seconds=seconds)


def test_what_a_table_lacks_is_said_with_the_command_that_adds_it(table, tmp_path):
    with pytest.raises(ValueError, match=r"lacks \d+ calls of vgg_small .* run bitnas latency build"):
        latency.predict(SMALL.network((4.0,) * 6), table=table, batch=2)
    with pytest.raises(ValueError, match="batch 3"):
        latency.predict(SMALL.network((0.5,) * 6), table=table, batch=3)
    with pytest.raises(FileNotFoundError, match="bitnas latency build"):
        latency.predict(SMALL.network((0.5,) * 6), table=tmp_path / "none")
    with pytest.raises(ValueError, match="bitnas latency build"):
        check(SMALL, table, networks=2, batch=3)
    with pytest.raises(ValueError, match="networks: got 100"):
        check(SMALL, table, networks=100, batch=2)


def test_one_build_at_a_time(tmp_path):
    with TableWriter(tmp_path / "t.sqlite"), pytest.raises(TableLocked, match="another process"):
        build(SMALL, tmp_path / "t.sqlite", **QUICK)


def test_a_table_that_grows_is_read_again(tmp_path):
    path, code = tmp_path / "t.sqlite", (1.0,) * 6
    timer = table_space.Timer(SMALL, 1, 0.01)
    with TableWriter(path) as writer:
        writer.add_visit(latency_key(), timer.visit((0.5,) * 6, 0))
        with pytest.raises(ValueError, match="lacks .* calls"):
            latency.predict(SMALL.network(code), table=path)
        writer.add_visit(latency_key(), timer.visit(code, 0))
        assert latency.predict(SMALL.network(code), table=path).latency_us > 0


def test_readings_that_differ():
    assert table_space._differ([100.0, 110.0]) == pytest.approx(10 / 105)
    assert table_space._differ([150.0, 100.0, 101.0]) == pytest.approx(1 / 101)
    assert table_space._differ([90.0, 100.0, 102.0, 150.0]) == pytest.approx(2 / 101)


@pytest.mark.slow
def test_a_table_predicts_networks_it_has_not_seen(tmp_path):
    space = LatencySpace(choices=(0.5, 1.0, 2.0), input_size=(1, 8, 8), base_width=0.25)
    build(space, tmp_path / "t.sqlite", batch=32, rounds=2, seconds=0.3)
    found = check(space, tmp_path / "t.sqlite", networks=20, batch=32, seconds=0.3)
    assert found.spearman > 0.6  # beside other tests; the goal is for a machine with nothing else to do
    assert found.scatter_error < 0.15
    assert len(list(itertools.chain(*found.pairs))) == 40

"""Weights and architecture trained in turns: every guard does what it says, nothing is lost, and a search that
is killed ends as one that was not, bit for bit."""

import dataclasses
import functools
import json
import multiprocessing
import os
import pickle
import random
import signal
import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from bitnas.data import Dataset
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.methods.bars import training
from bitnas.methods.bars.choices import Choices, one_hot
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.description import Description
from bitnas.methods.bars.hessian import top_eigenvalue
from bitnas.methods.bars.prices import FlopPrices
from bitnas.methods.bars.steps import NotFinite, Steps, entropies, far_beyond_chance
from bitnas.methods.bars.supernet import Supernet
from bitnas.methods.bars.training import (
    SearchDiverged,
    least_cost,
    load_course,
    load_supernet,
    save_course,
    save_supernet,
    share_of_skips,
    train,
)

TINY = Description(name="tiny", layout="NR", channels=2, widths=(0.5, 1.0), input_size=(1, 6, 6), num_classes=3)
PLAIN = Controller(epochs=3, batch_size=20, lr=0.05, architecture_lr=0.02, micro="softmax")
# All that has a state or chance of its own.
RICH = Controller(
    epochs=4,
    batch_size=20,
    lr={"kind": "cosine", "start": 0.05, "end": 0.001},
    architecture_lr=0.1,
    micro="gumbel",
    macro="gumbel",
    macro_hard=True,
    shift=1,
    clip_norm=5.0,
    temperature_edges={"kind": "linear", "start": 3.0, "end": 1.0},
    warmup_epochs=1,
    every={"kind": "steps", "start": 2, "steps": [[3, 1]]},
    prune={"kind": "steps", "start": 0.0, "steps": [[2, 0.3]]},
    hessian_every=3,
    cost="flops",
    flops_budget=3000,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(count=60, seed=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, 2 * labels] += 0.7
    return Dataset(images=images, labels=labels, num_classes=3, name="rows")


DATA, VAL = rows(), rows(seed=6)
PRICES = {"flops": FlopPrices(TINY)}


def run(controller=PLAIN, *, seed=0, data=DATA, val=VAL, space=TINY, prices=PRICES, **options):
    return train(space, controller, data, val, seed=seed, prices=prices, **options)


@functools.cache
def whole(controller=PLAIN):
    """The tensors and the course of a search that nothing stops."""
    net, course = run(controller)
    return tensors(net), without_seconds(course)


def steps_of(controller=PLAIN, *, logits=None, space=TINY, prices=PRICES):
    torch.manual_seed(0)
    net = Supernet(space).train()
    if logits is not None:
        with torch.no_grad():
            for parameter in net.architecture_parameters().values():
                parameter.copy_(logits(parameter))
    return Steps(net, controller, prices)


def noise(scale=1.0, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return lambda parameter: scale * torch.randn(parameter.shape, generator=generator)


def tensors(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def without_seconds(course):
    return [{**record, "seconds": 0} for record in course]


class Stop(Exception):
    pass


# ---- What is trained on what -----------------------------------------------------------------------------------------


def test_weights_and_architecture_see_their_own_images(monkeypatch):
    seen = {"train_weights": [], "train_architecture": []}
    for name in seen:
        original = getattr(Steps, name)

        def spy(self, images, labels, *rest, original=original, name=name):
            seen[name].append(images)
            return original(self, images, labels, *rest)

        monkeypatch.setattr(Steps, name, spy)
    run(dataclasses.replace(PLAIN, epochs=2))
    for name, source in (("train_weights", DATA), ("train_architecture", VAL)):
        assert len(seen[name]) == 6
        for epoch in (0, 3):  # each image once an epoch, in another order in each
            images = torch.cat(seen[name][epoch : epoch + 3])
            assert torch.equal(images.flatten(1).sort(0).values, source.images.flatten(1).sort(0).values)
    first, second = (torch.cat(seen["train_weights"][epoch : epoch + 3]) for epoch in (0, 3))
    assert not torch.equal(first, second)


def test_a_step_changes_its_own_half_alone():
    steps = steps_of(logits=noise())
    before = tensors(steps.supernet)
    searched = steps.supernet.architecture_parameters()
    steps.train_architecture(VAL.images[:20], VAL.labels[:20], 0, 1)
    after = tensors(steps.supernet)
    for name in before:
        if name in searched:
            assert not torch.equal(before[name], after[name]), name
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(before[name], after[name]), name  # running statistics too
    steps.train_weights(DATA.images[:20], DATA.labels[:20], 0, 1)
    weights = tensors(steps.supernet)
    assert all(torch.equal(after[name], weights[name]) for name in searched)
    assert not torch.equal(after["fc.weight"], weights["fc.weight"])
    assert not torch.equal(after["stem.bn.running_mean"], weights["stem.bn.running_mean"])


def test_the_architectures_loss_is_that_of_the_paper():
    """Its gradient: cross entropy times the factor, plus the entropies."""
    controller = dataclasses.replace(
        PLAIN, cost="flops", flops_budget=1500, above=2.0, entropy_edges=0.3, entropy_layout=0.2
    )
    steps = steps_of(controller, logits=noise())
    net, x, y = steps.supernet, VAL.images[:20], VAL.labels[:20]
    p = net.probabilities()
    ratio = PRICES["flops"].expected(p) / 1500
    assert ratio > 1
    entropy = [-(t * t.log()).sum() for t in (p.edges, p.widths, *p.depths)]
    loss = F.cross_entropy(net(x, p), y) * ratio**2 + 0.3 * entropy[0] + 0.2 * sum(entropy[1:])
    parameters = list(net.architecture_parameters().values())
    wanted = torch.autograd.grad(loss, parameters)
    found = {}
    steps.architecture.register_step_pre_hook(
        lambda *_: found.update({n: p.grad.clone() for n, p in enumerate(parameters)})
    )
    steps.train_architecture(x, y, 0, 1)
    for n, gradient in enumerate(wanted):
        assert torch.allclose(found[n], gradient, rtol=1e-4, atol=1e-7)
        assert len(gradient) == 1 or gradient.abs().sum() > 0  # where there is a choice


def test_a_search_learns_and_its_course_says_so():
    before = torch.random.get_rng_state()
    records, counts = [], []
    net, course = run(
        dataclasses.replace(PLAIN, epochs=6), on_epoch=records.append, on_step=lambda *step: counts.append(step)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert not net.training
    assert course[-1]["loss"] < course[0]["loss"]
    assert course[-1]["accuracy"] > 0.6
    assert course[-1]["arch_accuracy"] > 0.6
    assert records == course
    assert counts[:4] == [(0, 1, 3), (0, 2, 3), (0, 3, 3), (1, 1, 3)]
    last, p = course[-1], net.probabilities()
    assert last["expected"]["flops"] == pytest.approx(PRICES["flops"].expected(p).item())
    assert last["entropies"]["edges"] == pytest.approx(entropies(p.edges).mean().item())
    assert last["skips"] == share_of_skips(TINY, p)
    assert torch.allclose(torch.tensor(last["probabilities"]["edges"]), p.edges, atol=1e-6)
    assert [len(row) for row in last["probabilities"]["depths"]] == [2, 1]
    assert all(len(f"{value}") <= 8 for row in last["probabilities"]["widths"] for value in row)
    assert (last["alive"], last["stopped"], last["hessian"], last["arch_steps"]) == ([30, 30], None, None, 3)


def test_a_seed_decides_everything():
    net, course = run(RICH)
    assert_equal(tensors(net), whole(RICH)[0])
    assert without_seconds(course) == whole(RICH)[1]
    other = run(dataclasses.replace(RICH, epochs=2), seed=1)[0]
    assert not torch.equal(net.edges, other.edges)


# ---- The guards ------------------------------------------------------------------------------------------------------


def test_warm_up_leaves_the_logits():
    logits = []

    def look(record):
        assert (record["arch_loss"] is None) == (record["epoch"] < 2)
        edges = torch.tensor(record["probabilities"]["edges"])
        logits.append(bool((edges == edges[0, 0, 0]).all()))

    course = run(dataclasses.replace(PLAIN, warmup_epochs=2), on_epoch=look)[1]
    assert logits == [True, True, False]
    assert [record["arch_steps"] for record in course] == [0, 0, 3]


def test_uniform_epochs_have_uniform_weights():
    controller = dataclasses.replace(PLAIN, micro="gumbel", macro="gumbel", micro_hard=True, uniform_epochs=2)
    steps = steps_of(controller, logits=noise(2))
    steps.supernet.alive[0, 0, 0] = False
    for epoch in (0, 1):
        found = steps.choices(epoch, 7)
        assert found.edges[0, 0].tolist() == [0, 0.5, 0.5]
        assert torch.equal(found.edges[1], torch.full((10, 3), 1 / 3))
        assert torch.equal(found.widths, torch.full_like(found.widths, 0.5))
        assert all(torch.equal(row, torch.full_like(row, 1 / len(row))) for row in found.depths)
    after = steps.choices(2, 7).edges
    assert set(after.flatten().tolist()) == {0.0, 1.0}
    course = run(dataclasses.replace(PLAIN, uniform_epochs=2))[1]
    assert [record["arch_steps"] for record in course] == [0, 0, 3]


def test_the_architecture_steps_less_often():
    controller = dataclasses.replace(
        PLAIN, epochs=4, batch_size=10, every={"kind": "steps", "start": 4, "steps": [[2, 2], [3, 1]]}
    )
    assert [record["arch_steps"] for record in run(controller)[1]] == [2, 2, 3, 6]


def test_temperatures_sharpen():
    settings = {"temperature_edges": {"kind": "linear", "start": 4.0, "end": 0.25}, "temperature_layout": 2.0}
    steps = steps_of(dataclasses.replace(PLAIN, **settings), logits=noise())
    net = steps.supernet
    for epoch, temperature in enumerate((4.0, 2.125, 0.25)):
        found = steps.choices(epoch, 0)
        assert torch.allclose(found.edges, (net.edges / temperature).softmax(-1))
        assert torch.allclose(found.widths, (net.widths / 2).softmax(-1))
    assert [r["temperatures"]["edges"] for r in run(steps.controller)[1]] == [4.0, 2.125, 0.25]


def test_chance_is_the_seeds():
    steps = steps_of(dataclasses.replace(PLAIN, micro="gumbel", macro="gumbel"))
    first, again, other = (steps.choices(0, seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.tensors(), again.tensors(), strict=True))
    assert not torch.equal(first.edges, other.edges)
    assert not torch.equal(first.widths, other.widths)


def test_full_start_begins_with_weight_one_and_ends_one_hot():
    controller = dataclasses.replace(PLAIN, full_start=True)
    steps = steps_of(controller)
    assert torch.equal(steps.choices(0, 0).edges, torch.ones(2, 10, 3))
    steps = steps_of(controller, logits=noise(3))
    found = steps.choices(0, 0).edges
    assert torch.equal(found.amax(-1), torch.ones(2, 10))
    assert torch.equal(found.argmax(-1), steps.supernet.edges.argmax(-1))
    steps.supernet.alive[:] = F.one_hot(torch.ones(2, 10, dtype=torch.long), 3).bool()
    assert torch.equal(steps.choices(0, 0).edges, steps.supernet.alive.float())
    uniform = steps_of(dataclasses.replace(controller, uniform_epochs=1), logits=noise())
    assert torch.equal(uniform.choices(0, 0).edges, torch.ones(2, 10, 3))
    bernoulli = steps_of(dataclasses.replace(controller, micro="bernoulli", micro_hard=True))
    assert set(bernoulli.choices(0, 4).edges.flatten().tolist()) == {0.0, 1.0}  # also where none was drawn


def test_pruning():
    """Below the threshold and not the likeliest; for good; with probability exactly 0."""
    steps = steps_of(dataclasses.replace(PLAIN, prune={"kind": "steps", "start": 0.0, "steps": [[1, 0.3], [2, 0.99]]}))
    net = steps.supernet
    with torch.no_grad():
        net.edges.copy_(noise()(net.edges))
        net.edges[0, 0] = torch.tensor([0.1, 0.5, 0.3]).log()
    before = net.probabilities().edges
    steps.prune(0)
    assert bool(net.alive.all())
    steps.prune(1)
    likeliest = F.one_hot(before.argmax(-1), 3).bool()
    assert torch.equal(net.alive, (before >= 0.3) | likeliest)
    assert net.alive[0, 0].tolist() == [False, True, True]
    assert net.probabilities().edges[0, 0].tolist() == pytest.approx([0, 0.625, 0.375])
    with torch.no_grad():
        net.edges[0, 0, 0] = 9.0  # a logit that grows again does not bring it back
    steps.prune(1)
    assert net.alive[0, 0].tolist() == [False, True, True]
    steps.prune(2)
    assert torch.equal(net.alive.sum(-1), torch.ones(2, 10, dtype=torch.long))
    one = F.one_hot(before.argmax(-1), 3)
    assert torch.equal(net.probabilities().edges, one.float())
    assert torch.equal(steps.choices(2, 0).edges, one.float())
    steps.train_architecture(VAL.images[:20], VAL.labels[:20], 2, 0)
    assert torch.equal(net.probabilities().edges, one.float())


def test_pruning_over_a_search_only_takes_away():
    controller = dataclasses.replace(
        PLAIN, epochs=5, architecture_lr=0.3, full_start=True, warmup_epochs=1,
        prune={"kind": "linear", "start": 0.3, "end": 0.6, "from": 1},
    )  # fmt: skip
    net, course = run(controller)
    alive = [sum(record["alive"]) for record in course]
    assert alive[0] == 60  # nothing is pruned before the architecture trains
    assert alive == sorted(alive, reverse=True)
    assert 20 <= alive[-1] < 60
    assert bool(net.alive.any(-1).all())
    assert bool(((net.probabilities().edges == 0) == ~net.alive).all())


@pytest.mark.parametrize(("which", "part"), [("entropy_edges", "edges"), ("entropy_layout", "widths")])
def test_entropy_sharpens(which, part):
    none = {"entropy_edges": 0.0, "entropy_layout": 0.0}
    found = {}
    for coefficient in (0.0, 5.0):
        controller = dataclasses.replace(PLAIN, epochs=6, **{**none, which: coefficient})
        steps = steps_of(controller, logits=noise(0.3))
        for seed in range(6):
            steps.train_architecture(VAL.images[:20], VAL.labels[:20], 0, seed)
        found[coefficient] = entropies(getattr(steps.supernet.probabilities(), part)).mean().item()
    assert found[5.0] < found[0.0] - 0.01


def test_the_entropy_of_a_pruned_choice_is_zero_with_a_finite_gradient():
    logits = torch.tensor([[0.3, -0.2, 0.1]], requires_grad=True)
    p = logits.masked_fill(torch.tensor([[False, True, False]]), -torch.inf).softmax(-1)
    (gradient,) = torch.autograd.grad(entropies(p).sum(), logits)
    assert bool(torch.isfinite(gradient).all())
    q = logits.detach()[:, [0, 2]].softmax(-1)
    assert torch.allclose(entropies(p), -(q * q.log()).sum(-1))


def test_the_cost_in_the_loss_makes_networks_cheaper():
    tight = dataclasses.replace(PLAIN, epochs=4, architecture_lr=0.15, cost="flops", flops_budget=1, above=3.0)
    cheap, free = run(tight)[1][-1], run(dataclasses.replace(tight, cost="none"))[1][-1]
    assert cheap["expected"]["flops"] < 0.9 * free["expected"]["flops"]
    assert cheap["factor"] == pytest.approx(cheap["expected"]["flops"] ** 3, rel=1e-6)
    assert free["factor"] == 1


def test_both_costs_multiply():
    class Microseconds(FlopPrices):
        unit = "us"

    prices = {"flops": FlopPrices(TINY), "latency": Microseconds(TINY)}
    controller = dataclasses.replace(PLAIN, cost="both", flops_budget=1000, latency_budget=2000.0)
    steps = steps_of(controller, prices=prices)
    p = steps.supernet.probabilities()
    cost = prices["flops"].expected(p).item()
    assert cost > 2000
    assert steps.factor(p).item() == pytest.approx(cost / 1000 * cost / 2000)


# ---- The Hessian -----------------------------------------------------------------------------------------------------


def test_the_top_of_a_dense_matrix_is_found():
    generator = torch.Generator().manual_seed(0)
    for n in (2, 7, 30):
        m = torch.randn(n, n, generator=generator, dtype=torch.float64)
        h = m + m.T - 2 * n**0.5 * torch.eye(n)  # the largest in magnitude is negative
        found = top_eigenvalue(
            lambda at, h=h: h @ at + 3, torch.ones(n, dtype=torch.float64), generator=generator, iterations=500,
            tolerance=1e-9,
        )  # fmt: skip
        assert found == pytest.approx(float(torch.linalg.eigvalsh(h)[-1]), rel=1e-5)
    assert top_eigenvalue(torch.zeros_like, torch.ones(3), generator=generator) == 0.0
    assert torch.tensor(top_eigenvalue(lambda at: at * torch.nan, torch.ones(3), generator=generator)).isnan()


def test_the_supernets_curvature_is_that_of_its_dense_hessian(monkeypatch):
    """Column by column, by differences of gradients; of a space without signs, whose loss is smooth enough for them."""
    smooth = dataclasses.replace(TINY, operations=("none", "skip"), preprocess="float")
    steps = steps_of(logits=noise(), space=smooth, prices={})
    net, x, y = steps.supernet.double(), VAL.images[:20].double(), VAL.labels[:20]
    parameters = list(net.architecture_parameters().values())
    h = 1e-5
    monkeypatch.setattr(
        "bitnas.methods.bars.steps.top_eigenvalue",
        lambda gradient, at, **options: top_eigenvalue(gradient, at, iterations=300, tolerance=0.0, step=h, **options),
    )

    def gradient():
        loss = F.cross_entropy(net(x, net.probabilities()), y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])

    columns = []
    for parameter in parameters:
        flat = parameter.detach().view(-1)
        for n in range(len(flat)):
            value = float(flat[n])
            both = []
            for sign in (1, -1):
                flat[n] = value + sign * h
                both.append(gradient())
            flat[n] = value
            columns.append((both[0] - both[1]) / (2 * h))
    dense = torch.stack(columns)
    assert torch.allclose(dense, dense.T, atol=1e-6)
    values = torch.linalg.eigvalsh(dense)
    assert values[-1] > 1e-3
    before = tensors(net)
    found = steps.curvature(x, y, 0)
    assert found == pytest.approx(float(values[-1]), rel=1e-3)
    after = tensors(net)
    counted = [name for name in before if not torch.equal(before[name], after[name])]
    assert all(name.endswith("num_batches_tracked") for name in counted)


def test_the_hessian_is_measured_when_due_and_ends_the_search(monkeypatch):
    course = run(dataclasses.replace(PLAIN, epochs=4, hessian_every=2))[1]
    assert [record["hessian"] is None for record in course] == [True, False, True, False]
    course = run(dataclasses.replace(PLAIN, epochs=4, hessian_every=1, warmup_epochs=2))[1]
    assert [record["hessian"] is None for record in course] == [True, True, False, False]  # it has not moved before
    grows = iter([1.0, 1.2, 3.0])
    monkeypatch.setattr(Steps, "curvature", lambda *_: next(grows))
    controller = dataclasses.replace(PLAIN, epochs=9, hessian_every=1, hessian_stop=2.0)
    course = run(controller)[1]
    assert [record["stopped"] for record in course] == [None, None, "hessian"]


def test_a_search_that_was_ended_stays_ended(tmp_path, monkeypatch):
    grows = iter([1.0, 3.0])
    monkeypatch.setattr(Steps, "curvature", lambda *_: next(grows))
    controller = dataclasses.replace(PLAIN, epochs=5, hessian_every=1, hessian_stop=2.0)
    first = run(controller, checkpoint=tmp_path / "c")
    again = run(controller, checkpoint=tmp_path / "c")
    assert first[1] == again[1]
    assert_equal(tensors(first[0]), tensors(again[0]))


# ---- Stops, kills and errors -----------------------------------------------------------------------------------------


def test_stopped_at_every_step_ends_the_same(tmp_path):
    straight, expected = run(RICH, checkpoint=tmp_path / "whole")
    assert expected[3]["hessian"] is None
    assert expected[2]["hessian"] is not None
    assert expected[2]["alive"] != [30, 30]
    path = tmp_path / "stopped"
    for _ in range(12):

        def on_step(*_: int) -> None:
            raise Stop

        with pytest.raises(Stop):
            run(RICH, checkpoint=path, checkpoint_every=0, on_step=on_step)
    resumed, course = run(RICH, checkpoint=path, on_step=None)
    assert_equal(tensors(straight), tensors(resumed))
    assert without_seconds(course) == without_seconds(expected)
    states = [load_tensors(file, expected_format="bitnas-training-2") for file in (tmp_path / "whole", path)]
    assert_equal(states[0][0], states[1][0])  # both optimizers
    assert sum(name.startswith("architecture.optimizer.") for name in states[0][0]) == 12
    assert any(name.startswith("optimizer.") and name.endswith("momentum_buffer") for name in states[0][0])


def search_in_child(checkpoint, result, kill):
    """`kill`: None, or after how many steps of this process, and how many seconds, it is killed."""
    torch.set_num_threads(1)
    steps = []

    def on_step(*_):
        steps.append(1)
        if kill is not None and len(steps) == kill[0]:
            threading.Timer(kill[1], os.kill, (os.getpid(), signal.SIGKILL)).start()

    net, course = run(RICH, checkpoint=checkpoint, checkpoint_every=0, on_step=on_step)
    save_supernet(net, result, {"course": without_seconds(course)})


def run_in_child(checkpoint, result, kill=None):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "bitnas.methods.bars.training"])
    process = context.Process(target=search_in_child, args=(checkpoint, result, kill))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_the_same(tmp_path, kills):
    checkpoint, generator = tmp_path / "run.safetensors", random.Random(0)
    reached, killed = [], 0
    while killed < kills:
        kill = generator.randint(1, 2), generator.uniform(0, 0.3 / kills)
        code = run_in_child(checkpoint, tmp_path / "resumed", kill)
        killed += code == -signal.SIGKILL
        if checkpoint.exists():
            _, metadata = load_tensors(checkpoint, expected_format="bitnas-training-2")
            reached.append((metadata["position"]["epoch"], metadata["position"]["step"]))
        if code == 0:
            break
    assert killed >= 1
    assert reached == sorted(reached)
    assert run_in_child(checkpoint, tmp_path / "resumed") == 0
    assert run_in_child(tmp_path / "other.safetensors", tmp_path / "straight") == 0
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "resumed").read_bytes()


def test_ctrl_c_writes_a_checkpoint_and_leaves(tmp_path, monkeypatch):
    path, calls = tmp_path / "run.safetensors", []
    original = Steps.train_architecture

    def pressed(self, *arguments):
        calls.append(1)
        if len(calls) == 5:  # in the second epoch of three steps
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *arguments)

    monkeypatch.setattr(Steps, "train_architecture", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path)
    _, metadata = load_tensors(path, expected_format="bitnas-training-2")
    assert (metadata["position"]["epoch"], metadata["position"]["step"]) == (1, 2)  # the step was finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = run(checkpoint=path)
    assert_equal(tensors(resumed[0]), whole()[0])
    assert without_seconds(resumed[1]) == whole()[1]


def test_ctrl_c_at_the_end_of_an_epoch_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "run.safetensors"
    original = Steps.prune

    def pressed(self, epoch):
        os.kill(os.getpid(), signal.SIGINT)
        original(self, epoch)

    monkeypatch.setattr(Steps, "prune", pressed)
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path)
    _, metadata = load_tensors(path, expected_format="bitnas-training-2")
    assert (metadata["position"]["epoch"], len(metadata["course"])) == (1, 1)


def poisoned(step, what):
    """An `on_epoch` or `on_step` that cannot reach the net: so a step that puts NaN into it before it begins."""
    original = getattr(Steps, step)
    calls = []

    def poison(self, *arguments):
        calls.append(1)
        if len(calls) == 5:
            with torch.no_grad():
                dict(self.supernet.named_parameters())[what].view(-1)[0] = torch.nan
        return original(self, *arguments)

    return poison


@pytest.mark.parametrize(
    ("step", "parameter", "message"),
    [
        (
            "train_architecture",
            "edges",
            r"the controller's logits \(edges\) is nan at epoch 1, step 1.*architecture_lr",
        ),
        ("train_weights", "depths.0", r"the controller's logits \(depths.0\) is nan at epoch 1, step 1"),
        ("train_architecture", "fc.weight", "the loss of the architecture is nan at epoch 1, step 1"),
        ("train_weights", "fc.weight", "the loss of the weights is nan at epoch 1, step 1.*with a lower lr"),
    ],
)
def test_nan_is_named_and_loses_nothing(tmp_path, monkeypatch, step, parameter, message):
    path = tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Steps, step, poisoned(step, parameter))
        with pytest.raises(SearchDiverged, match=message) as caught:
            run(checkpoint=path, checkpoint_every=0)
    assert (caught.value.epoch, caught.value.step, caught.value.kept) == (1, 1, path)
    assert f"{path} holds a step before" in str(caught.value)
    assert "the same settings diverges again: start anew, in another folder" in str(caught.value)
    kept, metadata = load_tensors(path, expected_format="bitnas-training-2")
    assert (metadata["position"]["epoch"], metadata["position"]["step"]) == (1, 1)
    assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in kept.values())
    assert_equal(tensors(run(checkpoint=path)[0]), whole()[0])  # it goes on from there


@pytest.mark.parametrize("given", [True, False])
def test_no_checkpoint_is_spoken_of_before_there_is_one(tmp_path, monkeypatch, given):
    path = tmp_path / "run.safetensors"
    original = Steps.train_weights

    def poison(self, *arguments):
        with torch.no_grad():
            self.supernet.edges[0, 0, 0] = torch.nan
        return original(self, *arguments)

    monkeypatch.setattr(Steps, "train_weights", poison)
    with pytest.raises(SearchDiverged, match="no checkpoint was written before.*architecture_lr") as caught:
        run(checkpoint=path if given else None)
    assert not path.exists()
    assert "holds a step before" not in str(caught.value)
    assert caught.value.kept is None


def test_rates_that_explode_are_caught_before_they_are_written(tmp_path):
    path = tmp_path / "run.safetensors"
    for change, what in (({"architecture_lr": 1e38}, "logits"), ({"lr": 3e38, "momentum": 0.0}, "loss|weights")):
        controller = dataclasses.replace(PLAIN, epochs=9, **change)
        with pytest.raises(SearchDiverged, match=what):
            run(controller, checkpoint=path, checkpoint_every=0)
        if path.exists():
            kept, _ = load_tensors(path, expected_format="bitnas-training-2")
            assert all(bool(torch.isfinite(tensor.float()).all()) for tensor in kept.values())
            path.unlink()


def test_a_loss_that_was_far_off_for_a_few_steps_may_recover():
    steps = steps_of(PLAIN)
    limit = far_beyond_chance(3)
    for _ in range(3):
        for _ in range(4):
            steps._check_loss(limit + 1, 0.1)
        steps._check_loss(limit, 0.1)
    for _ in range(4):
        steps._check_loss(limit + 1, 0.1)
    with pytest.raises(NotFinite, match=r"\(above 42 for 5 steps; guessing has 1.1; lr is 0.1\) is 42\.97"):
        steps._check_loss(limit + 1, 0.1)


def test_a_cost_that_is_not_finite_is_named():
    class Broken(FlopPrices):
        def expected(self, probabilities):
            return super().expected(probabilities) * torch.nan

    controller = dataclasses.replace(PLAIN, cost="flops", warmup_epochs=1)
    with pytest.raises(SearchDiverged, match=r"the expected cost \(flops\) is nan at epoch 0, step 3.*other prices"):
        run(controller, prices={"flops": Broken(TINY)})
    steps = steps_of(controller, prices={"flops": Broken(TINY)})
    with pytest.raises(ArithmeticError, match=r"the expected cost \(flops\) is nan"):
        steps.train_architecture(VAL.images[:20], VAL.labels[:20], 0, 0)


def test_the_error_survives_another_process():
    for kept in (None, Path("s.ckpt.safetensors")):
        error = SearchDiverged(3, 5, "the loss of the weights", float("inf"), kept)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


# ---- What is refused -------------------------------------------------------------------------------------------------


def test_an_impossible_budget_is_refused_before_training(tmp_path):
    space = dataclasses.replace(TINY, operations=("skip", "binary_conv_3x3"))
    prices = {"flops": FlopPrices(space)}
    least = least_cost(space, prices["flops"])
    assert least == min(prices["flops"].of(space.architecture(g)) for g in corners(space))
    controller = dataclasses.replace(PLAIN, cost="flops", flops_budget=least - 1)
    message = f"flops_budget: got {least - 1:g} FLOPs, but the cheapest network of tiny has {least:,.6g}; wanted"
    with pytest.raises(ValueError, match=message):
        run(controller, space=space, prices=prices, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    run(dataclasses.replace(controller, flops_budget=least, epochs=1), space=space, prices=prices)


def corners(space):
    """Genomes of all widths and depths, with random operations and with skips alone."""
    rng = random.Random(0)
    for _ in range(200):
        genome = list(space.genome(space.random(rng)))
        yield genome
        edges = 10 * space.topologies
        yield [0.0] * edges + genome[edges:]


def test_arguments_that_do_not_go_together_are_refused():
    three = dataclasses.replace(TINY, num_classes=4)
    flops = dataclasses.replace(PLAIN, cost="flops")
    for change, message in (
        ({"space": three}, "description: tiny is for .*use description.for_data"),
        ({"val": DATA}, "val: got the images of data"),
        ({"val": dataclasses.replace(DATA)}, "val: got the images of data"),
        ({"controller": flops, "prices": None}, "prices: got .., wanted a price list 'flops' for cost 'flops'"),
        ({"seed": -1}, "seed must be at least 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**change)


def test_checkpoints_of_other_searches_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    one = dataclasses.replace(PLAIN, epochs=1)
    run(one, checkpoint=path)
    narrow = dataclasses.replace(TINY, widths=(0.25, 1.0))
    for change, name in (
        ({"seed": 1}, "seed"),
        ({"controller": dataclasses.replace(one, lr=0.1)}, r"controller \(lr 0.05, here 0.1\)"),
        ({"space": narrow, "prices": {"flops": FlopPrices(narrow)}}, "space"),
        ({"data": rows(seed=8)}, "data"),
        ({"val": rows(seed=8)}, "validation data"),
        ({"prices": {}}, "prices"),
    ):
        with pytest.raises(CorruptFileError, match=f"is the checkpoint of a run with another {name}"):
            run(**{"controller": one, **change}, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(CorruptFileError, match="Delete it to train from the start"):
        run(one, checkpoint=path)


# ---- Files -----------------------------------------------------------------------------------------------------------


def test_supernets_and_courses_come_back(tmp_path):
    net, course = run(RICH)
    save_supernet(net, tmp_path / "s", {"note": 1})
    save_course(course, tmp_path / "c")
    before = torch.random.get_rng_state()
    again = load_supernet(tmp_path / "s")
    assert torch.equal(before, torch.random.get_rng_state())
    assert_equal(tensors(net), tensors(again))
    assert (again.description, again.training) == (TINY, False)
    architecture = TINY.random(random.Random(0))
    x = VAL.images[:5]
    assert torch.equal(again(x, one_hot(TINY, architecture)), net.extract(architecture)(x))
    assert load_course(tmp_path / "c") == json.loads(json.dumps(course))
    for name, load in (("s", load_supernet), ("c", load_course)):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content.replace(b"tiny", b"TINY") if name == "s" else content.replace(b"0", b"1"))
        with pytest.raises(CorruptFileError):
            load(tmp_path / name)
    save_tensors(tmp_path / "s", {"edges": torch.zeros(2)}, {"format": training.FORMAT, "space": {"name": "x"}})
    with pytest.raises(CorruptFileError, match="is no supernet of this version"):
        load_supernet(tmp_path / "s")


def test_the_share_of_skips():
    edges = torch.zeros(2, 10, 3)
    edges[:, :, 2] = 1.0
    edges[0, :4] = torch.tensor([0.2, 0.7, 0.1])
    edges[1, 0] = torch.tensor([0.5, 0.4, 0.1])
    choices = Choices(edges, torch.ones(1, 2), ())
    assert share_of_skips(TINY, choices) == 0.2
    assert share_of_skips(dataclasses.replace(TINY, operations=("none", "binary_conv_3x3")), choices) == 0.0


@pytest.mark.cuda
def test_on_a_gpu(tmp_path):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    net, course = run(RICH, device="cuda", checkpoint=tmp_path / "c")
    assert net.edges.device.type == "cuda"
    assert len(course) == RICH.epochs
    again, _ = run(RICH, device="cuda", checkpoint=tmp_path / "c")
    assert_equal(tensors(net), tensors(again))

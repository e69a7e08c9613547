"""A supernet trains by the paper's passes in the loop of every other network: it repeats itself, goes on after a stop,
and its subnets are measured with statistics of their own."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import threading

import pytest
import torch
from torch.nn import functional as F

from bitnas import cli
from bitnas.data import Dataset
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.methods.nasbnn import studies
from bitnas.methods.nasbnn.config import preset
from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.passes import sandwich
from bitnas.methods.nasbnn.supernet import Strategies, Supernet
from bitnas.methods.nasbnn.training import (
    inherited,
    load_supernet,
    recalibrate,
    save_supernet,
    train_supernet,
)
from bitnas.train import RECIPES as ALL_RECIPES
from bitnas.train import Recipe, distributed, evaluate
from bitnas.train.step import Step, make_optimizer
from tests.train.test_distributed import run, tensors

TINY = Description(
    name="tiny",
    input_size=(1, 6, 6),
    num_classes=3,
    stem=(4, 6),
    stages=(
        Stage(channels=(6, 8), depths=(1,)),
        Stage(channels=(8, 16), depths=(1, 2), kernels=(3, 5), groups=(1, 2), stride=2),
    ),
)
RECIPE = Recipe(epochs=2, batch_size=30, lr=5e-3, optimizer="adam", weight_decay=5e-6, label_smoothing=0.1)


def rows(count=120, seed=5):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, 2 * labels] += 0.7
    return Dataset(images=images, labels=labels, num_classes=3, name="rows")


def equal(first, second):
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Stop(Exception):
    pass


# ---- The passes of a step --------------------------------------------------------------------------------------------


def passes_of(strategies, seed=0):
    """What a step asked the supernet for, and the losses and logits it gave."""
    torch.manual_seed(0)
    net = Supernet(TINY, strategies).train()
    asked = []
    forward = net.forward

    def spy(x, subnet=None, *, teacher=False, distances=None):
        asked.append((subnet or net.biggest, teacher))
        return forward(x, subnet, teacher=teacher, distances=distances)

    net.forward = spy
    x, y = rows(30).images, rows(30).labels
    given = list(sandwich(net, x, y, RECIPE, random.Random(seed)))
    return net, asked, given, y


def test_four_passes_and_what_teaches_whom():
    net, asked, given, y = passes_of(Strategies())
    assert [teacher for _, teacher in asked] == [True, False, False, False]
    assert asked[0][0] == net.biggest
    assert asked[1][0] == net.smallest
    chance = random.Random(0)
    assert [subnet for subnet, _ in asked[2:]] == [net.space.subnet(net.space.random(chance)) for _ in range(2)]
    target = given[0][1].softmax(1)
    assert torch.equal(given[0][0], F.cross_entropy(given[0][1], y, label_smoothing=0.1))
    for loss, logits in given[1:]:
        assert torch.allclose(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    net.zero_grad()
    given[1][0].backward()  # a student's loss teaches nothing to its teacher: float weights that it does not use
    assert not net.network.blocks[2].conv1.weight.grad


def test_students_learn_nothing_of_the_labels():
    first, second = (list(sandwich(*arguments)) for arguments in map(step_on, (0, 1)))
    assert not torch.equal(first[0][0], second[0][0])
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first[1:], second[1:], strict=True))


def step_on(shift):
    torch.manual_seed(0)
    net, data = Supernet(TINY).train(), rows(30)
    return net, data.images, (data.labels + shift) % 3, RECIPE, random.Random(0)


def test_without_bi_teacher_the_biggest_is_binary():
    _, asked, _, _ = passes_of(Strategies(bi_teacher=False))
    assert [teacher for _, teacher in asked] == [False] * 4


def test_consistency_is_added_to_the_students():
    plain, drawn = passes_of(Strategies()), passes_of(Strategies(consistency=0.5))
    assert torch.equal(plain[2][0][0], drawn[2][0][0])
    for (a, b), (subnet, _) in zip(zip(plain[2][1:], drawn[2][1:], strict=True), plain[1][1:], strict=True):
        distances = []
        drawn[0](rows(30).images, subnet, distances=distances)
        assert torch.allclose(b[0], a[0] + 0.5 * torch.stack(distances).mean())


def test_a_step_adds_the_gradients_of_all_passes_and_spares_the_matrices_from_decay():
    torch.manual_seed(0)
    net = Supernet(TINY).train()
    groups = make_optimizer(net, RECIPE).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in net.named_parameters():
        wanted = 5e-6 if parameter.dim() >= 2 and not name.startswith("transforms.") else 0.0
        assert decays[id(parameter)] == wanted, name
    data = rows(30)
    step = Step(net, make_optimizer(net, RECIPE), None, RECIPE, sandwich)
    numbers = step.gradients(data.images, data.labels, 30, lambda: False, 7)
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    losses = list(sandwich(net, data.images, data.labels, RECIPE, random.Random(7)))
    sum(loss for loss, _ in losses).backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-6), name
    assert numbers.tolist() == pytest.approx(
        [30 * losses[0][0].item(), float((losses[0][1].argmax(1) == data.labels).sum())]
    )


def test_a_student_that_diverges_is_noticed():
    torch.manual_seed(0)
    net, data = Supernet(TINY).train(), rows(30)

    def passes(model, x, y, recipe, chance):
        for number, (loss, logits) in enumerate(sandwich(model, x, y, recipe, chance)):
            yield (loss * float("inf") if number == 2 else loss), logits

    step = Step(net, make_optimizer(net, RECIPE), None, RECIPE, passes)
    assert step.gradients(data.images, data.labels, 30, lambda: False).isnan().tolist() == [True, False]


# ---- Training --------------------------------------------------------------------------------------------------------


def train(strategies=None, *, seed=1, recipe=RECIPE, **options):
    return train_supernet(TINY, strategies or Strategies(), rows(), recipe, seed=seed, **options)


def test_it_learns_and_every_subnet_with_it():
    epochs = []
    recipe = dataclasses.replace(RECIPE, epochs=12)
    net = train(recipe=recipe, val=rows(90, seed=6), on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    assert not net.training
    unseen = rows(90, seed=6)
    for subnet in (net.biggest, net.smallest):
        network = inherited(net, subnet, rows(), batches=4, batch_size=30, seed=0)
        assert evaluate(network, unseen) > 0.8
    # What validation judged is what the supernet gives when it is called as it is.
    assert evaluate(net, unseen) == epochs[-1].val_accuracy
    assert evaluate(inherited(net, net.biggest, rows(), batches=4, batch_size=30, seed=1), unseen) == evaluate(
        net, unseen
    )


def test_equal_calls_give_equal_bits_and_validation_changes_nothing():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = train()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    assert equal(first, train(val=rows(30)))
    assert not equal(first, train(seed=2))


@pytest.mark.parametrize(
    "change",
    [{"bi_teacher": False}, {"bi_transformation": False}, {"weight_normalization": False}, {"consistency": 0.1}],
)
def test_every_switch_trains_another_supernet(change):
    recipe = dataclasses.replace(RECIPE, epochs=1)
    plain, switched = train(recipe=recipe), train(Strategies(**change), recipe=recipe)
    assert evaluate(switched, rows()) >= 0
    assert not torch.equal(plain.network.fc.weight, switched.network.fc.weight)
    assert not any(parameter.isnan().any() for parameter in switched.parameters())
    matrices = list(switched.transforms.parameters())
    assert bool(matrices) == switched.strategies.bi_transformation
    assert all(not torch.equal(matrix, torch.eye(len(matrix))) for matrix in matrices)


@pytest.mark.parametrize("change", [{}, {"ema": 0.5, "accumulate": 2, "clip_norm": 1.0, "keep": "best", "shift": 1}])
def test_stopped_at_any_step_ends_the_same(tmp_path, change):
    recipe = dataclasses.replace(RECIPE, **change)
    whole = train(recipe=recipe, val=rows(30))
    path, done = tmp_path / "run.safetensors", 0
    for stop in (1, 3, 3):  # of four steps an epoch

        def on_step(*_, stop=stop):
            nonlocal done
            done += 1
            if done >= stop:
                raise Stop

        with pytest.raises(Stop):
            train(recipe=recipe, val=rows(30), checkpoint=path, checkpoint_every=0, on_step=on_step)
    assert equal(whole, train(recipe=recipe, val=rows(30), checkpoint=path))


def test_checkpoints_of_other_supernets_are_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    recipe = dataclasses.replace(RECIPE, epochs=1)
    train(recipe=recipe, checkpoint=path)
    assert load_tensors(path, expected_format="bitnas-training-2")[1]["run"]["passes"].endswith("passes.sandwich")
    with pytest.raises(CorruptFileError, match="a run with another model"):
        train(Strategies(bi_teacher=False), recipe=recipe, checkpoint=path)
    fewer = dataclasses.replace(TINY, stages=(TINY.stages[0], dataclasses.replace(TINY.stages[1], depths=(2,))))
    with pytest.raises(CorruptFileError, match="a run with another model"):
        train_supernet(fewer, Strategies(), rows(), recipe, seed=1, checkpoint=path)


def train_in_child(folder, name, kill_after):
    """Train to the end, or kill this process so many seconds after the first step that it makes."""
    torch.set_num_threads(1)
    killers = []

    def on_step(*_):
        if kill_after is not None and not killers:
            killers.append(threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)))
            killers[0].start()

    net = train(checkpoint=folder / f"{name}.ckpt", checkpoint_every=0, on_step=on_step, val=rows(30))
    save_supernet(net, folder / name)


@pytest.mark.parametrize("kills", [1, pytest.param(15, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_the_same(tmp_path, kills):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "bitnas.methods.nasbnn.training", __name__])
    generator, killed = random.Random(0), 0

    def child(name, kill_after=None):
        process = context.Process(target=train_in_child, args=(tmp_path, name, kill_after))
        process.start()
        process.join(120)
        return process.exitcode

    for _ in range(kills):
        killed += child("resumed", generator.uniform(0, 0.4)) == -signal.SIGKILL
    assert killed
    assert child("resumed") == 0
    train_in_child(tmp_path, "straight", None)
    assert (tmp_path / "resumed").read_bytes() == (tmp_path / "straight").read_bytes()


def train_shared(folder, name, stop_at=None):
    done = 0

    def on_step(*_):
        nonlocal done
        done += 1
        if done == stop_at:
            raise InterruptedError("stopped by the test")

    net = train(val=rows(30), checkpoint=folder / name, checkpoint_every=0, on_step=on_step)
    save_tensors(folder / f"{name}.{distributed.rank()}", net.state_dict(), {"format": "test"})
    return {"accuracy": evaluate(net, rows())}


def test_two_processes_train_one_supernet_and_go_on(tmp_path):
    whole = run(tmp_path, train_shared, "whole")
    assert whole[0] == whole[1]
    assert whole[0].keys() == {"accuracy"}, whole
    stopped = run(tmp_path, train_shared, "resumed", 5)
    assert {result["error"] for result in stopped} == {"InterruptedError"}
    assert run(tmp_path, train_shared, "resumed") == whole
    expected = (tmp_path / "whole.0").read_bytes()
    for name in ("whole.1", "resumed.0", "resumed.1"):
        assert (tmp_path / name).read_bytes() == expected
    alone = train(val=rows(30)).state_dict()  # batch norm sees half of the images there
    assert not all(torch.equal(value, alone[name]) for name, value in tensors(tmp_path / "whole.0").items())


def steps_without_batches(folder=None):
    """Steps of a supernet whose batch norm looks at no batch, in float64, so that only the order of sums differs."""
    torch.manual_seed(0)
    net, data = Supernet(TINY, Strategies()).double(), rows(48)
    for layer in net.modules():
        layer.train(not isinstance(layer, torch.nn.BatchNorm2d))
    step = Step(net, make_optimizer(net, RECIPE), None, RECIPE, sandwich)
    passed_over = 0
    for number in range(12):
        batch = distributed.part(torch.arange(24) + 24 * (number % 2))
        step.gradients(data.images[batch].double(), data.labels[batch], 24, lambda: False, number)
        passed_over += sum(parameter.grad is None for parameter in net.transforms.parameters())
        step.update(RECIPE.lr)
    if folder is None:
        assert 0 < passed_over < 12 * len(list(net.transforms.parameters()))
        return net.state_dict()
    save_tensors(folder / f"steps.{distributed.rank()}", net.state_dict(), {"format": "test"})
    return {}


def test_two_processes_take_the_steps_of_one(tmp_path):
    alone = steps_without_batches()
    assert run(tmp_path, steps_without_batches) == [{}, {}]
    for rank in range(2):
        for name, value in tensors(tmp_path / f"steps.{rank}").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-6, atol=1e-8)


def test_what_cannot_be_is_said():
    with pytest.raises(
        ValueError, match=r"small is for \(1, 8, 8\) images of 10 classes, and rows has \(1, 6, 6\) of 3"
    ):
        train_supernet(DESCRIPTIONS["small"], Strategies(), rows(), RECIPE, seed=0)
    with pytest.raises(ValueError, match="sync_batch_norm"):
        train(recipe=dataclasses.replace(RECIPE, sync_batch_norm=True))
    with pytest.raises(TypeError, match="got a Linear, wanted a Supernet"):
        list(sandwich(torch.nn.Linear(1, 1), *[None] * 4))


def test_recipes():
    paper = ALL_RECIPES["nasbnn-imagenet"]
    assert (paper.epochs, paper.batch_size, paper.lr, paper.optimizer, paper.weight_decay, paper.label_smoothing) == (
        512, 512, 2.5e-3, "adam", 5e-6, 0.1,
    )  # fmt: skip
    assert (paper.schedule, paper.flip, paper.crop) == ("cosine", True, (0.08, 1.0))
    tuned = ALL_RECIPES["nasbnn-finetune"]
    assert (tuned.epochs, tuned.batch_size, tuned.lr, tuned.weight_decay, tuned.label_smoothing) == (
        25,
        512,
        1e-5,
        0,
        0,
    )
    recipes = {data: preset(data).recipe for data in ("digits", "cifar10", "imagenet")}
    assert recipes == {name: f"nasbnn-{name}" for name in recipes}
    # Images are met in fine-tuning as in the supernet's training.
    tuned = studies.fine_tuning(preset("cifar10"), None)
    assert tuned is not None
    assert (tuned.lr, tuned.batch_size, tuned.shift, tuned.flip, tuned.crop) == (1e-5, 128, 4, True, None)
    assert studies.fine_tuning(preset("digits"), None) == ALL_RECIPES["nasbnn-finetune-digits"]


# ---- Recalibration and files -----------------------------------------------------------------------------------------


def test_recalibration_is_the_plain_mean_and_touches_no_weight():
    torch.manual_seed(0)
    net = Supernet(TINY).train()
    for _ in range(3):
        net(torch.randn(8, 1, 6, 6), net.smallest)
    network, data = net.extract(net.smallest), rows(100)
    weights = {name: p.detach().clone() for name, p in network.named_parameters()}
    recalibrate(network, data, batches=4, batch_size=16, seed=3)
    assert network.training
    assert all(torch.equal(p, weights[name]) for name, p in network.named_parameters())
    drawn = torch.randperm(100, generator=torch.Generator().manual_seed(3))[:64].split(16)
    with torch.no_grad():
        maps = [network.eval().stem(data.take(indices)) for indices in drawn]
    for statistic, measured in (
        (lambda y: y.mean((0, 2, 3)), network.stem_bn.running_mean),
        (lambda y: y.transpose(0, 1).flatten(1).var(1), network.stem_bn.running_var),
    ):
        assert torch.allclose(torch.stack([statistic(y) for y in maps]).mean(0), measured, atol=1e-5)
    assert network.blocks[0].bn1.num_batches_tracked == 4
    assert network.blocks[0].bn1.momentum == 0.1


def test_recalibration_uses_what_there_is():
    network = Supernet(TINY).extract(Supernet(TINY).biggest)
    recalibrate(network, rows(50), batches=10, batch_size=20, seed=0)
    assert network.stem_bn.num_batches_tracked == 3  # 17, 17 and 16 images
    for name, value in (("batches", 0), ("batches", 101), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name}: got {value}, wanted"):
            recalibrate(network, rows(50), **{"batches": 1, "batch_size": 20, name: value}, seed=0)


def test_an_inherited_subnet_leaves_the_supernet_alone():
    torch.manual_seed(0)
    net = Supernet(TINY).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    network = inherited(net, net.smallest, rows(), batches=2, batch_size=20, seed=0)
    assert not network.training
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    again = inherited(net, net.smallest, rows(), batches=2, batch_size=20, seed=0)
    assert equal(network, again)
    assert not equal(network, inherited(net, net.smallest, rows(), batches=2, batch_size=20, seed=1))


def test_a_file_of_a_supernet(tmp_path):
    torch.manual_seed(0)
    net = Supernet(TINY, Strategies(bi_teacher=False, consistency=0.5)).eval()
    path = tmp_path / "supernet.safetensors"
    save_supernet(net, path, {"images": "abc"})
    found = load_supernet(path)
    assert equal(net, found)
    assert (found.description, found.strategies, found.training) == (TINY, net.strategies, False)
    assert all(parameter.requires_grad for parameter in found.parameters())
    x = torch.randn(3, 1, 6, 6)
    assert torch.equal(found(x), net(x))
    tensors, metadata = load_tensors(path, expected_format="bitnas-supernet-1")
    assert metadata["images"] == "abc"

    blob = bytearray(path.read_bytes())
    blob[-1] ^= 1
    path.write_bytes(blob)
    with pytest.raises(CorruptFileError, match="SHA-256"):
        load_supernet(path)
    save_tensors(path, tensors, {**metadata, "format": "bitnas-model-1"})
    with pytest.raises(CorruptFileError, match="its format is 'bitnas-model-1', expected 'bitnas-supernet-1'"):
        load_supernet(path)
    for damage in (
        {"space": {**metadata["space"], "stem": [6, 10]}},
        {"space": {"name": "tiny"}},
        {"strategies": {"bi_transformation": False}},
        {"strategies": {"bi_teachers": True}},
    ):
        save_tensors(path, tensors, {**metadata, **damage})
        with pytest.raises(CorruptFileError, match="is no supernet of this version of bitnas"):
            load_supernet(path)
    name = "network.fc.weight"
    for value in (tensors[name].double(), tensors[name][:2]):
        save_tensors(path, {**tensors, name: value}, metadata)
        with pytest.raises(CorruptFileError, match="is no supernet of this version of bitnas"):
            load_supernet(path)
    with pytest.raises(FileNotFoundError):
        load_supernet(tmp_path / "none")


# ---- The command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(capsys, tmp_path):
    space = tmp_path / "space.json"
    space.write_text(json.dumps(TINY.to_dict()))

    def call(*arguments):
        words = ["train", "--method", "nasbnn", "--data", "digits:12", "--space", space, "--epochs", 1, *arguments]
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, words)])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def test_the_command_trains_into_a_folder(command, tmp_path):
    out = tmp_path / "run"
    code, printed, said = command("--out", out, "--json", "--no-bi-teacher", "--consistency", 0.1)
    assert code == 0, said
    result = json.loads(printed)
    assert result == json.loads((out / "train.json").read_text())
    assert result["strategies"] == Strategies(bi_teacher=False, consistency=0.1).to_dict()
    assert [row["label"] for row in result["subnets"]] == ["biggest", "smallest", *["random"] * 4]
    assert result["subnets"][0]["ops"] > result["subnets"][1]["ops"]
    assert result["recipe"]["name"] == "nasbnn-digits"
    assert "supernet of space tiny on digits:12" in said
    assert "epoch 1/1  loss" in said
    net = load_supernet(out / "supernet.safetensors")
    assert net.description.input_size == (1, 8, 8)
    assert sum(parameter.numel() for parameter in net.parameters()) == result["parameters"]
    assert (out / "log.csv").read_text().count("\n") == 2
    before = (out / "supernet.safetensors").read_bytes()
    code, printed, said = command("--out", out, "--no-bi-teacher", "--consistency", 0.1)  # nothing is left to train
    assert (code, "epoch 1/1" in said) == (0, False)
    assert "biggest" in printed
    assert (out / "supernet.safetensors").read_bytes() == before
    code, _, said = command("--out", out)
    assert code == 2
    assert "strategies.bi_teacher False there, True here" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "vgg_small"], "--model does not go with --method nasbnn"),
        (["--scheme", "xnor"], "--scheme does not go with --method nasbnn"),
        (["--method", "bars"], "--method must be nasbnn, or left out to train one network, got 'bars'"),
        (["--consistency", "-1"], "consistency: got -1.0, wanted a finite number of at least 0"),
        (["--space", "none"], "space: got 'none', wanted one of imagenet, cifar, small or a .json file"),
        (["--recipe", "none"], "--recipe must be one of"),
    ],
)
def test_the_command_says_what_cannot_be(command, tmp_path, words, message):
    code, out, said = command("--out", tmp_path / "run", *words)
    assert (code, out) == (2, "")
    assert message in said
    assert not (tmp_path / "run").exists()


def test_options_of_supernets_go_only_with_them(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--out", str(tmp_path / "run"), "--no-bi-transformation"])
    assert stop.value.code == 2
    assert "--no-bi-transformation goes only with --method nasbnn" in capsys.readouterr().err

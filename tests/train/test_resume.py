"""A killed run ends as the uninterrupted one, bit for bit; a checkpoint that is not this run's is refused."""

import dataclasses
import json
import multiprocessing
import os
import random
import signal
import threading
from pathlib import Path

import pytest
import torch

from bitnas import data, models
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.train import Recipe, TrainingDiverged, fit

RECIPE = Recipe(epochs=5, batch_size=16, lr=0.01, optimizer="adam", shift=1)


def state(net):
    return {name: tensor.clone() for name, tensor in net.state_dict().items()}


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def without_seconds(history):
    return [dataclasses.replace(record, seconds=0.0, data_seconds=0.0) for record in history.epochs]


class Stop(Exception):
    pass


def stop_after(epoch):
    def on_epoch(record):
        if record.epoch == epoch:
            raise Stop

    return on_epoch


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_stopped_after_every_epoch_ends_the_same(tmp_path, make_net, problem, optimizer, momentum):
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, momentum=momentum)
    whole = make_net()
    expected = fit(whole, problem, recipe, seed=1, val=problem)
    path = tmp_path / "run.safetensors"
    for epoch in range(recipe.epochs):
        # Another start each time: everything must come from the file.
        with pytest.raises(Stop):
            fit(make_net(epoch), problem, recipe, seed=1, val=problem, checkpoint=path, on_epoch=stop_after(epoch))
    resumed = make_net(99)
    history = fit(resumed, problem, recipe, seed=1, val=problem, checkpoint=path, on_epoch=stop_after(-1))
    # The first of the five runs started from make_net(0), as the whole one did.
    assert_equal_states(state(whole), state(resumed))
    assert without_seconds(history) == without_seconds(expected)


# Everything that has a state of its own.
RICH = dataclasses.replace(
    RECIPE, epochs=3, weight_decay=1e-4, flip=True, ema=0.9, accumulate=3, clip_norm=1.0, keep="best"
)


@pytest.mark.parametrize("change", [{}, {"optimizer": "sgd"}, {"ema": 0.0}, {"keep": "last"}, {"accumulate": 1}])
def test_stopped_inside_epochs_ends_the_same(tmp_path, make_net, problem, change):
    """After several steps of a run in turn, among them the last of an epoch, with all that a recipe can ask for."""
    recipe = dataclasses.replace(RICH, **change)
    whole = make_net()
    expected = fit(whole, problem, recipe, seed=1, val=problem)
    for stop in range(1, 31, 9 if change else 3):  # 10 steps an epoch
        steps = 0

        def on_step(*_: int, stop: int = stop) -> None:
            nonlocal steps
            steps += 1
            if steps == stop:
                raise Stop

        path = tmp_path / f"{stop}.safetensors"
        with pytest.raises(Stop):
            fit(make_net(), problem, recipe, seed=1, val=problem, checkpoint=path, checkpoint_every=0, on_step=on_step)
        resumed = make_net(stop)
        history = fit(resumed, problem, recipe, seed=1, val=problem, checkpoint=path)
        assert_equal_states(state(whole), state(resumed))
        assert without_seconds(history) == without_seconds(expected)


def train_in_child(checkpoint: Path, result: Path, kill_after: float | None) -> None:
    """Train to the end, or kill this process so many seconds after the first step that it makes."""
    torch.set_num_threads(1)
    digits = data.load("digits")
    torch.manual_seed(0)
    net = models.create_model("vgg_small", num_classes=10, input_size=(1, 8, 8), base_width=0.0625)
    killers: list[threading.Timer] = []

    def on_step(*_: int) -> None:
        if kill_after is not None and not killers:
            killers.append(threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)))
            killers[0].start()

    train, val = digits.subset(torch.arange(160)), digits.subset(torch.arange(160, 260))
    history = fit(
        net, train, dataclasses.replace(RICH, epochs=6), seed=0, val=val, checkpoint=checkpoint, checkpoint_every=0.01,
        log=checkpoint.with_suffix(".csv"), on_step=on_step,
    )  # fmt: skip
    epochs = [dataclasses.asdict(epoch) for epoch in without_seconds(history)]
    save_tensors(result, net.state_dict(), {"format": "test-weights", "epochs": epochs})


def run_in_child(checkpoint: Path, result: Path, kill_after: float | None = None) -> int | None:
    # A fork server loads torch once for all the processes, and is itself free of this process's threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "bitnas.data", "bitnas.models", "bitnas.train"])
    process = context.Process(target=train_in_child, args=(checkpoint, result, kill_after))
    process.start()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("kills", [5, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_at_random_moments_ends_the_same(tmp_path, kills):
    """SIGKILL at random moments of training, validation or writing, until the run is through; then it is compared."""
    checkpoint = tmp_path / "run.safetensors"
    generator = random.Random(0)
    reached, killed = [], 0
    while killed < kills:
        code = run_in_child(checkpoint, tmp_path / "resumed", generator.uniform(0, 1.6 / kills))
        killed += code == -signal.SIGKILL
        if checkpoint.exists():
            _, metadata = load_tensors(checkpoint, expected_format="bitnas-training-2")
            reached.append((metadata["position"]["epoch"], metadata["position"]["step"]))
        if code == 0:
            break
    assert killed >= 2
    assert reached == sorted(reached)
    assert any(step for _, step in reached), "no kill inside an epoch was caught"
    assert run_in_child(checkpoint, tmp_path / "resumed") == 0
    assert run_in_child(tmp_path / "other.safetensors", tmp_path / "straight") == 0
    assert (tmp_path / "straight").read_bytes() == (tmp_path / "resumed").read_bytes()
    for log in (checkpoint, tmp_path / "other.safetensors"):
        rows = log.with_suffix(".csv").read_text().splitlines()
        assert [row.partition(",")[0] for row in rows] == ["epoch", *map(str, range(6))]


def test_killed_between_writing_and_renaming(tmp_path, make_net, problem):
    """The temporary file of a killed write is not mistaken for the checkpoint."""
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        fit(make_net(), problem, RECIPE, seed=0, checkpoint=path, on_epoch=stop_after(1))
    (tmp_path / f".{path.name}.0123456789abcdef.tmp").write_bytes(path.read_bytes()[:1000])
    resumed, whole = make_net(), make_net()
    fit(resumed, problem, RECIPE, seed=0, checkpoint=path)
    fit(whole, problem, RECIPE, seed=0)
    assert_equal_states(state(resumed), state(whole))


def test_keyboard_interrupt_leaves_the_last_checkpoint(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"

    class Interrupting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()
            self.calls = 0

        def forward(self, x):
            self.calls += 1
            if self.calls == 25:  # in the third epoch of ten steps
                os.kill(os.getpid(), signal.SIGINT)
            return self.net(x)

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupting(), problem, RECIPE, seed=0, checkpoint=path)
    _, metadata = load_tensors(path, expected_format="bitnas-training-2")
    assert [epoch["epoch"] for epoch in metadata["epochs"]] == [0, 1]
    assert (metadata["position"]["epoch"], metadata["position"]["step"]) == (2, 5)  # the step was finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed, whole = Interrupting(), Interrupting()
    resumed.calls = whole.calls = 25
    fit(resumed, problem, RECIPE, seed=0, checkpoint=path)
    fit(whole, problem, RECIPE, seed=0)
    assert_equal_states(state(resumed), state(whole))


def test_a_second_ctrl_c_ends_inside_the_step(tmp_path, make_net, problem):
    class Interrupting(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = make_net()

        def forward(self, x):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        fit(Interrupting(), problem, RECIPE, seed=0, checkpoint=tmp_path / "run.safetensors")
    assert not (tmp_path / "run.safetensors").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_divergence_leaves_the_epoch_before(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"
    net = make_net()

    def poison(record):
        if record.epoch == 1:
            with torch.no_grad():
                net[0].weight.fill_(float("nan"))

    with pytest.raises(TrainingDiverged):
        fit(net, problem, RECIPE, seed=0, checkpoint=path, on_epoch=poison)
    tensors, metadata = load_tensors(path, expected_format="bitnas-training-2")
    assert len(metadata["epochs"]) == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_disk_that_fails_leaves_the_last_checkpoint(tmp_path, make_net, problem, monkeypatch):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        fit(make_net(), problem, RECIPE, seed=0, checkpoint=path, on_epoch=stop_after(0))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("bitnas.files.os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            fit(make_net(), problem, RECIPE, seed=0, checkpoint=path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.fixture
def written(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"
    with pytest.raises(Stop):
        fit(make_net(), problem, RECIPE, seed=0, checkpoint=path, on_epoch=stop_after(0))
    return path


def test_damaged_checkpoints_are_refused(written, make_net, problem):
    content = written.read_bytes()
    generator = random.Random(0)
    damaged = [content[: generator.randrange(len(content))] for _ in range(100)]
    damaged += [b"", content + b"\0", content[:1000] + content[2000:3000] + content[1000:2000] + content[3000:]]
    for _ in range(200):
        flipped = bytearray(content)
        flipped[generator.randrange(len(content))] ^= generator.randrange(1, 256)
        damaged.append(bytes(flipped))
    net = make_net()
    before = state(net)
    for content in damaged:
        written.write_bytes(content)
        with pytest.raises(CorruptFileError, match=r"run\.safetensors: .*Delete it to train from the start"):
            fit(net, problem, RECIPE, seed=0, checkpoint=written)
        assert written.read_bytes() == content
    assert_equal_states(before, state(net))


def test_checkpoints_of_other_runs_are_refused(written, make_net, problem):
    brighter = dataclasses.replace(problem, images=problem.images + 1)
    relabelled = dataclasses.replace(problem, labels=problem.labels.flip(0))
    refused = [
        ((make_net(), problem, dataclasses.replace(RECIPE, lr=0.02)), 0, r"recipe \(lr 0.01, here 0.02\)"),
        ((make_net(), problem, RECIPE), 7, r"seed \(0, here 7\)"),
        ((torch.nn.Sequential(*make_net()[:-1], torch.nn.Linear(288, 4)), problem, RECIPE), 0, "model"),
        ((torch.nn.Sequential(*make_net()[:-1], torch.nn.ReLU(), make_net()[-1]), problem, RECIPE), 0, "model"),
        ((make_net(), brighter, RECIPE), 0, "data"),
        ((make_net(), relabelled, RECIPE), 0, "data"),
    ]
    for arguments, seed, name in refused:
        before = state(arguments[0])
        message = rf"run\.safetensors: is the checkpoint of a run with another {name}.*Give this run another file"
        with pytest.raises(CorruptFileError, match=message):
            fit(*arguments, seed=seed, checkpoint=written)
        assert_equal_states(before, state(arguments[0]))


def test_another_kind_of_file_is_refused(tmp_path, make_net, problem):
    path = tmp_path / "frozen.safetensors"
    save_tensors(path, {"a": torch.ones(2)}, {"format": "bitnas-frozen-1"})
    with pytest.raises(CorruptFileError, match="format is 'bitnas-frozen-1', expected 'bitnas-training-2'"):
        fit(make_net(), problem, RECIPE, seed=0, checkpoint=path)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"
    save_tensors(path, {"model.a": torch.ones(2)}, {"format": "bitnas-training-1", "run": {}, "epochs": []})
    message = "an earlier version of bitnas wrote it .format bitnas-training-1, here bitnas-training-2.. Delete it"
    with pytest.raises(CorruptFileError, match=message):
        fit(make_net(), problem, RECIPE, seed=0, checkpoint=path)


def test_a_finished_run_is_not_repeated(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"
    net = make_net()
    first = fit(net, problem, RECIPE, seed=0, checkpoint=path)
    content = path.read_bytes()
    again = make_net(8)
    second = fit(again, problem, RECIPE, seed=0, checkpoint=path, on_epoch=stop_after(RECIPE.epochs - 1))
    assert second == first
    assert path.read_bytes() == content
    assert_equal_states(state(net), state(again))
    assert not again.training


def test_the_file_holds_no_code(written):
    length = int.from_bytes(written.read_bytes()[:8], "little")
    header = json.loads(written.read_bytes()[8 : 8 + length])
    assert {entry["dtype"] for name, entry in header.items() if name != "__metadata__"} <= {"F32", "I64"}

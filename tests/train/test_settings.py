"""What each setting of a recipe changes: micro-batches, the moving average, clipping, the kept epoch; and the log."""

import copy
import csv
import dataclasses

import pytest
import torch
from torch import nn

from bitnas.train import Epoch, Recipe, evaluate, fit
from bitnas.train.average import measure_batch_norm, too_long
from bitnas.train.log import Scalars, write_csv
from bitnas.train.step import Step, make_optimizer

PLAIN = Recipe(epochs=2, batch_size=40, lr=0.05, schedule="constant")


def plain_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def norm_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


@pytest.mark.parametrize("accumulate", [2, 5, 40])
@pytest.mark.parametrize("change", [{}, {"label_smoothing": 0.1, "clip_norm": 0.5, "shift": 1, "flip": True}])
def test_micro_batches_are_the_whole_batch_up_to_rounding(problem, accumulate, change):
    """Steps of 38 and 37 images, in micro-batches that differ in size."""
    recipe = dataclasses.replace(PLAIN, **change)
    whole, cut = plain_net(), plain_net()
    first = fit(whole, problem, recipe, seed=0)
    second = fit(cut, problem, dataclasses.replace(recipe, accumulate=accumulate), seed=0)
    for one, other in zip(whole.parameters(), cut.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    for one, other in zip(first.epochs, second.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, abs=1e-5)
        assert one.train_accuracy == pytest.approx(other.train_accuracy, abs=0.02)


def test_clipped_gradients_have_the_norm(problem):
    lengths = []
    for clip_norm in (0.0, 0.01):
        recipe = Recipe(epochs=1, batch_size=150, lr=1.0, schedule="constant", momentum=0.0, clip_norm=clip_norm)
        net = plain_net()
        before = nn.utils.parameters_to_vector(net.parameters()).detach().clone()
        fit(net, problem, recipe, seed=0)
        lengths.append(float((nn.utils.parameters_to_vector(net.parameters()).detach() - before).norm()))
    assert lengths[0] > 0.1
    assert lengths[1] == pytest.approx(0.01, rel=1e-3)


def test_the_model_ends_with_the_average_of_the_steps(problem):
    """w <- decay w + (1 - decay) w_t from the first step on, computed by hand from the steps' weights."""
    net, expected = plain_net(), None

    def follow(*_: int) -> None:
        nonlocal expected
        now = [parameter.detach().double().clone() for parameter in net.parameters()]
        expected = now if expected is None else [0.9 * e + 0.1 * n for e, n in zip(expected, now, strict=True)]

    history = fit(net, problem, dataclasses.replace(PLAIN, ema=0.9), seed=0, val=problem, on_step=follow)
    for parameter, value in zip(net.parameters(), expected, strict=True):
        assert torch.allclose(parameter.double(), value, atol=1e-6)
    assert history.epochs[-1].val_accuracy == evaluate(net, problem)


def test_an_average_has_the_statistics_of_its_own_layers(problem):
    """Mean and variance of what reaches the batch norm, by hand, over the images as an evaluation sees them."""
    net = norm_net()
    fit(net, problem, dataclasses.replace(PLAIN, ema=0.9, batch_size=150, flip=True), seed=0)
    with torch.no_grad():
        reached = net[0](problem.images).transpose(0, 1).flatten(1)
    assert torch.allclose(net[1].running_mean, reached.mean(1), atol=1e-5)
    assert torch.allclose(net[1].running_var, reached.var(1), atol=1e-5)


def test_measuring_batch_norm_uses_a_hundred_batches_and_no_chance(problem):
    net = norm_net().train()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    batches = torch.arange(150).repeat(2).split(2)
    measure_batch_norm(net, problem, batches, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    assert int(net[1].num_batches_tracked) == 100
    assert net[1].momentum == 0.1
    assert net.training
    other = copy.deepcopy(net)
    measure_batch_norm(other, problem, batches[:100], torch.device("cpu"))
    assert torch.equal(net[1].running_var, other[1].running_var)


def test_an_average_does_not_change_the_training(problem):
    losses = [
        [epoch.loss for epoch in fit(norm_net(), problem, dataclasses.replace(PLAIN, ema=ema), seed=0).epochs]
        for ema in (0.0, 0.9)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_the_best_epoch_is_kept(problem, ema):
    recipe = Recipe(epochs=8, batch_size=20, lr=0.1, schedule="constant", keep="best", ema=ema)
    net, val = norm_net(), dataclasses.replace(problem, labels=problem.labels.clone())

    def spoil(epoch: Epoch) -> None:
        if epoch.epoch == 5:  # from here on the labels are wrong
            problem.labels.add_(1).remainder_(3)

    history = fit(net, problem, recipe, seed=0, val=val, on_epoch=spoil)
    accuracies = [epoch.val_accuracy for epoch in history.epochs]
    assert accuracies[-1] < max(accuracies) > 0.8
    assert history.best.epoch == accuracies.index(max(accuracies))
    assert evaluate(net, val) == max(accuracies)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_needs_a_gpu(problem, precision):
    message = f"precision '{precision}' needs a GPU, and the model is on 'cpu'; use precision 'float32', or move"
    with pytest.raises(ValueError, match=message):
        fit(plain_net(), problem, dataclasses.replace(PLAIN, precision=precision), seed=0)


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"keep": "best"}, {}, "keep 'best' needs validation images: give val, or use keep 'last'"),
        ({}, {"checkpoint_every": -1.0}, "checkpoint_every must be at least 0 seconds, got -1.0"),
    ],
)
def test_refused_before_anything_is_trained(problem, tmp_path, settings, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(
            plain_net(), problem, dataclasses.replace(PLAIN, **settings), seed=0, checkpoint=tmp_path / "file",
            **arguments,
        )  # fmt: skip
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1 << 64, ValueError), (0.0, TypeError), (True, TypeError)]
)
def test_seeds_that_no_generator_takes_are_refused(problem, seed, error):
    with pytest.raises(error, match="seed must be"):
        fit(plain_net(), problem, PLAIN, seed=seed)


def test_folders_of_checkpoint_and_log_are_made_before_training(problem, tmp_path):
    class Stop(Exception):
        pass

    def stop(*_: int) -> None:
        assert (tmp_path / "a" / "b").is_dir()
        assert (tmp_path / "c" / "log.csv").exists()
        raise Stop

    with pytest.raises(Stop):
        fit(
            plain_net(), problem, PLAIN, seed=0, checkpoint=tmp_path / "a" / "b" / "run",
            log=tmp_path / "c" / "log.csv", on_step=stop,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "cut"), [({"batch_size": 1}, "accumulate 1"), ({"batch_size": 4, "accumulate": 4}, "accumulate 4")]
)
def test_batches_too_small_for_batch_norm_are_explained(problem, settings, cut):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    message = f"one in a micro-batch of 1: .*batch_size {settings['batch_size']}.* among 1 processes and by {cut}"
    with pytest.raises(ValueError, match=message):
        fit(net, problem, dataclasses.replace(PLAIN, **settings), seed=0)


def test_an_average_longer_than_the_run_is_told():
    assert too_long(PLAIN, 1) is None
    recipe = dataclasses.replace(PLAIN, ema=0.99)
    assert too_long(recipe, 400) is None
    said = too_long(recipe, 399)
    assert said is not None
    assert said.startswith("ema 0.99 averages over about 100 steps, and the run has 399")
    most = float(said.partition("at most ")[2].partition(",")[0])
    assert too_long(dataclasses.replace(PLAIN, ema=most), 399) is None
    assert most > 0.98
    assert "Choose 0 for none" in str(too_long(recipe, 4))


def test_a_single_step_changes_the_weights(problem):
    net = plain_net()
    before = copy.deepcopy(net.state_dict())
    fit(net, problem, Recipe(epochs=1, batch_size=200, lr=0.1), seed=0)
    assert not torch.equal(net.state_dict()["0.weight"], before["0.weight"])


def test_a_model_without_parameters_is_refused(problem):
    with pytest.raises(ValueError, match="model: got a Flatten without a parameter to train"):
        fit(nn.Flatten(), problem, PLAIN, seed=0)


def test_checkpoints_are_written_when_their_time_has_come(problem, tmp_path):
    """Never within an epoch that is shorter than the interval; the file then holds whole epochs."""
    written = []
    path = tmp_path / "run"
    for every in (3600.0, 0.0):
        path.unlink(missing_ok=True)
        stamps = set()

        def on_step(*_: int, stamps: set[int] = stamps) -> None:
            stamps.add(path.stat().st_mtime_ns if path.exists() else 0)

        fit(plain_net(), problem, PLAIN, seed=0, checkpoint=path, checkpoint_every=every, on_step=on_step)
        written.append(len(stamps))
    assert written == [2, 8]  # nothing, then the first epoch's; each of eight steps


def test_the_log_has_every_epoch_once(problem, tmp_path):
    path, log = tmp_path / "run", tmp_path / "log.csv"

    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        fit(plain_net(), problem, PLAIN, seed=0, val=problem, checkpoint=path, log=log, on_epoch=stop)
    log.write_text(log.read_text() + "1,0.5")  # as a kill in the middle of an append would leave it
    history = fit(plain_net(), problem, PLAIN, seed=0, val=problem, checkpoint=path, log=log)
    rows = list(csv.DictReader(log.read_text().splitlines()))
    assert len(rows) == 2
    for row, epoch in zip(rows, history.epochs, strict=True):
        assert {name: float(value) for name, value in row.items()} == dataclasses.asdict(epoch)
    log.unlink()
    fit(plain_net(), problem, PLAIN, seed=0, val=problem, checkpoint=path, log=log)  # nothing is left to train
    assert list(csv.DictReader(log.read_text().splitlines())) == rows
    write_csv(log, [dataclasses.replace(history.epochs[0], val_accuracy=None)])
    assert next(csv.DictReader(log.read_text().splitlines()))["val_accuracy"] == ""


def test_tensorboard_has_every_epoch_once(problem, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    path, folder = tmp_path / "run", tmp_path / "board"
    for _ in range(2):
        history = fit(plain_net(), problem, PLAIN, seed=0, val=problem, checkpoint=path, tensorboard=folder)
    assert len(list(folder.iterdir())) == 1
    board = event_accumulator.EventAccumulator(str(folder)).Reload()
    for name in ("loss/train", "accuracy/train", "accuracy/validation", "lr"):
        assert [event.step for event in board.Scalars(name)] == [1, 2]
    losses = [event.value for event in board.Scalars("loss/train")]
    assert losses == pytest.approx([epoch.loss for epoch in history.epochs])


def test_without_tensorboard_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    monkeypatch.delitem(__import__("sys").modules, "torch.utils.tensorboard", raising=False)
    Scalars(tmp_path / "board", []).close()
    assert not (tmp_path / "board").exists()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_on_a_gpu(problem, tmp_path, precision, optimizer):
    recipe = Recipe(
        epochs=12, batch_size=16, lr=0.01, optimizer=optimizer, precision=precision, ema=0.5, accumulate=2,
        clip_norm=5.0, keep="best",
    )  # fmt: skip
    net, path = norm_net().cuda(), tmp_path / "run"
    history = fit(net, problem, recipe, seed=0, val=problem, checkpoint=path, checkpoint_every=0)
    assert evaluate(net, problem) == history.best.val_accuracy > 0.8
    again = norm_net().cuda()
    assert fit(again, problem, recipe, seed=0, val=problem, checkpoint=path) == history
    for one, other in zip(net.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.is_cuda
        assert one.dtype == torch.float32


def test_the_scaler_is_for_float16_alone(problem):
    net = plain_net()
    assert Step(net, make_optimizer(net, PLAIN), None, PLAIN).scaler is None

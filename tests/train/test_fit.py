"""The loop learns, repeats itself bit for bit, names what diverges, and touches nothing it does not own."""

import dataclasses
import pickle

import pytest
import torch
from torch import nn

from bitnas import data, models
from bitnas.train import NonFiniteError, Recipe, TrainingDiverged, evaluate, fit

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.01, optimizer="adam", shift=1, flip=True)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_it_learns(make_net, problem, optimizer):
    net = make_net()
    recipe = Recipe(epochs=12, batch_size=16, lr=0.01, optimizer=optimizer, weight_decay=1e-4)
    history = fit(net, problem, recipe, seed=0, val=problem)
    assert len(history.epochs) == 12
    assert history.epochs[-1].loss < 0.3 < history.epochs[0].loss
    last = history.epochs[-1]
    assert last.val_accuracy == evaluate(net, problem) > 0.95
    assert last.lr == 0
    assert not net.training
    assert all(parameter.is_contiguous() and parameter.grad is None for parameter in net.parameters())


def test_equal_calls_give_equal_bits_whatever_the_global_seed(make_net, problem):
    nets = []
    for global_seed in (1, 2):
        net = make_net()
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        fit(net, problem, RECIPE, seed=3)
        assert torch.equal(torch.get_rng_state(), before)
        nets.append(net)
    assert same_weights(*nets)
    other = make_net()
    fit(other, problem, RECIPE, seed=4)
    assert not same_weights(nets[0], other)


def test_validation_does_not_change_the_weights(make_net, problem):
    plain, watched = make_net(), make_net()
    fit(plain, problem, RECIPE, seed=0)
    history = fit(watched, problem, RECIPE, seed=0, val=problem)
    assert same_weights(plain, watched)
    assert all(record.val_accuracy is not None for record in history.epochs)


def test_the_data_are_left_alone(make_net, problem):
    images, labels = problem.images.clone(), problem.labels.clone()
    fit(make_net(), problem, RECIPE, seed=0)
    assert torch.equal(images, problem.images)
    assert torch.equal(labels, problem.labels)


def test_each_image_is_seen_once_an_epoch_in_equal_steps(problem):
    seen: list[torch.Tensor] = []

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(36, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen.append(x.detach().clone())
            return self.linear(x.flatten(1))

    fit(Recorder(), problem, Recipe(epochs=2, batch_size=40, lr=0.01), seed=0)
    assert [len(batch) for batch in seen] == [38, 38, 37, 37] * 2
    epochs = [torch.cat(seen[:4]).flatten(1), torch.cat(seen[4:]).flatten(1)]
    assert not torch.equal(*epochs)
    for epoch in epochs:
        assert sorted(map(tuple, epoch.tolist())) == sorted(map(tuple, problem.images.flatten(1).tolist()))


def test_weight_decay_spares_batch_norm_and_biases(problem):
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, 3))
    for parameter in net.parameters():
        nn.init.ones_(parameter)
    from bitnas.train.step import make_optimizer

    groups = make_optimizer(net, Recipe(epochs=1, batch_size=8, lr=0.1, weight_decay=0.5)).param_groups
    decays = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.5, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0, "3.weight": 0.5, "3.bias": 0.0,
    }  # fmt: skip


def test_history_is_json_values(make_net, problem):
    seen = []
    history = fit(make_net(), problem, RECIPE, seed=0, on_epoch=seen.append)
    assert history.epochs == seen
    assert [record["epoch"] for record in history.to_dict()["epochs"]] == [0, 1, 2, 3]
    assert history.to_dict()["epochs"][0].keys() == {
        "epoch", "loss", "train_accuracy", "val_accuracy", "lr", "seconds", "data_seconds",
    }  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_divergence_is_named(make_net, problem, value):
    problem.images[17] = value
    with pytest.raises(TrainingDiverged, match=r"the loss is nan at epoch 0, step \d+; try a lower lr") as caught:
        fit(make_net(), problem, RECIPE, seed=0)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.epoch, error.step) == (0, caught.value.step)


def test_an_exploding_rate_diverges(problem):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 64), nn.Linear(64, 3))
    recipe = Recipe(epochs=5, batch_size=16, lr=1e30, schedule="constant", momentum=0.0)
    with pytest.raises(TrainingDiverged) as caught:
        fit(net, problem, recipe, seed=0)
    assert caught.value.epoch == 0
    assert caught.value.step >= 1


def test_evaluate_counts_and_keeps_the_mode(problem):
    images, labels = problem.images, problem.labels

    class Oracle(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert not self.training
            assert not torch.is_grad_enabled()
            return x.sum(-1)[:, 0, ::2]

    net = Oracle()
    expected = float((images.sum(-1)[:, 0, ::2].argmax(1) == labels).float().mean())
    for batch_size in (1, 7, 150, 1000):
        assert evaluate(net, problem, batch_size=batch_size) == pytest.approx(expected)
    assert net.training
    wrong = labels.clone()
    wrong[:30] = (wrong[:30] + 1) % 3
    assert evaluate(net, dataclasses.replace(problem, labels=wrong)) < expected


def test_evaluate_refuses_non_finite_logits(make_net, problem):
    net = make_net()
    damaged = problem.subset(torch.arange(150))
    damaged.images[103] = float("nan")
    with pytest.raises(NonFiniteError, match="logits of 1 of the images 100 to 149 are NaN or infinite"):
        evaluate(net, damaged, batch_size=50)
    assert net.training
    with pytest.raises(NonFiniteError):
        fit(net, problem, RECIPE, seed=0, val=damaged)


def test_a_batch_size_below_one_is_refused(make_net, problem):
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        evaluate(make_net(), problem, batch_size=0)


def test_a_binary_network_learns_the_digits():
    digits = data.load("digits")
    train, val, _ = digits.split()
    torch.manual_seed(0)
    net = models.create_model("vgg_small", num_classes=10, input_size=digits.input_size, base_width=0.125)
    recipe = Recipe(epochs=6, batch_size=32, lr=0.01, optimizer="adam")
    fit(net, digits.subset(train), recipe, seed=0)
    assert evaluate(net, digits.subset(val)) > 0.8


def test_a_recipe_variant_trains(make_net, problem):
    variant = dataclasses.replace(RECIPE, epochs=1, label_smoothing=0.1, warmup_epochs=0.5, optimizer="sgd")
    assert len(fit(make_net(), problem, variant, seed=0).epochs) == 1

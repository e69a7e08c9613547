"""Settings of a search survive JSON, and each wrong one is refused by name."""

import dataclasses
import json

import pytest

from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.schedule import Schedule


def test_the_defaults_are_the_interim_configuration():
    c = Controller()
    assert (c.epochs, c.batch_size, c.optimizer, c.momentum, c.weight_decay) == (50, 256, "sgd", 0.9, 3e-4)
    assert (c.lr.at(0, 50), c.lr.at(49, 50)) == (0.01, 1e-4)
    assert (c.architecture_lr, c.architecture_betas, c.architecture_decay) == (3e-4, (0.5, 0.999), 1e-3)
    assert (c.micro, c.macro, c.entropy_edges.start, c.entropy_layout.start) == ("bernoulli", "softmax", 0.01, 0.01)
    assert (c.flops_budget, c.below, c.above, c.budgets) == (5e8, 0.0, 1.0, {})


def test_json_and_back():
    settings = {
        "epochs": 9,
        "temperature_edges": {"kind": "exponential", "start": 5.0, "end": 0.5},
        "every": {"kind": "steps", "start": 4, "steps": [[3, 1]]},
        "prune": 0.05,
        "cost": "both",
        "latency_budget": 120.0,
        "hessian_every": 2,
        "hessian_stop": 1.3,
        "warmup_epochs": 2,
    }
    controller = Controller.from_dict(settings)
    text = json.dumps(controller.to_dict())
    assert Controller.from_dict(json.loads(text)) == controller
    assert {name: controller.to_dict()[name] for name in settings} == settings
    assert controller.budgets == {"flops": 5e8, "latency": 120.0}
    assert set(controller.to_dict()) == {field.name for field in dataclasses.fields(Controller)}
    assert dataclasses.replace(controller, epochs=10).temperature_edges == controller.temperature_edges


def test_every_schedule_is_one():
    names = ("lr", "temperature_edges", "temperature_layout", "entropy_edges", "entropy_layout", "every", "prune")
    line = {"kind": "linear", "start": 2.0, "end": 1.0}
    for name in names:
        value = {**line, "start": 0.2, "end": 0.1} if name == "prune" else line
        assert isinstance(getattr(Controller(**{name: value}), name), Schedule)
        with pytest.raises(ValueError, match=f"{name}: kind: got 'x'"):
            Controller(**{name: {"kind": "x", "start": 1}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: got 0, wanted at least 1"),
        ({"epochs": 1.5}, "epochs: got 1.5, wanted an integer"),
        ({"batch_size": True}, "batch_size: got True"),
        ({"optimizer": "lion"}, "optimizer: got 'lion', wanted one of sgd, adam"),
        ({"micro": "hard"}, "micro: got 'hard', wanted one of softmax"),
        ({"macro": "bernoulli"}, "macro: got 'bernoulli', wanted one of softmax, gumbel"),
        ({"micro_hard": 1}, "micro_hard: got 1, wanted True or False"),
        ({"momentum": 1.0}, "momentum: got 1.0, wanted at least 0 and below 1"),
        ({"architecture_lr": 0}, "architecture_lr: got 0, wanted above 0"),
        ({"architecture_betas": (0.5, 1.0)}, "architecture_betas: got 1.0"),
        ({"architecture_betas": 0.5}, "architecture_betas: got 0.5, wanted two numbers"),
        ({"lr": -1}, "lr: got -1.0, wanted at least 0"),
        ({"temperature_edges": {"kind": "linear", "start": 1, "end": 0}}, "temperature_edges: got 0.0, wanted above 0"),
        ({"every": 0.5}, "every: got 0.5, wanted at least 1"),
        ({"prune": 1}, "prune: got 1.0, wanted at least 0 and below 1"),
        ({"epochs": 5, "warmup_epochs": 5}, "warmup_epochs: got 5, wanted below epochs 5"),
        ({"epochs": 5, "uniform_epochs": 6}, "uniform_epochs: got 6, wanted below epochs 5"),
        ({"hessian_stop": 1.3}, "hessian_stop: got 1.3, wanted hessian_every above 0"),
        ({"hessian_every": 1, "hessian_stop": 1.0}, "hessian_stop: got 1.0, wanted above 1"),
        ({"cost": "watts"}, "cost: got 'watts', wanted one of none, flops, latency, both"),
        ({"cost": "latency"}, "latency_budget: got None, wanted microseconds for cost 'latency'"),
        ({"flops_budget": -5e8}, "flops_budget: got -500000000.0, wanted above 0"),
        ({"above": float("nan")}, "above: got nan"),
        ({"shift": -1}, "shift: got -1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Controller.from_dict(settings)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r"controller: unknown settings \['epoch'\], wanted some of epochs"):
        Controller.from_dict({"epoch": 5})
    with pytest.raises(TypeError, match="controller: got 5, wanted an object"):
        Controller.from_dict(5)

"""A recipe refuses what cannot be trained, survives JSON, and its learning rate is the one it describes."""

import dataclasses
import json
import math

import pytest

from bitnas.train import RECIPES, Recipe

PLAIN = {"epochs": 4, "batch_size": 8, "lr": 0.1}


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(name):
    recipe = RECIPES[name]
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_the_papers_recipes():
    cifar, imagenet = RECIPES["shen2019-cifar10"], RECIPES["shen2019-imagenet"]
    for recipe, epochs, drops in ((cifar, 200, (60, 120, 180)), (imagenet, 150, (50, 100, 135))):
        assert (recipe.epochs, recipe.lr, recipe.optimizer) == (epochs, 0.1, "sgd")
        rates = [recipe.learning_rate(epoch * 7, 7) for epoch in range(epochs)]
        for index, drop in enumerate(drops):
            assert rates[drop - 1] == pytest.approx(0.1 * 0.1**index)
            assert rates[drop] == pytest.approx(0.1 * 0.1 ** (index + 1))
        assert len(set(rates)) == 4


def test_constant_and_cosine_and_warmup():
    assert {Recipe(**PLAIN, schedule="constant").learning_rate(step, 5) for step in range(20)} == {0.1}
    cosine = [Recipe(**PLAIN).learning_rate(step, 5) for step in range(20)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[9] == pytest.approx(0.05)
    assert cosine[-1] == 0
    warm = Recipe(**PLAIN, schedule="constant", warmup_epochs=0.5)
    assert [warm.learning_rate(step, 4) for step in range(3)] == [0.05, 0.1, 0.1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"epochs": 0}, ValueError, "epochs must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got 1.5"),
        ({"batch_size": True}, TypeError, "batch_size must be an integer"),
        ({"lr": 0}, ValueError, "lr must be finite, above 0, got 0"),
        ({"lr": math.nan}, ValueError, "lr must be finite"),
        ({"lr": math.inf}, ValueError, "lr must be finite"),
        ({"lr": "0.1"}, TypeError, "lr must be a number, got '0.1'"),
        ({"optimizer": "lion"}, ValueError, "optimizer must be one of 'sgd', 'adam', 'adamw', got 'lion'"),
        ({"momentum": 1.0}, ValueError, "momentum must be finite, at least 0 and below 1, got 1.0"),
        ({"weight_decay": -1.0}, ValueError, "weight_decay must be finite, at least 0, got -1.0"),
        ({"schedule": "linear"}, ValueError, "schedule must be one of"),
        ({"milestones": (1,)}, ValueError, "milestones go with schedule 'steps'"),
        ({"schedule": "steps"}, ValueError, "milestones go with schedule 'steps'"),
        ({"schedule": "steps", "milestones": (2, 2)}, ValueError, "milestones must increase"),
        ({"schedule": "steps", "milestones": (0,)}, ValueError, "milestones must be at least 1"),
        ({"gamma": 0.0}, ValueError, "gamma must be finite"),
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs must be"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be"),
        ({"shift": -1}, ValueError, "shift must be at least 0"),
        ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
    ],
)
def test_bad_settings(change, error, message):
    with pytest.raises(error, match=message):
        Recipe(**(PLAIN | change))


def test_bad_dicts():
    with pytest.raises(ValueError, match="no setting 'speed'"):
        Recipe.from_dict(PLAIN | {"speed": 1})
    with pytest.raises(ValueError, match="needs the setting 'batch_size', 'lr'"):
        Recipe.from_dict({"epochs": 1})


def test_a_variant_is_checked_too():
    with pytest.raises(ValueError, match="epochs"):
        dataclasses.replace(RECIPES["digits"], epochs=0)

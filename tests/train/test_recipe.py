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


def test_the_crops_of_imagenet_and_the_variants_with_adam():
    assert RECIPES["shen2019-imagenet"].augmentation.crop == (0.08, 1.0)
    assert RECIPES["shen2019-cifar10"].augmentation.crop is None
    for name in ("shen2019-cifar10", "shen2019-imagenet"):
        plain, adam = RECIPES[name], RECIPES[f"{name}-adam"]
        assert (adam.optimizer, adam.lr, adam.weight_decay) == ("adam", 0.001, 0.0)
        assert dataclasses.replace(adam, optimizer="sgd", lr=plain.lr, weight_decay=plain.weight_decay) == plain


def test_recipes_of_the_first_version_keep_their_identity():
    """Its settings, as it wrote them: read, and written in the same words."""
    saved = {
        "epochs": 10, "batch_size": 64, "lr": 0.01, "optimizer": "adam", "momentum": 0.9, "weight_decay": 0.0,
        "schedule": "cosine", "milestones": [], "gamma": 0.1, "warmup_epochs": 0.0, "label_smoothing": 0.0, "shift": 0,
        "flip": False,
    }  # fmt: skip
    recipe = Recipe.from_dict(saved)
    assert recipe == RECIPES["digits"]
    assert recipe.to_dict() == saved
    changed = dataclasses.replace(recipe, crop=[0.5, 1], ema=0.9, accumulate=2, keep="best")
    assert changed.to_dict() == saved | {"crop": [0.5, 1.0], "ema": 0.9, "accumulate": 2, "keep": "best"}
    assert Recipe.from_dict(json.loads(json.dumps(changed.to_dict()))) == changed


def test_constant_and_cosine_and_warmup():
    assert {Recipe(**PLAIN, schedule="constant").learning_rate(step, 5) for step in range(20)} == {0.1}
    cosine = [Recipe(**PLAIN).learning_rate(step, 5) for step in range(20)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[9] == pytest.approx(0.05)
    assert cosine[-1] == 0
    warm = Recipe(**PLAIN, schedule="constant", warmup_epochs=0.5)
    assert [warm.learning_rate(step, 4) for step in range(3)] == [0.05, 0.1, 0.1]


def test_a_run_of_one_step_learns_at_the_full_rate():
    assert Recipe(epochs=1, batch_size=8, lr=0.1).learning_rate(0, 1) == 0.1
    two = Recipe(epochs=2, batch_size=8, lr=0.1)
    assert [two.learning_rate(step, 1) for step in range(2)] == pytest.approx([0.05, 0.0])


@pytest.mark.parametrize(
    ("epochs", "milestones"),
    [(400, (120, 240, 360)), (200, (60, 120, 180)), (20, (6, 12, 18)), (4, (1, 2)), (3, (1, 2)), (2, (1,)), (1, ())],
)
def test_milestones_move_with_the_epochs(epochs, milestones):
    recipe = RECIPES["shen2019-cifar10"]
    made = recipe.for_epochs(epochs)
    schedule = "steps" if milestones else "constant"
    assert made == dataclasses.replace(recipe, epochs=epochs, milestones=milestones, schedule=schedule)
    assert made.learning_rate(epochs - 1, 1) == pytest.approx(0.1 * 0.1 ** len(milestones))


def test_other_schedules_in_other_epochs():
    assert RECIPES["digits"].for_epochs(3) == dataclasses.replace(RECIPES["digits"], epochs=3)
    with pytest.raises(ValueError, match="epochs must be at least 1, got 0"):
        RECIPES["digits"].for_epochs(0)
    with pytest.raises(ValueError, match="warmup_epochs must be at most epochs 2, got 2.5"):
        Recipe(**PLAIN, warmup_epochs=2.5).for_epochs(2)


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
        ({"warmup_epochs": 4.5}, ValueError, "warmup_epochs must be at most epochs 4, got 4.5"),
        ({"label_smoothing": 1.0}, ValueError, "label_smoothing must be"),
        ({"shift": -1}, ValueError, "shift must be at least 0"),
        ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
        ({"sync_batch_norm": None}, TypeError, "sync_batch_norm must be True or False, got None"),
        ({"crop": 0.5}, TypeError, "crop must be two numbers .low, high. or None, got 0.5"),
        ({"crop": (0.5, 0.1)}, ValueError, "crop must be two shares of the area, 0 < low <= high <= 1"),
        ({"crop": (0.0, 1.0)}, ValueError, "crop must be finite, above 0, got 0.0"),
        ({"crop": (0.5, 1.5)}, ValueError, "crop must be two shares"),
        ({"accumulate": 0}, ValueError, "accumulate must be at least 1, got 0"),
        ({"accumulate": 9}, ValueError, "accumulate must be at most batch_size 8, got 9"),
        ({"precision": "half"}, ValueError, "precision must be one of 'float32', 'bfloat16', 'float16', got 'half'"),
        ({"clip_norm": -1.0}, ValueError, "clip_norm must be finite, at least 0, got -1.0"),
        ({"ema": 1.0}, ValueError, "ema must be finite, at least 0 and below 1, got 1.0"),
        ({"keep": "first"}, ValueError, "keep must be one of 'last', 'best', got 'first'"),
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

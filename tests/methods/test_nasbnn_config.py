"""Settings of the search by NAS-BNN: the paper's defaults, the presets, and that every mistake is named."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitnas.methods.nasbnn.config import PRESETS, NasBnnSearchConfig, fitting, preset
from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, load
from bitnas.methods.nasbnn.space import SubnetSpace

ROOT = Path(__file__).parents[2]


def test_defaults_are_the_papers():
    config = preset("imagenet")
    assert config.population + (config.generations - 1) * (config.mutations + config.crossovers) == 5632
    assert (config.ops_low, config.ops_high, config.bucket) == (20e6, 180e6, 2e6)
    assert config.mutation_rate == 0.2
    assert (config.calibration_batches, config.calibration_size) == (10, 2048)
    assert config.space == DESCRIPTIONS["imagenet"].to_dict()
    assert config.strategies == {
        "bi_teacher": True,
        "bi_transformation": True,
        "weight_normalization": True,
        "consistency": 0.0,
    }
    assert config.by_archive
    # 50,000 of the 1,281,167 training images judge.
    share = config.val_fraction / (config.train_fraction + config.val_fraction)
    assert share * 1_281_167 == pytest.approx(50_000, rel=1e-3)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json_and_name_recipes_that_exist(name):
    from bitnas.train import RECIPES

    config = preset(name)
    assert NasBnnSearchConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.recipe in RECIPES


def test_a_space_file_is_read_once(tmp_path):
    path = tmp_path / "mine.json"
    values = DESCRIPTIONS["small"].to_dict() | {"name": "mine", "stem": [8]}
    path.write_text(json.dumps(values))
    config = preset("digits", space=str(path))
    path.unlink()
    assert config.space == values
    assert NasBnnSearchConfig.from_dict(config.to_dict()) == config


@pytest.fixture
def own(tmp_path):
    """A file of 300 random images of 3 x 20 x 20 in 4 classes."""
    import torch
    from safetensors.torch import save_file

    chance = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 3, 20, 20), generator=chance, dtype=torch.uint8)
    path = tmp_path / "own.safetensors"
    save_file({"images": images, "labels": torch.arange(300) % 4}, path)
    return str(path)


def test_data_without_a_preset_get_what_their_images_and_their_number_allow(own):
    config = preset(own)
    assert config.space == DESCRIPTIONS["small"].to_dict()
    assert config.recipe == "nasbnn-digits"
    assert (config.calibration_batches, config.calibration_size) == (1, 180)  # all there are to train on
    assert (config.population, config.timeout) == (96, None)
    space = SubnetSpace(Description.from_dict(config.space).for_data((3, 20, 20), 4))
    assert config.ops_low <= space.cost(space.smallest).ops < space.cost(space.biggest).ops <= config.ops_high
    assert 70 <= (config.ops_high - config.ops_low) / config.bucket <= 90
    given = preset(own, ops_low=1e5, ops_high=9e5, recipe="digits", calibration_size=20, space="cifar")
    assert (given.ops_low, given.ops_high, given.bucket) == (1e5, 9e5, 1e4)
    assert (given.recipe, given.calibration_size, given.space["name"]) == ("digits", 20, "cifar")
    assert preset(own, space="cifar").ops_high > 2 * config.ops_high
    with pytest.raises(ValueError, match="ops_low, ops_high: got 900000 and 100000, wanted low below high"):
        preset(own, ops_low=9e5, ops_high=1e5)
    with pytest.raises(ValueError, match="wanted a sum below 1"):
        preset(own, train_fraction=0.9)


@pytest.mark.parametrize(
    ("side", "images", "space", "recipe"),
    [
        (28, 10**6, "small", "nasbnn-digits"),
        (29, 2048, "cifar", "nasbnn-cifar10"),
        (64, 2047, "cifar", "nasbnn-digits"),
        (65, 8192, "imagenet", "nasbnn-imagenet"),
        (224, 8191, "imagenet", "nasbnn-cifar10"),
        (224, 100, "imagenet", "nasbnn-digits"),
    ],
)
def test_space_goes_by_the_side_and_recipe_by_the_number_of_images_too(side, images, space, recipe):
    from bitnas.train import RECIPES

    found = fitting("own", (3, side, side), images)
    assert (found.get("space"), found["recipe"]) == (space, recipe)
    assert found["calibration_batches"] * found["calibration_size"] <= images
    assert images >= 16 * RECIPES[recipe].batch_size or recipe == "nasbnn-digits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": [32.5]}, r"stages\[1\].channels: got 32.5, wanted an integer"),
        ({"kernels": [2, 3]}, r"stages\[1\].kernels: got 2, wanted odd numbers"),
        ({"depths": [0, 1]}, r"stages\[1\].depths: got 0, wanted at least 1"),
    ],
)
def test_a_space_file_is_told_which_stage_is_wrong(tmp_path, changes, message):
    values = DESCRIPTIONS["small"].to_dict()
    values["stages"][1] |= changes
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("stage", "changes", "message"),
    [
        (1, {"kernels": [3, 99]}, r"images of 1 x 8 x 8: stages\[1\].kernels: got 99 on maps of side 8, .* at most 17"),
        (2, {"kernels": [3, 11]}, r"stages\[2\].kernels: got 11 on maps of side 4, wanted at most 9"),
        (2, {"channels": [96, 2**40]}, r"stages\[2\].channels: they bring most of the .* wanted at most 1e\+09"),
    ],
)
def test_a_space_that_is_absurd_for_the_images_is_refused(stage, changes, message):
    values = DESCRIPTIONS["small"].to_dict()
    values["stages"][stage] |= changes
    with pytest.raises(ValueError, match=message):
        Description.from_dict(values).for_data((1, 8, 8), 10)


def test_parameters_are_those_of_the_biggest_network_and_its_matrices():
    """The paper's space is refused only where the limit is below what its supernet is known to have."""
    from bitnas.methods.nasbnn import description

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(description, "MOST_PARAMETERS", 66_508_159)
        DESCRIPTIONS["imagenet"].for_data((3, 224, 224), 1000)
        patch.setattr(description, "MOST_PARAMETERS", 66_300_000)  # without biases, batch norms and the like
        with pytest.raises(ValueError, match=r"stages\[3\].channels: they bring most of the 6.64e\+07 parameters"):
            DESCRIPTIONS["imagenet"].for_data((3, 224, 224), 1000)


def test_identity_is_of_what_decides_a_measurement():
    config = preset("digits")
    assert dataclasses.replace(config, workers=7).identity() == config.identity()
    more = dataclasses.replace(config, generations=99)
    assert more.identity() == config.identity()
    assert more.identity(generations=True) != config.identity(generations=True)
    for change in ({"seed": 1}, {"supernet": "0" * 64}, {"strategies": {"bi_teacher": False}}, {"space": "cifar"}):
        assert dataclasses.replace(config, **change).identity() != config.identity()


def test_objectives_of_search_and_front():
    config = preset("digits")
    assert [o.name for o in config.search_objectives()] == ["accuracy", "ops"]
    assert not config.needs_latency
    limited = dataclasses.replace(config, latency_budget=500.0)
    assert limited.needs_latency
    assert [o.name for o in limited.front_objectives()] == ["accuracy", "ops", "latency_us"]
    timed = dataclasses.replace(config, objectives=("accuracy", "latency"))
    assert [o.name for o in timed.front_objectives()] == ["accuracy", "latency_us"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objectives": ("accuracy",)}, "wanted 'archive' alone, or two and more"),
        ({"objectives": ("archive", "latency")}, "wanted 'archive' alone, or two and more"),
        ({"objectives": ("accuracy", "speed")}, "wanted distinct names out of archive, accuracy"),
        ({"population": 1}, "population: got 1, wanted at least 2"),
        ({"mutations": 0, "crossovers": 0}, "mutations, crossovers: got 0 and 0"),
        ({"mutation_rate": 1.5}, "mutation_rate: got 1.5, wanted a finite number from 0 to 1"),
        ({"bucket": 0.0}, "bucket: got 0.0, wanted a finite number above 0"),
        ({"ops_high": float("inf")}, "ops_high: got inf, wanted a finite number"),
        ({"ops_low": float("nan")}, "ops_low: got nan, wanted a finite number"),
        ({"ops_low": 3e5}, "ops_low, ops_high: got 300000 and 210000, wanted low below high"),
        ({"supernet_epochs": 0}, "supernet_epochs: got 0, wanted at least 1"),
        ({"calibration_size": 0}, "calibration_size: got 0, wanted at least 1"),
        ({"calibration_batches": 101}, "calibration_batches: got 101, wanted at most 100"),
        ({"latency_budget": -1.0}, "latency_budget: got -1.0, wanted positive us per batch or None"),
        ({"latency_table": "t.sqlite"}, "with latency_source 'measured', wanted 'table'"),
        ({"latency_source": "table"}, "no latency takes part in this search of archive"),
        ({"strategies": {"tri_teacher": True}}, "strategies: 'tri_teacher' is none of bi_teacher"),
        ({"strategies": {"consistency": -1}}, "strategies: consistency is -1, wanted a finite number"),
        ({"space": "large"}, "space: got 'large', wanted one of imagenet, cifar, small or a .json file"),
        ({"space": {"name": "x"}}, "space: .*missing fields"),
        ({"train_fraction": 0.9}, "wanted a sum below 1, so that a test split remains"),
        ({"memory_limit": 0.01}, "memory_limit: got 0.01 GiB, wanted at least 0.5"),
        ({"device": "tpu"}, "device: got 'tpu', wanted one of cpu, cuda"),
        ({"workers": "slurm"}, "workers: got 'slurm', wanted an integer, 'ray'"),
        ({"supernet": "best.safetensors"}, "supernet: got 'best.safetensors', wanted a SHA-256"),
    ],
)
def test_bad_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        preset("digits", **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1.5}, "seed: got 1.5, wanted an integer"),
        ({"bucket": "2M"}, "bucket: got '2M', wanted a number"),
        ({"objectives": "archive"}, "wanted a tuple of names"),
        ({"strategies": {"bi_teacher": 1}}, "bi_teacher is 1, wanted True or False"),
        ({"strategies": ["bi_teacher"]}, "wanted an object of bi_teacher"),
        ({"space": 5}, "space: "),
        ({"data": ""}, "data: got '', wanted a name"),
    ],
)
def test_values_of_a_wrong_type_are_named(settings, message):
    with pytest.raises(TypeError, match=message):
        NasBnnSearchConfig(**{"data": "digits", **settings})


def test_an_unknown_setting_is_named():
    with pytest.raises(ValueError, match="epochs: no such setting; there are accuracy_tolerance"):
        NasBnnSearchConfig.from_dict({"epochs": 3})


def test_settings_can_be_made_without_torch():
    code = "import sys\nfrom bitnas.methods.nasbnn import preset\npreset('digits')\nprint('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"

"""Settings of the search by NAS-BNN: the paper's defaults, the presets, and that every mistake is named."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitnas.methods.nasbnn.config import PRESETS, NasBnnSearchConfig, preset
from bitnas.methods.nasbnn.description import DESCRIPTIONS

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

"""`bitnas search --method bars` and its resumption: what it prints, leaves and refuses."""

import json
import re
import sys

import pytest

from bitnas.files import read_json_checked
from bitnas.models import create_model
from tests.interrupting import interrupted


@pytest.fixture
def options(tmp_path):
    """A search of seconds: its space and its controller in files."""
    space, controller = tmp_path / "mine.json", tmp_path / "controller.json"
    space.write_text(json.dumps({"name": "mine", "layout": "NRN", "channels": 4, "widths": [0.5, 1.0]}))
    controller.write_text(json.dumps({"architecture_lr": 0.1, "epochs": 9}))
    chosen = ["--space", str(space), "--controller", str(controller), "--workers", "0", "--samples", "2"]
    return [*chosen, "--train-epochs", "0", "--objectives", "accuracy,flops", "--latency-batch", "1"]


def test_a_search_by_gradient_and_its_resumption(run, options, tmp_path):
    folder = tmp_path / "run"
    command = ["search", "--method", "bars", "--out", str(folder), *options, "--epochs", "2"]
    command += ["--cost", "flops", "--flops-budget", "20000"]
    code, out, err = run(*command, "--json")
    first = json.loads(out)
    assert code == 0, err
    assert "search by gradient in" in err
    assert re.search(r"epoch 2/2: loss .* expected FLOPs .* of 20\.0 k, entropy .* skips", err)
    assert "2 networks derived" in err
    assert first["front"] == read_json_checked(folder / "front.json")
    assert (folder / "report.html").is_file()
    written = read_json_checked(folder / "config.json")["search"]["controller"]
    assert (written["epochs"], written["architecture_lr"], written["flops_budget"]) == (2, 0.1, 20000)
    row = first["front"][0]
    assert create_model(folder / row["file"]).config.to_dict() == row["network"]

    code, out, err = run("resume", str(folder))
    assert code == 0, err
    assert "depths" in out
    assert "derived from one supernet and judged" in out
    assert "report:" in out
    assert "epoch 1/2" not in err  # nothing was left to train

    code, _, err = run(*command[:-1], "30000")
    assert code == 2
    assert "other settings: controller.flops_budget is 20000.0 there and 30000.0 here" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--population", "3"],
            "--population is an option of --method width and nasbnn; leave it out for bars: use --sa",
        ),
        (["--generations", "3"], "--generations is an option of .*: it derives its networks at once; use --samples"),
        (["--supernet-epochs", "3"], "--supernet-epochs is an option of --method nasbnn; .* use --epochs"),
        (
            ["--no-inherit"],
            "--no-inherit is an option of --method width; .* --train-epochs 0 judges with the supernet's",
        ),
        (["--cost", "speed"], r"controller\.cost: got 'speed', wanted one of none, flops, latency, both"),
        (["--cost", "none", "--flops-budget", "4e5"], "--flops-budget: got 400000 with --cost none, .* --cost flops"),
        (["--cost", "flops", "--latency-budget", "9"], "--latency-budget: got 9 with --cost flops, .* --cost both"),
        (["--latency-budget", "600", "--latency-table", "no.sqlite"], "no.sqlite.*bitnas latency build --method bars"),
        (["--cost", "latency"], r"controller\.latency_budget: got None, wanted microseconds"),
        (["--flops-budget", "0"], r"controller\.flops_budget: got 0"),
        (["--samples", "0"], "samples: got 0, wanted at least 1"),
        (["--controller", "no.json"], "No such file or directory: no.json"),
        (["--space", "small", "--objectives", "speed"], "objectives: got .*'speed'"),
    ],
)
def test_options_that_do_not_fit_are_named_and_nothing_is_made(run, tmp_path, options, message):
    code, out, err = run("search", "--method", "bars", "--out", str(tmp_path / "run"), *options)
    assert code == 2
    assert out == ""
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["width", "nasbnn"])
def test_other_methods_refuse_its_options(run, tmp_path, method):
    for option in (["--samples", "3"], ["--cost", "flops"], ["--train-epochs", "3"], ["--sample-layout"]):
        code, _, err = run("search", "--method", method, "--out", str(tmp_path / "run"), *option)
        assert code == 2
        assert f"{option[0]} is an option of --method bars; leave it out for {method}: " in err


def test_a_file_that_is_no_controller_is_named(run, tmp_path):
    file = tmp_path / "controller.json"
    for text, message in (("[1]", "got list, wanted an object"), ("{", "is not an object of settings")):
        file.write_text(text)
        code, _, err = run("search", "--method", "bars", "--controller", str(file), "--out", str(tmp_path / "run"))
        assert code == 2
        assert f"--controller: {file} is not an object of settings" in err
        assert message in err


def test_ctrl_c_while_the_supernet_trains(options, tmp_path):
    folder = tmp_path / "run"
    command = ["search", "--method", "bars", "--out", str(folder), *options]
    code, out, err = interrupted([sys.executable, "-m", "bitnas", *command], "epoch 1/9")
    assert code == 130
    assert out == ""
    assert f"bitnas resume {folder}" in err
    assert "Traceback" not in err
    assert (folder / "supernet.ckpt.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "file", "cost"),
    [
        (["--flops-budget", "4e5"], {}, "flops"),
        (["--latency-budget", "600"], {}, "latency"),
        (["--flops-budget", "4e5", "--latency-budget", "600"], {}, "both"),
        (["--flops-budget", "4e5"], {"latency_budget": 600}, "both"),
        ([], {"latency_budget": 600}, "latency"),
        (["--flops-budget", "4e5"], {"cost": "both", "latency_budget": 600}, "both"),
        (["--flops-budget", "4e5", "--cost", "flops"], {"cost": "latency", "latency_budget": 600}, "flops"),
        ([], {}, "none"),
    ],
)
def test_a_budget_implies_its_cost(run, tmp_path, monkeypatch, options, file, cost):
    """What reaches the search, which is not run."""
    import bitnas.methods.bars as bars

    seen = []

    def search(config, out, **_):
        seen.append(config)
        raise ValueError("seen")

    monkeypatch.setattr(bars, "search", search)
    path = tmp_path / "controller.json"
    path.write_text(json.dumps(file))
    command = ["search", "--method", "bars", "--out", str(tmp_path / "run"), "--controller", str(path), *options]
    assert run(*command)[0] == 2
    assert [config.controller["cost"] for config in seen] == [cost]


def test_a_budget_that_the_cost_of_the_file_does_not_look_at_is_refused(run, tmp_path):
    path = tmp_path / "controller.json"
    path.write_text(json.dumps({"cost": "latency", "latency_budget": 600}))
    command = ["search", "--method", "bars", "--out", str(tmp_path / "run"), "--controller", str(path)]
    code, _, err = run(*command, "--flops-budget", "4e5")
    assert code == 2
    assert "--flops-budget: got 400000 with cost 'latency' in --controller" in err

"""What is known of NAS-BNN: the figures of five subnets and of the supernet, recomputed; resuming; honest gaps."""

from __future__ import annotations

import csv
import io
import json

import pytest
import torch
from torch import nn

from bitnas.methods import known
from bitnas.methods.nasbnn import reproduce as module
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.published import (
    CLAIMS,
    EVIDENCE,
    QUANTITIES,
    SEARCH_GENERATIONS,
    SEARCH_WINDOW,
    SUBNETS,
    Known,
)
from bitnas.methods.nasbnn.reproduce import counted, findings, quantities, reproduce, subnet_of
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.methods.reproduction import read
from bitnas.methods.width.reproduce import reproduce as reproduce_widths
from bitnas.methods.width.timing import float_twin, time_beside_float
from bitnas.nn import BinaryConv2d, LSQConv2d


# Worked out apart from the code, to the last digit: FLOPs, BOPs, OPs in millions, binary weights.
@pytest.mark.parametrize(
    ("key", "flops", "bops", "ops", "weights"),
    [
        ("smallest", "1.785064", "1215.212544", "20.772760", 3_862_080),
        ("biggest", "3.569128", "21007.687680", "331.814248", 64_804_608),
        ("fork-1", "2.553064", "5048.107008", "81.429736", 25_576_896),
        ("fork-2", "2.553064", "5530.398720", "88.965544", 20_228_928),
        ("fork-3", "2.891752", "5348.761600", "86.466152", 15_790_336),
    ],
)
def test_the_five_subnets_to_the_last_digit(key, flops, bops, ops, weights):
    count = counted(subnet_of(next(one for one in SUBNETS if one.key == key)))
    assert tuple(f"{figure / 1e6:.6f}" for figure in (count.flops, count.bops, count.ops)) == (flops, bops, ops)
    assert sum(layer.weights for layer in count.layers if layer.binary) == weights


def test_the_space_and_the_supernet():
    ours = quantities()
    assert ours["supernet-params"] == 66_508_159
    assert ours["transforms"] == 12_951 == 3 * 81 + 18 * (81 + 625)
    assert (ours["classifier"], ours["binary-weights"], ours["evaluations"]) == (1_537_000, 64_804_608, 5_632)
    search = NasBnnSearchConfig()
    assert (search.ops_low, search.ops_high, search.generations - 1) == (*SEARCH_WINDOW, SEARCH_GENERATIONS)
    assert (f"{ours['size']:.4e}", f"{ours['size-rule']:.4e}", ours["cut"]) == ("3.9604e+21", "3.3235e+17", 11_916)


def test_everything_that_can_be_computed_is_equal_and_the_rest_says_why_not(tmp_path):
    events = []
    result = reproduce(tmp_path / "made here", latency=False, on_progress=events.append)
    assert result["complete"]
    assert result["summary"] == {"equal": 4 * 5 + len(QUANTITIES), "not checkable": len(CLAIMS)}
    assert [event["done"] for event in events] == list(range(1, 5 + len(QUANTITIES) + len(CLAIMS) + 1))
    assert read(tmp_path / "made here") == json.loads(json.dumps(result))
    claims = result["tables"][2]["rows"]
    assert all(row["value"]["ours"] is None and "needs ImageNet" in row["value"]["reason"] for row in claims)
    assert all(row["evidence"] in EVIDENCE for table in result["tables"] for row in table["rows"])
    text = (tmp_path / "made here" / "reproduction.md").read_text()
    assert "331,814,248 =" in text
    assert "66,508,159 =" in text
    assert "| 68.20 % | not checkable here | abstract |" in text
    assert "≠" not in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "made here" / "subnets.csv").read_text())))
    assert (rows[0]["key"], rows[0]["ops_ours"], rows[0]["ops_status"]) == ("smallest", "20772760", "equal")


def test_a_figure_that_differs_is_marked(monkeypatch):
    wrong = Known("smallest", "smallest", "smallest", "code", "1.785064", "1215.2125", "20.8", "3862081")
    monkeypatch.setattr(module, "SUBNETS", (wrong,))
    (table,) = reproduce(rows=["smallest"], latency=False)["tables"]
    (row,) = table["rows"]
    assert [row[name]["status"] for name in ("flops", "bops", "ops", "binary_weights")] == [
        "equal",
        "equal",
        "equal",
        "differs",
    ]
    assert "3,862,080 ≠" in known.cells(table)[0]
    assert "3862081 | 3,862,080 ≠" in known.brief(table)[1][0]


def test_findings_are_recomputed_and_claims_are_not_called_true():
    found = {finding.id: finding for finding in findings()}
    assert found["counter"].verdict == "consistent"
    assert found["counter"].evidence["agree"] == [one.key for one in SUBNETS]
    claims = {name: one for name, one in found.items() if name.startswith("claim/")}
    assert len(claims) == len(CLAIMS)
    assert {one.verdict for one in claims.values()} == {"not checkable"}
    space = SubnetSpace(module.SPACE)
    example = claims["claim/imagenet-57m"].evidence
    assert space.cost(space.validate(example["subnet"])).ops == pytest.approx(57e6, rel=0.005)
    assert "331.8 M" in claims["claim/coco-370m"].statement  # beyond every subnet at 224 x 224


def test_a_code_that_is_not_of_the_space_is_refused():
    odd = Known("odd", "odd", "24 | 48/3/1 | 96/3/2 96/3/2 | 192/3/4 192/3/4 | 384/3/8 | 768/3/16", "fork", *"1111")
    with pytest.raises(ValueError, match="blocks do not fit the stages"):
        subnet_of(odd)


def fake_times(monkeypatch, stop_at=None):
    timed = []

    def time(subnet, **options):
        if len(timed) == stop_at:
            raise KeyboardInterrupt
        timed.append(subnet.key())
        names = ("median_us", "iqr_us", "noisy", "runs", "float_us", "float_iqr_us", "float_noisy", "float_runs")
        return dict.fromkeys(names, 1.0) | {"ratio": 1.0, "input_size": [3, 224, 224], "order": len(timed)}

    monkeypatch.setattr(module, "time_subnet", time)
    return timed


def test_a_stop_keeps_the_rows_and_the_same_call_goes_on(tmp_path, monkeypatch):
    fake_times(monkeypatch, stop_at=2)
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path)
    assert not read(tmp_path)["complete"]
    timed = fake_times(monkeypatch)
    result = reproduce(tmp_path)
    assert result["complete"]
    assert [row["latency"]["order"] for row in result["tables"][0]["rows"]] == [1, 2, 1, 2, 3]
    assert len(timed) == 3
    assert result["machine"]
    reproduce(tmp_path, rows=["size"])  # what is not asked for stays
    timed = fake_times(monkeypatch)
    reproduce(tmp_path)
    assert timed == []
    reproduce(tmp_path, batch=2, rows=["fork-1"])
    assert len(timed) == 1
    reproduce(tmp_path, batch=2, rows=["fork-1"], retime=True)
    assert len(timed) == 2


def test_the_folder_of_another_paper_is_left_alone(tmp_path):
    reproduce_widths(tmp_path, latency=False, rows=["vgg-x1"], tables=(1,))
    before = (tmp_path / "reproduction.json").read_bytes()
    with pytest.raises(ValueError, match="another paper"):
        reproduce(tmp_path, latency=False, rows=["size"])
    assert (tmp_path / "reproduction.json").read_bytes() == before
    reproduce(tmp_path / "own", latency=False, rows=["days"])
    with pytest.raises(ValueError, match="another paper"):
        reproduce_widths(tmp_path / "own", latency=False, rows=["vgg-x1"], tables=(1,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch"),
        ({"threads": True}, "threads"),
        ({"seconds": 0.0}, "seconds"),
        ({"rows": ["fork-4"]}, "rows: got 'fork-4', wanted one of smallest, biggest"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reproduce(**options)


# ---- the float twin of a subnet ---------------------------------------------------


def small_subnet() -> nn.Module:
    from bitnas.methods.nasbnn.description import DESCRIPTIONS
    from bitnas.models import create_model_from_config

    space = SubnetSpace(DESCRIPTIONS["small"])
    torch.manual_seed(0)
    return create_model_from_config(space.subnet(space.biggest)).eval()


def test_the_float_twin_of_a_subnet_is_an_ordinary_network():
    model = small_subnet()
    twin = float_twin(model)
    own = {type(layer).__name__ for layer in twin.modules() if type(layer).__module__.startswith("bitnas.nn")}
    assert own == {"TileChannels"}  # of the shortcuts
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in twin.modules())
    shapes = [tuple(m.weight.shape) for m in twin.modules() if isinstance(m, nn.Conv2d)]
    assert shapes == [tuple(m.weight.shape) for m in model.modules() if isinstance(m, BinaryConv2d | LSQConv2d)]
    x = torch.rand(2, *model.config.input_size)
    assert twin(x).shape == model(x).shape


def test_a_subnet_is_timed_beside_its_float_twin():
    found = time_beside_float(small_subnet(), seconds=0.02)
    assert found["median_us"] > 0
    assert found["ratio"] == found["float_us"] / found["median_us"]
    assert found["input_size"] == [1, 8, 8]
    alone = time_beside_float(small_subnet(), frozen=False, seconds=0.02)
    assert (alone["median_us"], alone["ratio"]) == (None, None)
    assert alone["float_us"] > 0

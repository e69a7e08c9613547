"""What is known of BARS, recomputed: the worked example to the last operation, and honest gaps for what is lost."""

from __future__ import annotations

import csv
import io
import json

import pytest

from bitnas.methods import known
from bitnas.methods.bars import reproduce as module
from bitnas.methods.bars.published import CLAIMS, EVIDENCE, EXAMPLE, EXAMPLE_SPACE, NETWORKS, QUANTITIES, SETTINGS
from bitnas.methods.bars.reproduce import by_shen2019, counted, expected, findings, quantities, reproduce
from bitnas.methods.reproduction import read


def test_the_worked_example_to_the_last_operation():
    found = counted()
    assert (found.flops, found.ops - found.flops) == (19_764_224, 358_612_992)
    assert sum(layer.weights for layer in found.layers if layer.binary) == 1_336_320
    assert expected(EXAMPLE_SPACE, EXAMPLE) == 375_390_208
    # Rule mac counts a multiply-add once, and 64 binary ones as one.
    mac = counted("mac")
    assert (2 * mac.flops, 2 * mac.bops) == (19_764_224, 358_612_992)
    assert mac.ops == 19_764_224 / 2 + 358_612_992 / 128


def test_both_formulas_of_the_refused_rule_are_given():
    """VGG-small's: multiply-adds, and one operation for each output of a float convolution. ResNet-18's: multiply-adds,
    biases, one for each output of a batch norm and each element that pooling reads."""
    mac = counted("mac")
    outputs = sum(layer.outputs for layer in mac.layers if layer.kind == "conv" and not layer.binary)
    assert by_shen2019("shen2019-table1") == mac.ops + outputs
    norms = sum(layer.outputs for layer in mac.layers if layer.kind == "batch_norm")
    reads = sum(layer.reads for layer in mac.layers if layer.kind == "pool")
    assert by_shen2019("shen2019-table2") == mac.ops + norms + reads + 10
    refused = {finding.id: finding for finding in findings()}["shen2019"]
    assert "counts only vgg_small and resnet18" in refused.evidence["refusal"]


def test_everything_that_is_known_is_equal_and_the_rest_says_why_not(tmp_path):
    result = reproduce(tmp_path, latency=False)
    assert result["complete"]
    assert set(result["summary"]) == {"equal", "not checkable"}
    assert result["summary"]["not checkable"] == len(CLAIMS)
    rows = {row["key"]: row for table in result["tables"] for row in table["rows"]}
    assert set(rows) == {one.key for part in (NETWORKS, QUANTITIES, SETTINGS, CLAIMS) for one in part}
    assert {row["evidence"] for row in rows.values()} <= set(EVIDENCE)
    for key in ("architectures", "hyperparameters", "guards"):
        assert rows[key]["evidence"] == "lost"
        assert rows[key]["value"]["status"] == "not checkable"
    assert read(tmp_path) == json.loads((tmp_path / "reproduction.json").read_text())
    (row,) = csv.DictReader(io.StringIO((tmp_path / "networks.csv").read_text()))
    assert (row["biops_ours"], row["biops_status"]) == ("358612992", "equal")
    assert "BARS-A to BARS-F" in (tmp_path / "reproduction.md").read_text()


def test_findings_are_recomputed():
    found = {finding.id: finding for finding in findings()}
    assert found["one-hot"].verdict == "consistent"
    assert found["one-hot"].evidence["largest_difference"] == 0
    assert found["ends"].evidence["ends"] == 378_377_216 - 375_390_208
    assert found["squares"].evidence["squared"] != found["squares"].evidence["true"]
    assert {one.verdict for name, one in found.items() if name.startswith("claim/")} == {"not checkable"}
    # Where nothing changes the width, squares would do.
    assert module._by_squares(EXAMPLE_SPACE, EXAMPLE) == expected(EXAMPLE_SPACE, EXAMPLE)


def test_a_figure_that_differs_is_marked(monkeypatch):
    monkeypatch.setattr(module, "quantities", lambda: {**quantities(), "expected": 375_390_209})
    (table,) = reproduce(rows=["expected"], latency=False)["tables"]
    assert table["rows"][0]["value"]["status"] == "differs"
    assert known.cells(table)[0][2] == "375,390,209 ≠"


def test_the_worked_example_is_timed_beside_its_float_twin(tmp_path):
    result = reproduce(tmp_path, rows=["example"], seconds=0.02)
    latency = result["tables"][0]["rows"][0]["latency"]
    assert latency["median_us"] > 0
    assert latency["float_us"] > 0
    assert latency["input_size"] == [3, 32, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch": 0}, "batch"), ({"rows": ["BARS-A"]}, "rows: got 'BARS-A', wanted one of example")],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reproduce(**options)

"""Tables 1 and 2 of Shen et al. 2019: the printed roundings, the misprints, resuming, and trained rows."""

from __future__ import annotations

import csv
import io
import json

import pytest

from bitnas.files import CorruptFileError
from bitnas.methods.reproduction import read
from bitnas.methods.width import published_checks as checks
from bitnas.methods.width import reproduce as module
from bitnas.methods.width.published import TABLE_1, TABLE_2, TABLES
from bitnas.methods.width.reproduce import reproduce, time_row

# FLOPs, memory in bits, fitness
VGG = {
    "vgg-fp": (607_600_640, 149_008_384, None),
    "vgg-x1": (13_189_120, 7_303_168, 86.24),
    "vgg-x2": (45_252_608, 23_748_608, 77.93),
    "vgg-x3": (96_190_464, 49_336_320, 62.70),
    "vgg-x4": (166_002_688, 84_066_304, 42.21),
    "vgg-auto-a": (11_313_152, 3_686_400 + 32 * 42_688, 88.74),
    "vgg-auto-b": (59_285_504, 21_823_488 + 32 * 47_872, 75.08),
}
RESNET = {
    "res18-fp": (1_820_697_576, 32 * (11_157_504 + 521_408), None),
    "abc-1": (520_236_008, 5 * 11_157_504 + 32 * 521_408, None),
    "res18-x1": (149_335_016, 11_157_504 + 32 * 521_408, 48.77),
    "res18-x2": (351_654_888, 44_630_016 + 32 * 1_042_816, 54.58),
    "res18-x3": (606_960_616, 100_417_536 + 32 * 1_564_224, 52.25),
    "res18-x4": (915_252_200, 178_520_064 + 32 * 2_085_632, 45.83),
    "res18-auto-a": (495_057_896, 94_339_072 + 32 * 1_042_816, 55.38),
    "res18-auto-b": (660_197_352, 113_893_376 + 32 * 1_564_224, 51.97),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=["table1", "table2"])
def test_every_row_gives_the_exact_figures(table):
    exact = VGG | RESNET
    rows = [row for row in table.rows if row.key in exact]
    assert len(rows) == {1: 7, 2: 8}[table.number]
    for row in rows:
        flops, memory, fitness = exact[row.key]
        figures = checks.figures(row, table)
        assert (figures["flops"].ours, figures["memory_bits"].ours) == (flops, memory), row.key
        assert isinstance(figures["flops"].ours, int)
        found = checks.fitness(row, table)
        assert (found is None) == (fitness is None)
        if fitness is not None:
            assert found == pytest.approx(fitness, abs=0.005)


def test_what_is_printed_is_ours_rounded_but_for_two_figures():
    odd = {}
    for table in TABLES.values():
        for row in table.rows:
            for name, figure in checks.figures(row, table).items():
                if figure.printed is not None and figure.status != "equal":
                    odd[row.key, name] = (figure.status, figure.printed, figure.rounded)
                    assert figure.reason
    assert odd == {
        ("vgg-auto-a", "speed_up"): ("differs", "53.6", "53.7"),
        ("res18-fp", "flops"): ("truncated", "1820", "1821"),
        ("abc-2", "flops"): ("differs", "785", "520"),
    }


def test_rounding_is_half_up_and_exact():
    assert checks.rounded(13_189_120 / 1e6, 1) == "13.2"
    assert [checks.rounded(value, 0) for value in (0.5, 1.5, 2.5)] == ["1", "2", "3"]
    assert checks.rounded(1820.9, 0, truncate=True) == "1820"
    assert checks.compare("1.5", 1_450_000, unit=10**6).status == "equal"
    assert checks.compare("1.5", 1_449_999, unit=10**6).status == "differs"
    assert checks.compare("1.4", 1_450_000, unit=10**6).status == "truncated"
    assert checks.compare(None, 2, unit=1).status == "ours only"
    assert checks.compare("2", None).status == "printed only"
    assert checks.compare(None, None).status == "none"


def finding(name):
    return next(found for found in checks.findings() if found.id == name)


def test_the_speed_up_of_auto_a_is_a_misprint():
    found = finding("vgg-auto-a/speed-up")
    assert found.verdict == "misprint"
    assert {checks.rounded(value, 1) for value in found.evidence["quotients"].values()} == {"53.7", "53.8"}


def test_a_right_speed_up_would_be_found_consistent(monkeypatch):
    from dataclasses import replace

    rows = tuple(replace(row, speed_up="53.7") if row.key == "vgg-auto-a" else row for row in TABLE_1.rows)
    (found,) = checks._speed_ups(replace(TABLE_1, rows=rows))
    assert found.verdict == "consistent"


def test_the_second_row_of_abc_net_has_five_by_five_bases():
    assert finding("abc-1/flops").verdict == "consistent"
    second = finding("abc-2/flops")
    assert (second.verdict, second.evidence["fits"]) == ("mislabelled", [[5, 5]])
    assert checks.totals(TABLE_2.row("abc-2"), TABLE_2, weight_bases=5, activation_bases=5).flops == 785_165_288


def test_the_order_of_auto_a_is_ambiguous():
    orders = {tuple(order["stages"]): order for order in finding("res18-auto-a/order").evidence["orders"]}
    assert len(orders) == 4
    published, other = orders[2, 4, 2, 2], orders[2, 2, 4, 2]
    assert published["published"]
    assert published["flops_fit"]
    assert not published["text_fits"]
    assert other["flops_fit"]
    assert other["text_fits"]
    assert f"{other['flops'] / 1e6:.2f}" == "494.76"
    assert not orders[4, 2, 2, 2]["flops_fit"]


def test_the_tables_follow_two_counters():
    for number, own in ((1, "shen2019-table1"), (2, "shen2019-table2")):
        found = finding(f"table-{number}/counter")
        assert found.verdict == "convention"
        assert found.evidence["agree"] == {"shen2019-table1": 0, "shen2019-table2": 0, "mac": 0} | {own: 6}
    term = finding("table-1/first-layer").evidence
    assert term["outputs_of_first_layer"] == term["missing"]["vgg-x1"] == 131_072
    assert finding("table-1/memory").evidence["agree"] == {
        "weights": 7,
        "weights and a bias of the first convolution": 6,
        "all parameters": 1,
    }


def test_full_precision_and_pcnn_readings():
    assert finding("vgg-fp/flops").verdict == "consistent"
    full = finding("res18-fp/flops").evidence
    assert full["status"] == {"by the table's counter": "truncated", "multiply-adds alone": "differs"}
    assert full["readings"]["multiply-adds alone"] == 1_814_073_344
    readings = {name: f"{value / 1e6:.2f}" for name, value in checks.pcnn_readings().items()}
    assert readings == {"float down-sampling": "168.30", "with one per residual add": "169.05"}


def test_the_printed_claim_holds_between_the_uniform_rows():
    margins = {k: v for number in (1, 2) for k, v in finding(f"table-{number}/claim").evidence["margins"].items()}
    assert margins["VGG-Auto-A"] == pytest.approx(92.17 - 90.24)  # cheaper than every uniform network
    assert all(margin > 0 for margin in margins.values())
    assert finding("table-1/claim").evidence["beaten"]["VGG-Auto-B"] == ["Uniform-3x", "Uniform-4x"]


def test_a_network_that_bitnas_lacks_has_no_totals():
    with pytest.raises(ValueError, match="pcnn"):
        checks.totals(TABLE_2.row("pcnn"), TABLE_2)


def test_both_tables_are_written(tmp_path):
    events = []
    result = reproduce(tmp_path / "run", latency=False, on_progress=events.append)
    assert result["complete"]
    assert [event["done"] for event in events] == list(range(1, 18))
    assert read(tmp_path / "run") == json.loads(json.dumps(result))
    assert result["summary"] == {"differs": 2, "equal": 22, "printed only": 27, "truncated": 1}
    text = (tmp_path / "run" / "reproduction.md").read_text()
    assert "13,189,120 =" in text
    assert "53.7 ≠" in text
    assert "mislabelled" in text
    rows = list(csv.DictReader(io.StringIO((tmp_path / "run" / "table2.csv").read_text())))
    assert [row["key"] for row in rows] == [row.key for row in TABLE_2.rows]
    assert (rows[1]["flops_ours"], rows[2]["flops_status"], rows[3]["flops_status"]) == (
        "169054184",
        "equal",
        "differs",
    )


def fake_times(monkeypatch, stop_at=None):
    """Timings that are made up, for tests of what is kept of them; the rows that were timed."""
    timed = []

    def time(row, **options):
        if row.key == stop_at:
            raise KeyboardInterrupt
        timed.append(row.key)
        names = ("median_us", "iqr_us", "noisy", "runs", "float_us", "float_iqr_us", "float_noisy", "float_runs")
        return dict.fromkeys(names, 1.0) | {"ratio": 1.0, "input_size": [3, 32, 32], "order": len(timed)}

    monkeypatch.setattr(module, "time_row", time)
    return timed


def test_a_stop_keeps_the_rows_and_the_same_call_goes_on(tmp_path, monkeypatch):
    fake_times(monkeypatch, stop_at="vgg-x3")
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path, tables=(1,))
    stopped = read(tmp_path)
    assert not stopped["complete"]
    assert [row["key"] for row in stopped["tables"][0]["rows"]] == ["vgg-fp", "vgg-x1", "vgg-x2"]

    timed = fake_times(monkeypatch, stop_at="vgg-auto-b")
    with pytest.raises(KeyboardInterrupt):
        reproduce(tmp_path, tables=(1,))
    assert timed == ["vgg-x3", "vgg-x4", "vgg-auto-a"]
    timed = fake_times(monkeypatch)
    result = reproduce(tmp_path, tables=(1,))
    assert timed == ["vgg-auto-b"]
    assert [row["latency"]["order"] for row in result["tables"][0]["rows"]] == [1, 2, 3, 1, 2, 3, 1]

    timed = fake_times(monkeypatch)
    reproduce(tmp_path, tables=(1,), batch=2)  # another batch is another measurement
    assert len(timed) == 7
    (tmp_path / "reproduction.json").write_text('{"format": "bitnas-reproduction-1", "tables": 3}')
    with pytest.raises(CorruptFileError, match="delete it"):
        reproduce(tmp_path, tables=(1,))


def test_the_rows_of_one_table_outlive_a_run_of_the_other(tmp_path, monkeypatch):
    fake_times(monkeypatch)
    reproduce(tmp_path, tables=(1,))
    reproduce(tmp_path, tables=(2,), latency=False)
    timed = fake_times(monkeypatch)
    reproduce(tmp_path, tables=(1,))
    assert timed == []


def test_noisy_rows_are_timed_again_when_asked(tmp_path, monkeypatch):
    def time(row, **options):
        timed.append(row.key)
        quiet = {"median_us": 1.0, "iqr_us": 1.0, "noisy": False, "runs": 9, "float_us": 1.0, "float_iqr_us": 1.0}
        return quiet | {"float_noisy": row.key == "vgg-x2", "float_runs": 9, "ratio": 1.0, "input_size": [3, 32, 32]}

    timed: list[str] = []
    monkeypatch.setattr(module, "time_row", time)
    options = {"tables": (1,), "rows": ["vgg-x1", "vgg-x2"]}
    reproduce(tmp_path, **options)
    reproduce(tmp_path, **options)
    assert timed == ["vgg-x1", "vgg-x2"]
    reproduce(tmp_path, **options, retime=True)
    assert timed == ["vgg-x1", "vgg-x2", "vgg-x2"]


def test_a_row_is_timed_frozen_and_as_its_float_twin():
    latency = time_row(TABLE_1.row("vgg-auto-a"), batch=1, threads=1, seconds=0.05)
    assert latency["median_us"] > 0
    assert latency["ratio"] == latency["float_us"] / latency["median_us"]
    assert latency["ratio"] > 1
    assert latency["input_size"] == [3, 32, 32]


def test_a_row_is_trained_once_and_described(tmp_path, monkeypatch):
    from bitnas import train

    options = {"tables": (1,), "rows": ["vgg-x1"], "latency": False, "data": "digits"}
    options |= {"recipe": "digits", "epochs": 3, "base_width": 0.125}
    (row,) = reproduce(tmp_path, **options)["tables"][0]["rows"]
    assert row["trained"] is None
    assert "--train" in row["trained_reason"]
    events = []
    (row,) = reproduce(tmp_path, **options, train=True, on_progress=events.append)["tables"][0]["rows"]
    trained = row["trained"]
    assert [event["done"] for event in events if event["event"] == "training_vgg-x1"] == [1, 2, 3]
    assert trained["accuracy"] > 0.5
    assert trained["top5"] > trained["accuracy"]
    assert trained["verified"]["dots_equal"] == trained["verified"]["dots"] > 0
    assert not trained["comparable"]
    assert row["top1"]["ours"] == 100 * trained["accuracy"]
    assert row["top1"]["status"] == "differs"
    assert "not to be compared" in row["top1"]["reason"]
    assert {path.name for path in (tmp_path / "networks").iterdir()} == {
        "vgg-x1.safetensors",
        "vgg-x1.frozen.safetensors",
    }

    monkeypatch.setattr(train, "fit", None)  # nothing is trained again
    (again,) = reproduce(tmp_path, **options)["tables"][0]["rows"]
    assert again == row
    with pytest.raises(CorruptFileError, match="another recipe"):
        reproduce(tmp_path, **options | {"epochs": 4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tables": (3,)}, "tables"),
        ({"tables": ()}, "tables"),
        ({"batch": 0}, "batch"),
        ({"threads": True}, "threads"),
        ({"epochs": 0}, "epochs"),
        ({"seconds": 0.0}, "seconds"),
        ({"rows": ["res18-x1"], "tables": (1,)}, "rows: got 'res18-x1', wanted one of vgg-fp"),
        ({"train": True}, "train: needs data"),
        ({"train": True, "data": "digits", "tables": (1,)}, "train: needs data, out"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        reproduce(**options)

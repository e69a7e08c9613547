"""Tables, means, losses, files and pictures from rows with known figures."""

import argparse
import json
import xml.etree.ElementTree as ElementTree

import pytest
from cpu_goals import CONV2D_GOALS, GEMM_GOALS
from cpu_report import groups_of, losses_text, means_of, means_table, publish, rows_table, with_bound
from cpu_runs import Collected

PEERS = ("float32", "int8")
KEYS = ("isa", "threads")
MACHINE = {"cpu": "Test CPU", "cores": 2, "torch": "2.13", "isas": ["scalar", "avx2"], "amx": False}
PEAKS = {
    "clock_ghz": 3.0,
    "loops": [{"loop": "lookup", "isa": "avx2", "gops": 500.0, "products_per_cycle": 80.0}],
    "read": {level: {"bytes": 1, "gb_per_s": rate} for level, rate in {"l2": 100.0, "memory": 20.0}.items()},
}


def row(name="a", isa="avx2", threads=1, *, ours=0.1, cold=0.2, batch=1, network="net", **peers):
    """`peers`: (warm, cold) times as bitnas."""
    ms = {"bitnas": ours, **{peer: warm * ours for peer, (warm, _) in peers.items()}}
    cold_ms = {"bitnas": cold, **{peer: ratio * cold for peer, (_, ratio) in peers.items()}}
    gops = {peer: 25 / time for peer, time in ms.items()}
    case = {"name": name, "isa": isa, "threads": threads, "batch": batch, "network": network, "kernel": f"{isa}_best"}
    intensity = {peer: 10.0 * ours / time for peer, time in ms.items()}
    return {**case, "ms": ms, "cold_ms": cold_ms, "gops": gops, "noisy": [], "operations_per_byte": intensity}


def test_the_share_of_the_bound():
    rows = with_bound([row(), row(threads=2), row(isa="scalar")], PEAKS)
    assert [found["bound_fraction"] for found in rows] == [0.5, 0.25, None]
    assert with_bound([row()], {"problem": "no compiler"})[0]["bound_fraction"] is None


def test_groups_keep_the_order_of_rows():
    rows = [row(isa="avx2", name="b"), row(isa="scalar"), row(isa="avx2", name="a")]
    assert [(key, [r["name"] for r in group]) for key, group in groups_of(rows, ["isa"])] == [
        (("avx2",), ["b", "a"]),
        (("scalar",), ["a"]),
    ]


def test_a_table_of_rows():
    slow = {**row("slow", float32=(2, 0.5)), "noisy": ["bitnas", "int8"]}
    rows = with_bound([row("fast", float32=(20, 10), int8=(4, 3)), slow], PEAKS)
    header, _, first, second = rows_table(rows, PEERS, "layer").splitlines()
    assert " ".join(header.split()) == "layer kernel us (cold) GOP/s of bound float32, us int8, us"
    assert " ".join(first.split()) == "fast avx2_best 100.0 (200.0) 250 50 % 2000 20.0x (10.0x) 400 4.0x (3.0x)"
    assert (
        " ".join(second.split()) == "slow avx2_best 100.0 (200.0) 250 50 % 200 2.0x (0.5x) - SLOWER than float32; noisy"
    )


def test_a_row_without_cold_times_or_a_bound():
    bare = row(float32=(20, 10))
    del bare["cold_ms"]
    line = rows_table([bare], PEERS, "layer").splitlines()[2]
    assert " ".join(line.split()) == "a avx2_best 100.0 - 250 - 2000 20.0x (-) -"


def test_means_per_group():
    rows = [row(float32=(4, 2), int8=(1, 1)), row(float32=(9, 8)), row(threads=2, float32=(3, 3))]
    means = means_of(rows, PEERS, KEYS)
    assert [(mean["isa"], mean["threads"]) for mean in means] == [("avx2", 1), ("avx2", 2)]
    assert means[0]["warm"] == pytest.approx({"float32": 6, "int8": 1})
    assert means[0]["cold"] == pytest.approx({"float32": 4, "int8": 1})
    assert means[1]["warm"] == {"float32": pytest.approx(3), "int8": None}
    lines = means_table(means, PEERS, KEYS).splitlines()
    assert " ".join(lines[2].split()) == "avx2 1 6.00x (4.00x) 1.00x (1.00x)"
    assert " ".join(lines[3].split()) == "avx2 2 3.00x (3.00x) -"


def test_where_binary_loses():
    assert losses_text([row(float32=(2, 2))], PEERS, KEYS) == "binary loses nowhere"
    text = losses_text([row("small", threads=2, float32=(2, 0.9), int8=(0.5, 1))], PEERS, KEYS)
    assert text.splitlines() == [
        "binary loses:",
        "  isa avx2, threads 2: small to int8, 0.50x with warm caches",
        "  isa avx2, threads 2: small to float32, 0.90x with cold caches",
    ]


# ---- files and pictures -----------------------------------------------------------------------


@pytest.fixture
def published(tmp_path, capsys):
    def run(collected, bench="conv2d", goals=CONV2D_GOALS, **options):
        defaults = {"quick": False, "out": tmp_path / "results", "no_plot": True}
        options = argparse.Namespace(**{**defaults, "isa": None, "threads": "1,2", "seconds": 0.5, **options})
        status = publish(
            bench,
            collected,
            options,
            facts=MACHINE,
            peaks=PEAKS,
            goals=goals,
            peers=PEERS,
            keys=KEYS,
            limits={"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}},
        )
        files = {path.name: path for path in (tmp_path / "results").glob("*")}
        return status, files, capsys.readouterr()

    return run


def some_rows():
    return [row(name, float32=(20, 10), int8=(4, 0.9)) for name in ("first", "second.down")]


def test_a_whole_run(published):
    status, files, said = published(Collected(some_rows(), {"avx2": {"bfloat16": "emulated"}}))
    assert status == 0
    assert list(files) == ["test-cpu-2-cores-conv2d.json"]
    result = json.loads(files["test-cpu-2-cores-conv2d.json"].read_text())
    assert result["partial"] is None
    assert result["options"] == {"isa": None, "threads": "1,2", "seconds": 0.5}
    assert [found["name"] for found in result["rows"]] == ["first", "second.down"]
    for found, given in zip(result["rows"], some_rows(), strict=True):
        assert found["ms"] == pytest.approx(given["ms"], rel=1e-4)
    lines = files["test-cpu-2-cores-conv2d.json"].read_text().splitlines()
    assert sum('"name"' in line for line in lines) == 2  # one row to a line
    assert [mean["warm"] for mean in result["geomeans"]] == [pytest.approx({"float32": 20, "int8": 4})]
    assert [goal["goal"] for goal in result["goals"]] == [goal.name for goal in CONV2D_GOALS]
    assert result["torch_limits"]["avx2"] == {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    for words in (
        "20.00x (10.00x)",
        "first to int8, 0.90x with cold caches",
        "avx2: left out bfloat16: emulated",
        "cannot be measured here",
        "30 of 30 layers are missing",
        "written to ",
    ):
        assert words in said.out


@pytest.mark.parametrize(("problem", "status"), [("interrupted", 130), ("the process for avx2 ended with 1", 1)])
def test_a_run_that_was_cut_short_is_written_and_says_so(published, problem, status):
    found, files, said = published(Collected(some_rows()[:1], {}, problem), no_plot=False)
    assert found == status
    assert list(files) == ["test-cpu-2-cores-conv2d.partial.json"]  # an earlier whole file would still be there
    result = json.loads(files["test-cpu-2-cores-conv2d.partial.json"].read_text())
    assert (result["partial"], len(result["rows"])) == (problem, 1)
    assert said.err == f"stopped: {problem}\n"


def test_quick_and_empty_runs_write_nothing(published):
    assert published(Collected(some_rows()), quick=True)[1] == {}
    status, files, _ = published(Collected([], {}, "interrupted"))
    assert (status, files) == (130, {})


def texts(path):
    return [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]


def test_pictures(published):
    pytest.importorskip("matplotlib")
    rows = [
        row(name, isa, batch=batch, network=network, float32=(20, 10), **({"int8": (0.3, 1)} if batch == 1 else {}))
        for isa in ("avx2", "scalar")
        for network in ("one", "two")
        for batch in (1, 32)
        for name in ("first", "second.down")
    ]
    _, files, said = published(Collected([*rows, row(threads=2, float32=(20, 10))]), no_plot=False)
    stem = "test-cpu-2-cores-conv2d"
    assert files.keys() == {f"{stem}.json", f"{stem}-ratios.svg", f"{stem}-roofline.svg"}
    assert said.out.count("drawn in ") == 2
    ratios = texts(files[f"{stem}-ratios.svg"])
    assert {"one, batch 1", "one, batch 32", "two, batch 1", "two, batch 32", "float32", "int8"} <= set(ratios)
    assert ratios.count("second.down") == 4
    assert any("avx2 kernels" in text and "Test CPU" in text for text in ratios)
    roofline = texts(files[f"{stem}-roofline.svg"])
    assert {"avx2 main loop at most", "memory, 20 GB/s", "L2, 100 GB/s", "bitnas scalar", "batch 32"} <= set(roofline)
    before = {name: path.read_bytes() for name, path in files.items()}
    _, files, _ = published(Collected([*rows, row(threads=2, float32=(20, 10))]), no_plot=False)
    assert {name: path.read_bytes() for name, path in files.items() if name.endswith("svg")} == {
        name: data for name, data in before.items() if name.endswith("svg")
    }
    for path in files.values():
        assert path.stat().st_size < 100_000


def test_pictures_of_products_have_no_roofline(published):
    pytest.importorskip("matplotlib")
    rows = [row("1x2x3", float32=(20, 10))]
    for found in rows:
        del found["network"], found["operations_per_byte"]
    _, files, _ = published(Collected(rows), "gemm", GEMM_GOALS, no_plot=False)
    assert files.keys() == {"test-cpu-2-cores-gemm.json", "test-cpu-2-cores-gemm-ratios.svg"}
    assert "1x2x3" in texts(files["test-cpu-2-cores-gemm-ratios.svg"])


def test_nothing_on_one_thread_is_nothing_to_draw(published):
    pytest.importorskip("matplotlib")
    assert list(published(Collected([row(threads=2, float32=(2, 2))]), no_plot=False)[1]) == [
        "test-cpu-2-cores-conv2d.json"
    ]

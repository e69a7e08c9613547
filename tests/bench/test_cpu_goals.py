"""What is said of the goals, from rows with known figures."""

import cpu_goals
import pytest
from cpu_goals import CONV2D_GOALS, GEMM_GOALS, IMPOSSIBLE, MISSED, NETWORKS, REACHED, UNKNOWN, judge

from bitnas.cost.bench import read_shapes

MACHINE = {"isas": ["scalar", "avx2", "avx512", "amx"], "amx": True}
NAMES = [goal.name for goal in CONV2D_GOALS]


def conv2d_row(isa, network, name, batch, threads, *, ms=0.2, ratios, scaling=2.0):
    """`ratios`: peer time / bitnas time by way."""
    ours = ms / (scaling if threads == 2 else 1)
    ways = {"bitnas": ours, **{way: ratio * ours for way, ratio in ratios.items()}}
    best = {}
    for way, time in ways.items():
        peer = way.partition("/")[0]
        best[peer] = min(best.get(peer, time), time)
    cold = {name: 2 * time for name, time in best.items()}
    cold_ways = {name: 2 * time for name, time in ways.items()}
    row = {"isa": isa, "network": network, "name": name, "batch": batch, "threads": threads, "kernel": "k"}
    return {**row, "ms": best, "cold_ms": cold, "way_ms": ways, "way_cold_ms": cold_ways}


GOOD = {
    "amx": {"float32/eager": 36, "bfloat16/onednn": 6, "int8/onednn": 4, "int8/x86": 4},
    "avx512": {"float32/eager": 14, "bfloat16/onednn": 6, "int8/onednn": 5, "int8/x86": 4.5},
    "avx2": {"float32/eager": 13, "int8/onednn": 8, "int8/x86": 3},
}


def conv2d_rows(ratios=GOOD, **options):
    return [
        conv2d_row(isa, network, layer.name, batch, threads, ratios=ratios[isa], **options)
        for isa in ratios
        for network, batches in NETWORKS.items()
        for layer in read_shapes(network)
        for batch in batches
        for threads in (1, 2)
    ]


def verdicts(rows, machine=MACHINE):
    return {row["goal"]: row["verdict"] for row in judge(CONV2D_GOALS, rows, machine)}


def test_goals_that_are_reached():
    long = "two threads as fast as one, 300 us and more"
    assert verdicts(conv2d_rows()) == {**dict.fromkeys(NAMES, REACHED), long: UNKNOWN}
    assert verdicts(conv2d_rows(ms=0.3))[long] == REACHED


@pytest.mark.parametrize(
    ("isa", "way", "ratio", "missed"),
    [
        ("amx", "int8/onednn", 2.9, ["AMX, as fast as oneDNN int8", "AMX, as fast as oneDNN int8, batch 1"]),
        ("amx", "int8/onednn", 3.4, ["AMX, as fast as oneDNN int8, batch 1"]),
        ("amx", "bfloat16/onednn", 4.9, ["AMX, as fast as bfloat16"]),
        ("amx", "float32/eager", 34, ["AMX, as fast as float32"]),
        ("amx", "int8/x86", 1, []),  # the goal names oneDNN
        ("avx512", "float32/eager", 12.9, ["AVX-512 without AMX, as fast as float32"]),
        ("avx512", "int8/x86", 3.9, ["AVX-512 without AMX, as fast as int8"]),
        ("avx2", "float32/eager", 11.9, ["AVX2, as fast as float32"]),
        ("avx2", "int8/onednn", 6.9, ["AVX2, as fast as oneDNN int8"]),
    ],
)
def test_goals_that_are_missed(isa, way, ratio, missed):
    found = verdicts(conv2d_rows({**GOOD, isa: {**GOOD[isa], way: ratio}}, ms=0.3))
    assert [goal for goal, verdict in found.items() if verdict == MISSED] == missed


def test_the_mean_is_geometric_over_all_layers_and_3x3_and_cold_are_told():
    rows = [row for row in conv2d_rows() if row["isa"] == "avx512"]
    for row in rows:
        if row["name"].endswith(".down"):  # the 1x1 layers
            row["ms"]["float32"] = 2 * row["ms"]["bitnas"]
    reading = judge(CONV2D_GOALS, rows, MACHINE)[4]
    count, small = 15, 3
    mean = (14 ** (count - small) * 2**small) ** (1 / count)
    assert reading["value"] == pytest.approx(mean)
    assert reading["reading"] == f"{mean:.2f}x (3x3 alone 14.00x, cold caches 14.00x)"


def test_one_slow_layer_misses_a_goal_of_two_threads():
    rows = conv2d_rows(ms=0.3)
    [slow] = [r for r in rows if (r["isa"], r["name"], r["batch"], r["threads"]) == ("avx2", "conv4", 64, 2)]
    slow["ms"]["bitnas"] = 0.3 / 1.8
    [row] = [row for row in judge(CONV2D_GOALS, rows, MACHINE) if "300 us and more" in row["goal"]]
    assert row["verdict"] == MISSED
    assert row["reading"] == "least 1.80x (avx2 vgg_small conv4, batch 64), median 2.00x of 90 layers"


def test_short_layers_and_scalar_kernels_are_in_no_goal_of_threads():
    rows = conv2d_rows({"scalar": {"float32/eager": 1}}, ms=1.0, scaling=1.0) + conv2d_rows(ms=0.049, scaling=1.0)
    found = verdicts(rows)
    assert found[NAMES[-1]] == found[NAMES[-2]] == UNKNOWN


@pytest.mark.parametrize(
    ("machine", "why"),
    [
        ({"isas": ["scalar", "avx2", "avx512"], "amx": False}, "this CPU has no AMX"),
        ({"isas": ["scalar", "avx2", "avx512"], "amx": True}, "bitnas has no AMX kernels in this build"),
    ],
)
def test_goals_of_instructions_that_are_not_there(machine, why):
    rows = [row for row in conv2d_rows() if row["isa"] != "amx"]
    judged = judge(CONV2D_GOALS, rows, machine)
    assert [row["verdict"] for row in judged[:4]] == [IMPOSSIBLE] * 4
    assert {row["reading"] for row in judged[:4]} == {why}
    assert judged[4]["verdict"] == REACHED


def test_missing_rows_are_not_taken_for_reached():
    rows = conv2d_rows()
    assert judge(CONV2D_GOALS, rows[:-2], MACHINE)[-3]["reading"] == "1 of 30 layers are missing"
    rows[0]["way_ms"].pop("int8/onednn")
    assert judge(CONV2D_GOALS, rows, MACHINE)[0]["reading"] == "1 of 30 layers lack int8/onednn"
    assert set(verdicts([]).values()) == {UNKNOWN}


def gemm_rows(ratio, isa="amx"):
    rows = []
    for layer in read_shapes("gemm"):
        rows.append({"isa": isa, "threads": 1, "name": layer.name, "ms": {"bitnas": 1.0, "numkong": ratio}})
    return rows


def test_every_product_counts():
    assert judge(GEMM_GOALS, gemm_rows(2.0), MACHINE)[0]["verdict"] == REACHED
    rows = gemm_rows(3.0)
    rows[4]["ms"]["numkong"] = 1.9
    [row] = judge(GEMM_GOALS, rows, MACHINE)
    assert row["verdict"] == MISSED
    assert row["reading"].startswith("least 1.90x (1568x512x4608), geometric mean 2.8")
    assert judge(GEMM_GOALS, rows[1:], MACHINE)[0]["reading"] == "1 of 9 products are missing"
    assert judge(GEMM_GOALS, gemm_rows(9, isa="avx512"), MACHINE)[0]["verdict"] == UNKNOWN  # not the fastest one


def test_cells():
    [cells] = cpu_goals.goal_cells(judge(GEMM_GOALS, gemm_rows(2.0), MACHINE))
    assert cells == [GEMM_GOALS[0].name, ">= 2x", "reached", "least 2.00x (3136x64x576), geometric mean 2.00x"]

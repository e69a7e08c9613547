"""What the CPU kernels are meant to reach, and what the rows of bench_conv2d.py and bench_gemm.py say of it.

Ratios are peer time / bitnas time with warm caches; those with cold ones are told beside them. A goal over layers is a
geometric mean over every layer of both lists at every batch size, on one thread, bits to bits.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitnas.cost.bench import read_shapes

Row = dict[str, Any]

# The layer lists and the batch sizes they are timed at.
NETWORKS = {"resnet18": (1, 32), "vgg_small": (1, 64)}

REACHED, MISSED, UNKNOWN, IMPOSSIBLE = "reached", "missed", "not measured", "cannot be measured here"


@dataclass(frozen=True)
class Results:
    """Rows and where they come from: ``machine`` as in a file of results."""

    rows: Sequence[Row]
    machine: Mapping[str, Any]

    def why_not(self, isa: str) -> str | None:
        """Why nothing of an instruction set can be measured; None where it can."""
        if isa in self.machine["isas"]:
            return None
        if isa == "amx":
            return "bitnas has no AMX kernels in this build" if self.machine["amx"] else "this CPU has no AMX"
        return f"this CPU and build have no {isa} kernels"


@dataclass(frozen=True)
class Reading:
    """``value`` decides; ``text`` says more."""

    value: float
    text: str


class NotMeasured(LookupError):
    """The rows do not hold what a goal is about; the message says what is missing."""


@dataclass(frozen=True)
class Goal:
    """At least ``wanted`` times. ``isa``: the instruction set that it is about, where it is about one."""

    name: str
    wanted: float
    reading: Callable[[Results], Reading]
    isa: str | None = None

    def judge(self, results: Results) -> dict[str, Any]:
        """``{"goal", "wanted", "reading", "verdict", "value"}``, words and the number that they are about."""
        row = {"goal": self.name, "wanted": f">= {self.wanted:g}x"}
        if self.isa is not None and (why := results.why_not(self.isa)):
            return {**row, "reading": why, "verdict": IMPOSSIBLE, "value": None}
        try:
            found = self.reading(results)
        except NotMeasured as why_not:
            return {**row, "reading": str(why_not), "verdict": UNKNOWN, "value": None}
        verdict = REACHED if found.value >= self.wanted else MISSED
        return {**row, "reading": found.text, "verdict": verdict, "value": found.value}


def _geomean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, values)))


def _kernel_size(row: Row) -> int:
    return next(layer.kernel for layer in read_shapes(row["network"]) if layer.name == row["name"])


def _key(row: Row) -> tuple[str, str, int]:
    return row["network"], row["name"], row["batch"]


def layers_of(results: Results, isa: str, threads: int, batch_1_only: bool = False) -> list[Row]:
    """Every row that a goal over layers is about.

    Raises:
        NotMeasured: some are missing.
    """
    wanted = {
        (network, layer.name, batch)
        for network, batches in NETWORKS.items()
        for batch in batches
        for layer in read_shapes(network)
        if batch == 1 or not batch_1_only
    }
    rows = [row for row in results.rows if (row["isa"], row["threads"]) == (isa, threads) and _key(row) in wanted]
    if missing := len(wanted - {_key(row) for row in rows}):
        raise NotMeasured(f"{missing} of {len(wanted)} layers are missing")
    return rows


def _against(isa: str, peer: str, *, batch_1_only: bool = False) -> Callable[[Results], Reading]:
    """``peer``: ``float32``, or a way to compute it: ``int8/onednn``."""
    warm_key, cold_key = ("way_ms", "way_cold_ms") if "/" in peer else ("ms", "cold_ms")

    def ratios(rows: Sequence[Row], key: str, ours: str) -> list[float]:
        found = [row[key][peer] / row[ours]["bitnas"] for row in rows if peer in row.get(key, {})]
        if len(found) < len(rows):
            raise NotMeasured(f"{len(rows) - len(found)} of {len(rows)} layers lack {peer}")
        return found

    def reading(results: Results) -> Reading:
        rows = layers_of(results, isa, 1, batch_1_only)
        square = [row for row in rows if _kernel_size(row) == 3]
        warm = _geomean(ratios(rows, warm_key, "ms"))
        text = f"{warm:.2f}x (3x3 alone {_geomean(ratios(square, warm_key, 'ms')):.2f}x"
        text += f", cold caches {_geomean(ratios(rows, cold_key, 'cold_ms')):.2f}x)"
        return Reading(warm, text)

    return reading


def _two_threads(least_us: float, most_us: float) -> Callable[[Results], Reading]:
    """Over every layer of every vector instruction set that takes so long on one thread."""

    def reading(results: Results) -> Reading:
        one, two = (
            {(row["isa"], *_key(row)): row["ms"]["bitnas"] for row in results.rows if row["threads"] == count}
            for count in (1, 2)
        )
        found = {
            key: ms / two[key]
            for key, ms in one.items()
            if key in two and key[0] != "scalar" and least_us <= 1e3 * ms < most_us
        }
        if not found:
            raise NotMeasured("no layer of that length was timed on one and on two threads")
        (isa, network, name, batch), least = min(found.items(), key=lambda item: item[1])
        text = f"least {least:.2f}x ({isa} {network} {name}, batch {batch}), "
        text += f"median {statistics.median(found.values()):.2f}x of {len(found)} layers"
        return Reading(least, text)

    return reading


CONV2D_GOALS = (
    Goal("AMX, as fast as oneDNN int8", 3, _against("amx", "int8/onednn"), "amx"),
    Goal("AMX, as fast as bfloat16", 5, _against("amx", "bfloat16"), "amx"),
    Goal("AMX, as fast as float32", 35, _against("amx", "float32"), "amx"),
    Goal("AMX, as fast as oneDNN int8, batch 1", 3.5, _against("amx", "int8/onednn", batch_1_only=True), "amx"),
    Goal("AVX-512 without AMX, as fast as float32", 13, _against("avx512", "float32"), "avx512"),
    Goal("AVX-512 without AMX, as fast as int8", 4, _against("avx512", "int8"), "avx512"),
    Goal("AVX2, as fast as float32", 12, _against("avx2", "float32"), "avx2"),
    Goal("AVX2, as fast as oneDNN int8", 7, _against("avx2", "int8/onednn"), "avx2"),
    Goal("two threads as fast as one, 300 us and more", 1.9, _two_threads(300, math.inf)),
    Goal("two threads as fast as one, 50 to 300 us", 1.6, _two_threads(50, 300)),
)


def _gemm(results: Results) -> Reading:
    fastest = results.machine["isas"][-1]
    rows = [row for row in results.rows if (row["isa"], row["threads"]) == (fastest, 1)]
    wanted = {layer.name for layer in read_shapes("gemm")}
    ratios = {
        row["name"]: row["ms"]["numkong"] / row["ms"]["bitnas"]
        for row in rows
        if row["name"] in wanted and "numkong" in row["ms"]
    }
    if len(ratios) < len(wanted):
        raise NotMeasured(f"{len(wanted) - len(ratios)} of {len(wanted)} products are missing")
    name, least = min(ratios.items(), key=lambda item: item[1])
    return Reading(least, f"least {least:.2f}x ({name}), geometric mean {_geomean(list(ratios.values())):.2f}x")


GEMM_GOALS = (Goal("1-bit matrix product, as fast as numkong, every size", 2, _gemm),)


def judge(goals: Sequence[Goal], rows: Sequence[Row], machine: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per goal (:meth:`Goal.judge`)."""
    results = Results(rows, machine)
    return [goal.judge(results) for goal in goals]


def goal_cells(judged: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [[row["goal"], row["wanted"], row["verdict"], row["reading"]] for row in judged]

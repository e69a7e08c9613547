"""What the CUDA kernels are meant to reach, and what a file of readings says of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]


class NotMeasured(LookupError):
    """The readings do not hold what a goal is about."""


@dataclass(frozen=True)
class Goal:
    """``reading`` takes the figure out of the results, in ``unit``; ``wanted`` is the least, or with ``at_most`` the
    most that it may be."""

    name: str
    wanted: float
    unit: str
    reading: Callable[[Results], float]
    at_most: bool = False

    def judge(self, results: Results) -> dict[str, Any]:
        """``{"goal", "wanted", "reading", "verdict"}`` as words; the reading as a number under ``"value"``."""
        row = {"goal": self.name, "wanted": f"{'<=' if self.at_most else '>='} {self.wanted:g} {self.unit}"}
        try:
            value = self.reading(results)
        except NotMeasured:
            return {**row, "reading": "-", "value": None, "verdict": "not measured"}
        reached = value <= self.wanted if self.at_most else value >= self.wanted
        verdict = "reached" if reached else "not reached"
        return {**row, "reading": f"{value:.3g} {self.unit}", "value": value, "verdict": verdict}


def _row(rows: Sequence[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    raise NotMeasured


def _ratio(row: dict[str, Any], slower: str, faster: str) -> float:
    if slower not in row["ms"] or faster not in row["ms"]:
        raise NotMeasured
    return row["ms"][slower] / row["ms"][faster]


def _section(results: Results, name: str) -> dict[str, Any]:
    if name not in results:
        raise NotMeasured
    return results[name]


def _gemm(results: Results) -> dict[str, Any]:
    return _row(_section(results, "gemm")["rows"], m=8192, n=8192, k=8192)


def _gemm_pops(results: Results) -> float:
    row = _gemm(results)
    if "bitnas_to_bfloat16" not in row["pops"]:
        raise NotMeasured
    return row["pops"]["bitnas_to_bfloat16"]


def _layer(name: str, ours: str) -> Callable[[Results], float]:
    """Times as fast as cuDNN bfloat16, a layer of ResNet-18 at batch 256."""

    def reading(results: Results) -> float:
        rows = _section(_section(results, "conv"), "resnet18")["rows"]
        return _ratio(_row(rows, name=name, batch=256), "bfloat16", ours)

    return reading


def _trunk(batch: int, scale: float) -> Callable[[Results], float]:
    def reading(results: Results) -> float:
        row = _row(_section(results, "trunk")["rows"], batch=batch, what="convolutions")
        if "graph_ms" not in row:  # the trunk could not be captured
            raise NotMeasured
        return row["graph_ms"] * scale

    return reading


TRUNK = "trunk of a Bi-Real ResNet-18 (16 binary convolutions, residuals, next signs)"

GOALS = (
    Goal("GEMM 8192^3, packed operands, to bfloat16", 8, "POPS", _gemm_pops),
    Goal(
        "the same, as fast as cuBLAS bfloat16",
        10,
        "times",
        lambda results: _ratio(_gemm(results), "cublas_bfloat16", "bitnas_to_bfloat16"),
    ),
    Goal(
        "the same, packing the activations too",
        8,
        "times",
        lambda results: _ratio(_gemm(results), "cublas_bfloat16", "bitnas_packing_to_bfloat16"),
    ),
    Goal(
        "256 channels 14x14, batch 256, as fast as cuDNN bfloat16", 8, "times", _layer("stage3", "bitnas_to_bfloat16")
    ),
    Goal(
        "64 channels 56x56, batch 256, as fast as cuDNN bfloat16", 2.5, "times", _layer("stage1", "bitnas_to_bfloat16")
    ),
    Goal("the same, bits to bits", 8, "times", _layer("stage1", "bitnas")),
    Goal(f"{TRUNK}, batch 256", 0.6, "ms", _trunk(256, 1), at_most=True),
    Goal("the same, batch 1, CUDA graph", 60, "us", _trunk(1, 1e3), at_most=True),
)


def judge(results: Results) -> list[dict[str, Any]]:
    """One row per goal (:meth:`Goal.judge`), in the order above."""
    return [goal.judge(results) for goal in GOALS]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Plain text: the first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = []
    for row in (columns, ["-" * width for width in widths], *rows):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join([first, *others]).rstrip())
    return "\n".join(lines)


def goals_table(results: Results) -> str:
    rows = [[row["goal"], row["wanted"], row["reading"], row["verdict"]] for row in judge(results)]
    return table(["goal", "wanted", "reading", "verdict"], rows)

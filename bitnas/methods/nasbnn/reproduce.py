"""What is known of NAS-BNN beside what bitnas computes, with a column that no paper has: time on this machine.

`reproduction.json` is that of `bitnas.methods.reproduction`, rewritten after every row, so what is stopped goes on at
the next row. The paper's accuracies are not recomputed: that takes ImageNet, and each says so.

```
{"format": "bitnas-reproduction-1", "paper": {"title", "arxiv"}, "figures": "known", "complete": bool, "command",
 "settings": {"paper", "latency", "batch", "threads"}, "machine": facts of the machine, or null,
 "tables": [{"table": number, "title", "data", "model", "rule", "columns": [{"name", "label", "unit",
             "word"}, ...], "rows": [row, ...]}, ...],
 "findings": [{"id", "table", "verdict", "statement", "evidence"}, ...], "summary": {status: number of figures}}
row: {"key", "label", "kind", "evidence": key of `published.EVIDENCE`, "network": "nasbnn" or null, "subnet", "ratios",
      "widths", "latency", "latency_reason", and a figure under the name of each column of its table}
figure: {"printed": text as known or null, "ours", "rounded", "status", "reason"}: see `published_checks.Figure`; a
      status more is "not checkable". "printed" is in the column's unit, "ours" is exact
```
"""

from __future__ import annotations

import functools
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.files import write_bytes_atomic, write_json_atomic
from bitnas.methods.nasbnn.cost import subnet_cost
from bitnas.methods.nasbnn.published import (
    CLAIMS,
    EVIDENCE,
    FAMILY,
    PAPER,
    QUANTITIES,
    SEARCH_GENERATIONS,
    SEARCH_WINDOW,
    SPACE,
    SUBNETS,
    Claim,
    Known,
    Quantity,
)
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.methods.reproduction import FORMAT, REPRODUCTION, facts, machine_key, ms, timed_before
from bitnas.methods.width.published_checks import Figure, Finding, compare

if TYPE_CHECKING:
    from bitnas.cost import Count
    from bitnas.models.nasbnn import SubnetConfig

Progress = Callable[[dict[str, Any]], None]

MILLION = 10**6
RULE = "nasbnn"
# name, heading, what a known figure is multiplied with to be exact, the word for that
_COLUMNS: dict[int, tuple[tuple[str, str, int, str], ...]] = {
    1: (
        ("ops", "OPs", MILLION, "M"),
        ("flops", "FLOPs", MILLION, "M"),
        ("bops", "BOPs", MILLION, "M"),
        ("binary_weights", "binary weights", 1, ""),
        ("memory_bits", "memory", MILLION, "Mbit"),
    ),
    2: (("value", "value", 1, ""),),
    3: (("value", "value", 1, ""),),
}
_TITLES = {1: "Five subnets", 2: "Space, supernet and search", 3: "Results that need the paper's data"}
FILES = {1: "subnets.csv", 2: "space.csv", 3: "results.csv"}


def reproduce(
    out: str | os.PathLike[str] | None = None,
    *,
    rows: Sequence[str] | None = None,
    latency: bool = True,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
    retime: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Every known figure beside ours; with `out`, written to that folder as JSON, Markdown and CSV.

    Args:
        out: folder, made if missing. Subnets that it holds, timed on this machine with these settings, are not timed
            again.
        rows: keys of the rows wanted; None for all.
        latency: time each of the five subnets, frozen and as its float twin, at 224 x 224.
        batch, threads: what is timed.
        seconds: of each timing, at most, unless its few runs take longer.
        retime: time subnets again whose latency in the folder is noisy.
        on_progress: called with {"event": "reproduce_row", "row", "done", "total"} after each row.

    Returns:
        What it writes to `reproduction.json`; see the module's text.

    Raises:
        ValueError: an argument is out of range, or the folder holds another paper's reproduction.
        CorruptFileError: a file in the folder is damaged.
    """
    for name, value in {"batch": batch, "threads": threads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least 1")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, wanted a positive number")
    known: dict[int, Sequence[Known | Quantity | Claim]] = {1: SUBNETS, 2: QUANTITIES, 3: CLAIMS}
    keys = [one.key for part in known.values() for one in part]
    unknown = [key for key in rows or () if key not in keys]
    if unknown:
        raise ValueError(f"rows: got {unknown[0]!r}, wanted one of {', '.join(keys)}")
    folder = None if out is None else Path(out)
    notify = on_progress or (lambda event: None)
    timed = {} if folder is None else timed_before(folder, PAPER)
    if retime:
        timed = {key: found for key, found in timed.items() if not (found["noisy"] or found["float_noisy"])}
    result: dict[str, Any] = {
        "format": FORMAT,
        "paper": PAPER,
        "figures": "known",
        "complete": False,
        "command": _command(latency, batch, threads),
        "settings": {"paper": RULE, "latency": latency, "batch": batch, "threads": threads},
        "machine": facts() if latency else None,
        "tables": [],
        "findings": [finding.to_dict() for finding in findings()] if rows is None else [],
        "summary": {},
    }
    chosen = {number: [one for one in part if rows is None or one.key in rows] for number, part in known.items()}
    total, done = sum(map(len, chosen.values())), 0
    for number, part in chosen.items():
        if not part:
            continue
        entries: list[dict[str, Any]] = []
        columns = [dict(zip(("name", "label", "unit", "word"), c, strict=True)) for c in _COLUMNS[number]]
        table = {"table": number, "title": _TITLES[number], "data": "ImageNet", "model": RULE, "rule": RULE}
        result["tables"].append({**table, "columns": columns, "rows": entries})
        for one in part:
            entries.append(_row(one, timed.get(one.key), latency, batch, threads, seconds))
            done += 1
            result["summary"] = _summary(result)
            result["complete"] = done == total
            if folder is not None:
                _write(folder, result, kept=timed)
            notify({"event": "reproduce_row", "row": one.key, "done": done, "total": total})
    return result


def _command(latency: bool, batch: int, threads: int) -> str:
    words = ["bitnas", "reproduce", RULE, "--out", "DIR", *([] if latency else ["--no-latency"])]
    for name, value in (("--batch", batch), ("--threads", threads)):
        words += [name, str(value)] if value != 1 else []
    return shlex.join(words)


# ---- what is computed -----------------------------------------------------------


def subnet_of(known: Known) -> SubnetConfig:
    """The network of a known subnet. Its blocks are read stage by stage, so a wrong code is refused."""
    from bitnas.models.nasbnn import Block, SubnetConfig

    space = SubnetSpace(SPACE)
    if known.code in ("smallest", "biggest"):
        return space.subnet(getattr(space, known.code))
    stem, *stages = known.code.split("|")
    blocks = []
    for stage, text in zip(SPACE.stages, stages, strict=True):
        for n, block in enumerate(text.split()):
            channels, kernel, groups = map(int, block.split("/"))
            blocks.append(Block(channels, kernel, groups, stage.groups_1x1, stage.stride if n == 0 else 1))
    found = SubnetConfig(int(stem), tuple(blocks), SPACE.num_classes, SPACE.input_size, SPACE.stem_stride)
    return space.subnet(space.genome(found))


@functools.cache
def counted(subnet: SubnetConfig) -> Count:
    """The subnet's module, built without storage and counted layer by layer."""
    import torch

    from bitnas.cost import count
    from bitnas.models import create_model_from_config

    with torch.device("meta"):
        model = create_model_from_config(subnet)
    return count(model, rule=RULE)


@functools.cache
def quantities() -> dict[str, int]:
    """Our figures for `published.QUANTITIES`, by key."""
    import torch

    from bitnas.methods.nasbnn.config import NasBnnSearchConfig
    from bitnas.methods.nasbnn.supernet import Supernet

    space = SubnetSpace(SPACE)
    with torch.device("meta"):
        supernet = Supernet(SPACE)
    params = sum(parameter.numel() for parameter in supernet.parameters() if parameter.requires_grad)
    biggest = counted(space.subnet(space.biggest))
    search = NasBnnSearchConfig()
    return {
        "size": space.size_without_rule,
        "size-digits": space.size_without_rule,
        "size-rule": space.size,
        "cut": round(space.size_without_rule / space.size),
        "supernet-params": params,
        "transforms": params - biggest.params,  # the supernet's other tensors are those of its biggest subnet
        "binary-weights": sum(layer.weights for layer in biggest.layers if layer.binary),
        "classifier": sum(layer.params for layer in biggest.layers if layer.kind == "linear"),
        "evaluations": search.population + (search.generations - 1) * (search.mutations + search.crossovers),
    }


@functools.cache
def findings() -> tuple[Finding, ...]:
    """What the comparison of figures cannot say, each recomputed."""
    space = SubnetSpace(SPACE)
    least, most = (space.cost(genome).ops for genome in (space.smallest, space.biggest))
    agree = [one.key for one in SUBNETS if subnet_cost(subnet_of(one)).ops == counted(subnet_of(one)).ops]
    found = [
        Finding(
            "size",
            2,
            "convention",
            "The size that is quoted, about 4.0e21, leaves out the rule that channels never shrink; by that rule, "
            f"which the public code searches by, there are {space.size:.4e} subnets.",
            {"with": space.size, "without": space.size_without_rule},
        ),
        Finding(
            "family",
            1,
            "ambiguous",
            f"The family is printed to span {FAMILY[0]} to {FAMILY[1]} M OPs. Subnets of the space span "
            f"{least / MILLION:.2f} to {most / MILLION:.2f} M; the public code's search ends at "
            f"{SEARCH_WINDOW[1] / MILLION:.0f} M, so its defaults find nothing near {FAMILY[1]} M.",
            {"smallest": least, "biggest": most, "window": list(SEARCH_WINDOW)},
        ),
        Finding(
            "evaluations",
            2,
            "convention",
            f"A search judges {quantities()['evaluations']:,} subnets: the first generation, and {SEARCH_GENERATIONS} "
            "more. The archive keeps the best of each 2 M OPs and tests no dominance, though the code calls it Pareto.",
            {"generations": SEARCH_GENERATIONS + 1},
        ),
        Finding(
            "counter",
            1,
            "consistent" if len(agree) == len(SUBNETS) else "ambiguous",
            f"For {len(agree)} of the {len(SUBNETS)} subnets the closed form that a search judges by gives the OPs "
            "that counting the layers of their modules gives.",
            {"agree": agree},
        ),
    ]
    return (*found, *(_claimed(claim, space) for claim in CLAIMS))


def _claimed(claim: Claim, space: SubnetSpace) -> Finding:
    """What can be said of a claim without its data: whether the space has networks of its OPs at all."""
    text = f"{claim.label}, {claim.value}"
    evidence: dict[str, Any] = {"known": EVIDENCE[claim.evidence]}
    text += "" if claim.ops is None else f" at {claim.ops / MILLION:.0f} M OPs"
    text += f" ({EVIDENCE[claim.evidence]}), cannot be checked here: that takes {claim.needs}."
    if claim.ops is not None:
        biggest = space.cost(space.biggest).ops
        if claim.ops <= biggest:
            window = (0.995 * claim.ops, 1.005 * claim.ops)
            genome = SubnetSpace(SPACE, ops=window).random(Random(0), draws=100_000)
            evidence |= {"subnet": list(genome), "ops": space.cost(genome).ops}
            text += f" Subnets of such a cost are in the space, one of {evidence['ops'] / MILLION:.2f} M among them."
        else:
            text += (
                f" The biggest subnet has {biggest / MILLION:.1f} M OPs at 224 x 224: this is one on larger images, or "
                "with its detector."
            )
    return Finding(f"claim/{claim.key}", 3, "not checkable", text, evidence)


# ---- rows -----------------------------------------------------------------------


def _row(
    one: Known | Quantity | Claim,
    before: Mapping[str, Any] | None,
    latency: bool,
    batch: int,
    threads: int,
    seconds: float,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key": one.key,
        "label": one.label,
        "kind": "known",
        "evidence": one.evidence,
        "network": None,
        "subnet": None,
        "ratios": None,
        "widths": None,
        "latency": None,
        "latency_reason": "not a network",
    }
    if isinstance(one, Quantity):
        row["value"] = compare(one.value, quantities()[one.key], unit=one.unit).to_dict()
        row["unit"] = one.unit
        return row
    if isinstance(one, Claim):
        row["label"] += "" if one.ops is None else f" at {one.ops / MILLION:.0f} M OPs"
        row["value"] = Figure(one.value, None, None, "not checkable", f"needs {one.needs}").to_dict()
        return row
    subnet = subnet_of(one)
    count = counted(subnet)
    row |= {
        "network": RULE,
        "subnet": subnet.to_dict(),
        "widths": [subnet.stem, *(block.channels for block in subnet.blocks)],
        "ops": compare(one.ops, count.ops, unit=MILLION).to_dict(),
        "flops": compare(one.flops, count.flops, unit=MILLION).to_dict(),
        "bops": compare(one.bops, count.bops, unit=MILLION).to_dict(),
        "binary_weights": compare(
            one.binary_weights, sum(layer.weights for layer in count.layers if layer.binary)
        ).to_dict(),
        "memory_bits": compare(None, count.memory_bits, unit=MILLION).to_dict(),
        "latency_reason": "not asked for",
    }
    if latency:
        key = {"batch": batch, "threads": threads, "machine": machine_key()}
        if before is not None and all(before.get(name) == value for name, value in key.items()):
            found = dict(before)
        else:
            found = {**time_subnet(subnet, batch=batch, threads=threads, seconds=seconds), **key}
        row |= {"latency": found, "latency_reason": None}
    return row


def time_subnet(subnet: SubnetConfig, *, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Times a subnet of random weights, frozen and as its float twin; see `width.timing.time_beside_float`."""
    import torch

    from bitnas.methods.width.timing import time_beside_float
    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(subnet).eval()
    return time_beside_float(model, batch=batch, threads=threads, seconds=seconds)


def _summary(result: Mapping[str, Any]) -> dict[str, int]:
    """How many known figures have which status."""
    figures = [row[c["name"]] for table in result["tables"] for row in table["rows"] for c in table["columns"]]
    return dict(sorted(Counter(figure["status"] for figure in figures if figure["printed"] is not None).items()))


# ---- files ----------------------------------------------------------------------

_MISSING = "–"
_MARKS = {"equal": " =", "truncated": " (cut off)", "differs": " ≠", "not checkable": "not checkable here"}
_LATENCY = (("", "latency"), ("float_", "float latency"))


def columns(table: Mapping[str, Any]) -> list[str]:
    """Headings of `cells`."""
    names = [f"{column['label']} {side}" for column in table["columns"] for side in ("known", "ours")]
    timed = [label for _, label in _LATENCY] if table["table"] == 1 else []
    first, last = ("subnet", "architecture from") if table["table"] == 1 else ("what", "known from")
    return [first, *names, *timed, last]


def cells(table: Mapping[str, Any]) -> list[list[str]]:
    """The rows of one table as text; "=" marks a figure that is equal to the known one when rounded as that is, "≠" one
    that differs."""
    return [_cells(row, table) for row in table["rows"]]


def brief(table: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows for a terminal: ours alone where it is equal, both figures where it is not."""
    head, rows = columns(table), cells(table)
    pairs = range(1, 1 + 2 * len(table["columns"]), 2)
    names = [head[0], *(head[at].removesuffix(" known") for at in pairs), *head[1 + 2 * len(pairs) :]]

    def one(known: str, ours: str) -> str:
        return ours if known == _MISSING or ours.endswith(" =") else f"{known} | {ours}"

    merged = [[row[0], *(one(*row[at : at + 2]) for at in pairs), *row[1 + 2 * len(pairs) :]] for row in rows]
    return names, merged


def _cells(row: Mapping[str, Any], table: Mapping[str, Any]) -> list[str]:
    found = [row["label"]]
    for column in table["columns"]:
        figure, unit = row[column["name"]], row.get("unit", column["unit"])
        printed, ours = figure["printed"], figure["ours"]
        word = f" {column['word']}" if column["word"] else ""
        found.append(_MISSING if printed is None else printed + (f"e{len(str(unit)) - 1}" if unit > MILLION else word))
        mark = _MARKS.get(figure["status"], "")
        if ours is None:
            found.append(mark or _MISSING)
        elif printed is None:
            found.append(figure["rounded"] + word)
        else:
            found.append((f"{ours:,}" if unit <= MILLION else f"{ours:.4e}") + mark)
    if table["table"] == 1:
        latency = row["latency"] or {}
        for prefix, _ in _LATENCY:
            median = latency.get("float_us" if prefix else "median_us")
            noisy = ", noisy" if latency.get(f"{prefix}noisy") else ""
            spread = f" (IQR {ms(latency[f'{prefix}iqr_us'])}{noisy})" if median is not None else ""
            found.append(_MISSING if median is None else f"{ms(median)} ms{spread}")
    return [*found, row["evidence"]]


def title(table: Mapping[str, Any]) -> str:
    """What a table is called."""
    how = f", counted by {table['rule']}; the known figures worked out by hand" if table["table"] == 1 else ""
    return f"{table['title']}{how}"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables and the findings as one Markdown document."""
    lines = [f"# {result['paper']['title']} (arXiv {result['paper']['arxiv']}): known and recomputed", ""]
    for table in result["tables"]:
        head = columns(table)
        lines += [f"## {title(table)}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += [*("| " + " | ".join(row) + " |" for row in cells(table)), ""]
    lines += ["Known from:", *(f"* {name}: {meaning}" for name, meaning in EVIDENCE.items()), ""]
    machine, settings = result["machine"], result["settings"]
    if machine is not None:
        lines += [
            f"Latency: median per batch of {settings['batch']} on {settings['threads']} thread(s), "
            f"{machine.get('cpu')}, {machine.get('isa')}. The float twin has the same convolutions in float32, each "
            "with a ReLU, batch norm fused.",
            "",
        ]
    lines += ["## Findings", ""]
    lines += [f"* **{found['verdict']}**: {found['statement']}" for found in result["findings"]]
    return "\n".join(lines) + "\n"


def csv(table: Mapping[str, Any]) -> str:
    """One table as CSV with exact figures; latencies in us."""
    import csv as writer
    import io

    text = io.StringIO()
    out = writer.writer(text, lineterminator="\n")
    names = [column["name"] for column in table["columns"]]
    latencies = ("median_us", "iqr_us", "noisy", "float_us", "float_iqr_us", "float_noisy", "ratio")
    timed = latencies if table["table"] == 1 else ()
    parts = ("printed", "ours", "status")
    out.writerow(["key", "label", "evidence", *(f"{n}_{part}" for n in names for part in parts), *timed])
    for row in table["rows"]:
        figures = [row[name][part] for name in names for part in parts]
        times = [(row["latency"] or {}).get(name) for name in timed]
        out.writerow([row["key"], row["label"], row["evidence"], *figures, *times])
    return text.getvalue()


def _write(folder: Path, result: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Replace the files. Latencies of rows that are still to come stay in the file, under "kept"."""
    folder.mkdir(parents=True, exist_ok=True)
    now = {row["key"] for table in result["tables"] for row in table["rows"] if row["latency"] is not None}
    rest = {key: value for key, value in kept.items() if key not in now}
    write_json_atomic(folder / REPRODUCTION, {**result, **({"kept": rest} if rest else {})})
    write_bytes_atomic(folder / "reproduction.md", markdown(result).encode())
    for table in result["tables"]:
        write_bytes_atomic(folder / FILES[table["table"]], csv(table).encode())

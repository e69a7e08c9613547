"""What is known of a paper whose body was not at hand, beside what bitnas computes: rows, files and words of it.

`reproduction.json` is that of `bitnas.methods.reproduction`, rewritten after every row, so what is stopped goes on at
the next row. Results that need the paper's data are not recomputed, and each says so.

```
{"format": "bitnas-reproduction-1", "paper": {"title", "arxiv"}, "figures": "known", "evidence": {name: what it means},
 "complete": bool, "command", "settings": {"paper", "latency", "batch", "threads"}, "machine": facts of the machine, or
 null,
 "tables": [{"table": number, "title", "note", "data", "model", "rule", "timed", "first", "last", "columns": [{"name",
             "label", "unit", "word"}, ...], "rows": [row, ...]}, ...],
 "findings": [{"id", "table", "verdict", "statement", "evidence"}, ...], "summary": {status: number of figures}}
row: {"key", "label", "kind", "evidence": a name of "evidence", "network": name of the network or null, "latency",
      "latency_reason", what a method's rows have beside, and a figure under the name of each column of its table}
figure: {"printed": text as known or null, "ours", "rounded", "status", "reason"}: see `width.published_checks.Figure`;
      a status more is "not checkable". "printed" is in the column's unit, "ours" is exact
```
"""

from __future__ import annotations

import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnas.files import write_bytes_atomic, write_json_atomic
from bitnas.methods.reproduction import FORMAT, REPRODUCTION, facts, machine_key, ms, timed_before
from bitnas.methods.width.published_checks import Finding

Progress = Callable[[dict[str, Any]], None]

MILLION = 10**6


@dataclass(frozen=True)
class Table:
    """A table of known figures.

    Attributes:
        title: what it is called; note: how its figures are counted, behind the title.
        file: its CSV file.
        columns: of each figure its name, its heading, what a known figure is multiplied with to be exact, and the word
            for that.
        entries: what is known, one for each row, with a `key`, a `label` and an `evidence`.
        timed: whether its rows are networks that are timed.
        first, last: headings of the first column and of the evidence.
    """

    title: str
    file: str
    columns: tuple[tuple[str, str, int, str], ...]
    entries: Sequence[Any]
    timed: bool = False
    note: str = ""
    first: str = "what"
    last: str = "known from"


def reproduce(
    out: str | os.PathLike[str] | None,
    *,
    paper: Mapping[str, str],
    name: str,
    rule: str,
    data: str,
    tables: Sequence[Table],
    row: Callable[[Any], dict[str, Any]],
    time: Callable[[Any], dict[str, Any]],
    findings: Callable[[], Sequence[Finding]],
    evidence: Mapping[str, str],
    rows: Sequence[str] | None,
    latency: bool,
    batch: int,
    threads: int,
    seconds: float,
    retime: bool,
    on_progress: Progress | None,
) -> dict[str, Any]:
    """Every known figure beside ours; with `out`, written to that folder as JSON, Markdown and CSV.

    Args:
        out: folder, made if missing. Networks that it holds, timed on this machine with these settings, are not timed
            again.
        paper: title and arxiv. name: of the method and of its networks. rule: that they are counted by. data: of the
            paper.
        tables: what is known.
        row: of an entry, what its row has beside key, label, evidence and latency.
        time: of an entry of a timed table, its latency as `width.timing.time_beside_float` gives it.
        findings: what the figures do not say.
        evidence: how something may be known, with its meaning.
        rows: keys of the rows wanted; None for all.
        latency: time the networks.
        batch, threads, seconds: of the timing.
        retime: time networks again whose latency in the folder is noisy.
        on_progress: called with {"event": "reproduce_row", "row", "done", "total"} after each row.

    Raises:
        ValueError: an argument is out of range, or the folder holds another paper's reproduction.
        CorruptFileError: a file in the folder is damaged.
    """
    for argument, value in {"batch": batch, "threads": threads}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{argument}: got {value!r}, wanted an integer of at least 1")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, wanted a positive number")
    keys = [one.key for table in tables for one in table.entries]
    unknown = [key for key in rows or () if key not in keys]
    if unknown:
        raise ValueError(f"rows: got {unknown[0]!r}, wanted one of {', '.join(keys)}")
    folder = None if out is None else Path(out)
    notify = on_progress or (lambda event: None)
    timed = {} if folder is None else timed_before(folder, paper)
    if retime:
        timed = {key: found for key, found in timed.items() if not (found["noisy"] or found["float_noisy"])}
    result: dict[str, Any] = {
        "format": FORMAT,
        "paper": dict(paper),
        "figures": "known",
        "evidence": dict(evidence),
        "complete": False,
        "command": _command(name, latency, batch, threads),
        "settings": {"paper": name, "latency": latency, "batch": batch, "threads": threads},
        "machine": facts() if latency else None,
        "tables": [],
        "findings": [finding.to_dict() for finding in findings()] if rows is None else [],
        "summary": {},
    }
    chosen = [[one for one in table.entries if rows is None or one.key in rows] for table in tables]
    total, done = sum(map(len, chosen)), 0
    for number, (table, part) in enumerate(zip(tables, chosen, strict=True), 1):
        if not part:
            continue
        entries: list[dict[str, Any]] = []
        heading = {"table": number, "title": table.title, "note": table.note, "data": data, "model": name, "rule": rule}
        heading |= {"timed": table.timed, "first": table.first, "last": table.last}
        columns = [dict(zip(("name", "label", "unit", "word"), c, strict=True)) for c in table.columns]
        result["tables"].append({**heading, "columns": columns, "rows": entries})
        for one in part:
            own = _blank(one) | row(one)
            if table.timed:
                own |= {"latency_reason": "not asked for"}
            if table.timed and latency:
                key = {"batch": batch, "threads": threads, "machine": machine_key()}
                before = timed.get(one.key)
                if before is not None and all(before.get(what) == value for what, value in key.items()):
                    found = dict(before)
                else:
                    found = {**time(one), **key}
                own |= {"latency": found, "latency_reason": None}
            entries.append(own)
            done += 1
            result["summary"] = _summary(result)
            result["complete"] = done == total
            if folder is not None:
                _write(folder, result, {n: table.file for n, table in enumerate(tables, 1)}, kept=timed)
            notify({"event": "reproduce_row", "row": one.key, "done": done, "total": total})
    return result


def _blank(one: Any) -> dict[str, Any]:
    return {
        "key": one.key,
        "label": one.label,
        "kind": "known",
        "evidence": one.evidence,
        "network": None,
        "ratios": None,
        "widths": None,
        "latency": None,
        "latency_reason": "not a network",
    }


def _command(name: str, latency: bool, batch: int, threads: int) -> str:
    words = ["bitnas", "reproduce", name, "--out", "DIR", *([] if latency else ["--no-latency"])]
    for option, value in (("--batch", batch), ("--threads", threads)):
        words += [option, str(value)] if value != 1 else []
    return shlex.join(words)


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
    timed = [label for _, label in _LATENCY] if table["timed"] else []
    return [table["first"], *names, *timed, table["last"]]


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
            whole = int(ours) if ours == int(ours) else ours
            found.append((f"{whole:,}" if unit <= MILLION else f"{ours:.4e}") + mark)
    if table["timed"]:
        latency = row["latency"] or {}
        for prefix, _ in _LATENCY:
            median = latency.get("float_us" if prefix else "median_us")
            noisy = ", noisy" if latency.get(f"{prefix}noisy") else ""
            spread = f" (IQR {ms(latency[f'{prefix}iqr_us'])}{noisy})" if median is not None else ""
            found.append(_MISSING if median is None else f"{ms(median)} ms{spread}")
    return [*found, row["evidence"]]


def title(table: Mapping[str, Any]) -> str:
    """What a table is called."""
    return f"{table['title']}, {table['note']}" if table["note"] else str(table["title"])


def markdown(result: Mapping[str, Any]) -> str:
    """The tables and the findings as one Markdown document."""
    lines = [f"# {result['paper']['title']} (arXiv {result['paper']['arxiv']}): known and recomputed", ""]
    for table in result["tables"]:
        head = columns(table)
        lines += [f"## {title(table)}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += [*("| " + " | ".join(row) + " |" for row in cells(table)), ""]
    lines += ["Known from:", *(f"* {name}: {meaning}" for name, meaning in result["evidence"].items()), ""]
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
    timed = latencies if table["timed"] else ()
    parts = ("printed", "ours", "status")
    out.writerow(["key", "label", "evidence", *(f"{n}_{part}" for n in names for part in parts), *timed])
    for row in table["rows"]:
        figures = [row[name][part] for name in names for part in parts]
        times = [(row["latency"] or {}).get(name) for name in timed]
        out.writerow([row["key"], row["label"], row["evidence"], *figures, *times])
    return text.getvalue()


def _write(folder: Path, result: Mapping[str, Any], files: Mapping[int, str], kept: Mapping[str, Any]) -> None:
    """Replace the files. Latencies of rows that are still to come stay in the file, under "kept"."""
    folder.mkdir(parents=True, exist_ok=True)
    now = {row["key"] for table in result["tables"] for row in table["rows"] if row["latency"] is not None}
    rest = {key: value for key, value in kept.items() if key not in now}
    write_json_atomic(folder / REPRODUCTION, {**result, **({"kept": rest} if rest else {})})
    write_bytes_atomic(folder / "reproduction.md", markdown(result).encode())
    for table in result["tables"]:
        write_bytes_atomic(folder / files[table["table"]], csv(table).encode())

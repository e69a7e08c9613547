"""Reads a run folder once into plain records.

A file may be missing, because a search can be reported while it still runs and a folder may hold only a reproduction; a
file that is there but damaged is refused, so that a report never shows half of the truth.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from ..files import CorruptFileError, read_json_checked
from .bars_course import read_course
from .cells import Space, read_architecture, read_space
from .records import Candidate, Dropped, Network, Run, TableCheck, number
from .supernet_log import read_log

__all__ = ["Candidate", "Network", "Run", "load_run"]

_FRACTIONS = ("accuracy",)
_POSITIVE = ("latency_us", "latency_low_us", "latency_high_us", "searched_latency_us", "float_latency_us")
_AMOUNTS = ("flops", "ops", "bops", "macs", "params", "memory_bits", "packed_bytes", "latency_iqr_us")
_FIGURES = ("flops", "memory_bits", "speed_up", "top1", "top5")
_STUDIES = ("ranking.json", "ablation.json", "against.json")
_CELL_STUDIES = ("cells.json", "guards.json", "cost.json", "parts.json")  # of BARS
_COMPARISON = "compare.json"
_ROOTS = ("config.json", "reproduction.json", "claim.json", *_STUDIES, *_CELL_STUDIES, _COMPARISON)


def load_run(folder: str | Path) -> Run:
    """Read the folder of a search, of a reproduction, of a claim or of a study.

    Raises:
        FileNotFoundError: there is no such folder, or it holds none of them.
        CorruptFileError: a file is there but cannot be read as what it should be.
        JournalCorrupt: `journal.sqlite` is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder {folder} does not exist")
    if not any((folder / name).is_file() for name in _ROOTS):
        raise FileNotFoundError(f"{folder} is not a run folder: it holds no {', '.join(_ROOTS[:-1])} or {_ROOTS[-1]}")
    run = Run(
        folder=folder,
        config=_object(folder / "config.json"),
        reproduction=_reproduction(folder / "reproduction.json"),
        claim=_claim(folder / "claim.json"),
        ranking=_study(folder / "ranking.json"),
        ablation=_study(folder / "ablation.json"),
        against=_study(folder / "against.json"),
        cell_studies={
            path.stem: study for path in (folder / name for name in _CELL_STUDIES) if (study := _study(path, "bars"))
        },
        comparison=_study(folder / _COMPARISON, "methods"),
    )
    if run.claim:
        names = [str(found.get("folder", "")) for found in run.claim["runs"]]
        # The searches of a claim lie in folders beside it; the first one says with which versions and machine.
        found = next((folder / Path(name).name / "config.json" for name in names if Path(name).name), folder)
        run = dataclasses.replace(run, claim_config=_object(found) if found.is_file() else {})
    if run.config:
        run = _search(run)
    return run


def _search(run: Run) -> Run:
    folder = run.folder
    if run.of_cells:
        space = read_space(folder / "config.json", run.config)
        run = dataclasses.replace(run, space=space, course=read_course(folder / "course.json", space))
    study_path, front_path = folder / "study.json", folder / "front.json"
    study = _object(study_path)
    rows = _objects(front_path, _read_json(front_path, list)) if front_path.exists() else []
    front = [_network(front_path, {"label": f"front {index}", **row}, run.space) for index, row in enumerate(rows, 1)]
    candidates, failures = _read_journal(folder / "journal.sqlite")
    run = dataclasses.replace(
        run,
        candidates=candidates,
        failures=failures,
        front=front,
        networks=[_network(study_path, entry, run.space) for entry in _objects(study_path, study.get("networks", []))],
        claims=_objects(study_path, study.get("claims", [])),
        overall=study["overall"] if isinstance(study.get("overall"), dict) else {},
        protocol=study["protocol"] if isinstance(study.get("protocol"), dict) else {},
        supernet_log=read_log(folder / "supernet.csv"),
    )
    if (folder / "search.json").exists():
        run = _summary(run, folder / "search.json")
    labels = {network.key: network.label for network in front if network.key}
    named = [dataclasses.replace(c, label=labels.get(c.key, "")) for c in run.candidates]
    return dataclasses.replace(run, candidates=named)


def _summary(run: Run, path: Path) -> Run:
    """`search.json`, which knows what the journal does not: derived metrics, limits, fronts, the check of the table."""
    found = _object(path)
    candidates: dict[str, Candidate] = {}
    dropped: dict[str, dict[str, Dropped]] = {"failed": {}, "rejected": {}}
    for index, entry in enumerate(_objects(path, found.get("candidates", []))):
        ratios, status, metrics = _numbers(path, entry, "ratios"), entry.get("status"), entry.get("metrics") or {}
        generation = entry.get("generation")
        if status not in ("ok", *dropped) or not isinstance(metrics, dict) or not _is_count(generation):
            raise CorruptFileError(
                path, f"candidate {index}: its status, metrics or generation is not what they can be"
            )
        _check_metrics(path, metrics)
        key, subnet, point = (
            str(entry.get("key") or ratios),
            _subnet(path, entry),
            _architecture(path, entry, run.space),
        )
        if status == "ok":
            found_candidate = Candidate(ratios, metrics, generation, key, subnet=subnet, architecture=point)
            candidates.setdefault(key, found_candidate)
        else:
            reason = str(entry.get("reason") or "no reason was recorded")
            dropped[status].setdefault(key, Dropped(ratios, reason, generation, metrics, subnet, point))
    fronts = found.get("fronts") or []
    if not isinstance(fronts, list) or not all(isinstance(front, list) for front in fronts):
        raise CorruptFileError(path, "fronts: expected a list of lists of keys")
    latency = found.get("latency") or {}
    if not isinstance(latency, dict):
        raise CorruptFileError(path, "latency: expected an object")
    source = latency.get("source")
    return dataclasses.replace(
        run,
        candidates=list(candidates.values()),
        failures=list(dropped["failed"].values()),
        rejected=list(dropped["rejected"].values()),
        fronts=[[str(key) for key in front] for front in fronts],
        latency_source=source if isinstance(source, str) else None,
        table_check=_table_check(path, latency.get("table_check")),
    )


def _table_check(path: Path, values: Any) -> TableCheck | None:
    if values is None:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("pairs", []), list):
        raise CorruptFileError(path, "table_check: expected an object with a list of pairs")
    pairs = []
    for pair in values.get("pairs", []):
        numbers = _numbers(path, {"pairs": pair}, "pairs")
        if len(numbers) != 2 or min(numbers) <= 0:
            raise CorruptFileError(path, f"table_check: a pair is {pair!r}, expected two positive latencies")
        pairs.append((numbers[0], numbers[1]))
    return TableCheck(values, pairs)


def _reproduction(path: Path) -> dict[str, Any]:
    found = _object(path)
    if not found:
        return found
    tables = _objects(path, found.get("tables", []))
    for table in tables:
        own: list[Any] = [column.get("name") for column in _objects(path, table.get("columns", []))]
        if not all(isinstance(name, str) for name in own):
            raise CorruptFileError(path, "columns: a column has no name")
        for row in _objects(path, table.get("rows", [])):
            for name in (*_FIGURES, *own):
                figure = _member(path, row, name)
                if not isinstance(figure.get("status", ""), str):
                    raise CorruptFileError(path, f"row {row.get('key')!r}: the status of {name} is not a word")
            _member(path, row, "latency")
            _numbers(path, row, "ratios")
            _numbers(path, row, "widths")
        table.setdefault("rows", [])
    for finding in _objects(path, found.get("findings", [])):
        if not isinstance(finding.get("verdict", ""), str):
            raise CorruptFileError(path, "the verdict of a finding is not a word")
    members = {name: _member(path, found, name) for name in ("paper", "settings", "machine")}
    return {**found, "tables": tables, "findings": found.get("findings", []), **members}


def _claim(path: Path) -> dict[str, Any]:
    found = _object(path)
    if not found:
        return found
    for run in _objects(path, found.get("runs", [])):
        for kind in ("searched", "uniform"):
            if not isinstance(run.get(kind), dict):
                raise CorruptFileError(path, f"seed {run.get('seed')!r} has no {kind} network")
            for name in ("ratios", "widths", "accuracy_runs"):
                _numbers(path, run[kind], name)
            _check_metrics(path, run[kind])
        if any(abs(value) > 1 for value in (*_numbers(path, run, "differences"), number(run, "difference") or 0.0)):
            raise CorruptFileError(
                path, f"seed {run.get('seed')!r}: a difference is beyond 1; accuracies are fractions"
            )
        for finalist in _objects(path, run.get("finalists", [])):
            _numbers(path, finalist, "ratios")
    members = {name: _member(path, found, name) for name in ("settings", "protocol", "overall")}
    return {**found, "runs": found.get("runs", []), **members}


def _study(path: Path, method: str = "nasbnn") -> dict[str, Any]:
    """A study, empty without the file. Its checksum vouches for all that is in it."""
    if not path.exists():
        return {}
    found: dict[str, Any] = read_json_checked(path, fix="Delete it and give the study's command again: it goes on")
    wanted = f"bitnas-{method}-{path.stem}-1"
    if found.get("format") != wanted:
        raise CorruptFileError(path, f"its format is {str(found.get('format'))[:60]!r}, expected {wanted!r}")
    return found


def _object(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    return _read_json(path, dict) if path.exists() else {}


def _read_json(path: Path, kind: type) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(path, f"is not JSON ({error})") from error
    if not isinstance(value, kind):
        raise CorruptFileError(path, f"holds a {type(value).__name__}, expected a {kind.__name__}")
    last = value[-1] if isinstance(value, list) and value else value
    if isinstance(last, dict) and "sha256" in last:
        return read_json_checked(path)
    return value


def _objects(path: Path, entries: Any) -> list[dict[str, Any]]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise CorruptFileError(path, "expected a list of objects")
    return entries


def _network(path: Path, values: dict[str, Any], space: Space | None = None) -> Network:
    for name in ("ratios", "widths"):
        _numbers(path, values, name)
    if not isinstance(values.get("layers") or [], list):
        raise CorruptFileError(path, f"{values.get('label', 'a network')!r}: layers is not a list")
    _check_metrics(path, values)
    _subnet(path, values)
    _architecture(path, values, space)
    return Network(values)


def _architecture(path: Path, values: dict[str, Any], space: Space | None) -> dict[str, Any] | None:
    """The architecture of a record of BARS, if it has one."""
    found = values.get("architecture")
    if found is None:
        return None
    point = read_architecture(path, found, space)
    network = values.get("network")
    if network is not None and space is not None:
        cells = network.get("cells") if isinstance(network, dict) else None
        sizes = [cell.get("channels") if isinstance(cell, dict) else None for cell in cells or ()]
        known = isinstance(cells, list) and len(sizes) == len(space.kept(point.depths))
        if not known or not all(_is_count(n) and n for n in (*sizes, network.get("width"))):
            raise CorruptFileError(path, f"network: got {str(network)[:60]!r}, expected the cells of its architecture")
    return dict(found)


def _subnet(path: Path, values: dict[str, Any]) -> dict[str, Any] | None:
    """The subnet of a record, if it has one."""
    found = values.get("subnet")
    if found is None:
        return None
    blocks = found.get("blocks") if isinstance(found, dict) else None
    named: list[Any] = [None]
    if isinstance(blocks, list) and blocks and all(isinstance(block, dict) for block in blocks):
        named = [found.get("stem"), *(block.get(name) for block in blocks for name in ("channels", "kernel"))]
        named += [block.get(name, 1) for block in blocks for name in ("groups", "stride")]
    if not all(_is_count(value) and value for value in named):
        raise CorruptFileError(path, f"subnet: got {str(found)[:60]!r}, expected a stem and blocks of whole numbers")
    return found


def _member(path: Path, record: dict[str, Any], name: str) -> dict[str, Any]:
    """An object inside an object; empty where it is null or missing."""
    found = record.get(name)
    if found is not None and not isinstance(found, dict):
        raise CorruptFileError(path, f"{name}: got {str(found)[:60]!r}, expected an object")
    return found or {}


def _check_metrics(path: Path, metrics: dict[str, Any]) -> None:
    """Refuse what no network can have; a metric that is missing or null is one that was not measured."""
    for names, fits, wanted in (
        (_FRACTIONS, lambda value: 0 <= value <= 1, "a fraction"),
        (_POSITIVE, lambda value: value > 0, "a positive number"),
        (_AMOUNTS, lambda value: value >= 0, "a number of at least 0"),
    ):
        for name in names:
            value = number(metrics, name)
            if metrics.get(name) is not None and (value is None or not fits(value)):
                raise CorruptFileError(path, f"{name}: got {str(metrics[name])[:60]!r}, expected {wanted}")


def _numbers(path: Path, record: dict[str, Any], name: str) -> tuple[float, ...]:
    """A list of finite numbers, or nothing where the record has none."""
    found = record.get(name)
    if found is None:
        return ()
    if isinstance(found, list):
        numbers = [number({name: value}, name) for value in found]
        if all(value is not None for value in numbers):
            return tuple(value for value in numbers if value is not None)
    raise CorruptFileError(path, f"{name}: got {str(found)[:60]!r}, expected a list of finite numbers")


def _is_count(value: Any) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1_000_000)


def _read_journal(path: Path) -> tuple[list[Candidate], list[Dropped]]:
    """The search's own evaluations, their stages put together; for a folder that has no `search.json`.

    Stages that come after the search (study, claim, the timing of the front) are of other files.
    """
    if not path.exists():
        return [], []
    from ..search.journal import read_journal

    _, records = read_journal(path)
    stages: dict[str, list[Any]] = {}
    for record in records:
        if not record.stage.startswith(("study", "claim", "front-")):
            stages.setdefault(record.key, []).append(record)
    candidates, failures = [], []
    for key, group in stages.items():
        first = group[0]
        failed = next((record for record in group if not record.ok), None)
        metrics = {name: value for record in group for name, value in record.metrics.items()}
        if failed is not None:
            failures.append(Dropped(first.genome, failed.reason, first.generation))
        elif math.isfinite(metrics.get("accuracy", math.nan)):  # not one that is only timed so far
            candidates.append(Candidate(first.genome, metrics, first.generation, key))
    return candidates, failures

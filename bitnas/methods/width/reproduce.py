"""Tables 1 and 2 of Shen et al. 2019 as printed, beside ours, with a column that no paper has: time on this machine.

`reproduction.json` is the only state. It is rewritten after every row, so what is stopped goes on at the next row; a
trained network is a file of its own, and its training goes on from its last epoch.

`reproduction.json`:
```
{"format": "bitnas-reproduction-1", "paper": {"title", "arxiv"}, "complete": bool,
 "settings": {"tables", "latency", "batch", "threads", "data", "train", "recipe", "epochs", "seed",
              "base_width"},
 "machine": facts of the machine, or null where nothing was timed,
 "tables": [{"table": 1 | 2, "data", "model", "rule", "recipe", "rows": [row, ...]}],
 "findings": [{"id", "table", "verdict", "statement", "evidence"}, ...],     see `published_checks.Finding`
 "summary": {status: number of figures}}
row: {"key", "label", "kind", "network": name or null, "ratios": [...] or null, "widths": [...] or null,
      "flops": figure, "memory_bits": figure, "speed_up": figure, "top1": figure, "top5": figure,
      "fitness": percent points or null, "latency": latency or null, "latency_reason": text or null,
      "trained": trained or null, "trained_reason": text or null}
figure: {"printed": text or null, "ours", "rounded", "status", "reason"}     see `published_checks.Figure`; printed
      FLOPs and memory are in millions, "ours" is exact in FLOPs and bits; accuracy is in percent in both, as printed
latency: {"median_us", "iqr_us", "noisy", "runs" (all null in the full-precision row), "float_us", "float_iqr_us",
      "float_noisy", "float_runs", "ratio": float_us / median_us or null, "batch", "threads", "input_size",
      "machine": {"cpu", "isa", "kernel_version", "torch"}}
trained: {"data", "fingerprint", "recipe", "epochs", "seed", "images", "accuracy": fraction, "top5": fraction,
      "comparable": bool, "verified": totals of `bitnas.verify`, "file", "frozen"}
```
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError, load_tensors, save_tensors, write_bytes_atomic, write_json_atomic
from bitnas.methods.reproduction import FORMAT, REPRODUCTION, facts, machine_key, ms, timed_before
from bitnas.methods.width import published_checks as checks
from bitnas.methods.width.published import TABLES, Row, Table

if TYPE_CHECKING:
    from torch import nn

    from bitnas.data import Source

Progress = Callable[[dict[str, Any]], None]

NETWORKS = "networks"
NETWORK_FORMAT = "bitnas-reproduction-network-1"
PAPER = {"title": "Searching for Accurate Binary Neural Architectures", "arxiv": "1909.07378"}
FIGURES = ("flops", "memory_bits", "speed_up", "top1", "top5")
VERIFIED_IMAGES = 100  # at most so many, every integer of every layer compared


def reproduce(
    out: str | os.PathLike[str] | None = None,
    *,
    tables: Sequence[int] = (1, 2),
    rows: Sequence[str] | None = None,
    latency: bool = True,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 1.0,
    retime: bool = False,
    data: str | None = None,
    train: bool = False,
    recipe: str | None = None,
    epochs: int | None = None,
    seed: int = 0,
    base_width: float = 1.0,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Both tables, printed beside ours; with `out`, written to that folder as JSON, Markdown and CSV.

    Args:
        out: folder, made if missing. Rows that it holds, timed on this machine with these settings, are not timed
            again.
        tables: 1 (VGG-small, CIFAR-10) and 2 (ResNet-18, ImageNet).
        rows: keys of the rows wanted; None for all of the tables.
        latency: time every frozen network and its float twin. Takes about 3 GB for the widest ResNet-18.
        batch, threads: what is timed.
        seconds: of each timing, at most, unless its few runs take longer.
        retime: time rows again whose latency in the folder is noisy, as it is where other programs were running.
        data: a data set `bitnas.data.load` knows: gives our accuracies of the networks that `out` holds trained on it.
        train: train those that are missing. Hours and days; needs `data`, `out` and one table.
        recipe, epochs: of training, in place of the paper's.
        seed: of training.
        base_width: of the networks that are trained; another than 1 is not the paper's.
        on_progress: called with {"event": "reproduce_row", "row", "done", "total"} after each row and
            {"event": "training_<row>", "done", "total", "loss", "seconds"} after each epoch.

    Returns:
        What it writes to `reproduction.json`; see the module's text.

    Raises:
        ValueError: an argument is out of range, or `train` without what it needs.
        CorruptFileError: a file in the folder is damaged.
    """
    _check(tables, batch, threads, seconds, epochs)
    chosen = _choose(tables, rows)
    if train and (data is None or out is None or len(tables) != 1):
        raise ValueError("train: needs data, out and one table; its networks are trained on that data set and kept")
    folder = None if out is None else Path(out)
    notify = on_progress or (lambda event: None)
    timed = {} if folder is None else timed_before(folder, PAPER)
    if retime:
        timed = {key: found for key, found in timed.items() if not (found["noisy"] or found["float_noisy"])}
    source = None if data is None else _load(data, seed)
    result: dict[str, Any] = {
        "format": FORMAT,
        "paper": PAPER,
        "complete": False,
        "settings": {
            "tables": list(tables),
            "latency": latency,
            "batch": batch,
            "threads": threads,
            "data": data,
            "train": train,
            "recipe": recipe,
            "epochs": epochs,
            "seed": seed,
            "base_width": base_width,
        },
        "machine": facts() if latency else None,
        "tables": [],
        "findings": [finding.to_dict() for finding in checks.findings() if finding.table in tables],
        "summary": {},
    }
    total, done = sum(map(len, chosen.values())), 0
    for number, wanted in chosen.items():
        table = TABLES[number]
        entries: list[dict[str, Any]] = []
        result["tables"].append(
            {
                "table": number,
                "data": table.data,
                "model": table.model,
                "rule": table.rule,
                "recipe": table.recipe,
                "rows": entries,
            }
        )
        for row in wanted:
            entry = _describe(row, table)
            if latency:
                entry |= _latency(row, timed.get(row.key), batch, threads, seconds)
            if source is not None and folder is not None:
                training = _Training(row, table, source, folder, recipe, epochs, seed, base_width)
                entry |= _accuracy(training, entry, train, notify)
            entries.append(entry)
            done += 1
            result["summary"] = _summary(result)
            result["complete"] = done == total
            if folder is not None:
                _write(folder, result, kept=timed)
            notify({"event": "reproduce_row", "row": row.key, "done": done, "total": total})
    return result


def _check(tables: Sequence[int], batch: int, threads: int, seconds: float, epochs: int | None) -> None:
    if not tables or len(set(tables)) != len(tables) or any(number not in TABLES for number in tables):
        raise ValueError(f"tables: got {tuple(tables)}, wanted {' and '.join(map(str, TABLES))}, or one of them")
    for name, value in {"batch": batch, "threads": threads, "epochs": 1 if epochs is None else epochs}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least 1")
    if not seconds > 0:
        raise ValueError(f"seconds: got {seconds}, wanted a positive number")


def _choose(tables: Sequence[int], keys: Sequence[str] | None) -> dict[int, list[Row]]:
    known = [row.key for number in tables for row in TABLES[number].rows]
    unknown = [key for key in keys or () if key not in known]
    if unknown:
        raise ValueError(f"rows: got {unknown[0]!r}, wanted one of {', '.join(known)}")
    return {number: [row for row in TABLES[number].rows if keys is None or row.key in keys] for number in tables}


def _load(data: str, seed: int) -> Source:
    from bitnas import data as datasets

    return datasets.load(data, seed=seed)


def _describe(row: Row, table: Table) -> dict[str, Any]:
    """What needs no measurement."""
    ratios = widths = None
    if row.model is not None:
        from bitnas.models import make_config
        from bitnas.models import widths as widths_of

        config = make_config(row.model, **row.model_options())
        ratios, widths = list(config.ratios), list(widths_of(config))
    not_trained = "no trained network" if row.buildable else "not a binary network of bitnas"
    figures = checks.figures(row, table)
    figures["top1"] = checks.compare(row.top1, None, reason=not_trained)
    figures["top5"] = checks.compare(row.top5, None, reason=not_trained)
    return {
        "key": row.key,
        "label": row.label,
        "kind": row.kind,
        "network": row.model,
        "ratios": ratios,
        "widths": widths,
        **{name: figures[name].to_dict() for name in FIGURES},
        "fitness": checks.fitness(row, table),
        "latency": None,
        "latency_reason": "not asked for",
        "trained": None,
        "trained_reason": not_trained,
    }


def _summary(result: Mapping[str, Any]) -> dict[str, int]:
    """How many printed figures have which status."""
    rows = [row for table in result["tables"] for row in table["rows"]]
    statuses = [row[name]["status"] for row in rows for name in FIGURES if row[name]["printed"] is not None]
    return dict(sorted(Counter(statuses).items()))


# ---- time -----------------------------------------------------------------------


def _latency(
    row: Row, before: Mapping[str, Any] | None, batch: int, threads: int, seconds: float
) -> dict[str, dict[str, Any] | str | None]:
    if not (row.buildable or row.kind == "full precision"):
        return {"latency": None, "latency_reason": "bitnas has no such network"}
    key = {"batch": batch, "threads": threads, "machine": machine_key()}
    if before is not None and all(before.get(name) == value for name, value in key.items()):
        return {"latency": dict(before), "latency_reason": None}
    return {"latency": {**time_row(row, batch=batch, threads=threads, seconds=seconds), **key}, "latency_reason": None}


def time_row(row: Row, *, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Times a row's network, frozen and as its float twin, as `timing.time_beside_float` does.

    The kernels take the same time whatever the bits are, so the network has random weights. The full-precision row is
    the float twin of the un-widened network alone.
    """
    import torch

    from bitnas.methods.width.timing import time_beside_float
    from bitnas.models import create_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = create_model(str(row.model), **row.model_options()).eval()
    return time_beside_float(model, frozen=row.buildable, batch=batch, threads=threads, seconds=seconds)


# ---- accuracy -------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Training:
    """Everything that decides a row's trained network."""

    row: Row
    table: Table
    source: Source
    folder: Path
    recipe_name: str | None
    epochs: int | None
    seed: int
    base_width: float

    @property
    def recipe(self) -> Any:
        from bitnas.train import RECIPES

        name = self.recipe_name or self.table.recipe
        if name not in RECIPES:
            raise ValueError(f"recipe: got {name!r}, wanted one of {', '.join(RECIPES)}")
        recipe = RECIPES[name]
        return recipe if self.epochs is None else recipe.for_epochs(self.epochs)

    @property
    def path(self) -> Path:
        return self.folder / NETWORKS / f"{self.row.key}.safetensors"

    @property
    def frozen_path(self) -> Path:
        return self.folder / NETWORKS / f"{self.row.key}.frozen.safetensors"

    def network(self) -> Any:
        from bitnas.models import make_config

        return make_config(
            str(self.row.model),
            num_classes=self.source.num_classes,
            input_size=self.source.input_size,
            base_width=self.base_width,
            **self.row.model_options(),
        )

    def parts(self) -> tuple[Source, Source]:
        """All but the test part, and the test part: the authors' own, or a fifth of the images."""
        import torch

        splits = self.source.split(0.8, 0.0, 0.2, self.seed)
        return self.source.subset(torch.cat([splits.train, splits.val]).sort().values), self.source.subset(splits.test)

    def identity(self) -> dict[str, Any]:
        return {
            "network": self.network().to_dict(),
            "recipe": self.recipe.to_dict(),
            "seed": self.seed,
            "data": self.source.fingerprint(),
        }

    @property
    def comparable(self) -> bool:
        """Whether the accuracy may be set beside the printed one."""
        named = self.source.name.lower().replace("-", "").startswith(self.table.data.lower().replace("-", ""))
        return (
            named
            and self.recipe == dataclasses.replace(self, recipe_name=None, epochs=None).recipe
            and self.base_width == 1
        )


def _accuracy(
    training: _Training, entry: Mapping[str, Any], train: bool, notify: Progress
) -> dict[str, dict[str, Any] | str | None]:
    """Our accuracy of a row, of the trained network in the folder, trained now if need be and asked for."""
    if not training.row.buildable:
        return {}
    if not training.path.exists():
        if not train:
            return {"trained_reason": "no trained network in the folder; --train makes it"}
        _train(training, notify)
    trained = _load_trained(training)
    figures: dict[str, dict[str, Any] | str | None] = {"trained": trained, "trained_reason": None}
    for name, accuracy in (("top1", trained["accuracy"]), ("top5", trained["top5"])):
        why = None if trained["comparable"] else "other data, epochs or widths than the paper's: not to be compared"
        figure = checks.compare(entry[name]["printed"], 100 * accuracy, digits=2, reason=why)
        if figure.status in ("differs", "truncated"):
            ours = 100 * accuracy
            reason = why or f"one training, {ours - float(str(figure.printed)):+.2f} points, {trained['images']} images"
            figure = dataclasses.replace(figure, status="differs", reason=reason)
        figures[name] = figure.to_dict()
    return figures


def _train(training: _Training, notify: Progress) -> None:
    import torch

    from bitnas import train
    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(training.seed)
        model = create_model_from_config(training.network())
    training.path.parent.mkdir(parents=True, exist_ok=True)
    known, test = training.parts()
    checkpoint = training.path.with_suffix(".ckpt.safetensors")

    def on_epoch(epoch: Any) -> None:
        notify(
            {
                "event": f"training_{training.row.key}",
                "done": epoch.epoch + 1,
                "total": training.recipe.epochs,
                "loss": epoch.loss,
                "seconds": epoch.seconds,
            }
        )

    train.fit(model, known, training.recipe, seed=training.seed, checkpoint=checkpoint, on_epoch=on_epoch)
    top1, top5 = top_accuracies(model, test)
    metadata = {"format": NETWORK_FORMAT, **training.identity(), "accuracy": top1, "top5": top5, "images": len(test)}
    save_tensors(training.path, model.state_dict(), metadata)
    checkpoint.unlink(missing_ok=True)


def _load_trained(training: _Training) -> dict[str, Any]:
    """The trained network of a row: checked, frozen, verified on test images, and described."""
    import torch

    from bitnas import packed
    from bitnas.models import create_model_from_config

    tensors, metadata = load_tensors(training.path, expected_format=NETWORK_FORMAT)
    for name, value in training.identity().items():
        if metadata.get(name) != value:
            raise CorruptFileError(
                training.path,
                f"holds a network with another {name}; use the settings it was trained with, or another folder",
            )
    model = create_model_from_config(training.network())
    model.load_state_dict(tensors)
    model.eval()
    frozen = packed.freeze(model)
    packed.save(frozen, training.frozen_path)
    _, test = training.parts()
    verified = packed.verify(model, frozen, test.take(torch.arange(min(len(test), VERIFIED_IMAGES)))).to_dict()
    verified.pop("layers")
    return {
        "data": training.source.name,
        "fingerprint": metadata["data"],
        "recipe": training.recipe_name or training.table.recipe,
        "epochs": training.recipe.epochs,
        "seed": training.seed,
        "images": metadata["images"],
        "accuracy": metadata["accuracy"],
        "top5": metadata["top5"],
        "comparable": training.comparable,
        "verified": verified,
        "file": f"{NETWORKS}/{training.path.name}",
        "frozen": f"{NETWORKS}/{training.frozen_path.name}",
    }


def top_accuracies(model: nn.Module, source: Source, *, batch_size: int = 256) -> tuple[float, float]:
    """Shares of the images whose class is the network's first guess, and one of its first five."""
    import torch

    model.eval()
    first = five = 0
    with torch.no_grad():
        for x, y in source.batches(torch.arange(len(source)).split(batch_size)):
            guesses = model(x).topk(min(5, source.num_classes), dim=1).indices
            right = guesses == y[:, None]
            first += int(right[:, 0].sum())
            five += int(right.any(1).sum())
    return first / len(source), five / len(source)


# ---- files ----------------------------------------------------------------------


def _write(folder: Path, result: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Replace the files. Latencies of rows that are still to come stay in the file, under "kept"."""
    folder.mkdir(parents=True, exist_ok=True)
    now = {row["key"] for table in result["tables"] for row in table["rows"] if row["latency"] is not None}
    rest = {key: value for key, value in kept.items() if key not in now}
    write_json_atomic(folder / REPRODUCTION, {**result, **({"kept": rest} if rest else {})})
    write_bytes_atomic(folder / "reproduction.md", markdown(result).encode())
    for table in result["tables"]:
        write_bytes_atomic(folder / f"table{table['table']}.csv", csv(table).encode())


COLUMNS = ("network", "FLOPs printed", "FLOPs ours", "memory printed", "memory ours", "speed-up printed",
           "speed-up ours", "top-1 printed", "top-1 ours", "top-5 printed", "top-5 ours", "fitness", "latency",
           "float latency")  # fmt: skip
_MISSING = "–"
_MARKS = {"equal": " =", "truncated": " (cut off)", "differs": " ≠"}


def cells(table: Mapping[str, Any]) -> list[list[str]]:
    """The rows of one table as text, in the order of `COLUMNS`; "=" marks a figure that is equal to the printed one
    when rounded as that is, "≠" one that differs.
    """
    return [_cells(row) for row in table["rows"]]


def _cells(row: Mapping[str, Any]) -> list[str]:
    found = [row["label"]]
    for name, suffix in (("flops", " M"), ("memory_bits", " Mbit"), ("speed_up", "x"), ("top1", ""), ("top5", "")):
        figure = row[name]
        found.append(_MISSING if figure["printed"] is None else figure["printed"] + suffix)
        if figure["ours"] is None:
            found.append(_MISSING)
        else:
            exact = f"{figure['ours']:,}" if name in ("flops", "memory_bits") else figure["rounded"]
            found.append(exact + _MARKS.get(figure["status"], ""))
    found.append(_MISSING if row["fitness"] is None else f"{row['fitness']:.2f}")
    latency = row["latency"] or {}
    for prefix in ("", "float_"):
        median = latency.get("float_us" if prefix else "median_us")
        if median is None:
            found.append(_MISSING)
            continue
        noisy = ", noisy" if latency[f"{prefix}noisy"] else ""
        found.append(f"{ms(median)} ms (IQR {ms(latency[f'{prefix}iqr_us'])}{noisy})")
    return found


def title(table: Mapping[str, Any]) -> str:
    """What a table is called."""
    return f"Table {table['table']}: {table['model']} on {table['data']}, counted by {table['rule']}"


def markdown(result: Mapping[str, Any]) -> str:
    """The tables and the findings as one Markdown document."""
    lines = [f"# {result['paper']['title']} (arXiv {result['paper']['arxiv']}): printed and recomputed", ""]
    for table in result["tables"]:
        lines += [f"## {title(table)}", "", "| " + " | ".join(COLUMNS) + " |"]
        lines += ["|" + " --- |" * len(COLUMNS), *("| " + " | ".join(row) + " |" for row in cells(table)), ""]
    machine, settings = result["machine"], result["settings"]
    if machine is not None:
        lines += [
            f"Latency: median per batch of {settings['batch']} on {settings['threads']} thread(s), "
            f"{machine.get('cpu')}, {machine.get('isa')}.",
            "",
        ]
    lines += ["## Findings", ""]
    lines += [
        f"* **{found['verdict']}** (table {found['table']}): {found['statement']}" for found in result["findings"]
    ]
    return "\n".join(lines) + "\n"


def csv(table: Mapping[str, Any]) -> str:
    """One table as CSV with exact figures; accuracies in percent, latencies in us."""
    import csv as writer
    import io

    text = io.StringIO()
    out = writer.writer(text, lineterminator="\n")
    latencies = ("median_us", "iqr_us", "noisy", "float_us", "float_iqr_us", "float_noisy", "ratio")
    names = [f"{name}_{part}" for name in FIGURES for part in ("printed", "ours", "status")]
    out.writerow(["key", "label", "kind", "network", "ratios", *names, "fitness", *latencies])
    for row in table["rows"]:
        figures = [row[name][part] for name in FIGURES for part in ("printed", "ours", "status")]
        ratios = " ".join(f"{ratio:g}" for ratio in row["ratios"] or ())
        times = [(row["latency"] or {}).get(name) for name in latencies]
        out.writerow([row["key"], row["label"], row["kind"], row["network"], ratios, *figures, row["fitness"], *times])
    return text.getvalue()

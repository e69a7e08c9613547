"""Do the searched widths win? The best of a search beside uniform widths of the same FLOPs, trained and judged alike.

Every network of the study is trained from scratch inside each fold of a cross-validation. The parent's weights are
not used, for either kind: the parent has seen images that the folds test on. What remains of the search is the choice
of the widths, which looked at the validation split; so the accuracy on the test split, which no search has seen, is
reported beside.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnas.files import CorruptFileError, write_json_checked
from bitnas.methods.run_folder import FRONT, STUDY, Progress, open_pool, read_front
from bitnas.methods.width import compare, evaluate
from bitnas.methods.width.config import WidthSearchConfig
from bitnas.methods.width.partner import uniform_multiplier
from bitnas.methods.width.search import open_journal, read_config
from bitnas.search import Journal, Record, Stage, WorkerPool, Workers, run_tasks
from bitnas.search.space import Genome

NETWORKS = "networks"
VERIFIED_IMAGES = 1000  # at most so many, each layer's every integer compared


@dataclass(frozen=True)
class Contender:
    """One network of the study, before it is trained."""

    label: str
    kind: str
    pair: str
    ratios: Genome
    flops: float


def study(
    run_dir: str | os.PathLike[str],
    *,
    picks: int = 3,
    folds: int = 5,
    epochs: int | None = None,
    flops_tolerance: float = 0.02,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Retrain the best networks of a search beside uniform ones of the same cost, and write `study.json`.

    Like the search it goes on where it was stopped: every training and every timing is journalled once.

    Args:
        run_dir: a folder with a finished search.
        picks: searched networks to take, each with one uniform partner; fewer if the front has no more.
        folds: of the cross-validation, at least 2. Every network is trained once in each.
        epochs: of each training; None for those of the search's recipe.
        flops_tolerance: how far a partner's FLOPs may be from the searched network's, as a fraction.
        workers: processes; None for as many as the search had.
        on_progress: called with events, each a dict with "event":
            "study_start" (networks, folds, epochs, trainings);
            "study_training" (label, kind, pair, fold or None for the final training, status, reason, accuracy,
            replayed, done, total);
            "study_network" (one row of the result) and "study_end" (claims).

    Returns:
        What it writes: `{"networks": [...], "claims": [...], "overall": {...}, "protocol": {...}}`. Accuracies are
        means over the folds, with 95 % intervals; a claim holds the paired difference over the same folds, and
        "overall" the mean of these over the pairs.

    Raises:
        FileNotFoundError: the folder holds no run, or its search has not finished.
        ValueError: an argument is out of range, or no network of the front has a partner of the same cost.
        And as `search`.
    """
    for name, value, low in (("picks", picks, 1), ("folds", folds, 2), ("epochs", 1 if epochs is None else epochs, 1)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: got {value!r}, wanted an integer")
        if value < low:
            raise ValueError(f"{name}: got {value}, wanted at least {low}")
    from bitnas import train

    folder = Path(run_dir)
    config = read_config(folder)
    epochs = train.RECIPES[config.recipe].epochs if epochs is None else epochs
    front = _read_front(folder)
    notify = on_progress or (lambda event: None)
    (folder / NETWORKS / "float").mkdir(parents=True, exist_ok=True)
    execution = config if workers is None else dataclasses.replace(config, workers=workers)
    with open_journal(folder, config) as journal, open_pool(execution, folder) as pool:
        contenders = choose(front, config, picks=picks, tolerance=flops_tolerance)
        if not contenders:
            raise ValueError(f"{folder}: no network of the front has a uniform partner within {flops_tolerance:.0%}")
        trained = _train(folder, config, contenders, folds, epochs, journal, pool, notify)
        pool.stop()  # the machine to itself, for the timings
        networks = [
            _finish(folder, config, contender, trained[contender.label], epochs, journal)
            for contender in contenders
            if all(record.ok for record in trained[contender.label])
        ]
        for network in networks:
            notify({"event": "study_network", **network})
        claims = _claims(contenders, trained, networks, folds)
        result = {
            "networks": networks,
            "claims": claims,
            "overall": _overall(claims),
            "protocol": _protocol(config, folds, epochs),
        }
        write_json_checked(folder / STUDY, result)
    notify({"event": "study_end", "claims": claims})
    return result


def choose(
    front: Sequence[Mapping[str, Any]], config: WidthSearchConfig, *, picks: int, tolerance: float
) -> list[Contender]:
    """Searched networks off the front, each followed by its uniform partner.

    Codes that are uniform themselves, or have no partner within the tolerance, are passed over.
    """
    contenders: list[Contender] = []
    for row in _by_preference([row for row in front if len(set(row["ratios"])) > 1], config):
        pair = chr(ord("A") + len(contenders) // 2)
        searched = Contender(f"searched-{pair}", "searched", pair, tuple(row["ratios"]), row["flops"])
        partner = _partner(searched, config)
        if abs(partner.flops / searched.flops - 1) <= tolerance:
            contenders += [searched, partner]
        if len(contenders) == 2 * picks:
            break
    return contenders


def _by_preference(rows: Sequence[Mapping[str, Any]], config: WidthSearchConfig) -> list[Mapping[str, Any]]:
    """Winners of the paper's fitness under several penalties first, so that the picks differ in cost; then the others.

    The penalties are the run's own, then 4, 16, 64 times it (cheaper networks), then a quarter, a 16th ... (dearer).
    """
    unit, penalty = evaluate.unit_flops(config), config.fitness_lambda or 1.0

    def fitness(row: Mapping[str, Any], scale: float = 1.0) -> float:
        return 100 * row["accuracy"] - scale * penalty * row["flops"] / unit

    scales = [4.0**power for power in (0, 1, 2, 3, -1, -2, -3)]
    winners = [max(rows, key=lambda row: fitness(row, scale)) for scale in scales] if rows else []
    ordered = [*winners, *sorted(rows, key=fitness, reverse=True)]
    return list({tuple(row["ratios"]): row for row in reversed(ordered)}.values())[::-1]


def _partner(searched: Contender, config: WidthSearchConfig) -> Contender:
    def flops(multiplier: float) -> float:
        return evaluate.costs(config, evaluate.network_config(config, multiplier))["flops"]

    multiplier = uniform_multiplier(searched.flops, flops, low=min(searched.ratios), high=max(searched.ratios))
    ratios = (multiplier,) * len(searched.ratios)
    return Contender(f"uniform-{searched.pair}", "uniform", searched.pair, ratios, flops(multiplier))


@evaluate.single_threaded
def train_fold(ratios: Genome, settings: dict[str, Any], folds: int, fold: int, epochs: int) -> dict[str, float]:
    """Train a network from scratch on all folds but one and test it on that one.

    Returns:
        accuracy on the fold; tested, correct: its images and those classified right; unseen_tested, unseen_correct: the
        same for the images of the run's test split.
    """
    import torch

    from bitnas import train

    config = WidthSearchConfig.from_dict(settings)
    dataset = evaluate.load_data(config.data, config.seed)
    train_part, test_part = dataset.folds(folds, config.seed)[fold]
    model = _fit(config, ratios, train_part, epochs, evaluate.derive_seed(config.seed, "study", fold))
    unseen = torch.isin(test_part, evaluate.split_data(config).test)
    correct = {}
    for name, part in (("unseen", test_part[unseen]), ("seen", test_part[~unseen])):
        accuracy = train.evaluate(model, dataset.subset(part)) if len(part) else 0.0
        correct[name] = round(accuracy * len(part))
    total = sum(correct.values())
    return {
        "accuracy": total / len(test_part),
        "tested": len(test_part),
        "correct": total,
        "unseen_tested": int(unseen.sum()),
        "unseen_correct": correct["unseen"],
    }


@evaluate.single_threaded
def train_final(ratios: Genome, settings: dict[str, Any], epochs: int, path: str) -> dict[str, float]:
    """Train the network to keep, on everything but the test split, and write it to `path`.

    Returns:
        test_accuracy: fraction, on the test split.
    """
    import torch

    from bitnas import train
    from bitnas.models import save_model

    config = WidthSearchConfig.from_dict(settings)
    dataset, split = evaluate.load_data(config.data, config.seed), evaluate.split_data(config)
    known = torch.cat([split.train, split.val]).sort().values
    model = _fit(config, ratios, known, epochs, evaluate.derive_seed(config.seed, "study", "final"))
    save_model(model, path, _trained_as(config, ratios, epochs))
    return {"test_accuracy": train.evaluate(model, dataset.subset(split.test))}


def _fit(config: WidthSearchConfig, ratios: Genome, part: Any, epochs: int, seed: int) -> Any:
    from bitnas import train

    dataset = evaluate.load_data(config.data, config.seed)
    model = evaluate.make_network(evaluate.network_config(config, ratios), seed)
    recipe = train.RECIPES[config.recipe].for_epochs(epochs)
    train.fit(model, dataset.subset(part), recipe, seed=seed)
    evaluate.release_memory()
    return model


def _trained_as(config: WidthSearchConfig, ratios: Genome, epochs: int) -> dict[str, Any]:
    """What tells one trained network of a folder from another."""
    network = evaluate.network_config(config, ratios).to_dict()
    return {"network": network, "epochs": epochs, "search": config.identity()}


def time_network(ratios: Genome, settings: dict[str, Any], epochs: int, path: str) -> dict[str, float]:
    """Latency of the network at `path`, frozen and as its float twin, in us per batch; see `time_pair`."""
    import torch

    from bitnas.cost import count
    from bitnas.cost.latency import thread_count
    from bitnas.methods.width.timing import time_pair
    from bitnas.packed import freeze

    config = WidthSearchConfig.from_dict(settings)
    model = load_trained(config, ratios, epochs, path)
    layers = [layer.name for layer in count(model, rule="mac").layers if layer.macs]
    dataset = evaluate.load_data(config.data, config.seed)
    x = dataset.take(torch.arange(config.latency_batch) % len(dataset))
    with thread_count(config.latency_threads):
        return time_pair(model, freeze(model), x, layers)


def load_trained(config: WidthSearchConfig, ratios: Genome, epochs: int, path: str | os.PathLike[str]) -> Any:
    """The network `train_final` wrote, in evaluation mode."""
    from bitnas.models.saved import load_with_facts

    model, facts = load_with_facts(path)
    if any(facts.get(name) != value for name, value in _trained_as(config, ratios, epochs).items()):
        raise CorruptFileError(path, "holds another network than the study's, or one trained otherwise")
    return model


def _train(
    folder: Path,
    config: WidthSearchConfig,
    contenders: Sequence[Contender],
    folds: int,
    epochs: int,
    journal: Journal,
    pool: Workers,
    notify: Progress,
) -> dict[str, list[Record]]:
    """Every training of the study: per network one record for each fold, then one for the final training."""
    settings = config.to_dict()
    fold_tasks = {
        _key(config, contender, folds, fold, epochs): (contender, fold)
        for contender in contenders
        for fold in range(folds)
    }
    final_tasks = {_key(config, contender, "final", epochs): contender for contender in contenders}
    total = len(fold_tasks) + len(final_tasks)
    notify({"event": "study_start", "networks": len(contenders), "folds": folds, "epochs": epochs, "trainings": total})
    found: dict[str, Record] = {}

    def note(record: Record, replayed: bool, contender: Contender, fold: int | None) -> None:
        found[record.key] = record
        notify(
            {
                "event": "study_training",
                "label": contender.label,
                "kind": contender.kind,
                "pair": contender.pair,
                "fold": fold,
                "status": record.status,
                "reason": record.reason,
                "accuracy": record.metrics.get("accuracy", record.metrics.get("test_accuracy")),
                "replayed": replayed,
                "done": len(found),
                "total": total,
            }
        )

    for record, replayed in run_tasks(
        [(key, contender.ratios) for key, (contender, _) in fold_tasks.items()],
        Stage("study-fold", train_fold),
        journal,
        pool,
        task_arguments=[(settings, folds, fold, epochs) for _, fold in fold_tasks.values()],
    ):
        note(record, replayed, *fold_tasks[record.key])
    for record, replayed in run_tasks(
        [(key, contender.ratios) for key, contender in final_tasks.items()],
        Stage("study-final", train_final),
        journal,
        pool,
        task_arguments=[(settings, epochs, str(_trained_path(folder, c))) for c in final_tasks.values()],
    ):
        note(record, replayed, final_tasks[record.key], None)
    grouped: dict[str, list[Record]] = {}
    for key, (contender, _) in fold_tasks.items():
        grouped.setdefault(contender.label, []).append(found[key])
    for key, contender in final_tasks.items():
        grouped[contender.label].append(found[key])
    return grouped


def _finish(
    folder: Path,
    config: WidthSearchConfig,
    contender: Contender,
    records: Sequence[Record],
    epochs: int,
    journal: Journal,
) -> dict[str, Any]:
    """Freeze, verify, save and time one trained network, and describe it."""
    from bitnas import packed
    from bitnas.cost import count
    from bitnas.models import widths

    settings = config.to_dict()
    path = _trained_path(folder, contender)
    dataset, split = evaluate.load_data(config.data, config.seed), evaluate.split_data(config)
    if not _holds(path, config, contender, epochs):  # lost, or of an earlier study
        train_final(contender.ratios, settings, epochs, str(path))
    network = evaluate.network_config(config, contender.ratios)
    model = load_trained(config, contender.ratios, epochs, path)
    frozen = packed.freeze(model)
    verification = packed.verify(model, frozen, dataset.take(split.test[:VERIFIED_IMAGES]))
    file = folder / NETWORKS / f"{contender.label}.safetensors"
    packed.save(frozen, file)
    key = _key(config, contender, "latency", epochs)
    stage = Stage("study-latency", time_network, (settings, epochs, str(path)), parallel=False)
    timed = next(run_tasks([(key, contender.ratios)], stage, journal, WorkerPool(0)))[0].metrics

    results = [record.metrics for record in records[:-1]]
    accuracy = compare.fold_interval([result["accuracy"] for result in results])
    unseen = sum(result["unseen_tested"] for result in results)
    layers = [layer for layer in count(model, rule="mac").layers if layer.macs]
    return {
        "label": contender.label,
        "kind": contender.kind,
        "pair": contender.pair,
        "ratios": list(contender.ratios),
        "widths": list(widths(network)),
        "accuracy": accuracy.mean,
        "accuracy_low": max(0.0, accuracy.low),
        "accuracy_high": min(1.0, accuracy.high),
        "accuracy_runs": [result["accuracy"] for result in results],
        "unseen_accuracy": sum(r["unseen_correct"] for r in results) / unseen if unseen else None,
        "unseen_images": int(unseen),
        "test_accuracy": records[-1].metrics["test_accuracy"],
        **evaluate.costs(config, network),
        "packed_bytes": packed.packed_bytes(frozen),
        "latency_us": timed.get("latency_us"),
        "latency_iqr_us": timed.get("latency_iqr_us"),
        "latency_noisy": bool(timed.get("latency_noisy", 0.0)),
        "float_latency_us": timed.get("float_latency_us"),
        "float_latency_iqr_us": timed.get("float_latency_iqr_us"),
        "layers": [
            {
                "name": layer.name,
                "packed_us": timed.get(f"layer.{layer.name}.packed_us"),
                "float_us": timed.get(f"layer.{layer.name}.float_us"),
                "macs": layer.macs,
                "binary": layer.binary,
            }
            for layer in layers
        ],
        "verified": verification.to_dict(),
        "file": f"{NETWORKS}/{file.name}",
    }


def _holds(path: Path, config: WidthSearchConfig, contender: Contender, epochs: int) -> bool:
    """True if the file is there, whole, and of this network."""
    try:
        load_trained(config, contender.ratios, epochs, path)
    except (FileNotFoundError, CorruptFileError):
        return False
    return True


def _claims(
    contenders: Sequence[Contender],
    trained: Mapping[str, Sequence[Record]],
    networks: Sequence[Mapping[str, Any]],
    folds: int,
) -> list[dict[str, Any]]:
    """For each pair the paired difference over the same folds, and what it allows to say."""
    rows = {network["label"]: network for network in networks}
    claims = []
    for searched, uniform in zip(contenders[::2], contenders[1::2], strict=True):
        claim: dict[str, Any] = {"pair": searched.pair, "searched": searched.label, "uniform": uniform.label}
        failed = next((r for c in (searched, uniform) for r in trained[c.label] if not r.ok), None)
        if failed is not None:
            claims.append(
                {**claim, "outcome": "failed", "verdict": f"not compared, a training failed: {failed.reason}"}
            )
            continue
        differences = [
            a.metrics["accuracy"] - b.metrics["accuracy"]
            for a, b in zip(trained[searched.label][:folds], trained[uniform.label][:folds], strict=True)
        ]
        interval = compare.fold_interval(differences)
        ratio = searched.flops / uniform.flops
        a, b = rows[searched.label], rows[uniform.label]
        claims.append(
            {
                **claim,
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "differences": differences,
                "unseen_difference": _difference(a["unseen_accuracy"], b["unseen_accuracy"]),
                "flops_ratio": ratio,
                "latency_ratio": a["latency_us"] / b["latency_us"] if a["latency_us"] and b["latency_us"] else None,
                "outcome": compare.outcome(interval),
                "verdict": compare.sentence(interval, ratio),
            }
        )
    return claims


def _overall(claims: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The difference averaged over the pairs, fold by fold; None if no pair could be compared."""
    compared = [claim for claim in claims if "differences" in claim]
    if not compared:
        return None
    per_fold = [math.fsum(values) / len(values) for values in zip(*(c["differences"] for c in compared), strict=True)]
    interval = compare.fold_interval(per_fold)
    ratio = math.fsum(claim["flops_ratio"] for claim in compared) / len(compared)
    return {
        "pairs": len(compared),
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "flops_ratio": ratio,
        "outcome": compare.outcome(interval),
        "verdict": compare.sentence(interval, ratio),
    }


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or not math.isfinite(a - b) else a - b


def _protocol(config: WidthSearchConfig, folds: int, epochs: int) -> dict[str, Any]:
    return {
        "folds": folds,
        "epochs": epochs,
        "recipe": config.recipe,
        "weights": "from scratch in every fold, searched and uniform alike; none are inherited",
        "interval": "95 %, t over the folds, corrected for overlapping training sets (Nadeau and Bengio 2003)",
        "unseen": "accuracy in the same cross-validation on the images of the test split, which the search never saw",
    }


def _trained_path(folder: Path, contender: Contender) -> Path:
    return folder / NETWORKS / "float" / f"{contender.label}.safetensors"


def _key(config: WidthSearchConfig, contender: Contender, *task: object) -> str:
    """The journal's key of one task of the study: the network and what is done with it."""
    network = evaluate.architecture_key(config, contender.ratios)
    return f"{network}/{'/'.join(map(str, task))}"


def _read_front(folder: Path) -> list[dict[str, Any]]:
    path = folder / FRONT
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {FRONT}: its search has not finished; resume it first")
    front = read_front(folder)
    try:
        if not all(math.isfinite(row["flops"] + row["accuracy"]) and row["ratios"] for row in front):
            raise ValueError("a row is not complete")
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptFileError(path, f"is not a front ({error})") from error
    return front

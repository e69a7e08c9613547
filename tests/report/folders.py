"""Run folders as a search and a study leave them, with made-up numbers, for tests of what reads them."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

from bitnas.files import write_json_checked
from bitnas.search import Journal, Record
from bitnas.search.journal import read_journal

RATIOS = (0.25, 0.5, 1.0, 2.0, 3.0, 4.0)
BASE = (32, 32, 64, 64, 128, 128)
CONFIG = {
    "method": "width",
    "search": {
        "model": "vgg_small",
        "data": "digits",
        "objectives": ["accuracy", "ops", "latency"],
        "latency_batch": 32,
    },
    "seed": 7,
    "command": "bitnas search --model vgg_small --data digits --seed 7 --out 'runs/one two'",
    "machine": {
        "cpu": "Imaginary CPU <5>",
        "cores": 2,
        "isa": "avx512",
        "isas": ["scalar", "avx2", "avx512"],
        "cuda": False,
    },
    "versions": {"bitnas": "0.1.0", "torch": "2.13.0"},
}


def _cost(ratios: tuple[float, ...]) -> dict[str, float]:
    widths = [int(base * ratio) for base, ratio in zip(BASE, ratios, strict=True)]
    macs = [1.0 * 9 * 64 * widths[0]]
    macs += [9.0 * 64 / 4 ** (i // 2) * a * b for i, (a, b) in enumerate(pairwise(widths), 1)]
    bops = sum(macs[1:])
    return {"flops": macs[0] + bops / 64, "ops": macs[0] + bops / 64, "bops": bops, "macs": sum(macs)}


def metrics(ratios: tuple[float, ...], generator: random.Random, *, latency: bool = True) -> dict[str, float]:
    """Measurements of one candidate, in the form of the journal."""
    cost = _cost(ratios)
    accuracy = min(0.999, 0.90 + 0.012 * sum(ratios[1:4]) / 3 + generator.gauss(0, 0.012))
    found = {**cost, "accuracy": accuracy, "fitness": 100 * accuracy - cost["flops"] / 1e6}
    if latency:
        found |= {"latency_us": 60 + cost["bops"] / 9e4 * generator.uniform(0.8, 1.5), "latency_iqr_us": 6.0}
    return found


def network(kind: str, pair: str, ratios: tuple[float, ...], accuracy: float, **changes: Any) -> dict[str, Any]:
    """One network of study.json."""
    cost = _cost(ratios)
    latency = 60 + cost["bops"] / 9e4
    names = ["conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "fc"]
    layers = [
        {
            "name": name,
            "packed_us": 9.0 + 3 * index,
            "float_us": 7.0 if index == 5 else (9.0 + 3 * index) * (1 if index in (0, 6) else 1.5 + 2 * index),
            "macs": 1e5,
            "binary": index not in (0, 6),
        }
        for index, name in enumerate(names)
    ]
    values = {
        "label": f"{kind} {pair}",
        "kind": kind,
        "pair": pair,
        "ratios": list(ratios),
        "widths": [int(base * ratio) for base, ratio in zip(BASE, ratios, strict=True)],
        "accuracy": accuracy,
        "accuracy_low": accuracy - 0.004,
        "accuracy_high": accuracy + 0.004,
        "accuracy_runs": [accuracy - 0.002, accuracy, accuracy + 0.002],
        **cost,
        "params": 1e5,
        "memory_bits": 8e5,
        "packed_bytes": 60_000 + cost["bops"] / 900,
        "latency_us": latency,
        "latency_iqr_us": latency * 0.06,
        "latency_noisy": False,
        "float_latency_us": latency * 5,
        "layers": layers,
        "verified": {"ok": True},
        "file": f"networks/{pair}-{kind}.safetensors",
    }
    return values | changes


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def search_folder(folder: Path, *, latency: bool = True, generations: int = 4) -> Path:
    """A finished search without a study: configuration, journal with two failures, front."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", CONFIG)
    generator = random.Random(3)
    good = []
    with Journal(folder / "journal.sqlite", meta={"seed": 7}) as journal:
        for index in range(8 * generations):
            genome = tuple(generator.choice(RATIOS) for _ in BASE)
            fields = {"key": f"{index:064x}", "genome": genome, "generation": index // 8}
            if index in (3, 17):
                journal.add(Record.failure("loss is not finite after epoch 1", stage="train", **fields))
                continue
            found = metrics(genome, generator, latency=latency)
            journal.add(Record.of(found, stage="train", **fields))
            good.append({"ratios": list(genome), "widths": [1], "key": fields["key"], **found})
    best = sorted(good, key=lambda entry: entry["flops"])
    front = [entry for i, entry in enumerate(best) if all(entry["accuracy"] > e["accuracy"] for e in best[:i])]
    write_json(folder / "front.json", front)
    return folder


def study_folder(folder: Path, gains: tuple[float, ...] = (0.021, 0.002, -0.003)) -> Path:
    """A finished search with a study; `gains` are searched minus uniform accuracy of each pair."""
    search_folder(folder)
    networks, claims = [], []
    codes = [(0.5, 0.5, 1.0, 0.5, 0.5, 0.25), (1.0, 2.0, 1.0, 1.0, 0.5, 0.5), (2.0, 4.0, 2.0, 1.0, 2.0, 0.5)]
    multipliers = [0.52, 0.9, 1.72]
    for index, gain in enumerate(gains):
        pair, base = "ABC"[index], 0.955 + 0.012 * index
        networks.append(network("searched", pair, codes[index], base + gain))
        networks.append(network("uniform", pair, (multipliers[index],) * 6, base))
        outcome = "better" if gain > 0.006 else "worse" if gain < -0.006 else "undecided"
        names = {"pair": pair, "searched": f"searched {pair}", "uniform": f"uniform {pair}"}
        claims.append({**names, "difference": gain, "low": gain - 0.006, "high": gain + 0.006, "outcome": outcome})
    protocol = {"folds": 5, "epochs": 12, "interval": "95 %, t over the folds"}
    write_json(folder / "study.json", {"networks": networks, "claims": claims, "protocol": protocol})
    return folder


CHECK = {
    "spearman": 0.991,
    "median_error": 0.023,
    "worst_error": 0.21,
    "error_95": 0.064,
    "bias": 0.011,
    "noise": 0.008,
    "networks": 3,
    "date": "2025-01-02T10:00:00",
    "pairs": [[100.0, 98.0], [210.0, 200.0], [395.0, 500.0]],
    "goal_met": True,
}


def add_summary(
    folder: Path, *, source: str | None = "measured", check: dict[str, Any] | None = None, over: tuple[int, ...] = ()
) -> Path:
    """`search.json` beside the journal of `search_folder`; the candidates numbered `over` are beyond a budget."""
    _, records = read_journal(folder / "journal.sqlite")
    candidates = []
    for index, record in enumerate(records):
        status, reason = record.status, record.reason
        if index in over:
            status = "rejected"
            reason = f"its latency of {record.metrics['latency_us']:.1f} us is over the budget of 90 us"
        entry = {"key": record.key, "ratios": list(record.genome), "status": status, "reason": reason}
        candidates.append({**entry, "generation": record.generation, "metrics": dict(record.metrics)})
    history, fronts = [], []
    for generation in range(1 + max(c["generation"] for c in candidates)):
        so_far = [c for c in candidates if c["generation"] <= generation and c["status"] == "ok"]
        so_far.sort(key=lambda c: c["metrics"]["latency_us"])
        fronts.append(
            [
                c["key"]
                for i, c in enumerate(so_far)
                if all(c["metrics"]["accuracy"] > other["metrics"]["accuracy"] for other in so_far[:i])
            ]
        )
        history.append({"generation": generation, "evaluated": len(so_far), "front": len(fronts[-1])})
    latency = {"source": source, "table_check": check}
    write_json(
        folder / "search.json", {"history": history, "fronts": fronts, "candidates": candidates, "latency": latency}
    )
    return folder


def figure(printed: str | None, ours: float | None, status: str, reason: str | None = None) -> dict[str, Any]:
    """One figure of reproduction.json."""
    return {
        "printed": printed,
        "ours": ours,
        "rounded": None if ours is None else f"{ours:g}",
        "status": status,
        "reason": reason,
    }


def reproduction_folder(folder: Path) -> Path:
    """One table of three rows, one figure of which differs, and two findings."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for key, kind, flops, top1, latency in (
        ("full", "full precision", 608.0, "93.5", None),
        ("x2", "uniform", 45.3, "91.0", 900.0),
        ("auto", "searched", 11.3, "92.0", 300.0),
    ):
        timed = {"float_us": 9000.0, "float_iqr_us": 100.0, "float_noisy": False, "ratio": latency and 9000 / latency}
        timed |= {"median_us": latency, "iqr_us": latency and 10.0, "noisy": latency and False}
        speed = figure("53.6", 53.7, "differs", "printed 53.6, the quotient is 53.7")
        rows.append(
            {
                "key": key,
                "label": f"net {key}",
                "kind": kind,
                "network": "vgg_small",
                "ratios": [1.0, 2.0],
                "widths": [8, 16],
                "flops": figure(f"{flops:g}", flops, "equal"),
                "memory_bits": figure(None, 1e6, "ours only"),
                "speed_up": speed if kind == "searched" else figure(None, 2.0, "ours only"),
                "top1": figure(top1, None, "printed only", "no trained network"),
                "top5": figure(None, None, "ours only"),
                "fitness": None,
                "latency": timed,
                "latency_reason": None,
                "trained": None,
                "trained_reason": "no trained network",
            }
        )
    table = {"table": 1, "data": "CIFAR-10", "model": "vgg_small", "rule": "shen2019-table1", "rows": rows}
    findings = [
        {"id": "b", "table": 1, "verdict": "consistent", "statement": "That one follows.", "evidence": {}},
        {"id": "a", "table": 1, "verdict": "misprint", "statement": "This speed-up is a misprint.", "evidence": {}},
    ]
    result = {
        "format": "bitnas-reproduction-1",
        "paper": {"title": "A paper", "arxiv": "1234.5678"},
        "complete": True,
        "settings": {"tables": [1], "latency": True, "batch": 1, "threads": 1, "data": None, "seed": 0},
        "machine": {"cpu": "Imaginary CPU", "isa": "avx512"},
        "tables": [table],
        "findings": findings,
        "summary": {},
    }
    write_json(folder / "reproduction.json", result)
    return folder


def claim_folder(folder: Path, differences: tuple[float, ...] = (0.02, 0.03, 0.025), outcome: str = "better") -> Path:
    """A finished claim of as many seeds as there are differences."""
    folder.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed, difference in enumerate(differences):
        searched = {"ratios": [0.5, 2.0], "widths": [4, 32], "flops": 1000.0, "accuracy": 0.9 + difference, "sd": 0.01}
        uniform = {"ratios": [0.8, 0.8], "widths": [6, 12], "flops": 1005.0, "accuracy": 0.9, "sd": 0.02}
        finalist = {"ratios": [0.5, 2.0], "flops": 1000.0, "search_accuracy": 0.91, "runoff_accuracy": 0.92}
        runs.append(
            {
                "seed": seed,
                "folder": f"seed-{seed}",
                "networks_tried": 40,
                "trainings": 60,
                "searched": {**searched, "accuracy_runs": [0.9, 0.9 + 2 * difference]},
                "uniform": {**uniform, "accuracy_runs": [0.9, 0.9]},
                "flops_ratio": 0.995,
                "differences": [0.0, 2 * difference],
                "difference": difference,
                "finalists": [finalist],
            }
        )
    mean = sum(differences) / len(differences)
    overall = {
        "seeds": len(runs),
        "won": sum(difference > 0 for difference in differences),
        "difference": mean,
        "low": mean - 0.01,
        "high": mean + 0.01,
        "outcome": outcome,
        "verdict": "as computed",
    }
    protocol = {"flops_tolerance": 0.02, "epochs": 20, "text": ["each seed has a split of its own"]}
    whole = {"format": "bitnas-claim-1", "complete": True, "data": "digits", "seeds": list(range(len(runs)))}
    whole |= {"settings": {"base_width": 0.0625}, "protocol": protocol, "runs": runs, "trainings": 180}
    write_json(folder / "claim.json", {**whole, "overall": overall if len(runs) > 1 else None})
    (folder / "seed-0").mkdir(exist_ok=True)
    write_json(folder / "seed-0" / "config.json", CONFIG)
    return folder


def subnet(generator: random.Random) -> dict[str, Any]:
    """Stem and blocks of a subnet, as `SubnetConfig.to_dict` gives them."""
    channels, blocks = generator.choice((8, 16)), []
    stem = channels
    for stride, choices in ((1, (16, 32)), (2, (32, 64)), (1, (64, 96)), (2, (96, 192))):
        channels = generator.choice([c for c in choices if c >= channels] or [channels])
        kernel, groups = generator.choice((3, 5)), generator.choice((1, 2))
        blocks.append({"channels": channels, "kernel": kernel, "groups": groups, "groups_1x1": 1, "stride": stride})
    return {"name": "nasbnn", "stem": stem, "blocks": blocks, "num_classes": 10, "input_size": [1, 8, 8]}


def subnet_folder(folder: Path, *, latency: bool = True, archive: bool = False, study: bool = True) -> Path:
    """A finished search of NAS-BNN, with the log of its supernet, one failure and, if asked for, deployed subnets."""
    folder.mkdir(parents=True, exist_ok=True)
    objectives = ["archive"] if archive else ["accuracy", "ops", "latency"]
    search = {"data": "digits", "objectives": objectives, "bucket": 2e3, "latency_batch": 32}
    search["space"] = {"name": "small"}
    write_json(folder / "config.json", {**CONFIG, "method": "nasbnn", "search": search})
    lines = ["epoch,loss,train_accuracy,val_accuracy,lr,seconds,data_seconds"]
    lines += [f"{i},{2.0 / (i + 1)},{0.5 + 0.04 * i},{0.5 + 0.03 * i},0.001,2.5,0.1" for i in range(8)]
    (folder / "supernet.csv").write_text("\n".join(lines) + "\n")
    generator = random.Random(11)
    entries = []
    for index in range(30):
        ops = generator.uniform(4e3, 4e4)
        accuracy = min(0.99, 0.6 + 0.08 * math.log(ops / 4e3) + generator.gauss(0, 0.02))
        found = {"accuracy": accuracy, "ops": ops, "bops": 50 * ops, "flops": ops / 8, "memory_bits": 1e5}
        if latency:
            time = 200 + ops / 100 * generator.uniform(0.8, 1.2)
            found |= {"latency_us": time, "latency_low_us": 0.97 * time, "latency_high_us": 1.03 * time}
        entry = {"key": f"{index:064x}", "genome": [8, 1], "subnet": subnet(generator), "generation": index // 10}
        failed = index == 7
        reason = "killed after the time limit of 60 s" if failed else ""
        entries.append(
            {**entry, "status": "failed" if failed else "ok", "reason": reason, "metrics": {} if failed else found}
        )
    good = sorted((e for e in entries if e["status"] == "ok"), key=lambda e: e["metrics"]["ops"])
    kept = [e for i, e in enumerate(good) if all(e["metrics"]["accuracy"] > o["metrics"]["accuracy"] for o in good[:i])]
    front = [
        {"subnet": e["subnet"], "genome": e["genome"], **e["metrics"], "generation": e["generation"], "key": e["key"]}
        for e in kept
    ]
    write_json(folder / "front.json", front)
    fronts = [[e["key"] for e in kept if e["generation"] <= generation] for generation in range(3)]
    source = "measured" if latency else None
    latencies = {"source": source, "table_check": None}
    write_json(folder / "search.json", {"history": [], "fronts": fronts, "candidates": entries, "latency": latencies})
    if study:
        networks, claims = [], []
        for pair, row in zip("AB", (front[0], front[-1]), strict=True):
            for kind, gain in (("inherited", 0.0), ("fine-tuned", 0.04)):
                made = network("searched", pair, (1.0,) * 6, min(0.98, row["accuracy"] + gain))
                del made["ratios"], made["widths"]
                networks.append({**made, "label": f"{pair} {kind}", "kind": kind, "subnet": row["subnet"]})
            names = {"pair": pair, "searched": f"{pair} fine-tuned", "uniform": f"{pair} inherited"}
            claims.append({**names, "difference": 0.04, "low": 0.01, "high": 0.07, "outcome": "better"})
        protocol = {"test_images": 359, "val_images": 360, "weights": "inherited"}
        write_json(folder / "study.json", {"networks": networks, "claims": claims, "protocol": protocol})
    return folder


def _studied(folder: Path, name: str, **members: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    facts = {name: CONFIG[name] for name in ("command", "machine", "versions")}
    result = {"format": f"bitnas-nasbnn-{name}-1", "complete": True, "data": "digits", "space": "small", **facts}
    result |= {"search": {"data": "digits"}, "settings": {"epochs": 3}, "protocol": ["as it was done"]}
    write_json_checked(folder / f"{name}.json", {**result, **members})
    return folder


def ranking_folder(folder: Path, subnets: int = 12) -> Path:
    """A finished ranking: accuracies made up, correlations and sentences computed as ever."""
    from bitnas.methods.nasbnn.ranking import correlations, verdicts

    generator, rows = random.Random(4), []
    for index in range(subnets):
        alone = 0.6 + 0.02 * index + generator.gauss(0, 0.01)
        inherited = alone - 0.1 + generator.gauss(0, 0.02)
        rows.append(
            {
                "key": f"{index:064x}",
                "subnet": subnet(generator),
                "ops": 3e3 * 1.3**index,
                "inherited": inherited,
                "inherited_val": inherited,
                "alone": alone,
                "alone_runs": [alone - 0.01, alone + 0.01],
                "alone_sd": 0.01,
                "alone_test": alone,
            }
        )
    found = correlations(rows, resamples=100)
    return _studied(folder, "ranking", subnets=rows, images=719, correlations=found, verdicts=verdicts(found))


def ablation_folder(folder: Path, seeds: int = 3) -> Path:
    """A finished ablation; its sentences are computed as ever."""
    from bitnas.methods.nasbnn import ablation

    generator = random.Random(6)
    runs = {
        name: [dict.fromkeys(ablation.GROUPS, 0.9 - 0.05 * len(off) + generator.gauss(0, 0.002)) for _ in range(seeds)]
        for name, off in ablation.VARIANTS.items()
    }
    variants = [
        {
            "name": name,
            "strategies": {},
            "accuracy": {
                group: {"mean": own[0][group], "sd": 0.002, "runs": [run[group] for run in own]}
                for group in ablation.GROUPS
            },
        }
        for name, own in runs.items()
    ]
    differences = [
        ablation._difference(name, group, runs["all"], own, 0.5)
        for name, own in runs.items()
        for group in ablation.GROUPS
        if name != "all"
    ]
    judged = ablation.corrected([one for one in differences if one["group"] == "mean"])
    differences = [one for one in differences if one["group"] != "mean"] + judged
    said = [ablation.verdict(one) for one in judged]
    members = {"variants": variants, "differences": differences, "verdicts": said}
    return _studied(folder, "ablation", seeds=list(range(seeds)), images=719, **members)


def against_folder(folder: Path, seeds: int = 2) -> Path:
    """A finished comparison of three fronts; areas and sentences are computed as ever."""
    from bitnas.methods.nasbnn.against import compared

    generator, found = random.Random(8), []
    fronts = {("searched", "inherited"): 0.85, ("searched", "fine-tuned"): 0.93, ("random", "inherited"): 0.8,
              ("random", "fine-tuned"): 0.9, ("widths", "from scratch"): 0.88}  # fmt: skip
    for seed in range(seeds):
        networks = []
        for (method, training), top in fronts.items():
            for number in range(3):
                time, accuracy = 300.0 * (number + 1), top - 0.05 * (2 - number) + generator.gauss(0, 0.005)
                kind = {"ratios": [1.0, 2.0]} if method == "widths" else {"subnet": subnet(generator)}
                networks.append(
                    {"method": method, "training": training, "name": f"{method} {number + 1}", **kind, "ops": 1e4,
                     "accuracy": accuracy, "accuracy_low": accuracy - 0.02, "accuracy_high": accuracy + 0.02,
                     "search_accuracy": accuracy, "latency_us": time,
                     "latency_low_us": 0.98 * time, "latency_high_us": 1.02 * time,
                     "latency_noisy": 0.0}
                )  # fmt: skip
        counts = {"searched": 64, "random": 64, "widths": 64}
        found.append({"seed": seed, "test_images": 359, "train_images": 1078, "networks": networks,
                      "evaluated": counts, "seconds": dict.fromkeys(counts, 60.0)})  # fmt: skip
    return _studied(folder, "against", seeds=found, **compared(found))


def bars_course(space: Any, epochs: int, *, favourite: str | None = None) -> list[dict[str, Any]]:
    """A made-up course in which some operations win, on every edge the `favourite` if there is one."""
    from bitnas.report.cells import EDGES

    generator = random.Random(8)

    def row(length: int, winner: int, share: float) -> list[float]:
        return [round((1 - share) / length + (share if n == winner else 0.0), 6) for n in range(length)]

    names = list(space.operations)
    wins = [
        [names.index(favourite) if favourite else generator.randrange(len(names)) for _ in EDGES]
        for _ in range(space.topologies)
    ]
    found = []
    for epoch in range(epochs):
        done = epoch / max(epochs - 1, 1)
        share = 0.9 * done
        edges = [[row(len(names), winner, share) for winner in group] for group in wins]
        widths = [row(len(space.widths), len(space.widths) - 1, share) for _ in range(space.width_count)]
        depths = [row(len(choices), 0, share) for choices in space.depth_choices]
        chosen = [max(range(len(names)), key=one.__getitem__) for group in edges for one in group]
        found.append(
            {
                "epoch": epoch,
                "loss": 2.0 - done,
                "accuracy": 0.2 + 0.5 * done,
                "arch_loss": None if epoch < 2 else 2.1 - done,
                "arch_accuracy": None if epoch < 2 else 0.2 + 0.4 * done,
                "arch_steps": 0 if epoch < 2 else 9,
                "expected": {"flops": 5e5 - 2e5 * done},
                "factor": 1.0,
                "entropies": {"edges": 1.1 - done, "layout": 1.2 - done},
                "temperatures": {"edges": 1.0, "layout": 1.0},
                "lr": 0.01,
                "hessian": 0.5 + 0.1 * epoch if epoch % 4 == 3 else None,
                "alive": [10 * len(names) - (epoch > 4)] * space.topologies,
                "skips": sum(names[n] == "skip" for n in chosen) / len(chosen),
                "probabilities": {"edges": edges, "widths": widths, "depths": depths},
                "stopped": None,
                "seconds": 1.0,
            }
        )
    return found


def bars_folder(
    folder: Path, *, space: str = "small", epochs: int = 8, favourite: str | None = None, judged: bool = True
) -> Path:
    """A finished search by BARS, its networks by the real space, every measurement made up."""
    from bitnas.methods.bars.config import preset
    from bitnas.methods.bars.course import save_course
    from bitnas.methods.bars.description import load

    (folder / "networks").mkdir(parents=True, exist_ok=True)
    description = load(space)
    controller = {"cost": "flops", "flops_budget": 4e5, "warmup_epochs": 2, "epochs": epochs}
    config = preset("digits", space=space, controller=controller)
    write_json(folder / "config.json", {**CONFIG, "method": "bars", "search": config.to_dict()})
    save_course(bars_course(description, epochs, favourite=favourite), folder / "course.json")
    if not judged:
        return folder
    generator, entries = random.Random(5), []
    for index in range(6):
        point = description.random(generator)
        network = description.network(point)
        ops = 1e4 * (index + 1)
        time = 150 + ops / 200
        found = {"accuracy": 0.7 + 0.03 * index, "ops": ops, "bops": 50 * ops, "flops": ops / 8, "memory_bits": 1e5}
        found |= {"params": 1e4, "loss_flops": 7e4 * (index + 1), "latency_us": time}
        found |= {"latency_low_us": 0.97 * time, "latency_high_us": 1.03 * time}
        named = {"architecture": point.to_dict(), "network": network.to_dict(), "key": network.key()}
        failed = index == 2
        entries.append(
            {
                **named,
                "genome": list(description.genome(point)),
                "generation": 0,
                "status": "failed" if failed else "ok",
                "reason": "killed after the time limit of 60 s" if failed else "",
                "metrics": {} if failed else found,
            }
        )
    front = [
        {**{n: e[n] for n in ("architecture", "network", "genome", "generation", "key")}, **e["metrics"]}
        for e in reversed(entries)
        if e["status"] == "ok"
    ]
    write_json(folder / "front.json", front)
    latency = {"source": "measured", "table_check": None}
    fronts = [[row["key"] for row in front]]
    likeliest = entries[0]["key"]
    write_json(
        folder / "search.json",
        {"history": [], "fronts": fronts, "candidates": entries, "latency": latency, "likeliest": likeliest},
    )
    return folder


def bars_study_folder(folder: Path, name: str = "cells", seeds: int = 3, *, collapsed: str | None = None) -> Path:
    """A finished study of BARS: figures made up, comparisons and sentences computed as ever. The searches of the
    variant `collapsed` end with skips on nearly all edges."""
    from bitnas.methods.bars import comparisons, variants
    from bitnas.methods.bars.config import preset

    generator = random.Random(name)
    config = preset("digits", controller={"warmup_epochs": 2, "epochs": 6})
    found = {
        "cells": [variants.Variant(variants.SEARCHED, "the settings as they are")],
        "guards": variants.of_guards(config),
        "cost": variants.of_cost(
            [variants.Budget(variants.SMALL, 1e5, 300.0, 9), variants.Budget(variants.LARGE, 2e5, 400.0, 9)]
        ),
        "parts": variants.of_parts(config, 1e5),
    }[name]
    names = [variant.name for variant in found] + ([variants.RANDOM] if name == "cells" else [])
    runs = []
    for seed in range(seeds):
        for place, variant in enumerate(names):
            bad = variant == collapsed
            right = [generator.random() < (0.6 if bad else 0.9 - 0.02 * place) for _ in range(360)]
            accuracy = sum(right) / len(right)
            course = [0.3 + (0.1 * epoch if bad else 0.0) for epoch in range(6)]
            runs.append(
                {
                    "variant": variant,
                    "seed": seed,
                    "label": variant if variant != variants.RANDOM else f"{variant} 1",
                    "kind": "random" if variant == variants.RANDOM else "searched",
                    "key": f"{place:064x}",
                    "accuracy": accuracy,
                    "accuracy_low": accuracy - 0.04,
                    "accuracy_high": min(1.0, accuracy + 0.03),
                    "test_images": 360,
                    "train_images": 1437,
                    "operations": 1e5 * (1 + 0.02 * place),
                    "loss_flops": 9e4 * (1 + 0.02 * place),
                    "latency_us": 300.0 + 20 * place + generator.uniform(-5, 5),
                    "latency_low_us": 290.0 + 20 * place,
                    "latency_high_us": 312.0 + 20 * place,
                    "latency_iqr_us": 8.0,
                    "latency_noisy": False,
                    "skips": course[-1],
                    "none": 0.1,
                    "verified": {"ok": True},
                    "stopped": None,
                    "right": right,
                    **({} if variant == variants.RANDOM else {"course": course, "course_none": [0.1] * 6}),
                }
            )
    compared = comparisons.compared(name, runs, names)
    said = [*comparisons.described(name, runs), *(one["verdict"] for one in compared)]
    facts = {fact: CONFIG[fact] for fact in ("command", "machine", "versions")}
    folder.mkdir(parents=True, exist_ok=True)
    write_json_checked(
        folder / f"{name}.json",
        {
            "format": f"bitnas-bars-{name}-1",
            "study": name,
            "complete": True,
            "data": "digits",
            "seeds": list(range(seeds)),
            "variants": [{"name": variant.name, "says": variant.says} for variant in found],
            "runs": [{key: value for key, value in run.items() if key != "right"} for run in runs],
            "comparisons": compared,
            "verdicts": said,
            "protocol": ["as it was done"],
            "settings": {"epochs": 6},
            "search": {"data": "digits"},
            **facts,
        },
    )
    return folder


def compare_folder(folder: Path, *, trained: bool = True) -> Path:
    """Fronts of methods against each other: figures made up, areas and sentences computed as ever."""
    from bitnas.methods import compare_methods
    from bitnas.methods.intervals import Interval, outcome

    generator, rows = random.Random(2), []
    for place, method in enumerate(("width", "nasbnn", "bars")):
        for number in range(4):
            right = [generator.random() < 0.75 + 0.04 * number + 0.02 * place for _ in range(360)]
            accuracy, time = sum(right) / len(right), 100.0 * (number + 1) + 30 * place
            rows.append(
                {
                    "method": method,
                    "run": f"runs/{method}",
                    "name": method,
                    "label": f"{method} {number + 1}",
                    "key": f"{place}{number}" * 32,
                    "accuracy": accuracy,
                    "search_accuracy": 0.75 + 0.04 * number,
                    "latency_us": time,
                    "latency_low_us": 0.97 * time,
                    "latency_high_us": 1.04 * time,
                    "latency_iqr_us": 0.03 * time,
                    "latency_noisy": False,
                    "flops": 1e4 * (number + 1),
                    "ops": 1.3e4 * (number + 1),
                    **({"accuracy_low": accuracy - 0.04, "accuracy_high": accuracy + 0.03} if trained else {}),
                    "right": right,
                }
            )
    judged = compare_methods._judged(rows, trained=False)
    for one in judged["comparisons"] if trained else []:  # thousands of resamplings are not for a picture
        found = Interval(one["difference"], one["difference"] - 0.08, one["difference"] + 0.08)
        one |= {"low": found.low, "high": found.high, "outcome": outcome(found)}
        one["verdict"] = compare_methods._verdict(one, rows)
    judged["verdicts"] = [one["verdict"] for one in judged["comparisons"]]
    facts = {fact: CONFIG[fact] for fact in ("command", "machine", "versions")}
    folder.mkdir(parents=True, exist_ok=True)
    write_json_checked(
        folder / "compare.json",
        {
            "format": "bitnas-methods-compare-1",
            "runs": [],
            "rows": [{key: value for key, value in row.items() if key != "right"} for row in rows],
            **judged,
            "trained": trained,
            "protocol": ["as it was done"],
            "settings": {"picks": 4},
            "data": "digits",
            **facts,
        },
    )
    return folder

"""Run folders as a search and a study leave them, with made-up numbers, for tests of what reads them."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

from bitnas.search import Journal, Record

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

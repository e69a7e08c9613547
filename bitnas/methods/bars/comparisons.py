"""What the runs of a study of BARS allow to say: differences between variants over seeds and images, in sentences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from bitnas.methods import fronts
from bitnas.methods.bars.variants import (
    IN_FLOPS,
    IN_LATENCY,
    JOINT,
    LARGE,
    MACRO,
    MICRO,
    PRESET,
    RANDOM,
    SEARCHED,
    SMALL,
    at,
)
from bitnas.methods.intervals import corrected, paired, paired_runs

ACCURACY, LATENCY, FREE, AREA = "accuracy", "latency", "free", "area"
Row = Mapping[str, Any]


def compared(study: str, rows: Sequence[Row], names: Sequence[str]) -> list[dict[str, Any]]:
    """The comparisons of a study, with their verdicts; see `study` for what they hold.

    Args:
        study: its name.
        rows: its runs, with `right`: which test images the network has right.
        names: of its variants.
    """
    pairs = {
        "cells": [(SEARCHED, RANDOM, ACCURACY)],
        "guards": [(PRESET, name, what) for name in names if name != PRESET for what in (ACCURACY, FREE)],
        "cost": [
            (at(IN_LATENCY, budget), at(IN_FLOPS, budget), what)
            for budget in (SMALL, LARGE)
            for what in (LATENCY, ACCURACY)
        ],
        "parts": [(JOINT, MICRO, ACCURACY), (JOINT, MACRO, ACCURACY), (MICRO, MACRO, ACCURACY)],
    }[study]
    found = [_comparison(rows, *pair) for pair in pairs]
    if study == "cost":
        found.append(_areas(rows))
    # What a study asks of accuracies and what it asks of the edges are families of their own.
    found = [
        one
        for what in dict.fromkeys(one["what"] for one in found)
        for one in corrected([one for one in found if one["what"] == what and one["runs"]])
        if not (what == FREE and one["same"])  # said of the accuracy already
    ]
    return [{**_in_percent(one), "verdict": _verdict(one)} for one in found]


def _comparison(rows: Sequence[Row], first: str, second: str, what: str) -> dict[str, Any]:
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    differences: list[float] = []
    images, costs, times, points = [], [], [], []
    shares, same = [], True
    for seed in seeds:
        one, other = (
            [row for row in rows if (row["seed"], row["variant"]) == (seed, name)] for name in (first, second)
        )
        if not one or not other:
            continue
        differences.append(_mean(one, what) - _mean(other, what))
        costs.append((_mean(one, "loss_flops"), _mean(other, "loss_flops")))
        points.append(_mean(one, ACCURACY) - _mean(other, ACCURACY))
        same = same and {row["key"] for row in one} == {row["key"] for row in other}
        times.append(math.exp(_mean(one, LATENCY) - _mean(other, LATENCY)))
        shares.append(one[0]["test_images"] / one[0]["train_images"])
        for a in one:
            for b in other:
                on_images = paired(a["right"], b["right"])
                images.append(
                    {"seed": seed, "first": a["label"], "second": b["label"], "difference": on_images.mean,
                     "low": on_images.low, "high": on_images.high}
                )  # fmt: skip
    found: dict[str, Any] = {"name": f"{first} against {second}", "what": what, "first": first, "second": second}
    if not differences:
        return {**found, "runs": []}
    found |= paired_runs(differences, statistics.fmean(shares))
    found |= {
        # Cells may compute nothing at all.
        "flops_ratio": statistics.geometric_mean([a / b for a, b in costs]) if all(map(all, costs)) else None,
        "latency_ratio": statistics.geometric_mean(times),
        "accuracy_difference": statistics.fmean(points),
        "same": same,
    }
    return found | ({"images": images} if what == ACCURACY else {})


def _areas(rows: Sequence[Row]) -> dict[str, Any]:
    """The area under accuracy against measured latency of what each kind of cost in the loss offers: its two networks.

    Within each latency the slower of them counts, whatever its accuracy: the better one on test images would flatter.
    The far corner is the same for all (`fronts.corner`); areas are shares of the rectangle up to it.
    """
    found: dict[str, Any] = {"name": f"{IN_LATENCY} against {IN_FLOPS}", "what": AREA, "first": IN_LATENCY,
                             "second": IN_FLOPS}  # fmt: skip
    reference, differences, shares, same = fronts.corner(rows), [], [], True
    for seed in dict.fromkeys(row["seed"] for row in rows):
        pairs = [
            [row for row in rows if row["seed"] == seed and row["variant"] in (at(kind, SMALL), at(kind, LARGE))]
            for kind in (IN_LATENCY, IN_FLOPS)
        ]
        if not all(len(pair) == 2 for pair in pairs):
            continue
        one, other = (
            fronts.area([{**row, "search_accuracy": row["latency_us"]} for row in pair], reference) for pair in pairs
        )
        differences.append((one - other) / (reference[0] * reference[1]))
        shares.append(pairs[0][0]["test_images"] / pairs[0][0]["train_images"])
        same = same and {row["key"] for row in pairs[0]} == {row["key"] for row in pairs[1]}
    if not differences:
        return {**found, "runs": []}
    corner = {"latency_us": reference[0], "accuracy": 1 - reference[1]}
    return {**found, **paired_runs(differences, statistics.fmean(shares)), "same": same, "reference": corner}


def _mean(rows: Sequence[Row], what: str) -> float:
    """Of several networks of a seed; of latencies the logarithm, so that a difference is a ratio."""
    if what == LATENCY:
        return statistics.fmean(math.log(row["latency_us"]) for row in rows)
    if what == FREE:
        return statistics.fmean(row["skips"] + row["none"] for row in rows)
    return statistics.fmean(row[what] for row in rows)


def _in_percent(one: Mapping[str, Any]) -> dict[str, Any]:
    """With `difference`: fractions of accuracy and of edges as they are, latencies as a fraction of the second's."""

    def value(number: float) -> float:
        return math.expm1(number) if one["what"] == LATENCY else number

    found = {name: number for name, number in one.items() if name != "mean"}
    found |= {"difference": value(one["mean"]), "runs": [value(number) for number in one["runs"]]}
    return found | {name: value(one[name]) for name in ("low", "high") if name in one}


# Of each figure what more and less of it are called, what it is, and its unit.
_WORDS = {
    ACCURACY: ("more accurate", "less accurate", "accuracy", "points"),
    LATENCY: ("slower", "faster", "latency", "% of its latency"),
    FREE: ("more edges without a convolution", "fewer edges without a convolution",
           "the share of edges without a convolution", "points of the edges"),
    AREA: ("more accuracy for the latency", "less accuracy for the latency",
           "the area under accuracy against latency", "% of the area"),
}  # fmt: skip


def _verdict(comparison: Mapping[str, Any]) -> str:
    one = _in_percent(comparison)
    more, less, noun, unit = _WORDS[one["what"]]
    subject = f"{one['first'][0].upper()}{one['first'][1:]} against {one['second']}"
    if one["same"]:
        return f"{subject}: the same networks with every seed."
    beside = _beside(one)
    mean = f"{100 * one['difference']:+.1f} {unit}"
    if "low" not in one:
        return f"{subject}: {mean}{beside}, with one seed, which decides nothing."
    among = f"among {one['tested']} verdicts" if one["tested"] > 1 else "of one verdict"
    text = (
        f"{mean}, 95 % interval {100 * one['low']:+.1f} to {100 * one['high']:+.1f}, {len(one['runs'])} seeds, "
        f"p {one['p_holm']:.2g} {among}{beside}"
    )
    match one["outcome"]:
        case "better":
            return f"{subject}: {more} ({text})."
        case "worse":
            return f"{subject}: {less} ({text})."
    return f"{subject}: they cannot be told apart in {noun} ({text})."


def _beside(one: Mapping[str, Any]) -> str:
    """The other costs of what is compared, so that no axis is said alone."""
    if one["what"] == AREA:
        return ""
    said = [f"{one['flops_ratio']:.2f}x the FLOPs of the cells"] if one["flops_ratio"] is not None else []
    if one["what"] == LATENCY:
        said.append(f"{100 * one['accuracy_difference']:+.1f} points of accuracy")
    if one["what"] == ACCURACY:
        said.append(f"{one['latency_ratio']:.2f}x the latency")
    return f", at {' and '.join(said)}" if said else ""


_COLLAPSED = 0.5


def described(study: str, rows: Sequence[Row]) -> list[str]:
    """What the runs show without a test: how they ended, and of random cells how many the searched ones beat."""
    if study == "cells":
        won = [
            own["accuracy"] > row["accuracy"]
            for own in rows
            for row in rows
            if own["variant"] == SEARCHED and row["variant"] == RANDOM and own["seed"] == row["seed"]
        ]
        if not won:
            return ["No random cells of the cost of the searched ones were found: those compute next to nothing."]
        return [f"Searched cells beat {sum(won)} of {len(won)} networks of random cells of the same seed and cost."]
    if study != "guards":
        return []
    found = []
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = [row for row in rows if row["variant"] == name]
        skips, none = (100 * statistics.fmean(row[what] for row in own) for what in ("skips", "none"))
        free = [row["skips"] + row["none"] for row in own]
        lost = sum(share > _COLLAPSED for share in free)
        ended = sum(row.get("stopped") is not None for row in own)
        text = f"{name[0].upper()}{name[1:]}: {skips:.0f} % of the edges end as skips, {none:.0f} % as none"
        if lost:
            text += f"; more than half of the edges compute nothing with {lost} of {len(own)} seeds"
        if ended:
            text += f"; {ended} of {len(own)} searches were ended early"
        found.append(f"{text}.")
    return found

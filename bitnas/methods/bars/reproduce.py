"""What is known of BARS beside what bitnas computes, with a column that no paper has: time on this machine.

Rows and files are those of `bitnas.methods.known`. The paper's own networks are lost, and each row that would take them
says so.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.methods import known
from bitnas.methods.bars.description import DESCRIPTIONS, Architecture, Description
from bitnas.methods.bars.published import (
    CLAIMS,
    EVIDENCE,
    EXAMPLE,
    EXAMPLE_SPACE,
    NETWORKS,
    PAPER,
    QUANTITIES,
    SETTINGS,
    Claim,
    Known,
    Quantity,
)
from bitnas.methods.known import MILLION, Progress, Table
from bitnas.methods.width.published_checks import Figure, Finding, compare

if TYPE_CHECKING:
    from bitnas.cost import Count
    from bitnas.methods.bars.controller import Controller

RULE = "bars"
SHEN2019 = ("shen2019-table1", "shen2019-table2")
_POINTS = 64  # of the interim space, drawn to hold the expected cost against the true one


def tables() -> tuple[Table, ...]:
    """What is known."""
    costs = (
        ("flops", "FLOPs", 1, ""),
        ("biops", "BiOPs", 1, ""),
        ("float_weights", "float parameters", 1, ""),
        ("binary_weights", "binary parameters", 1, ""),
        ("memory_bits", "memory", MILLION, "Mbit"),
    )
    value = (("value", "value", 1, ""),)
    return (
        Table(
            "The worked example",
            "networks.csv",
            costs,
            NETWORKS,
            timed=True,
            note=f"counted by {RULE}; the known figures worked out by hand",
            first="network",
        ),
        Table("Costs, space and regulariser", "costs.csv", value, QUANTITIES),
        Table("The interim configuration for CIFAR-10", "settings.csv", value, SETTINGS),
        Table("Results and networks that cannot be had", "results.csv", value, CLAIMS),
    )


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

    Arguments, result and errors are those of `bitnas.methods.known.reproduce`; the worked example is timed at 32 x 32.
    """

    def time(one: Known) -> dict[str, Any]:
        return time_example(batch=batch, threads=threads, seconds=seconds)

    return known.reproduce(
        out, paper=PAPER, name=RULE, rule=RULE, data="CIFAR-10", tables=tables(), row=_row, time=time,
        findings=findings, evidence=EVIDENCE, rows=rows, latency=latency, batch=batch, threads=threads,
        seconds=seconds, retime=retime, on_progress=on_progress,
    )  # fmt: skip


# ---- what is computed -----------------------------------------------------------


@functools.cache
def counted(rule: str = RULE) -> Count:
    """The worked example's module, built without storage and counted layer by layer."""
    import torch

    from bitnas.cost import count
    from bitnas.models import create_model_from_config

    with torch.device("meta"):
        model = create_model_from_config(EXAMPLE_SPACE.network(EXAMPLE))
    return count(model, rule=rule)


def expected(description: Description, architecture: Architecture) -> float:
    """Expected FLOPs at the one-hot parameters of a point."""
    from bitnas.methods.bars.choices import one_hot
    from bitnas.methods.bars.prices import FlopPrices

    return float(FlopPrices(description).expected(one_hot(description, architecture)))


def factor(share: float) -> float:
    """The regulariser at a share of the budget, with the default exponents."""
    import torch

    from bitnas.methods.bars import regulariser

    return float(regulariser.factor(torch.tensor(share * 5e8, dtype=torch.float64), 5e8))


def by_shen2019(rule: str) -> int | float:
    """What a formula of Shen et al. 2019 makes of the layers; `bitnas.count` refuses to, for it was made for another
    network."""
    from bitnas.cost import rules

    return rules.price(counted("mac").layers, rule)[1].ops


@functools.cache
def quantities() -> dict[str, int | float]:
    """Our figures for `published.QUANTITIES` and `SETTINGS`, by key."""
    from bitnas.methods.bars.config import preset
    from bitnas.methods.bars.controller import Controller
    from bitnas.models.bars import EDGES

    mac = counted("mac")
    interim = preset("cifar10")
    space, controller = Description.from_dict(interim.space), Controller.from_dict(interim.controller)
    return {
        "operations": counted().ops,
        "expected": expected(EXAMPLE_SPACE, EXAMPLE),
        "mac-flops": mac.flops,
        "mac-bops": mac.bops,
        "mac-ops": mac.ops,
        **{rule: by_shen2019(rule) for rule in SHEN2019},
        "edges": len(EDGES),
        "cells": len(EXAMPLE_SPACE.operations) ** len(EDGES),
        "factor-below": factor(0.5),
        "factor-at": factor(1.0),
        "factor-above": factor(2.0),
        "budget": Controller().flops_budget,
        "layout-cells": len(space.layout),
        "groups": space.topologies,
        "choices": len(space.operations),
        "samples": interim.samples,
        **_settings(controller),
    }


def _settings(controller: Controller) -> dict[str, int | float]:
    """Of a controller, what the interim configuration says."""
    return {
        **{name: getattr(controller, name) for name in ("epochs", "batch_size", "momentum", "weight_decay")},
        "lr": controller.lr.start,
        "lr-end": controller.lr.end,
        "arch-lr": controller.architecture_lr,
        "arch-beta1": controller.architecture_betas[0],
        "arch-beta2": controller.architecture_betas[1],
        "arch-weight_decay": controller.architecture_decay,
    }


@functools.cache
def findings() -> tuple[Finding, ...]:
    """What the comparison of figures cannot say, each recomputed."""
    from bitnas.cost import count
    from bitnas.methods.bars.choices import one_hot
    from bitnas.methods.bars.prices import FlopPrices
    from bitnas.models import create_model_from_config

    space, rng = DESCRIPTIONS["cifar"], Random(0)
    prices = FlopPrices(space)
    drawn = [space.random(rng) for _ in range(_POINTS)]
    off = [abs(float(prices.expected(one_hot(space, one))) - prices.of(one)) for one in drawn]
    exact = sum(not one for one in off)
    widths = itertools.product(space.widths, repeat=space.width_count)
    points = [Architecture(space.biggest.cells, own, space.biggest.depths) for own in widths]
    worst = max(points, key=lambda one: abs(_by_squares(space, one) / prices.of(one) - 1))
    true, squared = prices.of(worst), _by_squares(space, worst)
    said = ", ".join(f"{share:g}" for share in worst.widths)
    ends = counted().ops - expected(EXAMPLE_SPACE, EXAMPLE)
    try:
        count(create_model_from_config(EXAMPLE_SPACE.network(EXAMPLE)), rule="shen2019")
        refusal = ""
    except ValueError as error:
        refusal = str(error)
    table1, table2 = (by_shen2019(rule) for rule in SHEN2019)
    return (
        Finding(
            "one-hot",
            2,
            "consistent" if exact == len(drawn) else "ambiguous",
            f"For {exact} of {len(drawn)} networks drawn from the interim space the expected cost at their one-hot "
            "parameters is their cost to the last operation.",
            {"largest_difference": max(off)},
        ),
        Finding(
            "ends",
            2,
            "convention",
            f"The expected cost leaves out stem and classifier, {ends:,.0f} operations of the worked example's "
            f"{counted().ops:,}.",
            {"ends": ends},
        ),
        Finding(
            "squares",
            2,
            "convention",
            "The public code takes a cell of width r to cost r² of the whole one. That is wrong where a reduction "
            f"changes the width, most for widths {said} of the interim space: it gives {squared:,.0f} operations, and "
            f"the network has {true:,.0f} ({100 * (squared / true - 1):+.1f} %). True widths are counted here.",
            {"widths": list(worst.widths), "squared": squared, "true": true},
        ),
        Finding(
            "units",
            1,
            "convention",
            "An operation of BARS is half a multiply-add, and binary ones are not divided by 64: the worked example "
            f"has {counted().ops / MILLION:.2f} M operations by its rule, {counted('mac').ops / MILLION:.2f} M OPs by "
            "rule mac.",
            {"bars": counted().ops, "mac": counted("mac").ops},
        ),
        Finding(
            "shen2019",
            2,
            "convention",
            "Rule shen2019 stands for two formulas, each made for one network, and refuses this one. What they make "
            f"of its layers is {table1:,.0f} (VGG-small's) and {table2:,.0f} (ResNet-18's), which nothing printed can "
            "be held against.",
            {"refusal": refusal, "shen2019-table1": table1, "shen2019-table2": table2},
        ),
        *(
            Finding(
                f"claim/{claim.key}",
                4,
                "not checkable",
                f"{claim.label[0].upper()}{claim.label[1:]}: {claim.value} ({EVIDENCE[claim.evidence]}). That takes "
                f"{claim.needs}.",
                {"known": EVIDENCE[claim.evidence]},
            )
            for claim in CLAIMS
        ),
    )


def _by_squares(description: Description, architecture: Architecture) -> float:
    """The cost of a point if each cell cost the square of its width's share of the whole one."""
    from bitnas.methods.bars import cost

    whole = description.network(Architecture(architecture.cells, (1.0,) * description.width_count, architecture.depths))
    kept = {n for cells, depth in zip(description.stages, architecture.depths, strict=True) for n in cells[:depth]}
    shares = [
        architecture.widths[place.width] for n, place in enumerate(description.places) if place.stride == 2 or n in kept
    ]
    return sum(
        share**2 * cost.cell_cost(*site, whole.preprocess).operations
        for share, site in zip(shares, cost.sites(whole), strict=True)
    )


# ---- rows -----------------------------------------------------------------------


def _row(one: Known | Quantity | Claim) -> dict[str, Any]:
    if isinstance(one, Quantity):
        return {"value": compare(one.value, quantities()[one.key], unit=one.unit).to_dict(), "unit": one.unit}
    if isinstance(one, Claim):
        return {"value": Figure(one.value, None, None, "not checkable", f"needs {one.needs}").to_dict()}
    found, network = counted(), EXAMPLE_SPACE.network(EXAMPLE)
    binary = sum(layer.weights for layer in found.layers if layer.binary)
    return {
        "network": RULE,
        "architecture": network.to_dict(),
        "widths": [cell.channels for cell in network.cells],
        "flops": compare(one.flops, found.flops).to_dict(),
        "biops": compare(one.biops, found.ops - found.flops).to_dict(),
        "float_weights": compare(one.float_weights, _float_weights(found)).to_dict(),
        "binary_weights": compare(one.binary_weights, binary).to_dict(),
        "memory_bits": compare(None, found.memory_bits, unit=MILLION).to_dict(),
    }


def _float_weights(found: Count) -> int:
    """Of convolutions and the classifier, its bias too; the public code's counter leaves batch norms out."""
    return sum(layer.params for layer in found.layers if layer.kind in ("conv", "linear") and not layer.binary)


def time_example(*, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Times the worked example with random weights, frozen and as its float twin; see
    `width.timing.time_beside_float`."""
    from bitnas.methods import trials
    from bitnas.methods.width.timing import time_beside_float

    model = trials.make_network(EXAMPLE_SPACE.network(EXAMPLE), 0).eval()
    return time_beside_float(model, batch=batch, threads=threads, seconds=seconds)

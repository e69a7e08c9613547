"""What is known of NAS-BNN beside what bitnas computes, with a column that no paper has: time on this machine.

Rows and files are those of `bitnas.methods.known`. The paper's accuracies are not recomputed: that takes ImageNet, and
each says so.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from bitnas.methods import known
from bitnas.methods.known import MILLION, Progress, Table
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
from bitnas.methods.width.published_checks import Figure, Finding, compare

if TYPE_CHECKING:
    from bitnas.cost import Count
    from bitnas.models.nasbnn import SubnetConfig

RULE = "nasbnn"


def tables() -> tuple[Table, ...]:
    """What is known."""
    costs = (
        ("ops", "OPs", MILLION, "M"),
        ("flops", "FLOPs", MILLION, "M"),
        ("bops", "BOPs", MILLION, "M"),
        ("binary_weights", "binary weights", 1, ""),
        ("memory_bits", "memory", MILLION, "Mbit"),
    )
    value = (("value", "value", 1, ""),)
    return (
        Table(
            "Five subnets",
            "subnets.csv",
            costs,
            SUBNETS,
            timed=True,
            note=f"counted by {RULE}; the known figures worked out by hand",
            first="subnet",
            last="architecture from",
        ),
        Table("Space, supernet and search", "space.csv", value, QUANTITIES),
        Table("Results that need the paper's data", "results.csv", value, CLAIMS),
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

    Arguments, result and errors are those of `bitnas.methods.known.reproduce`; the five subnets are timed at 224 x 224.
    """

    def time(one: Known) -> dict[str, Any]:
        return time_subnet(subnet_of(one), batch=batch, threads=threads, seconds=seconds)

    return known.reproduce(
        out, paper=PAPER, name=RULE, rule=RULE, data="ImageNet", tables=tables(), row=_row, time=time,
        findings=findings, evidence=EVIDENCE, rows=rows, latency=latency, batch=batch, threads=threads,
        seconds=seconds, retime=retime, on_progress=on_progress,
    )  # fmt: skip


# ---- what is computed -----------------------------------------------------------


def subnet_of(one: Known) -> SubnetConfig:
    """The network of a known subnet. Its blocks are read stage by stage, so a wrong code is refused."""
    from bitnas.models.nasbnn import Block, SubnetConfig

    space = SubnetSpace(SPACE)
    if one.code in ("smallest", "biggest"):
        return space.subnet(getattr(space, one.code))
    stem, *stages = one.code.split("|")
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


def _row(one: Known | Quantity | Claim) -> dict[str, Any]:
    if isinstance(one, Quantity):
        return {"subnet": None, "value": compare(one.value, quantities()[one.key], unit=one.unit).to_dict(),
                "unit": one.unit}  # fmt: skip
    if isinstance(one, Claim):
        label = one.label if one.ops is None else f"{one.label} at {one.ops / MILLION:.0f} M OPs"
        figure = Figure(one.value, None, None, "not checkable", f"needs {one.needs}")
        return {"subnet": None, "label": label, "value": figure.to_dict()}
    subnet = subnet_of(one)
    count = counted(subnet)
    return {
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
    }


def time_subnet(subnet: SubnetConfig, *, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Times a subnet of random weights, frozen and as its float twin; see `width.timing.time_beside_float`."""
    import torch

    from bitnas.methods.width.timing import time_beside_float
    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model_from_config(subnet).eval()
    return time_beside_float(model, batch=batch, threads=threads, seconds=seconds)

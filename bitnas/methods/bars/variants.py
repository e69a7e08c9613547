"""The variants that the studies of BARS compare, as data: each is a search with some of its settings changed."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bitnas.methods.bars.config import BarsSearchConfig
from bitnas.methods.bars.controller import FLOPS, LATENCY, Controller
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.bars.relaxation import BERNOULLI, GUMBEL, SOFTMAX
from bitnas.methods.bars.steps import Prices
from bitnas.models.bars import EDGES, canonical
from bitnas.models.operations import NONE, OPERATIONS

PRESET, NO_GUARD, CLASSICAL = "the preset", "no guard", "classical"
SEARCHED, RANDOM = "searched cells", "random cells"
IN_FLOPS, IN_LATENCY = "FLOPs in the loss", "latency in the loss"
SMALL, LARGE = "small budget", "large budget"
LONGER = 2  # a classical search has so many times the epochs: collapse takes time
MICRO, MACRO, JOINT = "cells alone", "layout alone", "cells and layout"


@dataclass(frozen=True)
class Variant:
    """A search: `controller` and `space` are settings that differ from the study's own, by their JSON values."""

    name: str
    says: str
    controller: Mapping[str, Any] = field(default_factory=dict)
    space: Mapping[str, Any] = field(default_factory=dict)

    def config(self, base: BarsSearchConfig, **settings: Any) -> BarsSearchConfig:
        """The study's settings with those of the variant."""
        return dataclasses.replace(
            base,
            controller={**base.controller, **self.controller},
            space={**base.space, **self.space},
            **settings,
        )


@dataclass(frozen=True)
class Guard:
    """Something against collapse that a controller may have: its settings where it is `off`, and, for one that the
    study's controller does not use, where it is `on`; `says` what it does, `kind` what it has in common with others."""

    name: str
    says: str
    off: Mapping[str, Any]
    on: Mapping[str, Any]
    kind: str = ""

    def used(self, controller: Controller) -> bool:
        """Whether the controller has it."""
        return {**controller.to_dict(), **self.off} != controller.to_dict()


def mixed(controller: Controller, operations: Sequence[str]) -> bool:
    """Whether softmax stands where a guard takes the Gumbel-softmax of the edges away, and not Bernoulli: with that one
    no gradient of the loss reaches none, whose share at the end would say nothing of collapse."""
    return NONE in operations and controller.micro != BERNOULLI


def guards(controller: Controller, operations: Sequence[str]) -> tuple[Guard, ...]:
    """All there are (Zhao et al. 2020, public code), with lengths that suit the controller's epochs.

    Args:
        controller: what has them, or has not. operations: of the space.
    """
    epochs = controller.epochs
    fifth = max(1, epochs // 5) if epochs > 1 else 0
    late = {"kind": "steps", "start": 0.0, "steps": [[max(1, epochs // 2), 0.05]]}
    hot = {"kind": "exponential", "start": 5.0, "end": 0.5}
    # Operations of Gumbel-softmax compete; those of Bernoulli do not, and those of softmax do without chance.
    edges = (
        Guard("Gumbel noise", "the weights of operations have chance in them; else softmax mixes them",
              {"micro": SOFTMAX}, {"micro": GUMBEL})
        if mixed(controller, operations)
        else Guard("one operation for an edge", "Gumbel-softmax: operations compete; Bernoulli: each is on or off by "
                   "itself", {"micro": BERNOULLI}, {"micro": GUMBEL})
    )  # fmt: skip
    ahead = "weights ahead of the architecture"
    return (
        Guard("warm-up", "weights alone at first", {"warmup_epochs": 0}, {"warmup_epochs": fifth}, ahead),
        Guard("uniform phase", "every choice has its uniform weight at first", {"uniform_epochs": 0},
              {"uniform_epochs": fifth}, ahead),
        Guard("delayed controller", "a step of the architecture for several of the weights", {"every": 1.0},
              {"every": 2.0}, ahead),
        edges,
        Guard("entropy", "the entropy of the choices is in the loss", {"entropy_edges": 0.0, "entropy_layout": 0.0},
              {"entropy_edges": 0.01, "entropy_layout": 0.01}),
        Guard("temperature", "choices are hot at first and cool down",
              {"temperature_edges": 1.0, "temperature_layout": 1.0},
              {"temperature_edges": hot, "temperature_layout": hot}),
        Guard("full start", "every operation starts with weight 1", {"full_start": False}, {"full_start": True}),
        Guard("pruning", "unlikely operations are taken out for good", {"prune": 0.0}, {"prune": late}),
        Guard("eigenvalue stop", "the search ends when the loss becomes sharp",
              {"hessian_every": 0, "hessian_stop": None}, {"hessian_every": max(1, epochs // 10), "hessian_stop": 2.0}),
    )  # fmt: skip


def for_epochs(controller: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """A controller, as JSON values, for another number of epochs: its phases keep their shares of the search."""
    share = epochs / controller["epochs"]

    def scaled(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        found = {**value, **{end: int(value[end] * share) for end in ("from", "to") if end in value}}
        if "to" in found:
            found["to"] = max(found["to"], found.get("from", 0) + 1)
        # Steps that fall together are the last of them.
        steps = {int(epoch * share): number for epoch, number in value.get("steps", ())}
        return found | ({"steps": [list(step) for step in steps.items()]} if steps else {})

    phases = {name: min(int(controller[name] * share), epochs - 1) for name in ("warmup_epochs", "uniform_epochs")}
    measured = {"hessian_every": max(1, int(controller["hessian_every"] * share)) if controller["hessian_every"] else 0}
    return {name: scaled(value) for name, value in controller.items()} | {"epochs": epochs} | phases | measured


def of_guards(base: BarsSearchConfig) -> list[Variant]:
    """The guards that the settings have, without each of them and without any, and with each that they have not.

    Those that are not used are added one at a time, so that each guard has a search with and one without it; but not
    one of the kind of a used one (`spared`). Last stands a search without any as the first of its kind were (Liu et al.
    2019, DARTS): softmax everywhere, and long.
    """
    controller = Controller.from_dict(base.controller)
    known = guards(controller, base.space["operations"])
    used = [guard for guard in known if guard.used(controller)]
    left_out = spared(base)
    named = ", ".join(guard.name for guard in used) or "none"
    found = [Variant(PRESET, f"the settings as they are: {named}")]
    found += [Variant(f"without {guard.name}", f"not: {guard.says}", guard.off) for guard in used]
    found += [
        Variant(f"with {guard.name}", f"besides: {guard.says}", guard.on)
        for guard in known
        if guard not in used and guard.name not in left_out
    ]
    bare = {name: value for guard in known for name, value in guard.off.items()}
    long = for_epochs({**controller.to_dict(), **bare}, LONGER * controller.epochs)
    classical = {**bare, "micro": SOFTMAX, "macro": SOFTMAX, "epochs": long["epochs"], "lr": long["lr"]}
    return [
        *found,
        Variant(NO_GUARD, "without any of them", bare),
        Variant(CLASSICAL, f"no guard, softmax everywhere, {LONGER} times the epochs", classical),
    ]


def spared(base: BarsSearchConfig) -> list[str]:
    """The guards that the study does not add, as another of their kind is used."""
    controller = Controller.from_dict(base.controller)
    known = guards(controller, base.space["operations"])
    kinds = {guard.kind for guard in known if guard.kind and guard.used(controller)}
    return [guard.name for guard in known if guard.kind in kinds and not guard.used(controller)]


def at(what: str, budget: str) -> str:
    """The name of a variant of `of_cost`."""
    return f"{what}, {budget}"


def of_cost(budgets: Sequence[Budget]) -> list[Variant]:
    """FLOPs and latency in the loss, at each of these budgets."""
    found = []
    for own in budgets:
        found += [
            Variant(at(IN_FLOPS, own.name), f"expected FLOPs multiply the loss; budget {own.flops:,.0f}",
                    {"cost": FLOPS, "flops_budget": own.flops}),
            Variant(at(IN_LATENCY, own.name), f"expected latency, by the device table, does; budget {own.latency:.0f} "
                    "us", {"cost": LATENCY, "latency_budget": own.latency}),
        ]  # fmt: skip
    return found


@dataclass(frozen=True)
class Budget:
    """A budget in FLOPs and the one in us that matches it: the mean of `networks` random networks of such FLOPs."""

    name: str
    flops: float
    latency: float
    networks: int


def matched(
    description: Description,
    flops: Prices,
    latency: Prices,
    *,
    shares: Mapping[str, float],
    count: int,
    within: float,
    seed: int,
) -> list[Budget]:
    """Budgets of FLOPs and of latency that ask as much of a network, whichever is in the loss.

    Args:
        description: the space. flops, latency: its prices.
        shares: by the name of each budget, what share of random networks has fewer FLOPs.
        count: of random networks; those without FLOPs do not count.
        within: a random network of the FLOPs of a budget has them within this share.
        seed: of the networks.
    """
    rng = Random(seed)
    drawn = [(flops.of(one), one) for one in (description.random(rng) for _ in range(count))]
    drawn = sorted((pair for pair in drawn if pair[0]), key=lambda pair: pair[0])
    found = []
    for name, share in shares.items():
        cost = drawn[int(share * len(drawn))][0]
        near = [latency.of(one) for own, one in drawn if abs(own - cost) <= within * cost]
        found.append(Budget(name, cost, statistics.fmean(near), len(near)))
    return found


def of_parts(base: BarsSearchConfig, flops: float) -> list[Variant]:
    """Cells alone (full width and depth), layout alone (one operation on every edge), and both, all with this budget of
    FLOPs: without one the cells alone would have more to compute with."""
    budget = {"cost": FLOPS, "flops_budget": flops}
    operation = max(base.space["operations"], key=lambda name: OPERATIONS[name].kernel)
    return [
        Variant(MICRO, "operations searched, full width and depth", budget, {"widths": [1.0], "least_depth": None}),
        Variant(MACRO, f"widths and depths searched, {operation} on every edge", budget, {"operations": [operation]}),
        Variant(JOINT, "both searched", budget),
    ]


def budget(description: Description, prices: Prices, least: float, share: float) -> float:
    """So much of the way from the cheapest network of a space to the one of all cells, full width and the largest
    operation: a share of that one's cost alone could be less than any network has."""
    return least + share * (prices.of(description.biggest) - least)


def equal_cost(
    description: Description, architecture: Architecture, prices: Prices, count: int, seed: int, *, within: float
) -> list[Architecture]:
    """Random cells of the widths and depths of a network, and of its cost.

    A walk through the space from the network itself, where each step gives two random edges random operations and is
    taken if the cost stays within the window; so all cells in the window that it can reach are equally likely.

    Args:
        description: the space. architecture: a point of it.
        prices: what a cost is.
        count: how many are wanted, of different networks, none the given one.
        seed: decides the walk.
        within: half the window, as a share of the given one's cost.

    Returns: as many as were found, at most `count`.
    """
    rng, cost = Random(seed), prices.of(architecture)
    groups = sorted({place.topology for place in description.places})
    sites = [(group, edge) for group in groups for edge in range(len(EDGES))]
    now, found = architecture, {description.network(architecture).key(): architecture}
    for _ in range(5 * count):
        for _ in range(8 * len(sites)):
            cells = [list(cell) for cell in now.cells]
            for group, edge in rng.sample(sites, 2):
                cells[group][edge] = rng.choice(description.operations)
            moved = dataclasses.replace(now, cells=tuple(map(tuple, cells)))
            if abs(prices.of(moved) - cost) <= within * cost:
                now = moved
        found.setdefault(description.network(now).key(), now)
        if len(found) > count:
            break
    return list(found.values())[1:]


def differing(first: Architecture, second: Architecture) -> tuple[int, int]:
    """How many edges of the groups of cells differ, of how many; edges without effect are as none."""
    pairs = [
        (a, b)
        for one, other in zip(first.cells, second.cells, strict=True)
        for a, b in zip(canonical(one), canonical(other), strict=True)
    ]
    return sum(a != b for a, b in pairs), len(pairs)

"""The test of the claim that searched widths beat uniform ones: every seed, the lost ones too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import numbers
from ..figures import claim as figures
from ..figures.widths import widths as draw_widths
from ..html import Section, bullets, details, figure, grid, note
from ..records import Network, Run, number

_OUTCOME = {
    "better": "Searched widths beat uniform widths of equal FLOPs",
    "worse": "Uniform widths beat searched widths of equal FLOPs",
    "undecided": "It cannot be told whether searched widths beat uniform widths of equal FLOPs",
}


def title(run: Run) -> str:
    return f"Do searched widths beat uniform ones on {run.claim.get('data', 'this data set')}?"


def headline(run: Run) -> str:
    """What the seeds say together."""
    overall, seeds = _overall(run), len(run.claim["runs"])
    unfinished = " The test is not finished." if run.claim.get("complete") is False else ""
    if not overall:
        return f"{numbers.plural(seeds, 'seed')} so far: too few for a verdict.{unfinished}"
    mean, low, high = (number(overall, name) or 0.0 for name in ("difference", "low", "high"))
    won = f"{overall.get('won')} of {numbers.plural(seeds, 'seed')}"
    return (
        f"{_OUTCOME.get(str(overall.get('outcome')), 'No verdict')}: over {numbers.plural(seeds, 'seed')} the mean "
        f"difference is {numbers.points(mean)} points (95 % interval {numbers.points(low)} to {numbers.points(high)}); "
        f"searched widths win with {won}.{unfinished}"
    )


def claim(run: Run) -> Section:
    runs = run.claim["runs"]
    name = "Searched against uniform widths, seed by seed"
    if not runs:
        return name, note("No seed is finished yet.")
    tried = sum(number(found, "networks_tried") or 0 for found in runs)
    overall = _overall(run)
    caption = (
        f"Each seed has its own split, search and trainings; {tried:.0f} networks were searched and "
        f"{number(run.claim, 'trainings') or 0:.0f} trainings made in all. Accuracy is on images that "
        "no choice has seen. "
    )
    if overall:
        caption += headline(run)
        plain = [number(overall, bound) for bound in ("plain_low", "plain_high")]
        if plain[0] is not None and plain[1] is not None:
            caption += (
                f" Were the seeds' splits independent, which they are not quite, the interval would be "
                f"{numbers.points(plain[0])} to {numbers.points(plain[1])}."
            )
    body = figure(lambda w: figures.differences(runs, overall, w), caption, "No seed has a difference yet.")
    head = ["seed", "searched", "uniform", "difference", "FLOPs", "networks tried"]
    body += grid(head, [_row(found) for found in runs])
    body += note(
        "Below each accuracy the standard deviation over the repeated trainings; below the FLOPs what they are as a "
        "multiple of the uniform network's."
    )
    body += note(_unequal(runs, run.claim["protocol"]))
    text = run.claim["protocol"].get("text")
    if isinstance(text, list):
        body += "<h3>The rules</h3>" + bullets(map(str, text))
    body += "".join(_finalists(found) for found in runs)
    return name, body


def widths(run: Run) -> Section | None:
    """The winners beside their uniform partners."""
    pairs = []
    for found in run.claim["runs"]:
        seed = found.get("seed")
        ratio = (found["uniform"].get("ratios") or [None])[0]
        partner = "uniform" if ratio is None else f"uniform × {ratio:.2f}"
        searched = Network({**found["searched"], "label": f"seed {seed}", "kind": "searched"})
        pairs.append((searched, Network({**found["uniform"], "label": partner, "kind": "uniform"})))
    if not pairs:
        return None
    caption = (
        "Channels per layer, first layer on top: the winner of each seed beside the uniform network of equal FLOPs."
    )
    absent = "The networks' widths were not recorded."
    return "Widths of each layer", figure(lambda w: draw_widths(pairs, w), caption, absent)


def _unequal(runs: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> str:
    """What to think of seeds whose two networks do not cost the same, or nothing."""
    limit = number(protocol, "flops_tolerance")
    limit = 0.02 if limit is None else limit
    ratios = [(found.get("seed"), ratio) for found in runs if (ratio := number(found, "flops_ratio")) is not None]
    dearer = [f"seed {seed} ({ratio:.2f}×)" for seed, ratio in ratios if ratio > 1 + limit + 1e-9]
    cheaper = [f"seed {seed} ({ratio:.2f}×)" for seed, ratio in ratios if ratio < 1 - limit - 1e-9]
    parts = []
    if dearer:
        parts.append(
            f"The searched network costs over {100 * limit:g} % more in {', '.join(dearer)}: no fair comparison."
        )
    if cheaper:
        parts.append(
            f"The searched network costs over {100 * limit:g} % less in {', '.join(cheaper)}: that is to its "
            "disadvantage."
        )
    return " ".join(parts)


def _row(found: Mapping[str, Any]) -> list[tuple[str, ...]]:
    searched, uniform = found["searched"], found["uniform"]
    difference, ratio = number(found, "difference"), number(found, "flops_ratio")
    return [
        (str(found.get("seed")), ""),
        _accuracy(searched),
        _accuracy(uniform),
        (numbers.MISSING if difference is None else numbers.points(difference), ""),
        (numbers.count(number(searched, "flops")), "", "" if ratio is None else f"{ratio:.2f}×"),
        (f"{number(found, 'networks_tried') or 0:.0f}", ""),
    ]


def _accuracy(network: Mapping[str, Any]) -> tuple[str, ...]:
    sd = number(network, "sd")
    return numbers.percent(number(network, "accuracy")), "", "" if sd is None else f"sd {100 * sd:.1f}"


def _finalists(found: Mapping[str, Any]) -> str:
    rows = [
        [
            (", ".join(f"{ratio:.3g}" for ratio in finalist.get("ratios") or ()), "text"),
            (numbers.count(number(finalist, "flops")), ""),
            (numbers.percent(number(finalist, "search_accuracy")), ""),
            (numbers.percent(number(finalist, "runoff_accuracy")), ""),
        ]
        for finalist in found.get("finalists") or ()
    ]
    head = ["ratios", "FLOPs", "in the search", "in the runoff"]
    return details(f"Seed {found.get('seed')}: the finalists of the search", grid(head, rows))


def _overall(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.claim["overall"]
    return found

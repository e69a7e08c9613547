"""The uniform network of equal cost beside each network of the front, from what the search measured.

A front's row may name it ("uniform": {"multiplier", "widths", "flops"}). Otherwise it is read off the uniform networks
of the search: between two of them FLOPs follow a*m^2 + b*m, since a layer inside a network grows with its own width and
the one before, and the first and the last layer with one width only.
"""

from __future__ import annotations

from .records import UNIFORM, Network, Run

_MOST = 6  # networks of the front that are drawn


def pairs(run: Run) -> list[tuple[Network, Network]]:
    """(network, its uniform one) of the study, then of those networks of the front that the study has not drawn."""
    found = run.pairs()
    drawn = {searched.ratios for searched, _ in found}
    others = [network for network in run.front if network.ratios not in drawn and len(set(network.ratios)) > 1]
    beside = [(network, partner) for network in others if (partner := uniform_of(run, network)) is not None]
    return [*found, *_spaced(beside)]


def _spaced(found: list[tuple[Network, Network]]) -> list[tuple[Network, Network]]:
    """Some, evenly over the front, with both its ends."""
    if len(found) <= _MOST:
        return found
    return [found[round(i * (len(found) - 1) / (_MOST - 1))] for i in range(_MOST)]


def uniform_of(run: Run, network: Network) -> Network | None:
    """The uniform network of the same FLOPs, or None if the folder does not tell."""
    named = network.values.get("uniform")
    if isinstance(named, dict) and isinstance(named.get("widths"), list):
        given = Network({**named, "kind": UNIFORM})
        multiplier = given.get("multiplier")
        label = "uniform" if multiplier is None else f"uniform × {multiplier:.2f}"
        return Network({**named, "kind": UNIFORM, "label": label})
    flops = network.get("flops")
    multiplier = None if flops is None else _multiplier(run, flops)
    base = _base_widths(run)
    if multiplier is None or base is None or len(base) != len(network.widths):
        return None
    widths = [max(1, int(width * multiplier)) for width in base]
    return Network({"kind": UNIFORM, "label": f"uniform × {multiplier:.2f}", "widths": widths, "flops": flops})


def _multiplier(run: Run, flops: float) -> float | None:
    """Of the uniform network of these FLOPs, if the search measured one that is cheaper and one that is dearer."""
    known = {c.ratios[0]: c.get("flops") or 0.0 for c in run.candidates if c.ratios and len(set(c.ratios)) == 1}
    below = [m for m, cost in known.items() if 0 < cost <= flops]
    above = [m for m, cost in known.items() if cost >= flops]
    if not below or not above:
        return None
    low, high = max(below), min(above)
    if low >= high:
        return low
    # Two equations cost(m) / m = a * m + b.
    slope = (known[high] / high - known[low] / low) / (high - low)
    offset = known[low] / low - slope * low
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope * middle**2 + offset * middle <= flops else (low, middle)
    return low


def _base_widths(run: Run) -> list[float] | None:
    """Channels of the un-widened network, from the widths and ratios of the front."""
    rows = [n for n in run.front if n.widths and len(n.widths) == len(n.ratios) and min(n.ratios) > 0]
    if not rows or len({len(n.widths) for n in rows}) != 1:
        return None
    # Widths are cut off to whole channels, so every quotient is the base width or a little less.
    return [max(n.widths[i] / n.ratios[i] for n in rows) for i in range(len(rows[0].widths))]

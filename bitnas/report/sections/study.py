"""The networks themselves: what they trade, what searching gained at equal cost, where their time goes, widths."""

from __future__ import annotations

from .. import agreement, findings, numbers
from .. import equal_cost as partners
from ..figures import study as figures
from ..figures.widths import widths as draw_widths
from ..html import Section, bullets, details, figure, grid, plain
from ..records import Network, Point, Run


def trade_off(run: Run) -> Section:
    searching: list[Point] = [*run.candidates, *run.front]
    timed = any(point.get("latency_us") is not None for point in [*searching, *run.networks])
    caption = "Up and to the left is better."
    fast = min((n for n in run.networks if n.get("latency_us")), key=lambda n: n.get("latency_us") or 0.0, default=None)
    good = max((n for n in run.networks if n.get("accuracy")), key=lambda n: n.get("accuracy") or 0.0, default=None)
    if fast and good and fast is good:
        caption += f" {fast.label} is the fastest and the most accurate of the retrained networks: {_both(fast)}."
    elif fast and good:
        caption += f" Of the retrained networks {fast.label} is the fastest ({_both(fast)}) and {good.label} the most "
        caption += f"accurate ({_both(good)})."
    if fast and good:
        caption += " Bars are the accuracy interval and the interquartile range of the latency."
        if noisy := [n.label for n in run.networks if n.get("latency_us") and findings.noisy(n)]:
            caption += f" Timing noisy: {', '.join(noisy)}."
    elif run.front:
        timed_front = sorted((n for n in run.front if n.get("latency_us")), key=lambda n: n.get("latency_us") or 0.0)
        if timed_front:
            first, last = timed_front[0], timed_front[-1]
            caption += f" The front of the search runs from {_both(first)} to {_both(last)}."
    if run.predicted:
        caption += " The latencies of the small dots are predictions of a device table, those of the front measured."
    if shift := agreement.shift_sentence(run):
        caption += f" {shift}"
    shown = [p for p in searching if p.get("accuracy") is not None and p.get("latency_us") is not None]
    if run.networks and shown:
        caption += (
            " Dots were trained only briefly, on the validation split, so their height does not compare "
            "with the retrained networks'."
        )
        low, _ = figures.accuracy_range([n for n in run.networks if n.get("accuracy")], shown)
        below = sum(1 for c in run.candidates if c.get("latency_us") is not None and (c.get("accuracy") or 0.0) < low)
        if below:
            caption += (
                f" {numbers.plural(below, 'candidate')} below {numbers.percent(low)} "
                f"{'is' if below == 1 else 'are'} not drawn."
            )
    absent = (
        "No latency was measured in this run, so there is no trade-off to draw. Add latency to the objectives to "
        "get it."
        if not timed
        else "No network has both an accuracy and a measured latency yet."
    )
    return "Accuracy against measured latency", figure(lambda w: figures.pareto(run, w), caption, absent)


def _both(network: Network) -> str:
    return f"{numbers.percent(network.get('accuracy'))} in {numbers.duration(network.get('latency_us'))}"


def equal_cost(run: Run) -> Section:
    comparisons = findings.compare(run)
    won = sum(c.verdict == findings.BETTER for c in comparisons)
    lost = sum(c.verdict == findings.WORSE for c in comparisons)
    caption = (
        f"Of {numbers.plural(len(comparisons), 'comparison')} at equal FLOPs, searched widths win {won}, uniform "
        f"widths {lost}, and "
        f"{len(comparisons) - won - lost} cannot be told apart: the interval of the difference holds zero."
    )
    absent = "The study of searched against uniform widths has not been run yet."
    if run.networks:
        absent = "No searched network has a uniform one of equal cost beside it."
    drawn = figure(lambda w: figures.paired(run, w), caption, absent)
    verdicts = bullets([c.sentence() for c in comparisons] + findings.not_compared(run))
    rows = [[(str(name), ""), (plain(value), "text")] for name, value in run.protocol.items()]
    protocol = details("How they were compared", grid(["step", "what"], rows))
    return "Searched against uniform widths at equal FLOPs", f"{drawn}{verdicts}{protocol}"


def layers(run: Run) -> Section:
    network = findings.featured(run)
    rows = [] if network is None else figures.timed_layers(network)
    caption = ""
    if network is not None and rows:
        slow = [name for name, packed, reference, _ in rows if packed > reference]
        packed_total, float_total = sum(r[1] for r in rows), sum(r[2] for r in rows)
        caption = (
            f"{network.label}: its layers take {numbers.duration(packed_total)} packed and "
            f"{numbers.duration(float_total)} in float32, "
            f"{'timing noisy' if findings.noisy(network) else f'{float_total / packed_total:.1f} times as long'}; "
        )
        caption += f"packed is slower in {', '.join(slow)}." if slow else "packed is faster in every layer."
        if any(not binary for *_, binary in rows):
            caption += " Layers marked as float stay in full precision."
        caption += " What runs between two layers (batch norm, pooling, packing) counts for the first."
    absent = "No layer of this run was timed both packed and in float32."
    drawn = figure(lambda w: figures.layers(network, w), caption, absent)
    return "Where the time goes: float against packed", drawn


def widths(run: Run) -> Section:
    pairs = [(s, u) for s, u in partners.pairs(run) if s.widths and len(s.widths) == len(u.widths)]
    caption = ""
    if pairs:
        searched, uniform = max(
            pairs, key=lambda pair: max(a / max(b, 1) for a, b in zip(pair[0].widths, pair[1].widths, strict=True))
        )
        growth = [a / max(b, 1) for a, b in zip(searched.widths, uniform.widths, strict=True)]
        most = max(range(len(growth)), key=growth.__getitem__)
        caption = (
            "Channels per layer, first layer on top; to the right the network of one multiplier that costs as many "
            f"FLOPs. The search widens layer {most + 1} most: {searched.widths[most]} channels in "
            f"{searched.label} against {uniform.widths[most]} in {uniform.label}."
        )
        narrowed = _narrowed(pairs)
        if narrowed:
            caption += f" {narrowed}"
    absent = "There is no pair of networks to draw side by side yet."
    if run.front and not pairs:
        absent = (
            "No uniform network of equal cost is known for a network of the front: the search measured none that is "
            "cheaper and one that is dearer, and there is no study yet (`bitnas resume --study`)."
        )
    return "Widths of each layer", figure(lambda w: draw_widths(pairs, w), caption, absent)


def _narrowed(pairs: list[tuple[Network, Network]]) -> str:
    """Layers in which every searched network is narrower, or wider, than its uniform one."""
    if len(pairs) < 2 or len({len(s.widths) for s, _ in pairs}) != 1:
        return ""
    every = [[(a, b) for a, b in zip(s.widths, u.widths, strict=True)] for s, u in pairs]
    columns = list(zip(*every, strict=True))
    narrower = [str(i) for i, column in enumerate(columns, 1) if all(a < b for a, b in column)]
    wider = [str(i) for i, column in enumerate(columns, 1) if all(a > b for a, b in column)]
    parts = [
        f"{word} in layer {', '.join(found)}" for word, found in (("narrower", narrower), ("wider", wider)) if found
    ]
    return f"All {len(pairs)} are {' and '.join(parts)} than uniform widths." if parts else ""

"""The page itself: eight sections of prose, figures and tables. What comes from a file is escaped here or in svg.py."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from . import figures, findings, numbers
from .figures import NARROW, WIDE
from .load import UNIFORM, Network, Point, Run
from .style import CSS

_GLOSSARY = (
    "Accuracy intervals and interquartile ranges (IQR) are drawn wherever they were measured. MACs are multiply-adds; "
    "BOPs are binary MACs; FLOPs and OPs follow the counting rule named in the configuration."
)


def render(run: Run) -> str:
    """The whole HTML document of `run`."""
    sections = (_trade_off, _equal_cost, _layers, _widths, _operations, _history, _table, _environment)
    body = "\n".join(f"<section>{section(run)}</section>" for section in sections)
    name = escape(run.folder.resolve().name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>bitnas report: {name}</title><style>{CSS}</style></head><body>
<header><p class="kicker">bitnas report · {name}</p><h1>{escape(_title(run))}</h1>
<p class="headline">{escape(findings.headline(run))}</p>{_facts(run)}</header>
{body}
<footer><p>{escape(_GLOSSARY)}</p></footer></body></html>
"""


def _title(run: Run) -> str:
    model, data = setting(run, "model"), setting(run, "data")
    if model and data:
        return f"Width search of a binary {model} on {data}"
    return "Width search of a binary network"


def setting(run: Run, name: str) -> Any:
    """A setting from config.json, wherever in it the name stands first."""

    def find(value: Any) -> Any:
        if not isinstance(value, dict):
            return None
        if name in value:
            return value[name]
        return next((found for found in map(find, value.values()) if found is not None), None)

    return find(run.config)


def _facts(run: Run) -> str:
    tiles = [("Networks evaluated", str(len(run.candidates))), ("Failed", str(len(run.failures)))]
    if run.front:
        tiles.append(("On the front", str(len(run.front))))
    if run.networks:
        tiles.append(("Retrained", str(len(run.networks))))
    if setting(run, "seed") is not None:
        tiles.append(("Seed", str(setting(run, "seed"))))
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in tiles)
    return f'<dl class="facts">{cells}</dl>'


def _figure(draw: Callable[[int], str | None], caption: str, absent: str) -> str:
    """A figure in both layouts with its caption, or the sentence that says why there is none."""
    wide = draw(WIDE)
    if wide is None:
        return f'<p class="note">{escape(absent)}</p>'
    return f"<figure>{wide}{draw(NARROW)}<figcaption>{escape(caption)}</figcaption></figure>"


def _trade_off(run: Run) -> str:
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
    elif run.front:
        timed_front = sorted((n for n in run.front if n.get("latency_us")), key=lambda n: n.get("latency_us") or 0.0)
        if timed_front:
            first, last = timed_front[0], timed_front[-1]
            caption += (
                f" The front of the search runs from {numbers.percent(first.get('accuracy'))} in "
                f"{numbers.duration(first.get('latency_us'))} to {numbers.percent(last.get('accuracy'))} in "
                f"{numbers.duration(last.get('latency_us'))}."
            )
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
    return "<h2>1. Accuracy against measured latency</h2>" + _figure(lambda w: figures.pareto(run, w), caption, absent)


def _both(network: Network) -> str:
    return f"{numbers.percent(network.get('accuracy'))} in {numbers.duration(network.get('latency_us'))}"


def _equal_cost(run: Run) -> str:
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
    figure = _figure(lambda w: figures.paired(run, w), caption, absent)
    sentences = [c.sentence() for c in comparisons] + findings.not_compared(run)
    verdicts = f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>" if sentences else ""
    rows = [[(str(name), ""), (_plain(value), "text")] for name, value in run.protocol.items()]
    protocol = (
        f"<details><summary>How they were compared</summary>{_grid(['step', 'what'], rows)}</details>" if rows else ""
    )
    return f"<h2>2. Searched against uniform widths at equal FLOPs</h2>{figure}{verdicts}{protocol}"


def _layers(run: Run) -> str:
    network = findings.featured(run)
    caption = ""
    if network is not None:
        rows = figures.timed_layers(network)
        slow = [name for name, packed, reference, _ in rows if packed > reference]
        packed_total, float_total = sum(r[1] for r in rows), sum(r[2] for r in rows)
        if rows:
            caption = (
                f"{network.label}: its layers take {numbers.duration(packed_total)} packed and "
                f"{numbers.duration(float_total)} in float32, "
                f"{float_total / packed_total:.1f} times as long; "
            )
            caption += f"packed is slower in {', '.join(slow)}." if slow else "packed is faster in every layer."
            if any(not binary for *_, binary in rows):
                caption += " Layers marked as float stay in full precision."
            caption += " What runs between two layers (batch norm, pooling, packing) counts for the first."
    figure = _figure(
        lambda w: figures.layers(network, w), caption, "No layer of this run was timed both packed and in float32."
    )
    return f"<h2>3. Where the time goes: float against packed</h2>{figure}"


def _widths(run: Run) -> str:
    pairs = [(s, u) for s, u in run.pairs() if s.widths and len(s.widths) == len(u.widths)]
    caption = ""
    if pairs:
        searched, uniform = max(
            pairs, key=lambda pair: max(a / b for a, b in zip(pair[0].widths, pair[1].widths, strict=True))
        )
        growth = [a / b for a, b in zip(searched.widths, uniform.widths, strict=True)]
        most = max(range(len(growth)), key=growth.__getitem__)
        caption = (
            f"Channels per layer, first layer on top. The search widens layer {most + 1} most: "
            f"{searched.widths[most]} channels in "
            f"{searched.label} against {uniform.widths[most]} in {uniform.label}."
        )
    figure = _figure(
        lambda w: figures.widths(run, w), caption, "There is no pair of networks to draw side by side yet."
    )
    return f"<h2>4. Widths of each layer</h2>{figure}"


def _operations(run: Run) -> str:
    measured = findings.measured_points(run)
    correlation = findings.rank_correlation(measured)
    misleading = findings.misleading_pair(measured)
    caption = (
        f"Spearman's rank correlation of OPs and measured latency is {correlation:.2f} over {len(measured)} networks. "
        if correlation is not None
        else f"{numbers.plural(len(measured), 'network')}: too few different ones for a rank correlation. "
    )
    caption += (
        misleading.sentence() if misleading else "No network with clearly fewer OPs takes clearly longer than another."
    )
    absent = "Latency was not measured on at least two networks, so OPs cannot be compared with it."
    return "<h2>5. Do operation counts predict the time?</h2>" + _figure(
        lambda w: figures.operations(measured, misleading, w), caption, absent
    )


def _history(run: Run) -> str:
    metric = "fitness" if setting(run, "objectives") == ["fitness"] else "accuracy"
    generations = {c.generation for c in run.candidates if c.generation is not None}
    caption = (
        f"{numbers.plural(len(run.candidates), 'network')} measured in "
        f"{numbers.plural(len(generations), 'generation')}, "
        f"{numbers.plural(len(run.failures), 'failure')}; each network was measured once."
    )
    figure = _figure(lambda w: figures.history(run, metric, w), caption, "The journal holds no evaluation yet.")
    failures = findings.reasons(run)
    rows = [[(reason, "text"), (str(times), "")] for reason, times in failures]
    table = _grid(["reason of failure", "times"], rows) if rows else ""
    return f"<h2>6. The course of the search</h2>{figure}{table}"


def _table(run: Run) -> str:
    networks: Sequence[Network] = run.networks or run.front
    if not networks:
        return '<h2>7. All results</h2><p class="note">No front and no study has been written yet.</p>'
    note = (
        "" if run.networks else '<p class="note">The front of the search; its networks have not been retrained yet.</p>'
    )
    rows, kinds = [], []
    for index, network in enumerate(networks):
        label = network.label if run.networks else str(network.values.get("label", f"front {index + 1}"))
        interval = network.interval
        accuracy = numbers.percent(network.get("accuracy"))
        iqr = network.get("latency_iqr_us")
        noisy = ", noisy" if network.values.get("latency_noisy") is True else ""
        rows.append(
            [
                (label, "", _code(network)),
                (accuracy, "", f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else ""),
                (numbers.count(network.get("bops")), ""),
                (numbers.count(network.get("flops")), ""),
                (
                    numbers.duration(network.get("latency_us")),
                    "",
                    f"IQR {numbers.duration(iqr)}{noisy}" if iqr is not None else "",
                ),
                (numbers.duration(network.get("float_latency_us")), ""),
                (numbers.size(network.get("packed_bytes")), ""),
                ({True: "yes", False: "no", None: "not checked"}[network.verified], ""),
            ]
        )
        kinds.append(network.kind if run.networks else "")
    head = ["network", "accuracy", "BOPs", "FLOPs", "latency", "float32 latency", "packed size", "verified"]
    head, rows = _without_empty_columns(head, rows)
    batch, threads = setting(run, "latency_batch"), setting(run, "latency_threads")
    meaning = "Latency is the median time of one batch"
    meaning += f" of {numbers.plural(batch, 'image')}" if isinstance(batch, int) else ""
    meaning += f" on {numbers.plural(threads, 'thread')}." if isinstance(threads, int) else "."
    if run.networks:
        meaning += (
            " Verified means that every integer the packed network computes on the test images was equal to the "
            "trained "
            "network's."
        )
    return f'<h2>7. All results</h2>{note}{_grid(head, rows, kinds)}<p class="note">{meaning}</p>'


def _without_empty_columns(
    head: Sequence[str], rows: Sequence[Sequence[tuple[str, ...]]]
) -> tuple[list[str], list[list[tuple[str, ...]]]]:
    """Drop what was measured on none of the networks."""
    kept = [i for i in range(len(head)) if any(row[i][0] not in (numbers.MISSING, "not checked") for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _code(network: Network) -> str:
    ratios = network.values.get("ratios")
    if not isinstance(ratios, list) or not ratios:
        return ""
    if network.kind == UNIFORM and len(set(ratios)) == 1:
        return f"× {ratios[0]:.3g}"
    return ", ".join(f"{ratio:.3g}" for ratio in ratios)


def _grid(head: Sequence[str], rows: Sequence[Sequence[tuple[str, ...]]], kinds: Sequence[str] = ()) -> str:
    """A table of at least one row in its own scrolling box. A cell is (text, CSS class, optional small print)."""
    classes = [cell[1] for cell in rows[0]]
    header = "".join(f'<th class="{css}">{escape(name)}</th>' for css, name in zip(classes, head, strict=True))
    body = []
    for index, row in enumerate(rows):
        cells = []
        for text, css, *small in row:
            below = f"<small>{escape(small[0])}</small>" if small and small[0] else ""
            cells.append(f'<td class="{css}">{escape(text)}{below}</td>')
        kind = escape(kinds[index]) if kinds else ""
        body.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _environment(run: Run) -> str:
    command = setting(run, "command")
    if isinstance(command, list):
        command = shlex.join(str(word) for word in command)
    parts = ["<h2>8. How to reproduce this</h2>"]
    if command:
        parts.append(f"<pre>{escape(str(command))}</pre>")
    else:
        parts.append('<p class="note">The configuration does not name the command that made this run.</p>')
    parts.append(f"<p>Seed: {escape(str(setting(run, 'seed')))}.</p>" if setting(run, "seed") is not None else "")
    for name, title in (("machine", "Machine"), ("versions", "Versions")):
        facts = setting(run, name)
        if isinstance(facts, dict) and facts:
            parts.append(
                f"<h3>{title}</h3>"
                + _grid(["fact", "value"], [[(str(k), ""), (_plain(v), "text")] for k, v in facts.items()])
            )
    whole = escape(json.dumps(run.config, indent=2, ensure_ascii=False, default=str))
    parts.append(f"<details><summary>Full configuration</summary><pre>{whole}</pre></details>")
    return "".join(parts)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "unknown" if value is None else str(value)

"""A paper's tables as printed beside ours, and what the comparison found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .. import numbers
from ..choosing import clearly_faster
from ..figures import published as figures
from ..html import Section, bullets, figure, grid, note, paragraph, without_empty_columns
from ..records import SEARCHED, Network, Run, number

_COLUMNS = (
    ("flops", "FLOPs, M"),
    ("memory_bits", "memory, Mbit"),
    ("speed_up", "speed-up, ×"),
    ("top1", "top-1 %"),
    ("top5", "top-5 %"),
)
_EXACT = ("flops", "memory_bits", "ops", "bops", "binary_weights", "value")
_SIGNS = {"equal": "=", "truncated": "≈", "differs": "≠", "ours only": "ours"}
_ORDER = ("misprint", "mislabelled", "ambiguous", "convention", "consistent", "not checkable")
_NOUN = {"misprint": "misprint", "mislabelled": "mislabelled figure", "ambiguous": "ambiguous figure"}
_MEANING = {
    "misprint": "no reading gives the printed figure",
    "mislabelled": "the printed figure belongs to other settings than its row says",
    "ambiguous": "more than one reading fits",
    "convention": "it follows by a convention the paper does not state",
    "consistent": "it follows",
    "not checkable": "a check takes data or recipes that are not here",
}


def headline(run: Run) -> str:
    """How many printed figures could be recomputed, and how many of those are equal."""
    tally = Counter(figure.get("status") for figure in _printed(_tables(run)))
    word = _word(run)
    same, cut, other = (tally[name] for name in ("equal", "truncated", "differs"))
    verdicts = Counter(found.get("verdict") for found in run.reproduction["findings"])
    text = (
        f"Of {sum(tally.values())} {word} figures {same + cut + other} were recomputed: {same} are equal to the last "
        f"{word} digit, {cut} cut off instead of rounded, {other} {'differs' if other == 1 else 'differ'}."
    )
    if tally["not checkable"]:
        text += f" {tally['not checkable']} cannot be checked here."
    named = [numbers.plural(verdicts[v], _NOUN[v]) for v in _NOUN if verdicts[v]]
    if named:
        text += f" Found in the paper: {', '.join(named)}."
    if run.reproduction.get("complete") is False:
        text += " The reproduction is not finished: rows are missing."
    return text


def title(run: Run) -> str:
    paper = run.reproduction["paper"]
    source = f" (arXiv {paper['arxiv']})" if paper.get("arxiv") else ""
    return f"{paper.get('title', 'A paper')}{source}: {_word(run)} and recomputed"


def _word(run: Run) -> str:
    """Where the figures come from: tables of the paper, or wherever something is known of it."""
    return "known" if run.reproduction.get("figures") == "known" else "printed"


def _columns(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Name and heading of each figure of a table: its own, or those of a table of widths."""
    own = table.get("columns")
    if not own:
        return list(_COLUMNS)
    return [(str(c["name"]), f"{c.get('label')}{', ' + str(c['word']) if c.get('word') else ''}") for c in own]


def tables(run: Run) -> list[Section]:
    """One section for each table."""
    return [_table(run, table) for table in _tables(run)]


def findings(run: Run) -> Section:
    """Misprints first, what simply follows last."""
    found = run.reproduction["findings"]
    name = "Misprints, conventions and other findings"
    if not found:
        return name, note("Nothing was checked beyond the figures of the tables.")
    rank = {verdict: index for index, verdict in enumerate(_ORDER)}
    ordered = sorted(found, key=lambda f: rank.get(str(f.get("verdict")), len(rank)))
    rows = [
        [(str(f.get("verdict")), ""), (str(f.get("statement")), "text"), (str(f.get("table", "")), "")] for f in ordered
    ]
    seen = {str(f.get("verdict")) for f in found}
    meaning = "; ".join(f"{verdict}: {words}" for verdict, words in _MEANING.items() if verdict in seen)
    body = paragraph("Each was recomputed from the networks; nothing here is quoted.") + grid(
        ["verdict", "what", "table"], rows, ["finding"] * len(rows)
    )
    return name, body + note(f"{meaning}." if meaning else "")


def _table(run: Run, table: Mapping[str, Any]) -> Section:
    rows = table.get("rows", [])
    name = str(table.get("title") or f"Table {table.get('table')}: {table.get('model')} on {table.get('data')}")
    if not rows:
        return name, note("No row has been recomputed yet.")
    reasons: list[str] = []
    columns = _columns(table)
    head = ["network", *(words for _, words in columns), "fitness", "latency here", "float32 here", "known from"]
    cells = [_row(row, columns, reasons) for row in rows]
    head, cells = without_empty_columns(head, cells, numbers.MISSING)
    kinds = [str(row.get("kind")) if row.get("kind") in (SEARCHED, "uniform") else "" for row in rows]
    key = (
        f"In each cell the figure as {_word(run)}, below it ours: = equal when rounded alike, ≈ the {_word(run)} "
        f"digits are ours cut off, ≠ different. Operations and bits of ours are exact. Counted by {table.get('rule')}."
    )
    if any(name == "speed_up" for name, _ in columns):
        key += " Speed-up is the paper's: FLOPs of the full-precision network over those of this one, not time."
    body = grid(head, cells, kinds) + note(key)
    if reasons:
        listed = "".join(f"<li>{escape(reason)}</li>" for reason in reasons)
        body += f'<h3>Why a figure is marked</h3><ol class="reasons">{listed}</ol>'
    body += _timed(run, rows)
    why = Counter(str(row.get("trained_reason")) for row in rows if row.get("trained_reason"))
    body += bullets(f"No accuracy of ours for {numbers.plural(n, 'network')}: {reason}." for reason, n in why.items())
    return name, body


def _row(row: Mapping[str, Any], columns: Sequence[tuple[str, str]], reasons: list[str]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = [(str(row.get("label")), "", _ratios(row))]
    cells += [_figure_cell(name, row.get(name) or {}, reasons, row.get("unit")) for name, _ in columns]
    fitness = number(row, "fitness")
    cells.append((numbers.MISSING if fitness is None else f"{fitness:.2f}", ""))
    latency = row.get("latency") or {}
    cells.append(_time(latency, ""))
    cells.append(_time(latency, "float_"))
    cells.append((str(row.get("evidence") or numbers.MISSING), ""))
    return cells


def _ratios(row: Mapping[str, Any]) -> str:
    ratios = row.get("ratios") or []
    return ", ".join(f"{ratio:g}" for ratio in ratios) if len(set(ratios)) > 1 else ""


def _figure_cell(name: str, found: Mapping[str, Any], reasons: list[str], unit: Any = None) -> tuple[str, ...]:
    printed, ours, status = found.get("printed"), number(found, "ours"), str(found.get("status"))
    huge = f"e{len(str(unit)) - 1}" if isinstance(unit, int) and unit > 10**6 else ""  # sizes of spaces
    text = numbers.MISSING if printed is None else str(printed) + huge
    if status == "not checkable":
        return text, "", "not checkable here"
    if ours is None and not huge:
        return text, ""
    exact = name in _EXACT and printed is not None and ours is not None and not huge
    value = f"{ours:,.0f}" if exact else str(found.get("rounded")) + huge
    mark = ""
    if status in ("differs", "truncated") or (status == "equal" and found.get("reason")):
        reason = str(found.get("reason") or "no reason was found")
        if reason not in reasons:
            reasons.append(reason)
        mark = f" [{reasons.index(reason) + 1}]"
    css = status if status in ("equal", "differs", "truncated") else ""
    return text, css, f"{_SIGNS.get(status, '')}\u00a0{value}{mark}"


def _time(latency: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    median = number(latency, f"{prefix or 'median_'}us")
    if median is None:
        return numbers.MISSING, ""
    ratio = number(latency, "ratio")
    small = f"IQR {numbers.duration(number(latency, f'{prefix}iqr_us'))}"
    if prefix:
        small = "" if ratio is None else f"{numbers.three_digits(ratio)}× as long"
    noisy = "noisy" if latency.get(f"{prefix}noisy") else ""
    return numbers.duration(median), "", ", ".join(filter(None, (small, noisy)))


def _timed(run: Run, rows: Sequence[Mapping[str, Any]]) -> str:
    """What no paper has: the printed accuracy against time on this machine."""
    networks = [network for row in rows if (network := _network(row)) is not None]
    if len(networks) < 2:
        return ""
    settings, machine = run.reproduction["settings"], run.reproduction["machine"]
    where = ", ".join(str(machine[name]) for name in ("cpu", "isa") if machine.get(name))
    caption = (
        f"Printed top-1 accuracy against the latency of the frozen network measured here (batch "
        f"{settings.get('batch', 1)}, {numbers.plural(int(number(settings, 'threads') or 1), 'thread')}"
        f"{', ' + where if where else ''}); whole networks, no table of parts. {_fastest(networks)}"
    )
    noisy = [network.label for network in networks if network.values.get("latency_noisy")]
    if noisy:
        caption += f" Noisy: {', '.join(noisy)}; `bitnas reproduce --retime` on an idle machine times those again."
    drawn = figure(lambda w: figures.accuracy_and_time(networks, w), caption)
    return f"<h3>The printed accuracy against time on this machine</h3>{drawn}"


def _fastest(networks: Sequence[Network]) -> str:
    """Of each searched network the slowest uniform one that it beats in both; only clear differences in time."""
    parts = []
    for network in networks:
        if network.kind != SEARCHED:
            continue
        beaten = [
            other
            for other in networks
            if other.kind == "uniform"
            and (other.get("accuracy") or 0.0) <= (network.get("accuracy") or 0.0)
            and clearly_faster(network, other)
        ]
        if beaten:
            most = max(beaten, key=lambda n: n.get("latency_us") or 0.0)
            times = (most.get("latency_us") or 0.0) / (network.get("latency_us") or 1.0)
            noisy = any(n.values.get("latency_noisy") for n in (network, most))
            parts.append(
                f"{network.label} is printed as no less accurate than {most.label} and is {times:.1f} times as fast"
                f"{' by these noisy timings' if noisy else ''}."
            )
        else:
            parts.append(f"{network.label} is clearly faster than no uniform network of its printed accuracy or less.")
    return " ".join(parts)


def _network(row: Mapping[str, Any]) -> Network | None:
    latency, top1 = row.get("latency") or {}, row.get("top1") or {}
    try:
        accuracy = float(str(top1.get("printed"))) / 100
    except ValueError:
        return None
    median = number(latency, "median_us")
    if median is None or median <= 0:
        return None
    return Network(
        {
            "label": row.get("label"),
            "kind": row.get("kind"),
            "ratios": row.get("ratios"),
            "accuracy": accuracy,
            "latency_us": median,
            "latency_iqr_us": number(latency, "iqr_us"),
            "latency_noisy": latency.get("noisy"),
            "flops": number(row.get("flops") or {}, "ours"),
        }
    )


def _tables(run: Run) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = run.reproduction.get("tables", [])
    return found


def _printed(tables: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    found = [row.get(name) or {} for table in tables for row in table.get("rows", []) for name, _ in _columns(table)]
    return [figure for figure in found if figure.get("printed") is not None]

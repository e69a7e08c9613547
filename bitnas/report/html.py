"""The few pieces of HTML that every section is made of. Whatever comes from a file is escaped here or in svg.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from .numbers import MISSING

WIDE, NARROW = 828, 356  # px that a figure is drawn for; the page shows the one that fits
Section = tuple[str, str]  # title, HTML


def figure(draw: Callable[[int], str | None], caption: str, absent: str = "") -> str:
    """A figure in both layouts with its caption, or the sentence that says why there is none."""
    wide = draw(WIDE)
    if wide is None:
        return note(absent)
    return f"<figure>{wide}{draw(NARROW)}<figcaption>{prose(caption)}</figcaption></figure>"


def prose(text: str) -> str:
    """Escaped text; what stands between backticks is set as code."""
    return re.sub(r"`([^`<>]+)`", r"<code>\1</code>", escape(text))


def note(text: str) -> str:
    return f'<p class="note">{prose(text)}</p>' if text else ""


def paragraph(text: str) -> str:
    return f"<p>{prose(text)}</p>" if text else ""


def bullets(items: Iterable[str]) -> str:
    found = "".join(f"<li>{prose(item)}</li>" for item in items)
    return f"<ul>{found}</ul>" if found else ""


def details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>" if body else ""


def tiles(entries: Iterable[tuple[str, str]]) -> str:
    """Short facts side by side: name and value."""
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in entries)
    return f'<dl class="facts">{cells}</dl>' if cells else ""


def grid(head: Sequence[str], rows: Sequence[Sequence[tuple[str, ...]]], kinds: Sequence[str] = ()) -> str:
    """A table in its own scrolling box; on a phone each row is a card of lines with the column's name, empty ones
    left out.

    A cell is (text, CSS class, optional small print). `kinds` are CSS classes of the rows.
    """
    if not rows:
        return ""
    classes = [cell[1] for cell in rows[0]]
    header = "".join(f'<th class="{css}">{escape(name)}</th>' for css, name in zip(classes, head, strict=True))
    body = []
    for index, row in enumerate(rows):
        cells = []
        for name, (text, css, *small) in zip(head, row, strict=True):
            below = f"<small>{escape(small[0])}</small>" if small and small[0] else ""
            # One element around both, so that a card can set it beside the name.
            css = f"{css} none".strip() if text == MISSING and not below else css
            cells.append(f'<td class="{css}" data-name="{escape(name)}"><span>{escape(text)}{below}</span></td>')
        kind = escape(kinds[index]) if kinds else ""
        body.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
    return f'<div class="scroll"><table><thead><tr>{header}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def without_empty_columns(
    head: Sequence[str], rows: Sequence[Sequence[tuple[str, ...]]], *empty: str
) -> tuple[list[str], list[list[tuple[str, ...]]]]:
    """Drop the columns that say nothing: every cell is one of `empty`, without small print."""
    kept = [i for i in range(len(head)) if any(row[i][0] not in empty or any(row[i][2:]) for row in rows)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in rows]


def plain(value: Any) -> str:
    """A JSON value in words."""
    if isinstance(value, list):
        return ", ".join(map(plain, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "unknown" if value is None else str(value)

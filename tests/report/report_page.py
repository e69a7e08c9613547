"""A report read back: closed in order, its text, its tags and their attributes."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from bitnas import report

_VOID = {"meta", "br", "hr", "img", "link", "line", "path", "rect", "polyline", "polygon"}


class Page(HTMLParser):
    """Checks that every element is closed in order, and collects text, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page(folder: Path) -> Page:
    found = Page(report.build(folder).read_text(encoding="utf-8"))
    assert found.open == []
    return found

"""The page itself: what a folder holds decides which sections there are; they are numbered as they come."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import Any

from . import findings
from .html import Section, tiles
from .records import Run, setting
from .sections import (
    ablation,
    against,
    claim,
    course,
    environment,
    latency,
    published,
    ranking,
    results,
    study,
    supernet,
)
from .style import CSS

_GLOSSARY = (
    "Accuracy intervals and interquartile ranges (IQR) are drawn wherever they were measured. MACs are multiply-adds; "
    "BOPs are binary MACs; FLOPs and OPs follow the counting rule named in the configuration."
)


def render(run: Run) -> str:
    """The whole HTML document of `run`."""
    sections = [section for section in _sections(run) if section is not None]
    body = "\n".join(
        f"<section><h2>{number}. {escape(title)}</h2>{content}</section>"
        for number, (title, content) in enumerate(sections, 1)
    )
    name = escape(run.folder.resolve().name)
    headlines = "".join(f'<p class="headline">{escape(text)}</p>' for text in _headlines(run))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>bitnas report: {name}</title><style>{CSS}</style></head><body>
<header><p class="kicker">bitnas report · {name}</p><h1>{escape(_title(run))}</h1>
{headlines}{tiles(_facts(run))}</header>
{body}
<footer><p>{escape(_GLOSSARY)}</p></footer></body></html>
"""


def _sections(run: Run) -> Iterator[Section | None]:
    if run.of_subnets:
        yield supernet.front(run)
        yield supernet.deployed(run)
        yield supernet.architectures(run)
        yield supernet.archive(run)
        yield supernet.training(run)
    elif run.config:
        yield study.trade_off(run)
        yield study.equal_cost(run)
        yield study.layers(run)
        yield study.widths(run)
    if run.config:
        yield latency.operations(run)
        yield latency.honesty(run)
        yield course.history(run)
        yield course.lost(run)
        yield results.results(run)
    if run.ranking:
        yield ranking.ranking(run)
    if run.ablation:
        yield ablation.ablation(run)
    if run.against:
        yield from against.sections(run)
    if run.claim:
        yield claim.claim(run)
        yield claim.widths(run)
    if run.reproduction:
        yield from published.tables(run)
        yield published.findings(run)
    yield environment.environment(run)


def _title(run: Run) -> str:
    if run.of_subnets:
        return supernet.title(run)
    studied = [module.title(run) for found, module in _studies(run) if found]
    if not run.config and studied:
        return studied[0] if len(studied) == 1 else "Studies of NAS-BNN"
    if not run.config and run.reproduction:
        return published.title(run)
    if not run.config and run.claim:
        return claim.title(run)
    model, data = setting(run.config, "model"), setting(run.config, "data")
    if model and data:
        return f"Width search of a binary {model} on {data}"
    return "Width search of a binary network"


def _headlines(run: Run) -> Iterator[str]:
    if run.of_subnets:
        yield supernet.headline(run)
    elif run.config or not (run.claim or run.reproduction or any(found for found, _ in _studies(run))):
        yield findings.headline(run)
    for found, module in _studies(run):
        if found:
            yield module.headline(run)
    if run.claim:
        yield claim.headline(run)
    if run.reproduction:
        yield published.headline(run)


def _studies(run: Run) -> tuple[tuple[Any, Any], ...]:
    """What each study of NAS-BNN holds, and who writes about it."""
    return (run.ranking, ranking), (run.ablation, ablation), (run.against, against)


def _facts(run: Run) -> Iterator[tuple[str, str]]:
    if not run.config:
        return
    yield "Subnets evaluated" if run.of_subnets else "Networks evaluated", str(len(run.candidates))
    yield "Failed", str(len(run.failures))
    if run.rejected:
        yield "Over the budget", str(len(run.rejected))
    if run.front:
        yield "On the front", str(len(run.front))
    if run.networks:
        yield "Deployed" if run.of_subnets else "Retrained", str(len(run.networks))
    if setting(run.config, "seed") is not None:
        yield "Seed", str(setting(run.config, "seed"))

"""The page itself: what a folder holds decides which sections there are; they are numbered as they come."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from . import findings
from .html import Section, tiles
from .records import Run, setting
from .sections import (
    ablation,
    against,
    bars,
    bars_study,
    claim,
    compare,
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
    elif run.of_cells:
        yield bars.method(run)
        yield bars.front(run)
        yield bars.deployed(run)
        yield bars.cells(run)
        yield bars.training(run)
    elif run.config:
        yield study.trade_off(run)
        yield study.equal_cost(run)
        yield study.layers(run)
        yield study.widths(run)
    if run.config:
        yield latency.operations(run)
        yield latency.honesty(run)
        yield None if run.of_cells else course.history(run)  # all its networks are derived at once
        yield course.lost(run)
        yield results.results(run)
    if run.ranking:
        yield ranking.ranking(run)
    if run.ablation:
        yield ablation.ablation(run)
    if run.against:
        yield from against.sections(run)
    for found in run.cell_studies.values():
        yield bars_study.section(found)
    if run.comparison:
        yield from compare.sections(run)
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
    if run.of_cells:
        return bars.title(run)
    studied = [name for name, _ in _studies(run)]
    if not run.config and studied:
        return studied[0] if len(studied) == 1 else _together(run)
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
    elif run.of_cells:
        yield bars.headline(run)
    elif run.config or not (run.claim or run.reproduction or any(_studies(run))):
        yield findings.headline(run)
    yield from (said for _, said in _studies(run))
    if run.claim:
        yield claim.headline(run)
    if run.reproduction:
        yield published.headline(run)


def _studies(run: Run) -> Iterator[tuple[str, str]]:
    """Title and headline of each study that the folder holds."""
    known = (
        (run.ranking, ranking),
        (run.ablation, ablation),
        (run.against, against),
        (run.comparison, compare),
    )
    for found, module in known:
        if found:
            yield module.title(run), module.headline(run)
    for found in run.cell_studies.values():
        yield bars_study.title(found), bars_study.headline(found)


def _together(run: Run) -> str:
    """The title of a page with several studies."""
    if run.comparison or (run.cell_studies and (run.ranking or run.ablation or run.against)):
        return "Studies of several methods"
    return "Studies of BARS" if run.cell_studies else "Studies of NAS-BNN"


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
        yield "Deployed" if run.derived else "Retrained", str(len(run.networks))
    if setting(run.config, "seed") is not None:
        yield "Seed", str(setting(run.config, "seed"))

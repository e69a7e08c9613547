"""How the search went: what each generation brought, what failed and why, what was over the budget."""

from __future__ import annotations

from html import escape

from .. import course, numbers
from ..figures import course as figures
from ..figures.common import COSTS
from ..html import Section, details, figure, grid, note
from ..records import Candidate, Dropped, Run, code, setting

_EXAMPLES = 3


def history(run: Run) -> Section:
    metric = course.metric_of(run)
    seen: list[Candidate | Dropped] = [*run.candidates, *run.failures, *run.rejected]
    generations = {c.generation for c in seen if c.generation is not None}
    lost = f"{numbers.plural(len(run.failures), 'failure')}"
    if run.rejected:
        lost += f", {len(run.rejected)} over the budget"
    caption = (
        f"{numbers.plural(len(run.candidates), 'network')} measured in "
        f"{numbers.plural(len(generations), 'generation')}, {lost}; each network was measured once. "
        f"{course.best_sentence(run, metric)}"
    )
    body = figure(lambda w: figures.history(run, metric, w), caption, "The journal holds no evaluation yet.")
    cost = course.cost_of(run)
    if cost is not None:
        edges = course.edges(run, cost)
        word = "predicted latency" if run.predicted else "measured latency"
        name = word if cost == "latency_us" else COSTS[cost]
        objectives = setting(run.config, "objectives")
        many = isinstance(objectives, list) and len(objectives) > 2
        caption = (
            f"Accuracy that can be had for a given {name} after each generation. {course.front_sentence(run, cost)}"
        )
        if many:
            caption += (
                f" The front has {len(objectives)} objectives; shown are its networks that no cheaper one matches."
            )
        caption += (
            " Accuracies are of inherited weights on the validation images; with thousands of subnets judged on the "
            "same images, small gains may be chance."
            if run.of_subnets
            else " Accuracies are of one short training each, so small gains may be chance."
        )
        body += "<h3>The front, generation by generation</h3>"
        body += figure(lambda w: figures.fronts(edges, cost, word, w), caption)
    return "The course of the search", body


def lost(run: Run) -> Section | None:
    if not (run.candidates or run.failures or run.rejected):
        return None
    total = len(run.candidates) + len(run.failures) + len(run.rejected)
    example = "blocks" if run.of_subnets else "depths and widths" if run.of_cells else "ratios"
    example += ", for example"
    parts = []
    if run.failures:
        parts.append(
            f"<p>{len(run.failures)} of {total} networks failed; the search went on without them. Reasons that differ "
            "in numbers only stand together, with … for the number.</p>"
        )
        head = ["reason of failure", "times", "generation", example]
        groups = course.group(run.failures)
        parts.append(
            grid(
                head,
                [
                    [
                        (found.reason, "text"),
                        (str(len(found.members)), ""),
                        (found.generations or numbers.MISSING, ""),
                        (_examples(found.members), "text"),
                    ]
                    for found in groups
                ],
            )
        )
        firsts = [found.members[0].reason.strip() for found in groups]
        whole = [reason for reason in firsts if "\n" in reason or len(reason) > course.SHORT]
        parts.append(details("Reasons in full", "".join(f"<pre>{escape(reason)}</pre>" for reason in whole)))
    else:
        parts.append(note(f"None of {numbers.plural(total, 'network')} failed."))
    if run.rejected:
        parts.append("<h3>Over the budget</h3>")
        parts.append(
            f"<p>{numbers.plural(len(run.rejected), 'network')} beyond a limit of the search "
            f"{'was' if len(run.rejected) == 1 else 'were'} not trained further. That is no failure.</p>"
        )
        parts.append(
            grid(
                ["limit", "times", "latency", "generation", example],
                [
                    [
                        (found.reason, "text"),
                        (str(len(found.members)), ""),
                        (_latencies(found.members), ""),
                        (found.generations or numbers.MISSING, ""),
                        (_examples(found.members), "text"),
                    ]
                    for found in course.group(run.rejected)
                ],
            )
        )
    return "What failed, and why", "".join(parts)


def _examples(members: list[Dropped]) -> str:
    codes = [code(member) for member in members if member.ratios or member.subnet or member.architecture]
    return "; ".join(codes[:_EXAMPLES]) + (" …" if len(codes) > _EXAMPLES else "")


def _latencies(members: list[Dropped]) -> str:
    found = [value for member in members if (value := member.get("latency_us")) is not None]
    if not found:
        return numbers.MISSING
    return numbers.duration(found[0]) if len(found) == 1 else numbers.duration_between(min(found), max(found))

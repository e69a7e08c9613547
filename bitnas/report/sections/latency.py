"""About time: do OPs choose the right networks, and how true are the latencies?"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .. import agreement, choosing, numbers
from ..choosing import WrongChoice
from ..figures import latency as figures
from ..figures.latency import FRONT
from ..html import Section, figure, grid, note, paragraph, tiles
from ..records import Network, Point, Run, code, name_of, setting

_MOST_ROWS = 12


def operations(run: Run) -> Section:
    title = "Do operation counts choose the right networks?"
    measured, of_front = _points(run)
    word = "predicted" if run.predicted and run.candidates and not of_front else "measured"
    correlation = choosing.rank_correlation(measured)
    misleading = choosing.misleading_pair(measured)
    caption = (
        f"Spearman's rank correlation of OPs and {word} latency is {correlation:.2f} over {len(measured)} networks. "
        if correlation is not None
        else f"{numbers.plural(len(measured), 'network')}: too few different ones for a rank correlation. "
    )
    caption += (
        misleading.sentence() if misleading else "No network with clearly fewer OPs takes clearly longer than another."
    )
    if of_front:
        caption += (
            " These are the networks of the front alone, timed in turns when the search was over: the search itself "
            "measured no latency, so what it passed over is not here."
        )
    absent = _absent(measured)
    body = figure(lambda w: figures.operations(measured, misleading, w, word), caption, absent)
    found = choosing.choose(measured)
    if found is not None:
        body += "<h3>What choosing by OPs would have cost</h3>" + paragraph(found.sentence())
        caption = (
            "Squares are what accuracy and OPs choose, the dashed line what accuracy and latency choose. A square on "
            "the line is a right choice. A cross is a wrong one, joined to the network that should have been taken; a "
            "numbered circle without a square is one that OPs miss, joined to what they would take. The numbers are "
            "those of the table."
            if found.kept_wrongly or found.passed_over
            else "Squares are what accuracy and OPs choose, the dashed line what accuracy and latency choose."
        )
        body += figure(lambda w: figures.choices(measured, found, w, word), caption)
        wrong = [*found.kept_wrongly, *found.passed_over]
        head = ["no.", "OPs choose", "clearly faster", "what is wrong", "takes"]
        body += grid(head, [_row(index, choice) for index, choice in enumerate(wrong[:_MOST_ROWS], 1)])
        if len(wrong) > _MOST_ROWS:
            body += note(f"{len(wrong) - _MOST_ROWS} more are not listed.")
        body += note(
            "Two latencies count as different only where their intervals do not meet. Accuracies are taken as measured"
            + (f", {_judged(run)}." if of_front or measured == [*run.candidates] else ".")
        )
    return title, body


def _points(run: Run) -> tuple[Sequence[Point], bool]:
    """Networks to compare, all timed in the same way, and whether they are the front: it is timed at the end even
    where latency had no part in the search, and each architecture stands in it once."""
    measured = choosing.measured_points(run)
    if any((c.get("latency_us") or 0) > 0 for c in run.candidates) or (len(measured) > 1 and not run.derived):
        return measured, False
    front = [n for n in run.front if (n.get("ops") or 0) > 0 and (n.get("latency_us") or 0) > 0]
    if len(front) < 2 and len(measured) > len(front):
        return measured, False
    return [Network({**n.values, "kind": FRONT}) for n in front], bool(front)


def _absent(measured: Sequence[Point]) -> str:
    if not measured:
        return "No network of this run has a latency, so OPs cannot be compared with it."
    return f"Only {name_of(measured[0])} has a latency: with one network OPs cannot be compared with it."


def _judged(run: Run) -> str:
    inherited = run.of_subnets or (run.of_cells and not setting(run.config, "train_epochs"))
    return "with inherited weights" if inherited else "after one short training each"


def _row(index: int, choice: WrongChoice) -> list[tuple[str, ...]]:
    why = "the faster one is no less accurate"
    if choice.passed_over:
        more = (choice.chosen.get("accuracy") or 0.0) > (choice.better.get("accuracy") or 0.0)
        why = f"OPs miss the faster one; theirs is {'more' if more else 'as'} accurate"
    return [
        (str(index), ""),
        (name_of(choice.chosen), "text", _figures(choice.chosen)),
        (name_of(choice.better), "text", _figures(choice.better)),
        (why, "text"),
        (f"{choice.factor:.2f}×", "", "as long"),
    ]


def _figures(point: Point) -> str:
    ratios = f"; {code(point)}" if point.label else ""
    return (
        f"{numbers.percent(point.get('accuracy'))}, {numbers.count(point.get('ops'))} OPs, "
        f"{numbers.duration(point.get('latency_us'))}{ratios}"
    )


def honesty(run: Run) -> Section | None:
    if not agreement.has_latency(run):
        return None
    parts = []
    check = run.table_check
    if check is None:
        commands = "\n".join(agreement.check_commands(run))
        parts.append(f"{paragraph(agreement.no_check_sentence(run))}<pre>{escape(commands)}</pre>")
    else:
        shown = [
            ("Networks", f"{check.get('networks') or len(check.pairs):.0f}"),
            ("Spearman", _digits(check.get("spearman"))),
            ("Median error", numbers.percent(check.get("median_error"))),
            ("95 % are below", numbers.percent(check.get("error_95"))),
            ("Worst error", numbers.percent(check.get("worst_error"))),
            ("Bias", _signed(check.get("bias"))),
            ("Noise of measuring twice", numbers.percent(check.get("noise"))),
            ("Machine slower since", _signed(check.get("reference_drift"))),
            ("Goal", {True: "met", False: "NOT met", None: "not judged"}[check.met]),
        ]
        shown = [(name, value) for name, value in shown if value != numbers.MISSING]
        parts.append("<h3>The device table against whole networks</h3>" + tiles(shown))
        date = f", checked {check.date}" if check.date else ""
        caption = (
            f"Each dot is a network that had no part in making the table{date}. On the diagonal the prediction is "
            "exact; errors are shares of the measured latency. No table can come closer than measuring one network "
            "twice does."
        )
        parts.append(
            figure(
                lambda w: figures.agreement(check.pairs, w, "predicted", "measured"),
                caption,
                "The check lists no pairs, so there is nothing to draw.",
            )
        )
        strong = "" if check.met else ' class="warning"'
        parts.append(f"<p{strong}>{escape(agreement.goal_sentence(check))}</p>")
    pairs = agreement.front_pairs(run)
    found = agreement.agree(pairs)
    if found is not None:
        first = "predicted in the search" if run.predicted else "measured in the search"
        parts.append(f"<h3>The front: {first} and measured again</h3>")
        parts.append(
            figure(
                lambda w: figures.agreement(pairs, w, first, "measured at the end"),
                agreement.front_sentence(run, found),
            )
        )
    noisy = [p for p in (*run.front, *run.networks) if p.values.get("latency_noisy") in (True, 1, 1.0)]
    if noisy:
        names = ", ".join(network.label for network in noisy[:8]) + (" …" if len(noisy) > 8 else "")
        parts.append(
            note(
                f"Noisy: {names}. Their medians had not settled when time was up, as other programs were using the "
                "machine."
            )
        )
    return "How true are the latencies?", "".join(parts)


def _digits(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return numbers.MISSING if value is None else f"{numbers.points(value)} %"

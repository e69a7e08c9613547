"""Do the printed figures of Shen et al. 2019 follow from the networks? Every answer here is recomputed, none is quoted.

Where a printed figure does not follow, the readings that would explain it are counted too, and the finding says which
of them give the printed digits. Nothing here needs data or training.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from bitnas.cost import rules
from bitnas.methods.width.published import (
    AUTO_A_NARROWER_STAGES,
    AUTO_A_NARROWER_THAN,
    LAMBDA,
    TABLE_1,
    TABLE_2,
    TABLES,
    Row,
    Table,
)
from bitnas.search.evolution import penalised_accuracy

if TYPE_CHECKING:
    from bitnas.cost import Count

Number = int | float | Fraction
MILLION = 1_000_000
_MOST_BASES = 8  # of weights and of activations, tried for the rows of ABC-Net


@dataclass(frozen=True)
class Figure:
    """A printed figure beside ours.

    Attributes:
        printed: as printed, or None.
        ours: exact, in the unit of the quantity (FLOPs, bits, a quotient, percent); None if there is none.
        rounded: ours with as many decimals as are printed, or as the column has.
        status: "equal" (rounded half up), "truncated" (the printed digits are ours cut off, not rounded), "differs",
            "ours only", "printed only" or "none".
        reason: why it is not "equal", or how ours came about where that needs saying.
    """

    printed: str | None
    ours: int | float | None
    rounded: str | None
    status: str
    reason: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
        id: a short name.
        table: number of the table.
        verdict: "misprint" (no reading gives the printed figure), "mislabelled" (the printed figure belongs to other
            settings than the row says), "ambiguous" (more than one reading gives it, or text and code disagree),
            "convention" (it follows, by a convention that the paper does not state), "consistent".
        statement: one or two sentences.
        evidence: the figures behind it.
    """

    id: str
    table: int
    verdict: str
    statement: str
    evidence: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def decimals(printed: str) -> int:
    """Digits after the point of a printed figure."""
    return len(printed.partition(".")[2])


def rounded(value: Number, digits: int, *, truncate: bool = False) -> str:
    """An exact number with so many decimals, rounded half up as tables are, or cut off."""
    exact = Fraction(value)
    # 60 digits are more than any quotient of two counts needs to be on the right side of a half.
    quotient = Decimal(exact.numerator) / Decimal(exact.denominator)
    return str(quotient.quantize(Decimal(1).scaleb(-digits), rounding=ROUND_DOWN if truncate else ROUND_HALF_UP))


def compare(
    printed: str | None, ours: int | float | None, *, unit: int = 1, digits: int = 1, reason: str | None = None
) -> Figure:
    """A printed figure in units of `unit` beside an exact one; `digits` are used where nothing is printed."""
    if ours is None:
        return Figure(printed, None, None, "none" if printed is None else "printed only", reason)
    value = Fraction(ours) / unit
    if printed is None:
        return Figure(None, ours, rounded(value, digits), "ours only", reason)
    shown = rounded(value, decimals(printed))
    if shown == printed:
        return Figure(printed, ours, shown, "equal", reason)
    if rounded(value, decimals(printed), truncate=True) == printed:
        why = f"cut off after the last digit; rounded it is {shown}"
        return Figure(printed, ours, shown, "truncated", reason or why)
    return Figure(printed, ours, shown, "differs", reason)


@functools.cache
def _counted(model: str, rule: str, ratios: float | tuple[float, ...] | None = None) -> Count:
    """`bitnas.count`, once for each network: a network is asked for by several checks."""
    from bitnas.cost import count

    options: dict[str, Any] = {} if ratios is None else {"ratios": ratios}
    return count(model, rule=rule, **options)


def totals(row: Row, table: Table, rule: str | None = None, **counting: Any) -> rules.Totals:
    """Figures of a row by its table's rule or by another one; `counting` replaces the row's bases or precision."""
    if row.model is None:
        raise ValueError(f"row: {row.key!r} is a network that bitnas does not have")
    layers = _counted(row.model, "mac", row.ratios).layers
    return rules.price(layers, rule or table.rule, **(counting or dict(row.counting)))[1]


def _flops(found: rules.Totals, rule: str) -> int | float:
    """The single figure of a rule: its FLOPs where the paper prints those, its OPs otherwise."""
    return found.flops if rules.RULES[rule].flops_are_ops else found.ops


def row_flops(row: Row, table: Table) -> int | float:
    """FLOPs of a row; a network that bitnas does not have is read as `pcnn_readings` says."""
    return totals(row, table).flops if row.model is not None else pcnn_readings()["with one per residual add"]


def figures(row: Row, table: Table) -> dict[str, Figure]:
    """flops, memory_bits, speed_up of one row, printed beside exact."""
    flops = row_flops(row, table)
    full = totals(table.full_precision, table).flops
    reasons = {finding.id: finding.statement for finding in findings() if finding.verdict != "consistent"}
    found = {
        "flops": compare(row.flops, flops, unit=MILLION, reason=reasons.get(f"{row.key}/flops")),
        "memory_bits": compare(
            row.memory, totals(row, table).memory_bits if row.model is not None else None, unit=MILLION
        ),
    }
    if row is table.full_precision:
        found["speed_up"] = Figure(None, 1, "1.0", "ours only", "what the others are compared with")
    else:
        why = reasons.get(f"{row.key}/speed-up")
        found["speed_up"] = compare(row.speed_up, float(Fraction(full) / Fraction(flops)), reason=why)
    return found


def fitness(row: Row, table: Table) -> float | None:
    """max(Acc - 4 F, 0) in percent points, of the printed accuracy and exact FLOPs; None for a row without F."""
    if not row.buildable:
        return None
    relative = row_flops(row, table) / totals(table.unit, table).flops
    return penalised_accuracy(float(row.top1) / 100, relative, penalty=LAMBDA)


def pcnn_readings() -> dict[str, int | float]:
    """FLOPs of two readings of the PCNN row: ResNet-18 whose down-sampling shortcuts are in full precision, and the
    same with one operation for each element that a residual connection adds.
    """
    layers = _counted("resnet18", "mac").layers
    floated = [
        replace(layer, binary=False, weight_bits=32) if layer.binary and "downsample" in layer.name else layer
        for layer in layers
    ]
    plain = rules.price(floated, TABLE_2.rule)[1].flops
    # A block ends with the batch norm of its second convolution; the shortcut adds as many elements.
    adds = sum(layer.outputs for layer in layers if layer.name.endswith(".bn2"))
    return {"float down-sampling": plain, "with one per residual add": plain + adds}


def _agree(table: Table, rule: str, rows: Iterable[Row]) -> int:
    """How many rows' printed FLOPs a rule gives."""
    return sum(
        compare(row.flops, _flops(totals(row, table, rule), rule), unit=MILLION).status == "equal" for row in rows
    )


def _binary_rows(table: Table) -> list[Row]:
    return [row for row in table.rows if row.buildable]


@functools.cache
def findings() -> tuple[Finding, ...]:
    """Every check of both tables, in the order of the tables."""
    found: list[Finding] = []
    found += _speed_ups(TABLE_1)
    found += [_rules_of(table) for table in TABLES.values()]
    found += [_first_layer_term(), _memory()]
    found += [_full_precision(table) for table in TABLES.values()]
    found += [*_bases(), _pcnn(), _auto_a_order()]
    found += [_claim(table) for table in TABLES.values()]
    return tuple(sorted(found, key=lambda finding: finding.table))


def _speed_ups(table: Table) -> list[Finding]:
    """Printed speed-ups against the quotient of exact FLOPs and that of the printed ones."""
    found = []
    full = table.full_precision
    for row in table.rows:
        if row.speed_up is None:
            continue
        digits = decimals(row.speed_up)
        readings = {
            "of exact FLOPs": Fraction(totals(full, table).flops) / Fraction(totals(row, table).flops),
            "of printed FLOPs": Fraction(full.flops) / Fraction(row.flops),
            "of printed over exact": Fraction(full.flops) * MILLION / Fraction(totals(row, table).flops),
        }
        shown = {name: rounded(value, digits) for name, value in readings.items()}
        fits = [name for name, text in shown.items() if text == row.speed_up]
        listed = ", ".join(f"{text}x {name}" for name, text in shown.items())
        found.append(
            Finding(
                f"{row.key}/speed-up",
                table.number,
                "consistent" if fits else "misprint",
                f"The speed-up of {row.label} is printed {row.speed_up}x; the quotient is {listed}.",
                {"row": row.key, "printed": row.speed_up, "quotients": {n: float(v) for n, v in readings.items()}},
            )
        )
    return found


def _rules_of(table: Table) -> Finding:
    """Which counter gives the rows of a table: its own, that of the other table, plain multiply-adds."""
    rows = _binary_rows(table)
    names = [*(other.rule for other in TABLES.values()), "mac"]
    agree = {name: _agree(table, name, rows) for name in names}
    listed = ", ".join(f"{name!r} {count}" for name, count in agree.items())
    own = agree[table.rule] == len(rows) and sum(count == len(rows) for count in agree.values()) == 1
    return Finding(
        f"table-{table.number}/counter",
        table.number,
        "convention" if own else "ambiguous",
        f"Of the {len(rows)} binary rows of table {table.number}, the counters give: {listed}. The two tables "
        f"{'follow two different counters' if own else 'cannot be told apart by these rows'}.",
        {"rows": len(rows), "agree": agree},
    )


def _first_layer_term() -> Finding:
    """Table 1 needs one operation per output of the first convolution, which the text does not mention."""
    rows = _binary_rows(TABLE_1)
    without = {row.key: totals(row, TABLE_1, "mac").ops for row in rows}
    missing = {row.key: totals(row, TABLE_1).flops - without[row.key] for row in rows}
    outputs = next(layer.outputs for layer in _counted("vgg_small", "mac").layers if layer.kind == "conv")
    unit = missing[TABLE_1.unit.key]
    return Finding(
        "table-1/first-layer",
        1,
        "convention",
        f"Multiply-adds alone (binary ones / 64) give {_agree(TABLE_1, 'mac', rows)} of the {len(rows)} binary rows; "
        f"{unit:,} more for the un-widened network, one operation for each of the {outputs:,} outputs of the first "
        f"convolution, gives {_agree(TABLE_1, TABLE_1.rule, rows)}.",
        {"without": without, "missing": missing, "outputs_of_first_layer": outputs},
    )


def _memory() -> Finding:
    """What the memory column counts: bits of weights; biases or batch norm would change printed digits."""
    rows = [row for row in TABLE_1.rows if row.memory is not None]

    def agree(bits: Mapping[str, int]) -> int:
        return sum(compare(row.memory, bits[row.key], unit=MILLION).status == "equal" for row in rows)

    weights = {row.key: totals(row, TABLE_1).memory_bits for row in rows}
    with_bias, everything = {}, {}
    for row in rows:
        first = _counted(str(row.model), "mac", row.ratios).layers[0]
        with_bias[row.key] = weights[row.key] + 32 * first.output_shape[0]
        everything[row.key] = totals(row, TABLE_1, "mac", **dict(row.counting)).memory_bits
    counts = {
        "weights": agree(weights),
        "weights and a bias of the first convolution": agree(with_bias),
        "all parameters": agree(everything),
    }
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    fits = [name for name, count in counts.items() if count == len(rows)]
    return Finding(
        "table-1/memory",
        1,
        "convention" if fits == ["weights"] else "ambiguous",
        f"Memory is in bits. Of its {len(rows)} printed figures these are met by: {listed}.",
        {"agree": counts, "rows": len(rows)},
    )


def _full_precision(table: Table) -> Finding:
    """The FLOPs of the full-precision row by the table's own counter and by multiply-adds alone."""
    row = table.full_precision
    readings = {
        "by the table's counter": totals(row, table).flops,
        "multiply-adds alone": totals(row, table).macs,
    }
    status = {name: compare(row.flops, value, unit=MILLION).status for name, value in readings.items()}
    listed = "; ".join(f"{rounded(Fraction(readings[name]) / MILLION, 2)} M {name}: {status[name]}" for name in status)
    if "equal" in status.values():
        verdict = "consistent"
    else:
        verdict = "convention" if "truncated" in status.values() else "misprint"
    return Finding(
        f"{row.key}/flops",
        table.number,
        verdict,
        f"Full precision is printed {row.flops} M: {listed}.",
        {"row": row.key, "readings": readings, "status": status},
    )


def _bases() -> list[Finding]:
    """The rows of ABC-Net, whose FLOPs depend on the numbers of bases."""
    found = []
    for row in (row for row in TABLE_2.rows if "weight_bases" in row.counting):
        printed = (row.counting["weight_bases"], row.counting["activation_bases"])
        ours = totals(row, TABLE_2).flops
        fits = [
            (weights, activations)
            for weights, activations in itertools.product(range(1, _MOST_BASES + 1), repeat=2)
            if compare(
                row.flops,
                totals(row, TABLE_2, weight_bases=weights, activation_bases=activations).flops,
                unit=MILLION,
            ).status
            == "equal"
        ]
        bases = f"{{{printed[0]}/{printed[1]}}}"
        listed = ", ".join(f"{{{w}/{a}}}" for w, a in fits) or "no numbers"
        shown = rounded(Fraction(ours) / MILLION, 2)
        if printed in fits:
            verdict, statement = "consistent", f"{row.label}: {bases} bases give {shown} M, printed {row.flops} M."
        else:
            verdict = "mislabelled" if fits else "misprint"
            statement = (
                f"{row.label} is printed with {bases} bases and {row.flops} M FLOPs; {bases} give {shown} M, and of "
                f"all numbers up to {_MOST_BASES} {listed} give {row.flops} M."
            )
        evidence = {
            "row": row.key,
            "printed_bases": list(printed),
            "flops": ours,
            "fits": [list(pair) for pair in fits],
        }
        found.append(Finding(f"{row.key}/flops", 2, verdict, statement, evidence))
    return found


def _pcnn() -> Finding:
    """PCNN is an earlier network, of which the table says no more than FLOPs and accuracy."""
    row = TABLE_2.row("pcnn")
    readings = pcnn_readings()
    status = {name: compare(row.flops, value, unit=MILLION).status for name, value in readings.items()}
    listed = "; ".join(f"{rounded(Fraction(v) / MILLION, 2)} M {name}: {status[name]}" for name, v in readings.items())
    return Finding(
        "pcnn/flops",
        2,
        "convention" if "equal" in status.values() else "misprint",
        f"PCNN is printed {row.flops} M. Read as our ResNet-18 with down-sampling in full precision: {listed}. The "
        "reading is ours.",
        {"row": row.key, "readings": readings, "status": status},
    )


def _auto_a_order() -> Finding:
    """In which order Res18-Auto-A's stage widths stand: the published code, the FLOPs and the text."""
    from bitnas.models import make_config, widths

    row, uniform = TABLE_2.row("res18-auto-a"), TABLE_2.row(AUTO_A_NARROWER_THAN)
    code = make_config(str(row.model)).ratios
    wide = widths(make_config(str(uniform.model), ratios=uniform.ratios))[:4]
    orders: list[dict[str, Any]] = []
    for stages in sorted(set(itertools.permutations(code[:4])), reverse=True):
        ratios = (*stages, *code[4:])
        flops = _counted("resnet18", TABLE_2.rule, ratios).flops
        narrow = widths(make_config("resnet18", ratios=ratios))[:4]
        narrower = tuple(index + 1 for index, (a, b) in enumerate(zip(narrow, wide, strict=True)) if a < b)
        orders.append(
            {
                "stages": list(stages),
                "flops": flops,
                "flops_fit": compare(row.flops, flops, unit=MILLION).status == "equal",
                "narrower_stages": list(narrower),
                "text_fits": narrower == AUTO_A_NARROWER_STAGES,
                "published": stages == code[:4],
            }
        )
    by_flops = [order["stages"] for order in orders if order["flops_fit"]]
    by_text = [order["stages"] for order in orders if order["text_fits"]]
    published = next(order for order in orders if order["published"])
    clear = published["flops_fit"] and published["text_fits"] and len(by_flops) == 1
    return Finding(
        "res18-auto-a/order",
        2,
        "consistent" if clear else "ambiguous",
        f"The published code has stage ratios {_plain(published['stages'])}. {row.flops} M FLOPs also fit "
        f"{' and '.join(_plain(s) for s in by_flops if s != published['stages']) or 'no other order'}. The text calls "
        f"stages {', '.join(map(str, AUTO_A_NARROWER_STAGES))} narrower than {uniform.label}: so they are in "
        f"{' and '.join(map(_plain, by_text)) or 'no order'}; in the published code stages "
        f"{', '.join(map(str, published['narrower_stages']))} are.",
        {"orders": orders, "text": list(AUTO_A_NARROWER_STAGES)},
    )


def _plain(stages: Iterable[float]) -> str:
    return "[" + ", ".join(f"{ratio:g}" for ratio in stages) + "]"


def _claim(table: Table) -> Finding:
    """What the printed figures say of the paper's claim: a searched network against uniform widths of its FLOPs.

    Between two printed uniform networks the accuracy is taken as linear in the logarithm of FLOPs; outside them it is
    that of the nearest one.
    """
    uniform = sorted((row_flops(row, table), float(row.top1), row.label) for row in table.rows if row.kind == "uniform")
    margins, beaten = {}, {}
    for row in (row for row in table.rows if row.kind == "searched"):
        flops, top1 = row_flops(row, table), float(row.top1)
        margins[row.label] = top1 - _interpolated([(cost, accuracy) for cost, accuracy, _ in uniform], flops)
        beaten[row.label] = [label for cost, accuracy, label in uniform if cost >= flops and accuracy <= top1]
    listed = "; ".join(
        f"{name} {margin:+.2f} points, and it beats {', '.join(beaten[name]) or 'none'} outright"
        for name, margin in margins.items()
    )
    return Finding(
        f"table-{table.number}/claim",
        table.number,
        "consistent" if all(margin > 0 for margin in margins.values()) else "ambiguous",
        f"By the printed accuracies, against uniform widths of the same FLOPs (interpolated): {listed}.",
        {"margins": margins, "beaten": beaten},
    )


def _interpolated(points: list[tuple[float, float]], flops: float) -> float:
    """Accuracy at a cost, from points sorted by cost."""
    for (low, a), (high, b) in itertools.pairwise(points):
        if low <= flops <= high:
            return a + (b - a) * math.log(flops / low) / math.log(high / low)
    return points[0][1] if flops < points[0][0] else points[-1][1]

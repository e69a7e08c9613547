"""`bitnas reproduce nasbnn --ranking | --ablation | --against`: the studies of what the paper claims, on a data set."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Options beside data and workers that each study takes.
_OPTIONS = {"ranking": ("epochs", "repeats"), "ablation": ("seeds",), "against": ("epochs", "seeds")}


def run_studies(
    out: Path, as_json: bool, *, ranking: bool = False, ablation: bool = False, against: bool = False, **options: Any
) -> None:
    """Run the studies that are asked for in the folder `out`, print what they say, and write its report.

    Args:
        out: folder, made if missing; a study that was stopped there goes on.
        as_json: print the results as JSON: one object, or several by name.
        ranking, ablation, against: which.
        options: data, epochs, repeats, seeds, workers, of those that take them. ValueError for one that none takes.
    """
    from .output import console, interruptible, print_json, table
    from .progress import ProgressView

    chosen = [name for name, wanted in (("ranking", ranking), ("ablation", ablation), ("against", against)) if wanted]
    taken = {"data", "workers", *(option for name in chosen for option in _OPTIONS[name])}
    for option in options:
        if option not in taken:
            users = ", ".join(f"--{name}" for name, own in _OPTIONS.items() if option in own)
            raise ValueError(f"--{option} says nothing about --{' and --'.join(chosen)}; it is an option of {users}")
    results: dict[str, dict[str, Any]] = {}
    again = shlex.join(["bitnas", *sys.argv[1:]])
    with interruptible(f"finished trainings are kept. To go on: {again}"), ProgressView() as view:
        for name in chosen:
            own = {key: value for key, value in options.items() if key in ("data", "workers", *_OPTIONS[name])}
            results[name] = _study(name)(out, **own, on_progress=view)
    from ..report import build

    build(out)
    if as_json:
        print_json(results[chosen[0]] if len(chosen) == 1 else results)
        return
    screen = console()
    for name, result in results.items():
        for title, columns, rows in _TABLES[name](result):
            screen.print(table(columns, rows, title=title))
        for verdict in result["verdicts"]:
            screen.print(verdict, markup=False)
        screen.print(f"\nwrote {out / f'{name}.json'}", markup=False)
    screen.print(f"report: {out / 'report.html'}", markup=False)


def _study(name: str) -> Any:
    if name == "ranking":
        from ..methods.nasbnn.ranking import ranking

        return ranking
    if name == "ablation":
        from ..methods.nasbnn.ablation import ablation

        return ablation
    from ..methods.nasbnn.against import against

    return against


Table = tuple[str, Sequence[str], list[list[str]]]


def _ranking(result: Mapping[str, Any]) -> list[Table]:
    from ..report import numbers

    rows = [
        [numbers.count(row["ops"]), numbers.percent(row["inherited"]),
         f"{numbers.percent(row['alone'])} (sd {100 * row['alone_sd']:.1f})"]
        for row in result["subnets"]
    ]  # fmt: skip
    taus = [
        [
            name.replace("_", " "),
            f"{one['mean']:+.2f}",
            f"{one['low']:+.2f} to {one['high']:+.2f}" if "low" in one else f"p {one['p']:.2g} (permutations)",
        ]
        for name, one in result["correlations"].items()
        if one
    ]
    return [
        (f"{len(rows)} subnets, {result['images']} unseen images", ["OPs", "inherited", "trained alone"], rows),
        ("Kendall's tau", ["ranks", "tau", "95 % interval"], taus),
    ]


def _ablation(result: Mapping[str, Any]) -> list[Table]:
    from ..report import numbers

    groups = ("smallest", "random", "biggest", "mean")
    rows = [
        [one["name"], *(f"{numbers.percent(one['accuracy'][g]['mean'])} (sd {100 * one['accuracy'][g]['sd']:.1f})"
                        for g in groups)]
        for one in result["variants"]
    ]  # fmt: skip
    title = f"inherited accuracy, mean of {numbers.plural(len(result['seeds']), 'seed')}"
    return [(title, ["trained with", *groups], rows)]


def _against(result: Mapping[str, Any]) -> list[Table]:
    from ..report import numbers

    rows = [[name, *map(numbers.percent, values)] for name, values in result["areas"].items()]
    columns = ["front", *(f"seed {seed['seed']}" for seed in result["seeds"])]
    return [("area under what each front offers", columns, rows)]


_TABLES = {"ranking": _ranking, "ablation": _ablation, "against": _against}

"""What bench_conv2d.py and bench_gemm.py make of rows: tables, means, where binary loses, goals, a file, pictures."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cpu_goals import Goal, Row, goal_cells, judge
from cpu_peaks import bound_gops
from cpu_runs import Collected, slug
from cuda_goals import table

from bitnas.cost.bench import summary
from bitnas.files import write_bytes_atomic


def with_bound(rows: Sequence[Row], peaks: Mapping[str, Any]) -> list[Row]:
    """Rows with ``"bound_fraction"``, ours of what the main loop of its instruction set does at most; None where that
    is unknown."""
    found = []
    for row in rows:
        bound = bound_gops(peaks, row["isa"], row["threads"])
        found.append({**row, "bound_fraction": row["gops"]["bitnas"] / bound if bound else None})
    return found


def groups_of(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    """Rows with equal values of the keys, in the order that these came in."""

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row[name] for name in keys)

    order = {value: place for place, value in reversed(list(enumerate(map(key, rows))))}
    ordered = sorted(rows, key=lambda row: order[key(row)])
    return [(value, list(group)) for value, group in groupby(ordered, key)]


def rows_table(rows: Sequence[Row], peers: Sequence[str], what: str) -> str:
    """Microseconds and ratios of each row, those with cold caches in brackets. Noisy is one whose own median is."""
    columns = [what, "kernel", "us", "(cold)", "GOP/s", "of bound", *(f"{peer}, us" for peer in peers), ""]
    return table(columns, [_cells(row, peers) for row in rows])


def _cells(row: Row, peers: Sequence[str]) -> list[str]:
    ms, cold = row["ms"], row.get("cold_ms", {})
    slower = [peer for peer in peers if min(_ratio(ms, peer), _ratio(cold, peer)) < 1]
    notes = [f"SLOWER than {', '.join(slower)}"] if slower else []
    notes += ["noisy"] if "bitnas" in row["noisy"] else []
    fraction = row.get("bound_fraction")
    return [
        row["name"],
        row["kernel"],
        f"{1e3 * ms['bitnas']:.1f}",
        f"({1e3 * cold['bitnas']:.1f})" if "bitnas" in cold else "-",
        f"{row['gops']['bitnas']:.0f}",
        f"{100 * fraction:.0f} %" if fraction else "-",
        *(f"{1e3 * ms[peer]:.0f}  {_times(ms, peer)} ({_times(cold, peer)})" if peer in ms else "-" for peer in peers),
        "; ".join(notes),
    ]


def _ratio(times: Mapping[str, float], peer: str) -> float:
    return times[peer] / times["bitnas"] if peer in times and "bitnas" in times else float("inf")


def _times(times: Mapping[str, float], peer: str) -> str:
    return f"{_ratio(times, peer):.1f}x" if peer in times and "bitnas" in times else "-"


def means_of(rows: Sequence[Row], peers: Sequence[str], keys: Sequence[str]) -> list[dict[str, Any]]:
    """Per group of rows ``{**keys, "warm": {peer: geometric mean}, "cold": {...}}``."""
    means = []
    for values, group in groups_of(rows, keys):
        found = summary(group, peers)
        warm, cold = found["geomean_ratio"], found["geomean_cold_ratio"]
        means.append({**dict(zip(keys, values, strict=True)), "warm": warm, "cold": cold})
    return means


def means_table(means: Sequence[Mapping[str, Any]], peers: Sequence[str], keys: Sequence[str]) -> str:
    cells = []
    for mean in means:
        pairs = [(mean["warm"].get(peer), mean["cold"].get(peer)) for peer in peers]
        ratios = [" ".join([_mean(warm), f"({_mean(cold)})"]) if warm else "-" for warm, cold in pairs]
        cells.append([*(str(mean[key]) for key in keys), *ratios])
    return table([*keys, *peers], cells)


def _mean(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "-"


def losses_text(rows: Sequence[Row], peers: Sequence[str], keys: Sequence[str]) -> str:
    """Where binary loses, one line each."""
    lines = []
    for values, group in groups_of(rows, keys):
        where = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        for loss in summary(group, peers)["losses"]:
            caches = "cold" if loss["cold"] else "warm"
            lines.append(f"  {where}: {loss['name']} to {loss['to']}, {loss['ratio']:.2f}x with {caches} caches")
    return "\n".join(["binary loses:", *lines]) if lines else "binary loses nowhere"


def dumped(result: Mapping[str, Any]) -> str:
    """JSON with one row to a line and five digits to a number: a few hundred rows stay readable, and small."""
    rest = {key: value for key, value in result.items() if key != "rows"}
    rows = ",\n".join(f"  {json.dumps(_rounded(row), allow_nan=False)}" for row in result["rows"])
    return json.dumps(_rounded(rest), indent=1, allow_nan=False)[:-2] + f',\n "rows": [\n{rows}\n ]\n}}\n'


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def publish(
    bench: str,
    collected: Collected,
    options: argparse.Namespace,
    *,
    facts: Mapping[str, Any],
    peaks: Mapping[str, Any],
    goals: Sequence[Goal],
    peers: Sequence[str],
    keys: Sequence[str],
    limits: Mapping[str, Mapping[str, str]],
) -> int:
    """Prints what the rows say together, writes them and draws them. Returns the exit status."""
    rows, judged = collected.rows, judge(goals, collected.rows, facts)
    means = means_of(rows, peers, keys)
    print("\ngeometric means of peer time / bitnas time, with warm and (cold) caches")
    print(means_table(means, peers, keys))
    print(f"\n{losses_text(rows, peers, keys)}")
    for isa, peers_left_out in collected.left_out.items():
        for peer, why in peers_left_out.items():
            print(f"{isa}: left out {peer}: {why}")
    print(f"\n{table(['goal', 'wanted', 'verdict', 'reading'], goal_cells(judged))}")
    if not options.quick and rows:
        options.out.mkdir(parents=True, exist_ok=True)
        name = f"{slug(facts)}-{bench}"
        result = {
            "bench": bench,
            "options": {option: getattr(options, option) for option in ("isa", "threads", "seconds")},
            "partial": collected.problem,
            "machine": facts,
            "torch_limits": limits,
            "peaks": peaks,
            "geomeans": means,
            "goals": judged,
            "left_out": collected.left_out,
            "rows": rows,
        }
        # Beside a whole file of an earlier run, not in its place.
        path = options.out / f"{name}{'.partial' if collected.problem else ''}.json"
        write_bytes_atomic(path, dumped(result).encode())
        print(f"\nwritten to {path}")
        if not (options.no_plot or collected.problem):
            from cpu_plots import draw

            for picture in draw(result, options.out / name):
                print(f"drawn in {picture}")
    if collected.problem:
        print(f"stopped: {collected.problem}", file=sys.stderr)
    return 130 if collected.problem == "interrupted" else int(collected.problem is not None)

"""Every figure of every network that the run ends with, in one table."""

from __future__ import annotations

from .. import numbers
from ..figures.supernet import TRAINED
from ..html import Section, grid, note, without_empty_columns
from ..records import Network, Run, code, setting

_COST = {"flops": "FLOPs", "ops": "OPs"}
_VERIFIED = {True: "yes", False: "no", None: "not checked"}


def results(run: Run) -> Section:
    title = "All results"
    networks = run.networks or run.front
    if not networks:
        return title, note("No front and no study has been written yet.")
    missing = "deployed" if run.derived else "retrained"
    before = "" if run.networks else note(f"The front of the search; its networks have not been {missing} yet.")
    cost = "ops" if run.derived else "flops"
    names = ("network", "accuracy", "BOPs", _COST[cost], "latency", "float32 latency", "packed size", "verified")
    head, rows = without_empty_columns(names, [_row(n, cost) for n in networks], numbers.MISSING, _VERIFIED[None])
    kinds = [TRAINED.get(n.kind, ("", n.kind))[1] if run.networks else "" for n in networks]
    batch, threads = setting(run.config, "latency_batch"), setting(run.config, "latency_threads")
    meaning = "Latency is the median time of one batch"
    meaning += f" of {numbers.plural(batch, 'image')}" if isinstance(batch, int) else ""
    meaning += f" on {numbers.plural(threads, 'thread')}." if isinstance(threads, int) else "."
    if run.networks:
        meaning += (
            " Verified means that every integer the packed network computes on the test images was equal to the "
            "trained network's."
        )
    return title, f"{before}{grid(head, rows, kinds)}{note(meaning)}"


def _row(network: Network, cost: str) -> list[tuple[str, ...]]:
    interval = network.interval
    iqr = network.get("latency_iqr_us")
    noisy = ", noisy" if network.values.get("latency_noisy") in (True, 1, 1.0) else ""
    return [
        (network.label, "", code(network)),
        (
            numbers.percent(network.get("accuracy")),
            "",
            f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}" if interval else "",
        ),
        (numbers.count(network.get("bops")), ""),
        (numbers.count(network.get(cost)), ""),
        (
            numbers.duration(network.get("latency_us")),
            "",
            f"IQR {numbers.duration(iqr)}{noisy}" if iqr is not None else "",
        ),
        (numbers.duration(network.get("float_latency_us")), ""),
        (numbers.size(network.get("packed_bytes")), ""),
        (_VERIFIED[network.verified], ""),
    ]

"""What all commands share: parsing of lists, tables, JSON on stdout, and a clean end on Ctrl-C."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..report.load import Network


def floats(name: str, text: str | None) -> tuple[float, ...] | None:
    """ "0.5,2,1" as numbers; None stays None. Raises ValueError naming the option."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be numbers with commas between them, got {text!r}") from None
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"{name} must be finite numbers, got {text!r}")
    return values


def integers(name: str, text: str | None) -> tuple[int, ...] | None:
    """ "1,32" as integers; None stays None. Raises ValueError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{name} must be integers with commas between them, got {text!r}") from None


def names(text: str | None) -> tuple[str, ...] | None:
    """ "accuracy,ops" as words; None stays None."""
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def print_json(value: Any) -> None:
    """Print `value` as JSON on stdout, and nothing else. A number that is not finite becomes null."""
    sys.stdout.write(json.dumps(_finite(value), indent=2, allow_nan=False) + "\n")
    sys.stdout.flush()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def console(*, stderr: bool = False) -> Console:
    """A terminal to print to. Tables keep their width in a pipe, where nobody can widen the window."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False, soft_wrap=True)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, soft_wrap=True, width=160)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> Table:
    """A plain table, first column to the left, the others to the right. Cells are shown as they are, without markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    for index, name in enumerate(columns):
        made.add_column(Text(name), justify="left" if index == 0 else "right", no_wrap=index > 0)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def networks_table(networks: Sequence[Network]) -> Table:
    """Networks of a front or a study with the figures that were measured on them."""
    rows = []
    for index, network in enumerate(networks):
        label = str(network.values.get("label") or f"front {index + 1}")
        if not network.values.get("label"):
            label += "  " + ",".join(f"{ratio:g}" for ratio in network.values.get("ratios") or ())
        rows.append([label, *_figures(network, "bops", "flops")])
    return table(["network", "accuracy", "BOPs", "FLOPs", "latency", "packed size", "verified"], rows)


def subnets_table(networks: Sequence[Network]) -> Table:
    """The same of subnets: their OPs, and the channels of stem and blocks, a bar where the resolution is halved."""
    rows = []
    for index, network in enumerate(networks):
        label = str(network.values.get("label") or f"front {index + 1}")
        rows.append([label, *_figures(network, "bops", "ops"), _channels(network.values.get("subnet") or {})])
    return table(["network", "accuracy", "BOPs", "OPs", "latency", "packed size", "verified", "channels"], rows)


def cells_table(networks: Sequence[Network]) -> Table:
    """The same of networks of cells: the width of each group, and how many cells of each stage are kept."""
    rows = []
    for index, network in enumerate(networks):
        label = str(network.values.get("label") or f"front {index + 1}")
        own = network.values.get("architecture") or {}
        layout = [",".join(f"{number:g}" for number in own.get(name) or ()) for name in ("widths", "depths")]
        rows.append([label, *_figures(network, "bops", "flops"), *layout])
    columns = ["network", "accuracy", "BOPs", "FLOPs", "latency", "packed size", "verified", "widths", "depths"]
    return table(columns, rows)


def _channels(subnet: Mapping[str, Any]) -> str:
    words = [str(subnet.get("stem", ""))]
    for block in subnet.get("blocks", ()):
        words += ["|"] * (block.get("stride", 1) == 2) + [str(block["channels"])]
    return " ".join(words)


def _figures(network: Network, *counts: str) -> list[str]:
    """Accuracy, some counts, latency, size of the file, and whether it was verified."""
    from ..report import numbers

    accuracy = numbers.percent(network.get("accuracy"))
    if network.interval:
        accuracy += f" ({100 * network.interval[0]:.1f}–{100 * network.interval[1]:.1f})"
    latency = numbers.duration(network.get("latency_us"))
    if network.get("latency_iqr_us") is not None:
        latency += f" (IQR {numbers.duration(network.get('latency_iqr_us'))})"
    return [
        accuracy,
        *(numbers.count(network.get(name)) for name in counts),
        latency,
        numbers.size(network.get("packed_bytes")),
        {True: "yes", False: "NO", None: numbers.MISSING}[network.verified],
    ]


@contextmanager
def interruptible(hint: str) -> Iterator[None]:
    """On Ctrl-C: one line that says how to go on, and exit code 130. Of the processes of torchrun the first says it."""
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print(f"\nstopped; {hint}", file=sys.stderr)
        raise typer.Exit(130) from None

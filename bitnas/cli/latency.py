"""`bitnas latency`: the device table of a space of networks, built, checked on other networks, and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..cost.agreement import Check
    from ..methods.width.latency import LatencySpace

latency = typer.Typer(
    help="The latency of any network of a search space, from a table measured once on this device.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Model = Annotated[str, typer.Option(help="Network with a width code: vgg_small or resnet18.")]
_Data = Annotated[
    str | None, typer.Option(help="Data set whose input size, classes and preset (base width, batch) count.")
]
_Size = Annotated[str | None, typer.Option(help="C,H,W of one input. Default: the network's own.")]
_Classes = Annotated[int | None, typer.Option(help="Outputs of the classifier. Default: the network's own.")]
_Choices = Annotated[str | None, typer.Option(help="Ratios allowed for each width. [paper: 0.25,0.5,1,2,3,4]")]
_BaseWidth = Annotated[float | None, typer.Option(help="Multiplies every base width. Default: 1.")]
_Scheme = Annotated[str | None, typer.Option(help="How weights and activations become bits.")]
_Batch = Annotated[int | None, typer.Option(help="Images per call. Default: 1.")]
_Threads = Annotated[int, typer.Option(help="Threads that a network runs on.")]
_Table = Annotated[
    Path | None, typer.Option(help="File of the table. Default: $BITNAS_TABLE, or latency.sqlite in the cache folder.")
]
_Seconds = Annotated[float, typer.Option(help="Of timing for each network; a noisy one gets up to four times as much.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@latency.command()
def build(
    model: _Model = "vgg_small",
    data: _Data = None,
    input_size: _Size = None,
    num_classes: _Classes = None,
    choices: _Choices = None,
    base_width: _BaseWidth = None,
    scheme: _Scheme = None,
    batch: _Batch = None,
    threads: _Threads = 1,
    table: _Table = None,
    rounds: Annotated[int, typer.Option(help="How often every call is met, in other networks each time.")] = 3,
    seed: Annotated[int, typer.Option(help="Decides the networks that are timed.")] = 0,
    seconds: _Seconds = 0.5,
    json: _Json = False,
) -> None:
    """Time every call that a network of the space can make, inside some hundred networks of random codes.

    Run it on an idle machine. What was measured stays: the same command goes on after a stop.
    """
    from ..methods.width import latency as methods
    from .output import interruptible, print_json

    space, images = _space(model, data, input_size, num_classes, choices, base_width, scheme, batch)
    with interruptible("what was timed is in the table; the same command goes on"), _progress() as show:
        report = methods.build(
            space,
            table,
            batch=images,
            threads=threads,
            rounds=rounds,
            seed=seed,
            seconds=seconds,
            on_progress=show,
        )
    if json:
        print_json({**report.to_dict(), "space": space.to_dict(), "batch": images, "threads": threads})
        return
    typer.echo(
        f"{report.entries} calls in {report.networks} networks ({report.visited} timed now, {report.seconds:.0f} s), "
        f"{report.noisy:.1%} of the calls noisy; drift of the machine {report.drift:.1%}\ntable: {report.path}"
    )
    if report.drift > 0.05 or report.noisy > 0.2:
        typer.echo("the machine was not quiet: build again when it is idle, with --table NEW or the old one moved away")


@latency.command()
def check(
    model: _Model = "vgg_small",
    data: _Data = None,
    input_size: _Size = None,
    num_classes: _Classes = None,
    choices: _Choices = None,
    base_width: _BaseWidth = None,
    scheme: _Scheme = None,
    batch: _Batch = None,
    threads: _Threads = 1,
    table: _Table = None,
    networks: Annotated[int, typer.Option(help="Random networks to measure, none of which the build has seen.")] = 50,
    seed: Annotated[int, typer.Option(help="Decides which.")] = 0,
    seconds: Annotated[float, typer.Option(help="Of timing for each reading of a network.")] = 0.5,
    pairs: Annotated[Path | None, typer.Option(help="Write predicted and measured latencies to this CSV file.")] = None,
    json: _Json = False,
) -> None:
    """Compare the table's predictions with random networks measured whole; the result is kept in the table.

    Exit code 1 if the goal is missed: Spearman 0.98 or more and a median error of 5 % or less, on 50 networks or more.
    """
    from ..methods.width import latency as methods
    from .output import interruptible, print_json

    space, images = _space(model, data, input_size, num_classes, choices, base_width, scheme, batch)
    with interruptible("what was measured is in the table; the same command goes on"), _progress() as show:
        found = methods.check(
            space,
            table,
            networks=networks,
            batch=images,
            threads=threads,
            seed=seed,
            seconds=seconds,
            on_progress=show,
        )
    if pairs is not None:
        from ..files import write_bytes_atomic

        rows = ["predicted_us,measured_us", *(f"{p:.3f},{m:.3f}" for p, m in found.pairs)]
        write_bytes_atomic(pairs, ("\n".join(rows) + "\n").encode())
    if json:
        print_json({**found.to_dict(), "space": space.to_dict(), "batch": images, "threads": threads})
    else:
        typer.echo(_sentences(found))
    if not found.good:
        raise typer.Exit(1)


@latency.command()
def show(
    table: _Table = None,
    entries: Annotated[bool, typer.Option("--entries", help="List every call too.")] = False,
    json: _Json = False,
) -> None:
    """Say what a table holds: devices, spaces, calls, and how true it was found."""
    from ..cost.device_table import DeviceTable
    from .output import print_json

    opened = DeviceTable.open(table)
    devices = []
    for key, machine in opened.devices():
        known = list(opened.entries(key).values())
        spaces = []
        for about in opened.spaces(key):
            visits, last = opened.visits(key, about), opened.last_check(key, about)
            dates = {"first": visits[0].date, "last": visits[-1].date}
            checked = None if last is None else last.to_dict()
            spaces.append({"space": about, "networks": len(visits), **dates, "check": checked})
        described: dict[str, Any] = {"key": key, "machine": machine, "calls": len(known), "spaces": spaces}
        described["noisy"] = sum(entry.noisy for entry in known) / len(known) if known else 0.0
        if entries:
            described["entries"] = [entry.to_dict() for entry in sorted(known, key=lambda e: -e.us)]
        devices.append(described)
    if json:
        print_json({"table": str(opened.path), "devices": devices})
        return
    typer.echo(f"table: {opened.path}")
    for device in devices:
        _show(device)


def _show(device: dict[str, Any]) -> None:
    from ..cost.agreement import Check
    from .output import console, table

    key = device["key"]
    typer.echo(
        f"\n{key['cpu']}, {key['isa']} kernels of version {key['kernel_version']}, torch {key['torch']}, batch "
        f"{key['batch']}, {key['threads']} thread(s), memory={key['memory']!r}: {device['calls']} calls, "
        f"{device['noisy']:.1%} noisy"
    )
    for space in device["spaces"]:
        about = space["space"]
        choices = ",".join(f"{choice:g}" for choice in about["choices"])
        typer.echo(
            f"  {about['model']} {'x'.join(map(str, about['input_size']))}, ratios {choices}, base width "
            f"{about['base_width']:g}, {about['scheme']}: {space['networks']} networks, {space['first']} to "
            f"{space['last']}"
        )
        text = "never checked: run bitnas latency check"
        if space["check"]:
            text = _sentences(Check.from_dict(space["check"]))
        typer.echo("    " + text.replace("\n", "\n    "))
    rows = []
    for entry in device.get("entries", ()):
        does = entry["signature"]["does"]
        what = does if isinstance(does, str) else " + ".join(step["kind"] for step in does)
        sizes = [v for step in does if isinstance(step, dict) for v in [_sizes(step["arguments"])] if v]
        reads = ", ".join("x".join(map(str, r["shape"])) for r in entry["signature"].get("reads", ()))
        interval = f"{entry['low_us']:.1f}–{entry['high_us']:.1f}"
        cells = [f"{what} {' '.join(sizes)}", reads, f"{entry['latency_us']:.1f}", interval, str(entry["readings"])]
        rows.append([*cells, "noisy" if entry["noisy"] else ""])
    if rows:
        console().print(table(["call", "reads", "µs", "95 %", "readings", ""], rows))


def _sizes(arguments: dict[str, Any]) -> str:
    pairs = (("in_channels", "out_channels"), ("in_features", "out_features"))
    return " ".join(f"{arguments[a]}→{arguments[b]}" for a, b in pairs if a in arguments and b in arguments)


def _sentences(check: Check) -> str:
    from ..cost.agreement import GOAL_MEDIAN_ERROR, GOAL_NETWORKS, GOAL_SPEARMAN

    goal = (
        f"goal (Spearman {GOAL_SPEARMAN:g}, median error {GOAL_MEDIAN_ERROR:.0%}, {GOAL_NETWORKS} networks) "
        f"{'met' if check.good else 'NOT MET'}"
    )
    lines = [
        f"{check.networks} networks not seen before, {check.date}: Spearman {check.spearman:.4f}, error median "
        f"{check.median_error:.1%}, 95 % of them below {check.error_95:.1%}, worst {check.worst_error:.1%}; {goal}",
        f"bias {check.bias:+.1%} (median error without it {check.scatter_error:.1%}); measuring one network twice "
        f"differs by {check.noise:.1%}; the machine is {abs(check.reference_drift):.1%} "
        f"{'slower' if check.reference_drift > 0 else 'faster'} than in the build",
    ]
    if not check.good:
        lines.append(f"WARNING: {_why(check)}")
    return "\n".join(lines)


def _why(check: Check) -> str:
    from ..cost.agreement import GOAL_MEDIAN_ERROR, GOAL_NETWORKS, GOAL_SPEARMAN

    if check.spearman >= GOAL_SPEARMAN and check.median_error <= GOAL_MEDIAN_ERROR:
        return f"{check.networks} networks are too few to trust it; check with --networks {GOAL_NETWORKS}"
    if check.noise > GOAL_MEDIAN_ERROR / 2:
        return "the machine is too busy to tell; check again when it is idle"
    if abs(check.reference_drift) > GOAL_MEDIAN_ERROR / 2:
        return "the machine does not run as it did in the build; build again, into a new file"
    return "do not trust this table; build it again on an idle machine, with more --rounds and --seconds"


def _space(
    model: str,
    data: str | None,
    input_size: str | None,
    num_classes: int | None,
    choices: str | None,
    base_width: float | None,
    scheme: str | None,
    batch: int | None,
) -> tuple[LatencySpace, int]:
    """What the options say, then what the data set's preset says, then what the model says; and the batch."""
    from ..methods.width.config import PRESETS
    from ..methods.width.latency import LatencySpace
    from ..models import make_config
    from .output import floats, integers

    preset: dict[str, Any] = {}
    size, classes = integers("--input-size", input_size), num_classes
    if data is not None:
        from ..data import load

        source = load(data)
        size, classes = size or source.input_size, classes or source.num_classes
        preset = PRESETS.get(Path(data).stem, {})
    default = make_config(model, num_classes=classes, input_size=size)
    given: dict[str, Any] = {
        "choices": floats("--choices", choices) or preset.get("choices"),
        "base_width": preset.get("base_width") if base_width is None else base_width,
        "scheme": scheme,
    }
    space = LatencySpace(
        model=model,
        num_classes=default.num_classes,
        input_size=default.input_size,
        **{name: value for name, value in given.items() if value is not None},
    )
    return space, (batch if batch is not None else preset.get("latency_batch", 1))


@contextmanager
def _progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar with the time that is left where there is a terminal, and ten lines for each part where there is none."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from .output import console

    screen = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    tasks: dict[str, Any] = {}
    told: dict[str, int] = {}
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:

        def show(event: dict[str, Any]) -> None:
            name, done, total = event["event"], event["done"], event["total"]
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, completed=done)
            bars.update(tasks[name], completed=done, total=total)
            tenth = 10 * done // total if total else 10
            if not screen.is_terminal and told.get(name, -1) != tenth:
                told[name] = tenth
                screen.print(f"{name}: {done} of {total}", markup=False)

        yield show

"""`bitnas latency`: the device table of a space of networks, built, checked on other networks, and shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..cost.agreement import Check
    from ..cost.table_space import TableSpace
    from ..methods.nasbnn.description import Description

latency = typer.Typer(
    help="The latency of any network of a search space, from a table measured once on this device.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

# Options that not every method has, by the name they have here.
_METHODS = {
    "model": ("width",),
    "choices": ("width",),
    "base_width": ("width",),
    "scheme": ("width",),
    "space": ("nasbnn", "bars"),
}

_Method = Annotated[
    str,
    typer.Option(
        help="width: widths of a network (Shen et al. 2019). nasbnn: subnets of a space (Lin et al. 2024). bars: cells "
        "and layouts of a space (Zhao et al. 2020). Options that not all have name theirs first."
    ),
]
_Space = Annotated[
    str | None,
    typer.Option(help="nasbnn, bars: imagenet, cifar, small, or a JSON file. Default: that of the data set's preset."),
]
_Model = Annotated[
    str | None, typer.Option(help="width: network with a width code, vgg_small or resnet18. [default: vgg_small]")
]
_Data = Annotated[
    str | None, typer.Option(help="Data set whose input size, classes and preset (base width, batch) count.")
]
_Size = Annotated[str | None, typer.Option(help="C,H,W of one input. Default: the network's or the space's own.")]
_Classes = Annotated[
    int | None, typer.Option(help="Outputs of the classifier. Default: the network's or the space's own.")
]
_Choices = Annotated[str | None, typer.Option(help="width: ratios allowed for each width. [paper: 0.25,0.5,1,2,3,4]")]
_BaseWidth = Annotated[float | None, typer.Option(help="width: multiplies every base width. Default: 1.")]
_Scheme = Annotated[str | None, typer.Option(help="width: how weights and activations become bits.")]
_Batch = Annotated[int | None, typer.Option(help="Images per call. Default: 1.")]
_Threads = Annotated[int, typer.Option(help="Threads that a network runs on.")]
_Table = Annotated[
    Path | None, typer.Option(help="File of the table. Default: $BITNAS_TABLE, or latency.sqlite in the cache folder.")
]
_Seconds = Annotated[float, typer.Option(help="Of timing for each network; a noisy one gets up to four times as much.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@latency.command()
def build(
    method: _Method = "width",
    model: _Model = None,
    space: _Space = None,
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
    """Time every call that a network of the space can make, inside some hundred random networks.

    Run it on an idle machine. What was measured stays: the same command goes on after a stop.
    """
    from ..cost import table_space
    from .output import interruptible, print_json

    chosen, images = _chosen(
        method,
        {"model": model, "space": space, "choices": choices, "base_width": base_width, "scheme": scheme},
        data,
        input_size,
        num_classes,
        batch,
    )
    with interruptible("what was timed is in the table; the same command goes on"), _progress() as show:
        report = table_space.build(
            chosen,
            table,
            batch=images,
            threads=threads,
            rounds=rounds,
            seed=seed,
            seconds=seconds,
            on_progress=show,
        )
    if json:
        print_json({**report.to_dict(), "space": chosen.to_dict(), "batch": images, "threads": threads})
        return
    typer.echo(
        f"{report.entries} calls in {report.networks} networks ({report.visited} timed now, {report.seconds:.0f} s), "
        f"{report.noisy:.1%} of the calls noisy; drift of the machine {report.drift:.1%}\ntable: {report.path}"
    )
    if report.drift > 0.05 or report.noisy > 0.2:
        typer.echo("the machine was not quiet: build again when it is idle, with --table NEW or the old one moved away")


@latency.command()
def check(
    method: _Method = "width",
    model: _Model = None,
    space: _Space = None,
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
    from ..cost import table_space
    from .output import interruptible, print_json

    chosen, images = _chosen(
        method,
        {"model": model, "space": space, "choices": choices, "base_width": base_width, "scheme": scheme},
        data,
        input_size,
        num_classes,
        batch,
    )
    with interruptible("what was measured is in the table; the same command goes on"), _progress() as show:
        found = table_space.check(
            chosen,
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
        print_json({**found.to_dict(), "space": chosen.to_dict(), "batch": images, "threads": threads})
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
        typer.echo(f"  {_named(space['space'])}: {space['networks']} networks, {space['first']} to {space['last']}")
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


def _named(space: dict[str, Any]) -> str:
    """A space of a table in a line."""
    size = "x".join(map(str, space["input_size"]))
    if "layout" in space:
        operations, widths = ", ".join(space["operations"]), ",".join(f"{share:g}" for share in space["widths"])
        return (
            f"cells {space['layout']} of {operations}, {space['channels']} channels x {widths}, {space['preprocess']} "
            f"convolutions before them, {size}, {space['num_classes']} classes"
        )
    if "stages" in space:
        from ..methods.nasbnn.description import DESCRIPTIONS, Description

        own = Description.from_dict({"name": "own", **{name: v for name, v in space.items() if name != "method"}})
        same = [found.name for found in DESCRIPTIONS.values() if _choices_of(found) == _choices_of(own)]
        stages = " ".join(f"{'/'.join(map(str, stage.channels))}" for stage in own.stages)
        name = f"subnets of {same[0]}" if same else f"subnets of stages {stages}"
        return f"{name} {size}, {own.num_classes} classes"
    choices = ",".join(f"{choice:g}" for choice in space["choices"])
    return f"{space['model']} {size}, ratios {choices}, base width {space['base_width']:g}, {space['scheme']}"


def _choices_of(description: Description) -> tuple[Any, ...]:
    return description.stem, description.stem_stride, description.stages


def _sizes(arguments: dict[str, Any]) -> str:
    pairs = (("in_channels", "out_channels"), ("in_features", "out_features"))
    found = [f"{arguments[a]}→{arguments[b]}" for a, b in pairs if a in arguments and b in arguments]
    if found and "kernel_size" in arguments:
        found.append("x".join(map(str, arguments["kernel_size"])))
    if arguments.get("groups", 1) > 1:
        found.append(f"{arguments['groups']} groups")
    return " ".join(found)


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


def _chosen(
    method: str,
    options: dict[str, Any],
    data: str | None,
    input_size: str | None,
    num_classes: int | None,
    batch: int | None,
) -> tuple[TableSpace, int]:
    """The space that the options name, and the batch.

    What an option says comes first, then what the data set and its preset say, then the network or the space itself.
    Raises ValueError for an unknown method, or an option of another one.
    """
    from .output import integers

    methods = {"width": _width, "nasbnn": _nasbnn, "bars": _bars}
    if method not in methods:
        raise ValueError(f"--method: got {method!r}, wanted one of {', '.join(methods)}")
    for name, own in _METHODS.items():
        if options[name] is not None and method not in own:
            raise ValueError(
                f"--{name.replace('_', '-')}: is an option of --method {' and '.join(own)} and says nothing of "
                f"networks of --method {method}; leave it out"
            )
    size, classes = integers("--input-size", input_size), num_classes
    if data is not None:
        from ..data import load

        source = load(data)
        size, classes = size or source.input_size, classes or source.num_classes
    space, preset = methods[method](options, data, size, classes)
    return space, (batch if batch is not None else preset.get("latency_batch", 1))


def _preset(presets: dict[str, dict[str, Any]], data: str | None) -> dict[str, Any]:
    """The settings that suit a data set, whatever number of images per class is asked of it."""
    return {} if data is None else presets.get(Path(data.partition(":")[0]).stem, {})


def _width(
    options: dict[str, Any], data: str | None, size: tuple[int, ...] | None, classes: int | None
) -> tuple[TableSpace, dict[str, Any]]:
    from ..methods.width.config import PRESETS
    from ..methods.width.latency import LatencySpace
    from ..models import make_config
    from .output import floats

    preset = _preset(PRESETS, data)
    model = options["model"] or "vgg_small"
    default = make_config(model, num_classes=classes, input_size=size)
    base_width = options["base_width"]
    given: dict[str, Any] = {
        "choices": floats("--choices", options["choices"]) or preset.get("choices"),
        "base_width": preset.get("base_width") if base_width is None else base_width,
        "scheme": options["scheme"],
    }
    space = LatencySpace(
        model=model,
        num_classes=default.num_classes,
        input_size=default.input_size,
        **{name: value for name, value in given.items() if value is not None},
    )
    return space, preset


def _nasbnn(
    options: dict[str, Any], data: str | None, size: tuple[int, ...] | None, classes: int | None
) -> tuple[TableSpace, dict[str, Any]]:
    from ..methods.nasbnn.config import PRESETS
    from ..methods.nasbnn.description import DESCRIPTIONS, load
    from ..methods.nasbnn.latency import LatencySpace

    preset = _preset(PRESETS, data)
    space = load(_space_name(options, preset, DESCRIPTIONS))
    return LatencySpace(space.for_data(size or space.input_size, classes or space.num_classes)), preset


def _bars(
    options: dict[str, Any], data: str | None, size: tuple[int, ...] | None, classes: int | None
) -> tuple[TableSpace, dict[str, Any]]:
    from ..methods.bars.config import PRESETS
    from ..methods.bars.description import DESCRIPTIONS, load
    from ..methods.bars.latency import LatencySpace

    preset = _preset(PRESETS, data)
    space = load(_space_name(options, preset, DESCRIPTIONS))
    return LatencySpace(space.for_data(size or space.input_size, classes or space.num_classes)), preset


def _space_name(options: dict[str, Any], preset: dict[str, Any], known: Iterable[str]) -> str:
    name = options["space"] or preset.get("space")
    if name is None:
        raise ValueError(
            f"--space: got none, wanted one of {', '.join(known)}, or a JSON file; --data digits, say, chooses that of "
            "its preset"
        )
    return name


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

"""`bitnas data`: which data sets there are, whether one is whole, and a folder of images packed into one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..data import Source

data = typer.Typer(
    help="Data sets: list what can be named, check one for files that cannot be used, pack images into one file.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_Name = Annotated[str, typer.Argument(help="A name of `bitnas data list`, a folder of images, or a .safetensors file.")]
_Root = Annotated[Path | None, typer.Option(help="Where the files are. Default: $BITNAS_DATA, then ./data.")]
_Workers = Annotated[int | None, typer.Option(help="Threads that decode. Default: one for each core.")]
_Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
_SHOWN = 20


@data.command("list")
def list_(json: _Json = False) -> None:
    """List the data sets that have a name, and what else can be given in place of one."""
    from ..data.registry import ENTRIES, OTHER_FORMS
    from .output import print_json

    if json:
        print_json({"names": {name: entry.about for name, entry in sorted(ENTRIES.items())}, "paths": OTHER_FORMS})
        return
    for name, entry in sorted(ENTRIES.items()):
        typer.echo(f"{name:10}  {entry.about}")
    for form in OTHER_FORMS:
        typer.echo(f"{'PATH':10}  {form}")
    typer.echo("A number after a colon keeps that many training images of each class: imagenet:50")


@data.command()
def check(
    name: _Name,
    root: _Root = None,
    headers: Annotated[
        bool, typer.Option("--headers", help="Do not decode: faster, but does not notice files that are cut short.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave the bad files out from now on (writes bitnas-skip.json there).")
    ] = False,
    workers: _Workers = None,
    json: _Json = False,
) -> None:
    """Count the images of each class, their sizes and modes, and list every file that cannot be used, with the reason.

    Exit code 1 if there are such files and --skip-bad is not given, or if a class has no images.
    """
    from .output import interruptible, print_json

    with interruptible("nothing was changed"):
        result = _check(name, root, headers, skip_bad, workers)
    if json:
        print_json(result)
    else:
        _print_check(result)
    if (result["bad"] and not result.get("skip_file")) or result["empty_classes"]:
        raise typer.Exit(1)


@data.command()
def pack(
    name: _Name,
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    size: Annotated[
        int | None, typer.Option(help="Height and width of the packed squares. Default: 256 for networks that see 224.")
    ] = None,
    input_size: Annotated[
        int | None, typer.Option(help="What a network will see of them. Default: 224, or less for small images.")
    ] = None,
    per_class: Annotated[int | None, typer.Option(help="Only so many training images of each class.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the images of --per-class.")] = 0,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out files that cannot be decoded.")] = False,
    root: _Root = None,
    workers: _Workers = None,
    json: _Json = False,
) -> None:
    """Decode a folder of images once, into one file that a search can read a thousand times.

    A stopped command goes on where it was when it is given again.
    """
    from .. import data as datasets
    from ..data import packed_file
    from ..data.lazy import LazySource
    from .output import interruptible, print_json
    from .progress import ProgressView

    if out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors, got {out}")
    source = datasets.load(
        name, seed=seed, root=root, per_class=per_class, size=input_size, channels=channels, workers=workers
    )
    if not isinstance(source, LazySource):
        raise ValueError(f"{name} is in memory as it is; only folders of images are packed")
    with interruptible("what is done is kept; the same command goes on"), ProgressView() as view:
        result = packed_file.write(
            source,
            out,
            side=size,
            skip_bad=skip_bad,
            on_progress=lambda done, total: view.advance("packing images", done, total),
        )
    result = {"file": str(out), **result, "skipped_before": source.skipped}
    if json:
        print_json(result)
        return
    from ..report import numbers

    typer.echo(f"packed {result['images']:,} images into {out}, {numbers.size(result['bytes'])}")
    _print_some("left out", [str(skipped) for skipped in result["skipped"]])


def _check(name: str, root: Path | None, headers: bool, skip_bad: bool, workers: int | None) -> dict[str, Any]:
    from ..data import check as checks
    from ..data import imagenet
    from ..data.registry import load
    from .progress import ProgressView

    path = imagenet.find(root) if name == "imagenet" else Path(name) if root is None else root / name
    if not path.is_dir() or name in ("cifar10", "digits"):
        source: Source = load(name, root=root)
        return {"name": name, **checks.describe(source)}
    with ProgressView() as view:
        found = checks.check_folder(
            path,
            headers_only=headers,
            skip_bad=skip_bad,
            workers=workers,
            on_progress=lambda done, total: view.advance("checking images", done, total),
        )
    return {"name": name, **found}


def _print_check(result: dict[str, Any]) -> None:
    counts = result["classes"].values()
    extent = "" if result["test_images"] is None else f", {result['test_images']:,} of them the test part"
    typer.echo(f"images      {result['images']:,}{extent}")
    typer.echo(f"classes     {len(counts)}, of {min(counts):,} to {max(counts):,} images")
    shown = ", ".join(list(result["classes"])[:_SHOWN])
    typer.echo(f"named       {shown}{', ...' if len(counts) > _SHOWN else ''}")
    if "channels" in result:
        typer.echo(f"channels    {result['channels']}")
    for label in ("height", "width"):
        if result[label]:
            low, middle, high = result[label]
            typer.echo(f"{label:10}  {low} to {high}, median {middle}" if low < high else f"{label:10}  {low}")
    for label in ("formats", "modes"):
        if result.get(label):
            typer.echo(f"{label:10}  " + ", ".join(f"{name} {count:,}" for name, count in result[label].items()))
    if result.get("seconds"):
        typer.echo(f"speed       {result['images'] / result['seconds']:,.0f} images/s")
    if result["skipped"]:
        typer.echo(f"left out    {result['skipped']:,}, named in bitnas-skip.json")
    for note in result["notes"]:
        typer.echo(f"note        {note}")
    _print_some("ignored", result.get("ignored", []))
    _print_some("empty", result["empty_classes"])
    _print_some("bad", [f"{bad['file']}: {bad['reason']}" for bad in result["bad"]])
    if result.get("skip_file"):
        typer.echo(f"wrote {result['skip_file']}; these files are left out from now on")


def _print_some(label: str, lines: list[str]) -> None:
    if lines:
        typer.echo(f"{label:10}  {len(lines):,}")
    for line in lines[:_SHOWN]:
        typer.echo(f"  {line}")
    if len(lines) > _SHOWN:
        typer.echo(f"  and {len(lines) - _SHOWN:,} more; --json has all")

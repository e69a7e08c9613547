"""`bitnas report`: write the HTML report of a run folder, now or again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run_dir: Annotated[
        Path,
        typer.Argument(help="Folder of a search, finished or running, of `bitnas reproduce` or `bitnas compare`."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print the path as JSON.")] = False,
) -> None:
    """Write DIR/report.html: one file that needs no network."""
    from ..report import build
    from .output import print_json

    path = build(run_dir)
    if json:
        print_json({"report": str(path)})
    else:
        typer.echo(f"wrote {path}")

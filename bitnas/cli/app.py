"""Puts the commands together, and turns what they raise into one line and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from .bench import bench
from .compare import compare
from .count import count
from .data import data
from .demo import demo
from .doctor import doctor
from .latency import latency
from .report import report
from .reproduce import reproduce
from .search import resume, search
from .train import train

# What a wrong argument, a damaged file or a missing piece raises. Anything else is a fault of the program and keeps
# its traceback.
_EXPECTED = (ValueError, TypeError, ArithmeticError, OSError, ImportError, MemoryError, RuntimeError)

app = typer.Typer(
    name="bitnas",
    help="Binary neural networks on XNOR-popcount kernels, and a search for the ones that are fast on this machine.",
    epilog="BITNAS_ISA=scalar|avx2|avx512 forces the kernels. BITNAS_TRACEBACK=1 shows where an error comes from.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich alone would take longer to import than help may take
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (doctor, bench, count, train, search, resume, report, reproduce, compare, demo):
    app.command()(command)
app.add_typer(data, name="data")
app.add_typer(latency, name="latency")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bitnas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; gives the exit code."""
    try:
        app(list(arguments) if arguments is not None else None, prog_name="bitnas")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except _EXPECTED as error:
        if os.environ.get("BITNAS_TRACEBACK", "") not in ("", "0"):
            raise
        print(f"error: {_one_line(error)}", file=sys.stderr)
        return 2
    return 0


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and error.filename:
        text = f"{error.strerror}: {error.filename}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += "; free space, then run the same command again: what was finished is kept"
    return text or type(error).__name__

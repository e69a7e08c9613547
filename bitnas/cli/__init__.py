"""The command line. Each command imports what it needs when it runs, so that help is instant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line on `arguments` (default: those of this process) and exit with its code.

    0 is success; 1 a check that failed; 2 a wrong argument or an input that cannot be used, told in one line on
    stderr; 130 a command stopped by Ctrl-C.
    """
    from .app import run

    raise SystemExit(run(arguments))

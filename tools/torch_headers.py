"""Finds the torch package whose headers the extension is compiled against."""

import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HEADER = Path("include/torch/csrc/stable/library.h")


def _candidates() -> Iterator[Path]:
    if override := os.environ.get("BITNAS_TORCH_DIR"):
        yield Path(override)
    spec = importlib.util.find_spec("torch")
    if spec is not None and spec.origin:
        yield Path(spec.origin).parent
    # pip hides the target environment from an isolated build, yet its torch is the one to serve.
    for prefix in (sys.prefix, os.environ.get("VIRTUAL_ENV"), sys.base_prefix):
        if prefix:
            yield Path(sysconfig.get_path("platlib", vars={"base": prefix, "platbase": prefix})) / "torch"


def find_torch() -> Path | None:
    """The first torch package folder with stable-ABI headers (torch >= 2.11), or None."""
    return next((path for path in _candidates() if (path / HEADER).is_file()), None)

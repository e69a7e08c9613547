"""Binary networks on XNOR-popcount kernels, and a search for the ones that are fast on your machine.

Names resolve on first use, so that ``import bitnas`` costs nothing and ``bitnas --help`` does not import torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "create_model": "bitnas.models",
    "list_models": "bitnas.models",
    "load_model": "bitnas.models",
    "count": "bitnas.cost",
    "measure_latency": "bitnas.cost",
    "freeze": "bitnas.packed",
    "verify": "bitnas.packed",
    "save": "bitnas.packed",
    "load": "bitnas.packed",
}
_SUBMODULES = ("cost", "data", "methods", "models", "nn", "ops", "packed", "reference", "report", "search", "train")

__all__ = [*_PUBLIC, "ops"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(importlib.import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    if name in _SUBMODULES:
        return importlib.import_module(f"bitnas.{name}")
    raise AttributeError(f"module 'bitnas' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_SUBMODULES])

"""What a network costs: operations and memory by the rules of the papers, time by measurement.

`count` and the rules load no torch until a module is read; latency resolves on first use.
"""

import importlib
from typing import Any

from bitnas.cost.count import Count, count

# public name -> module that defines it
_LAZY = {
    "DeviceTable": "bitnas.cost.device_table",
    "Latency": "bitnas.cost.latency",
    "latency_key": "bitnas.cost.device_table",
    "measure_latency": "bitnas.cost.latency",
}

__all__ = ["Count", "count", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'bitnas.cost' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])

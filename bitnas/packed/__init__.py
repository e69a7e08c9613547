"""The frozen network: a trained module folded onto the packed kernels, checked, saved, loaded and weighed."""

from bitnas.packed.freeze import freeze
from bitnas.packed.memory import LayerMemory, NetworkMemory, measure_memory
from bitnas.packed.network import PackedNetwork
from bitnas.packed.storage import load, packed_bytes, save
from bitnas.packed.verify import Verification, verify

__all__ = [
    "LayerMemory",
    "NetworkMemory",
    "PackedNetwork",
    "Verification",
    "freeze",
    "load",
    "measure_memory",
    "packed_bytes",
    "save",
    "verify",
]

"""The frozen network: a trained module folded onto the packed kernels, checked, saved and loaded."""

from bitnas.packed.freeze import freeze
from bitnas.packed.network import PackedNetwork
from bitnas.packed.storage import load, packed_bytes, save
from bitnas.packed.verify import Verification, verify

__all__ = ["PackedNetwork", "Verification", "freeze", "load", "packed_bytes", "save", "verify"]

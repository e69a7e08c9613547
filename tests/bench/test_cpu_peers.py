"""1-bit products and their peers: each computes what bitnas does, or is left out with a reason."""

import builtins
import subprocess
import sys
from pathlib import Path

import cpu_peers
import numpy as np
import pytest
import torch
from bench_gemm import gemm_of
from cpu_peers import BIT_PEERS, TORCH_PEERS, Gemm, gemm_ways

from bitnas.cost.bench import Layer

BENCH = Path(cpu_peers.__file__).parent
SMALL = Gemm(37, 21, 192)


@pytest.mark.parametrize("name", BIT_PEERS)
def test_1_bit_peers(name):
    """Every way of each, on new operands: gemm_ways compared them before it returned, and the same again here."""
    pytest.importorskip(name)
    with torch.inference_mode():
        ways, kernel, left_out = gemm_ways(SMALL, ())
        assert kernel in torch.ops.bitnas.cpu_kernels().split(",")
        assert name not in left_out
        dots = ways["bitnas"].make()()
        found = [way for key, way in ways.items() if key.partition("/")[0] == name]
        assert found
        for way in found:
            assert way.most_threads == 1
            assert way.reads == (37 + 21) * 192 // 8
            distances = np.asarray(way.make()()).astype(np.int64)
            assert torch.equal(192 - 2 * torch.from_numpy(distances), dots.long())


def test_torch_peers():
    with torch.inference_mode():
        ways, _, _ = gemm_ways(SMALL, TORCH_PEERS)
        dots = ways["bitnas"].make()().float()
        for name in ("float32/eager", "float32/onednn", "bfloat16/eager", "int8/int_mm"):
            found = ways[name].make()().float()
            wanted = dots.bfloat16().float() if name.startswith("bfloat16") else dots
            assert torch.equal(found, wanted), name
        assert {name for name in ways if name.startswith("int8/")} >= {"int8/onednn", "int8/int_mm"}
    assert ways["bfloat16/eager"].reads == 2 * (37 + 21) * 192


def test_a_peer_that_disagrees_is_never_timed(monkeypatch):
    numkong = pytest.importorskip("numkong")
    right = numkong.hammings_packed
    monkeypatch.setattr(numkong, "hammings_packed", lambda *a, **k: np.asarray(right(*a, **k)) + np.uint32(1))
    with pytest.raises(RuntimeError, match="bitnas and numkong disagree; nothing was timed"):
        gemm_ways(SMALL, ())


def test_a_wrong_product_of_ours_is_never_timed(monkeypatch):
    monkeypatch.setattr(cpu_peers.ops, "pack", lambda x: torch.zeros(37, 3, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="bitnas and torch disagree"):
        gemm_ways(SMALL, ())


def test_what_is_left_out(monkeypatch):
    real = builtins.__import__

    def without_faiss(name, *rest):
        if name == "faiss":
            raise ImportError("no", name="faiss")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_faiss)
    monkeypatch.setattr(cpu_peers, "_NUMPY_PRODUCTS", SMALL.products - 1)
    ways, _, left_out = gemm_ways(SMALL, ())
    assert left_out["faiss"] == "faiss is not installed: pip install 'bitnas[dev]'"
    assert left_out["numpy"] == "numpy would take seconds"
    assert not any(name.startswith(("faiss", "numpy")) for name in ways)


HELD = """
import sys
sys.path.append(sys.argv[1])
import cpu_peers, numkong
def enabled():
    return {name for name, on in numkong.get_capabilities().items() if on}
before = enabled()
for isa, gone, kept in (
    ("avx512", {"sapphireamx", "graniteamx"}, {"serial", "haswell", "skylake", "icelake"}),
    ("avx2", {"skylake", "icelake", "genoa", "alder"}, {"serial", "haswell"}),
    ("scalar", {"haswell"}, {"serial"}),
):
    cpu_peers.hold_numkong_to(isa)
    assert enabled() <= before and not gone & enabled() and kept & before <= enabled(), (isa, enabled())
"""


def test_numkong_is_held_to_the_instructions():
    """In a process of its own: nothing enables them again. What a narrower set disables, a wider one did not need."""
    pytest.importorskip("numkong")
    subprocess.run([sys.executable, "-c", HELD, BENCH], check=True, timeout=60)


def test_layers_that_are_products():
    assert gemm_of(Layer("a", 64, 32, 5, 7, kernel=1, padding=0)) == Gemm(35, 32, 64)
    for layer in (Layer("b", 64, 32, 5, 7), Layer("b", 64, 32, 5, 7, kernel=1, stride=2, padding=0)):
        with pytest.raises(ValueError, match="layer 'b' is no matrix product"):
            gemm_of(layer)

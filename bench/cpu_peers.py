"""A 1-bit matrix product, what other packages have for the same, and torch's float32, bfloat16 and int8.

1-bit peers get the same packed rows as bitnas (bytes instead of words), laid out as each wants them outside of what is
timed, and every one is checked against bitnas before. They compute Hamming distances: dot = k - 2 * distance.

    numkong   hammings_packed, a matrix product with a packed right side; no threads of its own
    faiss     hammings: all distances between two sets, what IndexBinaryFlat searches with
    numpy     bitwise_count of the XOR of all pairs, some rows at a time
"""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnas import ops, reference
from bitnas.cost.bench import quantized_bits, quantized_engines
from bitnas.cost.cpu_timing import Way
from bitnas.cost.timing import Call

TORCH_PEERS = ("float32", "bfloat16", "int8")
BIT_PEERS = ("numkong", "faiss", "numpy")

# faiss reads this when it is loaded. numpy's own dispatch is left alone: it is far behind on any instruction set.
FAISS_LIMITS = {"scalar": {"FAISS_SIMD_LEVEL": "NONE"}, "avx2": {"FAISS_SIMD_LEVEL": "AVX2"}}

# Of numkong's capabilities on x86, by what they are called there.
_NUMKONG_AVX2 = ("haswell",)

# numpy takes seconds for more products than this, and memory without end for more words at a time.
_NUMPY_PRODUCTS = 1 << 31
_NUMPY_WORDS = 1 << 22


class LeftOut(Exception):
    """A peer that does not take part in a size; says why."""


def hold_numkong_to(isa: str) -> None:
    """numkong has no variable for it: its better kernels are disabled, one capability after another."""
    import numkong

    for name, enabled in numkong.get_capabilities().items():
        if not enabled or name == "serial":
            continue
        allowed = {"scalar": False, "avx2": name in _NUMKONG_AVX2, "avx512": "amx" not in name}.get(isa, True)
        if not allowed:
            numkong.disable_capability(name)


@dataclass(frozen=True)
class Gemm:
    """m x k bits by n x k bits."""

    m: int
    n: int
    k: int

    @property
    def products(self) -> int:
        return self.m * self.n * self.k

    def operands(self) -> tuple[Tensor, Tensor]:
        """Random ±1, float32."""
        generator = torch.Generator().manual_seed(0)
        x, weight = (torch.randn(rows, self.k, generator=generator) for rows in (self.m, self.n))
        return tuple(torch.where(t >= 0, 1.0, -1.0) for t in (x, weight))  # type: ignore[return-value]


def gemm_ways(gemm: Gemm, against: Collection[str]) -> tuple[dict[str, Way], str, dict[str, str]]:
    """Ours, those of torch's peers that are named and of every 1-bit peer; our kernel's name; and peers that are left
    out, with the reason.

    Raises:
        RuntimeError: two of them disagree.
    """
    x, weight = gemm.operands()
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    prepare = functools.partial(torch.ops.bitnas.prepare_weight, in_channels=gemm.k, groups=1, positions=gemm.m)
    threshold = torch.zeros(gemm.n, dtype=torch.int32)
    linear_int32, linear_bits = torch.ops.bitnas.linear_int32.default, torch.ops.bitnas.linear_bits.default

    def own_operands() -> list[Tensor]:
        own_weight = packed_weight.clone()
        return [packed.clone(), own_weight, prepare(own_weight)]

    def int32() -> Callable[[], Tensor]:
        return functools.partial(linear_int32, *own_operands(), gemm.k, False)

    def bits() -> Callable[[], Tensor]:
        return functools.partial(linear_bits, *own_operands(), threshold, None, gemm.k, False)

    dots = int32()()
    _require(gemm, "torch", torch.equal(dots.float(), x @ weight.T))  # exact: sums of ±1 below 2^24
    _require(gemm, "reference", torch.equal(bits()(), reference.threshold_bits(dots, threshold)))
    prepared = prepare(packed_weight)
    reads = packed.nbytes + prepared.nbytes
    ways = {"bitnas": Way(int32, reads), "bitnas_to_bits": Way(bits, reads)}
    for peer in against:
        dtype = getattr(torch, peer)
        ways |= _int8_ways(x, weight) if peer == "int8" else _float_ways(x.to(dtype), weight.to(dtype))
    left_out: dict[str, str] = {}
    for name, found in _bit_ways(gemm, packed.numpy(), packed_weight.numpy(), dots.numpy()).items():
        if isinstance(found, str):
            left_out[name] = found
        else:
            ways |= {f"{name}/{variant}" if variant else name: way for variant, way in found.items()}
    return ways, torch.ops.bitnas.prepared_kernel(prepared), left_out


def _require(gemm: Gemm, peer: str, equal: bool) -> None:
    if not equal:
        raise RuntimeError(f"{gemm}: bitnas and {peer} disagree; nothing was timed")


def _float_ways(x: Tensor, weight: Tensor) -> dict[str, Way]:
    """torch.mm, and oneDNN's and MKL's products with the weight prepacked."""
    peer, rows = str(x.dtype).removeprefix("torch."), x.shape[0]

    def eager() -> Call:
        return functools.partial(torch.mm, x.clone(), weight.clone().T)

    def onednn() -> Call:
        laid_out = torch.ops.mkldnn._reorder_linear_weight(weight.clone(), rows)
        return functools.partial(torch.ops.mkldnn._linear_pointwise, x.clone(), laid_out, None, "none", [], "")

    def mkl() -> Call:
        own = weight.clone()
        laid_out = torch.ops.mkl._mkl_reorder_linear_weight(own, rows)
        return functools.partial(torch.ops.mkl._mkl_linear, x.clone(), laid_out, own, None, rows)

    makers = {"eager": eager, "onednn": onednn} | ({"mkl": mkl} if x.dtype == torch.float32 else {})
    reads = x.nbytes + weight.nbytes
    return {f"{peer}/{variant}": Way(make, reads) for variant, make in makers.items()}


def _int8_ways(x: Tensor, weight: Tensor) -> dict[str, Way]:
    """Every quantized engine, on {0, 1} with the zero point 0 that a ReLU leaves; and torch's product of int8."""
    qx, qw = quantized_bits(x.clamp(min=0), weight)

    def quantized(engine: str) -> Call:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            laid_out = torch.ops.quantized.linear_prepack(qw, None)
        finally:
            torch.backends.quantized.engine = before
        return functools.partial(torch.ops.quantized.linear, qx.clone(), laid_out, 8.0, 0)

    def int_mm() -> Call:
        return functools.partial(torch._int_mm, x.to(torch.int8), weight.to(torch.int8).T)

    reads = x.numel() + weight.numel()
    ways = {f"int8/{name}": Way(functools.partial(quantized, name), reads) for name in quantized_engines()}
    return {**ways, "int8/int_mm": Way(int_mm, reads)}


# ---- 1-bit peers ------------------------------------------------------------------------------


def _bit_ways(gemm: Gemm, x: np.ndarray, weight: np.ndarray, dots: np.ndarray) -> dict[str, dict[str, Way] | str]:
    """By peer its ways, or why it is left out. On one thread only: numkong and numpy have no more, and faiss's second
    pool would spin on the cores that torch's needs."""
    makers: Mapping[str, Callable[[Gemm, np.ndarray, np.ndarray], dict[str, Callable[[], Call]]]] = {
        "numkong": _numkong,
        "faiss": _faiss,
        "numpy": _numpy,
    }
    found: dict[str, dict[str, Way] | str] = {}
    for name, make in makers.items():
        try:
            variants = make(gemm, x, weight)
        except ImportError as error:
            found[name] = f"{error.name or name} is not installed: pip install 'bitnas[dev]'"
            continue
        except LeftOut as error:
            found[name] = str(error)
            continue
        for variant in variants.values():
            _require(gemm, name, np.array_equal(gemm.k - 2 * np.asarray(variant()(), np.int64), dots))
        reads = x.nbytes + weight.nbytes
        found[name] = {variant: Way(each, reads, most_threads=1) for variant, each in variants.items()}
    return found


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    return rows.copy().view(np.uint8)


def _numkong(gemm: Gemm, x: np.ndarray, weight: np.ndarray) -> dict[str, Callable[[], Call]]:
    import numkong

    if gemm.k % 8:
        raise LeftOut("numkong wants whole bytes")

    hammings: Any = numkong.hammings_packed

    def operands() -> tuple[Any, Any]:
        return _as_bytes(x), numkong.hammings_pack(_as_bytes(weight), "uint1")

    def fresh() -> Call:
        return functools.partial(hammings, *operands())

    def into() -> Call:
        out = numkong.zeros((gemm.m, gemm.n), dtype="uint32")
        return functools.partial(hammings, *operands(), out=out)

    return {"new": fresh, "into": into}


def _faiss(gemm: Gemm, x: np.ndarray, weight: np.ndarray) -> dict[str, Callable[[], Call]]:
    import faiss

    hammings: Any = faiss.hammings  # type: ignore[attr-defined]
    faiss.omp_set_num_threads(1)  # torch.set_num_threads is for another copy of OpenMP

    def make() -> Call:
        arrays = _as_bytes(x), _as_bytes(weight), np.empty((gemm.m, gemm.n), np.int32)
        left, right, out = map(faiss.swig_ptr, arrays)  # which do not keep what they point to

        def run() -> np.ndarray:
            hammings(left, right, gemm.m, gemm.n, arrays[0].shape[1], out)
            return arrays[2]

        return run

    return {"": make}


def _numpy(gemm: Gemm, x: np.ndarray, weight: np.ndarray) -> dict[str, Callable[[], Call]]:
    if gemm.products > _NUMPY_PRODUCTS:
        raise LeftOut("numpy would take seconds")
    rows = max(1, _NUMPY_WORDS // weight.size)

    def make() -> Call:
        left, right = x.view(np.uint64).copy(), weight.view(np.uint64).copy()
        out = np.empty((gemm.m, gemm.n), np.int32)

        def run() -> np.ndarray:
            for first in range(0, gemm.m, rows):
                different = np.bitwise_count(left[first : first + rows, None] ^ right)
                different.sum(axis=-1, dtype=np.int32, out=out[first : first + rows])
            return out

        return run

    return {"": make}


def versions() -> dict[str, str | None]:
    """Of the 1-bit peers that are installed."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in ("numkong", "faiss-cpu", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found

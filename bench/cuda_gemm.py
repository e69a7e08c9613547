"""Matrix products: ours against cuBLAS bfloat16, torch's int8, and kernels that count bits on CUDA cores."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cuda_goals import table
from cuda_measure import Measure, TensorCall, forced, require, timed
from torch import Tensor

from bitnas import ops, reference
from bitnas.cost.timing import Call

_ops = torch.ops.bitnas

GEMMS = ((1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (64, 4096, 4096))

# A textbook's kernel, to compare with: 16 x 16 outputs per block, tiles of words in shared memory, XOR and popcount.
TEXTBOOK = r"""
extern "C" __global__ void xor_popcount(const unsigned long long* a, const unsigned long long* b, int* out, int m,
                                        int n, int words, int bits) {
  __shared__ unsigned long long tile_a[16][16], tile_b[16][17];
  const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
  int differing = 0;
  for (int first = 0; first < words; first += 16) {
    const int row_b = blockIdx.x * 16 + y, word = first + x;
    tile_a[y][x] = row < m && word < words ? a[(long long)row * words + word] : 0;
    tile_b[y][x] = row_b < n && word < words ? b[(long long)row_b * words + word] : 0;
    __syncthreads();
    for (int i = 0; i < 16; ++i) differing += __popcll(tile_a[y][i] ^ tile_b[x][i]);
    __syncthreads();
  }
  if (row < m && column < n) out[(long long)row * n + column] = bits - 2 * differing;
}
"""


def textbook_call(a: Tensor, b: Tensor, features: int) -> Callable[[], Tensor]:
    """The textbook's kernel on packed rows, through CuPy. Raises ImportError without CuPy."""
    import cupy

    kernel = cupy.RawKernel(TEXTBOOK, "xor_popcount")
    m, n, words = a.shape[0], b.shape[0], a.shape[1]
    out = torch.empty(m, n, dtype=torch.int32, device=a.device)
    views = [cupy.asarray(t) for t in (a, b, out)]
    sizes = [cupy.int32(size) for size in (m, n, words, features)]
    grid = ((n + 15) // 16, (m + 15) // 16)

    def run() -> Tensor:
        with cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream):
            kernel(grid, (16, 16), (*views, *sizes))
        return out

    return run


class Gemm:
    """Operands of one product on a device, and the calls on them."""

    def __init__(self, m: int, n: int, k: int, device: str = "cuda") -> None:
        self.m, self.n, self.k = m, n, k
        generator = torch.Generator(device).manual_seed(0)
        self.x = torch.randn(m, k, device=device, generator=generator).bfloat16()
        self.weight = torch.randn(n, k, device=device, generator=generator).bfloat16()
        self.scale, self.bias = torch.randn(2, n, device=device, generator=generator)
        self.threshold = torch.randint(-99, 99, (n,), device=device, generator=generator, dtype=torch.int32)
        self.packed = ops.pack(self.x)
        packed_weight = ops.pack_weight(self.weight)
        self.weights = packed_weight, _ops.prepare_weight(packed_weight, k, 1)

    def floats(self, packed: Tensor) -> Tensor:
        return _ops.linear_float(packed, *self.weights, self.scale, self.bias, self.k, False, dtype=torch.bfloat16)

    def int32(self) -> Tensor:
        return _ops.linear_int32(self.packed, *self.weights, self.k, False)

    def bits(self) -> Tensor:
        return _ops.linear_bits(self.packed, *self.weights, self.threshold, None, self.k, False)

    def binary_calls(self) -> dict[str, TensorCall]:
        """Ours, all found right: every integer against float64 torch, and what the epilogues make of it."""
        dots = reference.linear(self.x, self.weight)
        floats = reference.affine(dots, self.scale, self.bias).bfloat16()
        name = f"GEMM {self.m} x {self.n} x {self.k}"
        require(torch.equal(self.int32(), dots), f"{name} to int32")
        require(torch.equal(self.floats(self.packed), floats), f"{name} to bfloat16")
        require(torch.equal(self.bits(), reference.threshold_bits(dots, self.threshold)), f"{name} to bits")
        return {
            "bitnas_to_bfloat16": lambda: self.floats(self.packed),
            "bitnas_to_int32": self.int32,
            "bitnas_to_bits": self.bits,
            "bitnas_packing_to_bfloat16": lambda: self.floats(ops.pack(self.x)),
        }

    def peers(self) -> dict[str, Call]:
        """torch's own. bfloat16 on ordinary values: on ±1 a GPU draws less power and clocks higher."""
        int8 = [torch.where(t >= 0, 1, -1).to(torch.int8) for t in (self.x, self.weight)]
        return {
            "cublas_bfloat16": lambda: torch.mm(self.x, self.weight.T),
            "torch_int8": lambda: torch._int_mm(int8[0], int8[1].T),
        }


def popcount_calls(gemm: Gemm, left_out: dict[str, str]) -> dict[str, Call]:
    """What popcounts on CUDA cores do: our fallback kernel, and a textbook's. Says in ``left_out`` what is missing."""
    calls: dict[str, Call] = {"popc_to_int32": forced("popc", gemm.int32)}
    try:
        textbook = textbook_call(gemm.packed, gemm.weights[0], gemm.k)
        dots = textbook()
    except ImportError:
        left_out["textbook_xor_popcount"] = "cupy is not installed"
        return calls
    except Exception as error:  # whatever keeps a baseline from running is a reason to leave it out, not to stop
        left_out["textbook_xor_popcount"] = f"cupy: {type(error).__name__}: {error}"
        return calls
    require(torch.equal(dots, gemm.int32()), "the textbook kernel")
    return {**calls, "textbook_xor_popcount": textbook}


def gemm(measure: Measure, sizes: Sequence[tuple[int, int, int]] = GEMMS) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for m, n, k in sizes:
        product = Gemm(m, n, k)
        calls = {**product.binary_calls(), **product.peers(), **popcount_calls(product, left_out)}
        row = {"m": m, "n": n, "k": k, **timed(calls, measure)}
        row["pops"] = {name: 2 * m * n * k / ms / 1e12 for name, ms in row["ms"].items()}
        rows.append(row)
        print(f"\n{m} x {n} x {k}" + (f"; noisy: {', '.join(row['noisy'])}" if row["noisy"] else ""))
        print(table(["", "us", "cold us", "POPS", "times cuBLAS bfloat16"], gemm_cells(row)), flush=True)
        torch.cuda.empty_cache()
    for name, why in left_out.items():
        print(f"{name} left out: {why}")
    return {"rows": rows, "left_out": left_out}


def gemm_cells(row: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            f"{1e3 * ms:.1f}",
            f"{1e3 * row['cold_ms'][name]:.1f}",
            f"{row['pops'][name]:.3f}",
            f"{row['ms']['cublas_bfloat16'] / ms:.2f}",
        ]
        for name, ms in row["ms"].items()
    ]

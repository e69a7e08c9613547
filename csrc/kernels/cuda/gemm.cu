// The plain 1-bit GEMM: XOR and popcount on tiles in shared memory. Right on every
// architecture; the tensor-core kernels are measured against it.
#include "kernels/cuda/launch.h"

namespace bitnas::cuda {
namespace {

constexpr int kTile = 16;

__global__ void gemm_kernel(GemmArgs args) {
  __shared__ Word a[kTile][kTile + 1];
  __shared__ Word w[kTile][kTile + 1];
  const int64_t n = blockIdx.x * int64_t{kTile} + threadIdx.x;
  const int64_t tiles = (args.m + kTile - 1) / kTile;
  for (int64_t tile = blockIdx.y; tile < tiles; tile += gridDim.y) {
    const int64_t m = tile * kTile + threadIdx.y;
    const int64_t w_row = blockIdx.x * int64_t{kTile} + threadIdx.y;
    int differing = 0;
    int ones = 0;
    for (int64_t first = 0; first < args.words; first += kTile) {
      const int64_t i = first + threadIdx.x;
      a[threadIdx.y][threadIdx.x] = m < args.m && i < args.words ? args.a[m * args.words + i] : 0;
      w[threadIdx.y][threadIdx.x] = w_row < args.n && i < args.words ? args.w[w_row * args.words + i] : 0;
      __syncthreads();
      for (int k = 0; k < kTile; ++k) {
        const Word weight = w[threadIdx.x][k];
        differing += __popcll(a[threadIdx.y][k] ^ weight);
        ones += __popcll(weight);
      }
      __syncthreads();
    }
    if (m < args.m && n < args.n) {
      const int dot =
          args.encoding == Encoding::kSign ? static_cast<int>(args.features) - 2 * differing : ones - differing;
      args.out[m * args.n + n] = dot;
    }
  }
}

}  // namespace

cudaError_t gemm(const GemmArgs& args, cudaStream_t stream) {
  if (args.m == 0 || args.n == 0) return cudaSuccess;
  const int64_t tiles = (args.m + kTile - 1) / kTile;
  const dim3 grid(static_cast<unsigned>((args.n + kTile - 1) / kTile),
                  static_cast<unsigned>(tiles < 65535 ? tiles : 65535));
  gemm_kernel<<<grid, dim3(kTile, kTile), 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace bitnas::cuda

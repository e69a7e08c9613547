// The same sum on tensor cores for bytes, for chips without binary ones. Bits are
// expanded in registers: (w >> i) & 0x01010101 for i = 0 .. 7 are eight fragments of
// {0, 1} bytes whose products add up to popcount(a AND w), because the order of bits
// along a row is free as long as both operands agree on it.
#include "kernels/cuda/conv2d_mma.cuh"

namespace bitnas::cuda {
namespace {

struct ExpandedBytes {
  static constexpr bool kRunsHere = BITNAS_ARCH >= 800;

  template <int rows, int cols>
  BITNAS_DEVICE static void multiply(int (&acc)[rows * cols * 4], const uint32_t (&a)[rows][4],
                                     const uint32_t (&b)[cols][2]) {
#pragma unroll
    for (int bit = 0; bit < 8; ++bit) {
      const auto bytes = [bit](uint32_t word) { return word >> bit & 0x01010101u; };
      uint32_t wide[rows][4];
#pragma unroll
      for (int i = 0; i < rows; ++i)
#pragma unroll
        for (int k = 0; k < 4; ++k) wide[i][k] = bytes(a[i][k]);
#pragma unroll
      for (int j = 0; j < cols; ++j) {
        const uint32_t low = bytes(b[j][0]), high = bytes(b[j][1]);
#pragma unroll
        for (int i = 0; i < rows; ++i)
          ptx::mma_u8(reinterpret_cast<int (&)[4]>(acc[(i * cols + j) * 4]), wide[i], low, high);
      }
    }
  }
};

}  // namespace

cudaError_t conv2d_mma_int8(const ConvArgs& args, const Kernel& kernel, cudaStream_t stream) {
  if (kernel.tile_m == 128 && kernel.tile_n == 64)
    return launch_kind<TileShape<128, 64, 2, 2, 4, 2>, ExpandedBytes>(args, stream);
  if (kernel.tile_m == 64 && kernel.tile_n == 64)
    return launch_kind<TileShape<64, 64, 2, 2, 4, 4>, ExpandedBytes>(args, stream);
  if (kernel.tile_m == 16 && kernel.tile_n == 64)
    return launch_kind<TileShape<16, 64, 1, 2, 4, 8>, ExpandedBytes>(args, stream);
  return cudaErrorInvalidValue;
}

}  // namespace bitnas::cuda

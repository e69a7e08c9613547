// AND + popcount on binary tensor cores, native from sm_80 to sm_90. Newer chips
// emulate it in dozens of instructions: the kernels are empty there.
#include "kernels/cuda/conv2d_mma.cuh"

namespace bitnas::cuda {
namespace {

struct AndPopcount {
  static constexpr bool kRunsHere = BITNAS_ARCH >= 800 && BITNAS_ARCH < 1000;

  template <int rows, int cols>
  BITNAS_DEVICE static void multiply(int (&acc)[rows * cols * 4], const uint32_t (&a)[rows][4],
                                     const uint32_t (&b)[cols][2]) {
#pragma unroll
    for (int i = 0; i < rows; ++i)
#pragma unroll
      for (int j = 0; j < cols; ++j)
        ptx::mma_and_popc(reinterpret_cast<int (&)[4]>(acc[(i * cols + j) * 4]), a[i], b[j][0], b[j][1]);
  }
};

}  // namespace

cudaError_t conv2d_mma_b1(const ConvArgs& args, const Kernel& kernel, cudaStream_t stream) {
  if (kernel.tile_m == 128 && kernel.tile_n == 128)
    return launch_kind<TileShape<128, 128, 2, 2, 3, 2>, AndPopcount>(args, stream);
  if (kernel.tile_m == 128 && kernel.tile_n == 64)
    return launch_kind<TileShape<128, 64, 2, 2, 4, 3>, AndPopcount>(args, stream);
  if (kernel.tile_m == 64 && kernel.tile_n == 64)
    return launch_kind<TileShape<64, 64, 2, 2, 4, 4>, AndPopcount>(args, stream);
  if (kernel.tile_m == 16 && kernel.tile_n == 64)
    return launch_kind<TileShape<16, 64, 1, 2, 4, 8>, AndPopcount>(args, stream);
  return cudaErrorInvalidValue;
}

}  // namespace bitnas::cuda

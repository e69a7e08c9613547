// The plain convolution: popcount on CUDA cores, a warp per 32 output channels of one
// position. Right on every GPU and for every shape; what older chips than Ampere run,
// and what the tensor-core kernels are measured against.
#include "kernels/cuda/epilogue.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kWarps = 8;

__global__ void __launch_bounds__(kWarps* kWarp, 3)
    conv2d_popc_kernel(const __grid_constant__ ConvArgs args, int64_t blocks_n, int64_t warps) {
  const int64_t index = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (index >= warps) return;  // whole warps leave together
  const int64_t n_first = index % blocks_n * kWarp;
  const int64_t m = index / blocks_n % args.m;
  const int group = static_cast<int>(index / blocks_n / args.m);
  const int64_t n = n_first + threadIdx.x % kWarp;
  const bool valid = n < args.n;

  const Window window = window_of(args, m);
  const TapInterval ys = valid_taps(window.y, args.kernel_h, args.dilation_h, args.height);
  const TapInterval xs = valid_taps(window.x, args.kernel_w, args.dilation_w, args.width);
  const int channel = static_cast<int>(valid ? group * int64_t{args.n} + n : 0);
  const Word* x = args.x + int64_t{group} * args.group_words;
  const Word* w = args.w + int64_t{channel} * args.row_words;
  int both = 0, ones = 0;
  for (int64_t ky = ys.begin; ky < ys.end; ++ky) {
    for (int64_t kx = xs.begin; kx < xs.end; ++kx) {
      const int64_t row = window.y + ky * args.dilation_h, column = window.x + kx * args.dilation_w;
      const Word* a = x + (window.first_pixel + row * args.width + column) * args.pixel_words;
      const Word* b = w + (ky * args.kernel_w + kx) * args.group_words;
      for (int i = 0; i < args.group_words; ++i) {
        both += __popcll(a[i] & b[i]);
        ones += __popcll(a[i]);
      }
    }
  }
  int dot = args.alpha * both - args.beta * ones;
  if (args.sign)
    dot += offset_of(args, static_cast<int>(ys.begin), static_cast<int>(ys.end), static_cast<int>(xs.begin),
                     static_cast<int>(xs.end), channel);
  store_channels(args, m, group, n_first, dot);
}

}  // namespace

cudaError_t conv2d_popc(const ConvArgs& args, cudaStream_t stream) {
  const int64_t blocks_n = (covered_channels(args) + kWarp - 1) / kWarp;
  const int64_t warps = blocks_n * args.m * args.groups;
  const int64_t blocks = (warps + kWarps - 1) / kWarps;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(conv2d_popc_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kWarps * kWarp)}, stream, args, blocks_n,
                warps);
}

}  // namespace bitnas::cuda

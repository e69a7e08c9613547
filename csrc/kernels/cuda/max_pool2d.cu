// A thread per output word.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void max_pool2d_kernel(const __grid_constant__ MaxPool2dArgs args, int64_t total) {
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t at = index;
  const int64_t word = index % args.words;
  index /= args.words;
  const int64_t ox = index % args.out_width;
  index /= args.out_width;
  const int64_t oy = index % args.out_height, image = index / args.out_height;
  const int64_t y0 = oy * args.stride_h - args.padding_h, x0 = ox * args.stride_w - args.padding_w;
  const int64_t y1 = min(y0 + args.kernel_h, args.height), x1 = min(x0 + args.kernel_w, args.width);
  Word any = 0;
  for (int64_t y = max(y0, int64_t{0}); y < y1; ++y)
    for (int64_t x = max(x0, int64_t{0}); x < x1; ++x)
      any |= args.x[((image * args.height + y) * args.width + x) * args.words + word];
  args.out[at] = args.flip == nullptr ? any : any ^ args.flip[word];
}

}  // namespace

cudaError_t max_pool2d(const MaxPool2dArgs& args, int64_t images, cudaStream_t stream) {
  const int64_t total = images * args.out_height * args.out_width * args.words;
  if (total == 0) return cudaSuccess;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(max_pool2d_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, stream, args, total);
}

}  // namespace bitnas::cuda

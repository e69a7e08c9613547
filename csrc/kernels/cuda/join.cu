// A thread per output value: neighbours read neighbours, and what bounds it is memory.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void join_kernel(const __grid_constant__ JoinArgs a, int64_t total) {
  const int64_t at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= total) return;
  const int64_t i = at % a.channels, group = at / a.channels % a.groups, pixel = at / (a.channels * a.groups);
  const int64_t from = i / a.repeat, pitch = a.groups * a.own;
  float y = 0.0f;
  if (from < a.own && !a.pool) y = a.shortcut[pixel * pitch + group * a.own + from];
  if (from < a.own && a.pool) {
    const int64_t ox = pixel % a.out_width, row = pixel / a.out_width;
    const int64_t oy = row % a.out_height, image = row / a.out_height;
    const bool right = 2 * ox + 1 < a.width, below = 2 * oy + 1 < a.height;
    const float* x = a.shortcut + ((image * a.height + 2 * oy) * a.width + 2 * ox) * pitch + group * a.own + from;
    y = *x;
    if (right) y = __fadd_rn(y, x[pitch]);
    if (below) y = __fadd_rn(y, x[a.width * pitch]);
    if (right && below) y = __fadd_rn(y, x[(a.width + 1) * pitch]);
    y = __fmul_rn(y, (right ? 0.5f : 1.0f) * (below ? 0.5f : 1.0f));
  }
  if (a.nodes[group] != nullptr) y = __fadd_rn(y, a.nodes[group][pixel * a.channels + i]);
  a.out[at] = y;
}

}  // namespace

cudaError_t join(const JoinArgs& args, int64_t images, cudaStream_t stream) {
  const int64_t total = images * args.out_height * args.out_width * args.groups * args.channels;
  if (total == 0) return cudaSuccess;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  return launch(join_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, stream, args, total);
}

}  // namespace bitnas::cuda

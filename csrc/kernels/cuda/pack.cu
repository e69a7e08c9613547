// One warp makes one word: each lane compares two channels, a ballot collects the bits.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/cuda/launch.h"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

__device__ float load(const PackArgs& args, int64_t at) {
  switch (args.type) {
    case FloatType::kFloat32: return static_cast<const float*>(args.x)[at];
    case FloatType::kBFloat16: return __bfloat162float(static_cast<const __nv_bfloat16*>(args.x)[at]);
    default: return __half2float(static_cast<const __half*>(args.x)[at]);
  }
}

__device__ bool is_one(const PackArgs& args, int64_t pixel, int64_t channel) {
  if (channel >= args.channels) return false;
  const int64_t at = args.channels_last
                         ? pixel * args.channels + channel
                         : (pixel / args.plane * args.channels + channel) * args.plane + pixel % args.plane;
  const float x = load(args, at);
  if (args.thresholds == nullptr) return x >= args.threshold;
  return args.directions[channel] * x >= args.thresholds[channel];
}

__global__ void pack_kernel(PackArgs args, int64_t words, int64_t total) {
  const int64_t word = (blockIdx.x * int64_t{blockDim.x} + threadIdx.x) / kWarp;
  if (word >= total) return;  // whole warps leave together
  const int lane = threadIdx.x % kWarp;
  const int64_t pixel = word / words;
  const int64_t channel = word % words * kWordBits + lane;
  const uint32_t low = __ballot_sync(0xffffffffu, is_one(args, pixel, channel));
  const uint32_t high = __ballot_sync(0xffffffffu, is_one(args, pixel, channel + kWarp));
  if (lane == 0) args.out[word] = low | static_cast<Word>(high) << 32;
}

}  // namespace

cudaError_t pack(const PackArgs& args, int64_t pixels, cudaStream_t stream) {
  const int64_t words = (args.channels + kWordBits - 1) / kWordBits;
  const int64_t total = pixels * words;
  if (total == 0) return cudaSuccess;
  const int64_t blocks = (total * kWarp + kThreads - 1) / kThreads;
  if (blocks > 0x7fffffff) return cudaErrorInvalidConfiguration;
  pack_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(args, words, total);
  return cudaGetLastError();
}

}  // namespace bitnas::cuda

// Floats to bits, and back. Channels last: a thread makes a byte of eight neighbouring
// channels, read 16 bytes at a time. Channels first: a thread makes a word, and
// neighbouring threads read neighbouring pixels. Both write without talking to each
// other, and both read each float once.
#include <cstring>

#include "kernels/cuda/float16.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/ptx.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kByteBits = 8;
constexpr int kWordBytes = 8;

BITNAS_DEVICE float value(float x) { return x; }
BITNAS_DEVICE float value(__half x) { return __half2float(x); }
BITNAS_DEVICE float value(__nv_bfloat16 x) { return __bfloat162float(x); }

BITNAS_DEVICE bool is_one(const PackArgs& args, float x, int64_t channel) {
  if (args.thresholds == nullptr) return x >= args.threshold;
  return __fmul_rn(args.directions[channel], x) >= args.thresholds[channel];
}

template <typename T>
__global__ void pack_last_kernel(const __grid_constant__ PackArgs args, int64_t row_bytes, int64_t total, bool wide) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t pixel = index / row_bytes, channel = index % row_bytes * kByteBits;
  const int64_t count = min(int64_t{kByteBits}, args.channels - channel);  // negative in the tail
  const T* x = static_cast<const T*>(args.x) + pixel * args.channels + channel;
  T values[kByteBits];
  if (wide && count == kByteBits) {
#pragma unroll
    for (size_t i = 0; i * sizeof(uint4) < sizeof(values); ++i) {
      const uint4 chunk = reinterpret_cast<const uint4*>(x)[i];
      memcpy(reinterpret_cast<uint4*>(values) + i, &chunk, sizeof(chunk));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kByteBits; ++i)
      if (i < count) values[i] = x[i];
  }
  unsigned bits = 0;
#pragma unroll
  for (int i = 0; i < kByteBits; ++i)
    if (i < count && is_one(args, value(values[i]), channel + i)) bits |= 1u << i;
  reinterpret_cast<uint8_t*>(args.out)[index] = static_cast<uint8_t>(bits);
}

template <typename T>
__global__ void pack_first_kernel(const __grid_constant__ PackArgs args, int64_t words, int64_t total) {
  int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t position = index % args.plane;
  index /= args.plane;
  const int64_t word = index % words, image = index / words, channel = word * kWordBits;
  const int count = static_cast<int>(min(kWordBits, args.channels - channel));
  const T* x = static_cast<const T*>(args.x) + (image * args.channels + channel) * args.plane + position;
  Word bits = 0;
#pragma unroll 8
  for (int i = 0; i < count; ++i)
    if (is_one(args, value(x[i * args.plane]), channel + i)) bits |= Word{1} << i;
  args.out[(image * args.plane + position) * words + word] = bits;
}

__global__ void unpack_kernel(const Word* packed, float* out, int64_t channels, int64_t words, float zero,
                              int64_t total) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t pixel = index / channels, channel = index % channels;
  const Word word = packed[pixel * words + channel / kWordBits];
  out[index] = (word >> (channel % kWordBits) & 1) != 0 ? 1.0f : zero;
}

cudaError_t blocks_for(int64_t threads, dim3* grid) {
  const int64_t blocks = (threads + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  *grid = dim3(static_cast<unsigned>(blocks));
  return cudaSuccess;
}

template <typename T>
cudaError_t pack_type(const PackArgs& args, int64_t pixels, cudaStream_t stream) {
  const int64_t words = words_for(args.channels);
  const int64_t total = pixels * words * (args.channels_last ? kWordBytes : 1);
  if (total == 0) return cudaSuccess;
  LaunchConfig config{{}, dim3(kThreads)};
  if (const cudaError_t error = blocks_for(total, &config.grid); error != cudaSuccess) return error;
  if (!args.channels_last) return launch(pack_first_kernel<T>, config, stream, args, words, total);
  const bool wide = reinterpret_cast<uintptr_t>(args.x) % sizeof(uint4) == 0 && args.channels % kByteBits == 0;
  return launch(pack_last_kernel<T>, config, stream, args, words * kWordBytes, total, wide);
}

}  // namespace

cudaError_t pack(const PackArgs& args, int64_t pixels, cudaStream_t stream) {
  switch (args.type) {
    case FloatType::kFloat32: return pack_type<float>(args, pixels, stream);
    case FloatType::kBFloat16: return pack_type<__nv_bfloat16>(args, pixels, stream);
    case FloatType::kFloat16: return pack_type<__half>(args, pixels, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t unpack(const Word* packed, float* out, int64_t pixels, int64_t channels, float zero, cudaStream_t stream) {
  const int64_t total = pixels * channels;
  if (total == 0) return cudaSuccess;
  LaunchConfig config{{}, dim3(kThreads)};
  if (const cudaError_t error = blocks_for(total, &config.grid); error != cudaSuccess) return error;
  return launch(unpack_kernel, config, stream, packed, out, channels, words_for(channels), zero, total);
}

}  // namespace bitnas::cuda

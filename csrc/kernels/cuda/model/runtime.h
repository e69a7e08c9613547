// The CUDA runtime and the built-ins of device code, as far as bitnas uses them, on the
// host model. README.md says what it is; model.h is the machine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "kernels/cuda/model/float16.h"
#include "kernels/cuda/model/model.h"
#include "kernels/cuda/model/types.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)

// ---- the runtime, host side -------------------------------------------------------

using cudaStream_t = struct CUstream_st*;

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorNoDevice = 100,
  cudaErrorNotSupported = 801,
  cudaErrorUnknown = 999,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorMemoryAllocation: return "out of memory";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorNoDevice: return "no CUDA-capable device is detected";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorUnknown: return "unknown error";
  }
  return "unrecognized error code";
}

namespace bitnas::cuda::model {

inline thread_local cudaError_t last_error = cudaSuccess;

// 10 * major + minor, from BITNAS_CUDA_MODEL_CC.
inline int capability() {
  const char* text = std::getenv("BITNAS_CUDA_MODEL_CC");
  return text != nullptr ? std::atoi(text) : 90;
}

constexpr int kMultiprocessors = 8;

// The most dynamic shared memory that a block may ask for.
inline int max_shared_bytes(int capability) {
  switch (capability) {
    case 75: return 64 * 1024;
    case 86:
    case 89:
    case 120: return 99 * 1024;
    case 80:
    case 87: return 163 * 1024;
    default: return 227 * 1024;
  }
}

}  // namespace bitnas::cuda::model

inline cudaError_t cudaGetLastError() { return std::exchange(bitnas::cuda::model::last_error, cudaSuccess); }

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  namespace model = bitnas::cuda::model;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount: *value = model::kMultiprocessors; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor: *value = model::capability() / 10; return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor: *value = model::capability() % 10; return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = model::max_shared_bytes(model::capability());
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t /*stream*/) {
  std::memset(to, value, bytes);
  return cudaSuccess;
}

namespace bitnas::cuda {

struct LaunchConfig;  // kernels/cuda/runtime.h

namespace model {

inline cudaError_t check_launch(dim3 grid, dim3 block, size_t shared_bytes, unsigned cluster_blocks) {
  const auto within = [](unsigned value, unsigned most) { return value >= 1 && value <= most; };
  const bool grid_fits = within(grid.x, 0x7fffffff) && within(grid.y, 65535) && within(grid.z, 65535);
  const bool block_fits = within(block.x, kMaxThreads) && within(block.y, kMaxThreads) && within(block.z, 64) &&
                          uint64_t{block.x} * block.y * block.z <= kMaxThreads;
  const bool clusters_fit =
      within(cluster_blocks, capability() >= 90 ? kMaxCluster : 1) && grid.x % cluster_blocks == 0;
  if (shared_bytes > static_cast<size_t>(max_shared_bytes(capability()))) return cudaErrorInvalidValue;
  return grid_fits && block_fits && clusters_fit ? cudaSuccess : cudaErrorInvalidConfiguration;
}

// Runs the whole grid before it returns. `Config` is there so that LaunchConfig need not be complete here.
template <typename Config = LaunchConfig, typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const std::type_identity_t<Config>& config, cudaStream_t /*stream*/,
                   Arguments&&... arguments) {
  const cudaError_t error = check_launch(config.grid, config.block, config.shared_bytes, config.cluster_blocks);
  if (error != cudaSuccess) return last_error = error;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<std::remove_cvref_t<Parameters>...> arguments;
  } call{kernel, {static_cast<Parameters>(arguments)...}};
  const auto run = [](void* data) {
    const Call& call = *static_cast<const Call*>(data);
    std::apply(call.kernel, call.arguments);
  };
  Machine::here().run(
      {config.grid, config.block, config.shared_bytes, config.cluster_blocks, capability(), run, &call});
  return cudaSuccess;
}

// ---- built-ins, device side -----------------------------------------------------------

// Every lane gets the value of lane source(lane) of its segment of `width` lanes; its own where there is none.
template <typename T, typename Source>
T shuffle(const Operation& by, uint32_t mask, T value, int width, const Source& source) {
  struct Frame {
    T value, result;
    int from;
  };
  Machine& machine = Machine::here();
  if (width < 1 || width > 32 || (width & (width - 1)) != 0)
    machine.fail("%s: a width of %d", by.text().c_str(), width);
  const int lane = static_cast<int>(machine.thread().lane), segment = lane & -width;
  const int from = source(lane - segment, width);
  Frame frame{value, value, from >= 0 && from < width ? segment + from : lane};
  const uint32_t present = mask & machine.warp().lanes;
  if ((present >> frame.from & 1) == 0) machine.fail("%s: reads lane %d, not present", by.text().c_str(), frame.from);
  machine.meet(by, mask, frame, [present](Frame* const* frames) {
    for (uint32_t lanes = present; lanes != 0; lanes &= lanes - 1) {
      Frame& to = *frames[std::countr_zero(lanes)];
      to.result = frames[to.from]->value;
    }
  });
  return frame.result;
}

}  // namespace model
}  // namespace bitnas::cuda

inline void __syncthreads(bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  auto& machine = bitnas::cuda::model::Machine::here();
  machine.synchronise(machine.block().barriers[0], machine.block_threads(), {"__syncthreads", site});
}

inline void __syncwarp(unsigned mask = ~0u, bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  char nothing = 0;
  bitnas::cuda::model::Machine::here().meet({"__syncwarp", site}, mask, nothing, [](char* const*) {});
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  struct Frame {
    bool predicate;
    unsigned result;
  } frame{predicate != 0, 0};
  auto& machine = bitnas::cuda::model::Machine::here();
  machine.meet({"__ballot_sync", site}, mask, frame, [mask = mask & machine.warp().lanes](Frame* const* frames) {
    unsigned ballot = 0;
    for (uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1)
      if (frames[std::countr_zero(lanes)]->predicate) ballot |= lanes & -lanes;
    for (uint32_t lanes = mask; lanes != 0; lanes &= lanes - 1) frames[std::countr_zero(lanes)]->result = ballot;
  });
  return frame.result;
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  return bitnas::cuda::model::shuffle({"__shfl_sync", site}, mask, value, width,
                                      [lane](int, int width) { return lane & (width - 1); });
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  return bitnas::cuda::model::shuffle({"__shfl_down_sync", site}, mask, value, width,
                                      [delta](int lane, int) { return lane + static_cast<int>(delta); });
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32,
                  bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  return bitnas::cuda::model::shuffle({"__shfl_xor_sync", site}, mask, value, width,
                                      [lanes](int lane, int) { return lane ^ lanes; });
}

[[noreturn]] inline void __trap(bitnas::cuda::model::Site site = bitnas::cuda::model::Site::current()) {
  bitnas::cuda::model::Machine::here().fail("%s", bitnas::cuda::model::Operation{"__trap", site}.text().c_str());
}
inline void __threadfence() {}

// Blocks of one grid run one after the other, but grids of several host threads may share memory.
inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicAdd(unsigned* at, unsigned value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* at, unsigned value) { return __atomic_fetch_or(at, value, __ATOMIC_RELAXED); }
inline unsigned long long atomicOr(unsigned long long* at, unsigned long long value) {
  return __atomic_fetch_or(at, value, __ATOMIC_RELAXED);
}

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>(((uint64_t{high} << 32 | low) << (shift & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return static_cast<unsigned>((uint64_t{high} << 32 | low) >> (shift & 31));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
template <typename T>
T __ldg(const T* at) {
  return *at;
}

#define BITNAS_MIN_MAX(T)                             \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
BITNAS_MIN_MAX(int)
BITNAS_MIN_MAX(unsigned)
BITNAS_MIN_MAX(long)
BITNAS_MIN_MAX(unsigned long)
BITNAS_MIN_MAX(long long)
BITNAS_MIN_MAX(unsigned long long)
BITNAS_MIN_MAX(float)
BITNAS_MIN_MAX(double)
#undef BITNAS_MIN_MAX

// The CUDA runtime as launchers see it: the real one, or, under BITNAS_CUDA_MODEL,
// the host model that runs the same kernel sources on a CPU (model/README.md).
#pragma once

#ifdef BITNAS_CUDA_MODEL
#include "kernels/cuda/model/runtime.h"
#else
#include <cuda.h>  // types only; libcuda is not linked
#include <cuda_runtime.h>

#include <mutex>
#include <set>
#include <utility>
#endif

namespace bitnas::cuda {

struct LaunchConfig {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;      // dynamic
  unsigned cluster_blocks = 1;  // neighbours along x
};

#ifdef BITNAS_CUDA_MODEL

using model::launch;

#else

// Lets a kernel have all the dynamic shared memory that a block may ask for. Once per kernel and device, and always the
// same limit: setting what one launch needs could take from another thread's, between its setting and its launch.
inline cudaError_t allow_shared_memory(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int> > allowed;
  int device = 0, most = 0;
  if (const cudaError_t error = cudaGetDevice(&device); error != cudaSuccess) return error;
  const std::lock_guard lock(mutex);
  if (allowed.count({kernel, device}) != 0) return cudaSuccess;
  cudaError_t error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess) allowed.insert({kernel, device});
  return error;
}

// Launches `kernel` on `stream`.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t error = allow_shared_memory(reinterpret_cast<const void*>(kernel));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute cluster;
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {config.cluster_blocks, 1, 1};
  cudaLaunchConfig_t launch_config{};
  launch_config.gridDim = config.grid;
  launch_config.blockDim = config.block;
  launch_config.dynamicSmemBytes = config.shared_bytes;
  launch_config.stream = stream;
  launch_config.attrs = &cluster;
  launch_config.numAttrs = config.cluster_blocks > 1 ? 1 : 0;
  return cudaLaunchKernelEx(&launch_config, kernel, static_cast<Parameters>(arguments)...);
}

#endif

}  // namespace bitnas::cuda

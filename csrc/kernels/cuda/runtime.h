// The CUDA runtime as launchers see it: the real one, or, under BITNAS_CUDA_MODEL,
// the host model that runs the same kernel sources on a CPU (model/README.md).
#pragma once

#ifdef BITNAS_CUDA_MODEL
#include "kernels/cuda/model/runtime.h"
#else
#include <cuda.h>  // types only; libcuda is not linked
#include <cuda_runtime.h>
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

// Launches `kernel` on `stream`; raises its limit of dynamic shared memory once per device.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const LaunchConfig& config, cudaStream_t stream,
                   Arguments&&... arguments) {
  if (config.shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(config.shared_bytes));
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

// Launchers of the CUDA kernels: pointers and sizes, no torch. Each runs on the
// given stream, allocates nothing and does not synchronise.
#pragma once

#include <cuda_runtime.h>

#include "kernels/pack.h"

namespace bitnas::cuda {

// pack.h, all `pixels` of the tensor.
cudaError_t pack(const PackArgs& args, int64_t pixels, cudaStream_t stream);

struct GemmArgs {
  const Word* a;  // [m][words]
  const Word* w;  // [n][words]
  int32_t* out;   // [m][n], the dot of xnor.h
  int64_t m, n, words, features;
  Encoding encoding;
};
cudaError_t gemm(const GemmArgs& args, cudaStream_t stream);

}  // namespace bitnas::cuda

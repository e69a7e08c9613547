// CUDA's 16-bit floats: the real ones, or the host model's.
#pragma once

#ifdef BITNAS_CUDA_MODEL
#include "kernels/cuda/model/float16.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

#include <cstdint>
#include <cstring>

#include "kernels/cuda/ptx.cuh"

namespace bitnas::cuda {

// Two floats rounded to nearest even, as a word with `low` in its low half: one instruction, where a single float of 16
// bits takes one on a slow pipe.
BITNAS_DEVICE uint32_t bfloat16_pair(float low, float high) {
#ifdef BITNAS_CUDA_MODEL
  const __nv_bfloat16 pair[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
#else
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
#endif
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}
BITNAS_DEVICE uint32_t half_pair(float low, float high) {
#ifdef BITNAS_CUDA_MODEL
  const __half pair[2] = {__float2half_rn(low), __float2half_rn(high)};
#else
  const __half2 pair = __floats2half2_rn(low, high);
#endif
  uint32_t word;
  memcpy(&word, &pair, sizeof(word));
  return word;
}

}  // namespace bitnas::cuda

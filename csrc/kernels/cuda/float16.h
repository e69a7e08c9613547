// CUDA's 16-bit floats: the real ones, or the host model's.
#pragma once

#ifdef BITNAS_CUDA_MODEL
#include "kernels/cuda/model/float16.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

// The float epilogue (epilogue.h) of one dot, on any CPU. Internal linkage: ISA files use it too.
#pragma once

#include "kernels/cpu/float16.h"
#include "kernels/epilogue.h"

namespace bitnas::cpu {

// Stores what becomes of channel n of a pixel; its bit, where e.packed asks for one.
static inline bool finish_float(const Epilogue& e, int64_t channels, int64_t pixel, int64_t n, int32_t dot) {
  const int64_t at = pixel * channels + n;
  float y = e.scale[n] * static_cast<float>(dot) + e.bias[n];
  const auto load = [&e, pixel, n] {
    const int64_t from = pixel * e.residual_channels + n % e.residual_channels;
    if (e.type == FloatType::kFloat32) return static_cast<const float*>(e.residual)[from];
    const uint16_t half = static_cast<const uint16_t*>(e.residual)[from];
    return e.type == FloatType::kFloat16 ? half_to_float(half) : bfloat16_to_float(half);
  };
  if (e.relu) y = y > 0.0f ? y : 0.0f;
  if (e.residual != nullptr) y += load();
  if (e.slope != nullptr && !(y >= 0.0f)) y *= e.slope[n];
  if (e.type == FloatType::kFloat32) {
    static_cast<float*>(e.out)[at] = y;
  } else {
    const bool half = e.type == FloatType::kFloat16;
    const uint16_t narrow = half ? float_to_half(y) : float_to_bfloat16(y);
    static_cast<uint16_t*>(e.out)[at] = narrow;
    y = half ? half_to_float(narrow) : bfloat16_to_float(narrow);
  }
  return e.packed != nullptr && e.direction[n] * y >= e.cut[n];
}

}  // namespace bitnas::cpu

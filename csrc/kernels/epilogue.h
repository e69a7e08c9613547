// What becomes of an integer dot product before it leaves the kernel.
//
//   kInt32   dot
//   kFloat   y = scale[n] * dot + bias[n]      two roundings, never fused, in float32; then, where asked for,
//            y = y > 0 ? y : +0                (ReLU)
//            y = y + residual[p][n % residual_channels]
//            y = y >= 0 ? y : slope[n] * y     (PReLU; NaN takes the slope)
//            rounded to `type`; and, where asked for, packed beside:
//            bit = direction[n] * y >= cut[n]  of the rounded y, what pack.h makes of it
//   kBits    (dot >= threshold[n]) XOR flip[n] packed as the next layer wants it
#pragma once

#include "kernels/packing.h"

namespace bitnas {

enum class EpilogueKind : int32_t { kInt32, kFloat, kBits };

struct Epilogue {
  EpilogueKind kind;
  FloatType type;             // of out and residual, kFloat
  void* out;                  // int32 or floats [pixels][N]; Word [pixels][words_for(N)]
  const float* scale;         // [N], kFloat
  const float* bias;          // [N], kFloat
  bool relu;                  // kFloat
  const void* residual;       // [pixels][residual_channels] or null, kFloat
  int64_t residual_channels;  // at most N; fewer repeat, kFloat
  const float* slope;         // [N] or null, kFloat
  Word* packed;               // [pixels][words_for(N)] or null, kFloat
  const float* cut;           // [N], with packed
  const float* direction;     // [N] of +1 or -1, with packed
  const int32_t* threshold;   // [N], kBits
  const Word* flip;           // [words_for(N)] or null, kBits
};

// Dots are at most this large in magnitude: with it no offset or limit leaves int32, and thresholds may be clamped to
// one past it.
constexpr int64_t kMaxDot = int64_t{1} << 28;

}  // namespace bitnas

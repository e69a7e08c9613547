// What becomes of an integer dot product before it leaves the kernel.
//
//   kInt32   dot
//   kFloat   scale[n] * dot + bias[n]          two roundings, never fused
//   kBits    (dot >= threshold[n]) XOR flip[n] packed as the next layer wants it
#pragma once

#include "kernels/packing.h"

namespace bitnas {

enum class EpilogueKind : int32_t { kInt32, kFloat, kBits };

struct Epilogue {
  EpilogueKind kind;
  void* out;                 // int32 or float [pixels][N]; Word [pixels][words_for(N)]
  const float* scale;        // [N], kFloat
  const float* bias;         // [N], kFloat
  const int32_t* threshold;  // [N], kBits
  const Word* flip;          // [words_for(N)] or null, kBits
};

// Dots are at most this large in magnitude: with it no offset or limit leaves int32, and thresholds may be clamped to
// one past it.
constexpr int64_t kMaxDot = int64_t{1} << 28;

}  // namespace bitnas

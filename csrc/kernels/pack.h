// Float tensors to packed bits.
//
//   bit[p][c] = direction[c] * x[p][c] >= threshold[c]        (NaN gives 0)
//
// A folded batch norm is a threshold and a direction per channel; a plain
// binarizer is one threshold and direction +1. `x > t` is `x >= nextafter(t)`.
#pragma once

#include "kernels/packing.h"

namespace bitnas {

struct PackArgs {
  const void* x;
  FloatType type;
  Word* out;  // [pixels][words_for(channels)]
  int64_t channels;
  int64_t plane;            // pixels of one image
  bool channels_last;       // x is [pixels][channels], else [images][channels][plane]
  float threshold;          // used when thresholds is null, with direction +1
  const float* thresholds;  // [channels] or null
  const float* directions;  // [channels] of +1 or -1, with thresholds
};

// Packs pixels [begin, end), counted over all images.
using PackFn = void (*)(const PackArgs&, int64_t begin, int64_t end);

}  // namespace bitnas

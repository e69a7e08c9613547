// Max pooling of packed bits: the maximum of ±1 (or {0,1}) values is their OR.
//
//   out[n] = OR over the window of x[n], then XOR flip[n]
//
// Taps outside the image are left out. `flip` serves a threshold that runs the other
// way: pooling d >= t and flipping afterwards is the threshold of the pooled d.
#pragma once

#include "kernels/packing.h"

namespace bitnas {

struct MaxPool2dArgs {
  const Word* x;     // [images][height][width][words]
  Word* out;         // [images][out_height][out_width][words]
  const Word* flip;  // [words] or null
  int64_t words;
  int64_t height, width, out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
};

namespace cpu {
// Output rows [begin, end), counted over all images.
void max_pool2d(const MaxPool2dArgs& args, int64_t begin, int64_t end);
}  // namespace cpu

}  // namespace bitnas

// A float convolution of few input channels, the first layer of a network, with what follows it while it is at hand.
//
//   y[p][n] = bias[n], and for ky, kx, c in this order  y = fma(x[p, ky, kx][c], weight[ky][kx][c][n], y)
//   with a scale the sum begins at 0 and y = scale[n] * sum + bias[n], two roundings: of integers, what epilogue.h
//   defines then, where asked for, y = max(y, 0) or y = y >= 0 ? y : slope[n] * y, and max pooling of y: NaN wins,
//   padding never out[p][n] = y;  bit[p][n] = direction[n] * y >= cut[n], what pack.h makes of it
//
// A padded tap multiplies 0. Every fma is rounded once and their order is fixed, so y is the same on every CPU.
#pragma once

#include "kernels/packing.h"

namespace bitnas {

struct PoolWindow {
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;  // padding at most half the kernel
};

struct FloatConv2dArgs {
  const float* x;       // [images][channels][height][width], or channels last
  const float* weight;  // [kernel_h][kernel_w][channels][out_channels]
  const float* bias;    // [out_channels] or null for zero
  const float* scale;   // [out_channels] or null, with bias
  const float* slope;   // [out_channels] or null, without relu
  int64_t images, channels, height, width;
  bool channels_last;
  int64_t out_channels, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w;
  int64_t conv_height, conv_width;  // of y
  bool relu;
  PoolWindow pool;                // 1x1 of stride 1 for none
  int64_t out_height, out_width;  // behind it
  float* out;                     // [images][out_height][out_width][out_channels] or null
  Word* packed;                   // the same pixels of words_for(out_channels) or null
  const float* cut;               // [out_channels], with packed
  const float* direction;         // [out_channels] of +1 or -1, with packed
};

}  // namespace bitnas

// Binary 2-D convolution on packed channels-last images, any kernel size, stride,
// zero padding, dilation and groups:
//
//   dot[i][oy][ox][n] = sum over ky, kx, c of
//       a[i][oy*stride_h - padding_h + ky*dilation_h][ox*stride_w - padding_w + kx*dilation_w][c] * w[n][ky][kx][c]
//
// where activations outside the image are exactly 0. A linear layer (GEMM) is the
// 1x1 convolution of its rows. Limits: kernel_h * kernel_w * channels <= kMaxDot.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/packing.h"

namespace bitnas {

struct Conv2dShape {
  int64_t images, height, width;  // input
  int64_t channels, out_channels, groups;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;
  int64_t dilation_h, dilation_w;
  int64_t out_height, out_width;
  Encoding encoding;

  int64_t taps() const { return kernel_h * kernel_w; }
  int64_t group_channels() const { return channels / groups; }
  int64_t group_out_channels() const { return out_channels / groups; }
  bool pointwise() const {
    return taps() == 1 && stride_h == 1 && stride_w == 1 && padding_h == 0 && padding_w == 0 && groups == 1;
  }
};

struct Conv2dArgs {
  Conv2dShape shape;
  const Word* x;  // [images][height][width][words_for(channels)]
  Epilogue epilogue;
};

}  // namespace bitnas

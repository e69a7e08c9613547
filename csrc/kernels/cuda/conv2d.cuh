// The binary convolution as the CUDA kernels see it: an implicit matrix product
// per group, in the one form that tensor cores have, AND and popcount.
//
//   acc = popcount(a AND w)       over taps and channels, rows of `k_words` words
//   dot = alpha * acc - beta * popcount(a) + offset
//
//   ±1 by ±1      alpha 4, beta 2, offset = C * valid taps - 2 * ones(w, valid taps)
//   {0,1} by ±1   alpha 2, beta 1, offset = 0
//
// because popcount(a XOR w) = popcount(a) + popcount(w) - 2 popcount(a AND w). Padded
// taps are read as zero bits, so acc and popcount(a) need no care at the border; only
// `offset` knows which taps are valid (padding.h). popcount(a) is counted beside the
// product, on a pipe that is idle meanwhile: packed tensors travel without it.
#pragma once

#include "kernels/cuda/launch.h"

namespace bitnas::cuda {

// The distinct intervals of valid taps along one axis: an output position's offset depends on its two alone.
struct AxisClasses {
  static constexpr int kMost = 16;
  int count;
  uint8_t begin[kMost], end[kMost];
};

struct ConvArgs {
  const Word* x;        // [images][height][width][pixel_words], each group at group * group_words
  const Word* w;        // [out_channels][row_words], rows zero beyond k_words
  const int32_t* ones;  // summed-area table [kernel_h + 1][kernel_w + 1][out_channels]
  int64_t m;            // output positions of all images
  int height, width, out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int pixel_words, group_words, group_channels;
  int k_words;    // words of one row: taps * group_words
  int row_words;  // pitch of w, even
  int n;          // output channels of one group
  int groups, out_channels;
  int alpha, beta;
  bool sign;  // ±1 activations: offsets apply
  AxisClasses rows, columns;
  bool wide_loads;   // 16 bytes of x at a time: pixels and groups start at multiples of 16 bytes
  bool wide_stores;  // rows of floats, and of residuals, start at multiples of 16 bytes
  bool merge;        // bits of different groups share 32-bit words: OR into zeros instead of storing
  int splits;        // over 1: this launch adds its parts of the dots into `partial`
  int32_t* partial;  // [m][out_channels], zeros
  Epilogue epilogue;
};

// Channels of one group that a launch has to cover: bits fill whole words.
inline int64_t covered_channels(const ConvArgs& args) {
  if (args.epilogue.kind == EpilogueKind::kInt32 || args.groups > 1) return args.n;
  const bool packs = args.epilogue.kind == EpilogueKind::kBits || args.epilogue.packed != nullptr;
  return packs ? words_for(args.n) * kWordBits : args.n;
}

// One per family, for any of its tiles in the list.
cudaError_t conv2d_popc(const ConvArgs& args, cudaStream_t stream);
cudaError_t conv2d_mma_b1(const ConvArgs& args, const Kernel& kernel, cudaStream_t stream);
cudaError_t conv2d_mma_int8(const ConvArgs& args, const Kernel& kernel, cudaStream_t stream);
cudaError_t gemm_wgmma(const ConvArgs& args, const Kernel& kernel, int multiprocessors, cudaStream_t stream);

}  // namespace bitnas::cuda

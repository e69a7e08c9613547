// Launchers of the CUDA kernels: pointers and sizes, no torch. Each runs on the
// given stream, allocates nothing and does not synchronise, so a graph can capture it.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/select.h"
#include "kernels/join.h"
#include "kernels/max_pool2d.h"
#include "kernels/pack.h"

namespace bitnas::cuda {

// pack.h, all `pixels` of the tensor.
cudaError_t pack(const PackArgs& args, int64_t pixels, cudaStream_t stream);

// Packed [pixels][words_for(channels)] to float32 [pixels][channels]: 1, or `zero` for bit 0.
cudaError_t unpack(const Word* packed, float* out, int64_t pixels, int64_t channels, float zero, cudaStream_t stream);

// max_pool2d.h, all `images`.
cudaError_t max_pool2d(const MaxPool2dArgs& args, int64_t images, cudaStream_t stream);

// join.h, all `images`.
cudaError_t join(const JoinArgs& args, int64_t images, cudaStream_t stream);

// Weights as every kernel here reads them, one layout whatever the kernel: rows [out_channels][row_words] of
// kernel_h * kernel_w * words_for(group_channels) words, tap after tap, padded with zeros to 16 bytes; behind them the
// summed-area table of ones (padding.h), int32 [kernel_h + 1][kernel_w + 1][out_channels].
struct PreparedLayout {
  int64_t row_words;
  int64_t ones_offset;  // bytes
  int64_t bytes;
};
PreparedLayout prepared_layout(const Conv2dShape& shape);
// weight: canonical, [out_channels][kernel_h][kernel_w][words_for(group_channels)]. prepared: 16-byte aligned.
cudaError_t prepare_weight(const Conv2dShape& shape, const Word* weight, void* prepared, cudaStream_t stream);

// How a convolution will run on a device, and the room it needs for that beside its operands.
struct Conv2dPlan {
  Choice choice;
  int multiprocessors;
  int64_t regrouped_bytes;  // the input with every group at a word of its own, where groups end inside words
  int64_t partial_bytes;    // int32 dots that a split sum is gathered in
};
cudaError_t plan_conv2d(const Conv2dArgs& args, int device, Conv2dPlan* plan);
// conv2d.h with any epilogue. regrouped and partial: of the plan's sizes, 16-byte aligned, null for none.
cudaError_t conv2d(const Conv2dArgs& args, const Conv2dPlan& plan, const void* prepared, void* regrouped, void* partial,
                   cudaStream_t stream);

}  // namespace bitnas::cuda

// Weights into the layout of launch.h: padded rows and the summed-area table of ones.
#include "kernels/cuda/layout.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void pad_rows_kernel(const Word* weight, Word* rows, int64_t words, int64_t row_words, int64_t total) {
  const int64_t index = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= total) return;
  const int64_t row = index / row_words, word = index % row_words;
  rows[index] = word < words ? weight[row * words + word] : 0;
}

// One thread per output channel walks its taps: rows of the table are written once, side by side over channels.
__global__ void ones_kernel(const Word* weight, int32_t* ones, int64_t channels, int64_t kernel_h, int64_t kernel_w,
                            int64_t tap_words) {
  const int64_t channel = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (channel >= channels) return;
  const int64_t columns = kernel_w + 1;
  const Word* tap = weight + channel * kernel_h * kernel_w * tap_words;
  for (int64_t x = 0; x < columns; ++x) ones[x * channels + channel] = 0;
  for (int64_t y = 1; y <= kernel_h; ++y) {
    int row = 0;
    ones[y * columns * channels + channel] = 0;
    for (int64_t x = 1; x <= kernel_w; ++x) {
      for (int64_t i = 0; i < tap_words; ++i) row += __popcll(tap[i]);
      tap += tap_words;
      ones[(y * columns + x) * channels + channel] = ones[((y - 1) * columns + x) * channels + channel] + row;
    }
  }
}

}  // namespace

PreparedLayout prepared_layout(const Conv2dShape& shape) {
  const int64_t words = shape.taps() * words_for(shape.group_channels());
  const int64_t row_words = (words + 1) / 2 * 2;
  const int64_t ones_offset = shape.out_channels * row_words * static_cast<int64_t>(sizeof(Word));
  const int64_t table = (shape.kernel_h + 1) * (shape.kernel_w + 1) * shape.out_channels;
  return {row_words, ones_offset, ones_offset + table * static_cast<int64_t>(sizeof(int32_t))};
}

cudaError_t prepare_weight(const Conv2dShape& shape, const Word* weight, void* prepared, cudaStream_t stream) {
  const PreparedLayout layout = prepared_layout(shape);
  const int64_t tap_words = words_for(shape.group_channels());
  const int64_t total = shape.out_channels * layout.row_words;
  const int64_t blocks = (total + kThreads - 1) / kThreads;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      launch(pad_rows_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(kThreads)}, stream, weight,
             static_cast<Word*>(prepared), shape.taps() * tap_words, layout.row_words, total);
  if (error != cudaSuccess) return error;
  auto* ones = reinterpret_cast<int32_t*>(static_cast<uint8_t*>(prepared) + layout.ones_offset);
  return launch(ones_kernel,
                {dim3(static_cast<unsigned>((shape.out_channels + kThreads - 1) / kThreads)), dim3(kThreads)}, stream,
                weight, ones, shape.out_channels, shape.kernel_h, shape.kernel_w, tap_words);
}

}  // namespace bitnas::cuda

// Index arithmetic that kernels share: swizzled tiles, and where an output position
// reads its input.
#pragma once

#include "kernels/cuda/conv2d.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/padding.h"

namespace bitnas::cuda {

constexpr int kWarp = 32;

// A slab is 1,024 bits of every row of a tile: 128 bytes, eight chunks of 16.
constexpr int kSlabWords = 16;
constexpr int kSlabBytes = 128;
constexpr int kSlabChunks = 8;
// Words that one m16n8k256 product takes of a row.
constexpr int kStepWords = 4;

// Byte offset of a chunk in a tile of slabs. The XOR spreads the same chunk of eight neighbouring rows over all
// banks: ldmatrix and cp.async meet no conflict.
BITNAS_DEVICE int swizzled(int row, int chunk) { return row * kSlabBytes + ((chunk ^ (row & 7)) << 4); }

// Where the window of one output position lies, and which of its taps are inside the image.
struct Window {
  int64_t first_pixel;  // of its image
  int y, x;             // input coordinates of tap (0, 0), may be negative
};

// No coordinate of a position past the last one is inside an image, whatever tap is added.
constexpr int kOutside = INT32_MIN;

BITNAS_DEVICE Window window_of(const ConvArgs& args, int64_t m) {
  if (m >= args.m) return {0, kOutside, kOutside};
  const int plane = args.out_height * args.out_width;
  // 64-bit division is a routine of about a hundred instructions.
  const int64_t image = args.m <= INT32_MAX ? static_cast<uint32_t>(m) / static_cast<uint32_t>(plane) : m / plane;
  const int position = static_cast<int>(m - image * plane);
  const int oy = position / args.out_width, ox = position - oy * args.out_width;
  return {image * args.height * args.width, oy * args.stride_h - args.padding_h, ox * args.stride_w - args.padding_w};
}

BITNAS_DEVICE int class_of(const AxisClasses& classes, const TapInterval& taps) {
  int found = 0;
  for (int i = 1; i < classes.count; ++i)
    if (classes.begin[i] == taps.begin && classes.end[i] == taps.end) found = i;
  return found;
}

// Which class of valid taps an output position is of; any, past the last one.
BITNAS_DEVICE int class_of(const ConvArgs& args, const Window& window) {
  if (window.y == kOutside) return 0;
  const int row = class_of(args.rows, valid_taps(window.y, args.kernel_h, args.dilation_h, args.height));
  return row * args.columns.count +
         class_of(args.columns, valid_taps(window.x, args.kernel_w, args.dilation_w, args.width));
}

BITNAS_DEVICE bool is_inside(const ConvArgs& args, int y, int x) {
  return static_cast<unsigned>(y) < static_cast<unsigned>(args.height) &&
         static_cast<unsigned>(x) < static_cast<unsigned>(args.width);
}

// The summed-area table of ones, [out_channels] at (y, x): of the taps above and to the left.
BITNAS_DEVICE const int32_t* table(const ConvArgs& args, int y, int x) {
  return args.ones + int64_t{y * (args.kernel_w + 1) + x} * args.out_channels;
}

// Ones of a channel's weights over the taps of a rectangle.
BITNAS_DEVICE int ones_of(const ConvArgs& args, int y0, int y1, int x0, int x1, int channel) {
  const auto ones = [&](int y, int x) { return y == 0 || x == 0 ? 0 : table(args, y, x)[channel]; };
  return ones(y1, x1) - ones(y0, x1) - ones(y1, x0) + ones(y0, x0);
}

// padding.h's offset of an output position. ±1 only.
BITNAS_DEVICE int offset_of(const ConvArgs& args, int y0, int y1, int x0, int x1, int channel) {
  return args.group_channels * (y1 - y0) * (x1 - x0) - 2 * ones_of(args, y0, y1, x0, x1, channel);
}

}  // namespace bitnas::cuda

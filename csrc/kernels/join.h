// The end of a cell: its shortcut, fitted to the width of its nodes without a parameter, plus the nodes.
//
//   s[q][g][c] = shortcut[q][g][c], or where `pool` the mean of the 2x2 pixels of it that lie in the image
//   f[q][g][i] = s[q][g][i / repeat] where i / repeat < own, else 0
//   out[q][g][i] = f[q][g][i] + nodes[g][q][i]      (nodes[g] null: f alone), i < channels
//
// All float32 and channels last. The four taps are added row by row, then divided by how many there were.
#pragma once

#include <cstdint>

namespace bitnas {

constexpr int64_t kMaxJoinedNodes = 8;

struct JoinArgs {
  const float* shortcut;                // [images][height][width][groups][own]
  const float* nodes[kMaxJoinedNodes];  // [images][out_height][out_width][channels] each, or null
  float* out;                           // [images][out_height][out_width][groups][channels]
  int64_t groups, own, channels, repeat;
  bool pool;
  int64_t height, width, out_height, out_width;
};

namespace cpu {
// Output pixels [begin, end), counted over all images.
void join(const JoinArgs& args, int64_t begin, int64_t end);
}  // namespace cpu

}  // namespace bitnas

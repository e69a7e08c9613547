// Bound by memory, so what a compiler makes of plain loops serves every instruction set.
#include "kernels/join.h"

#include <algorithm>

namespace bitnas::cpu {
namespace {

// One group of neighbouring pixels: of the shortcut, from `in_pitch` to `in_pitch` floats.
struct Group {
  int64_t kept, repeat, channels;  // channels of the output that the shortcut fills, each of its own so often, and all
  int64_t pixels, in_pitch, out_pitch;
};

template <bool kNode>
void fit(const Group g, const float* __restrict s, const float* __restrict node, float* __restrict out) {
  for (int64_t p = 0; p < g.pixels; ++p, s += g.in_pitch, out += g.out_pitch) {
    const auto put = [&](int64_t i, float y) { out[i] = kNode ? y + node[i] : y; };
    int64_t i = 0;
    if (g.repeat == 1) {
      constexpr int64_t kUnrolled = 16;  // so that a group of few channels is no loop
      for (; i + kUnrolled <= g.kept; i += kUnrolled)
        for (int64_t j = i; j < i + kUnrolled; ++j) put(j, s[j]);
      for (; i < g.kept; ++i) put(i, s[i]);
    } else if (g.repeat == 2) {
      for (; i + 2 <= g.kept; i += 2) put(i, s[i / 2]), put(i + 1, s[i / 2]);
    }
    for (; i < g.kept; ++i) put(i, s[i / g.repeat]);
    for (; i < g.channels; ++i) put(i, 0.0f);
    if (kNode) node += g.channels;
  }
}

void fit(const Group& group, const float* s, const float* node, float* out) {
  node == nullptr ? fit<false>(group, s, node, out) : fit<true>(group, s, node, out);
}

// The mean of the pixels of the window at (oy, ox) that lie in the image, of `count` channels.
void average(const JoinArgs& a, int64_t image, int64_t oy, int64_t ox, int64_t first, int64_t count,
             float* __restrict mean) {
  const int64_t pitch = a.groups * a.own;
  const bool right = 2 * ox + 1 < a.width, below = 2 * oy + 1 < a.height;
  const float* x = a.shortcut + ((image * a.height + 2 * oy) * a.width + 2 * ox) * pitch + first;
  const float* y = x + a.width * pitch;
  if (right && below) {
    for (int64_t i = 0; i < count; ++i) mean[i] = (((x[i] + x[pitch + i]) + y[i]) + y[pitch + i]) * 0.25f;
  } else if (right || below) {
    const float* other = right ? x + pitch : y;
    for (int64_t i = 0; i < count; ++i) mean[i] = (x[i] + other[i]) * 0.5f;
  } else {
    std::copy(x, x + count, mean);
  }
}

}  // namespace

void join(const JoinArgs& a, int64_t begin, int64_t end) {
  constexpr int64_t kPixels = 32;  // of all groups, before the next ones: they share cache lines
  constexpr int64_t kBlock = 256;
  float block[kBlock];
  const int64_t kept = std::min(a.own * a.repeat, a.channels), used = (kept + a.repeat - 1) / a.repeat;
  const int64_t in_pitch = a.groups * a.own, out_pitch = a.groups * a.channels;
  for (int64_t first = begin; first < end; first += a.pool ? 1 : kPixels) {
    const int64_t pixels = a.pool ? 1 : std::min(kPixels, end - first);
    const int64_t row = first / a.out_width, image = row / a.out_height;
    for (int64_t group = 0; group < a.groups; ++group) {
      const float* node = a.nodes[group] == nullptr ? nullptr : a.nodes[group] + first * a.channels;
      float* out = a.out + first * out_pitch + group * a.channels;
      if (!a.pool) {
        fit({kept, a.repeat, a.channels, pixels, in_pitch, out_pitch}, a.shortcut + first * in_pitch + group * a.own,
            node, out);
        continue;
      }
      for (int64_t from = 0; from < used; from += kBlock) {
        const int64_t count = std::min(kBlock, used - from), at = from * a.repeat;
        average(a, image, row % a.out_height, first % a.out_width, group * a.own + from, count, block);
        const bool last = from + count == used;
        fit({last ? kept - at : count * a.repeat, a.repeat, last ? a.channels - at : count * a.repeat, 1, 0, 0}, block,
            node == nullptr ? nullptr : node + at, out + at);
      }
    }
  }
}

}  // namespace bitnas::cpu

// How padded taps contribute exactly zero.
//
// A padded tap is read as a pixel of zero bits. Output positions fall into border
// classes by which taps of the window lie inside the image: an interval of kernel
// rows times an interval of kernel columns. Per class and output channel
//
//   ±1:     offset = C * valid taps + 2 * (ones(all taps) - ones(valid taps))
//   {0,1}:  offset = ones(all taps)                    (zero bits are zeros: one class)
//
// where ones(S) counts the +1 weights over the taps of S, read off a summed-area
// table that is made when weights are prepared. An interior position is the class
// with all taps valid: offset = C * taps, as in an unpadded layer.
#pragma once

#include "kernels/packing.h"

namespace bitnas {

// Taps [begin, end) of a window along one axis that lie inside the image.
struct TapInterval {
  int64_t begin;
  int64_t end;
  bool operator==(const TapInterval&) const = default;
};

// first: input coordinate of tap 0, may be negative.
template <typename Int>
static constexpr TapInterval valid_taps(Int first, Int taps, Int dilation, Int size) {
  const auto spans = [dilation](Int distance) { return dilation == 1 ? distance : distance / dilation; };
  Int begin = first >= 0 ? 0 : spans(-first + dilation - 1);
  Int end = first >= size ? 0 : spans(size - 1 - first) + 1;
  begin = begin < taps ? begin : taps;
  end = end < taps ? end : taps;
  return {begin, end < begin ? begin : end};
}

}  // namespace bitnas

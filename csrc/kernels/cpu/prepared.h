// Weights re-laid for one kernel: a header that says for which, the summed-area
// table of ones per output channel (padding.h), and the panels.
#pragma once

#include <cstddef>

#include "kernels/conv2d.h"
#include "kernels/xnor.h"

namespace bitnas::cpu {

class Prepared {
 public:
  // Bytes that prepare() writes for these weights on that row of the ISA table.
  static int64_t bytes(int isa_index, const Conv2dShape& shape);

  // weight: canonical, [out_channels][kernel_h][kernel_w][words_for(group_channels)].
  static void prepare(int isa_index, const Conv2dShape& shape, const Word* weight, uint8_t* out);

  // The view of a buffer that prepare() made for these weights, or an empty one (see operator bool)
  // when it was made for other weights, by another version, or for a CPU unlike this one.
  static Prepared view(const uint8_t* buffer, int64_t size, const Conv2dShape& shape);

  explicit operator bool() const { return kernel_ != nullptr; }
  const XnorKernel& kernel() const { return *kernel_; }

  // Summed-area table: ones()[(ky * (kernel_w + 1) + kx) * out_channels + n] counts the +1 weights of
  // channel n in the taps above and left of (ky, kx).
  const int32_t* ones() const;
  // Panels of one group: 64 output channels each, the last one maybe fewer.
  int64_t panels_per_group() const;
  const uint8_t* panel(int64_t group, int64_t index) const;

 private:
  const uint8_t* buffer_ = nullptr;
  const XnorKernel* kernel_ = nullptr;
  Conv2dShape shape_{};
};

}  // namespace bitnas::cpu

// Weights re-laid for one kernel, behind a header that says for which. For a strip kernel: the summed-area table of
// ones per output channel (padding.h), and the panels. For a tile kernel: whatever it asks for.
#pragma once

#include <cstddef>

#include "kernels/conv2d.h"
#include "kernels/cpu/kernel.h"

namespace bitnas::cpu {

class Prepared {
 public:
  // Bytes that prepare() writes for these weights and that kernel (an index of select.h).
  static int64_t bytes(int kernel, const Conv2dShape& shape);

  // weight: canonical, [out_channels][kernel_h][kernel_w][words_for(group_channels)].
  static void prepare(int kernel, const Conv2dShape& shape, const Word* weight, uint8_t* out);

  // The view of a buffer that prepare() made for these weights, or an empty one (see operator bool) when it was made
  // for other weights or another geometry, by another version, or for a CPU unlike this one.
  static Prepared view(const uint8_t* buffer, int64_t size, const Conv2dShape& shape);

  // Name of the kernel that a buffer was made for; "" where it is none of this version's.
  static const char* kernel_name(const uint8_t* buffer, int64_t size);

  explicit operator bool() const { return kernel_ != nullptr; }
  const Kernel& kernel() const { return *kernel_; }

  // Of a tile kernel.
  const uint8_t* weights() const;

  // Of a strip kernel. Summed-area table: ones()[(ky * (kernel_w + 1) + kx) * out_channels + n] counts the +1 weights
  // of channel n in the taps above and left of (ky, kx).
  const int32_t* ones() const;
  // Panels of one group: 64 output channels each, the last one maybe fewer.
  int64_t panels_per_group() const;
  const uint8_t* panel(int64_t group, int64_t index) const;

 private:
  const uint8_t* buffer_ = nullptr;
  const Kernel* kernel_ = nullptr;
  Conv2dShape shape_{};
};

}  // namespace bitnas::cpu

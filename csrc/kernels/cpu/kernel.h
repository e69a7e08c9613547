// What a convolution kernel is. The list of them, and which one a layer gets, is in select.cpp.
//
// There are two kinds. A strip kernel computes neighbouring output positions by 64 output channels, and shares the
// driver in conv2d.cpp: staging, border classes, cutting. A tile kernel computes a whole layer in its own way.
#pragma once

#include "kernels/conv2d.h"
#include "kernels/cpu/strip.h"

namespace bitnas::cpu {

// Tasks are independent of each other and may run anywhere; a kernel starts no threads.
struct TileKernel {
  // Whether it can compute layers of this shape at all. It looks at nothing that an image's size changes.
  bool (*computes)(const Conv2dShape&);
  // Weights re-laid: how many bytes, and laying them out. weight is canonical, out begins at a multiple of 64 bytes.
  int64_t (*weight_bytes)(const Conv2dShape&);
  void (*prepare)(const Conv2dShape&, const Word* weight, uint8_t* out);
  // Into how many tasks the layer is cut for so many threads, and what scratch one task needs (aligned to 64 bytes,
  // contents undefined).
  int64_t (*tasks)(const Conv2dArgs&, int64_t threads);
  int64_t (*scratch_bytes)(const Conv2dArgs&, int64_t tasks);
  void (*run)(const Conv2dArgs&, const uint8_t* weights, int64_t task, int64_t tasks, uint8_t* scratch);
};

struct Kernel {
  const char* name;          // <isa>_<algorithm>
  int isa;                   // row of the table in isa.cpp
  const StripKernel* strip;  // exactly one of the two
  const TileKernel* tile;
};

}  // namespace bitnas::cpu

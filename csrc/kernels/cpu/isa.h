// The one table of instruction sets: which of them this CPU can run, and what they do with floats. Their binary
// convolution kernels are in select.h.
#pragma once

#include "kernels/cpu/float_conv2d.h"
#include "kernels/pack.h"

namespace bitnas::cpu {

struct Isa {
  const char* name;
  bool (*supported)();
  PackFn pack;
  const FloatConv2dKernel* float_conv2d;
};

enum IsaRow : int { kScalar, kAvx2, kAvx512, kAmx };

// Rows of the table, slowest first. "scalar" is row 0 and always supported.
int isa_count();
const Isa& isa(int index);
bool isa_supported(int index);

// The row in use: the last supported one, unless BITNAS_ISA or select_isa says otherwise.
int active_isa();

// Makes the named row active. False when this build lacks it or this CPU cannot run it.
bool select_isa(const char* name);

}  // namespace bitnas::cpu

// A 16-bit compare mask as an integer.
//
// GCC 12 widens a __mmask16 with KMOVQ, which is wrong once the mask has been spilled as two bytes: the sanitizer build
// gave wrong bits that way. KMOVW reads and zero-extends sixteen bits whatever lies above them.
#pragma once

#include <immintrin.h>

#include "kernels/packing.h"

namespace bitnas::cpu {

static inline Word mask_bits(__mmask16 mask) {
  uint32_t bits;
  asm("kmovw %1, %0" : "=r"(bits) : "k"(mask));
  return bits;
}

}  // namespace bitnas::cpu

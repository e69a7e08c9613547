// THE contract of bits, on every device and instruction set.
//
//   word       uint64, least significant bit first
//   layout     channels last: one pixel (or row) is ceil(C / 64) words
//   bit 1      +1 (encoding "sign": x >= 0)  or  1 (encoding "unit": x > 0.5)
//   bit 0      -1                            or  0
//   tail       bits past channel C - 1 are zero in activations and in weights,
//              so that they cancel in a XOR
//   NaN        packs to 0
#pragma once

#include <cstdint>

namespace bitnas {

using Word = uint64_t;
constexpr int64_t kWordBits = 64;

// Internal linkage: files built for one instruction set include this header too.
static constexpr int64_t words_for(int64_t channels) { return (channels + kWordBits - 1) / kWordBits; }

// What a bit of an activation stands for. Weights are always ±1.
enum class Encoding : int32_t { kSign, kUnit };

// Floating-point types that tensors come in and go out as.
enum class FloatType : int32_t { kFloat32, kBFloat16, kFloat16 };

}  // namespace bitnas

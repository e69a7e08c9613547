// __half and __nv_bfloat16 with the conversions the kernels use: to nearest, ties to
// even, subnormals, infinities and NaN as CUDA's functions of the same names.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/cuda/model/types.h"

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

constexpr uint16_t __half_as_ushort(__half value) { return value.bits; }
constexpr __half __ushort_as_half(uint16_t bits) { return {bits}; }
constexpr uint16_t __bfloat16_as_ushort(__nv_bfloat16 value) { return value.bits; }
constexpr __nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) { return {bits}; }

namespace bitnas::cuda::model {

// Drops the low `count` bits (1 to 31), to nearest, ties to even.
constexpr uint32_t shift_right_rn(uint32_t value, int count) {
  const uint32_t kept = value >> count;
  const uint32_t rest = value & ((1u << count) - 1), half = 1u << (count - 1);
  return kept + (rest > half || (rest == half && (kept & 1)));
}

constexpr uint32_t kFloatInfinity = 0x7f800000;

}  // namespace bitnas::cuda::model

constexpr float __half2float(__half value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  if (exponent == 31)
    return std::bit_cast<float>(sign | bitnas::cuda::model::kFloatInfinity | fraction << 13 |
                                (fraction ? 1u << 22 : 0));
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 127 - 15) << 23 | fraction << 13);
  const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -magnitude : magnitude;
}

constexpr __half __float2half_rn(float value) {
  namespace model = bitnas::cuda::model;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
  if (magnitude > model::kFloatInfinity) return {0x7fff};
  const int exponent = static_cast<int>(magnitude >> 23) - 127;
  uint32_t half = 0x7c00;
  if (exponent < -25)
    half = 0;
  else if (exponent < -14)  // subnormal: the leading one becomes explicit; a carry makes the smallest normal number
    half = model::shift_right_rn((magnitude & 0x7fffff) | 0x800000, -1 - exponent);
  else if (exponent < 16)  // a carry runs into the exponent, and from 65520 on into infinity
    half = model::shift_right_rn(magnitude - ((127 - 15) << 23), 13);
  return {static_cast<uint16_t>(sign | half)};
}
constexpr __half __float2half(float value) { return __float2half_rn(value); }
constexpr __half2 __floats2half2_rn(float x, float y) { return {__float2half_rn(x), __float2half_rn(y)}; }

constexpr float __bfloat162float(__nv_bfloat16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

constexpr __nv_bfloat16 __float2bfloat16_rn(float value) {
  namespace model = bitnas::cuda::model;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > model::kFloatInfinity) return {0x7fff};
  return {static_cast<uint16_t>(model::shift_right_rn(bits, 16))};
}
constexpr __nv_bfloat16 __float2bfloat16(float value) { return __float2bfloat16_rn(value); }
constexpr __nv_bfloat162 __floats2bfloat162_rn(float x, float y) {
  return {__float2bfloat16_rn(x), __float2bfloat16_rn(y)};
}

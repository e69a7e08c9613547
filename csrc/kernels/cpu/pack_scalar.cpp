// One value at a time, on any CPU and for any layout.
#include "kernels/pack.h"

namespace bitnas::cpu {
namespace {

inline float from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 0x3ff;
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return from_bits(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float subnormal = static_cast<float>(mantissa) * 0x1p-24f;
  return sign != 0 ? -subnormal : subnormal;
}

inline float load(const PackArgs& args, int64_t at) {
  switch (args.type) {
    case FloatType::kFloat32: return static_cast<const float*>(args.x)[at];
    case FloatType::kBFloat16: return from_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(args.x)[at]) << 16);
    default: return half_to_float(static_cast<const uint16_t*>(args.x)[at]);
  }
}

}  // namespace

void pack_scalar(const PackArgs& args, int64_t begin, int64_t end) {
  const int64_t words = words_for(args.channels);
  const int64_t stride = args.channels_last ? 1 : args.plane;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t base = args.channels_last ? pixel * args.channels
                                            : (pixel / args.plane) * args.plane * args.channels + pixel % args.plane;
    for (int64_t i = 0; i < words; ++i) {
      Word word = 0;
      for (int64_t c = i * 64; c < args.channels && c < i * 64 + 64; ++c) {
        const float x = load(args, base + c * stride);
        const bool one =
            args.thresholds != nullptr ? args.directions[c] * x >= args.thresholds[c] : x >= args.threshold;
        word |= static_cast<Word>(one) << (c & 63);
      }
      args.out[pixel * words + i] = word;
    }
  }
}

}  // namespace bitnas::cpu

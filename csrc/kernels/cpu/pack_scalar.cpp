// One value at a time, on any CPU and for any layout.
#include "kernels/cpu/float16.h"
#include "kernels/pack.h"

namespace bitnas::cpu {
namespace {

inline float load(const PackArgs& args, int64_t at) {
  switch (args.type) {
    case FloatType::kFloat32: return static_cast<const float*>(args.x)[at];
    case FloatType::kBFloat16: return bfloat16_to_float(static_cast<const uint16_t*>(args.x)[at]);
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

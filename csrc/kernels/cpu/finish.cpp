// Bound by memory, so plain loops serve every instruction set.
#include "kernels/cpu/finish.h"

#include "kernels/cpu/float16.h"

namespace bitnas::cpu {
namespace {

struct Float32 {
  using Stored = float;
  static float load(float value) { return value; }
  static float store(float value) { return value; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static float load(uint16_t value) { return bfloat16_to_float(value); }
  static uint16_t store(float value) { return float_to_bfloat16(value); }
};

struct Float16 {
  using Stored = uint16_t;
  static float load(uint16_t value) { return half_to_float(value); }
  static uint16_t store(float value) { return float_to_half(value); }
};

template <typename Type>
void finish(const Epilogue& e, const float* y, int64_t channels, int64_t begin, int64_t end) {
  const auto* residual = static_cast<const typename Type::Stored*>(e.residual);
  auto* out = static_cast<typename Type::Stored*>(e.out);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int64_t n = 0; n < channels; ++n) {
      const int64_t at = pixel * channels + n;
      float value = y[at];
      if (residual != nullptr) value += Type::load(residual[at]);
      if (e.slope != nullptr && !(value >= 0.0f)) value *= e.slope[n];
      out[at] = Type::store(value);
    }
  }
}

}  // namespace

void finish_float(const Epilogue& e, const float* y, int64_t channels, int64_t begin, int64_t end) {
  switch (e.type) {
    case FloatType::kFloat32: return finish<Float32>(e, y, channels, begin, end);
    case FloatType::kBFloat16: return finish<BFloat16>(e, y, channels, begin, end);
    case FloatType::kFloat16: return finish<Float16>(e, y, channels, begin, end);
  }
}

}  // namespace bitnas::cpu

// The definition: one fma after the other, on any CPU.
#include "kernels/cpu/float_conv2d.h"

namespace bitnas::cpu {
namespace {

void row(const FloatConv2dRow& r) {
  for (int64_t p = 0; p < r.pixels; ++p) {
    float* y = r.out + p * r.channels;
    for (int64_t n = 0; n < r.channels; ++n) y[n] = r.bias[n];
    const float* w = r.weight;
    for (int64_t ky = 0; ky < r.kernel_h; ++ky) {
      for (int64_t t = 0; t < r.tap_count; ++t, w += r.channels) {
        const float x = r.rows[ky][p * r.stride + r.taps[t]];
        for (int64_t n = 0; n < r.channels; ++n) y[n] = __builtin_fmaf(x, w[n], y[n]);
      }
    }
  }
}

void finish(const FloatConv2dFinish& f) {
  float* y = f.y;
  for (int64_t p = 0; p < f.pixels; ++p, y += f.channels) {
    for (int64_t n = 0; n < f.channels; ++n) {
      if (f.scale != nullptr) y[n] = f.scale[n] * y[n] + f.bias[n];
      if (f.slope != nullptr && !(y[n] >= 0)) y[n] *= f.slope[n];
    }
  }
}

void max_into(float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (b[i] > a[i] || b[i] != b[i]) a[i] = b[i];
}

}  // namespace

extern const FloatConv2dKernel float_conv2d_scalar;
const FloatConv2dKernel float_conv2d_scalar{row, finish, max_into};

}  // namespace bitnas::cpu

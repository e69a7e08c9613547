// A tile is 8 pixels by 32 channels: 16 sums, twice what hides the latency of an fma. A tap costs it 2 loads of weights
// and 8 broadcasts, so multiplying is what limits it; the weights of 32 channels stay in the L1.
#include <immintrin.h>

#include "kernels/cpu/float_conv2d.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kLanes = 16;

// Channels [first, first + vectors * 16), of which the last vector has those in `last`.
template <int pixels, int vectors>
inline void tile(const FloatConv2dRow& r, int64_t pixel, int64_t first, __mmask16 last) {
  const auto lanes = [&](int v) { return v + 1 < vectors ? __mmask16{0xffff} : last; };
  __m512 y[pixels][vectors];
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) {
    const __m512 bias = _mm512_maskz_loadu_ps(lanes(v), r.bias + first + v * kLanes);
#pragma GCC unroll 8
    for (int p = 0; p < pixels; ++p) y[p][v] = bias;
  }
  const float* weight = r.weight + first;
  for (int64_t ky = 0; ky < r.kernel_h; ++ky) {
    const float* row = r.rows[ky] + pixel * r.stride;
    for (int64_t t = 0; t < r.tap_count; ++t, weight += r.channels) {
      __m512 w[vectors];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) w[v] = _mm512_maskz_loadu_ps(lanes(v), weight + v * kLanes);
      const float* x = row + r.taps[t];
#pragma GCC unroll 8
      for (int p = 0; p < pixels; ++p) {
        const __m512 value = _mm512_set1_ps(x[p * r.stride]);
#pragma GCC unroll 8
        for (int v = 0; v < vectors; ++v) y[p][v] = _mm512_fmadd_ps(value, w[v], y[p][v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v)
      _mm512_mask_storeu_ps(r.out + (pixel + p) * r.channels + first + v * kLanes, lanes(v), y[p][v]);
}

template <int vectors>
inline void channels(const FloatConv2dRow& r, int64_t first, __mmask16 last) {
  int64_t p = 0;
  for (; p + 8 <= r.pixels; p += 8) tile<8, vectors>(r, p, first, last);
  if (r.pixels - p >= 4) tile<4, vectors>(r, p, first, last), p += 4;
  if (r.pixels - p >= 2) tile<2, vectors>(r, p, first, last), p += 2;
  if (r.pixels - p >= 1) tile<1, vectors>(r, p, first, last);
}

void row(const FloatConv2dRow& r) {
  for (int64_t first = 0; first < r.channels; first += 2 * kLanes) {
    const int64_t left = r.channels - first;
    const int64_t rest = left % kLanes;
    const __mmask16 last =
        rest == 0 || left > 2 * kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << rest) - 1);
    if (left > kLanes) {
      channels<2>(r, first, last);
    } else {
      channels<1>(r, first, last);
    }
  }
}

// The terms of 16 channels stay in registers while the pixels pass.
void finish(const FloatConv2dFinish& f) {
  for (int64_t first = 0; first < f.channels; first += kLanes) {
    const int64_t left = f.channels - first;
    const __mmask16 lanes = left >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << left) - 1);
    const auto term = [&](const float* terms, float otherwise) {
      return terms == nullptr ? _mm512_set1_ps(otherwise) : _mm512_maskz_loadu_ps(lanes, terms + first);
    };
    const __m512 scale = term(f.scale, 1.0f), slope = term(f.slope, 1.0f);
    const __m512 bias = term(f.scale == nullptr ? nullptr : f.bias, -0.0f);
    float* at = f.y + first;
    for (int64_t p = 0; p < f.pixels; ++p, at += f.channels) {
      const __m512 y = _mm512_add_ps(_mm512_mul_ps(_mm512_maskz_loadu_ps(lanes, at), scale), bias);
      const __mmask16 positive = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_GE_OQ);
      _mm512_mask_storeu_ps(at, lanes, _mm512_mask_mul_ps(y, static_cast<__mmask16>(~positive), y, slope));
    }
  }
}

void max_into(float* a, const float* b, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    const __mmask16 lanes = count - i >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << (count - i)) - 1);
    const __m512 other = _mm512_maskz_loadu_ps(lanes, b + i);
    const __m512 mine = _mm512_maskz_loadu_ps(lanes, a + i);
    const __mmask16 wins =
        _kor_mask16(_mm512_cmp_ps_mask(other, mine, _CMP_GT_OQ), _mm512_cmp_ps_mask(other, other, _CMP_UNORD_Q));
    _mm512_mask_storeu_ps(a + i, _kand_mask16(wins, lanes), other);
  }
}

}  // namespace

extern const FloatConv2dKernel float_conv2d_avx512;
const FloatConv2dKernel float_conv2d_avx512{row, finish, max_into};

}  // namespace bitnas::cpu

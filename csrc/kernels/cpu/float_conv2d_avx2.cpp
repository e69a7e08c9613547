// A tile is 6 pixels by 16 channels: 12 sums and their operands are what 16 registers hold.
#include <immintrin.h>

#include "kernels/cpu/float_conv2d.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kLanes = 8;

// The first `count` lanes, at most all.
inline __m256i first_lanes(int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(count < kLanes ? count : kLanes)), lane);
}

template <bool masked>
inline __m256 load(const float* x, __m256i lanes) {
  return masked ? _mm256_maskload_ps(x, lanes) : _mm256_loadu_ps(x);
}

template <bool masked>
inline void store(float* x, __m256i lanes, __m256 value) {
  if (masked) {
    _mm256_maskstore_ps(x, lanes, value);
  } else {
    _mm256_storeu_ps(x, value);
  }
}

// Channels from `first` on: whole vectors, or with `masked` one of `lanes`.
template <int pixels, int vectors, bool masked>
inline void tile(const FloatConv2dRow& r, int64_t pixel, int64_t first, __m256i lanes) {
  __m256 y[pixels][vectors];
#pragma GCC unroll 6
  for (int v = 0; v < vectors; ++v) {
    const __m256 bias = load<masked>(r.bias + first + v * kLanes, lanes);
#pragma GCC unroll 6
    for (int p = 0; p < pixels; ++p) y[p][v] = bias;
  }
  const float* weight = r.weight + first;
  for (int64_t ky = 0; ky < r.kernel_h; ++ky) {
    const float* row = r.rows[ky] + pixel * r.stride;
    for (int64_t t = 0; t < r.tap_count; ++t, weight += r.channels) {
      __m256 w[vectors];
#pragma GCC unroll 6
      for (int v = 0; v < vectors; ++v) w[v] = load<masked>(weight + v * kLanes, lanes);
      const float* x = row + r.taps[t];
#pragma GCC unroll 6
      for (int p = 0; p < pixels; ++p) {
        const __m256 value = _mm256_broadcast_ss(x + p * r.stride);
#pragma GCC unroll 6
        for (int v = 0; v < vectors; ++v) y[p][v] = _mm256_fmadd_ps(value, w[v], y[p][v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 6
    for (int v = 0; v < vectors; ++v)
      store<masked>(r.out + (pixel + p) * r.channels + first + v * kLanes, lanes, y[p][v]);
}

template <int vectors, bool masked>
inline void channels(const FloatConv2dRow& r, int64_t first, __m256i lanes) {
  int64_t p = 0;
  for (; p + 6 <= r.pixels; p += 6) tile<6, vectors, masked>(r, p, first, lanes);
  if (r.pixels - p >= 4) tile<4, vectors, masked>(r, p, first, lanes), p += 4;
  if (r.pixels - p >= 2) tile<2, vectors, masked>(r, p, first, lanes), p += 2;
  if (r.pixels - p >= 1) tile<1, vectors, masked>(r, p, first, lanes);
}

void row(const FloatConv2dRow& r) {
  int64_t first = 0;
  const __m256i all = first_lanes(kLanes);
  for (; first + 2 * kLanes <= r.channels; first += 2 * kLanes) channels<2, false>(r, first, all);
  for (; first + kLanes <= r.channels; first += kLanes) channels<1, false>(r, first, all);
  if (first < r.channels) channels<1, true>(r, first, first_lanes(r.channels - first));
}

// Of so many channels the terms stay in registers while the pixels pass.
template <bool masked>
inline void finish_channels(const FloatConv2dFinish& f, int64_t first, __m256i lanes) {
  const auto term = [&](const float* terms, float otherwise) {
    return terms == nullptr ? _mm256_set1_ps(otherwise) : load<masked>(terms + first, lanes);
  };
  const __m256 scale = term(f.scale, 1.0f), slope = term(f.slope, 1.0f);
  const __m256 bias = f.scale == nullptr ? _mm256_set1_ps(-0.0f) : load<masked>(f.bias + first, lanes);
  float* at = f.y + first;
  for (int64_t p = 0; p < f.pixels; ++p, at += f.channels) {
    const __m256 y = _mm256_add_ps(_mm256_mul_ps(load<masked>(at, lanes), scale), bias);
    const __m256 positive = _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_GE_OQ);
    store<masked>(at, lanes, _mm256_blendv_ps(_mm256_mul_ps(y, slope), y, positive));
  }
}

void finish(const FloatConv2dFinish& f) {
  int64_t first = 0;
  for (; first + kLanes <= f.channels; first += kLanes) finish_channels<false>(f, first, first_lanes(kLanes));
  if (first < f.channels) finish_channels<true>(f, first, first_lanes(f.channels - first));
}

void max_into(float* a, const float* b, int64_t count) {
  const auto larger = [](__m256 mine, __m256 other) {
    const __m256 wins = _mm256_or_ps(_mm256_cmp_ps(other, mine, _CMP_GT_OQ), _mm256_cmp_ps(other, other, _CMP_UNORD_Q));
    return _mm256_blendv_ps(mine, other, wins);
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes)
    _mm256_storeu_ps(a + i, larger(_mm256_loadu_ps(a + i), _mm256_loadu_ps(b + i)));
  const __m256i lanes = first_lanes(count - i);
  if (i < count)
    _mm256_maskstore_ps(a + i, lanes, larger(_mm256_maskload_ps(a + i, lanes), _mm256_maskload_ps(b + i, lanes)));
}

}  // namespace

extern const FloatConv2dKernel float_conv2d_avx2;
const FloatConv2dKernel float_conv2d_avx2{row, finish, max_into};

}  // namespace bitnas::cpu

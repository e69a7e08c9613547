// The float epilogue (epilogue.h) of 16 channels of one pixel. Internal linkage: ISA files share no inline function.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/mask_avx512.h"
#include "kernels/epilogue.h"

namespace bitnas::cpu {

// To bfloat16, nearest even; any NaN becomes the same one.
static inline __m256i to_bfloat16(__m512 value) {
  const __m512i bits = _mm512_castps_si512(value);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000)), 16));
}

static inline __m512 load_floats(FloatType type, const void* p, int64_t at, __mmask16 lanes) {
  if (type == FloatType::kFloat32) return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(p) + at);
  const __m256i half = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(p) + at);
  if (type == FloatType::kFloat16) return _mm512_cvtph_ps(half);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

// What is added to channels [n, n + 16) of a pixel, where the residual's channels are fewer and come round.
static inline __m512 load_tiled(const Epilogue& e, int64_t pixel, int64_t n, __mmask16 lanes) {
  __m512 y = _mm512_setzero_ps();
  int64_t from = n % e.residual_channels;
  for (int64_t lane = 0; lane < 16; from = 0) {
    const int64_t count = e.residual_channels - from < 16 - lane ? e.residual_channels - from : 16 - lane;
    const auto mask = static_cast<__mmask16>(((1u << count) - 1) << lane & lanes);
    y = _mm512_mask_mov_ps(y, mask, load_floats(e.type, e.residual, pixel * e.residual_channels + from - lane, mask));
    lane += count;
  }
  return y;
}

// Stores what the epilogue makes of the dots of channels [n, n + 16) under `lanes` (others are not touched), and
// returns their bits where e.packed asks for them.
static inline Word store_floats(const Epilogue& e, int64_t channels, int64_t pixel, int64_t n, __mmask16 lanes,
                                __m512i dot) {
  const int64_t at = pixel * channels + n;
  __m512 y = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_maskz_loadu_ps(lanes, e.scale + n));
  y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(lanes, e.bias + n));
  if (e.relu) y = _mm512_max_ps(y, _mm512_setzero_ps());
  if (e.residual != nullptr)
    y = _mm512_add_ps(y, e.residual_channels == channels ? load_floats(e.type, e.residual, at, lanes)
                                                         : load_tiled(e, pixel, n, lanes));
  if (e.slope != nullptr) {
    const __mmask16 negative = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_NGE_UQ);
    y = _mm512_mask_mul_ps(y, negative, y, _mm512_maskz_loadu_ps(lanes, e.slope + n));
  }
  if (e.type == FloatType::kFloat32) {
    _mm512_mask_storeu_ps(static_cast<float*>(e.out) + at, lanes, y);
  } else {
    const bool half = e.type == FloatType::kFloat16;
    const __m256i narrow = half ? _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT) : to_bfloat16(y);
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(e.out) + at, lanes, narrow);
    if (e.packed != nullptr)
      y = half ? _mm512_cvtph_ps(narrow) : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
  }
  if (e.packed == nullptr) return 0;
  const __m512 directed = _mm512_mul_ps(y, _mm512_maskz_loadu_ps(lanes, e.direction + n));
  const __m512 cut = _mm512_maskz_loadu_ps(lanes, e.cut + n);
  return mask_bits(_mm512_mask_cmp_ps_mask(lanes, directed, cut, _CMP_GE_OQ));
}

}  // namespace bitnas::cpu

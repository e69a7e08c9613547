// AVX-512 packing: a compare gives the bits directly, and masked loads end a row.
// Channels first: sixteen pixels side by side, one channel's bit at a time ORed in.
#include <immintrin.h>

#include "kernels/cpu/mask_avx512.h"
#include "kernels/pack.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 16;

inline __mmask16 first_lanes(int64_t count) {
  return count >= kLanes ? __mmask16{0xffff} : static_cast<__mmask16>((1u << count) - 1);
}

template <FloatType type>
inline __m512 load(const void* x, int64_t at, __mmask16 lanes) {
  if constexpr (type == FloatType::kFloat32) {
    return _mm512_maskz_loadu_ps(lanes, static_cast<const float*>(x) + at);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, static_cast<const uint16_t*>(x) + at);
    if constexpr (type == FloatType::kFloat16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

template <FloatType type>
void pack_channels_last(const PackArgs& args, int64_t begin, int64_t end) {
  constexpr FloatType f32 = FloatType::kFloat32;
  const int64_t words = words_for(args.channels);
  const __m512 threshold = _mm512_set1_ps(args.threshold);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t base = pixel * args.channels;
    for (int64_t i = 0; i < words; ++i) {
      Word word = 0;
      for (int64_t c = i * 64; c < args.channels && c < i * 64 + 64; c += kLanes) {
        const __mmask16 lanes = first_lanes(args.channels - c);
        const __m512 x = load<type>(args.x, base + c, lanes);
        const __mmask16 ones =
            args.thresholds == nullptr
                ? _mm512_mask_cmp_ps_mask(lanes, x, threshold, _CMP_GE_OQ)
                : _mm512_mask_cmp_ps_mask(lanes, _mm512_mul_ps(x, load<f32>(args.directions, c, lanes)),
                                          load<f32>(args.thresholds, c, lanes), _CMP_GE_OQ);
        word |= mask_bits(ones) << (c & 63);
      }
      args.out[pixel * words + i] = word;
    }
  }
}

// Pixels of one word: what their channels are compared with stays in registers.
template <FloatType type, int kVectors>
void pack_narrow(const PackArgs& args, int64_t begin, int64_t end) {
  __mmask16 lanes[kVectors];
  __m512 threshold[kVectors], direction[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) {
    lanes[v] = first_lanes(args.channels - v * kLanes);
    const bool own = args.thresholds != nullptr;
    threshold[v] =
        own ? load<FloatType::kFloat32>(args.thresholds, v * kLanes, lanes[v]) : _mm512_set1_ps(args.threshold);
    direction[v] = own ? load<FloatType::kFloat32>(args.directions, v * kLanes, lanes[v]) : _mm512_set1_ps(1.0f);
  }
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    Word word = 0;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const __m512 x = load<type>(args.x, pixel * args.channels + v * kLanes, lanes[v]);
      word |= mask_bits(_mm512_mask_cmp_ps_mask(lanes[v], _mm512_mul_ps(x, direction[v]), threshold[v], _CMP_GE_OQ))
              << (v * kLanes);
    }
    args.out[pixel] = word;
  }
}

// `count` pixels of one image from `first` on, all channels.
template <FloatType type>
void pack_planes(const PackArgs& args, int64_t image, int64_t first, int64_t count) {
  const int64_t words = words_for(args.channels);
  const __mmask16 pixels = first_lanes(count);
  const bool per_channel = args.thresholds != nullptr;
  Word* out = args.out + (image * args.plane + first) * words;
  for (int64_t i = 0; i < words; ++i) {
    __m512i halves[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    for (int64_t c = i * 64; c < args.channels && c < i * 64 + 64; ++c) {
      __m512 x = load<type>(args.x, (image * args.channels + c) * args.plane + first, pixels);
      if (per_channel) x = _mm512_mul_ps(x, _mm512_set1_ps(args.directions[c]));
      const __m512 threshold = _mm512_set1_ps(per_channel ? args.thresholds[c] : args.threshold);
      const __m512i bit = _mm512_set1_epi32(static_cast<int32_t>(1u << (c & 31)));
      __m512i& half = halves[(c >> 5) & 1];
      half = _mm512_mask_or_epi32(half, _mm512_cmp_ps_mask(x, threshold, _CMP_GE_OQ), half, bit);
    }
    alignas(64) uint32_t low[kLanes], high[kLanes];
    _mm512_store_si512(low, halves[0]);
    _mm512_store_si512(high, halves[1]);
    for (int64_t p = 0; p < count; ++p) out[p * words + i] = low[p] | static_cast<Word>(high[p]) << 32;
  }
}

template <FloatType type>
void pack(const PackArgs& args, int64_t begin, int64_t end) {
  if (args.channels_last) {
    switch ((args.channels + kLanes - 1) / kLanes) {
      case 1: return pack_narrow<type, 1>(args, begin, end);
      case 2: return pack_narrow<type, 2>(args, begin, end);
      case 3: return pack_narrow<type, 3>(args, begin, end);
      case 4: return pack_narrow<type, 4>(args, begin, end);
      default: return pack_channels_last<type>(args, begin, end);
    }
  }
  while (begin < end) {
    const int64_t image = begin / args.plane;
    const int64_t first = begin % args.plane;
    int64_t count = args.plane - first;
    if (count > end - begin) count = end - begin;
    if (count > kLanes) count = kLanes;
    pack_planes<type>(args, image, first, count);
    begin += count;
  }
}

}  // namespace

void pack_avx512(const PackArgs& args, int64_t begin, int64_t end) {
  switch (args.type) {
    case FloatType::kFloat32: return pack<FloatType::kFloat32>(args, begin, end);
    case FloatType::kBFloat16: return pack<FloatType::kBFloat16>(args, begin, end);
    case FloatType::kFloat16: return pack<FloatType::kFloat16>(args, begin, end);
  }
}

}  // namespace bitnas::cpu

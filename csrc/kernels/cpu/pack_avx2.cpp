// AVX2 packing. Channels last: compare eight channels, MOVMSKPS gives eight bits.
// Channels first: eight pixels side by side, one channel's bit at a time ORed in.
#include <immintrin.h>

#include "kernels/pack.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 8;

template <FloatType type>
inline __m256 load(const void* x, int64_t at) {
  if constexpr (type == FloatType::kFloat32) {
    return _mm256_loadu_ps(static_cast<const float*>(x) + at);
  } else {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(x) + at));
    if constexpr (type == FloatType::kFloat16) return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
  }
}

// The last values of a tensor: nothing past `count` is read.
template <FloatType type>
inline __m256 load_first(const void* x, int64_t at, int64_t count) {
  constexpr int64_t size = type == FloatType::kFloat32 ? 4 : 2;
  alignas(32) uint8_t buffer[32] = {};
  __builtin_memcpy(buffer, static_cast<const uint8_t*>(x) + at * size, count * size);
  return load<type>(buffer, 0);
}

inline __m256 ones(const PackArgs& args, __m256 x, __m256 threshold, __m256 direction) {
  if (args.thresholds != nullptr) x = _mm256_mul_ps(x, direction);
  return _mm256_cmp_ps(x, threshold, _CMP_GE_OQ);
}

template <FloatType type>
void pack_channels_last(const PackArgs& args, int64_t begin, int64_t end) {
  const int64_t words = words_for(args.channels);
  const bool per_channel = args.thresholds != nullptr;
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t base = pixel * args.channels;
    for (int64_t i = 0; i < words; ++i) {
      Word word = 0;
      for (int64_t c = i * 64; c < args.channels && c < i * 64 + 64; c += kLanes) {
        const int64_t count = args.channels - c < kLanes ? args.channels - c : kLanes;
        const bool whole = count == kLanes;
        const __m256 x = whole ? load<type>(args.x, base + c) : load_first<type>(args.x, base + c, count);
        __m256 threshold = _mm256_set1_ps(args.threshold), direction = threshold;
        if (per_channel) {
          constexpr FloatType f32 = FloatType::kFloat32;
          threshold = whole ? load<f32>(args.thresholds, c) : load_first<f32>(args.thresholds, c, count);
          direction = whole ? load<f32>(args.directions, c) : load_first<f32>(args.directions, c, count);
        }
        const auto bits = static_cast<uint32_t>(_mm256_movemask_ps(ones(args, x, threshold, direction)));
        word |= static_cast<Word>(bits & ((1u << count) - 1)) << (c & 63);
      }
      args.out[pixel * words + i] = word;
    }
  }
}

// `count` pixels of one image from `first` on, all channels.
template <FloatType type>
void pack_planes(const PackArgs& args, int64_t image, int64_t first, int64_t count) {
  const int64_t words = words_for(args.channels);
  Word* out = args.out + (image * args.plane + first) * words;
  for (int64_t i = 0; i < words; ++i) {
    __m256i halves[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    for (int64_t c = i * 64; c < args.channels && c < i * 64 + 64; ++c) {
      const int64_t at = (image * args.channels + c) * args.plane + first;
      const __m256 x = count == kLanes ? load<type>(args.x, at) : load_first<type>(args.x, at, count);
      const bool per_channel = args.thresholds != nullptr;
      const __m256 threshold = _mm256_set1_ps(per_channel ? args.thresholds[c] : args.threshold);
      const __m256 direction = _mm256_set1_ps(per_channel ? args.directions[c] : 1.0f);
      const __m256i bit = _mm256_set1_epi32(static_cast<int32_t>(1u << (c & 31)));
      __m256i& half = halves[(c >> 5) & 1];
      half = _mm256_or_si256(half, _mm256_and_si256(bit, _mm256_castps_si256(ones(args, x, threshold, direction))));
    }
    alignas(32) uint32_t low[kLanes], high[kLanes];
    _mm256_store_si256(reinterpret_cast<__m256i*>(low), halves[0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(high), halves[1]);
    for (int64_t p = 0; p < count; ++p) out[p * words + i] = low[p] | static_cast<Word>(high[p]) << 32;
  }
}

template <FloatType type>
void pack(const PackArgs& args, int64_t begin, int64_t end) {
  if (args.channels_last) return pack_channels_last<type>(args, begin, end);
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

void pack_avx2(const PackArgs& args, int64_t begin, int64_t end) {
  switch (args.type) {
    case FloatType::kFloat32: return pack<FloatType::kFloat32>(args, begin, end);
    case FloatType::kBFloat16: return pack<FloatType::kBFloat16>(args, begin, end);
    case FloatType::kFloat16: return pack<FloatType::kFloat16>(args, begin, end);
  }
}

}  // namespace bitnas::cpu

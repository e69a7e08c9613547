// AVX2 has no popcount, but PSHUFB looks 32 bytes up at once. Lanes are output
// channels: a weight byte holds four weights, the activation's nibble picks the
// table popcount(nibble XOR index), and one shuffle plus one add make 128 products.
//
//   per 128 bit products    uops    ports (Intel)   pipes (Zen 4)
//   vpshufb ymm              1      p15             2
//   vpaddb ymm               1      p015            4
//
// Counters are bytes: four per step, so they are widened every 63 steps.
#include <immintrin.h>

#include "kernels/xnor.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 32;
constexpr int kStepsPerFlush = 63;  // 63 * 4 = 252 still fits a byte

constexpr int64_t nibbles_for(int64_t channels) { return (channels + 3) / 4; }
constexpr int vectors_for(int channels) { return (channels + kLanes - 1) / kLanes; }

// kTables[a][w] = popcount(a ^ w). An expanded activation byte is a * 16: the table's own offset.
alignas(64) constexpr uint8_t kTables[256] = {
#define ROW(a)                                                                                                \
  POP(a ^ 0), POP(a ^ 1), POP(a ^ 2), POP(a ^ 3), POP(a ^ 4), POP(a ^ 5), POP(a ^ 6), POP(a ^ 7), POP(a ^ 8), \
      POP(a ^ 9), POP(a ^ 10), POP(a ^ 11), POP(a ^ 12), POP(a ^ 13), POP(a ^ 14), POP(a ^ 15)
#define POP(x) (((x) & 1) + (((x) >> 1) & 1) + (((x) >> 2) & 1) + (((x) >> 3) & 1))
    ROW(0), ROW(1), ROW(2),  ROW(3),  ROW(4),  ROW(5),  ROW(6),  ROW(7),
    ROW(8), ROW(9), ROW(10), ROW(11), ROW(12), ROW(13), ROW(14), ROW(15)};
#undef POP
#undef ROW

// Each byte becomes two: low nibble, high nibble, both in the upper four bits.
void expand(const Word* words, int64_t count, uint8_t* out) {
  const __m128i high = _mm_set1_epi8(static_cast<char>(0xf0));
  int64_t i = 0;
  for (; i + 2 <= count; i += 2, out += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(words + i));
    const __m128i hi = _mm_and_si128(bytes, high);
    const __m128i lo = _mm_and_si128(_mm_slli_epi16(bytes, 4), high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(lo, hi));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm_unpackhi_epi8(lo, hi));
  }
  if (i < count) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(words + i));
    const __m128i hi = _mm_and_si128(bytes, high);
    const __m128i lo = _mm_and_si128(_mm_slli_epi16(bytes, 4), high);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_unpacklo_epi8(lo, hi));
  }
}

int64_t panel_bytes(int channels, int64_t taps, int64_t tap_channels) {
  return taps * nibbles_for(tap_channels) * vectors_for(channels) * kLanes;
}

// [tap][nibble][lane]: one weight nibble of every channel side by side.
void make_panel(const Word* weight, int channels, int64_t taps, int64_t tap_channels, uint8_t* panel) {
  const int64_t nibbles = nibbles_for(tap_channels);
  const int64_t words = words_for(tap_channels);
  const int64_t step_bytes = vectors_for(channels) * kLanes;
  __builtin_memset(panel, 0, panel_bytes(channels, taps, tap_channels));
  for (int n = 0; n < channels; ++n) {
    for (int64_t t = 0; t < taps; ++t) {
      const Word* row = weight + (n * taps + t) * words;
      uint8_t* out = panel + t * nibbles * step_bytes + n;
      for (int64_t i = 0; i < nibbles; ++i) out[i * step_bytes] = (row[i / 16] >> (4 * (i & 15))) & 15;
    }
  }
}

template <int P, int V>
struct Counts {
  alignas(32) int32_t x[P][V * kLanes];
};

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Adds 32 byte counters to 32 int32 ones.
inline void widen_into(int32_t* x, __m256i bytes) {
  const __m128i half[2] = {_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1)};
#pragma GCC unroll 2
  for (int h = 0; h < 2; ++h) {
    auto* out = reinterpret_cast<__m256i*>(x + 16 * h);
    out[0] = _mm256_add_epi32(out[0], _mm256_cvtepu8_epi32(half[h]));
    out[1] = _mm256_add_epi32(out[1], _mm256_cvtepu8_epi32(_mm_srli_si128(half[h], 8)));
  }
}

template <int P, int V>
inline void flush(Counts<P, V>& counts, __m256i (&acc)[P][V]) {
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      widen_into(counts.x[p] + v * kLanes, acc[p][v]);
      acc[p][v] = _mm256_setzero_si256();
    }
}

template <int P, int V>
inline void accumulate(const Strip& s, int64_t first, Counts<P, V>& counts) {
  __m256i acc[P][V];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) acc[p][v] = _mm256_setzero_si256();

  const int64_t nibbles = nibbles_for(s.tap_channels);
  const int64_t pitch = s.pixel_pitch;
  const uint8_t* w = s.panel;
  int64_t room = kStepsPerFlush;
  for (int64_t t = 0; t < s.tap_count; ++t) {
    const uint8_t* a = s.input + first * pitch + s.taps[t];
    for (int64_t left = nibbles; left > 0;) {
      const int64_t steps = left < room ? left : room;
      for (int64_t i = 0; i < steps; ++i, ++a, w += V * kLanes) {
        __m256i table[P];
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p)
          table[p] =
              _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTables + a[p * pitch])));
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          const __m256i weights = load(w + v * kLanes);
#pragma GCC unroll 4
          for (int p = 0; p < P; ++p) acc[p][v] = _mm256_add_epi8(acc[p][v], _mm256_shuffle_epi8(table[p], weights));
        }
      }
      left -= steps;
      room -= steps;
      if (room == 0) {
        flush<P, V>(counts, acc);
        room = kStepsPerFlush;
      }
    }
  }
  flush<P, V>(counts, acc);
}

inline __m256i first_lanes(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

inline void store_pixel(const Strip& s, int64_t pixel, const int32_t* x) {
  const int32_t* offsets = strip_offsets(s, pixel);
  const __m128i shift = _mm_cvtsi32_si128(s.shift);
  Word ones = 0;
  for (int n = 0; n < s.channels; n += 8) {
    const __m256i lanes = first_lanes(s.channels - n);
    const __m256i offset = _mm256_maskload_epi32(offsets + n, lanes);
    const __m256i count = load(x + n);
    if (s.kind == EpilogueKind::kBits) {
      const __m256i above = _mm256_cmpgt_epi32(count, offset);
      const auto zeros = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(above)));
      ones |= static_cast<Word>(zeros ^ 0xffu) << n;
      continue;
    }
    const __m256i dot = _mm256_sub_epi32(offset, _mm256_sll_epi32(count, shift));
    const int64_t at = pixel * s.out_pitch + n;
    if (s.kind == EpilogueKind::kInt32) {
      _mm256_maskstore_epi32(static_cast<int32_t*>(s.out) + at, lanes, dot);
    } else {
      const __m256 scaled = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_maskload_ps(s.scale + n, lanes));
      _mm256_maskstore_ps(static_cast<float*>(s.out) + at, lanes,
                          _mm256_add_ps(scaled, _mm256_maskload_ps(s.bias + n, lanes)));
    }
  }
  if (s.kind == EpilogueKind::kBits) store_bits(s, pixel, ones);
}

template <int P, int V>
inline void tile(const Strip& s, int64_t first) {
  Counts<P, V> counts;
  __builtin_memset(&counts, 0, sizeof counts);
  accumulate<P, V>(s, first, counts);
  for (int p = 0; p < P; ++p) store_pixel(s, first + p, counts.x[p]);
}

template <int V>
void tiles(const Strip& s) {
  int64_t p = 0;
  for (; p + 4 <= s.pixels; p += 4) tile<4, V>(s, p);
  switch (s.pixels - p) {
    case 3: tile<3, V>(s, p); break;
    case 2: tile<2, V>(s, p); break;
    case 1: tile<1, V>(s, p); break;
    default: break;
  }
}

void strip(const Strip& s) { vectors_for(s.channels) == 1 ? tiles<1>(s) : tiles<2>(s); }

}  // namespace

extern const XnorKernel xnor_avx2;
const XnorKernel xnor_avx2 = {16, expand, panel_bytes, make_panel, strip};

}  // namespace bitnas::cpu

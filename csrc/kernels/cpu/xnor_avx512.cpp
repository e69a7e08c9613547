// AVX-512 VPOPCNTDQ. Lanes are output channels, 16 to a register; an activation
// is broadcast, 32 bits at a time, so nothing is ever summed across lanes.
//
//   per 512 bit products    uops    ports (Intel)   pipes (Zen 4, 2 x 256 bit)
//   vpxord zmm, m32{1to16}   1      p05 + load      4
//   vpopcntd zmm             1      p5              2
//   vpaddd zmm               1      p05             4
#include <immintrin.h>

#include "kernels/cpu/mask_avx512.h"
#include "kernels/xnor.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kUnitBits = 32;

constexpr int64_t units_for(int64_t channels) { return (channels + kUnitBits - 1) / kUnitBits; }
constexpr int vectors_for(int channels) { return (channels + kLanes - 1) / kLanes; }

int64_t panel_bytes(int channels, int64_t taps, int64_t tap_channels) {
  return taps * units_for(tap_channels) * vectors_for(channels) * 64;
}

// [tap][unit][lane]: the 32-bit units of all channels side by side, lanes past `channels` zero.
void make_panel(const Word* weight, int channels, int64_t taps, int64_t tap_channels, uint8_t* panel) {
  const int64_t units = units_for(tap_channels);
  const int64_t words = words_for(tap_channels);
  const int64_t unit_bytes = vectors_for(channels) * 64;
  __builtin_memset(panel, 0, panel_bytes(channels, taps, tap_channels));
  for (int n = 0; n < channels; ++n) {
    for (int64_t t = 0; t < taps; ++t) {
      const Word* row = weight + (n * taps + t) * words;
      for (int64_t u = 0; u < units; ++u) {
        const auto unit = static_cast<uint32_t>(row[u / 2] >> (32 * (u & 1)));
        __builtin_memcpy(panel + (t * units + u) * unit_bytes + n * 4, &unit, sizeof unit);
      }
    }
  }
}

inline __m512i broadcast_unit(const uint8_t* p) {
  int32_t unit;
  __builtin_memcpy(&unit, p, sizeof unit);
  return _mm512_set1_epi32(unit);
}

// P pixels by V vectors of 16 channels, the accumulators in registers throughout.
template <int P, int V>
inline void tile(const Strip& s, int64_t first) {
  __m512i acc[P][V];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[p][v] = _mm512_setzero_si512();

  const int64_t units = units_for(s.tap_channels);
  const uint8_t* w = s.panel;
  for (int64_t t = 0; t < s.tap_count; ++t) {
    const uint8_t* a = s.input + first * s.pixel_pitch + s.taps[t];
    for (int64_t u = 0; u < units; ++u, a += 4, w += V * 64) {
      __m512i weights[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) weights[v] = _mm512_loadu_si512(w + v * 64);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __m512i bits = broadcast_unit(a + p * s.pixel_pitch);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v)
          acc[p][v] = _mm512_add_epi32(acc[p][v], _mm512_popcnt_epi32(_mm512_xor_si512(weights[v], bits)));
      }
    }
  }

  const __m128i shift = _mm_cvtsi32_si128(s.shift);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    const int64_t pixel = first + p;
    const int32_t* offsets = strip_offsets(s, pixel);
    Word ones = 0;
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      const int left = s.channels - v * kLanes;
      const __mmask16 lanes = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      const __m512i offset = _mm512_maskz_loadu_epi32(lanes, offsets + v * kLanes);
      if (s.kind == EpilogueKind::kBits) {
        ones |= mask_bits(_mm512_cmple_epi32_mask(acc[p][v], offset)) << (v * kLanes);
        continue;
      }
      const __m512i dot = _mm512_sub_epi32(offset, _mm512_sll_epi32(acc[p][v], shift));
      const int64_t at = pixel * s.out_pitch + v * kLanes;
      if (s.kind == EpilogueKind::kInt32) {
        _mm512_mask_storeu_epi32(static_cast<int32_t*>(s.out) + at, lanes, dot);
      } else {
        const __m512 scaled =
            _mm512_mul_ps(_mm512_cvtepi32_ps(dot), _mm512_maskz_loadu_ps(lanes, s.scale + v * kLanes));
        _mm512_mask_storeu_ps(static_cast<float*>(s.out) + at, lanes,
                              _mm512_add_ps(scaled, _mm512_maskz_loadu_ps(lanes, s.bias + v * kLanes)));
      }
    }
    if (s.kind == EpilogueKind::kBits) store_bits(s, pixel, ones);
  }
}

// Tiles of P pixels, then what is left in one smaller tile.
template <int P, int V>
void tiles(const Strip& s) {
  int64_t p = 0;
  for (; p + P <= s.pixels; p += P) tile<P, V>(s, p);
  if constexpr (P == 8) {
    if (s.pixels - p >= 4) tile<4, V>(s, p), p += 4;
  }
  switch (s.pixels - p) {
    case 3: tile<3, V>(s, p); break;
    case 2: tile<2, V>(s, p); break;
    case 1: tile<1, V>(s, p); break;
    default: break;
  }
}

void strip(const Strip& s) {
  switch (vectors_for(s.channels)) {
    case 1: tiles<8, 1>(s); break;
    case 2: tiles<8, 2>(s); break;
    case 3: tiles<4, 3>(s); break;
    default: tiles<4, 4>(s); break;
  }
}

}  // namespace

extern const XnorKernel xnor_avx512;
const XnorKernel xnor_avx512 = {8, nullptr, panel_bytes, make_panel, strip};

}  // namespace bitnas::cpu

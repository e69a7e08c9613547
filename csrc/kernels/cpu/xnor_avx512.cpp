// AVX-512 VPOPCNTDQ. Lanes are output channels, 16 to a register; an activation is broadcast, 32 bits (a unit) at a
// time, so nothing is ever summed across lanes. Two kernels:
//
//   popcount  3 uops a unit: xor, popcount, add.
//   edges     2.5 uops a unit. Staged units are prefix sums modulo 2: unit j of a row is the XOR of units 0 .. j, and
//   so
//             it is with the weights of a run. Then u_j = a_j ^ w_j toggles wherever activation and weight differ in
//             unit j, and the ones among the differences are toggles of u. In each bit rising and falling edges
//             alternate:
//                 ones = 2 * falling edges + u_last - u_first.
//             Two neighbouring steps hold at most one falling edge of a bit, so one ternary operation finds those of
//             two units, and only half as many words are counted. u_first is the prefix just before the run, which no
//             weight touches: its ones are counted once per pixel, by a scalar instruction.
//
//   uops per two units    xor popcount ternary add   port bound (Intel p05 / Zen 4, 2 zmm a cycle)
//   popcount               2      2       0     2     341 products a cycle
//   edges                  2      1       1     1     410
//   and folded carry-save  1      1       2     1     410, but a ternary costs Zen 4 more than a xor: 350 were
//                                                     measured against 381 for edges and 339 for popcount
#include <immintrin.h>

#include "kernels/cpu/epilogue_avx512.h"
#include "kernels/cpu/strip.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 16;
constexpr int kTile = 8;  // pixels; their accumulators, states and ends fill 24 registers
constexpr int64_t kUnitBits = 32;
constexpr int64_t kUnitBytes = 4;

constexpr int64_t units_for(int64_t channels) { return (channels + kUnitBits - 1) / kUnitBits; }
constexpr int vectors_for(int channels) { return (channels + kLanes - 1) / kLanes; }

constexpr __mmask16 lanes_left(int channels) {
  return channels >= kLanes ? 0xffff : static_cast<__mmask16>((1u << channels) - 1);
}

inline uint32_t load_unit(const uint8_t* p) {
  uint32_t unit;
  __builtin_memcpy(&unit, p, sizeof unit);
  return unit;
}

inline void store_unit(uint8_t* p, uint32_t unit) { __builtin_memcpy(p, &unit, sizeof unit); }

inline __m512i broadcast_unit(const uint8_t* p) { return _mm512_set1_epi32(static_cast<int>(load_unit(p))); }

// ---- staging ----------------------------------------------------------------

int64_t pixel_bytes(int64_t channels) { return units_for(channels) * kUnitBytes; }

int64_t row_bytes(int64_t pixels, int64_t channels) { return pixels * pixel_bytes(channels); }

// Units side by side, without the empty upper half of a last word.
void stage(const StageRow& row, uint8_t* out) {
  const int64_t bytes = pixel_bytes(row.channels);
  const int64_t word_bytes = words_for(row.channels) * static_cast<int64_t>(sizeof(Word));
  __builtin_memset(out, 0, row.left * bytes);
  out += row.left * bytes;
  if (bytes == word_bytes) {
    if (row.pixels > 0) __builtin_memcpy(out, row.words, row.pixels * bytes);
  } else {
    const auto* in = reinterpret_cast<const uint8_t*>(row.words);
    const int64_t narrow = bytes == kUnitBytes ? row.pixels : 0;
    for (int64_t p = 0; p < narrow; p += 8) {
      const __mmask8 lanes = narrow - p >= 8 ? 0xff : static_cast<__mmask8>((1u << (narrow - p)) - 1);
      _mm512_mask_cvtepi64_storeu_epi32(out + p * kUnitBytes, lanes, _mm512_maskz_loadu_epi64(lanes, row.words + p));
    }
    for (int64_t p = narrow; p < row.pixels; ++p) __builtin_memcpy(out + p * bytes, in + p * word_bytes, bytes);
  }
  __builtin_memset(out + row.pixels * bytes, 0, row.right * bytes);
}

int64_t edges_row_bytes(int64_t pixels, int64_t channels) { return kUnitBytes + row_bytes(pixels, channels); }

// The prefix XOR of those units, behind the empty prefix.
void stage_edges(const StageRow& row, uint8_t* out) {
  store_unit(out, 0);
  out += kUnitBytes;
  stage(row, out);
  const __m512i zero = _mm512_setzero_si512(), last = _mm512_set1_epi32(kLanes - 1);
  __m512i carry = zero;
  for (int64_t left = (row.left + row.pixels + row.right) * units_for(row.channels); left > 0; left -= kLanes) {
    const __mmask16 lanes = lanes_left(left < kLanes ? static_cast<int>(left) : kLanes);
    __m512i x = _mm512_maskz_loadu_epi32(lanes, out);
    x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 15));
    x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 14));
    x = _mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 12));
    x = _mm512_xor_si512(_mm512_xor_si512(x, _mm512_alignr_epi32(x, zero, 8)), carry);
    carry = _mm512_permutexvar_epi32(last, x);
    _mm512_mask_storeu_epi32(out, lanes, x);
    out += kLanes * kUnitBytes;
  }
}

// ---- weights ----------------------------------------------------------------

void count_ones(const Word* rows, int64_t count, int64_t words, int32_t* ones) {
  for (int64_t i = 0; i < count; ++i, rows += words) {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t j = 0; j < words; j += 8) {
      const __mmask8 lanes = words - j >= 8 ? 0xff : static_cast<__mmask8>((1u << (words - j)) - 1);
      sum = _mm512_add_epi64(sum, _mm512_popcnt_epi64(_mm512_maskz_loadu_epi64(lanes, rows + j)));
    }
    ones[i] = static_cast<int32_t>(_mm512_reduce_add_epi64(sum));
  }
}

int64_t panel_bytes(int channels, int64_t runs, int64_t run_taps, int64_t tap_channels) {
  return runs * run_taps * units_for(tap_channels) * vectors_for(channels) * 64;
}

// A unit of each of 16 rows, `pitch` bytes apart; 0 where `lanes` has none.
inline __m512i gather_rows(const uint8_t* first, int64_t pitch, __mmask16 lanes) {
  const __m512i rows = _mm512_setr_epi64(0, pitch, 2 * pitch, 3 * pitch, 4 * pitch, 5 * pitch, 6 * pitch, 7 * pitch);
  const __m256i none = _mm256_setzero_si256();
  const __m256i low = _mm512_mask_i64gather_epi32(none, static_cast<__mmask8>(lanes), rows, first, 1);
  const __m256i high = _mm512_mask_i64gather_epi32(none, static_cast<__mmask8>(lanes >> 8), rows, first + 8 * pitch, 1);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// [vector][run][unit][lane]: one unit of 16 channels side by side, lanes past `channels` zero.
template <bool kEdges>
void make_panel(const Word* weight, int channels, int64_t runs, int64_t run_taps, int64_t tap_channels,
                uint8_t* panel) {
  const int64_t units = units_for(tap_channels);
  const int64_t tap_bytes = words_for(tap_channels) * static_cast<int64_t>(sizeof(Word));
  const int64_t channel_bytes = runs * run_taps * tap_bytes;
  const auto* base = reinterpret_cast<const uint8_t*>(weight);
  for (int n = 0; n < channels; n += kLanes, base += kLanes * channel_bytes) {
    const __mmask16 lanes = lanes_left(channels - n);
    const uint8_t* tap = base;
    for (int64_t r = 0; r < runs; ++r) {
      __m512i prefix = _mm512_setzero_si512();
      for (int64_t t = 0; t < run_taps; ++t, tap += tap_bytes) {
        for (int64_t u = 0; u < units; ++u, panel += 64) {
          const __m512i unit = gather_rows(tap + u * kUnitBytes, channel_bytes, lanes);
          prefix = kEdges ? _mm512_xor_si512(prefix, unit) : unit;
          _mm512_storeu_si512(panel, prefix);
        }
      }
    }
  }
}

// ---- products ---------------------------------------------------------------

// Where the pixels of a tile are read. Three pointers and x86's addressing reach eight pixels.
struct Pixels {
  const uint8_t* third[3];
  int64_t pitch;

  Pixels(const uint8_t* a, int64_t pitch) : third{a, a + 3 * pitch, a + 6 * pitch}, pitch(pitch) {}
  const uint8_t* operator[](int p) const { return third[p / 3] + p % 3 * pitch; }
  Pixels at(int64_t offset) const {
    Pixels moved = *this;
    for (const uint8_t*& a : moved.third) a += offset;
    return moved;
  }
};

// Keeps an accumulator in the register it is in; left to itself, GCC 12 renames them all and copies or spills.
inline void keep(__m512i& value) { asm("" : "+v"(value)); }

// x of P pixels from `first` on by the 16 channels of one vector of weights. One loop over all units of the window:
// runs of few units are over before a loop of their own pays.
template <int P, bool kOneRun>
inline void count_popcount(const Strip& s, int64_t first, const uint8_t* w, int64_t units, __m512i (&x)[P]) {
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) x[p] = _mm512_setzero_si512();
  const Pixels window(s.input + first * s.pixel_pitch + (kOneRun ? s.runs[0] : 0), s.pixel_pitch);
  const int64_t count = kOneRun ? units : s.run_count * units;
  for (int64_t u = 0; u < count; ++u, w += 64) {
    const __m512i weights = _mm512_loadu_si512(w);
    const Pixels a = window.at(kOneRun ? u * kUnitBytes : s.units[u]);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      x[p] = _mm512_add_epi32(x[p], _mm512_popcnt_epi32(_mm512_xor_si512(weights, broadcast_unit(a[p]))));
      keep(x[p]);
    }
  }
}

// Two units of one pixel. Written out, because GCC 12 otherwise shuffles the states between registers at every turn of
// the loop, at a tenth of the speed (Zen 4).
inline void step_edges(__m512i& u, __m512i& falling, __m512i w1, __m512i w2, const uint8_t* a) {
  struct [[gnu::may_alias, gnu::packed]] Unit {
    uint32_t bits;
  };
  const auto* units = reinterpret_cast<const Unit*>(a);
  __m512i u1, u2;
  asm("vpxord %[a1]%{1to16%}, %[w1], %[u1]\n\t"
      "vpxord %[a2]%{1to16%}, %[w2], %[u2]\n\t"
      "vpternlogd $0x74, %[u2], %[u1], %[u]\n\t"  // falling edges: (u & ~u1) | (u1 & ~u2)
      "vpopcntd %[u], %[u]\n\t"
      "vpaddd %[u], %[falling], %[falling]\n\t"
      "vmovdqa64 %[u2], %[u]"
      : [u] "+v"(u), [falling] "+v"(falling), [u1] "=&v"(u1), [u2] "=&v"(u2)
      : [w1] "v"(w1), [w2] "v"(w2), [a1] "m"(units[0]), [a2] "m"(units[1]));
}

// The same by edges; begins[p] holds the ones of u_first over all runs.
template <int P>
inline void count_edges(const Strip& s, int64_t first, const uint8_t* w, int64_t units, const int32_t (&begins)[P],
                        __m512i (&x)[P]) {
  __m512i falling[P], u[P];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    falling[p] = _mm512_setzero_si512();
    x[p] = _mm512_set1_epi32(-begins[p]);
  }
  for (int64_t r = 0; r < s.run_count; ++r) {
    Pixels a(s.input + first * s.pixel_pitch + s.runs[r], s.pixel_pitch);
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      u[p] = broadcast_unit(a[p] - kUnitBytes);
      keep(u[p]);
    }
    int64_t left = units;
    for (; left >= 2; left -= 2, a = a.at(2 * kUnitBytes), w += 128) {
      const __m512i w1 = _mm512_loadu_si512(w), w2 = _mm512_loadu_si512(w + 64);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) step_edges(u[p], falling[p], w1, w2, a[p]);
    }
    if (left != 0) {
      const __m512i w1 = _mm512_loadu_si512(w);
      w += 64;
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __m512i u1 = _mm512_xor_si512(w1, broadcast_unit(a[p]));
        falling[p] = _mm512_add_epi32(falling[p], _mm512_popcnt_epi32(_mm512_andnot_si512(u1, u[p])));
        u[p] = u1;
        keep(u[p]);
        keep(falling[p]);
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      x[p] = _mm512_add_epi32(x[p], _mm512_popcnt_epi32(u[p]));
      keep(x[p]);
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) x[p] = _mm512_add_epi32(x[p], _mm512_add_epi32(falling[p], falling[p]));
}

// Writes 16 bits of a panel that has its output words to itself.
inline void store_mask(Word* word, int v, __mmask16 mask) {
  using Alias [[gnu::may_alias]] = uint16_t;
  *(reinterpret_cast<Alias*>(word) + v) = mask;
}

inline __mmask16 load_mask(const Word* words, int v) {
  uint16_t mask;
  __builtin_memcpy(&mask, reinterpret_cast<const uint8_t*>(words) + 2 * v, sizeof mask);
  return mask;
}

template <bool kEdges, int P>
void tile(const Strip& s, int64_t first) {
  const int64_t units = s.run_taps * units_for(s.tap_channels);
  const int64_t vector_bytes = s.run_count * units * 64;
  const int vectors = vectors_for(s.channels);
  const Epilogue& e = *s.epilogue;
  const int32_t* offsets[P];
  int32_t begins[P] = {};
  for (int p = 0; p < P; ++p) offsets[p] = strip_offsets(s, first + p);
  if constexpr (kEdges) {
    for (int64_t r = 0; r < s.run_count; ++r)
      for (int p = 0; p < P; ++p)
        begins[p] += __builtin_popcount(load_unit(s.input + (first + p) * s.pixel_pitch + s.runs[r] - kUnitBytes));
  }
  const auto count = [&](int v, __m512i(&x)[P]) {
    if constexpr (kEdges) {
      count_edges<P>(s, first, s.panel + v * vector_bytes, units, begins, x);
    } else if (s.run_count == 1) {
      count_popcount<P, true>(s, first, s.panel + v * vector_bytes, units, x);
    } else {
      count_popcount<P, false>(s, first, s.panel + v * vector_bytes, units, x);
    }
  };
  __m512i x[P];
  if (e.kind == EpilogueKind::kBits && !s.merge) {
    const int64_t pitch = words_for(s.out_channels);
    Word* out = static_cast<Word*>(e.out) + (s.pixel + first) * pitch + s.first / kWordBits;
    const Word* flips = e.flip == nullptr ? nullptr : e.flip + s.first / kWordBits;
    for (int v = 0; v < vectors; ++v) {
      count(v, x);
      const __mmask16 lanes = lanes_left(s.channels - v * kLanes);
      const __mmask16 flip = flips == nullptr ? __mmask16{0} : load_mask(flips, v);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const __mmask16 ones = _mm512_mask_cmple_epi32_mask(lanes, x[p], _mm512_loadu_si512(offsets[p] + v * kLanes));
        store_mask(out + p * pitch, v, _kxor_mask16(ones, _kand_mask16(flip, lanes)));
      }
    }
    for (int v = vectors; v < kPanelChannels / kLanes; ++v)
      for (int p = 0; p < P; ++p) store_mask(out + p * pitch, v, 0);
    return;
  }
  const __m128i shift = _mm_cvtsi32_si128(s.shift);
  const auto dot = [&](int p, int v) {
    return _mm512_sub_epi32(_mm512_loadu_si512(offsets[p] + v * kLanes), _mm512_sll_epi32(x[p], shift));
  };
  if (e.kind == EpilogueKind::kInt32) {
    int32_t* out = static_cast<int32_t*>(e.out) + (s.pixel + first) * s.out_channels + s.first;
    for (int v = 0; v < vectors; ++v) {
      count(v, x);
      const __mmask16 lanes = lanes_left(s.channels - v * kLanes);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) _mm512_mask_storeu_epi32(out + p * s.out_channels + v * kLanes, lanes, dot(p, v));
    }
    return;
  }
  Word bits[P] = {};
  const Epilogue own = e;  // which no store can be taken to change
  const bool thresholded = own.kind == EpilogueKind::kBits;
  Word* const packed = thresholded ? static_cast<Word*>(own.out) : own.packed;
  // Floats pack into words that no other panel shares at once: what waits in `bits` costs more than the dots.
  const int64_t pitch = words_for(s.out_channels);
  Word* const at_once =
      thresholded || s.merge || packed == nullptr ? nullptr : packed + (s.pixel + first) * pitch + s.first / kWordBits;
  for (int v = 0; v < vectors; ++v) {
    count(v, x);
    const __mmask16 lanes = lanes_left(s.channels - v * kLanes);
    if (!thresholded) {
      __m512i dots[P];
      for (int p = 0; p < P; ++p) dots[p] = dot(p, v);
      for (int p = 0; p < P; ++p) {
        const Word ones = store_floats(own, s.out_channels, s.pixel + first + p, s.first + v * kLanes, lanes, dots[p]);
        if (at_once == nullptr) {
          bits[p] |= ones << (v * kLanes);
        } else if (v == 0) {
          at_once[p * pitch] = ones;
        } else {
          store_mask(at_once + p * pitch, v, static_cast<__mmask16>(ones));
        }
      }
    } else {
      for (int p = 0; p < P; ++p)
        bits[p] |= mask_bits(_mm512_cmple_epi32_mask(x[p], _mm512_loadu_si512(offsets[p] + v * kLanes)))
                   << (v * kLanes);
    }
  }
  if (packed == nullptr || at_once != nullptr) return;
  for (int p = 0; p < P; ++p)
    store_bits(packed, s.out_channels, s.pixel + first + p, s.first, s.channels, bits[p],
               thresholded ? own.flip : nullptr, s.merge);
}

// Tiles of nearly equal widths: seven pixels twice rather than eight and six.
template <bool kEdges>
void strip(const Strip& s) {
  const int64_t tiles = (s.pixels + kTile - 1) / kTile;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t first = i * s.pixels / tiles;
    switch ((i + 1) * s.pixels / tiles - first) {
      case 8: tile<kEdges, 8>(s, first); break;
      case 7: tile<kEdges, 7>(s, first); break;
      case 6: tile<kEdges, 6>(s, first); break;
      case 5: tile<kEdges, 5>(s, first); break;
      case 4: tile<kEdges, 4>(s, first); break;
      case 3: tile<kEdges, 3>(s, first); break;
      case 2: tile<kEdges, 2>(s, first); break;
      default: tile<kEdges, 1>(s, first); break;
    }
  }
}

}  // namespace

extern const StripKernel xnor_avx512_popcount, xnor_avx512_edges;
const StripKernel xnor_avx512_popcount = {
    pixel_bytes, row_bytes, 0, stage, true, kUnitBytes, count_ones, panel_bytes, make_panel<false>, strip<false>};
const StripKernel xnor_avx512_edges = {pixel_bytes, edges_row_bytes, kUnitBytes,  stage_edges,      false,
                                       0,           count_ones,      panel_bytes, make_panel<true>, strip<true>};

}  // namespace bitnas::cpu

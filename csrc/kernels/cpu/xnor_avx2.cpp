// AVX2 has no popcount, but PSHUFB looks 32 bytes up at once. Lanes are output channels: a weight byte holds four
// weights of one channel, and the activations choose the table popcount(nibble XOR index). A table serves two pixels:
// its bytes hold a count of each, in their low and high four bits. A count is at most 4, so three lookups are added
// before the high one is parted into bytes of its own, and 21 such sums before the bytes are widened. Sums of both are
// kept modulo 256: less sixteen times the high counts, they are the low counts.
//
//   per 768 bit products (3 lookups)   uops   ports (Intel)   pipes (Zen 4)
//   vpshufb ymm                         3      p15             2
//   vpaddb ymm                          4      p015            4
//   vpand, vpsrlw ymm                   2      p015            4
//
// 256 products a cycle by Intel's ports and 341 by Zen 4's pipes; with one pixel to a byte 192 and 256.
#include <immintrin.h>

#include "kernels/cpu/finish.h"
#include "kernels/cpu/strip.h"

namespace bitnas::cpu {
namespace {

constexpr int kLanes = 32;
constexpr int64_t kNibbleBytes = 2;        // a staged nibble of two pixels: the offset of its table
constexpr int kLookupsPerSum = 3;          // of at most 4 each: 12 fits four bits
constexpr int64_t kSumsPerFlush = 21;      // of at most 12 each: 252 fits a byte
constexpr int64_t kFlushesPerSpill = 256;  // of at most 252 each: 64,512 fits 16 bits

constexpr int64_t nibbles_for(int64_t channels) { return (channels + 3) / 4; }
constexpr int vectors_for(int channels) { return (channels + kLanes - 1) / kLanes; }

// kTables[q * 16 + p][w] = popcount(p ^ w) + 16 * popcount(q ^ w), for the nibbles p and q of two pixels.
struct Tables {
  uint8_t bytes[256 * 16];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int pair = 0; pair < 256; ++pair) {
    for (int w = 0; w < 16; ++w) {
      int counts[2] = {};
      for (int bit = 0; bit < 4; ++bit) {
        counts[0] += ((pair ^ w) >> bit) & 1;
        counts[1] += ((pair >> 4 ^ w) >> bit) & 1;
      }
      tables.bytes[pair * 16 + w] = static_cast<uint8_t>(counts[0] + 16 * counts[1]);
    }
  }
  return tables;
}

alignas(64) constexpr Tables kTables = make_tables();

inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store(void* p, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(p), value); }

// ---- staging ----------------------------------------------------------------

constexpr int64_t kSlack = 64;  // a pixel is stored 16 nibbles at a time, over what the next one stores again

int64_t pixel_bytes(int64_t channels) { return nibbles_for(channels) * kNibbleBytes; }

int64_t row_bytes(int64_t pixels, int64_t channels) { return pixels * pixel_bytes(channels) + kSlack; }

// 16 nibbles of the pixels p and q as offsets of tables, 16 bits each.
inline void stage_word(Word p, Word q, uint8_t* out) {
  const __m128i low = _mm_set1_epi8(0x0f), high = _mm_set1_epi8(static_cast<char>(0xf0));
  const __m128i vp = _mm_cvtsi64_si128(static_cast<long long>(p)), vq = _mm_cvtsi64_si128(static_cast<long long>(q));
  const __m128i even = _mm_or_si128(_mm_and_si128(vp, low), _mm_and_si128(_mm_slli_epi16(vq, 4), high));
  const __m128i odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(vp, 4), low), _mm_and_si128(vq, high));
  store(out, _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(even, odd)), 4));
}

// Each pixel with the one that the next output position reads in its place.
void stage(const StageRow& row, uint8_t* out) {
  const int64_t words = words_for(row.channels), bytes = pixel_bytes(row.channels);
  const int64_t total = row.left + row.pixels + row.right;
  const auto real = [&row](int64_t x) { return x >= row.left && x < row.left + row.pixels; };
  for (int64_t x = 0; x < total; ++x, out += bytes) {
    const bool p_real = real(x), q_real = real(x + row.stride);
    if (!p_real && !q_real) {
      __builtin_memset(out, 0, bytes);
      continue;
    }
    const Word* p = row.words + (x - row.left) * words;
    const Word* q = p + row.stride * words;
    if (p_real && q_real) {
      for (int64_t i = 0; i < words; ++i) stage_word(p[i], q[i], out + i * 32);
    } else {
      for (int64_t i = 0; i < words; ++i) stage_word(p_real ? p[i] : 0, q_real ? q[i] : 0, out + i * 32);
    }
  }
}

// ---- weights ----------------------------------------------------------------

void count_ones(const Word* rows, int64_t count, int64_t words, int32_t* ones) {
  for (int64_t i = 0; i < count; ++i, rows += words) {
    int64_t sum = 0;
    for (int64_t j = 0; j < words; ++j) sum += _mm_popcnt_u64(rows[j]);
    ones[i] = static_cast<int32_t>(sum);
  }
}

int64_t panel_bytes(int channels, int64_t runs, int64_t run_taps, int64_t tap_channels) {
  return runs * run_taps * nibbles_for(tap_channels) * vectors_for(channels) * kLanes;
}

// Nibble `shift / 4` of 32 units as 32 bytes.
inline __m256i nibble(const __m256i (&units)[4], int shift) {
  const __m128i by = _mm_cvtsi32_si128(shift);
  const __m256i mask = _mm256_set1_epi32(15);
  __m256i n[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) n[i] = _mm256_and_si256(_mm256_srl_epi32(units[i], by), mask);
  const __m256i bytes = _mm256_packus_epi16(_mm256_packus_epi32(n[0], n[1]), _mm256_packus_epi32(n[2], n[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

// 32 bits of eight rows, `pitch` bytes apart; 0 where not `valid`.
inline __m256i gather_rows(const uint8_t* first, int64_t pitch, __m256i valid) {
  const __m256i rows = _mm256_setr_epi64x(0, pitch, 2 * pitch, 3 * pitch);
  const __m128i low = _mm256_mask_i64gather_epi32(_mm_setzero_si128(), reinterpret_cast<const int*>(first), rows,
                                                  _mm256_castsi256_si128(valid), 1);
  const __m128i high = _mm256_mask_i64gather_epi32(_mm_setzero_si128(), reinterpret_cast<const int*>(first + 4 * pitch),
                                                   rows, _mm256_extracti128_si256(valid, 1), 1);
  return _mm256_set_m128i(high, low);
}

// [run][nibble][channel]: one weight nibble of every channel side by side, channels padded to whole vectors.
void make_panel(const Word* weight, int channels, int64_t runs, int64_t run_taps, int64_t tap_channels,
                uint8_t* panel) {
  const int64_t nibbles = nibbles_for(tap_channels);
  const int64_t tap_bytes = words_for(tap_channels) * static_cast<int64_t>(sizeof(Word));
  const int64_t taps = runs * run_taps, channel_bytes = taps * tap_bytes;
  const int64_t step_bytes = vectors_for(channels) * kLanes;
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const auto* base = reinterpret_cast<const uint8_t*>(weight);
  for (int n = 0; n < channels; n += kLanes) {
    for (int64_t t = 0; t < taps; ++t) {
      uint8_t* out = panel + t * nibbles * step_bytes + n;
      for (int64_t first = 0; first < nibbles; first += 8) {
        __m256i units[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
          const __m256i valid = _mm256_cmpgt_epi32(_mm256_set1_epi32(channels - n - 8 * i), lane);
          const uint8_t* at = base + (n + 8 * i) * channel_bytes + t * tap_bytes + first / 2;
          units[i] = gather_rows(at, channel_bytes, valid);
        }
        for (int64_t k = first; k < nibbles && k < first + 8; ++k)
          store(out + k * step_bytes, nibble(units, static_cast<int>(4 * (k - first))));
      }
    }
  }
}

// ---- products ---------------------------------------------------------------

// x of the pixels of a tile: the sum of both. Eight channels stay together, but their groups lie as unpacking bytes
// leaves them: of 32 channels in the order 0, 2, 1, 3, which packing turns back.
template <int Pairs, int V>
struct Counts {
  alignas(32) uint16_t narrow[2 * Pairs][V * kLanes];
  alignas(32) int32_t wide[2 * Pairs][V * kLanes];  // only where 16 bits may not hold a sum
};

// Where the eight channels from n on lie.
inline int group_at(int n) { return n / 32 * 32 + (n / 8 % 2) * 16 + (n / 16 % 2) * 8; }

inline void spill(uint16_t* narrow, int32_t* wide, int count) {
  for (int i = 0; i < count; ++i) {
    wide[i] += narrow[i];
    narrow[i] = 0;
  }
}

template <bool kFirst>
inline void widen_into(uint16_t* x, __m256i& bytes) {
  const __m256i zero = _mm256_setzero_si256();
  const __m256i low = _mm256_unpacklo_epi8(bytes, zero), high = _mm256_unpackhi_epi8(bytes, zero);
  store(x, kFirst ? low : _mm256_add_epi16(load(x), low));
  store(x + 16, kFirst ? high : _mm256_add_epi16(load(x + 16), high));
  bytes = zero;
}

inline __m256i table(const uint8_t* a) {
  uint16_t offset;
  __builtin_memcpy(&offset, a, sizeof offset);
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(kTables.bytes + offset)));
}

// Adds the counts of two pixels. `both` may wrap: with `high` known it still tells the low counts (see flush).
inline void add_counts(__m256i sum, __m256i& both, __m256i& high) {
  both = _mm256_add_epi8(both, sum);
  high = _mm256_add_epi8(high, _mm256_and_si256(_mm256_srli_epi16(sum, 4), _mm256_set1_epi8(15)));
}

// The sums of a stretch of staged nibbles and weights, at most kSumsPerFlush.
template <int Pairs, int V>
inline void add_sums(const uint8_t* a, int64_t pitch, const uint8_t* w, int64_t sums, __m256i (&both)[Pairs][V],
                     __m256i (&high)[Pairs][V]) {
  for (int64_t i = 0; i < sums; ++i, a += kLookupsPerSum * kNibbleBytes, w += kLookupsPerSum * V * kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < Pairs; ++p) {
      const uint8_t* nibble = a + p * pitch;
      const __m256i t0 = table(nibble), t1 = table(nibble + kNibbleBytes), t2 = table(nibble + 2 * kNibbleBytes);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        const __m256i c0 = _mm256_shuffle_epi8(t0, load(w + v * kLanes));
        const __m256i c1 = _mm256_shuffle_epi8(t1, load(w + (V + v) * kLanes));
        const __m256i c2 = _mm256_shuffle_epi8(t2, load(w + (2 * V + v) * kLanes));
        add_counts(_mm256_add_epi8(_mm256_add_epi8(c0, c1), c2), both[p][v], high[p][v]);
      }
    }
  }
}

// What is left of a run behind its last whole sum.
template <int Pairs, int V>
inline void add_rest(const uint8_t* a, int64_t pitch, const uint8_t* w, int64_t lookups, __m256i (&both)[Pairs][V],
                     __m256i (&high)[Pairs][V]) {
  for (int64_t i = 0; i < lookups; ++i, a += kNibbleBytes, w += V * kLanes) {
#pragma GCC unroll 4
    for (int p = 0; p < Pairs; ++p) {
      const __m256i t = table(a + p * pitch);
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) add_counts(_mm256_shuffle_epi8(t, load(w + v * kLanes)), both[p][v], high[p][v]);
    }
  }
}

// Whether the sums are in `wide`: where flushes were many. How full each was the runs decide, so only their number
// tells.
template <int Pairs, int V>
inline bool accumulate(const Strip& s, int64_t first, Counts<Pairs, V>& counts) {
  __m256i both[Pairs][V], high[Pairs][V];
#pragma GCC unroll 4
  for (int p = 0; p < Pairs; ++p)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) both[p][v] = high[p][v] = _mm256_setzero_si256();

  const int64_t nibbles = s.run_taps * nibbles_for(s.tap_channels);
  const int64_t run_sums = nibbles / kLookupsPerSum, rest = nibbles % kLookupsPerSum;
  const int64_t pitch = 2 * s.pixel_pitch;
  const uint8_t* w = s.panel;
  int64_t room = kSumsPerFlush, flushes = 0;
  uint16_t* narrow = counts.narrow[0];
  asm("" : "+r"(narrow));  // or GCC keeps copies of all counts on the stack beside them
  const auto flush = [&] {
    const auto widen = [&]<bool kFirst>() {
#pragma GCC unroll 4
      for (int p = 0; p < Pairs; ++p)
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) {
          // The low counts themselves fit a byte, so that the sum's bytes modulo 256 are enough.
          const __m256i sixteenfold = _mm256_and_si256(_mm256_slli_epi16(high[p][v], 4), _mm256_set1_epi8(-16));
          both[p][v] = _mm256_sub_epi8(both[p][v], sixteenfold);
          widen_into<kFirst>(narrow + (2 * p * V + v) * kLanes, both[p][v]);
          widen_into<kFirst>(narrow + ((2 * p + 1) * V + v) * kLanes, high[p][v]);
        }
    };
    if (flushes == 0) {
      widen.template operator()<true>();
    } else {
      widen.template operator()<false>();
    }
    room = kSumsPerFlush;
    if (++flushes % kFlushesPerSpill != 0) return;
    if (flushes == kFlushesPerSpill) __builtin_memset(counts.wide, 0, sizeof counts.wide);
    spill(narrow, counts.wide[0], 2 * Pairs * V * kLanes);
  };
  // Stretches of equal length, so that their loops end where the CPU expects it.
  const int64_t stretches = (run_sums + kSumsPerFlush - 1) / kSumsPerFlush;
  for (int64_t r = 0; r < s.run_count; ++r) {
    const uint8_t* a = s.input + first * s.pixel_pitch + s.runs[r];
    for (int64_t i = 0; i < stretches; ++i) {
      const int64_t sums = (i + 1) * run_sums / stretches - i * run_sums / stretches;
      if (sums > room) flush();
      add_sums<Pairs, V>(a, pitch, w, sums, both, high);
      a += sums * kLookupsPerSum * kNibbleBytes;
      w += sums * kLookupsPerSum * V * kLanes;
      room -= sums;
    }
    if (rest != 0) {
      if (room == 0) flush();
      add_rest<Pairs, V>(a, pitch, w, rest, both, high);
      w += rest * V * kLanes;
      --room;
    }
  }
  flush();
  const bool wide = flushes >= kFlushesPerSpill;
  if (wide) spill(narrow, counts.wide[0], 2 * Pairs * V * kLanes);
  return wide;
}

// ---- epilogue ---------------------------------------------------------------

inline __m256i first_lanes(int count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane);
}

inline __m256 load_floats(FloatType type, const void* p, int64_t at) {
  if (type == FloatType::kFloat32) return _mm256_loadu_ps(static_cast<const float*>(p) + at);
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint16_t*>(p) + at));
  if (type == FloatType::kFloat16) return _mm256_cvtph_ps(half);
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

// To bfloat16, nearest even; any NaN becomes the same one.
inline __m128i to_bfloat16(__m256 value) {
  const __m256i bits = _mm256_castps_si256(value);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256 nan = _mm256_cmp_ps(value, value, _CMP_UNORD_Q);
  const __m256 chosen =
      _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000)), nan);
  const __m256i high = _mm256_srli_epi32(_mm256_castps_si256(chosen), 16);
  return _mm_packus_epi32(_mm256_castsi256_si128(high), _mm256_extracti128_si256(high, 1));
}

// What is added to eight channels of a pixel, where the residual's channels are fewer and come round.
inline __m256 load_tiled(const Epilogue& e, int64_t pixel, int64_t n) {
  const int64_t begin = pixel * e.residual_channels, size = e.type == FloatType::kFloat32 ? 4 : 2;
  int64_t from = n % e.residual_channels;
  if (from + 8 <= e.residual_channels) return load_floats(e.type, e.residual, begin + from);
  alignas(32) uint8_t lanes[32];
  for (int64_t lane = 0; lane < 8; ++lane, from = from + 1 == e.residual_channels ? 0 : from + 1)
    __builtin_memcpy(lanes + lane * size, static_cast<const uint8_t*>(e.residual) + (begin + from) * size, size);
  return load_floats(e.type, lanes, 0);
}

// Eight channels of a pixel from n on; their bits, where e.packed asks for them.
inline uint32_t store_floats(const Epilogue& e, int64_t channels, int64_t pixel, int64_t n, __m256i dot) {
  const int64_t at = pixel * channels + n;
  __m256 y = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), _mm256_loadu_ps(e.scale + n));
  y = _mm256_add_ps(y, _mm256_loadu_ps(e.bias + n));
  if (e.relu) y = _mm256_max_ps(y, _mm256_setzero_ps());
  if (e.residual != nullptr)
    y = _mm256_add_ps(y,
                      e.residual_channels == channels ? load_floats(e.type, e.residual, at) : load_tiled(e, pixel, n));
  if (e.slope != nullptr) {
    const __m256 negative = _mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_NGE_UQ);
    y = _mm256_blendv_ps(y, _mm256_mul_ps(y, _mm256_loadu_ps(e.slope + n)), negative);
  }
  if (e.type == FloatType::kFloat32) {
    _mm256_storeu_ps(static_cast<float*>(e.out) + at, y);
  } else {
    const bool half = e.type == FloatType::kFloat16;
    const __m128i narrow = half ? _mm256_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT) : to_bfloat16(y);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(static_cast<uint16_t*>(e.out) + at), narrow);
    y = half ? _mm256_cvtph_ps(narrow) : _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(narrow), 16));
  }
  if (e.packed == nullptr) return 0;
  const __m256 directed = _mm256_mul_ps(y, _mm256_loadu_ps(e.direction + n));
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(directed, _mm256_loadu_ps(e.cut + n), _CMP_GE_OQ)));
}

// The limits of a border class in 16 bits, as Counts has the channels: x <= limit is x < above.
struct Limits {
  alignas(32) uint16_t above[kPanelChannels];
  const int32_t* of = nullptr;

  // Counts are below 65,535 here, so bounds that leave 16 bits, saturated, decide the same.
  void set(const int32_t* offsets) {
    if (of == offsets) return;
    of = offsets;
    const __m256i one = _mm256_set1_epi32(1);
    for (int n = 0; n < kPanelChannels; n += 16) {
      const __m256i bounds =
          _mm256_packus_epi32(_mm256_add_epi32(load(offsets + n), one), _mm256_add_epi32(load(offsets + n + 8), one));
      const __m256i natural = _mm256_permute4x64_epi64(bounds, 0xd8);
      _mm_store_si128(reinterpret_cast<__m128i*>(above + group_at(n)), _mm256_castsi256_si128(natural));
      _mm_store_si128(reinterpret_cast<__m128i*>(above + group_at(n + 8)), _mm256_extracti128_si256(natural, 1));
    }
  }
};

inline Word threshold(const uint16_t* x, const Limits& limits, int channels) {
  const auto zeros = [&](int n) {  // all ones in the lanes of x >= above
    const __m256i below = _mm256_subs_epu16(load(limits.above + n), load(x + n));
    return _mm256_cmpeq_epi16(below, _mm256_setzero_si256());
  };
  Word bits = 0;
  for (int n = 0; n < channels; n += kLanes) {
    const __m256i bytes = _mm256_packs_epi16(zeros(n), zeros(n + 16));
    bits |= static_cast<Word>(~static_cast<uint32_t>(_mm256_movemask_epi8(bytes))) << n;
  }
  return bits;
}

// Of the pixel `p` of the strip; `wide` may be null.
inline void finish(const Strip& s, const Epilogue& e, int64_t p, const uint16_t* narrow, const int32_t* wide) {
  const int32_t* offsets = strip_offsets(s, p);
  const __m128i shift = _mm_cvtsi32_si128(s.shift);
  const int64_t pixel = s.pixel + p;
  Word bits = 0;
  for (int n = 0; n < s.channels; n += 8) {
    const int left = s.channels - n, at_n = group_at(n);
    const __m256i offset = load(offsets + n);
    __m256i x = _mm256_cvtepu16_epi32(_mm_load_si128(reinterpret_cast<const __m128i*>(narrow + at_n)));
    if (wide != nullptr) x = _mm256_add_epi32(x, load(wide + at_n));
    if (e.kind == EpilogueKind::kBits) {
      const __m256i above = _mm256_cmpgt_epi32(x, offset);
      bits |= static_cast<Word>(~_mm256_movemask_ps(_mm256_castsi256_ps(above)) & 0xff) << n;
      continue;
    }
    const __m256i dot = _mm256_sub_epi32(offset, _mm256_sll_epi32(x, shift));
    const int64_t channel = s.first + n, at = pixel * s.out_channels + channel;
    if (e.kind == EpilogueKind::kInt32) {
      int32_t* out = static_cast<int32_t*>(e.out) + at;
      if (left >= 8) {
        store(out, dot);
      } else {
        _mm256_maskstore_epi32(out, first_lanes(left), dot);  // slow on AMD
      }
    } else if (left >= 8) {
      bits |= static_cast<Word>(store_floats(e, s.out_channels, pixel, channel, dot)) << n;
    } else {
      alignas(32) int32_t dots[8];
      store(dots, dot);
      for (int i = 0; i < left; ++i)
        bits |= static_cast<Word>(finish_float(e, s.out_channels, pixel, channel + i, dots[i])) << (n + i);
    }
  }
  if (e.kind == EpilogueKind::kBits)
    store_bits(static_cast<Word*>(e.out), s.out_channels, pixel, s.first, s.channels, bits, e.flip, s.merge);
  else if (e.packed != nullptr)
    store_bits(e.packed, s.out_channels, pixel, s.first, s.channels, bits, nullptr, s.merge);
}

// ---- tiles ------------------------------------------------------------------

template <int Pairs, int V>
void tile(const Strip& s, int64_t first, Limits& limits) {
  const Epilogue e = *s.epilogue;  // a copy, which no store can be taken to change
  Counts<Pairs, V> counts;
  const bool wide = accumulate<Pairs, V>(s, first, counts);
  const int64_t pixels = s.pixels - first < 2 * Pairs ? s.pixels - first : 2 * Pairs;
  for (int64_t p = 0; p < pixels; ++p) {
    if (e.kind != EpilogueKind::kBits || wide) {
      finish(s, e, first + p, counts.narrow[p], wide ? counts.wide[p] : nullptr);
      continue;
    }
    limits.set(strip_offsets(s, first + p));
    const Word bits = threshold(counts.narrow[p], limits, s.channels);
    store_bits(static_cast<Word*>(e.out), s.out_channels, s.pixel + first + p, s.first, s.channels, bits, e.flip,
               s.merge);
  }
}

void strip(const Strip& s) {
  Limits limits;
  int64_t p = 0;
  if (vectors_for(s.channels) == 2) {
    for (; s.pixels - p > 2; p += 4) tile<2, 2>(s, p, limits);
    if (p < s.pixels) tile<1, 2>(s, p, limits);
    return;
  }
  for (; s.pixels - p > 6; p += 8) tile<4, 1>(s, p, limits);
  for (; s.pixels - p > 2; p += 4) tile<2, 1>(s, p, limits);
  if (p < s.pixels) tile<1, 1>(s, p, limits);
}

}  // namespace

extern const StripKernel xnor_avx2;
const StripKernel xnor_avx2 = {pixel_bytes, row_bytes, 0, stage, false, 0, count_ones, panel_bytes, make_panel, strip};

}  // namespace bitnas::cpu

// Binary convolution on AMX with weights that stay bits: an eighth of the memory, expanded beside the products.
//
// For few output positions and many weights, where int8 weights would come from the third-level cache at 8 bytes a
// cycle: 512 to 512 channels are 2.4 MB as int8, 0.3 MB as bits. A tile of weights takes about 20 cycles to expand and
// is used for up to four tiles of positions, 64 cycles; so blocks are 64 positions by 16 channels. Expansion runs two
// steps ahead, for the bytes to have reached L1 when the tile is loaded. Bounded by the tile unit at 33 positions and
// more, by the expansion below.
//
// Exact: products of ±1 and 0; K is padded with activations of 0, since weights know no 0.
#include "kernels/cpu/conv2d_amx_window.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kChannels = 16;
constexpr int64_t kAhead = 2;  // steps that expansion is ahead, and expanded tiles there are
constexpr int64_t kTileWords = kRows;

inline void expand_rows(const Word* bits, int begin, int end, const Values& values, uint8_t* tile) {
#pragma GCC unroll 16
  for (int row = begin; row < end; ++row) _mm512_store_si512(tile + row * kRowBytes, expand(values, bits[row]));
}

// sums[p][n] = sum over steps of a[p] by weights[n]; after every step `beside()` runs.
template <int row_tiles, typename Beside>
inline void multiply_bits(const uint8_t* a, const int64_t* offsets, const Word* weights, int64_t steps, uint8_t* ring,
                          int32_t* sums, Beside& beside) {
  constexpr int64_t kNext = kRows * kRowBytes;  // a tile of positions further
  const Values values = values_of(Encoding::kSign);
  for (int64_t step = 0; step < kAhead; ++step)
    expand_rows(weights + step * kTileWords, 0, kTileWords, values, ring + step * kTileBytes);
  amx::zero<0>();
  if constexpr (row_tiles > 1) amx::zero<1>();
  if constexpr (row_tiles > 2) amx::zero<2>();
  if constexpr (row_tiles > 3) amx::zero<3>();
  for (int64_t step = 0; step < steps; ++step) {
    const uint8_t* at = a + offsets[step];
    const Word* ahead = weights + (step + kAhead) * kTileWords;
    uint8_t* expanded = ring + step % kAhead * kTileBytes;  // free as soon as it is loaded
    amx::load<6>(expanded, kRowBytes);
    amx::load<4>(at, kRowBytes);
    amx::multiply_add<0, 4, 6>();
    expand_rows(ahead, 0, kTileWords / 2, values, expanded);
    if constexpr (row_tiles > 1) {
      amx::load<5>(at + kNext, kRowBytes);
      amx::multiply_add<1, 5, 6>();
    }
    if constexpr (row_tiles > 2) {
      amx::load<4>(at + 2 * kNext, kRowBytes);
      amx::multiply_add<2, 4, 6>();
    }
    expand_rows(ahead, kTileWords / 2, kTileWords, values, expanded);
    if constexpr (row_tiles > 3) {
      amx::load<5>(at + 3 * kNext, kRowBytes);
      amx::multiply_add<3, 5, 6>();
    }
    beside();
  }
  constexpr int64_t kPitch = kChannels * 4;
  amx::store<0>(sums, kPitch);
  if constexpr (row_tiles > 1) amx::store<1>(sums + kRows * kChannels, kPitch);
  if constexpr (row_tiles > 2) amx::store<2>(sums + 2 * kRows * kChannels, kPitch);
  if constexpr (row_tiles > 3) amx::store<3>(sums + 3 * kRows * kChannels, kPitch);
}

struct Bits {
  static constexpr bool kMayBeDense = false;  // that pads K with weights of 0
  static constexpr int64_t kChannels = cpu::kChannels, kPositions = 4 * kRows;
  static constexpr int64_t kRoomBytes = kAhead * kTileBytes;
  static constexpr int64_t kTileCycles = 16;
  static constexpr int64_t kPanelInL1 = INT64_MAX;  // an eighth of nearly anything; activations are what is large

  static int64_t panel_bytes(const Conv2dShape& s) { return steps_of(s, kMayBeDense).count() * kTileWords * 8; }
  // Behind the last panel a few more words: expansion runs ahead.
  static int64_t weight_bytes(const Conv2dShape& s) {
    return s.groups * group_panels(s, kChannels) * panel_bytes(s) + kAhead * kTileWords * 8;
  }

  template <typename Beside>
  static void multiply(int64_t positions, int64_t, const uint8_t* a, int64_t, const int64_t* offsets,
                       const uint8_t* weights, int64_t steps, uint8_t* ring, int32_t* sums, Beside& beside) {
    const auto* words = reinterpret_cast<const Word*>(weights);
    switch (divide_up(positions, kRows)) {
      case 1: return multiply_bits<1>(a, offsets, words, steps, ring, sums, beside);
      case 2: return multiply_bits<2>(a, offsets, words, steps, ring, sums, beside);
      case 3: return multiply_bits<3>(a, offsets, words, steps, ring, sums, beside);
      default: return multiply_bits<4>(a, offsets, words, steps, ring, sums, beside);
    }
  }
};

bool computes(const Conv2dShape&) { return true; }

// [group][panel][step][row of four k]: bit 4 * channel + k of a word.
void prepare(const Conv2dShape& s, const Word* weight, uint8_t* out) {
  const Steps steps = steps_of(s, Bits::kMayBeDense);
  __builtin_memset(out, 0, Bits::weight_bytes(s));
  auto* words = reinterpret_cast<Word*>(out);
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t panel = 0; panel < group_panels(s, kChannels); ++panel) {
      const int64_t first = group * group_outputs(s) + panel * kChannels;
      const int64_t count = smaller(kChannels, group_outputs(s) - panel * kChannels);
      for (int64_t step = 0; step < steps.count(); ++step, words += kTileWords) {
        for_each_weight(s, steps, weight, first, count, step,
                        [words](int64_t n, int64_t k, Word bit) { words[k / 4] |= bit << (n * 4 + k % 4); });
      }
    }
  }
}

}  // namespace

extern const TileKernel amx_bits;
const TileKernel amx_bits = window_kernel<Bits>(computes, prepare);

}  // namespace bitnas::cpu

// The honest serial baseline: one word at a time, on any CPU.
#include "kernels/cpu/finish.h"
#include "kernels/cpu/strip.h"

namespace bitnas::cpu {
namespace {

// Without a popcount instruction __builtin_popcountll is a library call; this is inline and as fast.
inline int32_t popcount(Word x) {
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int32_t>((x * 0x0101010101010101u) >> 56);
}

inline Word load_word(const uint8_t* p) {
  Word word;
  __builtin_memcpy(&word, p, sizeof word);
  return word;
}

int64_t pixel_bytes(int64_t channels) { return words_for(channels) * static_cast<int64_t>(sizeof(Word)); }

int64_t row_bytes(int64_t pixels, int64_t channels) { return pixels * pixel_bytes(channels); }

void stage(const StageRow& row, uint8_t* out) {
  const int64_t bytes = pixel_bytes(row.channels);
  __builtin_memset(out, 0, row.left * bytes);
  if (row.pixels > 0) __builtin_memcpy(out + row.left * bytes, row.words, row.pixels * bytes);
  __builtin_memset(out + (row.left + row.pixels) * bytes, 0, row.right * bytes);
}

void count_ones(const Word* rows, int64_t count, int64_t words, int32_t* ones) {
  for (int64_t i = 0; i < count; ++i, rows += words) {
    ones[i] = 0;
    for (int64_t j = 0; j < words; ++j) ones[i] += popcount(rows[j]);
  }
}

int64_t panel_bytes(int channels, int64_t runs, int64_t run_taps, int64_t tap_channels) {
  return channels * runs * run_taps * pixel_bytes(tap_channels);
}

// [channel][tap][word], as the weights already are.
void make_panel(const Word* weight, int channels, int64_t runs, int64_t run_taps, int64_t tap_channels,
                uint8_t* panel) {
  __builtin_memcpy(panel, weight, panel_bytes(channels, runs, run_taps, tap_channels));
}

void strip(const Strip& s) {
  const Epilogue& e = *s.epilogue;
  const int64_t words = s.run_taps * words_for(s.tap_channels);
  const int64_t channel_bytes = s.run_count * words * static_cast<int64_t>(sizeof(Word));
  for (int64_t p = 0; p < s.pixels; ++p) {
    const uint8_t* window = s.input + p * s.pixel_pitch;
    const int32_t* offsets = strip_offsets(s, p);
    Word ones = 0;
    for (int n = 0; n < s.channels; ++n) {
      const uint8_t* w = s.panel + n * channel_bytes;
      int32_t x = 0;
      for (int64_t r = 0; r < s.run_count; ++r) {
        const uint8_t* a = window + s.runs[r];
        for (int64_t i = 0; i < words; ++i, w += sizeof(Word)) x += popcount(load_word(a + 8 * i) ^ load_word(w));
      }
      if (e.kind == EpilogueKind::kBits) {
        ones |= static_cast<Word>(x <= offsets[n]) << n;
        continue;
      }
      const int32_t dot = offsets[n] - (x << s.shift);
      if (e.kind == EpilogueKind::kInt32) {
        static_cast<int32_t*>(e.out)[(s.pixel + p) * s.out_channels + s.first + n] = dot;
      } else {
        ones |= static_cast<Word>(finish_float(e, s.out_channels, s.pixel + p, s.first + n, dot)) << n;
      }
    }
    if (e.kind == EpilogueKind::kBits)
      store_bits(static_cast<Word*>(e.out), s.out_channels, s.pixel + p, s.first, s.channels, ones, e.flip, s.merge);
    else if (e.packed != nullptr)
      store_bits(e.packed, s.out_channels, s.pixel + p, s.first, s.channels, ones, nullptr, s.merge);
  }
}

}  // namespace

extern const StripKernel xnor_scalar;
const StripKernel xnor_scalar = {pixel_bytes, row_bytes, 0, stage, true, 0, count_ones, panel_bytes, make_panel, strip};

}  // namespace bitnas::cpu

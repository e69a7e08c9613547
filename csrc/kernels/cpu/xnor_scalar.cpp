// The honest serial baseline: one word at a time, on any CPU.
#include "kernels/xnor.h"

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

int64_t panel_bytes(int channels, int64_t taps, int64_t tap_channels) {
  return channels * taps * words_for(tap_channels) * static_cast<int64_t>(sizeof(Word));
}

// [channel][tap][word], as the weights already are.
void make_panel(const Word* weight, int channels, int64_t taps, int64_t tap_channels, uint8_t* panel) {
  __builtin_memcpy(panel, weight, panel_bytes(channels, taps, tap_channels));
}

void strip(const Strip& s) {
  const int64_t words = words_for(s.tap_channels);
  const int64_t channel_bytes = s.tap_count * words * static_cast<int64_t>(sizeof(Word));
  for (int64_t p = 0; p < s.pixels; ++p) {
    const uint8_t* pixel = s.input + p * s.pixel_pitch;
    const int32_t* offsets = strip_offsets(s, p);
    Word ones = 0;
    for (int n = 0; n < s.channels; ++n) {
      const uint8_t* w = s.panel + n * channel_bytes;
      int32_t x = 0;
      for (int64_t t = 0; t < s.tap_count; ++t) {
        const uint8_t* a = pixel + s.taps[t];
        for (int64_t i = 0; i < words; ++i, w += sizeof(Word)) x += popcount(load_word(a + 8 * i) ^ load_word(w));
      }
      if (s.kind == EpilogueKind::kBits) {
        ones |= static_cast<Word>(x <= offsets[n]) << n;
        continue;
      }
      const int32_t dot = offsets[n] - (x << s.shift);
      const int64_t at = p * s.out_pitch + n;
      if (s.kind == EpilogueKind::kInt32) {
        static_cast<int32_t*>(s.out)[at] = dot;
      } else {
        static_cast<float*>(s.out)[at] = s.scale[n] * static_cast<float>(dot) + s.bias[n];
      }
    }
    if (s.kind == EpilogueKind::kBits) store_bits(s, p, ones);
  }
}

}  // namespace

extern const XnorKernel xnor_scalar;
const XnorKernel xnor_scalar = {8, nullptr, panel_bytes, make_panel, strip};

}  // namespace bitnas::cpu

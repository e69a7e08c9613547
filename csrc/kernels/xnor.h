// The binary dot product that convolution, linear layer and GEMM share.
//
//   x   = popcount(a XOR w)
//   dot = offset[n] - step * x
//
//   ±1 by ±1      step 2, offset = number of valid channels and taps: K - 2x.
//   {0,1} by ±1   step 1, offset = popcount(w[n]): since popcount(a XOR w) =
//                 popcount(a) + popcount(w) - 2 popcount(a AND w), this equals
//                 2 popcount(a AND w) - popcount(a). One inner loop serves both.
//
// Padding. A padded tap is read as a pixel of zero bits. For {0,1} that is the
// exact zero. For ±1 it counts popcount(w_tap) into x, which the offset of that
// border class gives back (see padding.h).
#pragma once

#include "kernels/epilogue.h"
#include "kernels/packing.h"

namespace bitnas {

// Output channels of one weight panel; also one output word.
constexpr int kPanelChannels = 64;

// The unit of work of a kernel: neighbouring output positions by one panel.
struct Strip {
  // Activations, in the kernel's expanded form.
  const uint8_t* input;  // first pixel, tap at offset 0
  int64_t pixel_pitch;   // bytes from one output position's input to the next one's
  const int64_t* taps;   // [tap_count] byte offsets of the taps
  int64_t tap_count;
  int64_t tap_channels;  // bits of one tap
  int64_t pixels;

  // Weights of this panel, as make_panel laid them out.
  const uint8_t* panel;
  int channels;  // 1 .. kPanelChannels

  // offsets[position_class[p] * offsets_pitch + n]: what x is subtracted from, or,
  // for kBits, the largest x that still gives a one.
  const int32_t* offsets;
  int64_t offsets_pitch;
  const int32_t* position_class;  // [pixels], or null where all are class 0
  int shift;                      // log2(step)

  // Output. Pitches count elements (int32, float) or words.
  EpilogueKind kind;
  void* out;  // first pixel, first channel of this panel
  int64_t out_pitch;
  const float* scale;  // of this panel
  const float* bias;
  Word flip;       // of this panel, bit per channel
  int bit_offset;  // where in *out this panel's first bit goes (kBits)
  bool merge;      // OR into words that other panels share, else store
};

// One instruction set's way to compute strips.
struct XnorKernel {
  // Bytes that one activation word takes when expanded for this kernel (8: as it is).
  int64_t bytes_per_word;
  // Expands words; null where bytes_per_word is 8.
  void (*expand)(const Word* words, int64_t count, uint8_t* out);
  // Lays the weights [channels][taps][words_for(tap_channels)] of one panel out.
  int64_t (*panel_bytes)(int channels, int64_t taps, int64_t tap_channels);
  void (*make_panel)(const Word* weight, int channels, int64_t taps, int64_t tap_channels, uint8_t* panel);
  void (*strip)(const Strip&);
};

// Stores one pixel's bits of a panel. Internal linkage on purpose.
static inline void store_bits(const Strip& s, int64_t pixel, Word ones) {
  const Word mask = s.channels == 64 ? ~Word{0} : (Word{1} << s.channels) - 1;
  const Word bits = (ones ^ s.flip) & mask;
  Word* out = static_cast<Word*>(s.out) + pixel * s.out_pitch;
  if (!s.merge) {
    *out = bits;
    return;
  }
  out[0] |= bits << s.bit_offset;
  if (s.bit_offset + s.channels > 64) out[1] |= bits >> (64 - s.bit_offset);
}

static inline const int32_t* strip_offsets(const Strip& s, int64_t pixel) {
  return s.position_class == nullptr ? s.offsets : s.offsets + s.position_class[pixel] * s.offsets_pitch;
}

}  // namespace bitnas

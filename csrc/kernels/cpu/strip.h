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
//
// A window is read in runs: taps whose staged activations lie side by side. A run is
// a row of the window, or one tap where the window is dilated.
#pragma once

#include "kernels/epilogue.h"
#include "kernels/packing.h"

namespace bitnas::cpu {

// Output channels of one weight panel; also one output word.
constexpr int kPanelChannels = 64;

// A row of an image as it is to be staged: `left` pixels of zero bits, `pixels` real ones, `right` of zero bits.
struct StageRow {
  const Word* words;  // [pixels][words_for(channels)]
  int64_t pixels, left, right;
  int64_t channels;
  int64_t stride;  // pixels from one output position to the next
};

// The unit of work of a kernel: neighbouring output positions by one panel.
struct Strip {
  // Activations as the kernel staged them.
  const uint8_t* input;  // first position's window, run at offset 0
  int64_t pixel_pitch;   // bytes from one position's window to the next one's
  const int64_t* runs;   // [run_count] byte offsets of the runs
  int64_t run_count;
  const int64_t* units;  // byte offsets of every unit of all runs, where the kernel's unit_bytes asks and runs are many
  int64_t run_taps;      // taps of one run
  int64_t tap_channels;  // bits of one tap
  int64_t pixels;

  // Weights of this panel, as make_panel laid them out.
  const uint8_t* panel;
  int channels;  // 1 .. kPanelChannels

  // offsets[position_class[p] * offsets_pitch + n]: what x is subtracted from, or,
  // for kBits, the largest x that still gives a one. A whole panel's worth may be loaded.
  const int32_t* offsets;
  int64_t offsets_pitch;
  const int32_t* position_class;  // [pixels], or null where all are class 0
  int shift;                      // log2(step)

  // Output: position `pixel` and channel `first` are the strip's first.
  const Epilogue* epilogue;
  int64_t out_channels;
  int64_t pixel;
  int64_t first;
  bool merge;  // OR bits into words that other panels share, else store
};

// One way to compute strips.
struct StripKernel {
  // Bytes a pixel takes when staged, and a row of them (which may need room around).
  int64_t (*pixel_bytes)(int64_t channels);
  int64_t (*row_bytes)(int64_t pixels, int64_t channels);
  int64_t lead_bytes;  // from where a staged row begins to its first pixel
  void (*stage)(const StageRow&, uint8_t* out);
  bool words_as_they_are;  // pixels of whole words need no staging where nothing is padded
  int64_t unit_bytes;      // of what it broadcasts, to have Strip::units; else 0
  // ones[i] of `count` rows of that many words.
  void (*count_ones)(const Word* rows, int64_t count, int64_t words, int32_t* ones);
  // Lays the weights [channels][runs][run_taps][words_for(tap_channels)] of one panel out.
  int64_t (*panel_bytes)(int channels, int64_t runs, int64_t run_taps, int64_t tap_channels);
  void (*make_panel)(const Word* weight, int channels, int64_t runs, int64_t run_taps, int64_t tap_channels,
                     uint8_t* panel);
  void (*strip)(const Strip&);
};

static inline const int32_t* strip_offsets(const Strip& s, int64_t pixel) {
  return s.position_class == nullptr ? s.offsets : s.offsets + s.position_class[pixel] * s.offsets_pitch;
}

// Stores bits of `count` channels from channel `first` of a pixel of the output. Internal linkage on purpose.
static inline void store_bits(Word* packed, int64_t channels, int64_t pixel, int64_t first, int count, Word bits,
                              const Word* flip, bool merge) {
  const int64_t word = first / kWordBits;
  const int shift = static_cast<int>(first % kWordBits);
  const bool straddles = shift + count > kWordBits;
  if (flip != nullptr) {
    bits ^= flip[word] >> shift;
    if (straddles) bits ^= flip[word + 1] << (kWordBits - shift);
  }
  bits &= count == 64 ? ~Word{0} : (Word{1} << count) - 1;
  Word* out = packed + pixel * words_for(channels) + word;
  if (!merge) {
    *out = bits;
    return;
  }
  out[0] |= bits << shift;
  if (straddles) out[1] |= bits >> (kWordBits - shift);
}

}  // namespace bitnas::cpu

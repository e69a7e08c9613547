// What the AMX convolutions share: bits to int8, the loop over the tile unit, the epilogue, and how a layer is cut.
//
// A kernel computes blocks: 32 (or 64) positions of the output by 32 (or 16) output channels, a panel. The sums of a
// block leave the unit through memory. What becomes of them is AVX-512 work that needs a tenth to a half of the time
// of the products; it is done beside the products of the next block, a little after every step of that loop, because
// the out-of-order window is too short to overlap two whole blocks.
//
// Everything has internal linkage: this is compiled for one instruction set.
#pragma once

#include <immintrin.h>

#include "kernels/conv2d.h"
#include "kernels/cpu/amx.h"
#include "kernels/cpu/epilogue_avx512.h"
#include "kernels/cpu/kernel.h"

namespace bitnas::cpu {
namespace {

using amx::kRowBytes;
using amx::kRows;
using amx::kTileBytes;

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }
// An odd number of cache lines: planes this far apart do not compete for the same cache sets.
inline int64_t odd_lines(int64_t bytes) { return (divide_up(bytes, 64) | 1) * 64; }

// Every CPU with AMX has 2 MiB of second-level cache.
inline int64_t cache_bytes() {
#if defined(BITNAS_AMX_MODEL)
  return amx::model::cache_bytes;
#else
  return int64_t{2} << 20;
#endif
}

// Hands out scratch. Counting from null, it says how much would be needed.
class Scratch {
 public:
  explicit Scratch(uint8_t* base) : base_(base) {}

  template <typename T>
  T* take(int64_t count) {
    uint8_t* taken = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return reinterpret_cast<T*>(taken);
  }
  int64_t bytes() const { return bytes_; }

 private:
  uint8_t* base_;
  int64_t bytes_ = 0;
};

// ---- shapes ------------------------------------------------------------------
// Not the members of Conv2dShape: they are inline functions, and a copy compiled here must not become everybody's.

inline int64_t group_channels(const Conv2dShape& s) { return s.channels / s.groups; }
inline int64_t group_outputs(const Conv2dShape& s) { return s.out_channels / s.groups; }
inline int64_t group_panels(const Conv2dShape& s, int64_t width) { return divide_up(group_outputs(s), width); }

// 64 bits of a pixel from `bit` on, whatever follows the pixel's last word taken for zero.
inline Word bits_at(const Word* pixel, int64_t words, int64_t bit) {
  const int64_t at = bit / kWordBits;
  const int shift = static_cast<int>(bit % kWordBits);
  Word bits = pixel[at] >> shift;
  if (shift != 0 && at + 1 < words) bits |= pixel[at + 1] << (kWordBits - shift);
  return bits;
}

// ---- bits to int8 --------------------------------------------------------------

// What a bit stands for, in all 64 bytes.
struct Values {
  __m512i zero, one;
};

inline Values values_of(Encoding encoding) {
  return {encoding == Encoding::kSign ? _mm512_set1_epi8(-1) : _mm512_setzero_si512(), _mm512_set1_epi8(1)};
}

inline __m512i expand(const Values& values, Word bits) { return _mm512_mask_blend_epi8(bits, values.zero, values.one); }

inline Word low_bits(int64_t count) { return count >= kWordBits ? ~Word{0} : (Word{1} << count) - 1; }

// ---- the epilogue ----------------------------------------------------------------

// Output channels [first, first + channels) on their way out.
struct Sink {
  const Epilogue* epilogue;
  Word* packed;  // bits go here: the output, or what is packed beside floats; null where there are none
  int64_t out_channels, out_words;
  int64_t first;
  int32_t channels;  // up to 32
  uint32_t valid;    // one bit for each
  uint32_t flip;
  bool merge;    // OR bits into words that begin as zeros, since panels of several groups share them; else store
  int32_t tail;  // bytes of the last word behind this panel, which nobody else makes zero
};

// Whether panels of `width` channels share bytes of the output.
inline bool shares_bytes(const Conv2dArgs& args, int64_t width) {
  const bool bits = args.epilogue.kind == EpilogueKind::kBits || args.epilogue.packed != nullptr;
  return bits && args.shape.groups > 1 && group_outputs(args.shape) % width != 0;
}

inline Word* packed_output(const Epilogue& e) {
  if (e.kind == EpilogueKind::kBits) return static_cast<Word*>(e.out);
  return e.kind == EpilogueKind::kFloat ? e.packed : nullptr;
}

template <int width>
inline Sink make_sink(const Conv2dArgs& args, int64_t panel) {
  const Conv2dShape& s = args.shape;
  const int64_t panels = group_panels(s, width), at = panel % panels * width;
  Sink sink;
  sink.epilogue = &args.epilogue;
  sink.packed = packed_output(args.epilogue);
  sink.out_channels = s.out_channels;
  sink.out_words = words_for(s.out_channels);
  sink.first = panel / panels * group_outputs(s) + at;
  sink.channels = static_cast<int32_t>(smaller(width, group_outputs(s) - at));
  sink.valid = static_cast<uint32_t>(low_bits(sink.channels));
  const bool flips = args.epilogue.kind == EpilogueKind::kBits && args.epilogue.flip != nullptr;
  sink.flip = flips ? static_cast<uint32_t>(bits_at(args.epilogue.flip, sink.out_words, sink.first)) : 0;
  sink.merge = shares_bytes(args, width);
  const bool last = sink.first + sink.channels == s.out_channels;
  sink.tail = last ? static_cast<int32_t>(sink.out_words * 8 - (sink.first + width) / 8) : 0;
  return sink;
}

inline __mmask16 lanes_of(const Sink& sink, int lane) { return static_cast<__mmask16>(sink.valid >> lane); }

// Stores dots of 16 channels from `lane` of the panel, as they are or as floats. Returns what is to be packed beside
// them, as bits of lanes from `lane` on.
inline uint32_t store_dots(const Sink& sink, int64_t pixel, int lane, __m512i dots) {
  const Epilogue& e = *sink.epilogue;
  const int64_t n = sink.first + lane;
  if (e.kind == EpilogueKind::kFloat)
    return static_cast<uint32_t>(store_floats(e, sink.out_channels, pixel, n, lanes_of(sink, lane), dots)) << lane;
  _mm512_mask_storeu_epi32(static_cast<int32_t*>(e.out) + pixel * sink.out_channels + n, lanes_of(sink, lane), dots);
  return 0;
}

// Where bits of a panel of `width` channels go. A copy of what it needs of the sink: bytes that are stored might be the
// sink's own, for all that a compiler knows.
template <int width>
class BitStore {
 public:
  explicit BitStore(const Sink& sink)
      : out_(reinterpret_cast<uint8_t*>(sink.packed)),
        pitch_(sink.out_words * 8),
        at_(sink.first / 8),
        flip_(sink.flip),
        valid_(sink.valid),
        plain_(!sink.merge && sink.tail == 0),
        sink_(sink) {}

  void put(int64_t pixel, uint32_t bits) const {
    bits = (bits ^ flip_) & valid_;
    uint8_t* out = out_ + pixel * pitch_;
    // A part of a word: panels beside this one may be another thread's.
    if (plain_) {
      __builtin_memcpy(out + at_, &bits, width / 8);
    } else {
      put_rare(sink_, out, bits);
    }
  }

 private:
  [[gnu::noinline]] static void put_rare(const Sink& sink, uint8_t* out, uint32_t bits) {
    if (sink.merge) {
      auto* words = reinterpret_cast<Word*>(out) + sink.first / kWordBits;
      const int shift = static_cast<int>(sink.first % kWordBits);
      words[0] |= Word{bits} << shift;
      if (shift + sink.channels > kWordBits) words[1] |= Word{bits} >> (kWordBits - shift);
      return;
    }
    out += sink.first / 8;
    __builtin_memcpy(out, &bits, width / 8);
    constexpr uint32_t kZero = 0;
    if ((sink.tail & 4) != 0) __builtin_memcpy(out + width / 8, &kZero, 4);
    if ((sink.tail & 2) != 0) __builtin_memcpy(out + width / 8 + (sink.tail & 4), &kZero, 2);
  }

  uint8_t* out_;
  int64_t pitch_, at_;
  uint32_t flip_, valid_;
  bool plain_;
  const Sink& sink_;
};

// Which of 16 dots reach their limits, as bits of lanes from `lane` on.
inline uint32_t reached(__m512i dots, __m512i limits, int lane) {
  return static_cast<uint32_t>(mask_bits(_mm512_cmpge_epi32_mask(dots, limits))) << lane;
}

inline void clear_bits(const Conv2dArgs& args, int64_t first_pixel, int64_t pixels) {
  const int64_t words = words_for(args.shape.out_channels);
  Word* out = packed_output(args.epilogue) + first_pixel * words;
  for (int64_t i = 0; i < pixels * words; ++i) out[i] = 0;
}

// ---- products ----------------------------------------------------------------------

// Sums of a block of 32 positions, as a panel's two column tiles side by side.
constexpr int64_t kBlock = 2 * kRows;
constexpr int64_t kPanel = 32;
constexpr int64_t kStepBytes = 2 * kTileBytes;  // of a panel's weights

// sums[p][n] = sum over steps of a[p] by b[n]. The rows of a's tiles are `pitch` apart, and offsets[step] is where they
// begin; b's tiles follow each other. After every step `beside()` runs.
//
// Two by two tiles: four loads for four products, which L1 can just feed.
template <int row_tiles, int column_tiles, typename Beside>
inline void multiply_tiles(const uint8_t* a, int64_t pitch, const int64_t* offsets, const uint8_t* b, int64_t steps,
                           int32_t* sums, Beside& beside) {
  amx::zero<0>();
  if constexpr (column_tiles == 2) amx::zero<1>();
  if constexpr (row_tiles == 2) amx::zero<2>();
  if constexpr (row_tiles == 2 && column_tiles == 2) amx::zero<3>();
  for (int64_t step = 0; step < steps; ++step, b += kStepBytes) {
    const uint8_t* at = a + offsets[step];
    amx::load<4>(at, pitch);
    amx::load<6>(b, kRowBytes);
    amx::multiply_add<0, 4, 6>();
    if constexpr (column_tiles == 2) {
      amx::load<7>(b + kTileBytes, kRowBytes);
      amx::multiply_add<1, 4, 7>();
    }
    if constexpr (row_tiles == 2) {
      amx::load<5>(at + kRows * pitch, pitch);
      amx::multiply_add<2, 5, 6>();
      if constexpr (column_tiles == 2) amx::multiply_add<3, 5, 7>();
    }
    beside();
  }
  constexpr int64_t kPitch = kPanel * 4;
  amx::store<0>(sums, kPitch);
  if constexpr (column_tiles == 2) amx::store<1>(sums + 16, kPitch);
  if constexpr (row_tiles == 2) amx::store<2>(sums + kRows * kPanel, kPitch);
  if constexpr (row_tiles == 2 && column_tiles == 2) amx::store<3>(sums + kRows * kPanel + 16, kPitch);
}

// Leaves out the tiles that the last positions or the last channels do not reach.
template <typename Beside>
inline void multiply(int64_t positions, int64_t channels, const uint8_t* a, int64_t pitch, const int64_t* offsets,
                     const uint8_t* b, int64_t steps, int32_t* sums, Beside& beside) {
  if (positions > kRows && channels > 16) return multiply_tiles<2, 2>(a, pitch, offsets, b, steps, sums, beside);
  if (positions > kRows) return multiply_tiles<2, 1>(a, pitch, offsets, b, steps, sums, beside);
  if (channels > 16) return multiply_tiles<1, 2>(a, pitch, offsets, b, steps, sums, beside);
  multiply_tiles<1, 1>(a, pitch, offsets, b, steps, sums, beside);
}

// Spreads `work` pieces evenly over `steps` steps. A piece is best some 100 instructions: enough for the call of it not
// to matter, few enough for the next products to be in sight.
struct Pace {
  int64_t work, steps;
  int64_t due = 0;

  template <typename Piece>
  void step(const Piece& piece) {
    for (due += work; due >= steps; due -= steps) piece();
  }
};

// ---- cutting ---------------------------------------------------------------------------

// A layer, in what its loops count.
struct Work {
  int64_t rows;           // of all images
  int64_t row_positions;  // of one row
  int64_t panels;
  int64_t tile_cycles;   // 16 positions by one panel
  int64_t row_cycles;    // to stage one row
  int64_t panel_cycles;  // to fetch one panel's weights for the first time
  bool whole_pixels;     // one task makes all channels of a pixel
};

struct Cut {
  int64_t rows, panels;  // into how many parts
};

struct Task {
  int64_t row_begin, row_end, panel_begin, panel_end;
};

// Threads get going, and wait for each other, in a few microseconds.
#if defined(BITNAS_AMX_MODEL)
constexpr int64_t kParallelCycles = 100;  // tests have small layers
#else
constexpr int64_t kParallelCycles = 20000;
#endif

inline int64_t task_cycles(const Work& work, const Cut& cut) {
  const int64_t rows = divide_up(work.rows, cut.rows), panels = divide_up(work.panels, cut.panels);
  return divide_up(rows * work.row_positions, kRows) * panels * work.tile_cycles + rows * work.row_cycles +
         panels * work.panel_cycles;
}

// The best of the ways to make so many tasks, or {0, 0}: rows cost every task all weights, panels cost it all staging.
inline Cut cut_into(const Work& work, int64_t tasks) {
  Cut best{0, 0};
  for (int64_t panels = 1; panels <= smaller(tasks, work.whole_pixels ? 1 : work.panels); ++panels) {
    const Cut cut{tasks / panels, panels};
    if (tasks % panels != 0 || cut.rows > work.rows) continue;
    if (best.rows == 0 || task_cycles(work, cut) < task_cycles(work, best)) best = cut;
  }
  return best;
}

inline int64_t count_tasks(const Work& work, int64_t threads) {
  if (work.rows * work.row_positions == 0) return 0;
  const int64_t cycles = task_cycles(work, {1, 1});
  for (int64_t tasks = smaller(threads, divide_up(cycles, kParallelCycles)); tasks > 1; --tasks)
    if (cut_into(work, tasks).rows != 0) return tasks;
  return 1;
}

inline Task task_of(const Work& work, int64_t task, int64_t tasks) {
  const Cut cut = cut_into(work, tasks);
  const int64_t row = task / cut.panels, panel = task % cut.panels;
  return {row * work.rows / cut.rows, (row + 1) * work.rows / cut.rows, panel * work.panels / cut.panels,
          (panel + 1) * work.panels / cut.panels};
}

// What is staged at a time: whole images, or rows of one.
struct Chunk {
  int64_t image, images, row, rows;
};

struct ChunkLimit {
  int64_t images, rows;
};

// The largest count up to `most`, at least one, for which fits(count).
template <typename Fits>
int64_t largest_fitting(int64_t most, const Fits& fits) {
  int64_t count = 1;
  for (int64_t more = int64_t{1} << 40; more > 0; more /= 2)
    if (count + more <= most && fits(count + more)) count += more;
  return count;
}

// Images that stay within so many bytes: all of them, or whole stacks of `stack`; where one does not, rows of it.
// bytes_of(images, rows) says what they take.
template <typename BytesOf>
ChunkLimit limit_chunk(int64_t budget, int64_t images, int64_t image_rows, int64_t stack, const BytesOf& bytes_of) {
  if (bytes_of(1, image_rows) > budget)
    return {1, largest_fitting(image_rows, [&](int64_t rows) { return bytes_of(1, rows) <= budget; })};
  const int64_t most = largest_fitting(images, [&](int64_t count) { return bytes_of(count, image_rows) <= budget; });
  return {most < stack || most == images ? most : most / stack * stack, image_rows};
}

// The chunk that begins at row `begin` of all images' rows.
inline Chunk next_chunk(int64_t begin, int64_t end, int64_t image_rows, const ChunkLimit& limit) {
  const int64_t image = begin / image_rows, row = begin % image_rows;
  const int64_t whole = row == 0 ? (end - begin) / image_rows : 0;
  if (whole > 0 && limit.rows >= image_rows) return {image, smaller(whole, limit.images), 0, image_rows};
  return {image, 1, row, smaller(limit.rows, smaller(image_rows - row, end - begin))};
}

}  // namespace
}  // namespace bitnas::cpu

// The input of a convolution as int8, so that a tile of the left operand is sixteen rows a fixed distance apart,
// wherever the window stands. For the kernels that multiply windows as they are: direct and bits.
//
// Staged pixels lie in planes in which what is read together is side by side. An axis of stride S is staged as up to S
// planes, each of every S-th row (or column): the tap that a window reads at `o * S - padding + t * dilation` is then
// position `o + shift` of one plane. So every layer looks like one of stride 1 and dilation 1, and a tap is a constant
// offset. Padding is staged as literal zeros, and needs no border classes.
//
// Positions of the output are numbered as the staged pixels are: [row][column][image]. Columns that only a row's last
// windows reach are positions too, of nothing; there are few of them, since the right padding of a row and the left
// padding of the next are the same pixels. A few small images interleaved have no rows of nothing between them.
//
// Two layouts of a pixel:
//   planes  64 channels together, the planes of other channels behind: tiles are contiguous 1 KiB
//   dense   all channels of a window row together: for few channels, where a tap alone would fill its 64 bytes badly.
//           Without stride and dilation that is how pixels lie anyway; else every position gets its window rows copied.
#pragma once

#include "kernels/cpu/conv2d_amx.h"

namespace bitnas::cpu {
namespace {

// Steps of the loop over K. Prepared weights depend on nothing else of the shape.
struct Steps {
  int64_t kernel_h, kernel_w, channels;  // of a group
  bool dense;

  int64_t chunks() const { return divide_up(dense ? kernel_w * channels : channels, kRowBytes); }
  int64_t count() const { return chunks() * kernel_h * (dense ? 1 : kernel_w); }
};

inline Steps steps_of(const Conv2dShape& s, bool may_be_dense) {
  const Steps planes{s.kernel_h, s.kernel_w, group_channels(s), false};
  const Steps dense{s.kernel_h, s.kernel_w, group_channels(s), true};
  return may_be_dense && dense.count() < planes.count() ? dense : planes;
}

// Of step `step`: the row of the window, its first tap, and which 64 of the channels of that tap (or of that row).
struct Step {
  int64_t ky, kx, chunk;
};

// Planes: all taps of one chunk before the next chunk, so that they find the same pixels in L1.
inline Step step_at(const Steps& steps, int64_t step) {
  if (steps.dense) return {step / steps.chunks(), 0, step % steps.chunks()};
  const int64_t taps = steps.kernel_h * steps.kernel_w, tap = step % taps;
  return {tap / steps.kernel_w, tap % steps.kernel_w, step / taps};
}

// Weight bits of a step: for n below `width` and k below 64, sets(n, k, bit) where there is a weight.
template <typename Sets>
inline void for_each_weight(const Conv2dShape& s, const Steps& steps, const Word* weight, int64_t first, int64_t count,
                            int64_t step, const Sets& sets) {
  const Step at = step_at(steps, step);
  const int64_t words = words_for(steps.channels), row = steps.dense ? steps.kernel_w * steps.channels : steps.channels;
  for (int64_t k = 0; k < kRowBytes && at.chunk * kRowBytes + k < row; ++k) {
    const int64_t in_row = at.chunk * kRowBytes + k, c = in_row % steps.channels;
    const int64_t kx = at.kx + in_row / steps.channels;
    const Word* tap = weight + ((first * s.kernel_h + at.ky) * s.kernel_w + kx) * words + c / kWordBits;
    for (int64_t n = 0; n < count; ++n, tap += s.kernel_h * s.kernel_w * words)
      sets(n, k, tap[0] >> (c % kWordBits) & 1);
  }
}

// One axis of the window over the image.
struct Axis {
  int64_t size, outputs, taps, stride, padding, dilation;
  int64_t period;  // taps so many apart read the same plane

  int64_t planes() const { return smaller(taps, period); }
  int64_t plane(int64_t tap) const { return tap % period; }
  int64_t shift(int64_t tap) const { return tap * dilation / stride; }
  int64_t reach() const { return shift(taps - 1); }
  // Position p of a plane is this coordinate of the image, and position p + 1 is `stride` further.
  int64_t coordinate(int64_t plane, int64_t p) const { return p * stride + plane * dilation % stride - padding; }
  bool inside(int64_t at) const { return at >= 0 && at < size; }
};

inline Axis make_axis(int64_t size, int64_t outputs, int64_t taps, int64_t stride, int64_t padding, int64_t dilation) {
  int64_t divisor = stride, rest = dilation;  // their greatest common one
  while (rest != 0) {
    const int64_t next = divisor % rest;
    divisor = rest;
    rest = next;
  }
  return {size, outputs, taps, stride, padding, dilation, stride / divisor};
}

// Positions [begin, end) of one column plane that lie in the image.
struct Span {
  int64_t begin, end;
};

inline Span columns_inside(const Axis& axis, int64_t plane, int64_t columns) {
  const int64_t first = axis.coordinate(plane, 0);
  const int64_t begin = first >= 0 ? 0 : divide_up(-first, axis.stride);
  const int64_t end = axis.size <= first ? 0 : (axis.size - 1 - first) / axis.stride + 1;
  return {smaller(begin, columns), larger(smaller(begin, columns), smaller(end, columns))};
}

// Where the staged pixels of a layer lie, but for how many of them.
struct Window {
  Steps steps;
  Axis h, w;
  int64_t images, groups;
  bool flat;       // every pixel is its own row, one after the other
  bool copied;     // dense, and every position has its window rows to itself
  int64_t pitch;   // positions from a row to the next
  int64_t shared;  // columns of padding that a row shares with the next
  int64_t pixel_bytes;
  int64_t column_planes, row_planes;
};

inline Window make_window(const Conv2dShape& s, bool may_be_dense) {
  Window w;
  w.steps = steps_of(s, may_be_dense);
  w.groups = s.groups;
  w.flat = s.kernel_h * s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1 && s.padding_h == 0 && s.padding_w == 0;
  if (w.flat) {
    const int64_t pixels = s.images * s.height * s.width;
    w.images = 1;
    w.h = make_axis(pixels, pixels, 1, 1, 0, 1);
    w.w = make_axis(1, 1, 1, 1, 0, 1);
  } else {
    w.images = s.images;
    w.h = make_axis(s.height, s.out_height, s.kernel_h, s.stride_h, s.padding_h, s.dilation_h);
    w.w = make_axis(s.width, s.out_width, s.kernel_w, s.stride_w, s.padding_w, s.dilation_w);
  }
  w.row_planes = w.h.planes();
  w.copied = w.steps.dense && (s.stride_w != 1 || s.dilation_w != 1);
  if (w.copied) {
    w.column_planes = 1;
    w.shared = 0;
    w.pitch = w.w.outputs;
    w.pixel_bytes = s.kernel_w * w.steps.channels;
    return w;
  }
  w.column_planes = w.w.planes();
  w.pixel_bytes = w.steps.dense ? w.steps.channels : kRowBytes;
  const int64_t columns = w.w.outputs + w.w.reach();
  w.shared = w.w.reach();
  for (int64_t plane = 0; plane < w.column_planes; ++plane) {
    const Span inside = columns_inside(w.w, plane, columns);
    if (inside.begin < inside.end) w.shared = smaller(w.shared, smaller(inside.begin, columns - inside.end));
  }
  w.pitch = columns - w.shared;
  return w;
}

// Images are staged in stacks: a few interleaved ones each. More of them, and taps above each other would no longer
// meet in L1.
constexpr int64_t kStackPitch = 32;

inline int64_t stack_limit(const Window& w) { return w.steps.dense ? 1 : larger(1, kStackPitch / w.pitch); }

// Where the staged pixels of one chunk lie.
struct Layout {
  int64_t stacks, interleave;  // the last stack may have fewer images
  int64_t rows;                // staged, of a plane
  int64_t out_positions;       // of a stack
  int64_t stack_positions;     // staged ones
  int64_t chunk_bytes, group_bytes, bytes;
};

inline Layout make_layout(const Window& w, int64_t images, int64_t rows) {
  Layout l;
  l.stacks = divide_up(images, stack_limit(w));
  l.interleave = divide_up(images, l.stacks);
  l.rows = rows + w.h.reach();
  l.out_positions = rows * w.pitch * l.interleave;
  l.stack_positions = (w.row_planes * w.column_planes * l.rows * w.pitch + w.shared) * l.interleave;
  // A block's last positions, and a window row's last chunk, reach past what is staged: numbers that nobody uses.
  const int64_t positions = l.stacks * l.stack_positions + 4 * kRows + w.w.reach() * l.interleave;
  if (w.steps.dense) {
    l.chunk_bytes = kRowBytes;
    l.group_bytes = round_up(positions * w.pixel_bytes + kRowBytes, 64);
  } else {
    l.chunk_bytes = odd_lines(positions * kRowBytes);
    l.group_bytes = w.steps.chunks() * l.chunk_bytes;
  }
  l.bytes = w.groups * l.group_bytes;
  return l;
}

inline int64_t step_offset(const Window& w, const Layout& l, const Step& step) {
  const int64_t plane = w.h.plane(step.ky) * w.column_planes + (w.steps.dense ? 0 : w.w.plane(step.kx));
  const int64_t column = w.steps.dense ? 0 : w.w.shift(step.kx);
  const int64_t position = (plane * l.rows + w.h.shift(step.ky)) * w.pitch + column;
  return position * l.interleave * w.pixel_bytes + step.chunk * l.chunk_bytes;
}

// Pixels on their way to the staged form: bytes from one to the next, and from 64 channels to the next.
struct Target {
  uint8_t* out;
  int64_t pixel_bytes, chunk_bytes;
  int64_t channels;
  bool whole_lines;  // channels past the last are zeros, else another pixel's

  Word stored(int64_t chunk) const { return whole_lines ? ~Word{0} : low_bits(channels - chunk * kRowBytes); }
};

// Pixels `step` words apart, of which channels from `bit` on are wanted.
struct Source {
  const Word* pixel;
  int64_t step, words, bit;
};

inline void expand_pixels(const Source& source, int64_t count, const Values& values, const Target& target) {
  for (int64_t chunk = 0; chunk * kRowBytes < target.channels; ++chunk) {
    const Word channels = low_bits(target.channels - chunk * kRowBytes), stored = target.stored(chunk);
    const Values of_chunk{_mm512_maskz_mov_epi8(channels, values.zero), values.one};
    const int64_t bit = source.bit + chunk * kRowBytes, shift = bit % kWordBits;
    const Word* from = source.pixel + bit / kWordBits;
    uint8_t* out = target.out + chunk * target.chunk_bytes;
    const bool straddles = shift != 0 && bit / kWordBits + 1 < source.words;
    for (int64_t i = 0; i < count; ++i, from += source.step, out += target.pixel_bytes) {
      Word bits = from[0] >> shift;
      if (straddles) bits |= from[1] << (kWordBits - shift);
      _mm512_mask_storeu_epi8(out, stored, expand(of_chunk, bits & channels));
    }
  }
}

inline void zero_pixels(int64_t count, const Target& target) {
  for (int64_t chunk = 0; chunk * kRowBytes < target.channels; ++chunk) {
    uint8_t* out = target.out + chunk * target.chunk_bytes;
    for (int64_t i = 0; i < count; ++i, out += target.pixel_bytes)
      _mm512_mask_storeu_epi8(out, target.stored(chunk), _mm512_setzero_si512());
  }
}

// Columns [0, pitch) of one row; `columns` of them lie in the image, the first at `source`.
inline void stage_row(const Source& source, const Span& columns, int64_t pitch, const Values& values, Target target) {
  zero_pixels(columns.begin, target);
  target.out += columns.begin * target.pixel_bytes;
  expand_pixels(source, columns.end - columns.begin, values, target);
  target.out += (columns.end - columns.begin) * target.pixel_bytes;
  zero_pixels(pitch - columns.end, target);
}

// One plane of one group of one image, `out` being its first position.
inline void stage_plane(const Conv2dArgs& args, const Window& w, const Layout& l, const Chunk& chunk, int64_t image,
                        int64_t group, int64_t row_plane, int64_t column_plane, uint8_t* out) {
  const Conv2dShape& s = args.shape;
  const int64_t words = words_for(s.channels), channels = w.steps.channels;
  const Values values = values_of(s.encoding);
  Target target{out, l.interleave * w.pixel_bytes, l.chunk_bytes, channels, !w.steps.dense};
  if (w.flat) {
    const Source pixels{args.x + chunk.row * words, words, words, group * channels};
    return expand_pixels(pixels, chunk.rows, values, target);
  }
  // Where every position has its window rows to itself, a tap is a plane of its own among them.
  for (int64_t tap = 0; tap < (w.copied ? w.w.taps : 1); ++tap) {
    Axis axis = w.w;
    if (w.copied) axis.padding -= tap * axis.dilation;
    const Span columns = columns_inside(axis, column_plane, w.pitch);
    const int64_t first_x = axis.coordinate(column_plane, columns.begin);
    for (int64_t row = 0; row < l.rows; ++row) {
      target.out = out + row * w.pitch * target.pixel_bytes + tap * channels;
      const int64_t y = w.h.coordinate(row_plane, chunk.row + row);
      if (!w.h.inside(y) || columns.begin >= columns.end) {
        zero_pixels(w.pitch, target);
        continue;
      }
      const Word* pixel = args.x + ((image * s.height + y) * s.width + first_x) * words;
      stage_row({pixel, s.stride_w * words, words, group * channels}, columns, w.pitch, values, target);
    }
  }
}

inline void stage(const Conv2dArgs& args, const Window& w, const Layout& l, const Chunk& chunk, int64_t group_begin,
                  int64_t group_end, uint8_t* out) {
  for (int64_t group = group_begin; group < group_end; ++group) {
    for (int64_t i = 0; i < chunk.images; ++i) {
      const int64_t stack = i / l.interleave, lane = i % l.interleave;
      uint8_t* image = out + group * l.group_bytes + (stack * l.stack_positions + lane) * w.pixel_bytes;
      const int64_t plane_bytes = l.rows * w.pitch * l.interleave * w.pixel_bytes;
      for (int64_t row = 0; row < w.row_planes; ++row)
        for (int64_t column = 0; column < w.column_planes; ++column)
          stage_plane(args, w, l, chunk, chunk.image + i, group, row, column,
                      image + (row * w.column_planes + column) * plane_bytes);
      const Target rest{image + w.row_planes * w.column_planes * plane_bytes, l.interleave * w.pixel_bytes,
                        l.chunk_bytes, w.steps.channels, !w.steps.dense};
      zero_pixels(w.shared, rest);
    }
  }
}

// Which pixel of the output a position is, counted from the chunk's first; -1 where it is none. [stack][position]
inline void list_pixels(const Window& w, const Layout& l, const Chunk& chunk, int32_t* at) {
  if (w.flat) {
    for (int64_t pixel = 0; pixel < chunk.rows; ++pixel) at[pixel] = static_cast<int32_t>(pixel);
    return;
  }
  for (int64_t i = 0; i < l.stacks * l.interleave; ++i) {
    int32_t* out = at + i / l.interleave * l.out_positions + i % l.interleave;
    const int64_t real = i < chunk.images ? w.w.outputs : 0;
    for (int64_t row = 0; row < chunk.rows; ++row, out += w.pitch * l.interleave) {
      const auto first = static_cast<int32_t>((i * chunk.rows + row) * w.w.outputs);
      for (int64_t column = 0; column < real; ++column)
        out[column * l.interleave] = first + static_cast<int32_t>(column);
      for (int64_t column = real; column < w.pitch; ++column) out[column * l.interleave] = -1;
    }
  }
}

// Staged pixels may take so much of the cache, beside weights that are read again for every block of positions.
inline ChunkLimit chunk_limit(const Window& w, int64_t weight_bytes) {
  // Weights that do not stay in the cache come from far away once per chunk: fewer, larger chunks.
  const int64_t budget = weight_bytes > cache_bytes() / 3 ? cache_bytes() / 2 : cache_bytes() / 5;
  const auto bytes_of = [&w](int64_t images, int64_t rows) { return make_layout(w, images, rows).bytes; };
  ChunkLimit limit = limit_chunk(budget, w.images, w.h.outputs, stack_limit(w), bytes_of);
  constexpr int64_t kBlocks = 4 * kRows;  // whole ones, where rows are positions
  if (w.flat && limit.rows > kBlocks && limit.rows < w.h.outputs) limit.rows -= limit.rows % kBlocks;
  return limit;
}

// ---- the kernel around the products ----------------------------------------------
//
// Products says how a block is multiplied:
//   kMayBeDense, kChannels (of a panel), kPositions (of a block), kRoomBytes (it wants in scratch)
//   weight_bytes(shape), panel_bytes(shape)
//   kTileCycles     of 16 positions by one panel, each step
//   kPanelInL1      a panel that serves all positions before the next one comes
//   multiply(positions, channels, a, pitch, offsets, weights of the panel, steps, room, sums, beside)

// All that one task keeps in scratch.
struct WindowRoom {
  uint8_t* staged;
  int64_t* offsets;
  int32_t* pixels;
  int32_t* sums;
  uint8_t* products;
  int64_t bytes;
};

template <typename Products>
WindowRoom make_room(const Window& w, const Layout& l, uint8_t* base) {
  Scratch scratch(base);
  WindowRoom room;
  room.staged = scratch.take<uint8_t>(l.bytes);
  room.offsets = scratch.take<int64_t>(w.steps.count());
  room.pixels = scratch.take<int32_t>(l.stacks * l.out_positions);
  room.sums = scratch.take<int32_t>(Products::kPositions * Products::kChannels);
  room.products = scratch.take<uint8_t>(Products::kRoomBytes);
  room.bytes = scratch.bytes();
  return room;
}

// A block whose sums are known: its positions leave a few at a time.
template <int width>
struct Leaving {
  Sink sink;
  const int32_t* sums;
  const int32_t* pixels;
  int64_t first_pixel;  // that `pixels` count from
  int64_t next, count;

  bool to_bits() const { return sink.epilogue->kind == EpilogueKind::kBits; }
  int64_t piece_positions() const { return to_bits() ? 8 : 2; }
  int64_t pieces() const { return count == 0 ? 0 : divide_up(count, piece_positions()); }
  // Not inlined: the loop over the tile unit keeps its registers.
  [[gnu::noinline]] void piece() {
    const int64_t end = smaller(count, next + piece_positions());
    if (to_bits()) {
      bits(end);
    } else {
      values(end);
    }
    next = end;
  }
  void rest() {
    while (next < count) piece();
    count = 0;
  }

 private:
  void bits(int64_t end) const {
    const BitStore<width> store(sink);
    const int32_t *dots = sums, *thresholds = sink.epilogue->threshold + sink.first;
    const __m512i low = _mm512_maskz_loadu_epi32(lanes_of(sink, 0), thresholds);
    const __m512i high = _mm512_maskz_loadu_epi32(lanes_of(sink, 16), thresholds + 16);
    for (int64_t i = next; i < end; ++i) {
      if (pixels[i] < 0) continue;
      uint32_t bits = reached(_mm512_load_si512(dots + i * width), low, 0);
      if (width > 16) bits |= reached(_mm512_load_si512(dots + i * width + 16), high, 16);
      store.put(first_pixel + pixels[i], bits);
    }
  }
  void values(int64_t end) const {
    const BitStore<width> store(sink);
    for (int64_t i = next; i < end; ++i) {
      if (pixels[i] < 0) continue;
      const int64_t pixel = first_pixel + pixels[i];
      uint32_t bits = store_dots(sink, pixel, 0, _mm512_load_si512(sums + i * width));
      if (width > 16 && sink.channels > 16)
        bits |= store_dots(sink, pixel, 16, _mm512_load_si512(sums + i * width + 16));
      if (sink.packed != nullptr) store.put(pixel, bits);
    }
  }
};

template <typename Products>
struct WindowRun {
  static constexpr int kChannels = Products::kChannels;

  const Conv2dArgs& args;
  const Window& window;
  const uint8_t* weights;
  Leaving<kChannels> leaving{};

  void block(const Layout& l, const WindowRoom& room, int64_t first_pixel, int64_t stack, int64_t position,
             int64_t panel) {
    const int64_t steps = window.steps.count(), group = panel / group_panels(args.shape, kChannels);
    const int64_t positions = smaller(Products::kPositions, l.out_positions - position);
    const uint8_t* a =
        room.staged + group * l.group_bytes + (stack * l.stack_positions + position) * window.pixel_bytes;
    const Sink sink = make_sink<kChannels>(args, panel);
    Pace pace{leaving.pieces(), steps};  // the last piece has left before the first new sum is stored
    const auto beside = [this, &pace]() __attribute__((always_inline)) { pace.step([this] { leaving.piece(); }); };
    Products::multiply(positions, sink.channels, a, window.pixel_bytes, room.offsets,
                       weights + panel * Products::panel_bytes(args.shape), steps, room.products, room.sums, beside);
    leaving.sink = sink;
    leaving.sums = room.sums;
    leaving.pixels = room.pixels + stack * l.out_positions + position;
    leaving.first_pixel = first_pixel;
    leaving.next = 0;
    leaving.count = positions;
  }

  void chunk(const Chunk& chunk, const Task& task, uint8_t* scratch) {
    const Layout l = make_layout(window, chunk.images, chunk.rows);
    const WindowRoom room = make_room<Products>(window, l, scratch);
    const int64_t panels = group_panels(args.shape, kChannels), bytes = Products::panel_bytes(args.shape);
    stage(args, window, l, chunk, task.panel_begin / panels, divide_up(task.panel_end, panels), room.staged);
    list_pixels(window, l, chunk, room.pixels);
    for (int64_t step = 0; step < window.steps.count(); ++step)
      room.offsets[step] = step_offset(window, l, step_at(window.steps, step));
    const int64_t first_pixel = (chunk.image * window.h.outputs + chunk.row) * window.w.outputs;
    if (shares_bytes(args, kChannels)) clear_bits(args, first_pixel, chunk.images * chunk.rows * window.w.outputs);
    // A panel that stays in L1 serves all positions; of larger ones as many as stay in L2 serve a block that is in L1.
    const int64_t together = bytes <= Products::kPanelInL1 ? 1 : larger(1, cache_bytes() / 4 / bytes);
    for (int64_t begin = task.panel_begin; begin < task.panel_end; begin += together) {
      const int64_t end = smaller(task.panel_end, begin + together);
      for (int64_t stack = 0; stack < l.stacks; ++stack)
        for (int64_t position = 0; position < l.out_positions; position += Products::kPositions)
          for (int64_t panel = begin; panel < end; ++panel) block(l, room, first_pixel, stack, position, panel);
    }
    leaving.rest();
  }
};

template <typename Products>
Work window_work(const Conv2dArgs& args, const Window& w) {
  const int64_t positions = w.pitch * w.row_planes * w.column_planes;
  return {.rows = w.images * w.h.outputs,
          .row_positions = w.pitch,
          .panels = w.groups * group_panels(args.shape, Products::kChannels),
          .tile_cycles = w.steps.count() * Products::kTileCycles,
          .row_cycles = positions * w.groups * divide_up(w.steps.channels, kRowBytes) * 2,
          .panel_cycles = Products::panel_bytes(args.shape) / 8,  // from the third-level cache
          .whole_pixels = shares_bytes(args, Products::kChannels)};
}

template <typename Products>
int64_t window_tasks(const Conv2dArgs& args, int64_t threads) {
  return count_tasks(window_work<Products>(args, make_window(args.shape, Products::kMayBeDense)), threads);
}

template <typename Products>
int64_t window_scratch_bytes(const Conv2dArgs& args, int64_t) {
  const Window w = make_window(args.shape, Products::kMayBeDense);
  const ChunkLimit limit = chunk_limit(w, Products::weight_bytes(args.shape));
  const Layout l = make_layout(w, limit.images, limit.rows);
  return make_room<Products>(w, l, nullptr).bytes;
}

template <typename Products>
void window_run(const Conv2dArgs& args, const uint8_t* weights, int64_t task, int64_t tasks, uint8_t* scratch) {
  const Window w = make_window(args.shape, Products::kMayBeDense);
  const Task part = task_of(window_work<Products>(args, w), task, tasks);
  const ChunkLimit limit = chunk_limit(w, Products::weight_bytes(args.shape));
  WindowRun<Products> run{args, w, weights};
  amx::configure();
  for (int64_t row = part.row_begin; row < part.row_end;) {
    const Chunk chunk = next_chunk(row, part.row_end, w.h.outputs, limit);
    run.chunk(chunk, part, scratch);
    row += chunk.images * chunk.rows;
  }
  amx::release();
}

template <typename Products>
constexpr TileKernel window_kernel(bool (*computes)(const Conv2dShape&),
                                   void (*prepare)(const Conv2dShape&, const Word*, uint8_t*)) {
  return {computes,
          Products::weight_bytes,
          prepare,
          window_tasks<Products>,
          window_scratch_bytes<Products>,
          window_run<Products>};
}

}  // namespace
}  // namespace bitnas::cpu

// Binary convolution on AMX by F(4, 3) along rows: half the products of the direct way, exactly.
//
// For kernels three wide, of any height: the rows of the kernel are summed by the tile unit, so K is kernel_h times the
// channels, and only rows of four outputs are transformed, which is little work. It takes int8 weights twice as large
// as the direct way's, and pays from about 128 channels on.
//
// What bounds it is the second-level cache. Per block of 32 positions by 32 channels and 64 channels of input the tile
// unit takes 1152 cycles, and fetches 36 KiB of weights and about 17 KiB of inputs; the six products, stored and read
// again, are 72 KiB more whatever the number of input channels. So four blocks share the weights of one product while
// they are in L1 (up to 256 channels), which leaves 55 bytes a cycle at 128 channels and 39 at 256 of the 46 there are.
// The outputs of four blocks are transformed beside the products of the next four.
#include "kernels/cpu/conv2d_amx_winograd.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kGroup = 4;  // blocks
constexpr int64_t kGroupProducts = kGroup * kProducts * kProductPitch;

// Few images at a time are interleaved: taps above each other are to meet in L1.
constexpr int64_t kStackPitch = 16;

int64_t steps_of(const Conv2dShape& s) { return s.kernel_h * words_for(group_channels(s)); }
int64_t panel_bytes(const Conv2dShape& s) { return kProducts * steps_of(s) * kStepBytes; }
int64_t largest_dot(const Conv2dShape& s) { return s.kernel_h * kTaps * group_channels(s); }

bool computes(const Conv2dShape& s) {
  return s.kernel_w == kTaps && s.stride_h == 1 && s.stride_w == 1 && s.dilation_w == 1 && groups_are_words(s) &&
         (largest_dot(s) + 1) * kScale[0] <= INT32_MAX;
}

int64_t weight_bytes(const Conv2dShape& s) { return s.groups * group_panels(s, kPanel) * panel_bytes(s); }

// [group][panel][product][64 channels][kernel row][tile of 16 outputs][row of four channels][output][channel]
void prepare(const Conv2dShape& s, const Word* weight, uint8_t* out) {
  __builtin_memset(out, 0, weight_bytes(s));
  for (int64_t n = 0; n < s.out_channels; ++n) {
    const int64_t in_group = n % group_outputs(s);
    const int64_t panel = n / group_outputs(s) * group_panels(s, kPanel) + in_group / kPanel;
    uint8_t* column = out + panel * panel_bytes(s) + in_group % kPanel / 16 * kTileBytes + in_group % 16 * 4;
    for (int64_t ky = 0; ky < s.kernel_h; ++ky) {
      for (int64_t c = 0; c < group_channels(s); ++c) {
        int32_t g[kTaps], u[kProducts];
        for (int64_t kx = 0; kx < kTaps; ++kx) g[kx] = weight_at(s, weight, n, ky, kx, c);
        transform_taps(g, u);
        uint8_t* at = column + (c / kRowBytes * s.kernel_h + ky) * kStepBytes + c % kRowBytes / 4 * kRowBytes + c % 4;
        for (int64_t product = 0; product < kProducts; ++product)
          at[product * steps_of(s) * kStepBytes] = static_cast<uint8_t>(u[product]);
      }
    }
  }
}

// Where the transformed inputs of one chunk lie: [64 channels][product][stack][row][column][image], 64 bytes each.
// As in conv2d_amx_window.h, positions of the output are numbered as the staged ones are; a column is four outputs.
struct Layout {
  int64_t columns;             // of a row
  int64_t stacks, interleave;  // the last stack may have fewer images
  int64_t rows;                // staged
  int64_t out_positions, stack_positions;
  int64_t plane_bytes, bytes;
};

int64_t columns_of(const Conv2dShape& s) { return divide_up(s.out_width, kOutputs); }

int64_t stack_limit(const Conv2dShape& s) { return larger(1, kStackPitch / columns_of(s)); }

Layout make_layout(const Conv2dShape& s, int64_t images, int64_t rows) {
  Layout l;
  l.columns = columns_of(s);
  l.stacks = divide_up(images, stack_limit(s));
  l.interleave = divide_up(images, l.stacks);
  l.rows = rows + (s.kernel_h - 1) * s.dilation_h;
  l.out_positions = rows * l.columns * l.interleave;
  l.stack_positions = l.rows * l.columns * l.interleave;
  l.plane_bytes = odd_lines((l.stacks * l.stack_positions + kBlock) * kRowBytes);
  l.bytes = words_for(s.channels) * kProducts * l.plane_bytes;
  return l;
}

ChunkLimit chunk_limit(const Conv2dShape& s) {
  const int64_t budget = cache_bytes() / (weight_bytes(s) > cache_bytes() / 3 ? 2 : 4);
  return limit_chunk(budget, s.images, s.out_height, stack_limit(s),
                     [&s](int64_t images, int64_t rows) { return make_layout(s, images, rows).bytes; });
}

// One row of one image, 64 channels: `pixels` points at the word of its first pixel, or is null where the row is
// padding.
void transform_row(const Conv2dShape& s, const Word* pixels, const Layout& l, const Values& values, uint8_t* out) {
  const int64_t words = words_for(s.channels);
  const auto pixel = [&](int64_t x) {
    return pixels != nullptr && x >= 0 && x < s.width ? expand(values, pixels[x * words]) : _mm512_setzero_si512();
  };
  int64_t x = -s.padding_w;
  __m512i d[kProducts], v[kProducts];
  d[4] = pixel(x);
  d[5] = pixel(x + 1);
  for (int64_t column = 0; column < l.columns; ++column, x += kOutputs, out += l.interleave * kRowBytes) {
    d[0] = d[4];
    d[1] = d[5];
#pragma GCC unroll 4
    for (int i = 2; i < kProducts; ++i) d[i] = pixel(x + i);
    transform_inputs(d, v);
#pragma GCC unroll 6
    for (int i = 0; i < kProducts; ++i) _mm512_store_si512(out + i * l.plane_bytes, v[i]);
  }
}

void transform_chunk(const Conv2dArgs& args, const Layout& l, const Chunk& chunk, int64_t word_begin, int64_t word_end,
                     uint8_t* out) {
  const Conv2dShape& s = args.shape;
  const Values values = values_of(s.encoding);
  for (int64_t word = word_begin; word < word_end; ++word) {
    for (int64_t i = 0; i < chunk.images; ++i) {
      const int64_t position = i / l.interleave * l.stack_positions + i % l.interleave;
      uint8_t* at = out + word * kProducts * l.plane_bytes + position * kRowBytes;
      for (int64_t row = 0; row < l.rows; ++row, at += l.columns * l.interleave * kRowBytes) {
        const int64_t y = chunk.row + row - s.padding_h;
        const bool inside = y >= 0 && y < s.height;
        const int64_t first = ((chunk.image + i) * s.height + y) * s.width * words_for(s.channels) + word;
        transform_row(s, inside ? args.x + first : nullptr, l, values, at);
      }
    }
  }
}

// Outputs of one position: the first pixel, counted from the chunk's first, and how many there are.
struct Spot {
  int32_t pixel, count;
};

void list_spots(const Conv2dShape& s, const Layout& l, const Chunk& chunk, Spot* at) {
  for (int64_t i = 0; i < l.stacks * l.interleave; ++i) {
    Spot* out = at + i / l.interleave * l.out_positions + i % l.interleave;
    for (int64_t row = 0; row < chunk.rows; ++row) {
      for (int64_t x = 0; x < s.out_width; x += kOutputs, out += l.interleave)
        *out = {static_cast<int32_t>((i * chunk.rows + row) * s.out_width + x),
                static_cast<int32_t>(i < chunk.images ? smaller(kOutputs, s.out_width - x) : 0)};
    }
  }
}

// Thresholds of a panel times the three scales there are.
constexpr int64_t kScales = 3;
struct Thresholds {
  alignas(64) int32_t of[kScales][kPanel];
};

void scale_thresholds(const Conv2dArgs& args, const Sink& sink, Thresholds* out) {
  for (int64_t scale = 0; scale < kScales; ++scale) {
    for (int64_t n = 0; n < kPanel; ++n) {
      const int32_t threshold = n < sink.channels ? args.epilogue.threshold[sink.first + n] : 0;
      out->of[scale][n] = scaled_threshold(threshold, largest_dot(args.shape), kScale[scale]);
    }
  }
}

// All that one task keeps in scratch.
struct Room {
  uint8_t* inputs;
  int64_t* offsets;
  Spot* spots;
  int32_t* products[2];
  Thresholds* thresholds[2];
  int64_t bytes;
};

Room make_room(const Conv2dShape& s, const Layout& l, uint8_t* base) {
  Scratch scratch(base);
  Room room;
  room.inputs = scratch.take<uint8_t>(l.bytes);
  room.offsets = scratch.take<int64_t>(steps_of(s));
  room.spots = scratch.take<Spot>(l.stacks * l.out_positions);
  for (int i = 0; i < 2; ++i) {
    room.products[i] = scratch.take<int32_t>(kGroupProducts);
    room.thresholds[i] = scratch.take<Thresholds>(1);
  }
  room.bytes = scratch.bytes();
  return room;
}

// Blocks whose products are known: their positions leave one by one.
struct Leaving {
  Sink sink;
  const int32_t* products;
  const Thresholds* thresholds;
  const Spot* spots;
  int64_t first_pixel;  // that spots count from
  int64_t next, count;

  int64_t pieces() const { return count; }
  // One position. Not inlined: the loop over the tile unit keeps its registers.
  [[gnu::noinline]] void piece() {
    if (sink.epilogue->kind == EpilogueKind::kBits) {
      position<true>(spots[next]);
    } else {
      position<false>(spots[next]);
    }
    ++next;
  }
  void rest() {
    while (next < count) piece();
    count = 0;
  }

 private:
  template <bool to_bits>
  void position(const Spot& spot) const {
    const auto at = static_cast<uint64_t>(next);  // unsigned: divided by shifting
    const int32_t* m = products + at / kBlock * kProducts * kProductPitch + at % kBlock * kPanel;
    const int64_t pixel = first_pixel + spot.pixel;
    uint32_t bits[kOutputs] = {};
    lanes<to_bits, 0>(m, pixel, spot.count, bits);
    if (sink.channels > 16) lanes<to_bits, 16>(m, pixel, spot.count, bits);
    if (!to_bits && sink.packed == nullptr) return;
    const BitStore<kPanel> store(sink);
#pragma GCC unroll 4
    for (int j = 0; j < kOutputs; ++j)
      if (j < spot.count) store.put(pixel + j, bits[j]);
  }
  // 16 channels from `lane` on.
  template <bool to_bits, int lane>
  void lanes(const int32_t* at, int64_t pixel, int32_t outputs, uint32_t bits[kOutputs]) const {
    __m512i m[kProducts], y[kOutputs];
#pragma GCC unroll 6
    for (int i = 0; i < kProducts; ++i) m[i] = _mm512_load_si512(at + lane + i * kProductPitch);
    transform_products(m, y);
#pragma GCC unroll 4
    for (int j = 0; j < kOutputs; ++j) {
      if constexpr (to_bits) {
        bits[j] |= reached(y[j], _mm512_load_si512(thresholds->of[j < kScales ? j : kScales - 1] + lane), lane);
      } else {
        if (j < outputs) bits[j] |= store_dots(sink, pixel + j, lane, unscaled(y[j], kInverseOf3, kShift[j]));
      }
    }
  }
};

struct Run {
  const Conv2dArgs& args;
  const uint8_t* weights;
  Leaving leaving{};
  int turn = 0;

  // Up to four blocks from `position` of a stack on, by one panel.
  void blocks(const Layout& l, const Room& room, const Sink& sink, const Thresholds* thresholds, int64_t first_pixel,
              int64_t stack, int64_t position, int64_t panel) {
    const Conv2dShape& s = args.shape;
    const int64_t steps = steps_of(s), group = panel / group_panels(s, kPanel);
    const int64_t positions = smaller(kGroup * kBlock, l.out_positions - position);
    const uint8_t* inputs = room.inputs + group * words_for(group_channels(s)) * kProducts * l.plane_bytes +
                            (stack * l.stack_positions + position) * kRowBytes;
    int32_t* products = room.products[turn];
    Pace pace{leaving.pieces(), divide_up(positions, kBlock) * kProducts * steps};
    const auto beside = [this, &pace]() __attribute__((always_inline)) { pace.step([this] { leaving.piece(); }); };
    for (int64_t product = 0; product < kProducts; ++product) {
      const uint8_t* u = weights + panel * panel_bytes(s) + product * steps * kStepBytes;
      for (int64_t p = 0; p < positions; p += kBlock)
        multiply(positions - p, sink.channels, inputs + product * l.plane_bytes + p * kRowBytes, kRowBytes,
                 room.offsets, u, steps, products + (p / kBlock * kProducts + product) * kProductPitch, beside);
    }
    leaving.sink = sink;
    leaving.products = products;
    leaving.thresholds = thresholds;
    leaving.spots = room.spots + stack * l.out_positions + position;
    leaving.first_pixel = first_pixel;
    leaving.next = 0;
    leaving.count = positions;
    turn ^= 1;
  }

  void chunk(const Chunk& chunk, const Task& task, uint8_t* scratch) {
    const Conv2dShape& s = args.shape;
    const Layout l = make_layout(s, chunk.images, chunk.rows);
    const Room room = make_room(s, l, scratch);
    const int64_t panels = group_panels(s, kPanel), words = words_for(group_channels(s));
    transform_chunk(args, l, chunk, task.panel_begin / panels * words, divide_up(task.panel_end, panels) * words,
                    room.inputs);
    list_spots(s, l, chunk, room.spots);
    for (int64_t step = 0; step < steps_of(s); ++step) {
      const int64_t rows = step % s.kernel_h * s.dilation_h;
      room.offsets[step] = step / s.kernel_h * kProducts * l.plane_bytes + rows * l.columns * l.interleave * kRowBytes;
    }
    const int64_t first_pixel = (chunk.image * s.out_height + chunk.row) * s.out_width;
    if (shares_bytes(args, kPanel)) clear_bits(args, first_pixel, chunk.images * chunk.rows * s.out_width);
    for (int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
      const Sink sink = make_sink<kPanel>(args, panel);
      Thresholds* thresholds = room.thresholds[panel % 2];
      if (args.epilogue.kind == EpilogueKind::kBits) scale_thresholds(args, sink, thresholds);
      for (int64_t stack = 0; stack < l.stacks; ++stack)
        for (int64_t position = 0; position < l.out_positions; position += kGroup * kBlock)
          blocks(l, room, sink, thresholds, first_pixel, stack, position, panel);
    }
    leaving.rest();
  }
};

Work work_of(const Conv2dArgs& args) {
  const Conv2dShape& s = args.shape;
  return {.rows = s.images * s.out_height,
          .row_positions = columns_of(s),
          .panels = s.groups * group_panels(s, kPanel),
          .tile_cycles = kProducts * steps_of(s) * 32,
          .row_cycles = columns_of(s) * words_for(s.channels) * 16,
          .panel_cycles = panel_bytes(s) / 8,  // from the third-level cache
          .whole_pixels = shares_bytes(args, kPanel)};
}

int64_t tasks(const Conv2dArgs& args, int64_t threads) { return count_tasks(work_of(args), threads); }

int64_t scratch_bytes(const Conv2dArgs& args, int64_t) {
  const Conv2dShape& s = args.shape;
  const ChunkLimit limit = chunk_limit(s);
  const Layout l = make_layout(s, limit.images, limit.rows);
  return make_room(s, l, nullptr).bytes;
}

void run(const Conv2dArgs& args, const uint8_t* weights, int64_t task, int64_t tasks, uint8_t* scratch) {
  const Task part = task_of(work_of(args), task, tasks);
  const ChunkLimit limit = chunk_limit(args.shape);
  Run run{args, weights};
  amx::configure();
  for (int64_t row = part.row_begin; row < part.row_end;) {
    const Chunk chunk = next_chunk(row, part.row_end, args.shape.out_height, limit);
    run.chunk(chunk, part, scratch);
    row += chunk.images * chunk.rows;
  }
  amx::release();
}

}  // namespace

extern const TileKernel amx_winograd1d;
const TileKernel amx_winograd1d = {computes, weight_bytes, prepare, tasks, scratch_bytes, run};

}  // namespace bitnas::cpu

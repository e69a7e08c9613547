// Binary 3x3 convolution on AMX by F(4x4, 3x3): a quarter of the products of the direct way, exactly.
//
// Everything but the products grows: int8 weights four times as large as the direct way's, 36 products of every block
// to be stored and transformed. Of the 46 bytes a cycle that the second-level cache gives it would take 48 for operands
// (two blocks share the weights of a product) and 12288 / channels more for products, so about half of the tile unit's
// speed is left at 256 channels, two thirds at 512; and weights that do not stay in that cache (256 to 256 channels are
// 2.4 MB) make it slower still. F(4, 3) along rows comes close everywhere and is ahead where images are not whole tiles
// of 4x4; this can win for 256 channels and more, on large batches of images that are.
#include "kernels/cpu/conv2d_amx_winograd.h"

namespace bitnas::cpu {
namespace {

constexpr int64_t kSquare = kProducts * kProducts;
constexpr int64_t kGroup = 2;  // blocks, which share the weights of one product
constexpr int64_t kGroupProducts = kGroup * kSquare * kProductPitch;

int64_t steps_of(const Conv2dShape& s) { return words_for(group_channels(s)); }
int64_t panel_bytes(const Conv2dShape& s) { return kSquare * steps_of(s) * kStepBytes; }
int64_t largest_dot(const Conv2dShape& s) { return kTaps * kTaps * group_channels(s); }

bool computes(const Conv2dShape& s) {
  return s.kernel_h == kTaps && s.kernel_w == kTaps && s.stride_h == 1 && s.stride_w == 1 && s.dilation_h == 1 &&
         s.dilation_w == 1 && groups_are_words(s) && (largest_dot(s) + 1) * kScale[0] * kScale[0] <= INT32_MAX;
}

int64_t weight_bytes(const Conv2dShape& s) { return s.groups * group_panels(s, kPanel) * panel_bytes(s); }

// [group][panel][product][64 channels][tile of 16 outputs][row of four channels][output][channel]
void prepare(const Conv2dShape& s, const Word* weight, uint8_t* out) {
  __builtin_memset(out, 0, weight_bytes(s));
  for (int64_t n = 0; n < s.out_channels; ++n) {
    const int64_t in_group = n % group_outputs(s);
    const int64_t panel = n / group_outputs(s) * group_panels(s, kPanel) + in_group / kPanel;
    uint8_t* column = out + panel * panel_bytes(s) + in_group % kPanel / 16 * kTileBytes + in_group % 16 * 4;
    for (int64_t c = 0; c < group_channels(s); ++c) {
      int32_t rows[kTaps][kProducts];
      for (int64_t ky = 0; ky < kTaps; ++ky) {
        int32_t g[kTaps];
        for (int64_t kx = 0; kx < kTaps; ++kx) g[kx] = weight_at(s, weight, n, ky, kx, c);
        transform_taps(g, rows[ky]);
      }
      uint8_t* at = column + c / kRowBytes * kStepBytes + c % kRowBytes / 4 * kRowBytes + c % 4;
      for (int64_t j = 0; j < kProducts; ++j) {
        const int32_t g[kTaps] = {rows[0][j], rows[1][j], rows[2][j]};
        int32_t u[kProducts];
        transform_taps(g, u);
        for (int64_t i = 0; i < kProducts; ++i)
          at[(i * kProducts + j) * steps_of(s) * kStepBytes] = static_cast<uint8_t>(u[i]);
      }
    }
  }
}

// Positions are tiles of 4x4 outputs, [image][row][column]; rows of them, of all images, are what tasks share.
int64_t tile_rows(const Conv2dShape& s) { return divide_up(s.out_height, kOutputs); }
int64_t tile_columns(const Conv2dShape& s) { return divide_up(s.out_width, kOutputs); }

// Where the transformed inputs of so many rows of tiles lie: [64 channels][product][tile], 64 bytes each.
struct Layout {
  int64_t tiles, plane_bytes, bytes;
};

Layout make_layout(const Conv2dShape& s, int64_t rows) {
  Layout l;
  l.tiles = rows * tile_columns(s);
  l.plane_bytes = odd_lines(round_up(l.tiles, kBlock) * kRowBytes);
  l.bytes = words_for(s.channels) * kSquare * l.plane_bytes;
  return l;
}

// Rows of tiles of one chunk: what fits beside the products, but enough for weights from far away to be used twice.
int64_t chunk_rows(const Conv2dShape& s) {
  const int64_t fitting = cache_bytes() * 3 / 8 / (words_for(s.channels) * kSquare * kRowBytes);
  const int64_t rows = larger(kGroup * kBlock, fitting) / tile_columns(s);
  return larger(1, smaller(rows, s.images * tile_rows(s)));
}

// One row of tiles, 64 channels.
void transform_row(const Conv2dArgs& args, int64_t tile_row, int64_t word, int64_t plane_bytes, uint8_t* out) {
  const Conv2dShape& s = args.shape;
  const int64_t words = words_for(s.channels), image = tile_row / tile_rows(s);
  const int64_t top = tile_row % tile_rows(s) * kOutputs - s.padding_h;
  const Values values = values_of(s.encoding);
  const Word* rows[kProducts];  // the word of the first pixel, or null where the row is padding
  for (int i = 0; i < kProducts; ++i) {
    const int64_t y = top + i;
    rows[i] = y >= 0 && y < s.height ? args.x + (image * s.height + y) * s.width * words + word : nullptr;
  }
  __m512i columns[kProducts][kProducts];  // [column of the image][product]
  const auto column_at = [&](int64_t x, __m512i* v) {
    const bool inside = x >= 0 && x < s.width;
    __m512i d[kProducts];
#pragma GCC unroll 6
    for (int i = 0; i < kProducts; ++i)
      d[i] = inside && rows[i] != nullptr ? expand(values, rows[i][x * words]) : _mm512_setzero_si512();
    transform_inputs(d, v);
  };
  int64_t x = -s.padding_w;
  column_at(x, columns[4]);
  column_at(x + 1, columns[5]);
  for (int64_t column = 0; column < tile_columns(s); ++column, x += kOutputs, out += kRowBytes) {
#pragma GCC unroll 6
    for (int i = 0; i < kProducts; ++i) {
      columns[0][i] = columns[4][i];
      columns[1][i] = columns[5][i];
    }
    for (int j = 2; j < kProducts; ++j) column_at(x + j, columns[j]);
#pragma GCC unroll 6
    for (int i = 0; i < kProducts; ++i) {
      __m512i d[kProducts], v[kProducts];
#pragma GCC unroll 6
      for (int j = 0; j < kProducts; ++j) d[j] = columns[j][i];
      transform_inputs(d, v);
#pragma GCC unroll 6
      for (int j = 0; j < kProducts; ++j) _mm512_store_si512(out + (i * kProducts + j) * plane_bytes, v[j]);
    }
  }
}

// Outputs of one tile: the first pixel, and how many rows and columns there are.
struct Spot {
  int64_t pixel;
  int32_t rows, columns;
};

void list_spots(const Conv2dShape& s, int64_t row_begin, int64_t rows, Spot* at) {
  for (int64_t row = row_begin; row < row_begin + rows; ++row) {
    const int64_t y = row % tile_rows(s) * kOutputs;
    for (int64_t x = 0; x < s.out_width; x += kOutputs)
      *at++ = {(row / tile_rows(s) * s.out_height + y) * s.out_width + x,
               static_cast<int32_t>(smaller(kOutputs, s.out_height - y)),
               static_cast<int32_t>(smaller(kOutputs, s.out_width - x))};
  }
}

// Thresholds of a panel times the scales of each of the nine kinds of outputs.
constexpr int64_t kScales = 3;
struct Thresholds {
  alignas(64) int32_t of[kScales][kScales][kPanel];
};

void scale_thresholds(const Conv2dArgs& args, const Sink& sink, Thresholds* out) {
  for (int64_t i = 0; i < kScales; ++i) {
    for (int64_t j = 0; j < kScales; ++j) {
      for (int64_t n = 0; n < kPanel; ++n) {
        const int32_t threshold = n < sink.channels ? args.epilogue.threshold[sink.first + n] : 0;
        out->of[i][j][n] = scaled_threshold(threshold, largest_dot(args.shape), kScale[i] * kScale[j]);
      }
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
  room.spots = scratch.take<Spot>(l.tiles);
  for (int i = 0; i < 2; ++i) {
    room.products[i] = scratch.take<int32_t>(kGroupProducts);
    room.thresholds[i] = scratch.take<Thresholds>(1);
  }
  room.bytes = scratch.bytes();
  return room;
}

// Blocks whose products are known: they leave by 16 channels of one tile at a time.
struct Leaving {
  Sink sink;
  const int32_t* products;
  const Thresholds* thresholds;
  const Spot* spots;
  int64_t out_width;
  int64_t next, count;  // tiles
  int lane;
  uint32_t bits[kOutputs][kOutputs];  // of lanes of this tile that have left

  int64_t pieces() const { return count * divide_up(sink.channels, 16); }
  // Not inlined: the loop over the tile unit keeps its registers.
  [[gnu::noinline]] void piece() {
    if (sink.epilogue->kind == EpilogueKind::kBits) {
      tile<true>(spots[next]);
    } else {
      tile<false>(spots[next]);
    }
    lane += 16;
    if (lane < sink.channels) return;
    if (sink.packed != nullptr) store_bits(spots[next]);
    lane = 0;
    ++next;
  }
  void rest() {
    while (next < count) piece();
    count = 0;
  }

 private:
  template <bool to_bits>
  void tile(const Spot& spot) {
    const int32_t* at = products + next / kBlock * kSquare * kProductPitch + next % kBlock * kPanel + lane;
    __m512i columns[kProducts][kOutputs];  // [column of products][output row]
#pragma GCC unroll 6
    for (int j = 0; j < kProducts; ++j) {
      __m512i m[kProducts];
#pragma GCC unroll 6
      for (int i = 0; i < kProducts; ++i) m[i] = _mm512_load_si512(at + (i * kProducts + j) * kProductPitch);
      transform_products(m, columns[j]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kOutputs; ++i) {
      if (i >= spot.rows) return;
      __m512i m[kProducts], y[kOutputs];
#pragma GCC unroll 6
      for (int j = 0; j < kProducts; ++j) m[j] = columns[j][i];
      transform_products(m, y);
#pragma GCC unroll 4
      for (int j = 0; j < kOutputs; ++j) {
        const uint32_t before = lane == 0 ? 0 : bits[i][j];
        if constexpr (to_bits) {
          const int32_t* limits = thresholds->of[i < kScales ? i : kScales - 1][j < kScales ? j : kScales - 1];
          bits[i][j] = before | reached(y[j], _mm512_load_si512(limits + lane), lane);
        } else {
          const __m512i dots = unscaled(y[j], kInverseOf3 * kInverseOf3, kShift[i] + kShift[j]);
          if (j < spot.columns) bits[i][j] = before | store_dots(sink, spot.pixel + i * out_width + j, lane, dots);
        }
      }
    }
  }
  void store_bits(const Spot& spot) const {
    const BitStore<kPanel> store(sink);
    for (int i = 0; i < spot.rows; ++i)
      for (int j = 0; j < spot.columns; ++j) store.put(spot.pixel + i * out_width + j, bits[i][j]);
  }
};

struct Run {
  const Conv2dArgs& args;
  const uint8_t* weights;
  Leaving leaving{};
  int turn = 0;

  // Up to two blocks from `position` on, by one panel.
  void blocks(const Layout& l, const Room& room, const Sink& sink, const Thresholds* thresholds, int64_t position,
              int64_t panel) {
    const Conv2dShape& s = args.shape;
    const int64_t steps = steps_of(s), group = panel / group_panels(s, kPanel);
    const int64_t positions = smaller(kGroup * kBlock, l.tiles - position);
    const uint8_t* inputs = room.inputs + group * steps * kSquare * l.plane_bytes + position * kRowBytes;
    int32_t* products = room.products[turn];
    Pace pace{leaving.pieces(), divide_up(positions, kBlock) * kSquare * steps};
    const auto beside = [this, &pace]() __attribute__((always_inline)) { pace.step([this] { leaving.piece(); }); };
    for (int64_t product = 0; product < kSquare; ++product) {
      const uint8_t* u = weights + panel * panel_bytes(s) + product * steps * kStepBytes;
      for (int64_t p = 0; p < positions; p += kBlock)
        multiply(positions - p, sink.channels, inputs + product * l.plane_bytes + p * kRowBytes, kRowBytes,
                 room.offsets, u, steps, products + (p / kBlock * kSquare + product) * kProductPitch, beside);
    }
    leaving.sink = sink;
    leaving.products = products;
    leaving.thresholds = thresholds;
    leaving.spots = room.spots + position;
    leaving.out_width = s.out_width;
    leaving.next = 0;
    leaving.count = positions;
    leaving.lane = 0;
    turn ^= 1;
  }

  void chunk(int64_t row_begin, int64_t rows, const Task& task, uint8_t* scratch) {
    const Conv2dShape& s = args.shape;
    const Layout l = make_layout(s, rows);
    const Room room = make_room(s, l, scratch);
    const int64_t panels = group_panels(s, kPanel), words = steps_of(s);
    const int64_t word_end = divide_up(task.panel_end, panels) * words;
    for (int64_t word = task.panel_begin / panels * words; word < word_end; ++word)
      for (int64_t row = 0; row < rows; ++row)
        transform_row(args, row_begin + row, word, l.plane_bytes,
                      room.inputs + word * kSquare * l.plane_bytes + row * tile_columns(s) * kRowBytes);
    list_spots(s, row_begin, rows, room.spots);
    for (int64_t step = 0; step < words; ++step) room.offsets[step] = step * kSquare * l.plane_bytes;
    if (shares_bytes(args, kPanel)) {
      for (int64_t tile = 0; tile < l.tiles; tile += tile_columns(s))
        clear_bits(args, room.spots[tile].pixel, room.spots[tile].rows * s.out_width);
    }
    for (int64_t panel = task.panel_begin; panel < task.panel_end; ++panel) {
      const Sink sink = make_sink<kPanel>(args, panel);
      Thresholds* thresholds = room.thresholds[panel % 2];
      if (args.epilogue.kind == EpilogueKind::kBits) scale_thresholds(args, sink, thresholds);
      for (int64_t position = 0; position < l.tiles; position += kGroup * kBlock)
        blocks(l, room, sink, thresholds, position, panel);
    }
    leaving.rest();
  }
};

Work work_of(const Conv2dArgs& args) {
  const Conv2dShape& s = args.shape;
  return {.rows = s.images * tile_rows(s),
          .row_positions = tile_columns(s),
          .panels = s.groups * group_panels(s, kPanel),
          .tile_cycles = kSquare * steps_of(s) * 32,
          .row_cycles = tile_columns(s) * words_for(s.channels) * 100,
          .panel_cycles = panel_bytes(s) / 8,  // from the third-level cache
          .whole_pixels = shares_bytes(args, kPanel)};
}

int64_t tasks(const Conv2dArgs& args, int64_t threads) { return count_tasks(work_of(args), threads); }

int64_t scratch_bytes(const Conv2dArgs& args, int64_t) {
  return make_room(args.shape, make_layout(args.shape, chunk_rows(args.shape)), nullptr).bytes;
}

void run(const Conv2dArgs& args, const uint8_t* weights, int64_t task, int64_t tasks, uint8_t* scratch) {
  const Task part = task_of(work_of(args), task, tasks);
  const int64_t most = chunk_rows(args.shape);
  Run run{args, weights};
  amx::configure();
  for (int64_t row = part.row_begin; row < part.row_end; row += most)
    run.chunk(row, smaller(most, part.row_end - row), part, scratch);
  amx::release();
}

}  // namespace

extern const TileKernel amx_winograd2d;
const TileKernel amx_winograd2d = {computes, weight_bytes, prepare, tasks, scratch_bytes, run};

}  // namespace bitnas::cpu

// What each instruction does is written from the pseudocode of Intel's instruction set reference.
#include "kernels/cpu/amx_model.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernels/cpu/amx.h"

namespace bitnas::cpu::amx::model {
namespace {

constexpr int kTiles = 8;
constexpr int kColumns = kRowBytes / 4;
// Sums of one row. Unsigned: they wrap around, as the unit's do.
using Columns [[gnu::vector_size(kRowBytes)]] = uint32_t;

struct Unit {
  Config config{};  // palette 0: the initial state
  bool known[kTiles] = {};
  alignas(64) int8_t tiles[kTiles][kRows][kRowBytes] = {};
  int64_t spoil_after = -1;
  int spoil_row = 0, spoil_column = 0;
};

thread_local Unit unit;

[[noreturn]] void fail(const char* instruction, int tile, const char* what) {
  std::fprintf(stderr, "AMX model: %s of tile %d: %s\n", instruction, tile, what);
  std::abort();
}

void check_shape(const char* instruction, int tile) {
  if (unit.config.palette == 0) fail(instruction, tile, "the unit is not configured (palette 0)");
  if (unit.config.rows[tile] == kRows && unit.config.row_bytes[tile] == kRowBytes) return;
  std::fprintf(stderr, "AMX model: %s of tile %d: it has %d rows of %d bytes, not 16 of 64: another configuration\n",
               instruction, tile, unit.config.rows[tile], unit.config.row_bytes[tile]);
  std::abort();
}

void check_known(const char* instruction, int tile) {
  check_shape(instruction, tile);
  if (!unit.known[tile]) fail(instruction, tile, "nobody loaded or zeroed it");
}

}  // namespace

int64_t cache_bytes = 2 << 20;

void load_config(const void* config) {
  std::memcpy(&unit.config, config, sizeof unit.config);
  const Config& c = unit.config;
  if (c.palette > 1) fail("ldtilecfg", 0, "there is no such palette");
  for (const uint8_t byte : c.reserved)
    if (byte != 0) fail("ldtilecfg", 0, "reserved bytes are not zero");
  for (int tile = 0; tile < 16; ++tile) {
    const int rows = c.rows[tile], bytes = c.row_bytes[tile];
    const bool absent = tile >= kTiles || c.palette == 0;
    if (absent ? rows != 0 || bytes != 0 : rows > kRows || bytes > kRowBytes || (rows == 0) != (bytes == 0))
      fail("ldtilecfg", tile, "an illegal shape");
  }
  std::memset(unit.known, 0, sizeof unit.known);
  std::memset(unit.tiles, 0, sizeof unit.tiles);
}

void release() {
  const Config initial{};
  load_config(&initial);
}

void zero(int tile) {
  check_shape("tilezero", tile);
  std::memset(unit.tiles[tile], 0, kTileBytes);
  unit.known[tile] = true;
}

void load(int tile, const void* rows, int64_t pitch) {
  check_shape("tileloadd", tile);
  for (int64_t row = 0; row < kRows; ++row)
    std::memcpy(unit.tiles[tile][row], static_cast<const int8_t*>(rows) + row * pitch, kRowBytes);
  unit.known[tile] = true;
}

void store(int tile, void* rows, int64_t pitch) {
  check_known("tilestored", tile);
  for (int64_t row = 0; row < kRows; ++row)
    std::memcpy(static_cast<int8_t*>(rows) + row * pitch, unit.tiles[tile][row], kRowBytes);
}

void multiply_add(int sum, int a, int b) {
  check_known("tdpbssd", sum);
  check_known("tdpbssd", a);
  check_known("tdpbssd", b);
  // Row 4k + i holds byte i of every column's group k, so that columns are side by side.
  Columns b_rows[kRowBytes];
  for (int k = 0; k < kRowBytes; ++k)
    for (int n = 0; n < kColumns; ++n) b_rows[k][n] = static_cast<uint32_t>(unit.tiles[b][k / 4][4 * n + k % 4]);
  for (int m = 0; m < kRows; ++m) {
    Columns sums;
    std::memcpy(&sums, unit.tiles[sum][m], sizeof sums);
    for (int k = 0; k < kRowBytes; ++k) sums += b_rows[k] * static_cast<uint32_t>(unit.tiles[a][m][k]);
    if (unit.spoil_after == 0 && m == unit.spoil_row) ++sums[unit.spoil_column];
    std::memcpy(unit.tiles[sum][m], &sums, sizeof sums);
  }
  if (unit.spoil_after >= 0) --unit.spoil_after;
}

bool configured() { return unit.config.palette != 0; }

void spoil(int64_t after, int row, int column) {
  unit.spoil_after = after;
  unit.spoil_row = row;
  unit.spoil_column = column;
}

}  // namespace bitnas::cpu::amx::model

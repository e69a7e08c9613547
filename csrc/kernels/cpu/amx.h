// The tile unit: every instruction of it that the kernels use, under one name each.
//
//   instruction   what                                                     cycles (Granite Rapids)
//   tileloadd     16 rows of 64 bytes, any distance apart                  9-10 from L1
//   tdpbssd       16x16 int32 += 16x64 int8 by 64x16 int8, no saturation   16, latency 52
//   tilestored    16 rows of 64 bytes                                      16
//   ldtilecfg     the shapes of all tiles; every tile becomes zero
//
// Written as assembly because compilers' intrinsics do not say what memory they read: GCC 12 drops stores to a
// configuration, or to a tile about to be loaded, that nothing else reads.
//
// With BITNAS_AMX_MODEL the same names run on a model of the unit (amx_model.h), on any CPU with AVX-512.
#pragma once

#include <cstdint>

#if defined(BITNAS_AMX_MODEL)
#include "kernels/cpu/amx_model.h"
#endif

namespace bitnas::cpu::amx {

constexpr int64_t kRows = 16;      // of a tile
constexpr int64_t kRowBytes = 64;  // of a tile's row
constexpr int64_t kTileBytes = kRows * kRowBytes;

// The memory operand of ldtilecfg.
struct alignas(64) Config {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
static_assert(sizeof(Config) == 64);

#if defined(BITNAS_AMX_MODEL)

static inline void load_config(const Config& config) { model::load_config(&config); }
static inline void release() { model::release(); }

template <int tile>
static inline void zero() {
  model::zero(tile);
}

template <int tile>
static inline void load(const void* rows, int64_t pitch) {
  model::load(tile, rows, pitch);
}

template <int tile>
static inline void store(void* rows, int64_t pitch) {
  model::store(tile, rows, pitch);
}

template <int sum, int a, int b>
static inline void multiply_add() {
  static_assert(sum != a && sum != b && a != b, "an illegal instruction");
  model::multiply_add(sum, a, b);
}

#else

static inline void load_config(const Config& config) { asm volatile("ldtilecfg %0" : : "m"(config) : "memory"); }

// The unit back to its initial state: what a thread left in tiles is saved and restored at every context switch.
static inline void release() { asm volatile("tilerelease" : : : "memory"); }

template <int tile>
static inline void zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(tile));
}

template <int tile>
static inline void load(const void* rows, int64_t pitch) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(pitch), "i"(tile) : "memory");
}

template <int tile>
static inline void store(void* rows, int64_t pitch) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(pitch), "i"(tile) : "memory");
}

// sum[m][n] += a[m][4k + i] * b[k][4n + i] over k and i.
template <int sum, int a, int b>
static inline void multiply_add() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sum), "i"(a), "i"(b));
}

#endif

// Eight whole tiles. At the start of every task: other libraries leave shapes of their own behind.
static inline void configure() {
  Config config{};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = kRowBytes;
    config.rows[tile] = kRows;
  }
  load_config(config);
}

}  // namespace bitnas::cpu::amx

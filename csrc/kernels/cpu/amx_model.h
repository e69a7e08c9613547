// A model of the tile unit, one per thread, for CPUs without AMX: the kernels' own sources, compiled with
// BITNAS_AMX_MODEL, run on it. It computes what the instructions compute, and ends the process with one line on stderr
// where the CPU would fault or, worse, would go on with something that no kernel here can have meant:
//
//   any instruction under palette 0              the unit was never configured, or was released
//   a tile that is not 16 rows of 64 bytes       somebody else's configuration is still loaded
//   a tile read before it was loaded or zeroed   whatever the last task left
//   an illegal configuration
//
// What it cannot show: permission of the operating system, and time.
#pragma once

#include <cstdint>

namespace bitnas::cpu::amx::model {

void load_config(const void* config);
void release();
void zero(int tile);
void load(int tile, const void* rows, int64_t pitch);
void store(int tile, void* rows, int64_t pitch);
void multiply_add(int sum, int a, int b);

// For tests. Whether this thread's unit is in use, not in its initial state.
bool configured();
// So many multiply_adds from now, one element of the sum comes out one too large; negative: never.
void spoil(int64_t after, int row, int column);
// What kernels take for the size of the second-level cache: small, layers of a few pixels are cut into pieces too.
extern int64_t cache_bytes;

}  // namespace bitnas::cpu::amx::model

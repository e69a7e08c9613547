// Whether this process may use the tile unit.
#pragma once

namespace bitnas::cpu {

// True where the CPU has AMX-TILE and AMX-INT8 and the operating system lets this process use them. Tile registers are
// 8 KiB of state, so Linux hands them out on request only; the first call asks, for all threads, and later ones repeat
// the answer. BITNAS_NO_AMX=1 in the environment at that time: false, and nothing is asked.
bool amx_permitted();

}  // namespace bitnas::cpu

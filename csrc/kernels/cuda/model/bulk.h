// mbarriers and bulk tensor copies (TMA) of the host model.
#pragma once

#include "kernels/cuda/model/runtime.h"

namespace bitnas::cuda::model {

// ---- shared memory with the 128-byte swizzle ------------------------------------------

constexpr uint32_t kSwizzleBytes = 128;
constexpr uint32_t kChunkBytes = 16;

// Acts on addresses, not on offsets in a tile: which of the eight rows of 128 bytes, bits 7 to 9, permutes the chunks.
constexpr uint32_t swizzle(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

// ---- mbarriers ---------------------------------------------------------------------------

// What an mbarrier's eight bytes hold: nothing but the model's functions may touch them.
constexpr uint64_t mbarrier_tag(uint32_t address) {
  return 0x6d62617272696572u ^ uint64_t { address } << 32;
}

inline Mbarrier& mbarrier_at(Block& block, uint32_t address, const Operation& by) {
  Machine& machine = Machine::here();
  uint64_t held;
  std::memcpy(&held, machine.at(block, address, sizeof held, sizeof held, by), sizeof held);
  const auto found = std::find_if(block.mbarriers.begin(), block.mbarriers.end(),
                                  [&](const Mbarrier& barrier) { return barrier.address == address; });
  if (found == block.mbarriers.end()) machine.fail("%s: no mbarrier was initialised there", by.text().c_str());
  if (held != mbarrier_tag(address)) machine.fail("%s: the mbarrier was overwritten", by.text().c_str());
  return *found;
}

inline void mbarrier_end_phase(Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  barrier.handover.complete();
  Machine::here().wake_all(barrier.waiting);
}

inline void mbarrier_arrive(Block& block, uint32_t address, int bytes, const Operation& by) {
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  Mbarrier& barrier = mbarrier_at(block, address, by);
  if (barrier.pending == 0)
    machine.fail("%s: more arrivals than the %d of a phase", by.text().c_str(), barrier.arrivals);
  if (bytes < 0 || bytes >= 1 << 20) machine.fail("%s: %d bytes", by.text().c_str(), bytes);
  machine.release(barrier.handover);
  barrier.bytes += bytes;
  --barrier.pending;
  mbarrier_end_phase(barrier);
  machine.maybe_yield();
}

// ---- bulk tensor copies --------------------------------------------------------------------

// What cuTensorMapEncodeTiled makes of bytes in rows, boxes of 128 swizzled bytes by up to 256 rows, zeros outside.
inline cudaError_t make_tensor_map_2d(CUtensorMap* map, const void* base, uint64_t row_bytes, uint64_t rows,
                                      uint64_t pitch_bytes, uint32_t box_bytes, uint32_t box_rows) {
  constexpr uint64_t kMost = uint64_t{1} << 32;
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0 || row_bytes == 0 || row_bytes > kMost || rows == 0 || rows > kMost ||
      pitch_bytes % 16 != 0 || pitch_bytes < row_bytes || pitch_bytes >= uint64_t{1} << 40 ||
      box_bytes != kSwizzleBytes || box_rows == 0 || box_rows > 256)
    return cudaErrorInvalidValue;
  *map = {static_cast<const uint8_t*>(base), row_bytes, rows, pitch_bytes, box_bytes, box_rows};
  return cudaSuccess;
}

// A box on its way into one block.
struct Transfer {
  CUtensorMap map;
  int x, y;
  Block* block;
  uint32_t to, barrier;
  Stamp stamp;
  Operation by;

  void land() const {
    Machine& machine = Machine::here();
    for (uint32_t row = 0; row < map.box_rows; ++row)
      for (uint32_t byte = 0; byte < map.box_bytes; byte += kChunkBytes)
        read_chunk(machine.at(*block, swizzle(to + row * kSwizzleBytes + byte), kChunkBytes, kChunkBytes, by), byte,
                   row);
    Mbarrier& arrived = mbarrier_at(*block, barrier, by);
    arrived.handover.gathered.learn(stamp);
    arrived.bytes -= map.box_bytes * map.box_rows;
    --block->incoming;
    mbarrier_end_phase(arrived);
  }

 private:
  void read_chunk(uint8_t* chunk, uint32_t byte, uint32_t row) const {
    const int64_t source_row = int64_t{y} + row, first = int64_t{x} + byte;
    for (uint32_t i = 0; i < kChunkBytes; ++i) {
      const bool inside = source_row >= 0 && static_cast<uint64_t>(source_row) < map.rows && first + i >= 0 &&
                          static_cast<uint64_t>(first + i) < map.row_bytes;
      chunk[i] = inside ? map.base[source_row * map.pitch_bytes + first + i] : 0;
    }
  }
};

inline void start_transfer(Block& block, uint32_t to, const CUtensorMap& map, int x, int y, uint32_t barrier,
                           const Operation& by) {
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  machine.at(block, to, map.box_bytes * map.box_rows, kSwizzleBytes, by);
  Mbarrier& completes = mbarrier_at(block, barrier, by);
  ++completes.last_copy.time;
  for (uint32_t offset = 0; offset < map.box_bytes * map.box_rows; offset += kChunkBytes)
    machine.check_write(block, to + offset, completes.last_copy, false, by);
  const Transfer transfer{map, x, y, &block, to, barrier, completes.last_copy, by};
  ++block.incoming;
  if (machine.random().one_in(2))
    transfer.land();
  else
    machine.later([transfer] { transfer.land(); });
}

}  // namespace bitnas::cuda::model

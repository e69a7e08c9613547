// Tensor-core products of the host model: fragments of mma.sync, descriptors of wgmma,
// warp groups.
#pragma once

#include "kernels/cuda/model/bulk.h"

#ifdef __x86_64__
#define BITNAS_POPCNT __attribute__((target("popcnt")))  // in every such processor since 2008
#else
#define BITNAS_POPCNT
#endif

namespace bitnas::cuda::model {

// ---- mma.sync --------------------------------------------------------------------------

// out[row][column] of rows of 256 bits, ones of the AND.
BITNAS_POPCNT inline void and_popcounts(const uint64_t (*a)[4], int rows, const uint64_t (*b)[4], int columns,
                                        int* out) {
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < columns; ++j) {
      int sum = 0;
      for (int k = 0; k < 4; ++k) sum += __builtin_popcountll(a[i][k] & b[j][k]);
      out[i * columns + j] = sum;
    }
}

// The operands of one lane of an m16n8 product whose rows are 32 bytes.
struct MmaFrame {
  int* d;
  const uint32_t* a;
  uint32_t b[2];
};

// The 32-byte rows that the lanes' registers hold together.
struct MmaRows {
  alignas(16) uint32_t a[16][8], b[8][8];

  explicit MmaRows(MmaFrame* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const int g = lane / 4, t = lane % 4;
      const MmaFrame& frame = *lanes[lane];
      a[g][t] = frame.a[0], a[g + 8][t] = frame.a[1];
      a[g][t + 4] = frame.a[2], a[g + 8][t + 4] = frame.a[3];
      b[g][t] = frame.b[0], b[g][t + 4] = frame.b[1];
    }
  }
};

inline void mma_scatter(const int (&product)[16][8], MmaFrame* const* lanes) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) lanes[lane]->d[i] += product[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

inline void mma_and_popc(MmaFrame* const* lanes) {
  const MmaRows rows(lanes);
  uint64_t a[16][4], b[8][4];
  std::memcpy(a, rows.a, sizeof a);
  std::memcpy(b, rows.b, sizeof b);
  int product[16][8];
  and_popcounts(a, 16, b, 8, product[0]);
  mma_scatter(product, lanes);
}

inline void mma_u8(MmaFrame* const* lanes) {
  const MmaRows rows(lanes);
  int16_t a[16][32], b[8][32];  // compilers know how to multiply and add these many at a time
  const auto* a_bytes = reinterpret_cast<const uint8_t*>(rows.a);
  const auto* b_bytes = reinterpret_cast<const uint8_t*>(rows.b);
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 32; ++k) a[i][k] = a_bytes[i * 32 + k];
  for (int j = 0; j < 8; ++j)
    for (int k = 0; k < 32; ++k) b[j][k] = b_bytes[j * 32 + k];
  int product[16][8];
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      int sum = 0;
      for (int k = 0; k < 32; ++k) sum += a[i][k] * b[j][k];
      product[i][j] = sum;
    }
  mma_scatter(product, lanes);
}

// ---- wgmma -----------------------------------------------------------------------------------

// A K-major operand with the 128-byte swizzle: atoms of 8 rows of 128 bytes, `stride` bytes apart.
struct Descriptor {
  uint32_t start, stride;

  Descriptor(uint64_t bits, const Operation& by)
      : start((bits & 0x3fff) << 4), stride(static_cast<uint32_t>(bits >> 32 & 0x3fff) << 4) {
    if (bits >> 62 != 1 || (bits >> 49 & 7) != 0)
      Machine::here().fail("%s: descriptor 0x%016llx is not of a 128-byte swizzle with base offset 0",
                           by.text().c_str(), static_cast<unsigned long long>(bits));
  }
  uint32_t chunk_address(int row, int chunk) const {
    return swizzle(start + row / 8 * stride + row % 8 * kSwizzleBytes + chunk * kChunkBytes);
  }
};

constexpr int kWgmmaRows = 16;   // of one warp
constexpr int kWgmmaChunks = 2;  // 256 bits
constexpr int kWgmmaMostColumns = 256;

template <typename Visit>
void for_each_chunk(const Product& product, int warp_in_group, const Visit& visit) {
  const Descriptor a(product.descriptor_a, product.by), b(product.descriptor_b, product.by);
  for (int chunk = 0; chunk < kWgmmaChunks; ++chunk) {
    for (int row = 0; row < kWgmmaRows; ++row)
      visit(0, row, chunk, a.chunk_address(warp_in_group * kWgmmaRows + row, chunk));
    for (int column = 0; column < product.n; ++column) visit(1, column, chunk, b.chunk_address(column, chunk));
  }
}

inline void multiply(const Product& product, Warp& warp) {
  Machine& machine = Machine::here();
  uint64_t operands[2][kWgmmaMostColumns][4];
  int sums[kWgmmaRows * kWgmmaMostColumns];
  for_each_chunk(product, warp.index % kGroupWarps, [&](int operand, int row, int chunk, uint32_t address) {
    std::memcpy(&operands[operand][row][chunk * 2],
                machine.at(*warp.block, address, kChunkBytes, kChunkBytes, product.by), kChunkBytes);
  });
  and_popcounts(operands[0], kWgmmaRows, operands[1], product.n, sums);
  for (unsigned lane = 0; lane < kWarpSize; ++lane)
    for (int i = 0; i < product.n / 2; ++i) {
      const int row = static_cast<int>(lane) / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
      int& d = product.d[lane][i];
      d = (product.accumulate ? d : 0) + sums[row * product.n + column];
    }
}

// Products of a warp happen in order: all but those of the last `pending` committed groups and of what follows.
inline void finish_products(Warp& warp, int pending) {
  const int end = warp.product_groups - pending;
  size_t done = 0;
  for (; done < warp.products.size() && warp.products[done].group < end; ++done) {
    if (!warp.products[done].done) multiply(warp.products[done], warp);
    warp.clock.learn(warp.products[done].stamp);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + done);
}

inline WarpGroup& warp_group(const Operation& by) {
  Machine& machine = Machine::here();
  if (machine.block_threads() % (kGroupWarps * kWarpSize) != 0)
    machine.fail("%s: blocks of %u threads are not whole warp groups", by.text().c_str(), machine.block_threads());
  return machine.block().groups[machine.warp().index / kGroupWarps];
}

// The last lane of a warp of a warp group reports what the warp does; the other warps must do the same in turn.
inline void group_step(const GroupStep& step) {
  Machine& machine = Machine::here();
  WarpGroup& group = warp_group(step.operation);
  size_t& done = group.done[machine.warp().index % kGroupWarps];
  if (done == group.steps.size()) group.steps.push_back(step);
  if (!(group.steps[done] == step))
    machine.fail("the warps of a warp group differ: one executes %s, another %s with other operands or at its turn",
                 step.operation.text().c_str(), group.steps[done].operation.text().c_str());
  ++done;
  if (std::all_of(group.done, group.done + kGroupWarps, [&](size_t count) { return count == group.steps.size(); })) {
    group.steps.clear();
    std::fill(group.done, group.done + kGroupWarps, 0);
  }
}

// All 128 threads of a warp group meet.
inline void group_sync(const Operation& by) {
  Machine::here().arrive_and_wait(warp_group(by).barrier, kGroupWarps * kWarpSize, by);
}

inline void wgmma(int* d, int n, uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate, const Operation& by) {
  struct Frame {
    int* d;
    GroupStep step;
  } frame{d, {by, {descriptor_a, descriptor_b, accumulate}}};
  Machine& machine = Machine::here();
  machine.require_capability(90, 90, by);
  // The ISA does not say how far the four warps may drift apart. Some launches keep them in step, others do not.
  if (machine.groups_in_step()) group_sync(by);
  machine.meet_all(by, frame, [&](Frame* const* lanes) {
    Warp& warp = machine.warp();
    if (!warp.fenced) machine.fail("%s: before any wgmma_fence", by.text().c_str());
    Product product{
        descriptor_a, descriptor_b, n, accumulate, {}, warp.product_groups, machine.next_asynchronous(), by};
    for (unsigned lane = 0; lane < kWarpSize; ++lane) {
      if (!(lanes[lane]->step == frame.step)) machine.fail("%s: operands differ between lanes", by.text().c_str());
      product.d[lane] = lanes[lane]->d;
    }
    group_step(frame.step);
    for_each_chunk(product, warp.index % kGroupWarps, [&](int, int, int, uint32_t address) {
      machine.at(machine.block(), address, kChunkBytes, kChunkBytes, by);
      machine.check_read(machine.block(), address, product.stamp, by);
    });
    warp.products.push_back(product);
    if (!machine.random().one_in(2)) return;
    for (Product& early : warp.products) {
      if (!early.done) multiply(early, warp);
      early.done = true;
    }
  });
}

inline void set_max_registers(int registers, const Operation& by) {
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  machine.meet_all(by);
  group_sync(by);
  struct Frame {
    GroupStep step;
  } frame{{by, {static_cast<uint64_t>(registers)}}};
  machine.meet_all(by, frame, [&](Frame* const*) { group_step(frame.step); });
}

}  // namespace bitnas::cuda::model

#undef BITNAS_POPCNT

// Two small 1-bit matrix products, written against ptx.cuh alone, with a choice of
// mistakes to make: the model must find every one of them.
//
// out[m][n] = dot of row m of `a` and row n of `b`, ±1 by ±1, from rows of `row_bytes`
// bytes (a multiple of 16) whose bits past K are 0:
// dot = K - 2 ones(a) - 2 ones(b) + 4 popcount(a AND b).
#pragma once

#include "kernels/cuda/ptx.cuh"

namespace model_test {

using namespace bitnas::cuda;

struct Problem {
  const uint8_t *a, *b;
  const int *ones_a, *ones_b;  // per row
  int* out;
  int m, n, k, row_bytes;
};

enum class Mistake {
  kNone,
  kCorrectionSign,
  // mma.sync
  kWeakCopyWait,     // lets one group of copies too many be under way
  kNoCopyCommit,     // the first slabs' copies are never made a group
  kNoBlockSync,      // reads what other threads have copied, without a barrier
  kNoZeroFill,       // copies the first bytes of all where there is nothing
  kNoReadSwizzle,    // stores with the swizzle, loads without
  kDivergentLanes,   // half a warp takes another path to the same product
  kShortAllocation,  // launched with too little shared memory
  // wgmma
  kNoFullWait,       // multiplies before the copies are there
  kNoEmptyWait,      // copies over what is still being multiplied
  kEarlyRelease,     // lets a stage go before wgmma_wait
  kWeakProductWait,  // lets a stage go while its product may be under way
  kNoProductWait,    // uses accumulators without any wait
  kNoProductCommit,  // waits, but for groups that were never committed
  kNoFence,          // no wgmma_fence
  kWrongProducerPhase,
  kWrongConsumerPhase,
  kPhaseNeverFlips,
  kWrongStride,      // of the descriptor: 512 between groups of eight rows
  kWrongStep,        // along K: 64 bytes instead of 32
  kUnalignedTiles,   // takes the start of shared memory for a multiple of 1,024
  kShortExpect,      // announces fewer bytes than come
  kLocalRelease,     // tells the own block alone that a stage is free
  kMulticastToSelf,  // sends its half of B to one block
  kNoInitialSync,    // uses the other block's barriers before they are there
  kNoFinalSync,      // exits while the other block may still reach in
  kWarpsDiffer,      // one warp of the group leaves out a product
};

// ---- cp.async, ldmatrix, mma.sync -------------------------------------------------------

constexpr int kSlab = 128;  // bytes of a row per stage
constexpr int kStages = 3;

struct MmaTile {
  static constexpr int kM = 32, kN = 32, kThreads = 128;  // 2 x 2 warps of 16 x 16
  static constexpr int kStageBytes = (kM + kN) * kSlab;
  static constexpr int kSharedBytes = kStages * kStageBytes;
};

BITNAS_DEVICE uint32_t swizzled(int row, int chunk) { return row * kSlab + ((chunk ^ (row & 7)) << 4); }

template <Mistake mistake>
BITNAS_DEVICE void copy_slab(const Problem& p, uint32_t stage, int m0, int n0, int slab) {
  for (int i = threadIdx.x; i < (MmaTile::kM + MmaTile::kN) * 8; i += MmaTile::kThreads) {
    const int row = i / 8, chunk = i % 8, byte = slab * kSlab + chunk * 16;
    const bool is_a = row < MmaTile::kM;
    const int source_row = is_a ? m0 + row : n0 + row - MmaTile::kM, rows = is_a ? p.m : p.n;
    const bool inside = source_row < rows && byte < p.row_bytes;
    const uint8_t* base = is_a ? p.a : p.b;
    ptx::cp_async<16>(stage + swizzled(row, chunk), inside ? base + source_row * p.row_bytes + byte : base,
                      inside || mistake == Mistake::kNoZeroFill);
  }
}

template <Mistake mistake>
__global__ void __launch_bounds__(MmaTile::kThreads) mma_gemm(Problem p) {
  BITNAS_SHARED(shared);
  const uint32_t tiles = ptx::shared_address(shared);
  const int lane = threadIdx.x % 32, warp_m = threadIdx.x / 32 / 2 * 16, warp_n = threadIdx.x / 32 % 2 * 16;
  const int m0 = blockIdx.y * MmaTile::kM, n0 = blockIdx.x * MmaTile::kN;
  const int slabs = (p.row_bytes + kSlab - 1) / kSlab;

  const auto copy = [&](int slab) {
    if (slab < slabs) copy_slab<mistake>(p, tiles + slab % kStages * MmaTile::kStageBytes, m0, n0, slab);
    if (mistake != Mistake::kNoCopyCommit || slab >= kStages - 1) ptx::cp_async_commit();
  };
  for (int slab = 0; slab < kStages - 1; ++slab) copy(slab);

  int d[2][4] = {};
  for (int slab = 0; slab < slabs; ++slab) {
    ptx::cp_async_wait<mistake == Mistake::kWeakCopyWait ? kStages - 1 : kStages - 2>();
    if (mistake != Mistake::kNoBlockSync) __syncthreads();
    copy(slab + kStages - 1);
    const uint32_t a_tile = tiles + slab % kStages * MmaTile::kStageBytes, b_tile = a_tile + MmaTile::kM * kSlab;
    for (int step = 0; step < 4; ++step) {
      uint32_t a[4], b[4];
      const int a_row = warp_m + lane % 16, a_chunk = step * 2 + lane / 16;
      const int b_row = warp_n + lane % 8 + lane / 16 * 8, b_chunk = step * 2 + lane / 8 % 2;
      ptx::ldmatrix_x4(
          a, a_tile + (mistake == Mistake::kNoReadSwizzle ? a_row * kSlab + a_chunk * 16 : swizzled(a_row, a_chunk)));
      ptx::ldmatrix_x4(b, b_tile + swizzled(b_row, b_chunk));
      if (mistake == Mistake::kDivergentLanes && lane < 16)
        ptx::mma_and_popc(d[0], a, b[0], b[1]);
      else
        ptx::mma_and_popc(d[0], a, b[0], b[1]);
      ptx::mma_and_popc(d[1], a, b[2], b[3]);
    }
  }

  const int step = mistake == Mistake::kCorrectionSign ? -2 : 2;
  for (int j = 0; j < 2; ++j)
    for (int i = 0; i < 4; ++i) {
      const int m = m0 + warp_m + lane / 4 + i / 2 * 8, n = n0 + warp_n + j * 8 + lane % 4 * 2 + i % 2;
      if (m < p.m && n < p.n) p.out[m * p.n + n] = p.k - step * p.ones_a[m] - 2 * p.ones_b[n] + 4 * d[j][i];
    }
}

// ---- bulk copies, mbarriers, wgmma; pairs of blocks that share B -----------------------------

struct WgmmaTile {
  static constexpr int kM = 64, kN = 32, kBlocks = 2;
  static constexpr int kThreads = 256;  // a warp group that copies and one that multiplies
  static constexpr int kStageBytes = (kM + kN) * kSlab;
  static constexpr int kBarriers = kStages * kStageBytes;
  static constexpr int kSharedBytes = 1024 + kBarriers + 2 * kStages * 8;
};

BITNAS_DEVICE uint64_t descriptor(uint32_t address, int stride) {
  return uint64_t{address >> 4} | static_cast<uint64_t>(stride >> 4) << 32 | uint64_t{1} << 62;
}

// Counts through the stages, again and again; the parity of the round is that of the phase to wait for.
struct Position {
  int stage = 0;
  uint32_t parity;

  template <Mistake mistake>
  BITNAS_DEVICE void advance() {
    if (++stage < kStages) return;
    stage = 0;
    if (mistake != Mistake::kPhaseNeverFlips) parity ^= 1;
  }
};

// Each of the two blocks brings its own tile of A and half of B, the half for both.
template <Mistake mistake>
BITNAS_DEVICE void bring(const Problem& p, const ptx::TensorMap& a, const ptx::TensorMap& b, uint32_t tiles,
                         uint32_t full, uint32_t empty) {
  const int rank = ptx::cluster_rank(), half = WgmmaTile::kN / 2;
  Position at{0, mistake == Mistake::kWrongProducerPhase ? 0u : 1u};
  for (int slab = 0; slab * kSlab < p.row_bytes; ++slab) {
    const uint32_t a_tile = tiles + at.stage * WgmmaTile::kStageBytes, b_tile = a_tile + WgmmaTile::kM * kSlab;
    const uint32_t arrived = full + at.stage * 8;
    if (mistake != Mistake::kNoEmptyWait) ptx::mbarrier_wait(empty + at.stage * 8, at.parity);
    ptx::mbarrier_arrive_expect(arrived,
                                mistake == Mistake::kShortExpect ? WgmmaTile::kM * kSlab : WgmmaTile::kStageBytes);
    ptx::tma_load_2d(a_tile, &a, slab * kSlab, blockIdx.x * WgmmaTile::kM, arrived);
    ptx::tma_load_2d_multicast(b_tile + rank * half * kSlab, &b, slab * kSlab,
                               static_cast<int>(blockIdx.y) * WgmmaTile::kN + rank * half, arrived,
                               mistake == Mistake::kMulticastToSelf ? 1 << rank : 0b11);
    at.advance<mistake>();
  }
}

template <Mistake mistake>
BITNAS_DEVICE void multiply(const Problem& p, uint32_t tiles, uint32_t full, uint32_t empty) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int stride = mistake == Mistake::kWrongStride ? 512 : 1024, along_k = mistake == Mistake::kWrongStep ? 64 : 32;
  const auto release = [&](int stage) {
    for (int rank = 0; lane == 0 && rank < WgmmaTile::kBlocks; ++rank)
      ptx::mbarrier_arrive_remote(
          empty + stage * 8, mistake == Mistake::kLocalRelease ? ptx::cluster_rank() : static_cast<uint32_t>(rank));
  };

  int d[WgmmaTile::kN / 2];
  Position at{0, mistake == Mistake::kWrongConsumerPhase ? 1u : 0u};
  for (int slab = 0; slab * kSlab < p.row_bytes; ++slab) {
    const uint32_t a_tile = tiles + at.stage * WgmmaTile::kStageBytes, b_tile = a_tile + WgmmaTile::kM * kSlab;
    if (mistake != Mistake::kNoFullWait) ptx::mbarrier_wait(full + at.stage * 8, at.parity);
    if (mistake != Mistake::kNoFence) ptx::wgmma_fence();
    for (int step = 0; step < 4; ++step) {
      if (mistake == Mistake::kWarpsDiffer && warp == 2 && step == 3) continue;
      ptx::wgmma_and_popc<WgmmaTile::kN>(d, descriptor(a_tile + step * along_k, stride),
                                         descriptor(b_tile + step * along_k, stride), slab != 0 || step != 0);
    }
    if (mistake != Mistake::kNoProductCommit) ptx::wgmma_commit();
    if (mistake == Mistake::kEarlyRelease) release(at.stage);
    if (mistake == Mistake::kWeakProductWait)
      ptx::wgmma_wait<1>();
    else if (mistake != Mistake::kNoProductWait)
      ptx::wgmma_wait<0>();
    if (mistake != Mistake::kEarlyRelease) release(at.stage);
    at.advance<mistake>();
  }

  if (mistake == Mistake::kWeakProductWait) ptx::wgmma_wait<0>();
  const int step = mistake == Mistake::kCorrectionSign ? -2 : 2;
  for (int i = 0; i < WgmmaTile::kN / 2; ++i) {
    const int m = blockIdx.x * WgmmaTile::kM + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    const int n = blockIdx.y * WgmmaTile::kN + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (m < p.m && n < p.n) p.out[m * p.n + n] = p.k - step * p.ones_a[m] - 2 * p.ones_b[n] + 4 * d[i];
  }
}

template <Mistake mistake>
__global__ void __launch_bounds__(WgmmaTile::kThreads)
    wgmma_gemm(Problem p, const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b) {
  BITNAS_SHARED(shared);
  const uint32_t start = ptx::shared_address(shared);
  const uint32_t tiles = mistake == Mistake::kUnalignedTiles ? start : (start + 1023) & ~1023u;
  const uint32_t full = tiles + WgmmaTile::kBarriers, empty = full + kStages * 8;
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::mbarrier_init(full + stage * 8, 1);
      ptx::mbarrier_init(empty + stage * 8, 4 * WgmmaTile::kBlocks);  // the warps that multiply, of both blocks
    }
    ptx::mbarrier_init_fence();
  }
  if (mistake == Mistake::kNoInitialSync)
    __syncthreads();
  else
    ptx::cluster_sync();

  if (threadIdx.x < 128) {
    ptx::setmaxnreg_decrease<40>();
    if (threadIdx.x == 0) bring<mistake>(p, a, b, tiles, full, empty);
  } else {
    ptx::setmaxnreg_increase<232>();
    multiply<mistake>(p, tiles, full, empty);
  }
  if (mistake != Mistake::kNoFinalSync) ptx::cluster_sync();
}

}  // namespace model_test

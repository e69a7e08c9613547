// Matrix product on wgmma b1: blocks stay and walk over tiles; one thread keeps a ring of
// slabs filled by TMA, two warp groups multiply 64 rows of every slab each.
//
// Both groups work on one tile: for 1,024 clocks of tensor cores a tile of 128x256 takes
// 48 KB from L2 (32 KB in clusters of two, whose blocks load half of the weights each, for
// both) and moves 144 KB through shared memory, which can do 128 KB. Ping-pong on two tiles
// of 128x128 would take 64 KB (48 KB) and move 192 KB. What ping-pong is good for comes from
// a lead: the first group begins every tile kLead slabs ahead of the second, so that one's
// epilogue runs beside the other's products. All this is reckoned from published rates of
// the hardware, not measured.
//
// wgmma reads activations from shared memory, so that none pass through registers on their
// way. Each warp counts the ones of its own rows while the product it has just issued runs:
// four POPC per thread and 256 bits, on a pipe that is idle.
#include <algorithm>

#include "kernels/cuda/epilogue.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace bitnas::cuda {
namespace {

constexpr int kGroupThreads = 128;
constexpr int kGroupRows = 64;  // of one wgmma
constexpr int kConsumers = 2;   // warp groups
constexpr int kConsumerWarps = kConsumers * kGroupThreads / kWarp;
constexpr int kThreads = (1 + kConsumers) * kGroupThreads;
constexpr int kTileM = kConsumers * kGroupRows;
constexpr int kSlabSteps = kSlabWords / kStepWords;
constexpr int kEpilogueN = 64;  // channels at a time: what the epilogue needs for more would not fit the registers
constexpr int kMaxCluster = 2;
constexpr int kBarrierBytes = 8;
constexpr int kSwizzleBytes = 1024;  // what tiles are aligned to

// Registers of a thread after the groups have traded theirs: 128 * 24 + 256 * 240 of 65,536.
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;

template <int n, int stages>
struct TileShape {
  static constexpr int kN = n, kStages = stages;
  static constexpr int kLead = stages / 2;          // slabs; were it `stages`, the groups would wait for each other
  static constexpr int kBoxRows = n / kMaxCluster;  // of weights, in one copy
  static constexpr int kXBytes = kTileM * kSlabBytes;
  static constexpr int kStageBytes = kXBytes + n * kSlabBytes;
  static constexpr int kFullOffset = stages * kStageBytes;
  static constexpr int kEmptyOffset = kFullOffset + stages * kBarrierBytes;
  static constexpr int kBegunOffset = kEmptyOffset + stages * kBarrierBytes;
  static constexpr int kOnesOffset = kBegunOffset + stages * kBarrierBytes;
  static constexpr int kSharedBytes = kSwizzleBytes + kOnesOffset + kTileM * static_cast<int>(sizeof(int));
  static_assert(kSharedBytes <= 227 * 1024);
};

// Where in the ring of stages a group is. The parity is that of the phase which makes the stage full.
template <int stages>
struct Position {
  int stage = 0;
  uint32_t parity = 0;

  BITNAS_DEVICE void advance(int slabs = 1) {
    stage += slabs;
    if (stage < stages) return;
    stage -= stages;
    parity ^= 1;
  }
};

// A block's shared memory. Barriers of a stage:
//   full     its bytes are here                             one arrival, and the bytes
//   begun    the leading group has begun to multiply it     an arrival per warp of the group
//   empty    nobody in the cluster reads it any more        an arrival per consumer warp of the cluster
template <typename Tile>
struct Shared {
  uint8_t* bytes;  // a multiple of 1,024
  uint32_t address;

  BITNAS_DEVICE explicit Shared(uint8_t* shared) {
    const uint32_t start = ptx::shared_address(shared);
    address = (start + kSwizzleBytes - 1) / kSwizzleBytes * kSwizzleBytes;
    bytes = shared + (address - start);
  }
  BITNAS_DEVICE uint32_t x(int stage) const { return address + stage * Tile::kStageBytes; }
  BITNAS_DEVICE uint32_t w(int stage) const { return x(stage) + Tile::kXBytes; }
  BITNAS_DEVICE uint32_t full(int stage) const { return address + Tile::kFullOffset + stage * kBarrierBytes; }
  BITNAS_DEVICE uint32_t empty(int stage) const { return address + Tile::kEmptyOffset + stage * kBarrierBytes; }
  BITNAS_DEVICE uint32_t begun(int stage) const { return address + Tile::kBegunOffset + stage * kBarrierBytes; }
  BITNAS_DEVICE const uint8_t* rows(int stage, int row) const {
    return bytes + stage * Tile::kStageBytes + row * kSlabBytes;
  }
  BITNAS_DEVICE int* ones() const { return reinterpret_cast<int*>(bytes + Tile::kOnesOffset); }
};

// Tiles as clusters walk over them: `cluster` neighbours along m at a time, all n of them before the next m, so that
// activations are read from L2 while they are fresh.
struct Walk {
  int tiles;  // of clusters
  int tiles_n;
  int cluster;  // blocks

  BITNAS_DEVICE int first() const { return static_cast<int>(blockIdx.x) / cluster; }
  BITNAS_DEVICE int step() const { return static_cast<int>(gridDim.x) / cluster; }
  BITNAS_DEVICE int m(int tile, int rank) const { return (tile / tiles_n * cluster + rank) * kTileM; }
  template <typename Tile>
  BITNAS_DEVICE int n(int tile) const {
    return tile % tiles_n * Tile::kN;
  }
};

template <typename Tile>
BITNAS_DEVICE void produce(const Shared<Tile>& shared, const Walk& walk, int slabs, const TensorMap& x,
                           const TensorMap& w) {
  const int rank = static_cast<int>(ptx::cluster_rank());
  const int share = Tile::kN / walk.cluster;  // weight rows that this block loads for all of the cluster
  const auto everyone = static_cast<uint16_t>((1 << walk.cluster) - 1);
  Position<Tile::kStages> at;
  for (int tile = walk.first(); tile < walk.tiles; tile += walk.step()) {
    const int m = walk.m(tile, rank), n = walk.n<Tile>(tile);
    for (int slab = 0; slab < slabs; ++slab, at.advance()) {
      const uint32_t full = shared.full(at.stage);
      const int byte = slab * kSlabBytes;
      ptx::mbarrier_wait(shared.empty(at.stage), at.parity ^ 1);
      ptx::mbarrier_arrive_expect(full, Tile::kStageBytes);
      ptx::tma_load_2d(shared.x(at.stage), &x, byte, m, full);
#pragma unroll 1
      for (int row = rank * share; row < (rank + 1) * share; row += Tile::kBoxRows) {
        const uint32_t to = shared.w(at.stage) + row * kSlabBytes;
        if (walk.cluster > 1)
          ptx::tma_load_2d_multicast(to, &w, byte, n + row, full, everyone);
        else
          ptx::tma_load_2d(to, &w, byte, n + row, full);
      }
    }
  }
}

// Ones of a step's 256 bits in half a row: lane l has half l / 16 of row l % 16 of a warp's rows. The swizzle keeps
// the lanes out of each other's banks, as it does for ldmatrix.
BITNAS_DEVICE int count_ones(const uint8_t* rows, int step) {
  const int lane = threadIdx.x % kWarp;
  const uint4 bits = *reinterpret_cast<const uint4*>(rows + swizzled(lane % 16, step * 2 + lane / 16));
  return __popc(bits.x) + __popc(bits.y) + __popc(bits.z) + __popc(bits.w);
}

// Row sums of what count_ones() gave, to shared memory: for the warp's own lanes, in its own 16 ints.
BITNAS_DEVICE void store_ones(int* to, int ones) {
  const int lane = threadIdx.x % kWarp;
  ones += __shfl_xor_sync(kAllLanes, ones, 16);
  __syncwarp();  // all have read those of the tile before
  if (lane < 16) to[lane] = ones;
  __syncwarp();
}

// Nobody of this warp reads the stage any more; all blocks whose copies it receives get to know.
BITNAS_DEVICE void release(uint32_t empty, int cluster) {
  ptx::fence_proxy_async();  // its ones were counted by plain loads
  __syncwarp();
  const int lane = threadIdx.x % kWarp;
  if (lane < cluster) ptx::mbarrier_arrive_remote(empty, lane);
}

template <typename Tile, EpilogueKind kind>
BITNAS_DEVICE void consume(const Shared<Tile>& shared, const Walk& walk, int slabs, const ConvArgs& args) {
  const int rank = static_cast<int>(ptx::cluster_rank());
  // Off a shuffle the compiler knows it to be the same in all lanes, and descriptors stay in uniform registers.
  const bool leads = __shfl_sync(kAllLanes, threadIdx.x / kGroupThreads, 0) == 1;
  const int group_row = leads ? 0 : kGroupRows;
  const int warp_row = group_row + static_cast<int>(threadIdx.x) % kGroupThreads / kWarp * 16;
  const bool first_lane = threadIdx.x % kWarp == 0;
  Position<Tile::kStages> at;
  int acc[Tile::kN / 2] = {};
  for (int tile = walk.first(); tile < walk.tiles; tile += walk.step()) {
    if (!leads) {
      Position<Tile::kStages> ahead = at;
      ahead.advance(min(Tile::kLead, slabs - 1));
      ptx::mbarrier_wait(shared.begun(ahead.stage), ahead.parity);
    }
    __syncwarp();  // the compiler serialises products where it cannot tell that warps are whole
    int ones = 0, last = 0;
    for (int slab = 0; slab < slabs; ++slab, at.advance()) {
      const uint64_t x = operand_descriptor(shared.x(at.stage) + group_row * kSlabBytes);
      const uint64_t w = operand_descriptor(shared.w(at.stage));
      const int steps = min(kSlabSteps, (args.k_words - slab * kSlabWords + kStepWords - 1) / kStepWords);
      ptx::mbarrier_wait(shared.full(at.stage), at.parity);
#pragma unroll 1  // or products end up in conditional code, where the compiler serialises them
      for (int step = 0; step < steps; ++step) {
        ptx::wgmma_fence();
        ptx::wgmma_and_popc<Tile::kN>(acc, x + step * kDescriptorStep, w + step * kDescriptorStep, slab + step > 0);
        ptx::wgmma_commit();
        ones += count_ones(shared.rows(at.stage, warp_row), step);
        ptx::wgmma_wait<1>();
        if (step > 0) continue;
        // The slab before is done with.
        if (leads && first_lane) ptx::mbarrier_arrive(shared.begun(at.stage));
        if (slab > 0) release(shared.empty(last), walk.cluster);
      }
      last = at.stage;
    }
    ptx::wgmma_wait<0>();
    order_behind_wait(acc);
    release(shared.empty(last), walk.cluster);

    store_ones(shared.ones() + warp_row, ones);
#pragma unroll
    for (int n = 0; n < Tile::kN; n += kEpilogueN) {
      Fragments<1, kEpilogueN / 8> fragments(args, reinterpret_cast<int (&)[kEpilogueN / 2]>(acc[n / 2]),
                                             walk.m(tile, rank), warp_row, 0, walk.n<Tile>(tile) + n, shared.ones());
      store_fragments<kind>(fragments);
    }
  }
}

template <typename Tile, EpilogueKind kind>
BITNAS_DEVICE void multiply(const ConvArgs& args, const Walk& walk, const TensorMap& x, const TensorMap& w) {
  BITNAS_SHARED(dynamic);
  const Shared<Tile> shared(dynamic);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(shared.full(stage), 1);
      ptx::mbarrier_init(shared.empty(stage), kConsumerWarps * walk.cluster);
      ptx::mbarrier_init(shared.begun(stage), kGroupThreads / kWarp);
    }
    ptx::mbarrier_init_fence();
  }
  __syncwarp();
  ptx::cluster_sync();

  const int slabs = (args.k_words + kSlabWords - 1) / kSlabWords;
  if (threadIdx.x < kGroupThreads) {
    ptx::setmaxnreg_decrease<kProducerRegisters>();
    if (threadIdx.x == 0) produce(shared, walk, slabs, x, w);
  } else {
    ptx::setmaxnreg_increase<kConsumerRegisters>();
    consume<Tile, kind>(shared, walk, slabs, args);
  }
  __syncwarp();
  ptx::cluster_sync();  // the neighbour may still arrive at this block's barriers
}

#if defined(BITNAS_CUDA_MODEL) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

template <typename Tile, EpilogueKind kind>
__global__ void __launch_bounds__(kThreads, 1)
    gemm_wgmma_kernel(const __grid_constant__ ConvArgs args, Walk walk, const __grid_constant__ TensorMap x,
                      const __grid_constant__ TensorMap w) {
  if constexpr (kHasWgmma)
    multiply<Tile, kind>(args, walk, x, w);
  else
    __trap();  // built for 9.0 without its "a"
}

template <typename Tile, EpilogueKind kind>
cudaError_t launch_tile(const ConvArgs& args, int multiprocessors, cudaStream_t stream) {
  constexpr int64_t kWordBytes = sizeof(Word);
  const int64_t tiles_m = (args.m + kTileM - 1) / kTileM;
  const int64_t tiles_n = (covered_channels(args) + Tile::kN - 1) / Tile::kN;
  const int cluster = tiles_m > 1 && multiprocessors > 1 ? kMaxCluster : 1;
  const int64_t tiles = (tiles_m + cluster - 1) / cluster * tiles_n;
  // TMA has 32-bit coordinates.
  if ((tiles_m + 1) * kTileM > INT32_MAX || tiles > INT32_MAX / 2) return cudaErrorInvalidValue;

  TensorMap x, w;
  cudaError_t error = make_tensor_map_2d(&x, args.x, args.k_words * kWordBytes, args.m, args.pixel_words * kWordBytes,
                                         kSlabBytes, kTileM);
  if (error == cudaSuccess)
    error = make_tensor_map_2d(&w, args.w, args.k_words * kWordBytes, args.out_channels, args.row_words * kWordBytes,
                               kSlabBytes, Tile::kBoxRows);
  if (error != cudaSuccess) return error;

  const int64_t clusters = std::min<int64_t>(tiles, multiprocessors / cluster);
  LaunchConfig config{dim3(static_cast<unsigned>(clusters * cluster)), dim3(kThreads), Tile::kSharedBytes};
  config.cluster_blocks = cluster;
  const Walk walk{static_cast<int>(tiles), static_cast<int>(tiles_n), cluster};
  return launch(gemm_wgmma_kernel<Tile, kind>, config, stream, args, walk, x, w);
}

template <typename Tile>
cudaError_t launch_kind(const ConvArgs& args, int multiprocessors, cudaStream_t stream) {
  switch (args.epilogue.kind) {
    case EpilogueKind::kInt32: return launch_tile<Tile, EpilogueKind::kInt32>(args, multiprocessors, stream);
    case EpilogueKind::kFloat: return launch_tile<Tile, EpilogueKind::kFloat>(args, multiprocessors, stream);
    case EpilogueKind::kBits: return launch_tile<Tile, EpilogueKind::kBits>(args, multiprocessors, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t gemm_wgmma(const ConvArgs& args, const Kernel& kernel, int multiprocessors, cudaStream_t stream) {
  if (kernel.tile_m != kTileM) return cudaErrorInvalidValue;
  if (kernel.tile_n == 256) return launch_kind<TileShape<256, 4>>(args, multiprocessors, stream);
  if (kernel.tile_n == 128) return launch_kind<TileShape<128, 6>>(args, multiprocessors, stream);
  return cudaErrorInvalidValue;
}

}  // namespace bitnas::cuda

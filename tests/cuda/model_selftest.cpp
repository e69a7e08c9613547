// The host model of CUDA, tested: test_model.py builds this and runs `model_selftest
// CASE`, which exits with 0 if all is right, 1 if a result is wrong, and otherwise ends
// with the model's own abort.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "kernels/cuda/float16.h"
#include "model_gemm.h"

namespace model_test {
namespace {

int failures = 0;

void expect(bool right, const char* what, int line) {
  if (right) return;
  ++failures;
  std::fprintf(stderr, "line %d: wrong: %s\n", line, what);
}
#define EXPECT(condition) expect(condition, #condition, __LINE__)

// ---- matrix products ----------------------------------------------------------------

struct Shape {
  int m, n, k;
};

// Ragged in all directions; with one slab, as many as there are stages, and more.
constexpr Shape kShapes[] = {{1, 1, 1}, {33, 17, 1000}, {70, 40, 3 * 1024}, {130, 50, 9 * 1024 + 300}};

struct Bits {
  int rows, k, row_bytes;
  std::vector<uint8_t> bytes;
  std::vector<int> ones;
  uint8_t* data;  // 16-byte aligned, as copies need it

  Bits(int rows, int k, uint64_t seed) : rows(rows), k(k), row_bytes((k + 127) / 128 * 16), ones(rows) {
    model::Random random(seed);
    bytes.resize(static_cast<size_t>(rows) * row_bytes + 16);
    data = bytes.data() + (16 - reinterpret_cast<uintptr_t>(bytes.data()) % 16) % 16;
    for (int row = 0; row < rows; ++row)
      for (int bit = 0; bit < k; ++bit)
        if (random.below(5) < 2) {
          data[row * row_bytes + bit / 8] |= 1 << bit % 8;
          ++ones[row];
        }
  }
  bool at(int row, int bit) const { return data[row * row_bytes + bit / 8] >> bit % 8 & 1; }
};

int plain_dot(const Bits& a, int row, const Bits& b, int column) {
  int dot = 0;
  for (int bit = 0; bit < a.k; ++bit) dot += a.at(row, bit) == b.at(column, bit) ? 1 : -1;
  return dot;
}

template <Mistake mistake>
cudaError_t launch_mma(const Problem& p, const Bits&, const Bits&) {
  const dim3 grid((p.n + MmaTile::kN - 1) / MmaTile::kN, (p.m + MmaTile::kM - 1) / MmaTile::kM);
  const int shared = MmaTile::kSharedBytes - (mistake == Mistake::kShortAllocation ? 16 : 0);
  return launch(mma_gemm<mistake>, {grid, dim3(MmaTile::kThreads), static_cast<size_t>(shared)}, nullptr, p);
}

template <Mistake mistake>
cudaError_t launch_wgmma(const Problem& p, const Bits& a, const Bits& b) {
  ptx::TensorMap map_a, map_b;
  const auto map = [](ptx::TensorMap* map, const Bits& bits, int box_rows) {
    return model::make_tensor_map_2d(map, bits.data, bits.row_bytes, bits.rows, bits.row_bytes, kSlab, box_rows);
  };
  EXPECT(map(&map_a, a, WgmmaTile::kM) == cudaSuccess);
  EXPECT(map(&map_b, b, WgmmaTile::kN / WgmmaTile::kBlocks) == cudaSuccess);
  const unsigned tiles_m = (p.m + WgmmaTile::kM - 1) / WgmmaTile::kM;
  const dim3 grid((tiles_m + 1) / 2 * 2, (p.n + WgmmaTile::kN - 1) / WgmmaTile::kN);
  return launch(wgmma_gemm<mistake>, {grid, dim3(WgmmaTile::kThreads), WgmmaTile::kSharedBytes, WgmmaTile::kBlocks},
                nullptr, p, map_a, map_b);
}

void check_gemm(cudaError_t (*launch_gemm)(const Problem&, const Bits&, const Bits&)) {
  for (const Shape& shape : kShapes) {
    const Bits a(shape.m, shape.k, 1), b(shape.n, shape.k, 2);
    std::vector<int> out(shape.m * shape.n, std::numeric_limits<int>::min());
    const Problem p{a.data, b.data, a.ones.data(), b.ones.data(), out.data(), shape.m, shape.n, shape.k, a.row_bytes};
    EXPECT(launch_gemm(p, a, b) == cudaSuccess);
    int wrong = 0;
    for (int m = 0; m < shape.m; ++m)
      for (int n = 0; n < shape.n; ++n) wrong += out[m * shape.n + n] != plain_dot(a, m, b, n);
    EXPECT(wrong == 0);
    if (wrong != 0) return;
  }
}

// ---- built-ins ------------------------------------------------------------------------

constexpr unsigned kAll = 0xffffffffu;

__global__ void shuffles(int* out) {
  const int lane = threadIdx.x;
  int* mine = out + lane * 8;
  mine[0] = __shfl_sync(kAll, lane * 3, 5);
  mine[1] = __shfl_sync(kAll, lane * 3, 5, 8);
  mine[2] = __shfl_xor_sync(kAll, lane * 3, 16);
  mine[3] = __shfl_down_sync(kAll, lane * 3, 4);
  mine[4] = __shfl_down_sync(kAll, lane * 3, 4, 8);
  mine[5] = static_cast<int>(__ballot_sync(kAll, lane % 3 == 0));
  // Halves of the warp may go separate ways, each under its own mask.
  if (lane < 16)
    mine[6] = __shfl_xor_sync(0x0000ffffu, lane, 1);
  else
    mine[6] = static_cast<int>(__ballot_sync(0xffff0000u, lane & 1));
  __syncwarp();
  mine[7] = static_cast<int>(__shfl_sync(kAll, uint64_t{1} << 40 | static_cast<unsigned>(lane), lane ^ 3) >> 38) + lane;
}

void check_shuffles() {
  int out[32][8];
  EXPECT(launch(shuffles, {dim3(1), dim3(32)}, nullptr, out[0]) == cudaSuccess);
  for (int lane = 0; lane < 32; ++lane) {
    const int* mine = out[lane];
    EXPECT(mine[0] == 15);
    EXPECT(mine[1] == (lane / 8 * 8 + 5) * 3);
    EXPECT(mine[2] == (lane ^ 16) * 3);
    EXPECT(mine[3] == (lane + 4 < 32 ? lane + 4 : lane) * 3);
    EXPECT(mine[4] == (lane % 8 + 4 < 8 ? lane + 4 : lane) * 3);
    EXPECT(mine[5] == 0x49249249);
    EXPECT(mine[6] == (lane < 16 ? lane ^ 1 : static_cast<int>(0xaaaa0000u)));
    EXPECT(mine[7] == 4 + lane);
  }
}

__global__ void indices(int* seen, unsigned* total) {
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  atomicAdd(&seen[block * threads + thread], 1);
  // In warps that are not full, too.
  const unsigned sum = thread + __shfl_xor_sync(__ballot_sync(kAll, 1), thread, 1);
  atomicAdd(total, thread % 2 == 0 ? sum : 0);
}

void check_indices() {
  constexpr unsigned kBlocks = 2 * 3 * 4, kThreads = 7 * 2 * 3;
  std::vector<int> seen(kBlocks * kThreads);
  unsigned total = 0;
  EXPECT(launch(indices, {dim3(2, 3, 4), dim3(7, 2, 3)}, nullptr, seen.data(), &total) == cudaSuccess);
  for (const int times : seen) EXPECT(times == 1);
  EXPECT(total == kBlocks * kThreads * (kThreads - 1) / 2);
}

// A tree over the whole block, through shared memory.
__global__ void reduce(const int* x, int* sums) {
  BITNAS_SHARED(shared);
  int* partial = reinterpret_cast<int*>(shared);
  partial[threadIdx.x] = x[blockIdx.x * blockDim.x + threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

void check_reduce() {
  std::vector<int> x(3 * 1024), sums(3), plain(3);
  for (int i = 0; i < 3 * 1024; ++i) plain[i / 1024] += x[i] = i * 7 % 1000;
  EXPECT(launch(reduce, {dim3(3), dim3(1024), 4096}, nullptr, x.data(), sums.data()) == cudaSuccess);
  EXPECT(sums == plain);
}

// Kernels of several host threads at once, as the threads of torch may launch them.
void check_host_threads() {
  std::vector<std::thread> threads;
  std::vector<int> right(4);
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t, &right] {
      for (int round = 0; round < 20; ++round) {
        std::vector<int> x(256, t + round);
        int sum = 0;
        launch(reduce, {dim3(1), dim3(256), 1024}, nullptr, x.data(), &sum);
        right[t] += sum == 256 * (t + round);
      }
    });
  for (std::thread& thread : threads) thread.join();
  for (const int rounds : right) EXPECT(rounds == 20);
}

// One warp fills a buffer, the other empties it, in turns.
__global__ void ping_pong(int* out, int rounds) {
  BITNAS_SHARED(shared);
  int* buffer = reinterpret_cast<int*>(shared);
  const unsigned lane = threadIdx.x % 32;
  for (int round = 0; round < rounds; ++round) {
    if (threadIdx.x < 32) {
      if (round > 0) ptx::named_barrier_sync(2, 64);
      buffer[lane] = round * 32 + static_cast<int>(lane);
      ptx::named_barrier_arrive(1, 64);
    } else {
      ptx::named_barrier_sync(1, 64);
      out[round * 32 + lane] = buffer[31 - lane];
      if (round + 1 < rounds) ptx::named_barrier_arrive(2, 64);
    }
  }
}

void check_named_barriers() {
  std::vector<int> out(10 * 32);
  EXPECT(launch(ping_pong, {dim3(1), dim3(64), 128}, nullptr, out.data(), 10) == cudaSuccess);
  for (int i = 0; i < 10 * 32; ++i) EXPECT(out[i] == i / 32 * 32 + 31 - i % 32);
}

// mma_u8 against a plain product; a and b are [16][32] and [8][32] bytes.
__global__ void multiply_bytes(const uint8_t* a, const uint8_t* b, int* out) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  const auto word = [t](const uint8_t* bytes, int row, int half) {
    return reinterpret_cast<const uint32_t*>(bytes)[row * 8 + half * 4 + t];
  };
  const uint32_t fragment[4] = {word(a, g, 0), word(a, g + 8, 0), word(a, g, 1), word(a, g + 8, 1)};
  int d[4] = {1, 1, 1, 1};
  ptx::mma_u8(d, fragment, word(b, g, 0), word(b, g, 1));
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = d[i];
}

void check_bytes() {
  alignas(16) uint8_t a[16 * 32], b[8 * 32];
  int out[16 * 8];
  model::Random random(3);
  for (uint8_t& x : a) x = static_cast<uint8_t>(random.draw());
  for (uint8_t& x : b) x = static_cast<uint8_t>(random.draw());
  EXPECT(launch(multiply_bytes, {dim3(1), dim3(32)}, nullptr, a, b, out) == cudaSuccess);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 8; ++j) {
      int sum = 1;
      for (int k = 0; k < 32; ++k) sum += a[i * 32 + k] * b[j * 32 + k];
      EXPECT(out[i * 8 + j] == sum);
    }
}

void check_arithmetic() {
  EXPECT(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
  EXPECT(__ffs(0) == 0 && __ffs(8) == 4 && __clz(0) == 32 && __clz(1) == 31);
  EXPECT(__funnelshift_l(0x80000001u, 0x12345678u, 4) == 0x23456788u);
  EXPECT(__funnelshift_r(0x80000001u, 0x12345678u, 4) == 0x88000000u);
  EXPECT(__umulhi(0xffffffffu, 0xffffffffu) == 0xfffffffeu);
  EXPECT(__fmaf_rn(1 + 0x1p-12f, 1 + 0x1p-12f, -1 - 0x1p-11f) == 0x1p-24f);
  EXPECT(min(2, -1) == -1 && max(2u, 1u) == 2u);
  unsigned bits = 5;
  unsigned long long wide = 1;
  EXPECT(atomicOr(&bits, 2u) == 5 && bits == 7);
  EXPECT(atomicOr(&wide, 1ull << 40) == 1 && wide == (1ull << 40 | 1));
}

// ---- 16-bit floats --------------------------------------------------------------------------

// Of the two neighbours of x, the nearer; the even one of two that are as near.
uint16_t bfloat16_of(float x) {
  if (std::isnan(x)) return 0x7fff;
  const auto value = [](uint32_t bits) {  // above the largest finite number, what comes after it
    const float y = __bfloat162float({static_cast<uint16_t>(bits)});
    return std::isinf(y) ? std::copysign(0x1p128, y) : double{y};
  };
  const uint32_t down = std::bit_cast<uint32_t>(x) >> 16, up = down + 1;
  if (std::isinf(x)) return static_cast<uint16_t>(down);
  const double below = std::abs(x - value(down)), above = std::abs(value(up) - x);
  return static_cast<uint16_t>(below < above || (below == above && down % 2 == 0) ? down : up);
}

void check_float16() {
  const auto check = [](float x) {
    const __half half = __float2half_rn(x);
    EXPECT(half.bits == (std::isnan(x) ? 0x7fff : std::bit_cast<uint16_t>(static_cast<_Float16>(x))));
    EXPECT(__float2bfloat16_rn(x).bits == bfloat16_of(x));
  };
  for (uint64_t bits = 0; bits < uint64_t{1} << 32; bits += 9973)
    check(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  for (uint32_t bits = 0; bits < 1 << 16; ++bits) {
    // Every half, what lies between it and its neighbour, and the floats next to that.
    const float x = __half2float({static_cast<uint16_t>(bits)});
    const float exact = static_cast<float>(std::bit_cast<_Float16>(static_cast<uint16_t>(bits)));
    EXPECT(std::isnan(exact) ? std::isnan(x) : std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(exact));
    const float next = __half2float({static_cast<uint16_t>(bits + 1)}), middle = (x + next) / 2;
    for (const float y : {x, middle, std::nextafter(middle, x), std::nextafter(middle, next)}) check(y);
    const float tie = std::bit_cast<float>(bits << 16 | 0x8000);  // of two bfloat16
    for (const float y : {tie, std::nextafter(tie, 0.0f), std::nextafter(tie, 2 * tie)}) check(y);
  }
}

// ---- the runtime --------------------------------------------------------------------------------

__global__ void nothing() {}

void check_launches() {
  int value = 0;
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && value == 9);
  setenv("BITNAS_CUDA_MODEL_CC", "120", 1);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0) == cudaSuccess && value == 12);
  EXPECT(cudaDeviceGetAttribute(&value, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess && value == 101376);
  const auto launches = [](dim3 grid, dim3 block, size_t shared = 0, unsigned cluster = 1) {
    return launch(nothing, {grid, block, shared, cluster}, nullptr);
  };
  EXPECT(launches(dim3(1), dim3(1024), 101376) == cudaSuccess);
  EXPECT(cudaGetLastError() == cudaSuccess);
  EXPECT(launches(dim3(1), dim3(32), 101377) == cudaErrorInvalidValue);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
  EXPECT(launches(dim3(1), dim3(1025)) == cudaErrorInvalidConfiguration);
  EXPECT(launches(dim3(0), dim3(32)) != cudaSuccess);
  EXPECT(launches(dim3(1, 65536), dim3(32)) != cudaSuccess);
  EXPECT(launches(dim3(3), dim3(32), 0, 2) != cudaSuccess);
  setenv("BITNAS_CUDA_MODEL_CC", "80", 1);
  EXPECT(launches(dim3(2), dim3(32), 0, 2) != cudaSuccess);
  setenv("BITNAS_CUDA_MODEL_CC", "90", 1);
  EXPECT(launches(dim3(2), dim3(32), 0, 2) == cudaSuccess);
}

// ---- what must stop the program -------------------------------------------------------------------

__global__ void diverge(int* out) {
  if (threadIdx.x < 7)
    out[threadIdx.x] = __shfl_sync(kAll, 1, 0);
  else
    out[threadIdx.x] = __shfl_sync(kAll, 2, 0);
}

__global__ void leave_early() {
  if (threadIdx.x == 40) return;
  __syncthreads();
}

__global__ void write_past_end() {
  BITNAS_SHARED(shared);
  if (threadIdx.x == 9) shared[64] = 1;
}

__global__ void copy_past_end(const uint8_t* from) {
  BITNAS_SHARED(shared);
  ptx::cp_async<16>(ptx::shared_address(shared) + threadIdx.x * 16, from, true);
}

// The other warp's copy is read after its own wait, but nothing tells that warp that it has arrived.
__global__ void read_unordered(const uint8_t* from) {
  BITNAS_SHARED(shared);
  const uint32_t start = ptx::shared_address(shared), offset = threadIdx.x * 16;
  ptx::cp_async<16>(start + offset, from, true);
  ptx::cp_async_commit();
  ptx::cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  ptx::ldmatrix_x4(r, start + (offset + 512) % 1024);
}

__global__ void unmatched_barrier() { ptx::named_barrier_sync(1, threadIdx.x < 32 ? 64 : 96); }

__global__ void trap() { __trap(); }

// Deeper than a thread's stack.
int descend(int depth) {
  volatile char frame[256] = {};
  return depth == 0 ? frame[0] : descend(depth - 1) + frame[depth % 256];
}
__global__ void fill_stack(int depth, int* out) { *out = descend(depth); }

alignas(16) uint8_t source[64];

template <typename... Arguments>
void run_to_failure(void (*kernel)(Arguments...), unsigned threads, size_t shared_bytes, Arguments... arguments) {
  launch(kernel, {dim3(1), dim3(threads), shared_bytes}, nullptr, arguments...);
}

void run_diverging() {
  int out[32];
  run_to_failure(diverge, 32, 0, &out[0]);
}

void run_deep() {
  int out;
  run_to_failure(fill_stack, 1, 0, 100000, &out);
}

void multiply_bits() {
  const Bits a(1, 128, 1);
  int out;
  launch_mma<Mistake::kNone>({a.data, a.data, a.ones.data(), a.ones.data(), &out, 1, 1, 128, a.row_bytes}, a, a);
}

// ---- the list -----------------------------------------------------------------------------------------

template <Mistake mistake>
void mma() {
  check_gemm(launch_mma<mistake>);
}
template <Mistake mistake>
void wgmma() {
  check_gemm(launch_wgmma<mistake>);
}

#define MISTAKE(kernel, name) {#kernel "/" #name, kernel<Mistake::k##name>}
const std::map<std::string, void (*)()> kCases = {
    {"shuffles", check_shuffles},
    {"indices", check_indices},
    {"reduce", check_reduce},
    {"host_threads", check_host_threads},
    {"named_barriers", check_named_barriers},
    {"bytes", check_bytes},
    {"arithmetic", check_arithmetic},
    {"float16", check_float16},
    {"launches", check_launches},
    {"diverge", run_diverging},
    {"leave_early", [] { run_to_failure(leave_early, 64, 0); }},
    {"write_past_end", [] { run_to_failure(write_past_end, 32, 64); }},
    {"copy_past_end", [] { run_to_failure<const uint8_t*>(copy_past_end, 32, 500, source); }},
    {"read_unordered", [] { run_to_failure<const uint8_t*>(read_unordered, 64, 1024, source); }},
    {"unmatched_barrier", [] { run_to_failure(unmatched_barrier, 96, 0); }},
    {"fill_stack", run_deep},
    {"trap", [] { run_to_failure(trap, 1, 0); }},
    {"multiply_bits", multiply_bits},
    MISTAKE(mma, None),
    MISTAKE(mma, CorrectionSign),
    MISTAKE(mma, WeakCopyWait),
    MISTAKE(mma, NoCopyCommit),
    MISTAKE(mma, NoBlockSync),
    MISTAKE(mma, NoZeroFill),
    MISTAKE(mma, NoReadSwizzle),
    MISTAKE(mma, DivergentLanes),
    MISTAKE(mma, ShortAllocation),
    MISTAKE(wgmma, None),
    MISTAKE(wgmma, CorrectionSign),
    MISTAKE(wgmma, NoFullWait),
    MISTAKE(wgmma, NoEmptyWait),
    MISTAKE(wgmma, EarlyRelease),
    MISTAKE(wgmma, WeakProductWait),
    MISTAKE(wgmma, NoProductWait),
    MISTAKE(wgmma, NoProductCommit),
    MISTAKE(wgmma, NoFence),
    MISTAKE(wgmma, WrongProducerPhase),
    MISTAKE(wgmma, WrongConsumerPhase),
    MISTAKE(wgmma, PhaseNeverFlips),
    MISTAKE(wgmma, WrongStride),
    MISTAKE(wgmma, WrongStep),
    MISTAKE(wgmma, UnalignedTiles),
    MISTAKE(wgmma, ShortExpect),
    MISTAKE(wgmma, LocalRelease),
    MISTAKE(wgmma, MulticastToSelf),
    MISTAKE(wgmma, NoInitialSync),
    MISTAKE(wgmma, NoFinalSync),
    MISTAKE(wgmma, WarpsDiffer),
};

}  // namespace
}  // namespace model_test

int main(int argc, char** argv) {
  using model_test::kCases;
  if (argc == 1)
    for (const auto& [name, run] : kCases) std::puts(name.c_str());
  for (int i = 1; i < argc; ++i) {
    const auto found = kCases.find(argv[i]);
    if (found == kCases.end()) return std::fprintf(stderr, "no case %s\n", argv[i]), 2;
    found->second();
  }
  return model_test::failures != 0;
}

// What the instructions that 1-bit kernels are made of can do at most, on the GPU at hand. A program of its own:
//
//   nvcc -O3 -std=c++20 --expt-relaxed-constexpr -I csrc -gencode arch=compute_90a,code=sm_90a bench/cuda_peaks.cu
//
// Prints JSON: per instruction and kind of operands the operations a second (a bit product or a multiply-add is two),
// and how many products one SM does per clock. Operands stay in registers or shared memory, several sets of them in
// turn, as in a kernel's main loop: the same operand over and over, or zeros, toggle fewer wires, draw less power and
// so run at a higher clock. Every loop is first run on operands whose sums are known.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels/cuda/wgmma.cuh"

namespace {

using namespace bitnas::cuda;

constexpr int kThreads = 256;
constexpr int kWarpLanes = 32;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kGroupThreads = 128;

#define CHECK(call)                                                                       \
  do {                                                                                    \
    const cudaError_t error = (call);                                                     \
    if (error != cudaSuccess) {                                                           \
      std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, cudaGetErrorString(error)); \
      std::exit(1);                                                                       \
    }                                                                                     \
  } while (0)

// What every loop below gets: random bits to make its operands of, and where its sums and clocks go.
struct Loop {
  const uint32_t* operands;  // kOperandWords
  int iterations;
  uint32_t* sums;     // [blocks][kThreads], modulo 2^32
  long long* clocks;  // [blocks]
};
constexpr int kOperandWords = 1 << 18;

__device__ uint32_t operand(const Loop& loop, int index) {
  const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
  return loop.operands[(thread * 61 + index * 7919u) % kOperandWords];
}

template <int count>
__device__ void finish(const Loop& loop, const int* acc, long long begin) {
  uint32_t sum = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) sum += static_cast<uint32_t>(acc[i]);
  loop.sums[blockIdx.x * kThreads + threadIdx.x] = sum;
  if (threadIdx.x == 0) loop.clocks[blockIdx.x] = clock64() - begin;
}

// ---- mma.sync: a 64 x 32 tile per warp, out of registers ----------------------

constexpr int kTileA = 4, kTileB = 4;  // fragments of 16 rows, of 8 columns

template <bool bits>
__global__ void __launch_bounds__(kThreads) mma_loop(Loop loop) {
#if BITNAS_ARCH >= 800
  uint32_t a[kTileA][4], b[kTileB][2];
  for (int i = 0; i < kTileA; ++i)
    for (int r = 0; r < 4; ++r) a[i][r] = operand(loop, i * 4 + r);
  for (int j = 0; j < kTileB; ++j)
    for (int r = 0; r < 2; ++r) b[j][r] = operand(loop, 16 + j * 2 + r);
  int acc[kTileA * kTileB][4] = {};
  const long long begin = clock64();
  for (int k = 0; k < loop.iterations; ++k) {
#pragma unroll
    for (int i = 0; i < kTileA; ++i) {
#pragma unroll
      for (int j = 0; j < kTileB; ++j) {
        if constexpr (bits)
          ptx::mma_and_popc(acc[i * kTileB + j], a[i], b[j][0], b[j][1]);
        else
          ptx::mma_u8(acc[i * kTileB + j], a[i], b[j][0], b[j][1]);
      }
    }
  }
  finish<kTileA * kTileB * 4>(loop, acc[0], begin);
#else
  __trap();
#endif
}

// ---- wgmma: 64 x 256 per warp group, out of shared memory -----------------------

constexpr int kRowBytes = 128, kStages = 4, kColumns = 256;
constexpr int kBytesA = kThreads / kGroupThreads * 64 * kRowBytes, kBytesB = kColumns * kRowBytes;
constexpr int kAlignment = 1024;
constexpr int kWgmmaShared = kStages * (kBytesA + kBytesB) + kAlignment;
constexpr int kSteps = kRowBytes * 8 / 256;  // products of 256 bits along a row

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr bool kHasWgmma = true;
#else
constexpr bool kHasWgmma = false;
#endif

__device__ void wgmma_body(const Loop& loop) {
  extern __shared__ uint8_t shared[];
  const uint32_t start = ptx::shared_address(shared);
  const uint32_t address = (start + kAlignment - 1) / kAlignment * kAlignment;
  auto* words = reinterpret_cast<uint32_t*>(shared + (address - start));
  constexpr int kWords = kStages * (kBytesA + kBytesB) / 4;
  for (int i = threadIdx.x; i < kWords; i += kThreads) words[i] = operand(loop, i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads past the ordinary path of stores
  __syncthreads();
  const uint32_t group = threadIdx.x / kGroupThreads;
  int acc[kColumns / 2] = {};
  const long long begin = clock64();
  for (int k = 0; k < loop.iterations; ++k) {
    const uint32_t stage = address + k % kStages * (kBytesA + kBytesB);
    const uint64_t a = operand_descriptor(stage + group * 64 * kRowBytes), b = operand_descriptor(stage + kBytesA);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kSteps; ++step)
      ptx::wgmma_and_popc<kColumns>(acc, a + step * kDescriptorStep, b + step * kDescriptorStep, true);
    ptx::wgmma_commit();
    ptx::wgmma_wait<1>();
  }
  ptx::wgmma_wait<0>();
  order_behind_wait(acc);
  finish<kColumns / 2>(loop, acc, begin);
}

__global__ void __launch_bounds__(kThreads, 1) wgmma_loop(Loop loop) {
  if constexpr (kHasWgmma) wgmma_body(loop);
}

// ---- LOP3 and POPC: what CUDA cores do without tensor cores -----------------------

constexpr int kChains = 16, kStepsPopc = 4;

// The sum goes back into the operand (for free: LOP3 has three inputs), or the compiler would do the rest only once.
__host__ __device__ int popc_step(uint32_t a, uint32_t b, int sum) {
  const uint32_t bits = a ^ b ^ static_cast<uint32_t>(sum);
#ifdef __CUDA_ARCH__
  return sum + __popc(bits);
#else
  return sum + __builtin_popcount(bits);
#endif
}

__global__ void __launch_bounds__(kThreads) popc_loop(Loop loop) {
  uint32_t a[kChains], b[kStepsPopc];
  int acc[kChains] = {};
  for (int i = 0; i < kChains; ++i) a[i] = operand(loop, i);
  for (int i = 0; i < kStepsPopc; ++i) b[i] = operand(loop, kChains + i);
  const long long begin = clock64();
  for (int k = 0; k < loop.iterations; ++k) {
#pragma unroll
    for (int step = 0; step < kStepsPopc; ++step) {
#pragma unroll
      for (int i = 0; i < kChains; ++i) acc[i] = popc_step(a[i], b[step], acc[i]);
    }
  }
  finish<kChains>(loop, acc, begin);
}

// ---- host ---------------------------------------------------------------------------

struct Instruction {
  const char* name;
  void (*kernel)(Loop);
  int shared_bytes;
  double products;  // of a block in one iteration
  int least_cc, most_cc;
  uint32_t (*sum_of)(uint32_t word, int iterations);  // of a thread, where all operands are this word
};

constexpr uint32_t kOnes = 0xffffffff;

uint32_t mma_sum(int product, int iterations) {
  return static_cast<uint32_t>(kTileA * kTileB * 4) * static_cast<uint32_t>(product) * iterations;
}

const Instruction kInstructions[] = {
    {"wgmma.m64n256k256.b1.and.popc", wgmma_loop, kWgmmaShared, kThreads / kGroupThreads * 64.0 * 256 * 256 * kSteps,
     90, 90,
     [](uint32_t word, int iterations) {
       return word == kOnes ? kColumns / 2 * 256u * kSteps * static_cast<uint32_t>(iterations) : 0;
     }},
    {"mma.sync.m16n8k256.b1.and.popc", mma_loop<true>, 0, kWarps * 16.0 * 8 * 256 * kTileA * kTileB, 80, 90,
     [](uint32_t word, int iterations) { return mma_sum(word == kOnes ? 256 : 0, iterations); }},
    {"mma.sync.m16n8k32.u8", mma_loop<false>, 0, kWarps * 16.0 * 8 * 32 * kTileA * kTileB, 80, 9999,
     [](uint32_t word, int iterations) { return mma_sum(word == kOnes ? 32 * 255 * 255 : 0, iterations); }},
    {"lop3+popc", popc_loop, 0, kThreads * 32.0 * kChains * kStepsPopc, 50, 9999,
     [](uint32_t, int iterations) {
       int sum = 0;  // a XOR b is 0, whatever the word
       for (int i = 0; i < iterations * kStepsPopc; ++i) sum = popc_step(0, 0, sum);
       return static_cast<uint32_t>(kChains * sum);
     }},
};

struct Reading {
  double seconds;
  double clocks;
};

class Bench {
 public:
  explicit Bench(const Instruction& instruction, int multiprocessors) : instruction_(instruction) {
    CHECK(cudaFuncSetAttribute(instruction.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               instruction.shared_bytes));
    int resident = 0;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, instruction.kernel, kThreads,
                                                        instruction.shared_bytes));
    blocks_ = resident * multiprocessors;
    CHECK(cudaMalloc(&operands_, kOperandWords * sizeof(uint32_t)));
    CHECK(cudaMalloc(&sums_, blocks_ * kThreads * sizeof(uint32_t)));
    CHECK(cudaMalloc(&clocks_, blocks_ * sizeof(long long)));
    CHECK(cudaEventCreate(&begin_));
    CHECK(cudaEventCreate(&end_));
  }
  ~Bench() {
    cudaFree(operands_), cudaFree(sums_), cudaFree(clocks_);
    cudaEventDestroy(begin_), cudaEventDestroy(end_);
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  int blocks() const { return blocks_; }

  void fill(const std::vector<uint32_t>& words) {
    CHECK(cudaMemcpy(operands_, words.data(), kOperandWords * sizeof(uint32_t), cudaMemcpyHostToDevice));
  }

  Reading run(int iterations) {
    CHECK(cudaEventRecord(begin_));
    instruction_.kernel<<<blocks_, kThreads, instruction_.shared_bytes>>>({operands_, iterations, sums_, clocks_});
    CHECK(cudaGetLastError());
    CHECK(cudaEventRecord(end_));
    CHECK(cudaEventSynchronize(end_));
    float milliseconds = 0;
    CHECK(cudaEventElapsedTime(&milliseconds, begin_, end_));
    std::vector<long long> clocks(blocks_);
    CHECK(cudaMemcpy(clocks.data(), clocks_, blocks_ * sizeof(long long), cudaMemcpyDeviceToHost));
    return {milliseconds * 1e-3, static_cast<double>(*std::max_element(clocks.begin(), clocks.end()))};
  }

  // Whether every thread's sums are what uniform operands must give.
  bool is_right(uint32_t word) {
    constexpr int kIterations = 100;
    fill(std::vector<uint32_t>(kOperandWords, word));
    run(kIterations);
    std::vector<uint32_t> sums(blocks_ * kThreads);
    CHECK(cudaMemcpy(sums.data(), sums_, sums.size() * sizeof(uint32_t), cudaMemcpyDeviceToHost));
    const uint32_t expected = instruction_.sum_of(word, kIterations);
    return std::all_of(sums.begin(), sums.end(), [&](uint32_t sum) { return sum == expected; });
  }

 private:
  const Instruction& instruction_;
  int blocks_ = 0;
  uint32_t* operands_ = nullptr;
  uint32_t* sums_ = nullptr;
  long long* clocks_ = nullptr;
  cudaEvent_t begin_{}, end_{};
};

// Launches of about 10 ms for a second, until clocks and power have settled; the median of the later half.
Reading sustained(Bench& bench, int* iterations) {
  constexpr double kLaunch = 10e-3, kTotal = 1.0;
  *iterations = 1000;
  bench.run(*iterations);
  const double probe = bench.run(*iterations).seconds;
  *iterations = static_cast<int>(std::clamp(*iterations * kLaunch / probe, 1000.0, 1e8));
  std::vector<Reading> readings;
  for (double total = 0; total < kTotal || readings.size() < 8;) {
    readings.push_back(bench.run(*iterations));
    total += readings.back().seconds;
  }
  readings.erase(readings.begin(), readings.begin() + readings.size() / 2);
  const auto middle = readings.begin() + readings.size() / 2;
  std::nth_element(readings.begin(), middle, readings.end(),
                   [](const Reading& a, const Reading& b) { return a.seconds < b.seconds; });
  return *middle;
}

}  // namespace

int main() {
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  const int compute_capability = 10 * device.major + device.minor;
  std::mt19937 random(0);
  std::vector<uint32_t> noise(kOperandWords);
  for (uint32_t& word : noise) word = random();
  const std::vector<uint32_t> zeros(kOperandWords, 0);

  std::printf("{\"gpu\": \"%s\", \"multiprocessors\": %d, \"peaks\": [", device.name, device.multiProcessorCount);
  const char* separator = "\n";
  for (const Instruction& instruction : kInstructions) {
    if (compute_capability < instruction.least_cc || compute_capability > instruction.most_cc) continue;
    Bench bench(instruction, device.multiProcessorCount);
    for (const uint32_t word : {kOnes, 0u}) {
      if (bench.is_right(word)) continue;
      std::fprintf(stderr, "%s computes wrong sums\n", instruction.name);
      return 1;
    }
    for (const bool is_random : {true, false}) {
      bench.fill(is_random ? noise : zeros);
      int iterations = 0;
      const Reading reading = sustained(bench, &iterations);
      const double products = instruction.products * bench.blocks() * iterations;
      std::printf(
          "%s  {\"instruction\": \"%s\", \"operands\": \"%s\", \"pops\": %.4f, \"sm_mhz\": %.0f, "
          "\"products_per_clock_per_sm\": %.0f}",
          separator, instruction.name, is_random ? "random" : "zeros", 2 * products / reading.seconds / 1e15,
          reading.clocks / reading.seconds / 1e6, products / reading.clocks / device.multiProcessorCount);
      separator = ",\n";
    }
  }
  std::printf("\n]}\n");
  return 0;
}

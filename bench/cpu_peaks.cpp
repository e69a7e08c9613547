// What the inner loops of the CPU kernels can do at most on the machine at hand, and how fast it reads memory. A
// program of its own:
//
//   g++ -O3 -std=c++20 bench/cpu_peaks.cpp -o cpu_peaks && ./cpu_peaks <bytes of one L2> <bytes of the L3> <seconds>
//
// Prints JSON. A loop is a kernel's main loop and nothing else: operands lie in the L1 ready to be used, sums stay in
// registers, nothing is staged, finished or stored. So it is a bound of that algorithm on one core, not a model of
// ports. <seconds> is how long each figure is looked for. Every loop is first checked against plain bit counts. The
// best of many short runs counts, because whatever else happens on a machine only makes a run longer.
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

namespace {

// ---- operands: one tile of a product, in the L1 ---------------------------------

constexpr int kWords = 48;     // 64-bit words of one operand row
constexpr int kPixels = 16;    // rows of activations
constexpr int kChannels = 96;  // rows of weights, at most

struct Operands {
  uint64_t x[kPixels][kWords];
  uint64_t w[kChannels][kWords];
};

int differing(const Operands& o, int pixel, int channel, int bits) {
  int count = 0;
  for (int i = 0; i < bits; ++i) count += (o.x[pixel][i / 64] >> (i % 64) ^ o.w[channel][i / 64] >> (i % 64)) & 1;
  return count;
}

uint32_t unit(const uint64_t* row, int index) { return static_cast<uint32_t>(row[index / 2] >> (32 * (index % 2))); }
int nibble(const uint64_t* row, int index) { return static_cast<int>(row[index / 16] >> (4 * (index % 16)) & 15); }

// ---- AVX2: a byte shuffle looks up what four weights of 32 channels differ from the activations of two pixels -----

namespace lookup {

constexpr int kPairs = 1, kVectors = 3, kLanes = 32;
constexpr int kSteps = 63;  // of four bits; three lookups are added before they are parted
constexpr int kBits = 4 * kSteps;
constexpr double kProducts = 2.0 * kPairs * kVectors * kLanes * kBits;

alignas(64) uint8_t tables[256][16];
alignas(64) uint8_t weights[kSteps][kVectors][kLanes];
const uint8_t* chosen[kSteps][kPairs];
alignas(64) uint8_t sums[2 * kPairs][kVectors][kLanes];

void prepare(const Operands& o) {
  for (int pair = 0; pair < 256; ++pair)
    for (int w = 0; w < 16; ++w)
      tables[pair][w] = static_cast<uint8_t>(std::popcount(static_cast<unsigned>((pair & 15) ^ w)) +
                                             16 * std::popcount(static_cast<unsigned>((pair >> 4) ^ w)));
  for (int step = 0; step < kSteps; ++step) {
    for (int n = 0; n < kVectors * kLanes; ++n)
      weights[step][n / kLanes][n % kLanes] = static_cast<uint8_t>(nibble(o.w[n], step));
    for (int p = 0; p < kPairs; ++p)
      chosen[step][p] = tables[nibble(o.x[2 * p], step) | nibble(o.x[2 * p + 1], step) << 4];
  }
}

inline const __m256i* vector(const uint8_t* at) { return reinterpret_cast<const __m256i*>(at); }

__attribute__((target("avx2"))) inline __m256i table(const uint8_t* at) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(at)));
}

__attribute__((target("avx2"), noinline)) void run(int times) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int t = 0; t < times; ++t) {
    asm volatile("" ::: "memory");
    __m256i first[kPairs][kVectors] = {}, second[kPairs][kVectors] = {};
    for (int step = 0; step < kSteps; step += 3) {
#pragma GCC unroll 3
      for (int p = 0; p < kPairs; ++p) {
        const __m256i t0 = table(chosen[step][p]), t1 = table(chosen[step + 1][p]), t2 = table(chosen[step + 2][p]);
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          const __m256i two = _mm256_add_epi8(_mm256_shuffle_epi8(t0, *vector(weights[step][v])),
                                              _mm256_shuffle_epi8(t1, *vector(weights[step + 1][v])));
          const __m256i both = _mm256_add_epi8(two, _mm256_shuffle_epi8(t2, *vector(weights[step + 2][v])));
          first[p][v] = _mm256_add_epi8(first[p][v], _mm256_and_si256(both, low));
          second[p][v] = _mm256_add_epi8(second[p][v], _mm256_and_si256(_mm256_srli_epi16(both, 4), low));
        }
      }
    }
    for (int p = 0; p < kPairs; ++p) {
      std::memcpy(sums[2 * p], first[p], sizeof first[p]);
      std::memcpy(sums[2 * p + 1], second[p], sizeof second[p]);
    }
  }
}

bool is_right(const Operands& o) {
  run(1);
  for (int p = 0; p < 2 * kPairs; ++p)
    for (int n = 0; n < kVectors * kLanes; ++n)
      if (sums[p][n / kLanes][n % kLanes] != differing(o, p, n, kBits)) return false;
  return true;
}

}  // namespace lookup

// ---- AVX-512: 16 channels a register, an activation word of 32 bits broadcast to all ------------------------------

namespace vector512 {

constexpr int kLanes = 16, kUnits = 2 * kWords;
constexpr int kBits = 32 * kUnits;

alignas(64) uint32_t weights[kUnits][kLanes];  // units as they are, or prefixes: each the XOR of all up to it
alignas(64) uint32_t activations[kPixels][kUnits];
alignas(64) uint32_t sums[kPixels][kLanes];

template <bool kPrefixes>
void prepare(const Operands& o) {
  const auto fill = [](const uint64_t* row, auto&& put) {
    uint32_t prefix = 0;
    for (int u = 0; u < kUnits; ++u) put(u, kPrefixes ? prefix ^= unit(row, u) : unit(row, u));
  };
  for (int n = 0; n < kLanes; ++n) fill(o.w[n], [n](int u, uint32_t value) { weights[u][n] = value; });
  for (int p = 0; p < kPixels; ++p) fill(o.x[p], [p](int u, uint32_t value) { activations[p][u] = value; });
}

// XOR, population count, addition.
constexpr int kPopcountTile = 8;

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vpopcntdq"), noinline)) void popcount(int times) {
  for (int t = 0; t < times; ++t) {
    asm volatile("" ::: "memory");
    __m512i sum[kPopcountTile] = {};
    for (int u = 0; u < kUnits; ++u) {
      const __m512i w = _mm512_load_si512(weights[u]);
#pragma GCC unroll 8
      for (int p = 0; p < kPopcountTile; ++p) {
        const __m512i x = _mm512_set1_epi32(static_cast<int>(activations[p][u]));
        sum[p] = _mm512_add_epi32(sum[p], _mm512_popcnt_epi32(_mm512_xor_si512(x, w)));
      }
    }
    for (int p = 0; p < kPopcountTile; ++p) _mm512_store_si512(sums[p], sum[p]);
  }
}

// On prefixes a difference is a toggle of x ^ w, and of toggles only the falling edges are counted, which a ternary
// operation finds in two units at once: ones = 2 * falling edges + last - first, and first is 0.
constexpr int kEdgesTile = 8;

__attribute__((target("avx512f,avx512bw,avx512vl,avx512vpopcntdq"), noinline)) void edges(int times) {
  for (int t = 0; t < times; ++t) {
    asm volatile("" ::: "memory");
    __m512i sum[kEdgesTile] = {}, last[kEdgesTile] = {};
    for (int u = 0; u < kUnits; u += 2) {
      const __m512i w0 = _mm512_load_si512(weights[u]), w1 = _mm512_load_si512(weights[u + 1]);
#pragma GCC unroll 8
      for (int p = 0; p < kEdgesTile; ++p) {
        const __m512i u0 = _mm512_xor_si512(_mm512_set1_epi32(static_cast<int>(activations[p][u])), w0);
        const __m512i u1 = _mm512_xor_si512(_mm512_set1_epi32(static_cast<int>(activations[p][u + 1])), w1);
        // (last, u0, u1): 1 where last = 1 and u0 = 0, or u0 = 1 and u1 = 0.
        const __m512i falls = _mm512_ternarylogic_epi32(last[p], u0, u1, 0x74);
        sum[p] = _mm512_add_epi32(sum[p], _mm512_popcnt_epi32(falls));
        last[p] = u1;
      }
    }
    for (int p = 0; p < kEdgesTile; ++p) {
      const __m512i twice = _mm512_add_epi32(sum[p], sum[p]);
      _mm512_store_si512(sums[p], _mm512_add_epi32(twice, _mm512_popcnt_epi32(last[p])));
    }
  }
}

template <void (*kRun)(int), int kTile>
bool is_right(const Operands& o) {
  kRun(1);
  for (int p = 0; p < kTile; ++p)
    for (int n = 0; n < kLanes; ++n)
      if (static_cast<int>(sums[p][n]) != differing(o, p, n, kBits)) return false;
  return true;
}

}  // namespace vector512

// ---- eight bits: what a bit is spent on where bytes are multiplied ----------------------------------------------

namespace bytes512 {

constexpr int kTile = 8, kVectors = 2, kLanes = 16, kSteps = 16;  // a step is four bytes
constexpr double kProducts = 4.0 * kTile * kVectors * kLanes * kSteps;

alignas(64) int8_t weights[kSteps][kVectors][kLanes][4];
alignas(64) uint8_t activations[kTile][kSteps][4];
alignas(64) int32_t sums[kTile][kVectors][kLanes];

void prepare(const Operands& o) {
  const auto* x = reinterpret_cast<const uint8_t*>(o.x);
  const auto* w = reinterpret_cast<const int8_t*>(o.w);
  std::memcpy(activations, x, sizeof activations);
  std::memcpy(weights, w, sizeof weights);
}

__attribute__((target("avx512f,avx512vnni"), noinline)) void run(int times) {
  for (int t = 0; t < times; ++t) {
    asm volatile("" ::: "memory");
    __m512i sum[kTile][kVectors] = {};
    for (int s = 0; s < kSteps; ++s) {
      __m512i w[kVectors];
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_load_si512(weights[s][v]);
#pragma GCC unroll 8
      for (int p = 0; p < kTile; ++p) {
        int four;
        std::memcpy(&four, activations[p][s], sizeof four);
        for (int v = 0; v < kVectors; ++v) sum[p][v] = _mm512_dpbusd_epi32(sum[p][v], _mm512_set1_epi32(four), w[v]);
      }
    }
    for (int p = 0; p < kTile; ++p)
      for (int v = 0; v < kVectors; ++v) _mm512_store_si512(sums[p][v], sum[p][v]);
  }
}

bool is_right() {
  run(1);
  for (int p = 0; p < kTile; ++p)
    for (int v = 0; v < kVectors; ++v)
      for (int n = 0; n < kLanes; ++n) {
        int sum = 0;
        for (int s = 0; s < kSteps; ++s)
          for (int i = 0; i < 4; ++i) sum += activations[p][s][i] * weights[s][v][n][i];
        if (sum != sums[p][v][n]) return false;
      }
  return true;
}

}  // namespace bytes512

// ---- AMX: two by two tiles of 16 x 16 sums, 64 bytes deep --------------------------------------------------------

namespace amx {

constexpr int kRows = 16, kDepth = 64, kSteps = 4;
constexpr double kProducts = 4.0 * kRows * 16 * kDepth * kSteps;

struct Config {
  uint8_t palette = 1, start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

alignas(64) int8_t a[kSteps][2][kRows][kDepth];  // 16 rows of 64 bytes
alignas(64) int8_t b[kSteps][2][kRows][kDepth];  // four rows of the depth at a time, 16 columns
alignas(64) int32_t sums[2][2][kRows][16];

void prepare(const Operands& o) {
  std::memcpy(a, o.x, std::min(sizeof a, sizeof o.x));
  std::memcpy(b, o.w, std::min(sizeof b, sizeof o.w));
}

// Linux gives a process the tiles only when it asks for them.
bool permitted() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
}

__attribute__((target("amx-tile,amx-int8"), noinline)) void run(int times) {
  alignas(64) Config config;
  for (int i = 0; i < 8; ++i) config.row_bytes[i] = 64, config.rows[i] = kRows;
  asm volatile("" ::"r"(&config) : "memory");  // gcc 12 does not see that the tiles are configured from memory
  _tile_loadconfig(&config);
  for (int t = 0; t < times; ++t) {
    asm volatile("" ::: "memory");
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int s = 0; s < kSteps; ++s) {
      _tile_loadd(4, a[s][0], kDepth);
      _tile_loadd(6, b[s][0], kDepth);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, b[s][1], kDepth);
      _tile_dpbssd(1, 4, 7);
      _tile_loadd(5, a[s][1], kDepth);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    }
  }
  _tile_stored(0, sums[0][0], 64);
  _tile_stored(1, sums[0][1], 64);
  _tile_stored(2, sums[1][0], 64);
  _tile_stored(3, sums[1][1], 64);
  asm volatile("" ::: "memory");
  _tile_release();
}

bool is_right() {
  run(1);
  for (int i = 0; i < 2; ++i)
    for (int j = 0; j < 2; ++j)
      for (int m = 0; m < kRows; ++m)
        for (int n = 0; n < 16; ++n) {
          int sum = 0;
          for (int s = 0; s < kSteps; ++s)
            for (int k = 0; k < kDepth; ++k) sum += a[s][i][m][k] * b[s][j][k / 4][4 * n + k % 4];
          if (sum != sums[i][j][m][n]) return false;
        }
  return true;
}

}  // namespace amx

// ---- clock and memory ------------------------------------------------------------------------------------------

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Cycles: a multiplication waits three of them for the one before (all of AMD's since Zen, of Intel's since Nehalem).
constexpr int kMultiplications = 100;
constexpr double kClockCycles = 3.0 * kMultiplications;

__attribute__((noinline)) void multiply(int times) {
  uint64_t x = 3;
  for (int t = 0; t < times; ++t) {
#pragma GCC unroll 100
    for (int i = 0; i < kMultiplications; ++i) asm volatile("imul %0, %0" : "+r"(x));
  }
}

// Eight sums of vectors, so that additions do not wait for each other.
typedef uint64_t Vector __attribute__((vector_size(64)));

__attribute__((target_clones("avx512f", "avx2", "default"), noinline)) uint64_t sum_of(const Vector* data,
                                                                                       int64_t count) {
  Vector sums[8] = {};
  for (int64_t i = 0; i < count; i += 8)
    for (int j = 0; j < 8; ++j) sums[j] += data[i + j];
  uint64_t total = 0;
  for (const Vector& sum : sums)
    for (int lane = 0; lane < 8; ++lane) total += sum[lane];
  return total;
}

// Bytes a second of reading the same buffer over and over.
double read_bandwidth(int64_t bytes, double seconds_in_all) {
  const int64_t count = std::max<int64_t>(8, bytes / static_cast<int64_t>(sizeof(Vector)) / 8 * 8);
  auto* data = static_cast<Vector*>(std::aligned_alloc(4096, (count * sizeof(Vector) + 4095) / 4096 * 4096));
  if (data == nullptr) return 0;
  for (int64_t i = 0; i < count; ++i) data[i] = Vector{} + static_cast<uint64_t>(i);
  const uint64_t expected = sum_of(data, count);
  const int passes = static_cast<int>(std::max<int64_t>(1, (int64_t{1} << 24) / bytes));
  double best = 0;
  for (double end = now() + seconds_in_all; now() < end || best == 0;) {
    const double begin = now();
    uint64_t total = 0;
    for (int pass = 0; pass < passes; ++pass) {
      asm volatile("" ::: "memory");
      total += sum_of(data, count);
    }
    const double seconds = now() - begin;
    if (total != expected * static_cast<uint64_t>(passes)) std::abort();
    best = std::max(best, static_cast<double>(passes) * count * sizeof(Vector) / seconds);
  }
  std::free(data);
  return best;
}

// ---- the list ----------------------------------------------------------------------------------------------------

struct Loop {
  const char* name;
  const char* isa;  // whose kernels have it as their main loop; null: a peer's
  bool (*supported)();
  void (*prepare)(const Operands&);
  bool (*is_right)(const Operands&);
  void (*run)(int times);
  double products;  // of one time
};

bool has_avx512() {
  return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vpopcntdq");
}

// cpuid leaf 7: AMX-INT8. gcc 12 knows no name for it.
bool has_amx() {
  unsigned eax = 7, ebx, ecx = 0, edx;
  asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
  return (edx >> 25 & 1) != 0 && amx::permitted();
}

constexpr double kUnitProducts = 1.0 * vector512::kLanes * vector512::kBits;

const Loop kLoops[] = {
    {"lookup", "avx2", [] { return __builtin_cpu_supports("avx2") != 0; }, lookup::prepare, lookup::is_right,
     lookup::run, lookup::kProducts},
    {"popcount", "avx512", has_avx512, vector512::prepare<false>,
     vector512::is_right<vector512::popcount, vector512::kPopcountTile>, vector512::popcount,
     vector512::kPopcountTile * kUnitProducts},
    {"edges", "avx512", has_avx512, vector512::prepare<true>,
     vector512::is_right<vector512::edges, vector512::kEdgesTile>, vector512::edges,
     vector512::kEdgesTile * kUnitProducts},
    {"tdpbssd", "amx", has_amx, amx::prepare, [](const Operands&) { return amx::is_right(); }, amx::run,
     amx::kProducts},
    {"vpdpbusd", nullptr, [] { return __builtin_cpu_supports("avx512vnni") != 0; }, bytes512::prepare,
     [](const Operands&) { return bytes512::is_right(); }, bytes512::run, bytes512::kProducts},
};

// Times a second, the best of runs of about a millisecond.
double best_rate(void (*run)(int), double seconds_in_all) {
  int times = 100;
  for (;;) {
    const double begin = now();
    run(times);
    if (now() - begin > 0.5e-3) break;
    times *= 2;
  }
  double best = 0;
  for (double end = now() + seconds_in_all; now() < end || best == 0;) {
    const double begin = now();
    run(times);
    best = std::max(best, times / (now() - begin));
  }
  return best;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "usage: cpu_peaks <bytes of one L2> <bytes of the L3> <seconds for each figure>\n");
    return 2;
  }
  const int64_t l2 = std::atoll(argv[1]), l3 = std::atoll(argv[2]);
  const double seconds = std::atof(argv[3]);
  static Operands operands;
  std::mt19937_64 random(0);
  for (auto& row : operands.x)
    for (uint64_t& word : row) word = random();
  for (auto& row : operands.w)
    for (uint64_t& word : row) word = random();

  const double clock = best_rate(multiply, seconds) * kClockCycles;
  std::printf("{\"clock_ghz\": %.3f,\n \"loops\": [", clock / 1e9);
  const char* separator = "\n";
  for (const Loop& loop : kLoops) {
    if (!loop.supported()) continue;
    loop.prepare(operands);
    if (!loop.is_right(operands)) {
      std::fprintf(stderr, "the loop %s computes wrong sums\n", loop.name);
      return 1;
    }
    const double products = best_rate(loop.run, seconds) * loop.products;
    std::printf("%s  {\"loop\": \"%s\", \"isa\": \"%s\", \"gops\": %.1f, \"products_per_cycle\": %.1f}", separator,
                loop.name, loop.isa == nullptr ? "" : loop.isa, 2 * products / 1e9, products / clock);
    separator = ",\n";
  }
  constexpr int64_t kMega = 1 << 20;
  const struct {
    const char* name;
    int64_t bytes;
  } levels[] = {{"l1", 16 << 10},
                {"l2", l2 / 2},
                {"l3", std::max(4 * l2, l3 / 4)},
                {"memory", std::clamp<int64_t>(4 * l3, 256 * kMega, 1024 * kMega)}};
  std::printf("],\n \"read\": {");
  separator = "";
  for (const auto& level : levels) {
    std::printf("%s\"%s\": {\"bytes\": %lld, \"gb_per_s\": %.1f}", separator, level.name,
                static_cast<long long>(level.bytes), read_bandwidth(level.bytes, seconds) / 1e9);
    separator = ", ";
  }
  std::printf("}}\n");
  return 0;
}

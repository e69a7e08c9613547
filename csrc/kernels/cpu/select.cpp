#include "kernels/cpu/select.h"

#include <atomic>
#include <cstring>
#include <iterator>

#include "kernels/cpu/isa.h"

namespace bitnas::cpu {

// Defined in <family>_<isa>.cpp.
extern const StripKernel xnor_scalar, xnor_avx2, xnor_avx512_popcount, xnor_avx512_edges;
extern const TileKernel amx_direct, amx_bits, amx_winograd1d, amx_winograd2d;

namespace {

// Slowest first within an ISA: the last one is its best for large layers.
constexpr Kernel kKernels[] = {
    {"scalar", kScalar, &xnor_scalar, nullptr},
#if defined(BITNAS_X86)
    {"avx2_lookup", kAvx2, &xnor_avx2, nullptr},
    {"avx512_popcount", kAvx512, &xnor_avx512_popcount, nullptr},
    {"avx512_edges", kAvx512, &xnor_avx512_edges, nullptr},
    {"amx_direct", kAmx, nullptr, &amx_direct},
    {"amx_bits", kAmx, nullptr, &amx_bits},
    {"amx_winograd1d", kAmx, nullptr, &amx_winograd1d},
    {"amx_winograd2d", kAmx, nullptr, &amx_winograd2d},
#endif
};

constexpr int kAuto = -1;

std::atomic<int>& forced() {
  static std::atomic<int> index{kAuto};
  return index;
}

int find(const char* name) {
  for (int i = 0; i < kernel_count(); ++i)
    if (std::strcmp(kKernels[i].name, name) == 0) return i;
  return kAuto;
}

// Clocks of 16 channels of one pixel, in quarters of a 512-bit operation's share of two: what a unit of 32 products
// takes, what edges pays at both ends of a run and once beside. Fitted to layers of 18 to 144 units (Zen 4).
bool edges_win(int64_t runs, int64_t run_units) {
  const int64_t units = runs * run_units;
  return 5 * units + 4 * runs + 18 < 6 * units;
}

const char* best_avx512(const Conv2dShape& s) {
  const int64_t run_units = run_taps(s) * ((s.group_channels() + 31) / 32);
  return edges_win(s.taps() / run_taps(s), run_units) ? "avx512_edges" : "avx512_popcount";
}

// Reckoned from the kernels' products, and the bytes that they read from each cache, at a Granite Rapids machine's
// rates; no machine with AMX has confirmed it yet. Sizes are int8 weights, which two megabytes of L2 hold or not.
const char* best_amx(const Conv2dShape& s, int64_t positions) {
  constexpr int64_t kTile = 16;    // fewer positions leave most of the tile unit idle
  constexpr int64_t kFew = 128;    // positions that do not repay reading large weights from L3
  constexpr int64_t kSome = 256;   // that repay reading the twofold weights of F(4, 3) from there
  constexpr int64_t kMany = 2048;  // that repay the fourfold ones of F(4x4, 3x3)
  constexpr int64_t kLarge = 1'000'000, kTwofold = 1'200'000;  // bytes
  const int64_t channels = s.group_channels();
  const int64_t bytes = s.taps() * channels * s.out_channels;
  const bool large = bytes > kLarge;
  if (positions == 0) positions = large ? kFew / 2 : kFew;  // one image, deep in a network or early
  if (positions < kTile) return best_avx512(s);
  if (amx_winograd2d.computes(s) && channels >= 512 && positions >= kMany) return "amx_winograd2d";
  if (amx_winograd1d.computes(s) && channels >= 128 &&
      (positions >= kSome || (positions >= kFew && 2 * bytes <= kTwofold)))
    return "amx_winograd1d";
  return large && positions < kFew ? "amx_bits" : "amx_direct";
}

const char* best(int isa, const Conv2dShape& s, int64_t positions) {
  switch (isa) {
    case kAvx2: return "avx2_lookup";
    case kAvx512: return best_avx512(s);
    case kAmx: return best_amx(s, positions);
    default: return "scalar";
  }
}

}  // namespace

int kernel_count() { return static_cast<int>(std::size(kKernels)); }
const Kernel& kernel(int index) { return kKernels[index]; }

bool kernel_supported(int index) { return index >= 0 && index < kernel_count() && isa_supported(kKernels[index].isa); }

bool kernel_computes(int index, const Conv2dShape& shape) {
  return kKernels[index].strip != nullptr || kKernels[index].tile->computes(shape);
}

int choose_kernel(int isa, const Conv2dShape& shape, int64_t positions) {
  const int wanted = forced().load(std::memory_order_relaxed);
  if (wanted != kAuto && kKernels[wanted].isa == isa && kernel_computes(wanted, shape)) return wanted;
  return find(best(isa, shape, positions));
}

bool select_kernel(const char* name) {
  const bool automatic = std::strcmp(name, "auto") == 0;
  const int index = automatic ? kAuto : find(name);
  if (!automatic && !kernel_supported(index)) return false;
  forced().store(index, std::memory_order_relaxed);
  return true;
}

}  // namespace bitnas::cpu

#include "kernels/cuda/select.h"

#include <atomic>
#include <cstring>

namespace bitnas::cuda {
namespace {

// Best last within a family of equal rights; choose() says which of them when.
constexpr Kernel kKernels[] = {
    {"popc", Family::kPopc, 1, 32, 75, 9999},
    {"int8_16x64", Family::kInt8, 16, 64, 80, 9999},
    {"int8_64x64", Family::kInt8, 64, 64, 80, 9999},
    {"int8_128x64", Family::kInt8, 128, 64, 80, 9999},
    {"mma_16x64", Family::kMma, 16, 64, 80, 90},
    {"mma_64x64", Family::kMma, 64, 64, 80, 90},
    {"mma_128x64", Family::kMma, 128, 64, 80, 90},
    {"mma_128x128", Family::kMma, 128, 128, 80, 90},
    {"wgmma_128x128", Family::kWgmma, 128, 128, 90, 90},
    {"wgmma_128x256", Family::kWgmma, 128, 256, 90, 90},
};
constexpr int kCount = static_cast<int>(sizeof(kKernels) / sizeof(kKernels[0]));

std::atomic<int> forced{-1};

constexpr int64_t kMaxTensorMapRows = int64_t{1} << 30;  // coordinates of bulk copies are int32

int64_t tiles(const Problem& p, const Kernel& k) {
  return (p.m + k.tile_m - 1) / k.tile_m * ((p.n + k.tile_n - 1) / k.tile_n) * p.groups;
}

bool computes(const Kernel& k, const Problem& p) {
  switch (k.family) {
    case Family::kPopc: return true;
    case Family::kMma:
    case Family::kInt8: return !p.many_borders;
    case Family::kWgmma: return p.matrix && p.aligned && p.m < kMaxTensorMapRows;
  }
  return false;
}

// Bit products that an SM does per clock, for the choice alone: what matters is how families and tiles rank.
// Large tiles reuse operands, so small ones pay in loads (docs/cuda.md has where the numbers come from).
double rate(const Kernel& k) {
  const double reuse = static_cast<double>(k.tile_m) * k.tile_n / (k.tile_m + k.tile_n) / 64;  // 1 for 128x128
  const double fed = reuse / (reuse + 0.25) * 1.25;
  switch (k.family) {
    case Family::kPopc: return 300;
    case Family::kInt8: return 4000 * fed;
    case Family::kMma: return 17000 * fed;
    case Family::kWgmma: return 26000 * fed;
  }
  return 1;
}

// Clocks of one wave's tile: filling the pipeline and storing, then the product itself.
double clocks(const Kernel& k, const Problem& p, int multiprocessors, int64_t splits) {
  constexpr double kFixed = 1500, kSplit = 3000;  // a split sum needs zeros before and an epilogue after
  const double waves = static_cast<double>((tiles(p, k) * splits + multiprocessors - 1) / multiprocessors);
  const double slab_words = static_cast<double>((p.words + 3) / 4 * 4) / static_cast<double>(splits);
  const double product = slab_words * 64 * k.tile_m * k.tile_n / rate(k);
  return waves * (product + 2.0 * k.tile_m * k.tile_n / 128) + kFixed + (splits > 1 ? kSplit : 0);
}

constexpr int64_t kSlabWords = 16;

}  // namespace

int kernel_count() { return kCount; }
const Kernel& kernel(int index) { return kKernels[index]; }
bool kernel_runs_on(int index, int compute_capability) {
  return kKernels[index].least_cc <= compute_capability && compute_capability <= kKernels[index].most_cc;
}

int forced_kernel() { return forced.load(std::memory_order_relaxed); }

bool force_kernel(const char* name, int compute_capability) {
  if (std::strcmp(name, "auto") == 0) {
    forced.store(-1, std::memory_order_relaxed);
    return true;
  }
  for (int i = 0; i < kCount; ++i) {
    if (std::strcmp(name, kKernels[i].name) == 0 && kernel_runs_on(i, compute_capability)) {
      forced.store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

Choice choose(const Problem& problem, int compute_capability, int multiprocessors) {
  const int wanted = forced_kernel();
  Choice best{0, 1};
  double best_clocks = -1;
  for (int i = 0; i < kCount; ++i) {
    const Kernel& k = kKernels[i];
    if (!kernel_runs_on(i, compute_capability) || !computes(k, problem)) continue;
    if (wanted >= 0 && wanted != i && kernel_runs_on(wanted, compute_capability) && computes(kernel(wanted), problem))
      continue;
    const bool splits = k.family == Family::kMma || k.family == Family::kInt8;
    // A part of fewer than two slabs would spend itself on filling its pipeline.
    const int64_t most = splits ? (problem.words + kSlabWords - 1) / kSlabWords / 2 : 1;
    for (int64_t parts = 1; parts <= (most > 1 ? most : 1) && parts <= 64; parts *= 2) {
      const double took = clocks(k, problem, multiprocessors, parts);
      if (best_clocks < 0 || took < best_clocks) {
        best_clocks = took;
        best = {i, parts};
      }
    }
  }
  return best;
}

}  // namespace bitnas::cuda

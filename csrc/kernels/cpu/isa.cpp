#include "kernels/cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <iterator>

#if defined(BITNAS_X86)
#include "kernels/cpu/amx_permission.h"
#endif

namespace bitnas::cpu {

// Defined in <family>_<isa>.cpp.
void pack_scalar(const PackArgs&, int64_t, int64_t);
void pack_avx2(const PackArgs&, int64_t, int64_t);
void pack_avx512(const PackArgs&, int64_t, int64_t);
extern const FloatConv2dKernel float_conv2d_scalar, float_conv2d_avx2, float_conv2d_avx512;

namespace {

#if defined(BITNAS_X86)
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vpopcntdq");
}
#endif

constexpr Isa kTable[] = {
    {"scalar", [] { return true; }, pack_scalar, &float_conv2d_scalar},
#if defined(BITNAS_X86)
    {"avx2",
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
              __builtin_cpu_supports("popcnt");
     },
     pack_avx2, &float_conv2d_avx2},
    {"avx512", has_avx512, pack_avx512, &float_conv2d_avx512},
    // Its kernels' epilogues, and what it leaves to others, are AVX-512.
    {"amx", [] { return has_avx512() && amx_permitted(); }, pack_avx512, &float_conv2d_avx512},
#endif
};

int default_isa() {
  if (const char* wanted = std::getenv("BITNAS_ISA")) {
    for (int i = 0; i < isa_count(); ++i)
      if (std::strcmp(kTable[i].name, wanted) == 0 && isa_supported(i)) return i;
    // The loader reports an unknown or unsupported name; kernels must still be safe to call.
  }
  int best = 0;
  for (int i = 0; i < isa_count(); ++i)
    if (isa_supported(i)) best = i;
  return best;
}

std::atomic<int>& slot() {
  static std::atomic<int> current{default_isa()};
  return current;
}

}  // namespace

int isa_count() { return static_cast<int>(std::size(kTable)); }
const Isa& isa(int index) { return kTable[index]; }
bool isa_supported(int index) { return index >= 0 && index < isa_count() && kTable[index].supported(); }
int active_isa() { return slot().load(std::memory_order_relaxed); }

bool select_isa(const char* name) {
  for (int i = 0; i < isa_count(); ++i) {
    if (std::strcmp(kTable[i].name, name) == 0 && isa_supported(i)) {
      slot().store(i, std::memory_order_relaxed);
      return true;
    }
  }
  return false;
}

}  // namespace bitnas::cpu

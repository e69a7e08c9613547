// Compiled for any x86-64 CPU: it decides whether the others' instructions may run.
#include "kernels/cpu/amx_permission.h"

#include <cstdlib>
#include <cstring>

#if !defined(BITNAS_AMX_MODEL) && defined(__linux__) && defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace bitnas::cpu {
namespace {

#if defined(BITNAS_AMX_MODEL)

bool ask() { return true; }

#elif defined(__linux__) && defined(__x86_64__)

bool ask() {
  // CPUID leaf 7.
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & kAmxTile) == 0 || (edx & kAmxInt8) == 0) return false;
  // arch_prctl(2). A kernel that does not know the request, or the state component, answers with an error.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

#else

bool ask() { return false; }

#endif

bool refused_by_user() {
  const char* value = std::getenv("BITNAS_NO_AMX");
  return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

bool amx_permitted() {
  static const bool permitted = !refused_by_user() && ask();
  return permitted;
}

}  // namespace bitnas::cpu

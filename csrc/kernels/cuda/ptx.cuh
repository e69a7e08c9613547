// Every PTX operation the kernels use, one inline function each, and nothing else:
// kernels are written against these functions, so that the host model (model/ptx.h),
// which defines the same ones, runs the very same sources on a CPU.
//
// Shared memory is dynamic only: BITNAS_SHARED(name) declares `uint8_t* name`,
// 16-byte aligned; shared_address() turns a pointer into it into the 32-bit address
// that the operations take.
#pragma once

#include <cstdint>

#include "kernels/cuda/runtime.h"

#ifdef BITNAS_CUDA_MODEL
#include "kernels/cuda/model/ptx.h"
#else

#define BITNAS_DEVICE __device__ __forceinline__
#define BITNAS_SHARED(name) extern __shared__ __align__(16) uint8_t name[]
// An upper bound of what the code below it runs on: tensor-core kernels are empty where their instructions are not.
#ifdef __CUDA_ARCH__
#define BITNAS_ARCH __CUDA_ARCH__
#else
#define BITNAS_ARCH 0
#endif

namespace bitnas::cuda::ptx {

BITNAS_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Keeps the compilers from moving loads and stores across. Whole warp. An empty asm holds back the first of them and is
// gone before ptxas, which then may load for many rows at once and spill; but before Hopper __syncwarp is a call
// wherever ptxas cannot see that the warp is whole.
BITNAS_DEVICE void compiler_fence() {
#if BITNAS_ARCH >= 900
  __syncwarp();
#else
  asm volatile("" ::: "memory");
#endif
}

// ---- asynchronous copies, global to shared, sm_80 ---------------------------

// 16 or 8 bytes; zeros where not valid (source is not read, but must be a global address).
template <int bytes>
BITNAS_DEVICE void cp_async(uint32_t to, const void* from, bool valid) {
  static_assert(bytes == 8 || bytes == 16);
  const int read = valid ? bytes : 0;
  if constexpr (bytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(to), "l"(from), "r"(read) : "memory");
}
BITNAS_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are still under way.
template <int pending>
BITNAS_DEVICE void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- fragments and tensor cores, whole warp -----------------------------------

// Four 8x8 matrices of 16-bit elements (8 rows of 16 bytes each). Lane l gives the address of row l % 8 of matrix
// l / 8 and gets, of each matrix, bytes 4 (l % 4) .. + 3 of row l / 4.
BITNAS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

// d += popcount(a AND b), m16n8k256. With g = lane / 4, t = lane % 4:
//   a[0], a[2]: row g, bits 32t.. and 128 + 32t..   a[1], a[3]: row g + 8   b0, b1: column g
//   d[0], d[1]: row g, columns 2t, 2t + 1           d[2], d[3]: row g + 8
// sm_80 to sm_90 only: later chips emulate it, at a fraction of mma_u8's speed.
BITNAS_DEVICE void mma_and_popc(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// d += a * b on unsigned bytes, m16n8k32: the same fragments, with 4t.. and 16 + 4t.. bytes for bits.
BITNAS_DEVICE void mma_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- mbarriers and bulk tensor copies, sm_90 ------------------------------------
// Scopes are the default, the block: wider ones put a fence of the whole GPU into every release of a stage. What they
// guard is written by bulk copies, whose bytes the barrier itself accounts for, and read by tensor cores.

BITNAS_DEVICE void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}
// Makes the initialised barriers visible to the whole cluster and to bulk copies.
BITNAS_DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
BITNAS_DEVICE void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives and announces `bytes` that copies will bring.
BITNAS_DEVICE void mbarrier_arrive_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Arrives at the same barrier of block `rank` of the cluster.
BITNAS_DEVICE void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(barrier),
      "r"(rank)
      : "memory");
}
// Waits until the phase of that parity has completed.
BITNAS_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\nWAIT_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra DONE_%=;\nbra WAIT_%=;\nDONE_%=:\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Plain accesses to shared memory before it come before bulk copies after it.
BITNAS_DEVICE void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

using TensorMap = CUtensorMap;

// A box of a 2-D map (x: byte in the row, y: row) to shared memory; completes bytes on the barrier.
BITNAS_DEVICE void tma_load_2d(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          to),
      "l"(map), "r"(x), "r"(y), "r"(barrier)
      : "memory");
}
// The same into every block of the cluster whose bit is set in `blocks`, at the same offsets there.
BITNAS_DEVICE void tma_load_2d_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier,
                                         uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], "
      "[%1, {%2, %3}], [%4], %5;" ::"r"(to),
      "l"(map), "r"(x), "r"(y), "r"(barrier), "h"(blocks)
      : "memory");
}

// ---- clusters, warp groups --------------------------------------------------------

BITNAS_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Orders execution, and of memory only what other fences have published: a release would wait for every store.
BITNAS_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Barrier `id` (1 to 15) of `threads` threads of the block.
BITNAS_DEVICE void named_barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
BITNAS_DEVICE void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
template <int registers>
BITNAS_DEVICE void setmaxnreg_increase() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
}
template <int registers>
BITNAS_DEVICE void setmaxnreg_decrease() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
}

// ---- wgmma, sm_90a: wgmma.cuh has the product itself ----------------------------------

BITNAS_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
BITNAS_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int pending>
BITNAS_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
}

}  // namespace bitnas::cuda::ptx

#endif

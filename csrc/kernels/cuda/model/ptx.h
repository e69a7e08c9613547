// The operations of ptx.cuh, and the product of wgmma.cuh, on the host model: the same
// names and arguments, what the PTX ISA says they do, and the checks that hardware
// leaves out. What is asynchronous happens as early or as late as the ISA allows, by
// the toss of a coin: if any moment between would give another result, so does an end.
#pragma once

#include "kernels/cuda/model/bulk.h"
#include "kernels/cuda/model/products.h"

// All code is compiled; an operation that the modelled chip lacks stops the run.
#define BITNAS_ARCH 900
#define BITNAS_DEVICE inline
#define BITNAS_SHARED(name) [[maybe_unused]] uint8_t* const name = ::bitnas::cuda::model::Machine::here().block().shared

namespace bitnas::cuda::model {

inline Barrier& named_barrier(int id, int threads, const Operation& by) {
  Machine& machine = Machine::here();
  if (id < 1 || id >= static_cast<int>(kBarriers) || threads < 1 || threads % static_cast<int>(kWarpSize) != 0 ||
      threads > static_cast<int>(machine.block_threads()))
    machine.fail("%s: barrier %d of %d threads", by.text().c_str(), id, threads);
  return machine.block().barriers[id];
}

}  // namespace bitnas::cuda::model

namespace bitnas::cuda::ptx {

using model::Machine;
using model::Operation;
using model::Site;

BITNAS_DEVICE uint32_t shared_address(const void* pointer) { return Machine::here().address_of(pointer); }

// About registers, of which a model has none.
BITNAS_DEVICE void compiler_fence() {}
BITNAS_DEVICE void fence_proxy_async() {}

// ---- asynchronous copies ---------------------------------------------------------------

template <int bytes>
BITNAS_DEVICE void cp_async(uint32_t to, const void* from, bool valid, Site site = Site::current()) {
  static_assert(bytes == 8 || bytes == 16);
  Machine& machine = Machine::here();
  model::Thread& thread = machine.thread();
  const Operation by{"cp_async", site};
  machine.require_capability(80, by);
  if (from == nullptr || reinterpret_cast<uintptr_t>(from) % bytes != 0)
    machine.fail("%s: the source %p is null or not a multiple of %d", by.text().c_str(), from, bytes);
  const model::Copy copy{machine.at(machine.block(), to, bytes, bytes, by), valid ? from : nullptr, bytes,
                         thread.copy_groups, machine.next_asynchronous()};
  machine.check_write(machine.block(), to, copy.stamp, bytes < model::kGranuleBytes, by);
  thread.copies.push_back(copy);
  if (machine.random().one_in(2)) thread.copies.back().land();
  machine.maybe_yield();
}

BITNAS_DEVICE void cp_async_commit() { ++Machine::here().thread().copy_groups; }

template <int pending>
BITNAS_DEVICE void cp_async_wait() {
  model::Thread& thread = Machine::here().thread();
  std::erase_if(thread.copies, [&](model::Copy& copy) {
    if (copy.group >= thread.copy_groups - pending) return false;
    copy.land();
    thread.warp->clock.learn(copy.stamp);
    return true;
  });
}

// ---- fragments and tensor cores -----------------------------------------------------------

BITNAS_DEVICE void ldmatrix_x4(uint32_t (&r)[4], uint32_t address, Site site = Site::current()) {
  struct Frame {
    uint32_t* r;
    uint32_t address;
  } frame{r, address};
  const Operation by{"ldmatrix_x4", site};
  Machine& machine = Machine::here();
  machine.require_capability(75, by);
  machine.meet_all(by, frame, [&](Frame* const* lanes) {
    for (int row = 0; row < 32; ++row) {
      const uint8_t* from = machine.at(machine.block(), lanes[row]->address, 16, 16, by);
      machine.check_read(machine.block(), lanes[row]->address, machine.warp().now, by);
      for (int t = 0; t < 4; ++t) std::memcpy(&lanes[row % 8 * 4 + t]->r[row / 8], from + 4 * t, 4);
    }
  });
}

BITNAS_DEVICE void mma_and_popc(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                Site site = Site::current()) {
  model::MmaFrame frame{d, a, {b0, b1}};
  const Operation by{"mma_and_popc", site};
  Machine::here().require_capability(80, 90, by);
  Machine::here().meet_all(by, frame, model::mma_and_popc);
}

BITNAS_DEVICE void mma_u8(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Site site = Site::current()) {
  model::MmaFrame frame{d, a, {b0, b1}};
  const Operation by{"mma_u8", site};
  Machine::here().require_capability(80, by);
  Machine::here().meet_all(by, frame, model::mma_u8);
}

// ---- mbarriers and bulk tensor copies ---------------------------------------------------

BITNAS_DEVICE void mbarrier_init(uint32_t barrier, int arrivals, Site site = Site::current()) {
  const Operation by{"mbarrier_init", site};
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  if (arrivals < 1 || arrivals >= 1 << 20) machine.fail("%s: %d arrivals", by.text().c_str(), arrivals);
  model::Block& block = machine.block();
  const uint64_t tag = model::mbarrier_tag(barrier);
  std::memcpy(machine.at(block, barrier, sizeof tag, sizeof tag, by), &tag, sizeof tag);
  std::erase_if(block.mbarriers, [&](const model::Mbarrier& old) { return old.address == barrier; });
  block.mbarriers.push_back({barrier, arrivals, arrivals, 0, 0, machine.new_agent(), {}, {}});
}
BITNAS_DEVICE void mbarrier_init_fence() {}

BITNAS_DEVICE void mbarrier_arrive(uint32_t barrier, Site site = Site::current()) {
  model::mbarrier_arrive(Machine::here().block(), barrier, 0, {"mbarrier_arrive", site});
}
BITNAS_DEVICE void mbarrier_arrive_expect(uint32_t barrier, int bytes, Site site = Site::current()) {
  model::mbarrier_arrive(Machine::here().block(), barrier, bytes, {"mbarrier_arrive_expect", site});
}
BITNAS_DEVICE void mbarrier_arrive_remote(uint32_t barrier, uint32_t rank, Site site = Site::current()) {
  const Operation by{"mbarrier_arrive_remote", site};
  model::mbarrier_arrive(Machine::here().block_of_rank(rank, by), barrier, 0, by);
}

BITNAS_DEVICE void mbarrier_wait(uint32_t barrier, uint32_t parity, Site site = Site::current()) {
  const Operation by{"mbarrier_wait", site};
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  if (parity > 1) machine.fail("%s: parity %u", by.text().c_str(), parity);
  const auto at = [&]() -> model::Mbarrier& { return model::mbarrier_at(machine.block(), barrier, by); };
  // A phase may begin and end before a waiting thread looks again, as on hardware: it then waits on.
  while ((at().phase & 1) == parity) machine.wait_in(at().waiting, by);
  machine.acquire(at().handover);
}

using TensorMap = CUtensorMap;

BITNAS_DEVICE void tma_load_2d(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier,
                               Site site = Site::current()) {
  model::start_transfer(Machine::here().block(), to, *map, x, y, barrier, {"tma_load_2d", site});
  Machine::here().maybe_yield();
}
BITNAS_DEVICE void tma_load_2d_multicast(uint32_t to, const TensorMap* map, int x, int y, uint32_t barrier,
                                         uint16_t blocks, Site site = Site::current()) {
  const Operation by{"tma_load_2d_multicast", site};
  for (uint32_t rank = 0; blocks >> rank != 0; ++rank)
    if (blocks >> rank & 1) model::start_transfer(Machine::here().block_of_rank(rank, by), to, *map, x, y, barrier, by);
  Machine::here().maybe_yield();
}

// ---- clusters, warp groups ------------------------------------------------------------------

BITNAS_DEVICE uint32_t cluster_rank() { return Machine::here().block().rank; }
BITNAS_DEVICE void cluster_sync(Site site = Site::current()) {
  const Operation by{"cluster_sync", site};
  Machine& machine = Machine::here();
  machine.require_capability(90, by);
  machine.synchronise(machine.cluster_barrier(), machine.block_threads() * machine.cluster_blocks(), by);
}

BITNAS_DEVICE void named_barrier_sync(int id, int threads, Site site = Site::current()) {
  const Operation by{"named_barrier_sync", site};
  Machine::here().meet_all(by);
  Machine::here().synchronise(model::named_barrier(id, threads, by), threads, by);
}
BITNAS_DEVICE void named_barrier_arrive(int id, int threads, Site site = Site::current()) {
  const Operation by{"named_barrier_arrive", site};
  Machine::here().meet_all(by);
  model::Barrier& barrier = model::named_barrier(id, threads, by);
  Machine::here().release(barrier.handover);
  Machine::here().arrive(barrier, threads, by);
}

template <int registers>
BITNAS_DEVICE void setmaxnreg_increase(Site site = Site::current()) {
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0);
  model::set_max_registers(registers, {"setmaxnreg_increase", site});
}
template <int registers>
BITNAS_DEVICE void setmaxnreg_decrease(Site site = Site::current()) {
  static_assert(registers >= 24 && registers <= 256 && registers % 8 == 0);
  model::set_max_registers(registers, {"setmaxnreg_decrease", site});
}

// ---- wgmma ------------------------------------------------------------------------------------

BITNAS_DEVICE void wgmma_fence(Site site = Site::current()) {
  Machine::here().meet_all({"wgmma_fence", site});
  Machine::here().warp().fenced = true;
}

// d (+)= popcount(a AND b), m64 n k256, from shared memory; d[4 j + 2 h + c]: row 16 warp + 8 h + lane / 4,
// column 8 j + 2 (lane % 4) + c. Until wgmma_wait has let it through, d is not to be touched.
template <int n>
BITNAS_DEVICE void wgmma_and_popc(int (&d)[n / 2], uint64_t descriptor_a, uint64_t descriptor_b, bool accumulate,
                                  Site site = Site::current()) {
  static_assert(n == 8 || n == 24 || (n % 16 == 0 && n >= 16 && n <= 256), "integer wgmma has no other widths");
  model::wgmma(d, n, descriptor_a, descriptor_b, accumulate, {"wgmma_and_popc", site});
}

BITNAS_DEVICE void wgmma_commit(Site site = Site::current()) {
  char nothing = 0;
  Machine& machine = Machine::here();
  machine.meet_all({"wgmma_commit", site}, nothing, [&](char* const*) { ++machine.warp().product_groups; });
}
template <int pending>
BITNAS_DEVICE void wgmma_wait(Site site = Site::current()) {
  char nothing = 0;
  Machine& machine = Machine::here();
  machine.meet_all({"wgmma_wait", site}, nothing,
                   [&](char* const*) { model::finish_products(machine.warp(), pending); });
}

}  // namespace bitnas::cuda::ptx

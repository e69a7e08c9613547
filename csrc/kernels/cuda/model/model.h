// The machine that runs kernels on a CPU: every CUDA thread of a cluster is a fibre, and
// one of those that can go on is drawn at random whenever the running one has to wait.
// Operations (runtime.h, ptx.h) are written against Machine; README.md says what for.
#pragma once

#include <algorithm>
#include <bit>
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "kernels/cuda/model/state.h"

inline thread_local uint3 threadIdx, blockIdx;
inline thread_local dim3 blockDim, gridDim;

namespace bitnas::cuda::model {

class Machine {
 public:
  // Each thread of the host has its own: they may launch at the same time.
  static Machine& here() {
    if (here_ == nullptr) {
      static thread_local const auto owner = std::make_unique<Machine>();
      here_ = owner.get();
    }
    return *here_;
  }

  Machine() = default;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  ~Machine() {
    stack_t none{};
    none.ss_flags = SS_DISABLE;
    if (!fault_stack_.empty()) sigaltstack(&none, nullptr);
  }

  void run(const Launch& launch) {
    if (current_ != nullptr) fail("a kernel launches a kernel");
    watch_faults();
    launch_ = launch;
    blockDim = launch.block;
    gridDim = launch.grid;
    reseed();
    // A dynamic shared array begins at any multiple of 16; every other launch it ends at a guard page.
    margin_ = random_.one_in(2) ? 0 : kSharedAlignment * random_.below(kMargin / kSharedAlignment);
    groups_in_step_ = random_.one_in(2);
    reserve();
    std::vector<unsigned> order(launch.grid.x / launch.cluster_blocks * launch.grid.y * launch.grid.z);
    std::iota(order.begin(), order.end(), 0u);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_.below(static_cast<uint32_t>(i))]);
    for (const unsigned cluster : order) run_cluster(cluster);
  }

  [[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const char* format, ...) {
    std::va_list arguments;
    va_start(arguments, format);
    std::fputs("CUDA model: ", stderr);
    std::vfprintf(stderr, format, arguments);
    va_end(arguments);
    if (current_ != nullptr)
      std::fprintf(stderr, " [block (%u, %u, %u), thread (%u, %u, %u)]", blockIdx.x, blockIdx.y, blockIdx.z,
                   threadIdx.x, threadIdx.y, threadIdx.z);
    std::fprintf(stderr, " [seed %llu, launch %llu]\n", static_cast<unsigned long long>(seed_),
                 static_cast<unsigned long long>(launches_));
    std::abort();
  }

  // ---- what operations are made of -------------------------------------------------

  Random& random() { return random_; }
  Thread& thread() { return *current_; }
  Warp& warp() { return *current_->warp; }
  Block& block() { return *current_->warp->block; }
  unsigned block_threads() const { return launch_.block.x * launch_.block.y * launch_.block.z; }
  Barrier& cluster_barrier() { return cluster_barrier_; }
  unsigned cluster_blocks() const { return launch_.cluster_blocks; }
  bool groups_in_step() const { return groups_in_step_; }

  Block& block_of_rank(uint32_t rank, const Operation& by) {
    if (rank >= launch_.cluster_blocks)
      fail("%s: block %u of a cluster of %u", by.text().c_str(), rank, launch_.cluster_blocks);
    if (blocks_[rank].running == 0) fail("%s: block %u of the cluster has exited", by.text().c_str(), rank);
    return blocks_[rank];
  }

  // Shared memory. Addresses are what the pointers are modulo 1,024, so that either may be rounded up.
  uint32_t address_of(const void* pointer) {
    const auto* at = static_cast<const uint8_t*>(pointer);
    if (at < block().shared || at > block().shared + launch_.shared_bytes)
      fail("shared_address of a pointer that is not into the block's shared memory");
    return base() + static_cast<uint32_t>(at - block().shared);
  }
  uint8_t* at(Block& block, uint32_t address, uint32_t bytes, uint32_t alignment, const Operation& by) {
    const int64_t offset = int64_t{address} - base();
    if (offset < 0 || offset + bytes > static_cast<int64_t>(launch_.shared_bytes))
      fail("%s: %u bytes at %lld of %zu bytes of shared memory", by.text().c_str(), bytes,
           static_cast<long long>(offset), launch_.shared_bytes);
    if (address % alignment != 0)
      fail("%s: shared address 0x%x is not a multiple of %u", by.text().c_str(), address, alignment);
    return block.shared + offset;
  }

  // Lets any other thread go first, now and then.
  void maybe_yield() {
    if (!random_.one_in(64)) return;
    wake(*current_);
    switch_away();
  }

  // Every lane of `mask` calls it with its own frame; the last to come works for all.
  template <typename Frame, typename Work>
  void meet(const Operation& by, uint32_t mask, Frame& frame, const Work& work) {
    if (arrive_at_meeting(by, mask, &frame)) {
      work(reinterpret_cast<Frame* const*>(static_cast<void**>(warp().frames)));
      wake(warp(), mask & warp().lanes);
    }
    switch_away();
  }
  // The same for operations that need all 32.
  template <typename Frame, typename Work>
  void meet_all(const Operation& by, Frame& frame, const Work& work) {
    if (warp().lanes != ~0u) fail("%s: in a warp of fewer than 32 threads", by.text().c_str());
    meet(by, ~0u, frame, work);
  }
  void meet_all(const Operation& by) {
    char nothing = 0;
    meet_all(by, nothing, [](char* const*) {});
  }

  // What the current thread's warp has seen, whoever is given it has seen too.
  void release(Handover& handover) {
    Warp& warp = *current_->warp;
    handover.gathered.join(warp.clock);
    ++warp.now.time;
    warp.clock.learn(warp.now);
  }
  void acquire(const Handover& handover) { current_->warp->clock.join(handover.released); }

  // The stamp of a new asynchronous operation of the current warp.
  Stamp next_asynchronous() {
    ++warp().asynchronous.time;
    return warp().asynchronous;
  }
  Stamp new_agent() { return {agents_++, 0}; }

  void check_read(Block& block, uint32_t address, Stamp stamp, const Operation& by) {
    const Stamp other = granule(block, address).read(stamp, warp().clock);
    if (other.time != 0) report_race("reads", address, other, by);
  }
  void check_write(Block& block, uint32_t address, Stamp stamp, bool partial, const Operation& by) {
    const Stamp other = granule(block, address).write(stamp, warp().clock, partial);
    if (other.time != 0) report_race("writes", address, other, by);
  }

  // Counts an arrival, and lets all that wait go on if it is the last. The memory order of it: release and acquire.
  void arrive(Barrier& barrier, unsigned expected, const Operation& by) {
    if (barrier.arrived == 0) barrier.expected = expected;
    if (barrier.expected != expected)
      fail("%s: a barrier of %u threads, of %u for those who came first", by.text().c_str(), expected,
           barrier.expected);
    if (++barrier.arrived < expected) return;
    barrier.arrived = 0;
    barrier.handover.complete();
    wake_all(barrier.waiting);
  }
  void arrive_and_wait(Barrier& barrier, unsigned expected, const Operation& by) {
    barrier.waiting.push_back(current_);
    current_->waits_for = by;
    arrive(barrier, expected, by);
    switch_away();
  }
  void synchronise(Barrier& barrier, unsigned expected, const Operation& by) {
    release(barrier.handover);
    arrive_and_wait(barrier, expected, by);
    acquire(barrier.handover);
  }

  // Parks the current thread until someone calls wake_all on the list.
  void wait_in(std::vector<Thread*>& waiting, const Operation& by) {
    waiting.push_back(current_);
    current_->waits_for = by;
    switch_away();
  }
  void wake_all(std::vector<Thread*>& waiting) {
    for (Thread* thread : waiting) wake(*thread);
    waiting.clear();
  }

  // Work that no thread does: it happens some time later, at the latest when no thread can go on without it.
  void later(std::function<void()> work) { deferred_.push_back(std::move(work)); }

  void require_capability(int from, const Operation& by) { require_capability(from, launch_.capability, by); }
  void require_capability(int from, int to, const Operation& by) {
    if (launch_.capability < from || launch_.capability > to)
      fail("%s: does not exist on compute capability %d", by.text().c_str(), launch_.capability);
  }

 private:
  // ---- scheduling ----------------------------------------------------------------------

  void wake(Warp& warp, uint32_t lanes) {
    if (warp.ready == 0) add_ready(warp);
    warp.ready |= lanes;
  }
  void wake(Thread& thread) { wake(*thread.warp, 1u << thread.lane); }

  // Mostly a lane of the same warp: its stack is in the cache, and warps drift apart as they do on a GPU. To let them
  // drift far, every now and then one warp or one block is held back for as long as others can go on.
  Thread* draw_thread() {
    if (lag_ == 0) draw_laggard();
    --lag_;
    for (;;) {
      if (ready_.empty()) release_held();
      if (ready_.empty()) return nullptr;
      Warp* warp = current_ != nullptr ? current_->warp : nullptr;
      if (warp == nullptr || warp->ready == 0 || is_laggard(*warp) || random_.one_in(32))
        warp = ready_[random_.below(static_cast<uint32_t>(ready_.size()))];
      if (is_laggard(*warp)) {
        remove_ready(*warp);
        held_.push_back(warp);
        continue;
      }
      const int turn = static_cast<int>(random_.draw() % kWarpSize);
      const unsigned lane = (std::countr_zero(std::rotr(warp->ready, turn)) + turn) % kWarpSize;
      warp->ready &= ~(1u << lane);
      if (warp->ready == 0) remove_ready(*warp);
      return warp->threads[lane];
    }
  }

  bool is_laggard(const Warp& warp) const { return &warp == laggard_ || warp.block == laggard_; }

  void draw_laggard() {
    release_held();
    Block& block = blocks_[random_.below(launch_.cluster_blocks)];
    switch (random_.below(4)) {
      case 0: laggard_ = &block; break;
      case 1: laggard_ = &block.warps[random_.below(static_cast<uint32_t>(block.warps.size()))]; break;
      default: laggard_ = nullptr;
    }
    lag_ = 1 + random_.below(4096);
  }

  void release_held() {
    laggard_ = nullptr;
    for (Warp* warp : held_) add_ready(*warp);
    held_.clear();
  }

  void add_ready(Warp& warp) {
    warp.ready_position = ready_.size();
    ready_.push_back(&warp);
  }
  void remove_ready(Warp& warp) {
    ready_.back()->ready_position = warp.ready_position;
    ready_[warp.ready_position] = ready_.back();
    ready_.pop_back();
  }

  __attribute__((noinline)) void switch_away() {
    if (!deferred_.empty() && random_.one_in(32)) do_deferred();
    while (ready_.empty() && !deferred_.empty()) do_deferred();
    Thread* next = draw_thread();
    if (next == nullptr && running_ != 0) report_deadlock();
    switch_to(next);
  }

  void switch_to(Thread* next) {  // null: back to the host
    Thread* const previous = current_;
    if (next == previous) return;
    current_ = next;
    if (next != nullptr) {
      threadIdx = next->index;
      blockIdx = next->warp->block->index;
    }
    Context& from = previous != nullptr ? previous->context : host_;
    from.switch_to(next != nullptr ? next->context : host_);
  }

  // A fibre's whole life: one CUDA thread after the other.
  static void live() {
    Machine& machine = *here_;
    for (;;) {
      machine.launch_.kernel(machine.launch_.arguments);
      machine.exit_thread();
    }
  }

  void do_deferred() {
    std::swap(deferred_[random_.below(static_cast<uint32_t>(deferred_.size()))], deferred_.back());
    const std::function<void()> work = std::move(deferred_.back());
    deferred_.pop_back();
    work();
  }

  // ---- meetings, exits, what can go wrong ---------------------------------------------------

  // True for the last lane of `mask`.
  bool arrive_at_meeting(const Operation& by, uint32_t mask, void* frame) {
    Warp& warp = *current_->warp;
    const uint32_t lane = 1u << current_->lane;
    if ((mask & lane) == 0) fail("%s: the mask 0x%08x lacks the calling lane", by.text().c_str(), mask);
    warp.frames[current_->lane] = frame;
    current_->waits_for = by;
    auto meeting = warp.meetings.end();
    for (auto at = warp.meetings.begin(); at != warp.meetings.end(); ++at) {
      if (at->mask == mask && at->operation == by)
        meeting = at;
      else if ((at->mask & lane) != 0 && (mask & at->arrived) != 0)  // each waits for the other
        fail("lanes of a warp diverge: one is at %s with mask 0x%08x, lane %d at %s with mask 0x%08x",
             by.text().c_str(), mask, std::countr_zero(mask & at->arrived), at->operation.text().c_str(), at->mask);
    }
    if (meeting == warp.meetings.end()) meeting = warp.meetings.insert(meeting, {by, mask, 0});
    meeting->arrived |= lane;
    if (meeting->arrived != (mask & warp.lanes)) return false;
    *meeting = warp.meetings.back();
    warp.meetings.pop_back();
    return true;
  }

  void exit_thread() {
    Thread& thread = *current_;
    Block& block = *thread.warp->block;
    if (!thread.warp->products.empty()) fail("exit without waiting for %s", thread.warp->products[0].by.text().c_str());
    for (Copy& copy : thread.copies) copy.land();
    thread.exited = true;
    --running_;
    if (--block.running == 0) check_at_exit(block);
    switch_away();
  }

  void check_at_exit(Block& block) {
    if (block.incoming != 0) fail("the block exits while %u bulk copies into it are under way", block.incoming);
    for (const WarpGroup& group : block.groups)
      if (!group.steps.empty())
        fail("a warp of a warp group did not execute %s", group.steps.back().operation.text().c_str());
    const auto is_poison = [](uint8_t byte) { return byte == kPoison; };
    if (!std::all_of(block.shared - kMargin, block.shared, is_poison)) fail("a write before shared memory");
    if (!std::all_of(block.shared + launch_.shared_bytes, block.pages.end(), is_poison))
      fail("a write past the end of shared memory");
  }

  Granule& granule(Block& block, uint32_t address) { return block.granules[(address - base()) / kGranuleBytes]; }

  [[noreturn]] void report_race(const char* does, uint32_t address, Stamp other, const Operation& by) {
    const unsigned warps = static_cast<unsigned>(blocks_[0].warps.size());
    const unsigned all = warps * launch_.cluster_blocks, warp = other.agent % all;
    const std::string whose = "warp " + std::to_string(warp % warps) + " of block " + std::to_string(warp / warps);
    const std::string what = other.agent < all       ? whose
                             : other.agent < 2 * all ? "an asynchronous operation of " + whose
                                                     : "a bulk copy";
    fail("%s: a race: it %s shared memory at %u, where %s has an access that nothing orders before it",
         by.text().c_str(), does, address - base(), what.c_str());
  }

  [[noreturn]] void report_deadlock() {
    std::map<std::string, int> waiting;
    for (const Block& block : blocks_)
      for (const Warp& warp : block.warps)
        for (uint32_t lanes = warp.lanes; lanes != 0; lanes &= lanes - 1) {
          const Thread& thread = *warp.threads[std::countr_zero(lanes)];
          ++waiting[thread.exited ? "exited" : "in " + thread.waits_for.text()];
        }
    std::string text;
    for (const auto& [what, count] : waiting) text += (text.empty() ? "" : ", ") + std::to_string(count) + " " + what;
    fail("deadlock: %s", text.c_str());
  }

  // ---- faults ----------------------------------------------------------------------------

  // Says what a guard page guards when a kernel has touched it. Other faults are left to whoever handled them before.
  static void on_fault(int signal, siginfo_t* info, void* /*context*/) {
    if (here_ != nullptr && here_->current_ != nullptr) here_->explain_fault(info->si_addr);
    sigaction(signal, &previous_action_, nullptr);
  }

  void explain_fault(const void* address) {
    for (const Block& block : blocks_)
      if (block.pages.guards(address)) fail("an access outside shared memory");
    if (current_->stack.guards(address)) fail("a thread's %zu bytes of stack are full", kStackBytes);
  }

  void watch_faults() {
    static const bool watched = [] {
      struct sigaction action{};
      action.sa_sigaction = on_fault;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      return sigaction(SIGSEGV, &action, &previous_action_) == 0;
    }();
    if (!watched) fail("sigaction");
    stack_t before{};
    if (sigaltstack(nullptr, &before) != 0 || (before.ss_flags & SS_DISABLE) == 0) return;
    fault_stack_.resize(64 * 1024);  // for the handler, where a fibre's stack is full
    stack_t stack{};
    stack.ss_sp = fault_stack_.data();
    stack.ss_size = fault_stack_.size();
    sigaltstack(&stack, nullptr);
  }

  // ---- running a grid ----------------------------------------------------------------------

  void reseed() {
    const char* text = std::getenv("BITNAS_CUDA_MODEL_SEED");
    const uint64_t seed = text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
    if (seed != seed_) launches_ = 0;
    seed_ = seed;
    random_ = Random(seed_ * 1000003 + launches_++);
  }

  // Fibres and memory for one cluster.
  void reserve() {
    const size_t threads = size_t{block_threads()} * launch_.cluster_blocks;
    while (threads_.size() < threads) {
      threads_.push_back(std::make_unique<Thread>());
      Thread& thread = *threads_.back();
      // Not all stacks at the same offset from a page, or they would share few lines of the cache.
      const size_t colour = threads_.size() % 32 * 128;
      thread.context.start(thread.stack.end() - colour, kStackBytes - colour, live);
    }
    blocks_.resize(launch_.cluster_blocks);
    for (Block& block : blocks_) {
      if (block.pages.size() < launch_.shared_bytes + 2 * kMargin)
        block.pages = GuardedPages(launch_.shared_bytes + 2 * kMargin);
      const size_t rounded = (launch_.shared_bytes + kSharedAlignment - 1) / kSharedAlignment * kSharedAlignment;
      block.shared = block.pages.end() - margin_ - rounded;
    }
  }

  void run_cluster(unsigned cluster) {
    const unsigned columns = launch_.grid.x / launch_.cluster_blocks;
    reset(cluster_barrier_);
    running_ = block_threads() * launch_.cluster_blocks;
    agents_ = 0;
    lag_ = 0;
    for (unsigned rank = 0; rank < launch_.cluster_blocks; ++rank) {
      Block& block = blocks_[rank];
      block.index = {cluster % columns * launch_.cluster_blocks + rank, cluster / columns % launch_.grid.y,
                     cluster / columns / launch_.grid.y};
      block.rank = rank;
      start_block(block);
    }
    for (Block& block : blocks_)
      for (Warp& warp : block.warps) warp.asynchronous = new_agent();
    switch_away();
  }

  static void reset(Barrier& barrier) {
    barrier.arrived = 0;
    barrier.handover.clear();
  }

  void start_block(Block& block) {
    const unsigned count = block_threads(), warps = (count + kWarpSize - 1) / kWarpSize;
    std::memset(block.shared - kMargin, kPoison, block.pages.end() - (block.shared - kMargin));
    block.running = count;
    block.mbarriers.clear();
    for (Barrier& barrier : block.barriers) reset(barrier);
    block.groups.resize((warps + kGroupWarps - 1) / kGroupWarps);
    for (WarpGroup& group : block.groups) reset(group.barrier);
    block.granules.assign((launch_.shared_bytes + kGranuleBytes - 1) / kGranuleBytes, Granule{});
    block.warps.resize(warps);
    for (unsigned index = 0; index < warps; ++index) {
      Warp& warp = block.warps[index];
      warp.block = &block;
      warp.index = index;
      warp.lanes = 0;
      warp.product_groups = 0;
      warp.fenced = false;
      warp.now = new_agent();
      warp.now.time = 1;
      warp.clock.clear();
      warp.clock.learn(warp.now);
    }
    for (unsigned number = 0; number < count; ++number) {
      Thread& thread = *threads_[block.rank * count + number];
      Warp& warp = block.warps[number / kWarpSize];
      thread.warp = &warp;
      thread.lane = number % kWarpSize;
      thread.index = {number % launch_.block.x, number / launch_.block.x % launch_.block.y,
                      number / launch_.block.x / launch_.block.y};
      thread.exited = false;
      thread.copies.clear();
      thread.copy_groups = 0;
      warp.threads[thread.lane] = &thread;
      warp.lanes |= 1u << thread.lane;
      wake(thread);
    }
  }

  uint32_t base() const { return 1024 + static_cast<uint32_t>(reinterpret_cast<uintptr_t>(blocks_[0].shared) % 1024); }

  static inline thread_local Machine* here_ = nullptr;
  static inline struct sigaction previous_action_{};

  Launch launch_{};
  Random random_{0};
  uint64_t seed_ = 0, launches_ = 0;
  size_t margin_ = 0;
  bool groups_in_step_ = false;

  Context host_;
  std::vector<uint8_t> fault_stack_;
  std::vector<std::unique_ptr<Thread>> threads_;
  Thread* current_ = nullptr;  // null: the host
  std::vector<Warp*> ready_;   // warps with lanes that can go on
  std::vector<Warp*> held_;    // warps that could, too, of the laggard
  const void* laggard_ = nullptr;
  unsigned lag_ = 0;      // draws until the next laggard
  unsigned running_ = 0;  // threads of the cluster that have not exited
  uint32_t agents_ = 0;
  std::vector<Block> blocks_;  // of the cluster
  Barrier cluster_barrier_;
  std::vector<std::function<void()>> deferred_;
};

}  // namespace bitnas::cuda::model

// What the machine of model.h is made of: the state of threads, warps, blocks and barriers.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <string>
#include <vector>

#include "kernels/cuda/model/fibre.h"
#include "kernels/cuda/model/races.h"
#include "kernels/cuda/model/types.h"

namespace bitnas::cuda::model {

constexpr unsigned kWarpSize = 32;
constexpr unsigned kGroupWarps = 4;  // of a warp group
constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxCluster = 8;
constexpr unsigned kBarriers = 16;  // of a block; 0 is __syncthreads
constexpr size_t kSharedAlignment = 16;
constexpr uint8_t kPoison = 0xCD;  // what shared memory holds before it is written
constexpr size_t kMargin = 1024;   // bytes of poison around it, to be found intact
constexpr size_t kStackBytes = 128 * 1024;

// Where in a kernel's source an operation stands. Lanes that meet must be at the same place.
using Site = std::source_location;

struct Operation {
  const char* name = "";
  Site site{};

  bool operator==(const Operation& other) const {
    return name == other.name && site.line() == other.site.line() && site.column() == other.site.column() &&
           site.file_name() == other.site.file_name();
  }
  std::string text() const {
    const std::string file = site.file_name();
    return std::string(name) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(site.line()) + ")";
  }
};

// xorshift64*: a draw costs less than the switch it decides on.
class Random {
 public:
  explicit Random(uint64_t seed) : state_((seed + 1) * 0x9e3779b97f4a7c15u | 1) {}
  uint32_t draw() {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>(state_ * 0x2545f4914f6cdd1du >> 32);
  }
  uint32_t below(uint32_t bound) { return static_cast<uint32_t>(uint64_t{draw()} * bound >> 32); }
  bool one_in(uint32_t count) { return below(count) == 0; }

 private:
  uint64_t state_;
};

struct Warp;
struct Block;

// A cp.async that has not been waited for; from == nullptr brings zeros.
struct Copy {
  uint8_t* to;
  const void* from;
  int bytes, group;
  Stamp stamp;
  bool landed = false;

  void land() {
    if (landed) return;
    landed = true;
    if (from != nullptr)
      std::memcpy(to, from, bytes);
    else
      std::memset(to, 0, bytes);
  }
};

struct Thread {
  GuardedPages stack{kStackBytes};
  Context context;
  Warp* warp = nullptr;
  unsigned lane = 0;
  uint3 index{};
  bool exited = false;
  Operation waits_for;
  std::vector<Copy> copies;
  int copy_groups = 0;  // committed
};

// Lanes on their way into one warp-wide operation.
struct Meeting {
  Operation operation;
  uint32_t mask, arrived;
};

// A wgmma's 16 of 64 rows that belong to one warp.
struct Product {
  uint64_t descriptor_a, descriptor_b;
  int n;
  bool accumulate;
  int* d[kWarpSize];
  int group;
  Stamp stamp;
  Operation by;
  bool done = false;
};

struct Warp {
  Block* block = nullptr;
  unsigned index = 0;
  Thread* threads[kWarpSize] = {};
  uint32_t lanes = 0;         // that exist
  uint32_t ready = 0;         // lanes that can go on
  size_t ready_position = 0;  // among the machine's ready warps, if ready != 0
  std::vector<Meeting> meetings;
  void* frames[kWarpSize] = {};

  std::vector<Product> products;  // under way, oldest first
  int product_groups = 0;         // committed
  bool fenced = false;            // a wgmma_fence has been executed

  Clock clock;
  Stamp now;           // of what the warp does itself
  Stamp asynchronous;  // of its last asynchronous operation
};

// All go on when the expected number has arrived.
struct Barrier {
  unsigned arrived = 0, expected = 0;
  std::vector<Thread*> waiting;
  Handover handover;
};

struct Mbarrier {
  uint32_t address;
  int arrivals;   // that make a phase
  int pending;    // of them, in this phase
  int64_t bytes;  // announced and not there yet; negative if they came first
  uint32_t phase;
  Stamp last_copy;  // that was announced to complete here
  std::vector<Thread*> waiting;
  Handover handover;
};

// An operation that the four warps of a warp group must execute in the same order with the same operands.
struct GroupStep {
  Operation operation;
  uint64_t operands[3];

  bool operator==(const GroupStep& other) const {
    return operation == other.operation && std::equal(operands, operands + 3, other.operands);
  }
};

struct WarpGroup {
  Barrier barrier;
  std::vector<GroupStep> steps;  // since the warps were last level
  size_t done[kGroupWarps] = {};
};

struct Block {
  uint3 index{};
  unsigned rank = 0;     // in its cluster
  unsigned running = 0;  // threads that have not exited
  std::vector<Warp> warps;
  std::vector<WarpGroup> groups;
  Barrier barriers[kBarriers];
  std::vector<Mbarrier> mbarriers;
  unsigned incoming = 0;  // bulk copies under way
  GuardedPages pages;
  uint8_t* shared = nullptr;
  std::vector<Granule> granules;  // of shared memory
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  unsigned cluster_blocks;
  int capability;                   // 10 * major + minor
  void (*kernel)(void* arguments);  // runs it for the current thread
  void* arguments;
};

}  // namespace bitnas::cuda::model

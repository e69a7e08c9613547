// Data races on shared memory, between the accesses that go through ptx.h: copies,
// ldmatrix, wgmma, bulk copies. Every access is stamped with who made it and when, and
// every warp has a vector clock of the stamps that barriers have let it know of. An
// access that meets a stamp of a conflicting one that its warp does not know of is a race,
// whichever order the two happened to run in.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace bitnas::cuda::model {

// Agents are warps, the asynchronous work of each warp, and the bulk copies announced at each mbarrier. Time 0: never.
struct Stamp {
  uint32_t agent = 0, time = 0;
};

class Clock {
 public:
  uint32_t time_of(uint32_t agent) const { return agent < times_.size() ? times_[agent] : 0; }
  bool knows(Stamp stamp) const { return stamp.time <= time_of(stamp.agent); }
  void learn(Stamp stamp) {
    if (stamp.agent >= times_.size()) times_.resize(stamp.agent + 1);
    times_[stamp.agent] = std::max(times_[stamp.agent], stamp.time);
  }
  void join(const Clock& other) {
    if (other.times_.size() > times_.size()) times_.resize(other.times_.size());
    for (size_t i = 0; i < other.times_.size(); ++i) times_[i] = std::max(times_[i], other.times_[i]);
  }
  void clear() { times_.clear(); }

 private:
  std::vector<uint32_t> times_;
};

// Handed from those who arrive at a barrier to those who wait there.
struct Handover {
  Clock gathered;  // from arrivals, of a phase that is not complete
  Clock released;  // by completed phases

  void complete() {
    released.join(gathered);
    gathered.clear();
  }
  void clear() {
    gathered.clear();
    released.clear();
  }
};

constexpr uint32_t kGranuleBytes = 16;

// The last accesses to 16 bytes: the write, and the readers since, of which three are enough to be remembered.
class Granule {
 public:
  // Both return the stamp of an access that the caller, who knows `clock`, races with; time 0 if there is none.
  Stamp read(Stamp stamp, const Clock& clock) {
    if (!clock.knows(written_)) return written_;
    Stamp* slot = std::find_if(readers_, readers_ + kReaders,
                               [&](Stamp reader) { return reader.agent == stamp.agent || clock.knows(reader); });
    *(slot != readers_ + kReaders ? slot : &readers_[stamp.time % kReaders]) = stamp;
    return {};
  }
  // Two copies of 8 bytes may fill a granule, so that `partial` writes do not conflict.
  Stamp write(Stamp stamp, const Clock& clock, bool partial) {
    if (!partial && !clock.knows(written_)) return written_;
    for (Stamp& reader : readers_) {
      if (!clock.knows(reader)) return reader;
      reader = {};
    }
    written_ = stamp;
    return {};
  }

 private:
  static constexpr int kReaders = 3;

  Stamp written_, readers_[kReaders];
};

}  // namespace bitnas::cuda::model

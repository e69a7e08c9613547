// Which kernel a layer gets on which GPU: the one list of kernels, which drives
// dispatch, tests and benches, and the one function that chooses.
#pragma once

#include <cstdint>

namespace bitnas::cuda {

enum class Family : int32_t {
  kPopc,   // popcount on CUDA cores, any GPU
  kMma,    // mma.sync b1, AND + popcount: sm_80 to sm_90
  kInt8,   // mma.sync u8 on bits expanded in registers: sm_80 and newer
  kWgmma,  // wgmma b1: sm_90 alone; matrix products only
};

struct Kernel {
  const char* name;
  Family family;
  int tile_m, tile_n;     // output positions and channels of one block
  int least_cc, most_cc;  // compute capabilities, 10 * major + minor
};

int kernel_count();
const Kernel& kernel(int index);
bool kernel_runs_on(int index, int compute_capability);

// The index of the kernel that all following calls must use where it can compute the layer, or -1 for the best one.
int forced_kernel();
// By name, "auto" for the best one. False: no such kernel, or not for such a GPU.
bool force_kernel(const char* name, int compute_capability);

// What a choice depends on: per group, an m x n matrix of dots of `words` words.
struct Problem {
  int64_t m, n, words, groups;
  bool matrix;        // one tap, one group: rows of words, no gathering
  bool aligned;       // rows of the input start at multiples of 16 bytes
  bool many_borders;  // more classes of valid taps, or longer ones, than the tensor-core kernels have room for
};

struct Choice {
  int kernel;      // index
  int64_t splits;  // parts that the sum over words is cut into, at least 1
};
Choice choose(const Problem& problem, int compute_capability, int multiprocessors);

}  // namespace bitnas::cuda

// Binary convolution on AMX, directly: int8 activations by int8 weights, any shape.
//
// 16 x 16 x 64 products in 16 cycles, so 1024 per cycle at most; 865 were measured for two by two tiles out of L1.
// What bounds it is the second-level cache, which gives 46 bytes a cycle: weights of a panel, when they stay in L1 (up
// to 24 KiB), leave 11 bytes a cycle of activations to be fetched (each pixel once per window row); else 32 bytes a
// cycle of weights come on top, 43 in all. Weights beyond the second-level cache (8 bytes a cycle) must serve some 128
// positions or more each time: with few positions and many weights conv2d_amx_bits.cpp is the one to use.
//
// Exact: products of ±1, 0 and weights of ±1 or, where K is padded, 0; sums stay within kMaxDot.
#include "kernels/cpu/conv2d_amx_window.h"

namespace bitnas::cpu {
namespace {

struct Direct {
  static constexpr bool kMayBeDense = true;
  static constexpr int64_t kChannels = kPanel, kPositions = kBlock;
  static constexpr int64_t kRoomBytes = 0;
  static constexpr int64_t kTileCycles = 32;
  static constexpr int64_t kPanelInL1 = 24 * 1024;

  static int64_t panel_bytes(const Conv2dShape& s) { return steps_of(s, kMayBeDense).count() * kStepBytes; }
  static int64_t weight_bytes(const Conv2dShape& s) { return s.groups * group_panels(s, kPanel) * panel_bytes(s); }

  template <typename Beside>
  static void multiply(int64_t positions, int64_t channels, const uint8_t* a, int64_t pitch, const int64_t* offsets,
                       const uint8_t* weights, int64_t steps, uint8_t*, int32_t* sums, Beside& beside) {
    cpu::multiply(positions, channels, a, pitch, offsets, weights, steps, sums, beside);
  }
};

bool computes(const Conv2dShape&) { return true; }

// [group][panel][step][tile of 16 channels][row of four k][channel][k]; zeros where there is no weight.
void prepare(const Conv2dShape& s, const Word* weight, uint8_t* out) {
  const Steps steps = steps_of(s, Direct::kMayBeDense);
  __builtin_memset(out, 0, Direct::weight_bytes(s));
  for (int64_t group = 0; group < s.groups; ++group) {
    for (int64_t panel = 0; panel < group_panels(s, kPanel); ++panel) {
      const int64_t first = group * group_outputs(s) + panel * kPanel;
      const int64_t count = smaller(kPanel, group_outputs(s) - panel * kPanel);
      for (int64_t step = 0; step < steps.count(); ++step, out += kStepBytes) {
        for_each_weight(s, steps, weight, first, count, step, [out](int64_t n, int64_t k, Word bit) {
          out[n / 16 * kTileBytes + k / 4 * kRowBytes + n % 16 * 4 + k % 4] = bit != 0 ? 1 : 0xff;
        });
      }
    }
  }
}

}  // namespace

extern const TileKernel amx_direct;
const TileKernel amx_direct = window_kernel<Direct>(computes, prepare);

}  // namespace bitnas::cpu

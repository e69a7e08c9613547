// The driver of float convolutions: stages rows of the image, has them convolved row by row, pools and packs what is in
// the cache still.
#pragma once

#include "kernels/float_conv2d.h"

namespace bitnas::cpu {

// One row of y.
struct FloatConv2dRow {
  const float* const* rows;  // [kernel_h] rows of the padded image, channels one after the other
  int64_t kernel_h;
  const int64_t* taps;  // [tap_count] floats from a window's place in its row to a tap's, in the order they are summed
  int64_t tap_count;    // of one row of the window
  int64_t stride;       // floats from one window to the next
  const float* weight;  // [kernel_h * tap_count][channels]
  const float* bias;    // [channels]
  int64_t channels;
  float* out;  // [pixels][channels]
  int64_t pixels;
};

// What follows the sums of a row while it is in the cache.
struct FloatConv2dFinish {
  float* y;  // [pixels][channels]
  int64_t pixels, channels;
  const float* scale;  // [channels] or null: y = scale * y + bias, two roundings
  const float* bias;   // [channels], with scale
  const float* slope;  // [channels] or null: y = y >= 0 ? y : slope * y
};

// What an instruction set brings.
struct FloatConv2dKernel {
  void (*row)(const FloatConv2dRow&);
  void (*finish)(const FloatConv2dFinish&);
  // a = max(a, b); NaN wins.
  void (*max_into)(float* a, const float* b, int64_t count);
};

// Independent pieces of the work, for so many threads.
int64_t float_conv2d_tasks(const FloatConv2dArgs& args, int64_t threads);
int64_t float_conv2d_scratch_bytes(const FloatConv2dArgs& args);
void float_conv2d(const FloatConv2dArgs& args, int64_t task, int64_t tasks, uint8_t* scratch);

}  // namespace bitnas::cpu

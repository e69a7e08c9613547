// The convolution driver: runs a layer on whatever kernel its weights were prepared for, and cuts it into strips where
// that is a strip kernel. It starts no threads; tasks are independent and may run anywhere.
#pragma once

#include <vector>

#include "kernels/conv2d.h"
#include "kernels/cpu/prepared.h"

namespace bitnas::cpu {

class Conv2dPlan {
 public:
  // threads: how many tasks may run at once; decides how finely the layer is cut.
  Conv2dPlan(const Conv2dArgs& args, const Prepared& weights, int64_t threads);

  int64_t tasks() const { return tasks_; }
  // scratch keeps its capacity between calls of one thread.
  void run(int64_t task, std::vector<uint8_t>& scratch) const;

 private:
  struct Cut {  // of one task
    int64_t image, row_begin, row_end, panel_begin, panel_end;
  };
  void make_offsets();
  void run_pixels(int64_t task, std::vector<uint8_t>& scratch) const;
  void run_window(const Cut& cut, std::vector<uint8_t>& scratch) const;
  struct Run {  // how a strip reads its windows, as in Strip
    const uint8_t* input;
    int64_t pixel_pitch;
    const int64_t* runs;
    int64_t count;
    const int64_t* units;
  };
  void strip(const Run& run, int64_t group, int64_t panel, int64_t pixels, int64_t out_pixel, const int32_t* offsets,
             const int32_t* position_class) const;

  // Rows of a linear layer, or positions of a 1x1 convolution, that one task takes.
  static constexpr int64_t kPointwisePixels = 64;

  Conv2dArgs args_;
  Prepared weights_;
  int64_t tasks_ = 0;
  int64_t row_chunks_ = 1;
  int64_t task_pixels_ = kPointwisePixels;
  int64_t panel_chunks_ = 1;
  bool merge_bits_ = false;            // panels of several groups share output words
  std::vector<int32_t> row_class_;     // per output row
  std::vector<int32_t> column_class_;  // per output column
  int64_t column_classes_ = 1;
  std::vector<int32_t> offsets_;  // [row class][column class][out channel]
};

}  // namespace bitnas::cpu

// Bound by memory, so plain words serve every instruction set.
#include "kernels/max_pool2d.h"

#include <algorithm>

namespace bitnas::cpu {

void max_pool2d(const MaxPool2dArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / args.out_height;
    const int64_t top = row % args.out_height * args.stride_h - args.padding_h;
    const int64_t y_begin = std::max<int64_t>(top, 0);
    const int64_t y_end = std::min(top + args.kernel_h, args.height);
    for (int64_t ox = 0; ox < args.out_width; ++ox) {
      const int64_t left = ox * args.stride_w - args.padding_w;
      const int64_t x_begin = std::max<int64_t>(left, 0);
      const int64_t x_end = std::min(left + args.kernel_w, args.width);
      Word* out = args.out + (row * args.out_width + ox) * args.words;
      std::fill(out, out + args.words, 0);
      for (int64_t y = y_begin; y < y_end; ++y) {
        const Word* pixel = args.x + ((image * args.height + y) * args.width + x_begin) * args.words;
        for (int64_t x = x_begin; x < x_end; ++x, pixel += args.words)
          for (int64_t i = 0; i < args.words; ++i) out[i] |= pixel[i];
      }
      if (args.flip != nullptr)
        for (int64_t i = 0; i < args.words; ++i) out[i] ^= args.flip[i];
    }
  }
}

}  // namespace bitnas::cpu

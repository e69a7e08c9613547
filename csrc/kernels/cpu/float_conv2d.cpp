// A task is a range of output rows of one image. Of the padded image it holds as many rows as a window is high, of y as
// many as a pooling window; both in rings, so that every row is staged and convolved once.
#include "kernels/cpu/float_conv2d.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/isa.h"

namespace bitnas::cpu {
namespace {

int64_t padded_width(const FloatConv2dArgs& a) {
  return std::max(a.width + 2 * a.padding_w, (a.conv_width - 1) * a.stride_w + a.kernel_w);
}

bool pools(const FloatConv2dArgs& a) {
  const PoolWindow& p = a.pool;
  return p.kernel_h > 1 || p.kernel_w > 1 || p.stride_h > 1 || p.stride_w > 1;
}

// Where the pieces of a task's scratch begin, in floats. Without pooling the row that is packed is that of y.
struct Scratch {
  int64_t taps, pointers, zeros, rows, y, pooled, out_row, total;
};

Scratch layout(const FloatConv2dArgs& a) {
  const auto rounded = [](int64_t floats) { return (floats + 15) / 16 * 16; };
  const int64_t y_row = a.conv_width * a.out_channels;
  Scratch s{};
  s.pointers = rounded(2 * a.kernel_w * a.channels);
  s.zeros = s.pointers + rounded(2 * a.kernel_h);
  s.rows = s.zeros + rounded(a.out_channels);
  s.y = s.rows + rounded(a.kernel_h * a.channels * padded_width(a));
  s.pooled = s.y + rounded((pools(a) ? a.pool.kernel_h : 1) * y_row);
  s.out_row = pools(a) ? s.pooled + rounded(y_row) : s.y;
  s.total = s.out_row + rounded(a.out_width * a.out_channels);
  return s;
}

class Task {
 public:
  Task(const FloatConv2dArgs& args, int64_t image, uint8_t* scratch)
      : a_(args),
        pack_(isa(active_isa()).pack),
        kernel_(*isa(active_isa()).float_conv2d),
        image_(image),
        width_(padded_width(args)) {
    const Scratch s = layout(args);
    auto* floats = reinterpret_cast<float*>(scratch);
    taps_ = reinterpret_cast<int64_t*>(scratch);
    pointers_ = reinterpret_cast<const float**>(floats + s.pointers);
    rows_ = floats + s.rows, y_ = floats + s.y, pooled_ = floats + s.pooled;
    out_row_ = floats + s.out_row;
    for (int64_t kx = 0; kx < a_.kernel_w; ++kx)
      for (int64_t c = 0; c < a_.channels; ++c) taps_[kx * a_.channels + c] = c * width_ + kx;
    zeros_ = floats + s.zeros;
    std::fill_n(floats + s.zeros, a_.out_channels, 0.0f);
    start_ = a_.bias == nullptr || a_.scale != nullptr ? zeros_ : a_.bias;
  }

  void run(int64_t begin, int64_t end) {
    const int64_t channels = a_.out_channels;
    for (int64_t oy = begin; oy < end; ++oy) {
      const int64_t pixel = (image_ * a_.out_height + oy) * a_.out_width;
      float* out = a_.out == nullptr ? out_row_ : a_.out + pixel * channels;
      if (pools(a_)) {
        pool_row(oy, out);
      } else {
        convolve(oy, out);
      }
      if (a_.packed == nullptr) continue;
      PackArgs pack{};
      pack.x = out, pack.type = FloatType::kFloat32, pack.out = a_.packed + pixel * words_for(channels);
      pack.channels = channels, pack.plane = a_.out_width, pack.channels_last = true;
      pack.thresholds = a_.cut, pack.directions = a_.direction;
      pack_(pack, 0, a_.out_width);
    }
  }

 private:
  // Row `iy` of the padded image, channel after channel.
  float* staged(int64_t iy) {
    float* row = rows_ + iy % a_.kernel_h * a_.channels * width_;
    if (iy < staged_) return row;
    staged_ = iy + 1;
    const int64_t y = iy - a_.padding_h;
    if (y < 0 || y >= a_.height) {
      std::fill_n(row, a_.channels * width_, 0.0f);
      return row;
    }
    for (int64_t c = 0; c < a_.channels; ++c, row += width_) {
      std::fill_n(row, a_.padding_w, 0.0f);
      float* inside = row + a_.padding_w;
      if (a_.channels_last) {
        const float* x = a_.x + (image_ * a_.height + y) * a_.width * a_.channels + c;
        for (int64_t i = 0; i < a_.width; ++i) inside[i] = x[i * a_.channels];
      } else {
        std::memcpy(inside, a_.x + ((image_ * a_.channels + c) * a_.height + y) * a_.width, a_.width * sizeof(float));
      }
      std::fill_n(inside + a_.width, width_ - a_.padding_w - a_.width, 0.0f);
    }
    return row - a_.channels * width_;
  }

  void convolve(int64_t oy, float* out) {
    const int64_t first = oy * a_.stride_h;
    staged_ = std::max(staged_, first);  // rows above are not read again
    for (int64_t ky = 0; ky < a_.kernel_h; ++ky) pointers_[ky] = staged(first + ky);
    kernel_.row({pointers_, a_.kernel_h, taps_, a_.kernel_w * a_.channels, a_.stride_w, a_.weight, start_,
                 a_.out_channels, out, a_.conv_width});
    if (a_.scale != nullptr || a_.slope != nullptr)
      kernel_.finish({out, a_.conv_width, a_.out_channels, a_.scale, a_.bias, a_.slope});
    if (!a_.relu) return;
    for (int64_t p = 0; p < a_.conv_width; ++p) kernel_.max_into(out + p * a_.out_channels, zeros_, a_.out_channels);
  }

  // Row `cy` of y, kept until the ring comes round.
  const float* convolved(int64_t cy) {
    float* row = y_ + cy % a_.pool.kernel_h * a_.conv_width * a_.out_channels;
    if (cy >= convolved_) {
      convolve(cy, row);
      convolved_ = cy + 1;
    }
    return row;
  }

  void pool_row(int64_t oy, float* out) {
    const PoolWindow& p = a_.pool;
    const int64_t channels = a_.out_channels, count = a_.conv_width * channels;
    const int64_t top = std::max<int64_t>(0, oy * p.stride_h - p.padding_h);
    const int64_t bottom = std::min(a_.conv_height, oy * p.stride_h - p.padding_h + p.kernel_h);
    convolved_ = std::max(convolved_, top);
    for (int64_t cy = top; cy < bottom; ++cy) {
      const float* y = convolved(cy);
      if (cy == top) {
        std::memcpy(pooled_, y, count * sizeof(float));
      } else {
        kernel_.max_into(pooled_, y, count);
      }
    }
    for (int64_t ox = 0; ox < a_.out_width; ++ox, out += channels) {
      const int64_t left = std::max<int64_t>(0, ox * p.stride_w - p.padding_w);
      const int64_t right = std::min(a_.conv_width, ox * p.stride_w - p.padding_w + p.kernel_w);
      std::memcpy(out, pooled_ + left * channels, channels * sizeof(float));
      for (int64_t cx = left + 1; cx < right; ++cx) kernel_.max_into(out, pooled_ + cx * channels, channels);
    }
  }

  const FloatConv2dArgs& a_;
  PackFn pack_;
  const FloatConv2dKernel& kernel_;
  int64_t image_, width_;
  int64_t* taps_;
  const float** pointers_;
  const float *zeros_, *start_;
  float *rows_, *y_, *pooled_, *out_row_;
  int64_t staged_ = 0, convolved_ = 0;  // rows below are done, or not needed any more
};

}  // namespace

// A row that two tasks pool is convolved twice, so no more tasks than threads can share.
int64_t float_conv2d_tasks(const FloatConv2dArgs& a, int64_t threads) {
  const int64_t per_image = threads == 1 || a.images >= 4 * threads ? 1 : (4 * threads + a.images - 1) / a.images;
  return a.images * std::min(per_image, std::max<int64_t>(1, a.out_height / 2));
}

int64_t float_conv2d_scratch_bytes(const FloatConv2dArgs& args) { return layout(args).total * 4; }

void float_conv2d(const FloatConv2dArgs& args, int64_t task, int64_t tasks, uint8_t* scratch) {
  const int64_t per_image = tasks / args.images;
  const int64_t part = task % per_image;
  Task(args, task / per_image, scratch)
      .run(args.out_height * part / per_image, args.out_height * (part + 1) / per_image);
}

}  // namespace bitnas::cpu

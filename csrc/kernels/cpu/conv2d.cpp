#include "kernels/cpu/conv2d.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/select.h"
#include "kernels/padding.h"

namespace bitnas::cpu {
namespace {

// Below about this many products a second thread costs more than it gives.
constexpr int64_t kParallelProducts = int64_t{1} << 22;
// Staged rows of one task stay within about half of a small L2, beside the weights.
constexpr int64_t kStagedBytes = 256 * 1024;
// No kernel computes more neighbouring pixels at once.
constexpr int64_t kTilePixels = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Never smaller again: what a vector regains it fills with zeros first.
void grow(std::vector<uint8_t>& scratch, int64_t bytes) {
  if (static_cast<int64_t>(scratch.size()) < bytes) scratch.resize(bytes);
}

// Classes of output positions along one axis, by which taps are inside the image.
std::vector<TapInterval> classify(int64_t outputs, int64_t stride, int64_t padding, int64_t taps, int64_t dilation,
                                  int64_t size, std::vector<int32_t>& class_of) {
  std::vector<TapInterval> classes;
  class_of.resize(outputs);
  for (int64_t o = 0; o < outputs; ++o) {
    const TapInterval interval = valid_taps(o * stride - padding, taps, dilation, size);
    auto found = std::find(classes.begin(), classes.end(), interval);
    if (found == classes.end()) found = classes.insert(classes.end(), interval);
    class_of[o] = static_cast<int32_t>(found - classes.begin());
  }
  return classes;
}

// Offsets of one border class, ±1 (padding.h): a, b, d, e are the corners of the valid taps in the summed-area table.
void sign_offsets(int32_t valid, const int32_t* __restrict all, const int32_t* __restrict a,
                  const int32_t* __restrict b, const int32_t* __restrict d, const int32_t* __restrict e, int64_t n,
                  int32_t* __restrict out) {
  for (int64_t i = 0; i < n; ++i) out[i] = valid + 2 * (all[i] - (a[i] - b[i] - d[i] + e[i]));
}

// dot >= t  <=>  offset - step * x >= t  <=>  x <= floor((offset - t) / step)
void offsets_to_limits(const int32_t* __restrict threshold, int shift, int64_t n, int32_t* __restrict out) {
  constexpr auto kLimit = static_cast<int32_t>(kMaxDot);
  for (int64_t i = 0; i < n; ++i) out[i] = (out[i] - std::clamp(threshold[i], -kLimit - 1, kLimit + 1)) >> shift;
}

// Channels [first, first + count) of each pixel as words of their own, tail bits zero.
void slice_channels(const Word* pixels, int64_t pixel_count, int64_t pixel_words, int64_t first, int64_t count,
                    Word* out) {
  const int64_t words = words_for(count);
  const int64_t shift = first % kWordBits;
  const int64_t tail = count % kWordBits;
  const Word last_mask = tail == 0 ? ~Word{0} : (Word{1} << tail) - 1;
  for (int64_t p = 0; p < pixel_count; ++p, pixels += pixel_words, out += words) {
    for (int64_t i = 0; i < words; ++i) {
      const int64_t at = first / kWordBits + i;
      Word word = pixels[at] >> shift;
      if (shift != 0 && at + 1 < pixel_words) word |= pixels[at + 1] << (kWordBits - shift);
      out[i] = i + 1 == words ? word & last_mask : word;
    }
  }
}

// Whether output positions are rows of a matrix product: a 1x1 convolution, where a stride over pixels is gone once
// they are gathered. A kernel that reads words as they are strides over them where they lie.
bool by_pixels(const Conv2dShape& s, const StripKernel& kernel) {
  const bool one_pixel = s.taps() == 1 && s.padding_h == 0 && s.padding_w == 0 && s.groups == 1;
  return one_pixel && (s.pointwise() || !kernel.words_as_they_are);
}

// The pixels that `count` output positions of a 1x1 convolution read, from position `first` on, side by side.
void gather_pixels(const Conv2dShape& s, const Word* x, int64_t first, int64_t count, Word* out) {
  const int64_t words = words_for(s.channels);
  int64_t ox = first % s.out_width, oy = first / s.out_width % s.out_height;
  int64_t image = first / (s.out_width * s.out_height);
  for (int64_t i = 0; i < count; ++i, out += words) {
    std::copy_n(x + ((image * s.height + oy * s.stride_h) * s.width + ox * s.stride_w) * words, words, out);
    if (++ox < s.out_width) continue;
    ox = 0;
    if (++oy < s.out_height) continue;
    oy = 0;
    ++image;
  }
}

}  // namespace

Conv2dPlan::Conv2dPlan(const Conv2dArgs& args, const Prepared& weights, int64_t threads)
    : args_(args), weights_(weights) {
  const Conv2dShape& s = args_.shape;
  const Epilogue& e = args_.epilogue;
  const int64_t pixels = s.images * s.out_height * s.out_width;
  if (pixels == 0) return;
  const int64_t products = pixels * s.out_channels * s.taps() * s.group_channels();
  if (products < kParallelProducts) threads = 1;
  if (const TileKernel* tile = weights_.kernel().tile) {
    tasks_ = tile->tasks(args_, threads);
    return;
  }
  Word* packed = e.kind == EpilogueKind::kBits ? static_cast<Word*>(e.out) : e.packed;
  merge_bits_ = packed != nullptr && s.groups > 1 && s.group_out_channels() % kPanelChannels != 0;
  if (merge_bits_) std::memset(packed, 0, pixels * words_for(s.out_channels) * sizeof(Word));
  make_offsets();

  const int64_t panels = weights_.panels_per_group();
  const auto cut_panels = [&](int64_t independent) {
    return independent < threads && s.groups == 1 && panels >= threads ? threads : 1;
  };
  // Threads that each write some words of every pixel's bits would pass its cache line to and fro.
  const bool cut_rows_first = packed != nullptr;
  if (by_pixels(s, *weights_.kernel().strip)) {
    if (cut_rows_first && pixels < threads * kPointwisePixels && pixels >= threads * kTilePixels)
      task_pixels_ = divide_up(divide_up(pixels, threads), kTilePixels) * kTilePixels;
    row_chunks_ = divide_up(pixels, task_pixels_);
    panel_chunks_ = cut_panels(row_chunks_);
    tasks_ = row_chunks_ * panel_chunks_;
    return;
  }
  const bool whole_images = s.images >= 4 * threads || s.images % threads == 0;
  if (!whole_images) {
    const bool few_rows = s.out_height < 2 * threads;
    if (panels % threads == 0 && (few_rows || !cut_rows_first)) panel_chunks_ = cut_panels(s.images);
    if (panel_chunks_ == 1) row_chunks_ = std::min(s.out_height, 2 * threads);
  }
  const int64_t image_bytes = s.height * weights_.kernel().strip->row_bytes(s.width, s.group_channels());
  row_chunks_ = std::min(s.out_height, std::max(row_chunks_, divide_up(image_bytes, kStagedBytes)));
  tasks_ = s.images * row_chunks_ * panel_chunks_;
}

void Conv2dPlan::make_offsets() {
  const Conv2dShape& s = args_.shape;
  const int64_t n = s.out_channels;
  const int64_t columns = s.kernel_w + 1;
  const int32_t* ones = weights_.ones();
  const int32_t* all = ones + (s.kernel_h * columns + s.kernel_w) * n;
  std::vector<TapInterval> rows, cols;
  const bool sign = s.encoding == Encoding::kSign;
  const bool padded = s.padding_h != 0 || s.padding_w != 0;
  if (sign && padded) {
    rows = classify(s.out_height, s.stride_h, s.padding_h, s.kernel_h, s.dilation_h, s.height, row_class_);
    cols = classify(s.out_width, s.stride_w, s.padding_w, s.kernel_w, s.dilation_w, s.width, column_class_);
  } else {
    rows = {{0, s.kernel_h}};
    cols = {{0, s.kernel_w}};
  }
  column_classes_ = static_cast<int64_t>(cols.size());
  offsets_.resize(rows.size() * cols.size() * n + kPanelChannels);  // kernels load whole vectors
  int32_t* out = offsets_.data();
  for (const TapInterval& r : rows) {
    for (const TapInterval& c : cols) {
      if (sign) {
        const auto valid = static_cast<int32_t>((r.end - r.begin) * (c.end - c.begin) * s.group_channels());
        const auto corner = [&](int64_t ky, int64_t kx) { return ones + (ky * columns + kx) * n; };
        sign_offsets(valid, all, corner(r.end, c.end), corner(r.begin, c.end), corner(r.end, c.begin),
                     corner(r.begin, c.begin), n, out);
      } else {
        std::copy(all, all + n, out);
      }
      if (args_.epilogue.kind == EpilogueKind::kBits) offsets_to_limits(args_.epilogue.threshold, sign ? 1 : 0, n, out);
      out += n;
    }
  }
}

void Conv2dPlan::run(int64_t task, std::vector<uint8_t>& scratch) const {
  const Conv2dShape& s = args_.shape;
  if (const TileKernel* tile = weights_.kernel().tile) {
    grow(scratch, tile->scratch_bytes(args_, tasks_) + 63);
    const auto address = reinterpret_cast<uintptr_t>(scratch.data());
    return tile->run(args_, weights_.weights(), task, tasks_, scratch.data() + (64 - address % 64) % 64);
  }
  if (by_pixels(s, *weights_.kernel().strip)) return run_pixels(task, scratch);
  const int64_t panels = weights_.panels_per_group();
  const int64_t panel_chunk = task % panel_chunks_;
  const int64_t row_chunk = task / panel_chunks_ % row_chunks_;
  run_window({task / (panel_chunks_ * row_chunks_), row_chunk * s.out_height / row_chunks_,
              (row_chunk + 1) * s.out_height / row_chunks_, panel_chunk * panels / panel_chunks_,
              (panel_chunk + 1) * panels / panel_chunks_},
             scratch);
}

void Conv2dPlan::run_pixels(int64_t task, std::vector<uint8_t>& scratch) const {
  const Conv2dShape& s = args_.shape;
  const StripKernel& kernel = *weights_.kernel().strip;
  const int64_t words = words_for(s.channels);
  const int64_t total = s.images * s.out_height * s.out_width;
  const int64_t first = task / panel_chunks_ * task_pixels_;
  const int64_t pixels = std::min(task_pixels_, total - first);
  std::vector<Word> gathered;
  const Word* x = args_.x + first * words;
  if (!s.pointwise()) {
    gathered.resize(pixels * words);
    gather_pixels(s, args_.x, first, pixels, gathered.data());
    x = gathered.data();
  }
  Run run{reinterpret_cast<const uint8_t*>(x), words * 8, nullptr, 1, nullptr};
  if (!kernel.words_as_they_are) {
    grow(scratch, kernel.row_bytes(pixels, s.channels));
    kernel.stage({x, pixels, 0, 0, s.channels, 1}, scratch.data());
    run.input = scratch.data() + kernel.lead_bytes;
    run.pixel_pitch = kernel.pixel_bytes(s.channels);
  }
  constexpr int64_t kNoOffset[] = {0};
  run.runs = kNoOffset;
  const int64_t panels = weights_.panels_per_group();
  const int64_t chunk = task % panel_chunks_;
  for (int64_t p = chunk * panels / panel_chunks_; p < (chunk + 1) * panels / panel_chunks_; ++p)
    strip(run, 0, p, pixels, first, offsets_.data(), nullptr);
}

// Stages the rows that this task reads, zero bits around the image, in the kernel's form; or points straight into the
// image where that is already so.
void Conv2dPlan::run_window(const Cut& cut, std::vector<uint8_t>& scratch) const {
  const Conv2dShape& s = args_.shape;
  const StripKernel& kernel = *weights_.kernel().strip;
  const int64_t image_words = words_for(s.channels);
  const int64_t group_words = words_for(s.group_channels());
  const int64_t run_count = s.taps() / run_taps(s);
  const bool aligned_groups = s.groups == 1 || s.group_channels() % kWordBits == 0;
  const bool padded = s.padding_h != 0 || s.padding_w != 0;
  const bool contiguous = run_taps(s) == 1 || image_words * 8 == kernel.pixel_bytes(s.group_channels());
  const bool in_place = kernel.words_as_they_are && aligned_groups && !padded && contiguous;
  const Word* image = args_.x + cut.image * s.height * s.width * image_words;

  const int64_t first_row = cut.row_begin * s.stride_h - s.padding_h;
  const int64_t staged_rows =
      (cut.row_end - 1) * s.stride_h - s.padding_h + (s.kernel_h - 1) * s.dilation_h + 1 - first_row;
  const int64_t staged_columns = (s.out_width - 1) * s.stride_w + (s.kernel_w - 1) * s.dilation_w + 1;
  const int64_t pixel_bytes = in_place ? image_words * 8 : kernel.pixel_bytes(s.group_channels());
  const int64_t row_bytes = in_place ? s.width * pixel_bytes : kernel.row_bytes(staged_columns, s.group_channels());

  std::vector<int64_t> runs(run_count);
  for (int64_t i = 0; i < run_count; ++i) {
    const int64_t tap = i * run_taps(s);
    runs[i] = tap / s.kernel_w * s.dilation_h * row_bytes + tap % s.kernel_w * s.dilation_w * pixel_bytes;
  }
  std::vector<int64_t> units;
  if (kernel.unit_bytes != 0 && run_count > 1) {
    const int64_t run_bytes = run_taps(s) * kernel.pixel_bytes(s.group_channels());
    for (const int64_t run : runs)
      for (int64_t at = 0; at < run_bytes; at += kernel.unit_bytes) units.push_back(run + at);
  }

  const int64_t left = std::min(s.padding_w, staged_columns);
  const int64_t copied = std::max<int64_t>(0, std::min(s.width, staged_columns - s.padding_w));
  std::vector<Word> slice(aligned_groups && image_words == group_words ? 0 : copied * group_words);
  if (!in_place) grow(scratch, staged_rows * row_bytes);

  for (int64_t group = 0; group < s.groups; ++group) {
    const uint8_t* staged;
    if (in_place) {
      staged = reinterpret_cast<const uint8_t*>(image + first_row * s.width * image_words +
                                                group * s.group_channels() / kWordBits);
    } else {
      for (int64_t r = 0; r < staged_rows; ++r) {
        const int64_t y = first_row + r;
        uint8_t* out = scratch.data() + r * row_bytes;
        if (y < 0 || y >= s.height) {
          kernel.stage({image, 0, staged_columns, 0, s.group_channels(), s.stride_w}, out);
          continue;
        }
        const Word* source = image + y * s.width * image_words;
        if (!slice.empty()) {
          slice_channels(source, copied, image_words, group * s.group_channels(), s.group_channels(), slice.data());
          source = slice.data();
        }
        kernel.stage({source, copied, left, staged_columns - left - copied, s.group_channels(), s.stride_w}, out);
      }
      staged = scratch.data() + kernel.lead_bytes;
    }
    for (int64_t panel = cut.panel_begin; panel < cut.panel_end; ++panel) {
      for (int64_t oy = cut.row_begin; oy < cut.row_end; ++oy) {
        const uint8_t* row = staged + (oy - cut.row_begin) * s.stride_h * row_bytes;
        const int64_t row_class = row_class_.empty() ? 0 : row_class_[oy];
        strip({row, s.stride_w * pixel_bytes, runs.data(), run_count, units.data()}, group, panel, s.out_width,
              (cut.image * s.out_height + oy) * s.out_width,
              offsets_.data() + row_class * column_classes_ * s.out_channels,
              column_class_.empty() ? nullptr : column_class_.data());
      }
    }
  }
}

void Conv2dPlan::strip(const Run& run, int64_t group, int64_t panel, int64_t pixels, int64_t out_pixel,
                       const int32_t* offsets, const int32_t* position_class) const {
  const Conv2dShape& s = args_.shape;
  Strip strip{};
  strip.input = run.input;
  strip.pixel_pitch = run.pixel_pitch;
  strip.runs = run.runs;
  strip.run_count = run.count;
  strip.units = run.units;
  strip.run_taps = run_taps(s);
  strip.tap_channels = s.group_channels();
  strip.pixels = pixels;
  strip.panel = weights_.panel(group, panel);
  strip.channels = static_cast<int>(std::min<int64_t>(kPanelChannels, s.group_out_channels() - panel * kPanelChannels));
  strip.epilogue = &args_.epilogue;
  strip.out_channels = s.out_channels;
  strip.pixel = out_pixel;
  strip.first = group * s.group_out_channels() + panel * kPanelChannels;
  strip.merge = merge_bits_;
  strip.offsets = offsets + strip.first;
  strip.offsets_pitch = s.out_channels;
  strip.position_class = position_class;
  strip.shift = s.encoding == Encoding::kSign ? 1 : 0;
  weights_.kernel().strip->strip(strip);
}

}  // namespace bitnas::cpu

#include "kernels/cpu/prepared.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels/cpu/select.h"

namespace bitnas::cpu {
namespace {

struct Header {
  uint32_t magic;
  uint32_t layout;  // raised whenever a layout changes
  int32_t kernel;
  int32_t run_taps;  // a strip kernel's, else 0
  int64_t out_channels, groups, kernel_h, kernel_w, group_channels;
  int64_t reserved;
  bool operator==(const Header&) const = default;
};
static_assert(sizeof(Header) == 64);

constexpr uint32_t kMagic = 0x6e746962;  // "bitn"
constexpr uint32_t kLayout = 2;

Header header_for(int kernel_index, const Conv2dShape& s) {
  const bool strips = kernel(kernel_index).strip != nullptr;
  return {kMagic,
          kLayout,
          kernel_index,
          strips ? static_cast<int32_t>(run_taps(s)) : 0,
          s.out_channels,
          s.groups,
          s.kernel_h,
          s.kernel_w,
          s.group_channels(),
          0};
}

int64_t align64(int64_t bytes) { return (bytes + 63) / 64 * 64; }

int64_t table_bytes(const Conv2dShape& s) {
  return align64((s.kernel_h + 1) * (s.kernel_w + 1) * s.out_channels * static_cast<int64_t>(sizeof(int32_t)));
}

int64_t panel_count(const Conv2dShape& s) { return (s.group_out_channels() + kPanelChannels - 1) / kPanelChannels; }

int panel_channels(const Conv2dShape& s, int64_t index) {
  return static_cast<int>(std::min<int64_t>(kPanelChannels, s.group_out_channels() - index * kPanelChannels));
}

int64_t panel_bytes(const StripKernel& kernel, const Conv2dShape& s, int channels) {
  return align64(kernel.panel_bytes(channels, s.taps() / run_taps(s), run_taps(s), s.group_channels()));
}

int64_t group_bytes(const StripKernel& kernel, const Conv2dShape& s) {
  const int64_t last = panel_count(s) - 1;
  return last * panel_bytes(kernel, s, kPanelChannels) + panel_bytes(kernel, s, panel_channels(s, last));
}

void make_ones_table(const StripKernel& kernel, const Conv2dShape& s, const Word* weight, int32_t* table) {
  const int64_t taps = s.taps(), columns = s.kernel_w + 1;
  std::vector<int32_t> ones(s.out_channels * taps);
  kernel.count_ones(weight, s.out_channels * taps, words_for(s.group_channels()), ones.data());
  std::memset(table, 0, table_bytes(s));
  for (int64_t tap = 0; tap < taps; ++tap) {
    const int64_t ky = tap / s.kernel_w, kx = tap % s.kernel_w;
    const int32_t* above = table + (ky * columns + kx + 1) * s.out_channels;
    const int32_t* left = table + ((ky + 1) * columns + kx) * s.out_channels;
    const int32_t* corner = table + (ky * columns + kx) * s.out_channels;
    int32_t* here = table + ((ky + 1) * columns + kx + 1) * s.out_channels;
    for (int64_t n = 0; n < s.out_channels; ++n) here[n] = above[n] + left[n] - corner[n] + ones[n * taps + tap];
  }
}

}  // namespace

int64_t Prepared::bytes(int kernel_index, const Conv2dShape& shape) {
  const auto header = static_cast<int64_t>(sizeof(Header));
  const Kernel& k = cpu::kernel(kernel_index);
  if (k.tile != nullptr) return header + align64(k.tile->weight_bytes(shape));
  return header + table_bytes(shape) + shape.groups * group_bytes(*k.strip, shape);
}

void Prepared::prepare(int kernel_index, const Conv2dShape& shape, const Word* weight, uint8_t* out) {
  const Kernel& k = cpu::kernel(kernel_index);
  const Header header = header_for(kernel_index, shape);
  std::memcpy(out, &header, sizeof header);
  if (k.tile != nullptr) return k.tile->prepare(shape, weight, out + sizeof(Header));
  make_ones_table(*k.strip, shape, weight, reinterpret_cast<int32_t*>(out + sizeof(Header)));
  uint8_t* panel = out + sizeof(Header) + table_bytes(shape);
  const int64_t channel_words = shape.taps() * words_for(shape.group_channels());
  for (int64_t g = 0; g < shape.groups; ++g) {
    for (int64_t i = 0; i < panel_count(shape); ++i) {
      const int64_t first = g * shape.group_out_channels() + i * kPanelChannels;
      const int channels = panel_channels(shape, i);
      const int64_t used =
          k.strip->panel_bytes(channels, shape.taps() / run_taps(shape), run_taps(shape), shape.group_channels());
      k.strip->make_panel(weight + first * channel_words, channels, shape.taps() / run_taps(shape), run_taps(shape),
                          shape.group_channels(), panel);
      const int64_t size = panel_bytes(*k.strip, shape, channels);
      std::memset(panel + used, 0, size - used);  // defined, so that buffers compare
      panel += size;
    }
  }
}

Prepared Prepared::view(const uint8_t* buffer, int64_t size, const Conv2dShape& shape) {
  Prepared view;
  const bool aligned = reinterpret_cast<uintptr_t>(buffer) % alignof(int32_t) == 0;
  if (!aligned || size < static_cast<int64_t>(sizeof(Header))) return view;
  Header header;
  std::memcpy(&header, buffer, sizeof header);
  if (!kernel_supported(header.kernel)) return view;
  const Kernel& k = cpu::kernel(header.kernel);
  // Tile kernels load whole cache lines and may not compute this geometry.
  const bool fits = k.tile == nullptr || (reinterpret_cast<uintptr_t>(buffer) % 64 == 0 && k.tile->computes(shape));
  if (!fits || header != header_for(header.kernel, shape) || size != bytes(header.kernel, shape)) return view;
  view.buffer_ = buffer;
  view.kernel_ = &k;
  view.shape_ = shape;
  return view;
}

const char* Prepared::kernel_name(const uint8_t* buffer, int64_t size) {
  Header header;
  if (size < static_cast<int64_t>(sizeof header)) return "";
  std::memcpy(&header, buffer, sizeof header);
  const bool ours = header.magic == kMagic && header.layout == kLayout && kernel_supported(header.kernel);
  return ours ? cpu::kernel(header.kernel).name : "";
}

const uint8_t* Prepared::weights() const { return buffer_ + sizeof(Header); }

const int32_t* Prepared::ones() const { return reinterpret_cast<const int32_t*>(buffer_ + sizeof(Header)); }

int64_t Prepared::panels_per_group() const { return panel_count(shape_); }

const uint8_t* Prepared::panel(int64_t group, int64_t index) const {
  const StripKernel& strip = *kernel_->strip;
  return buffer_ + sizeof(Header) + table_bytes(shape_) + group * group_bytes(strip, shape_) +
         index * panel_bytes(strip, shape_, kPanelChannels);
}

}  // namespace bitnas::cpu

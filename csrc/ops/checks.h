// Argument checks and allocation shared by the CPU and CUDA registrations. Every
// bound a kernel relies on is checked here; a message names the argument, what it
// got and what it wanted.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

#include "kernels/conv2d.h"
#include "kernels/float_conv2d.h"
#include "kernels/join.h"
#include "kernels/max_pool2d.h"
#include "kernels/pack.h"

namespace bitnas::ops {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Through the C shim: about 0.7 µs cheaper than the dispatcher's new_empty.
template <size_t rank>
Tensor empty(const std::array<int64_t, rank>& sizes, const std::array<int64_t, rank>& strides, int32_t dtype,
             const Tensor& like) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(rank), sizes.data(), strides.data(), dtype,
                                                  device_type, like.get_device_index(), &handle));
  return Tensor(handle);
}

template <size_t rank>
Tensor empty_contiguous(const std::array<int64_t, rank>& sizes, int32_t dtype, const Tensor& like) {
  std::array<int64_t, rank> strides;
  int64_t stride = 1;
  for (size_t i = rank; i-- > 0;) {
    strides[i] = stride;
    stride *= sizes[i] > 0 ? sizes[i] : 1;
  }
  return empty<rank>(sizes, strides, dtype, like);
}

inline void check_same_device(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  int32_t device = 0, wanted = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &wanted));
  STD_TORCH_CHECK(device == wanted && t.get_device_index() == x.get_device_index(), op, ": ", name,
                  " must be on the device of its input");
}

inline void check_packed(const char* op, const char* name, const Tensor& t, int64_t rank) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Long, op, ": ", name,
                  " must be a packed int64 tensor (bitnas.ops.pack makes one), got another dtype");
  STD_TORCH_CHECK(t.dim() == rank, op, ": ", name, " must have ", rank, " dimensions, got ", t.dim());
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " must be contiguous");
}

inline void check_vector(const char* op, const char* name, const Tensor& t, ScalarType type, const char* type_name,
                         int64_t size, const Tensor& x) {
  STD_TORCH_CHECK(t.scalar_type() == type && t.dim() == 1 && t.size(0) == size && t.is_contiguous(), op, ": ", name,
                  " must be a contiguous ", type_name, " tensor of ", size, " elements, got ", t.dim(),
                  " dimensions and ", t.numel(), " elements");
  check_same_device(op, name, t, x);
}

inline FloatType float_type(const char* op, const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return FloatType::kFloat32;
    case ScalarType::BFloat16: return FloatType::kBFloat16;
    case ScalarType::Half: return FloatType::kFloat16;
    default: break;
  }
  STD_TORCH_CHECK(false, op, ": ", name, " must be float32, bfloat16 or float16, got another dtype");
  return FloatType::kFloat32;
}

inline int32_t aoti_dtype(FloatType type) {
  switch (type) {
    case FloatType::kBFloat16: return aoti_torch_dtype_bfloat16();
    case FloatType::kFloat16: return aoti_torch_dtype_float16();
    default: return aoti_torch_dtype_float32();
  }
}

// What is added to an output has its dtype, sizes and layout, but for channels: it may have fewer, which repeat.
inline void check_residual(const char* op, const Tensor& residual, const Tensor& out, ScalarType type,
                           const Tensor& x) {
  check_same_device(op, "residual", residual, x);
  STD_TORCH_CHECK(residual.scalar_type() == type, op, ": residual must have the dtype of the output");
  STD_TORCH_CHECK(residual.dim() == out.dim(), op, ": residual must have ", out.dim(), " dimensions, got ",
                  residual.dim());
  int64_t stride = 1;
  for (int64_t place = 0; place < out.dim(); ++place) {
    const int64_t i = place == 0               ? 1
                      : place + 1 == out.dim() ? 0
                                               : out.dim() - place;  // channels, columns, rows, images
    const bool fewer = i == 1 && residual.size(i) > 0 && residual.size(i) < out.size(i);
    STD_TORCH_CHECK(fewer || residual.size(i) == out.size(i), op, ": residual must have the output's sizes; dimension ",
                    i, " has ", residual.size(i), ", expected ", out.size(i));
    STD_TORCH_CHECK(out.numel() == 0 || residual.size(i) == 1 || residual.strides()[i] == stride, op,
                    ": residual must be laid out like the output (channels_last)");
    stride *= residual.size(i);
  }
}

// Rank 4 images or rank 2 rows; fills what the layout decides.
inline PackArgs check_pack(const char* op, const Tensor& x) {
  PackArgs args{};
  args.type = float_type(op, "x", x.scalar_type());
  STD_TORCH_CHECK(x.dim() == 4 || x.dim() == 2, op, ": x must be [N, C, H, W] or [M, K], got ", x.dim(), " dimensions");
  args.channels = x.size(1);
  STD_TORCH_CHECK(args.channels > 0, op, ": x has zero channels; it must have at least one");
  args.x = x.const_data_ptr();
  if (x.dim() == 2) {
    args.plane = 1;
    args.channels_last = true;
    STD_TORCH_CHECK(x.is_contiguous(), op, ": x must be contiguous");
    return args;
  }
  const int64_t c = x.size(1), h = x.size(2), w = x.size(3);
  args.plane = h * w;
  const auto strides = x.strides();
  // A dimension of one element has no stride to speak of.
  const auto is = [&](int64_t dim, int64_t stride) { return x.size(dim) <= 1 || strides[dim] == stride; };
  args.channels_last = is(0, h * w * c) && is(1, 1) && is(2, w * c) && is(3, c);
  STD_TORCH_CHECK(args.channels_last || x.is_contiguous() || x.numel() == 0, op,
                  ": x must be contiguous in memory format NCHW or channels_last");
  return args;
}

// Thresholds and directions that a float tensor is packed by: one packing of [C], or several of [E, C].
struct Cuts {
  const float* thresholds;
  const float* directions;
  int64_t channels, count;
  bool stacked;  // whether the packed tensor has a dimension more
};

inline Cuts check_cuts(const char* op, const char* name, const Tensor& threshold, const Tensor& direction,
                       int64_t channels, const Tensor& x) {
  const bool stacked = threshold.dim() == 2;
  if (!stacked) {
    check_vector(op, name, threshold, ScalarType::Float, "float32", channels, x);
    check_vector(op, "direction", direction, ScalarType::Float, "float32", channels, x);
  } else {
    for (const auto& [word, t] : {std::pair{name, &threshold}, std::pair{"direction", &direction}}) {
      STD_TORCH_CHECK(t->scalar_type() == ScalarType::Float && t->dim() == 2 && t->size(0) > 0 &&
                          t->size(0) == threshold.size(0) && t->size(1) == channels && t->is_contiguous(),
                      op, ": ", word, " must be a contiguous float32 tensor [E, ", channels,
                      "] with E at least 1, got ", t->dim(), " dimensions and ", t->numel(), " elements");
      check_same_device(op, word, *t, x);
    }
  }
  return {static_cast<const float*>(threshold.const_data_ptr()), static_cast<const float*>(direction.const_data_ptr()),
          channels, stacked ? threshold.size(0) : 1, stacked};
}

// `cuts` null: packed once.
inline Tensor empty_packed_like(const Tensor& x, const Cuts* cuts = nullptr) {
  const int64_t words = words_for(x.size(1));
  const int32_t dtype = aoti_torch_dtype_int64();
  if (cuts != nullptr && cuts->stacked) {
    if (x.dim() == 2) return empty_contiguous<3>({cuts->count, x.size(0), words}, dtype, x);
    return empty_contiguous<5>({cuts->count, x.size(0), x.size(2), x.size(3), words}, dtype, x);
  }
  if (x.dim() == 2) return empty_contiguous<2>({x.size(0), words}, dtype, x);
  return empty_contiguous<4>({x.size(0), x.size(2), x.size(3), words}, dtype, x);
}

struct Conv2dParams {
  int64_t in_channels, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
  bool unit;
};

// Elements (or bytes of scratch) of one tensor that calls may ask for.
constexpr int64_t kMaxElements = int64_t{1} << 36;

// Whether the product of non-negative factors is at most `limit`, without overflow.
inline bool product_at_most(int64_t limit, std::initializer_list<int64_t> factors) {
  int64_t product = 1;
  for (const int64_t factor : factors)
    if (__builtin_mul_overflow(product, factor, &product)) return false;
  return product <= limit;
}

inline int64_t out_size(int64_t size, int64_t padding, int64_t dilation, int64_t kernel, int64_t stride) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

inline void check_weight(const char* op, const Tensor& weight, int64_t in_channels, int64_t groups) {
  STD_TORCH_CHECK(in_channels > 0, op, ": in_channels must be at least 1, got ", in_channels);
  STD_TORCH_CHECK(groups > 0 && in_channels % groups == 0, op, ": groups must be positive and divide the ", in_channels,
                  " input channels, got ", groups);
  STD_TORCH_CHECK(weight.size(0) > 0 && weight.size(0) % groups == 0, op, ": groups (", groups,
                  ") must divide the output channels, got ", weight.size(0));
  const int64_t words = weight.size(weight.dim() - 1);
  STD_TORCH_CHECK(words == words_for(in_channels / groups), op, ": weight holds ", words, " words per tap; ",
                  in_channels / groups, " channels per group need ", words_for(in_channels / groups));
}

inline Conv2dShape weight_shape(const char* op, const Tensor& weight, int64_t in_channels, int64_t groups) {
  check_packed(op, "weight", weight, weight.dim() == 2 ? 2 : 4);
  check_weight(op, weight, in_channels, groups);
  Conv2dShape s{};
  s.channels = in_channels;
  s.out_channels = weight.size(0);
  s.groups = groups;
  s.kernel_h = weight.dim() == 2 ? 1 : weight.size(1);
  s.kernel_w = weight.dim() == 2 ? 1 : weight.size(2);
  STD_TORCH_CHECK(s.kernel_h > 0 && s.kernel_w > 0, op, ": weight has an empty kernel, ", s.kernel_h, "x", s.kernel_w);
  STD_TORCH_CHECK(s.group_channels() <= kMaxDot / s.kernel_h / s.kernel_w, op, ": a dot product of ", s.kernel_h, "x",
                  s.kernel_w, "x", s.group_channels(), " products is longer than ", kMaxDot);
  return s;
}

inline Conv2dShape check_conv2d(const char* op, const Tensor& x, const Tensor& weight, const Conv2dParams& p) {
  check_packed(op, "x", x, 4);
  STD_TORCH_CHECK(weight.dim() == 4, op, ": weight must have 4 dimensions, got ", weight.dim());
  check_same_device(op, "weight", weight, x);
  Conv2dShape s = weight_shape(op, weight, p.in_channels, p.groups);
  STD_TORCH_CHECK(x.size(3) == words_for(p.in_channels), op, ": x holds ", x.size(3), " words per pixel; ",
                  p.in_channels, " channels need ", words_for(p.in_channels));
  STD_TORCH_CHECK(p.stride_h > 0 && p.stride_w > 0, op, ": stride must be positive, got ", p.stride_h, ", ",
                  p.stride_w);
  STD_TORCH_CHECK(p.padding_h >= 0 && p.padding_w >= 0, op, ": padding must not be negative, got ", p.padding_h, ", ",
                  p.padding_w);
  STD_TORCH_CHECK(p.dilation_h > 0 && p.dilation_w > 0, op, ": dilation must be positive, got ", p.dilation_h, ", ",
                  p.dilation_w);
  constexpr int64_t kMaxExtent = int64_t{1} << 30;
  STD_TORCH_CHECK(p.padding_h <= kMaxExtent && p.padding_w <= kMaxExtent && p.stride_h <= kMaxExtent &&
                      p.stride_w <= kMaxExtent && p.dilation_h <= kMaxExtent / s.kernel_h &&
                      p.dilation_w <= kMaxExtent / s.kernel_w,
                  op, ": padding, stride or dilation is larger than ", kMaxExtent);
  s.images = x.size(0);
  s.height = x.size(1);
  s.width = x.size(2);
  s.stride_h = p.stride_h, s.stride_w = p.stride_w;
  s.padding_h = p.padding_h, s.padding_w = p.padding_w;
  s.dilation_h = p.dilation_h, s.dilation_w = p.dilation_w;
  const int64_t extent_h = p.dilation_h * (s.kernel_h - 1) + 1, extent_w = p.dilation_w * (s.kernel_w - 1) + 1;
  STD_TORCH_CHECK(s.height + 2 * p.padding_h >= extent_h && s.width + 2 * p.padding_w >= extent_w, op, ": a kernel of ",
                  extent_h, "x", extent_w, " (dilated) is larger than the padded image, ", s.height + 2 * p.padding_h,
                  "x", s.width + 2 * p.padding_w);
  s.out_height = out_size(s.height, p.padding_h, p.dilation_h, s.kernel_h, p.stride_h);
  s.out_width = out_size(s.width, p.padding_w, p.dilation_w, s.kernel_w, p.stride_w);
  s.encoding = p.unit ? Encoding::kUnit : Encoding::kSign;
  // What the driver stages of one image, and the output: sizes that a machine can hold, so that no product wraps.
  const int64_t rows = (s.out_height - 1) * s.stride_h + extent_h, columns = (s.out_width - 1) * s.stride_w + extent_w;
  STD_TORCH_CHECK(product_at_most(kMaxElements, {rows, columns, words_for(s.channels), 16}) &&
                      product_at_most(kMaxElements, {s.images, s.out_height, s.out_width, s.out_channels}),
                  op, ": the padded image, ", rows, "x", columns, ", or the output, ", s.out_height, "x", s.out_width,
                  ", is too large");
  return s;
}

// Rows are the pixels of one 1 x M image, so the same driver serves them.
inline Conv2dShape check_linear(const char* op, const Tensor& x, const Tensor& weight, int64_t in_features, bool unit) {
  check_packed(op, "x", x, 2);
  STD_TORCH_CHECK(weight.dim() == 2, op, ": weight must have 2 dimensions, got ", weight.dim());
  check_same_device(op, "weight", weight, x);
  Conv2dShape s = weight_shape(op, weight, in_features, 1);
  STD_TORCH_CHECK(x.size(1) == words_for(in_features), op, ": x holds ", x.size(1), " words per row; ", in_features,
                  " features need ", words_for(in_features));
  s.images = s.height = s.out_height = 1;
  s.width = s.out_width = x.size(0);
  s.stride_h = s.stride_w = s.dilation_h = s.dilation_w = 1;
  s.encoding = unit ? Encoding::kUnit : Encoding::kSign;
  return s;
}

inline void check_unpack(const Tensor& packed, int64_t channels) {
  check_packed("unpack", "packed", packed, packed.dim() == 2 ? 2 : 4);
  const int64_t words = packed.size(packed.dim() - 1);
  STD_TORCH_CHECK(channels > 0 && words == words_for(channels), "unpack: channels (", channels, ") must fill the ",
                  words, " words per pixel");
}

inline Tensor empty_unpacked(const Tensor& packed, int64_t channels) {
  const int32_t dtype = aoti_torch_dtype_float32();
  if (packed.dim() == 2) return empty_contiguous<2>({packed.size(0), channels}, dtype, packed);
  return empty_contiguous<4>({packed.size(0), packed.size(1), packed.size(2), channels}, dtype, packed);
}

inline MaxPool2dArgs check_max_pool2d(const char* op, const Tensor& x, const std::optional<Tensor>& flip,
                                      int64_t kernel_h, int64_t kernel_w, int64_t stride_h, int64_t stride_w,
                                      int64_t padding_h, int64_t padding_w) {
  check_packed(op, "x", x, 4);
  STD_TORCH_CHECK(kernel_h > 0 && kernel_w > 0, op, ": kernel_size must be positive, got ", kernel_h, ", ", kernel_w);
  STD_TORCH_CHECK(stride_h > 0 && stride_w > 0, op, ": stride must be positive, got ", stride_h, ", ", stride_w);
  STD_TORCH_CHECK(padding_h >= 0 && padding_w >= 0 && padding_h <= kernel_h / 2 && padding_w <= kernel_w / 2, op,
                  ": padding must be between 0 and half the kernel, got ", padding_h, ", ", padding_w);
  const int64_t height = x.size(1) + 2 * padding_h, width = x.size(2) + 2 * padding_w;
  STD_TORCH_CHECK(height >= kernel_h && width >= kernel_w, op, ": a kernel of ", kernel_h, "x", kernel_w,
                  " is larger than the padded image, ", height, "x", width);
  MaxPool2dArgs args{};
  args.x = static_cast<const Word*>(x.const_data_ptr());
  args.words = x.size(3);
  args.height = x.size(1), args.width = x.size(2);
  args.out_height = (height - kernel_h) / stride_h + 1, args.out_width = (width - kernel_w) / stride_w + 1;
  args.kernel_h = kernel_h, args.kernel_w = kernel_w, args.stride_h = stride_h, args.stride_w = stride_w;
  args.padding_h = padding_h, args.padding_w = padding_w;
  if (flip.has_value()) {
    check_vector(op, "flip", *flip, ScalarType::Long, "int64", args.words, x);
    args.flip = static_cast<const Word*>(flip->const_data_ptr());
  }
  return args;
}

inline void check_joined(const char* op, const char* name, const Tensor& t, const std::array<int64_t, 4>& sizes) {
  int64_t stride = 1;
  for (const int64_t i : {1, 3, 2, 0}) {
    STD_TORCH_CHECK(t.size(i) == sizes[i], op, ": ", name, " has ", t.size(i), " in dimension ", i, ", expected ",
                    sizes[i]);
    STD_TORCH_CHECK(t.numel() == 0 || sizes[i] == 1 || t.strides()[i] == stride, op, ": ", name,
                    " must be laid out in channels_last");
    stride *= sizes[i];
  }
}

struct JoinParams {
  int64_t live, groups, channels, repeat;
  bool pool;
};

inline JoinArgs check_join(const char* op, const Tensor& shortcut, const std::vector<Tensor>& nodes,
                           const JoinParams& p) {
  STD_TORCH_CHECK(shortcut.scalar_type() == ScalarType::Float && shortcut.dim() == 4, op,
                  ": shortcut must be float32 [N, C, H, W]");
  constexpr int64_t kMost = int64_t{1} << 30;
  STD_TORCH_CHECK(p.groups > 0 && p.groups <= kMaxJoinedNodes, op, ": groups must be between 1 and ", kMaxJoinedNodes,
                  ", got ", p.groups);
  STD_TORCH_CHECK(p.channels > 0 && p.channels <= kMost && p.repeat > 0 && p.repeat <= kMost, op,
                  ": channels and repeat must be between 1 and 2^30, got ", p.channels, " and ", p.repeat);
  STD_TORCH_CHECK(shortcut.size(1) > 0 && shortcut.size(1) % p.groups == 0, op, ": groups (", p.groups,
                  ") must divide the shortcut's channels, got ", shortcut.size(1));
  STD_TORCH_CHECK(p.live >= 0 && p.live < int64_t{1} << p.groups &&
                      __builtin_popcountll(static_cast<uint64_t>(p.live)) == static_cast<int64_t>(nodes.size()),
                  op, ": live must have a bit for each of the ", static_cast<int64_t>(nodes.size()), " nodes, below 2^",
                  p.groups, "; got ", p.live);
  JoinArgs a{};
  a.shortcut = static_cast<const float*>(shortcut.const_data_ptr());
  a.groups = p.groups, a.own = shortcut.size(1) / p.groups, a.channels = p.channels, a.repeat = p.repeat;
  a.pool = p.pool;
  a.height = shortcut.size(2), a.width = shortcut.size(3);
  a.out_height = p.pool ? (a.height + 1) / 2 : a.height, a.out_width = p.pool ? (a.width + 1) / 2 : a.width;
  const int64_t images = shortcut.size(0);
  STD_TORCH_CHECK(product_at_most(kMaxElements, {images, a.out_height, a.out_width, a.groups, a.channels}) &&
                      product_at_most(kMaxElements, {a.own, a.repeat}),
                  op, ": the output is too large");
  check_joined(op, "shortcut", shortcut, {images, shortcut.size(1), a.height, a.width});
  size_t next = 0;
  for (int64_t g = 0; g < p.groups; ++g) {
    if ((p.live >> g & 1) == 0) continue;
    const Tensor& node = nodes[next++];
    STD_TORCH_CHECK(node.scalar_type() == ScalarType::Float && node.dim() == 4, op, ": node ", g,
                    " must be float32 [N, C, H, W]");
    check_same_device(op, "a node", node, shortcut);
    check_joined(op, "a node", node, {images, a.channels, a.out_height, a.out_width});
    a.nodes[g] = static_cast<const float*>(node.const_data_ptr());
  }
  return a;
}

inline Tensor empty_joined(JoinArgs& a, const Tensor& shortcut) {
  const int64_t c = a.groups * a.channels, h = a.out_height, w = a.out_width;
  Tensor out = empty<4>({shortcut.size(0), c, h, w}, {h * w * c, 1, w * c, c}, aoti_torch_dtype_float32(), shortcut);
  a.out = static_cast<float*>(out.mutable_data_ptr());
  return out;
}

// What a float convolution may be given per output channel.
struct FloatConv2dTerms {
  const std::optional<Tensor>&bias, &scale, &slope;
};

inline FloatConv2dArgs check_float_conv2d(const char* op, const Tensor& x, const Tensor& weight,
                                          const FloatConv2dTerms& terms, const std::array<int64_t, 4>& geometry,
                                          bool relu, const PoolWindow& pool) {
  const PackArgs layout = check_pack(op, x);
  STD_TORCH_CHECK(x.dim() == 4 && layout.type == FloatType::kFloat32, op, ": x must be float32 [N, C, H, W]");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.scalar_type() == ScalarType::Float && weight.is_contiguous(), op,
                  ": weight must be a contiguous float32 tensor [kh, kw, C, out], got ", weight.dim(), " dimensions");
  check_same_device(op, "weight", weight, x);
  FloatConv2dArgs a{};
  a.x = static_cast<const float*>(layout.x), a.channels_last = layout.channels_last;
  a.weight = static_cast<const float*>(weight.const_data_ptr());
  a.images = x.size(0), a.channels = x.size(1), a.height = x.size(2), a.width = x.size(3);
  a.kernel_h = weight.size(0), a.kernel_w = weight.size(1), a.out_channels = weight.size(3);
  STD_TORCH_CHECK(weight.size(2) == a.channels, op, ": weight has ", weight.size(2), " input channels, x has ",
                  a.channels);
  STD_TORCH_CHECK(a.kernel_h > 0 && a.kernel_w > 0 && a.out_channels > 0, op, ": weight has an empty dimension, ",
                  a.kernel_h, "x", a.kernel_w, " by ", a.out_channels);
  const auto vector = [&](const char* name, const std::optional<Tensor>& t) -> const float* {
    if (!t.has_value()) return nullptr;
    check_vector(op, name, *t, ScalarType::Float, "float32", a.out_channels, x);
    return static_cast<const float*>(t->const_data_ptr());
  };
  a.bias = vector("bias", terms.bias), a.scale = vector("scale", terms.scale), a.slope = vector("slope", terms.slope);
  STD_TORCH_CHECK(a.scale == nullptr || a.bias != nullptr, op, ": scale needs a bias beside it");
  STD_TORCH_CHECK(a.slope == nullptr || !relu, op, ": slope and relu exclude each other");
  constexpr int64_t kMaxExtent = int64_t{1} << 30;
  const auto at_most = [&](int64_t low, int64_t value) { return value >= low && value <= kMaxExtent; };
  a.stride_h = geometry[0], a.stride_w = geometry[1], a.padding_h = geometry[2], a.padding_w = geometry[3];
  STD_TORCH_CHECK(at_most(1, a.stride_h) && at_most(1, a.stride_w), op, ": stride must be between 1 and 2^30, got ",
                  a.stride_h, ", ", a.stride_w);
  STD_TORCH_CHECK(at_most(0, a.padding_h) && at_most(0, a.padding_w), op, ": padding must be between 0 and 2^30, got ",
                  a.padding_h, ", ", a.padding_w);
  const int64_t height = a.height + 2 * a.padding_h, width = a.width + 2 * a.padding_w;
  STD_TORCH_CHECK(height >= a.kernel_h && width >= a.kernel_w, op, ": a kernel of ", a.kernel_h, "x", a.kernel_w,
                  " is larger than the padded image, ", height, "x", width);
  a.conv_height = out_size(a.height, a.padding_h, 1, a.kernel_h, a.stride_h);
  a.conv_width = out_size(a.width, a.padding_w, 1, a.kernel_w, a.stride_w);
  a.relu = relu, a.pool = pool;
  STD_TORCH_CHECK(
      at_most(1, pool.kernel_h) && at_most(1, pool.kernel_w) && at_most(1, pool.stride_h) && at_most(1, pool.stride_w),
      op, ": the pooling window must be positive, got ", pool.kernel_h, "x", pool.kernel_w, " of stride ",
      pool.stride_h, ", ", pool.stride_w);
  STD_TORCH_CHECK(pool.padding_h >= 0 && pool.padding_w >= 0 && pool.padding_h <= pool.kernel_h / 2 &&
                      pool.padding_w <= pool.kernel_w / 2,
                  op, ": pool_padding must be between 0 and half the window, got ", pool.padding_h, ", ",
                  pool.padding_w);
  STD_TORCH_CHECK(
      a.conv_height + 2 * pool.padding_h >= pool.kernel_h && a.conv_width + 2 * pool.padding_w >= pool.kernel_w, op,
      ": a pooling window of ", pool.kernel_h, "x", pool.kernel_w, " is larger than the padded ", a.conv_height, "x",
      a.conv_width);
  a.out_height = out_size(a.conv_height, pool.padding_h, 1, pool.kernel_h, pool.stride_h);
  a.out_width = out_size(a.conv_width, pool.padding_w, 1, pool.kernel_w, pool.stride_w);
  STD_TORCH_CHECK(product_at_most(kMaxElements, {a.kernel_h, a.channels, width + a.kernel_w}) &&
                      product_at_most(kMaxElements, {a.pool.kernel_h + 2, a.conv_width, a.out_channels}) &&
                      product_at_most(kMaxElements, {a.images, a.out_height, a.out_width, a.out_channels}),
                  op, ": the padded image or the output is too large");
  return a;
}

inline Tensor empty_pooled(const MaxPool2dArgs& args, const Tensor& x) {
  return empty_contiguous<4>({x.size(0), args.out_height, args.out_width, args.words}, aoti_torch_dtype_int64(), x);
}

}  // namespace bitnas::ops

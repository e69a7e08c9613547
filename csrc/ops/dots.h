// The operators that end in an integer dot product, once for every device: checks,
// outputs, epilogues. A device brings the function that computes one.
#pragma once

#include <tuple>

#include "ops/checks.h"

namespace bitnas::ops {

template <typename T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

using OptionalTensor = std::optional<Tensor>;

// Output of a convolution or, with rows, of a linear layer; channels last either way.
inline Tensor empty_dots(const Conv2dShape& s, bool rows, int32_t dtype, const Tensor& like) {
  if (rows) return empty_contiguous<2>({s.out_width, s.out_channels}, dtype, like);
  const int64_t n = s.out_channels, h = s.out_height, w = s.out_width;
  return empty<4>({s.images, n, h, w}, {h * w * n, 1, w * n, n}, dtype, like);
}

// `cuts` null: packed once.
inline Tensor empty_words(const Conv2dShape& s, bool rows, const Tensor& like, const Cuts* cuts = nullptr) {
  const int64_t words = words_for(s.out_channels);
  const int32_t dtype = aoti_torch_dtype_int64();
  if (cuts != nullptr && cuts->stacked)  // of a convolution
    return empty_contiguous<5>({cuts->count, s.images, s.out_height, s.out_width, words}, dtype, like);
  return rows ? empty_contiguous<2>({s.out_width, words}, dtype, like)
              : empty_contiguous<4>({s.images, s.out_height, s.out_width, words}, dtype, like);
}

// What a float epilogue may be given beside scale and bias.
struct FloatOptions {
  const OptionalTensor& residual;
  const OptionalTensor& slope;
  const std::optional<ScalarType>& dtype;
  bool relu = false;
  const Tensor* cut = nullptr;
  const Tensor* direction = nullptr;
};

// run(args, x, weight, prepared) computes args, whose epilogue holds pointers into tensors of x's device; pack(args,
// pixels, x) packs floats there.
template <void (*run)(const Conv2dArgs&, const Tensor& x, const Tensor& weight, const OptionalTensor& prepared),
          void (*pack)(PackArgs, int64_t pixels, const Tensor& x)>
struct Dots {
  static Tensor int32(const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                      const OptionalTensor& prepared) {
    Tensor out = empty_dots(s, rows, aoti_torch_dtype_int32(), x);
    Conv2dArgs args{s, data<Word>(x), {}};
    args.epilogue.kind = EpilogueKind::kInt32;
    args.epilogue.out = out.mutable_data_ptr();
    run(args, x, weight, prepared);
    return out;
  }

  // `packed` gets the bits beside where options ask for them.
  static Tensor floats(const char* op, const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                       const OptionalTensor& prepared, const Tensor& scale, const Tensor& bias,
                       const FloatOptions& options, Tensor* packed = nullptr) {
    const auto vector = [&](const char* name, const Tensor& t) {
      check_vector(op, name, t, ScalarType::Float, "float32", s.out_channels, x);
      return data<float>(t);
    };
    Conv2dArgs args{s, data<Word>(x), {}};
    Epilogue& e = args.epilogue;
    e.kind = EpilogueKind::kFloat;
    e.scale = vector("scale", scale);
    e.bias = vector("bias", bias);
    if (options.slope.has_value()) e.slope = vector("slope", *options.slope);
    const ScalarType type = options.dtype.value_or(ScalarType::Float);
    e.type = float_type(op, "dtype", type);
    Tensor out = empty_dots(s, rows, aoti_dtype(e.type), x);
    e.out = out.mutable_data_ptr();
    if (options.residual.has_value()) {
      check_residual(op, *options.residual, out, type, x);
      e.residual = options.residual->const_data_ptr();
      e.residual_channels = options.residual->size(1);
    }
    e.relu = options.relu;
    Cuts cuts{};
    if (packed != nullptr) {
      cuts = check_cuts(op, "cut", *options.cut, *options.direction, s.out_channels, x);
      *packed = empty_words(s, rows, x, &cuts);
      e.packed = static_cast<Word*>(packed->mutable_data_ptr());
      e.cut = cuts.thresholds, e.direction = cuts.directions;
    }
    run(args, x, weight, prepared);
    // The epilogue packs once; the values are in the cache for the others.
    const int64_t pixels = s.images * s.out_height * s.out_width;
    for (int64_t i = 1; i < cuts.count && pixels > 0; ++i) {
      PackArgs again{e.out, e.type, e.packed + i * pixels * words_for(s.out_channels), s.out_channels, 1, true, 0,
                     {},    {}};
      again.thresholds = cuts.thresholds + i * cuts.channels, again.directions = cuts.directions + i * cuts.channels;
      pack(again, pixels, x);
    }
    return out;
  }

  static Tensor bits(const char* op, const Conv2dShape& s, bool rows, const Tensor& x, const Tensor& weight,
                     const OptionalTensor& prepared, const Tensor& threshold, const OptionalTensor& flip) {
    check_vector(op, "threshold", threshold, ScalarType::Int, "int32", s.out_channels, x);
    if (flip.has_value()) check_vector(op, "flip", *flip, ScalarType::Long, "int64", words_for(s.out_channels), x);
    Tensor out = empty_words(s, rows, x);
    Conv2dArgs args{s, data<Word>(x), {}};
    args.epilogue.kind = EpilogueKind::kBits;
    args.epilogue.out = out.mutable_data_ptr();
    args.epilogue.threshold = data<int32_t>(threshold);
    args.epilogue.flip = flip.has_value() ? data<Word>(*flip) : nullptr;
    run(args, x, weight, prepared);
    return out;
  }

#define CONV2D_PARAMS                                                                                                \
  int64_t in_channels, int64_t stride_h, int64_t stride_w, int64_t padding_h, int64_t padding_w, int64_t dilation_h, \
      int64_t dilation_w, int64_t groups, bool unit
#define CONV2D_SHAPE(op)      \
  check_conv2d(op, x, weight, \
               {in_channels, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups, unit})
#define FLOAT_PARAMS const OptionalTensor &residual, const OptionalTensor &slope, const std::optional<ScalarType>&dtype

  static Tensor conv2d_int32(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared, CONV2D_PARAMS) {
    return int32(CONV2D_SHAPE("conv2d_int32"), false, x, weight, prepared);
  }

  static Tensor conv2d_float(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared, const Tensor& scale,
                             const Tensor& bias, CONV2D_PARAMS, FLOAT_PARAMS, bool relu) {
    return floats("conv2d_float", CONV2D_SHAPE("conv2d_float"), false, x, weight, prepared, scale, bias,
                  {residual, slope, dtype, relu});
  }

  static std::tuple<Tensor, Tensor> conv2d_float_bits(const Tensor& x, const Tensor& weight,
                                                      const OptionalTensor& prepared, const Tensor& scale,
                                                      const Tensor& bias, const Tensor& cut, const Tensor& direction,
                                                      CONV2D_PARAMS, FLOAT_PARAMS, bool relu) {
    Tensor packed;
    Tensor out = floats("conv2d_float_bits", CONV2D_SHAPE("conv2d_float_bits"), false, x, weight, prepared, scale, bias,
                        {residual, slope, dtype, relu, &cut, &direction}, &packed);
    return {std::move(out), std::move(packed)};
  }

  static Tensor conv2d_bits(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared,
                            const Tensor& threshold, const OptionalTensor& flip, CONV2D_PARAMS) {
    return bits("conv2d_bits", CONV2D_SHAPE("conv2d_bits"), false, x, weight, prepared, threshold, flip);
  }

  static Tensor linear_int32(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared, int64_t in_features,
                             bool unit) {
    return int32(check_linear("linear_int32", x, weight, in_features, unit), true, x, weight, prepared);
  }

  static Tensor linear_float(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared, const Tensor& scale,
                             const Tensor& bias, int64_t in_features, bool unit, FLOAT_PARAMS) {
    return floats("linear_float", check_linear("linear_float", x, weight, in_features, unit), true, x, weight, prepared,
                  scale, bias, {residual, slope, dtype});
  }

  static Tensor linear_bits(const Tensor& x, const Tensor& weight, const OptionalTensor& prepared,
                            const Tensor& threshold, const OptionalTensor& flip, int64_t in_features, bool unit) {
    return bits("linear_bits", check_linear("linear_bits", x, weight, in_features, unit), true, x, weight, prepared,
                threshold, flip);
  }

#undef CONV2D_PARAMS
#undef CONV2D_SHAPE
#undef FLOAT_PARAMS

  template <typename Library>
  static void implement(Library& m) {
    m.impl("conv2d_int32", TORCH_BOX(&conv2d_int32));
    m.impl("conv2d_float", TORCH_BOX(&conv2d_float));
    m.impl("conv2d_float_bits", TORCH_BOX(&conv2d_float_bits));
    m.impl("conv2d_bits", TORCH_BOX(&conv2d_bits));
    m.impl("linear_int32", TORCH_BOX(&linear_int32));
    m.impl("linear_float", TORCH_BOX(&linear_float));
    m.impl("linear_bits", TORCH_BOX(&linear_bits));
  }
};

}  // namespace bitnas::ops
